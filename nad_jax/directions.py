"""Orthonormal bases of input space as unit rows [K, D], and their relation to images [H, W, C].

A vector of length D = H·W·C is an image read row by row, channels innermost.
"""

import hashlib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.ensemble import resolve_key
from nad_jax.errors import (
    InputError,
    check_choice,
    check_image_shape,
    check_integer,
    check_number,
    host_array,
    plain,
    real_array,
    shown,
)


def to_images(vectors: jax.Array, image_shape: tuple[int, int, int]) -> jax.Array:
    """Vectors [..., D] as images [..., H, W, C]; raises `InputError` where D is not H·W·C."""
    height, width, channels = check_image_shape(image_shape)
    vectors = real_array("vectors", vectors, "[..., D]", finite=False)
    if vectors.shape[-1] != height * width * channels:
        raise InputError(
            f"vectors: last axis {vectors.shape[-1]} is not {height}·{width}·{channels} = "
            f"{height * width * channels}"
        )
    return vectors.reshape(*vectors.shape[:-1], height, width, channels)


def to_vectors(images: jax.Array) -> jax.Array:
    """Images [..., H, W, C] as vectors [..., D], D = H·W·C; raises `InputError` for other arrays."""
    images = real_array("images", images, "[..., H, W, C]", finite=False)
    return images.reshape(*images.shape[:-3], math.prod(images.shape[-3:]))


def basis_pixel(image_shape: tuple[int, int, int]) -> jax.Array:
    """The standard basis [D, D]: direction k is pixel k."""
    return jnp.eye(int(np.prod(check_image_shape(image_shape))), dtype=jnp.float32)


class FourierBasis(NamedTuple):
    """The real 2-D Fourier basis and the coordinates of its directions.

    directions:  [D, D] unit rows.
    frequencies: [D, 2] integers (vertical, horizontal), each in -N/2 < f <= N/2, in cycles per
      image.
    phases:      [D] 0 for a cosine, 1 for a sine.
    channels:    [D] the channel a direction lives in.
    """

    directions: jax.Array
    frequencies: np.ndarray
    phases: np.ndarray
    channels: np.ndarray


def dft_direction(
    image_shape: tuple[int, int, int],
    frequency: tuple[int, int],
    phase: str = "cosine",
    channel: int = 0,
) -> jax.Array:
    """The unit vector [D] with entries ∝ cos or sin of 2π(f_y·y/H + f_x·x/W) in one channel.

    Args:
      image_shape: (H, W, C).
      frequency: (f_y, f_x), integers in cycles per image; taken modulo H and W.
      phase: "cosine" or "sine". A self-conjugate frequency (2 f_y ≡ 0 mod H and 2 f_x ≡ 0 mod W)
        has no sine.
      channel: in 0 … C−1.

    Raises:
      InputError: for the sine of a self-conjugate frequency, an unknown phase, or a channel out of
        range.
    """
    height, width, channels = check_image_shape(image_shape)
    check_choice("phase", phase, ("cosine", "sine"))
    channel = check_integer("channel", channel, 0, channels - 1)
    row, column = _check_frequency(frequency)
    if phase == "sine" and (2 * row) % height == 0 and (2 * column) % width == 0:
        raise InputError(
            f"frequency: {(row, column)} is self-conjugate on {height}x{width} and has no sine"
        )
    # Integer products modulo the length keep the argument exact before the one division.
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    row, column = row % height, column % width
    angle = 2 * np.pi * ((row * y) % height / height + (column * x) % width / width)
    wave = np.cos(angle) if phase == "cosine" else np.sin(angle)
    image = np.zeros((height, width, channels))
    image[..., channel] = wave / np.linalg.norm(wave)
    return jnp.asarray(image.reshape(-1), dtype=jnp.float32)


def _check_frequency(frequency: Any) -> tuple[int, int]:
    """The two integers, which may be written as floats (`np.fft.fftfreq` does)."""
    values = plain(frequency)
    values = tuple(values) if isinstance(values, list | tuple) else ()
    whole = [value for value in values if isinstance(value, int | float) and value % 1 == 0]
    if len(values) != 2 or len(whole) != 2:
        raise InputError(
            f"frequency: must be two integers (vertical, horizontal), got {shown(frequency)}"
        )
    return int(values[0]), int(values[1])


def _half_plane(height: int, width: int) -> list[tuple[int, int]]:
    """One frequency of every conjugate pair ±f, as values in -N/2 < f <= N/2, lowest first."""

    def signed(k: int, n: int) -> int:
        return k if 2 * k <= n else k - n

    seen, chosen = set(), []
    for k in range(height):
        for m in range(width):
            if (k, m) not in seen:
                seen |= {(k, m), (-k % height, -m % width)}
                chosen.append((signed(k, height), signed(m, width)))
    return sorted(chosen, key=lambda f: (f[0] ** 2 + f[1] ** 2, f))


def basis_dft(image_shape: tuple[int, int, int]) -> FourierBasis:
    """The real 2-D Fourier basis [D, D], lowest frequencies first.

    Each conjugate pair of frequencies gives a cosine and a sine; a self-conjugate frequency
    (zero or Nyquist along both axes) gives its cosine alone, so the rows are exactly D.
    """
    height, width, channels = check_image_shape(image_shape)
    rows, frequencies, phases, owners = [], [], [], []
    for row, column in _half_plane(height, width):
        self_conjugate = (2 * row) % height == 0 and (2 * column) % width == 0
        for phase in ("cosine",) if self_conjugate else ("cosine", "sine"):
            for channel in range(channels):
                rows.append(np.asarray(dft_direction(image_shape, (row, column), phase, channel)))
                frequencies.append((row, column))
                phases.append(phase == "sine")
                owners.append(channel)
    return FourierBasis(
        jnp.asarray(np.stack(rows)),
        np.array(frequencies),
        np.array(phases, dtype=int),
        np.array(owners),
    )


