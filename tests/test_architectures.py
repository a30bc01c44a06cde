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
from nad_jax.architectures.network import normalize
from nad_jax.architectures.options import check_options
from nad_jax.architectures.vit import sinusoids
from nad_jax.behavior import check_behavior
from nad_jax.claims import check_readout_variance, check_symmetries_hold
from nad_jax.contract import named_leaves
from nad_jax.convolution import max_pooled, product_convolution
from nad_jax.depthwise import depthwise_products
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError
from nad_jax.linen import from_linen
from nad_jax.pooling import pool
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
    "wide_resnet": 2_746_289,
    "bottleneck_mlp": 13_129_729,
    "vit": 5_354_881,
    "mixer": 17_089_025,
    "convnext": 27_816_673,
}

# The published sizes of networks of others, at their own inputs.
PUBLISHED = [
    ("vit", (224, 224, 3), 1000, {"patch": 16}, 5_717_416),
    ("vit", (224, 224, 3), 1000, {"patch": 16, "width": 768, "heads": 12}, 86_567_656),
    ("mixer", (224, 224, 3), 1000, {"patch": 16}, 18_528_264),
    ("mixer", (224, 224, 3), 1000, {"patch": 16, "width": 768, "depth": 12}, 59_880_472),
    ("convnext", (224, 224, 3), 1000, {"patch": 4}, 28_589_128),
    ("wide_resnet", (32, 32, 3), 10, {"depth": 28, "widen": 10}, 36_479_194),
    ("bottleneck_mlp", (64, 64, 3), 11_230, {}, 24_657_374),
    ("bottleneck_mlp", (32, 32, 1), 1, {"depth": 12, "width": 1024}, 101_799_937),
]

# As small as it goes: the shape of inputs and the options.
TINY = {
    "wide_resnet": ((32, 32, 1), {"width": 2, "depth": 10, "widen": 2}),
    "bottleneck_mlp": ((4, 4, 1), {"width": 6, "depth": 2}),
    "vit": ((4, 4, 1), {"width": 8, "depth": 1, "heads": 2, "patch": 2}),
    "mixer": ((4, 4, 1), {"width": 8, "depth": 1, "patch": 2}),
    "convnext": ((8, 8, 1), {"width": 4, "stages": "1-1-1-1", "patch": 1}),
}


def _tiny(architecture, num_logits=1, **options):
    shape, own = TINY[architecture]
    return create_model(architecture, shape, num_logits, **{**own, **options})


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


@pytest.mark.parametrize(("architecture", "shape", "classes", "options", "count"), PUBLISHED)
def test_parameter_counts_of_published_sizes(architecture, shape, classes, options, count):
    variables, _ = _shapes(create_model(architecture, shape, classes, **options))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


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
        ("bottleneck_mlp", (3, 2), {"width": 4, "depth": 1}),
        *((name, *TINY[name]) for name in ("vit", "mixer")),
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


def _wide_resnet(width, blocks=2, widen=4):
    count, before = 9 * width, width
    for channels in (widen * width, 2 * widen * width, 4 * widen * width):
        count += 9 * before * channels + (2 * blocks - 1) * 9 * channels**2  # convolutions
        count += 2 * before + (2 * blocks - 1) * 2 * channels  # normalizations before them
        count += before * channels * (before != channels)
        before = channels
    return count + 2 * before + before + 1


def _bottleneck_mlp(width, depth=6):
    block = 2 * width + (width * 4 * width + 4 * width) + (4 * width * width + width)
    return 1024 * width + width + depth * block + width + 1


def _vit(width, depth=12):
    attention = 4 * (width**2 + width)
    mlp = width * 4 * width + 4 * width + 4 * width * width + width
    tokens = 16 * width + width + width + 65 * width  # patches, class token, positions
    return tokens + depth * (attention + mlp + 4 * width) + 2 * width + width + 1


def _mixer(width, depth=8):
    tokens, channels = width // 2, 4 * width
    block = 64 * tokens + tokens + tokens * 64 + 64
    block += width * channels + channels + channels * width + width + 4 * width
    return 16 * width + width + depth * block + 2 * width + width + 1


