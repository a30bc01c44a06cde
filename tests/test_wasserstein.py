"""Sliced Wasserstein distances against a reference in NumPy, closed forms and SciPy."""

import numpy as np
import pytest
import scipy.stats

from nad_jax import SlicedDistance, make_key, sliced_wasserstein
from nad_jax.errors import InputError


def _samples(count=300, size=5, seed=0):
    return np.random.default_rng(seed).normal(size=(2, count, size))


def _directions(count, size, seed=9):
    rows = np.random.default_rng(seed).normal(size=(count, size))
    return rows / np.linalg.norm(rows, axis=1)[:, None]


def _reference(x, y, directions):
    """W₂(u)², by the coupling of ordered numbers."""
    ordered = (np.sort(one @ directions.T, axis=0) for one in (x, y))
    return np.mean(np.subtract(*ordered) ** 2, 0)


def test_it_is_the_mean_over_random_directions_of_the_distance_of_projections():
    x, y = _samples()
    y = 1.5 * y + 0.3
    found = sliced_wasserstein(x, y, 1, 4_000)
    squares = _reference(x, y, _directions(20_000, 5))
    error = found.sem + squares.std() / np.sqrt(20_000) / 2 / found.sliced
    assert abs(found.sliced - np.sqrt(squares.mean())) < 4 * error
    assert found.sem == pytest.approx(squares.std() / np.sqrt(4_000) / 2 / found.sliced, rel=0.1)
    assert found.max_sliced == pytest.approx(np.sqrt(squares.max()), rel=0.02)


def test_along_one_axis_it_is_that_of_the_numbers():
    x, y = _samples(size=1)
    found = sliced_wasserstein(x, y + 2.0)
    expected = np.sqrt(np.mean((np.sort(x[:, 0]) - np.sort(y[:, 0]) - 2.0) ** 2))
    assert found.sliced == pytest.approx(expected, rel=1e-5) == found.max_sliced
    assert found.sem == pytest.approx(0, abs=1e-6)
    # Ordered numbers are coupled at the least cost: W₁ ≤ W₂, equal where one is a shift of the other.
    assert scipy.stats.wasserstein_distance(x[:, 0], y[:, 0] + 2.0) <= found.sliced
    shifted = sliced_wasserstein(x, x[::-1] + 0.7).sliced
    assert shifted == pytest.approx(scipy.stats.wasserstein_distance(x[:, 0], x[:, 0] + 0.7))


def test_samples_of_two_gaussians_have_the_distance_of_their_covariances():
    x, y = _samples(5_000, 3)
    left, right = np.array([2.0, 1.0, 0.5]), np.array([0.5, 1.0, 1.5])
    directions = _directions(4_000, 3)
    widths = (np.sqrt((directions * scales) ** 2 @ np.ones(3)) for scales in (left, right))
    expected = np.subtract(*widths) ** 2
    found = sliced_wasserstein(x * left, y * right, 2, 200)
    assert found.sliced == pytest.approx(np.sqrt(expected.mean()), rel=0.08)
    assert found.max_sliced == pytest.approx(1.5, rel=0.08)  # along the first axis


def test_a_translation_moves_every_projection_by_its_part_along_it():
    x, shift = _samples()[0], np.array([3.0, 0, 0, 0, 4.0])
    found = sliced_wasserstein(x, x[::-1] + shift, 0, 4_000)
    # E⟨u, m⟩² = ‖m‖²/D.
    assert found.sliced == pytest.approx(5 / np.sqrt(5), abs=4 * found.sem)
    assert 4.7 < found.max_sliced <= 5.0001


def test_equal_sets_have_none_and_images_count_as_vectors():
    x, y = _samples(40, 12)
    assert sliced_wasserstein(x, x[::-1]) == SlicedDistance(0.0, 0.0, 0.0)
    images = (one.reshape(40, 2, 2, 3) for one in (x, y))
    assert sliced_wasserstein(*images, 4) == sliced_wasserstein(x, y, 4)
    assert sliced_wasserstein(x, y, 4) == sliced_wasserstein(x, y, make_key(4), 64 * 12)


def test_directions_do_not_depend_on_how_many_are_projected_at_once(monkeypatch):
    x, y = _samples(50, 4)
    whole = sliced_wasserstein(x, y, 3, 101)
    monkeypatch.setattr("nad_jax.wasserstein._NUMBERS", 50 * 7)
    assert sliced_wasserstein(x, y, 3, 101) == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.ones((4, 2)), np.ones((5, 2))), r"^y: must be samples \[n, …\] of the shape of x"),
        ((np.ones((0, 2)), np.ones((0, 2))), r"^x: must be real numbers \[n, ...\]"),
        ((np.ones(4), np.ones(4)), r"^x: must be samples \[n, D\] or \[n, …\], got shape \(4,\)"),
        ((np.ones((4, 1)), np.ones(4)), r"^y: must be samples \[n, D\] or \[n, …\]"),
        ((np.ones((4, 2)), np.full((4, 2), np.nan)), "^y: has entries that are not finite"),
        ((np.ones((4, 2)), np.ones((4, 2)), 0, -1), "^num_projections: must be an integer"),
        ((np.ones((4, 2)), np.ones((4, 2)), 0.5), "^seed: must be an integer"),
    ],
)
def test_bad_input_is_refused_by_name(arguments, message):
    with pytest.raises(InputError, match=message):
        sliced_wasserstein(*arguments)
