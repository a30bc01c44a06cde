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
from nad_jax.function_plots import Orders, plot_orders
from nad_jax.spectrum_metrics import Metric
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


def test_the_leading_share_of_an_isotropic_geometry_is_one_over_d():
    # Of `logreg` with N(0, 1/D) weights G is the identity over D; the largest eigenvalue of a sample
    # is above it.
    found, naive = [], []
    for seed in range(4):
        config = _config(num_networks=400, readout="sampled", seed=seed)
        model = initial_functions.create_network(config, "logreg(initialization=lecun)")
        nads, looks = initial_functions.estimate_geometry(config, model)
        found.append(initial_functions.measure_leading_share(looks))
        naive.append(nads.eigenvalues[0] / nads.trace)
    values, sem = np.transpose(found)
    assert (abs(values - 1 / 16) < 3 * sem).all() and (sem < 0.25 / 16).all()
    error = np.sqrt((sem**2).mean()) / 2
    assert abs(values.mean() - 1 / 16) < 3 * error < np.mean(naive) - 1 / 16


def _halves(eigenvalues, rng, num_networks=256, num_batches=8):
    """Two halves of Gaussian gradients with these eigenvalues."""
    shape = 2, num_batches, num_networks // (2 * num_batches), len(eigenvalues)
    rows = rng.normal(size=shape) * np.sqrt(eigenvalues)
    sums = np.swapaxes(rows, 2, 3) @ rows
    return [(np.full(num_batches, shape[2]), one) for one in sums]


@pytest.mark.parametrize("leading", [1.0, 1.2, 8.0])
def test_the_leading_share_covers_the_truth_and_its_error_how_far_ensembles_scatter(leading):
    rng, eigenvalues = np.random.default_rng(0), np.array([leading, *np.ones(7)])
    found = [initial_functions.share_of_halves(*_halves(eigenvalues, rng)) for _ in range(200)]
    values, sem = np.transpose(found)
    truth, error = leading / eigenvalues.sum(), values.std() / np.sqrt(200)
    assert (abs(values - truth) < 3 * sem).mean() > 0.97
    assert values.mean() < truth + 3 * error  # never above
    if leading != 1.2:  # isotropic, or determined
        assert abs(values.mean() - truth) < max(3 * error, 0.01 * truth)
    ratio = np.sqrt((sem**2).mean()) / values.std()
    assert 0.9 < ratio < (1.2 if leading == 8 else 2.3)


def test_batches_count_by_their_rows_and_a_single_one_has_no_error():
    (counts, even), (_, odd) = _halves(np.arange(1.0, 5), np.random.default_rng(1))
    value, sem = initial_functions.share_of_halves((counts, even), (counts, odd))
    # Two batches in one: of unequal weights, with the same sums.
    merged = np.array([2 * counts[0], *counts[2:]]), np.array([even[0] + even[1], *even[2:]])
    other, error = initial_functions.share_of_halves(merged, (counts, odd))
    assert other == pytest.approx(value) and error == pytest.approx(sem, rel=0.5)
    one = initial_functions.share_of_halves((counts[:1], even[:1]), (counts, odd))
    assert np.isfinite(one.value) and np.isnan(one.sem)


def test_the_geometry_is_the_record_of_its_networks():
    config = _config()
    model = initial_functions.create_network(config, NAMES[0])
    nads, looks = initial_functions.estimate_geometry(config, model)
    same = estimate_nads(model, 40, derivative="input_gradient", point="fresh")
    np.testing.assert_array_equal(nads.directions, same.directions)
    np.testing.assert_array_equal(nads.batch_spectra, same.batch_spectra)
    assert nads.config == same.config and len(looks) > 1


def test_a_figure_leaves_constant_networks_out_and_names_whole_cycles():
    shares = np.array([0.0, 0.5, 0.25, 0.15, 0.1, 0.0])
    measures = {"largest": Metric(0.8, 0.1), "effective_rank": Metric(0.5, 0.1)}
    known = {f"frequency_{plane}": Metric(0.3, 0.01) for plane in ("nads", "random")}
    unknown = {name: Metric(0.25, np.nan) for name in known}  # of the one that is not constant
    rest = np.linspace(0, 1, 9), np.linspace(2, 0.1, 16)
    long = "vit(depth=4,width=48,normalization=none)"
    orders = {
        "mlp": Orders(*rest, (shares, 0.01 * shares), measures | known),
        long: Orders(*rest, (shares, np.full(6, np.nan)), measures | unknown),
    }
    figure = plot_orders(orders, 2, shares, "title")
    figure.canvas.draw()
    above, below = (one.axes for one in figure.subfigs)
    dots = [len(one.lines[0].get_xdata()) for one in below[2].containers]
    assert dots == [1, 1] and [
        len(one.containers[0].lines[0].get_xdata()) for one in below[:2]
    ] == [2, 2]
    assert [text.get_text() for text in below[2].texts] == ["constant"]
    assert below[2].texts[0].get_position()[1] == 1
    assert [tick.get_text() for tick in above[2].get_xticklabels()] == ["1", "2", "3"]
    assert not above[2].xaxis.get_minorticklocs().size and len(above[2].containers) == 1
    labels = [tick.get_text() for tick in below[0].get_yticklabels()]
    assert labels == ["mlp", "vit(depth=4,width=48,\nnormalization=none)"]


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


def test_constant_networks_are_printed_as_such(tmp_path, capsys):
    # Weights are small against biases, but not zero.
    config = _config(architectures=("mlp(initialization='sigma:1e-4:1',width=6)",), num_networks=8)
    assert run(initial_functions, config, tmp_path)
    printed = capsys.readouterr().out
    assert "8 networks, 8 constant on a plane, 8 constant at all inputs\n" in printed
    assert "gamma: infinite, outputs are constant\n" in printed
    assert printed.count("none, all are constant on the plane\n") == 2
    (row,) = _read(tmp_path)
    assert (row["gamma"], row["frequency_nads"], row["largest"]) == ("inf", "nan", "1")
    assert initial_functions.draw(config, tmp_path)


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
        ({"image_shape": (1, 1, 1)}, "^image_shape: must have two entries or more, for a plane"),
        ({"initialization": "nonsense"}, "^initialization: unknown value 'nonsense'"),
    ],
)
def test_bad_fields_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        initial_functions.validate(_config(**changes))
