"""Neural anisotropy directions: the estimators, and the record they return.

NADs are the eigenvectors of E_θ[g gᵀ], θ drawn from an architecture's own initialization and g an input derivative
of one logit in evaluation mode (NAD, Section 3). Each network n of an ensemble depends on (key, n) alone.
"""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax import covariance, ensemble, errors, sketch, spectral, subspaces
from nad_jax.covariance import Moments
from nad_jax.derivatives import Derivative, central_difference, input_gradient
from nad_jax.errors import InputError, check_choice, check_integer, check_number, unknown
from nad_jax.models import Model
from nad_jax.sketch import Sketch

if TYPE_CHECKING:
    from nad_jax.snapshots import Snapshots  # which stands above: it stores the state that is computed here

DERIVATIVES = ("central_difference", "input_gradient")
POINTS = ("shared", "fresh")
READOUTS = ("sampled", "marginalized")
_LONGEST = 1e14  # of a derivative: the squares of four billion of them are still a float32


@dataclasses.dataclass(frozen=True)
class Estimator:
    """Every choice that defines an estimate besides the model, the key and the number of networks.

    derivative: "central_difference", which reproduces the published NADs, or "input_gradient", their definition.
    step: h of the central difference, in units of the input.
    point: where the derivative is taken: at one point "shared" by all networks, or a "fresh" one for each.
    point_scale: points are drawn from N(0, point_scale² I); 0 is the origin.
    readout: "sampled": the last layer as initialized (published). "marginalized": integrated out in closed form,
      E[g gᵀ | φ] = τ² JᵀJ with J the derivative of the features φ; exact, and worth ten times the networks or more.
    num_readouts: with "sampled", independent read-outs per network; above 1 they are drawn uniformly with variance
      τ² (only this second moment enters E[g gᵀ]) on the same features.
    logit: which of several logits; None where there is one.
    centred: subtract the mean derivative, as the published PCA does; only with "sampled" (the mean is exactly 0).
    block_size: pixels per forward pass of the central difference.
    mapping: how members are mapped: "vectorized", "sequential" or "auto" (sequential on a CPU).
    chunk_size: members per call of the compiled program, even; 0 is automatic. Changes results by rounding alone.
    """

    derivative: str = "central_difference"
    step: float = 100.0
    point: str = "shared"
    point_scale: float = 1.0
    readout: str = "marginalized"
    num_readouts: int = 1
    logit: int | None = None
    centred: bool = False
    block_size: int = 64
    mapping: str = "auto"
    chunk_size: int = 0

    def problems(self) -> list[str]:
        """What is wrong with these values, one line each."""
        problems = errors.problems(
            lambda: check_choice("derivative", self.derivative, DERIVATIVES),
            lambda: check_number("step", self.step, 0.0, exclusive=True),
            lambda: check_choice("point", self.point, POINTS),
            lambda: check_number("point_scale", self.point_scale, 0.0),
            lambda: check_choice("readout", self.readout, READOUTS),
            lambda: check_integer("num_readouts", self.num_readouts, 1),
            lambda: self.logit is None or check_integer("logit", self.logit, 0),
            lambda: check_choice("centred", self.centred, (False, True)),
            lambda: check_integer("block_size", self.block_size, 1),
            lambda: check_choice("mapping", self.mapping, ("auto", *ensemble.MAPPINGS)),
            lambda: check_integer("chunk_size", self.chunk_size, 0),
        )
        if problems:
            return problems
        if self.chunk_size % 2:
            problems.append(f"chunk_size: must be even (halves of even and odd members), got {self.chunk_size}")
        if self.readout == "marginalized" and self.num_readouts != 1:
            problems.append(f"num_readouts: must be 1 with readout='marginalized', got {self.num_readouts}")
        if self.readout == "marginalized" and self.centred:
            problems.append("centred: must be False with readout='marginalized', whose mean is exactly 0")
        return problems


def check_num_networks(num_networks: int, estimator: Estimator) -> None:
    """Raises `InputError` where a half of the ensemble has no rows, or a centred one fewer than two."""
    check_integer("num_networks", num_networks, 4 if estimator.centred and estimator.num_readouts == 1 else 2)


