"""Spectra of functions on planes, against waves, ramps and NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import (
    basis_random,
    create_model,
    from_functions,
    function_spectrum,
    make_key,
    radial_spectrum,
    target,
)
from nad_jax.ensemble import member_keys, named_key
from nad_jax.errors import InputError
from nad_jax.function_spectrum import FunctionSpectrum
from nad_jax.geometry import split_member

D = 12
PLANE = np.asarray(basis_random(0, D, 2))


def _reference(values):
    """The shares and the mean frequency of values [n, n], by loops in float64."""
    half = len(values) // 2 + 1
    moduli = np.abs(np.fft.rfft2(np.asarray(values, np.float64)))
    sums = np.zeros(round(math.hypot(half - 1, half - 1)) + 1)
    for i in range(half):
        for j in range(half):
            sums[round(math.hypot(i, j))] += moduli[i, j] if i + j else 0
    shares = sums / sums.sum()
    return shares, shares @ np.arange(len(sums)) / (len(sums) - 1)


@pytest.mark.parametrize("size", [7, 16, 24])
def test_spectra_are_those_of_the_definition(size):
    values = np.random.default_rng(size).normal(size=(3, size, size)) + 5
    found = radial_spectrum(values)
    for place, one in enumerate(values):
        shares, frequency = _reference(one)
        np.testing.assert_allclose(found.shares[place], shares, atol=1e-5)
        np.testing.assert_allclose(found.mean_frequency[place], frequency, rtol=1e-5)


@pytest.mark.parametrize("cycles", [1, 5, 16])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_wave_of_k_cycles_has_mean_frequency_k_over_the_largest(cycles, axis):
    x = np.arange(32) / 32
    wave = np.cos(2 * np.pi * cycles * x) + 3
    values = np.broadcast_to(wave[:, None] if axis == 0 else wave, (32, 32))
    found = radial_spectrum(values)
    assert float(found.mean_frequency) == pytest.approx(cycles / round(16 * math.sqrt(2)), rel=1e-4)
    assert float(found.shares[cycles]) == pytest.approx(1, abs=1e-4)


def test_products_of_waves_lie_at_the_length_of_their_frequency_and_opposite_ones_are_not_seen():
    x = np.arange(20) / 20
    phase = 2 * np.pi * (3 * x[:, None] + 4 * x)
    assert float(radial_spectrum(np.cos(phase)).shares[5]) == pytest.approx(1, abs=1e-4)
    against = 2 * np.pi * (3 * x[:, None] - 4 * x)
    both = radial_spectrum(np.cos(against) + 0.01 * np.cos(phase))
    assert float(both.shares[5]) == pytest.approx(1, abs=1e-3)


def _ramp(size):
    """The shares of a linear function: |DFT of 0 … n − 1| = n/(2 sin(πr/n)), on both axes."""
    radius = np.arange(1, size // 2 + 1)
    shares = np.zeros(round(size // 2 * math.sqrt(2)) + 1)
    shares[radius] = 1 / np.sin(np.pi * radius / size)
    return shares / shares.sum()


@pytest.mark.parametrize("slopes", [(1.0, 0.0), (0.3, -2.0)])
def test_a_linear_function_has_the_spectrum_of_a_ramp(slopes):
    place = np.arange(16.0)
    found = radial_spectrum(slopes[0] * place[:, None] + slopes[1] * place + 7)
    np.testing.assert_allclose(found.shares, _ramp(16), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
def test_whole_numbers_and_truth_values_have_the_spectrum_of_their_values(dtype):
    values = np.random.default_rng(2).integers(0, 2 if dtype is bool else 256, (9, 9)).astype(dtype)
    shares, frequency = _reference(values)
    found = radial_spectrum(values)
    np.testing.assert_allclose(found.shares, shares, atol=1e-5)
    assert float(found.mean_frequency) == pytest.approx(frequency, rel=1e-4)


def test_a_constant_function_has_no_spectrum():
    found = radial_spectrum(np.stack([np.full((9, 9), 0.1), np.eye(9)]))
    assert np.isnan(found.mean_frequency[0]) and np.isfinite(found.mean_frequency[1])


def test_linear_networks_have_the_spectrum_of_a_ramp_on_every_plane():
    model = create_model("logreg", (D,))
    ramp = _ramp(10)
    for plane in (PLANE, None):
        found = function_spectrum(model, plane, 6, num_points=10)
        np.testing.assert_allclose(found.shares, np.tile(ramp, (6, 1)), atol=1e-4)
        mean, sem = found.mean_frequency
        assert mean == pytest.approx(ramp @ np.arange(len(ramp)) / (len(ramp) - 1), rel=1e-3)
        assert sem < 1e-4


def _networks(model, count, seed):
    keys = member_keys(named_key(make_key(seed), "networks"), jnp.arange(count))
    return [split_member(key) for key in keys]


def test_spectra_are_those_of_each_network_on_the_plane_at_this_scale():
    model = create_model("mlp", (D,), 2, width=8)
    found = function_spectrum(model, PLANE, 3, seed=4, scale=2.0, num_points=14, logit=1)
    a = np.linspace(-2, 2, 14)
    x = a[:, None, None] * PLANE[0] + a[:, None] * PLANE[1]
    for number, (key, _, _) in enumerate(_networks(model, 3, 4)):
        values = model.apply(model.init(key), jnp.asarray(x.reshape(-1, D), jnp.float32))[:, 1]
        shares, frequency = _reference(np.asarray(values).reshape(14, 14))
        np.testing.assert_allclose(found.shares[number], shares, atol=1e-4)
        np.testing.assert_allclose(found.frequencies[number], frequency, rtol=1e-3)
    mean, sem = found.mean_shares
    np.testing.assert_allclose(mean, found.shares.mean(0), rtol=1e-6)
    np.testing.assert_allclose(sem, found.shares.std(0, ddof=1) / math.sqrt(3), rtol=1e-5)
    assert [row["radius"] for row in found.to_rows()] == list(range(len(mean)))


def test_random_planes_are_another_for_each_network_and_the_scale_is_the_length_of_inputs():
    model = create_model("mlp", (D,), width=8)
    found = function_spectrum(model, None, 3, num_points=8)
    for number, (_, _, key) in enumerate(_networks(model, 2, 0)):
        plane = basis_random(key, D, 2)
        same = function_spectrum(model, plane, 3, num_points=8, scale=math.sqrt(D))
        np.testing.assert_allclose(found.shares[number], same.shares[number], atol=1e-4)
        others = np.delete(np.arange(3), number)
        assert (abs(found.shares[others] - same.shares[others]).max(1) > 1e-3).all()


@pytest.mark.parametrize("how", [{"mapping": "vectorized"}, {"chunk_size": 3}])
def test_a_network_does_not_depend_on_its_company_or_mapping(how):
    model = create_model("mlp", (D,), width=8)
    whole = function_spectrum(model, None, 5, num_points=6)
    some = function_spectrum(model, None, 4, num_points=6, **how)
    np.testing.assert_allclose(some.shares, whole.shares[:4], atol=1e-4)


def test_eight_devices_find_what_one_finds():
    model = create_model("mlp", (D,), width=8)
    one = function_spectrum(model, None, 9, num_points=6)
    with target.compiled_for(jax.devices()):
        eight = function_spectrum(model, None, 9, num_points=6)
    np.testing.assert_allclose(eight.shares, one.shares, atol=1e-4)


def test_larger_weights_raise_the_frequency_of_sine_networks_and_leave_that_of_relu_networks():
    found = {}
    for activate in (jax.nn.relu, jnp.sin):
        for scale in (1.0, 12.0):

            def init(key, scale=scale):
                first, second = jax.random.split(key)
                return scale * jax.random.normal(first, (D, 16)), jax.random.normal(second, (16, 1))

            def apply(variables, x, activate=activate):
                return activate(x @ variables[0]) @ variables[1]

            model = from_functions(init, apply, (D,), check=False)
            spectrum = function_spectrum(model, PLANE, 20, scale=1.0, num_points=16)
            found[activate is jnp.sin, scale] = spectrum
    low, high = (found[True, scale].mean_frequency for scale in (1.0, 12.0))
    assert high.value - low.value > 5 * math.hypot(high.sem, low.sem)
    # Without biases a ReLU network is homogeneous: larger weights are larger values.
    np.testing.assert_allclose(found[False, 1.0].shares, found[False, 12.0].shares, atol=1e-4)


def test_constant_networks_are_left_out_and_said():
    def apply(variables, x):
        return 1 + variables * x[:, :1] + 1e-8 * x[:, 1:2]

    def draw(key):
        return jax.random.bernoulli(key, 0.5).astype(jnp.float32)

    model = from_functions(draw, apply, (D,), check=False)
    found = function_spectrum(model, np.eye(2, D), 12, num_points=4)
    constant = int(np.isnan(found.frequencies).sum())
    assert 0 < constant < 12 and f"{constant} constant" in repr(found)
    assert np.isfinite(found.mean_frequency).all() and np.isfinite(found.mean_shares[0]).all()
    none = FunctionSpectrum(np.full((3, 4), np.nan), np.full(3, np.nan))
    assert np.isnan(none.mean_frequency).all() and np.isnan(none.mean_shares).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plane": PLANE[:1]}, r"^plane: must be real numbers \[2, 12\]"),
        ({"plane": 2 * PLANE}, "^plane: rows are not orthonormal"),
        ({"num_points": 1}, "^num_points: must be an integer of at least 2"),
        ({"scale": 0.0}, "^scale: must be a finite number greater than 0"),
        ({"logit": 2}, "^logit: must be an integer in 0 … 1, got 2"),
        ({"logit": None}, "^logit: the model has 2 logits; choose one"),
        ({"num_networks": 0}, "^num_networks: must be an integer of at least 1"),
        ({"model": 3}, "^model: must come from create_model"),
    ],
)
def test_bad_input_is_refused_by_name(changes, message):
    model = create_model("logreg", (D,), 2)
    given = {"model": model, "plane": PLANE, "num_networks": 2, "logit": 0, **changes}
    with pytest.raises(InputError, match=message):
        function_spectrum(**given)


@pytest.mark.parametrize("values", [np.zeros((3, 4)), np.zeros(4), np.zeros((1, 1))])
def test_values_that_are_no_square_are_refused(values):
    with pytest.raises(InputError, match=r"^values: must be \[..., n, n\] with n ≥ 2, got shape"):
        radial_spectrum(values)


def test_infinite_outputs_are_refused():
    broken = from_functions(
        lambda key: jnp.ones(()), lambda v, x: v * x[:, :1] / 0, (D,), check=False
    )
    with pytest.raises(InputError, match="outputs that are not finite"):
        function_spectrum(broken, PLANE, 2, num_points=4)
