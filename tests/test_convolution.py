import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import convolution, pooling, target
from nad_jax.errors import InputError

NHWC = ("NHWC", "HWIO", "NHWC")
# image [B, H, W, C], kernel [h, w, C, O], strides, padding: thin and wide, even and odd maps, every
# network's kinds.
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
        jax.lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        dimension_numbers=NHWC,
    )
    fast = functools.partial(
        convolution.product_convolution, window_strides=strides, padding=padding
    )
    return plain, fast


@pytest.mark.parametrize(("shape", "kernel_shape", "strides", "padding"), CASES)
def test_products_equal_lax_in_value_and_gradients(shape, kernel_shape, strides, padding):
    given = _draw(shape, kernel_shape)

    @functools.partial(jax.jit, static_argnums=0)
    def evaluate(convolve, x, kernel):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(convolve(x, kernel)))

        tangents = (jnp.ones_like(x), jnp.ones_like(kernel))
        value, tangent = jax.jvp(convolve, (x, kernel), tangents)
        # The gradient with respect to one argument alone takes another path through the custom
        # derivative.
        return value, tangent, jax.grad(loss, (0, 1))(x, kernel), jax.grad(loss)(x, kernel)

    plain, fast = (
        jax.tree.leaves(evaluate(convolve, *given)) for convolve in _pair(strides, padding)
    )
    for actual, expected in zip(fast, plain, strict=True):
        _close(actual, expected)


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
    given = _draw(shape, kernel_shape)

    @functools.partial(jax.jit, static_argnums=0)
    def evaluate(convolve, x, kernel):
        value, pullback = jax.vjp(convolve, x, kernel)
        cotangent = jnp.sin(jnp.arange(value.size, dtype=jnp.float32)).reshape(value.shape)
        return value, jax.vmap(convolve)(x[None], kernel[None])[0], *pullback(cotangent)

    plain, fast = (evaluate(convolve, *given) for convolve in _pair(strides, padding))
    for actual, expected in zip(fast, plain, strict=True):
        _close(actual, expected)


@pytest.mark.parametrize(("shape", "kernel_shape", "strides", "padding"), CASES[:2] + CASES[4:6])
def test_mapped_over_kernels_equals_a_loop(shape, kernel_shape, strides, padding):
    given = _draw(shape, kernel_shape, members=3)
    plain, fast = _pair(strides, padding)
    expected = jax.jit(
        lambda *given: jnp.stack([plain(*member) for member in zip(*given, strict=True)])
    )(*given)
    _close(jax.jit(jax.vmap(fast))(*given), expected)
    _close(jax.lax.map(lambda member: fast(*member), given), expected)


def _pool_by_window(x, kind, size, stride=None, padding=0):
    window, strides = (1, size, size, 1), (1, stride or size, stride or size, 1)
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    if kind == "max":
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, pads)
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, strides, pads) / size**2


@pytest.mark.parametrize("kind", ["max", "avg"])
@pytest.mark.parametrize(
    ("height", "width", "window"),
    [
        (8, 8, (2,)),
        (9, 7, (2,)),
        (8, 12, (4,)),
        (8, 7, (3, 2, 1)),
        (9, 8, (3, 2)),
        (5, 6, (2, 3, 1)),
        (6, 6, (3, 1)),
    ],
)
def test_pooling_equals_reduce_window(kind, height, width, window):
    x = jax.random.normal(jax.random.key(0), (2, height, width, 3))

    @functools.partial(jax.jit, static_argnums=0)
    def evaluate(pool, x):
        return pool(x, kind, *window), jax.grad(lambda x: jnp.sum(pool(x, kind, *window) ** 2))(x)

    for actual, expected in zip(
        evaluate(pooling.pool, x), evaluate(_pool_by_window, x), strict=True
    ):
        _close(actual, expected)


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(2, 2, 0), (4, 4, 0), (3, 2, 1), (3, 2, 0)]
)
def test_the_first_of_equal_maxima_gets_the_whole_gradient(size, stride, padding):
    x = -jax.random.randint(jax.random.key(0), (3, 8, 8, 2), 0, 3).astype(jnp.float32)  # many ties
    actual = np.asarray(
        jax.jit(jax.grad(lambda x: pooling.pool(x, "max", size, stride, padding).sum()))(x)
    )
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
    # Winners are found in pairs, never by comparison with a maximum that XLA may have rounded in
    # another fusion.
    values = jnp.array([0.0, 1.0, 1.0, jnp.nan, jnp.inf, -jnp.inf])
    x = jax.random.choice(jax.random.key(0), values, (5, 8, 8, 3))
    gradient = jax.grad(lambda x: pooling.pool(x, "max", 2).sum())(x)
    np.testing.assert_array_equal(pooling.pool(gradient, "avg", 2) * 4, jnp.ones((5, 4, 4, 3)))


