"""Training on D(v): the recipe against a float64 reference, mappings against each other, faults."""

import dataclasses
import re
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from nad_jax import (
    Execution,
    FitMetrics,
    TrainMetrics,
    basis_dft,
    create_model,
    ensemble,
    from_functions,
    from_linen,
    from_nnx,
    make_train,
    make_train_many,
    sample_noise,
    target,
    tasks,
    train_many,
)
from nad_jax.chunks import choose_mapping, make_chunk
from nad_jax.errors import InputError
from nad_jax.fitting import make_fit
from nad_jax.recipe import Recipe, first_step_below
from nad_jax.tables import list_metrics
from nad_jax.tasks.separable import (
    _cosine,
    label_samples,
    network_keys,
    noise_key,
    separate,
)
from nad_jax.training import make_members
from tests.commands import script

SHAPE = (8, 8, 1)
SMALL = Recipe(num_train=200, num_test=100, batch_size=32, num_epochs=2, loss_window=3)


def _directions(count, shape=SHAPE):
    return np.asarray(basis_dft(shape).directions[1 : 1 + count])


def _network_key(seed, direction):
    return network_keys([seed], {"direction": direction[None]})[0]


def _train_one(model, recipe, direction, epsilon=1.0, sigma=1.0, learning_rate=0.5, seed=0):
    noise = sample_noise(noise_key(seed), recipe.num_train, recipe.num_test, direction.size)
    key = _network_key(seed, direction)
    variables, metrics = jax.jit(make_train(model, recipe))(
        key, jnp.asarray(direction), epsilon, sigma, learning_rate, noise
    )
    return variables, metrics, key, noise


def reference_regression(recipe, weights, bias, x, labels, order_key, learning_rate, momentum=0.0):
    """Logistic regression of labels [B] on x [B, D] by a recipe, written out in float64."""
    velocity_w, velocity_b, losses, step = 0.0, 0.0, [], 0
    for key in jax.random.split(order_key, recipe.num_epochs):
        order = np.asarray(jax.random.permutation(key, recipe.num_train))
        for first in range(0, recipe.num_train, recipe.batch_size):
            step += 1
            batch = order[first : first + recipe.batch_size]
            logits = x[batch] @ weights + bias
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            losses.append(-np.log(p[np.arange(len(batch)), labels[batch]]).mean())
            error = (p - np.eye(len(bias))[labels[batch]]) / len(batch)
            gw, gb = x[batch].T @ error, error.sum(0)
            scale = min(1.0, recipe.clip_norm / np.sqrt((gw**2).sum() + (gb**2).sum()))
            gw, gb = (
                scale * gw + recipe.weight_decay * weights,
                scale * gb + recipe.weight_decay * bias,
            )
            velocity_w, velocity_b = momentum * velocity_w + gw, momentum * velocity_b + gb
            rate = learning_rate * (1 - step / recipe.num_steps)
            weights, bias = weights - rate * velocity_w, bias - rate * velocity_b
    return weights, bias, np.array(losses)


@pytest.mark.parametrize(("options", "weight_decay"), [({}, 0.0), ({"momentum": 0.9}, 5e-2)])
def test_the_recipe_equals_its_float64_reference(options, weight_decay):
    recipe = dataclasses.replace(
        SMALL, num_epochs=3, clip_norm=0.4, weight_decay=weight_decay, optimizer_options=options
    )
    assert recipe.num_steps == 21  # six full batches and one of 8 samples, three times
    model = create_model("logreg", SHAPE, num_logits=2)
    (direction,) = _directions(1)
    variables, metrics, key, noise = _train_one(model, recipe, direction)
    init_key, order_key, _ = jax.random.split(key, 3)
    start = model.init(init_key)["params"]["Dense_0"]
    labels = np.arange(recipe.num_train) % 2
    v, n = direction.astype(np.float64), np.asarray(noise.train, np.float64)
    weights, bias, losses = reference_regression(
        recipe,
        np.asarray(start["kernel"], np.float64),
        np.asarray(start["bias"], np.float64),
        np.outer(1 - 2 * labels, v) + n - np.outer(n @ v, v),
        labels,
        order_key,
        0.5,
        **options,
    )
    dense = variables["params"]["Dense_0"]
    np.testing.assert_allclose(metrics.losses, losses, atol=2e-5)
    np.testing.assert_allclose(dense["kernel"], weights, atol=2e-5)
    np.testing.assert_allclose(dense["bias"], bias, atol=2e-5)
    # For a linear network the mean input gradient is the difference of its two columns.
    difference = weights[:, 0] - weights[:, 1]
    cosine = abs(difference @ direction) / np.linalg.norm(difference)
    assert float(metrics.gradient_cosine) == pytest.approx(cosine, abs=1e-5)
    assert int(metrics.diverged_at) == -1


