import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from nad_jax import subspaces
from nad_jax.directions import basis_random
from nad_jax.errors import InputError


def test_overlap_of_equal_rotated_and_orthogonal_subspaces():
    basis = np.asarray(basis_random(jax.random.key(0), 10))
    angle = 0.3
    rotated = basis.copy()
    rotated[0] = np.cos(angle) * basis[0] + np.sin(angle) * basis[1]
    rotated[1] = -np.sin(angle) * basis[0] + np.cos(angle) * basis[1]
    overlap = subspaces.subspace_overlap(
        basis, rotated * np.array([-1.0] + 9 * [1.0])[:, None], (1, 2, 5)
    )
    np.testing.assert_allclose(overlap, [np.cos(angle) ** 2, 1, 1], atol=1e-5)
    np.testing.assert_allclose(subspaces.subspace_overlap(basis, basis[::-1], (5,)), [0], atol=1e-5)


def test_overlap_of_random_subspaces_is_k_over_d():
    overlaps = [
        subspaces.subspace_overlap(
            *(np.asarray(basis_random(jax.random.key(2 * n + m), 20, 4)) for m in (0, 1)), (4,)
        )
        for n in range(60)
    ]
    assert abs(np.mean(overlaps) - 4 / 20) < 5 * np.std(overlaps) / np.sqrt(60)


def test_principal_angles_agree_with_scipy():
    left = np.asarray(basis_random(jax.random.key(0), 12, 3), np.float64)
    right = np.asarray(basis_random(jax.random.key(1), 12, 5), np.float64)
    for a, b in ((left, right), (right, left), (left, left)):
        expected = np.sort(scipy.linalg.subspace_angles(a.T, b.T))
        np.testing.assert_allclose(subspaces.principal_angles(a, b), expected, atol=1e-6)


def test_captured_energy_of_eigenvectors_is_the_cumulated_spectrum():
    basis = np.asarray(basis_random(jax.random.key(0), 4))
    matrix = basis.T @ np.diag([4.0, 3.0, 2.0, 1.0]) @ basis
    np.testing.assert_allclose(
        subspaces.captured_energy(basis, matrix), [0.4, 0.7, 0.9, 1.0], atol=1e-5
    )


def test_rank_correlation_agrees_with_scipy_with_ties():
    left, right = np.array([3.0, 1, 1, 5, 2, 9]), np.array([2.0, 2, 0, 7, 2, 8])
    expected = scipy.stats.spearmanr(left, right).statistic
    assert float(subspaces.rank_correlation(left, right)) == pytest.approx(expected, abs=1e-6)


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="one D"):
        subspaces.subspace_overlap(np.eye(3), np.eye(4), (1,))
    with pytest.raises(InputError, match="1 … 3"):
        subspaces.subspace_overlap(np.eye(3), np.eye(3), (4,))
    with pytest.raises(InputError, match="one length"):
        subspaces.rank_correlation(np.arange(3), np.arange(4))


def test_rounding_makes_no_overlap_above_one_and_hides_no_rows_that_are_no_basis():
    rows = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 50)))[0].astype(
        np.float32
    ) * np.float32(1 + 2e-7)
    assert (subspaces.subspace_overlap(rows, rows, tuple(range(1, 50))) <= 1).all()
    copies = np.repeat(np.eye(3)[:1], 3, axis=0)
    assert subspaces.subspace_overlap(copies, copies, (3,))[0] == 3
