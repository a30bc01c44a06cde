"""The convolution that is fast on a CPU, as a drop-in for `jax.lax.conv_general_dilated`.

On a CPU `lax` convolutions of few channels run far below the rate of matrix products, their kernel
gradients are slower still inside `scan` and `map`, and under `vmap` over kernels they become
grouped convolutions. `product_convolution` writes the same sums as matrix products, which keep
their speed in all three places.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from nad_jax import winograd
from nad_jax.errors import InputError, check_choice
from nad_jax.pooling import Pads, check_fits, pool, window_max

# Below this many output channels the products of `_convolve_rows` are too thin to run near the
# machine's rate.
_THIN = 32
# Below this many input channels a window is small enough for blocks of 4×4 outputs.
_FEW = 4
# Floats of images that are convolved at a time, 2 MB: what is made of them then stays in the cache.
_CHUNK = 2**19
# From these on (pixels of all images together) arrays outgrow the cache, and Winograd's
# transformation of the kernel pays for itself.
_MANY_CHANNELS = 16
_MANY_PIXELS = 2048


def _block_size(kernel: jax.Array) -> int:
    """Outputs per side of a block, even: more where a window holds so few numbers that its product
    would be thin.
    """
    return 4 if kernel.shape[2] < _FEW and kernel.shape[3] < _THIN else 2


def _convolve_blocks(
    x: jax.Array, kernel: jax.Array, size: int, offsets: Sequence[tuple[int, int]]
) -> jax.Array:
    """Valid convolution with stride 1 in R×Q blocks of size×size outputs, one product for all: [B,
    R, Q, S, O].

    S runs over `offsets`, the (row, column) of an output in its block, in the order asked for. The
    window a block needs is read as whole size×size input blocks, so a patch is few wide slices
    instead of many thin ones, and the product has S·O columns instead of O. Outputs past the border
    are meaningless.
    """
    batch, height, width, channels = x.shape
    kernel_height, kernel_width, _, features = kernel.shape
    rows, columns = -(-(height - kernel_height + 1) // size), -(-(width - kernel_width + 1) // size)
    tall, wide = (
        -(-(kernel_height - 1) // size) + 1,
        -(-(kernel_width - 1) // size) + 1,
    )  # input blocks per output block
    missing = size * (rows + tall - 1) - height, size * (columns + wide - 1) - width
    x = jnp.pad(x, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
    blocks = x.reshape(
        batch, x.shape[1] // size, size, x.shape[2] // size, size * channels
    ).transpose(0, 1, 3, 2, 4)
    blocks = blocks.reshape(batch, rows + tall - 1, columns + wide - 1, size * size * channels)
    patches = jnp.concatenate(
        [blocks[:, i : i + rows, j : j + columns] for i in range(tall) for j in range(wide)],
        axis=-1,
    )
    shifted = [
        jnp.pad(
            kernel,
            (
                (i, tall * size - kernel_height - i),
                (j, wide * size - kernel_width - j),
                (0, 0),
                (0, 0),
            ),
        )
        for i, j in offsets
    ]
    matrix = jnp.stack(shifted, axis=-2).reshape(
        tall, size, wide, size, channels, len(offsets) * features
    )
    matrix = matrix.transpose(0, 2, 1, 3, 4, 5).reshape(-1, len(offsets) * features)
    products = patches.reshape(batch * rows * columns, -1) @ matrix
    return products.reshape(batch, rows, columns, len(offsets), features)


def _join_blocks(blocks: jax.Array, size: int, height: int, width: int) -> jax.Array:
    """Blocks [B, R, Q, size·size, O] side by side, cut to an image [B, height, width, O]."""
    batch, rows, columns, _, features = blocks.shape
    y = blocks.reshape(batch, rows, columns, size, size, features).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(batch, rows * size, columns * size, features)[:, :height, :width]


def _convolve_rows(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """Valid convolution as one product per kernel row over patches of that row."""
    kernel_height, kernel_width, _, features = kernel.shape
    down, right = strides
    out_height, out_width = (
        (x.shape[1] - kernel_height) // down + 1,
        (x.shape[2] - kernel_width) // right + 1,
    )
    patches = jnp.concatenate(
        [x[:, :, j : j + right * (out_width - 1) + 1 : right] for j in range(kernel_width)], axis=-1
    )
    products = [
        patches[:, i : i + down * (out_height - 1) + 1 : down] @ kernel[i].reshape(-1, features)
        for i in range(kernel_height)
    ]
    return functools.reduce(jnp.add, products)


def _fits_blocks(kernel: jax.Array, strides: tuple[int, int]) -> bool:
    thin = kernel.shape[2] < _FEW or kernel.shape[3] < _THIN
    return strides == (1, 1) and thin and kernel.shape[0] * kernel.shape[1] > 1


def _convolve_products(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    if not _fits_blocks(kernel, strides):
        return _convolve_rows(x, kernel, strides)
    size = _block_size(kernel)
    blocks = _convolve_blocks(x, kernel, size, list(itertools.product(range(size), repeat=2)))
    return _join_blocks(
        blocks, size, x.shape[1] - kernel.shape[0] + 1, x.shape[2] - kernel.shape[1] + 1
    )


def _convolve_lax(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolve_wide(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    """Many channels, few pixels: the value by `lax`, faster there, derivatives by products."""
    return _convolve_lax(x, kernel, strides, pads)


@functools.partial(_convolve_wide.defjvp, symbolic_zeros=True)
def _convolve_wide_jvp(strides, pads, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    terms = []
    if not isinstance(dx, jax.custom_derivatives.SymbolicZero):
        terms.append(_convolve_products(dx, kernel, strides, pads))
    if not isinstance(dkernel, jax.custom_derivatives.SymbolicZero):
        terms.append(_convolve_products(x, dkernel, strides, pads))
    y = _convolve_wide(x, kernel, strides, pads)
    return y, functools.reduce(jnp.add, terms, jnp.zeros_like(y)) if terms else jnp.zeros_like(y)


def _chunks(images: jax.Array, size: int) -> jax.Array:
    return images.reshape(-1, size, *images.shape[1:])


def _chunk_size(x: jax.Array) -> int:
    """Images at a time whose arrays stay in the cache: a divisor of their number, 2 MB of them at
    most.
    """
    most = max(1, _CHUNK // (x.size // len(x)))
    return max(size for size in range(1, min(most, len(x)) + 1) if len(x) % size == 0)


def map_images(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`function` of images [B, H, W, C], applied to as many of them at a time as stay in the cache
    of a CPU.
    """
    size = _chunk_size(x)
    if size == len(x):
        return function(x)
    y = jax.lax.map(function, _chunks(x, size))
    return y.reshape(-1, *y.shape[2:])


