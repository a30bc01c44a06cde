import numpy as np
import pytest

from nad_jax import spectral
from nad_jax.errors import InputError


def test_eigenpairs_have_small_residual_and_descend():
    factor = np.random.default_rng(0).normal(size=(20, 12))
    matrix = factor.T @ factor
    eigenvalues, rows = spectral.eigh_dense(matrix)
    assert (np.diff(eigenvalues) <= 0).all()
    np.testing.assert_allclose(rows @ rows.T, np.eye(12), atol=1e-6)
    residual = rows @ matrix - eigenvalues[:, None] * rows
    assert np.linalg.norm(residual, axis=1).max() < 1e-5 * eigenvalues[0]
    assert (np.take_along_axis(rows, np.abs(rows).argmax(1)[:, None], 1) > 0).all()


def test_rank_deficient_matrices_have_no_negative_eigenvalues():
    vector = np.arange(1.0, 6.0)
    eigenvalues, rows = spectral.eigh_dense(np.outer(vector, vector))
    np.testing.assert_allclose(eigenvalues, [55, 0, 0, 0, 0], atol=1e-5)
    assert (eigenvalues >= 0).all()
    np.testing.assert_allclose(rows[0], vector / np.sqrt(55), atol=1e-6)


@pytest.mark.parametrize("matrix", [np.ones((2, 3)), np.array([[1.0, np.nan], [np.nan, 1.0]])])
def test_bad_matrices_are_refused(matrix):
    with pytest.raises(InputError, match="matrix"):
        spectral.eigh_dense(matrix)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 2.0])
def test_marchenko_pastur_edges_hold_the_spectrum_of_noise(ratio):
    samples = 1500
    dimension = int(ratio * samples)
    rows = 0.7 * np.random.default_rng(0).normal(size=(samples, dimension))
    rows = rows.T if dimension > samples else rows
    values = np.linalg.eigvalsh(rows.T @ rows / samples)  # but those that are zero
    low, high = spectral.marchenko_pastur_band(0.49, dimension, samples)
    # The extremes fall inside the band by a Tracy–Widom fluctuation, of order N^(-2/3), relatively
    # largest below.
    assert 0.98 * low < values.min() < 1.15 * low
    assert 0.95 * high < values.max() < 1.02 * high


def test_near_degenerate_groups():
    assert spectral.near_degenerate_groups(np.array([10, 9.9, 9.6, 5, 4, 3.9])) == [(0, 2), (4, 5)]
    assert spectral.near_degenerate_groups(np.array([4, 3, 2])) == []
    assert spectral.near_degenerate_groups(np.array([1.0, 1.0])) == [(0, 1)]
