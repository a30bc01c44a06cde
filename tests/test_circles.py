"""The circles and labels along a direction, against float64 references and closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nad_jax import (
    Recipe,
    affine_accuracy,
    along_direction,
    basis_random,
    circles,
    classify_radius,
    create_model,
    label_along,
    label_median,
    observers,
    sample_circles,
    sample_noise,
    train_many,
)
from nad_jax.errors import InputError
from nad_jax.tasks.along import spread_along
from nad_jax.tasks.circles import encircle
from nad_jax.tasks.separable import noise_key

D = 16
SHAPE = (4, 4, 1)
BASIS = np.asarray(basis_random(3, D))
MODEL = create_model("mlp", SHAPE, 2, width=8)
RECIPE = Recipe("sgd", {"momentum": 0.9}, num_train=64, num_test=32, num_epochs=2, batch_size=16,
                loss_window=2)  # fmt: skip


def _coordinates(x, *rows):
    return np.asarray(x, np.float64) @ np.asarray(rows, np.float64).T


def test_every_sample_lies_on_the_circle_of_its_label():
    x, labels = sample_circles(0, BASIS[0], BASIS[1], 5000, (1.5, 0.25), sigma=3.0)
    radius = np.linalg.norm(_coordinates(x, BASIS[0], BASIS[1]), axis=1)
    np.testing.assert_allclose(radius, np.where(labels == 0, 1.5, 0.25), atol=4e-6)
    assert int(labels.sum()) == 2500


def test_angles_are_uniform_in_both_classes():
    x, labels = sample_circles(1, BASIS[0], BASIS[1], 8000)
    a, b = _coordinates(x, BASIS[0], BASIS[1]).T
    for label in (0, 1):
        share = np.arctan2(b, a)[labels == label] / (2 * np.pi) + 0.5
        assert scipy.stats.kstest(share, "uniform").pvalue > 0.01


def test_the_complement_is_filled_evenly_and_says_nothing_of_label_and_angle():
    count, sigma = 40_000, 2.0
    x, labels = sample_circles(2, BASIS[0], BASIS[1], count, sigma=sigma)
    plane = BASIS[:2].astype(np.float64)
    inside = _coordinates(x, *plane)
    noise = np.asarray(x, np.float64) - inside @ plane
    expected = sigma**2 * (np.eye(D) - plane.T @ plane)
    assert np.abs(noise.T @ noise / count - expected).max() < 5 * sigma**2 * np.sqrt(2 / count)
    signs = 1 - 2 * np.asarray(labels)
    for known in (signs, *(inside / np.linalg.norm(inside, axis=1)[:, None]).T):
        assert np.abs(known @ noise / count).max() < 5 * sigma / np.sqrt(count)


def test_samples_are_those_of_a_float64_reference_with_the_same_noise():
    noise = np.asarray(sample_noise(4, 50, 2, D).train)
    labels, (u, v), n = np.arange(50) % 2, BASIS[:2].astype(np.float64), noise.astype(np.float64)
    a, b = n @ u, n @ v
    expected = 0.7 * (n - np.outer(a, u) - np.outer(b, v))
    scale = np.where(labels == 0, 2.0, 0.5) / np.sqrt(a**2 + b**2)
    expected += np.outer(scale * a, u) + np.outer(scale * b, v)
    found = encircle(noise, labels, BASIS[0], BASIS[1], (2.0, 0.5), 0.7)
    np.testing.assert_allclose(found, expected, atol=3e-6)


def test_samples_depend_on_the_plane_alone_not_on_its_basis():
    noise, labels = sample_noise(4, 50, 2, D).train, np.arange(50) % 2
    turned = [0.6 * BASIS[0] + 0.8 * BASIS[1], 0.8 * BASIS[0] - 0.6 * BASIS[1]]
    found = [encircle(noise, labels, *rows) for rows in (BASIS[:2], turned)]
    np.testing.assert_allclose(*found, atol=3e-6)


def test_the_radius_never_errs_and_hyperplanes_have_their_closed_form():
    count = 20_000
    x, labels = sample_circles(5, BASIS[0], BASIS[1], count, sigma=2.0)
    np.testing.assert_array_equal(classify_radius(x, BASIS[0], BASIS[1]), labels)
    error = 4 * np.sqrt(0.25 / count)
    for row in (BASIS[0], BASIS[5], 0.6 * BASIS[1] + 0.8 * BASIS[2]):
        accuracy = np.mean((_coordinates(x, row)[:, 0] <= 0) == labels)
        assert abs(accuracy - 0.5) < error
    best = affine_accuracy()
    assert best == pytest.approx(0.5 + np.arccos(1 / 6) / (2 * np.pi))
    along = np.sort(_coordinates(x, BASIS[0])[:, 0])
    found = [
        np.mean((_coordinates(x, BASIS[0])[:, 0] <= threshold) == labels)
        for threshold in along[:: count // 200]
    ]
    assert abs(max(found) - best) < error
    assert affine_accuracy((0.25, 1.5)) == best and affine_accuracy((1.0, 1.0)) == 0.5


@pytest.mark.parametrize("function", ["linear", "quadratic", "sinusoidal"])
def test_labels_along_a_direction_change_at_the_median(function):
    count, epsilon = 20_000, 2.2
    noise = sample_noise(6, count, 2, D).train
    x, alpha = spread_along(noise, BASIS[0], epsilon, sigma=0.5)
    labels = label_along(x, BASIS[0], function, epsilon)
    assert abs(np.mean(labels) - 0.5) < 4 * np.sqrt(0.25 / count)
    exact = _coordinates(x, BASIS[0])[:, 0]
    np.testing.assert_allclose(alpha, exact, atol=1e-5)
    values = {"linear": exact, "quadratic": exact**2, "sinusoidal": np.sin(exact)}[function]
    median = scipy.stats.chi2(1).median() * epsilon**2 if function == "quadratic" else 0.0
    assert label_median(function, epsilon) == pytest.approx(median, rel=1e-6)
    sure = np.abs(values - median) > 1e-4
    np.testing.assert_array_equal(labels[sure], (values <= median)[sure])


def test_the_median_of_a_function_of_ones_own_is_that_of_its_law():
    for function, epsilon, median in [
        (lambda alpha: alpha**2, 2.0, 4 * scipy.stats.chi2(1).median()),
        (lambda alpha: jnp.exp(alpha), 1.5, 1.0),
        (lambda alpha: 3 - jnp.abs(alpha), 1.0, 3 - scipy.stats.norm.ppf(0.75)),
    ]:
        assert label_median(function, epsilon) == pytest.approx(median, rel=2e-4)


def test_integer_noise_is_that_of_floating_point():
    noise, labels = np.arange(2 * D).reshape(2, D) % 5, [0, 1]
    for call in (
        lambda n: encircle(n, labels, BASIS[0], BASIS[1]),
        lambda n: spread_along(n, BASIS[0], 0.5)[0],
    ):
        np.testing.assert_array_equal(call(noise), call(np.float32(noise)))


def test_along_a_direction_the_variance_is_epsilon_and_elsewhere_sigma():
    count = 40_000
    x, _ = spread_along(sample_noise(7, count, 2, D).train, BASIS[0], 2.0, 0.5)
    u = BASIS[0].astype(np.float64)
    expected = 0.25 * np.eye(D) + 3.75 * np.outer(u, u)
    covariance = np.asarray(x, np.float64).T @ x / count
    assert np.abs(covariance - expected).max() < 5 * 4.0 * np.sqrt(2 / count)


TASKS = {
    "circles": (circles(), {"first": BASIS[:3], "second": BASIS[5:8], "sigma": [1.0, 0.5, 1.0]}),
    "along": (along_direction("quadratic"), {"direction": BASIS[:3], "epsilon": [1.0, 2.0, 1.0]}),
    # With ε = σ samples are N(0, σ² I), whatever the direction is.
    "random": (
        along_direction(random_labels=True),
        {"direction": BASIS[:3], "epsilon": [2.0, 2.0, 2.0]},
    ),
}


@pytest.mark.parametrize("name", TASKS)
def test_a_network_does_not_depend_on_its_company_or_mapping(name):
    task, arrays = TASKS[name]
    seeds = np.array([0, 0, 1])
    many = train_many(MODEL, task, seed=seeds, recipe=RECIPE, chunk_size=2, **arrays)
    assert len({*many.train_loss.tolist()}) == 3
    for index in range(3):
        own = {n: np.asarray(array)[index : index + 1] for n, array in arrays.items()}
        one = train_many(MODEL, task, seed=seeds[index], recipe=RECIPE, chunk_size=2, **own)
        np.testing.assert_array_equal(one.losses[0], many.losses[index])
    other = train_many(MODEL, task, seed=seeds, recipe=RECIPE, mapping="vectorized", **arrays)
    np.testing.assert_allclose(other.losses, many.losses, atol=2e-5)


@pytest.mark.parametrize("name", ["circles", "along"])
def test_test_samples_are_fresh_and_samples_those_of_their_function(name):
    task, arrays = TASKS[name]
    data = task.data(MODEL, RECIPE, 3)
    noise = sample_noise(noise_key(3), 64, 32, D)
    one = {
        n: np.asarray(array)[1]
        for n, array in task.prepare(MODEL, {**task.arrays, **arrays}).items()
        if np.ndim(array)
    }
    one = {**task.arrays, **one}
    for split in ("train", "test"):
        x, labels = task.sample(data, split, jnp.arange(10), one)
        normal = getattr(noise, split)[:10]
        if name == "circles":
            expected = encircle(normal, np.arange(10) % 2, BASIS[1], BASIS[6], sigma=0.5)
            np.testing.assert_array_equal(labels, np.arange(10) % 2)
        else:
            expected, _ = spread_along(normal, BASIS[1], 2.0, 1.0)
            np.testing.assert_array_equal(labels, label_along(x, BASIS[1], "quadratic", 2.0))
        np.testing.assert_allclose(x, expected, atol=2e-6)


def test_random_labels_are_balanced_and_shared_by_the_networks_of_a_seed():
    task, _ = TASKS["random"]
    data, again, other = (task.data(MODEL, RECIPE, seed) for seed in (3, 3, 4))
    assert int(data.labels.train.sum()) == 32 and int(data.labels.test.sum()) == 16
    np.testing.assert_array_equal(data.labels.train, again.labels.train)
    assert (np.asarray(data.labels.train) != np.asarray(other.labels.train)).any()
    assert (np.asarray(data.labels.train[:32]) != np.asarray(data.labels.test)).any()


def test_networks_of_a_seed_start_alike_on_every_plane():
    recipe = dataclasses.replace(RECIPE, num_epochs=1, schedule="constant")
    keep = {"recipe": recipe, "learning_rate": 0.0, "keep": True, "seed": 5}
    metrics = train_many(MODEL, circles(), first=BASIS[:2], second=BASIS[2:4], **keep)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(*leaf), metrics.variables)


def test_an_mlp_learns_the_circles_and_a_linear_classifier_does_not_beat_hyperplanes():
    recipe = dataclasses.replace(RECIPE, num_train=600, num_test=600, num_epochs=10)
    plane = {"first": BASIS[:1], "second": BASIS[1:2], "sigma": 0.1}
    found = {}
    for name in ("mlp", "logreg"):
        model = create_model(name, SHAPE, 2)
        observe = {"train": observers.accuracy(model, circles(), recipe, split="train")}
        metrics = train_many(model, circles(), recipe=recipe, observe=observe, **plane)
        found[name] = float(metrics.test_accuracy[0])
        assert metrics.observed["train"][0, -1] == metrics.train_accuracy[0]
    assert found["mlp"] > 0.95
    assert found["logreg"] < affine_accuracy() + 4 * np.sqrt(0.25 / 600)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"first": BASIS[:1]}, r"^second: is needed"),
        ({"first": 2 * BASIS[:1], "second": BASIS[1:2]}, "^first: row 0 has norm 2, expected 1"),
        ({"first": BASIS[:1], "second": 3 * BASIS[1:2]}, "^second: row 0 has norm 3, expected 1"),
        ({"first": BASIS[:1], "second": BASIS[:1]}, "^second: must be orthogonal to first, got 1"),
        ({"first": BASIS[:1], "second": BASIS[1:3]}, "^first, second: must be as many"),
        ({"first": BASIS[:1, :5], "second": BASIS[1:2]}, r"^first: must be real numbers \[N, 16\]"),
        ({"first": BASIS[:1], "second": BASIS[1:2], "sigma": -1}, "^sigma: must be a finite"),
        ({"first": BASIS[:1], "second": BASIS[1:2], "radius_1": -1}, "^radius_1: must be a finite"),
        ({"first": BASIS[:1], "second": BASIS[1:2], "epsilon": 1.0}, "unknown value 'epsilon'"),
    ],
)
def test_bad_planes_are_refused_by_name(arrays, message):
    with pytest.raises(InputError, match=message):
        train_many(MODEL, circles(), recipe=RECIPE, **arrays)


def test_bad_input_is_refused_by_name():
    for call, message in [
        (lambda: along_direction("cubic"), "^function: unknown value 'cubic'"),
        (lambda: along_direction(random_labels=1), "^random_labels: unknown value 1"),
        (lambda: label_median("linear", -1.0), "^epsilon: must be a finite number at least 0"),
        (lambda: label_median(lambda alpha: alpha[0]), "^function: must be real numbers"),
        (lambda: label_median(lambda alpha: alpha / 0), "^function: has entries that are not fin"),
        (lambda: label_median(lambda: 0), "^function raised TypeError"),
        (lambda: sample_circles(0, BASIS[0], BASIS[1], 7), "^num_samples: must be even"),
        (lambda: sample_circles(0, BASIS[0], BASIS[0], 8), "^second: must be orthogonal to first"),
        (lambda: sample_circles(0, BASIS[0], BASIS[1][:4], 8), "^first, second: must be of one"),
        (lambda: sample_circles(0, BASIS[0], BASIS[1], 8, (1.0,)), "^radii: must be two numbers"),
        (lambda: affine_accuracy((1.0, -1.0)), "^radii: must be a finite number at least 0"),
        (lambda: circles(loss=3), "^loss: must be a function, got 3"),
        (
            lambda: train_many(
                MODEL, along_direction(), recipe=RECIPE, direction=BASIS[:3], epsilon=[1.0, 2.0]
            ),
            "^epsilon: must be a number or one for each of the 3 networks",
        ),
        (
            lambda: train_many(
                MODEL,
                along_direction(lambda alpha: np.sign(np.asarray(alpha))),
                recipe=RECIPE,
                direction=BASIS[:3],
            ),
            "^function raised TracerArrayConversionError",
        ),
        (
            lambda: encircle(np.zeros((3, D)), np.zeros(2, int), BASIS[0], BASIS[1]),
            "^labels: must be one for each of the 3 samples",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            call()
