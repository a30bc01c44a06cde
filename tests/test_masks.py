"""Densities of random masks."""

import csv

import jax.numpy as jnp
import numpy as np
import pytest

import nad_jax
from nad_jax.errors import InputError

LAYERS = ("Conv_0", "Conv_1", "Dense_0", "Dense_1", "Dense_2")


@pytest.fixture(scope="module")
def lenet():
    return nad_jax.create_model("lenet", (32, 32, 1))


@pytest.mark.parametrize(
    ("density", "rule", "expected"),
    [
        (0.05, "er", (1, 0.5040, 0.0238, 0.0445, 1)),
        (0.05, "erk", (0.4328, 0.0509, 0.0414, 0.0773, 1)),
        (0.2, "er", (1, 1, 0.1423, 0.2658, 1)),
        (0.2, "erk", (1, 0.2100, 0.1707, 0.3188, 1)),
        (0.2, "uniform", (0.2,) * 5),
        (1.0, "erk", (1,) * 5),
    ],
)
def test_densities_of_lenet_are_those_of_the_rules(lenet, density, rule, expected):
    found = nad_jax.mask_densities(lenet, density, rule)
    assert found.layers == tuple(f"params/{layer}/kernel" for layer in LAYERS)
    np.testing.assert_allclose(found.density, expected, atol=5.1e-5)
    assert found.total == pytest.approx(density, rel=1e-12)


def test_densities_are_rows(lenet, tmp_path):
    found = nad_jax.mask_densities(lenet, 0.2)
    assert found.to_rows()[2]["weights"] == 400 * 120
    found.to_csv(tmp_path / "densities.csv")
    with open(tmp_path / "densities.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["density"]) for row in rows] == pytest.approx(found.density.tolist())
    assert repr(found).startswith("Densities(erk, 0.2000 of all weights: params/Conv_0/kernel 1.0")


def test_only_what_is_trained_has_a_mask():
    model = nad_jax.create_model("mlp", (4,), width=8)
    kernels = nad_jax.mask_densities(model, 0.5).layers
    assert kernels == tuple(f"params/Dense_{place}/kernel" for place in range(3))
    frozen = nad_jax.from_functions(
        lambda key: {"params": {"w": jnp.ones((4, 1)), "b": jnp.ones(1)}, "fixed": jnp.eye(4)},
        lambda variables, x: x @ variables["fixed"] @ variables["params"]["w"],
        (4,),
        check=False,
    )
    assert nad_jax.mask_densities(frozen, 0.5).layers == ("params/w",)
    none = nad_jax.from_functions(
        lambda key: jnp.ones(4),
        lambda theta, x: (x * theta[None]).sum(1)[:, None],
        (4,),
        check=False,
    )
    with pytest.raises(InputError, match="model: has no trainable variables of two axes"):
        nad_jax.mask_densities(none, 0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.0,), "density: must be a finite number greater than 0"),
        ((1.5,), "density: must be at most 1, got 1.5"),
        ((0.5, "snip"), "rule: unknown value 'snip'"),
    ],
)
def test_what_is_no_density_or_rule_is_refused(lenet, values, message):
    with pytest.raises(InputError, match=message):
        nad_jax.mask_densities(lenet, *values)
    with pytest.raises(InputError, match="model: must come from"):
        nad_jax.mask_densities("lenet", 0.5)
