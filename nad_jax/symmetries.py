"""Symmetries of the image grid that the law of a randomly initialized network has, and what they are worth.

Let P move the pixels of an image, and let f_θ(Px), θ drawn at random, have the law of f_θ(x): kernels reversed or
transposed are just as likely where their entries are independent. Then E[g gᵀ] at the point Px is P E[g gᵀ] Pᵀ, and
the mean of P G Pᵀ over the group of all P estimates E[g gᵀ] averaged over the points Px, with the error that several
times as many networks would leave. (Derived here; the group average is a Rao–Blackwell estimate. At the origin, where
Px = x, it is that of E[g gᵀ] itself. Ties of max-pooling there, which go to the first entry, break the symmetry of
exact gradients.)
"""

import numpy as np

from nad_jax.errors import InputError

SYMMETRIES = ("flip", "transpose")


def check_symmetries(names: tuple[str, ...], image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """The names as a tuple; `InputError` for one that is not known or that an image of this shape cannot have."""
    names = tuple(names) if isinstance(names, tuple | list) else (names,)
    unknown = [name for name in names if name not in SYMMETRIES]
    if unknown:
        raise InputError(f"symmetries: must be among {', '.join(SYMMETRIES)}, got {unknown[0]!r}")
    if "transpose" in names and image_shape[0] != image_shape[1]:
        raise InputError(f"symmetries: 'transpose' needs square images, got {image_shape[0]}×{image_shape[1]}")
    return names


def permutations(names: tuple[str, ...], image_shape: tuple[int, int, int]) -> np.ndarray:
    """The group that symmetries generate, as permutations [S, D]: x[p] is the image with its pixels moved by p.

    Args:
      names: of `SYMMETRIES`: "flip" reverses the rows, the columns or both; "transpose" exchanges them. S is 1, 4
        with "flip", 2 with "transpose", 8 with both.
      image_shape: (H, W, C).

    Raises:
      InputError: as `check_symmetries`.
    """
    names = check_symmetries(names, image_shape)
    images = [np.arange(np.prod(image_shape)).reshape(image_shape)]
    if "flip" in names:
        images = [image[rows, columns] for image in images for rows, columns in _REVERSALS]
    if "transpose" in names:
        images = [turned for image in images for turned in (image, image.swapaxes(0, 1))]
    return np.stack([image.reshape(-1) for image in images])


_FORWARD, _BACKWARD = slice(None), slice(None, None, -1)
_REVERSALS = ((_FORWARD, _FORWARD), (_BACKWARD, _FORWARD), (_FORWARD, _BACKWARD), (_BACKWARD, _BACKWARD))


def symmetrize(matrix: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The mean of P M Pᵀ over the permutations [S, D] of a group, for a matrix [D, D]."""
    return sum(matrix[np.ix_(moved, moved)] for moved in group) / len(group)
