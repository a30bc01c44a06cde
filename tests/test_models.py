"""Adapters for a user's own model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from nad_jax import estimate_nads, from_functions, from_linen, from_nnx, make_key
from nad_jax.errors import InputError

SHAPE = (4, 4, 1)


class Net(nn.Module):
    logits: int = 1
    squash: bool = False
    twice: bool = False
    readout: nn.initializers.Initializer = nn.Dense.kernel_init

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(len(x), -1)
        x = nn.Dropout(0.5, deterministic=not train)(nn.tanh(nn.Dense(6)(x)))
        x = nn.BatchNorm(use_running_average=not train)(x)
        if self.twice:
            layer = nn.Dense(6)
            return layer(layer(x))
        y = nn.Dense(self.logits, kernel_init=self.readout)(x)
        return nn.tanh(y) if self.squash else y


class NNXNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(16, 6, rngs=rngs)
        self.norm = nnx.BatchNorm(6, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.readout = nnx.Linear(6, 1, rngs=rngs)

    def features(self, x):
        return self.dropout(self.norm(nnx.tanh(self.hidden(x.reshape(len(x), -1)))))

    def __call__(self, x):
        return self.readout(self.features(x))


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(6)(x.reshape(len(x), -1))))


def _images(count=3):
    return jax.random.normal(jax.random.key(5), (count, *SHAPE))


def test_linen_features_are_found_and_the_variance_of_the_read_out_is_known():
    model = from_linen(Net(), SHAPE, check=False)
    variables = model.init(make_key(0))
    dense = variables["params"]["Dense_1"]
    np.testing.assert_allclose(
        model.features(variables, _images()) @ dense["kernel"] + dense["bias"][None],
        model.apply(variables, _images()),
        atol=1e-6,
    )
    assert model.readout_variance == pytest.approx(1 / 6)
    assert from_linen(
        Net(), SHAPE, initialization="reference", check=False
    ).readout_variance == pytest.approx(1 / 18)
    assert from_linen(Net(), SHAPE, readout_variance=0.5, check=False).readout_variance == 0.5


def test_training_mode_draws_dropout_and_updates_statistics():
    nnx_model = from_nnx(lambda rngs: NNXNet(rngs=rngs), SHAPE)
    for model in (from_linen(Net(), SHAPE), nnx_model):
        variables = model.init(make_key(0))
        first, updated = model.apply(variables, _images(), jax.random.key(0), train=True)
        again, _ = model.apply(variables, _images(), jax.random.key(0), train=True)
        other, _ = model.apply(variables, _images(), jax.random.key(1), train=True)
        np.testing.assert_array_equal(first, again)
        assert not np.allclose(first, other)
        assert jax.tree.structure(updated) == jax.tree.structure(variables)
        before, after = model.apply(variables, _images()), model.apply(updated, _images())
        assert not np.allclose(before, after)  # running statistics moved


def test_a_module_without_a_training_argument_is_taken_as_it_is():
    model = from_linen(Plain(), SHAPE, check=False)
    variables = model.init(make_key(0))
    logits, updated = model.apply(variables, _images(), jax.random.key(0), train=True)
    np.testing.assert_array_equal(logits, model.apply(variables, _images()))
    assert jax.tree.structure(updated) == jax.tree.structure(variables)
    assert estimate_nads(model, 4, derivative="input_gradient").eigenvalues[0] > 0


def test_nnx_model_maps_over_initializations_and_marginalizes():
    model = from_nnx(
        lambda rngs: NNXNet(rngs=rngs),
        SHAPE,
        lambda net, x: net.features(x),
        readout_variance=1 / 6,
        check=False,
    )
    keys = jax.random.split(make_key(0), 3)
    logits = jax.vmap(lambda key: model.apply(model.init(key), _images()))(keys)
    assert logits.shape == (3, 3, 1) and not np.allclose(logits[0], logits[1])
    nads = estimate_nads(model, 40, derivative="input_gradient")
    assert nads.directions.shape == (16, 16) and nads.eigenvalues[0] > 0


class Normalized(nn.Module):
    @nn.compact
    def __call__(self, x, *, deterministic):
        x = nn.Dropout(0.5, deterministic=deterministic)(
            nn.relu(nn.Dense(6)(x.reshape(len(x), -1)))
        )
        return nn.WeightNorm(nn.Dense(1))(x)


@pytest.mark.parametrize("module", [Net(squash=True), Net(twice=True), Normalized()])
def test_without_a_reachable_read_out_marginalizing_is_refused(module):
    model = from_linen(module, SHAPE, check=False)
    assert model.features is None
    logit = 0 if model.num_logits > 1 else None
    for choice in ({"readout": "marginalized"}, {"readout": "sampled", "num_readouts": 3}):
        with pytest.raises(InputError, match="does not expose"):
            estimate_nads(model, 4, derivative="input_gradient", logit=logit, **choice)
    sampled = estimate_nads(model, 4, derivative="input_gradient", readout="sampled", logit=logit)
    assert np.isfinite(sampled.eigenvalues).all()


def test_several_logits_need_a_choice():
    model = from_linen(Net(logits=3), SHAPE, check=False)
    for readout in ("marginalized", "sampled"):
        with pytest.raises(InputError, match="logit: the model has 3 logits"):
            estimate_nads(model, 4, readout=readout)
    with pytest.raises(InputError, match="logit: must be in 0 … 2, got 3"):
        estimate_nads(model, 4, logit=3)
    assert estimate_nads(model, 4, logit=2, derivative="input_gradient").num_networks == 4


def test_a_custom_read_out_initializer_needs_its_variance():
    module = Net(readout=nn.initializers.normal(0.1))
    with pytest.raises(InputError, match="readout_variance"):
        estimate_nads(from_linen(module, SHAPE, check=False), 4)
    stated = from_linen(module, SHAPE, readout_variance=0.01, check=False)
    assert estimate_nads(stated, 4, derivative="input_gradient").eigenvalues[0] > 0


def test_functions_are_checked_against_the_contract():
    def init(key):
        return jax.random.normal(key, (16, 2))

    def features(w, x):
        return x.reshape(len(x), -1)

    model = from_functions(
        init, lambda w, x: features(w, x) @ w, SHAPE, features, readout_variance=1.0
    )
    assert model.num_logits == 2
    with pytest.raises(InputError, match=r"logits \[B, K\].*\(2,\)"):
        from_functions(init, lambda w, x: (features(w, x) @ w)[:, 0], SHAPE)
    with pytest.raises(InputError, match=r"features must return \[B, F\]"):
        from_functions(init, lambda w, x: features(w, x) @ w, SHAPE, lambda w, x: x)
    with pytest.raises(
        InputError, match="readout_variance: must be a finite number greater than 0"
    ):
        from_functions(init, lambda w, x: features(w, x) @ w, SHAPE, features, readout_variance=0.0)
    with pytest.raises(InputError, match="instance of a Linen module"):
        from_linen(Net, SHAPE)
    with pytest.raises(InputError, match=r"function of nnx\.Rngs"):
        from_nnx(NNXNet(nnx.Rngs(0)), SHAPE)
    with pytest.raises(InputError, match="image_shape"):
        from_functions(init, lambda w, x: jnp.ones((2, 1)), (4, 0, 1))


class Summed(nn.Module):
    """A layer that needs to know nothing of the shape of its inputs, and a read-out."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))
        return nn.Dense(2)(nn.relu(x).reshape(len(x), -1))


