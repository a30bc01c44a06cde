"""Bad arguments of public functions give one `InputError` line that begins with its name; traced
ones pass.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nad_jax as n
from nad_jax.errors import InputError
from nad_jax.tasks.separable import Noise, separate

SHAPE = (4, 4, 1)
EYE = np.eye(16, dtype=np.float32)
NAN = np.full((2, 16), np.nan)
RAGGED = [[1.0, 0.0], [1.0]]
IMAGES = np.random.default_rng(0).random((6, *SHAPE), np.float32)
LABELS = np.arange(6) % 2
DATA = n.ImageData(IMAGES, LABELS, IMAGES, LABELS)
ONE, TWO = n.create_model("mlp", SHAPE), n.create_model("mlp", SHAPE, 2)
RECIPE = n.Recipe(num_train=8, num_test=8, num_epochs=1, batch_size=4, loss_window=2)
ON_IMAGES = n.Recipe(num_train=6, num_test=6, num_epochs=1, batch_size=3, loss_window=2)
NADS = n.NADs(
    EYE,
    np.arange(16.0)[::-1],
    np.zeros(16),
    np.array([1]),
    np.ones(1),
    4,
    {"readout": "marginalized"},
    np.full(16, ""),
)
KEY = jax.random.key(0)
NOISE = n.sample_noise(0, 8, 8, 16)
INCOMPLETE = n.Model(ONE.init, ONE.apply, SHAPE)
ODD = np.triu(np.ones((3, 3)))


def _gradient(function=lambda x: x.reshape(len(x), -1)[:, :2], x=IMAGES[0], readouts=None):
    return n.input_gradient(function, x, readouts)


def _difference(function=lambda x: x.reshape(len(x), -1)[:, :2], x=IMAGES[0], readouts=None):
    return n.central_difference(1.0)(function, x, readouts)


def _train(key=0, direction=EYE[0], epsilon=1.0, sigma=1.0, learning_rate=0.5, noise=NOISE):
    return n.make_train(TWO, RECIPE)(key, direction, epsilon, sigma, learning_rate, noise)


def _train_images(**changes):
    return n.train_many_images(TWO, DATA, recipe=ON_IMAGES, **changes)


CASES = [
    # derivatives
    (lambda: _gradient(function=3), "function: must be a function, got 3"),
    (lambda: _gradient(function=None), "function: must be a function, got None"),
    (
        lambda: _gradient(function=lambda x: x.sum()[None] * 1j),
        r"function(x): must be real numbers [1, F], got shape (1,) of c",
    ),
    (
        lambda: _gradient(function=lambda x: None),
        "function(x): must be real numbers [1, F], got None",
    ),
    (lambda: _gradient(x="a"), "x: must be real numbers [..., D], got 'a'"),
    (lambda: _gradient(x=1.5), "x: must be real numbers [..., D], got shape ()"),
    (lambda: _gradient(x=IMAGES[0] * np.nan), "x: has entries that are not finite"),
    (
        lambda: _gradient(readouts=np.ones((1, 3))),
        "readouts: must be real numbers [R, 2], got shape (1, 3)",
    ),
    (lambda: _difference(function=3), "function: must be a function, got 3"),
    (lambda: _difference(x=IMAGES[:0]), "x: must be real numbers [..., D], got shape (0,"),
    (
        lambda: _difference(readouts=np.ones(2)),
        "readouts: must be real numbers [R, 2], got shape (2,)",
    ),
    (
        lambda: _difference(function=lambda x: x.sum()),
        "function(x): must be real numbers [32, F], got shape ()",
    ),
    # directions
    (lambda: n.to_images(None, SHAPE), "vectors: must be real numbers [..., D], got None"),
    (lambda: n.to_images([1, 2], SHAPE), "vectors: last axis 2 is not"),
    (
        lambda: n.to_images(np.float32(3), SHAPE),
        "vectors: must be real numbers [..., D], got shape ()",
    ),
    (
        lambda: n.to_images(EYE * 1j, SHAPE),
        "vectors: must be real numbers [..., D], got shape (16, 16) of complex",
    ),
    (
        lambda: n.to_vectors(RAGGED),
        "images: must be real numbers [..., H, W, C], got [[1.0, 0.0], [1.0]]",
    ),
    (lambda: n.to_vectors([1, 2]), "images: must be real numbers [..., H, W, C], got shape (2,)"),
    (lambda: n.complete_basis("a"), "directions: must be real numbers [K, D], got 'a'"),
    (lambda: n.complete_basis(KEY), "directions: must be real numbers [K, D], got Array"),
    (lambda: n.complete_basis(NAN), "directions: has entries that are not finite"),
    (
        lambda: n.complete_basis(EYE[:0]),
        "directions: must be real numbers [K, D], got shape (0, 16)",
    ),
    (lambda: n.complete_basis(1e200 * np.eye(3)), "directions: rows are not orthonormal"),
    (
        lambda: n.complete_basis(EYE, "a"),
        "tolerance: must be a finite number at least 0.0, got 'a'",
    ),
    (
        lambda: jax.jit(n.complete_basis)(EYE),
        "directions: must be known while a function is compiled",
    ),
    (
        lambda: n.create_model("lenet", np.arange(900).reshape(30, 30)),
        "image_shape: must be three positive integers",
    ),
    (lambda: n.to_images(EYE, np.array("x")), "image_shape: must be one to four positive integers"),
    (
        lambda: n.to_images(EYE, (1, 1, 1, 4, 4)),
        "image_shape: must be one to four positive integers, (length,), (length, channels), "
        "(height, width, channels) or (time, height, width, channels), got (1, 1, 1, 4, 4)",
    ),
    (lambda: n.basis_dct(()), "image_shape: must be one to four positive integers"),
    (lambda: n.to_images(EYE, (4, 5)), "vectors: last axis 16 is not 4·5 = 20"),
    (
        lambda: n.to_vectors(EYE, (4, 4)),
        "images: must be real numbers [..., 4, 4], got shape (16, 16)",
    ),
    (lambda: n.dft_direction((9, 2), (1, 2)), "frequency: must be one integer, got (1, 2)"),
    (lambda: n.dft_direction((9, 8, 2), 1), "frequency: must be two integers (vertical, horiz"),
    (lambda: n.dft_direction((5, 4, 4, 1), (1, 2)), "frequency: must be 3 integers, got (1, 2)"),
    (lambda: n.dft_direction((8,), 4, "sine"), "frequency: (4,) is self-conjugate on 8 and has"),
    (lambda: n.dft_direction((8,), 1, channel=1), "channel: must be an integer in 0 … 0, got 1"),
    (
        lambda: n.create_model("lenet", (32,)),
        "image_shape: must be three positive integers (height, width, channels), got (32,)",
    ),
    # spectra
    (lambda: n.eigh_dense("a"), "matrix: must be real numbers [D, D], got 'a'"),
    (
        lambda: n.eigh_dense([[1, 1j], [1j, 1]]),
        "matrix: must be real numbers [D, D], got shape (2, 2) of complex",
    ),
    (
        lambda: n.eigh_dense(np.zeros((0, 0))),
        "matrix: must be real numbers [D, D], got shape (0, 0)",
    ),
    (lambda: n.eigh_dense(ODD), "matrix: must be symmetric"),
    (
        lambda: n.eigh_dense(-np.eye(3)),
        "matrix: must be positive semi-definite, but has the eigenvalue -1",
    ),
    (lambda: n.near_degenerate_groups("abc"), "eigenvalues: must be real numbers [K], got 'abc'"),
    (
        lambda: n.near_degenerate_groups(np.ones((2, 2))),
        "eigenvalues: must be real numbers [K], got shape (2, 2)",
    ),
    (
        lambda: n.near_degenerate_groups([1, 2, 3]),
        "eigenvalues: must be descending and not negative",
    ),
    (lambda: n.near_degenerate_groups([3, np.nan]), "eigenvalues: has entries that are not finite"),
    (
        lambda: n.near_degenerate_groups([3, 2], "a"),
        "tolerance: must be a finite number at least 0.0",
    ),
    (lambda: n.singular_values("a"), "eigenvalues: must be real numbers [...], got 'a'"),
    (lambda: n.singular_values([-1.0]), "eigenvalues: must not be negative, got -1"),
    (lambda: n.singular_values([1.0], 0), "num_networks: must be an integer of at least 2, got 0"),
    # records
    (lambda: n.directional_energy(None, EYE), "nads: must be NADs, got NoneType"),
    (
        lambda: n.directional_energy(NADS, [["a"] * 16]),
        "directions: must be real numbers [N, 16], got [['a'",
    ),
    (lambda: n.directional_energy(NADS, NAN), "directions: has entries that are not finite"),
    (
        lambda: n.directional_energy(NADS._replace(eigenvalues=[1]), EYE),
        "nads: eigenvalues: must be real numbers [16]",
    ),
    (
        lambda: n.null_band(n.TrainMetrics(*8 * [0])),
        "nads: must be NADs, got TrainMetrics",
    ),
    (lambda: n.null_band(NADS._replace(config={})), "null_band: belongs to sampled read-outs"),
    (
        lambda: n.null_band(NADS._replace(config={"readout": "sampled", "num_readouts": 1}), -1),
        "trace: must be a finite number at least 0.0, got -1",
    ),
    # subspaces
    (lambda: n.subspace_overlap(EYE, EYE, 3), "sizes: must be a tuple of integers, got 3"),
    (lambda: n.subspace_overlap("a", EYE, (1,)), "left: must be real numbers [K, D], got 'a'"),
    (lambda: n.subspace_overlap(EYE, 2 * EYE, (1,)), "right: row 0 has norm 2, expected 1"),
    (lambda: n.principal_angles(EYE, NAN), "right: has entries that are not finite"),
    (lambda: n.principal_angles(EYE, np.eye(3)), "left, right: must be [K, D] of one D"),
    (
        lambda: n.captured_energy(EYE, np.ones((3, 3))),
        "second_moment: must be real numbers [16, 16], got shape (3, 3)",
    ),
    (lambda: n.captured_energy(EYE, 0 * EYE), "second_moment: must have a positive trace, got 0"),
    (lambda: n.captured_energy(0 * EYE, EYE), "directions: row 0 has norm 0, expected 1"),
    (lambda: n.rank_correlation("ab", "cd"), "left: must be real numbers [B], got 'ab'"),
    (lambda: n.rank_correlation([1, 2], [1, np.nan]), "right: has entries that are not finite"),
    (lambda: n.rank_correlation([1], [1]), "left, right: must be of one length >= 2, got 1 and 1"),
    # separable
    (
        lambda: n.sample_noise(NADS, 2, 2, 4),
        "seed: must be an integer in 0 … 4294967295, or one key as of",
    ),
    (lambda: n.sample_separable(0, "abc", 4), "direction: must be real numbers [D], got 'abc'"),
    (lambda: n.sample_separable(0, 3 * EYE[0], 4), "direction: has norm 3, expected 1"),
    (lambda: n.sample_separable(0, 1e200 * np.eye(2)[0], 4), "direction: has norm inf, expected 1"),
    (
        lambda: n.sample_separable(0, EYE[0], 4, "a"),
        "epsilon: must be a finite number at least 0.0, got 'a'",
    ),
    (
        lambda: n.sample_separable(0, EYE[0], 4, -1.0),
        "epsilon: must be a finite number at least 0.0, got -1.0",
    ),
    (
        lambda: n.sample_separable(0, EYE[0], 4, 1.0, np.inf),
        "sigma: must be a finite number at least 0.0, got inf",
    ),
    (
        lambda: separate(NOISE.train, LABELS, EYE[0], 1.0, 1.0),
        "labels: must be one for each of the 8 samples",
    ),
    (
        lambda: separate(NOISE.train, np.arange(8), EYE[0], 1.0, 1.0),
        "labels: must be in 0 … 1, got 2",
    ),
    (
        lambda: n.bayes_classifier(IMAGES, EYE[0]),
        "x: must be real numbers [B, D], got shape (6, 4, 4, 1)",
    ),
    (lambda: n.bayes_classifier(NAN, EYE[0]), "x: has entries that are not finite"),
    (
        lambda: n.bayes_classifier(EYE, EYE[0][:3]),
        "direction: must be real numbers [16], got shape (3,)",
    ),
    (
        lambda: jax.jit(n.bayes_classifier)(EYE, EYE[0][:3]),
        "direction: must be real numbers [16], got shape (3,)",
    ),
    (lambda: n.competing_accuracy(EYE[0], EYE[0] * 2), "competitor: has norm 2, expected 1"),
    (
        lambda: n.competing_accuracy(EYE[:2], EYE[:3]),
        "competitor: shape (3, 16) does not fit (2, 16)",
    ),
    (
        lambda: n.competing_accuracy("a", EYE[0]),
        "direction: must be real numbers [..., D], got 'a'",
    ),
    (
        lambda: n.competing_accuracy(EYE[0], EYE[0], 1.0, -1.0),
        "sigma: must be a finite number at least 0.0",
    ),
    # interventions
    (lambda: n.flip("a", EYE), "images: must be real numbers [B, H, W, C], got 'a'"),
    (lambda: n.flip(IMAGES, "b"), "directions: must be real numbers [K, D], got 'b'"),
    (
        lambda: n.flip(IMAGES * 1j, EYE),
        "images: must be real numbers [B, H, W, C], got shape (6, 4, 4, 1) of complex",
    ),
    (
        lambda: jax.jit(n.flip)(IMAGES, EYE),
        "directions: must be known while a function is compiled",
    ),
    (
        lambda: n.project_out(IMAGES[:0], EYE[:2]),
        "images: must be real numbers [B, H, W, C], got shape (0, 4, 4, 1)",
    ),
    (lambda: n.project_out(IMAGES, 3), "directions: must be real numbers [K, D], got shape ()"),
    (lambda: n.poison(IMAGES, "ab", EYE[:2], [1, 1]), "labels: must be integers [B], got 'ab'"),
    (
        lambda: n.poison(IMAGES, LABELS, RAGGED, [1, 1]),
        "carriers: must be real numbers [T, D], got [[1.0, 0.0]",
    ),
    (
        lambda: n.poison(IMAGES, LABELS, EYE[:2], [1, np.nan]),
        "coefficients: has entries that are not finite",
    ),
    (
        lambda: jax.jit(n.poison)(IMAGES, LABELS / 1.0, EYE[:2], np.ones(2)),
        "labels: must be integers [B], got shape (6,) of float",
    ),
    (
        lambda: n.set_coefficients(IMAGES, EYE[:6], [1j] * 6),
        "coefficients: must be real numbers [B], got shape (6,) of c",
    ),
    (lambda: n.published_carriers("a", 0, SHAPE), "nads: must be real numbers [K, D], got 'a'"),
    (lambda: n.published_carriers(2 * EYE, 0, SHAPE), "nads: row 0 has norm 2, expected 1"),
    # estimates
    (
        lambda: n.estimate_nads(None, 4),
        "model: must come from create_model, from_linen, from_nnx or from_functions",
    ),
    (lambda: n.estimate_nads(lambda x: x, 4), "model: must come from create_model"),
    (
        lambda: n.estimate_nads(INCOMPLETE, 4),
        "num_logits: must be an integer of at least 1, got None",
    ),
    (lambda: n.estimate_nads(ONE, 4, progress=3), "progress: must be a function, got 3"),
    (lambda: n.estimate_leading_nads("mlp", 4), "model: must come from create_model"),
    (lambda: n.estimate_leading_nads(ONE, 4, progress=3), "progress: must be a function, got 3"),
    # training
    (
        lambda: n.train_many(TWO, "a", recipe=RECIPE),
        "directions: must be real numbers [N, 16], got 'a'",
    ),
    (
        lambda: n.train_many(TWO, RAGGED, recipe=RECIPE),
        "directions: must be real numbers [N, 16], got [[1.0, 0.0]",
    ),
    (lambda: n.train_many(TWO, NAN, recipe=RECIPE), "directions: has entries that are not finite"),
    (
        lambda: n.train_many(TWO, EYE[:2], RAGGED, recipe=RECIPE),
        "epsilon: must be numbers, got [[1.0, 0.0]",
    ),
    (
        lambda: n.train_many(TWO, EYE[:1], recipe=RECIPE, progress=3),
        "progress: must be a function, got 3",
    ),
    (
        lambda: n.make_train_many(TWO, RECIPE)(EYE[:1], snapshots="a"),
        "snapshots: must be Snapshots, got str",
    ),
    (lambda: n.make_train(None), "model: must come from create_model"),
    (lambda: _train(noise=3), "noise: must come from sample_noise, got int"),
    (
        lambda: _train(noise=n.sample_noise(0, 8, 8, 9)),
        "noise: must be real numbers [B, 16], got shape (8, 9)",
    ),
    (lambda: _train(noise=Noise(None, None)), "noise: must be real numbers [B, 16], got None"),
    (lambda: _train(direction=EYE[0][:3]), "direction: must be real numbers [16], got shape (3,)"),
    (lambda: _train(direction=2 * EYE[0]), "direction: has norm 2, expected 1"),
    (lambda: _train(sigma=-1), "sigma: must be a finite number at least 0.0, got -1"),
    (
        lambda: _train(learning_rate=[1.0]),
        "learning_rate: must be a finite number at least 0.0, got [1.0]",
    ),
    # images
    (lambda: _train_images(arrays=3), "arrays: must be a tuple of arrays, got int"),
    (
        lambda: _train_images(arrays=("a",), transform=lambda x, y, a: x),
        "arrays: must be numbers, got 'a'",
    ),
    (lambda: _train_images(transform=3), "transform: must be a function, got 3"),
    (
        lambda: _train_images(transform=lambda x, y: None),
        "transform: must be real numbers [...], got None",
    ),
    (lambda: _train_images(transform=lambda x, y: x @ y[:2]), "transform raised TypeError: "),
    (lambda: _train_images(mean="a"), "mean: must be real numbers [...], got 'a'"),
    (
        lambda: _train_images(std=(1, 2)),
        "std: must be a finite number or one for each of the 1 channels, got (1, 2)",
    ),
    (lambda: _train_images(std=1e-60), "std: must be positive, got 0"),
    (
        lambda: _train_images(learning_rate=RAGGED),
        "learning_rate: must be numbers, got [[1.0, 0.0], [1.0]]",
    ),
    (lambda: _train_images(seed=None), "seed: must be numbers, got None"),
    (
        lambda: n.train_many_images(TWO, DATA._replace(train_images="a")),
        "train_images: must be real numbers [B, 4, 4, 1], got 'a'",
    ),
    (
        lambda: n.train_many_images(TWO, DATA._replace(test_labels=None)),
        "test_labels: must be integers [B], got None",
    ),
    (lambda: n.make_train_images(TWO, ON_IMAGES)(0, 0.1, 3), "data: must be ImageData, got int"),
    (lambda: n.make_train_images(TWO, ON_IMAGES)(0, 0.1), "data: must be ImageData, got NoneType"),
    (
        lambda: n.make_train_images(TWO, ON_IMAGES)(0, -0.1, DATA),
        "learning_rate: must be a finite number at least 0.0",
    ),
    # files
    (lambda: n.load_nads(3), "path: must be a path, got 3"),
    (lambda: n.load_nads("a\0b"), r"path: must be a path, got 'a\x00b'"),
    (lambda: n.read_directions(None), "path: must be a path, got None"),
    (lambda: n.read_directions("\ud800.npy"), r"path: must be a path, got '\ud800.npy'"),
    (
        lambda: n.read_directions("a.npy", "16"),
        "dimension: must be an integer of at least 1, got '16'",
    ),
    (lambda: n.read_cifar10(3), "data_dir: must be a path, got 3"),
    (lambda: n.save_nads(b"x.npz", NADS), "path: must be a path, got b'x.npz'"),
    (lambda: n.save_nads("x.npz", 3), "nads: must be NADs, got int"),
    (
        lambda: n.save_nads("x.npz", NADS._replace(directions=2 * EYE)),
        "nads: direction 0 has norm 2, expected 1",
    ),
    (
        lambda: n.save_nads("x.npz", NADS._replace(eigenvalues=RAGGED)),
        "nads: eigenvalues: must be numbers, got [[",
    ),
    (
        lambda: n.save_nads("x.npz", NADS._replace(config={"a": {1}})),
        "nads: config must be JSON values",
    ),
    (lambda: n.save_nads("x.npz", NADS, extra=[None]), "extra: must be numbers, got [None]"),
    (
        lambda: n.save_nads("x.npz", NADS, config=[1]),
        "config: an array beside the record must have another name",
    ),
    (lambda: n.Snapshots(3, {}, 1.0), "path: must be a path, got 3"),
    (lambda: n.Snapshots("/", {}, 1.0), "path: must end in a name, got '/'"),
    (lambda: n.Snapshots("a", {"a": {1}}, 1.0), "identity: must be JSON values"),
    (lambda: n.Snapshots("a", ["a"], 1.0), "identity: must be JSON values"),
    (lambda: n.Snapshots("a", {"self": 1, 2: n}, 1.0), "identity: must be JSON values"),
    (lambda: n.Snapshots("a", {}, "b"), "seconds: must be a finite number at least 0.0, got 'b'"),
    (lambda: n.Snapshots("a", {}, 1.0, True), "urgent: must be a function, got True"),
    # what is long is shown in one line
    (
        lambda: n.make_key(np.arange(1000)),
        "seed: must be an integer in 0 … 4294967295, got [0, 1, 2",
    ),
    (lambda: n.make_train(TWO, np.ones((9, 9))), "recipe: must be a Recipe, got ndarray"),
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_bad_arguments_are_named(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, beginning = CASES[number]
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert message.startswith(beginning), message
    assert "\n" not in message and len(message) < 400
    assert not list(tmp_path.iterdir())


def test_lists_are_arrays():
    rows, images = EYE.tolist(), IMAGES.tolist()
    np.testing.assert_array_equal(n.to_images(rows, SHAPE), n.to_images(EYE, SHAPE))
    np.testing.assert_array_equal(n.to_vectors(images), n.to_vectors(IMAGES.astype(float)))
    np.testing.assert_array_equal(
        n.bayes_classifier(rows, rows[0]), n.bayes_classifier(EYE, EYE[0])
    )
    np.testing.assert_array_equal(
        n.competing_accuracy(rows, rows[0]), n.competing_accuracy(EYE, EYE[0])
    )
    np.testing.assert_array_equal(n.flip(images, rows), n.flip(IMAGES, EYE))
    np.testing.assert_array_equal(
        n.poison(images, LABELS.tolist(), rows[:2], [1, 2]),
        n.poison(IMAGES, LABELS, EYE[:2], np.array([1.0, 2.0])),
    )
    readouts = [[1.0, 2.0]]
    for derivative in (_gradient, _difference):
        np.testing.assert_array_equal(
            derivative(x=images[0], readouts=readouts), derivative(readouts=jnp.array(readouts))
        )
    for one, other in zip(
        _train(direction=rows[0])[1], _train(noise=Noise(*map(np.asarray, NOISE)))[1], strict=True
    ):
        np.testing.assert_array_equal(one, other)
    train = n.make_train_images(TWO, ON_IMAGES)
    for one, other in zip(
        train(0, 0.1, DATA)[1], train(0, 0.1, jax.tree.map(jnp.asarray, DATA))[1], strict=True
    ):
        np.testing.assert_array_equal(one, other)


TRACED = {
    "sample_separable": (lambda v, e: n.sample_separable(0, v, 4, e, e)[0], EYE, np.arange(16.0)),
    "separate": (lambda v, e: separate(NOISE.train, jnp.arange(8) % 2, v, e, e), EYE, np.arange(16.0)),
    "bayes_classifier": (lambda v: n.bayes_classifier(NOISE.train, v), EYE),
    "competing_accuracy": (lambda v, u, e: n.competing_accuracy(v, u, e, 1.0), EYE, EYE[::-1], np.arange(16.0)),
    "set_coefficients": (
        lambda x, v, c: n.set_coefficients(x, v, [c, c, c]), IMAGES.reshape(2, 3, *SHAPE), EYE[:6].reshape(2, 3, 16),
        np.arange(2.0),
    ),
    "poison": (
        lambda x, y, c: n.poison(x, y, EYE[:2], jnp.stack([c, -c])), IMAGES.reshape(2, 3, *SHAPE), LABELS.reshape(2, 3),
        np.arange(2.0),
    ),
    "flip": (lambda x: n.flip(x, EYE), IMAGES.reshape(2, 3, *SHAPE)),
    "project_out": (lambda x: n.project_out(x, EYE[:3]), IMAGES.reshape(2, 3, *SHAPE)),
    "to_images": (lambda v: n.to_images(v, SHAPE), EYE),
    "to_vectors": (n.to_vectors, IMAGES),
    "central_difference": (lambda x, r: _difference(x=x, readouts=r[None]), IMAGES, np.arange(12.0).reshape(6, 2)),
    "input_gradient": (lambda x, r: _gradient(x=x, readouts=r[None]), IMAGES, np.arange(12.0).reshape(6, 2)),
    "train": (lambda v, e: _train(direction=v, epsilon=e, learning_rate=e)[1].losses, EYE[:2], np.arange(2.0)),
    "train of images": (
        lambda e, x: n.make_train_images(TWO, ON_IMAGES)(0, e, DATA._replace(train_images=x))[1].losses,
        np.arange(2.0), IMAGES[None].repeat(2, 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRACED)
def test_traced_arguments_pass(name):
    function, *args = TRACED[name]
    each = [function(*(array[index] for array in args)) for index in range(len(args[0]))]
    for mapped in (jax.vmap(function), jax.jit(jax.vmap(function))):
        np.testing.assert_allclose(mapped(*map(jnp.asarray, args)), np.stack(each), atol=1e-5)


def test_checks_add_nothing_to_a_compiled_program():
    equations = jax.make_jaxpr(n.bayes_classifier)(EYE, EYE[0]).eqns
    assert [equation.primitive.name for equation in equations] == [
        "dot_general",
        "le",
        "convert_element_type",
    ]
