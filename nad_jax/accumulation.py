"""Second moments of the input derivatives of an ensemble, accumulated network by network.

Each network n depends on (key, n) alone. The state is the moments of either half of the ensemble,
or sketches of them.
"""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax import covariance, ensemble, sketch
from nad_jax.covariance import Moments
from nad_jax.derivatives import Derivative, central_difference, input_gradient
from nad_jax.errors import InputError
from nad_jax.estimator import Estimator, find_group, num_features, resolve_estimator
from nad_jax.models import Model
from nad_jax.sketch import Sketch
from nad_jax.snapshots import Snapshots
from nad_jax.store import DamagedError


class Halves(NamedTuple):
    """The streaming state: second moments of the members of even and of odd number, or sketches of
    them.

    diverged: [] how many members had a derivative that is not finite; they are in neither.
    """

    even: Moments | Sketch
    odd: Moments | Sketch
    diverged: jax.Array


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
    """The state as named NumPy arrays: even_<field> and odd_<field> of `Moments` or of a `Sketch`,
    and diverged.
    """
    arrays = {"diverged": np.asarray(halves.diverged)}
    for half in ("even", "odd"):
        moments = getattr(halves, half)
        arrays |= {f"{half}_{name}": np.asarray(value) for name, value in moments._asdict().items()}
    return arrays


def halves_from_arrays(arrays: dict[str, np.ndarray]) -> Halves:
    """The inverse of `halves_to_arrays`; other arrays are left alone.

    Raises:
      InputError: for a state of an earlier version, whose sums had no exponent.
    """
    if "even_exponent" not in arrays:
        raise InputError(
            "state: its sums have no exponent, an earlier version stored it; remove its snapshots"
        )
    kind = Sketch if "even_basis" in arrays else Moments
    even, odd = (
        kind(*(jnp.asarray(arrays[f"{half}_{name}"]) for name in kind._fields))
        for half in ("even", "odd")
    )
    return Halves(even, odd, jnp.asarray(arrays["diverged"]))


def count_rows(arrays: dict[str, Any], num_rows: int) -> int:
    """The rows of all networks that stored states have seen, `num_rows` of each; diverged ones
    count as well.
    """
    counted = sum(int(array) for name, array in arrays.items() if name.endswith("_count"))
    return counted + num_rows * sum(
        int(array) for name, array in arrays.items() if name.endswith("diverged")
    )


def _pack(states: list[Halves]) -> dict[str, np.ndarray]:
    """States as named arrays, each under its number; without the test directions, which the
    computation has.
    """
    return {
        f"{place}_{name}": array
        for place, state in enumerate(states)
        for name, array in halves_to_arrays(state).items()
        if not name.endswith("_basis")
    }


def _unpack(arrays: dict[str, np.ndarray], like: Halves) -> list[Halves]:
    """The inverse of `_pack`, whatever the number of states; test directions are those of `like`."""
    states: list[dict[str, Any]] = [{} for name in arrays if name.endswith("_diverged")]
    for place, state in enumerate(states):
        start = f"{place}_"
        state |= {
            name.removeprefix(start): array
            for name, array in arrays.items()
            if name.startswith(start)
        }
        if isinstance(like.even, Sketch):
            state |= {"even_basis": like.even.basis, "odd_basis": like.odd.basis}
    return [halves_from_arrays(state) for state in states]


def check_finite(halves: Halves, num_networks: int) -> None:
    """Raises `InputError` where a network was left out."""
    if int(halves.diverged):
        raise InputError(
            f"model: the derivative of {int(halves.diverged)} of {num_networks} networks is not "
            "finite"
        )


def is_zero(halves: Halves) -> bool:
    """Whether derivatives have been seen, and every one of them is exactly zero."""

    def seen(moments: Moments | Sketch) -> bool:
        sums = (
            (moments.square,)
            if isinstance(moments, Sketch)
            else (moments.mean, jnp.diagonal(moments.scatter))
        )
        return any(bool(jnp.any(total != 0)) for total in sums)

    return int(halves.even.count) + int(halves.odd.count) > 0 and not (
        seen(halves.even) or seen(halves.odd)
    )


def choose_derivative(estimator: Estimator, **changes: Any) -> Derivative:
    """The derivative that an estimator with such changes takes."""
    estimator = dataclasses.replace(estimator, **changes)
    if estimator.derivative == "central_difference":
        return central_difference(estimator.step, estimator.block_size)
    return input_gradient


