"""Kernels of wide networks and dG/dt in closed form, against other closed forms, finite networks and
their derivatives.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import empirical_ntk, from_functions, geometry_velocity, wide_geometry_velocity
from nad_jax.errors import InputError
from nad_jax.wide_kernels import SMOOTH, wide_kernels

D, RNG = 4, np.random.default_rng(0)
X, POINTS, TARGETS = RNG.normal(size=(5, D)), RNG.normal(size=(2, D)), RNG.normal(size=5)


def _network(widths, activate, sigma_w, sigma_b=0.0, biases=False):
    """A dense network of one output, weights N(0, σ_w²/fan-in)."""
    sizes = [D, *widths, 1]

    def init(key):
        layers = []
        for n, (rows, columns) in enumerate(itertools.pairwise(sizes)):
            key, weight_key, bias_key = jax.random.split(jax.random.fold_in(key, n), 3)
            kernel = sigma_w / np.sqrt(rows) * jax.random.normal(weight_key, (rows, columns))
            bias = [sigma_b * jax.random.normal(bias_key, (columns,))] if biases else []
            layers.append([kernel, *bias])
        return layers

    def apply(layers, x, key=None, train=False):
        for n, (kernel, *bias) in enumerate(layers):
            x = (activate(x) if n else x) @ kernel
            x = x + bias[0][None] if bias else x
        return (x, layers) if train else x

    return from_functions(init, apply, (D,), check=False)


def test_of_linear_networks_kernels_are_products():
    products, square = X @ X.T, 1.3**2
    found = wide_kernels("linear", (7, 9), X, sigma_w=1.3)
    first = square * products / D
    np.testing.assert_allclose(found.covariance, square**2 * first, rtol=1e-10)
    # Of the layers from the last to the first: n ⟨φφ⟩, and σ_w² times what is below.
    tangent = 9 * square * first + square * (7 * first + square * products)
    np.testing.assert_allclose(found.tangent, tangent, rtol=1e-10)


def test_of_erf_the_covariance_is_an_arcsine():
    found = wide_kernels("erf", (10,), X, POINTS, sigma_w=1.5, sigma_b=0.3, biases=True)
    both, *ends = (
        0.09 + 2.25 * one / D for one in (X @ POINTS.T, np.sum(X**2, 1), np.sum(POINTS**2, 1))
    )
    scale = np.sqrt((1 + 2 * ends[0])[:, None] * (1 + 2 * ends[1]))
    exact = 0.09 + 2.25 * 2 / np.pi * np.arcsin(2 * both / scale)
    np.testing.assert_allclose(found.covariance, exact, atol=1e-9)


def test_kernels_are_those_of_finite_networks_on_average():
    how = {"sigma_w": 1.4, "sigma_b": 0.5}
    model = _network((300, 200), jnp.tanh, biases=True, **how)
    variables = [model.init(jax.random.key(n)) for n in range(60)]
    outputs = np.stack([np.asarray(model.apply(one, jnp.float32(X)))[:, 0] for one in variables])
    tangents = np.stack([empirical_ntk(model, one, jnp.float32(X)) for one in variables])
    exact = wide_kernels("tanh", (300, 200), X, biases=True, **how)
    for samples, kernel in (
        (outputs[:, :, None] * outputs[:, None], exact.covariance),
        (tangents, exact.tangent),
    ):
        error = samples.std(0, ddof=1) / np.sqrt(len(samples))
        assert np.abs(samples.mean(0) - kernel).max() < 4 * error.max()


def test_of_linear_networks_the_geometry_starts_to_move_as_derived():
    # K = k x·x' and Θ = c x·x', so that dG/dt = −2ck S.
    found = wide_geometry_velocity("linear", (7, 9), X, POINTS, sigma_w=1.3)
    one = np.eye(D)[:1]
    k, c = (kernel[0, 0] for kernel in wide_kernels("linear", (7, 9), one, sigma_w=1.3))
    np.testing.assert_allclose(found, -2 * c * k * X.T @ X, rtol=1e-6)


@pytest.mark.parametrize(("widths", "count"), [((400,), 3000), ((200, 200), 800)])
def test_of_wide_tanh_networks_it_is_that_of_finite_ones_within_two_standard_errors(widths, count):
    how = {"sigma_w": np.sqrt(1.5)}
    found = geometry_velocity(_network(widths, jnp.tanh, **how), count, X, TARGETS, POINTS, seed=2)
    exact = wide_geometry_velocity("tanh", widths, X, POINTS, **how)
    z = (found.velocity - exact) / found.error
    assert np.abs(z).max() < 4.5
    assert np.linalg.norm(found.velocity - exact) < 2 * np.linalg.norm(found.error)
    # Nothing near it would pass: half of it is five errors away.
    assert np.linalg.norm(found.velocity - exact / 2) > 5 * np.linalg.norm(found.error)


def test_points_at_which_kernels_are_equal_are_no_exception():
    # At a point of the training set u and u' are one, and the quadrature is along a line.
    found = wide_geometry_velocity("gelu", (50,), X[:1], sigma_w=1.4)
    near = wide_geometry_velocity("gelu", (50,), X[:1], X[:1] * 0.999, sigma_w=1.4)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, near, rtol=0.01)


@pytest.mark.parametrize("offset", [0.0, 0.003, 0.01, 1.0])
def test_near_a_training_point_it_is_the_difference_of_kernels_in_the_point(offset):
    x = X[:1]
    across = np.roll(x, 1) - x * (np.roll(x, 1) @ x.T) / (x @ x.T)
    z = x + offset * across
    found = wide_geometry_velocity("tanh", (8, 8), x, z)
    step, slopes = 1e-3, []
    for direction in np.eye(D):
        ends = [wide_kernels("tanh", (8, 8), z + sign * step * direction, x) for sign in (1, -1)]
        pairs = zip(*ends, strict=True)
        slopes.append([(after[0, 0] - before[0, 0]) / (2 * step) for after, before in pairs])
    covariance, tangent = np.transpose(slopes)
    exact = -(np.outer(tangent, covariance) + np.outer(covariance, tangent))
    np.testing.assert_allclose(found, exact, atol=1e-4 * np.abs(exact).max())


def test_inputs_of_zero_have_kernels_of_zero():
    zero = np.zeros((1, D))
    assert (wide_kernels("tanh", (8, 8), zero, X).covariance == 0).all()
    assert np.isfinite(wide_geometry_velocity("tanh", (8, 8), zero, X)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "relu"}, "^activation: must be smooth, one of linear, tanh.*'relu'"),
        ({"activation": "tangent"}, "^activation: unknown value 'tangent'"),
        ({"widths": ()}, "^widths: must be the widths"),
        ({"widths": (0,)}, "^widths: must be an integer"),
        ({"sigma_w": 0}, "^sigma_w: "),
        ({"sigma_b": 0.1}, "^sigma_b: must be 0 without biases"),
        ({"biases": "no"}, "^biases: unknown value 'no'; allowed: False, True"),
        ({"biases": 2}, "^biases: unknown value 2"),
        ({"points": np.zeros((1, D))}, "^points: must not be 0"),
        ({"points": np.zeros(D)}, r"^points: must be real numbers \[P, 4\]"),
        ({"x": X[0]}, r"^x: must be real numbers \[N, D\]"),
    ],
)
def test_bad_arguments_are_refused_by_name(changes, message):
    given = {"activation": "tanh", "widths": (5,), "points": POINTS, "x": X, **changes}
    with pytest.raises(InputError, match=message):
        wide_geometry_velocity(**given)


def test_every_smooth_activation_has_finite_kernels():
    for activation in SMOOTH:
        assert np.isfinite(wide_kernels(activation, (3,), X)).all()
