"""Depthwise convolutions as matrix products, for CPUs.

Each channel is convolved apart, so that there is no product over channels. But a convolution is a
product with a Toeplitz matrix over pixels: of all pixels of a small map, of a few rows of a larger
one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# From so many images on, larger matrices pay for making them.
_MANY = 16
# Pixels up to which a matrix over all of them pays, and otherwise the rows of outputs of a product:
# for fewer images, and for as many.
_PIXELS, _ROWS = (16, 64), (1, 4)


def _selection(taps: int, length: int, low: int, outputs: int) -> np.ndarray:
    """Which tap takes which input, `low` zeros before them, to which output: [k, outputs, length].

    A Toeplitz matrix is made by a product with it: of slices, XLA would draw the kernel of an
    untrained network again for each.
    """
    tap, output, place = np.ogrid[:taps, :outputs, :length]
    return (tap == place + low - output).astype(np.float32)


def depthwise_products(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, *args: Any, **kwargs: Any
) -> jax.Array:
    """A depthwise convolution with stride 1 of images [B, H, W, C] with a kernel [h, w, 1, C],
    called as `jax.lax.conv_general_dilated` is, and equal to it up to rounding.
    """
    batch, height, width, channels = x.shape
    (top, bottom), (left, right) = padding
    tall, wide = kernel.shape[:2]
    rows, columns = height + top + bottom - tall + 1, width + left + right - wide + 1
    if height * width <= _PIXELS[batch >= _MANY]:
        size, count, windows = rows, 1, x.transpose(3, 0, 1, 2)
    else:
        size = _ROWS[batch >= _MANY]
        count = -(-rows // size)
        read = size + tall - 1
        below = count * size + tall - 1 - height - top
        x = jnp.pad(x.transpose(3, 0, 1, 2), ((0, 0), (0, 0), (top, below), (0, 0)))
        windows = jnp.stack([x[:, :, n * size : n * size + read] for n in range(count)], 2)
        height, top = read, 0
    along = _selection(wide, width, left, columns), _selection(tall, height, top, size)
    matrix = jnp.einsum("hkc,kqw,hrp->crqpw", kernel[:, :, 0], *along)
    matrix = matrix.reshape(channels, size * columns, height * width)
    windows = windows.reshape(channels, batch * count, height * width)
    y = jnp.einsum("cbp,cqp->bqc", windows, matrix)
    return y.reshape(batch, count * size, columns, channels)[:, :rows]
