import jax
import numpy as np
import pytest
import scipy.fft
from matplotlib.text import Text

from nad_jax import directions
from nad_jax.directions import basis_dft, basis_random
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError
from nad_jax.plotting import plot_directions
from nad_jax.records import read_directions

SHAPES = [(4, 4, 1), (5, 4, 2), (1, 7, 1), (6, 3, 3), (9,), (8, 3), (4, 3, 2, 2)]


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


def test_dft_vectors_of_volumes_concentrate_on_their_frequency():
    shape = (3, 4, 2)
    basis = directions.basis_dft((*shape, 1))
    for row, frequency, phase in zip(
        basis.directions, basis.frequencies, basis.phases, strict=True
    ):
        spectrum = np.fft.fftn(np.asarray(row).reshape(shape))
        here = {tuple(sign * frequency % shape) for sign in (1, -1)}
        assert {tuple(index) for index in np.argwhere(np.abs(spectrum) > 1)} == here
        assert np.abs(spectrum.real if phase else spectrum.imag).max() < 1e-4
    lengths = (basis.frequencies**2).sum(1)
    assert (np.diff(lengths) >= 0).all() and lengths[0] == 0


def test_a_vector_is_a_signal_of_one_channel_and_an_image_of_one_row():
    vector, signal, image = map(directions.basis_dft, ((7,), (7, 1), (1, 7, 1)))
    for other in (signal, image):
        np.testing.assert_array_equal(other.directions, vector.directions)
        np.testing.assert_array_equal(other.frequencies[:, -1:], vector.frequencies)
    np.testing.assert_array_equal(directions.basis_dct((7,)), directions.basis_dct((1, 7, 1)))
    np.testing.assert_array_equal(
        directions.dft_direction((7,), 2, "sine"),
        directions.dft_direction((1, 7, 1), (0, 2), "sine"),
    )


def test_dft_has_no_sine_of_a_self_conjugate_frequency():
    basis = directions.basis_dft((4, 4, 1))
    sines = {tuple(f) for f, phase in zip(basis.frequencies, basis.phases, strict=True) if phase}
    assert not sines & {(0, 0), (0, 2), (2, 0), (2, 2)}
    assert len(sines) == 6
    assert list(basis.frequencies[0]) == [0, 0]
    with pytest.raises(InputError, match="self-conjugate"):
        directions.dft_direction((4, 4, 1), (2, 0), "sine")


@pytest.mark.parametrize("lengths", [(5, 6), (7,), (4, 3, 5)])
def test_dct_agrees_with_scipy(lengths):
    entries = np.random.default_rng(0).normal(size=lengths)
    coefficients = np.asarray(directions.basis_dct((*lengths, 1))) @ entries.reshape(-1)
    np.testing.assert_allclose(
        coefficients.reshape(lengths), scipy.fft.dctn(entries, norm="ortho"), atol=1e-5
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


@pytest.mark.parametrize("shape", [(12,), (6, 2), (1, 3, 2, 2)])
def test_inputs_of_any_shape_and_vectors_are_inverse(shape):
    vectors = np.arange(24.0).reshape(2, 12)
    inputs = directions.to_images(vectors, shape)
    assert inputs.shape == (2, *shape) and inputs[1].reshape(-1)[7] == vectors[1, 7]
    np.testing.assert_array_equal(directions.to_vectors(inputs, shape), vectors)


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


@pytest.mark.parametrize("shape", [(9,), (8, 3), (5, 4, 2), (5, 4, 3, 1)])
def test_directions_are_drawn_as_what_they_are(shape):
    rows = np.asarray(basis_random(make_key(1), int(np.prod(shape)), 5))
    figure = plot_directions(rows, shape, "title", tuple("abcde"))
    panels = np.reshape(figure.axes[:10], (5, 2))  # behind them may be color bars
    for index, (entries, fourier) in enumerate(panels):
        drawn = rows[index].reshape(shape)
        if len(shape) < 3:
            lines = [line.get_ydata() for line in entries.lines]
            lines = np.stack([line for line in lines if len(line) == shape[0]], -1)  # without 0
            np.testing.assert_array_equal(lines, drawn.reshape(lines.shape))
            energy = fourier.lines[0].get_ydata()
        else:
            drawn = drawn[2] if len(shape) == 4 else drawn  # the middle slice of five
            tiled = np.concatenate([*np.moveaxis(drawn, -1, 0)], 1)
            np.testing.assert_array_equal(entries.images[0].get_array(), tiled)
            energy = fourier.images[0].get_array()
        # Parseval.
        spatial = energy.size
        np.testing.assert_allclose(energy.sum(), spatial * (drawn**2).sum(), rtol=1e-5)
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert {f"$u_{{{index}}}$  {label}" for index, label in enumerate("abcde")} <= set(texts)
    assert any("iddle slices" in text for text in texts) == (len(shape) == 4)