def test_accuracies_and_losses_are_those_of_the_trained_network():
    model = create_model("mlp", SHAPE, num_logits=2)
    recipe = dataclasses.replace(SMALL, num_test=90)  # the last batch of the evaluation is not full
    (direction,) = _directions(1)
    variables, metrics, _, noise = _train_one(model, recipe, direction, epsilon=0.5, sigma=2.0)
    for split, accuracy, loss in (
        (noise.train, metrics.train_accuracy, metrics.train_loss),
        (noise.test, metrics.test_accuracy, metrics.test_loss),
    ):
        labels = label_samples(jnp.arange(len(split)))
        x = separate(split, labels, jnp.asarray(direction), 0.5, 2.0).reshape(-1, *SHAPE)
        logits = model.apply(variables, x)
        assert float(accuracy) == pytest.approx(
            float((logits.argmax(1) == labels).mean()), abs=1e-6
        )
        chosen = jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
        assert float(loss) == pytest.approx(-float(chosen.mean()), rel=1e-4)
    gradients = jax.grad(lambda x: (model.apply(variables, x) @ jnp.array([1.0, -1.0])).sum())(x)
    mean = np.asarray(gradients.mean(0)).reshape(-1)
    cosine = abs(mean @ direction) / np.linalg.norm(mean)
    assert float(metrics.gradient_cosine) == pytest.approx(cosine, rel=1e-4)


def test_logistic_regression_learns_every_direction():
    model = create_model("logreg", SHAPE, num_logits=2)
    directions = np.concatenate([_directions(4), np.eye(64, dtype=np.float32)[:2]])
    recipe = dataclasses.replace(SMALL, num_train=2000, num_test=1000, num_epochs=10)
    metrics = train_many(model, directions, recipe=recipe)
    assert (metrics.test_accuracy >= 0.99).all() and (metrics.gradient_cosine > 0.98).all()


def test_a_perfect_network_has_an_accuracy_of_one():
    model = create_model("logreg", SHAPE, num_logits=2)
    recipe = dataclasses.replace(
        SMALL, num_train=500, num_test=94, num_epochs=5
    )  # 94 · (1 / 94) < 1 in float32
    metrics = train_many(model, _directions(1), sigma=0.1, learning_rate=1e20, recipe=recipe)
    assert metrics.test_accuracy[0] == 1.0 and metrics.gradient_cosine[0] > 0.5


def test_first_step_below_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    for case in range(20):
        losses = rng.exponential(1.0 / np.arange(1, 31)).astype(np.float32)
        window, threshold = int(rng.integers(1, 8)), float(rng.choice([0.01, 0.1, 0.3]))
        losses[:5] += 1e10 * (
            case % 3 == 0
        )  # far above what float32 resolves next to the threshold
        if case % 2:
            losses[20:] = np.nan  # diverged
        expected = -1
        for step in range(window, 31):
            if losses[step - window : step].mean() <= threshold:
                expected = step
                break
        assert int(first_step_below(jnp.asarray(losses), window, threshold)) == expected
    assert int(first_step_below(jnp.zeros(3), 4, 1.0)) == -1


LENET_SHAPE = (16, 16, 1)
LENET_RECIPE = Recipe(num_train=280, num_test=200, batch_size=64, num_epochs=2, loss_window=3)


def numbers(metrics):
    """The metrics that are arrays."""
    return {name: getattr(metrics, name) for name in (*list_metrics(metrics), "losses")}


