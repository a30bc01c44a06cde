"""A task, and observers, of one's own that break their contract are refused before the training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nad_jax
from nad_jax import (
    InputError,
    Recipe,
    Task,
    create_model,
    fitting,
    observers,
    task_contract,
    tasks,
    train_many,
)
from nad_jax.fitting import make_fit
from nad_jax.task import REQUIRED, FitMetrics, cross_entropy, has_label
from nad_jax.training import make_members

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


def test_names_of_a_task_are_also_where_they_were():
    assert fitting.REQUIRED is REQUIRED and fitting.FitMetrics is FitMetrics
    assert fitting.cross_entropy is cross_entropy and fitting.has_label is has_label


def test_a_task_that_keeps_to_it_is_trained():
    assert train_many(MODEL, _task(), seed=[0, 1], recipe=RECIPE).test_loss.shape == (2,)


@pytest.mark.parametrize("split", ["train", "test"])
def test_more_samples_than_there_are_are_refused(split):
    sizes = {"num_train": 40, "num_test": 40, f"num_{split}": 41}
    with pytest.raises(InputError, match=rf"num_{split}=41 asks for more samples .* size 40"):
        train_many(MODEL, _task(), recipe=Recipe(batch_size=20, num_epochs=2, **sizes))
    with pytest.raises(InputError, match="num_train=10000 asks for more samples"):
        train_many(MODEL, _task())  # the default recipe is that of D(v)


def test_data_are_read_once_and_may_hold_keys(monkeypatch):
    read, on_host = [], task_contract._on_host
    monkeypatch.setattr(task_contract, "_on_host", lambda leaf: read.append(leaf) or on_host(leaf))
    task = _task(data=lambda *_: (jnp.asarray(INPUTS), jnp.asarray(TARGETS), jax.random.key(0)))
    with pytest.raises(InputError, match="num_test=41 asks for more samples"):
        train_many(MODEL, task, recipe=dataclasses.replace(RECIPE, num_test=41))
    assert len(read) == 3


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


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"loss": lambda o, y: jnp.log(0 * (o[:, 0] - y))},
            "loss must be finite, got .*inf for 20",
        ),
        ({"loss": lambda o, y: o[:, 0] > y}, "loss must give real numbers, got bool"),
        ({"correct": lambda o, y: o[:, 0] - y}, "correct must give truth values, got float32"),
        ({"loss": lambda o, y: (o[:, 0], y)}, "loss must be one number .* got tuple"),
    ],
)
def test_losses_that_cannot_be_trained_are_named(changes, problem):
    with pytest.raises(InputError, match=f"^task: {problem}"):
        train_many(MODEL, _task(**changes), recipe=RECIPE)


def test_outputs_that_are_not_finite_are_no_fault_of_the_loss():
    spoilt = INPUTS.copy()
    spoilt[3] = np.nan
    task = _task(data=lambda model, recipe, seed: (jnp.asarray(spoilt), jnp.asarray(TARGETS)))
    assert train_many(MODEL, task, recipe=RECIPE).diverged_at.tolist() != [-1]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"perturb": 3}, "perturb: must be a function, got 3"),
        ({"penalty": "a"}, "penalty: must be a function, got 'a'"),
        (
            {"perturb": lambda losses, x, arrays, key: x[:1]},
            r"perturb must give samples as it takes them, float32\[20, 6\], got float32\[1, 6\]",
        ),
        ({"perturb": lambda losses, x, arrays, key: x.astype(int)}, "perturb must .* got int32"),
        ({"perturb": lambda losses, x, arrays, key: None}, "perturb must .* got NoneType"),
        ({"perturb": lambda x: x}, "perturb raised TypeError: "),
        (
            {"penalty": lambda variables, x, data, arrays: x.sum(1)},
            r"penalty must be one real floating-point number, got float32\[20\]",
        ),
        ({"penalty": lambda variables, x, data, arrays: x.sum() > 0}, r"penalty must .* bool\[\]"),
        ({"penalty": lambda x: 0.0}, "penalty raised TypeError: "),
    ],
)
def test_what_changes_the_training_keeps_to_the_contract(changes, problem):
    members, _ = make_members(MODEL, _task(), {}, 0.1, 0)
    member = jax.tree.map(lambda leaf: leaf[0], members)
    task = _task(**changes)
    with pytest.raises(InputError, match=f"^task: {problem}"):
        fit = make_fit(MODEL, RECIPE, task)
        jax.eval_shape(fit.epoch, fit.start(member), task.data(MODEL, RECIPE, 0), member)


def test_a_penalty_and_samples_that_keep_to_it_are_trained_with():
    """A constant penalty changes nothing; on samples of 0 the first kernel stays as it began."""
    plain = train_many(MODEL, _task(), recipe=RECIPE, keep=True)
    same = train_many(MODEL, _task(penalty=lambda *_: 0.5), recipe=RECIPE, keep=True)
    jax.tree.map(np.testing.assert_array_equal, same.variables, plain.variables)
    still = _task(perturb=lambda losses, x, arrays, key: 0 * x)
    other = train_many(MODEL, still, recipe=RECIPE, keep=True)
    start = MODEL.init(jax.random.split(make_members(MODEL, _task(), {}, 0.1, 0)[0].key[0], 3)[0])
    kernel = other.variables["params"]["Dense_0"]["kernel"][0]
    np.testing.assert_array_equal(kernel, start["params"]["Dense_0"]["kernel"])


TWO = create_model("mlp", (4, 4, 1), 2, width=4)


def _images(**losses):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 4, 4, 1), np.uint8)
    labels = (pixels.mean((1, 2, 3)) > 127).astype(np.int32)
    return tasks.images(nad_jax.ImageData(pixels, labels, pixels, labels), **losses), {}


def _separable(**losses):
    return tasks.separable(**losses), {"direction": np.eye(16, dtype=np.float32)[:1]}


def squares(outputs, labels):
    return ((outputs - jax.nn.one_hot(labels, 2)) ** 2).sum(1)


@pytest.mark.parametrize("make", [_separable, _images])
def test_a_task_takes_a_loss(make):
    def train(**losses):
        task, arrays = make(**losses)
        return train_many(TWO, task, recipe=RECIPE, learning_rate=0.1, keep=True, **arrays)

    plain = train()
    same = train(loss=lambda outputs, labels: cross_entropy(outputs, labels))
    jax.tree.map(np.testing.assert_array_equal, same, plain)
    other = train(loss=squares, correct=lambda outputs, labels: outputs[:, 1] > 100)
    assert other.train_accuracy.tolist() == [0] and other.train_loss < 2
    assert not np.array_equal(other.losses, plain.losses)
    # The loss of the networks as they are, from their variables, in NumPy.
    task, arrays = make()
    members, _ = make_members(TWO, task, arrays, 0.1, 0)
    data = task.data(TWO, RECIPE, 0)
    member = jax.tree.map(lambda leaf: leaf[0], members)
    x, labels = task.sample(data, "test", jnp.arange(40), member.arrays)
    variables = jax.tree.map(lambda leaf: leaf[0], other.variables)
    outputs = np.asarray(TWO.apply(variables, x.reshape(-1, 4, 4, 1)), np.float64)
    expected = ((outputs - np.eye(2)[np.asarray(labels)]) ** 2).sum(1).mean()
    np.testing.assert_allclose(other.test_loss, [expected], rtol=1e-5)


@pytest.mark.parametrize("make", [_separable, _images])
@pytest.mark.parametrize(
    ("losses", "problem"),
    [
        ({"loss": lambda o, y: o.mean(0)}, r"task: loss must be .* got \(2,\) for B = 3"),
        ({"loss": lambda o, y: squares(o, y).mean()}, r"task: loss must be .* got \(\)"),
        ({"loss": lambda o, y: squares(o, y) / 0}, "task: loss must be finite, got .*inf"),
        ({"loss": lambda o: o}, "task: loss raised TypeError"),
        ({"correct": squares}, "task: correct must give truth values"),
        ({"loss": "squares"}, "loss: must be a function, got 'squares'"),
        ({"correct": None}, "correct: must be a function, got None"),
    ],
)
def test_a_loss_that_breaks_the_contract_is_named(make, losses, problem):
    with pytest.raises(InputError, match=f"^{problem}") as caught:
        task, arrays = make(**losses)
        train_many(TWO, task, recipe=RECIPE, **arrays)
    assert len(str(caught.value).splitlines()) == 1


def test_tasks_with_the_losses_of_the_package_need_no_test():
    assert tasks.separable().trusted and _images()[0].trusted
    assert not tasks.separable(loss=squares).trusted
    assert not _images(correct=lambda o, y: o[:, 0] > 0)[0].trusted


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
