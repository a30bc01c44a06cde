"""Densities of random masks, and networks that have them."""

import csv

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import nad_jax
from experiments import compute_nads
from nad_jax.claims import check_readout_variance
from nad_jax.errors import InputError
from tests.commands import Command, read_numbers
from tests.test_configs import load_config, run

LAYERS = ("Conv_0", "Conv_1", "Dense_0", "Dense_1", "Dense_2")


@pytest.fixture(scope="module")
def lenet():
    return nad_jax.create_model("lenet", (32, 32, 1))


@pytest.mark.parametrize(
    ("density", "rule", "expected"),
    [
        (0.05, "er", (1, 0.5040, 0.0238, 0.0445, 1)),
        (0.05, "erk", (0.4328, 0.0509, 0.0414, 0.0773, 1)),
        (0.2, "er", (1, 1, 0.1423, 0.2658, 1)),
        (0.2, "erk", (1, 0.2100, 0.1707, 0.3188, 1)),
        (0.2, "uniform", (0.2,) * 5),
        (1.0, "erk", (1,) * 5),
    ],
)
def test_densities_of_lenet_are_those_of_the_rules(lenet, density, rule, expected):
    found = nad_jax.mask_densities(lenet, density, rule)
    assert found.layers == tuple(f"params/{layer}/kernel" for layer in LAYERS)
    np.testing.assert_allclose(found.density, expected, atol=5.1e-5)
    assert found.total == pytest.approx(density, rel=1e-12)


def test_densities_are_rows(lenet, tmp_path):
    found = nad_jax.mask_densities(lenet, 0.2)
    assert found.to_rows()[2]["weights"] == 400 * 120
    found.to_csv(tmp_path / "densities.csv")
    with open(tmp_path / "densities.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["density"]) for row in rows] == pytest.approx(found.density.tolist())
    assert repr(found).startswith("Densities(erk, 0.2000 of all weights: params/Conv_0/kernel 1.0")


def test_only_what_is_trained_has_a_mask():
    model = nad_jax.create_model("mlp", (4,), width=8)
    kernels = nad_jax.mask_densities(model, 0.5).layers
    assert kernels == tuple(f"params/Dense_{place}/kernel" for place in range(3))
    frozen = nad_jax.from_functions(
        lambda key: {"params": {"w": jnp.ones((4, 1)), "b": jnp.ones(1)}, "fixed": jnp.eye(4)},
        lambda variables, x: x @ variables["fixed"] @ variables["params"]["w"],
        (4,),
        check=False,
    )
    assert nad_jax.mask_densities(frozen, 0.5).layers == ("params/w",)
    none = nad_jax.from_functions(
        lambda key: jnp.ones(4),
        lambda theta, x: (x * theta[None]).sum(1)[:, None],
        (4,),
        check=False,
    )
    with pytest.raises(InputError, match="model: has no trainable variables of two axes"):
        nad_jax.mask_densities(none, 0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.0,), "density: must be a finite number greater than 0"),
        ((1.5,), "density: must be at most 1, got 1.5"),
        ((0.5, "snip"), "rule: unknown value 'snip'"),
    ],
)
def test_what_is_no_density_or_rule_is_refused(lenet, values, message):
    with pytest.raises(InputError, match=message):
        nad_jax.mask_densities(lenet, *values)
    with pytest.raises(InputError, match="model: must come from"):
        nad_jax.mask_densities("lenet", 0.5)


class Net(nn.Module):
    """Three layers of 6 → 8 → 7 → K with biases and a normalization."""

    num_logits: int = 1

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.Dense(8)(x))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Dense(7)(x)))
        return nn.Dense(self.num_logits)(x)


