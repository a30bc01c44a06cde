"""What is said of the law of a model is tested on a few of its networks."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import pytest
from flax import nnx

from nad_jax import InputError, from_linen, from_nnx


class Net(nn.Module):
    scale: float = 1.0
    strides: int = 1

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(6, (3, 3), strides=self.strides, padding="VALID")(x))
        init = nn.initializers.normal(self.scale)
        return nn.Dense(2, kernel_init=init)(
            x.mean((1, 2)) if self.strides == 1 else x.reshape(len(x), -1)
        )


@pytest.mark.parametrize("variance", [1.0, 0.25])
def test_a_true_variance_of_the_read_out_passes(variance):
    model = from_linen(Net(variance**0.5), (8, 8, 1), readout_variance=variance)
    assert model.readout_variance == variance


@pytest.mark.parametrize("variance", [0.4, 2.5])
def test_a_false_variance_of_the_read_out_is_refused_with_the_one_seen(variance):
    with pytest.raises(InputError, match=r"readout_variance: .* variance (0\.\d+|1\.\d*) ±"):
        from_linen(Net(), (8, 8, 1), readout_variance=variance)
    assert from_linen(Net(), (8, 8, 1), readout_variance=variance, check=False)


def test_a_head_that_starts_at_zero_may_have_a_variance_that_stands_for_it():
    model = from_linen(Net(0.0), (8, 8, 1), readout_variance=1 / 6)
    assert model.readout_variance == 1 / 6


def test_true_symmetries_pass_and_false_ones_are_refused_by_name():
    both = ("flip", "transpose")
    assert from_linen(Net(), (8, 8, 1), symmetries=both).symmetries == both
    # Windows of 3 at every second of 8 pixels leave the last one out.
    with pytest.raises(InputError, match="symmetries: 'flip'"):
        from_linen(Net(strides=2), (8, 8, 1), symmetries=("flip",))
    assert from_linen(Net(strides=2), (8, 8, 1), symmetries=("transpose",))


class NNXNet(nnx.Module):
    def __init__(self, rngs, tied=False, **options):
        self.hidden, self.head = nnx.Linear(6, 5, rngs=rngs), nnx.Linear(5, 1, rngs=rngs, **options)
        if tied:
            self.again = nnx.Linear(5, 1, rngs=rngs)
            self.again.kernel = self.head.kernel

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


def test_features_and_variance_of_nnx_modules_are_found_like_those_of_linen():
    model = from_nnx(NNXNet, (6,))
    assert model.features is not None and model.readout_variance == 1 / 5
    variables, x = model.init(nnx.Rngs(0).params()), jnp.ones((3, 6))
    rebuilt = NNXNet(nnx.Rngs(0))
    nnx.update(rebuilt, variables)
    expected = nnx.relu(rebuilt.hidden(x))
    assert jnp.allclose(model.features(variables, x), expected)
    own = from_nnx(lambda rngs: NNXNet(rngs, kernel_init=nnx.initializers.normal(0.1)), (6,))
    assert own.features is not None and own.readout_variance is None
    tied = from_nnx(lambda rngs: NNXNet(rngs, tied=True), (6,), check=False)
    assert tied.features is None


def test_hyperparameters_are_in_the_description():
    descriptions = [from_linen(Net(scale), (8, 8, 1)).description for scale in (1.0, 2.0)]
    scales = [one["hyperparameters"]["scale"] for one in descriptions]
    assert scales == [1.0, 2.0]


class Tall(nn.Module):
    """Kernels that see a column: alike pixel by pixel, but not in what two of them have in common."""

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Conv(8, (3, 1))(x))
        return nn.Dense(1)(x.mean((1, 2)))


def test_symmetries_that_single_pixels_do_not_contradict_are_refused():
    from_linen(Tall(), (8, 8, 1), symmetries=("flip",))
    with pytest.raises(InputError, match="symmetries: 'transpose' is stated, but"):
        from_linen(Tall(), (8, 8, 1), symmetries=("transpose",))


class NamedRngs(nnx.Module):
    def __init__(self, *, width=4, rngs):
        self.hidden = nnx.Linear(6, width, rngs=rngs)
        self.last = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(nnx.relu(self.hidden(x)))


def test_a_class_is_a_factory_and_widths_are_in_the_description():
    models = [from_nnx(partial(NamedRngs, width=width), (6,)) for width in (4, 8)]
    widths = [one.description["hyperparameters"]["hidden"]["out_features"] for one in models]
    assert widths == [4, 8]
    assert from_nnx(NamedRngs, (6,)).num_logits == 1
