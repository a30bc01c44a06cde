"""Score networks: against NumPy, what their law is, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nad_jax
from nad_jax import InputError, create_score_network
from nad_jax.score_networks import as_model, pack
from nad_jax.score_table import SCORE_NETWORKS
from tests import score_references

SMALL = {
    "unet": ((8, 8, 2), {"width": 8, "levels": 2, "groups": 4, "heads": 2}),
    "dit": ((8, 8, 2), {"width": 8, "depth": 2, "heads": 2, "patch": 4}),
    "mlp": ((3, 4), {"width": 8}),
    "cnn": ((6, 4, 3), {"width": 4}),
}


def small(name, **options):
    shape, own = SMALL[name]
    return create_score_network(name, shape, **{**own, **options})


def drawn(network, count=2):
    """Variables, inputs, noise levels."""
    variables = jax.jit(network.init)(nad_jax.make_key(1))
    x = np.random.default_rng(0).normal(size=(count, *network.input_shape)).astype(np.float32)
    return variables, jnp.asarray(x), jnp.asarray([3.0, 700.0])[:count]


def test_the_table_is_that_of_the_small_ones_here():
    assert set(SMALL) == set(SCORE_NETWORKS)


@pytest.mark.parametrize(
    ("name", "count"),
    # 381,121 is what the code of improved DDPM has with SAD's settings.
    [("unet", 381_121), ("dit", 282_868), ("mlp", 39_360), ("cnn", 3_153)],
)
def test_parameters_are_counted(name, count):
    network = create_score_network(name, (16, 16, 1))
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize(
    ("name", "options", "chosen"),
    [
        ("unet", {}, {"levels": 2, "heads": 2, "groups": 4}),
        ("dit", {"zero_init": False}, {"depth": 2, "heads": 2, "patch": 4}),
    ],
)
def test_networks_equal_the_float64_reference(name, options, chosen):
    network = small(name, **options)
    variables, x, t = drawn(network)
    noise = jax.jit(network.apply)(variables, x, t)
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    for place in range(len(x)):
        image, level = np.asarray(x[place], np.float64), float(t[place])
        expected = getattr(score_references, name)(weights, image, level, **chosen)
        np.testing.assert_allclose(noise[place], expected, atol=2e-4 * abs(expected).max())


@pytest.mark.parametrize("name", SMALL)
def test_the_output_is_linear_in_the_last_layer_alone(name):
    network = small(name)
    variables, x, t = drawn(network)
    variances = network.last_layer(variables)
    apply = jax.jit(network.apply)

    def scaled(factor):
        return jax.tree.map(lambda leaf, v: factor * leaf if v else leaf, variables, variances)

    noise = apply(variables, x, t)
    assert not apply(scaled(0.0), x, t).any()
    np.testing.assert_allclose(apply(scaled(3.0), x, t), 3.0 * noise, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_entries_of_the_last_layer_have_the_variance_that_is_said(name):
    network = small(name)
    variables = jax.jit(jax.vmap(network.init))(jax.random.split(nad_jax.make_key(0), 400))
    said = network.last_layer(jax.eval_shape(network.init, jax.random.key(0)))
    for leaf, variance in zip(jax.tree.leaves(variables), jax.tree.leaves(said), strict=True):
        if variance:
            # Of uniform numbers x, the variance of x² is 4/5 of the square of its mean.
            error = variance * np.sqrt(0.8 / leaf.size)
            assert abs(np.mean(np.square(leaf)) - variance) < 4 * error
            assert abs(np.mean(leaf)) < 4 * np.sqrt(variance / leaf.size)


def test_the_output_depends_on_the_noise_level_but_for_a_dit_that_starts_at_zero():
    for name, options, differs in (
        ("unet", {}, True),
        ("mlp", {}, True),
        ("dit", {}, False),
        ("dit", {"zero_init": False}, True),
    ):
        network = small(name, **options)
        variables, x, _ = drawn(network)
        apply = jax.jit(network.apply)
        noise = [apply(variables, x, jnp.full(2, level)) for level in (0.0, 500.0)]
        assert bool((noise[0] != noise[1]).any()) is differs, name


@pytest.mark.parametrize(("name", "option"), [("unet", "zero_init"), ("dit", "zero_head")])
def test_a_network_may_start_at_zero(name, option):
    network = small(name, **{option: True})
    variables, x, t = drawn(network)
    assert not jax.jit(network.apply)(variables, x, t).any()
    assert not any(jax.tree.leaves(network.last_layer(variables)))


def test_a_model_takes_inputs_and_noise_levels_as_vectors():
    network = small("cnn")
    variables, x, t = drawn(network)
    model = as_model(network)
    assert model.input_shape == (73,) and model.num_logits == 72
    noise = model.apply(variables, pack(x, t))
    expected = network.apply(variables, x, t).reshape(2, 72)
    np.testing.assert_allclose(noise, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("unett",), {}, "name: unknown value 'unett'"),
        (("unet", (16, 16)), {}, "image_shape: "),
        (("unet",), {"depth": 3}, "depth: 3 makes no sense for 'unet'"),
        (("unet",), {"zero_init": "yes"}, "zero_init: 'yes' makes no sense"),
        (("unet", (6, 6, 1)), {}, "multiples of 4"),
        (("unet",), {"groups": 5}, "groups: must divide the width 32, got 5"),
        (("dit",), {"heads": 5}, "heads: must divide the width 48, got 5"),
        (("dit", (9, 9, 1)), {}, "multiples of 2"),
        (("dit",), {"density": 3}, "density"),
    ],
)
def test_bad_choices_are_refused(arguments, options, message):
    with pytest.raises(InputError, match=message):
        create_score_network(*arguments, **options)