class OfNNX(nnx.Module):
    def __init__(self, num_logits, rngs):
        self.hidden = nnx.Linear(6, 8, rngs=rngs)
        self.head = nnx.Linear(8, num_logits, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


def _of_functions(num_logits):
    """Variables in a list, and one of two axes that is trained besides the layers' own."""

    def init(key):
        one, two = jax.random.split(key)
        return [jax.random.normal(one, (6, 9)), jax.random.normal(two, (9, num_logits))]

    def features(variables, x):
        return jnp.tanh(x @ variables[0])

    def apply(variables, x, key=None, train=False):
        logits = jax.jit(features)(variables, x) @ variables[1]
        return (logits, variables) if train else logits

    return nad_jax.from_functions(init, apply, (6,), features, 1.0)


MODELS = {
    "linen": lambda logits: nad_jax.from_linen(Net(logits), (6,)),
    "nnx": lambda logits: nad_jax.from_nnx(lambda rngs: OfNNX(logits, rngs), (6,)),
    "functions": _of_functions,
}
LAST = {"linen": "params/Dense_2/kernel", "nnx": "head/kernel", "functions": "1"}


@pytest.fixture(scope="module")
def models():
    return {(name, logits): make(logits) for name, make in MODELS.items() for logits in (1, 2)}


def _leaves(variables):
    return dict(nad_jax.contract.named_leaves(variables))


def _own(variables):
    """Its variables without masks, by name, and its masks."""
    masks = variables["masks"]
    inner = variables.get("variables", {n: v for n, v in variables.items() if n != "masks"})
    return _leaves(inner), masks


@pytest.mark.parametrize("name", MODELS)
def test_masks_are_drawn_beside_the_weights_of_the_same_networks(models, name):
    """Every entry where the mask is 1; what has no mask, to the bit."""
    model = models[name, 1]
    pruned = nad_jax.masked(model, 0.4, "uniform")
    keys = jax.random.split(nad_jax.make_key(0), 400)
    dense = _leaves(jax.jit(jax.vmap(model.init))(keys))
    found, masks = _own(jax.jit(jax.vmap(pruned.init))(keys))
    assert {*masks} == {*nad_jax.mask_densities(model, 0.4).layers} and {*found} == {*dense}
    for leaf, value in dense.items():
        mask = masks.get(leaf, np.ones(value.shape, bool))
        np.testing.assert_array_equal(found[leaf], np.where(mask, value, 0))
        if leaf in masks:
            assert mask.dtype == bool
            error = np.sqrt(0.4 * 0.6 / mask.size)
            assert abs(mask.mean() - 0.4) < 4 * error
            # Masks of networks, and of the entries of one, are independent.
            pairs = mask[1:] & mask[:-1], mask[..., 1:, :] & mask[..., :-1, :]
            assert all(abs(pair.mean() - 0.16) < 5 * 2 * error for pair in pairs)


def test_masks_have_the_densities_of_the_rule():
    model = nad_jax.create_model("lenet", (16, 16, 1))
    pruned, expected = (f(model, 0.2) for f in (nad_jax.masked, nad_jax.mask_densities))
    keys = jax.random.split(nad_jax.make_key(1), 20)
    masks = jax.jit(jax.vmap(pruned.init))(keys)["masks"]
    for layer, p in zip(expected.layers, expected.density, strict=True):
        assert (layer in masks) == (p < 1)
        if p < 1:
            error = np.sqrt(p * (1 - p) / masks[layer].size)
            assert abs(masks[layer].mean() - p) < 4 * error
    assert 0 < len(masks) < len(expected.layers)
    told = {"density": 0.2, "mask": "erk"}
    assert pruned.description == {**model.description, **told}
    assert pruned.symmetries == model.symmetries


def test_a_density_of_one_is_the_model_itself(models):
    model = models["linen", 1]
    assert nad_jax.masked(model, 1) == model == nad_jax.masked(model, 1.0, "er")
    assert nad_jax.masked(model, 0.5).init is nad_jax.masked(model, 0.5).init  # one program
    lenet = nad_jax.create_model("lenet", (16, 16, 1))
    assert nad_jax.create_model("lenet", (16, 16, 1), density=1.0, mask="er").init is lenet.init
    assert nad_jax.create_model("lenet(density=1.0)", (16, 16, 1)).apply is lenet.apply


OPTIMIZERS = {
    "sgd": {"optimizer_options": {"momentum": 0.9}, "weight_decay": 0.01},
    "adamw": {"weight_decay": 0.1, "clip_norm": 0.5},
}


@pytest.mark.parametrize(
    ("name", "optimizer"), [("linen", "sgd"), ("linen", "adamw"), ("nnx", "adamw")]
)
def test_masked_weights_stay_zero_in_training(models, name, optimizer):
    """Two networks at once; what is kept moves, and follows the masks it began with."""
    model = nad_jax.masked(models[name, 2], 0.5, "uniform")
    how = {"num_train": 64, "num_test": 16, "batch_size": 16, "num_epochs": 2, "loss_window": 2}
    recipe = nad_jax.Recipe(optimizer, **OPTIMIZERS[optimizer], **how)
    seen = {"start": lambda variables, data, member: variables}
    directions = np.eye(6)[:2]
    metrics = nad_jax.train_many(
        model, directions, 1.0, 1.0, 0.05, recipe=recipe, keep=True, observe=seen
    )
    begun, masks = _own(jax.tree.map(lambda leaf: leaf[:, 0], metrics.observed["start"]))
    ended, kept = _own(metrics.variables)
    assert (metrics.diverged_at < 0).all() and not (
        metrics.losses[:, 0] == metrics.losses[:, 1]
    ).any()
    for layer, mask in masks.items():
        np.testing.assert_array_equal(kept[layer], mask)
        assert not np.asarray(ended[layer])[~mask].any()
        moved = np.asarray(ended[layer] != begun[layer])[mask]
        assert moved.mean() > 0.5


def test_an_optimizer_that_mixes_entries_does_not_reach_the_network(models):
    model = nad_jax.masked(models["linen", 2], 0.5)
    variables, x = model.init(nad_jax.make_key(0)), jnp.ones((3, 6))
    moved = {**variables, "params": jax.tree.map(lambda leaf: leaf + 0.1, variables["params"])}
    pruned = jax.tree.map(lambda leaf: leaf, moved["params"])
    for layer, mask in variables["masks"].items():
        _, module, name = layer.split("/")
        pruned[module][name] = jnp.where(mask, pruned[module][name], 0)
    expected = models["linen", 2].apply({**moved, "params": pruned}, x)
    np.testing.assert_array_equal(model.apply(moved, x), expected)


@pytest.mark.parametrize("name", MODELS)
def test_a_marginalized_readout_is_that_of_masked_weights(models, name):
    """The variance p τ², as the logits of 64 networks have it; both derivatives."""
    model = models[name, 1]._replace(readout_variance=models[name, 1].readout_variance or 1 / 8)
    pruned, densities = (f(model, 0.5, "uniform") for f in (nad_jax.masked, nad_jax.mask_densities))
    share = dict(zip(densities.layers, densities.density, strict=True))[LAST[name]]
    assert pruned.readout_variance == pytest.approx(share * model.readout_variance) and share == 0.5
    check_readout_variance(pruned)
    with pytest.raises(InputError, match="readout_variance: "):
        check_readout_variance(pruned._replace(readout_variance=model.readout_variance))
    for derivative in ("input_gradient", "central_difference"):
        how = {"derivative": derivative, "point": "fresh", "step": 2.0}
        exact, one = (
            nad_jax.estimate_nads(pruned, 300, readout=readout, **how)
            for readout in ("marginalized", "sampled")
        )
        error = np.hypot(exact.trace_sem, one.trace_sem)
        assert abs(exact.trace - one.trace) < 4 * error < 0.7 * exact.trace
        assert exact.config["density"] == 0.5 and exact.config["mask"] == "uniform"


def test_the_last_layer_is_told_by_what_features_do_not_depend_on():
    """A last layer that is no layer to mask, or frozen, keeps its variance; a product of two, and
    one that is used twice, has none.
    """

    def make(last, logits, trainable=None):
        def init(key):
            return {"a": jax.random.normal(key, (6, 6)), **last}

        def features(variables, x):
            return x @ variables["a"]

        def apply(variables, x):
            return logits(variables, features(variables, x))

        how = (features, 1.0, trainable)
        return nad_jax.from_functions(init, apply, (6,), *how, check=False)

    column = make({"w": jnp.ones(6)}, lambda variables, h: (h @ variables["w"])[:, None])
    assert nad_jax.masked(column, 0.5).readout_variance == 1.0
    frozen = make(
        {"w": jnp.ones((6, 1))},
        lambda variables, h: h @ variables["w"],
        lambda variables: {"a": True, "w": False},
    )
    assert nad_jax.masked(frozen, 0.5).readout_variance == 1.0
    product = make(
        {"v": jnp.ones((6, 3)), "w": jnp.ones((3, 1))},
        lambda variables, h: h @ variables["v"] @ variables["w"],
    )
    message = r"^readout_variance: .* cannot be told .* between features and logits are v, w;"
    with pytest.raises(InputError, match=message):
        nad_jax.masked(product, 0.5)
    assert nad_jax.masked(product._replace(readout_variance=None), 0.5).readout_variance is None
    tied = make({}, lambda variables, h: (h @ variables["a"])[:, :1])
    with pytest.raises(InputError, match=r"between features and logits are none;"):
        nad_jax.masked(tied, 0.5)


def test_masks_are_the_same_in_double_precision():
    def draw(dtype):
        module = nn.Dense(5, param_dtype=dtype)
        model = nad_jax.masked(nad_jax.from_linen(module, (6,), check=False), 0.5)
        variables = model.init(nad_jax.make_key(3))
        x = jnp.ones((1, 6), dtype)
        return variables["masks"]["params/kernel"], model.apply(variables, x)

    single, _ = draw(jnp.float32)
    with jax.enable_x64(True):
        double, logits = draw(jnp.float64)
    np.testing.assert_array_equal(single, double)
    assert logits.dtype == np.float64 and single.any() and not single.all()


def test_masks_average_to_weights_of_less_variance():
    """All 21 entries of the matrix in standard errors, by `relu_eigenvalue` of p s²."""
    widths, module = (9, 8), nad_jax.create_model("mlp", (6,), width=9)
    pruned = nad_jax.masked(module, 0.5, "er")
    densities = nad_jax.mask_densities(module, 0.5, "er").density
    assert len({*densities}) == 3
    widths = (9, 9)
    variances = [p / (3 * n) for p, n in zip(densities, (6, 9, 9), strict=True)]
    theory = nad_jax.relu_eigenvalue(6, widths, weight_variances=variances) * np.eye(6)
    x = jax.random.normal(jax.random.key(1), (1, 6))

    @jax.jit
    @jax.vmap
    def gradients(key):
        variables = pruned.init(key)
        return jax.grad(lambda x: pruned.apply(variables, x)[0, 0])(x)[0]

    rows = np.asarray(gradients(jax.random.split(jax.random.key(0), 20_000)), np.float64)
    mean, square = (one.T @ one / len(rows) for one in (rows, rows**2))
    scores = (mean - theory) / np.sqrt((square - mean**2) / len(rows))
    scores = scores[np.triu_indices(6)]
    assert np.abs(scores).max() <= 4.5 and 0.7 < np.mean(scores**2) < 1.3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: nad_jax.masked(model, 0.0), "density: must be a finite number greater"),
        (lambda model: nad_jax.masked(model, 1.1), "density: must be at most 1, got 1.1"),
        (lambda model: nad_jax.masked(model, 0.5, "snip"), "rule: unknown value 'snip'"),
        (lambda model: nad_jax.masked("lenet", 0.5), "model: must come from create_model"),
        (
            lambda model: nad_jax.masked(nad_jax.masked(model, 0.5), 0.5),
            "model: has variables called 'masks' already",
        ),
        (
            lambda model: nad_jax.create_model("mlp", (6,), density=0.5, mask="snip"),
            "mask: unknown value 'snip'",
        ),
        (
            lambda model: nad_jax.create_model("mlp(density='a')", (6,)),
            "density: must be a finite number greater than 0.0, got 'a'",
        ),
    ],
)
def test_what_cannot_be_masked_is_refused_in_one_line(models, call, message):
    with pytest.raises(InputError) as raised:
        call(models["linen", 1])
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_attention_and_embeddings_are_masked_as_they_should():
    """Biases of attention have two axes, the position embedding has three."""
    model = nad_jax.create_model("vit", (8, 8, 1), depth=1, width=8, heads=2)
    layers = nad_jax.mask_densities(model, 0.5).layers
    assert len(layers) == 8 and all(layer.endswith("kernel") for layer in layers)

    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(nn.MultiHeadDotProductAttention(2)(x).mean(1))

    model = nad_jax.from_linen(Attention(), (4, 6), check=False)
    layers = nad_jax.mask_densities(model, 0.5).layers
    assert len(layers) == 5 and all(layer.endswith("kernel") for layer in layers)


