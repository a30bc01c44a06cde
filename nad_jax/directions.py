"""Orthonormal bases of input space as unit rows [K, D], and their relation to inputs of any shape.

A vector of length D is an image [H, W, C] read row by row, channels innermost, and likewise a
signal [L, C] or a volume [T, H, W, C]. Fourier and cosine bases run along every axis but that of
channels, A of them; a vector (D,) counts as one such axis, without channels.
"""

import functools
import hashlib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.ensemble import member_keys, resolve_key
from nad_jax.errors import (
    InputError,
    check_choice,
    check_input_shape,
    check_integer,
    check_number,
    host_array,
    plain,
    real_array,
    shown,
)
from nad_jax.renamed import takes_old_names

Shape = tuple[int, ...]  # of one input, or the lengths of some of its axes
PHASES = ("cosine", "sine")


def to_images(vectors: jax.Array, image_shape: Shape) -> jax.Array:
    """Vectors [..., D] as inputs [..., *image_shape], images [..., H, W, C] say; raises
    `InputError` where D is not their product.
    """
    shape = check_input_shape(image_shape)
    vectors = real_array("vectors", vectors, "[..., D]", finite=False)
    if vectors.shape[-1] != math.prod(shape):
        raise InputError(
            f"vectors: last axis {vectors.shape[-1]} is not {'·'.join(map(str, shape))} = "
            f"{math.prod(shape)}"
        )
    return vectors.reshape(*vectors.shape[:-1], *shape)


def to_vectors(images: jax.Array, image_shape: Shape | None = None) -> jax.Array:
    """Inputs [..., *image_shape] as vectors [..., D], by default images [..., H, W, C] of any size;
    raises `InputError` for other arrays.
    """
    shape = ("H", "W", "C") if image_shape is None else check_input_shape(image_shape)
    axes = ", ".join(map(str, ("...", *shape)))
    images = real_array("images", images, f"[{axes}]", finite=False)
    kept = images.ndim - len(shape)
    return images.reshape(*images.shape[:kept], math.prod(images.shape[kept:]))


def spatial_shape(image_shape: Shape) -> Shape:
    """The lengths of the axes of an input but that of channels, [A]; of a vector its own length."""
    return image_shape[:-1] or image_shape


def basis_pixel(image_shape: Shape) -> jax.Array:
    """The standard basis [D, D]: direction k is entry k, for images of one channel pixel k."""
    return jnp.eye(math.prod(check_input_shape(image_shape)), dtype=jnp.float32)


class FourierBasis(NamedTuple):
    """The real Fourier basis and the coordinates of its directions.

    directions:  [D, D] unit rows.
    frequencies: [D, A] integers, one for each axis but that of channels, for images (vertical,
      horizontal), each in -N/2 < f <= N/2, in cycles per length N of the axis.
    phases:      [D] 0 for a cosine, 1 for a sine.
    channels:    [D] the channel a direction lives in.
    """

    directions: jax.Array
    frequencies: np.ndarray
    phases: np.ndarray
    channels: np.ndarray


