"""Attacks against closed forms, and what adversarial training is made of."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nad_jax import (
    ImageData,
    Recipe,
    Task,
    adversarial,
    basis_random,
    create_model,
    from_linen,
    make_key,
    observers,
    pgd,
    sample_separable,
    separable,
    tasks,
    train_many,
)
from nad_jax.attacks import make_attack
from nad_jax.ensemble import named_key
from nad_jax.errors import InputError
from nad_jax.fitting import make_fit
from nad_jax.training import make_members
from tests.commands import Command
from tests.double_precision import SHAPE, Net

MODEL = create_model("mlp", (12,), 2, width=6)
RECIPE = Recipe(num_train=48, num_test=32, num_epochs=2, batch_size=16, loss_window=2)
BASIS = np.asarray(basis_random(make_key(3), 12))


def _logistic(w, labels):
    signs = 1 - 2 * labels
    return lambda x: jax.nn.softplus(-signs * (x @ w))


@pytest.mark.parametrize(("norm", "radius"), [("l2", 0.0), ("l2", 0.4), ("l2", 1.2), ("linf", 0.1)])
def test_a_linear_classifier_has_its_closed_form_robust_accuracy(norm, radius):
    epsilon, sigma, cosine, count = 0.8, 0.9, 0.7, 4000
    w = jnp.asarray(cosine * BASIS[0] + np.sqrt(1 - cosine**2) * BASIS[1])
    x, labels = sample_separable(make_key(5), BASIS[0], count, epsilon, sigma)
    moved = pgd(_logistic(w, labels), x, radius, norm)
    accuracy = float(((moved @ w <= 0) == labels).mean())
    reach = radius * (1 if norm == "l2" else float(jnp.abs(w).sum()))
    score = (epsilon * cosine - reach) / (sigma * np.sqrt(1 - cosine**2))
    expected = scipy.stats.norm.cdf(score)
    assert abs(accuracy - expected) < 3 * np.sqrt(expected * (1 - expected) / count)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("random_start", [False, True])
def test_samples_stay_in_the_ball_and_reach_its_best_point(norm, random_start):
    w = jnp.asarray(BASIS[2])
    x, labels = sample_separable(make_key(1), BASIS[0], 50)
    key = jax.random.key(2) if random_start else None
    moved = np.asarray(pgd(_logistic(w, labels), x, 0.3, norm, 40, key) - x)
    reach = np.linalg.norm(moved, axis=1) if norm == "l2" else np.abs(moved).max(1)
    assert reach.max() <= 0.3 * (1 + 1e-5)
    best = 0.3 * (BASIS[2] if norm == "l2" else np.sign(BASIS[2]))
    signs = 1 - 2 * np.asarray(labels)
    along = moved @ best / (best @ best)
    # A random start leaves something across the gradient in the L2 ball, nothing in the other.
    assert (-signs * along).min() > (0.95 if random_start and norm == "l2" else 1 - 1e-5)


def test_of_a_curved_loss_the_farthest_point_is_found():
    """‖x + δ‖² is largest at δ = r x/‖x‖, which several steps of any start find."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3, 2)), jnp.float32)

    def losses(x):
        return (x**2).sum((1, 2))

    best = (np.linalg.norm(x.reshape(20, -1), axis=1) + 0.5) ** 2
    np.testing.assert_allclose(losses(pgd(losses, x, 0.5)), best, rtol=1e-5)
    found = losses(pgd(losses, x, 0.5, steps=40, key=jax.random.key(0))) / best
    assert 0.95 < found.min() < found.max() < 1 + 1e-5
    assert (losses(pgd(losses, x, 0.5, steps=1)) > losses(x)).all()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_zero_gradients_radius_zero_and_tiny_gradients_are_exact(norm):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4)), jnp.float32)
    np.testing.assert_array_equal(pgd(lambda x: 0 * x[:, 0], x, 1.0, norm), x)
    key = jax.random.key(0)
    for traced in (pgd, jax.jit(pgd, static_argnums=(0, 3, 4))):
        np.testing.assert_array_equal(traced(lambda x: x[:, 0] ** 2, x, 0.0, norm, 3, key), x)
    moved = pgd(lambda x: 1e-30 * x[:, 0], x, 1.0, norm)
    np.testing.assert_allclose(moved - x, np.eye(4)[:1].repeat(5, 0), atol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("radius", [1e-30, 1.0, 1e30])
def test_the_ball_is_reached_and_kept_to_where_squares_are_not_representable(norm, radius):
    """Of a linear loss the best point is found: r w/‖w‖, or r sign(w)."""
    w = np.arange(1.0, 5.0)
    moved = pgd(lambda x: x @ jnp.asarray(w, jnp.float32), jnp.zeros((3, 4)), radius, norm)
    best = w / np.linalg.norm(w) if norm == "l2" else np.ones(4)
    np.testing.assert_allclose(np.asarray(moved, np.float64) / radius, [best] * 3, rtol=1e-5)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_])