def _convnext(width):
    count, before = 4 * width + width + 2 * width, width
    for stage, blocks in enumerate((3, 3, 9, 3)):
        channels = width * 2**stage
        if stage:
            count += 2 * before + 4 * before * channels + channels
        block = 49 * channels + channels + 2 * channels + channels  # depthwise, norm, scale
        block += channels * 4 * channels + 4 * channels + 4 * channels * channels + channels
        count, before = count + blocks * block, channels
    return count + 2 * before + before + 1


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
    "wide_resnet": (16, (3,), _wide_resnet),
    "bottleneck_mlp": (512, (7,), _bottleneck_mlp),
    "vit": (192, (6,), _vit),
    "mixer": (512, (6,), _mixer),
    "convnext": (96, (5,), _convnext),
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
    ("architecture", "side"),
    [
        ("logreg", 16),
        ("mlp", 16),
        ("lenet", 16),
        ("resnet18_w16", 32),
        *((name, shape[0]) for name, (shape, _) in TINY.items()),
    ],
)
def test_derivatives_are_finite_non_zero_and_the_same_mapped_or_looped(architecture, side):
    _, options = TINY.get(architecture, (None, {}))
    model = create_model(architecture, (side, side, 1), **options)
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
        ({"architecture": "lenet", "pooling": "token"}, "'token' makes no sense for 'lenet'"),
        ({"architecture": "vgg11", "pooling": "none"}, "'none' makes no sense for 'vgg11'"),
        ({"architecture": "logreg", "pooling": "none"}, "'none' makes no sense for 'logreg'"),
        ({"architecture": "lenet", "initialization": "hi"}, "initialization: unknown value 'hi'"),
        (
            {"architecture": "vit", "initialization": "reference"},
            "^initialization: 'reference' is not known of 'vit', whose paper has another; allowed: "
            "'flax', 'he', 'lecun', 'orthogonal', 'sigma'$",
        ),
        (
            {"architecture": "lenet", "initialization": "sigma:1.5,0.1"},
            "initialization: must be sigma:W:B with the numbers .* as in sigma:1.5:0.1, got 'sigma:1",
        ),
        (
            {"architecture": "lenet", "initialization": "sigma:0:1"},
            "initialization: σ_w: must be a finite number greater than 0.0, got 0.0",
        ),
        (
            {"architecture": "vit", "patch": 5},
            "^image_shape: height and width must be multiples of 5",
        ),
        ({"architecture": "mixer", "patch": 3}, "^image_shape: height and width must be multiples"),
        (
            {"architecture": "convnext", "image_shape": (24, 32, 1)},
            "^image_shape: height and width must be multiples of 16 .8 patches of 2., got 24x32",
        ),
        ({"architecture": "vit", "heads": 5}, "^heads: must divide the width 192, got 5"),
        (
            {"architecture": "vit", "width": 6, "position": "fixed"},
            "^width: must be a multiple of 4 .position='fixed'., got 6",
        ),
        ({"architecture": "wide_resnet", "depth": 18}, "^depth: must be 10, 16, 22, .* got 18"),
        (
            {"architecture": "convnext", "stages": "3-3-3"},
            "^stages: must be four positive integers, as in '3-3-9-3', got '3-3-3'",
        ),
        (
            {"architecture": "convnext", "layer_scale": -1.0},
            "^layer_scale: must be a finite number greater than 0.0, got -1.0",
        ),
        (
            {"architecture": "convnext", "layer_scale": "off"},
            "^layer_scale: must be a positive number or 'none', got 'off'",
        ),
        (
            {"architecture": "resnet18", "residual": "no"},
            "^residual: 'no' makes no sense for 'resnet18'; allowed: True, False",
        ),
        (
            {"architecture": "resnet18", "residual": 0},
            "^residual: 0 makes no sense for 'resnet18'; allowed: True, False",
        ),
        (
            {"architecture": "lenet", "mask": "erk"},
            "^mask: 'erk' needs a density, the share of weights that are kept",
        ),
        (
            {"architecture": "vit(patch=4,patch=2)"},
            "^architecture: options must be as in .*, each once, got 'vit",
        ),
        (
            {"architecture": "convnext", "layer_scale": 0},
            "^layer_scale: must be a finite number greater than 0.0, got 0",
        ),
        (
            {"architecture": "lenet", "residual": False},
            "^residual: False makes no sense for 'lenet'; it has no residual",
        ),
        ({"architecture": "vit(depth=0.5)"}, "^depth: must be an integer of at least 1, got 0.5"),
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
            "option of mlp: unknown value 'widht' .did you mean 'width'.*allowed: 'width', .*'mask'$",
        ),
        (
            {"architecture": "vgg11", "normalization": "layer"},
            "normalization: 'layer' makes no sense for 'vgg11'; allowed: 'batch', 'none'",
        ),
        (
            {"architecture": "densenet121", "normalization": "none"},
            "normalization: 'none' makes no sense for 'densenet121'; it has no normalization",
        ),
        ({"architecture": "mlp", "image_shape": (1,) * 5}, "image_shape: must be one to four"),
        ({"architecture": "lenet", "image_shape": (12, 12, 1)}, "image_shape: too small"),
        ({"architecture": "vgg11", "image_shape": (16, 16, 1)}, "image_shape: too small"),
    ],
)
def test_bad_choices_are_refused_by_name(arguments, message):
    with pytest.raises(InputError, match=message):
        create_model(**arguments)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_an_option_that_a_network_has_not_is_answered_with_those_it_has(architecture):
    own = (*ARCHITECTURES[architecture].options(), "density", "mask")
    listed = re.escape(", ".join(map(repr, own)))
    said = f"^option of {architecture}: unknown value 'nonsense'; allowed: {listed}$"
    with pytest.raises(InputError, match=said):
        create_model(architecture, nonsense=3)
    name = "patch" if "patch" not in own else "residual"
    said = f"^{name}: 7 makes no sense for '{architecture}'; it has no {name}, as others have; "
    with pytest.raises(InputError, match=f"{said}its options: {listed}$"):
        create_model(architecture, **{name: 7})


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        ("lenet", (1, 1, 3)),
        ("lenet", (14, 14, 3)),
        ("lenet(pooling=avg)", (5, 64, 3)),
    ],
)
def test_an_image_that_is_too_small_is_told_what_fits(architecture, shape):
    said = (
        r"^image_shape: too small, a .* map; the smallest of equal sides that fits is (\d+)x\1x3$"
    )
    with pytest.raises(InputError, match=said) as raised:
        create_model(architecture, shape)
    side = int(re.match(said, str(raised.value))[1])
    assert create_model(architecture, (side, side, 3)).num_logits == 1
    for smaller in ((side - 1, side, 3), (side, side - 1, 3)):
        with pytest.raises(InputError, match="too small"):
            create_model(architecture, smaller)