class NNXSummed(nnx.Module):
    def __init__(self, shape, rngs):
        self.hidden = nnx.Linear(shape[-1], 3, rngs=rngs)
        self.readout = nnx.Linear(3 * int(np.prod(shape[:-1])), 2, rngs=rngs)

    def __call__(self, x):
        return self.readout(nnx.relu(self.hidden(x)).reshape(len(x), -1))


def _summed(kind, shape, **choices):
    if kind == "linen":
        return from_linen(Summed(), shape, **choices)
    if kind == "nnx":
        return from_nnx(lambda rngs: NNXSummed(shape, rngs), shape, **choices)
    return from_functions(
        lambda key: jax.random.normal(key, (int(np.prod(shape)), 2)),
        lambda w, x: jnp.tanh(x.reshape(len(x), -1) @ w),
        shape,
        **choices,
    )


@pytest.mark.parametrize("kind", ["linen", "nnx", "functions"])
@pytest.mark.parametrize("shape", [(5,), (6, 2), (2, 3, 4, 1)])
def test_inputs_have_any_shape(kind, shape):
    symmetries = ("flip",) if len(shape) > 1 else ()
    model = _summed(kind, list(shape), symmetries=symmetries)
    assert model.input_shape == model.image_shape == shape and model.num_logits == 2
    assert model.symmetries == symmetries
    x = jax.random.normal(make_key(1), (3, *shape))
    assert model.apply(model.init(make_key(0)), x).shape == (3, 2)
    with pytest.raises(AttributeError):
        model.input_shape = (4, 4, 1)


@pytest.mark.parametrize("kind", ["linen", "nnx", "functions"])
def test_what_is_no_shape_of_an_input_is_refused(kind):
    for shape in ((), (1, 2, 3, 4, 5), (4, 0), (4.5,), 5, "ab"):
        with pytest.raises(
            InputError, match=r"^image_shape: must be one to four positive integers"
        ):
            _summed(kind, shape)
    with pytest.raises(InputError, match="'flip' needs signals, images or volumes, got vectors 5"):
        _summed(kind, (5,), symmetries=("flip",))