def run_stages(chunk, num_epochs, data, members):
    """The metrics of networks that are trained by compiled stages."""
    state = chunk.start(members)
    for _ in range(num_epochs):
        state = chunk.epoch(state, data, members)
    return chunk.finish(state, data, members)


def lenet_chunk(mapping, devices):
    """The metrics of four LeNets, and the text of the program that trained them for an epoch."""
    model, task = create_model("lenet", LENET_SHAPE, num_logits=2), tasks.separable()
    arrays = {"direction": _directions(4, LENET_SHAPE), "sigma": 0.5}
    members, _ = make_members(model, task, arrays, 0.5, 0)
    data = jax.device_put(task.data(model, LENET_RECIPE, 0), ensemble.replicated(devices))
    execution = Execution(mapping, len(devices), len(devices))
    chunk = make_chunk(make_fit(model, LENET_RECIPE, task), execution)
    program = chunk.epoch.lower(chunk.start(members), data, members).compile().as_text()
    metrics = run_stages(chunk, LENET_RECIPE.num_epochs, data, members)
    return metrics._replace(observed=None), program


@pytest.fixture(scope="module")
def sequential():
    return lenet_chunk("sequential", jax.local_devices()[:1])[0]


def _assert_equivalent(left, right):
    steps = LENET_RECIPE.steps_per_epoch
    np.testing.assert_allclose(left.losses[:, :steps], right.losses[:, :steps], atol=1e-4)
    np.testing.assert_allclose(left.test_accuracy, right.test_accuracy, atol=0.005)


def test_sequential_and_vectorized_training_agree(sequential):
    _assert_equivalent(sequential, lenet_chunk("vectorized", jax.local_devices()[:1])[0])
    assert len({float(loss) for loss in sequential.losses[:, 0]}) == 4


@pytest.mark.parametrize("mapping", ["sequential", "vectorized"])
def test_a_network_does_not_depend_on_its_company(mapping):
    directions = _directions(3)
    run = make_train_many(create_model("mlp", SHAPE, num_logits=2), SMALL, mapping, chunk_size=2)
    many = run(directions, sigma=[0.5, 1.0, 0.5], seed=[0, 0, 1])
    for index, (sigma, seed) in enumerate([(0.5, 0), (1.0, 0), (0.5, 1)]):
        one = run(directions[index : index + 1], sigma=sigma, seed=seed)
        jax.tree.map(
            np.testing.assert_array_equal, one, jax.tree.map(lambda a, i=index: a[i : i + 1], many)
        )


SHARDED = """
import collections, jax, numpy as np
from nad_jax import ImageData, cifar_recipe, create_model, train_many, train_many_images
from tests.test_training import LENET_RECIPE, LENET_SHAPE, _directions, lenet_chunk, numbers
assert jax.local_device_count() == 4
metrics, program = lenet_chunk("sequential", jax.local_devices())
np.savez(f"{OUT}/sharded.npz", **numbers(metrics))
open(f"{OUT}/sharded.txt", "w").write(program)
compiled = collections.Counter()
def count(event, seconds, fun_name="", **_):
    if event == "/jax/core/compile/backend_compile_duration":
        compiled[fun_name] += 1
jax.monitoring.register_event_duration_secs_listener(count)
def check_compiled_once():
    assert [compiled[f"jit({stage})"] for stage in ("start", "epoch", "finish")] == [1, 1, 1], compiled
    compiled.clear()
model = create_model("lenet", LENET_SHAPE, num_logits=2)
for num_devices in (1, 4):  # the last chunk of four is not full
    metrics = train_many(model, _directions(5, LENET_SHAPE), recipe=LENET_RECIPE, num_devices=num_devices)
    np.savez(f"{OUT}/{num_devices}.npz", **numbers(metrics))
    check_compiled_once()
images, labels = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8), np.arange(64) % 4
data = ImageData(images, labels, images, labels)
colour, recipe = create_model("logreg", (8, 8, 3), 4), cifar_recipe(num_epochs=2)
for num_devices in (1, 4):
    metrics = train_many_images(colour, data, seed=[0, 1, 2], recipe=recipe, num_devices=num_devices)
    np.savez(f"{OUT}/images{num_devices}.npz", **numbers(metrics))
    check_compiled_once()
"""


