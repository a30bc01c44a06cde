"""Models that break the contract, or that an adapter must treat with care."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nad_jax import (
    Recipe,
    estimate_nads,
    from_functions,
    from_linen,
    from_nnx,
    train_many,
)
from nad_jax.errors import InputError

SHAPE = (4, 4, 1)
DIRECTIONS = np.eye(16, dtype=np.float32)[:1]
RECIPE = Recipe(num_train=40, num_test=20, num_epochs=1, batch_size=20, loss_window=2)


def _train(model):
    return train_many(model, DIRECTIONS, recipe=RECIPE).test_accuracy[0]


def _flat(x):
    return x.reshape(len(x), -1)


def _init(key):
    return {"w": 0.1 * jax.random.normal(key, (16, 2))}


def _logits(variables, x):
    return _flat(x) @ variables["w"]


class Head(nn.Module):
    """A part between two dense layers."""

    part: nn.Module
    logits: int = 2

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.logits)(self.part(nn.Dense(6)(_flat(x))))


class Lambda(nn.Module):
    function: object

    def __call__(self, x):
        return self.function(x)


def _count_calls():
    calls = []

    def apply(variables, x):
        calls.append(None)
        return len(calls) * _logits(variables, x)

    return apply


def _draw_outside(variables, x):
    return _logits(variables, x) * np.random.default_rng().random()


def _sort_batch(variables, x):
    return jnp.sort(_logits(variables, x), axis=0)


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (lambda v, x: _logits(v, x) - _logits(v, x).mean(0)[None], "other inputs of the batch"),
        (lambda v, x: _logits(v, x) / jnp.abs(_logits(v, x)).max(), "other inputs of the batch"),
        (lambda v, x: _logits(v, x) / len(x), "or on its size"),
        (
            lambda v, x: _logits(v, x) + 0.01 * jnp.arange(len(x))[:, None],
            "other inputs of the batch",
        ),
        (_sort_batch, "other inputs of the batch"),
        (
            lambda v, x: _logits(v, x) + 1e-6 * _logits(v, x).mean(0)[None],
            "their derivative in another input",
        ),
        (_count_calls(), "change from one call to the next"),
        (_draw_outside, "change from one call to the next"),
        (lambda v, x: _logits(v, x).astype(int), "real floating-point logits, got int32"),
        (lambda v, x: _logits(v, x) + 1j, "real floating-point logits, got complex64"),
        (lambda v, x: {"logits": _logits(v, x)}, "must return logits"),
        (lambda v, x: _logits(v, x)[:, 0], "must return logits"),
        (lambda v, x: _logits(v, x[0]), r"vmap\(apply, in_axes=\(None, 0\)\)|raised TypeError"),
        (
            lambda v, x: _logits(v, x) if x.sum() > 0 else x,
            "model: apply raised TracerBoolConversionError",
        ),
        (lambda v, x: v["weights"], "model: apply raised KeyError: 'weights'"),
    ],
)
def test_evaluation_that_is_no_function_of_one_image_is_refused(apply, words):
    with pytest.raises(InputError, match=words) as raised:
        from_functions(_init, apply, SHAPE)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("shape", [(4,), (4, 2), (2, 2, 2, 1)])
def test_inputs_of_any_shape_are_told_apart_and_taken_in_batches(shape):
    def init(key):
        return jax.random.normal(key, (3, *shape))

    def one(w, x):
        return jnp.tensordot(w, x, len(shape))

    def centered(w, x):
        return jax.vmap(one, (None, 0))(w, x - x.mean(0)[None])

    with pytest.raises(InputError, match="logits of an input depend on the other inputs"):
        from_functions(init, centered, shape)
    message = f"apply takes one input of shape {shape}; it must take inputs {(2, *shape)} and"
    with pytest.raises(InputError, match=re.escape(message)):
        from_functions(init, one, shape)
    assert from_functions(init, jax.vmap(one, (None, 0)), shape).num_logits == 3


def test_a_network_that_is_unusual_but_right_is_taken():
    from_functions(_init, lambda v, x: 0 * _logits(v, x), SHAPE)
    from_functions(
        _init, lambda v, x: _logits(v, x) * jnp.inf, SHAPE
    )  # what estimates say of it is another matter
    from_functions(_init, lambda v, x: jnp.sin(_logits(v, x).astype(jnp.bfloat16)), SHAPE)
    from_functions(
        lambda key: jax.random.normal(key, (16, 1)), lambda w, x: 1e-30 * _flat(x) @ w, SHAPE
    )
    from_functions(
        lambda key: {"w": np.ones((16, 2)), "scale": 0.5},
        lambda v, x: v["scale"] * _logits(v, x),
        SHAPE,
    )


def test_variables_that_are_no_arrays_are_refused_by_name():
    init = lambda key: {"layer": {**_init(key), "activation": _flat}}  # noqa: E731
    with pytest.raises(InputError, match="got function as layer/activation"):
        from_functions(init, lambda v, x: _logits(v["layer"], x), SHAPE)
    with pytest.raises(InputError, match="got str as name"):
        from_functions(lambda key: {**_init(key), "name": "net"}, _logits, SHAPE)


def test_a_network_that_amplifies_rounding_is_no_mixture_of_images():
    def init(key):
        return {"hidden": 0.75 * jax.random.normal(key, (60, 16, 16)), "w": jnp.ones((16, 2))}

    def apply(variables, x):
        for kernel in variables["hidden"]:
            x = jnp.tanh(_flat(x) @ kernel)
        return _logits(variables, x)

    from_functions(init, apply, SHAPE)
    with pytest.raises(InputError, match="depend on the other inputs"):
        from_functions(init, lambda v, x: apply(v, x) + x.mean(), SHAPE)


def test_features_depend_on_their_image_alone():
    def features(variables, x):
        return _flat(x) - _flat(x).mean(0)[None]

    with pytest.raises(InputError, match="the features of an input depend"):
        from_functions(_init, _logits, SHAPE, features, readout_variance=1.0)


def test_behind_a_head_of_zeros_the_batch_is_still_seen():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(6)(_flat(x))
            x -= x.mean(0, keepdims=True)
            return 2 * nn.Dense(1, kernel_init=nn.initializers.zeros)(x)

    with pytest.raises(InputError, match="the logits of an input depend on the other inputs"):
        from_linen(Net(), SHAPE)


def test_initialization_that_depends_on_images_is_refused_by_name():
    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = _flat(x)
            return nn.Dense(1)(x * self.param("scale", lambda key: 1 / (x.std() + 1e-6)))

    with pytest.raises(InputError, match="initialization of params/scale depends on the input"):
        from_linen(Scaled(), SHAPE)


class Counts(nnx.Module):
    """Keeps how often it was called; where that enters its output, a call is no evaluation."""

    def __init__(self, rngs, enters):
        self.readout, self.count, self.enters = (
            nnx.Linear(16, 2, rngs=rngs),
            nnx.Variable(jnp.ones(())),
            enters,
        )

    def __call__(self, x):
        self.count[...] = self.count[...] + 1.0
        return self.readout(_flat(x)) * (self.count[...] if self.enters else 1.0)


class NoisyEvaluation(nnx.Module):
    def __init__(self, rngs):
        self.readout, self.rngs = nnx.Linear(16, 2, rngs=rngs), rngs

    def __call__(self, x):
        return self.readout(_flat(x)) * jax.random.normal(self.rngs.noise())


def test_what_an_nnx_module_keeps_does_not_enter_its_evaluation():
    assert from_nnx(lambda rngs: Counts(rngs, enters=False), SHAPE).num_logits == 2
    for factory in (lambda rngs: Counts(rngs, enters=True), NoisyEvaluation):
        with pytest.raises(InputError, match="change from one call to the next"):
            from_nnx(factory, SHAPE)


def test_statistics_that_training_leaves_alone_are_refused_by_name():
    module = Head(nn.BatchNorm(use_running_average=True))
    with pytest.raises(InputError, match="leaves the statistics batch_stats/part as they are"):
        from_linen(module, SHAPE)
    model = from_linen(module, SHAPE, check=False)
    assert model.description["checked"] is False
    assert estimate_nads(model, 4, logit=0, derivative="input_gradient").config["checked"] is False

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.readout = nnx.Linear(16, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
            self.norm = nnx.BatchNorm(6, rngs=rngs)

        def __call__(self, x):
            return self.readout(self.norm(self.hidden(_flat(x)), use_running_average=True))

    with pytest.raises(InputError, match="leaves the statistics norm as they are"):
        from_nnx(Net, SHAPE)


def test_a_trained_leaf_that_training_mode_changes_is_refused_by_name():
    def apply(variables, x, key=None, train=False):
        logits = _logits(variables, x)
        return (logits, {"w": 0.9 * variables["w"]}) if train else logits

    with pytest.raises(InputError, match="training mode itself changes w, which is trained"):
        from_functions(_init, apply, SHAPE)

    class Counts(nn.Module):
        @nn.compact
        def __call__(self, x):
            count = self.variable("params", "count", lambda: jnp.zeros(()))
            if self.is_mutable_collection("state"):
                count.value += 1.0
            self.variable("state", "seen", lambda: jnp.zeros(()))
            return x

    with pytest.raises(InputError, match="params"):
        _train(from_linen(Head(Counts()), SHAPE))


def test_leaves_that_cannot_be_trained_are_refused_by_name():
    class Shift(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.roll(x, self.param("shift", lambda key: jnp.ones((), jnp.int32)), 1)

    model = from_linen(Head(Shift()), SHAPE)
    with pytest.raises(InputError, match="params/part/shift is to be trained, but it is int32"):
        _train(model)

    def apply(variables, x, key=None, train=False):
        logits = _logits(variables, x)
        return (logits, variables) if train else logits

    def init(key):
        return {**_init(key), "steps": jnp.zeros((), int)}

    assert (
        0 <= _train(from_functions(init, apply, SHAPE)) <= 1
    )  # of itself it is none of those that are trained
    with pytest.raises(InputError, match="steps is to be trained, but it is int32"):
        from_functions(init, apply, SHAPE, trainable=lambda v: {"w": True, "steps": True})
    with pytest.raises(InputError, match="trainable: must give one boolean for each leaf"):
        from_functions(init, apply, SHAPE, trainable=lambda v: {"w": True})
    with pytest.raises(InputError, match="trainable: must give booleans, got 'yes' for w"):
        from_functions(init, apply, SHAPE, trainable=lambda v: {"w": "yes", "steps": False})


def test_complex_parameters_are_trained_as_pairs_of_real_ones():
    def init_pairs(key):
        return {"w": 0.1 * jax.random.normal(key, (2, 16, 2))}

    def init_complex(key):
        real, imaginary = init_pairs(key)["w"]
        return {"w": real + 1j * imaginary}

    def make_apply(as_pair):
        def apply(variables, x, key=None, train=False):
            real, imaginary = as_pair(variables["w"])
            logits = _flat(x) @ real + jnp.tanh(_flat(x) @ imaginary)
            return (logits, variables) if train else logits

        return apply

    recipe = Recipe(
        "sgd",
        {"momentum": 0.9},
        num_train=80,
        num_test=40,
        num_epochs=2,
        batch_size=20,
        weight_decay=1e-3,
    )
    pairs = from_functions(init_pairs, make_apply(lambda w: (w[0], w[1])), SHAPE)
    one = from_functions(init_complex, make_apply(lambda w: (w.real, w.imag)), SHAPE)
    losses = [
        train_many(model, DIRECTIONS, sigma=3.0, recipe=recipe).losses[0] for model in (pairs, one)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert losses[0][-1] < losses[0][0]
