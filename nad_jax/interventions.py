"""What is done to images along directions: set a coefficient, poison, flip a basis, remove a
subspace.

Images are real numbers [B, H, W, C], or inputs of any other shape, [B, D], [B, L, C] or
[B, T, H, W, C]. Directions of one channel, [K, H·W], act on every channel alike; directions of the
whole image, [K, H·W·C], act on it as on one vector. (With one channel these are the same.) Source:
NAD, Section 5 and reference code.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.directions import (
    check_orthonormal,
    completed_rows,
    orthonormalized,
    spatial_shape,
)
from nad_jax.errors import (
    InputError,
    check_image_shape,
    check_integer,
    check_labels,
    check_units,
    host_array,
    number_array,
    real_array,
)

_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def _check_images(images: jax.Array) -> jax.Array:
    images = number_array("images", images, "real numbers [B, H, W, C]")
    real = jnp.issubdtype(images.dtype, np.floating)
    if not 2 <= images.ndim <= 5 or not images.size or not real:
        raise InputError(
            f"images: must be real numbers [B, H, W, C], got shape {images.shape} of "
            f"{images.dtype} (divide uint8 by 255; other inputs are [B, D], [B, L, C] or "
            "[B, T, H, W, C])"
        )
    return jnp.asarray(images)


def _as_rows(images: jax.Array, dimension: int) -> jax.Array:
    """Images as vectors of that dimension, [B·C, H·W] or [B, H·W·C]; raises `InputError` where it
    is neither.
    """
    batch, *shape = images.shape
    pixels = math.prod(spatial_shape(shape))
    if dimension == pixels:
        return images.reshape(batch, pixels, -1).swapaxes(1, 2).reshape(-1, pixels)
    if dimension == math.prod(shape):
        return images.reshape(batch, dimension)
    raise InputError(
        f"directions: images {'x'.join(map(str, shape))} need D = {pixels} (each channel alike) or "
        f"{math.prod(shape)}, got {dimension}"
    )


def _as_images(rows: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return rows.reshape(shape[0], -1, rows.shape[1]).swapaxes(1, 2).reshape(shape)


def set_coefficients(
    images: jax.Array, directions: jax.Array, coefficients: jax.Array
) -> jax.Array:
    """x + (c − ⟨x, v⟩) v: each image with its coefficient along its own direction replaced, nothing
    else changed.

    Setting the former coefficients ⟨x, v⟩ again is the inverse, to rounding.

    Args:
      images: x, [B, H, W, C].
      directions: v, [B, H·W·C], of unit norm; one that is zero leaves its image as it is.
      coefficients: c, [B].

    Raises:
      InputError: where shapes do not fit, or a direction has another norm (to 1e-3; inside a
        compiled function norms are not checked).
    """
    images = _check_images(images)
    # Directions that were read in double precision do not make the images so.
    dtype = jnp.result_type(images, jnp.float32)
    directions = check_units(
        "directions", real_array("directions", directions, "[B, D]"), zero=True
    )
    directions = jnp.asarray(directions, dtype)
    coefficients = jnp.asarray(real_array("coefficients", coefficients, "[B]"), dtype)
    x = images.reshape(len(images), -1)
    if directions.shape != x.shape or coefficients.shape != x.shape[:1]:
        raise InputError(
            f"directions, coefficients: must be {x.shape} and {x.shape[:1]} for these images, "
            f"got {directions.shape} and {coefficients.shape}"
        )
    # A sum of products, in full precision on every backend.
    along = jnp.sum(x * directions, axis=1)
    return (x + (coefficients - along)[:, None] * directions).reshape(images.shape)


def poison(
    images: jax.Array, labels: jax.Array, carriers: jax.Array, coefficients: jax.Array
) -> jax.Array:
    """Images whose coefficient along the carrier of their class is replaced; no clipping to [0, 1].

    A classifier can then tell the classes apart by these coefficients alone. Source: NAD, Section
    5.1. The former coefficients are x.reshape(B, −1) · carriers[labels], summed over the last axis;
    `set_coefficients` with them undoes the poison.

    Args:
      images: [B, H, W, C].
      labels: [B], integers in 0 … T − 1.
      carriers: unit rows [T, H·W·C], one for each class, e.g. of `published_carriers`; zero rows
        leave a class alone.
      coefficients: [T], in units of the images (published: ±0.05 for images in [0, 1]).

    Raises:
      InputError: where shapes do not fit, a carrier has another norm, or a label has no carrier
        (inside a compiled function such an image becomes nan, and norms are not checked).
    """
    images = _check_images(images)
    dtype = jnp.result_type(images, jnp.float32)
    carriers = check_units("carriers", real_array("carriers", carriers, "[T, D]"), zero=True)
    carriers = jnp.asarray(carriers, dtype)
    coefficients = jnp.asarray(real_array("coefficients", coefficients, "[T]"), dtype)
    labels = jnp.asarray(check_labels("labels", labels, len(carriers)))
    if carriers.shape[1] != images[0].size or coefficients.shape != carriers.shape[:1]:
        raise InputError(
            f"carriers, coefficients: must be [T, {images[0].size}] and [T], "
            f"got {carriers.shape} and {coefficients.shape}"
        )
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"labels: must be one for each of the {len(images)} images, got shape {labels.shape}"
        )
    of_label = partial(jnp.take, indices=labels, axis=0, mode="fill", fill_value=jnp.nan)
    return set_coefficients(images, of_label(carriers), of_label(coefficients))


def published_carriers(
    nads: np.ndarray, index: int, image_shape: tuple[int, int, int], num_classes: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """The carriers of every class for poisoning at a NAD index, and the signs of their
    coefficients.

    Class t uses NAD index + ⌊t / 2C⌋ in channel t mod C. For an odd number of channels its sign is
    + for odd t, − for even t (NAD, reference code: three channels, ten classes); for an even
    number, where that would give two classes the same carrier and sign, that of t + ⌊t / C⌋. Two
    classes that share a carrier differ in sign.

    Args:
      nads: directions of one channel, unit rows [K, H·W].
      index: the NAD of the first 2C classes, from 0.
      image_shape: (H, W, C).

    Returns: carriers [T, H·W·C], unit rows, and signs [T], ±1, float32.

    Raises:
      InputError: where there are too few NADs for that index, or they are not unit rows of one
        channel.
    """
    height, width, channels = check_image_shape(image_shape)
    nads = host_array("nads", nads, "[K, D]")
    if nads.shape[1] != height * width:
        raise InputError(
            f"nads: must be directions of one {height}x{width} channel [K, {height * width}], got "
            f"{nads.shape}"
        )
    check_units("nads", nads)
    num_classes = check_integer("num_classes", num_classes, 1)
    used = (num_classes - 1) // (2 * channels)  # NADs after the first
    if len(nads) <= used:
        raise InputError(
            f"nads: {num_classes} classes in {channels} channels need {used + 1} NADs, got "
            f"{len(nads)}"
        )
    try:
        index = check_integer("index", index, 0, len(nads) - 1 - used)
    except InputError as error:
        raise InputError(
            f"{error} ({num_classes} classes use {used + 1} NADs from there on)"
        ) from None
    classes = np.arange(num_classes)
    carriers = np.zeros((num_classes, height * width, channels), np.float32)
    carriers[classes, :, classes % channels] = nads[index + classes // (2 * channels)]
    odd = (classes if channels % 2 else classes + classes // channels) % 2
    return carriers.reshape(num_classes, -1), np.where(odd, np.float32(1), np.float32(-1))


def flip(images: jax.Array, directions: jax.Array) -> jax.Array:
    """x' = U flip(Uᵀ x): the coefficient of the first direction becomes that of the last one, and
    so on.

    It is its own inverse. Source: NAD, Section 5.2.

    Args:
      images: x, [B, H, W, C].
      directions: the columns of U as rows, [K, H·W] (each channel alike) or [K, H·W·C]; not traced.
        Where K < D the basis is completed, see `complete_basis`, and what comes from and goes to
        the missing ones is arbitrary.

    Raises:
      InputError: where shapes do not fit or the rows are not orthonormal.
    """
    images, basis = _check_images(images), orthonormalized(completed_rows(directions))
    rows = _as_rows(images, basis.shape[1])
    # U flip Uᵀ, one product instead of two.
    reflection = (basis.T[:, ::-1] @ basis).astype(np.float32)
    return _as_images(_matmul(rows, reflection), images.shape)


def project_out(images: jax.Array, directions: jax.Array) -> jax.Array:
    """x − Vᵀ V x: images without their component in the span of the rows V.

    `directions` are V, [K, H·W] (each channel alike) or [K, H·W·C], not traced. There is no
    inverse.

    Raises:
      InputError: where shapes do not fit or the rows are not orthonormal (to 1e-3).
    """
    images, basis = _check_images(images), orthonormalized(check_orthonormal(directions))
    rows, basis = _as_rows(images, basis.shape[1]), basis.astype(np.float32)
    return _as_images(rows - _matmul(_matmul(rows, basis.T), basis), images.shape)
