"""What an NNX module draws, takes and makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nad_jax import (
    estimate_nads,
    from_nnx,
    make_key,
)
from nad_jax.contract import named_leaves
from nad_jax.errors import InputError
from tests.test_contract import SHAPE, _flat, _train


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.drop = nnx.Linear(6, 6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return x + self.drop(self.linear(x))


class Stack(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def build(rngs):
            return Layer(rngs)

        self.embed, self.layers, self.readout = (
            nnx.Linear(16, 6, rngs=rngs),
            build(rngs),
            nnx.Linear(6, 2, rngs=rngs),
        )

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(layer, x):
            return layer(x)

        return self.readout(run(self.layers, self.embed(_flat(x))))


class GivenStreams(nnx.Module):
    """Dropout by the streams of the call, batch statistics by a flag of the call."""

    def __init__(self, rngs):
        self.hidden, self.norm = nnx.Linear(16, 6, rngs=rngs), nnx.BatchNorm(6, rngs=rngs)
        self.drop, self.readout = nnx.Dropout(0.5), nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x, training, *, rngs):
        x = self.norm(self.hidden(_flat(x)), use_running_average=not training)
        return self.readout(self.drop(x, deterministic=not training, rngs=rngs))


class OwnMode(nnx.Module):
    """Keeps its mode in an attribute of its own, and sows."""

    def __init__(self, rngs):
        self.hidden, self.readout = nnx.Linear(16, 6, rngs=rngs), nnx.Linear(6, 2, rngs=rngs)
        self.rngs, self.training = nnx.Rngs(noise=rngs()), True

    def __call__(self, x):
        x = self.hidden(_flat(x))
        self.sow(nnx.Intermediate, "activity", x.mean())
        return self.readout(
            x + jax.random.normal(self.rngs.noise(), x.shape) if self.training else x
        )


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
@pytest.mark.parametrize("factory", [Stack, GivenStreams, OwnMode])
def test_nnx_modules_draw_anew_in_every_training_call_and_never_in_evaluation(factory):
    model = from_nnx(factory, SHAPE)
    variables, x = model.init(make_key(0)), jnp.ones((3, *SHAPE))
    np.testing.assert_array_equal(model.apply(variables, x), model.apply(variables, x))
    keys = [jax.random.key(seed) for seed in (0, 0, 1)]
    (first, updated), (again, _), (other, _) = (
        model.apply(variables, x, key, train=True) for key in keys
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert jax.tree.structure(updated) == jax.tree.structure(variables)
    assert 0 <= _train(model) <= 1
    assert (
        estimate_nads(
            model, 4, logit=0, derivative="input_gradient", readout="sampled"
        ).eigenvalues[0]
        > 0
    )


def test_stacked_nnx_layers_have_streams_of_their_own():
    model = from_nnx(Stack, SHAPE)
    _, updated = model.apply(
        model.init(make_key(0)), jnp.ones((1, *SHAPE)), jax.random.key(0), train=True
    )
    keys = next(leaf for name, leaf in named_leaves(updated) if name.endswith("key"))
    assert keys.shape == (3,) and len(np.unique(jax.random.key_data(keys), axis=0)) == 3


def test_nnx_arguments_are_known_given_or_refused():
    class Masked(nnx.Module):
        def __init__(self, rngs):
            self.readout = nnx.Linear(16, 2, rngs=rngs)

        def __call__(self, x, mask=None):
            return self.readout(_flat(x) if mask is None else _flat(x) * mask)

    with pytest.raises(
        InputError, match=r"Masked.__call__ takes 'mask': .*arguments=\{'mask': None\}"
    ):
        from_nnx(Masked, SHAPE)
    model = from_nnx(Masked, SHAPE, arguments={"mask": 0.0})
    assert (
        np.ptp(
            model.apply(model.init(make_key(0)), jax.random.normal(jax.random.key(0), (5, *SHAPE))),
            axis=0,
        ).max()
        == 0
    )


def test_an_nnx_variable_that_a_call_makes_is_refused_by_name():
    class Lazy(nnx.Module):
        def __init__(self, rngs):
            self.readout = nnx.Linear(16, 2, rngs=rngs)

        def __call__(self, x):
            self.seen = nnx.Variable(x.mean())
            return self.readout(_flat(x))

    with pytest.raises(InputError, match="variable seen is made in a call"):
        _train(from_nnx(Lazy, SHAPE))