class Halves(NamedTuple):
    """The streaming state: second moments of the members of even and of odd number, or sketches of them.

    diverged: [] how many members had a derivative that is not finite; they are in neither.
    """

    even: Moments | Sketch
    odd: Moments | Sketch
    diverged: jax.Array


class NADs(NamedTuple):
    """Neural anisotropy directions and how sure they are.

    directions:         [K, D] unit rows, descending.
    eigenvalues:        [K] of E[g gᵀ] of the single logit (the published arrays hold singular values s instead,
                        with eigenvalue = s²/(N − 1), N = 10,000).
    eigenvalue_sem:     [K] standard error of u_iᵀ G u_i at the found u_i: half its difference between the two
                        halves of the ensemble (one degree of freedom, so read it along i, not at one i). That the
                        u_i were sorted by the same networks is not in it: leading eigenvalues of small ensembles
                        are biased upward, by 2 to 4 of these errors at 40 networks.
    overlap_sizes:      [S] subspace sizes k.
    split_half_overlap: [S] ‖U_k V_kᵀ‖²/k between the NADs of even and of odd members: an estimate of the
                        agreement of two ensembles of half the size.
    num_networks:       N.
    config:             every choice that was made.
    """

    directions: np.ndarray
    eigenvalues: np.ndarray
    eigenvalue_sem: np.ndarray
    overlap_sizes: np.ndarray
    split_half_overlap: np.ndarray
    num_networks: int
    config: dict[str, Any]


