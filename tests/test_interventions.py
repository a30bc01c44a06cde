"""Interventions against float64 references, their inverses, and what they leave alone."""

import jax
import numpy as np
import pytest

from nad_jax import (
    basis_random,
    flip,
    make_key,
    poison,
    project_out,
    published_carriers,
    set_coefficients,
)
from nad_jax.errors import InputError

SHAPE = (6, 5, 3)  # height, width, channels


def _images(count=7, shape=SHAPE):
    return np.random.default_rng(0).random((count, *shape), np.float32)


def _basis(dimension, count=None):
    return np.asarray(basis_random(make_key(3), dimension, count))


def _channels(images):
    """[B, C, H·W] in float64."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), images.shape[3], -1).astype(np.float64)


def test_poison_sets_the_coefficient_of_each_class_and_nothing_else():
    images, labels = _images(), np.array([0, 1, 2, 3, 3, 1, 0])
    carriers, coefficients = _basis(90, 4), np.array([0.5, -0.05, 3.0, -2.0], np.float32)
    poisoned = np.asarray(poison(images, labels, carriers, coefficients))
    x, v = images.reshape(7, -1).astype(np.float64), carriers[labels].astype(np.float64)
    along = (x * v).sum(1)
    expected = x + (coefficients[labels] - along)[:, None] * v
    np.testing.assert_allclose(poisoned.reshape(7, -1), expected, atol=1e-6)
    changed = poisoned.reshape(7, -1).astype(np.float64)
    np.testing.assert_allclose((changed * v).sum(1), coefficients[labels], atol=2e-6)
    rest = changed - (changed * v).sum(1)[:, None] * v
    np.testing.assert_allclose(rest, x - along[:, None] * v, atol=1e-6)
    restored = set_coefficients(poisoned, carriers[labels], along.astype(np.float32))
    np.testing.assert_allclose(restored, images, atol=2e-6)


def test_a_zero_carrier_changes_no_bit():
    images = _images()
    poisoned = poison(
        images, np.zeros(7, int), np.zeros((1, 90), np.float32), np.zeros(1, np.float32)
    )
    np.testing.assert_array_equal(poisoned, images)


def test_carriers_are_the_published_ones():
    nads = _basis(30, 12)
    carriers, signs = published_carriers(nads, 10, SHAPE)
    assert carriers.shape == (10, 90) and signs.dtype == np.float32
    published = [  # class, NAD, channel, sign
        (0, 10, 0, -1), (1, 10, 1, 1), (2, 10, 2, -1), (3, 10, 0, 1), (4, 10, 1, -1), (5, 10, 2, 1),
        (6, 11, 0, -1), (7, 11, 1, 1), (8, 11, 2, -1), (9, 11, 0, 1),
    ]  # fmt: skip
    for t, nad, channel, sign in published:
        image = carriers[t].reshape(SHAPE)
        np.testing.assert_array_equal(image[..., channel].reshape(-1), nads[nad])
        assert np.abs(np.delete(image, channel, 2)).max() == 0 and signs[t] == sign


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("num_classes", [2, 7, 25])
def test_no_two_classes_have_the_same_carrier_and_sign(channels, num_classes):
    carriers, signs = published_carriers(_basis(30), 2, (6, 5, channels), num_classes)
    products = carriers @ carriers.T * np.outer(signs, signs)
    off_diagonal = products - np.eye(num_classes)
    assert off_diagonal.max() < 1e-5  # orthogonal, or opposite
    np.testing.assert_allclose(np.diag(products), 1, atol=1e-5)


@pytest.mark.parametrize("count", [30, 29, 4])
def test_flip_of_every_channel_is_its_float64_reference_and_its_own_inverse(count):
    images, directions = _images(), _basis(30, count)
    flipped = np.asarray(flip(images, directions))
    np.testing.assert_allclose(flip(flipped, directions), images, atol=1e-5)
    np.testing.assert_allclose((flipped**2).sum(), (images**2).sum(), rtol=1e-5)
    if count == 4:  # the completion is arbitrary, but not where the leading coefficients go
        inside = _images_along(directions[1])
        np.testing.assert_allclose(
            _channels(np.asarray(flip(inside, directions))) @ directions.T, 0, atol=1e-5
        )
        return
    basis = directions.astype(np.float64)
    if count == 29:  # the missing one is determined, up to its sign
        missing = np.linalg.svd(basis)[2][-1:]
        images_of_it = np.asarray(flip(_images_along(missing[0]), directions), np.float64)
        missing *= np.sign(images_of_it.transpose(0, 3, 1, 2).reshape(-1, 30)[0] @ basis[0])
        basis = np.concatenate([basis, missing])
    expected = _channels(images) @ basis.T[:, ::-1] @ basis
    np.testing.assert_allclose(_channels(flipped), expected, atol=1e-5)


def _images_along(direction):
    """One image that is this direction in every channel."""
    return np.repeat(direction.astype(np.float32).reshape(1, 6, 5, 1), 3, axis=3)


def test_flip_of_whole_images_reverses_all_their_coefficients():
    images, directions = _images(), _basis(90)
    flipped = np.asarray(flip(images, directions)).reshape(7, -1)
    np.testing.assert_allclose(
        flipped @ directions.T, (images.reshape(7, -1) @ directions.T)[:, ::-1], atol=1e-5
    )


def test_flip_at_the_published_size_is_its_own_inverse(published):
    directions = np.load(published("LeNet_NADs.npy"), allow_pickle=False)
    images = _images(20, (32, 32, 3))
    assert np.abs(np.asarray(flip(flip(images, directions), directions)) - images).max() < 1e-5


@pytest.mark.parametrize("dimension", [30, 90])
def test_project_out_removes_the_subspace_and_nothing_else(dimension):
    images, directions = _images(), _basis(dimension, 5)
    rest = np.asarray(project_out(images, directions))
    rows = (
        (lambda x: _channels(x))
        if dimension == 30
        else (lambda x: x.reshape(7, 1, -1).astype(np.float64))
    )
    v = directions.astype(np.float64)
    np.testing.assert_allclose(rows(rest) @ v.T, 0, atol=2e-6)
    np.testing.assert_allclose(rows(rest), rows(images) - rows(images) @ v.T @ v, atol=1e-6)
    np.testing.assert_allclose(project_out(rest, directions), rest, atol=1e-6)


def test_interventions_can_be_compiled():
    images, directions = _images(), _basis(30, 7)
    for intervention in (flip, project_out):
        compiled = jax.jit(lambda x, intervention=intervention: intervention(x, directions))(images)
        np.testing.assert_allclose(compiled, intervention(images, directions), atol=1e-6)
    labels, carriers, coefficients = [0, 1, 2, 3, 3, 1, 0], _basis(90, 4), np.ones(4, np.float32)
    compiled = jax.jit(poison)(images, np.array(labels), carriers, coefficients)
    np.testing.assert_allclose(compiled, poison(images, labels, carriers, coefficients), atol=1e-6)


@pytest.mark.parametrize("shape", [(90,), (30, 3), (2, 3, 5, 3)])
def test_inputs_of_any_shape_are_changed_like_images_of_the_same_entries(shape):
    images, labels, carriers = _images(), np.arange(7) % 4, _basis(90, 4)
    other, whole = images.reshape(7, *shape), _basis(90)

    def same(function):
        np.testing.assert_array_equal(function(other), function(images).reshape(other.shape))

    same(lambda x: poison(x, labels, carriers, np.ones(4)))
    same(lambda x: flip(x, whole))
    same(lambda x: project_out(x, whole[:9]))
    if len(shape) > 1:  # a vector has no channels that could be changed alike
        same(lambda x: flip(x, _basis(30)))
        same(lambda x: project_out(x, _basis(30)[:9]))
    else:
        with pytest.raises(InputError, match=r"images 90 need D = 90 .* got 30"):
            flip(other, _basis(30))


def test_bad_input_is_named():
    images, labels, carriers = _images(), np.zeros(7, int), _basis(90, 4)
    for call, message in [
        (
            lambda: flip((255 * images).astype(np.uint8), _basis(30)),
            r"images: must be real.*of uint8 \(divide",
        ),
        (lambda: flip(images[0], _basis(30)), r"images 5x3 need D = 5 .* or 15, got 30"),
        (lambda: flip(images[0, 0, 0], _basis(30)), r"images: must be real numbers \[B, H, W, C\]"),
        (
            lambda: flip(images, _basis(31)),
            r"images 6x5x3 need D = 30 \(each channel alike\) or 90, got 31",
        ),
        (lambda: flip(images, 2 * _basis(30)), "rows are not orthonormal"),
        (lambda: project_out(images, np.ones((2, 30))), "rows are not orthonormal"),
        (
            lambda: poison(images, labels[:3], carriers, np.ones(4)),
            "labels: must be one for each of the 7 images",
        ),
        (
            lambda: poison(images, labels, carriers, np.ones(3)),
            r"carriers, coefficients: must be \[T, 90\] and \[T\]",
        ),
        (
            lambda: set_coefficients(images, carriers, np.ones(4)),
            r"directions, coefficients: must be \(7, 90\)",
        ),
        (lambda: poison(images, labels + 0.5, carriers, np.ones(4)), "labels: must be integers"),
        (
            lambda: poison(images, labels + 4, carriers, np.ones(4)),
            r"labels: must be in 0 … 3.*got 4",
        ),
        (
            lambda: poison(images, labels, 2 * carriers, np.ones(4)),
            "carriers: row 0 has norm 2, expected 1",
        ),
        (
            lambda: set_coefficients(images, images.reshape(7, -1), np.ones(7)),
            "directions: row 0 has norm",
        ),
        (
            lambda: published_carriers(_basis(30), 0, (6, 5)),
            "image_shape: must be three positive integers",
        ),
        (
            lambda: published_carriers(carriers, 0, SHAPE),
            r"nads: must be directions of one 6x5 channel \[K, 30\]",
        ),
        (
            lambda: published_carriers(_basis(30, 5), 4, SHAPE),
            r"index: must be .* in 0 … 3, got 4 \(10 classes use 2 NADs",
        ),
        (
            lambda: published_carriers(_basis(30, 1), 0, SHAPE),
            "10 classes in 3 channels need 2 NADs, got 1",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            call()