def test_integers_and_truth_values_are_moved_as_the_same_floating_point_numbers(norm, dtype):
    x = np.random.default_rng(0).integers(0, 2, (5, 4)).astype(dtype)

    def losses(x):
        return (x**2).sum(1) + x[:, 0]

    moved = pgd(losses, x, 0.5, norm)
    assert moved.dtype == np.float32 and np.abs(moved - x.astype(np.float32)).max() > 0.1
    np.testing.assert_array_equal(moved, pgd(losses, x.astype(np.float32), 0.5, norm))


def test_a_task_of_integer_samples_is_attacked():
    rng = np.random.default_rng(0)
    inputs, labels = rng.integers(-3, 4, (48, 12)), np.arange(48) % 2
    task = adversarial(
        Task(
            lambda *_: (jnp.asarray(inputs), jnp.asarray(labels)),
            lambda data, split, indices, arrays: (data[0][indices], data[1][indices]),
        )
    )
    observe = {"robust": observers.robust_accuracy(MODEL, task, RECIPE, radius=2.0)}
    how = {"recipe": RECIPE, "learning_rate": 0.1, "observe": observe}
    found = train_many(MODEL, task, radius=[0.0, 0.5], **how)
    assert found.losses[1, 0] > found.losses[0, 0] + 0.01
    assert (found.observed["robust"][:, -1] < found.test_accuracy).all()


def _lowered(task, **arrays):
    members = make_members(MODEL, task, {"direction": BASIS[:1], **arrays}, 0.1, 0)[0]
    member = jax.tree.map(lambda leaf: leaf[0], members)
    fit = make_fit(MODEL, RECIPE, task)
    data = task.data(MODEL, RECIPE, 0)
    return jax.jit(fit.epoch).lower(fit.start(member), data, member).as_text()


def test_the_option_off_is_the_same_program():
    """A task without attacks lowers to the same text, also where networks have a radius that
    nothing reads; with them to another one.
    """
    plain, task = _lowered(separable()), adversarial(separable())
    assert _lowered(task._replace(perturb=None)) == plain
    assert _lowered(separable()._replace(perturb=lambda losses, x, arrays, key: x)) == plain
    assert _lowered(task) != plain


def test_radius_zero_trains_as_without_attacks_and_others_do_not():
    plain = train_many(MODEL, separable(), direction=BASIS[:2], seed=3, recipe=RECIPE)
    found = train_many(
        MODEL, adversarial(separable(), steps=2), direction=BASIS[[0, 1, 0]], seed=3,
        radius=[0.0, 0.0, 0.5], recipe=RECIPE, mapping="sequential",
    )  # fmt: skip
    np.testing.assert_allclose(found.losses[:2], plain.losses, rtol=1e-5)
    np.testing.assert_allclose(found.gradient_cosine[:2], plain.gradient_cosine, rtol=1e-4)
    assert (found.losses[2] > plain.losses[0]).all()  # the same start and samples, attacked
    np.testing.assert_allclose(found.settings["radius"], [0, 0, 0.5])


class _DropNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(x))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(nn.tanh(x)))


@pytest.mark.parametrize("random_start", [False, True])
def test_the_first_step_is_that_of_samples_attacked_in_evaluation_mode(random_start):
    """And its dropout is that of training without attacks; a random start has a key of its own."""
    model = from_linen(_DropNet(), (12,), check=False)
    task = adversarial(separable(), steps=2, radius=2.0, random_start=random_start)
    members, _ = make_members(model, task, {"direction": BASIS[:1]}, 0.1, 5)
    member = jax.tree.map(lambda leaf: leaf[0], members)
    data, fit = task.data(model, RECIPE, 5), make_fit(model, RECIPE, task)
    state = fit.start(member)
    found = jax.jit(fit.epoch)(state, data, member).losses[0, 0]
    _, order_key, dropout_key = jax.random.split(member.key, 3)
    order = jax.random.permutation(jax.random.split(order_key, RECIPE.num_epochs)[0], 48)
    x, labels = task.sample(data, "train", order[:16], member.arrays)
    variables, key = fit.variables(state), jax.random.fold_in(dropout_key, 1)

    def losses(x):
        return task.loss(model.apply(variables, x), labels)

    start = jax.random.fold_in(key, 1) if random_start else None
    moved = pgd(losses, x, 2.0, "l2", 2, start)
    outputs, _ = model.apply(variables, moved, key, train=True)
    assert float(found) == pytest.approx(float(task.loss(outputs, labels).mean()), rel=1e-5)