def test_too_small_an_image_for_a_module_of_ones_own_is_told_what_fits():
    class Net(nn.Module):
        positions: int = 0

        @nn.compact
        def __call__(self, x):
            x = x if x.ndim == 4 else x.reshape(len(x), 5, -1, 2)
            x = pool(pool(x, "max", 3), "max", 2).reshape(len(x), -1)
            return nn.Dense(1)(x + jnp.ones((1, self.positions)) if self.positions else x)

    with pytest.raises(InputError, match=r"2x2 window .* of equal sides that fits is 6x6x2$"):
        from_linen(Net(), (5, 9, 2))
    # Of one that takes a single size, or vectors, no other is known.
    for positions, shape in ((7, (5, 9, 2)), (0, (90,))):
        with pytest.raises(InputError, match=r"a 2x2 window meets a 1x3 map(?!;)"):
            from_linen(Net(positions), shape)


@pytest.mark.parametrize(
    "architecture", sorted(set(ARCHITECTURES) - {"logreg", "mlp", "bottleneck_mlp"})
)
@pytest.mark.parametrize("shape", [(64,), (64, 3), (8, 64, 64, 3)])
def test_networks_of_images_take_nothing_else(architecture, shape):
    with pytest.raises(
        InputError, match=f"^image_shape: must be three .* got {re.escape(str(shape))}"
    ):
        create_model(architecture, shape)


