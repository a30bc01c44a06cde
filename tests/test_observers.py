"""What is measured of networks during training, and trained weights in memory and in files."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from experiments import directional_bias
from nad_jax import (
    ImageData,
    Recipe,
    create_model,
    estimate_nads,
    images,
    observers,
    read_weights,
    separable,
    tasks,
    train_many,
)
from nad_jax.errors import InputError
from nad_jax.snapshots import Snapshots
from tests.test_configs import load_config

SHAPE = (4, 4, 1)
MODEL = create_model("mlp", SHAPE, 2, width=8)
RECIPE = Recipe(num_train=64, num_test=32, num_epochs=3, batch_size=16, loss_window=2)
DIRECTIONS = np.eye(16, dtype=np.float32)[:5]
SEEDS = [0, 1, 0, 0, 1]
POINTS = images(np.random.default_rng(0).normal(size=(3, *SHAPE)))
GRADIENT = {"points": POINTS, "readout": "sampled", "derivative": "input_gradient", "logit": 0}


def _norm(variables, data, member):
    return jax.tree.map(lambda leaf: (leaf**2).sum(), variables["params"]["Dense_0"])


def _observe():
    return {
        "norm": _norm,
        "accuracy": observers.accuracy(MODEL, separable(), RECIPE),
        "cosine": observers.gradient_cosine(MODEL, RECIPE),
        "geometry": observers.geometry(MODEL, **GRADIENT),
    }


@pytest.fixture(scope="module")
def metrics():
    how = {"recipe": RECIPE, "seed": SEEDS, "chunk_size": 2}
    return train_many(MODEL, DIRECTIONS, **how, observe=_observe(), keep=True)


def test_what_is_asked_for_changes_no_number(metrics):
    plain = train_many(MODEL, separable(), direction=DIRECTIONS, seed=SEEDS, recipe=RECIPE)
    for name in ("losses", "test_accuracy", "gradient_cosine", "train_loss"):
        np.testing.assert_array_equal(getattr(metrics, name), getattr(plain, name))
    assert plain.variables is None and plain.observed is None


def test_observations_begin_at_initialization_and_end_with_the_trained_network(metrics):
    accuracy, kernels = metrics.observed["accuracy"], metrics.variables["params"]["Dense_0"]
    assert accuracy.shape == (5, 4)
    np.testing.assert_array_equal(accuracy[:, -1], metrics.test_accuracy)
    np.testing.assert_allclose(
        metrics.observed["cosine"][:, -1], metrics.gradient_cosine, rtol=1e-5
    )
    for index in range(5):
        np.testing.assert_allclose(
            metrics.observed["norm"]["kernel"][index, -1],
            (kernels["kernel"][index] ** 2).sum(),
            rtol=1e-5,
        )
    untrained = dataclasses.replace(RECIPE, num_epochs=1, schedule="constant")
    start = train_many(
        MODEL, DIRECTIONS, learning_rate=0.0, seed=SEEDS, recipe=untrained, chunk_size=2
    )
    np.testing.assert_allclose(accuracy[:, 0], start.test_accuracy, atol=1e-6)


def test_the_geometry_of_the_last_epoch_is_that_of_the_kept_weights(metrics):
    observed = metrics.observed["geometry"]
    assert len(observed) == 4 and observed[0].num_networks == 5
    # In one chunk, so that the error is that of the two halves, as of an epoch.
    kept = estimate_nads(MODEL, 5, variables=metrics.variables, **GRADIENT, chunk_size=6)
    np.testing.assert_allclose(kept.eigenvalues, observed[-1].eigenvalues, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(
        kept.eigenvalue_sem, observed[-1].eigenvalue_sem, atol=1e-4 * kept.eigenvalues[0]
    )
    assert abs(observed[0].eigenvalues[0] / observed[-1].eigenvalues[0] - 1) > 0.01


@pytest.mark.parametrize("stop_at", [2, 4])
def test_an_interrupted_training_keeps_what_was_observed(metrics, tmp_path, stop_at):
    class Stopped(Exception):
        pass

    calls = []

    def stop(done):
        calls.append(done)
        if len(calls) == stop_at:
            raise Stopped

    def run(progress, urgent):
        snapshots = Snapshots(tmp_path / "unit", {}, 0.0, lambda: urgent)
        how = {"recipe": RECIPE, "seed": SEEDS, "chunk_size": 2}
        asked = {"observe": _observe(), "keep": True, "snapshots": snapshots}
        return train_many(MODEL, DIRECTIONS, **how, **asked, progress=progress)

    with pytest.raises(Stopped):
        run(stop, True)
    resumed = run(None, False)
    for name in ("norm", "accuracy", "cosine"):
        both = (found.observed[name] for found in (resumed, metrics))
        jax.tree.map(np.testing.assert_array_equal, *both)
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, metrics.variables)
    for one, other in zip(resumed.observed["geometry"], metrics.observed["geometry"], strict=True):
        np.testing.assert_array_equal(one.directions, other.directions)


def test_bad_observers_are_refused():
    for observe, message in [
        ([_norm], "observe: must be observers by name"),
        ({"norm": 3}, r"observe\['norm'\]: must be a function, got 3"),
    ]:
        with pytest.raises(InputError, match=message):
            train_many(MODEL, DIRECTIONS, recipe=RECIPE, observe=observe)
    with pytest.raises(InputError, match="readout: must be 'sampled' with num_readouts=1"):
        observers.geometry(MODEL, logit=0, readout="marginalized")
    with pytest.raises(InputError, match="split: unknown value 'tset'"):
        observers.accuracy(MODEL, separable(), split="tset")


def test_what_cannot_be_observed_is_refused_before_the_training():
    alone = observers.geometry(MODEL, **GRADIENT)
    for call, message in [
        (
            lambda: train_many(MODEL, DIRECTIONS[:1], recipe=RECIPE, observe={"g": alone}),
            r"observe\['g'\]: needs at least 2 networks, got 1",
        ),
        (
            lambda: observers.geometry(MODEL, **GRADIENT, symmetrized=True),
            "geometry: unknown value 'symmetrized'",
        ),
        (
            lambda: observers.geometry(MODEL, **GRADIENT, chunk_size=2),
            "geometry: unknown value 'chunk_size'",
        ),
        (lambda: observers.accuracy(MODEL, separable()), "recipe: is needed for the sizes"),
        (
            lambda: train_many(MODEL, DIRECTIONS, direction=DIRECTIONS),
            "task: must be .* given once",
        ),
        (
            lambda: train_many(MODEL, POINTS),
            "task: is a law of points; that of images is nad_jax.ta",
        ),
        (lambda: train_many(MODEL, recipe=RECIPE), "task: must be one from `tasks`, or directions"),
        (
            lambda: train_many(MODEL, DIRECTIONS, recipe=RECIPE, seeds=[0, 1]),
            "array of this task: unknown value 'seeds'",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            call()


def test_an_epoch_without_directions_loses_nothing(caplog):
    dead = observers.geometry(MODEL, **GRADIENT)
    metrics = train_many(
        MODEL, DIRECTIONS[:2], recipe=dataclasses.replace(RECIPE, clip_norm=0.0),
        learning_rate=1e6, observe={"geometry": dead},
    )  # fmt: skip
    first, *others = metrics.observed["geometry"]
    assert first.config["diverged"] == 0 and first.config["networks"] == "given"
    assert len(others) == 3 and metrics.losses.shape == (2, RECIPE.num_steps)


def test_a_snapshot_of_another_question_is_not_taken_up(tmp_path):
    class Stopped(Exception):
        pass

    def stop(done):
        raise Stopped

    def run(keep, progress=None):
        snapshots = Snapshots(tmp_path / "unit", {}, 0.0, lambda: True)
        how = {"recipe": RECIPE, "chunk_size": 2, "snapshots": snapshots, "progress": progress}
        return train_many(MODEL, DIRECTIONS, keep=keep, **how)

    with pytest.raises(Stopped):
        run(False, stop)
    assert run(True).variables["params"]["Dense_0"]["bias"].shape == (5, 8)


def test_images_take_transforms_whose_arrays_are_bound_or_have_defaults():
    rng = np.random.default_rng(0)
    pixels, labels = rng.random((32, *SHAPE), np.float32), np.arange(32) % 2
    data = ImageData(pixels, labels, pixels, labels)
    shifts = {"bound": partial(lambda x, y, shift: x + shift, shift=0.1)}
    shifts["default"] = lambda x, y, shift=0.1: x + shift
    recipe = Recipe(num_epochs=1, batch_size=8, schedule="constant")
    found = [
        train_many(MODEL, tasks.images(data, transform), recipe=recipe).losses
        for transform in shifts.values()
    ]
    np.testing.assert_array_equal(*found)
    given = tasks.images(data, shifts["default"])
    shifted = train_many(MODEL, given, recipe=recipe, shift=np.float32([0.1, 3.0])).losses
    np.testing.assert_allclose(shifted[0], found[0][0], rtol=1e-6)
    assert not np.allclose(shifted[0], shifted[1])
    with pytest.raises(InputError, match="array of this task: unknown value 'carriers'"):
        train_many(MODEL, tasks.images(data), recipe=recipe, carriers=np.ones((2, 3)))
    with pytest.raises(InputError, match="data: must be ImageData, got tuple"):
        tasks.images((pixels, labels, pixels, labels))


def test_weights_that_a_run_stores_are_those_of_its_networks(tmp_path):
    config = load_config("directional_bias").get_config("accuracy_map,mlp")
    config.update(
        image_shape=SHAPE, source="pixel", indices=(0, 1, 2), num_train=(64,), num_test=32, frequency_range=(-2, 3),
        num_epochs=3, batch_size=16, sigmas=(1.0,), widths=(8,), loss_window=2, keep_weights=True,
    )  # fmt: skip
    from experiments.run import runner

    assert runner.run(directional_bias.make_study(config), tmp_path)
    names, variables = read_weights(tmp_path, MODEL)
    assert len(names) == 3 and all("direction" in name for name in names)
    direct = train_many(MODEL, DIRECTIONS[:3], recipe=RECIPE, keep=True)
    by_direction = sorted(range(3), key=lambda n: names[n])
    stored = sorted(np.asarray(variables["params"]["Dense_0"]["kernel"])[by_direction].tolist())
    assert stored == sorted(direct.variables["params"]["Dense_0"]["kernel"].tolist())
    nads = estimate_nads(MODEL, 3, variables=variables, **GRADIENT)
    assert nads.num_networks == 3 and nads.trace > 0
    with pytest.raises(InputError, match="holds weights of another model"):
        read_weights(tmp_path, create_model("mlp", SHAPE, 2, width=4))
    with pytest.raises(InputError, match="holds no units of trained networks"):
        read_weights(tmp_path / "progress", MODEL)


def test_a_training_that_was_interrupted_with_other_questions_is_not_taken_up(tmp_path):
    class Stopped(Exception):
        pass

    def stop(done):
        raise Stopped

    def run(progress, urgent, **asked):
        snapshots = Snapshots(tmp_path / "unit", {}, 0.0, lambda: urgent)
        how = {"recipe": RECIPE, "seed": SEEDS, "snapshots": snapshots, "progress": progress}
        return train_many(MODEL, DIRECTIONS, **how, **asked)

    with pytest.raises(Stopped):
        run(stop, True)
    rate = {"rate": lambda variables, data, member: member.learning_rate}
    kept = run(None, False, keep=True, observe=rate)
    assert kept.variables is not None and kept.observed["rate"].shape == (5, 4)


def test_networks_come_back_in_the_order_in_which_they_were_given():
    """Their seeds are trained together, in an order that is not its own inverse."""
    directions, seeds = np.eye(16, dtype=np.float32)[:6], [0, 1, 2, 0, 1, 2]
    together = train_many(MODEL, directions, recipe=RECIPE, seed=seeds)
    for number, seed in enumerate(seeds):
        alone = train_many(MODEL, directions[number : number + 1], recipe=RECIPE, seed=seed)
        np.testing.assert_allclose(alone.losses[0], together.losses[number], rtol=1e-4)
