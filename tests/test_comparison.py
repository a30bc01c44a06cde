"""Errors from batches of networks, and what is said with them: isotropy, comparison, energy maps."""

import csv
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import (
    InputError,
    basis_dft,
    compare,
    create_model,
    directional_energy,
    energy_map,
    estimate_leading_nads,
    estimate_nads,
    from_functions,
    isotropy,
    load_nads,
    save_nads,
)
from nad_jax.batches import (
    average_map,
    error_of_pairs,
    frequency_energies,
    standard_error,
    summarize,
)
from nad_jax.comparison import EnergyMap
from nad_jax.symmetries import permutations, representations

SPECTRUM = 2.0 ** -np.arange(12)


def _linear(scales, shape=None):
    """f = θᵀ diag(scales) x, θ ~ N(0, I): E[g gᵀ] = diag(scales²), and g is Gaussian."""
    scales = jnp.asarray(scales, jnp.float32)
    return from_functions(
        lambda key: jax.random.normal(key, (scales.size, 1)),
        lambda theta, x: (x.reshape(len(x), -1) * scales[None]) @ theta,
        shape or (scales.size,),
        check=False,
    )


def _estimate(model, num_networks=400, **choices):
    choices = {"derivative": "input_gradient", "readout": "sampled", **choices}
    return estimate_nads(model, num_networks, **choices)


@pytest.fixture(scope="module")
def steep():
    return _estimate(_linear(SPECTRUM**0.5), num_networks=1600)


def test_errors_are_those_of_gaussian_rows(steep):
    """The variance of an eigenvalue is 2λ²/N; from 16 batches its root is known to 18 %."""
    expected = steep.eigenvalues * np.sqrt(2 / 1600)
    assert len(steep.batches.weights) == 16
    ratios = steep.eigenvalue_sem / expected
    assert ratios.max() < 1.7 and ratios.min() > 0.5
    assert abs(np.mean(ratios**2) - 1) < 0.35  # twelve times as many degrees of freedom


def test_the_standard_error_is_that_of_a_weighted_mean():
    """Of two halves it is half their difference; of many it is unbiased whatever their weights."""
    halves = standard_error(np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([0.5, 0.5]))
    np.testing.assert_allclose(halves, [1.0, 0.0])
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    values = np.random.default_rng(0).normal(size=(4, 20_000)) / np.sqrt(weights)[:, None]
    variance = (standard_error(values, weights) ** 2).mean()
    # The mean has variance Σ w²/w = 1; the mean of 20,000 estimates is known to .6 %.
    assert abs(variance - 1) < 0.03
    assert np.isnan(standard_error(np.ones((1, 3)), np.ones(1))).all()


def test_batches_are_of_the_whole_ensemble(steep):
    assert steep.batches.weights.sum() == pytest.approx(1)
    assert steep.batches.weights @ steep.batches.traces == pytest.approx(steep.trace, rel=1e-5)
    square = np.outer(steep.batches.weights, steep.batches.weights) * steep.batches.products
    assert square.sum() == pytest.approx((steep.eigenvalues**2).sum(), rel=1e-5)
    np.testing.assert_allclose(steep.matrix, np.diag(SPECTRUM), atol=0.15)
    assert steep.rank == 12


@pytest.mark.parametrize(
    ("shape", "symmetries"),
    [((4, 6, 2), ()), ((4, 4, 1), ("flip", "transpose")), ((5, 3, 1), ("flip",)), ((7,), ())],
)
def test_products_and_energies_are_those_of_the_averaged_moments(shape, symmetries):
    dimension = int(np.prod(shape))
    rows = np.random.default_rng(0).normal(size=(3, dimension, dimension))
    matrices = [one @ one.T for one in rows]
    group = permutations(symmetries, shape)
    averaged = [np.mean([one[np.ix_(p, p)] for p in group], 0) for one in matrices]
    kept = summarize(matrices, np.ones(3), shape, representations(symmetries, shape), symmetries)
    products = [[np.sum(one * other) for one in averaged] for other in averaged]
    np.testing.assert_allclose(kept.products, products, rtol=1e-5)
    basis = basis_dft(shape)
    vectors = np.asarray(basis.directions, np.float64)
    for one, energies in zip(averaged, kept.energies, strict=True):
        each = np.einsum("kd,de,ke->k", vectors, one, vectors)
        for frequency in np.unique(basis.frequencies, axis=0):
            mean = each[(basis.frequencies == frequency).all(1)].mean()
            place = tuple(np.mod(frequency, energies.shape))
            assert energies[place] == pytest.approx(mean, rel=1e-4)
        np.testing.assert_allclose(
            energies, average_map(frequency_energies(one, shape), ()), rtol=1e-4
        )


def test_isotropy_is_that_of_the_spectrum_without_the_bias_of_few_networks():
    expected = SPECTRUM.sum() ** 2 / (12 * (SPECTRUM**2).sum())
    found = [isotropy(_estimate(_linear(SPECTRUM**0.5), 64, seed=seed)) for seed in range(12)]
    values = np.array([one.value for one in found])
    errors = np.array([one.sem for one in found])
    z = (values - expected) / errors
    assert np.abs(z).max() < 4.5 and abs(values.mean() - expected) < 4 * values.std() / 12**0.5
    alike = isotropy(_estimate(_linear(np.ones(12)), 64))
    assert abs(alike.value - 1) < 4.5 * alike.sem  # a plain ratio of so few networks is .84


def test_the_more_isotropic_of_two_is_named(steep):
    flat = _estimate(_linear(np.ones(12)))
    found = compare(flat, steep)
    assert found.z > 5 and "the first is more isotropic" in repr(found)
    assert compare(steep, flat).z == -found.z
    assert "not certain" in repr(compare(flat, _estimate(_linear(np.ones(12)), seed=1)))


