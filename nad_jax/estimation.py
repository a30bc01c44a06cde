"""From a model to its directions: grow an ensemble to an agreement, or refine it in passes."""

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax import ensemble, errors, moments, subspaces
from nad_jax.accumulation import Accumulate, Progress, make_accumulate
from nad_jax.batches import add_look
from nad_jax.between_points import measure_between_points
from nad_jax.blocks import Blocks
from nad_jax.choices import (
    INITIALIZED,
    Estimator,
    check_num_networks,
    check_own_layer,
    choose_blocks,
    choose_readout,
    find_symmetries,
    read_choices,
    record_choices,
)
from nad_jax.contract import shape_of_variables
from nad_jax.diagnosis import check_not_zero
from nad_jax.ensemble import Execution
from nad_jax.errors import InputError, check_function, check_integer, check_number
from nad_jax.models import Model
from nad_jax.moments import Accumulator, Halves, init_halves
from nad_jax.nads import NADs
from nad_jax.points import Points, as_points
from nad_jax.reading import (
    Found,
    check_finite,
    find_directions,
    finish,
    keep_batches,
    make_dense,
    overlap_halves,
)
from nad_jax.renamed import takes_old_names
from nad_jax.vector_fields import VectorField


@takes_old_names(key="seed")
def estimate_nads(
    model: Model,
    num_networks: int,
    seed: jax.Array | int = 0,
    progress: Progress | None = None,
    stop_overlap: float | None = None,
    stop_size: int = 64,
    points: Any = None,
    variables: Any = INITIALIZED,
    *,
    derivative: str | VectorField | None = None,
    step: float = Estimator.step,
    point: str = Estimator.point,
    point_scale: float = Estimator.point_scale,
    readout: str | None = None,
    num_readouts: int = Estimator.num_readouts,
    logit: int | None = None,
    symmetrized: bool = Estimator.symmetrized,
    centred: bool = Estimator.centred,
    block_size: int = Estimator.block_size,
    mapping: str = "auto",
    chunk_size: int = 0,
    num_devices: int = 0,
) -> NADs:
    """The NADs of a model from `num_networks` independent initializations, or from as many as an
    agreement needs.

    With `variables` they are those of given networks, trained ones, say: the eigenvectors of
    E[∇f ∇fᵀ] over networks and points, which of one network is the average gradient outer product
    (AGOP, EGOP).

    Source: NAD, Section 3, Definition 1 and equation 5; marginalized read-out: derived. The
    relative error of an eigenvalue and of a subspace is reported in the record (`eigenvalue_sem`,
    `split_half_overlap`).

    Args:
      model: from `create_model`, `from_linen`, `from_nnx` or `from_functions`.
      num_networks: N >= 2, or 1 with several points; with `stop_overlap` the most that are taken.
      seed: an integer, or a typed random key; network n depends on (seed, n) alone.
      progress: called with the number of networks done.
      stop_overlap: in (0, 1]: stop at the first look at which the subspaces of `stop_size`
        directions of the two halves of the ensemble overlap so far (see `NADs.split_half_overlap`;
        that of all networks against the truth is better). Looks are a quarter more networks apart;
        the result is that of a call with so many of them. Without having come so far it ends at
        `num_networks`: the record says how far it came.
      stop_size: k in 1 … D − 1.
      points: where the field is evaluated: [P, *input_shape], averaged over, or a law of them, e.g.
        `images(x, per_network=10)`; None: as `point` and `point_scale` say. Where all networks
        share several points, `point_sem` is the error between them; up to 16 networks are measured
        once more for it, after `progress` has come to its end.
      variables: of given networks, every leaf [N, …], as `train_many(..., keep=True)` returns them;
        left out: as the model initializes them. Their read-out is their own.
      derivative, step, point, point_scale, num_readouts, logit, symmetrized, centred, block_size:
        fields of `Estimator`. The derivative should be given: its default changed, and warns.
      readout: "marginalized", "sampled", see `Estimator`; None: marginalized, of given networks
        their own ("sampled").
      mapping, chunk_size, num_devices: fields of `Execution`.

    Raises:
      InputError: for a bad value, a model without reachable features under a read-out that needs
        them, several logits and none chosen, a network whose derivative is not finite, or
        derivatives that are all zero, with the cause that can be seen (see `diagnosis`).
    """
    estimator, execution = read_choices(locals())
    key, points = ensemble.resolve_key(seed), as_points(points)
    variables = given_variables(variables)
    check_function("progress", progress)
    choose_readout(model, estimator)  # refuses what does not fit before anything else is asked
    num_networks = check_num_networks(num_networks, estimator, points)
    if variables is not None:
        check_variables(model, variables, estimator, num_networks)
    accumulator = make_dense(model, estimator)
    # Automatic chunks are so small that there are batches of them.
    most = num_networks if stop_overlap else batch_size(num_networks)
    accumulate, execution = make_accumulate(
        model, estimator, accumulator, execution, most, points, variables
    )
    halves, dimension = init_halves(accumulator), accumulator.size
    together = execution.chunk_size * len(execution.devices)
    blocks = _known_blocks(model, estimator, points, variables)
    looks = plan_batches(num_networks, together)
    sizes = {*subspaces.report_sizes(dimension, blocks)}
    if stop_overlap is not None:
        stop_overlap = check_number("stop_overlap", stop_overlap, 0.0, exclusive=True)
        if stop_overlap > 1:
            raise InputError(f"stop_overlap: must be at most 1, got {stop_overlap}")
        stop_size = check_integer("stop_size", stop_size, 1, dimension - 1)
        looks = _plan_looks(num_networks, together)
        sizes.add(stop_size)
    seen = []
    for done, look in itertools.pairwise([0, *looks]):
        halves = accumulate(key, halves, done, look, report_after(done, progress))
        seen = add_look(seen, halves)
        if stop_overlap is None and look < num_networks:
            continue
        check_finite(halves)
        check_not_zero(halves, model, estimator, key, points, variables)
        if look < num_networks:
            parts = (accumulator.read(half, estimator.centred) for half in halves[:2])
            if overlap_halves(*parts, (stop_size,), blocks)[0] >= stop_overlap:
                break
    found = find_directions(accumulator, halves, estimator.centred)
    config = record_choices(model, estimator, execution, key, points, variables is not None)
    batches = keep_batches(model, estimator, seen)
    how = tuple(sorted(sizes)), estimator.centred
    nads = finish(accumulator, halves, found, config, *how, looks=seen, batches=batches)
    return measure_between_points(model, estimator, key, nads, points, variables)