def _dct_matrix(length: int) -> np.ndarray:
    k, n = np.arange(length)[:, None], np.arange(length)[None, :]
    matrix = np.cos(np.pi * (n + 0.5) * k / length) * np.sqrt(2.0 / length)
    matrix[0] /= np.sqrt(2.0)
    return matrix


def basis_dct(image_shape: tuple[int, int, int]) -> jax.Array:
    """The separable orthonormal DCT-II basis [D, D].

    Row (k_y·W + k_x)·C + c is the product of cosines of vertical order k_y and horizontal order k_x
    in channel c.
    """
    height, width, channels = check_image_shape(image_shape)
    spatial = np.kron(_dct_matrix(height), _dct_matrix(width))
    return jnp.asarray(np.kron(spatial, np.eye(channels)), dtype=jnp.float32)


def basis_random(
    key: jax.Array | int, dimension: int, num_directions: int | None = None
) -> jax.Array:
    """`num_directions` orthonormal rows [K, D], uniformly distributed (Haar); all D by default.
    Consumes `key`.

    Asking for more directions keeps the first ones, up to rounding.

    Raises:
      InputError: for a key that is neither one typed key nor a seed, and for numbers out of range.
    """
    key, dimension = resolve_key(key), check_integer("dimension", dimension, 1)
    num_directions = check_integer(
        "num_directions", dimension if num_directions is None else num_directions, 1
    )
    if num_directions > dimension:
        raise InputError(f"num_directions: at most the dimension {dimension}, got {num_directions}")
    draw = jax.vmap(
        lambda index: jax.random.normal(jax.random.fold_in(key, index), (dimension,), jnp.float32)
    )
    orthogonal, triangle = jnp.linalg.qr(draw(jnp.arange(num_directions)).T)
    # The sign of the triangle's diagonal makes the factorization unique and the law Haar.
    return (orthogonal * jnp.where(jnp.diagonal(triangle) < 0, -1.0, 1.0)[None]).T


def check_orthonormal(directions: jax.Array, tolerance: float = 1e-3) -> np.ndarray:
    """The rows [K, D] in float64; raises `InputError` where an entry of V Vᵀ − I is above
    `tolerance`.
    """
    rows, tolerance = (
        host_array("directions", directions, "[K, D]"),
        check_number("tolerance", tolerance, 0.0),
    )
    if len(rows) > rows.shape[1]:
        raise InputError(f"directions: must be [K, D] with K <= D, got shape {rows.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(rows @ rows.T - np.eye(len(rows))).max()
    if not error <= tolerance:
        raise InputError(
            f"directions: rows are not orthonormal (largest error {error:.2g}, allowed "
            f"{tolerance:g})"
        )
    return rows


def complete_basis(directions: jax.Array, tolerance: float = 1e-3) -> jax.Array:
    """Completes K orthonormal rows [K, D] to an orthogonal matrix [D, D] whose first K rows are the
    given ones.

    The added rows span the orthogonal complement; within it they are arbitrary. (The published
    arrays hold 1,023 of 1,024 directions: there the last one is determined up to its sign.)

    Raises:
      InputError: where the rows are not finite, known (traced ones are not), or orthonormal: an
        entry of V Vᵀ − I above `tolerance`.
    """
    return jnp.asarray(completed_rows(directions, tolerance), dtype=jnp.float32)


def completed_rows(directions: jax.Array, tolerance: float = 1e-3) -> np.ndarray:
    """`complete_basis` in NumPy and float64, for use while a function is being compiled."""
    rows = check_orthonormal(directions, tolerance)
    if len(rows) == rows.shape[1]:
        return rows
    # The trailing columns of the orthogonal factor are orthogonal to every given row.
    return np.concatenate([rows, np.linalg.qr(rows.T, mode="complete")[0][:, len(rows) :].T])


def direction_identity(direction: np.ndarray) -> int:
    """A number in 0 … 2⁶⁴ − 1 that names a unit direction [D], the same for v and −v.

    It is of the entries rounded to four decimals: a direction computed again on another machine,
    with other rounding errors, may round to another name, so exchange directions as files.
    """
    return int.from_bytes(hashlib.sha256(_quantized(direction)).digest()[:8])


def distinct_directions(directions: np.ndarray) -> np.ndarray:
    """The indices of those rows of [K, D] that are the first of all that are equal up to sign,
    ascending.
    """
    first: dict[bytes, int] = {}
    for index, direction in enumerate(np.asarray(directions)):
        first.setdefault(_quantized(direction), index)
    return np.array(list(first.values()), dtype=int)


def _quantized(direction: np.ndarray) -> bytes:
    """The direction in steps of 1/10007, with a positive first entry (among those that are not
    zero).
    """
    # A prime, so that the round numbers of simple directions do not lie half-way between two steps.
    steps = np.rint(np.asarray(direction, np.float64) * 10_007).astype("<i2")
    nonzero = np.flatnonzero(steps)
    return (-steps if len(nonzero) and steps[nonzero[0]] < 0 else steps).tobytes()