def test_sharded_training_agrees_does_not_communicate_and_is_compiled_once(sequential, tmp_path):
    process = script(f"OUT = {str(tmp_path)!r}\n" + SHARDED, variables={"JAX_NUM_CPU_DEVICES": "4"})
    assert process.wait() == 0, process.errors

    def read(name, kind=TrainMetrics):
        with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as stored:
            return kind(**stored)

    _assert_equivalent(sequential, read("sharded"))
    program = (tmp_path / "sharded.txt").read_text()
    assert "num_partitions=4" in program
    for collective in (
        "all-reduce",
        "all-gather",
        "all-to-all",
        "reduce-scatter",
        "collective-permute",
    ):
        assert collective not in program
    # With as many threads, a network of one device is bit for bit that of four.
    jax.tree.map(np.testing.assert_array_equal, read("1"), read("4"))
    images = (read(f"images{num_devices}", FitMetrics) for num_devices in (1, 4))
    jax.tree.map(np.testing.assert_array_equal, *images)


@pytest.mark.parametrize("mapping", ["sequential", "vectorized"])
def test_nan_data_of_one_network_leaves_the_others_bitwise_unchanged(mapping):
    model = create_model("mlp", SHAPE, num_logits=2)
    task = tasks.separable()
    chunk = make_chunk(make_fit(model, SMALL, task), Execution(mapping, 3, 1))
    members, _ = make_members(model, task, {"direction": _directions(3)}, 0.5, 0)
    spoilt = np.array([1, np.nan, 1], np.float32)
    spoilt = members._replace(arrays={**members.arrays, "sigma": spoilt})
    data = task.data(model, SMALL, 0)
    clean, spoilt = (run_stages(chunk, 2, data, given) for given in (members, spoilt))
    for index in (0, 2):
        jax.tree.map(lambda a, b, i=index: np.testing.assert_array_equal(a[i], b[i]), clean, spoilt)
    assert spoilt.diverged_at.tolist() == [-1, 1, -1]
    assert np.isnan(spoilt.losses[1]).all() and int(spoilt.steps_to_loss[1]) == -1


def test_a_diverging_network_is_frozen_as_it_was_before():
    model = create_model("mlp", SHAPE, num_logits=2)
    recipe = dataclasses.replace(SMALL, clip_norm=0.0, schedule="constant")
    metrics = train_many(model, _directions(2), learning_rate=[0.1, 100.0], recipe=recipe)
    at = int(metrics.diverged_at[1])
    assert metrics.diverged_at[0] == -1 and 1 < at < recipe.steps_per_epoch
    assert (
        np.isfinite(metrics.losses[1, : at - 1]).all()
        and np.isnan(metrics.losses[1, at - 1 :]).all()
    )
    kept = []
    for num_epochs in (1, 2):
        longer = dataclasses.replace(recipe, num_epochs=num_epochs)
        variables, again, *_ = _train_one(model, longer, _directions(2)[1], learning_rate=100.0)
        assert int(again.diverged_at) == at
        kept.append(variables)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(variables))
    jax.tree.map(np.testing.assert_array_equal, *kept)  # nothing changed after the divergence


