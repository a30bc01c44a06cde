"""Derivatives against a float64 NumPy LeNet that shares no code with the package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax.architectures import create_model
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError
from nad_jax.vector_fields import central_difference, input_gradient

SHAPE = (18, 16, 2)


def _lenet_float64(variables, images, pooling):
    """Logits and features of LeNet, written with loops over windows."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    x = np.asarray(images, np.float64)
    for name in ("Conv_0", "Conv_1"):
        kernel, bias = params[name]["kernel"], params[name]["bias"]
        height, width = x.shape[1] - 4, x.shape[2] - 4
        y = np.zeros((len(x), height, width, kernel.shape[-1]))
        for row in range(height):
            for column in range(width):
                window = x[:, row : row + 5, column : column + 5]
                y[:, row, column] = np.tensordot(window, kernel, 3) + bias
        y = np.maximum(y, 0)[:, : height // 2 * 2, : width // 2 * 2]
        corners = np.stack([y[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])
        x = corners.max(0) if pooling == "max" else corners.mean(0)
    x = x.reshape(len(x), -1)
    for name in ("Dense_0", "Dense_1"):
        x = np.maximum(x @ params[name]["kernel"] + params[name]["bias"], 0)
    return x @ params["Dense_2"]["kernel"] + params["Dense_2"]["bias"], x


def _difference_float64(function, x, step):
    steps = step * np.eye(x.size).reshape(-1, *x.shape)
    return (function(x[None] + steps) - function(x[None] - steps)).T / (2 * step)


@pytest.fixture(scope="module", params=["max", "avg"])
def network(request):
    model = create_model("lenet", SHAPE, pooling=request.param)
    variables = model.init(make_key(3))
    x = jax.random.normal(make_key(4), SHAPE)
    return model, variables, x, request.param


def test_forward_pass_equals_the_float64_reference(network):
    model, variables, x, pooling = network
    logits, features = _lenet_float64(variables, x[None], pooling)
    np.testing.assert_allclose(model.apply(variables, x[None]), logits, atol=1e-5)
    np.testing.assert_allclose(model.features(variables, x[None]), features, atol=1e-5)


@pytest.mark.parametrize("step", [0.5, 100.0])
def test_central_difference_equals_the_float64_reference(network, step):
    model, variables, x, pooling = network
    rows = central_difference(step)(
        lambda images: model.apply(variables, images), x, jnp.ones((1, 1))
    )
    expected = _difference_float64(
        lambda images: _lenet_float64(variables, images, pooling)[0],
        np.asarray(x, np.float64),
        step,
    )
    np.testing.assert_allclose(rows, expected, atol=1e-5 * np.abs(expected).max() + 1e-6 / step)


def test_gradient_equals_the_float64_difference_quotient(network):
    model, variables, x, pooling = network
    row = input_gradient(lambda images: model.apply(variables, images), x, jnp.ones((1, 1)))
    expected = _difference_float64(
        lambda images: _lenet_float64(variables, images, pooling)[0],
        np.asarray(x, np.float64),
        1e-7,
    )
    np.testing.assert_allclose(row, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("derivative", [input_gradient, central_difference(2.0)])
def test_rows_are_read_outs_of_the_features(network, derivative):
    model, variables, x, _ = network
    readouts = jax.random.normal(make_key(5), (3, 84))

    def features(images):
        return model.features(variables, images)

    together = derivative(features, x, readouts)
    one_by_one = [
        derivative(lambda images, w=w: features(images) @ w[:, None], x, jnp.ones((1, 1)))
        for w in readouts
    ]
    np.testing.assert_allclose(
        together, jnp.concatenate(one_by_one), atol=2e-5 * float(jnp.abs(together).max())
    )
    jacobian = derivative(features, x, None)
    np.testing.assert_allclose(
        readouts @ jacobian, together, atol=2e-5 * float(jnp.abs(together).max())
    )


@pytest.mark.parametrize("block_size", [1, 7, 512, 10_000])
def test_blocks_do_not_matter(block_size):
    matrix = jax.random.normal(make_key(0), (30, 4))

    def function(images):
        return jnp.tanh(images.reshape(-1, 30) @ matrix)

    x = jax.random.normal(make_key(1), (5, 3, 2))
    expected = central_difference(0.1)(function, x, jnp.eye(4))
    np.testing.assert_allclose(
        central_difference(0.1, block_size)(function, x, jnp.eye(4)), expected, atol=1e-5
    )


def test_large_step_is_the_odd_part_on_the_axes():
    # Bias-free and positively homogeneous: (f(h e) − f(−h e)) / 2h = (f(e) − f(−e)) / 2 at the
    # origin.
    first, second = jax.random.normal(make_key(0), (2, 12, 12))

    def function(images):
        return jax.nn.relu(images.reshape(-1, 12) @ first) @ second

    rows = central_difference(100.0)(function, jnp.zeros((3, 4, 1)), jnp.eye(12))
    axes = jnp.eye(12).reshape(12, 3, 4, 1)
    np.testing.assert_allclose(rows, (function(axes) - function(-axes)).T / 2, atol=1e-4)


def test_bad_steps_are_refused():
    for step in (0.0, -1.0, float("nan"), float("inf"), "large"):
        with pytest.raises(InputError, match="step: must be a finite number greater than 0"):
            central_difference(step)
    with pytest.raises(InputError, match="block_size"):
        central_difference(1.0, 0)
