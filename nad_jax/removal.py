"""What is left out of data to see whether a network needs it: directions, against random ones of
equal variance; samples, those that lie where the network looks least.

`interventions.project_out` is what removes directions. Source: GIH, which removes the first
eigenvectors of G S G (G the geometry E[g gᵀ] of a network, S the second moment of the data), or the
samples of least importance, and trains again.
"""

from typing import Any

import jax
import numpy as np

from nad_jax.directions import basis_random, check_orthonormal, orthonormalized
from nad_jax.errors import (
    InputError,
    check_labels,
    check_number,
    host_array,
    real_array,
)
from nad_jax.nads import NADs, Spectrum, directional_energy
from nad_jax.spectral import check_moment

_BISECTIONS = 60  # to the rounding of float64
_ROUNDING = 1e-9  # of sums of variances, which may be equal


def random_directions_of_equal_variance(
    seed: jax.Array | int, second_moment: Any, directions: Any
) -> np.ndarray:
    """Random orthonormal rows [M, D] that hold as much variance as given ones, V: tr(Q S Qᵀ) =
    tr(V S Vᵀ). Removing either takes the same from the data.

    M is how many random directions it takes, most often more than V has. The last of M uniform ones
    would take too much, so all of them are turned towards the M eigenvectors of S of least variance
    until both are equal; where these hold too much as well, those but the last are turned towards
    the leading ones.

    Args:
      seed: an integer, or a typed random key.
      second_moment: S, [D, D], symmetric and positive semidefinite: x.T @ x / len(x) of data x
        [B, D], or their covariance.
      directions: V, orthonormal rows [K, D].

    Returns: float32; the variances are equal to its rounding.

    Raises:
      InputError: for rows that are not orthonormal, and an S of another form or without variance
        along V.
    """
    rows = orthonormalized(check_orthonormal(directions))
    moment = check_moment("second_moment", second_moment, rows.shape[1])
    target = _variance(rows, moment)
    if not target > 0:
        raise InputError(
            f"second_moment: must have variance along the directions, got {target:.4g}"
        )
    random = orthonormalized(np.asarray(basis_random(seed, rows.shape[1]), np.float64))
    sums = np.cumsum(np.einsum("kd,de,ke->k", random, moment, random, optimize=True))
    count = min(int(np.searchsorted(sums, target * (1 - _ROUNDING))) + 1, len(random))
    eigenvalues, columns = np.linalg.eigh(moment)
    if eigenvalues[:count].sum() <= target * (1 + _ROUNDING):
        towards = columns.T[:count]
    else:
        # Then K < M, and the leading M − 1 eigenvectors hold at least as much as V.
        count -= 1
        towards = columns.T[::-1][:count]
    return _turn(random[:count], towards, moment, target).astype(np.float32)


def _variance(rows: np.ndarray, moment: np.ndarray) -> float:
    return float(np.sum((rows @ moment) * rows))


def _turn(start: np.ndarray, end: np.ndarray, moment: np.ndarray, target: float) -> np.ndarray:
    """Orthonormal rows between those of `start` and the span of `end`, of the variance `target`,
    which lies between theirs: it changes continuously on the way.
    """
    # The rows of the second span that are next to the first ones, so that no row between them is
    # zero.
    left, _, right = np.linalg.svd(start @ end.T)
    end = left @ right @ end

    def between(share: float) -> np.ndarray:
        return np.linalg.qr(((1 - share) * start + share * end).T)[0].T

    falls = _variance(start, moment) > target
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        beyond = (_variance(between(middle), moment) > target) != falls
        low, high = (low, middle) if beyond else (middle, high)
    return between(high)


def sample_importance(x: Any, geometry: Any) -> np.ndarray:
    """xᵀ G x / ‖x‖² [B] of samples: how much of each lies where networks of a geometry look.

    Source: GIH. It lies between the least and the largest eigenvalue of G, whatever the norm of a
    sample is.

    Args:
      x: [B, *input_shape], real numbers, none of them zero.
      geometry: NADs with all their eigenvalues (but one), or G itself, [D, D].

    Raises:
      InputError: for samples that are zero or of another dimension, and for leading NADs.
    """
    x = real_array("x", x, "[B, ...]")
    if x.ndim < 2:
        raise InputError(f"x: must be samples [B, D] or [B, H, W, C], got shape {x.shape}")
    rows = np.asarray(x, np.float64).reshape(len(x), -1)
    norms = np.linalg.norm(rows, axis=1)
    if not norms.all():
        raise InputError(f"x: sample {int(np.argmin(norms))} is zero, and has no importance")
    rows = rows / norms[:, None]
    if isinstance(geometry, NADs | Spectrum):
        nads = Spectrum(geometry.directions, geometry.eigenvalues)
        return directional_energy(nads, rows)
    dimension = rows.shape[1]
    matrix = check_moment("geometry", geometry, dimension)
    return np.einsum("bd,de,be->b", rows, matrix, rows, optimize=True)


def keep_most_important(scores: Any, labels: Any, share: float = 0.5) -> np.ndarray:
    """The indices, ascending, of the samples of highest score of every class: `share` of each,
    rounded, but one at least.

    With random numbers as scores it keeps as many of each class at random.

    Args:
      scores: [B], as of `sample_importance`; of equal ones the first are kept.
      labels: [B], integers from 0.
      share: in (0, 1].

    Raises:
      InputError: for scores and labels that are not as many, and a share that is not in (0, 1].
    """
    scores = host_array("scores", scores, "[B]")
    labels = np.asarray(check_labels("labels", labels, 2**31))
    if labels.shape != scores.shape:
        raise InputError(f"labels: must be one for each of {len(scores)} scores, got {len(labels)}")
    if check_number("share", share, 0.0, exclusive=True) > 1:
        raise InputError(f"share: must be at most 1, got {share}")
    kept = []
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        count = max(1, round(share * len(places)))
        kept.append(places[np.argsort(-scores[places], kind="stable")[:count]])
    return np.sort(np.concatenate(kept))
