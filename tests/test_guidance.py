"""Guided training: what is added to the loss, what is left as it is, and what is refused."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nad_jax
from nad_jax import ImageData, Recipe, create_model, guided, layers_of, linear_cka, separable, tasks
from nad_jax.errors import InputError
from nad_jax.fitting import make_fit, make_whole
from nad_jax.guidance import compare_features, pair_layers
from nad_jax.models import split_trainable
from nad_jax.training import make_members, train_many
from tests.commands import Command
from tests.guided_precision import write

SHAPE = (8, 8, 1)
RECIPE = Recipe(num_train=64, num_test=64, batch_size=16, num_epochs=3, loss_window=2)


@pytest.fixture(scope="module")
def mlp():
    return create_model("mlp", SHAPE, 2, width=16)


@pytest.fixture(scope="module")
def cnn():
    return create_model("lenet", SHAPE, 2, width=3, padding="same")


class Net(nn.Module):
    """A network whose shapes do not say its activation."""

    activation: str

    @nn.compact
    def __call__(self, x):
        x = getattr(nn, self.activation)(nn.Dense(9)(x.reshape(len(x), -1)))
        return nn.Dense(2)(x)


def _net(activation):
    return nad_jax.from_linen(Net(activation), SHAPE, check=False)


ARRAYS = {"direction": np.eye(64)[:2], "sigma": 0.5}


def _lowered(model, task, arrays):
    """The text of the program that trains one network; arguments that it does not use are none of
    it.
    """
    members, _ = make_members(model, task, arrays, 0.5, [0, 0])
    member = jax.tree.map(lambda leaf: leaf[0], members)
    train = make_whole(model, RECIPE, task)
    data = task.data(model, RECIPE, 0)
    return jax.jit(train).lower(member.key, member.learning_rate, member.arrays, data).as_text()


def test_without_its_penalty_a_guided_task_is_the_same_program(mlp, cnn):
    task, plain = guided(separable(), mlp, cnn), _lowered(mlp, separable(), ARRAYS)
    assert _lowered(mlp, task._replace(penalty=None), ARRAYS) == plain
    assert _lowered(mlp, task, ARRAYS) != plain


def test_a_guidance_of_zero_is_plain_training(tmp_path):
    process = Command(str(tmp_path / "losses.npz"), program=write)
    assert process.wait() == 0, process.errors[-3000:]
    with np.load(tmp_path / "losses.npz") as losses:
        assert losses["plain"].dtype == np.float32 and np.isfinite(losses["plain"]).all()
        # What differs in double precision is below what single precision, of losses, can show.
        np.testing.assert_array_equal(losses["zero"], losses["plain"])
        np.testing.assert_allclose(losses["zero_weights"], losses["plain_weights"], atol=1e-12)
        assert np.abs(losses["one_weights"] - losses["plain_weights"]).max() > 1e-3


def test_a_step_adds_the_gradient_of_one_less_the_similarity(mlp, cnn):
    task = guided(separable(), mlp, cnn)
    recipe = Recipe("sgd", schedule="constant", clip_norm=0.0, num_train=16, num_test=16,
                    batch_size=16, num_epochs=1, loss_window=1)  # fmt: skip
    ends = [
        train_many(mlp, task, seed=3, learning_rate=0.1, recipe=recipe, guidance=[0.0, 2.0],
                   direction=np.eye(64)[:1].repeat(2, 0), keep=True).variables
    ][0]  # fmt: skip
    members, _ = make_members(mlp, task, {**ARRAYS, "sigma": 1.0}, 0.1, 3)
    key = jax.random.split(members.key[0], 3)[0]
    start, data = mlp.init(key), task.data(mlp, recipe, 3)
    arrays = {name: array[0] for name, array in members.arrays.items()}
    x = task.sample(data, "train", jnp.arange(16), arrays)[0].reshape(-1, *SHAPE)

    def similarity(variables):
        return linear_cka(mlp.features(variables, x), cnn.features(data.guide, x))

    slope = jax.grad(similarity)(start)
    for plain, other, gradient in zip(
        *map(jax.tree.leaves, (*(jax.tree.map(lambda e, i=i: e[i], ends) for i in (0, 1)), slope)),
        strict=True,
    ):
        np.testing.assert_allclose(other - plain, 0.1 * 2 * gradient, atol=2e-6)


def test_nothing_flows_to_the_guide(mlp, cnn):
    task = guided(separable(), mlp, cnn)
    data = task.data(mlp, RECIPE, 0)
    variables, x = mlp.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (9, *SHAPE))

    def penalty(variables, guide):
        return task.penalty(variables, x, data._replace(guide=guide), {"guidance": 1.0})

    mine, guides = jax.grad(penalty, argnums=(0, 1))(variables, data.guide)
    for gradient in jax.tree.leaves(guides):
        np.testing.assert_array_equal(gradient, 0)
    assert max(float(jnp.abs(one).max()) for one in jax.tree.leaves(mine)) > 1e-4
    state = jax.eval_shape(make_fit(mlp, RECIPE, task).start, _member(mlp, task))
    trained = split_trainable(mlp, variables)[0]
    assert [leaf.shape for leaf in state.trained] == [leaf.shape for leaf in trained]


def _member(model, task):
    members, _ = make_members(model, task, ARRAYS, 0.5, 0)
    return jax.tree.map(lambda leaf: leaf[0], members)


def test_guidance_makes_features_alike_and_the_guide_is_that_of_the_seed(mlp, cnn):
    task = guided(separable(), mlp, cnn)
    recipe = dataclasses.replace(RECIPE, num_epochs=40, batch_size=64, schedule="constant")
    look = {"cka": nad_jax.observe_similarity(task, recipe)}
    how = {"direction": np.eye(64)[[0] * 4], "seed": [0, 0, 1, 1], "guidance": [0, 1, 0, 1.0]}
    metrics = train_many(mlp, task, recipe=recipe, observe=look, **how)
    cka = metrics.observed["cka"]
    assert cka.shape == (4, 41, 1)
    np.testing.assert_allclose(cka[::2, 0], cka[1::2, 0], rtol=1e-5)  # they start alike
    assert (cka[1::2, -1] > cka[::2, -1] + 0.05).all()
    np.testing.assert_array_equal(metrics.settings["guidance"], how["guidance"])
    guides = [jax.tree.leaves(task.data(mlp, recipe, seed).guide) for seed in (0, 0, 1)]
    assert all(map(np.array_equal, guides[0], guides[1]))
    assert not np.array_equal(guides[0][1], guides[2][1])


def test_images_and_given_guides_with_arrays_of_the_task(mlp, cnn):
    rng = np.random.default_rng(0)
    images, labels = rng.random((64, *SHAPE)).astype(np.float32), np.arange(64) % 2
    data = ImageData(images, labels, images, labels)

    def shift(images, labels, by):
        return images + by

    own = tasks.images(data, shift)
    given = nad_jax.starting_from(cnn, cnn.init(jax.random.key(7)))
    task = guided(own, mlp, given)
    recipe = own.resolve_recipe(RECIPE)
    how = {"by": np.array([0.0, 0.1]), "recipe": recipe, "learning_rate": 0.1, "seed": [0, 1]}
    plain = train_many(mlp, own, **how)
    off = train_many(mlp, task, guidance=0.0, **how)
    on = train_many(mlp, task, **how)
    untrained = train_many(mlp, guided(own, mlp, cnn), **how)
    np.testing.assert_allclose(off.losses, plain.losses, rtol=1e-6)
    for other in (off, untrained):
        assert np.abs(on.losses - other.losses).max() > 1e-4
    assert on.losses[0, 0] == plain.losses[0, 0]  # what is added is not in them
    guides = [jax.tree.leaves(task.data(mlp, recipe, seed).guide) for seed in (0, 1)]
    assert all(map(np.array_equal, *guides))


def test_a_penalty_and_a_perturbation_of_the_task_are_kept(mlp, cnn):
    seen = {}

    def perturb(losses, x, arrays, key):
        seen["perturb"] = set(arrays)
        return x + 1

    def penalty(variables, x, data, arrays):
        seen["penalty"] = set(arrays)
        return jnp.float32(5)

    own = separable()._replace(perturb=perturb, penalty=penalty)
    task, x = guided(own, mlp, cnn), jnp.ones((4, *SHAPE))
    arrays = {"direction": 0, "guidance": jnp.float32(0)}
    data = task.data(mlp, RECIPE, 0)
    assert task.penalty(mlp.init(jax.random.key(0)), x, data, arrays) == 5
    np.testing.assert_array_equal(task.perturb(None, x, arrays, None), 2)
    assert seen == {"perturb": {"direction"}, "penalty": {"direction"}}


def test_layers_of_the_guide_fall_on_those_of_the_network():
    assert pair_layers(5, 3) == [(0, 0), (2, 1), (4, 2)]
    assert pair_layers(2, 4) == [(0, 0), (0, 1), (1, 2), (1, 3)]
    assert pair_layers(3, 1) == [(2, 0)]
    assert pair_layers(1, 3) == [(0, 0), (0, 1), (0, 2)]


def test_layers_are_the_outputs_of_all_but_the_last(mlp, cnn):
    variables, x = cnn.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (5, *SHAPE))
    found = layers_of(cnn)(variables, x)
    # Convolutions of 3 and 8 channels, which are pooled, and dense layers.
    assert [one.shape for one in found] == [(5, 4 * 4 * 3), (5, 2 * 2 * 8), (5, 60), (5, 42)]
    np.testing.assert_allclose(nn.relu(found[-1]), cnn.features(variables, x), atol=1e-6)
    compare = compare_features(mlp, cnn, layers_of(mlp), layers_of(cnn))
    mine = mlp.init(jax.random.key(2))
    first, second = layers_of(mlp)(mine, x)
    expected = [
        linear_cka(m, g) for m, g in zip((first, first, second, second), found, strict=True)
    ]
    np.testing.assert_allclose(compare(mine, variables, x), expected, atol=1e-5)


def test_a_guide_may_have_inputs_of_another_shape(cnn):
    flat = create_model("mlp", (64,), 2, width=8)
    compare = compare_features(flat, cnn)
    x = jax.random.normal(jax.random.key(1), (6, 64))
    own, other = flat.init(jax.random.key(0)), cnn.init(jax.random.key(1))
    features = flat.features(own, x), cnn.features(other, x.reshape(-1, *SHAPE))
    np.testing.assert_allclose(compare(own, other, x), [linear_cka(*features)], atol=1e-6)


def test_what_has_no_features_and_does_not_fit_is_refused(mlp, cnn):
    bare, task = mlp._replace(features=None), separable()
    with pytest.raises(InputError, match=r"^model: has no features.*give features, a function"):
        guided(task, bare, cnn)
    with pytest.raises(InputError, match=r"^guide: has no features.*give guide_features"):
        guided(task, mlp, cnn._replace(features=None))
    guided(task, bare, cnn, features=lambda variables, x: x.reshape(len(x), -1))
    with pytest.raises(InputError, match=r"^features: must give features \[B, F\], got \(\)"):
        guided(task, mlp, cnn, features=lambda variables, x: x.sum())
    with pytest.raises(InputError, match=r"^guide_features: must give features \[B, F\], got none"):
        guided(task, mlp, cnn, guide_features=[])
    for dtype in (jnp.int32, jnp.complex64):
        cast = [lambda variables, x, dtype=dtype: x.reshape(len(x), -1).astype(dtype)]
        with pytest.raises(InputError, match=rf"^features: .* floating-point .* {dtype.__name__}"):
            guided(task, mlp, cnn, features=cast)
        with pytest.raises(InputError, match=rf"^guide_features: .*, got {dtype.__name__}"):
            guided(task, mlp, cnn, guide_features=cast)
    with pytest.raises(InputError, match=r"^features: must be a function, got 3"):
        guided(task, mlp, cnn, features=[3])
    with pytest.raises(InputError, match=r"^guide: must have inputs of 64 entries"):
        guided(task, mlp, create_model("mlp", (5,), 2, width=4))
    with pytest.raises(InputError, match=r"^task: is guided already"):
        guided(guided(task, mlp, cnn), mlp, cnn)
    functions = nad_jax.from_functions(mlp.init, mlp.apply, SHAPE, check=False)
    with pytest.raises(InputError, match=r"^model: has no features"):
        guided(task, functions, cnn)
    own = nad_jax.from_functions(
        lambda key: jax.random.normal(key, (64, 2)), lambda w, x: x.reshape(-1, 64) @ w, SHAPE,
        check=False,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"^model: no layers are seen"):
        layers_of(own)
    with pytest.raises(InputError, match=r"^model: has no layers but its last one"):
        layers_of(create_model("logreg", SHAPE, 2))


def test_wrong_arrays_and_another_network_are_refused(mlp, cnn):
    task = guided(separable(), mlp, cnn)
    with pytest.raises(
        InputError, match=r"^guidance: must be a finite number at least 0.0, got -1"
    ):
        train_many(mlp, task, recipe=RECIPE, guidance=[1.0, -1.0], **ARRAYS)
    with pytest.raises(InputError, match=r"^guidance: must be a number or one for each of the 2"):
        train_many(mlp, task, recipe=RECIPE, guidance=[1.0, 1.0, 1.0], **ARRAYS)
    tanh, relu = _net("tanh"), _net("relu")
    for model, other in ((mlp, tanh), (tanh, relu)):  # of other shapes, of the same
        with pytest.raises(InputError, match=r"^model: another network is trained"):
            train_many(other, guided(separable(), model, cnn), recipe=RECIPE, **ARRAYS)
    start = nad_jax.starting_from(mlp, mlp.init(jax.random.key(0)))
    assert task.data(start, RECIPE, 0).guide.keys() == {"params"}


def test_what_is_observed_is_the_comparison_of_the_task_that_is_trained_on(mlp, cnn):
    tanh = _net("tanh")
    task, other = (guided(separable(), mlp, guide) for guide in (cnn, tanh))
    members, _ = make_members(mlp, task, ARRAYS, 0.5, 0)
    member, variables = jax.tree.map(lambda leaf: leaf[0], members), mlp.init(jax.random.key(3))
    data = other.data(mlp, RECIPE, 0)
    x, _ = other.draw(data, "test", jnp.arange(16), member.arrays)
    features = (
        mlp.features(variables, x.reshape(-1, *SHAPE)),
        tanh.features(data.guide, x.reshape(-1, *SHAPE)),
    )
    # Also where it was made of a task with another guide, whose variables have other shapes.
    for one in (task, other):
        found = nad_jax.observe_similarity(one, RECIPE)(variables, data, member)
        np.testing.assert_allclose(found, [linear_cka(*features)], atol=1e-6)
    with pytest.raises(InputError, match=r"^task: is not guided"):
        nad_jax.observe_similarity(separable(), RECIPE)
    with pytest.raises(InputError, match=r"^task: must be Task"):
        nad_jax.observe_similarity(mlp)
    with pytest.raises(InputError, match=r"^task: is observed as a guided one"):
        nad_jax.observe_similarity(task, RECIPE)(variables, data.task, member)
