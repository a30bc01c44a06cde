"""The experiment `circles` at smoke size: its table, what follows what, how it grows, what it
refuses.
"""

import csv
import io

import numpy as np
import pytest

from experiments import circles
from experiments.run import runner
from experiments.run.shards import Shard
from nad_jax import Recipe, create_model, estimate_nads, subspace_overlap, train_many
from nad_jax import circles as task
from nad_jax.errors import InputError
from tests.test_configs import load_config, run


def _config(**changes):
    config = load_config("circles").get_config("smoke")
    config.update(
        architectures=("mlp",), image_shape=(4, 4, 1), width=8, num_networks=40,
        geometry_unit_size=20, seeds=(0, 1), num_train=64, num_test=32, num_epochs=2,
        batch_size=16, loss_window=2,
    )  # fmt: skip
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert run(circles, _config(), workdir)
    return workdir


def _read(workdir):
    return list(csv.DictReader(io.StringIO((workdir / "results.csv").read_text())))


def _found(workdir, architecture="mlp"):
    with np.load(workdir / "geometry" / "units" / f"{architecture}.npz") as arrays:
        return dict(arrays)


def test_there_is_a_row_for_every_network_and_epoch_and_a_figure(finished):
    rows = _read(finished)
    places = {tuple(row[n] for n in ("second_index", "seed", "epoch")) for row in rows}
    assert len(rows) == len(places) == 2 * 2 * 3
    assert {row["first_index"] for row in rows} == {"0"}
    assert {row["second_index"] for row in rows} == {"1", "14"}
    (figure,) = circles.draw(_config(), finished)
    assert figure.name == "accuracy_by_epoch.png" and figure.exists()


def test_the_planes_are_of_the_eigenvectors_of_exact_gradients_near_the_origin(finished):
    model, found = create_model("mlp", (4, 4, 1), width=8), _found(finished)
    how = {"derivative": "input_gradient", "point": "fresh", "point_scale": 1e-3}
    nads = estimate_nads(model, 40, **how)
    np.testing.assert_allclose(found["eigenvalues"], nads.eigenvalues, rtol=1e-4)
    overlap = subspace_overlap(found["directions"], nads.directions, (1, 2, 15))
    np.testing.assert_allclose(overlap, 1.0, atol=1e-4)
    np.testing.assert_allclose(
        found["split_half_overlap"][0], nads.split_half_overlap[0], rtol=1e-3
    )


def test_networks_are_those_of_the_task_in_these_planes(finished):
    rows = _found(finished)["directions"]
    recipe = Recipe("sgd", {"momentum": 0.9}, num_train=64, num_test=32, num_epochs=2,
                    batch_size=16, loss_window=2)  # fmt: skip
    model = create_model("mlp", (4, 4, 1), 2, width=8)
    plane = {"first": rows[:1], "second": rows[14:15], "seed": 1}
    metrics = train_many(model, task(), learning_rate=0.1, recipe=recipe, **plane)
    chosen = [row for row in _read(finished) if (row["second_index"], row["seed"]) == ("14", "1")]
    assert float(chosen[-1]["test_accuracy"]) == pytest.approx(metrics.test_accuracy[0], abs=1e-6)
    assert float(chosen[-1]["train_accuracy"]) == pytest.approx(metrics.train_accuracy[0], abs=1e-6)


def test_a_folder_grows_by_seeds_and_planes(finished, capsys):
    stored = {path: path.read_bytes() for path in finished.rglob("units/*.npz")}
    assert run(circles, _config(seeds=(0, 1, 2), second_indices=(1, -2, 5)), finished)
    assert "u_0, u_5" in capsys.readouterr().out
    assert all(path.read_bytes() == content for path, content in stored.items())
    assert len(_read(finished)) == 3 * 3 * 3
    with pytest.raises(InputError, match="radii"):
        run(circles, _config(radii=(2.0, 0.25)), finished)


def test_stored_eigenvectors_stay_where_an_architecture_is_added(tmp_path):
    config = _config(architectures=("logreg",), width=0, seeds=(0,), second_indices=(1,))
    assert run(circles, config, tmp_path)
    (path,) = (tmp_path / "geometry" / "units").glob("*.npz")
    written = path.stat().st_mtime_ns
    config.architectures = ("logreg", "mlp")
    assert run(circles, config, tmp_path)
    assert path.stat().st_mtime_ns == written


def test_training_waits_for_the_geometry_of_other_shards(tmp_path):
    with pytest.raises(runner.RunAgain, match="training begins when all geometries are measured"):
        run(circles, _config(), tmp_path, Shard(0, 2))
    assert not run(circles, _config(), tmp_path, Shard(1, 2))
    assert run(circles, _config(), tmp_path, Shard(0, 2))
    assert len(_read(tmp_path)) == 2 * 2 * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"second_indices": (1, 0)}, "^second_indices: must be different directions"),
        ({"second_indices": (15, -1)}, "^second_indices: must be different directions"),
        ({"second_indices": (16,)}, "^second_indices: must be an integer in -16 … 15, got 16"),
        ({"first_index": 20}, "^first_index: must be an integer in -16 … 15"),
        ({"num_networks": 39}, "^num_networks, geometry_unit_size: must be even"),
        ({"radii": (1.0, -1.0)}, "^radii: must be a finite number at least 0"),
        ({"sigma": -1.0}, "^sigma: must be a finite number"),
        ({"num_test": 9}, "^num_test: must be even"),
        ({"readout": "own"}, "^readout: unknown value 'own'"),
        ({"point_scale": -1.0}, "^point_scale: must be a finite number"),
        ({"seeds": (0, 0)}, "^seeds: must be a non-empty tuple of different values"),
        ({"optimizer": "nonsense"}, "^optimizer: "),
    ],
)
def test_bad_fields_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        circles.validate(_config(**changes))
