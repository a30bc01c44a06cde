"""Metrics of a spectrum against closed forms: linear networks, whose gradients are Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import (
    InputError,
    basis_dft,
    energy_map,
    estimate_nads,
    from_functions,
    load_nads,
    radial_energy,
    save_nads,
    spectrum_metrics,
    symmetry_energy,
)
from nad_jax.batches import jackknife, list_parts, part_energies, spectra_without, summarize
from nad_jax.store import write_npz
from nad_jax.symmetries import block, representations

SPECTRUM = 2.0 ** -np.arange(8)
CHOICES = {"derivative": "input_gradient", "readout": "sampled"}


def _linear(scales, shape=None):
    """f = θᵀ diag(scales) x, θ ~ N(0, I): E[g gᵀ] = diag(scales²)."""
    scales = jnp.asarray(scales, jnp.float32)
    return from_functions(
        lambda key: jax.random.normal(key, (scales.size, 1)),
        lambda theta, x: (x.reshape(len(x), -1) * scales[None]) @ theta,
        shape or (scales.size,),
        check=False,
    )


@pytest.fixture(scope="module")
def images():
    scales = np.exp(-np.linspace(0, 2, 32)).reshape(4, 4, 2)
    return estimate_nads(_linear(scales.reshape(-1), (4, 4, 2)), 128, **CHOICES)


def _divergence(spectrum):
    shares = spectrum / spectrum.sum()
    return np.log(len(spectrum)) + (shares * np.log(shares)).sum()


def _sampled(images, spectrum, seed, batches=16, rows=8):
    """A record with the batches of Gaussian rows of variances `spectrum` [D]."""
    rng = np.random.default_rng(seed)
    parts = rng.normal(size=(batches, rows, len(spectrum))) * np.sqrt(spectrum)
    matrices, shape = [one.T @ one / rows for one in parts], (len(spectrum),)
    kept = summarize(matrices, np.full(batches, rows), shape, representations((), shape))
    named = {f"batch_{name}": value for name, value in kept._asdict().items()}
    return images._replace(directions=np.eye(len(spectrum), dtype=np.float32), **named)


def test_metrics_are_those_of_the_spectrum_within_their_errors(images):
    """At 200 ensembles of 128 Gaussian rows: at their errors, which spread as they say."""
    found = [spectrum_metrics(_sampled(images, SPECTRUM, seed)) for seed in range(200)]
    expected = {
        "kl_uniform": _divergence(SPECTRUM),
        "effective_rank": 8 * np.exp(-_divergence(SPECTRUM)),
        "participation_ratio": SPECTRUM.sum() ** 2 / (SPECTRUM**2).sum(),
        "condition": SPECTRUM[0] / SPECTRUM[-1],
    }
    for name, value in expected.items():
        values, errors = np.array([getattr(one, name) for one in found]).T
        # What is left of the bias is of second order, a share of the standard error.
        assert abs(values.mean() - value) < 0.3 * values.std(), name
        assert 0.85 < np.sqrt(np.mean(errors**2)) / values.std() < 1.2, name


def test_directions_that_are_all_alike_have_no_divergence(images):
    """Whose plain value is far above zero with so few rows."""
    records = [_sampled(images, np.ones(12), seed) for seed in range(50)]
    found = [spectrum_metrics(nads).kl_uniform for nads in records]
    values, plain = ([f(one) for one in rows] for f, rows in (
        (lambda metric: metric.value, found),
        (lambda nads: _divergence(nads.batch_spectra[0]), records),
    ))  # fmt: skip
    assert abs(np.mean(values)) < 0.15 * np.mean(plain)
    rows = spectrum_metrics(records[0]).to_rows()
    assert [row["metric"] for row in rows] == [*spectrum_metrics(records[0])._fields[:-1]]
    assert rows[2]["sem"] == found[0].sem and "kl_uniform" in repr(spectrum_metrics(records[0]))


def test_a_rank_below_the_dimension_has_an_infinite_condition_number():
    found = spectrum_metrics(estimate_nads(_linear([1.0, 1.0, 0.0]), 64, **CHOICES))
    assert np.isinf(found.condition.value) and np.isnan(found.condition.sem)
    assert found.kl_uniform.value == pytest.approx(np.log(3 / 2), abs=0.02)


def test_fewer_read_outs_than_directions_say_nothing_of_the_spectrum():
    model = _linear(np.ones(40))
    few, enough = (
        spectrum_metrics(estimate_nads(model, count, **{**CHOICES, "readout": "sampled"}))
        for count in (36, 400)
    )
    for name in ("kl_uniform", "effective_rank"):
        assert np.isnan(getattr(few, name)).all() and np.isfinite(getattr(enough, name)).all()
    assert np.isfinite(few.participation_ratio).all()  # which needs no more rows


def test_a_single_batch_says_nothing(images):
    found = spectrum_metrics(_sampled(images, SPECTRUM, 0, batches=1))
    assert np.isnan([value for metric in found[:-1] for value in metric]).all()
    assert "its error unknown" in repr(found)


def test_a_jackknife_frees_squares_of_their_bias_and_leaves_means():
    """With groups of unequal weight: of x̄² the correction is the squared standard error of x̄."""
    rng, weights = np.random.default_rng(0), np.array([0.1, 0.2, 0.3, 0.4])
    groups = rng.normal(1.0, 1.0 / np.sqrt(weights), size=(4_000, 4))
    whole = groups @ weights
    without = (whole[:, None] - groups * weights) / (1 - weights)
    means = np.array([jackknife(*one, weights) for one in zip(whole, without, strict=True)])
    np.testing.assert_allclose(means[:, 0], whole, rtol=1e-6)
    assert np.mean(means[:, 1] ** 2) == pytest.approx(1.0, rel=0.1)  # Var x̄ = Σ w²/w
    pairs = zip(whole**2, without**2, strict=True)
    squares = np.array([jackknife(*one, weights)[0] for one in pairs])
    assert abs(squares.mean() - 1) < 4 * squares.std() / 4_000**0.5
    assert np.isnan(jackknife(1.0, np.zeros(0), np.zeros(0))).all()


def test_spectra_without_a_group_are_those_of_the_other_matrices(monkeypatch):
    rows = np.random.default_rng(0).normal(size=(6, 5, 5))
    matrices = np.stack([one @ one.T for one in rows])
    weights = np.array([1, 2, 3, 1, 2, 3]) / 12
    for largest, count in ((100, 6), (5, 4)):
        monkeypatch.setattr("nad_jax.batches._LARGE", largest)
        groups, spectra = spectra_without([(matrices, 1), (matrices[:, :1, :1], 2)], weights)
        assert groups.shape == (count,) and groups.sum() == pytest.approx(1)
        assert spectra.shape == (count + 1, 7)
        last = np.arange(6) * count // 6 != count - 1
        mean = np.tensordot(weights * last, matrices, 1) / (weights * last).sum()
        expected = [*np.linalg.eigvalsh(mean), mean[0, 0], mean[0, 0]]
        np.testing.assert_allclose(spectra[-1], np.sort(expected)[::-1])
        whole = np.tensordot(weights, matrices, 1)
        assert spectra[0].max() == pytest.approx(np.linalg.eigvalsh(whole)[-1])
    assert spectra_without([(matrices[:1], 1)], np.ones(1))[1].shape == (0, 5)


@pytest.mark.parametrize("shape", [(4, 4, 2), (3, 5, 1), (6, 2), (7,), (2, 2, 2, 1)])
def test_energies_by_representation_are_traces_of_their_blocks(shape):
    rows = np.random.default_rng(0).normal(size=(np.prod(shape),) * 2)
    matrix, parts = rows @ rows.T, list_parts(shape)
    found = part_energies(matrix, parts)
    expected = [len(one.turns) * np.trace(block(matrix, one)) for one in parts]
    np.testing.assert_allclose(found, expected)
    assert found.sum() == pytest.approx(np.trace(matrix))


def test_shares_of_representations_are_those_of_the_directions(images):
    found = symmetry_energy(images)
    assert {*found.symmetry} == {"A1", "A2", "B1", "B2", "E"}
    assert found.share.sum() == pytest.approx(1) and found.dimension.sum() == 32
    # The energy of the image's mean square over all symmetries is that of A1.
    parts = list_parts((4, 4, 2))
    energies = part_energies(images.matrix, parts) / images.trace
    np.testing.assert_allclose(found.share, energies, rtol=1e-4)
    assert (found.sem > 0).all() and len(found.to_rows()) == 5 and "A1" in repr(found)


def test_radial_energies_are_means_over_fourier_vectors(images):
    basis = basis_dft((4, 4, 2))
    vectors = np.asarray(basis.directions, np.float64)
    each = np.einsum("kd,de,ke->k", vectors, images.matrix, vectors)
    # A frequency of length 4 stands for itself and its negative.
    places = np.minimum(np.mod(basis.frequencies, 4), np.mod(-basis.frequencies, 4))
    radius = np.rint(np.hypot(*places.T)).astype(int)
    found = radial_energy(images)
    assert found.radius.tolist() == [0, 1, 2, 3] and found.count.sum() == 16
    expected = [each[radius == length].mean() for length in found.radius]
    np.testing.assert_allclose(found.energy, expected, rtol=1e-4)
    assert (found.sem > 0).all() and len(found.to_rows()) == 4 and "radii" in repr(found)


def test_frequencies_are_ranked_by_their_energy(images):
    ranking = energy_map(images).to_ranking()
    assert [row["rank"] for row in ranking] == [*range(10)]  # of 16 frequencies six have a partner
    energies = [row["energy"] for row in ranking]
    assert energies == sorted(energies, reverse=True)
    pairs = {(row["frequency_0"], row["frequency_1"]) for row in ranking}
    negatives = {tuple(k if k == 2 else -k for k in pair) for pair in pairs}
    assert len(pairs | negatives) == 16


def test_files_keep_what_metrics_need_and_earlier_ones_say_that_they_lack_it(images, tmp_path):
    save_nads(tmp_path / "nads.npz", images)
    assert spectrum_metrics(load_nads(tmp_path / "nads.npz")) == spectrum_metrics(images)
    with np.load(tmp_path / "nads.npz") as stored:
        arrays = dict(stored)
    later = ("batch_parts", "batch_groups", "batch_spectra")
    write_npz(tmp_path / "old.npz", {n: v for n, v in arrays.items() if n not in later})
    old = load_nads(tmp_path / "old.npz")
    assert len(energy_map(old).to_rows()) == 16
    for function in (spectrum_metrics, symmetry_energy):
        with pytest.raises(InputError, match=f"{function.__name__}: needs .* collecting"):
            function(old)
    write_npz(tmp_path / "cut.npz", {n: v for n, v in arrays.items() if n != "batch_groups"})
    with pytest.raises(InputError, match="batch_groups"):
        load_nads(tmp_path / "cut.npz")
    write_npz(tmp_path / "bad.npz", {**arrays, "batch_spectra": arrays["batch_spectra"][1:]})
    with pytest.raises(InputError, match="batch_spectra has shape"):
        load_nads(tmp_path / "bad.npz")
