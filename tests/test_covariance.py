import jax.numpy as jnp
import numpy as np

from nad_jax import moments
from nad_jax.symmetries import representations

DENSE = moments.dense(7, representations((), (7, 1, 1)))


def _rows(count=60, dimension=7, offset=0.0):
    generator = np.random.default_rng(0)
    return (
        generator.normal(size=(count, dimension)) @ generator.normal(size=(dimension, dimension))
        + offset
    )


def _accumulate(rows, sizes):
    state, start = DENSE.init(None), 0
    for size in sizes:
        batch = jnp.asarray(rows[start : start + size], jnp.float32)
        state = DENSE.update(state, batch, jnp.ones(size, bool))
        start += size
    return state


def test_equals_numpy_in_float64():
    rows = _rows()
    state = _accumulate(rows, [60])
    np.testing.assert_allclose(
        moments.second_moment(state), rows.T @ rows / 60, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        moments.second_moment(state, centered=True), np.cov(rows.T), rtol=1e-5, atol=1e-5
    )


def test_chunks_and_merges_do_not_matter():
    rows = _rows()
    whole = _accumulate(rows, [60])
    parts = _accumulate(rows, [1, 13, 30, 16])
    merged = DENSE.merge(_accumulate(rows[:22], [22]), _accumulate(rows[22:], [20, 18]))
    for other in (parts, merged):
        for left, right in zip(whole, other, strict=True):
            np.testing.assert_allclose(left, right, atol=1e-5 * np.abs(left).max())


def test_a_large_mean_does_not_cancel():
    rows = _rows(offset=1e3)
    centred = moments.second_moment(_accumulate(rows, [20, 20, 20]), centered=True)
    np.testing.assert_allclose(
        centred, np.cov(rows.T), rtol=1e-3, atol=1e-3 * np.abs(centred).max()
    )


def test_invalid_rows_are_left_out_even_if_they_are_nan():
    rows = jnp.asarray(_rows(), jnp.float32)
    valid = jnp.arange(60) < 41
    state = DENSE.update(DENSE.init(None), jnp.where(valid[:, None], rows, jnp.nan), valid)
    np.testing.assert_allclose(
        moments.second_moment(state, centered=True), np.cov(rows[:41].T), rtol=1e-5, atol=1e-5
    )
    empty = DENSE.update(DENSE.init(None), rows, jnp.zeros(60, bool))
    assert all(
        np.array_equal(left, right) for left, right in zip(empty, DENSE.init(None), strict=True)
    )