def test_options_are_published_by_none_zero_default_and_the_value_itself():
    known, check = ARCHITECTURES["convnext"].options(), functools.partial(check_options, "convnext")
    same = {"stages": (3, 3, 9, 3), "layer_scale": "1e-6", "activation": "default", "patch": 0}
    assert check(known, same, known) == ()
    other = {"stages": "1-1-2-1", "layer_scale": 0.1, "width": None}
    assert check(known, other, known) == (("layer_scale", 0.1), ("stages", "1-1-2-1"))
    published = _tiny("convnext").description
    for off in (None, "none"):
        model = _tiny("convnext", layer_scale=off)
        assert model.description == {**published, "layer_scale": "none"}
    assert "scale" not in _shapes(model)[0]["params"]["block1_1"]
    words = create_model("vit(position=none)").description, create_model("vit", position="none")
    assert words[0] == words[1].description
    residual = [create_model("resnet18_w16", residual=flag) for flag in (True, False)]
    assert [one.description.get("residual") for one in residual] == [None, False]


def test_options_may_be_written_with_the_name():
    written = create_model("vit(depth=1, width=8, heads=2, pooling='avg')", (8, 8, 1), depth=3)
    options = {"depth": 1, "width": 8, "heads": 2}
    expected = create_model("vit", (8, 8, 1), pooling="avg", **options)
    assert written.description == expected.description
    with pytest.raises(InputError, match=r"^architecture: options must be as in vit\("):
        create_model("vit(8)")


class _PublishedLeNet(nn.Module):
    """LeNet as it is published, without options."""

    @nn.compact
    def __call__(self, x, train=False):
        for features in (6, 16):
            convolution = max_pooled(product_convolution)
            conv = nn.Conv(features, (5, 5), padding="VALID", conv_general_dilated=convolution)
            x = nn.relu(conv(x))
        x = x.reshape(len(x), -1)
        for features in (120, 84):
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(1)(x)


def test_the_defaults_of_lenet_are_the_published_network_bit_by_bit():
    model = create_model("lenet", (16, 16, 1), convolution="product")
    published = from_linen(_PublishedLeNet(), (16, 16, 1), "reference", convolution="product")
    x = jax.random.normal(make_key(1), (3, 16, 16, 1))

    def run(one):
        variables = one.init(make_key(0))
        return variables, *jax.value_and_grad(lambda x: one.apply(variables, x).sum())(x)

    actual, expected = (jax.jit(lambda one=one: run(one))() for one in (model, published))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    assert all(map(np.array_equal, jax.tree.leaves(actual), jax.tree.leaves(expected)))


def test_max_pooling_stands_behind_an_activation_that_is_not_monotone():
    # A kernel that passes one pixel: windows of 2×2 hold it and what GELU makes least of.
    model = create_model("lenet", (16, 16, 1), activation="gelu", width=1)
    variables = jax.tree.map(jnp.zeros_like, model.init(make_key(0)))
    conv = variables["params"]["Conv_0"]
    conv["kernel"] = conv["kernel"].at[2, 2].set(1.0)
    x = jnp.full((1, 16, 16, 1), -0.75).at[:, ::2].set(-3.0)
    seen = []

    def record(next_function, args, kwargs, context):
        if isinstance(context.module, nn.Conv):
            seen.append(args[0])
        return next_function(*args, **kwargs)

    @jax.jit
    def run():
        with nn.intercept_methods(record):
            model.apply(variables, x)
        return seen

    seen = run()
    # GELU of −3 is −.004, of −.75 it is −.17.
    np.testing.assert_allclose(seen[1], nn.gelu(-3.0, approximate=False), rtol=1e-4)


@pytest.mark.parametrize("normalization", ["batch", "layer", "group"])
def test_normalizations_normalize_over_their_axes(normalization):
    x = 3 + 2 * jax.random.normal(make_key(0), (4, 5, 6, 32))
    layer = _Normalized(normalization)
    y, _ = layer.apply(layer.init(make_key(0), x), x, mutable=["batch_stats"])
    groups = np.asarray(y).reshape(4, 5, 6, 2, 16)
    axes = {"batch": (0, 1, 2), "layer": (3, 4), "group": (1, 2, 4)}[normalization]
    np.testing.assert_allclose(groups.mean(axes), 0, atol=1e-5)
    np.testing.assert_allclose(groups.var(axes), 1, rtol=1e-3)


