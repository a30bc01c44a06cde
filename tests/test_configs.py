"""Every recipe builds, names an experiment, and lists only what its experiment knows."""

import importlib.util
from pathlib import Path

import pytest

from experiments import compute_nads
from experiments.main import EXPERIMENTS
from nad_jax.architectures import ARCHITECTURES, create_model
from nad_jax.errors import InputError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_names_an_experiment(path):
    config = _load(path).get_config()
    EXPERIMENTS[config.experiment].validate(config)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compute_nads_has_a_valid_recipe_per_architecture(architecture):
    config = _load(Path(__file__).parent.parent / "configs" / "compute_nads.py").get_config(architecture)
    compute_nads.validate(config)
    create_model(**{name: config[name] for name in compute_nads.MODEL_FIELDS})
    known = {*compute_nads.MODEL_FIELDS, *compute_nads.ESTIMATOR_FIELDS, *compute_nads.FREE_FIELDS}
    assert set(config) == known | {"experiment", "seed", "unit_size"}


def test_defaults_are_those_of_the_paper_but_marginalized():
    config = _load(Path(__file__).parent.parent / "configs" / "compute_nads.py").get_config("lenet")
    assert (config.derivative, config.step, config.point, config.point_scale) == (
        "central_difference",
        100,
        "shared",
        1,
    )
    assert (config.readout, config.num_networks, config.initialization) == ("marginalized", 600, "reference")
    with pytest.raises(InputError, match=r"'lent'.*did you mean 'lenet'"):
        _load(Path(__file__).parent.parent / "configs" / "compute_nads.py").get_config("lent")
