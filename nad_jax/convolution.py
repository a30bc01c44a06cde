"""The convolution that is fast on a CPU, as a drop-in for `jax.lax.conv_general_dilated`.

On a CPU `lax` convolutions of few channels run far below the rate of matrix products, their kernel
gradients are slower still inside `scan` and `map`, and under `vmap` over kernels they become
grouped convolutions. `product_convolution` writes the same sums as matrix products, which keep
their speed in all three places.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, NamedTuple

import jax
import jax.numpy as jnp

from nad_jax import target, winograd
from nad_jax.errors import InputError, check_choice
from nad_jax.pooling import Pads, check_fits, pool, window_max

# What `flax.linen.Conv` calls: images [B, H, W, C], a kernel [h, w, C, O], and the arguments of
# `jax.lax.conv_general_dilated` from the strides on.
Convolution = Callable[Concatenate[jax.Array, jax.Array, ...], jax.Array]

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


class _Window(NamedTuple):
    """How a plain 2-D kernel steps over images."""

    strides: tuple[int, int]
    pads: Pads


def _valid_size(x: jax.Array, kernel: jax.Array) -> tuple[int, int]:
    """Height and width of a valid convolution with stride 1."""
    return x.shape[1] - kernel.shape[0] + 1, x.shape[2] - kernel.shape[1] + 1


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
    rows, columns = (-(-length // size) for length in _valid_size(x, kernel))
    # Input blocks per output block, and all of them.
    tall, wide = (-(-(length - 1) // size) + 1 for length in kernel.shape[:2])
    down, across = rows + tall - 1, columns + wide - 1
    x = jnp.pad(x, ((0, 0), (0, size * down - height), (0, size * across - width), (0, 0)))
    blocks = x.reshape(batch, down, size, across, size * channels).transpose(0, 1, 3, 2, 4)
    blocks = blocks.reshape(batch, down, across, size * size * channels)
    patches = jnp.concatenate(
        [blocks[:, i : i + rows, j : j + columns] for i in range(tall) for j in range(wide)],
        axis=-1,
    )
    left = tall * size - kernel_height, wide * size - kernel_width
    shifted = [
        jnp.pad(kernel, ((i, left[0] - i), (j, left[1] - j), (0, 0), (0, 0))) for i, j in offsets
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
    # From the first to the last place of a window, cut to whole strides.
    tall, wide = (
        (length - 1) // stride * stride + 1
        for length, stride in zip(_valid_size(x, kernel), strides, strict=True)
    )
    patches = jnp.concatenate([x[:, :, j : j + wide : right] for j in range(kernel_width)], axis=-1)
    products = [
        patches[:, i : i + tall : down] @ kernel[i].reshape(-1, features)
        for i in range(kernel_height)
    ]
    return functools.reduce(jnp.add, products)


def _fits_blocks(kernel: jax.Array, window: _Window) -> bool:
    thin = kernel.shape[2] < _FEW or kernel.shape[3] < _THIN
    return window.strides == (1, 1) and thin and kernel.shape[:2] != (1, 1)


def _convolve_products(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    x = jnp.pad(x, ((0, 0), *window.pads, (0, 0)))
    if not _fits_blocks(kernel, window):
        return _convolve_rows(x, kernel, window.strides)
    size = _block_size(kernel)
    blocks = _convolve_blocks(x, kernel, size, list(itertools.product(range(size), repeat=2)))
    return _join_blocks(blocks, size, *_valid_size(x, kernel))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _convolve_wide(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """Many channels, few pixels: the value by `lax`, faster there, derivatives by products."""
    return _convolve_by_lax(x, kernel, window)


@functools.partial(_convolve_wide.defjvp, symbolic_zeros=True)
def _convolve_wide_jvp(window, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    terms = [
        _convolve_products(*pair, window)
        for tangent, pair in ((dx, (dx, kernel)), (dkernel, (x, dkernel)))
        if not isinstance(tangent, jax.custom_derivatives.SymbolicZero)
    ]
    y = _convolve_wide(x, kernel, window)
    return y, functools.reduce(jnp.add, terms, jnp.zeros_like(y))


def map_images(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """`function` of images [B, H, W, C], applied to as many of them at a time as stay in the cache
    of a CPU.
    """
    return _sum_images(lambda images: (function(images), None), x)[0]


def _sum_images(
    function: Callable[Concatenate[jax.Array, ...], tuple[Any, Any]], *arrays: jax.Array
) -> tuple[Any, Any]:
    """`function(*arrays) -> (images, sums)`, likewise: what belongs to images side by side, sums
    added up.
    """
    number = len(arrays[0])
    most = max(1, _CHUNK // (arrays[0].size // number))
    size = max(size for size in range(1, min(most, number) + 1) if number % size == 0)
    if size == number:
        return function(*arrays)

    def add(total: Any, chunk: tuple[jax.Array, ...]) -> tuple[Any, Any]:
        images, sums = function(*chunk)
        return jax.tree.map(jnp.add, total, sums), images

    chunks = [array.reshape(-1, size, *array.shape[1:]) for array in arrays]
    shapes = jax.eval_shape(function, *arrays)[1]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, images = jax.lax.scan(add, zeros, chunks)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), images), total


def _is_winograd(kernel: jax.Array, window: _Window) -> bool:
    """3×3 with stride 1; with more padding than 2 the gradient in the images would need less than
    none.
    """
    return (
        kernel.shape[:2] == (3, 3) and window.strides == (1, 1) and max(map(max, window.pads)) <= 2
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_many(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """Many channels and many pixels: a few images at a time, with fewer products where Winograd's
    serve.
    """
    if _is_winograd(kernel, window):
        tiles = winograd.transform_kernel(kernel)
        return map_images(lambda images: winograd.convolve(images, tiles, window.pads), x)
    return map_images(lambda images: _convolve_products(images, kernel, window), x)


def _convolve_many_forward(x: jax.Array, kernel: jax.Array, window: _Window) -> Any:
    return _convolve_many(x, kernel, window), (x, kernel)


def _convolve_many_backward(window: _Window, kept: Any, cotangent: jax.Array) -> Any:
    x, kernel = kept
    if _is_winograd(kernel, window):
        around = window._replace(pads=tuple((2 - low, 2 - high) for low, high in window.pads))
        dx = _convolve_many(cotangent, kernel[::-1, ::-1].swapaxes(2, 3), around)
        tiles = _sum_images(
            lambda x, y: (None, winograd.kernel_tiles_gradient(x, y, window.pads)), x, cotangent
        )[1]
        return dx, winograd.kernel_gradient(tiles)

    def gradients(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        pullback = jax.vjp(lambda *args: _convolve_products(*args, window), x, kernel)[1]
        return pullback(cotangent)

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
    **others: object,
) -> _Window:
    """Strides and padding of the call that layers of Flax make; raises `InputError` unless it is
    plain and 2-D.
    """
    del dimension_numbers, precision
    dilated = {*(lhs_dilation or ()), *(rhs_dilation or ())} - {1}
    if x.ndim != 4 or kernel.ndim != 4 or dilated or feature_group_count != 1:
        raise InputError(
            "convolution: 'product' takes 1-D and 2-D convolutions without dilation or groups, "
            f"got input {x.shape}, kernel {kernel.shape}, groups {feature_group_count}; use 'lax'"
        )
    for name, value in others.items():  # preferred_element_type, out_sharding, batch_group_count
        check_choice(name, value, (1,) if name == "batch_group_count" else (None,))
    size, kernel_size = x.shape[1:3], kernel.shape[:2]
    strides = tuple(map(int, window_strides))
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(size, kernel_size, strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    check_fits(size, kernel_size, pads)
    return _Window(strides, pads)


def product_convolution(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *args,
    **kwargs,
) -> jax.Array:
    """Convolution of signals [B, L, C] with a kernel [l, C, O], or of images [B, H, W, C] with a
    kernel [h, w, C, O], with the signature that layers of Flax call.

    Equal to `jax.lax.conv_general_dilated` in value and derivatives up to rounding (1e-5 of the
    largest entry in float32). `dimension_numbers` is Flax's channels-last layout; `precision` is
    left to `jax.default_matmul_precision`. Of many channels and pixels there are no forward-mode
    derivatives (`jax.jvp`): use `jax.lax` for those.

    Raises:
      InputError: for anything but a plain 1-D or 2-D convolution (dilation, groups): use `jax.lax` for
        those.
    """
    if x.ndim == kernel.ndim == 3:  # a signal is an image of one row
        pads = padding if isinstance(padding, str) else ((0, 0), *padding)
        how = (1, *window_strides), pads, *args
        return product_convolution(x[:, None], kernel[None], *how, **kwargs)[:, 0]
    window = _plain_window(x, kernel, window_strides, padding, *args, **kwargs)
    # `lax` is the slower one for few outputs, for 1×1 kernels (a single product) and, by a factor
    # of 80, where the map is no larger than the kernel.
    if kernel.shape[:2] == (1, 1):
        return _convolve_products(x, kernel, window)
    if min(kernel.shape[2:]) >= _MANY_CHANNELS and x.size // x.shape[-1] >= _MANY_PIXELS:
        return _convolve_many(x, kernel, window)
    wide = (
        not _fits_blocks(kernel, window)
        and kernel.shape[-1] >= _THIN
        and min(_valid_size(x, kernel)) > 1
    )
    return (_convolve_wide if wide else _convolve_products)(x, kernel, window)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _convolve_few(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """Few input channels on a TPU: by `lax` but for the gradient in the images, whose few channels
    leave a TPU idle there: XLA estimates 1.2 ms instead of 3.5 for those of the 84 features of 12
    LeNets on a v5e.
    """
    return _convolve_by_lax(x, kernel, window)


def _convolve_by_lax(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    numbers = "NHWC", "HWIO", "NHWC"
    return jax.lax.conv_general_dilated(x, kernel, *window, dimension_numbers=numbers)


@functools.partial(_convolve_few.defjvp, symbolic_zeros=True)
def _convolve_few_jvp(window, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    y = _convolve_few(x, kernel, window)
    change = jnp.zeros_like(y)
    if not isinstance(dx, jax.custom_derivatives.SymbolicZero):
        change += _convolve_products(dx, kernel, window)
    if not isinstance(dkernel, jax.custom_derivatives.SymbolicZero):
        change += _convolve_by_lax(x, dkernel, window)
    return y, change


def lax_convolution(x: jax.Array, kernel: jax.Array, *args, **kwargs) -> jax.Array:
    """`jax.lax.conv_general_dilated`, with an error where the kernel does not fit instead of an
    empty map.
    """
    few = kernel.ndim == 4 and kernel.shape[2] < _FEW and kwargs.get("precision") is None
    if few and target.platform() == "tpu":
        with contextlib.suppress(InputError):  # dilated or in groups, which `lax` knows
            return _convolve_few(x, kernel, _plain_window(x, kernel, *args, **kwargs))
    y = jax.lax.conv_general_dilated(x, kernel, *args, **kwargs)
    if 0 in y.shape:
        check_fits(x.shape[1:3], kernel.shape[:2])
    return y


def mixed_convolution(x: jax.Array, kernel: jax.Array, *args, **kwargs) -> jax.Array:
    """`product_convolution` of a thin kernel, few channels in or out, `lax_convolution` of others.

    That is what is fast on a GPU: networks side by side make a thin kernel a grouped convolution
    that leaves the GPU idle, a wide one not.
    """
    if kernel.ndim == 4 and kwargs.get("precision") is None:
        with contextlib.suppress(InputError):  # dilated or in groups, which `lax` knows
            window = _plain_window(x, kernel, *args, **kwargs)
            if _fits_blocks(kernel, window):
                return _convolve_products(x, kernel, window)
    return lax_convolution(x, kernel, *args, **kwargs)


CONVOLUTIONS: dict[str, Convolution] = {
    "lax": lax_convolution,
    "product": product_convolution,
    "mixed": mixed_convolution,
}
_AUTOMATIC = {"cpu": "product", "gpu": "mixed"}


def _convolve_and_pool(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Valid convolution and 2×2 max-pooling, the maximum taken over the blocks as they leave the
    product.
    """
    check_fits(_valid_size(x, kernel), (2, 2))
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
    return _join_blocks(pooled, size, *(length // 2 for length in _valid_size(x, kernel)))


def max_pooled(convolution: Convolution) -> Convolution:
    """The same convolution followed by a 2×2 max-pooling, for `flax.linen.Conv`, whose bias may
    come after the maximum.

    With `product_convolution` and few channels the maximum is taken over the blocks as they leave
    the product, without putting the unpooled image together: training steps of LeNet take 0.76 and
    its central differences 0.67 of the time.
    """

    def convolve_and_pool(x: jax.Array, kernel: jax.Array, *args, **kwargs) -> jax.Array:
        if convolution in (product_convolution, mixed_convolution):
            window = _plain_window(x, kernel, *args, **kwargs)
            if _fits_blocks(kernel, window):
                return _convolve_and_pool(jnp.pad(x, ((0, 0), *window.pads, (0, 0))), kernel)
        return pool(convolution(x, kernel, *args, **kwargs), "max", 2)

    return convolve_and_pool


def resolve_convolution(name: str) -> str:
    """The convolution of a name: "auto" is "product" on a CPU, "mixed" on a GPU, "lax" elsewhere."""
    check_choice("convolution", name, ("auto", *CONVOLUTIONS))
    return _AUTOMATIC.get(target.platform(), "lax") if name == "auto" else name
