"""The experiment `initial_functions` at smoke size: its table, how it grows, what it refuses."""

import csv
import io

import numpy as np
import pytest

from experiments import initial_functions
from experiments.run.shards import Shard
from nad_jax import (
    create_model,
    estimate_nads,
    function_spectrum,
    initial_bias,
    radial_spectrum,
    spectrum_metrics,
)
from nad_jax.errors import InputError
from tests.test_configs import load_config, run

NAMES = ("mlp(width=6)", "logreg")


def _config(**changes):
    config = load_config("initial_functions").get_config("smoke")
    config.update(
        architectures=NAMES, image_shape=(4, 4, 1), num_networks=40, num_inputs=30, num_points=6,
    )  # fmt: skip
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert run(initial_functions, _config(), workdir)
    return workdir


def _read(workdir):
    return list(csv.DictReader(io.StringIO((workdir / "results.csv").read_text())))


def test_there_is_a_row_for_every_architecture_and_a_figure(finished):
    rows = _read(finished)
    assert [row["architecture"] for row in rows] == [*NAMES]
    for row in rows:
        values = {name: float(row[name]) for name in initial_functions.MEASURES}
        errors = [float(row[f"{name}_sem"]) for name in initial_functions.MEASURES]
        assert np.isfinite([*values.values()]).all() and np.isfinite(errors).all()
        assert 0.5 <= values["largest"] <= 1 and 0 < values["leading_share"] < 1
        assert 1 <= values["effective_rank"] <= 17
    (figure,) = initial_functions.draw(_config(), finished)
    assert figure.name == "orders.png" and figure.exists()


def test_the_numbers_are_those_of_one_ensemble(finished):
    (row, linear), model = _read(finished), create_model("mlp", (4, 4, 1), width=6)
    nads = estimate_nads(model, 40, derivative="input_gradient", point="fresh")
    bias = initial_bias(model, initial_functions.draw_inputs(_config()), 40)
    expected = {
        "largest": bias.mean_largest,
        "gamma": bias.gamma,
        "effective_rank": spectrum_metrics(nads).effective_rank,
        "frequency_nads": function_spectrum(
            model, nads.directions[:2], 40, num_points=6
        ).mean_frequency,
        "frequency_random": function_spectrum(model, None, 40, num_points=6).mean_frequency,
    }
    for name, (value, sem) in expected.items():
        assert float(row[name]) == pytest.approx(value, rel=1e-3), name
        assert float(row[f"{name}_sem"]) == pytest.approx(sem, rel=1e-2), name
    # Every linear function has the spectrum of a ramp.
    ramp = radial_spectrum(np.tile(np.arange(6.0), (6, 1)))
    for name in ("frequency_nads", "frequency_random"):
        assert float(linear[name]) == pytest.approx(float(ramp.mean_frequency), rel=1e-4)


def test_the_leading_share_of_a_known_geometry_is_within_its_error():
    # Of `logreg` with N(0, 1/D) weights G is the identity over D: its leading share is 1/D, and that
    # of a sample is larger.
    model = create_model("logreg", (4, 4, 1), initialization="lecun")
    nads = estimate_nads(model, 2000, derivative="input_gradient", point="fresh", readout="sampled")
    naive = nads.eigenvalues[0] / nads.eigenvalues.sum()
    value, sem = initial_functions.measure_leading_share(nads)
    assert abs(value - 1 / 16) < abs(naive - 1 / 16) and 0 < sem < 0.01


def test_a_folder_grows_by_architectures_and_is_the_same_in_shards(finished, tmp_path):
    stored = {path.name: path.read_bytes() for path in finished.glob("units/*.npz")}
    more = (*NAMES, "mlp(initialization=he,width=6)")
    assert run(initial_functions, _config(architectures=more), finished)
    assert [row["architecture"] for row in _read(finished)] == [*more]
    for name, content in stored.items():
        assert (finished / "units" / name).read_bytes() == content
    assert not run(initial_functions, _config(), tmp_path, Shard(1, 2))
    assert run(initial_functions, _config(), tmp_path, Shard(0, 2))
    metrics = [{n: row[n] for n in initial_functions.MEASURES} for row in _read(tmp_path)]
    assert metrics == [
        {n: row[n] for n in initial_functions.MEASURES} for row in _read(finished)[:2]
    ]
    with pytest.raises(InputError, match="num_points"):
        run(initial_functions, _config(num_points=8), finished)


def test_what_a_network_costs_is_measured():
    study = initial_functions.make_study(_config(architectures=("mlp(width=6)",)))
    cost = study.measure_cost(study.members[0])
    assert cost.network_seconds > 0 and cost.compile_seconds > 0


def test_a_network_without_a_geometry_is_named(tmp_path):
    # Gradients of a ReLU network whose weights are 0 are 0.
    config = _config(architectures=("mlp(initialization='sigma:1e-30:0',width=6)",))
    with pytest.raises(InputError, match=r"^architectures: mlp\(.*\): "):
        run(initial_functions, config, tmp_path)


@pytest.mark.parametrize("recipe", load_config("initial_functions").RECIPES)
def test_recipes_are_of_networks_that_there_are(recipe):
    config = load_config("initial_functions").get_config(recipe)
    initial_functions.validate(config)
    models = [initial_functions.create_network(config, name) for name in config.architectures]
    assert {model.num_logits for model in models} == {1}
    if recipe == "cpu":
        said = [dict(model.description) for model in models]
        for option in ("activation", "depth", "normalization", "residual"):
            assert any(option in one for one in said), option
        assert sum(one["initialization"].startswith("sigma") for one in said) > 1
        names = [one["architecture"] for one in said[: config.num_curves]]
        assert names == ["lenet", "resnet18_w16", "mlp", "vit"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ("lenet5",)}, "^architecture: unknown value 'lenet5'"),
        ({"architectures": ()}, "^architectures: must be a non-empty tuple"),
        ({"num_networks": 3}, "^num_networks: must be an integer of at least 4, got 3"),
        ({"num_inputs": 1}, "^num_inputs: must be an integer of at least 2"),
        ({"num_points": 1}, "^num_points: must be an integer of at least 2"),
        ({"num_curves": 0}, "^num_curves: must be an integer of at least 1"),
        ({"input_scale": 0.0}, "^input_scale: must be a finite number greater than 0"),
        ({"plane_scale": -1.0}, "^plane_scale: must be a finite number at least 0"),
        ({"readout": "own"}, "^readout: unknown value 'own'"),
        ({"chunk_size": 3}, "^chunk_size: must be even"),
        ({"seed": -1}, "^seed: must be an integer"),
        ({"initialization": "nonsense"}, "^initialization: unknown value 'nonsense'"),
    ],
)
def test_bad_fields_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        initial_functions.validate(_config(**changes))