FIELDS = {"widths": "8,", "image_shape": "4,4,1", "num_train": 32, "num_test": 32, "num_epochs": 2}
FIELDS |= {
    "frequency_range": "0,2",
    "frequency_step": 1,
    "batch_size": 8,
    "loss_window": 2,
    "keep_weights": True,
}
FIELDS |= {
    "optimizers": "adamw",
    "weight_decay": 0.1,
    "learning_rate": 0.01,
    "architectures": "mlp",
}


def test_the_command_line_trains_masked_networks_and_keeps_densities_apart(tmp_path):
    options = [f"--config.{name}={value}" for name, value in FIELDS.items()]
    command = "--config=configs/directional_bias.py", f"--workdir={tmp_path}", *options
    first = Command(*command, "--config.density=0.5", "--config.mask=er")
    assert first.wait() == 0, first.errors
    model = nad_jax.create_model("mlp(density=0.5, mask='er')", (4, 4, 1), 2, width=8)
    names, variables = nad_jax.read_weights(tmp_path, model)
    found, masks = _own(variables)
    assert len(names) == len(read_numbers(tmp_path / "results.csv")) > 1 and masks
    for layer, mask in masks.items():
        assert not found[layer][~mask].any() and found[layer][mask].all()
    for other in ("--config.density=0.25", "--config.density=0.5 --config.mask=uniform", ""):
        refused = Command(*command, *(other or "--config.seeds=0").split())
        assert refused.wait() == 2
        assert "density: " in refused.errors or "mask: " in refused.errors
    unmasked = nad_jax.create_model("mlp", (4, 4, 1), 2, width=8)
    with pytest.raises(InputError, match="holds weights of another model"):
        nad_jax.read_weights(tmp_path, unmasked)


