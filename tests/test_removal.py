"""Removing directions of equal variance, and samples by importance, against closed forms."""

import numpy as np
import pytest

from nad_jax import (
    create_model,
    estimate_nads,
    keep_most_important,
    project_out,
    random_directions_of_equal_variance,
    sample_importance,
)
from nad_jax.errors import InputError

D = 24
BASIS = np.linalg.qr(np.random.default_rng(5).normal(size=(D, D)))[0]
SPECTRUM = 1 / np.arange(1, D + 1) ** 1.5
MOMENT = (BASIS.T * SPECTRUM) @ BASIS


def _variance(rows):
    rows = np.asarray(rows, np.float64)
    return np.trace(rows @ MOMENT @ rows.T)


@pytest.mark.parametrize("count", [1, 2, 5, 23, 24])
def test_random_directions_take_the_variance_of_the_leading_ones(count):
    found = [random_directions_of_equal_variance(s, MOMENT, BASIS[:count]) for s in (0, 1)]
    for rows in found:
        np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=2e-6)
        assert _variance(rows) == pytest.approx(SPECTRUM[:count].sum(), rel=2e-6)
        assert len(rows) >= count
    if count < 23:  # and they are others
        assert np.abs(found[0][:1] @ BASIS[:count].T).max() < 0.9
        assert np.abs(found[0][0] @ found[1][0]) < 0.9


def test_what_is_left_of_the_data_has_the_same_variance():
    x = np.random.default_rng(0).normal(size=(500, D)) * np.sqrt(SPECTRUM) @ BASIS
    x = x.astype(np.float32)
    moment = x.T.astype(np.float64) @ x / len(x)
    leading = np.linalg.eigh(moment)[1].T[::-1][:3]
    random = random_directions_of_equal_variance(0, moment, leading)
    left = [float((np.asarray(project_out(x, rows)) ** 2).sum()) for rows in (leading, random)]
    assert left[0] == pytest.approx(left[1], rel=1e-5)
    assert left[0] == pytest.approx(len(x) * (np.trace(moment) - _trace(leading, moment)), rel=1e-5)


def _trace(rows, moment):
    return np.trace(rows @ moment @ rows.T)


def test_trailing_directions_and_a_flat_spectrum_have_their_equals_too():
    flat = random_directions_of_equal_variance(0, np.eye(D), BASIS[:4])
    assert flat.shape == (4, D)
    np.testing.assert_allclose(flat @ flat.T, np.eye(4), atol=1e-6)
    trailing = random_directions_of_equal_variance(0, MOMENT, BASIS[-3:])
    assert _variance(trailing) == pytest.approx(SPECTRUM[-3:].sum(), rel=1e-5)
    # All but one of equal variance: two random ones hold too much, one too little.
    spiked = np.diag([1.5, *np.ones(D - 1)])
    rows = random_directions_of_equal_variance(0, spiked, np.eye(D)[:1]).astype(np.float64)
    assert len(rows) == 1 and rows[0, 0] ** 2 == pytest.approx(1.0, abs=1e-6)
    rows = random_directions_of_equal_variance(0, spiked, np.eye(D)[1:2]).astype(np.float64)
    assert _trace(rows, spiked) == pytest.approx(1.0, rel=1e-6)


def test_importance_is_the_energy_of_the_direction_of_a_sample():
    x = np.random.default_rng(1).normal(size=(7, D))
    expected = [one @ MOMENT @ one / (one @ one) for one in x]
    np.testing.assert_allclose(sample_importance(x, MOMENT), expected, rtol=1e-9)
    np.testing.assert_allclose(sample_importance(100 * x, MOMENT), expected, rtol=1e-9)
    np.testing.assert_allclose(sample_importance(BASIS, MOMENT), SPECTRUM, rtol=1e-9)
    images = x.reshape(7, 4, 3, 2)
    np.testing.assert_allclose(sample_importance(images, MOMENT), expected, rtol=1e-9)


def test_importance_by_a_record_is_that_by_its_matrix():
    nads = estimate_nads(create_model("mlp", (D,), width=8), 40, derivative="input_gradient")
    x = np.random.default_rng(1).normal(size=(7, D)).astype(np.float32)
    by_matrix = sample_importance(x, nads.matrix)
    np.testing.assert_allclose(sample_importance(x, nads), by_matrix, rtol=1e-5)


def test_the_top_share_is_kept_of_each_class_in_its_order():
    scores = np.array([3.0, 1.0, 2.0, 9.0, 7.0, 8.0, 7.0, 1.0])
    labels = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    np.testing.assert_array_equal(keep_most_important(scores, labels), [0, 2, 3, 5, 7])
    np.testing.assert_array_equal(keep_most_important(scores, labels, 0.75), [0, 2, 3, 4, 5, 7])
    np.testing.assert_array_equal(keep_most_important(scores, labels, 1.0), np.arange(8))
    np.testing.assert_array_equal(keep_most_important(scores, labels, 1e-9), [0, 3, 7])


def test_bad_input_is_refused_by_name():
    scores, labels = np.arange(4.0), np.array([0, 1, 0, 1])
    for call, message in [
        (lambda: random_directions_of_equal_variance(0, MOMENT, 2 * BASIS), "rows are not orthon"),
        (lambda: random_directions_of_equal_variance(0, MOMENT[:3], BASIS), "^second_moment: must"),
        (
            lambda: random_directions_of_equal_variance(0, np.triu(MOMENT), BASIS),
            "^second_moment: must be symmetric",
        ),
        (
            lambda: random_directions_of_equal_variance(0, 0 * MOMENT, BASIS),
            "^second_moment: must have variance along the directions, got 0",
        ),
        (lambda: sample_importance(np.zeros((2, D)), MOMENT), "^x: sample 0 is zero"),
        (lambda: sample_importance(np.ones((0, D)), MOMENT), r"^x: must be real .*\(0, 24\)"),
        (lambda: sample_importance(np.ones(D), MOMENT), r"^x: must be samples \[B, D\]"),
        (lambda: sample_importance(np.ones((2, 5)), MOMENT), r"^geometry: must be real numbers \["),
        (lambda: sample_importance(BASIS, -MOMENT), "^geometry: must have no negative eigenvalue"),
        (lambda: sample_importance(BASIS, np.triu(MOMENT) + BASIS), "^geometry: must be symmetric"),
        (lambda: keep_most_important(scores, labels, 0.0), "^share: must be a finite number great"),
        (lambda: keep_most_important(scores, labels, 1.5), "^share: must be at most 1, got 1.5"),
        (lambda: keep_most_important(scores, labels[:3]), "^labels: must be one for each of 4"),
        (lambda: keep_most_important(scores, labels - 1), "^labels: must be in 0"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