class _Normalized(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x):
        return normalize(x, self.kind, train=True)


def _train_once(model, steps=8):
    """The loss at the start and after a few steps of gradient descent, on one batch."""
    x = jax.random.normal(make_key(1), (8, *model.image_shape))
    labels = jnp.arange(8) % 2

    def loss(params, rest):
        logits, updated = model.apply({**rest, "params": params}, x, make_key(2), train=True)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)
        return -chosen.mean(), {name: updated[name] for name in rest}

    def step(state, _):
        params, rest = state
        (value, rest), slopes = jax.value_and_grad(loss, has_aux=True)(params, rest)
        return (jax.tree.map(lambda p, g: p - 0.05 * g, params, slopes), rest), value

    variables = dict(model.init(make_key(0)))
    state = variables.pop("params"), variables
    losses = jax.jit(lambda state: jax.lax.scan(step, state, None, steps)[1])(state)
    return float(losses[0]), float(losses[-1])


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        *((name, {}) for name in TINY if name != "convnext"),
        ("vit", {"pooling": "avg", "position": "fixed", "activation": "tanh"}),
        ("convnext", {"layer_scale": None, "normalization": "none", "initialization": "he"}),
        ("wide_resnet", {"normalization": "group", "activation": "silu", "residual": False}),
    ],
)
def test_training_lowers_the_loss(architecture, options):
    before, after = _train_once(_tiny(architecture, 2, **options))
    assert after < before


@pytest.mark.parametrize(
    ("architecture", "shape", "options"),
    [
        *((name, *TINY[name]) for name in TINY),
        ("vit", TINY["vit"][0], {**TINY["vit"][1], "pooling": "avg", "position": "none"}),
        ("lenet", (16, 16, 1), {"normalization": "group", "activation": "gelu", "width": 3}),
    ],
)
def test_what_entries_state_of_their_law_holds(architecture, shape, options):
    model = create_model(architecture, shape, **options)
    check_readout_variance(model)
    check_symmetries_hold(model)


def test_a_network_without_connections_has_none():
    plain = create_model("resnet18", width=1, residual=False)
    names = [name for name, _ in named_leaves(_shapes(plain)[0]["params"])]
    assert names and not any("projection" in name for name in names)
    model = create_model("wide_resnet", pooling="none", residual=False, width=1, depth=10)
    assert model.symmetries == ("flip", "transpose")


def test_a_fixed_embedding_tells_the_first_patch_from_the_last():
    assert _tiny("vit", position="fixed").symmetries == ("transpose",)
    waves = sinusoids(3, 5, 8).reshape(3, 5, 8)
    transposed = sinusoids(5, 3, 8).reshape(5, 3, 8).swapaxes(0, 1)
    np.testing.assert_allclose(waves, np.roll(transposed, 4, -1))
    assert len(np.unique(waves.reshape(15, 8), axis=0)) == 15
    np.testing.assert_allclose((waves**2).sum(-1), 4, rtol=1e-6)


@pytest.mark.parametrize("padding", [((3, 3), (3, 3)), ((0, 2), (1, 0))])
@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (2, 8, 9, 3), (60, 8, 7, 2), (2, 3, 4, 3)])
def test_depthwise_products_are_the_convolutions_of_lax(shape, padding):
    """Of larger maps, of small ones, and of a batch of those between."""
    taps = (7, 7) if padding[0] == (3, 3) else (3, 2)
    x, kernel = (
        jax.random.normal(make_key(n), sizes)
        for n, sizes in enumerate((shape, (*taps, 1, shape[3])))
    )
    layout = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": shape[3]}

    def run(convolve):
        def weigh(x, kernel):
            y = convolve(x, kernel, (1, 1), padding, **layout)
            return jnp.vdot(y, jnp.sin(jnp.arange(y.size)).reshape(y.shape)), y

        return jax.jit(jax.grad(weigh, (0, 1), has_aux=True))(x, kernel)

    products, lax = run(depthwise_products), run(jax.lax.conv_general_dilated)
    for one, other in zip(jax.tree.leaves(products), jax.tree.leaves(lax), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6 * np.abs(other).max() * shape[0])


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
