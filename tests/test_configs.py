"""Every recipe builds, names an experiment, and lists only what its experiment knows."""

import dataclasses
import importlib.util
import itertools
from pathlib import Path

import pytest

from experiments import compute_nads, directional_bias, geometry, image_networks, time_to_accuracy
from experiments.main import EXPERIMENTS, _TupleParser
from experiments.run import runner
from experiments.run.config import check_sweep
from experiments.run.folder import ALONE
from experiments.trained import read_recipe
from nad_jax.aliases import make_train, make_train_images
from nad_jax.architectures import ARCHITECTURES, OPTIONS
from nad_jax.errors import InputError
from nad_jax.interventions import poison
from nad_jax.recipe import Recipe
from nad_jax.tasks.images import cifar_recipe

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def load_config(name):
    """The module of a config file, by its name."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(experiment, config, workdir, shard=ALONE):
    """Carries out an experiment, a module, in process."""
    return runner.run(experiment.make_study(config), workdir, shard)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_names_an_experiment(name):
    config = load_config(name).get_config()
    needed = ("data_dir",) if config.get("indices") == () else ("nads", "data_dir")
    config.update({field: "somewhere" for field in needed if field in config})  # has no default
    experiment = EXPERIMENTS[config.experiment]
    experiment.validate(config)
    sets = (*experiment.FIELDS.how, *experiment.FIELDS.grows, *experiment.FIELDS.reports)
    assert len({*sets}) == len(sets) and {*sets} < {*config}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compute_nads_has_a_valid_recipe_per_architecture(architecture):
    config = load_config("compute_nads").get_config(architecture)
    compute_nads.validate(config)
    ensemble = geometry.read_ensemble(config)
    assert ensemble.model.description["architecture"] == architecture and ensemble.num_rows >= 1
    identity = {*compute_nads.FIELDS.identity(config)}
    how = {"mapping", "chunk_size", "block_size"}
    choices = {field.name for field in dataclasses.fields(ensemble.estimator)}
    assert choices - how - {"symmetrized"} < identity
    assert identity.isdisjoint({*how, "symmetrized", "num_networks", "width"})


def test_options_of_networks_are_fields_and_axes_and_said_only_where_they_are_not_as_published():
    config = load_config("compute_nads").get_config("vit")
    assert {*OPTIONS} < {*config} and {*OPTIONS} < {*config.sweep}
    assert {*OPTIONS}.isdisjoint(compute_nads.FIELDS.identity(config))
    config.update({"image_shape": (8, 8, 1), "depth": 1, "heads": 2, "width": 8})
    config.sweep.position = ("learned", "none")
    compute_nads.validate(config)
    points = compute_nads.make_points(config)
    said = [dict(point.ensemble.model.description) for point in points]
    assert [one.get("position") for one in said] == [None, "none"]
    assert all((one["depth"], one["heads"]) == (1, 2) for one in said)
    identity = compute_nads.FIELDS.identity(points[1].config)
    assert {*OPTIONS} & {*identity} == {"depth", "heads", "position"}
    config.residual = False
    with pytest.raises(InputError, match=r"^residual: False makes no sense for 'vit'; it has no"):
        compute_nads.validate(config)


def test_defaults_are_those_of_the_paper_but_marginalized():
    config = load_config("compute_nads").get_config("lenet")
    assert (config.derivative, config.step, config.point, config.point_scale) == (
        "central_difference",
        100,
        "shared",
        1,
    )
    assert (config.readout, config.num_networks, config.initialization) == (
        "marginalized",
        200,
        "default",
    )
    with pytest.raises(InputError, match=r"'lent'.*did you mean 'lenet'"):
        load_config("compute_nads").get_config("lent")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_time_to_accuracy_has_a_recipe_per_architecture(architecture):
    config = load_config("time_to_accuracy").get_config(architecture)
    time_to_accuracy.validate(config)
    with pytest.raises(InputError, match=r"'lent'.*did you mean 'lenet'"):
        load_config("time_to_accuracy").get_config("lent")


@pytest.mark.parametrize("recipe", load_config("directional_bias").RECIPES)
def test_every_recipe_of_directional_bias_is_valid_at_every_sweep_point(recipe):
    config = load_config("directional_bias").get_config(recipe)
    if config.source == "nads":
        config.nads = "nads.npz"
    directional_bias.validate(config)
    points = itertools.product(
        config.architectures, config.poolings, config.optimizers, config.num_train
    )
    for architecture, pooling, optimizer, num_train in points:
        make_train(
            directional_bias._read_model(config, architecture, pooling),
            read_recipe(config, "optimizers", optimizer, num_train, config.num_test)[0],
        )
    if config.source != "nads":
        assert directional_bias.make_networks(config)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_accuracy_maps_have_a_recipe_per_architecture(architecture):
    config = load_config("directional_bias").get_config(f"accuracy_map,{architecture}")
    assert config.architectures == (architecture,)
    directional_bias.validate(config)
    with pytest.raises(InputError, match=r"'lent'.*did you mean 'lenet'"):
        load_config("directional_bias").get_config("accuracy_map,lent")
    with pytest.raises(InputError, match="config argument: unknown value 'maps'"):
        load_config("directional_bias").get_config("maps")


@pytest.mark.parametrize("name", ["poison_cifar", "flip_cifar"])
@pytest.mark.parametrize("architecture", ["lenet", "vgg11", "resnet18", "densenet121"])
def test_the_cifar_experiments_have_a_recipe_per_architecture(name, architecture):
    config = load_config(name).get_config(architecture)
    config.update(nads="somewhere", data_dir="somewhere")
    experiment = EXPERIMENTS[name]
    experiment.validate(config)
    recipe, learning_rate = read_recipe(config, "optimizer", config.optimizer, 50_000, 10_000)
    assert (recipe, learning_rate) == (cifar_recipe(), 0.21)
    if name == "poison_cifar":  # the networks of both are the same
        model = image_networks.create_network(config, architecture)
        make_train_images(model, recipe, poison, config.mean, config.std)
    with pytest.raises(InputError, match=r"'lent'.*did you mean 'lenet'"):
        load_config(name).get_config("lent")


def test_the_published_recipe_is_the_default():
    config = load_config("directional_bias").get_config()
    recipe, learning_rate = read_recipe(config, "optimizers", "sgd", 10_000, config.num_test)
    assert (recipe, learning_rate) == (Recipe(), 0.5)
    assert (recipe.clip_norm, recipe.batch_size, recipe.num_epochs, recipe.num_steps) == (
        0.5,
        128,
        20,
        1580,
    )
    assert (config.sigmas, config.epsilons, config.num_test) == ((3.0,), (1.0,), 10_000)


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("lenet", ("lenet",)),
        ("lenet,vgg11", ("lenet", "vgg11")),
        ("('lenet', 'vgg11')", ("lenet", "vgg11")),
        ("(lenet, vgg11)", ("lenet", "vgg11")),
        ("0,1", (0, 1)),
        ("[-1,.5]", (-1, 0.5)),
        ("3", (3,)),
        ("()", ()),
        ("nets:Net(width=3, norm='a,b'),mlp", ("nets:Net(width=3, norm='a,b')", "mlp")),
        ("path/to/nets.py:Net(widths=[1,2])", ("path/to/nets.py:Net(widths=[1,2])",)),
        ("0.5", (0.5,)),
        ("0,", (0,)),
        ("(0,1)", (0, 1)),
        ("lenet, ", ("lenet",)),
        (" lenet , mlp ", ("lenet", "mlp")),
    ],
)
def test_tuples_are_typed_without_quotes(typed, values):
    assert _TupleParser().parse(typed) == values


@pytest.mark.parametrize("typed", ["0,,1", ",lenet", "lenet,,", "(lenet,,mlp)"])
def test_a_value_that_is_missing_between_two_commas_is_no_tuple(typed):
    with pytest.raises(ValueError, match="must be values with a comma between two of them"):
        _TupleParser().parse(typed)


@pytest.mark.parametrize("typed", ["0:3", "0-3", "0..3", "0 1", "0;1"])
@pytest.mark.parametrize("field", ["seeds", "sigmas"])
def test_a_range_is_answered_with_how_values_are_written(field, typed):
    config = load_config("directional_bias").get_config()
    config[field] = _TupleParser().parse(typed)
    message = (
        f"^{field}: values are written one by one, as in --config.{field}=0,1,2, got '{typed}'$"
    )
    with pytest.raises(InputError, match=message):
        directional_bias.validate(config)


def test_values_of_a_sweep_may_hold_options_with_commas():
    check_sweep("sweep.architecture", ("lenet", "vit(depth=2,heads=2)"))
    with pytest.raises(InputError, match="several names are written"):
        check_sweep("sweep.architecture", ("vit(depth=2),lenet",))


@pytest.mark.parametrize("grid", ["architectures", "lenet"])
def test_grids_are_of_networks_that_there_are(grid):
    config = load_config("architecture_grid").get_config(grid)
    compute_nads.validate(config)
    assert len(compute_nads.make_points(config)) == {"architectures": 12, "lenet": 36}[grid]