def _known_blocks(
    model: Model, estimator: Estimator, points: Points | None, variables: Any
) -> Blocks | None:
    """The exactly equal blocks of a geometry; None where it has none, and of given networks."""
    found = None if variables is not None else choose_blocks(model, estimator, points)
    return found if found is not None and found.count else None


def report_after(before: int, progress: Progress | None) -> Progress | None:
    """What reports the networks done beside those `before`."""
    return None if progress is None else lambda done: progress(before + done)


def given_variables(variables: Any) -> Any:
    """The variables of given networks, or None for those that the model initializes.

    Raises:
      InputError: for None, which is what `train_many` has where they were not kept.
    """
    if variables is None:
        raise InputError(
            "variables: is None; `train_many(..., keep=True)` returns those of trained networks; "
            "leave it out for networks at their initialization"
        )
    return None if variables is INITIALIZED else variables


def check_variables(model: Model, variables: Any, estimator: Estimator, num_networks: int) -> None:
    """Raises `InputError` unless `variables` are those of so many networks of the model."""
    expected = shape_of_variables(model)
    given, wanted = jax.tree.structure(variables), jax.tree.structure(expected)
    if given != wanted:
        raise InputError(f"variables: must be those of the model, {wanted}, got {given}")
    for leaf, one in zip(*map(jax.tree.leaves, (variables, expected)), strict=True):
        shape = np.shape(leaf)
        if not shape or shape[1:] != one.shape or shape[0] < num_networks:
            raise InputError(
                f"variables: a leaf must be [N, {', '.join(map(str, one.shape))}] with N ≥ "
                f"num_networks = {num_networks}, got shape {shape}"
            )
    check_own_layer(estimator)