def test_a_task_under_attack_refuses_what_the_task_itself_does():
    with pytest.raises(InputError, match=r"^directions: row 0 has norm 2, expected 1"):
        make_members(MODEL, adversarial(separable()), {"direction": 2 * BASIS[:1]}, 0.1, 0)


def _double_losses(path):
    jax.config.update("jax_enable_x64", True)
    model, directions = from_linen(Net(2, jnp.float64), SHAPE, check=False), np.eye(16)[:2]
    found = []
    for task, more in ((separable(), {}), (adversarial(separable()), {"radius": [0.0, 0.0]})):
        members = make_members(model, task, {"direction": directions, **more}, 0.1, 0)[0]
        data, fit = task.data(model, RECIPE, 0), make_fit(model, RECIPE, task)
        states = jax.vmap(fit.epoch, (0, None, 0))(jax.vmap(fit.start)(members), data, members)
        found.append(states.trained[0])
        assert found[-1].dtype == np.float64
    np.save(path, np.stack(found))


def test_radius_zero_is_plain_training_to_1e_12_in_double_precision(tmp_path):
    path = str(tmp_path / "found.npy")
    process = Command(path, program=_double_losses)
    assert process.wait() == 0, process.errors[-2000:]
    plain, attacked = np.load(path)
    np.testing.assert_allclose(attacked, plain, rtol=0, atol=1e-12)


def test_robust_accuracy_is_that_of_the_samples_the_attack_gives():
    task, recipe = adversarial(separable(), steps=3), replace(RECIPE, num_epochs=6)
    observe = {
        "own": observers.robust_accuracy(MODEL, task, recipe),
        "fixed": observers.robust_accuracy(MODEL, separable(), recipe, steps=3, radius=0.9),
        "none": observers.robust_accuracy(MODEL, separable(), recipe, radius=0),
        "accuracy": observers.accuracy(MODEL, task, recipe),
    }
    found = train_many(
        MODEL, task, direction=BASIS[[0, 0]], radius=[0.2, 0.9], recipe=recipe, sigma=0.3,
        observe=observe, keep=True,
    )  # fmt: skip
    seen = found.observed
    np.testing.assert_array_equal(seen["none"], seen["accuracy"])
    np.testing.assert_array_equal(seen["own"][1], seen["fixed"][1])
    assert (seen["fixed"] <= seen["accuracy"]).all() and (seen["fixed"] < seen["own"]).any()
    variables = jax.tree.map(lambda leaf: leaf[1], found.variables)
    data = separable().data(MODEL, recipe, 0)
    arrays = {"direction": BASIS[0], "epsilon": 1.0, "sigma": 0.3}
    x, labels = separable().sample(data, "test", jnp.arange(32), arrays)
    moved = pgd(lambda x: separable().loss(MODEL.apply(variables, x), labels), x, 0.9, "l2", 3)
    expected = (MODEL.apply(variables, moved).argmax(-1) == labels).mean()
    assert seen["fixed"][1, -1] == pytest.approx(float(expected))


def _start(task, recipe, **arrays):
    """An untrained network, the data of the task and the network's own arrays."""
    members = make_members(MODEL, task, {"direction": BASIS[:1], **arrays}, 0.1, 0)[0]
    member = jax.tree.map(lambda leaf: leaf[0], members)
    return MODEL.init(jax.random.key(0)), task.data(MODEL, recipe, 0), member


def test_without_a_radius_the_attack_is_that_of_the_task_in_norm_and_steps():
    recipe = replace(RECIPE, num_test=600, batch_size=600)
    model = create_model("mlp", (12,), 2, width=6, initialization="flax")  # of zero biases
    task = adversarial(separable(), "linf", 1)
    _, data, member = _start(task, recipe, radius=0.3)
    variables = model.init(jax.random.key(6))
    own, same, l2, more = (
        observers.robust_accuracy(model, task, recipe, **how)(variables, data, member)
        for how in (
            {},
            {"radius": 0.3, "norm": "linf", "steps": 1},
            {"radius": 0.3, "steps": 1},
            {"radius": 0.3, "norm": "linf"},
        )
    )
    assert own == same and more + 0.03 < own < l2 - 0.03