def test_a_step_that_overflows_the_network_itself_is_not_taken():
    model = create_model("logreg", SHAPE, num_logits=2)
    recipe = dataclasses.replace(SMALL, clip_norm=0.0, num_epochs=1)
    (direction,) = _directions(1)
    variables, metrics, *_ = _train_one(model, recipe, direction, sigma=1e3, learning_rate=3e38)
    assert int(metrics.diverged_at) == 1 and np.isfinite(metrics.test_loss)
    initial = model.init(jax.random.split(_network_key(0, direction), 3)[0])
    jax.tree.map(
        lambda kept, start: np.testing.assert_allclose(kept, start, rtol=1e-6), variables, initial
    )


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(16)(x.reshape(len(x), -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(2)(x)


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(64, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.readout = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        return self.readout(self.dropout(nnx.relu(self.norm(self.hidden(x.reshape(len(x), -1))))))


def _functions():
    def init(key):
        return {"w": 0.1 * jax.random.normal(key, (64, 2)), "count": jnp.int32(0)}

    def apply(variables, x, key=None, train=False):
        logits = x.reshape(len(x), -1) @ variables["w"]
        return (logits, {**variables, "count": variables["count"] + 1}) if train else logits

    return from_functions(init, apply, SHAPE, check=False)


@pytest.mark.parametrize(
    ("model", "mapping"),
    [
        (lambda: from_linen(Normalized(), SHAPE, check=False), "sequential"),
        (lambda: from_nnx(lambda rngs: NNXNet(rngs=rngs), SHAPE, check=False), "vectorized"),
        (_functions, "vectorized"),
    ],
    ids=["linen", "nnx", "functions"],
)
def test_a_users_model_with_statistics_and_dropout_trains(model, mapping):
    recipe = dataclasses.replace(SMALL, num_train=1000, num_epochs=4)
    metrics = train_many(model(), _directions(3), sigma=0.3, recipe=recipe, mapping=mapping)
    assert (metrics.test_accuracy > 0.95).all() and (metrics.diverged_at == -1).all()


def test_statistics_are_of_the_training_batches_and_parameters_alone_are_trained():
    model = from_linen(Normalized(), SHAPE, check=False)
    variables, *_ = _train_one(model, SMALL, _directions(1)[0])
    statistics = variables["batch_stats"]["BatchNorm_0"]
    assert (np.asarray(statistics["var"]) > 0).all() and not np.allclose(statistics["mean"], 0)
    counted, *_ = _train_one(_functions(), SMALL, _directions(1)[0])
    assert int(counted["count"]) == SMALL.num_steps


def test_what_is_trained_can_be_said():
    model = _functions()
    fixed = from_functions(
        model.init, model.apply, SHAPE, trainable=lambda v: jax.tree.map(lambda _: False, v)
    )
    direction = _directions(1)[0]
    variables, *_ = _train_one(model, SMALL, direction)
    kept, _, key, _ = _train_one(fixed, SMALL, direction)
    start = model.init(jax.random.split(key, 3)[0])["w"]
    assert not np.allclose(variables["w"], start)
    np.testing.assert_allclose(kept["w"], start, rtol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "options", "rate", "schedule"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True}, 0.1, "constant"),
        ("adam", {"b1": 0.8}, 1e-2, "cosine"),
        ("lion", {}, 1e-2, "linear"),
    ],
)
def test_optimizers_of_optax_are_taken_by_name(optimizer, options, rate, schedule):
    recipe = dataclasses.replace(
        SMALL, optimizer=optimizer, optimizer_options=options, schedule=schedule
    )
    model = create_model("logreg", SHAPE, num_logits=2)
    metrics = train_many(model, _directions(1), sigma=0.3, learning_rate=rate, recipe=recipe)
    assert metrics.train_loss[0] < 0.65


def test_the_sign_of_a_direction_is_the_name_of_its_classes():
    v = _directions(1)[0]
    np.testing.assert_array_equal(
        jax.random.key_data(_network_key(0, v)),
        jax.random.key_data(_network_key(0, -v)),
    )
    keys = {
        jax.random.key_data(_network_key(seed, u)).tobytes()
        for seed in (0, 1)
        for u in _directions(5)
    }
    assert len(keys) == 10