def batch_size(num_networks: int) -> int:
    """Networks of one of eight batches, an even number: their halves are batches, too."""
    return num_networks if num_networks == 1 else 2 * -(-num_networks // 16)


def plan_batches(num_networks: int, chunk_size: int) -> list[int]:
    """After how many networks to look to have batches of them: whole chunks, and in the end all."""
    step = -(-num_networks // (8 * chunk_size)) * chunk_size
    return [*range(step, num_networks, step), num_networks]


def accumulate_batches(
    accumulate: Accumulate,
    execution: Execution,
    key: jax.Array,
    halves: Halves,
    num_networks: int,
    progress: Progress | None = None,
) -> tuple[Halves, list[Halves]]:
    """The state of an ensemble that has seen all networks, and looks at it after each batch."""
    looks: list[Halves] = []
    batches = plan_batches(num_networks, execution.chunk_size * len(execution.devices))
    for first, stop in itertools.pairwise([0, *batches]):
        halves = accumulate(key, halves, first, stop, report_after(first, progress))
        looks = add_look(looks, halves)
    return halves, looks


def _plan_looks(num_networks: int, chunk_size: int) -> list[int]:
    """After how many networks to look: whole chunks, each time a quarter more, and in the end all."""
    looks, chunks = [], 2
    while chunks * chunk_size < num_networks:
        looks.append(chunks * chunk_size)
        chunks += -(-chunks // 4)
    return [*looks, num_networks]


class Passes(NamedTuple):
    """How leading directions are refined.

    num_directions: K. num_passes: P. num_extra: directions that are iterated beside the K.
    """

    num_directions: int
    num_passes: int
    num_extra: int

    def check(self, dimension: int, estimator: Estimator) -> None:
        """Raises one `InputError` with a line for each value that is wrong."""
        problems = errors.problems(
            lambda: check_integer("num_directions", self.num_directions, 1, dimension - 1),
            lambda: check_integer("num_passes", self.num_passes, 1),
            lambda: check_integer("num_extra", self.num_extra, 0),
        )
        if estimator.centred and estimator.symmetrized:  # a sketch knows that of all mirror images
            problems.append(
                "centred: must be False with symmetrized=True where leading directions are asked for"
            )
        errors.raise_problems(problems)

    def count_tests(self, dimension: int) -> int:
        """How many random test directions the first pass has."""
        return min(3 * (self.num_directions + self.num_extra), dimension)

    def make_accumulator(self, model: Model, estimator: Estimator) -> Accumulator:
        """The accumulator of the leading directions, those that are iterated included."""
        kept = min(self.num_directions + self.num_extra, math.prod(model.image_shape))
        return moments.sketched(kept, *find_symmetries(model, estimator))

    def sizes(self, dimension: int, blocks: Blocks | None = None) -> tuple[int, ...]:
        """The subspace sizes whose overlaps are reported: the default ones below K, of whole blocks
        where there are equal ones, and K.
        """
        defaults = subspaces.report_sizes(dimension, blocks)
        return (*(size for size in defaults if size < self.num_directions), self.num_directions)

    def first_basis(self, key: jax.Array, dimension: int) -> jax.Array:
        """The test directions [L, D] of the first pass, L = 3·(K + extra) or D: random ones."""
        size = self.count_tests(dimension)
        return moments.random_basis(ensemble.named_key(key, "sketch"), size, dimension)


def next_basis(found: Found) -> np.ndarray:
    """The test directions [L, D] of the next pass: the leading ones of all networks, and what the
    halves add to them.

    An angle below .01 adds nothing: the next pass finds it.
    """
    whole = found.whole.directions.astype(np.float64)
    halves = np.concatenate([found.even.directions, found.odd.directions]).astype(np.float64)
    halves -= (halves @ whole.T) @ whole
    values, vectors = np.linalg.eigh(halves @ halves.T)
    kept = values > 1e-4
    halves = (vectors[:, kept] / np.sqrt(values[kept])).T @ halves
    return np.concatenate([found.whole.directions, halves.astype(np.float32)])


def compare_passes(
    found: Found, basis: jax.Array | np.ndarray, sizes: tuple[int, ...]
) -> np.ndarray:
    """‖U_k V_kᵀ‖²/k between a pass and the one before, which its test directions come from: [S]."""
    return subspaces.subspace_overlap(found.whole.directions, basis[: max(sizes)], sizes)


@takes_old_names(key="seed")
def estimate_leading_nads(
    model: Model,
    num_networks: int,
    num_directions: int = 64,
    num_passes: int = 3,
    num_extra: int = 32,
    seed: jax.Array | int = 0,
    progress: Progress | None = None,
    *,
    points: Any = None,
    variables: Any = INITIALIZED,
    derivative: str | VectorField | None = None,
    step: float = Estimator.step,
    point: str = Estimator.point,
    point_scale: float = Estimator.point_scale,
    readout: str | None = None,
    num_readouts: int = Estimator.num_readouts,
    logit: int | None = None,
    symmetrized: bool = Estimator.symmetrized,
    centred: bool = Estimator.centred,
    block_size: int = Estimator.block_size,
    mapping: str = "auto",
    chunk_size: int = 0,
    num_devices: int = 0,
) -> NADs:
    """The leading NADs of a model, in memory proportional to L·D instead of D², L = 3·(K + extra).

    The same networks, rows and moments as `estimate_nads`, which it approaches from pass to pass.
    The networks are not kept: each pass draws them again from their keys. The test directions of a
    pass are the leading eigenvectors found for all networks and for either half, so that the halves
    stay independent of each other.

    Source: NAD, Section 3, Definition 1; randomized subspace iteration: see `moments`.

    Args:
      model, seed, points, variables, and those after them: as in `estimate_nads`. For large inputs:
        derivative="input_gradient", readout="sampled" with several num_readouts.
      num_networks: N >= 2, or 1 with several points; every pass goes over all of them.
      num_directions: K.
      num_passes: P >= 1; flat spectra need more. Of a single pass the split-half overlap is too
        high and the errors are too small: both halves are read off the same random directions.
      num_extra: directions that are iterated beside the K, more of them converge faster.
      progress: called with the number of networks done, of N·P.

    Raises:
      InputError: as `estimate_nads`, and for fewer derivatives than directions in a half of the
        ensemble.
    """
    estimator, execution = read_choices(locals())
    key, points = ensemble.resolve_key(seed), as_points(points)
    variables = given_variables(variables)
    check_function("progress", progress)
    choose_readout(model, estimator)
    num_networks = check_num_networks(num_networks, estimator, points)
    if variables is not None:
        check_variables(model, variables, estimator, num_networks)
    passes = Passes(*map(errors.plain, (num_directions, num_passes, num_extra)))
    dimension = math.prod(model.image_shape)
    passes.check(dimension, estimator)
    accumulator, basis = (
        passes.make_accumulator(model, estimator),
        passes.first_basis(key, dimension),
    )
    how, empty = (execution, num_networks), init_halves(accumulator, basis)
    accumulate, execution = make_accumulate(
        model, estimator, accumulator, *how, points, variables, empty
    )
    blocks = _known_blocks(model, estimator, points, variables)
    sizes, pass_overlap = passes.sizes(dimension, blocks), []
    for number in range(passes.num_passes):
        report = report_after(number * num_networks, progress)
        how = execution, key, init_halves(accumulator, basis), num_networks, report
        halves, looks = accumulate_batches(accumulate, *how)
        check_finite(halves)
        check_not_zero(halves, model, estimator, key, points, variables)
        found = find_directions(accumulator, halves, estimator.centred, passes.num_directions)
        if number > 0:
            pass_overlap.append(compare_passes(found, basis, sizes))
        if number < passes.num_passes - 1:
            basis = jnp.asarray(next_basis(found))
    config = record_choices(model, estimator, execution, key, points, variables is not None)
    config |= {"num_passes": passes.num_passes, "num_extra": passes.num_extra}
    how = {"pass_overlap": pass_overlap, "num_directions": passes.num_directions, "looks": looks}
    nads = finish(accumulator, halves, found, config, sizes, estimator.centred, **how)
    return measure_between_points(model, estimator, key, nads, points, variables)
