"""Comparing sets of directions. Subspaces are compared, not vectors: sign and near-degenerate
rotation are free.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jax.scipy.stats
import numpy as np

from nad_jax.errors import (
    InputError,
    check_integer,
    check_units,
    host_array,
    plain,
    real_array,
    shown,
)

SIZES = (1, 4, 16, 64, 256, 512)


def _check_pair(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    left, right = host_array("left", left, "[K, D]"), host_array("right", right, "[K, D]")
    if left.shape[1] != right.shape[1]:
        raise InputError(
            f"left, right: must be [K, D] of one D, got shapes {left.shape} and {right.shape}"
        )
    return check_units("left", left), check_units("right", right)


def default_sizes(dimension: int) -> tuple[int, ...]:
    """The subspace sizes reported by default: those of `SIZES` below D (at D every overlap is 1)."""
    return tuple(size for size in SIZES if size < dimension) or (1,)


def report_sizes(dimension: int, blocks: Any = None) -> tuple[int, ...]:
    """The subspace sizes reported by default: of whole blocks where a geometry has equal ones."""
    return default_sizes(dimension) if blocks is None else blocks.whole_sizes()


def subspace_overlap(left: np.ndarray, right: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray:
    """‖U_k V_kᵀ‖²_F / k for the leading k rows of each set, for every k in `sizes`.

    1 for equal subspaces, k/D in expectation for a random one.

    Args:
      left, right: orthonormal rows [K, D] and [K', D].
      sizes: each between 1 and the smaller number of rows.

    Returns: [len(sizes)] in [0, 1].

    Raises:
      InputError: for rows that are not finite, of unit norm and of one length, and for sizes out of
        range.
    """
    left, right = _check_pair(left, right)
    largest, sizes = min(len(left), len(right)), plain(sizes)
    if not isinstance(sizes, list | tuple):
        raise InputError(f"sizes: must be a tuple of integers, got {shown(sizes)}")
    sizes = [check_integer("sizes", size, 1, largest) for size in sizes]
    most = max(sizes, default=0)
    squares = (left[:most] @ right[:most].T) ** 2
    overlaps = np.array([squares[:size, :size].sum() / size for size in sizes])
    rounding = (overlaps > 1) & (overlaps < 1 + 1e-5)  # what is more is no basis
    return np.where(rounding, 1.0, overlaps)


def principal_angles(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The principal angles [min(K, K')] between the spans of orthonormal rows, in radians,
    ascending.

    From their sines (Björck and Golub, 1973): exact for small angles, which a cosine in floating
    point loses, and to 1e-7 near π/2. Raises `InputError` as `subspace_overlap`.
    """
    left, right = _check_pair(left, right)
    if len(left) > len(right):
        left, right = right, left
    sines = np.linalg.svd(left - (left @ right.T) @ right, compute_uv=False)
    return np.sort(np.arcsin(np.clip(sines, 0.0, 1.0)))


def captured_energy(directions: np.ndarray, second_moment: np.ndarray) -> np.ndarray:
    """The share of tr G that the leading k orthonormal rows of `directions` [K, D] capture, for k =
    1 … K: [K].

    Raises:
      InputError: for rows that are not finite and of unit norm, and a G that is not [D, D] or has
        no positive trace.
    """
    directions = check_units("directions", host_array("directions", directions, "[K, D]"))
    dimension = directions.shape[1]
    second_moment = host_array("second_moment", second_moment, f"[{dimension}, {dimension}]")
    trace = np.trace(second_moment)
    if not trace > 0:
        raise InputError(f"second_moment: must have a positive trace, got {trace:.4g}")
    energies = np.einsum("kd,de,ke->k", directions, second_moment, directions, optimize=True)
    return np.cumsum(energies) / trace


def rank_correlation(left: jax.Array, right: jax.Array) -> jax.Array:
    """Spearman's rank correlation of two lists [B], ties at their mean rank; nan where one of them
    is constant.

    Raises:
      InputError: unless both are finite numbers, two or more and as many.
    """
    left = jnp.asarray(real_array("left", left, "[B]"))
    right = jnp.asarray(real_array("right", right, "[B]"))
    if left.shape != right.shape or left.size < 2:
        raise InputError(
            f"left, right: must be of one length >= 2, got {left.size} and {right.size} numbers"
        )
    return jnp.corrcoef(jax.scipy.stats.rankdata(left), jax.scipy.stats.rankdata(right))[0, 1]
