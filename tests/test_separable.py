"""The distributions D(v), against their definition and closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nad_jax.directions import basis_random
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError
from nad_jax.tasks.separable import (
    bayes_classifier,
    competing_accuracy,
    label_samples,
    sample_noise,
    sample_separable,
    separate,
)

D = 24


@pytest.fixture(scope="module")
def basis():
    return basis_random(make_key(3), D)


def test_the_signal_is_exact_and_labels_are_balanced(basis):
    x, labels = sample_separable(make_key(0), basis[0], 5000, epsilon=0.7, sigma=3.0)
    signs = 1 - 2 * np.asarray(labels)
    np.testing.assert_allclose(
        np.asarray(x, np.float64) @ np.asarray(basis[0], np.float64), 0.7 * signs, atol=5e-6
    )
    assert int(labels.sum()) == 2500
    np.testing.assert_array_equal(bayes_classifier(x, basis[0]), labels)


def test_noise_is_isotropic_in_the_orthogonal_complement(basis):
    count, sigma = 40_000, 2.0
    x, labels = sample_separable(make_key(1), basis[0], count, epsilon=1.0, sigma=sigma)
    noise = np.asarray(x) - np.outer(1 - 2 * np.asarray(labels), basis[0])
    covariance = noise.T @ noise / count
    expected = sigma**2 * (np.eye(D) - np.outer(basis[0], basis[0]))
    # The standard error of an entry is at most σ²√2/√count.
    assert np.abs(covariance - expected).max() < 5 * sigma**2 * np.sqrt(2 / count)
    assert np.abs(noise.mean(0)).max() < 5 * sigma / np.sqrt(count)


@pytest.mark.parametrize("angle", [0.1, 0.4, 0.8, 1.2, 1.5])
@pytest.mark.parametrize(("epsilon", "sigma"), [(1.0, 1.0), (0.5, 3.0)])
def test_a_competing_direction_has_its_closed_form_accuracy(basis, angle, epsilon, sigma):
    competitor = np.cos(angle) * basis[0] + np.sin(angle) * basis[1]
    expected = float(competing_accuracy(basis[0], competitor, epsilon, sigma))
    cosine = np.cos(angle)
    assert expected == pytest.approx(
        scipy.stats.norm.cdf(epsilon * cosine / (sigma * np.sqrt(1 - cosine**2))), abs=1e-5
    )
    count = 20_000
    x, labels = sample_separable(make_key(2), basis[0], count, epsilon, sigma)
    accuracy = float((bayes_classifier(x, competitor) == labels).mean())
    assert abs(accuracy - expected) < 4 * np.sqrt(max(expected * (1 - expected), 1e-6) / count)


def test_extreme_competitors(basis):
    competitors = jnp.stack([basis[0], -basis[0], basis[1]])
    accuracies = competing_accuracy(jnp.broadcast_to(basis[0], competitors.shape), competitors)
    np.testing.assert_allclose(accuracies, [1.0, 0.0, 0.5], atol=1e-6)


def test_noise_belongs_to_replicate_and_split_alone(basis):
    noise = sample_noise(make_key(0), 10, 6, D)
    assert noise.train.shape == (10, D) and noise.test.shape == (6, D)
    assert not np.allclose(noise.train[:6], noise.test)
    np.testing.assert_array_equal(noise.test, sample_noise(make_key(0), 4, 6, D).test)
    labels = label_samples(jnp.arange(10))
    for v in basis[:3]:
        x = separate(noise.train, labels, v, 1.0, 2.0)
        n, u = np.asarray(noise.train, np.float64), np.asarray(v, np.float64)
        expected = np.outer(1 - 2 * np.asarray(labels), u) + 2.0 * (n - np.outer(n @ u, u))
        np.testing.assert_allclose(x, expected, atol=2e-6)


def test_integer_noise_is_that_of_floating_point(basis):
    noise, labels = np.arange(2 * D).reshape(2, D) % 5, [0, 1]
    found = separate(noise, labels, basis[0], 0.5, 0.7)
    np.testing.assert_array_equal(found, separate(np.float32(noise), labels, basis[0], 0.5, 0.7))
    np.testing.assert_allclose(np.asarray(found) @ np.asarray(basis[0]), [0.5, -0.5], atol=1e-5)


def test_bad_input_is_refused(basis):
    with pytest.raises(InputError, match="num_samples: must be even"):
        sample_separable(make_key(0), basis[0], 7)
    with pytest.raises(
        InputError, match=r"direction: must be real numbers \[D\], got shape \(2, 24\)"
    ):
        sample_separable(make_key(0), basis[:2], 8)
