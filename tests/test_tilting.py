"""Deviation angle and adversarial strength, against means of samples and closed forms."""

import numpy as np
import pytest
import scipy.stats

from nad_jax import adversarial_strength, competing_accuracy, deviation_angle, tilted_accuracy
from nad_jax.errors import InputError

RNG = np.random.default_rng(0)


def test_the_strength_is_how_much_closer_samples_are_to_the_boundary():
    """Half the distance of the means over the mean distance from a random boundary."""
    normal = RNG.normal(size=30)
    normal /= np.linalg.norm(normal)
    classes = [RNG.normal(size=(200, 30)) + shift * normal for shift in (1.5, -0.5)]
    first, second = (samples.mean(0) for samples in classes)
    signed = [(samples @ normal - 0.3).mean() for samples in classes]
    distance = (signed[0] - signed[1]) / 2
    strength = adversarial_strength(normal, first - second)
    assert strength == pytest.approx(np.linalg.norm(first - second) / 2 / distance, rel=1e-12)
    assert strength == pytest.approx(1 / np.cos(deviation_angle(5 * normal, first - second)))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.4, np.pi / 2, 3.0, np.pi])
def test_an_angle_of_a_plane_is_found_without_cancellation(angle):
    first, second = np.linalg.qr(RNG.normal(size=(9, 2)))[0].T
    normals = np.stack([first, np.cos(angle) * first + np.sin(angle) * second])
    np.testing.assert_allclose(deviation_angle(3 * normals, first), [0, angle], atol=1e-15)


@pytest.mark.parametrize("radius", [0.0, 0.3, 1.5])
def test_accuracy_and_angle_are_one_to_one_on_separable_distributions(radius):
    epsilon, sigma, angles = 0.7, 1.3, np.array([0.2, 0.9, 1.4])
    expected = scipy.stats.norm.cdf((epsilon / np.tan(angles) - radius / np.sin(angles)) / sigma)
    found = tilted_accuracy(angles, epsilon, sigma, radius)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    first, second = np.eye(2)
    u = np.cos(angles)[:, None] * first + np.sin(angles)[:, None] * second
    if radius == 0:
        plain = competing_accuracy(np.broadcast_to(first, (3, 2)), u, epsilon, sigma)
        np.testing.assert_allclose(found, plain, atol=1e-6)


def test_without_noise_along_the_normal_the_radius_alone_decides():
    np.testing.assert_array_equal(tilted_accuracy(0.0, 1.0, 3.0, [0.5, 1.0, 2.0]), [1, 0.5, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: deviation_angle(np.zeros(3), np.ones(3)), "^normal: must not be zero"),
        (lambda: deviation_angle(np.ones(3), np.zeros(3)), "^difference: must not be zero"),
        (lambda: deviation_angle(np.ones(3), np.ones(2)), r"^difference: must be real numbers"),
        (lambda: deviation_angle(np.ones((2, 3)), np.ones((4, 3))), r"^difference: shape \(4, 3\)"),
        (lambda: tilted_accuracy(-0.1), "^angle: must be in radians"),
        (lambda: tilted_accuracy([0.1, 3.15]), r"^angle: must be in radians in \[0, π\]"),
        (
            lambda: tilted_accuracy([0.1, 0.2], [1, 2, 3]),
            r"^angle: shape \(2,\) does not fit those .*, \(3,\), \(\), \(\)",
        ),
        (lambda: tilted_accuracy(0.1, radius=-1.0), "^radius: must be at least 0"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(InputError, match=message):
        call()
