"""A task, and observers, of one's own that break their contract are refused before the training."""

import jax.numpy as jnp
import numpy as np
import pytest

import nad_jax
from nad_jax import InputError, Recipe, Task, create_model, observers, train_many

INPUTS = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
TARGETS = np.tanh(INPUTS[:, 0])
RECIPE = Recipe(num_train=40, num_test=40, batch_size=20, num_epochs=2)
MODEL = create_model("mlp", (6,), width=4)


def _task(**changes):
    parts = {
        "data": lambda model, recipe, seed: (jnp.asarray(INPUTS), jnp.asarray(TARGETS)),
        "sample": lambda data, split, indices, arrays: (data[0][indices], data[1][indices]),
        "loss": lambda outputs, y: (outputs[:, 0] - y) ** 2,
        "correct": lambda outputs, y: abs(outputs[:, 0] - y) < 0.1,
    }
    return Task(**{**parts, **changes})


def test_a_task_that_keeps_to_it_is_trained():
    assert train_many(MODEL, _task(), seed=[0, 1], recipe=RECIPE).test_loss.shape == (2,)


@pytest.mark.parametrize("split", ["train", "test"])
def test_more_samples_than_there_are_are_refused(split):
    sizes = {"num_train": 40, "num_test": 40, f"num_{split}": 41}
    with pytest.raises(InputError, match=rf"num_{split}=41 asks for more samples .* size 40"):
        train_many(MODEL, _task(), recipe=Recipe(batch_size=20, num_epochs=2, **sizes))
    with pytest.raises(InputError, match="num_train=10000 asks for more samples"):
        train_many(MODEL, _task())  # the default recipe is that of D(v)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"loss": lambda o, y: (o - y[None]) ** 2}, r"loss must be .* \[B\], got \(2, 2\)"),
        ({"loss": lambda outputs, y: outputs.mean()}, r"loss must be one number .* got \(\)"),
        ({"correct": lambda outputs, y: abs(outputs) < 1}, r"correct must be .* got \(2, 1\)"),
        ({"loss": lambda outputs: outputs[:, 0]}, "task: loss raised TypeError"),
        ({"sample": lambda data, *_: data[0]}, r"sample must return \(x, targets\)"),
        (
            {"sample": lambda data, split, i, arrays: (data[0][i, :5], data[1][i])},
            r"inputs \[B, 6\] or \[B, 6\], got shape \(2, 5\)",
        ),
        ({"sample": lambda data, split, i: data}, "sample.* raised TypeError"),
    ],
)
def test_what_breaks_the_contract_is_named(changes, problem):
    with pytest.raises(InputError, match=problem):
        train_many(MODEL, _task(**changes), recipe=RECIPE)


def test_labels_that_are_no_integers_need_a_loss_of_their_own():
    parts = _task()
    with pytest.raises(InputError, match=r"targets are float32, .* give a loss"):
        train_many(MODEL, Task(parts.data, parts.sample), recipe=RECIPE)


def test_an_observer_that_fails_or_gives_no_arrays_is_named():
    for observer, problem in (
        (lambda variables: 0, r"observe\['own'\] raised TypeError"),
        (lambda variables, data, member: "text", r"observe\['own'\] raised TypeError"),
        (lambda variables, data, member: member.direction, "raised AttributeError"),
    ):
        with pytest.raises(InputError, match=problem):
            train_many(MODEL, _task(), recipe=RECIPE, observe={"own": observer})


def test_an_observer_of_other_sizes_than_the_training_is_refused():
    other = Recipe(num_train=40, num_test=20, batch_size=20, num_epochs=2)
    for own in (observers.accuracy(MODEL, _task(), other), observers.gradient_cosine(MODEL, other)):
        with pytest.raises(InputError, match="of 40 training and 20 test samples, the training of"):
            train_many(MODEL, _task(), recipe=RECIPE, observe={"own": own})
    same = observers.accuracy(MODEL, _task(), RECIPE)
    metrics = train_many(MODEL, _task(), recipe=RECIPE, observe={"own": same})
    np.testing.assert_array_equal(metrics.observed["own"][:, -1], metrics.test_accuracy)


def test_points_of_bytes_are_what_the_task_trains_on():
    x = np.random.default_rng(0).integers(0, 256, (5, 6), np.uint8)
    np.testing.assert_array_equal(nad_jax.images(x).data, x.astype(np.float32) / 255)