def test_densities_are_fields_and_axes_of_a_sweep_of_networks_of_ones_own(tmp_path):
    (tmp_path / "nets.py").write_text(
        "import flax.linen as nn\n"
        "class Net(nn.Module):\n"
        "    density: float = 2.0\n"
        "    @nn.compact\n"
        "    def __call__(self, x):\n"
        "        x = nn.relu(nn.Dense(5)(x.reshape(len(x), -1)))\n"
        "        return self.density * nn.Dense(1)(x)\n"
        "def plain():\n"
        "    return Net()\n"
    )
    config = load_config("compute_nads").get_config("mlp")
    fields = {"architecture": f"{tmp_path}/nets.py:plain", "image_shape": (3, 3, 1)}
    config.update({**fields, "num_networks": 4, "unit_size": 2, "readout": "sampled"})
    config.symmetrized = False
    config.sweep.density = (1.0, 0.5)
    run(compute_nads, config, tmp_path / "run")
    records = [nad_jax.load_nads(tmp_path / f"run/density={d}/nads.npz") for d in (1.0, 0.5)]
    assert [one.config.get("density") for one in records] == [None, 0.5]
    assert records[1].config["mask"] == "erk"
    # An argument of one's own by that name is one's own, and never a mask.
    own = nad_jax.create_model(f"{tmp_path}/nets.py:Net", (3, 3, 1), density=1.0)
    assert own.description["options"] == {"density": 1.0} and "mask" not in own.description
    assert "masks" not in own.init(nad_jax.make_key(0))


def test_a_rule_without_a_density_is_refused_of_networks_of_ones_own_too(tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(
        "import flax.linen as nn\n\n\nclass Net(nn.Module):\n    @nn.compact\n"
        "    def __call__(self, x):\n        return nn.Dense(1)(x.reshape(len(x), -1))\n"
    )
    for name in ("lenet", f"{path}:Net"):
        with pytest.raises(InputError, match="mask: 'er' needs a density"):
            nad_jax.create_model(name, (16, 16, 1), mask="er")
        assert (
            nad_jax.create_model(name, (16, 16, 1), mask="er", density=0.5).description["mask"]
            == "er"
        )