def split_member(key: jax.Array) -> jax.Array:
    """Keys [3] of a network, from its own: of its variables, of its read-outs, of its point."""
    return jax.random.split(key, 3)


def draw_point(model: Model, estimator: Estimator, key: jax.Array) -> jax.Array:
    """A point [H, W, C] where derivatives are taken."""
    return estimator.point_scale * jax.random.normal(key, model.image_shape, jnp.float32)


def _make_member_rows(
    model: Model, estimator: Estimator, num_rows: int
) -> Callable[..., jax.Array]:
    """`rows(variables, readout_key, x) -> [R, D]` of one network; the mean of g gᵀ over all is the
    second moment.
    """
    derivative = choose_derivative(estimator)
    from_features = estimator.readout == "marginalized" or num_rows > 1
    # √F τ: the mean over the F rows of the Jacobian is then τ² JᵀJ.
    scale = (
        float(np.sqrt(num_rows * model.readout_variance))
        if estimator.readout == "marginalized"
        else 1.0
    )

    def readouts(key: jax.Array) -> jax.Array | None:
        if estimator.readout == "marginalized":
            return None
        bound = float(np.sqrt(3.0 * model.readout_variance))
        return jax.random.uniform(
            key, (num_rows, num_features(model)), jnp.float32, minval=-bound, maxval=bound
        )

    def rows(variables: Any, readout_key: jax.Array, x: jax.Array) -> jax.Array:
        if from_features:
            rows = derivative(
                lambda images: model.features(variables, images), x, readouts(readout_key)
            )
            return scale * rows.astype(jnp.float32)
        logit = estimator.logit or 0
        rows = derivative(
            lambda images: model.apply(variables, images)[:, logit, None], x, jnp.ones((1, 1))
        )
        return rows.astype(jnp.float32)

    return rows


