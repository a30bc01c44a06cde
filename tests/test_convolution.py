import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import convolution
from nad_jax.errors import InputError

NHWC = ("NHWC", "HWIO", "NHWC")
# image [B, H, W, C], kernel [h, w, C, O], strides, padding: thin and wide, even and odd maps, every network's kinds.
CASES = [
    ((2, 32, 32, 1), (5, 5, 1, 6), (1, 1), "VALID"),
    ((2, 14, 14, 6), (5, 5, 6, 16), (1, 1), "VALID"),
    ((2, 11, 9, 3), (4, 3, 3, 5), (1, 1), ((1, 1), (1, 1))),
    ((2, 9, 9, 1), (3, 3, 1, 64), (1, 1), ((1, 1), (1, 1))),
    ((2, 8, 8, 64), (3, 3, 64, 32), (1, 1), "SAME"),
    ((2, 8, 8, 32), (3, 3, 32, 64), (2, 2), ((1, 1), (1, 1))),
    ((2, 9, 7, 32), (1, 1, 32, 64), (2, 2), "VALID"),
    ((2, 6, 6, 40), (1, 1, 40, 8), (1, 1), "VALID"),
]


def _draw(shape, kernel_shape, members=None):
    keys = jax.random.split(jax.random.key(0), 2)
    lead = () if members is None else (members,)
    return jax.random.normal(keys[0], lead + shape), jax.random.normal(keys[1], lead + kernel_shape)


def _close(actual, expected):
    np.testing.assert_allclose(actual, expected, atol=1e-5 * float(jnp.abs(expected).max()), rtol=0)


def _pair(strides, padding):
    plain = functools.partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=NHWC
    )
    fast = functools.partial(convolution.product_convolution, window_strides=strides, padding=padding)
    return plain, fast


@pytest.mark.parametrize(("shape", "kernel_shape", "strides", "padding"), CASES)
def test_products_equal_lax_in_value_and_gradients(shape, kernel_shape, strides, padding):
    x, kernel = _draw(shape, kernel_shape)
    plain, fast = _pair(strides, padding)
    _close(fast(x, kernel), plain(x, kernel))

    def loss(convolve, x, kernel):
        return jnp.sum(jnp.sin(convolve(x, kernel)))

    for actual, expected in zip(
        jax.jit(jax.grad(functools.partial(loss, fast), (0, 1)))(x, kernel),
        jax.jit(jax.grad(functools.partial(loss, plain), (0, 1)))(x, kernel),
        strict=True,
    ):
        _close(actual, expected)
    # The gradient with respect to one argument alone takes another path through the custom derivative.
    _close(jax.grad(functools.partial(loss, fast))(x, kernel), jax.grad(functools.partial(loss, plain))(x, kernel))
    tangents = (jnp.ones_like(x), jnp.ones_like(kernel))
    _close(jax.jvp(fast, (x, kernel), tangents)[1], jax.jvp(plain, (x, kernel), tangents)[1])


@pytest.mark.parametrize(
    ("shape", "kernel_shape", "strides", "padding", "at_a_time"),
    [
        ((8, 16, 16, 16), (3, 3, 16, 24), (1, 1), [(1, 1), (1, 1)], 8),
        ((6, 19, 21, 17), (3, 3, 17, 16), (1, 1), "VALID", 2),
        ((10, 17, 14, 16), (3, 3, 16, 16), (1, 1), [(2, 0), (0, 1)], 4),  # 4 does not divide 10
        ((8, 16, 16, 16), (3, 3, 16, 32), (2, 2), [(1, 1), (1, 1)], 2),
        ((8, 16, 16, 16), (5, 5, 16, 16), (1, 1), [(2, 2), (2, 2)], 8),
        ((8, 16, 16, 16), (3, 3, 16, 16), (1, 1), [(3, 0), (0, 3)], 8),
    ],
)
def test_many_channels_and_pixels_equal_lax_however_many_images_at_a_time(
    shape, kernel_shape, strides, padding, at_a_time, monkeypatch
):
    monkeypatch.setattr(convolution, "_CHUNK", at_a_time * math.prod(shape[1:]))
    x, kernel = _draw(shape, kernel_shape)
    plain, fast = _pair(strides, padding)
    _close(fast(x, kernel), plain(x, kernel))
    cotangent = jnp.sin(jnp.arange(plain(x, kernel).size, dtype=jnp.float32)).reshape(plain(x, kernel).shape)
    expected = jax.vjp(plain, x, kernel)[1](cotangent)
    for actual, other in zip(jax.jit(lambda *a: jax.vjp(fast, *a)[1](cotangent))(x, kernel), expected, strict=True):
        _close(actual, other)
    _close(jax.vmap(fast)(x[None], kernel[None])[0], plain(x, kernel))


