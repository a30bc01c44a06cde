"""Linear CKA against its closed forms, and where features say nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import linear_cka
from nad_jax.errors import InputError

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 7)), RNG.normal(size=(40, 5))


def _reference(x, y):
    """By cross products of centered features, in double precision."""
    x, y = (np.asarray(one, np.float64) - np.mean(one, 0, dtype=np.float64) for one in (x, y))
    norm = np.linalg.norm
    return norm(x.T @ y) ** 2 / (norm(x.T @ x) * norm(y.T @ y))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_it_is_one_for_features_that_are_rotated_scaled_and_moved(scale):
    rotation, _ = np.linalg.qr(RNG.normal(size=(7, 7)))
    moved = (scale * (3 * X @ rotation + 2 * RNG.normal(size=7))).astype(np.float32)
    assert float(linear_cka(X.astype(np.float32), moved)) == pytest.approx(1, abs=1e-6)
    # Not for any linear map: it compares principal components by their variance.
    assert float(linear_cka(X, X * np.arange(7))) < 0.99


def test_it_is_the_quotient_of_cross_products_and_symmetric():
    for x, y in ((X, Y), (X, X[:, :3] + Y[:, :3]), (X[:4], Y[:4])):
        assert float(linear_cka(x, y)) == pytest.approx(_reference(x, y), abs=1e-6)
        assert float(linear_cka(x, y)) == pytest.approx(float(linear_cka(y, x)), abs=1e-7)
    with_offset = X + 1000.0
    assert float(linear_cka(with_offset, Y)) == pytest.approx(_reference(X, Y), abs=1e-4)


def test_independent_features_are_alike_at_few_samples():
    def mean(count):
        x, y = np.random.default_rng(1).normal(size=(2, 100, count, 7))
        return float(jax.vmap(linear_cka)(x, y).mean())

    # E‖X_cᵀY_c‖² = 49 (n − 1), E‖X_cᵀX_c‖² = 7 (n − 1)(n − 1 + 7 + 1) for Gaussian entries: their
    # quotient is 7 / (n + 7).
    for count in (40, 160):
        assert mean(count) == pytest.approx(7 / (count + 7), rel=0.06)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e8])
def test_constant_features_have_no_similarity_and_no_gradient(value):
    constant = jnp.full((9, 3), value) * jnp.array([1.0, 0.3, 7.0])[None]
    found, gradients = jax.value_and_grad(linear_cka, argnums=(0, 1))(constant, jnp.asarray(Y[:9]))
    assert found == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)
    assert linear_cka(X[:1], Y[:1]) == 0  # of a single sample nothing is known


def test_it_is_in_full_precision_on_every_device():
    shapes = [jax.ShapeDtypeStruct(one.shape, np.float32) for one in (X, Y)]
    with jax.default_matmul_precision("bfloat16"):  # of whatever is said to be of any precision
        text = jax.jit(linear_cka).lower(*shapes).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) >= 2
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in products)


def test_its_gradient_is_the_slope():
    step, direction = 1e-4, RNG.normal(size=X.shape)
    gradient = jax.grad(linear_cka)(jnp.asarray(X), jnp.asarray(Y))
    slope = _reference(X + step * direction, Y) - _reference(X - step * direction, Y)
    assert float(jnp.sum(gradient * direction)) == pytest.approx(slope / (2 * step), rel=1e-3)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:, 0], Y, r"^x: must be real numbers \[B, F\], got shape \(40,\)"),
        (X, "no", r"^y: must be real numbers \[B, F\]"),
        (X, Y[:9], r"^x, y: must be of the same samples, got 40 and 9"),
    ],
)
def test_features_of_other_shapes_are_refused(x, y, message):
    with pytest.raises(InputError, match=message):
        linear_cka(x, y)
