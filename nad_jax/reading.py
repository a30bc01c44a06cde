"""From the accumulated state of an ensemble to its record: eigenvectors and how sure they are."""

import math
from typing import Any, NamedTuple

import numpy as np

from nad_jax import moments, subspaces
from nad_jax.batches import Batches, measure_batches, measure_errors
from nad_jax.blocks import Blocks, average_blocks, read_blocks
from nad_jax.choices import Estimator, find_symmetries
from nad_jax.errors import InputError
from nad_jax.models import Model
from nad_jax.moments import Accumulator, Halves
from nad_jax.nads import NADs, numerical_rank
from nad_jax.symmetries import Eigenvectors


class Found(NamedTuple):
    """The eigenvectors found for all networks, for the even and for the odd ones."""

    whole: Eigenvectors
    even: Eigenvectors
    odd: Eigenvectors


def make_dense(model: Model, estimator: Estimator) -> Accumulator:
    """The accumulator of all D directions."""
    _, representations = find_symmetries(model, estimator)
    return moments.dense(math.prod(model.image_shape), representations)


def check_finite(halves: Halves, what: str = "model: the derivative") -> None:
    """Raises `InputError` where a network was left out; it says of what."""
    if diverged := int(halves.diverged):
        count = diverged + int(halves.networks)
        raise InputError(f"{what} of {diverged} of {count} networks is not finite")


def find_directions(
    accumulator: Accumulator, halves: Halves, centered: bool, num_directions: int = 1
) -> Found:
    """The eigenvectors of an accumulated state.

    Raises:
      InputError: where a half of the ensemble gives too few independent rows, or none that is
        finite; where every row is exactly zero, or without the mean nothing is left.
    """
    parts = (accumulator.merge(halves.even, halves.odd), halves.even, halves.odd)
    fewest = min(int(part.count) for part in parts)
    if int(halves.diverged) and fewest <= centered:
        raise InputError(
            "model: a half of the ensemble has too few finite derivatives; "
            f"{int(halves.diverged)} networks have none"
        )
    check_rows(fewest - centered, num_directions)
    found = Found(*(accumulator.read(part, centered) for part in parts))
    if not found.whole.trace > 0:
        same = "the same, so that nothing is left without their mean"
        same = same if centered else "exactly zero"
        raise InputError(f"model: all derivatives are {same}; there are no directions to rank")
    check_rows(min(len(part.directions) for part in found), num_directions)
    return found


def check_rows(num_rows: int, num_directions: int) -> None:
    """Raises `InputError` where a half of the ensemble gives fewer independent derivatives than
    directions.
    """
    if num_rows < num_directions:
        raise InputError(
            f"num_networks: a half of the ensemble gives {num_rows} independent derivatives, fewer "
            f"than num_directions = {num_directions}; take more networks or read-outs"
        )


def finish(
    accumulator: Accumulator,
    halves: Halves,
    found: Found,
    config: dict[str, Any],
    sizes: tuple[int, ...],
    centered: bool = False,
    *,
    pass_overlap: list[np.ndarray] | np.ndarray = (),
    num_directions: int | None = None,
    looks: list[Halves] | None = None,
    batches: Batches | None = None,
) -> NADs:
    """The record of an accumulated state, dense or leading.

    Args:
      accumulator, halves, found: what was accumulated, and `find_directions` of it.
      config: every choice that was made, recorded.
      sizes: of subspaces whose overlap is reported.
      centered: whether the covariance was read off.
      pass_overlap: [P − 1, S], see `NADs`.
      num_directions: K of those found; None: all.
      looks: states as the ensemble grew, the last one of all networks; None: that one alone.
      batches: what is kept of batches of the networks.
    """
    eigenvalues, directions, symmetry = (part[:num_directions] for part in found.whole[:3])
    kept = {} if batches is None else batches._asdict()
    return NADs(
        directions=directions,
        eigenvalues=eigenvalues,
        eigenvalue_sem=measure_errors(
            accumulator, looks or [halves], directions, symmetry, centered
        ),
        overlap_sizes=np.array(sizes),
        split_half_overlap=overlap_halves(found.even, found.odd, sizes, read_blocks(config)).astype(
            np.float32
        ),
        num_networks=int(halves.networks),
        config=config,
        symmetry=symmetry,
        trace=found.whole.trace,
        pass_overlap=np.array(pass_overlap).reshape(-1, len(sizes)),
        **{f"batch_{name}": value for name, value in kept.items()},
    )


def keep_batches(model: Model, estimator: Estimator, looks: list[Halves]) -> Batches:
    """What the record of a dense estimate keeps of batches of its networks."""
    names = model.symmetries if estimator.symmetrized else ()
    _, representations = find_symmetries(model, estimator)
    return measure_batches(looks, model.image_shape, representations, names, estimator.centred)


def overlap_halves(
    even: Eigenvectors, odd: Eigenvectors, sizes: tuple[int, ...], blocks: Blocks | None = None
) -> np.ndarray:
    """The overlaps [S] of leading subspaces of the halves, each averaged over its equal blocks; nan
    beyond the numerical rank of either, where directions are rounding.
    """
    even, odd = average_blocks(even, blocks), average_blocks(odd, blocks)
    rank = min(numerical_rank(part.eigenvalues) for part in (even, odd))
    overlaps = subspaces.subspace_overlap(even.directions, odd.directions, sizes)
    return np.where(np.array(sizes) <= rank, overlaps, np.nan)