def dft_direction(
    image_shape: Shape,
    frequency: tuple[int, ...] | int,
    phase: str = "cosine",
    channel: int = 0,
) -> jax.Array:
    """The unit vector [D] with entries ∝ cos or sin of 2π Σ f_a·n_a/N_a in one channel; of an image
    2π(f_y·y/H + f_x·x/W).

    Args:
      image_shape: (D,), (L, C), (H, W, C) or (T, H, W, C).
      frequency: (f_1 … f_A), integers in cycles per length of an axis, modulo that length; (f_y,
        f_x) of an image, and where there is one axis also an integer.
      phase: "cosine" or "sine". A self-conjugate frequency (2 f_a ≡ 0 mod N_a for every axis) has
        no sine.
      channel: in 0 … C−1; 0 of a vector.

    Raises:
      InputError: for the sine of a self-conjugate frequency, an unknown phase, or a channel out of
        range.
    """
    shape = check_input_shape(image_shape)
    lengths = spatial_shape(shape)
    check_choice("phase", phase, PHASES)
    channel = check_integer("channel", channel, 0, math.prod(shape) // math.prod(lengths) - 1)
    frequency = _check_frequency(frequency, len(lengths))
    if phase == "sine" and _is_self_conjugate(frequency, lengths):
        raise InputError(
            f"frequency: {frequency} is self-conjugate on {'x'.join(map(str, lengths))} and has no "
            "sine"
        )
    # Integer products modulo the length keep the argument exact before the one division.
    places = zip(frequency, np.indices(lengths), lengths, strict=True)
    angle = 2 * np.pi * sum((f % length * n) % length / length for f, n, length in places)
    wave = np.cos(angle) if phase == "cosine" else np.sin(angle)
    entries = np.zeros((wave.size, math.prod(shape) // wave.size))
    entries[:, channel] = (wave / np.linalg.norm(wave)).reshape(-1)
    return jnp.asarray(entries.reshape(-1), dtype=jnp.float32)


def _check_frequency(frequency: Any, count: int) -> tuple[int, ...]:
    """The integers, one for each axis, which may be written as floats (`np.fft.fftfreq` does)."""
    values = plain(frequency)
    values = tuple(values) if isinstance(values, list | tuple) else (values,)
    whole = [value for value in values if isinstance(value, int | float) and value % 1 == 0]
    if len(values) != count or len(whole) != count:
        axes = {1: "one integer", 2: "two integers (vertical, horizontal)"}
        raise InputError(
            f"frequency: must be {axes.get(count, f'{count} integers')}, got {shown(frequency)}"
        )
    return tuple(map(int, values))


def _is_self_conjugate(frequency: tuple[int, ...], lengths: Shape) -> bool:
    """Whether a frequency is its own negative: zero or Nyquist along every axis."""
    return all(2 * f % length == 0 for f, length in zip(frequency, lengths, strict=True))


def half_space(lengths: Shape) -> list[tuple[int, ...]]:
    """One frequency of every conjugate pair ±f, as values in -N/2 < f <= N/2, lowest first."""

    frequencies = np.indices(lengths).reshape(len(lengths), -1).T
    conjugates = np.ravel_multi_index((-frequencies % lengths).T, lengths)
    chosen = frequencies[np.arange(len(frequencies)) <= conjugates]
    signed = np.where(2 * chosen <= lengths, chosen, chosen - lengths)
    return sorted(map(tuple, signed.tolist()), key=lambda f: (sum(k**2 for k in f), f))


def basis_dft(image_shape: Shape) -> FourierBasis:
    """The real Fourier basis [D, D] of inputs of any shape, lowest frequencies first.

    Each conjugate pair of frequencies gives a cosine and a sine; a self-conjugate frequency
    (zero or Nyquist along every axis) gives its cosine alone, so the rows are exactly D. Tables of
    runs name frequencies as their range does: those of −f, or f modulo N, are the same up to sign.
    """
    shape = check_input_shape(image_shape)
    lengths = spatial_shape(shape)
    coordinates = [
        (frequency, phase, channel)
        for frequency in half_space(lengths)
        for phase in PHASES[: 1 if _is_self_conjugate(frequency, lengths) else 2]
        for channel in range(math.prod(shape) // math.prod(lengths))
    ]
    rows = [np.asarray(dft_direction(shape, *one)) for one in coordinates]
    frequencies, phases, channels = map(np.array, zip(*coordinates, strict=True))
    phases = (phases == "sine").astype(int)
    return FourierBasis(jnp.asarray(np.stack(rows)), frequencies, phases, channels)


def _dct_matrix(length: int) -> np.ndarray:
    k, n = np.arange(length)[:, None], np.arange(length)[None, :]
    matrix = np.cos(np.pi * (n + 0.5) * k / length) * np.sqrt(2.0 / length)
    matrix[0] /= np.sqrt(2.0)
    return matrix


def basis_dct(image_shape: Shape) -> jax.Array:
    """The separable orthonormal DCT-II basis [D, D] of inputs of any shape.

    Row (k_y·W + k_x)·C + c of images is the product of cosines of vertical order k_y and horizontal
    order k_x in channel c, and so on for other numbers of axes.
    """
    shape = check_input_shape(image_shape)
    spatial = functools.reduce(np.kron, map(_dct_matrix, spatial_shape(shape)))
    channels = np.eye(math.prod(shape) // len(spatial))
    return jnp.asarray(np.kron(spatial, channels), dtype=jnp.float32)


@takes_old_names(key="seed")
def basis_random(
    seed: jax.Array | int, dimension: int, num_directions: int | None = None
) -> jax.Array:
    """`num_directions` orthonormal rows [K, D], uniformly distributed (Haar); all D by default.

    Asking for more directions keeps the first ones, up to rounding.

    Args:
      seed: an integer, or a typed random key, which is consumed.

    Raises:
      InputError: for a seed that is neither, and for numbers out of range.
    """
    key, dimension = resolve_key(seed), check_integer("dimension", dimension, 1)
    num_directions = dimension if num_directions is None else num_directions
    num_directions = check_integer("num_directions", num_directions, 1, dimension)
    keys = member_keys(key, jnp.arange(num_directions))
    draw = jax.vmap(lambda key: jax.random.normal(key, (dimension,), jnp.float32))
    orthogonal, triangle = jnp.linalg.qr(draw(keys).T)
    # The sign of the triangle's diagonal makes the factorization unique and the law Haar.
    return (orthogonal * jnp.where(jnp.diagonal(triangle) < 0, -1.0, 1.0)[None]).T


def check_orthonormal(directions: jax.Array, tolerance: float = 1e-3) -> np.ndarray:
    """The rows [K, D] in float64; raises `InputError` where an entry of V Vᵀ − I is above
    `tolerance`.
    """
    rows = host_array("directions", directions, "[K, D]")
    tolerance = check_number("tolerance", tolerance, 0.0)
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


def orthonormalized(rows: np.ndarray) -> np.ndarray:
    """A step towards the nearest orthonormal rows: float32 ones are off by 1e-6, which flipping
    twice would show.
    """
    return 1.5 * rows - 0.5 * (rows @ rows.T) @ rows


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
    names = [_quantized(direction) for direction in np.asarray(directions)]
    return np.sort(np.unique(names, return_index=True)[1])


def _quantized(direction: np.ndarray) -> bytes:
    """The direction in steps of 1/10007, with a positive first entry (among those that are not
    zero).
    """
    # A prime, so that the round numbers of simple directions do not lie half-way between two steps.
    steps = np.rint(np.asarray(direction, np.float64) * 10_007).astype("<i2")
    nonzero = np.flatnonzero(steps)
    return (-steps if len(nonzero) and steps[nonzero[0]] < 0 else steps).tobytes()
