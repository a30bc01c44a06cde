from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax.architectures import ARCHITECTURES, create_model
from nad_jax.errors import InputError
from nad_jax.initializers import flax_readout_variance, reference_readout_variance
from nad_jax.linen import from_linen


def _flat(variables):
    return {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }


def _own_kernel(name, variables):
    """The kernel of the layer a leaf belongs to; None for the leaves of normalization layers."""
    return variables.get(name.rsplit("[", 1)[0] + "['kernel']")


@pytest.mark.parametrize("architecture", ["lenet", "vgg11", "resnet18"])
def test_reference_initialization_has_the_stated_law_leaf_by_leaf(architecture):
    variables = _flat(create_model(architecture).init(jax.random.key(0)))
    random = 0
    for name, leaf in variables.items():
        kernel = _own_kernel(name, variables)
        if kernel is None:
            np.testing.assert_array_equal(leaf, 1 if name.endswith(("['scale']", "['var']")) else 0)
            continue
        if kernel.ndim == 4 and architecture == "vgg11":
            if "bias" in name:
                np.testing.assert_array_equal(leaf, 0)
                continue
            variance, bound, fourth = 2 / (9 * kernel.shape[-1]), np.inf, 3.0
        else:
            bound = 1 / np.sqrt(np.prod(kernel.shape[:-1]))
            variance, fourth = bound**2 / 3, 9 / 5
        assert np.abs(leaf).max() <= bound
        if leaf.size >= 64:
            random += 1
            assert abs(leaf.mean()) < 5 * np.sqrt(variance / leaf.size), name
            assert abs((leaf**2).mean() / variance - 1) < 5 * np.sqrt((fourth - 1) / leaf.size), (
                name
            )
    assert random >= 4


def test_leaves_of_one_draw_are_independent():
    variables = _flat(create_model("lenet").init(jax.random.key(3)))
    leaves = [np.ravel(leaf)[:1000] for leaf in variables.values() if leaf.size >= 1000]
    correlations = np.corrcoef(leaves) - np.eye(len(leaves))
    assert np.abs(correlations).max() < 5 / np.sqrt(1000)


def test_keys_decide_everything():
    init = create_model("lenet").init
    first, again, other = init(jax.random.key(1)), init(jax.random.key(1)), init(jax.random.key(2))
    assert all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(again)))
    assert not any(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(other)))


class Net(nn.Module):
    """A part between two dense layers, or between two convolutions where it is given images."""

    part: Any
    images: bool = False

    @nn.compact
    def __call__(self, x):
        x = (
            nn.Conv(4, (3, 3))(x)
            if self.images
            else nn.Dense(4, name="before")(x.reshape(len(x), -1))
        )
        return nn.Dense(1, name="after")(self.part(x).reshape(len(x), -1))


