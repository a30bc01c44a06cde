"""Leading NADs of inputs too large for a D×D matrix: a sketch of the second moment, refined in
several passes.

The networks are not kept: each pass draws them again from their keys. `estimate_leading_nads` is
the loop over the passes; what it does between them are functions of their own, for programs that
store the sketches of a pass.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax import ensemble, errors, sketch, subspaces
from nad_jax.accumulation import Halves, check_finite, make_accumulate
from nad_jax.diagnosis import check_not_zero
from nad_jax.errors import InputError, check_function, check_integer
from nad_jax.estimator import (
    Estimator,
    check_num_networks,
    create_estimator,
    find_representations,
    record_choices,
)
from nad_jax.models import Model
from nad_jax.nads import NADs
from nad_jax.sketch import Leading
from nad_jax.symmetries import Representation, mean_of_pairs


class LeadingNADs(NamedTuple):
    """Leading NADs and how far their computation has converged.

    nads: the record of K directions; the statistical errors in it are those of the ensemble.
    pass_overlap: [P − 1, S] ‖U_k V_kᵀ‖²/k between each pass and the one before, for the sizes k of
      `nads.overlap_sizes`: what a pass changed. Changes shrink from pass to pass, but bound
      nothing.
    trace: tr E[g gᵀ], of all D directions.
    """

    nads: NADs
    pass_overlap: np.ndarray
    trace: float


class Found(NamedTuple):
    """The leading eigenvectors that a pass finds for all networks, for the even and for the odd
    ones.
    """

    whole: Leading
    even: Leading
    odd: Leading


def check_centred(estimator: Estimator) -> None:
    """Raises `InputError` for a centred and symmetrized estimate: a sketch knows the mean of all
    images only.
    """
    if estimator.centred and estimator.symmetrized:
        raise InputError(
            "centred: must be False with symmetrized=True where leading directions are asked for"
        )


def check_passes(num_directions: int, num_passes: int, num_extra: int, dimension: int) -> list[int]:
    """Returns K, P and the extra directions; raises one `InputError` with a line for each value
    that is wrong.
    """
    problems = errors.problems(
        lambda: check_integer("num_directions", num_directions, 1, dimension - 1),
        lambda: check_integer("num_passes", num_passes, 1),
        lambda: check_integer("num_extra", num_extra, 0),
    )
    if problems:
        raise InputError("\n".join(problems))
    return [int(value) for value in (num_directions, num_passes, num_extra)]


def check_rows(num_rows: int, num_directions: int) -> None:
    """Raises `InputError` where a half of the ensemble gives fewer independent derivatives than
    directions.
    """
    if num_rows < num_directions:
        raise InputError(
            f"num_networks: a half of the ensemble gives {num_rows} independent derivatives, fewer "
            "than "
            f"num_directions = {num_directions}; take more networks or read-outs"
        )


def overlap_sizes(num_directions: int, dimension: int) -> tuple[int, ...]:
    """The subspace sizes whose overlaps are reported: the default ones below K, and K."""
    return (
        *(size for size in subspaces.default_sizes(dimension) if size < num_directions),
        num_directions,
    )


def first_basis(key: jax.Array, num_directions: int, num_extra: int, dimension: int) -> jax.Array:
    """The test directions [L, D] of the first pass, L = 3·(K + extra) or D: random ones."""
    size = min(3 * (num_directions + num_extra), dimension)
    return sketch.random_basis(ensemble.named_key(key, "sketch"), size, dimension)


def find_leading(
    halves: Halves,
    num_directions: int,
    num_extra: int,
    representations: list[Representation],
    centred: bool,
) -> Found:
    """What the sketches of a whole pass say; `representations` from
    `estimator.find_representations`.

    Raises:
      InputError: where a half of the ensemble gives fewer independent derivatives than directions,
        or none at all.
    """
    parts = (sketch.merge(halves.even, halves.odd), halves.even, halves.odd)
    if int(halves.diverged) and not min(int(part.count) for part in parts):
        raise InputError(
            f"model: a half of the ensemble has no finite derivatives; {int(halves.diverged)} "
            "networks have none"
        )
    check_rows(min(int(part.count) for part in parts) - centred, num_directions)
    kept = min(num_directions + num_extra, len(halves.even.basis))
    found = Found(*(sketch.leading(part, kept, representations, centred) for part in parts))
    check_rows(min(len(part.directions) for part in found), num_directions)
    return found


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


def finish(
    halves: Halves,
    found: Found,
    pass_overlap: list[np.ndarray] | np.ndarray,
    num_directions: int,
    num_networks: int,
    config: dict[str, Any],
    centred: bool,
) -> LeadingNADs:
    """The result, from the sketches of the last pass and what was found in them; N and every choice
    are recorded.
    """
    sizes = overlap_sizes(num_directions, halves.even.basis.shape[1])
    directions = found.whole.directions[:num_directions]
    difference = np.subtract(
        *(sketch.energies(half, directions, centred) for half in (halves.even, halves.odd))
    )
    record = NADs(
        directions=directions,
        eigenvalues=found.whole.eigenvalues[:num_directions],
        eigenvalue_sem=np.abs(mean_of_pairs(difference, found.whole.symmetry[:num_directions])) / 2,
        overlap_sizes=np.array(sizes),
        split_half_overlap=subspaces.subspace_overlap(
            found.even.directions, found.odd.directions, sizes
        ).astype(np.float32),
        num_networks=num_networks,
        config=config,
        symmetry=found.whole.symmetry[:num_directions],
    )
    return LeadingNADs(record, np.array(pass_overlap).reshape(-1, len(sizes)), found.whole.trace)


def estimate_leading_nads(
    model: Model,
    num_networks: int,
    num_directions: int = 64,
    num_passes: int = 3,
    num_extra: int = 32,
    key: jax.Array | int = 0,
    progress: Callable[[int], None] | None = None,
    **choices: Any,
) -> LeadingNADs:
    """The leading NADs of a model, in memory proportional to L·D instead of D², L = 3·(K + extra).

    The same networks, derivatives and moments as `estimate_nads`, which it approaches from pass to
    pass. The test directions of a pass are the leading eigenvectors found for all networks and for
    either half, so that the halves stay independent of each other.

    Source: NAD, Section 3, Definition 1; randomized subspace iteration: see `sketch`.

    Args:
      model, key, **choices: as in `estimate_nads`. For large inputs: derivative="input_gradient",
        readout="sampled" with several num_readouts.
      num_networks: N >= 2; every pass goes over all of them.
      num_directions: K.
      num_passes: P >= 1; flat spectra need more. Of a single pass the split-half overlap is too
        high and the errors are too small: both halves are read off the same random directions.
      num_extra: directions that are iterated beside the K, more of them converge faster.
      progress: called with the number of networks done, of N·P.

    Raises:
      InputError: as `estimate_nads`, and for fewer derivatives than directions in a half of the
        ensemble.
    """
    key = ensemble.resolve_key(key)
    check_function("progress", progress)
    estimator = create_estimator("estimate_leading_nads", choices)
    num_networks = check_num_networks(num_networks, estimator)
    check_centred(estimator)
    accumulate, estimator = make_accumulate(model, estimator, num_networks)
    dimension = int(np.prod(model.image_shape))
    num_directions, num_passes, num_extra = check_passes(
        num_directions, num_passes, num_extra, dimension
    )
    sizes, representations = (
        overlap_sizes(num_directions, dimension),
        find_representations(model, estimator),
    )

    basis, pass_overlap = first_basis(key, num_directions, num_extra, dimension), []
    for number in range(num_passes):
        report = (
            None
            if progress is None
            else lambda done, number=number: progress(number * num_networks + done)
        )
        halves = Halves(sketch.init(basis), sketch.init(basis), jnp.int32(0))
        halves = accumulate(key, halves, 0, num_networks, report)
        check_finite(halves, num_networks)
        check_not_zero(halves, model, estimator, key)
        found = find_leading(halves, num_directions, num_extra, representations, estimator.centred)
        if number > 0:
            pass_overlap.append(compare_passes(found, basis, sizes))
        if number < num_passes - 1:
            basis = jnp.asarray(next_basis(found))
    config = {
        **record_choices(model, estimator, key),
        "num_passes": num_passes,
        "num_extra": num_extra,
    }
    return finish(
        halves, found, pass_overlap, num_directions, num_networks, config, estimator.centred
    )