def count_together(model: Model, mapping: str, chunk_size: int) -> int:
    """How many networks are initialized at a time: small ones together, up to 4 MB, which draws at
    full speed.
    """
    if mapping == "vectorized":
        return chunk_size
    leaves = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    most = max(1, 2**20 // max(1, sum(leaf.size for leaf in leaves)))
    return max(size for size in range(1, min(most, chunk_size) + 1) if chunk_size % size == 0)


def make_add_chunk(
    model: Model, estimator: Estimator, num_networks: int
) -> tuple[Callable[..., Halves], Estimator, int]:
    """The compiled `add_chunk(key, halves, first, stop) -> Halves` of `make_accumulate`.

    It adds the networks first … min(stop, first + chunk_size) − 1. Beside it: the estimator without
    automatic choices, and R, the rows that one network gives. Raises as `make_accumulate`.
    """
    estimator, num_rows = resolve_estimator(model, estimator, num_networks)
    member_rows = _make_member_rows(model, estimator, num_rows)
    chunk_size, moved = estimator.chunk_size, find_group(model, estimator)
    together = count_together(model, estimator.mapping, chunk_size)

    def draw_rows(keys: jax.Array, shared_point: jax.Array) -> jax.Array:
        """The rows of a few networks [·, R, D]."""
        init_keys, readout_keys, point_keys = jnp.unstack(jax.vmap(split_member)(keys), axis=1)

        def rows(variables: Any, readout_key: jax.Array, point_key: jax.Array) -> jax.Array:
            x = (
                draw_point(model, estimator, point_key)
                if estimator.point == "fresh"
                else shared_point
            )
            return member_rows(variables, readout_key, x)

        variables = jax.vmap(model.init)(init_keys)
        return ensemble.map_members(rows, estimator.mapping, variables, readout_keys, point_keys)

    @partial(jax.jit, donate_argnums=1)
    def add_chunk(key: jax.Array, halves: Halves, first: jax.Array, stop: jax.Array) -> Halves:
        # TensorFloat-32 and bfloat16, the accelerators' defaults, would spoil the small
        # eigenvalues.
        with jax.default_matmul_precision("highest"):
            shared_point = draw_point(model, estimator, ensemble.named_key(key, "point"))
            members, valid = ensemble.padded_members(first, stop, chunk_size)
            keys = ensemble.member_keys(ensemble.named_key(key, "networks"), members)
            rows = jax.lax.map(
                lambda keys: draw_rows(keys, shared_point), keys.reshape(-1, together)
            )
            rows = rows.reshape(chunk_size, num_rows, -1)
            finite = jnp.isfinite(rows).all((1, 2))
            diverged = halves.diverged + jnp.sum(valid & ~finite, dtype=jnp.int32)
            if (
                isinstance(halves.even, Sketch) and len(moved) > 1
            ):  # moments are symmetrized in the end
                rows = rows[:, :, moved].reshape(chunk_size, -1, rows.shape[-1])
            valid = jnp.repeat(valid & finite, rows.shape[1]).reshape(chunk_size, -1)

            def half(moments: Moments | Sketch, parity: int) -> Moments | Sketch:
                return _module(moments).update(
                    moments,
                    rows[parity::2].reshape(-1, rows.shape[-1]),
                    valid[parity::2].reshape(-1),
                )

            return Halves(half(halves.even, 0), half(halves.odd, 1), diverged)

    return add_chunk, estimator, num_rows


def make_accumulate(
    model: Model, estimator: Estimator, num_networks: int
) -> tuple[Callable[..., Halves], Estimator]:
    """Builds `accumulate(key, halves, first, stop, progress, snapshots) -> Halves`, and the
    estimator it resolved.

    `accumulate` adds the networks first … stop − 1 (`first` even) to the state, its chunks spread
    over the local devices; a network whose derivative is not finite is counted and left out.
    `progress(done)` is called after each chunk with the number of networks done so far; with
    `snapshots`, see `Snapshots`, a call that was interrupted is taken up again by the same one: to
    the bit with as many devices, to rounding with more or fewer. What the state is before and, of a
    sketch, its test directions must be part of their identity. Memory does not depend on the number
    of networks. `num_networks` is how many it will be given at a time: no automatic chunk is
    larger.

    Raises:
      InputError: where the estimator's values are wrong or do not fit the model.
    """
    add_chunk, estimator, num_rows = make_add_chunk(model, estimator, num_networks)
    chunk_size = estimator.chunk_size

    def accumulate(
        key: jax.Array,
        halves: Halves,
        first: int,
        stop: int,
        progress: Callable[[int], None] | None = None,
        snapshots: Snapshots | None = None,
    ) -> Halves:
        if first % 2:
            raise InputError(f"first: must be even (halves of even and odd members), got {first}")
        counted = num_rows * (
            len(find_group(model, estimator)) if isinstance(halves.even, Sketch) else 1
        )
        if stop * counted >= 2**31:
            raise InputError(
                f"num_networks: at most {2**31 // counted} of {counted} rows each are counted, got "
                f"{stop}"
            )

        def check_kept(kept: dict[str, np.ndarray]) -> None:
            before = {
                "even_count": halves.even.count,
                "odd_count": halves.odd.count,
                "diverged": halves.diverged,
            }
            networks = (count_rows(kept, counted) - count_rows(before, counted)) / counted
            if networks != int(kept["done"]) - first:
                raise DamagedError(
                    f"it holds {networks:g} networks, not {int(kept['done']) - first}"
                )

        # One state on each device, so that none waits for another; they are merged in the end.
        devices, parts, done = jax.local_devices(), [halves], first
        if snapshots is not None and (kept := snapshots.load(check_kept)) is not None:
            parts, done = _unpack(kept, halves), int(kept["done"])
        parts += [_init_like(halves)] * (len(devices) - len(parts))
        # Of more states than there are devices now, each takes several.
        parts = [
            functools.reduce(merge_halves, parts[place :: len(devices)])
            for place in range(len(devices))
        ]
        states = [jax.device_put(part, d) for part, d in zip(parts, devices, strict=True)]
        states = jax.tree.map(jnp.copy, states)  # the caller's arrays are not donated
        for begin in range(done, stop, chunk_size * len(devices)):
            for place, start in enumerate(range(begin, stop, chunk_size)[: len(devices)]):
                numbers = jax.device_put((key, np.int32(start), np.int32(stop)), devices[place])
                states[place] = add_chunk(numbers[0], states[place], *numbers[1:])
            done = min(begin + chunk_size * len(devices), stop)
            if progress is not None or snapshots is not None:
                jax.block_until_ready(states)
            if snapshots is not None and snapshots.due():
                snapshots.save(done, {**_pack(states), "done": np.asarray(done)})
            if progress is not None:
                progress(done - first)
        total, *others = (jax.device_put(state, devices[0]) for state in states)
        return functools.reduce(merge_halves, others, total)

    return accumulate, estimator
