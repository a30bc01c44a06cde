"""dG/dt at the initialization, against its closed form and differences along gradient flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import create_model, from_functions, geometry_velocity
from nad_jax.ensemble import member_keys, named_key
from nad_jax.errors import InputError

D, SPREAD, RNG = 5, 0.7, np.random.default_rng(1)
A, X = RNG.normal(size=(6, D)), RNG.normal(size=(12, D)).astype(np.float32)
TARGETS = RNG.choice([-1.0, 1.0], 12)


def _apply_linear(variables, x, key=None, train=False):
    outputs = (x @ jnp.asarray(A.T, jnp.float32) @ variables)[:, None]
    return (outputs, variables) if train else outputs


LINEAR = from_functions(
    lambda key: SPREAD * jax.random.normal(key, (6,)), _apply_linear, (D,), check=False
)


def test_of_a_model_linear_in_its_weights_it_is_gsg():
    found = geometry_velocity(LINEAR, 200_000, X, TARGETS)
    geometry = SPREAD**2 * A.T @ A
    exact = -2 / SPREAD**2 * geometry @ X.T @ X @ geometry
    assert np.linalg.norm(found.velocity - exact) < 0.01 * np.linalg.norm(exact)
    z = (found.velocity - exact) / found.error
    assert np.abs(z).max() < 4.5


def test_labels_drop_out():
    found = [geometry_velocity(LINEAR, 20_000, X, y) for y in (TARGETS, np.zeros(12))]
    difference = found[0].velocity - found[1].velocity
    error = np.hypot(found[0].error, found[1].error)
    assert np.abs(difference).max() > 0 and np.abs(difference / error).max() < 4.5


def _apply_gelu(weights, x, key=None, train=False):
    first, second = weights
    outputs = jax.nn.gelu(jax.nn.gelu(x @ first) @ second).sum(-1, keepdims=True)
    return (outputs, weights) if train else outputs


def _init_gelu(key):
    keys = jax.random.split(key)
    return [
        jax.random.normal(key, shape) for key, shape in zip(keys, ((D, 7), (7, 3)), strict=True)
    ]


def test_it_is_the_slope_of_the_geometry_along_gradient_flow():
    model = from_functions(_init_gelu, _apply_gelu, (D,), check=False)
    x, targets, step = X[:3], jnp.float32(TARGETS[:3]), 1e-4
    found = geometry_velocity(model, 2, x, targets, x[:2], seed=jax.random.key(5))

    def geometry(weights):
        rows = jax.vmap(jax.grad(lambda one: _apply_gelu(weights, one[None])[0, 0]))(x[:2])
        return rows.T @ rows / 2

    def slope(weights):
        def loss(at):
            return 0.5 * jnp.sum((_apply_gelu(at, x)[:, 0] - targets) ** 2)

        flow = jax.grad(loss)(weights)
        before = geometry(jax.tree.map(lambda at, along: at + step * along, weights, flow))
        after = geometry(jax.tree.map(lambda at, along: at - step * along, weights, flow))
        return np.asarray(after - before) / (2 * step)

    keys = member_keys(named_key(jax.random.key(5), "networks"), jnp.arange(2))
    slopes = [slope(_init_gelu(key)) for key in keys]
    exact, error = np.mean(slopes, 0), np.std(slopes, 0, ddof=1) / np.sqrt(2)
    assert np.linalg.norm(found.velocity - exact) < 0.01 * np.linalg.norm(exact)
    assert np.linalg.norm(found.error - error) < 0.01 * np.linalg.norm(error)


def test_integer_inputs_are_those_of_floating_point():
    x, targets = np.round(3 * X).astype(int), 0.4 * TARGETS
    found, expected = (geometry_velocity(LINEAR, 4, one, targets) for one in (x, np.float32(x)))
    np.testing.assert_array_equal(found.velocity, expected.velocity)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_networks": 1}, "^num_networks: must be an integer of at least 2, got 1"),
        ({"x": X[:, :4]}, r"^x: must be real numbers \[N, 5\]"),
        ({"targets": TARGETS[:3]}, r"^targets: must be real numbers \[12\]"),
        ({"points": X[0]}, r"^points: must be real numbers \[N, 5\]"),
        ({"logit": 1}, "^logit: must be "),
        ({"model": create_model("mlp", (D,), num_logits=2)}, "^logit: the model has 2 logits"),
    ],
)
def test_bad_arguments_are_refused_by_name(changes, message):
    given = {"model": LINEAR, "num_networks": 4, "x": X, "targets": TARGETS, **changes}
    with pytest.raises(InputError, match=message):
        geometry_velocity(**given)
