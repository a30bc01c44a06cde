"""Denoising as a task: its samples, its recipe against a float64 reference, the best loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import (
    Execution,
    Recipe,
    Schedule,
    ScoreNetwork,
    Snapshots,
    Task,
    as_model,
    create_model,
    gaussian_loss,
    gaussian_network,
    sample_rank_one,
    score_recipe,
    tasks,
    train_many,
)
from nad_jax.errors import InputError
from nad_jax.fitting import make_evaluate
from nad_jax.task import Members
from nad_jax.tasks.denoising import beats_zero
from nad_jax.training import make_members, make_run

SIZE, LEVELS = 4, 20
SCHEDULE = Schedule(LEVELS, 0.1, 5.0)
SMALL = dataclasses.replace(
    score_recipe(3), num_train=100, num_test=60, batch_size=32, loss_window=3
)
SHARE = np.cumprod(1 - SCHEDULE.betas)


def _linear_network():
    """A score network that is linear in its input, with another matrix for every level."""

    def init(key):
        return 0.3 * jax.random.normal(key, (LEVELS, SIZE, SIZE))

    def apply(variables, x, t):
        flat = x.reshape(len(x), SIZE)
        noise = jnp.einsum("bi,bij->bj", flat, variables[jnp.clip(t, 0, LEVELS - 1).astype(int)])
        return noise.reshape(x.shape)

    return ScoreNetwork(init, apply, (2, 2, 1))


def _directions(count=2):
    return np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))[0].T[:count]


def _samples(task, recipe=SMALL, seed=0, split="train", count=100, epoch=1, **arrays):
    model = as_model(_linear_network())
    members, _ = make_members(model, task, arrays, 1e-4, seed)
    data = task.data(model, task.resolve_recipe(recipe), seed)
    one = {name: array[0] for name, array in members.arrays.items()}
    packed, noise = task.draw(data, split, jnp.arange(count), one, epoch=epoch)
    x, t = np.asarray(packed[:, :-1], np.float64), np.asarray(packed[:, -1]).astype(int)
    return x, t, np.asarray(noise, np.float64)


def _clean(x, t, noise):
    return (x - np.sqrt(1 - SHARE[t])[:, None] * noise) / np.sqrt(SHARE[t])[:, None]


def test_samples_are_rank_one_data_at_uniform_levels_of_gaussian_noise():
    count, (v, *_) = 4_000, _directions()
    recipe = dataclasses.replace(SMALL, num_train=count)
    x, t, noise = _samples(tasks.denoising(SCHEDULE), recipe, count=count, direction=v[None])
    clean = _clean(x, t, noise)
    np.testing.assert_allclose(clean, np.outer(clean @ v, v), atol=1e-5)
    assert (clean @ v).var() == pytest.approx(SIZE, abs=4 * SIZE * np.sqrt(2 / count))
    counts = np.bincount(t, minlength=LEVELS)
    assert len(counts) == LEVELS and np.abs(counts - count / LEVELS).max() < 4.5 * np.sqrt(200)
    np.testing.assert_allclose(noise.T @ noise / count, np.eye(SIZE), atol=5 / np.sqrt(count))
    related = np.column_stack([clean @ v, t - t.mean(), noise])
    cosines = np.corrcoef(related.T) - np.eye(SIZE + 2)
    assert np.abs(cosines).max() < 5 / np.sqrt(count)  # none depends on another


def test_an_epoch_shows_the_same_data_with_new_noise():
    given = {"direction": _directions(1)}
    task = tasks.denoising(SCHEDULE)
    first, second, evaluated = (_samples(task, epoch=epoch, **given) for epoch in (1, 2, 0))
    for one, other in [(first, second), (first, evaluated), (second, evaluated)]:
        np.testing.assert_allclose(_clean(*one), _clean(*other), atol=1e-4)
        assert np.abs(one[2] - other[2]).min() > 0 and (one[1] != other[1]).mean() > 0.8
    test = _samples(task, split="test", epoch=0, count=60, **given)
    assert np.abs(_clean(*test) - _clean(*evaluated)[:60]).max(1).min() > 1e-4
    assert np.abs(test[2] - evaluated[2][:60]).min() > 0


def test_networks_of_a_seed_share_all_but_their_direction():
    one, other = _directions(2)
    task = tasks.denoising(SCHEDULE)
    first, second = (_samples(task, direction=v[None]) for v in (one, other))
    np.testing.assert_array_equal(first[2], second[2])
    np.testing.assert_allclose(_clean(*first) @ one, _clean(*second) @ other, atol=1e-4)
    third = _samples(task, seed=1, direction=one[None])
    assert np.abs(first[2] - third[2]).min() > 0


def test_images_are_rotated_as_vectors():
    rng = np.random.default_rng(3)
    images, test_images = rng.normal(size=(100, 2, 2, 1)), rng.normal(size=(30, 2, 2, 1))
    rotation = _directions(SIZE)
    plain = _samples(tasks.denoising_images(images, test_images, None, SCHEDULE))
    np.testing.assert_allclose(_clean(*plain), images.reshape(100, 4), atol=1e-5)
    turned = tasks.denoising_images(images, test_images, rotation, SCHEDULE)
    np.testing.assert_allclose(
        _clean(*_samples(turned)), images.reshape(100, 4) @ rotation.T, atol=1e-5
    )
    test = _samples(turned, split="test", count=30, epoch=0)
    np.testing.assert_allclose(_clean(*test), test_images.reshape(30, 4) @ rotation.T, atol=1e-5)


def test_the_best_network_has_the_loss_of_the_closed_form():
    (v,), count = _directions(1), 20_000
    covariance = SIZE * np.outer(v, v)
    model = as_model(gaussian_network(covariance, (2, 2, 1), SCHEDULE))
    task = tasks.denoising(SCHEDULE)
    recipe = dataclasses.replace(SMALL, num_test=count, batch_size=5_000)
    arrays = {"direction": jnp.asarray(v, jnp.float32)}
    member = Members(jax.random.key(0), jnp.float32(0), arrays)
    data = task.data(model, recipe, 0)
    accuracy, loss, _ = make_evaluate(model, task, recipe, "test")({}, data, member)
    packed, noise = task.draw(data, "test", jnp.arange(count), arrays)
    losses = task.loss(model.apply({}, packed), noise)
    expected = gaussian_loss(covariance, SCHEDULE)
    error = float(np.std(losses)) / np.sqrt(count)
    assert float(loss) == pytest.approx(expected, abs=4 * error)
    assert error < 0.02 * expected and 0.9 < accuracy <= 1
    worse = task.loss(0.8 * model.apply({}, packed), noise)
    assert np.mean(worse) > expected + 4 * error


def _reference(recipe, start, epochs, order_key, rate):
    """Adam on the linear network, written out in float64: the matrices and the losses."""
    weights = np.asarray(start, np.float64)
    first, second, losses, step = 0 * weights, 0 * weights, [], 0
    for key, (x, t, noise) in zip(
        jax.random.split(order_key, recipe.num_epochs), epochs, strict=True
    ):
        order = np.asarray(jax.random.permutation(key, recipe.num_train))
        for begun in range(0, recipe.num_train, recipe.batch_size):
            batch, step = order[begun : begun + recipe.batch_size], step + 1
            error = np.einsum("bi,bij->bj", x[batch], weights[t[batch]]) - noise[batch]
            losses.append(np.mean(error**2))
            gradient = np.zeros_like(weights)
            each = 2 / error.size * x[batch][:, :, None] * error[:, None, :]
            np.add.at(gradient, t[batch], each)
            gradient *= min(1.0, recipe.clip_norm / np.linalg.norm(gradient))
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            change = first / (1 - 0.9**step), second / (1 - 0.999**step)
            weights = weights - rate * change[0] / (np.sqrt(change[1]) + 1e-8)
    return weights, np.array(losses)


def test_the_recipe_equals_its_float64_reference():
    network, (v,) = _linear_network(), _directions(1)
    task, recipe = tasks.denoising(SCHEDULE), dataclasses.replace(SMALL, clip_norm=0.05)
    model = as_model(network)
    found = train_many(model, task, direction=v[None], seed=2, recipe=recipe, keep=True)
    members, _ = make_members(model, task, {"direction": v[None]}, 1e-4, 2)
    init_key, order_key, _ = jax.random.split(members.key[0], 3)
    epochs = [_samples(task, seed=2, epoch=e, direction=v[None]) for e in (1, 2, 3)]
    weights, losses = _reference(recipe, network.init(init_key), epochs, order_key, 1e-4)
    np.testing.assert_allclose(found.losses[0], losses, atol=2e-5)
    np.testing.assert_allclose(found.variables[0], weights, atol=2e-5)
    x, t, noise = _samples(task, seed=2, split="test", count=60, epoch=0, direction=v[None])
    error = np.einsum("bi,bij->bj", x, weights[t]) - noise
    assert found.test_loss[0] == pytest.approx(np.mean(error**2), rel=1e-4)
    correct = (error**2).mean(1) < (noise**2).mean(1)
    assert found.test_accuracy[0] == pytest.approx(correct.mean(), abs=1e-6)


def test_training_tends_to_the_best_loss():
    (v,) = _directions(1)
    recipe = dataclasses.replace(score_recipe(20), num_train=1_000, num_test=2_000, batch_size=100)
    found = train_many(
        as_model(_linear_network()), tasks.denoising(SCHEDULE), direction=v[None],
        learning_rate=0.1, recipe=dataclasses.replace(recipe, schedule="linear"),
    )  # fmt: skip
    best = gaussian_loss(SIZE * np.outer(v, v), SCHEDULE)
    assert best < found.test_loss[0] < 1.4 * best < found.losses[0, 0] / 2


def test_a_network_depends_neither_on_its_company_nor_on_the_mapping():
    model, task, rows = as_model(_linear_network()), tasks.denoising(SCHEDULE), _directions(3)
    one_by_one = make_run(model, task, SMALL, Execution("sequential", 2))
    together = make_run(model, task, SMALL, Execution("vectorized", 2))
    many = one_by_one({"direction": rows}, 0.01, [0, 0, 1])
    other = together({"direction": rows}, 0.01, [0, 0, 1])
    np.testing.assert_allclose(many.losses, other.losses, rtol=1e-4)
    for number, seed in enumerate([0, 0, 1]):
        alone = one_by_one({"direction": rows[number][None]}, 0.01, seed)
        np.testing.assert_array_equal(alone.losses[0], many.losses[number])


class Stopped(Exception):
    pass


def test_resumed_training_equals_uninterrupted(tmp_path):
    model, task = as_model(_linear_network()), tasks.denoising(SCHEDULE)

    def train(progress=None, snapshots=None):
        return train_many(
            model, task, direction=_directions(1), learning_rate=0.01, recipe=SMALL,
            progress=progress, snapshots=snapshots,
        )  # fmt: skip

    def stop(done):
        if done > 0.5:
            raise Stopped

    whole = train()
    with pytest.raises(Stopped):
        train(stop, Snapshots(tmp_path, {}, 0.0))
    resumed = train(None, Snapshots(tmp_path, {}, 0.0))
    np.testing.assert_array_equal(resumed.losses, whole.losses)


def test_a_task_of_ones_own_is_told_the_epoch():
    def sample(data, split, indices, arrays, epoch):
        assert split in ("train", "test")
        return jnp.ones((len(indices), 3)), jnp.full(len(indices), epoch)

    task = Task(
        data=lambda model, recipe, seed: jnp.zeros(1), sample=sample, fresh=True,
        loss=lambda outputs, epoch: epoch + 0.0 * outputs[:, 0],
        correct=lambda outputs, epoch: epoch == 0,
    )  # fmt: skip
    recipe = Recipe(num_train=6, num_test=6, batch_size=4, num_epochs=3, loss_window=2)
    found = train_many(create_model("logreg", (3,), 2), task, seed=0, recipe=recipe)
    assert found.losses[0].tolist() == [1, 1, 2, 2, 3, 3]
    assert (found.train_loss, found.test_loss, found.test_accuracy) == (0, 0, 1)


def test_rank_one_samples_lie_on_their_line_with_variance_d():
    (v,) = _directions(1)
    samples = np.asarray(sample_rank_one(7, v, 5_000), np.float64)
    np.testing.assert_allclose(samples, np.outer(samples @ v, v), atol=1e-5)
    assert (samples @ v).var() == pytest.approx(SIZE, abs=4 * SIZE * np.sqrt(2 / 5_000))
    assert not np.array_equal(samples, sample_rank_one(8, v, 5_000))


def test_predicting_zero_does_not_beat_itself():
    noise = jnp.asarray([[1.0, -2.0], [1.0, 1.0], [0.5, 0.0]])
    outputs = jnp.asarray([[0.0, 0.0], [0.5, 0.5], [-0.5, 0.1]])
    assert beats_zero(outputs, noise).tolist() == [False, True, False]


IMAGES = np.zeros((5, 2, 2, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tasks.denoising("cosine"), "^schedule: must be Schedule, got str"),
        (lambda: tasks.denoising(Schedule(-1)), "^num_levels: must be an integer"),
        (lambda: tasks.denoising_images(IMAGES, np.zeros((5, 3))), "^test_images: must have 4"),
        (lambda: tasks.denoising_images(IMAGES, IMAGES, np.ones((4, 4))), "^rotation: must be or"),
        (lambda: tasks.denoising_images(IMAGES, IMAGES, np.eye(3)), "^rotation: must be real num"),
        (
            lambda: tasks.denoising_images(IMAGES[:0], IMAGES),
            r"^images: must be real .*\(0, 2, 2, 1",
        ),
        (lambda: tasks.denoising_images(IMAGES, IMAGES[:0]), r"^test_images: must be real numbers"),
        (lambda: sample_rank_one(0, [1.0, 1.0], 5), "^direction: has norm 1.414"),
        (lambda: sample_rank_one(0, [1.0, 0.0], 0), "^num_samples: must be an integer"),
    ],
)
def test_bad_input_is_refused_by_name(make, message):
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("task", "arrays", "message"),
    [
        (tasks.denoising(), {"direction": np.eye(5)}, r"^direction: must be real .* \[N, 4\]"),
        (tasks.denoising(), {"direction": 2 * np.eye(4)}, "^direction: row 0 has norm 2"),
        (tasks.denoising(), {}, "^direction: is needed"),
        (tasks.denoising_images(IMAGES[:, :1], IMAGES[:, :1]), {}, "^images: must have 4 entr"),
    ],
)
def test_what_does_not_fit_the_network_is_refused(task, arrays, message):
    with pytest.raises(InputError, match=message):
        train_many(as_model(_linear_network()), task, recipe=SMALL, **arrays)


def test_a_classifier_is_refused():
    with pytest.raises(InputError, match=r"^model: must take an input and its noise level"):
        train_many(create_model("logreg", (4,), 2), tasks.denoising(), direction=np.eye(4))