@pytest.mark.parametrize(("shape", "kernel_shape", "strides", "padding"), CASES[:2] + CASES[4:6])
def test_mapped_over_kernels_equals_a_loop(shape, kernel_shape, strides, padding):
    x, kernel = _draw(shape, kernel_shape, members=3)
    plain, fast = _pair(strides, padding)
    expected = jnp.stack([plain(*member) for member in zip(x, kernel, strict=True)])
    _close(jax.vmap(fast)(x, kernel), expected)
    _close(jax.lax.map(lambda member: fast(*member), (x, kernel)), expected)


def _pool_by_window(x, kind, size, stride=None, padding=0):
    window, strides = (1, size, size, 1), (1, stride or size, stride or size, 1)
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    if kind == "max":
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, pads)
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, pads) / size**2


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize(
    ("height", "width", "window"),
    [(8, 8, (2,)), (9, 7, (2,)), (8, 12, (4,)), (8, 7, (3, 2, 1)), (9, 8, (3, 2)), (5, 6, (2, 3, 1)), (6, 6, (3, 1))],
)
def test_pooling_equals_reduce_window(kind, height, width, window):
    x = jax.random.normal(jax.random.key(0), (2, height, width, 3))
    _close(convolution.pool(x, kind, *window), _pool_by_window(x, kind, *window))
    _close(
        jax.grad(lambda x: jnp.sum(convolution.pool(x, kind, *window) ** 2))(x),
        jax.grad(lambda x: jnp.sum(_pool_by_window(x, kind, *window) ** 2))(x),
    )


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (4, 4, 0), (3, 2, 1), (3, 2, 0)])
def test_the_first_of_equal_maxima_gets_the_whole_gradient(size, stride, padding):
    x = -jax.random.randint(jax.random.key(0), (3, 8, 8, 2), 0, 3).astype(jnp.float32)  # many ties
    actual = np.asarray(jax.jit(jax.grad(lambda x: convolution.pool(x, "max", size, stride, padding).sum()))(x))
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(x, pads, constant_values=-np.inf)
    expected = np.zeros_like(padded)
    count = (padded.shape[1] - size) // stride + 1
    for b, i, j, c in np.ndindex(3, count, count, 2):
        window = padded[b, stride * i : stride * i + size, stride * j : stride * j + size, c]
        row, column = divmod(int(window.argmax()), size)
        expected[b, stride * i + row, stride * j + column, c] += 1
    np.testing.assert_array_equal(actual, expected[:, padding : padding + 8, padding : padding + 8])


def test_every_window_has_exactly_one_winner_whatever_it_holds():
    # Winners are found in pairs, never by comparison with a maximum that XLA may have rounded in another fusion.
    values = jnp.array([0.0, 1.0, 1.0, jnp.nan, jnp.inf, -jnp.inf])
    x = jax.random.choice(jax.random.key(0), values, (5, 8, 8, 3))
    gradient = jax.grad(lambda x: convolution.pool(x, "max", 2).sum())(x)
    np.testing.assert_array_equal(convolution.pool(gradient, "avg", 2) * 4, jnp.ones((5, 4, 4, 3)))


@pytest.mark.parametrize(("shape", "kernel_shape", "strides", "padding"), CASES)
def test_pooled_convolution_equals_convolution_then_pooling(shape, kernel_shape, strides, padding):
    x, kernel = _draw(shape, kernel_shape)
    plain, _ = _pair(strides, padding)
    for base in convolution.CONVOLUTIONS.values():
        fused = functools.partial(
            convolution.max_pooled(base), window_strides=strides, padding=padding, dimension_numbers=NHWC
        )
        _close(fused(x, kernel), _pool_by_window(plain(x, kernel), "max", 2))
        actual = jax.grad(lambda *a, f=fused: jnp.sum(f(*a) ** 2), (0, 1))(x, kernel)
        expected = jax.grad(lambda *a: jnp.sum(_pool_by_window(plain(*a), "max", 2) ** 2), (0, 1))(x, kernel)
        for a, b in zip(actual, expected, strict=True):
            _close(a, b)


def test_what_products_cannot_do_is_refused():
    x, kernel = jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 1, 4))
    with pytest.raises(InputError, match="groups 2"):
        convolution.product_convolution(x, kernel, (1, 1), "VALID", feature_group_count=2)
    for convolve in (convolution.product_convolution, convolution.lax_convolution):
        with pytest.raises(InputError, match="5x5 window meets a 4x4 map"):
            convolve(jnp.ones((1, 4, 4, 1)), jnp.ones((5, 5, 1, 1)), (1, 1), "VALID", dimension_numbers=NHWC)
    with pytest.raises(InputError, match="convolution: unknown value 'fft'"):
        convolution.resolve_convolution("fft")
