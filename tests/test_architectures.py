"""The contract every entry of the table keeps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax.architectures import ARCHITECTURES, create_model, densenet
from nad_jax.contract import check_behavior
from nad_jax.convolution import product_convolution
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError
from nad_jax.vector_fields import input_gradient

PARAMETERS = {
    "logreg": 1_025,
    "mlp": 787_969,
    "lenet": 60_941,
    "vgg11": 9_750_657,
    "vgg11_plain": 9_745_153,
    "resnet18": 11_168_193,
    "resnet18_w16": 700_017,
    "resnet18_imagenet": 11_170_753,
    "densenet121": 6_945_921,
}


def _shapes(model, batch=2):
    variables = jax.eval_shape(model.init, jax.random.key(0))
    return variables, jax.ShapeDtypeStruct((batch, *model.image_shape), jnp.float32)


def test_the_table_is_covered():
    assert set(PARAMETERS) == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameter_counts_are_those_of_the_reference(architecture):
    variables, _ = _shapes(create_model(architecture))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[architecture]
    )


def test_the_resnet_for_imagenet_is_that_of_torchvision():
    model = create_model("resnet18_imagenet", (224, 224, 3), num_logits=1000)
    variables, images = _shapes(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 11_689_512
    assert jax.eval_shape(model.features, variables, images).shape == (2, 512)
    assert ARCHITECTURES["resnet18_imagenet"].reference_convolution == "normal_fan_out"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shapes_of_logits_and_features(architecture):
    model = create_model(architecture, (64, 48, 3), num_logits=10)
    variables, images = _shapes(model)
    assert jax.eval_shape(model.apply, variables, images).shape == (2, 10)
    features = jax.eval_shape(model.features, variables, images)
    last = [
        leaf
        for leaf in jax.tree.leaves(variables["params"])
        if leaf.shape == (features.shape[-1], 10)
    ]
    assert features.shape[0] == 2 and len(last) == 1


@pytest.mark.parametrize(
    "architecture", ["logreg", "lenet"]
)  # of the others `test_reference_networks` says more
def test_entries_keep_the_contract_that_models_of_users_are_tested_for(architecture):
    check_behavior(create_model(architecture, num_logits=2))


@pytest.mark.parametrize(
    ("architecture", "side"), [("logreg", 16), ("mlp", 16), ("lenet", 16), ("resnet18_w16", 32)]
)
def test_derivatives_are_finite_non_zero_and_the_same_mapped_or_looped(architecture, side):
    model = create_model(architecture, (side, side, 1))
    x = jax.random.normal(make_key(1), model.image_shape)

    def gradient(key):
        variables = model.init(key)
        return input_gradient(lambda images: model.apply(variables, images), x, jnp.ones((1, 1)))[0]

    keys = jax.random.split(make_key(0), 2)
    mapped = np.asarray(jax.jit(jax.vmap(gradient))(keys))
    assert np.isfinite(mapped).all() and (np.abs(mapped).max(1) > 0).all()
    looped = np.asarray(jax.jit(lambda keys: jax.lax.map(gradient, keys))(keys))
    np.testing.assert_allclose(mapped, looped, atol=1e-4 * np.abs(looped).max())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"architecture": "resnet"},
            "architecture: unknown value 'resnet' .did you mean 'resnet18'.*densenet121",
        ),
        ({"architecture": "lenet", "pooling": "min"}, "pooling: unknown value 'min'"),
        ({"architecture": "vgg11", "pooling": "none"}, "'none' makes no sense for 'vgg11'"),
        ({"architecture": "logreg", "pooling": "none"}, "'none' makes no sense for 'logreg'"),
        ({"architecture": "lenet", "initialization": "he"}, "initialization: unknown value 'he'"),
        ({"architecture": "lenet", "convolution": "fft"}, "convolution: unknown value 'fft'"),
        (
            {"architecture": "lenet", "num_logits": 0},
            "num_logits: must be an integer of at least 1, got 0",
        ),
        (
            {"architecture": "lenet", "image_shape": (32, 32)},
            "image_shape: must be three positive integers",
        ),
        ({"architecture": "lenet", "image_shape": (12, 12, 1)}, "image_shape: too small"),
        ({"architecture": "resnet18", "image_shape": (16, 16, 1)}, "image_shape: too small"),
    ],
)
def test_bad_choices_are_refused_by_name(arguments, message):
    with pytest.raises(InputError, match=message):
        create_model(**arguments)


class _PlainDenseBlock(nn.Module):
    """What `DenseBlock` computes, layer by layer with the layers of Flax, under the same names."""

    num_layers: int

    @nn.compact
    def __call__(self, x, train):
        for n in range(self.num_layers):
            y = x
            for half, (features, size) in enumerate(
                ((4 * densenet.GROWTH, 1), (densenet.GROWTH, 3)), 1
            ):
                y = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name=f"norm{n}_{half}")(y)
                y = nn.Conv(
                    features, (size, size), padding="SAME", use_bias=False, name=f"conv{n}_{half}"
                )(nn.relu(y))
            x = jnp.concatenate([x, y], axis=-1)
        return x


def test_statistics_of_channels_far_from_zero_are_no_nan():
    mean, var = densenet._statistics(
        1e3 + jax.random.normal(jax.random.key(0), (8, 16, 16, 64)) * 1e-3
    )
    assert (var >= 0).all() and jnp.isfinite(mean).all()


def test_a_dense_block_in_loops_has_the_gradients_of_plain_layers(monkeypatch):
    monkeypatch.setattr(densenet, "LOOPED", 2)
    monkeypatch.setattr(densenet, "GROWTH", 8)
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 10))
    looped, plain = densenet.DenseBlock(3, product_convolution), _PlainDenseBlock(3)
    shapes, other = (
        jax.eval_shape(lambda key, b=b: b.init(key, x, False), jax.random.key(0))
        for b in (looped, plain)
    )
    assert shapes == other
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32), shapes
    )

    def gradients(block):
        def train(variables, x):
            y, updated = block.apply(variables, x, True, mutable=["batch_stats"])
            return jnp.vdot(y, jnp.cos(jnp.arange(y.size)).reshape(y.shape)), updated["batch_stats"]

        return jax.jit(jax.grad(train, (0, 1), has_aux=True))(variables, x)

    for actual, expected in zip(
        *(jax.tree.leaves(gradients(block)) for block in (looped, plain)), strict=True
    ):
        np.testing.assert_allclose(
            actual, expected, atol=2e-5 * float(jnp.abs(expected).max()) + 1e-5
        )
