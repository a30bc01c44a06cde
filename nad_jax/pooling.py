"""Pooling of images by slices and maxima in pairs, whose gradients are fast on a CPU."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax import target
from nad_jax.errors import InputError, check_choice

Pads = tuple[tuple[int, int], tuple[int, int]]

_MOST = 2**22  # pixels of an image that is tried


class TooSmall(InputError):
    """A window that does not fit the map it meets: the image is too small for the network."""


def check_fits(size: Sequence[int], window: Sequence[int], pads: Pads = ((0, 0),) * 2) -> None:
    """Raises `TooSmall` where a window does not fit a map."""
    if any(n + low + high < w for n, w, (low, high) in zip(size, window, pads, strict=True)):
        raise TooSmall(
            f"image_shape: too small, a {window[0]}x{window[1]} window meets a {size[0]}x{size[1]} "
            "map"
        )


def name_smallest(
    error: TooSmall, trace: Callable[[tuple[int, ...]], object], shape: tuple[int, ...]
) -> TooSmall:
    """The error with the smallest shape of equal sides that fits, found by bisection; as it is where
    none is found.

    Args:
      trace: runs the network on the shape of one input, and raises `TooSmall` where it does not fit.
      shape: that of the error, channels last.
    """
    *sides, channels = shape

    def shape_of(side: int) -> tuple[int, ...]:
        return (*(side for _ in sides), channels)

    def fits(side: int) -> bool:
        with contextlib.suppress(TooSmall):
            trace(shape_of(side))
            return True
        return False

    if not sides:  # a vector, which the network makes an image of
        return error
    low = min(sides)  # which does not fit, as the side that is too small is no less
    high = 2 * low
    try:
        while not fits(high):
            low, high = high, 2 * high
            if high ** len(sides) > _MOST:
                return error
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle, high)
    except InputError:  # another fault: the network is not for images of every size
        return error
    smallest = "x".join(map(str, shape_of(high)))
    return TooSmall(f"{error}; the smallest of equal sides that fits is {smallest}")


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


def _reduce(x: jax.Array, monoid: str, size: int) -> jax.Array:
    """The maximum, minimum or sum over size×size windows that do not overlap."""
    start, operator = {
        "max": (-jnp.inf, jax.lax.max),
        "min": (jnp.inf, jax.lax.min),
        "add": (0.0, jax.lax.add),
    }[monoid]
    window = (1, size, size, 1)
    return jax.lax.reduce_window(x, np.array(start, x.dtype), operator, window, window, "VALID")


def _spread(pooled: jax.Array, size: int) -> jax.Array:
    """The value of each window at all of its entries."""
    pads = ((0, 0), (size - 1, size - 1), (size - 1, size - 1), (0, 0))
    zero, window = np.zeros((), pooled.dtype), (1, size, size, 1)
    return jax.lax.reduce_window(
        pooled, zero, jax.lax.add, window, (1,) * 4, pads, base_dilation=window
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _block_max(x: jax.Array, size: int) -> jax.Array:
    """Maxima of windows that do not overlap, by `reduce_window`, which a TPU is made for; their
    derivative goes to the first of equals.
    """
    return _reduce(x, "max", size)


@_block_max.defjvp
def _block_max_jvp(size, primals, tangents):
    (x,), (direction,) = primals, tangents
    rows, columns = (jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) for axis in (1, 2))
    place = (rows % size * size + columns % size).astype(x.dtype)
    window = (1, size, size, 1)

    def larger(one, other):
        first = one[0] >= other[0]
        return tuple(jnp.where(first, left, right) for left, right in zip(one, other, strict=True))

    start = np.array(-np.inf, x.dtype), np.array(0, x.dtype)
    largest, first = jax.lax.reduce_window((x, place), start, larger, window, window, "VALID")
    won = place == _spread(first, size)
    return largest, _reduce(jnp.where(won, direction, 0), "add", size)


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
        if target.platform() == "tpu":
            return _block_max(x, size) if kind == "max" else _reduce(x, "add", size) / size**2
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
