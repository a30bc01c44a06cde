"""Plain convolutions in modules of one's own run as products, and compute the same."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nad_jax import InputError, from_functions, from_linen, from_nnx, product_convolution
from nad_jax.substitution import substitute_convolution


class Plain(nn.Module):
    options: tuple = ()
    window: int = 2

    @nn.compact
    def __call__(self, x):
        options = dict(self.options)
        x = nn.relu(nn.Conv(8, (3,) * self.window, **options)(x))
        x = nn.remat(nn.Conv)(8, (3,) * self.window, strides=2, padding="VALID")(x)
        return nn.Dense(1)(nn.relu(x).reshape(len(x), -1))


class PlainNNX(nnx.Module):
    def __init__(self, rngs, **options):
        self.layers = nnx.List([nnx.Conv(2, 8, (3, 3), rngs=rngs, **options)])
        self.readout = nnx.Linear(8, 1, rngs=rngs)

    def __call__(self, x):
        return self.readout(nnx.relu(self.layers[0](x)).mean((1, 2)))


def _primitives(model):
    """How often each primitive occurs in a network, inside of others too."""
    x = jax.ShapeDtypeStruct((2, *model.image_shape), jnp.float32)
    program = str(jax.make_jaxpr(model.apply)(jax.eval_shape(model.init, jax.random.key(0)), x))
    return program.count("conv_general_dilated["), program.count("dot_general[")


def _agree(left, right):
    variables = jax.jit(left.init)(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, *left.image_shape))
    values = [np.asarray(jax.jit(model.apply)(variables, x)) for model in (left, right)]
    np.testing.assert_allclose(*values, rtol=1e-5, atol=1e-5)
    gradients = [
        jax.jit(jax.grad(lambda v, model=model: (model.apply(v, x) ** 2).sum()))(variables)
        for model in (left, right)
    ]
    for one, other in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize(("shape", "window"), [((8, 9, 2), 2), ((12, 2), 1)])
def test_linen_convolutions_of_images_and_signals_are_products(shape, window):
    product = from_linen(Plain(window=window), shape, check=False, convolution="product")
    lax = from_linen(Plain(window=window), shape, check=False, convolution="lax")
    assert _primitives(product)[0] == 0 < _primitives(lax)[0]
    assert product.description["convolution"] == "product"
    _agree(product, lax)


def test_nnx_convolutions_are_products_and_the_module_stays_as_it_was():
    made = []

    def factory(rngs):
        made.append(PlainNNX(rngs))
        return made[-1]

    product = from_nnx(factory, (8, 8, 2), check=False, convolution="product")
    lax = from_nnx(factory, (8, 8, 2), check=False, convolution="lax")
    assert _primitives(product)[0] == 0 < _primitives(lax)[0]
    assert {layer.layers[0].conv_general_dilated for layer in made} == {
        jax.lax.conv_general_dilated
    }
    _agree(product, lax)


@pytest.mark.parametrize(
    "options",
    [{"feature_group_count": 2}, {"kernel_dilation": 2}, {"input_dilation": 2, "padding": 1}],
)
def test_what_products_cannot_do_stays_with_lax(options):
    model = from_linen(Plain(tuple(options.items())), (8, 8, 2), check=False, convolution="product")
    assert _primitives(model)[0] == 1
    _agree(model, from_linen(Plain(tuple(options.items())), (8, 8, 2), convolution="lax"))


def test_a_convolution_that_is_given_is_left_alone():
    calls = []

    def own(*args, **kwargs):
        calls.append(args[0].shape)
        return jax.lax.conv_general_dilated(*args, **kwargs)

    options = (("conv_general_dilated", own),)
    with pytest.warns(UserWarning, match=r"kernel \(3, 3, 2, 8\).*product_convolution\(x, kernel"):
        from_linen(Plain(options), (8, 8, 2), convolution="product")
    assert calls


def test_networks_that_call_lax_themselves_are_warned_of_with_the_line_to_change():
    def init(key):
        return {"kernel": jax.random.normal(key, (3, 2, 4))}

    def apply(variables, x, convolve):
        return convolve(x, variables["kernel"], (1,), "SAME").mean((1, 2))[:, None]

    def lax(x, kernel, strides, padding):
        numbers = ("NHC", "HIO", "NHC")
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)

    with pytest.warns(UserWarning, match="train far slower on a CPU; call"):
        from_functions(init, lambda variables, x: apply(variables, x, lax), (12, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_functions(init, lambda variables, x: apply(variables, x, product_convolution), (12, 2))


def test_arguments_of_todays_layers_are_taken_and_others_refused_by_name():
    x, kernel = jnp.ones((2, 6, 6, 2)), jnp.ones((3, 3, 2, 4))
    y = product_convolution(
        x, kernel, (1, 1), "SAME", out_sharding=None, preferred_element_type=None
    )
    np.testing.assert_array_equal(y, product_convolution(x, kernel, (1, 1), "SAME"))
    with pytest.raises(InputError, match="preferred_element_type"):
        product_convolution(x, kernel, (1, 1), "SAME", preferred_element_type=jnp.float64)
    numbers = ("NHWC", "HWIO", "NHWC")
    halves = (x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    options = {"preferred_element_type": jnp.float32, "dimension_numbers": numbers}
    assert substitute_convolution(*halves, (1, 1), "SAME", **options).dtype == jnp.float32
