import jax
import numpy as np
import pytest
import scipy.fft

from nad_jax import directions
from nad_jax.directions import basis_dft, basis_random
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError
from nad_jax.store import read_directions

SHAPES = [(4, 4, 1), (5, 4, 2), (1, 7, 1), (6, 3, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["pixel", "dft", "dct"])
def test_bases_are_orthogonal_matrices(name, shape):
    basis = getattr(directions, f"basis_{name}")(shape)
    rows = np.asarray(basis.directions if name == "dft" else basis)
    assert rows.shape == (np.prod(shape), np.prod(shape))
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-6)


def test_dft_vectors_concentrate_on_their_frequency():
    shape = (6, 8, 2)
    basis = directions.basis_dft(shape)
    for row, (f_y, f_x), phase, channel in zip(*basis, strict=True):
        spectrum = np.fft.fft2(np.asarray(row).reshape(shape)[..., channel])
        # A cosine has real coefficients, a sine imaginary ones, at ±f and nowhere else.
        here = {(f_y % 6, f_x % 8), (-f_y % 6, -f_x % 8)}
        for index in np.ndindex(6, 8):
            value = spectrum[index]
            assert (abs(value) > 1) == (index in here)
        assert (
            abs(spectrum[f_y % 6, f_x % 8].real if phase else spectrum[f_y % 6, f_x % 8].imag)
            < 1e-4
        )
        assert np.abs(np.asarray(row).reshape(shape)[..., 1 - channel]).max() == 0


def test_dft_has_no_sine_of_a_self_conjugate_frequency():
    basis = directions.basis_dft((4, 4, 1))
    sines = {tuple(f) for f, phase in zip(basis.frequencies, basis.phases, strict=True) if phase}
    assert not sines & {(0, 0), (0, 2), (2, 0), (2, 2)}
    assert len(sines) == 6
    assert list(basis.frequencies[0]) == [0, 0]
    with pytest.raises(InputError, match="self-conjugate"):
        directions.dft_direction((4, 4, 1), (2, 0), "sine")


def test_dct_agrees_with_scipy():
    image = np.random.default_rng(0).normal(size=(5, 6))
    coefficients = np.asarray(directions.basis_dct((5, 6, 1))) @ image.reshape(-1)
    np.testing.assert_allclose(
        coefficients.reshape(5, 6), scipy.fft.dctn(image, norm="ortho"), atol=1e-5
    )


def test_random_directions_are_orthonormal_and_isotropic():
    bases = jax.vmap(lambda key: directions.basis_random(key, 8, 3))(
        jax.random.split(jax.random.key(0), 2000)
    )
    np.testing.assert_allclose(
        np.einsum("nkd,njd->nkj", bases, bases), np.eye(3)[None].repeat(2000, 0), atol=1e-5
    )
    # Haar: each row has mean 0 and covariance I/8; entries of the mean have standard error
    #   √(1/8/2000).
    assert np.abs(bases.mean(0)).max() < 5 * np.sqrt(1 / 8 / 2000)
    second = np.einsum("nkd,nke->kde", bases, bases) / 2000
    assert np.abs(second - np.eye(8) / 8).max() < 5 * np.sqrt(2 / 80 / 2000)
    with pytest.raises(InputError, match="num_directions"):
        directions.basis_random(jax.random.key(0), 3, 4)


def test_completion_keeps_the_given_rows_and_is_orthogonal():
    partial = directions.basis_random(jax.random.key(1), 12, 9)
    full = np.asarray(directions.complete_basis(partial))
    np.testing.assert_array_equal(full[:9], partial)
    np.testing.assert_allclose(full @ full.T, np.eye(12), atol=1e-6)
    with pytest.raises(InputError, match="not orthonormal"):
        directions.complete_basis(partial * 1.1)


def test_published_directions_complete_to_an_orthogonal_matrix(published):
    full = np.asarray(directions.complete_basis(read_directions(published("LeNet_NADs.npy"), 1024)))
    assert full.shape == (1024, 1024)
    np.testing.assert_allclose(full @ full.T, np.eye(1024), atol=1e-4)


def test_images_and_vectors_are_inverse():
    vectors = np.arange(24.0).reshape(2, 12)
    images = directions.to_images(vectors, (2, 3, 2))
    assert images[1, 0, 2, 1] == vectors[1, 5]
    np.testing.assert_array_equal(directions.to_vectors(images), vectors)
    with pytest.raises(InputError, match="last axis 12"):
        directions.to_images(vectors, (2, 3, 1))


def test_an_identity_names_a_direction_up_to_sign_and_rounding():
    rows = np.asarray(basis_dft((8, 8, 1)).directions)
    identities = [directions.direction_identity(row) for row in rows]
    assert len(set(identities)) == 64
    noisy = -rows + 1e-7 * np.random.default_rng(0).standard_normal(rows.shape).astype(np.float32)
    assert [directions.direction_identity(row) for row in noisy] == identities


def test_distinct_directions_keeps_the_first_of_equals():
    rows = (
        np.asarray(basis_dft((4, 4, 1)).directions)[[3, 1, 3, 2, 1]]
        * np.array([1, 1, -1, -1, -1])[:, None]
    )
    assert directions.distinct_directions(rows).tolist() == [0, 1, 3]


def test_more_random_directions_keep_the_first_ones():
    few, many = basis_random(make_key(1), 20, 3), basis_random(make_key(1), 20, 12)
    np.testing.assert_allclose(many[:3], few, atol=1e-5)