def test_an_own_attack_of_a_random_start_begins_at_points_of_the_network_and_the_batch():
    """Each batch draws from the key of the network and the number of its first sample."""
    recipe = replace(RECIPE, num_test=400, batch_size=200)
    task = adversarial(separable(), steps=1, random_start=True)
    variables, data, member = _start(task, recipe, radius=3.0)
    found = observers.robust_accuracy(MODEL, task, recipe)(variables, data, member)
    key, correct = named_key(member.key, "perturb"), []
    for first in (0, 200):
        x, labels = task.sample(data, "test", jnp.arange(first, first + 200), member.arrays)

        def losses(x, labels=labels):
            return task.loss(MODEL.apply(variables, x), labels)

        moved = pgd(losses, x, 3.0, "l2", 1, jax.random.fold_in(key, first))
        correct.append(MODEL.apply(variables, moved).argmax(1) == labels)
    assert float(found) == pytest.approx(float(jnp.stack(correct).mean()), abs=1e-6)
    still = observers.robust_accuracy(MODEL, task, recipe, radius=3.0, steps=1)
    assert found != still(variables, data, member)


def test_images_with_arrays_of_a_transform_and_circles_are_attacked():
    rng = np.random.default_rng(0)
    model = create_model("mlp", (3, 4, 1), 2, width=6)
    data = ImageData(
        rng.random((32, 3, 4, 1)), np.arange(32) % 2, rng.random((16, 3, 4, 1)), np.arange(16) % 2
    )

    def brighten(x, labels, amount):
        return x + amount

    task = adversarial(tasks.images(data, brighten), steps=2)
    how = {"recipe": RECIPE, "radius": [0.0, 0.5], "learning_rate": 0.1}
    found = train_many(model, task, amount=np.zeros(2), **how)
    assert found.losses[1, 0] > found.losses[0, 0]
    circles = adversarial(tasks.circles(), "linf", 2)
    planes = {"first": BASIS[[0, 0]], "second": BASIS[[1, 1]]}
    found = train_many(MODEL, circles, **planes, **how)
    assert found.losses[1, 0] > found.losses[0, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adversarial(adversarial(separable())), "^task: must have neither"),
        (lambda: adversarial("D(v)"), "^task: must be Task"),
        (lambda: adversarial(separable(), "l1"), "^norm: unknown value 'l1'"),
        (lambda: adversarial(separable(), steps=0), "^steps: must be an integer of at least 1"),
        (lambda: adversarial(separable(), radius=-1), "^radius: must be a finite number"),
        (lambda: adversarial(separable(), random_start=1), "^random_start: unknown value 1"),
        (lambda: make_attack(radius=np.inf), "^radius: must be a finite number"),
        (lambda: pgd(lambda x: x[:, 0], np.zeros((2, 3)), -0.1), "^radius: must be a finite"),
        (lambda: pgd("losses", np.zeros((2, 3)), 0.1), "^losses: must be a function, got 'losses'"),
        (lambda: pgd(lambda x, y: x[:, 0], np.zeros((2, 3)), 0.1), "^losses raised TypeError: "),
        (
            lambda: pgd(lambda x: x[:, 0].astype(int), np.zeros((2, 3)), 0.1),
            r"^losses: must be one real .* \[B\], got \(2,\) of int32 for B = 2",
        ),
        (lambda: pgd(lambda x: x.sum(), np.zeros((2, 3)), 0.1), r"^losses: .* got \(\) of float32"),
        (lambda: pgd(lambda x: 3, np.zeros((2, 3)), 0.1), "^losses: .* got int for B = 2"),
        (lambda: pgd(lambda x: x[:, 0], 3.0, 0.1), r"^x: must be real numbers \[B, ...\], got"),
        (lambda: pgd(lambda x: x[:, 0], np.zeros((2, 3)), 0.1, key="a"), "^key: must be an int"),
        (lambda: observers.robust_accuracy(MODEL, separable(), RECIPE), "^radius: is needed"),
        (
            lambda: observers.robust_accuracy(MODEL, adversarial(separable()), steps=0),
            "^steps: without a radius it is that of the task's own attack",
        ),
        (lambda: observers.robust_accuracy(MODEL, separable(), radius=1, steps=0), "^steps: must"),
        (lambda: observers.robust_accuracy(MODEL, "a", RECIPE, radius=1), "^task: must be Task"),
        (lambda: observers.robust_accuracy("m", separable(), radius=1), "^model: must come from"),
        (lambda: observers.accuracy("m", separable(), RECIPE), "^model: must come from"),
        (lambda: observers.accuracy(MODEL, "a"), "^task: must be Task, got str"),
        (lambda: observers.gradient_cosine("m", RECIPE), "^model: must come from"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_network_of_negative_radius_is_refused_before_training():
    task = adversarial(separable())
    with pytest.raises(InputError, match=r"^radius: must be a finite number at least 0.0, got -1"):
        train_many(MODEL, task, direction=BASIS[:2], radius=[0.5, -1.0], recipe=RECIPE)