def resolve_estimator(model: Model, estimator: Estimator, num_networks: int) -> tuple[Estimator, int]:
    """The estimator without automatic choices, and R, the rows that one network gives; raises what does not fit."""
    problems = estimator.problems()
    if problems:
        raise InputError("\n".join(problems))
    if estimator.logit is None and model.num_logits > 1:
        raise InputError(f"logit: the model has {model.num_logits} logits; choose one in 0 … {model.num_logits - 1}")
    if estimator.logit is not None and estimator.logit >= model.num_logits:
        raise InputError(f"logit: must be in 0 … {model.num_logits - 1}, got {estimator.logit}")
    num_rows = estimator.num_readouts
    if estimator.readout == "marginalized" or num_rows > 1:
        choice = f"readout={estimator.readout!r}" + (f" with num_readouts={num_rows}" if num_rows > 1 else "")
        if model.features is None:
            raise InputError(
                f"readout: {choice} needs the input of the last linear layer, which this model does not expose; "
                "give the model `features`, or use readout='sampled' with num_readouts=1"
            )
        if model.readout_variance is None:
            raise InputError(f"readout_variance: {choice} needs τ², the variance of the last layer's weights")
        if estimator.readout == "marginalized":
            num_rows = num_features(model)
    mapping = estimator.mapping
    if mapping == "auto":
        mapping = "sequential" if jax.default_backend() == "cpu" else "vectorized"
    chunk_size = estimator.chunk_size
    if chunk_size == 0:
        # 4 MB of rows: enough members to amortize the update, few enough for steady progress.
        pairs = 2**20 // (2 * num_rows * int(np.prod(model.image_shape)))
        chunk_size = 2 * max(1, min(pairs, 256, (num_networks + 1) // 2))
    return dataclasses.replace(estimator, mapping=mapping, chunk_size=chunk_size), num_rows


def num_features(model: Model) -> int:
    """F, the width of the input of the last linear layer."""
    variables = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    return jax.eval_shape(model.features, variables, image).shape[-1]


def _make_member_rows(model: Model, estimator: Estimator, num_rows: int) -> Callable[..., jax.Array]:
    """`rows(key, shared_point) -> [R, D]` of one network; the mean over all rows of g gᵀ is the second moment."""
    derivative: Derivative = input_gradient
    if estimator.derivative == "central_difference":
        derivative = central_difference(estimator.step, estimator.block_size)
    from_features = estimator.readout == "marginalized" or num_rows > 1
    # √F τ: the mean over the F rows of the Jacobian is then τ² JᵀJ.
    scale = float(np.sqrt(num_rows * model.readout_variance)) if estimator.readout == "marginalized" else 1.0

    def readouts(key: jax.Array) -> jax.Array | None:
        if estimator.readout == "marginalized":
            return None
        bound = float(np.sqrt(3.0 * model.readout_variance))
        return jax.random.uniform(key, (num_rows, num_features(model)), jnp.float32, minval=-bound, maxval=bound)

    def rows(key: jax.Array, shared_point: jax.Array) -> jax.Array:
        init_key, readout_key, point_key = jax.random.split(key, 3)
        variables = model.init(init_key)
        x = shared_point
        if estimator.point == "fresh":
            x = estimator.point_scale * jax.random.normal(point_key, model.image_shape, jnp.float32)
        if from_features:
            return scale * derivative(lambda images: model.features(variables, images), x, readouts(readout_key))
        logit = estimator.logit or 0
        return derivative(lambda images: model.apply(variables, images)[:, logit, None], x, jnp.ones((1, 1)))

    return rows


def make_add_chunk(
    model: Model, estimator: Estimator, num_networks: int
) -> tuple[Callable[..., Halves], Estimator, int]:
    """The compiled `add_chunk(key, halves, first, stop) -> Halves` of `make_accumulate`.

    It adds the networks first … min(stop, first + chunk_size) − 1. Beside it: the estimator without automatic
    choices, and R, the rows that one network gives. Raises as `make_accumulate`.
    """
    estimator, num_rows = resolve_estimator(model, estimator, num_networks)
    member_rows = _make_member_rows(model, estimator, num_rows)
    chunk_size = estimator.chunk_size

    @partial(jax.jit, donate_argnums=1)
    def add_chunk(key: jax.Array, halves: Halves, first: jax.Array, stop: jax.Array) -> Halves:
        # TensorFloat-32 and bfloat16, the accelerators' defaults, would spoil the small eigenvalues.
        with jax.default_matmul_precision("highest"):
            shared_point = estimator.point_scale * jax.random.normal(
                ensemble.named_key(key, "point"), model.image_shape, jnp.float32
            )
            members, valid = ensemble.padded_members(first, stop, chunk_size)
            keys = ensemble.member_keys(ensemble.named_key(key, "networks"), members)
            rows = ensemble.map_members(lambda key: member_rows(key, shared_point), estimator.mapping, keys)
            rows = rows.reshape(chunk_size, num_rows, -1)
            finite = jnp.sum(rows**2, (1, 2)) < _LONGEST**2
            diverged = halves.diverged + jnp.sum(valid & ~finite, dtype=jnp.int32)
            valid = jnp.repeat(valid & finite, num_rows).reshape(chunk_size, num_rows)

            def half(moments: Moments | Sketch, parity: int) -> Moments | Sketch:
                return _module(moments).update(
                    moments, rows[parity::2].reshape(-1, rows.shape[-1]), valid[parity::2].reshape(-1)
                )

            return Halves(half(halves.even, 0), half(halves.odd, 1), diverged)

    return add_chunk, estimator, num_rows


def make_accumulate(model: Model, estimator: Estimator, num_networks: int) -> tuple[Callable[..., Halves], Estimator]:
    """Builds `accumulate(key, halves, first, stop, progress, snapshots) -> Halves`, and the estimator it resolved.

    `accumulate` adds the networks first … stop − 1 (`first` even) to the state, its chunks spread over the local
    devices; a network whose derivative is not finite, or longer than 1e14, is counted and left out. `progress(done)`
    is called after each chunk with the number of networks done so far; with `snapshots`, see `Snapshots`, a call that
    was interrupted is taken up again by the same one. Memory does not depend on the number of networks.
    `num_networks` is how many it will be given at a time: no automatic chunk is larger.

    Raises:
      InputError: where the estimator's values are wrong or do not fit the model.
    """
    add_chunk, estimator, num_rows = make_add_chunk(model, estimator, num_networks)
    chunk_size, devices = estimator.chunk_size, jax.local_devices()

    def accumulate(
        key: jax.Array,
        halves: Halves,
        first: int,
        stop: int,
        progress: Callable[[int], None] | None = None,
        snapshots: "Snapshots | None" = None,
    ) -> Halves:
        if first % 2:
            raise InputError(f"first: must be even (halves of even and odd members), got {first}")
        if stop * num_rows >= 2**32:
            raise InputError(
                f"num_networks: at most {2**32 // num_rows} of {num_rows} rows each are counted, got {stop}"
            )
        # One state on each device, so that none waits for another; they are merged in the end.
        empty = _init_like(halves)
        states, done = [jax.device_put(halves if place == 0 else empty, d) for place, d in enumerate(devices)], first
        if snapshots is not None and (kept := snapshots.load()) is not None:
            states = [jax.device_put(_unpack(kept, place), d) for place, d in enumerate(devices)]
            done = int(kept["done"])
        states = jax.tree.map(jnp.copy, states)  # the caller's arrays are not donated
        for begin in range(done, stop, chunk_size * len(devices)):
            for place, start in enumerate(range(begin, stop, chunk_size)[: len(devices)]):
                numbers = jax.device_put((key, np.int32(start), np.int32(stop)), devices[place])
                states[place] = add_chunk(numbers[0], states[place], *numbers[1:])
            done = min(begin + chunk_size * len(devices), stop)
            if progress is not None or snapshots is not None:
                jax.block_until_ready(states)
            if snapshots is not None and snapshots.due():
                kept = {name: array for place, state in enumerate(states) for name, array in _pack(state, place)}
                snapshots.save(done, {**kept, "done": np.asarray(done)})
            if progress is not None:
                progress(done - first)
        total, *others = (jax.device_put(state, devices[0]) for state in states)
        return functools.reduce(merge_halves, others, total)

    return accumulate, estimator


def init_halves(dimension: int) -> Halves:
    """The state that has seen no networks."""
    return Halves(covariance.init(dimension), covariance.init(dimension), jnp.int32(0))


def _module(moments: Moments | Sketch) -> Any:
    """What updates and merges such a state: `covariance` or `sketch`."""
    return sketch if isinstance(moments, Sketch) else covariance


def _init_like(halves: Halves) -> Halves:
    """The state of the same kind that has seen no networks."""
    if isinstance(halves.even, Moments):
        return init_halves(halves.even.mean.size)
    return Halves(sketch.init(halves.even.basis), sketch.init(halves.odd.basis), jnp.int32(0))


def merge_halves(left: Halves, right: Halves) -> Halves:
    """The state that has seen the networks of both."""
    merge = _module(left.even).merge
    even, odd = merge(left.even, right.even), merge(left.odd, right.odd)
    return Halves(even, odd, left.diverged + right.diverged)


def halves_to_arrays(halves: Halves) -> dict[str, np.ndarray]:
    """The state as named NumPy arrays: even_count, even_mean, even_scatter (or those of a sketch), odd_…, diverged."""
    arrays = {"diverged": np.asarray(halves.diverged)}
    for half in ("even", "odd"):
        moments = getattr(halves, half)
        arrays |= {f"{half}_{name}": np.asarray(value) for name, value in moments._asdict().items()}
    return arrays


def _pack(halves: Halves, place: int) -> list[tuple[str, np.ndarray]]:
    return [(f"{place}_{name}", array) for name, array in halves_to_arrays(halves).items()]


def _unpack(arrays: dict[str, np.ndarray], place: int) -> Halves:
    start = f"{place}_"
    return halves_from_arrays({name.removeprefix(start): a for name, a in arrays.items() if name.startswith(start)})


def halves_from_arrays(arrays: dict[str, np.ndarray]) -> Halves:
    """The inverse of `halves_to_arrays`; other arrays are left alone."""
    kind = Sketch if "even_basis" in arrays else Moments
    even, odd = (kind(*(jnp.asarray(arrays[f"{half}_{name}"]) for name in kind._fields)) for half in ("even", "odd"))
    return Halves(even, odd, jnp.asarray(arrays["diverged"]))


def finalize(
    halves: Halves, num_networks: int, config: dict[str, Any], centred: bool = False, sizes: tuple[int, ...] = ()
) -> NADs:
    """The NADs of an accumulated state of at least two networks: three dense eigendecompositions.

    Args:
      halves: the state, with both halves non-empty.
      num_networks: N, recorded.
      config: every choice that was made, recorded.
      centred: read off the centred covariance.
      sizes: of subspaces whose overlap is reported, besides the default ones.

    Raises:
      InputError: where every derivative is exactly zero (a bias-free ReLU network at the origin, say), or a half of
        the ensemble has no network whose derivative is finite.
    """
    if min(int(halves.even.count), int(halves.odd.count)) < (2 if centred else 1):
        raise InputError(
            f"model: a half of the ensemble has too few finite derivatives; {int(halves.diverged)} networks have none"
        )
    moment = covariance.covariance if centred else covariance.second_moment
    matrix = moment(covariance.merge(halves.even, halves.odd))
    if not float(jnp.trace(matrix)) > 0:
        raise InputError("model: every derivative is exactly zero at this point; there are no directions to rank")
    eigenvalues, directions = spectral.eigh_dense(matrix)
    sizes = tuple(sorted({*subspaces.default_sizes(matrix.shape[0]), *sizes}))
    split_half = _split_half_overlap(halves, sizes, centred)
    even, odd = (np.asarray(moment(half), np.float64) for half in (halves.even, halves.odd))
    difference = np.einsum("kd,kd->k", directions @ (even - odd), directions)
    return NADs(
        directions=directions,
        eigenvalues=eigenvalues,
        eigenvalue_sem=(np.abs(difference) / 2).astype(np.float32),
        overlap_sizes=np.array(sizes),
        split_half_overlap=split_half.astype(np.float32),
        num_networks=num_networks,
        config=config,
    )


def _split_half_overlap(halves: Halves, sizes: tuple[int, ...], centred: bool) -> np.ndarray:
    moment = covariance.covariance if centred else covariance.second_moment
    return subspaces.subspace_overlap(*(spectral.eigh_dense(moment(half))[1] for half in halves[:2]), sizes)


def record_choices(model: Model, estimator: Estimator, key: jax.Array) -> dict[str, Any]:
    """Everything that determines an ensemble's networks and how they were measured, as JSON values."""
    return {
        "image_shape": list(model.image_shape),
        **model.description,
        **dataclasses.asdict(estimator),
        "key": [str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key)).tolist()],
    }


