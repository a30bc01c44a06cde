"""The moving signal: its samples and closed forms, and how many samples a network has."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nad_jax import (
    Recipe,
    classify_signal,
    create_patch_network,
    dynamic_signal,
    geometry_evolution,
    sample_dynamic_signal,
    signal_accuracy_bayes,
    signal_accuracy_linear,
    signal_accuracy_threshold,
    train_many,
    with_two_logits,
)
from nad_jax.errors import InputError
from nad_jax.tasks.dynamic_signal import _average, insert_signal, sample_draws
from nad_jax.tasks.separable import noise_key

K, LENGTH = 5, 4
SIGNAL = np.array([0.5, -0.5, 0.1, 0.7])
SIGNAL /= np.linalg.norm(SIGNAL)
MODEL = with_two_logits(create_patch_network("lcn", K, LENGTH))
RECIPE = Recipe("sgd", {"momentum": 0.9}, num_train=64, num_test=32, num_epochs=2, batch_size=16,
                loss_window=2)  # fmt: skip


def _normal(x):
    return scipy.stats.norm.cdf(x)


def test_samples_are_those_of_a_float64_reference_with_the_same_draws():
    draws, labels = sample_draws(3, 50, 2, K * LENGTH), np.arange(50) % 2
    noise, places = np.asarray(draws.noise.train, np.float64), np.asarray(draws.train, np.float64)
    expected = (0.7 * noise).reshape(50, K, LENGTH)
    for number, (place, label) in enumerate(zip(places, labels, strict=True)):
        expected[number, int(K * place)] += (1 - 2 * label) * SIGNAL
    found = insert_signal(draws.noise.train, draws.train, labels, SIGNAL, 0.7)
    np.testing.assert_allclose(found, expected.reshape(50, -1), atol=1e-6)


def test_integer_noise_is_that_of_floating_point():
    noise, labels = np.arange(2 * K * LENGTH).reshape(2, -1) % 5, np.array([0, 1])
    places = np.array([0.3, 0.9])
    found = insert_signal(noise, places, labels, SIGNAL, 0.5)
    np.testing.assert_array_equal(
        found, insert_signal(np.float32(noise), places, labels, SIGNAL, 0.5)
    )
    assert np.abs(found - 0.5 * noise).max() == pytest.approx(np.abs(SIGNAL).max())
    first = insert_signal(noise, np.zeros(2, int), labels, SIGNAL, 0.5)
    assert np.flatnonzero(np.abs(first[0] - 0.5 * noise[0])).tolist() == [0, 1, 2, 3]


def test_places_outside_of_the_unit_interval_are_refused():
    noise, labels = np.zeros((2, K * LENGTH)), np.array([0, 1])
    for wrong in (1.0, 4, -0.1, 1 - 1e-12):  # the last is 1 in single precision
        with pytest.raises(InputError, match=r"^places: must be at least 0 and below 1, got"):
            insert_signal(noise, [0.5, wrong], labels, SIGNAL, 1.0)


def test_the_signal_is_in_every_patch_as_often_and_classes_are_balanced_exactly():
    count = 20_000
    x, labels = sample_dynamic_signal(1, SIGNAL, K, count, sigma=1e-3)
    assert int(labels.sum()) == count // 2
    along = np.asarray(x).reshape(count, K, LENGTH) @ SIGNAL
    assert (np.sign(along[np.arange(count), np.abs(along).argmax(1)]) == 1 - 2 * labels).all()
    for label in (0, 1):
        numbers = np.bincount(np.abs(along).argmax(1)[labels == label], minlength=K)
        assert scipy.stats.chisquare(numbers).pvalue > 0.01


def test_noise_lies_on_all_coordinates_alike():
    count, sigma = 40_000, 2.0
    x, labels = sample_dynamic_signal(2, SIGNAL, K, count, sigma)
    signs = 1 - 2 * np.asarray(labels, np.float64)
    mean = signs @ np.asarray(x, np.float64) / count
    np.testing.assert_allclose(mean, np.tile(SIGNAL, K) / K, atol=5 * sigma / np.sqrt(count))
    signals = np.kron(np.eye(K), np.outer(SIGNAL, SIGNAL)) / K
    covariance = np.asarray(x, np.float64).T @ x / count - signals
    error = 5 * sigma**2 * np.sqrt(2 / count)
    assert np.abs(covariance - sigma**2 * np.eye(K * LENGTH)).max() < error


def test_the_noise_of_a_seed_is_that_of_every_signal_and_sigma():
    task = dynamic_signal()
    data = task.data(MODEL, RECIPE, 4)
    places = np.asarray(sample_draws(noise_key(4), 64, 32, K * LENGTH).train)
    np.testing.assert_array_equal(data.train, places)
    rest = []
    for signal, sigma in ((SIGNAL, 0.5), (np.eye(LENGTH)[0], 2.0)):
        arrays = {"signal": signal.astype(np.float32), "sigma": sigma, "num_samples": 0}
        x, labels = task.sample(data, "train", jnp.arange(64), arrays)
        where = np.eye(K)[(places * K).astype(int)] * (1 - 2 * np.asarray(labels))[:, None]
        rest.append((np.asarray(x) - np.kron(where, signal)) / sigma)
    np.testing.assert_allclose(*rest, atol=2e-6)


@pytest.mark.parametrize(
    ("num_patches", "sigma", "expected"),
    [(10, 10**-0.5, 0.941), (30, 30**-0.5, 0.9988), (10, 0.5, 0.788), (1, 1.0, 0.8413)],
)
def test_the_bayes_accuracy_is_that_of_its_classifier_and_has_the_published_values(
    num_patches, sigma, expected
):
    accuracy, error = signal_accuracy_bayes(num_patches, sigma, 100_000)
    assert accuracy == pytest.approx(expected, abs=5e-4 + 3 * error) and error < 5e-4
    if num_patches == 1:
        assert accuracy == pytest.approx(_normal(1 / sigma), abs=1e-6)
    x, labels = sample_dynamic_signal(5, SIGNAL, num_patches, 40_000, sigma)
    correct = np.asarray(classify_signal(x, SIGNAL, sigma) == labels)
    assert abs(correct.mean() - accuracy) < 3 * np.hypot(error, correct.std() / 200)


def test_the_bayes_classifier_is_the_sign_of_hyperbolic_sines():
    x, _ = sample_dynamic_signal(6, SIGNAL, K, 2000, 0.4)
    along = np.asarray(x, np.float64).reshape(-1, K, LENGTH) @ SIGNAL
    expected = np.sinh(along / 0.4**2).sum(1) <= 0
    np.testing.assert_array_equal(classify_signal(x, SIGNAL, 0.4), expected)


def test_little_noise_does_not_overflow():
    assert signal_accuracy_bayes(10, 1e-3, 1000) == (1.0, 0.0)


def test_no_linear_classifier_beats_the_linear_limit_which_the_mean_filter_reaches():
    rng, sigma = np.random.default_rng(0), 10**-0.5
    limit = signal_accuracy_linear(10, sigma)
    assert limit == pytest.approx(_normal(1.0), abs=1e-6)
    assert signal_accuracy_linear(30, 30**-0.5) == pytest.approx(limit, abs=1e-6)

    def accuracy(filters):  # Φ averaged over where the signal is
        return _normal(filters @ SIGNAL / (sigma * np.linalg.norm(filters))).mean()

    best = np.tile(SIGNAL, (10, 1))
    assert accuracy(best) == pytest.approx(limit, abs=1e-6)
    for size in (0.01, 0.1, 1.0):
        for _ in range(50):
            assert accuracy(best + size * rng.normal(size=best.shape)) < limit
    x, labels = sample_dynamic_signal(7, SIGNAL, 10, 40_000, sigma)
    correct = (np.asarray(x) @ best.ravel() <= 0) == labels
    assert abs(correct.mean() - limit) < 3 * correct.std() / 200


@pytest.mark.parametrize(
    ("num_patches", "expected"),
    [(10, (0.841, 0.914, 0.926, 0.793)), (30, (0.842, 0.991, 0.9965, 0.914))],
)
def test_a_network_that_has_found_the_signal_has_its_closed_form(num_patches, expected):
    sigma = num_patches**-0.5
    x, labels = sample_dynamic_signal(8, SIGNAL, num_patches, 40_000, sigma)
    patches = np.asarray(x).reshape(-1, num_patches, LENGTH)
    model = create_patch_network("cnn", num_patches, LENGTH, threshold=0.0)
    for threshold, published in zip((0.0, 0.25, 0.5, 0.75), expected, strict=True):
        law = num_patches, sigma, threshold, 100_000
        accuracy, error = signal_accuracy_threshold(*law, zeros=0.0)
        assert accuracy == pytest.approx(published, abs=1e-3 + 3 * error)
        accuracy, error = signal_accuracy_threshold(*law)
        scaled = jnp.float32(threshold * num_patches**0.5)
        variables = {"filters": SIGNAL[None].astype(np.float32), "threshold": scaled}
        outputs = np.asarray(model.apply(variables, patches))[:, 0]
        correct = np.where(outputs == 0, 0.5, (outputs < 0) == labels)
        assert abs(correct.mean() - accuracy) < 3 * np.hypot(error, correct.std() / 200)
    linear = signal_accuracy_threshold(num_patches, sigma, 0.0, 100_000)
    assert abs(linear[0] - signal_accuracy_linear(num_patches, sigma)) < 3 * linear[1]


def test_the_accuracy_with_one_patch_and_a_threshold_is_that_of_one_variable():
    expected = (_normal((1 - 0.3) / 0.5) + _normal((1 + 0.3) / 0.5)) / 2
    assert signal_accuracy_threshold(1, 0.5, 0.3, 10)[0] == pytest.approx(expected, abs=1e-6)


def test_the_error_of_a_mean_is_its_standard_error():
    mean, error = _average(lambda others: others[:, 0] ** 2, 3, 0.5, 20_000)
    assert error == pytest.approx(0.25 * np.sqrt(2 / 20_000), rel=0.05)  # of σ² χ²
    assert abs(mean - 0.25) < 4 * error


def test_a_network_of_few_samples_sees_the_first_ones_again_and_again():
    task = dynamic_signal()
    data = task.data(MODEL, RECIPE, 0)
    arrays = {"signal": SIGNAL.astype(np.float32), "sigma": 0.5, "num_samples": 0}
    few = {**arrays, "num_samples": np.float32(6)}
    numbers = jnp.arange(64)
    x, labels = task.sample(data, "train", numbers, arrays)
    again = task.sample(data, "train", numbers, few)
    np.testing.assert_array_equal(again[0], x[np.arange(64) % 6])
    np.testing.assert_array_equal(again[1], labels[np.arange(64) % 6])
    for mine, whole in zip(*(task.sample(data, "test", numbers[:32], a) for a in (few, arrays)),
                           strict=True):  # fmt: skip
        np.testing.assert_array_equal(mine, whole)


def test_a_network_does_not_depend_on_its_company_or_mapping():
    task, seeds = dynamic_signal(), np.array([0, 0, 1])
    arrays = {
        "signal": np.tile(SIGNAL, (3, 1)),
        "sigma": [0.5, 0.25, 0.5],
        "num_samples": [6, 0, 8],
    }
    many = train_many(MODEL, task, seed=seeds, recipe=RECIPE, chunk_size=2, **arrays)
    assert len({*many.train_loss.tolist()}) == 3
    assert many.settings["num_samples"].tolist() == [6, 0, 8]
    for index in range(3):
        own = {n: np.asarray(array)[index : index + 1] for n, array in arrays.items()}
        one = train_many(MODEL, task, seed=seeds[index], recipe=RECIPE, chunk_size=2, **own)
        np.testing.assert_array_equal(one.losses[0], many.losses[index])
    other = train_many(MODEL, task, seed=seeds, recipe=RECIPE, mapping="vectorized", **arrays)
    np.testing.assert_allclose(other.losses, many.losses, atol=2e-5)


def test_bad_input_is_refused_by_name():
    def train(**arrays):
        return train_many(MODEL, dynamic_signal(), recipe=RECIPE, **arrays)

    signal, x = SIGNAL[None], np.zeros((3, K * LENGTH))
    for call, message in [
        (lambda: train(sigma=1.0), "^signal: is needed"),
        (lambda: train(signal=2 * signal), "^signal: row 0 has norm 2, expected 1"),
        (
            lambda: train(signal=np.eye(3)),
            "^signal: its length must divide that of inputs, 20, got",
        ),
        (lambda: train(signal=signal, sigma=-1.0), "^sigma: must be a finite number at least 0"),
        (lambda: train(signal=signal, num_samples=7), "^num_samples: must be even"),
        (lambda: train(signal=signal, num_samples=2.5), "^num_samples: must be an integer"),
        (lambda: train(signal=signal, num_samples=-2), "^num_samples: must be an integer"),
        (lambda: train(signal=signal, num_samples=np.inf), "^num_samples: must be an int.* inf"),
        (lambda: train(signal=signal, num_samples=np.nan), "^num_samples: must be an int.* nan"),
        (lambda: train(signal=signal, num_samples=2j), "^num_samples: must be real numbers"),
        (
            lambda: train(signal=np.tile(SIGNAL, (2, 1)), num_samples=[4, 66]),
            "^num_samples: must be at most num_train = 64 of the recipe, got 66$",
        ),
        (
            lambda: geometry_evolution(
                MODEL,
                dynamic_signal(),
                {"S": np.eye(K * LENGTH)},
                np.zeros((2, K, LENGTH)),
                [0, 1],
                recipe=RECIPE,
                signal=SIGNAL[None].repeat(2, 0),
                num_samples=66,
            ),
            "^num_samples: must be at most num_train = 64 of the recipe, got 66$",
        ),
        (lambda: train(signal=signal, epsilon=1.0), "unknown value 'epsilon'"),
        (lambda: dynamic_signal(loss=3), "^loss: must be a function, got 3"),
        (lambda: sample_dynamic_signal(0, SIGNAL, K, 7), "^num_samples: must be even"),
        (lambda: sample_dynamic_signal(0, SIGNAL, 0, 8), "^num_patches: must be an integer"),
        (lambda: sample_dynamic_signal(0, 2 * SIGNAL, K, 8), "^signal: has norm 2, expected 1"),
        (lambda: classify_signal(x, SIGNAL, 0.0), "^sigma: must be a finite number greater than 0"),
        (lambda: classify_signal(x, np.eye(3)[0]), "^signal: its length must divide"),
        (lambda: signal_accuracy_bayes(0, 1.0), "^num_patches: must be an integer"),
        (
            lambda: signal_accuracy_bayes(2, 1.0, 1),
            "^num_samples: must be an integer of at least 2",
        ),
        (lambda: signal_accuracy_linear(2, 0.0), "^sigma: must be a finite number greater than 0"),
        (lambda: signal_accuracy_threshold(2, 1.0, -0.1), "^threshold: must be a finite number"),
        (lambda: signal_accuracy_threshold(2, 1.0, 0.1, 9, 2.0), "^zeros: must be at most 1"),
        (
            lambda: insert_signal(x, np.zeros(2), np.zeros(3, int), SIGNAL, 1.0),
            r"^places: must be real numbers \[3\]",
        ),
        (
            lambda: insert_signal(x, np.zeros(3), np.zeros(2, int), SIGNAL, 1.0),
            "^labels: must be one for each of the 3 samples",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            call()