def _sum_images(
    function: Callable[..., tuple[Any, Any]], x: jax.Array, y: jax.Array
) -> tuple[Any, Any]:
    """`function(x, y) -> (images, sums)`, likewise: what belongs to images side by side, sums added
    up.
    """
    size = _chunk_size(x)
    if size == len(x):
        return function(x, y)

    def add(total: Any, chunk: tuple[jax.Array, jax.Array]) -> tuple[Any, Any]:
        images, sums = function(*chunk)
        return jax.tree.map(jnp.add, total, sums), images

    chunks = _chunks(x, size), _chunks(y, size)
    shapes = jax.eval_shape(function, chunks[0][0], chunks[1][0])[1]
    total, images = jax.lax.scan(
        add, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes), chunks
    )
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), images), total


def _is_winograd(kernel: jax.Array, strides: tuple[int, int], pads: Pads) -> bool:
    """3×3 with stride 1; with more padding than 2 the gradient in the images would need less than
    none.
    """
    return kernel.shape[:2] == (3, 3) and strides == (1, 1) and max(map(max, pads)) <= 2


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve_many(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> jax.Array:
    """Many channels and many pixels: a few images at a time, with fewer products where Winograd's
    serve.
    """
    if _is_winograd(kernel, strides, pads):
        tiles = winograd.transform_kernel(kernel)
        return map_images(lambda images: winograd.convolve(images, tiles, pads), x)
    return map_images(lambda images: _convolve_products(images, kernel, strides, pads), x)


def _convolve_many_forward(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], pads: Pads
) -> Any:
    return _convolve_many(x, kernel, strides, pads), (x, kernel)