def estimate_nads(
    model: Model,
    num_networks: int,
    key: jax.Array | int = 0,
    progress: Callable[[int], None] | None = None,
    stop_overlap: float | None = None,
    stop_size: int = 64,
    **choices: Any,
) -> NADs:
    """The NADs of a model from `num_networks` independent initializations, or from as many as an agreement needs.

    Source: NAD, Section 3, Definition 1 and equation 5; marginalized read-out: derived. The relative error of an
    eigenvalue and of a subspace is reported in the record (`eigenvalue_sem`, `split_half_overlap`).

    Args:
      model: from `create_model`, `from_linen`, `from_nnx` or `from_functions`.
      num_networks: N >= 2; with `stop_overlap` the most that are taken.
      key: a typed random key, or a seed for `make_key`; network n depends on (key, n) alone.
      progress: called with the number of networks done.
      stop_overlap: in (0, 1]: stop at the first look at which the subspaces of `stop_size` directions of the two halves
        of the ensemble overlap so far (see `NADs.split_half_overlap`; that of all networks against the truth is
        better). Looks are a quarter more networks apart; the result is that of a call with so many of them. Without
        having come so far it ends at `num_networks`: the record says how far it came.
      stop_size: k in 1 … D − 1.
      **choices: fields of `Estimator`.

    Raises:
      InputError: for a bad value, a model without reachable features under a read-out that needs them, several
        logits and none chosen, or a network whose derivative is not finite.
    """
    key = resolve_key(key)
    accumulate, estimator = make_accumulate(model, create_estimator("estimate_nads", choices), num_networks)
    check_num_networks(num_networks, estimator)
    dimension = int(np.prod(model.image_shape))
    halves = init_halves(dimension)
    if stop_overlap is None:
        looks = [num_networks]
    else:
        check_number("stop_overlap", stop_overlap, 0.0, exclusive=True)
        if stop_overlap > 1:
            raise InputError(f"stop_overlap: must be at most 1, got {stop_overlap}")
        check_integer("stop_size", stop_size, 1, dimension - 1)
        looks = _plan_looks(num_networks, estimator.chunk_size * jax.local_device_count())
    for done, look in zip([0, *looks], looks, strict=False):
        report = None if progress is None else lambda networks, done=done: progress(done + networks)
        halves = accumulate(key, halves, done, look, report)
        check_finite(halves, look)
        if look < num_networks and _split_half_overlap(halves, (stop_size,), estimator.centred)[0] >= stop_overlap:
            break
    sizes = () if stop_overlap is None else (stop_size,)
    return finalize(halves, look, record_choices(model, estimator, key), estimator.centred, sizes)