def test_bad_input_is_named():
    model = create_model("logreg", SHAPE, num_logits=2)
    directions = _directions(2)
    for recipe, message in [
        (Recipe(optimizer="sdg"), "optimizer: unknown value 'sdg'.*did you mean 'sgd'"),
        (Recipe(num_train=100, num_epochs=1), "schedule: the only step of a 'linear' schedule"),
        (Recipe(optimizer="lbfgs"), "optimizer: optax.lbfgs"),
        (Recipe(optimizer_options={"momentun": 1}), "momentun"),
        (Recipe(num_train=3), "num_train: must be even"),
        (Recipe(clip_norm=-0.5), "clip_norm: must be a finite number at least 0"),
        (Recipe(schedule="lin"), "did you mean 'linear'"),
        (Recipe(precision="exact"), "precision: unknown value"),
    ]:
        with pytest.raises(InputError, match=message):
            train_many(model, directions, recipe=recipe)
    with pytest.raises(InputError) as caught:
        make_train(model, Recipe(batch_size=0, num_epochs=0, loss_window=0))
    assert len(str(caught.value).splitlines()) == 3
    noise = sample_noise(noise_key(0), 100, 100, 64)
    with pytest.raises(
        InputError, match="noise: the recipe has 200 and 100 samples, got 100 and 100"
    ):
        make_train(model, SMALL)(jax.random.key(0), directions[0], 1.0, 1.0, 0.5, noise)
    with pytest.raises(InputError, match="model: must come from create_model"):
        make_train(Normalized())
    plain = from_functions(model.init, lambda variables, x: model.apply(variables, x), SHAPE)
    with pytest.raises(
        InputError, match=r"train=True\) must return .* raised TypeError: .* unexpected keyword"
    ):
        make_train(plain)
    with pytest.raises(InputError, match="recipe: must be a Recipe, got"):
        make_train(model, {"num_epochs": 1})
    with pytest.raises(InputError, match=r"needs 2 logits.*has 1"):
        make_train(create_model("logreg", SHAPE))
    for arguments, message in [
        ({"directions": directions[0]}, r"directions: must be real numbers \[N, 64\]"),
        ({"directions": 2 * directions}, "directions: row 0 has norm 2, expected 1"),
        ({"sigma": -1.0}, "sigma: must be a finite number at least 0"),
        ({"sigma": [1.0, 2.0, 3.0]}, "sigma: must be a number or one for each of the 2 networks"),
        ({"seed": 0.5}, "seed: must be an integer"),
        ({"chunk_size": -1}, "chunk_size"),
        ({"num_devices": 99}, "num_devices: must be an integer in 0"),
        ({"mapping": "both"}, "mapping: unknown value 'both'"),
    ]:
        with pytest.raises(InputError, match=message):
            train_many(model, **{"directions": directions, "recipe": SMALL, **arguments})


def _offered():
    return re.findall(r"'(\w+)'", Recipe(optimizer="addam").problems()[0].split("allowed:")[1])


@pytest.mark.parametrize("optimizer", _offered())
def test_every_optimizer_that_is_offered_trains(optimizer):
    model = create_model("logreg", (2, 2, 1), num_logits=2)
    recipe = Recipe(
        optimizer,
        schedule="constant",
        batch_size=4,
        num_epochs=1,
        num_train=8,
        num_test=4,
        loss_window=1,
    )
    assert recipe.problems() == []
    noise = sample_noise(0, 8, 4, 4)
    with jax.disable_jit():  # operation by operation, which all of them share
        _, metrics = make_train(model, recipe)(
            0, np.eye(4, dtype=np.float32)[0], 1.0, 1.0, 0.1, noise
        )
    assert metrics.losses.shape == (2,) and np.isfinite(metrics.losses).all()


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    [
        ("lbfgs", "missing .* 'value'"),
        ("optimistic_adam", "does not support learning rate schedules"),
        ("noisy_sgd", "key"),
        ("chain", "unexpected keyword argument 'learning_rate'"),
    ],
)
def test_optimizers_that_need_more_than_gradients_are_refused_with_the_reason(optimizer, reason):
    assert optimizer not in _offered()
    assert re.search(
        f"^optimizer: .* gives no optimizer of gradients .*{reason}",
        Recipe(optimizer).problems()[0],
    )


def _trained(recipe, **arguments):
    """What training two networks by a recipe gives, as arrays."""
    model = create_model("logreg", SHAPE, num_logits=2)
    metrics = train_many(model, _directions(2), sigma=0.3, recipe=recipe, **arguments)
    return numbers(metrics), metrics.settings