def test_an_energy_map_is_that_of_the_fourier_basis_with_errors(tmp_path):
    nads = _estimate(create_model("lenet", (16, 16, 1)), 48, symmetrized=True)
    found, basis = energy_map(nads), basis_dft((16, 16, 1))
    energies = directional_energy(nads, np.asarray(basis.directions))
    for frequency in ((0, 0), (1, 2), (8, 8), (-3, 5)):
        same = (basis.frequencies == frequency).all(1) | (
            basis.frequencies == np.negative(frequency)
        ).all(1)
        if not same.any():
            continue
        place = tuple(
            int(np.flatnonzero(axis == f)[0])
            for axis, f in zip(found.frequencies, frequency, strict=True)
        )
        assert found.energy[place] == pytest.approx(energies[same].mean(), rel=1e-3)
    assert (found.sem > 0).all() and found.energy.sum() == pytest.approx(nads.trace, rel=1e-4)
    found.to_csv(tmp_path / "energy.csv")
    assert len(list(csv.DictReader((tmp_path / "energy.csv").read_text().splitlines()))) == 256
    assert found.plot().axes[0].images and "at (" in repr(found)


@pytest.mark.parametrize("shape", [(12,), (12, 2)])
def test_the_energy_of_vectors_and_signals_is_drawn_as_a_curve_with_errors(shape):
    size = int(np.prod(shape))
    found = energy_map(_estimate(_linear(np.linspace(0.5, 2.0, size), shape), 64))
    (axes,) = found.plot().axes
    curve = axes.lines[0].get_xydata()
    assert curve[:, 0].tolist() == list(range(-5, 7)) == found.frequencies[0].tolist()
    np.testing.assert_allclose(curve[:, 1], found.energy, rtol=1e-6)
    spans = np.array([bar[:, 1] for bar in axes.collections[0].get_segments()])
    np.testing.assert_allclose(np.diff(spans)[:, 0], 2 * found.sem, rtol=1e-5)
    assert axes.get_yscale() == "log" and axes.get_ylim()[0] < found.energy.min()


def test_energies_of_no_network_or_without_error_are_drawn():
    for energy, sem in ((np.zeros(4), np.zeros(4)), (np.ones(4), np.full(4, np.nan))):
        found = EnergyMap((np.arange(-1, 3),), energy, sem)
        found.plot().savefig(io.BytesIO())
    volume = EnergyMap((np.arange(2),) * 3, np.ones((2, 2, 2)), np.ones((2, 2, 2)))
    with pytest.raises(InputError, match=r"plot: draws vectors, signals and images, not 3 axes"):
        volume.plot()


def test_batches_are_stored_with_the_record(steep, tmp_path):
    save_nads(tmp_path / "nads.npz", steep)
    loaded = load_nads(tmp_path / "nads.npz")
    for one, other in zip(loaded.batches, steep.batches, strict=True):
        np.testing.assert_array_equal(one, other)
    assert isotropy(loaded) == isotropy(steep)
    damaged = steep._replace(batch_traces=np.ones(3))
    with pytest.raises(InputError, match="batch_traces has shape"):
        save_nads(tmp_path / "damaged.npz", damaged)


def test_without_batches_nothing_is_claimed():
    leading = estimate_leading_nads(
        _linear(np.ones(12)), 40, 3, derivative="input_gradient", readout="sampled"
    )
    for function in (isotropy, energy_map):
        with pytest.raises(InputError, match="needs the batches of networks"):
            function(leading)
    with pytest.raises(InputError, match="must have D = 12"):
        compare(_estimate(_linear(np.ones(12)), 32), _estimate(_linear(np.ones(6)), 32))


def test_where_nothing_is_known_no_number_is_claimed():
    axes = from_functions(  # the first network has one gradient, the second another
        lambda key: jax.random.choice(key, jnp.eye(40), axis=0),
        lambda theta, x: x @ theta[:, None],
        (40,),
        check=False,
    )
    assert np.isnan(isotropy(_estimate(axes, 2)).value)
    same = from_functions(
        lambda key: jnp.ones((3, 1)), lambda theta, x: x @ theta, (3,), check=False
    )
    nads = _estimate(same, 32)
    assert isotropy(nads) == (pytest.approx(1 / 3), 0.0)
    assert np.isnan(compare(nads, nads).z) and "not certain" in repr(compare(nads, nads))


@pytest.mark.parametrize(("own", "common"), [(1.0, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_the_error_of_a_mean_over_pairs_is_its_fluctuation(own, common):
    """Whether batches differ by themselves, or only in what two of them have in common."""
    rng, count = np.random.default_rng(0), 12
    upper, means, errors = np.triu_indices(count, 1), [], []
    for _ in range(3000):
        each, both = own * rng.normal(size=count), np.zeros((count, count))
        both[upper] = common * rng.normal(size=len(upper[0]))
        values = each[:, None] + each[None] + both + both.T
        means.append(values[upper].mean())
        errors.append(error_of_pairs(values - means[-1]))
    # Never too small; a part that is not there counts a little, since no variance is negative.
    assert 0.9 < np.mean(np.square(errors)) / np.var(means) < 1.35


def test_what_is_not_comparable_is_said():
    left = _estimate(_linear(SPECTRUM**0.5))
    right = _estimate(_linear(SPECTRUM**0.5), point="fresh")
    assert compare(left, right).unlike == ("point",)
    assert "beware: different point" in repr(compare(left, right))
    assert "beware" not in repr(compare(left, left))