def create_estimator(function: str, choices: dict[str, Any]) -> Estimator:
    """The estimator of the choices given to a function; `InputError` for one that it does not have."""
    known = [field.name for field in dataclasses.fields(Estimator)]
    for name in choices:
        if name not in known:
            raise unknown(function, name, known)
    return Estimator(**choices)


def resolve_key(key: jax.Array | int) -> jax.Array:
    """A typed random key as it is, a seed as the key of `make_key`."""
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return ensemble.make_key(key)


def check_finite(halves: Halves, num_networks: int) -> None:
    """Raises `InputError` where a network was left out."""
    if int(halves.diverged):
        raise InputError(f"model: the derivative of {int(halves.diverged)} of {num_networks} networks is not finite")


def _plan_looks(num_networks: int, chunk_size: int) -> list[int]:
    """After how many networks to look: whole chunks, each time a quarter more, and in the end all."""
    looks, chunks = [], 2
    while chunks * chunk_size < num_networks:
        looks.append(chunks * chunk_size)
        chunks += -(-chunks // 4)
    return [*looks, num_networks]


def null_band(nads: NADs) -> tuple[float, float]:
    """The eigenvalues an isotropic covariance of this trace would show from as many sampled read-outs.

    Source: Marchenko–Pastur. Eigenvalues outside it are anisotropy, inside it noise.

    Raises:
      InputError: for marginalized read-outs, whose spectra carry the split-half error instead.
    """
    if nads.config["readout"] != "sampled":
        raise InputError("null_band: belongs to sampled read-outs; marginalized spectra carry `eigenvalue_sem`")
    dimension = nads.directions.shape[1]
    samples = nads.num_networks * nads.config["num_readouts"]
    return spectral.marchenko_pastur_band(float(nads.eigenvalues.sum()) / dimension, dimension, samples)


def degenerate_groups(nads: NADs, leading: int = 16) -> tuple[list[tuple[int, int]], float]:
    """Runs (first, last) of leading directions that are not determined one by one, and the tolerance applied.

    Eigenvalues count as equal within 5 %, or within two standard errors of a difference where that is more
    (median relative `eigenvalue_sem` of the leading ones). A run starts among the `leading` directions and may go
    on beyond. Runs of a smooth spectrum end where the tolerance does, not at a gap.
    """
    sem = nads.eigenvalue_sem[:leading] / np.maximum(nads.eigenvalues[:leading], np.finfo(np.float32).tiny)
    tolerance = min(max(0.05, 2.0 * np.sqrt(2.0) * float(np.median(sem))), 1.0)
    groups = spectral.near_degenerate_groups(nads.eigenvalues, tolerance)
    return [group for group in groups if group[0] < leading], tolerance


class Spectrum(NamedTuple):
    """What stored NADs are at least: `directions` [K, D] with their `eigenvalues` [K]."""

    directions: np.ndarray
    eigenvalues: np.ndarray


def directional_energy(nads: NADs | Spectrum, directions: np.ndarray) -> np.ndarray:
    """vᵀ E[g gᵀ] v for rows v of `directions` [K, D]: the mean squared derivative along each, [K].

    By Chebyshev's inequality P(|vᵀg| ≥ η) ≤ vᵀ E[g gᵀ] v / η² (NAD, Section 3): what a network can see along v.

    Raises:
      InputError: where D is not that of the NADs.
    """
    directions = np.asarray(directions, np.float64)
    if directions.ndim != 2 or directions.shape[1] != nads.directions.shape[1]:
        raise InputError(f"directions: must be [K, {nads.directions.shape[1]}], got shape {directions.shape}")
    return (directions @ nads.directions.T.astype(np.float64)) ** 2 @ nads.eigenvalues


def singular_values(eigenvalues: np.ndarray, num_networks: int = 10_000) -> np.ndarray:
    """√((N − 1) λ): the singular values of the centred [N, D] matrix, which the published arrays hold (N = 10,000)."""
    return np.sqrt((num_networks - 1) * np.asarray(eigenvalues, np.float64))
