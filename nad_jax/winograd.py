"""Winograd's F(2×2, 3×3) (Lavin and Gray 2016, section 4.1): a 3×3 convolution in fewer products.

A tile of 2×2 outputs from 4×4 inputs takes 16 products instead of 36, Y = Aᵀ[(G k Gᵀ) ⊙ (Bᵀ x B)]A.
"""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp

from nad_jax.pooling import Pads

_INPUT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # Bᵀ
_KERNEL = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # G
_OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))  # Aᵀ
_KERNEL_TRANSPOSED, _OUTPUT_TRANSPOSED = (
    tuple(zip(*matrix, strict=True)) for matrix in (_KERNEL, _OUTPUT)
)


def _combine(weights: Iterable[float], arrays: Iterable[jax.Array]) -> jax.Array:
    """Σ weight · array, written without products where a weight is 0 or ±1."""
    total = None
    for weight, array in zip(weights, arrays, strict=True):
        if weight:
            term = array if abs(weight) == 1 else abs(weight) * array
            term = term if weight > 0 else -term
            total = term if total is None else total + term
    return total


def _transform(matrix: Sequence[Sequence[float]], tile: Sequence[jax.Array]) -> list[jax.Array]:
    """The entries of M X Mᵀ, row by row, for a tile X whose entries, row by row, are arrays."""
    return [
        _combine([p * q for p in left for q in right], tile) for left in matrix for right in matrix
    ]


def _input_tiles(x: jax.Array, pads: Pads) -> list[jax.Array]:
    """Bᵀ x B of all tiles: 16 arrays [B·R·Q, C]; R×Q tiles cover the outputs, and past the border
    zeros.
    """
    even = (
        (low, high + (n + low + high) % 2)
        for n, (low, high) in zip(x.shape[1:3], pads, strict=True)
    )
    x = jnp.pad(x, ((0, 0), *even, (0, 0)))
    tall, wide = x.shape[1] - 3, x.shape[2] - 3  # from the first to the last of every second
    tile = [x[:, i : i + tall : 2, j : j + wide : 2] for i in range(4) for j in range(4)]
    return [entry.reshape(-1, x.shape[-1]) for entry in _transform(_INPUT, tile)]


def transform_kernel(kernel: jax.Array) -> list[jax.Array]:
    """G k Gᵀ: 16 arrays [C, O]."""
    return _transform(_KERNEL, [kernel[i, j] for i in range(3) for j in range(3)])


def convolve(x: jax.Array, kernel_tiles: list[jax.Array], pads: Pads) -> jax.Array:
    """Valid 3×3 convolution with stride 1 of a padded image, [B, H, W, O]."""
    height, width = (n + sum(pad) - 2 for n, pad in zip(x.shape[1:3], pads, strict=True))
    rows, columns = -(-height // 2), -(-width // 2)
    products = [
        tile @ kernel for tile, kernel in zip(_input_tiles(x, pads), kernel_tiles, strict=True)
    ]
    products = [product.reshape(len(x), rows, columns, -1) for product in products]
    a, b, c, d = _transform(_OUTPUT, products)
    y = jnp.stack([jnp.stack([a, b], 3), jnp.stack([c, d], 3)], 2)
    return y.reshape(len(x), 2 * rows, 2 * columns, -1)[:, :height, :width]


def kernel_tiles_gradient(x: jax.Array, cotangent: jax.Array, pads: Pads) -> list[jax.Array]:
    """The gradient in the transformed kernel: 16 arrays [C, O]."""
    odd = ((0, n % 2) for n in cotangent.shape[1:3])
    cotangent = jnp.pad(cotangent, ((0, 0), *odd, (0, 0)))
    tile = [cotangent[:, i::2, j::2] for i in range(2) for j in range(2)]
    features = cotangent.shape[-1]
    outputs = [entry.reshape(-1, features) for entry in _transform(_OUTPUT_TRANSPOSED, tile)]
    return [
        jax.lax.dot_general(inputs, output, (((0,), (0,)), ((), ())))  # inputsᵀ outputs
        for inputs, output in zip(_input_tiles(x, pads), outputs, strict=True)
    ]


def kernel_gradient(tiles: list[jax.Array]) -> jax.Array:
    """The gradient in the kernel, [3, 3, C, O], from that in its transformed tiles."""
    entries = jnp.stack(_transform(_KERNEL_TRANSPOSED, tiles))
    return entries.reshape(3, 3, *entries.shape[1:])
