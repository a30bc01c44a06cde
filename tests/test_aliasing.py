"""The aliasing bound against classifiers of pooled signals."""

import numpy as np
import pytest
from scipy import stats

import nad_jax
from nad_jax.errors import InputError

LENGTH, STRIDE = 24, 4
KERNEL = np.array([0.1, 0.7, 0.9, -0.3, 0.2])
PHASES = ("cosine", "sine")


def _pool(kernel, stride, x):
    """Circular filtering entry by entry, and every S-th entry of it: [..., D/S]."""
    filtered = sum(weight * np.roll(x, shift, -1) for shift, weight in enumerate(kernel))
    return filtered[..., ::stride]


def _best(kernel, stride, v, epsilon, sigma):
    """The accuracy of the optimal classifier of two normal laws, by their covariance."""
    noise = _pool(kernel, stride, np.eye(len(v)) - np.outer(v, v))
    covariance, mean = sigma**2 * noise.T @ noise, epsilon * _pool(kernel, stride, v)
    return stats.norm.cdf(np.sqrt(mean @ np.linalg.pinv(covariance, rcond=1e-10) @ mean))


def _vector(frequency, phase):
    return np.asarray(nad_jax.dft_direction((LENGTH, 1), (frequency,), phase), np.float64)


@pytest.mark.parametrize("frequency", [0, 1, 2, 4, 5, 7, 8, 10, 11, 12])
def test_the_aliasing_bound_is_the_optimum_of_every_phase(frequency):
    bound = nad_jax.aliasing_bound(KERNEL, STRIDE, LENGTH, frequency, 1.5, 0.8)
    for phase in PHASES[: 1 if frequency in (0, 12) else 2]:
        found = _best(KERNEL, STRIDE, _vector(frequency, phase), 1.5, 0.8)
        assert found == pytest.approx(bound, abs=1e-7)
    turned = nad_jax.aliasing_bound(KERNEL[::-1], STRIDE, LENGTH, -frequency, 1.5, 0.8)
    assert turned == pytest.approx(bound, abs=1e-12)
    assert 0.51 < bound < 0.9999


@pytest.mark.parametrize("frequency", [3, 6, 9])
def test_frequencies_that_are_their_own_alias_depend_on_the_phase(frequency):
    one, other = (_best(KERNEL, STRIDE, _vector(frequency, p), 1.5, 0.8) for p in PHASES)
    assert abs(one - other) > 0.01
    with pytest.raises(InputError, match="is folded onto its own negative"):
        nad_jax.aliasing_bound(KERNEL, STRIDE, LENGTH, frequency)


def test_pooled_samples_of_the_task_are_classified_as_well_as_the_bound_says():
    """By the difference of the class means over the covariance, from 40,000 samples of D(v)."""
    for frequency in (2, 7):
        v = _vector(frequency, "sine")
        bound = nad_jax.aliasing_bound(KERNEL, STRIDE, LENGTH, frequency, 1.5, 0.8)
        x, labels = map(np.asarray, nad_jax.sample_separable(0, v, 80_000, 1.5, 0.8))
        pooled = _pool(KERNEL, STRIDE, x.astype(np.float64))
        train, test, seen = pooled[:40_000], pooled[40_000:], labels[:40_000]
        means = [train[seen == label].mean(0) for label in (0, 1)]
        within = train - np.stack(means)[seen]
        weights = np.linalg.pinv(within.T @ within / len(train)) @ (means[0] - means[1])
        right = ((test - np.mean(means, 0)) @ weights < 0) == labels[40_000:]
        assert abs(right.mean() - bound) < 4 * np.sqrt(bound * (1 - bound) / 40_000)


def test_means_remove_some_frequencies_and_spare_the_constant():
    mean = np.full(STRIDE, 1 / STRIDE)
    # A mean of three removes every third of the circle, 8 of 24.
    assert nad_jax.aliasing_bound(np.full(3, 1 / 3), 2, LENGTH, 8) == 0.5
    assert nad_jax.aliasing_bound(mean, STRIDE, LENGTH, 0) == 1.0
    assert nad_jax.aliasing_bound(mean, STRIDE, LENGTH, 12) == 0.5
    assert nad_jax.aliasing_bound(KERNEL, 1, LENGTH, 5) == 1.0  # nothing is folded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 5}, "stride: must divide length = 24, got 5"),
        ({"stride": 0}, "stride: must be an integer of at least 1"),
        ({"frequency": 13}, "frequency: must be an integer in -12 … 12, got 13"),
        ({"kernel": np.ones(25)}, "kernel: must have 1 … length = 24 entries, got 25"),
        ({"kernel": np.ones((3, 3))}, "kernel: must be real numbers [M]"),
        ({"sigma": 0.0}, "sigma: must be a finite number greater than 0"),
        ({"epsilon": -1.0}, "epsilon: must be a finite number at least 0"),
    ],
)
def test_what_is_no_such_pooling_is_refused(change, message):
    plain = {"kernel": KERNEL, "stride": STRIDE, "length": LENGTH, "frequency": 2}
    with pytest.raises(InputError) as raised:
        nad_jax.aliasing_bound(**{**plain, **change})
    assert str(raised.value).startswith(message)
