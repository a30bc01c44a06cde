"""From a model to its NADs."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from nad_jax import covariance, ensemble, subspaces
from nad_jax.accumulation import Halves, check_finite, init_halves, make_accumulate
from nad_jax.diagnosis import check_not_zero
from nad_jax.errors import InputError, check_function, check_integer, check_number
from nad_jax.estimator import (
    check_num_networks,
    create_estimator,
    find_representations,
    record_choices,
)
from nad_jax.models import Model
from nad_jax.nads import NADs, numerical_rank
from nad_jax.symmetries import Eigenvectors, Representation, eigh_symmetric, mean_of_pairs


def estimate_nads(
    model: Model,
    num_networks: int,
    key: jax.Array | int = 0,
    progress: Callable[[int], None] | None = None,
    stop_overlap: float | None = None,
    stop_size: int = 64,
    **choices: Any,
) -> NADs:
    """The NADs of a model from `num_networks` independent initializations, or from as many as an
    agreement needs.

    Source: NAD, Section 3, Definition 1 and equation 5; marginalized read-out: derived. The
    relative error of an eigenvalue and of a subspace is reported in the record (`eigenvalue_sem`,
    `split_half_overlap`).

    Args:
      model: from `create_model`, `from_linen`, `from_nnx` or `from_functions`.
      num_networks: N >= 2; with `stop_overlap` the most that are taken.
      key: a typed random key, or a seed for `make_key`; network n depends on (key, n) alone.
      progress: called with the number of networks done.
      stop_overlap: in (0, 1]: stop at the first look at which the subspaces of `stop_size`
        directions of the two halves of the ensemble overlap so far (see `NADs.split_half_overlap`;
        that of all networks against the truth is better). Looks are a quarter more networks apart;
        the result is that of a call with so many of them. Without having come so far it ends at
        `num_networks`: the record says how far it came.
      stop_size: k in 1 … D − 1.
      **choices: fields of `Estimator`.

    Raises:
      InputError: for a bad value, a model without reachable features under a read-out that needs
        them, several logits and none chosen, a network whose derivative is not finite, or
        derivatives that are all zero, with the cause that can be seen (see `diagnosis`).
    """
    key = ensemble.resolve_key(key)
    check_function("progress", progress)
    estimator = create_estimator("estimate_nads", choices)
    num_networks = check_num_networks(num_networks, estimator)
    accumulate, estimator = make_accumulate(model, estimator, num_networks)
    dimension = int(np.prod(model.image_shape))
    halves = init_halves(dimension)
    if stop_overlap is None:
        looks = [num_networks]
    else:
        stop_overlap = check_number("stop_overlap", stop_overlap, 0.0, exclusive=True)
        if stop_overlap > 1:
            raise InputError(f"stop_overlap: must be at most 1, got {stop_overlap}")
        stop_size = check_integer("stop_size", stop_size, 1, dimension - 1)
        looks = _plan_looks(num_networks, estimator.chunk_size * jax.local_device_count())
    representations = find_representations(model, estimator)
    for done, look in zip([0, *looks], looks, strict=False):
        report = None if progress is None else lambda networks, done=done: progress(done + networks)
        halves = accumulate(key, halves, done, look, report)
        check_finite(halves, look)
        check_not_zero(halves, model, estimator, key)
        if look < num_networks:
            halved = (
                eigh_symmetric(part, representations)
                for part in _moments(halves, estimator.centred)[1:]
            )
            if _overlap(*halved, (stop_size,))[0] >= stop_overlap:
                break
    sizes = () if stop_overlap is None else (stop_size,)
    choices = record_choices(model, estimator, key)
    return finalize(halves, look, choices, representations, estimator.centred, sizes)


def finalize(
    halves: Halves,
    num_networks: int,
    config: dict[str, Any],
    representations: list[Representation],
    centred: bool = False,
    sizes: tuple[int, ...] = (),
) -> NADs:
    """The NADs of an accumulated state of at least two networks: three eigendecompositions.

    Args:
      halves: the state, with both halves non-empty.
      num_networks: N, recorded.
      config: every choice that was made, recorded.
      representations: of the group of permutations of pixels to average over, from
        `find_representations`.
      centred: read off the centred covariance.
      sizes: of subspaces whose overlap is reported, besides the default ones.

    Raises:
      InputError: where every derivative is exactly zero, or without the mean nothing is left, or a
        half of the ensemble has no network whose derivative is finite.
    """
    if min(int(halves.even.count), int(halves.odd.count)) < (2 if centred else 1):
        raise InputError(
            f"model: a half of the ensemble has too few finite derivatives; {int(halves.diverged)} "
            "networks have none"
        )
    moments = _moments(halves, centred)
    if not np.trace(moments[0]) > 0:
        same = "the same, so that nothing is left without their mean" if centred else "exactly zero"
        raise InputError(f"model: all derivatives are {same}; there are no directions to rank")
    whole, even, odd = (eigh_symmetric(moment, representations) for moment in moments)
    sizes = tuple(sorted({*subspaces.default_sizes(len(whole.directions)), *sizes}))
    difference = np.einsum(
        "kd,kd->k", whole.directions @ (moments[1] - moments[2]), whole.directions
    )
    return NADs(
        directions=whole.directions,
        eigenvalues=whole.eigenvalues,
        eigenvalue_sem=np.abs(mean_of_pairs(difference, whole.symmetry)) / 2,
        overlap_sizes=np.array(sizes),
        split_half_overlap=_overlap(even, odd, sizes).astype(np.float32),
        num_networks=num_networks,
        config=config,
        symmetry=whole.symmetry,
    )


def _moments(halves: Halves, centred: bool) -> list[np.ndarray]:
    """E[g gᵀ], or the covariance, of all members, of the even and of the odd ones; float64."""
    moment = covariance.covariance if centred else covariance.second_moment
    parts = (covariance.merge(halves.even, halves.odd), halves.even, halves.odd)
    return [moment(part) for part in parts]


def _overlap(left: Eigenvectors, right: Eigenvectors, sizes: tuple[int, ...]) -> np.ndarray:
    """The overlaps [S] of leading subspaces; nan beyond the numerical rank of either, where
    directions are rounding.
    """
    rank = min(numerical_rank(part.eigenvalues) for part in (left, right))
    overlaps = subspaces.subspace_overlap(left.directions, right.directions, sizes)
    return np.where(np.array(sizes) <= rank, overlaps, np.nan)


def _plan_looks(num_networks: int, chunk_size: int) -> list[int]:
    """After how many networks to look: whole chunks, each time a quarter more, and in the end all."""
    looks, chunks = [], 2
    while chunks * chunk_size < num_networks:
        looks.append(chunks * chunk_size)
        chunks += -(-chunks // 4)
    return [*looks, num_networks]
