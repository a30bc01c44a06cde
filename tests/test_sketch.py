import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import moments, subspaces
from nad_jax.errors import InputError
from nad_jax.symmetries import permutations, representations

DIMENSION, LEADING = 120, 8
SHAPE = (DIMENSION, 1, 1)


def _sketched(num_directions):
    return moments.sketched(num_directions, permutations((), SHAPE), representations((), SHAPE))


SKETCHED = _sketched(LEADING)


def _rows(count, mean=0.0):
    """Rows whose covariance has eigenvalues .9^i in a random basis."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((DIMENSION, DIMENSION)))[0]
    rows = (
        rng.standard_normal((count, DIMENSION)) * 0.9 ** (np.arange(DIMENSION) / 2)
    ) @ basis.T + mean
    return jnp.asarray(rows, jnp.float32)


def _see(rows, basis, parts=1):
    states = [
        SKETCHED.update(SKETCHED.init(basis), part, jnp.ones(len(part), bool))
        for part in jnp.array_split(rows, parts)
    ]
    while len(states) > 1:
        states = [SKETCHED.merge(states[0], states[1]), *states[2:]]
    return states[0]


def _dense(rows, centred):
    rows = np.asarray(rows, np.float64)
    rows = rows - rows.mean(0) if centred else rows
    values, vectors = np.linalg.eigh(rows.T @ rows / (len(rows) - centred))
    return values[::-1], vectors.T[::-1]


@pytest.mark.parametrize("centred", [False, True])
def test_passes_converge_to_the_dense_eigenvectors(centred):
    rows = _rows(400, mean=0.3)
    values, vectors = _dense(rows, centred)
    basis, errors = moments.random_basis(jax.random.key(0), 3 * LEADING, DIMENSION), []
    for _ in range(4):
        found = _sketched(3 * LEADING).read(_see(rows, basis), centred)
        errors.append(1 - subspaces.subspace_overlap(found.directions, vectors, (LEADING,))[0])
        basis = jnp.asarray(found.directions)
    assert all(later < 0.5 * earlier + 1e-6 for earlier, later in itertools.pairwise(errors))
    assert errors[0] > 0.01 and errors[-1] < 1e-3
    np.testing.assert_allclose(found.eigenvalues[:LEADING], values[:LEADING], rtol=1e-3)
    np.testing.assert_allclose(
        found.directions @ found.directions.T, np.eye(3 * LEADING), atol=1e-5
    )
    np.testing.assert_allclose(found.trace, values.sum(), rtol=1e-4)


def test_as_many_test_directions_as_dimensions_are_exact_in_one_pass():
    rows = _rows(300)
    values, vectors = _dense(rows, False)
    basis = moments.random_basis(jax.random.key(1), DIMENSION, DIMENSION)
    found = SKETCHED.read(_see(rows, basis), False)
    np.testing.assert_allclose(found.eigenvalues, values[:LEADING], rtol=1e-4)
    assert subspaces.subspace_overlap(found.directions, vectors, (LEADING,))[0] > 0.9999


def test_sketches_of_parts_merge_and_rows_that_are_not_valid_are_left_out():
    rows, basis = _rows(90), moments.random_basis(jax.random.key(2), 16, DIMENSION)
    whole = _see(rows, basis)
    for one, other in zip(whole, _see(rows, basis, parts=3), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(jnp.abs(one).max()))
    spoiled = jnp.concatenate([rows, jnp.full((3, DIMENSION), jnp.nan)])
    masked = SKETCHED.update(SKETCHED.init(basis), spoiled, jnp.arange(93) < 90)
    for one, other in zip(whole, masked, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(jnp.abs(one).max()))


def test_fewer_rows_than_test_directions_are_spanned_exactly():
    rows = _rows(5)
    basis = moments.random_basis(jax.random.key(3), 16, DIMENSION)
    found = _sketched(5).read(_see(rows, basis), False)
    values, vectors = _dense(rows, False)
    np.testing.assert_allclose(found.eigenvalues, values[:5], rtol=1e-3)
    assert subspaces.subspace_overlap(found.directions, vectors, (5,))[0] > 0.999


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match="size: must be in 1 … D = 10, got 11"):
        moments.random_basis(jax.random.key(0), 11, 10)


def test_fewer_test_directions_give_fewer_eigenvectors():
    basis = moments.random_basis(jax.random.key(0), 4, DIMENSION)
    assert len(_sketched(5).read(_see(_rows(9), basis), False).directions) == 4
