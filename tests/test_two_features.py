"""Two features: closed forms, the law of the samples, and reliance on the shortcut."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nad_jax
from nad_jax.errors import InputError
from nad_jax.fitting import make_fit
from nad_jax.recipe import Recipe
from nad_jax.task import Members
from nad_jax.tasks.two_features import (
    Features,
    embed,
    observe_reliance,
    optimal_accuracy,
    optimal_reliance,
    optimal_weights,
    probe_latents,
    reliance,
    two_features,
)
from nad_jax.training import make_members


def pair(seed: int, dimension: int, count: int = 1) -> dict[str, np.ndarray]:
    """Independent random unit vectors, as published."""
    rows = np.random.default_rng(seed).normal(size=(2, count, dimension))
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    return dict(zip(("shortcut", "core"), rows, strict=True))


def linear(dimension: int) -> nad_jax.Model:
    return nad_jax.create_model("logreg", (dimension, 1, 1), num_logits=2)


def draw(dimension: int, num: int, seed: int = 0, **arrays: float) -> tuple[np.ndarray, np.ndarray]:
    """Samples [num, D] of one network and their labels ±1."""
    task, model = two_features(), linear(dimension)
    recipe = Recipe(num_train=num, num_test=2)
    defaults = {name: value for name, value in task.arrays.items() if isinstance(value, float)}
    arrays = task.prepare(model, {**defaults, **pair(seed, dimension), **arrays})
    one = {n: jnp.float32(np.ravel(v)[0]) if np.ndim(v) < 2 else v[0] for n, v in arrays.items()}
    x, labels = task.draw(task.data(model, recipe, seed), "train", np.arange(num), one)
    return np.asarray(x, np.float64), 1 - 2 * np.asarray(labels)


@pytest.mark.parametrize(
    ("predictivity", "weights", "accuracy", "relied"),
    [
        (0.6, (-0.8056, 1.7649), 0.9243, -1.0),
        (0.7, (-0.3821, 1.5108), 0.9062, -1.0),
        (0.8, (0.1136, 1.2134), 0.9006, -0.9378),
        (0.85, (0.4180, 1.0308), 0.9073, -0.6889),
        (0.9, (0.8010, 0.8010), 0.9240, 0.0),
    ],
)
def test_the_optimal_classifier_is_that_of_the_table(
    predictivity: float, weights: tuple[float, float], accuracy: float, relied: float
) -> None:
    np.testing.assert_allclose(optimal_weights(predictivity), weights, atol=6e-5)
    assert optimal_accuracy(predictivity) == pytest.approx(accuracy, abs=6e-5)
    assert optimal_reliance(predictivity) == pytest.approx(relied, abs=6e-5)


def test_the_optimal_accuracy_is_that_of_drawn_latents() -> None:
    rng, features = np.random.default_rng(1), (0.85, 0.9, 0.3)
    covariance = np.array([[1, 0.3], [0.3, 1]])
    mean = np.asarray(Features(*features).means(), np.float64)
    z = rng.multivariate_normal(mean, covariance, 100_000)
    share, accuracy = (z @ optimal_weights(*features) > 0).mean(), optimal_accuracy(*features)
    assert abs(share - accuracy) < 4 * np.sqrt(accuracy * (1 - accuracy) / len(z))


def test_oracles_of_one_feature_have_reliance_one_and_minus_one() -> None:
    z = probe_latents(0.7)
    assert z.shape == (900, 2)
    np.testing.assert_allclose(z.max(0), 3 * np.asarray(Features(0.7).means()), rtol=1e-6)
    assert reliance(np.sign(z[:, 0]), z) == 1
    assert reliance(np.sign(z[:, 1]), z) == -1
    assert reliance(np.zeros(900), z) == 0
    for count in (2, 4, 10):
        z = probe_latents(0.7, num_probes=count)
        assert [reliance(np.sign(z[:, place]), z) for place in (0, 1)] == [1, -1]


def sample(dimension: int, num: int, **numbers: float) -> tuple[np.ndarray, np.ndarray]:
    """The same law by `sample_two_features`."""
    rows = {name: row[0] for name, row in pair(0, dimension).items()}
    x, labels = nad_jax.sample_two_features(5, **rows, num_samples=num, **numbers)
    return np.asarray(x, np.float64), 1 - 2 * np.asarray(labels)


@pytest.mark.parametrize("source", [draw, sample])
def test_samples_have_the_published_law(source) -> None:
    """Latents, read off by the dual basis: means ±μ, unit variances, correlation r, predictivities;
    nothing outside of the plane.
    """
    count, given = 40_000, {"shortcut_predictivity": 0.7, "core_predictivity": 0.9}
    given |= {"shortcut_amplification": 3.0, "core_amplification": 0.5, "correlation": 0.6}
    x, y = source(12, count, **given)
    assert y.sum() == 0
    plane = np.concatenate(list(pair(0, 12).values()))
    z = x @ np.linalg.pinv(plane) / (3.0, 0.5)
    np.testing.assert_allclose((z * (3.0, 0.5)) @ plane, x, atol=1e-5)
    shares = (np.sign(z) == y[:, None]).mean(0)
    expected = np.array([0.7, 0.9])
    assert (abs(shares - expected) < 4 * np.sqrt(expected * (1 - expected) / count)).all()
    residual = z - y[:, None] * np.asarray(Features(0.7, 0.9).means())
    assert (abs(residual.mean(0)) < 4 / np.sqrt(count)).all()
    np.testing.assert_allclose(
        np.cov(residual.T), [[1, 0.6], [0.6, 1]], atol=4 * np.sqrt(2 / count)
    )


@pytest.mark.parametrize("source", [draw, sample])
def test_noise_is_isotropic_outside_of_the_plane_and_absent_in_it(source) -> None:
    x, _ = source(6, 20_000, sigma=2.0)
    still, _ = source(6, 20_000)
    noise, plane = x - still, np.concatenate(list(pair(0, 6).values()))
    assert abs(noise @ plane.T).max() < 2e-5
    projector = np.eye(6) - np.linalg.pinv(plane) @ plane
    np.testing.assert_allclose(np.cov(noise.T), 4 * projector, atol=16 * np.sqrt(2 / 20_000))


def test_integer_noise_is_that_of_floating_point() -> None:
    noise, latents = np.arange(12).reshape(2, 6) % 5, jnp.array([[0.3, 0.4], [-0.2, 0.7]])
    arrays = {name: jnp.float32(rows[0]) for name, rows in pair(0, 6).items()}
    arrays |= {"shortcut_amplification": 1.0, "core_amplification": 2.0, "sigma": 0.5}
    expected = embed(latents, np.float32(noise), arrays)
    np.testing.assert_array_equal(embed(latents, noise, arrays), expected)


def test_converged_least_squares_does_not_see_amplifications() -> None:
    def scores(**gains: float) -> np.ndarray:
        x, y = draw(10, 3200, shortcut_predictivity=0.8, **gains)
        weights, *_ = np.linalg.lstsq(x, y.astype(np.float64), rcond=1e-5)
        return x @ weights

    plain = scores()
    for gain in (0.2, 5.0):
        np.testing.assert_allclose(scores(shortcut_amplification=gain), plain, atol=1e-5)


def test_least_squares_is_the_optimal_classifier_of_many_samples() -> None:
    x, y = draw(2, 200_000, shortcut_predictivity=0.8)
    plane = np.concatenate(list(pair(0, 2).values()))
    weights, *_ = np.linalg.lstsq(x @ np.linalg.pinv(plane), y.astype(np.float64), rcond=None)
    optimal = optimal_weights(0.8)
    assert weights[0] / weights[1] == pytest.approx(optimal[0] / optimal[1], abs=0.01)


def test_the_first_gradient_sees_amplifications_squared() -> None:
    """From 0, the step of a linear model is Σ y x: on the dual basis diag(α²) (W Wᵀ) μ̂."""
    gains = np.array([3.0, 0.5])
    x, y = draw(2, 2000, shortcut_amplification=3.0, core_amplification=0.5)
    plane = np.concatenate(list(pair(0, 2).values()))
    step = (y[:, None] * x).mean(0)  # of the weights
    in_latents = gains * (plane @ step)  # what scores are made of, per z
    z = x @ np.linalg.pinv(plane) / gains
    predicted = gains * (plane @ plane.T @ (gains * (y[:, None] * z).mean(0)))
    np.testing.assert_allclose(in_latents, predicted, rtol=1e-4)


def observed(sigma: float) -> tuple[Any, np.ndarray, np.ndarray]:
    """The reliance of a linear network of weights [D] of logit 0 − logit 1; the dual basis [D, 2],
    which reads z off; and the noise of the test samples.
    """
    task, model = two_features(), nad_jax.from_functions(
        lambda key: {"w": jnp.zeros((2, 8))}, lambda variables, x: x @ variables["w"].T, (8,)
    )  # fmt: skip
    rows, given = pair(3, 8), {"shortcut_predictivity": 0.85, "sigma": sigma}
    given |= {"shortcut_amplification": 4.0, "core_amplification": 1.0}
    data = task.data(model, Recipe(num_train=2, num_test=1000), 0)
    defaults = {name: value for name, value in task.arrays.items() if isinstance(value, float)}
    arrays = task.prepare(model, {**defaults, **rows, **given})
    one = {n: jnp.float32(v) if np.ndim(v) == 0 else v[0] for n, v in arrays.items()}
    dual = np.linalg.pinv(np.concatenate([rows["shortcut"], rows["core"]])) / (4.0, 1.0)
    member = Members(jax.random.key(0), jnp.float32(0), one)
    observe, noise = observe_reliance(model), np.asarray(data.test, np.float64)[:900, :-2]

    def measure(weights: np.ndarray) -> float:
        both = 3 * dual[:, 0] - dual[:, 1]  # of both logits, which no decision depends on
        logits = np.float32([both + weights, both - weights])
        return float(observe({"w": logits}, data, member))

    return measure, dual, noise


@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_the_observer_measures_the_reliance_of_a_linear_network(sigma: float) -> None:
    """Of weights that read z_s, z_c or both off: +1, −1, and that of the optimal classifier."""
    measure, dual, _ = observed(sigma)
    expected = {(1, 0): 1.0, (0, 1): -1.0, tuple(optimal_weights(0.85)): optimal_reliance(0.85)}
    for weights, value in expected.items():
        assert measure(dual @ np.asarray(weights)) == pytest.approx(value, abs=5e-3)


def test_probes_carry_the_noise_of_test_samples() -> None:
    """Of a network that sees what is orthogonal to both features alone: it decides by noise."""
    measure, dual, noise = observed(2.0)
    away = np.linalg.svd(dual, full_matrices=True)[0][:, 2]
    expected = reliance(np.sign(noise @ away), probe_latents(0.85))
    assert abs(expected) > 0.02
    assert measure(away) == pytest.approx(expected, abs=5e-3)


def test_reliance_is_measured_in_the_precision_of_the_recipe() -> None:
    model, task = linear(6), two_features()
    defaults = {name: value for name, value in task.arrays.items() if isinstance(value, float)}
    members, _ = make_members(model, task, {**defaults, **pair(0, 6)}, 0.1, 0)
    member = jax.tree.map(lambda leaf: leaf[0], members)

    def program(precision: str) -> str:
        recipe = Recipe(num_train=8, num_test=8, batch_size=8, precision=precision)
        stages = make_fit(model, recipe, task, {"reliance": observe_reliance(model)})
        data = jax.eval_shape(lambda: task.data(model, recipe, 0))
        state = jax.eval_shape(stages.start, member)
        return jax.jit(stages.observe).lower(state, data, member).as_text()

    # The products that embed the probes are always exact; that of the network is one more.
    text = "precision = [HIGHEST, HIGHEST]"
    assert program("highest").count(text) == program("default").count(text) + 1


def test_networks_of_one_seed_share_their_random_numbers() -> None:
    x, _ = draw(9, 64, shortcut_amplification=1.0)
    amplified, _ = draw(9, 64, shortcut_amplification=2.0)
    plane = np.concatenate(list(pair(0, 9).values()))
    z, more = (values @ np.linalg.pinv(plane) for values in (x, amplified))
    np.testing.assert_allclose(more, z * (2, 1), atol=1e-5)


def test_a_network_takes_the_only_feature_that_it_can_see() -> None:
    """A shortcut that is a hundred times fainter than the core is not used, and the other way
    round.
    """
    model, recipe = linear(10), Recipe(num_train=400, num_test=100, num_epochs=4, batch_size=50)
    given = {name: np.repeat(row, 2, 0) for name, row in pair(0, 10).items()}
    given |= {"shortcut_amplification": [0.03, 3.0], "core_amplification": [3.0, 0.03]}
    observe = {"reliance": observe_reliance(model)}
    found = nad_jax.train_many(model, two_features(), recipe=recipe, observe=observe, **given)
    faint, loud = found.observed["reliance"][:, -1]
    assert faint < -0.9
    assert loud > 0.9


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"shortcut_predictivity": 0.5},
            "shortcut_predictivity: must be a number between 0.5 and 1",
        ),
        ({"core_predictivity": [0.9, 1.0]}, "core_predictivity: .* got 1.0"),
        ({"correlation": -1}, "correlation: must be a number between -1 and 1, got -1"),
        ({"sigma": -1}, "sigma: must be a finite number at least 0"),
        ({"core_amplification": np.nan}, "core_amplification: "),
        ({"core": np.ones((2, 5))}, "core: "),
        ({"core": np.eye(5)[:3]}, "must be as many"),
        ({"core": np.eye(5)[:2]}, r"core: must be another direction than shortcut, .* network 0"),
    ],
)
def test_bad_arrays_are_named(wrong: dict, message: str) -> None:
    given = {"shortcut": np.eye(5)[:2], "core": np.eye(5)[2:4], **wrong}
    with pytest.raises(InputError, match=message):
        nad_jax.train_many(linear(5), two_features(), **given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optimal_weights(1.0), "shortcut_predictivity: "),
        (lambda: optimal_weights(0.7, 0.9, 1.5), "correlation: must be a number between -1 and 1"),
        (lambda: optimal_accuracy(0.7, "high"), "core_predictivity: .*'high'"),
        (lambda: optimal_reliance(0.7, num_probes=1), "num_probes: "),
        (lambda: optimal_reliance(0.7, num_probes=3), "num_probes: must be even, .* got 3"),
        (lambda: probe_latents(0.7, num_probes=31), "num_probes: must be even, .* got 31"),
        (lambda: observe_reliance(linear(5), 5), "num_probes: must be even, .* got 5"),
        (lambda: observe_reliance("mlp"), "model: must come from create_model"),
        (lambda: reliance([1, 2], [[1, 1], [1, 1]]), "decisions: must be .* got 2"),
        (lambda: reliance([True, False], [[1, 1], [1, 1]]), "decisions: .* got truth values"),
        (lambda: reliance([1], [[1, 1], [1, 1]]), "decisions: "),
        (lambda: reliance([1, 1], [1, 1]), "latents: "),
        (lambda: observe_reliance(linear(5), 0), "num_probes: "),
    ],
)
def test_bad_values_are_named(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"sigma": [1.0, 2.0]}, r"^sigma: must be real numbers \[\], got shape \(2,\)"),
        ({"shortcut_predictivity": [0.7, 0.8]}, r"^shortcut_predictivity: .* got shape \(2,\)"),
        ({"sigma": -1.0}, r"^sigma: must be a finite number at least 0\.0, got -1\.0"),
        ({"noise": 1.0}, "^argument: unknown value 'noise'"),
        ({"num_samples": 3}, "^num_samples: must be even"),
        ({"core": np.eye(5)[0]}, "^core: must be another direction than shortcut"),
    ],
)
def test_bad_samples_are_refused_by_name(numbers: dict, message: str) -> None:
    given = {"shortcut": np.eye(5)[0], "core": np.eye(5)[1], "num_samples": 4, **numbers}
    with pytest.raises(InputError, match=message):
        nad_jax.sample_two_features(0, **given)


def test_networks_of_another_task_have_no_reliance() -> None:
    model, recipe = linear(5), Recipe(num_train=4, num_test=4)
    with pytest.raises(InputError, match=r"^observe_reliance: .* these have no core, core_ampl"):
        nad_jax.train_many(
            model, np.eye(5), recipe=recipe, observe={"reliance": observe_reliance(model)}
        )


def test_noise_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match="noise: "):
        embed(jnp.zeros((3, 2)), jnp.zeros(3), {})
