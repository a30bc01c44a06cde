"""The contract every entry of the table keeps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax.architectures import ARCHITECTURES, create_model, densenet
from nad_jax.contract import check_behavior
from nad_jax.convolution import product_convolution
from nad_jax.derivatives import input_gradient
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError

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
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[architecture]


def test_the_resnet_for_imagenet_is_that_of_torchvision():
    model = create_model("resnet18_imagenet", (224, 224, 3), num_logits=1000)
    variables, images = _shapes(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 11_689_512
    assert jax.eval_shape(model.features, variables, images).shape == (2, 512)
    assert ARCHITECTURES["resnet18_imagenet"].reference_convolution == "normal_fan_out"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("shape", [(32, 32, 3), (64, 48, 1)])
def test_shapes_of_logits_and_features(architecture, shape):
    model = create_model(architecture, image_shape=shape, num_logits=10)
    variables, images = _shapes(model)
    assert jax.eval_shape(model.apply, variables, images).shape == (2, 10)
    features = jax.eval_shape(model.features, variables, images)
    last = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.shape == (features.shape[-1], 10)]
    assert features.shape[0] == 2 and len(last) == 1


@pytest.mark.parametrize("architecture", ["logreg", "mlp", "lenet", "vgg11"])
def test_entries_keep_the_contract_that_models_of_users_are_tested_for(architecture):
    check_behavior(create_model(architecture, num_logits=2))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_apply_updates_statistics_alone(architecture):
    model = create_model(architecture, num_logits=2)
    variables, images = _shapes(model)
    logits, updated = jax.eval_shape(
        lambda v, x, key: model.apply(v, x, key, train=True), variables, images, jax.random.key(0)
    )
    assert logits.shape == (2, 2)
    assert jax.tree.map(jnp.shape, updated) == jax.tree.map(jnp.shape, variables)


LOOPED = ("logreg", "mlp", "lenet", "resnet18_w16")  # the others are the same code, and slow to compile


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_derivatives_are_finite_non_zero_and_the_same_mapped_or_looped(architecture):
    model = create_model(architecture)
    x = jax.random.normal(make_key(1), model.image_shape)

    def gradient(key):
        variables = model.init(key)
        return input_gradient(lambda images: model.apply(variables, images), x, jnp.ones((1, 1)))[0]

    keys = jax.random.split(make_key(0), 2)
    mapped = np.asarray(jax.jit(jax.vmap(gradient))(keys))
    assert np.isfinite(mapped).all() and (np.abs(mapped).max(1) > 0).all()
    if architecture in LOOPED:
        looped = np.asarray(jax.jit(lambda keys: jax.lax.map(gradient, keys))(keys))
        np.testing.assert_allclose(mapped, looped, atol=1e-4 * np.abs(looped).max())


@pytest.mark.parametrize("architecture", ["logreg", "mlp", "lenet", "vgg11", "resnet18"])
def test_logits_are_the_read_out_of_the_features(architecture):
    model = create_model(architecture, num_logits=3)
    variables = model.init(make_key(0))
    images = jax.random.normal(make_key(1), (2, *model.image_shape))
    features = model.features(variables, images)
    (read_out,) = [
        layer
        for path, layer in jax.tree_util.tree_leaves_with_path(
            variables["params"], is_leaf=lambda node: isinstance(node, dict) and "kernel" in node
        )
        if isinstance(layer, dict) and layer["kernel"].shape == (features.shape[-1], 3)
    ]
    kernel, bias = read_out["kernel"], read_out["bias"]
    np.testing.assert_allclose(features @ kernel + bias[None], model.apply(variables, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["lenet", "resnet18"])
def test_without_pooling_the_dense_layer_grows(architecture):
    variables, images = _shapes(create_model(architecture, pooling="none"))
    widest = max(leaf.shape[0] for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 2)
    assert widest == {"lenet": 24 * 24 * 16, "resnet18": 32 * 32 * 512}[architecture]
    model = create_model(architecture, pooling="none")
    assert jax.eval_shape(model.apply, variables, images).shape == (2, 1)


def test_pooling_choices_change_the_function_and_not_the_parameters():
    images = jax.random.normal(make_key(1), (2, 32, 32, 1))
    models = [create_model("lenet", pooling=pooling) for pooling in ("default", "max", "avg")]
    variables = models[0].init(make_key(0))
    default, maximum, average = (model.apply(variables, images) for model in models)
    np.testing.assert_array_equal(default, maximum)
    assert float(jnp.abs(maximum - average).max()) > 1e-3


def test_convolutions_give_the_same_network():
    images = jax.random.normal(make_key(1), (2, 32, 32, 1))
    for architecture in ("lenet", "resnet18"):
        models = [create_model(architecture, convolution=name) for name in ("lax", "product")]
        plain, fast = (jax.jit(model.apply)(models[0].init(make_key(0)), images) for model in models)
        np.testing.assert_allclose(fast, plain, atol=1e-5 * float(jnp.abs(plain).max()) + 1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "resnet"}, "architecture: unknown value 'resnet' .did you mean 'resnet18'.*densenet121"),
        ({"architecture": "lenet", "pooling": "min"}, "pooling: unknown value 'min'"),
        ({"architecture": "vgg11", "pooling": "none"}, "'none' makes no sense for 'vgg11'"),
        ({"architecture": "logreg", "pooling": "none"}, "'none' makes no sense for 'logreg'"),
        ({"architecture": "lenet", "initialization": "he"}, "initialization: unknown value 'he'"),
        ({"architecture": "lenet", "convolution": "fft"}, "convolution: unknown value 'fft'"),
        ({"architecture": "lenet", "num_logits": 0}, "num_logits: must be an integer of at least 1, got 0"),
        ({"architecture": "lenet", "image_shape": (32, 32)}, "image_shape: must be three positive integers"),
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
            for half, (features, size) in enumerate(((4 * densenet.GROWTH, 1), (densenet.GROWTH, 3)), 1):
                y = nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name=f"norm{n}_{half}")(y)
                y = nn.Conv(features, (size, size), padding="SAME", use_bias=False, name=f"conv{n}_{half}")(nn.relu(y))
            x = jnp.concatenate([x, y], axis=-1)
        return x


def test_statistics_of_channels_far_from_zero_are_no_nan():
    mean, var = densenet._statistics(1e3 + jax.random.normal(jax.random.key(0), (8, 16, 16, 64)) * 1e-3)
    assert (var >= 0).all() and jnp.isfinite(mean).all()


def test_a_dense_block_in_loops_is_the_one_of_plain_layers(monkeypatch):
    monkeypatch.setattr(densenet, "LOOPED", 2)
    x = jax.random.normal(jax.random.key(1), (8, 16, 16, 40))
    looped, plain = densenet.DenseBlock(3, product_convolution), _PlainDenseBlock(3)
    variables = jax.tree.map(  # scales, biases and statistics that are not those of the identity
        lambda leaf: leaf + 0.02 * jax.random.normal(jax.random.key(leaf.size), leaf.shape),
        plain.init(jax.random.key(0), x, False),
    )
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, looped.init(jax.random.key(0), x, False))

    def train(block, variables, x):
        y, updated = block.apply(variables, x, True, mutable=["batch_stats"])
        return jnp.vdot(y, jnp.cos(jnp.arange(y.size)).reshape(y.shape)), updated["batch_stats"]

    def evaluate(block):
        (_, statistics), gradients = jax.value_and_grad(
            lambda v, x: train(block, v, x), (0, 1), has_aux=True, allow_int=True
        )(variables, x)
        return block.apply(variables, x, False), statistics, gradients

    for actual, expected in zip(
        *(jax.tree.leaves(jax.jit(evaluate, static_argnums=0)(b)) for b in (looped, plain)), strict=True
    ):
        np.testing.assert_allclose(actual, expected, atol=2e-5 * float(jnp.abs(expected).max()) + 1e-5)
