"""Pooling of images by slices and maxima in pairs, whose gradients are fast on a CPU."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from nad_jax.errors import InputError, check_choice

Pads = tuple[tuple[int, int], tuple[int, int]]


def check_fits(size: Sequence[int], window: Sequence[int], pads: Pads = ((0, 0),) * 2) -> None:
    """Raises `InputError` where a window does not fit a map, i.e. the image is too small for the
    network.
    """
    if any(n + low + high < w for n, w, (low, high) in zip(size, window, pads, strict=True)):
        raise InputError(
            f"image_shape: too small, a {window[0]}x{window[1]} window meets a {size[0]}x{size[1]} "
            "map"
        )


def _entries(windows: jax.Array, axes: tuple[int, int]) -> list[jax.Array]:
    """The entries of every window, row by row, each of the shape of the pooled image."""
    first, second = axes
    entry = functools.partial(jax.lax.index_in_dim, keepdims=False)
    rows = [entry(windows, i, first) for i in range(windows.shape[first])]
    return [entry(row, j, second - 1) for row in rows for j in range(windows.shape[second])]


def _winners(entries: Sequence[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
    """The largest entry, and for each entry where it is the one, the first of equals."""
    if len(entries) == 1:
        return entries[0], [jnp.ones(entries[0].shape, bool)]
    left, among_left = _winners(entries[: len(entries) // 2])
    right, among_right = _winners(entries[len(entries) // 2 :])
    first, largest = left >= right, jnp.maximum(left, right)
    return largest, [first & won for won in among_left] + [~first & won for won in among_right]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def window_max(windows: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """The maximum over two axes, ascending; its derivative goes to exactly one entry, the first of
    equals.

    The derivative of `jnp.max` compares entries with the maximum: where XLA computes an entry again
    inside another fusion, its last bit may differ and the winner is lost. Entries compared in pairs
    always leave one winner.
    """
    return functools.reduce(jnp.maximum, _entries(windows, axes))


@window_max.defjvp
def window_max_jvp(axes, primals, tangents):
    (windows,), (direction,) = primals, tangents
    won = _winners(_entries(windows, axes))[1]
    first, second = axes
    size = windows.shape[second]
    rows = [jnp.stack(won[i : i + size], second - 1) for i in range(0, len(won), size)]
    return window_max(windows, axes), jnp.sum(jnp.where(jnp.stack(rows, first), direction, 0), axes)


def pool(
    x: jax.Array, kind: str, size: int, stride: int | None = None, padding: int = 0
) -> jax.Array:
    """size×size pooling of images [B, H, W, C]; what no window reaches at the border is dropped, as
    in PyTorch.

    Slices, reshapes and a maximum in pairs instead of `reduce_window`, whose gradient is slow on a
    CPU. Where several entries of a window share its maximum the gradient goes to the first, row by
    row, as in PyTorch.

    Args:
      kind: "max" or "avg".
      stride: from one window to the next; by default `size`, windows that do not overlap.
      padding: rows and columns around the image that are never the maximum, and zeros in an
        average.
    """
    check_choice("pooling", kind, ("max", "avg"))
    stride = size if stride is None else stride
    if 2 * padding > size:
        raise InputError(f"padding: must be at most half of the size {size}, got {padding}")
    pads = ((padding, padding),) * 2
    check_fits(x.shape[1:3], (size, size), pads)
    if padding:
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf if kind == "max" else 0.0)
    batch, height, width, channels = x.shape
    rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
    if stride == size:
        x = x[:, : rows * size, : columns * size]
        windows, axes = x.reshape(batch, rows, size, columns, size, channels), (2, 4)
    else:
        tall, wide = stride * (rows - 1) + 1, stride * (columns - 1) + 1
        entries = [
            x[:, i : i + tall : stride, j : j + wide : stride]
            for i, j in itertools.product(range(size), repeat=2)
        ]
        windows = jnp.stack(entries).reshape(size, size, batch, rows, columns, channels)
        axes = (0, 1)
    return window_max(windows, axes) if kind == "max" else windows.mean(axes)