@pytest.mark.parametrize(
    ("name", "options", "function"),
    [
        ("adam", {}, optax.adam),
        ("sgd", {"momentum": 0.9}, partial(optax.sgd, momentum=0.9)),
        ("adam", {"b1": 0.8}, lambda rate, b1: optax.adam(rate, b1=b1)),
    ],
)
def test_a_function_of_the_learning_rate_is_an_optimizer_as_its_name_is(name, options, function):
    by_name = dataclasses.replace(
        SMALL, optimizer=name, optimizer_options=options, schedule="cosine", weight_decay=1e-3
    )
    mine = {} if isinstance(function, partial) else options
    given = dataclasses.replace(by_name, optimizer=function, optimizer_options=mine)
    expected, found = (_trained(recipe, learning_rate=0.01) for recipe in (by_name, given))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found[1]["learning_rate"].tolist() == [np.float32(0.01)] * 2


def test_an_optimizer_object_has_its_own_rate_behind_clipping_and_decay():
    recipe = dataclasses.replace(SMALL, clip_norm=0.3, weight_decay=0.1)
    by_name = dataclasses.replace(recipe, schedule="constant")
    given = dataclasses.replace(recipe, optimizer=optax.sgd(0.25))
    expected, found = _trained(by_name, learning_rate=0.25), _trained(given)
    jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
    assert list(found[1]) == ["seed", "epsilon", "sigma"]  # no rate that was not used
    # A schedule of its own: the rate of the second epoch is 0.
    steps = SMALL.steps_per_epoch
    stopping = optax.sgd(lambda count: jnp.where(count < steps, 0.25, 0.0))
    longer = dataclasses.replace(given, optimizer=stopping)
    stopped, _ = _trained(longer)
    shorter, _ = _trained(dataclasses.replace(given, num_epochs=1))
    np.testing.assert_array_equal(stopped["test_loss"], shorter["test_loss"])
    assert not np.array_equal(stopped["test_loss"], found[0]["test_loss"])
    # The only step of a linear schedule has rate 0; an object has none.
    one_step = dataclasses.replace(SMALL, batch_size=200, num_epochs=1)
    assert one_step.problems()[0].startswith("schedule: the only step")
    assert not dataclasses.replace(one_step, optimizer=optax.adam(0.1)).problems()


def test_functions_of_one_network_take_no_rate_for_an_optimizer_object():
    recipe = dataclasses.replace(SMALL, optimizer=optax.sgd(0.25))
    model, v = create_model("logreg", SHAPE, num_logits=2), _directions(1)[0]
    noise = sample_noise(noise_key(0), 200, 100, 64)
    train = make_train(model, recipe)
    _, metrics = train(_network_key(0, v), v, 1.0, 0.3, None, noise)
    expected, _ = _trained(recipe)
    assert float(metrics.test_loss) == pytest.approx(float(expected["test_loss"][0]), rel=1e-5)
    with pytest.raises(InputError, match=r"^learning_rate: 0\.5 cannot be combined"):
        train(_network_key(0, v), v, 1.0, 0.3, 0.5, noise)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"schedule": "cosine"}, "schedule: 'cosine'"),
        ({"schedule": "constant"}, "schedule: 'constant'"),
        ({"optimizer_options": {"momentum": 0.9}}, "optimizer_options: {'momentum': 0.9}"),
    ],
)
def test_what_an_optimizer_object_would_not_see_is_refused(changes, field):
    recipe = dataclasses.replace(SMALL, optimizer=optax.adam(1e-3), **changes)
    (problem,) = recipe.problems()
    assert problem.startswith(f"{field} cannot be combined with an optimizer object")


@pytest.mark.parametrize("rate", [0.5, [0.1, 0.2]])
def test_a_learning_rate_beside_an_optimizer_object_is_refused(rate):
    recipe = dataclasses.replace(SMALL, optimizer=optax.adam(1e-3))
    with pytest.raises(InputError) as caught:
        _trained(recipe, learning_rate=rate)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"learning_rate: {rate} cannot be combined with an optimizer object")


def _drifting_object():
    return optax.GradientTransformation(
        lambda parameters: jnp.int32(0), lambda gradients, state, parameters=None: (gradients, 0.0)
    )


