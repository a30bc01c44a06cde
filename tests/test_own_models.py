"""Models of one's own by name."""

import json

import flax.linen as nn
import jax
import pytest

import nad_jax
from experiments import linearization
from nad_jax import InputError, create_model, register
from tests.commands import Command, read_numbers
from tests.test_configs import load_config

SOURCE = """
import flax.linen as nn
from flax import nnx
import nad_jax

class Net(nn.Module):
    num_logits: int = 1
    width: int = 3
    sigma_w: float = 1.0

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.normal(self.sigma_w)
        x = nn.relu(nn.Dense(self.width, kernel_init=init)(x.reshape(len(x), -1)))
        return nn.Dense(self.num_logits)(x)

class NNXNet(nnx.Module):
    def __init__(self, image_shape, num_logits, width=2, *, rngs):
        self.hidden = nnx.Linear(image_shape[0] * image_shape[1], width, rngs=rngs)
        self.head = nnx.Linear(width, num_logits, rngs=rngs)
    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x.reshape(len(x), -1))))

def as_module(num_logits):
    return Net(num_logits, width=4)

def as_model(image_shape, num_logits):
    return nad_jax.from_linen(Net(num_logits), image_shape)

def one_logit(image_shape):
    return nad_jax.from_linen(Net(1), image_shape)

def text():
    return "no model"

broken = 3
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("own") / "my_nets.py"
    file.write_text(SOURCE)
    return str(file)


@pytest.mark.parametrize("name", ["Net", "NNXNet", "as_module", "as_model", "Net(width=5)"])
def test_whatever_makes_a_model_is_found_in_a_file(path, name):
    model = create_model(f"{path}:{name}", (4, 4, 1), num_logits=2)
    assert model.image_shape == (4, 4, 1) and model.num_logits == 2
    assert model.description["architecture"] == f"{path}:{name}"
    json.dumps(dict(model.description))


def test_options_are_fields_and_in_the_record(path):
    records = []
    for sigma in (1.0, 2.0):
        model = create_model(f"{path}:Net(sigma_w={sigma}, width=4)", (4, 4, 1))
        records.append(nad_jax.estimate_nads(model, 4, derivative="input_gradient"))
    assert [one.config["hyperparameters"]["sigma_w"] for one in records] == [1.0, 2.0]
    assert [one.config["options"]["width"] for one in records] == [4, 4]
    assert records[1].eigenvalues[0] > 2 * records[0].eigenvalues[0]
    assert create_model(f"{path}:Net", (4, 4, 1), width=7).description["options"] == {"width": 7}


def test_a_module_of_a_package_is_found(path, monkeypatch):
    monkeypatch.syspath_prepend(path.rpartition("/")[0])
    assert create_model("my_nets:Net", (4, 4, 1)).num_logits == 1


def test_registered_names_are_known():
    class Registered(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(1)(x.reshape(len(x), -1))

    register("registered", Registered)
    assert create_model("registered", (5,)).description["architecture"] == "registered"
    with pytest.raises(InputError, match="name: must be letters"):
        register("a b", Registered)
    with pytest.raises(InputError, match="maker: must be a class or a function"):
        register("instance", Registered())


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Missing", "has no 'Missing'; it has .*Net"),
        ("broken", "must be a class or a function that makes a model, got int"),
        ("text", "must make a Linen module, an NNX module .* got str"),
        ("one_logit", "has 1 logits where 2 are needed"),
        ("Net(depth=2)", "option of .*depth.*width"),
        ("Net(width=)", r"options must be as in .*Net\(width=32"),
        ("Net(3)", "options must be as in"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(path, name, problem):
    with pytest.raises(InputError, match=problem) as caught:
        create_model(f"{path}:{name}", (4, 4, 1), num_logits=2)
    assert "\n" not in str(caught.value)


def test_options_keep_their_values_whatever_they_are(tmp_path):
    (tmp_path / "nets.py").write_text(
        "from __future__ import annotations\n"
        "import flax.linen as nn\n"
        "class Net(nn.Module):\n"
        "    use_bias: bool = True\n"
        "    widths: tuple = (3,)\n"
        "    scale: float = 1.0\n"
        "    @nn.compact\n"
        "    def __call__(self, x):\n"
        "        for width in self.widths:\n"
        "            x = nn.relu(nn.Dense(width, use_bias=self.use_bias)(x))\n"
        "        return nn.Dense(1)(self.scale * x)\n"
    )
    model = create_model(f"{tmp_path}/nets.py:Net(widths=[2, 4])", (5,), use_bias=False, scale=None)
    assert model.description["options"] == {"use_bias": False, "widths": [2, 4]}
    assert model.description["hyperparameters"]["use_bias"] is False
    shapes = [leaf.shape for leaf in jax.tree.leaves(model.init(jax.random.key(0)))]
    assert sorted(shapes) == [(1,), (2, 4), (4, 1), (5, 2)]


def test_names_of_built_in_architectures_stay_theirs():
    with pytest.raises(InputError, match="name: 'lenet' is that of a built-in architecture"):
        register("lenet", nn.Dense)


def test_an_option_that_a_recipe_sets_and_a_model_has_not_can_be_taken_back(path):
    config = load_config("linearization").get_config("cpu")
    for name, option in ((f"{path}:Net", "pooling"), ("mlp", "activation")):
        config.architecture = name
        with pytest.raises(InputError, match=f"--config.{option}=default takes it back"):
            linearization.validate(config)
        config.pooling = "default"


def test_what_cannot_be_imported_says_why(tmp_path):
    (tmp_path / "bad.py").write_text("import no_such_package")
    with pytest.raises(InputError, match=r"ModuleNotFoundError: .*no_such_package"):
        create_model(f"{tmp_path}/bad.py:Net")
    with pytest.raises(InputError, match="cannot be imported: FileNotFoundError"):
        create_model(f"{tmp_path}/absent.py:Net")
    with pytest.raises(InputError, match="cannot be imported"):
        create_model("no_such_package:Net")


def test_initialization_is_the_modules_own_unless_it_is_asked_for(path):
    assert create_model(f"{path}:Net", (4, 4, 1)).description["initialization"] == "flax"
    with pytest.raises(InputError, match=r"initialization: .*NNXNet has its own; 'reference'"):
        create_model(f"{path}:NNXNet", (4, 4, 1), initialization="reference")
    reference = create_model(f"{path}:Net", (4, 4, 1), initialization="reference")
    assert reference.description["initialization"] == "reference"


COMMANDS = {
    "compute_nads": {
        "architecture": "{own}",
        "num_networks": 8,
        "unit_size": 2,
        "symmetrized": False,
    },
    "directional_bias": {
        "architectures": "{own}",
        "num_train": 32,
        "num_test": 32,
        "num_epochs": 2,
        "frequency_range": "0,4",
        "unit_size": 1,
    },
}


@pytest.mark.parametrize("experiment", COMMANDS)
def test_the_command_line_computes_it_killed_resumed_sharded_and_collected(
    experiment, path, tmp_path
):
    own = f"{path}:Net(width=4)"
    fields = {"image_shape": "6,6,1", **COMMANDS[experiment]}
    options = [f"--config.{name}={value}".format(own=own) for name, value in fields.items()]

    def run(name, *more, place="", code=0):
        folder = f"--workdir={tmp_path / name}"
        config = f"--config=configs/{experiment}.py"
        process = Command(config, folder, *options, *more, place=place)
        assert process.wait() == code, process.errors

    def table(name):
        (file,) = [*(tmp_path / name).glob("results.csv"), *(tmp_path / name).glob("nads.csv")]
        return read_numbers(file)

    run("whole")
    run("shards", "--shard=0/2")
    run("shards", "--shard=1/2", place="after the rename:2", code=-9)
    run("shards", "--shard=1/2")
    run("shards", "--collect")
    assert table("shards") == table("whole")
    if experiment == "directional_bias":
        assert {row["architecture"] for row in table("whole")} == {own}
