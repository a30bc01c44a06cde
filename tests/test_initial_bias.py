"""The bias of untrained networks against its closed form, and against NumPy network by network."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import (
    create_model,
    estimate_nads,
    from_functions,
    initial_bias,
    make_key,
    wide_relu_bias,
)
from nad_jax.ensemble import member_keys, named_key
from nad_jax.errors import InputError
from nad_jax.geometry import split_member
from nad_jax.initial_bias import InitialBias, classify

D = 128
INPUTS = np.random.default_rng(0).normal(size=(200, D)).astype(np.float32)


def _relu_network(num_layers, width=96):
    """Bias-free ReLU layers of N(0, 2/fan-in) weights, and one logit."""

    def init(key):
        sizes = [D, *[width] * num_layers, 1]
        keys = jax.random.split(key, num_layers + 1)
        pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
        return [jax.random.normal(k, (m, n)) * math.sqrt(2 / m) for k, m, n in pairs]

    def apply(variables, x, key=None, train=False):
        for weights in variables[:-1]:
            x = jax.nn.relu(x @ weights)
        return x @ variables[-1]

    return from_functions(init, apply, (D,), check=False)


@pytest.mark.parametrize(("num_layers", "published"), [(1, 0.6908), (2, 0.7480), (3, 0.7836)])
def test_wide_relu_networks_prefer_a_class_as_the_closed_form_says(num_layers, published):
    exact = wide_relu_bias(num_layers)
    assert exact.mean_largest == pytest.approx(published, abs=5e-5)
    found = initial_bias(_relu_network(num_layers), INPUTS, 300)
    for name in ("mean_largest", "gamma", "correlation"):
        value, sem = getattr(found, name)
        assert abs(value - getattr(exact, name)) < 3 * sem, name
    assert found.mean_largest.sem < 0.01 and found.gamma.sem < 0.15 * exact.gamma
    assert abs(found.gaussian_largest - published) < 0.03


def test_closed_forms_are_those_of_the_arc_cosine_kernel_of_gaussian_pairs():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 1_000_000))
    for cosine in (0.0, 0.6):
        both = np.maximum(a, 0) * np.maximum(cosine * a + math.sqrt(1 - cosine**2) * b, 0)
        found = wide_relu_bias(1, cosine)
        assert abs(found.correlation - 2 * both.mean()) < 4 * 2 * both.std() / 1000
        assert found.gamma == pytest.approx(found.correlation / (1 - found.correlation))
    # G_0 = Φ(√γ ζ): of γ = 1 it is uniform, and the larger share ¾ on average.
    gammas = [wide_relu_bias(layers).gamma for layers in range(1, 6)]
    np.testing.assert_allclose(gammas, [0.467, 0.975, 1.53, 2.13, 2.79], rtol=3e-3)


def _reference(model, inputs, number, seed=0):
    """Logits [M, K] of one network, float64."""
    key = member_keys(named_key(make_key(seed), "networks"), jnp.array([number]))[0]
    variables = model.init(split_member(key)[0])
    return np.asarray(model.apply(variables, jnp.asarray(inputs)), np.float64)


@pytest.mark.parametrize("classes", [1, 3])
def test_shares_and_variances_are_those_of_each_network(classes):
    model = create_model("mlp", (D,), classes, width=16)
    inputs = INPUTS[:140]  # more than are carried at a time, and no multiple of it
    found = initial_bias(model, inputs, 5, seed=3)
    for number in range(5):
        logits = _reference(model, inputs, number, 3)
        chosen = np.hstack([logits, 0 * logits]) if classes == 1 else logits
        shares = np.bincount(chosen.argmax(1), minlength=max(classes, 2)) / len(logits)
        np.testing.assert_allclose(found.fractions[number], shares, atol=1e-6)
        centered = logits - logits.mean(1, keepdims=True) if classes > 1 else logits
        own = centered.var(0, ddof=1).sum()
        common = (centered.mean(0) ** 2).sum() - own / len(logits)
        np.testing.assert_allclose(found.own[number], own, rtol=1e-4)
        np.testing.assert_allclose(found.common[number], common, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found.fractions.sum(1), 1, rtol=1e-6)


def test_networks_are_those_of_the_geometry_and_do_not_depend_on_their_company():
    model = create_model("logreg", (6,))
    found = initial_bias(model, np.eye(6), 10, seed=2)
    # The gradient of a linear network is its weight: E[g gᵀ] has the trace of the mean of w².
    nads = estimate_nads(
        model, 10, seed=2, derivative="input_gradient", readout="sampled", point="fresh"
    )
    weights = [_reference(model, np.eye(6), n, 2) - _reference(model, np.zeros((1, 6)), n, 2)
               for n in range(10)]  # fmt: skip
    np.testing.assert_allclose(nads.trace, np.mean([(w**2).sum() for w in weights]), rtol=1e-5)
    own = [w.var(ddof=1) for w in weights]
    np.testing.assert_allclose(found.own, own, rtol=1e-4)
    for how in ({"mapping": "vectorized"}, {"chunk_size": 3}, {"mapping": "vectorized", "chunk_size": 4}):  # fmt: skip
        other = initial_bias(model, np.eye(6), 7, seed=2, **how)
        np.testing.assert_array_equal(other.fractions, found.fractions[:7])
        np.testing.assert_allclose(other.own, found.own[:7], rtol=1e-5)


def test_progress_is_that_of_all_networks():
    seen = []
    initial_bias(create_model("logreg", (4,)), np.eye(4), 19, progress=seen.append, chunk_size=8)
    assert seen == [8, 16, 19]


def test_odd_activations_have_no_bias_and_constant_outputs_an_infinite_one():
    found = initial_bias(create_model("logreg", (D,), initialization="lecun"), INPUTS, 60)
    assert abs(found.gamma.value) < 3 * found.gamma.sem
    largest = 0.5 + 0.5 * math.sqrt(2 / math.pi / len(INPUTS))  # of fair coins, one an input
    assert abs(found.mean_largest.value - largest) < 3 * found.mean_largest.sem
    constant = from_functions(
        lambda key: jax.random.normal(key, ()), lambda v, x: jnp.full((len(x), 1), v), (D,),
        check=False,
    )  # fmt: skip
    found = initial_bias(constant, INPUTS[:10], 6)
    assert found.mean_largest.value == 1 and found.gamma.value == math.inf
    assert "γ inf" in repr(found) and "6 constant" in repr(found)


@pytest.mark.parametrize("classes", [1, 3])
def test_outputs_that_differ_by_rounding_are_constant(classes):
    logits = 0.1 + jnp.arange(classes)[None] / 7 + 0 * INPUTS[:, :classes]
    found = classify(logits + 3e-8 * INPUTS[:, :classes])
    assert found[2] == 0 and found[1] > 0
    found = classify(logits + 3e-4 * INPUTS[:, :classes])
    centered = INPUTS[:, :classes].astype(np.float64)
    centered -= centered.mean(1, keepdims=True) if classes > 1 else 0.0
    assert found[2] == pytest.approx(9e-8 * centered.var(0, ddof=1).sum(), rel=1e-2)


def test_one_network_whose_rounding_is_large_beside_its_small_output_does_not_make_gamma_finite():
    common, own = np.array([1e-2, 2e-2, 1e-8]), np.array([0.0, 0.0, 1e-16])
    found = InitialBias(np.full((3, 2), 0.5), common, own)
    assert found.gamma.value == math.inf and found.num_constant == 2
    assert found.correlation.value == pytest.approx(1) and found.gaussian_largest == 1
    own[2] = 1e-8
    assert InitialBias(np.full((3, 2), 0.5), common, own).gamma.value == pytest.approx(
        3e6, rel=1e-3
    )


@pytest.mark.parametrize(("gamma", "count"), [(0.03, 256), (0.5, 64), (0.0, 100)])
def test_the_largest_share_is_too_large_for_the_number_of_inputs_as_it_says(gamma, count):
    rng = np.random.default_rng(0)
    common = math.sqrt(gamma) * rng.normal(size=(20_000, 1))
    positive = (common + rng.normal(size=(20_000, count)) > 0).mean(1)
    found = InitialBias(np.stack([positive, 1 - positive], 1), common, common).mean_largest
    excess = found.value - (0.5 + math.atan(math.sqrt(gamma)) / math.pi)
    said = 1 / (4 * count * math.sqrt(gamma)) if gamma else 1 / math.sqrt(2 * math.pi * count)
    assert excess > 5 * found.sem
    assert excess == pytest.approx(said, abs=3 * found.sem + 0.1 * said)


def test_inputs_on_the_border_are_of_both_classes():
    zero = from_functions(
        lambda key: jnp.zeros(()), lambda v, x: jnp.zeros((len(x), 1)) + v, (D,), check=False
    )
    assert initial_bias(zero, INPUTS[:4], 2).fractions.tolist() == [[0.5, 0.5]] * 2


def test_the_error_of_gamma_is_how_far_ensembles_scatter():
    rng = np.random.default_rng(0)
    common, own = 0.7 * rng.chisquare(1, (2000, 50)), rng.chisquare(20, (2000, 50)) / 20
    half = np.full((50, 2), 0.5)
    gammas = np.array([InitialBias(half, *one).gamma for one in zip(common, own, strict=True)])
    assert abs(gammas[:, 0].mean() - 0.7) < 3 * gammas[:, 0].std() / math.sqrt(2000)
    assert gammas[:, 1].mean() == pytest.approx(gammas[:, 0].std(), rel=0.1)


def test_a_table_has_a_row_for_each_network():
    found = InitialBias(np.array([[0.25, 0.75], [0.5, 0.5]]), np.array([0.1, 0.2]), np.ones(2))
    rows = found.to_rows()
    assert rows[0] == {"network": 0, "class_0": 0.25, "class_1": 0.75, "common": 0.1, "own": 1.0}
    assert found.largest.tolist() == [0.75, 0.5] and found.mean_largest.value == 0.625
    assert repr(found).startswith("InitialBias(2 networks, 2 classes: largest share 0.625 ± ")
    assert math.isnan(InitialBias(np.ones((2, 3)) / 3, found.common, found.own).gaussian_largest)


def test_eight_devices_find_what_one_finds():
    from nad_jax import target

    model = create_model("mlp", (12,), width=4, initialization="he")
    one = initial_bias(model, INPUTS[:20, :12], 11)
    with target.compiled_for(jax.devices()):
        eight = initial_bias(model, INPUTS[:20, :12], 11)
    np.testing.assert_array_equal(one.fractions, eight.fractions)
    np.testing.assert_allclose(one.own, eight.own, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": INPUTS[:, :5]}, r"^inputs: must be real numbers \[N, 128\]"),
        ({"inputs": INPUTS[:1]}, "^inputs: must be two or more, got 1"),
        ({"num_networks": 0}, "^num_networks: must be an integer of at least 1, got 0"),
        ({"seed": -1}, "^seed: must be an integer in 0"),
        ({"model": None}, "^model: must come from create_model"),
        ({"mapping": "parallel"}, "^mapping: unknown value 'parallel'"),
        ({"chunk_size": -2}, "^chunk_size: must be an integer of at least 0"),
        ({"progress": 3}, "^progress: must be a function, got 3"),
    ],
)
def test_bad_input_is_refused_by_name(changes, message):
    given = {"model": create_model("logreg", (D,)), "inputs": INPUTS, "num_networks": 4, **changes}
    with pytest.raises(InputError, match=message):
        initial_bias(**given)


def test_bad_numbers_of_the_closed_form_and_infinite_outputs_are_refused():
    for arguments, message in [
        ((0,), "^num_layers: must be an integer of at least 1"),
        ((1, -0.1), "^cosine: must be a finite number at least 0"),
        ((1, 1.0), "^cosine: must be below 1, got 1"),
    ]:
        with pytest.raises(InputError, match=message):
            wide_relu_bias(*arguments)
    broken = from_functions(
        lambda key: jax.random.normal(key, ()), lambda v, x: jnp.full((len(x), 1), v / 0), (D,),
        check=False,
    )  # fmt: skip
    message = "^model: 3 of 3 networks have outputs that are not finite, the first is network 0$"
    with pytest.raises(InputError, match=message):
        initial_bias(broken, INPUTS, 3)
