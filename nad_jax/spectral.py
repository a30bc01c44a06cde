"""Eigensolvers of one signature, and the spectrum that noise alone produces."""

import math
from typing import Any

import numpy as np

from nad_jax.errors import InputError, check_integer, check_number, host_array


def eigh(matrix: np.ndarray, scale: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """As `eigh_dense`, eigenvectors in float64 and of either sign; `scale` stands for its largest
    entry.
    """
    matrix = host_array("matrix", matrix, "[D, D]")
    if matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"matrix: must be square, got shape {matrix.shape}")
    rounding = 0.01 * (np.abs(matrix).max() if scale is None else scale)
    if np.abs(matrix / 2 - matrix.T / 2).max() > rounding / 2:
        raise InputError("matrix: must be symmetric")
    eigenvalues, columns = np.linalg.eigh((matrix + matrix.T) / 2)
    if eigenvalues[0] < -rounding:
        raise InputError(
            f"matrix: must be positive semi-definite, but has the eigenvalue {eigenvalues[0]:.4g}"
        )
    return np.maximum(eigenvalues[::-1], 0.0), columns.T[::-1]


def check_moment(name: str, matrix: Any, dimension: int | None = None) -> np.ndarray:
    """Returns a second moment [D, D] in float64; raises `InputError` unless it is symmetric and
    without negative eigenvalues, but for the rounding of float32.
    """
    axes = "[D, D]" if dimension is None else f"[{dimension}, {dimension}]"
    matrix = host_array(name, matrix, axes).astype(np.float64)
    if matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"{name}: must be symmetric, [D, D], got shape {matrix.shape}")
    largest = np.abs(matrix).max()
    error = np.abs(matrix - matrix.T).max()
    if error > 1e-5 * largest:
        raise InputError(f"{name}: must be symmetric, got {error:.4g} as largest difference")
    matrix = (matrix + matrix.T) / 2
    smallest = np.linalg.eigvalsh(matrix)[0]
    if smallest < -1e-5 * largest:
        raise InputError(f"{name}: must have no negative eigenvalue, got {smallest:.4g}")
    return matrix


def orient(rows: np.ndarray) -> np.ndarray:
    """Rows [K, D] with a sign that rounding does not choose: the first entry within 1e-6 of the
    largest is positive.
    """
    sizes = np.abs(rows)
    first = (sizes >= (1 - 1e-6) * sizes.max(1, keepdims=True)).argmax(1)
    return rows * np.sign(rows[np.arange(len(rows)), first])[:, None]


def eigh_dense(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [D], descending, and eigenvectors as unit rows [D, D] of a symmetric positive
    semi-definite matrix.

    Float64 LAPACK on the host: a float32 solver would blur the small eigenvalues of steep spectra.
    Negative rounding residues are returned as zero. Of the entries of each vector, the first one
    within 1e-6 of the largest is positive. Eigenvalues are float64, which holds the squares of
    numbers of any size, eigenvectors float32.

    Raises:
      InputError: where the matrix is not square, finite, or, to 1 % of its largest entry, symmetric
        and positive semi-definite.
    """
    eigenvalues, rows = eigh(matrix)
    return eigenvalues, orient(rows).astype(np.float32)


def marchenko_pastur_band(variance: float, dimension: int, num_samples: int) -> tuple[float, float]:
    """The edges σ²(1 ∓ √(D/N))² between which the sample eigenvalues of an isotropic covariance
    lie.

    Holds asymptotically for N independent samples; finite matrices exceed the edges by up to about
    1 %. With N < D the lower edge is that of the N non-zero eigenvalues.

    Args:
      variance: σ², the true eigenvalue, i.e. trace/D.
      dimension: D.
      num_samples: N.
    """
    variance = check_number("variance", variance, 0.0)
    dimension = check_integer("dimension", dimension, 1)
    num_samples = check_integer("num_samples", num_samples, 1)
    ratio = math.sqrt(dimension / num_samples)
    return variance * (1.0 - ratio) ** 2, variance * (1.0 + ratio) ** 2


def near_degenerate_groups(
    eigenvalues: np.ndarray, tolerance: float = 0.05
) -> list[tuple[int, int]]:
    """Runs (first, last) of descending eigenvalues that lie within `tolerance` of the first of
    their run.

    Inside a run single directions are not determined. The default, 5 % in the eigenvalue, is 2.5 %
    in the singular value.

    Raises:
      InputError: unless eigenvalues [K] are finite, not negative and descending, and the tolerance
        is at least 0.
    """
    eigenvalues = host_array("eigenvalues", eigenvalues, "[K]")
    tolerance = check_number("tolerance", tolerance, 0.0)
    if eigenvalues[-1] < 0 or (np.diff(eigenvalues) > 0).any():
        raise InputError("eigenvalues: must be descending and not negative")
    groups, first = [], 0
    while first < len(eigenvalues):
        within = eigenvalues[first:] >= (1.0 - tolerance) * eigenvalues[first]
        stop = first + int(np.count_nonzero(within))
        if stop - first > 1:
            groups.append((first, stop - 1))
        first = stop
    return groups