class OnePlusScale(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * (1 + self.param("scale", nn.initializers.zeros, (1, x.shape[-1])))


class LayerScale(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", nn.initializers.constant(1e-6), (1, x.shape[-1]))


class Bilinear(nn.Module):
    """An own product, with variables named like those of a dense layer."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.normal(), (x.shape[-1], x.shape[-1]))
        return (x @ kernel) * x


class HalfDense(nn.Dense):
    def __call__(self, x):
        return super().__call__(x) / 2


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.SpectralNorm(nn.Dense(4))(x, update_stats=False)


class Tower(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(x)


STACKED = nn.vmap(
    nn.Dense,
    in_axes=None,
    out_axes=1,
    axis_size=2,
    variable_axes={"params": 0},
    split_rngs={"params": True},
)


@pytest.mark.parametrize(
    ("part", "variable", "owner", "images"),
    [
        (OnePlusScale(), "params/part/scale", "OnePlusScale", False),
        (LayerScale(), "params/part/scale", "LayerScale", False),
        (Bilinear(), "params/part/kernel", "Bilinear", False),
        (HalfDense(4), "params/part/bias", "HalfDense", False),
        (STACKED(4), "params/part/bias", "Dense, stacked by nn.scan or nn.vmap", False),
        (
            nn.WeightNorm(nn.Dense(4)),
            "params/part/layer_instance/bias",
            "Dense inside a WeightNorm",
            False,
        ),
        (Spectral(), "batch_stats/part/SpectralNorm_0/Dense_0/kernel/sigma", "SpectralNorm", False),
        (nn.DenseGeneral(4), "params/part/bias", "DenseGeneral", False),
        (nn.PReLU(), "params/part/negative_slope", "PReLU", False),
        (nn.ConvTranspose(4, (2, 2)), "params/part/bias", "ConvTranspose", True),
        (nn.ConvLocal(4, (2, 2)), "params/part/bias", "ConvLocal", True),
        (
            nn.MultiHeadDotProductAttention(2),
            "params/part/key/bias",
            "DenseGeneral inside a MultiHeadDotProductAttention",
            True,
        ),
        (nn.RNN(nn.LSTMCell(4)), "params/part/cell/hf/bias", "Dense inside a LSTMCell", True),
    ],
)
def test_variables_whose_law_is_not_settled_are_refused_by_name_and_owner(
    part, variable, owner, images
):
    with pytest.raises(InputError, match=rf"not variable {variable} float32\[.*\] of a {owner};"):
        from_linen(Net(part, images), (4, 4, 1), initialization="reference", check=False)
    assert from_linen(Net(part, images), (4, 4, 1), check=False).num_logits == 1


class Kernel(nn.Module):
    reference_law = "dense"

    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", nn.initializers.zeros, (x.shape[-1], 400))


class OtherKernel(Kernel):
    pass


class Shared(nn.Module):
    """A wrapper whose layer has its variables in the wrapper's own scope."""

    def setup(self):
        self.layer = nn.Dense(4)
        nn.share_scope(self, self.layer)

    def __call__(self, x):
        return self.layer(x)


def test_a_module_of_ones_own_may_state_its_law_for_itself():
    def make(part):
        return from_linen(Net(part), (4, 4, 1), "reference", check=False).init(jax.random.key(0))[
            "params"
        ]["part"]["kernel"]

    np.testing.assert_allclose(jnp.abs(make(Kernel())).max(), 1 / 2, rtol=0.02)
    assert 0 < jnp.abs(make(Shared())).max() <= 1 / 2
    with pytest.raises(InputError, match=r"params/part/kernel .* of a OtherKernel"):
        make(OtherKernel())
    wrong = type("Wrong", (Kernel,), {"reference_law": "Dense", "__module__": __name__})
    with pytest.raises(InputError, match=r"Wrong\.reference_law: unknown value 'Dense'"):
        make(wrong())


def test_layers_that_are_only_wrapped_keep_their_law():
    def weights(part, images=False):
        model = from_linen(Net(part, images), (4, 4, 1), initialization="reference", check=False)
        return model.init(jax.random.key(0))["params"]["part"]

    for part in (nn.remat(nn.Dense)(400), nn.Dense(400, param_dtype=jnp.bfloat16)):
        kernel = weights(part)["kernel"]
        assert kernel.dtype == part.param_dtype
        np.testing.assert_allclose(jnp.abs(kernel).max(), 1 / 2, rtol=0.02)
    kernel = weights(nn.Sequential([nn.remat(Tower)(), nn.relu]))["layers_0"]["Dense_0"]["kernel"]
    assert 0.3 < jnp.abs(kernel).max() <= 0.5
    # Kernels of one dimension, and of groups: 3 and 3·3·2 weights enter a sum.
    np.testing.assert_allclose(
        jnp.abs(weights(nn.Conv(400, (3,)), True)["kernel"]).max(), 1 / np.sqrt(12), rtol=0.02
    )
    grouped = weights(nn.Conv(400, (3, 3), feature_group_count=2), True)["kernel"]
    np.testing.assert_allclose(jnp.abs(grouped).max(), 1 / np.sqrt(18), rtol=0.02)


@pytest.mark.parametrize(
    ("initialization", "variance"),
    [("reference", reference_readout_variance), ("flax", flax_readout_variance)],
)
def test_readout_variance_is_that_of_the_drawn_read_out(initialization, variance):
    for architecture in ("mlp", "lenet"):
        model = create_model(architecture, num_logits=200, initialization=initialization)
        kernel = [
            leaf
            for name, leaf in _flat(model.init(jax.random.key(0))).items()
            if leaf.shape[-1:] == (200,)
        ]
        weights = next(leaf for leaf in kernel if leaf.ndim == 2)
        assert model.readout_variance == variance(weights.shape[0])
        assert abs((weights**2).mean() / model.readout_variance - 1) < 5 * np.sqrt(2 / weights.size)


# Variance of a weight times its inputs, and variance of a bias.
NEW = {"he": (2, 0), "lecun": (1, 0), "orthogonal": (1, 0), "sigma:1.5:0.2": (2.25, 0.04)}
LAYERS = {
    "lenet": ((16, 16, 1), {}),
    "resnet18": ((32, 32, 1), {"width": 16}),
    "wide_resnet": ((32, 32, 1), {"depth": 10}),
    "bottleneck_mlp": ((8, 8, 1), {"width": 32, "depth": 2}),
    "vit": ((8, 8, 1), {"width": 32, "depth": 1, "heads": 2, "patch": 2}),
    "mixer": ((8, 8, 1), {"width": 32, "depth": 1, "patch": 2}),
    "convnext": ((16, 16, 1), {"width": 16, "stages": "1-1-1-1", "patch": 1}),
}


@pytest.mark.parametrize(
    ("architecture", "initialization"),
    [
        *((name, "sigma:1.5:0.2") for name in LAYERS),
        *(("lenet", name) for name in ("he", "lecun")),
        *((name, "orthogonal") for name in ("lenet", "mixer")),
    ],
)
def test_every_layer_has_the_variance_of_its_initialization(architecture, initialization):
    shape, options = LAYERS[architecture]
    model = create_model(architecture, shape, 8, initialization=initialization, **options)
    assert model.description["initialization"] == initialization
    variables = _flat(jax.jit(model.init)(jax.random.key(1)))
    weights, biases = NEW[initialization]
    seen, drawn_biases = 0, []
    for name, leaf in variables.items():
        kernel = _own_kernel(name, variables)
        if kernel is None:
            continue
        inputs, units = np.prod(kernel.shape[:-1]), kernel.shape[-1]
        if "bias" in name:
            drawn_biases.append(np.ravel(leaf))
            continue
        variance = weights / inputs
        if initialization == "orthogonal":
            matrix = np.asarray(kernel).reshape(-1, units)
            matrix = matrix if inputs >= units else matrix.T
            np.testing.assert_allclose(matrix.T @ matrix, np.eye(matrix.shape[1]), atol=2e-5)
            variance = 1 / max(inputs, units)
        seen += 1
        assert abs(leaf.mean()) < 5 * np.sqrt(variance / leaf.size), name
        assert abs((leaf**2).mean() / variance - 1) < 5 * np.sqrt(2 / leaf.size), name
        if name.endswith(("['Dense_0']['kernel']", "['head']['kernel']")) and units == 8:
            np.testing.assert_allclose(model.readout_variance, variance)
    drawn = np.concatenate(drawn_biases)
    assert abs((drawn**2).mean() - biases) <= 5 * np.sqrt(2 / drawn.size) * biases
    assert seen >= 5


def test_variables_of_no_layer_keep_the_law_of_their_module():
    vit = create_model("vit", (8, 8, 1), initialization="he", depth=1)
    params = jax.jit(vit.init)(jax.random.key(0))["params"]
    assert not params["token"]["value"].any()
    np.testing.assert_allclose(params["position"]["value"].std(), 0.02, rtol=0.1)
    convnext = create_model("convnext", (16, 16, 1), initialization="lecun", stages="1-1-1-1")
    scale = jax.jit(convnext.init)(jax.random.key(0))["params"]["block1_1"]["scale"]["value"]
    np.testing.assert_array_equal(scale, np.float32(1e-6))
    with pytest.raises(InputError, match=r"'he' covers .* not variable params/part/scale"):
        from_linen(Net(LayerScale()), (4, 4, 1), initialization="he", check=False)


def test_the_papers_laws_are_those_of_their_codes():
    xavier = _flat(
        jax.jit(create_model("vit", (8, 8, 1), depth=1).init)(jax.random.key(0))["params"]
    )
    expand = xavier["['block1']['expand']['kernel']"]
    bound = np.sqrt(6 / (192 + 4 * 192))
    assert 0.99 * bound < np.abs(expand).max() <= bound
    np.testing.assert_allclose(xavier["['block1']['expand']['bias']"].std(), 1e-6, rtol=0.2)
    convnext = create_model("convnext", (16, 16, 1), 100, stages="1-1-1-1")
    params = jax.jit(convnext.init)(jax.random.key(0))["params"]
    for layer in (params["head"], params["block4_1"]["expand"], params["block1_1"]["depthwise"]):
        np.testing.assert_allclose(layer["kernel"].std(), 0.02, rtol=0.05)
    np.testing.assert_allclose(convnext.readout_variance, 0.02**2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("sigma", "must be sigma:W:B"),
        ("orthogonl", "unknown value 'orthogonl'.*'orthogonal'.*'sigma:1.5:0.1'"),
        ("sigma:1", "must be sigma:W:B"),
        ("sigma:a:b", "must be sigma:W:B"),
        ("sigma:1:-1", "σ_b: must be a finite number at least 0.0"),
        ("he:2", "unknown value 'he:2'"),
        (None, "unknown value None"),
    ],
)
def test_a_bad_initialization_is_refused_by_name(given, message):
    with pytest.raises(InputError, match=f"^initialization: {message}"):
        from_linen(Net(Tower()), (4, 4, 1), initialization=given)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_the_other_initialization(architecture):
    # That of the reference, which is the default, has its parameters counted in
    # `test_architectures`.
    model = create_model(architecture, initialization="flax")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


def test_an_initialization_may_stand_with_the_name():
    written = create_model("mlp(initialization='sigma:2:0',width=4)", (3,))
    given = create_model("mlp", (3,), initialization="sigma:2:0", width=4)
    assert dict(written.description) == dict(given.description)
    assert dict(written.description)["initialization"] == "sigma:2.0:0.0"
    with pytest.raises(InputError, match=r"^initialization: unknown value 'hee'"):
        create_model("mlp(initialization=hee)", (3,))
