"""Closed forms of the geometry of score networks, and how data are turned along it."""

import numpy as np
import pytest

import nad_jax
from nad_jax import InputError, score_closed_forms

rng = np.random.default_rng(0)


def moment(size):
    half = rng.normal(size=(size, size + 2))
    return half @ half.T


@pytest.mark.parametrize(("patch", "tokens", "rank", "zero"), [(2, 64, 11, 212), (4, 16, 7, 144)])
def test_most_eigenvalues_of_the_dit_at_the_origin_are_zero(patch, tokens, rank, zero):
    geometry = nad_jax.dit_geometry((16, 16, 1), patch)
    values = np.linalg.eigvalsh(geometry)
    assert np.sum(values <= 1e-6 * values[-1]) == zero
    (gram,) = nad_jax.split_tokens(geometry, (16, 16, 1), patch).parts
    assert gram.shape == (tokens, tokens)
    assert np.linalg.matrix_rank(gram, 1e-6 * np.linalg.norm(gram, 2), hermitian=True) == rank


def test_geometries_are_split_into_what_they_were_made_of():
    own, shared = moment(6), moment(6)
    cases = (
        (score_closed_forms.dense_geometry(2.0, -0.1, 7), nad_jax.split_dense, (2.0, -0.1)),
        (
            score_closed_forms.channel_geometry(own, shared, 3),
            lambda g: nad_jax.split_channels(g, 3),
            (own, shared),
        ),
        (
            score_closed_forms.token_geometry(own, (4, 6, 2), 2),
            lambda g: nad_jax.split_tokens(g, (4, 6, 2), 2),
            (own,),
        ),
    )
    for geometry, split, parts in cases:
        found = split(geometry)
        assert found.residual < 1e-14
        for one, expected in zip(found.parts, parts, strict=True):
            np.testing.assert_allclose(one, expected, atol=1e-12)
        # Of what is not of the family, the nearest one: what is left is orthogonal to it.
        other = moment(len(geometry))
        found = split(other)
        assert found.residual > 0.1
        assert abs(np.sum(found.matrix * (other - found.matrix))) < 1e-9 * np.sum(other**2)


def test_token_geometries_have_an_eigenvalue_for_each_token_at_most():
    values = np.linalg.eigvalsh(score_closed_forms.token_geometry(moment(6), (4, 6, 2), 2))
    np.testing.assert_allclose(values.reshape(6, 8), values.reshape(6, 8)[:, :1] + np.zeros((1, 8)))


def test_numbers_of_a_token_are_the_pixels_of_its_patch():
    order = score_closed_forms.token_order((4, 4, 1), 2)
    assert order.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_alignment_is_the_mean_energy_of_turned_data():
    geometry, data = moment(5), rng.normal(size=(40, 5))
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    turned = data @ rotation.T
    expected = np.mean(np.einsum("ni,ij,nj->n", turned, geometry, turned))
    found = nad_jax.alignment(geometry, data.T @ data / 40, rotation)
    np.testing.assert_allclose(found, expected)


def test_no_rotation_is_aligned_better_or_worse_than_the_two_of_the_theorem():
    geometry, second = moment(5), moment(5)
    best, worst = (nad_jax.align(geometry, second, reverse) for reverse in (False, True))
    most, least = (nad_jax.alignment(geometry, second, one) for one in (best, worst))
    ours, theirs = np.linalg.eigvalsh(geometry), np.linalg.eigvalsh(second)
    np.testing.assert_allclose([most, least], [ours @ theirs, ours @ theirs[::-1]])
    np.testing.assert_allclose(worst @ worst.T, np.eye(5), atol=1e-12)
    for _ in range(200):
        rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
        assert least < nad_jax.alignment(geometry, second, rotation) < most


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nad_jax.dit_geometry((16, 16, 1), 3), "patch: must divide 16 and 16, got 3"),
        (lambda: nad_jax.dit_geometry(width=6), "width: must be a multiple of 4, got 6"),
        (lambda: nad_jax.align(np.eye(3), np.eye(4)), "second_moment: must be"),
        (lambda: nad_jax.align(np.triu(np.ones((3, 3))), np.eye(3)), "geometry: must be symmetric"),
        (lambda: nad_jax.split_channels(np.eye(4), 3), "num_channels: must divide D = 4, got 3"),
        (lambda: nad_jax.split_tokens(np.eye(4), (4, 4, 1), 2), "geometry: must be"),
        (lambda: nad_jax.split_dense(np.ones((2, 3))), "geometry: must be"),
        (lambda: nad_jax.split_dense(np.triu(np.ones((3, 3)))), "geometry: must be symmetric"),
        (lambda: nad_jax.alignment(np.eye(2), -np.eye(2)), "second_moment: .* negative"),
        (lambda: nad_jax.alignment(np.eye(2), np.eye(2), 2 * np.eye(2)), "rotation: .* orthogonal"),
        (lambda: nad_jax.alignment(np.eye(3), np.eye(3), np.eye(2)), "rotation: must be"),
    ],
)
def test_bad_matrices_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