@pytest.mark.parametrize(("shape", "kernel_shape", "strides", "padding"), CASES)
def test_pooled_convolution_equals_convolution_then_pooling(shape, kernel_shape, strides, padding):
    given = _draw(shape, kernel_shape)
    plain, _ = _pair(strides, padding)

    @functools.partial(jax.jit, static_argnums=0)
    def evaluate(convolve, x, kernel):
        value, pullback = jax.vjp(convolve, x, kernel)
        return value, *pullback(2 * value)

    expected = evaluate(lambda *given: _pool_by_window(plain(*given), "max", 2), *given)
    for base in convolution.CONVOLUTIONS.values():
        fused = functools.partial(
            convolution.max_pooled(base),
            window_strides=strides,
            padding=padding,
            dimension_numbers=NHWC,
        )
        for one, other in zip(evaluate(fused, *given), expected, strict=True):
            _close(one, other)


def test_what_products_cannot_do_is_refused():
    x, kernel = jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 1, 4))
    with pytest.raises(InputError, match="groups 2"):
        convolution.product_convolution(x, kernel, (1, 1), "VALID", feature_group_count=2)
    for convolve in (convolution.product_convolution, convolution.lax_convolution):
        with pytest.raises(InputError, match="5x5 window meets a 4x4 map"):
            convolve(
                jnp.ones((1, 4, 4, 1)),
                jnp.ones((5, 5, 1, 1)),
                (1, 1),
                "VALID",
                dimension_numbers=NHWC,
            )
    with pytest.raises(InputError, match="convolution: unknown value 'fft'"):
        convolution.resolve_convolution("fft")


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("strides", "padding"), [((1, 1), "VALID"), ((2, 1), ((1, 2), (0, 1)))])
def test_convolutions_of_a_tpu_are_those_of_lax_in_value_and_derivatives(
    channels, strides, padding
):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 9, 8, channels))
    kernel = jax.random.normal(keys[1], (5, 3, channels, 6))
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def lax(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **numbers)

    def ours(x, kernel):
        with target.compiled_for([SimpleNamespace(platform="tpu")]):
            return convolution.lax_convolution(x, kernel, strides, padding, **numbers)

    taken = "custom_jvp_call" in str(jax.make_jaxpr(ours)(x, kernel))
    assert taken == (channels < 4)
    changes = jax.random.normal(keys[2], x.shape), jax.random.normal(keys[2], kernel.shape)
    near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3)
    jax.tree.map(near, *(jax.jvp(f, (x, kernel), changes) for f in (lax, ours)))
    for places in ((0,), (1,), (0, 1)):
        gradients = (
            jax.grad(lambda *given, f=f: (f(*given) ** 2).sum(), places)(x, kernel)
            for f in (lax, ours)
        )
        jax.tree.map(near, *gradients)


@pytest.mark.parametrize("convolve", [convolution.lax_convolution, convolution.mixed_convolution])
def test_a_dilated_convolution_of_an_accelerator_is_that_of_lax(convolve):
    x, kernel = jnp.ones((1, 9, 9, 1)), jnp.ones((3, 3, 1, 2))
    how = ((1, 1), "VALID", None, (2, 2), ("NHWC", "HWIO", "NHWC"))
    with target.compiled_for([SimpleNamespace(platform="tpu")]):
        y = convolve(x, kernel, *how)
    np.testing.assert_array_equal(y, jax.lax.conv_general_dilated(x, kernel, *how))


@pytest.mark.parametrize(("shape", "kernel_shape", "strides", "padding"), CASES)
def test_mixed_convolutions_are_products_of_thin_kernels_and_lax_of_others(
    shape, kernel_shape, strides, padding
):
    given = _draw(shape, kernel_shape)
    plain, _ = _pair(strides, padding)
    mixed = functools.partial(
        convolution.mixed_convolution,
        window_strides=strides,
        padding=padding,
        dimension_numbers=NHWC,
    )
    thin = kernel_shape[2] < 4 or kernel_shape[3] < 32
    products = thin and strides == (1, 1) and kernel_shape[:2] != (1, 1)
    assert ("conv_general_dilated" in str(jax.make_jaxpr(mixed)(*given))) != products
    _close(mixed(*given), plain(*given))


@pytest.mark.parametrize(
    ("platform", "name"), [("cpu", "product"), ("cuda", "mixed"), ("rocm", "mixed"), ("tpu", "lax")]
)
def test_the_automatic_convolution_is_that_of_the_device(platform, name):
    with target.compiled_for([SimpleNamespace(platform=platform)]):
        assert convolution.resolve_convolution("auto") == name
        assert convolution.resolve_convolution("lax") == "lax"