def _convolve_many_backward(
    strides: tuple[int, int], pads: Pads, kept: Any, cotangent: jax.Array
) -> Any:
    x, kernel = kept
    if _is_winograd(kernel, strides, pads):
        around = tuple((2 - low, 2 - high) for low, high in pads)
        dx = _convolve_many(cotangent, kernel[::-1, ::-1].swapaxes(2, 3), strides, around)
        tiles = _sum_images(
            lambda x, y: (None, winograd.kernel_tiles_gradient(x, y, pads)), x, cotangent
        )[1]
        return dx, winograd.kernel_gradient(tiles)

    def gradients(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(lambda x, kernel: _convolve_products(x, kernel, strides, pads), x, kernel)[
            1
        ](cotangent)

    return _sum_images(gradients, x, cotangent)


_convolve_many.defvjp(_convolve_many_forward, _convolve_many_backward)


def _plain_window(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: object = None,
    feature_group_count: int = 1,
    *,
    precision: object = None,
) -> tuple[tuple[int, int], Pads]:
    """Strides and padding of the call `flax.linen.Conv` makes; raises `InputError` unless it is
    plain and 2-D.
    """
    del dimension_numbers, precision
    dilated = any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    if x.ndim != 4 or kernel.ndim != 4 or dilated or feature_group_count != 1:
        raise InputError(
            "convolution: 'product' takes 2-D convolutions without dilation or groups, "
            f"got input {x.shape}, kernel {kernel.shape}, groups {feature_group_count}; use 'lax'"
        )
    strides = (int(window_strides[0]), int(window_strides[1]))
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    check_fits(x.shape[1:3], kernel.shape[:2], pads)
    return strides, pads


def product_convolution(x: jax.Array, kernel: jax.Array, *args, **kwargs) -> jax.Array:
    """2-D convolution with the signature `flax.linen.Conv` calls: images [B, H, W, C], kernel [h,
    w, C, O].

    Equal to `jax.lax.conv_general_dilated` in value and derivatives up to rounding (1e-5 of the
    largest entry in float32). `dimension_numbers` is Flax's channels-last layout; `precision` is
    left to `jax.default_matmul_precision`. Of many channels and pixels there are no forward-mode
    derivatives (`jax.jvp`): use `jax.lax` for those.

    Raises:
      InputError: for anything but a plain 2-D convolution (dilation, groups): use `jax.lax` for
        those.
    """
    strides, pads = _plain_window(x, kernel, *args, **kwargs)
    # `lax` is the slower one for few outputs, for 1×1 kernels (a single product) and, by a factor
    # of 80, where the map is no larger than the kernel.
    kernel_size = kernel.shape[:2]
    large_map = all(n > k for n, k in zip(x.shape[1:3], kernel_size, strict=True))
    if (
        min(kernel.shape[2:]) >= _MANY_CHANNELS
        and kernel_size != (1, 1)
        and x.size // x.shape[-1] >= _MANY_PIXELS
    ):
        return _convolve_many(x, kernel, strides, pads)
    wide = (
        not _fits_blocks(kernel, strides)
        and kernel.shape[-1] >= _THIN
        and kernel_size != (1, 1)
        and large_map
    )
    return (_convolve_wide if wide else _convolve_products)(x, kernel, strides, pads)


def lax_convolution(x: jax.Array, kernel: jax.Array, *args, **kwargs) -> jax.Array:
    """`jax.lax.conv_general_dilated`, with an error where the kernel does not fit instead of an
    empty map.
    """
    y = jax.lax.conv_general_dilated(x, kernel, *args, **kwargs)
    if 0 in y.shape:
        check_fits(x.shape[1:3], kernel.shape[:2])
    return y


CONVOLUTIONS: dict[str, Callable[..., jax.Array]] = {
    "lax": lax_convolution,
    "product": product_convolution,
}


def _convolve_and_pool(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Valid convolution and 2×2 max-pooling, the maximum taken over the blocks as they leave the
    product.
    """
    size = _block_size(kernel) // 2  # pooled outputs per side of a block
    # The place in the pooling window runs before the pooled output, so that a maximum is one over
    # long rows.
    offsets = [
        (2 * i + row, 2 * j + column)
        for row, column, i, j in itertools.product(range(2), range(2), range(size), range(size))
    ]
    blocks = _convolve_blocks(x, kernel, 2 * size, offsets)
    rows, columns = blocks.shape[1:3]
    pooled = window_max(blocks.reshape(len(x), rows, columns, 2, 2, -1), (3, 4))
    pooled = pooled.reshape(len(x), rows, columns, size * size, kernel.shape[-1])
    return _join_blocks(
        pooled,
        size,
        (x.shape[1] - kernel.shape[0] + 1) // 2,
        (x.shape[2] - kernel.shape[1] + 1) // 2,
    )


def max_pooled(convolution: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The same convolution followed by a 2×2 max-pooling, for `flax.linen.Conv`, whose bias may
    come after the maximum.

    With `product_convolution` and few channels the maximum is taken over the blocks as they leave
    the product, without putting the unpooled image together: training steps of LeNet take 0.76 and
    its central differences 0.67 of the time.
    """

    def convolve_and_pool(x: jax.Array, kernel: jax.Array, *args, **kwargs) -> jax.Array:
        if convolution is product_convolution:
            strides, pads = _plain_window(x, kernel, *args, **kwargs)
            if _fits_blocks(kernel, strides):
                return _convolve_and_pool(jnp.pad(x, ((0, 0), *pads, (0, 0))), kernel)
        return pool(convolution(x, kernel, *args, **kwargs), "max", 2)

    return convolve_and_pool


def resolve_convolution(name: str) -> str:
    """The name of the convolution to use: "auto" is "product" on a CPU and "lax" elsewhere."""
    check_choice("convolution", name, ("auto", *CONVOLUTIONS))
    if name == "auto":
        return "product" if jax.default_backend() == "cpu" else "lax"
    return name
