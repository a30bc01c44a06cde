"""The mode of a module, and other arguments of its `__call__`, however they are named and kept."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nad_jax import (
    from_linen,
    from_nnx,
    make_key,
)
from nad_jax.contract import named_leaves
from nad_jax.errors import InputError
from tests.test_contract import SHAPE, _flat, _train


class Flagged(nn.Module):
    """Takes its mode under a name of its own choice."""

    flag: str

    def setup(self):
        self.hidden, self.readout, self.norm = nn.Dense(6), nn.Dense(2), nn.BatchNorm()

    def run(self, x, evaluation):
        return self.readout(self.norm(self.hidden(_flat(x)), use_running_average=evaluation))


class Inference(Flagged):
    def __call__(self, x, *, inference):
        return self.run(x, inference)


class IsTraining(Flagged):
    def __call__(self, x, is_training):
        return self.run(x, not is_training)


class Learning(Flagged):
    def __call__(self, x, scale, is_learning=False):
        return scale * self.run(x, not is_learning)


class Anything(Flagged):
    def __call__(self, *images, **options):
        return self.run(*images, options.get("frozen", False))


def test_modes_are_passed_under_the_names_that_modules_give_them():
    for module in (
        Inference("inference"),
        IsTraining("is_training"),
        nn.jit(IsTraining, static_argnums=2)(""),
    ):
        model = from_linen(module, SHAPE)
        assert model.num_logits == 2
        assert 0 <= _train(model) <= 1


def test_arguments_that_are_not_known_are_refused_by_name_or_given():
    with pytest.raises(
        InputError,
        match=r"Learning.__call__ takes 'scale', 'is_learning': give .*'is_learning': False",
    ):
        from_linen(Learning(""), SHAPE)
    values = {
        "arguments": {"scale": 0.5, "is_learning": False},
        "train_arguments": {"is_learning": True},
    }
    model = from_linen(Learning(""), SHAPE, **values)
    assert model.description["arguments"] == {"scale": "0.5", "is_learning": "False"}
    variables = model.init(make_key(0))
    whole = from_linen(
        Learning(""), SHAPE, **{**values, "arguments": {"scale": 1.0, "is_learning": False}}
    )
    x = jax.random.normal(jax.random.key(1), (3, *SHAPE))
    np.testing.assert_allclose(2 * model.apply(variables, x), whole.apply(variables, x), rtol=1e-6)
    _, updated = model.apply(variables, x, jax.random.key(0), train=True)
    assert not np.allclose(dict(named_leaves(updated))["batch_stats/norm/var"], 1)
    with pytest.raises(InputError, match=r"arguments: IsTraining.__call__ takes no 'mask'"):
        from_linen(IsTraining(""), SHAPE, arguments={"mask": None})
    with pytest.raises(InputError, match="arguments: must be a dictionary"):
        from_linen(IsTraining(""), SHAPE, arguments=[True])
    with pytest.raises(InputError, match="in evaluation mode raised ModifyScopeVariableError"):
        from_linen(Anything(""), SHAPE)
    anything = from_linen(
        Anything(""), SHAPE, arguments={"frozen": True}, train_arguments={"frozen": False}
    )
    assert 0 <= _train(anything) <= 1


class ModeOfItsOwn(nn.Module):
    training: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=not self.training)(nn.Dense(6)(_flat(x)))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not self.training)(x))


def test_a_mode_that_is_an_attribute_of_the_module_is_set():
    for module in (ModeOfItsOwn(), ModeOfItsOwn(training=True)):
        model = from_linen(module, SHAPE)
        variables, x = model.init(make_key(0)), jnp.ones((5, *SHAPE))
        first, other = (
            model.apply(variables, x, jax.random.key(seed), train=True)[0] for seed in (0, 1)
        )
        assert not np.allclose(first, other)


class ByProperty(nn.Module):
    train: bool = False

    @property
    def deterministic(self):
        return not self.train

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=self.deterministic)(_flat(x)))


class Merged(nn.Module):
    deterministic: bool | None = True

    @nn.compact
    def __call__(self, x, deterministic=None):
        deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
        return nn.Dense(2)(nn.Dropout(0.5)(_flat(x), deterministic=deterministic))


class OwnTrain(nnx.Module):
    """Calls its mode as NNX calls a method."""

    def __init__(self, rngs):
        self.readout, self.drop, self.train = (
            nnx.Linear(16, 2, rngs=rngs),
            nnx.Dropout(0.5, rngs=rngs),
            False,
        )

    def __call__(self, x):
        return self.readout(self.drop(_flat(x), deterministic=not self.train))


@pytest.mark.parametrize(
    "make",
    [
        lambda: from_linen(ByProperty(), SHAPE),
        lambda: from_linen(Merged(), SHAPE),
        lambda: from_linen(Merged(None), SHAPE),
        lambda: from_nnx(OwnTrain, SHAPE),
    ],
)
def test_modes_kept_in_other_ways_are_set(make):
    model = make()
    variables, x = model.init(make_key(0)), jnp.ones((5, *SHAPE))
    first, other = (
        model.apply(variables, x, jax.random.key(seed), train=True)[0] for seed in (0, 1)
    )
    assert not np.allclose(first, other)
    np.testing.assert_array_equal(model.apply(variables, x), model.apply(variables, x))


def test_a_mode_flag_is_not_fixed_in_training_unasked():
    with pytest.raises(InputError, match="arguments: 'is_training' is a mode flag"):
        from_linen(IsTraining(""), SHAPE, arguments={"is_training": False})
