"""The contract every entry of the table keeps."""

import functools
import itertools
import re
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax.architectures import ARCHITECTURES, MLP, Architecture, create_model, densenet
from nad_jax.behavior import check_behavior
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
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == PARAMETERS[architecture]
    )


def test_the_resnet_for_imagenet_is_that_of_torchvision():
    model = create_model("resnet18_imagenet", (224, 224, 3), num_logits=1000)
    variables, images = _shapes(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 11_689_512
    assert jax.eval_shape(model.features, variables, images).shape == (2, 512)
    assert ARCHITECTURES["resnet18_imagenet"].module.reference_convolution == "normal_fan_out"


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


# Of the others `test_reference_networks` says more.
@pytest.mark.parametrize(
    ("architecture", "shape", "options"),
    [
        ("logreg", (32, 32, 1), {}),
        ("lenet", (32, 32, 1), {}),
        ("lenet", (16, 19, 2), {"width": 2}),
        ("mlp", (5,), {"width": 3}),
        ("mlp", (6, 2), {}),
        ("logreg", (3, 4, 2, 1), {}),
    ],
)
def test_entries_keep_the_contract_that_models_of_users_are_tested_for(
    architecture, shape, options
):
    model = create_model(architecture, shape, num_logits=2, **options)
    assert model.input_shape == shape
    check_behavior(model)


def _mlp(width):
    return 1024 * width + width + width**2 + width + width + 1


def _lenet(width):
    second = 8 * width // 3
    convolutions = 25 * width + width + 25 * width * second + second
    units = (25 * second, 20 * width, 14 * width, 1)
    return convolutions + sum(a * b + b for a, b in itertools.pairwise(units))


def _vgg11(width, normalized=True):
    channels = [1, *(width * multiple for multiple in (1, 2, 4, 4, 8, 8, 8, 8))]
    convolutions = sum(9 * a * b + b for a, b in itertools.pairwise(channels))
    units = (8 * width, 8 * width, 8 * width, 1)
    dense = sum(a * b + b for a, b in itertools.pairwise(units))
    return convolutions + dense + 2 * sum(channels[1:]) * normalized


def _resnet18(width, stem=3):
    count, before = stem**2 * width + 2 * width, width
    for channels in (width, 2 * width, 4 * width, 8 * width):
        count += 9 * before * channels + 3 * 9 * channels**2 + 4 * 2 * channels
        if before != channels:
            count += before * channels + 2 * channels
        before = channels
    return count + before + 1


def _densenet121(growth):
    count, channels = 9 * 2 * growth, 2 * growth
    for block, layers in enumerate((6, 12, 24, 16)):
        for _ in range(layers):
            count += 2 * channels + channels * 4 * growth + 2 * 4 * growth + 9 * 4 * growth**2
            channels += growth
        if block < 3:
            count += 2 * channels + channels * (channels // 2)
            channels //= 2
    return count + 2 * channels + channels + 1


# The published width, others, and the number of parameters as a function of it.
WIDTHS = {
    "mlp": (512, (1, 7), _mlp),
    "lenet": (6, (1, 4, 12), _lenet),
    "vgg11": (64, (1, 10), _vgg11),
    "vgg11_plain": (64, (1, 10), functools.partial(_vgg11, normalized=False)),
    "resnet18": (64, (16, 5), _resnet18),
    "resnet18_w16": (16, (64, 3), _resnet18),
    "resnet18_imagenet": (64, (5,), functools.partial(_resnet18, stem=7)),
    "densenet121": (32, (12, 5), _densenet121),
}


@pytest.mark.parametrize("architecture", WIDTHS)
def test_parameters_follow_the_width(architecture):
    published, others, count = WIDTHS[architecture]
    assert count(published) == PARAMETERS[architecture]
    for width in others:
        variables, _ = _shapes(create_model(architecture, width=width))
        assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count(width)


def test_every_entry_has_a_width_but_the_linear_one():
    assert set(WIDTHS) == set(ARCHITECTURES) - {"logreg"}


def test_what_is_published_is_not_described_and_what_is_not_is():
    published = create_model("lenet")
    for width in (0, None, 6, np.int64(6)):
        assert create_model("lenet", width=width).description == published.description
    assert "width" not in published.description
    assert create_model("lenet", width=5).description == {**published.description, "width": 5}
    assert "width" not in create_model("resnet18_w16").description
    assert create_model("logreg", width=0, normalization=None).symmetries == ("flip", "transpose")


@pytest.mark.parametrize(
    ("alias", "architecture", "options"),
    [
        ("resnet18_w16", "resnet18", {"width": 16}),
        ("vgg11_plain", "vgg11", {"normalization": "none"}),
    ],
)
def test_aliases_are_entries_with_other_options(alias, architecture, options):
    one, other = create_model(alias), create_model(architecture, **options)
    assert _shapes(one) == _shapes(other)
    assert {**one.description, "architecture": architecture, **options} == other.description


class _Wave(MLP):
    activation: Literal["relu", "sine"] = "relu"

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(self.width)(x.reshape(len(x), -1))
        return nn.Dense(self.num_logits)(jnp.sin(x) if self.activation == "sine" else nn.relu(x))


def test_a_field_of_a_module_is_an_option(monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "wave", Architecture(_Wave))
    plain, wave = (create_model("wave", (3,), activation=name) for name in ("relu", "sine"))
    assert "activation" not in plain.description and wave.description["activation"] == "sine"
    variables, x = wave.init(make_key(0)), jnp.ones((1, 3))
    np.testing.assert_allclose(
        wave.features(variables, x), jnp.sin(_hidden(variables, x)), atol=1e-6
    )
    np.testing.assert_allclose(
        plain.features(variables, x), nn.relu(_hidden(variables, x)), atol=1e-6
    )
    with pytest.raises(
        InputError, match=r"^activation: 'tanh' makes no sense for 'wave'; allowed: 'relu', 'sine'"
    ):
        create_model("wave", activation="tanh")
    with pytest.raises(
        InputError, match=r"^activation: 'sine' makes no sense for 'mlp'; it has no activation"
    ):
        create_model("mlp", activation="sine")


def _hidden(variables, x):
    dense = variables["params"]["Dense_0"]
    return x @ dense["kernel"] + dense["bias"][None]


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
        ({"architecture": "logreg", "width": 8}, "width: 8 makes no sense for 'logreg'; it has no"),
        ({"architecture": "mlp", "width": -1}, "width: must be an integer of at least 1, got -1"),
        ({"architecture": "mlp", "width": 2.5}, "width: must be an integer of at least 1, got 2.5"),
        (
            {"architecture": "mlp", "widht": 8},
            "option: unknown value 'widht' .did you mean 'width'.*allowed: 'width', 'pooling'",
        ),
        (
            {"architecture": "vgg11", "normalization": "layer"},
            "normalization: 'layer' makes no sense for 'vgg11'; allowed: 'batch', 'none'",
        ),
        (
            {"architecture": "lenet", "normalization": "batch"},
            "normalization: 'batch' makes no sense for 'lenet'; it has no normalization",
        ),
        ({"architecture": "mlp", "image_shape": (1,) * 5}, "image_shape: must be one to four"),
        ({"architecture": "lenet", "image_shape": (12, 12, 1)}, "image_shape: too small"),
        ({"architecture": "resnet18", "image_shape": (16, 16, 1)}, "image_shape: too small"),
    ],
)
def test_bad_choices_are_refused_by_name(arguments, message):
    with pytest.raises(InputError, match=message):
        create_model(**arguments)


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"logreg", "mlp"}))
@pytest.mark.parametrize("shape", [(64,), (64, 3), (8, 64, 64, 3)])
def test_networks_of_images_take_nothing_else(architecture, shape):
    with pytest.raises(
        InputError, match=f"^image_shape: must be three .* got {re.escape(str(shape))}"
    ):
        create_model(architecture, shape)


class _PlainDenseBlock(nn.Module):
    """What `DenseBlock` computes, layer by layer with the layers of Flax, under the same names."""

    num_layers: int
    growth: int

    @nn.compact
    def __call__(self, x, train):
        for n in range(self.num_layers):
            y = x
            for half, (features, size) in enumerate(((4 * self.growth, 1), (self.growth, 3)), 1):
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
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 10))
    looped, plain = densenet.DenseBlock(3, product_convolution, 8), _PlainDenseBlock(3, 8)
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