@pytest.mark.parametrize(
    ("optimizer", "problem"),
    [
        (3, "must be a name of optax, a function .* got 3"),
        (None, "must be a name of optax, a function .* got None"),
        (lambda rate: optax.sgd(0.1 * rate), r"called with schedule \(step -> rate\)"),
        (lambda: optax.sgd(0.1), "takes 0 positional arguments"),
        (partial(optax.sgd, learning_rate=0.1), "multiple values for argument 'learning_rate'"),
        (lambda rate: rate, "no attribute 'init'"),
        (optax.lbfgs(), "missing .* 'value'"),
        (_drifting_object(), "its state changes its form"),
        (lambda rate: _drifting_object(), "its state changes its form"),
    ],
)
def test_what_is_no_optimizer_is_refused_in_a_line(optimizer, problem):
    (line,) = Recipe(optimizer=optimizer).problems()
    assert re.search(f"^optimizer: .*{problem}", line)


def test_settings_say_what_each_network_was_trained_with():
    model = create_model("logreg", SHAPE, num_logits=2)
    given = {"sigma": [1.0, 2.0, 3.0], "seed": [4, 0, 4], "learning_rate": [0.1, 0.2, 0.3]}
    metrics = train_many(model, _directions(3), recipe=SMALL, chunk_size=2, **given)
    assert list(metrics.settings) == ["seed", "learning_rate", "epsilon", "sigma"]
    for name, values in {**given, "epsilon": [1.0] * 3}.items():  # in the order they were given
        np.testing.assert_allclose(metrics.settings[name], values, rtol=1e-6)


@pytest.mark.parametrize("change", ["dtype", "structure", "updates"])
def test_an_optimizer_whose_state_changes_its_form_is_refused(change, monkeypatch):
    def update(gradients, state, parameters=None):
        changed = {"dtype": jnp.float32(0), "structure": (), "updates": state}[change]
        return ([leaf[None] for leaf in gradients] if change == "updates" else gradients), changed

    def drifting(learning_rate):
        return optax.GradientTransformation(lambda parameters: jnp.int32(0), update)

    monkeypatch.setattr(optax, "drifting", drifting, raising=False)
    reason = "its updates are not" if change == "updates" else "its state changes its form"
    assert reason in Recipe("drifting").problems()[0]


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("linear", [0.75, 0.5, 0.25, 0.0]),
        ("cosine", [(2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4, 0.0]),
        ("constant", [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_rate_of_every_step_is_that_of_the_schedule(schedule, factors):
    recipe = Recipe(schedule=schedule, clip_norm=0.0, batch_size=4, num_epochs=2, num_train=8)
    optimizer = recipe.make_optimizer(0.5)
    state = optimizer.init(jnp.zeros(1))
    for factor in factors:
        update, state = optimizer.update(jnp.ones(1), state)
        assert float(update[0]) == pytest.approx(-0.5 * factor, abs=1e-7)


def test_the_cosine_of_a_gradient_knows_neither_its_sign_nor_its_size():
    (v,) = _directions(1)
    for factor in (1.0, -1.0, -1e-30, 1e30):
        assert float(_cosine(jnp.float32(factor) * v, v)) == pytest.approx(1.0, abs=1e-6)
    assert float(_cosine(0 * v, v)) == 0.0


@pytest.mark.parametrize(
    ("platform", "mappings"),
    [
        ("cpu", ("auto", "auto")),
        ("cuda", ("vectorized", "sequential")),
        ("rocm", ("vectorized", "sequential")),
        ("tpu", ("auto", "auto")),
    ],
)
def test_networks_that_fill_a_gpu_go_one_after_the_other(platform, mappings):
    small, large = (create_model(name, (32, 32, 1), 2) for name in ("lenet", "resnet18"))
    with target.compiled_for([SimpleNamespace(platform=platform)]):
        found = [choose_mapping(model, 128, Execution()) for model in (small, large)]
        assert tuple(execution.mapping for execution in found) == mappings
        for mapping in ("sequential", "vectorized"):
            asked = Execution(mapping, 4)
            assert choose_mapping(small, 128, asked) == choose_mapping(large, 128, asked) == asked
        # A tenth of the batch does not.
        assert choose_mapping(large, 12, Execution()).mapping == mappings[0]
