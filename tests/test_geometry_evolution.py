"""The experiment `geometry_evolution` on tiny CIFAR-10 files: its table, how it grows, what it
refuses.
"""

import csv
import io

import numpy as np
import pytest

from experiments import geometry_evolution
from nad_jax import make_key, read_cifar10, tasks
from nad_jax.ensemble import member_keys, named_key
from nad_jax.errors import InputError
from nad_jax.geometry import split_member
from tests.cifar_files import BINARY, make_batches, write_folder
from tests.test_configs import load_config, run

ANIMALS = (2, 3, 4, 5, 6, 7)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_folder(folder / "data", BINARY, make_batches(20))
    return folder / "data"


def _config(folder, **changes):
    config = load_config("geometry_evolution").get_config("cpu")
    config.update(
        data_dir=str(folder), num_per_class=6, architectures=("mlp(width=3)", "logreg"),
        num_runs=(3, 4), num_steps=(2, 1), learning_rates=(0.1, 0.2), num_networks=(4, 4),
        num_points=3,
    )  # fmt: skip
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert run(geometry_evolution, _config(data_dir), workdir)
    return workdir


def _read(workdir):
    return list(csv.DictReader(io.StringIO((workdir / "results.csv").read_text())))


def test_there_is_a_row_for_every_step_of_every_ensemble_and_a_figure(finished, data_dir):
    rows = _read(finished)
    places = [(row["architecture"], int(row["epoch"])) for row in rows]
    assert places == [("mlp(width=3)", step) for step in range(3)] + [("logreg", 0), ("logreg", 1)]
    assert [row["test_accuracy"] != "" for row in rows] == [False, False, True, False, True]
    assert float(rows[2]["distance"]) > float(rows[1]["distance"]) > float(rows[0]["distance"]) == 0
    (figure,) = geometry_evolution.draw(_config(data_dir), finished)
    assert figure.name == "evolution.png" and figure.exists()


def test_images_are_gray_of_mean_0_and_of_both_classes(data_dir):
    gray = geometry_evolution.read_gray(_config(data_dir))
    data = read_cifar10(data_dir)
    for split in ("train", "test"):
        labels = getattr(gray, f"{split}_labels")
        assert labels.tolist() == 6 * [0] + 6 * [1]
    assert abs(gray.train_images.mean()) < 1e-6 and abs(gray.train_images.std() - 1) < 1e-5
    first = np.flatnonzero(np.isin(data.train_labels, ANIMALS))[0]
    expected = data.train_images[first].mean(-1)
    found = gray.train_images[6, ..., 0]
    np.testing.assert_allclose(np.corrcoef(found.reshape(-1), expected.reshape(-1))[0, 1], 1)


def test_geometries_are_compared_with_s_and_g_s_g(data_dir):
    config = _config(data_dir)
    data = geometry_evolution.read_gray(config)
    flat = data.train_images.reshape(12, -1).astype(np.float64)
    one = geometry_evolution.list_ensembles(config)[1]
    at = geometry_evolution.choose_points(config, data)
    found = geometry_evolution.find_references(config, one, data, at)
    second_moment = flat.T @ flat / 12
    np.testing.assert_allclose(found["data"], second_moment, atol=1e-5)
    # The gradient of a linear network is its weight.
    model = geometry_evolution.create_network(config, "logreg")
    key = named_key(named_key(make_key(config.seed), "untrained"), "networks")
    drawn = [model.init(split_member(one)[0]) for one in member_keys(key, np.arange(4))]
    weights = np.stack([one["params"]["Dense_0"]["kernel"][:, 0] for one in drawn])
    geometry = weights.T.astype(np.float64) @ weights / 4
    expected = geometry @ second_moment @ geometry
    np.testing.assert_allclose(found["predicted"], expected, atol=1e-4 * expected.max())


def test_a_folder_grows_by_architectures_and_labels(finished, data_dir, capsys):
    stored = {path.name: path.read_bytes() for path in finished.glob("units/*.npz")}
    assert len(stored) == 2
    grown = _config(data_dir, labels=("true", "random"))
    assert run(geometry_evolution, grown, finished)
    assert "logreg, random labels" in capsys.readouterr().out
    for name, content in stored.items():
        assert (finished / "units" / name).read_bytes() == content
    with pytest.raises(InputError, match="num_points"):
        run(geometry_evolution, _config(data_dir, num_points=4), finished)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_dir": ""}, "^data_dir: no CIFAR-10"),
        ({"num_runs": (2, 4)}, "^num_runs: must be an integer of at least 3, got 2"),
        ({"num_runs": (3,)}, "^num_runs: must be a tuple of one value for each of the 2 arch"),
        ({"num_steps": (0, 1)}, "^num_steps: must be an integer of at least 1"),
        ({"num_per_class": 1}, "^num_per_class: must be an integer of at least 2"),
        ({"labels": ("wrong",)}, "^labels: unknown value 'wrong'"),
        ({"points": "origin"}, "^points: unknown value 'origin'"),
        ({"point_scale": 0.0}, "^point_scale: must be"),
        ({"learning_rates": (-1.0, 0.1)}, "^learning_rates: must be"),
        ({"optimizer": "nonsense"}, "^optimizer: "),
        ({"architectures": ("lenet5", "mlp")}, "^architecture: unknown value 'lenet5'"),
    ],
)
def test_bad_fields_are_refused_by_name(data_dir, changes, message):
    with pytest.raises(InputError, match=message):
        geometry_evolution.validate(_config(data_dir, **changes))


def test_two_rates_are_two_units(data_dir):
    rates = (0.1, 0.10000001)
    config = _config(data_dir, architectures=("logreg", "logreg"), learning_rates=rates)
    assert len({one.name for one in geometry_evolution.list_ensembles(config)}) == 2


def test_more_images_than_there_are_are_refused(data_dir):
    with pytest.raises(InputError, match=r"^num_per_class: must be at most 40, the training im"):
        geometry_evolution.read_gray(_config(data_dir, num_per_class=41))


def test_the_test_takes_what_it_has_where_a_class_has_fewer_images(data_dir):
    # 40 and 8 of the rest, 60 and 12 animals: as in CIFAR-10, a fifth and a tenth of the published
    # number are too few.
    config = _config(data_dir, num_per_class=10)
    data = geometry_evolution.read_gray(config)
    assert data.train_labels.tolist() == 10 * [0] + 10 * [1]
    assert data.test_labels.tolist() == 8 * [0] + 10 * [1]
    one = geometry_evolution.list_ensembles(config)[0]
    recipe = tasks.images(data).resolve_recipe(geometry_evolution._read_recipe(config, one))
    assert (recipe.num_train, recipe.num_test, recipe.batch_size) == (20, 18, 20)


@pytest.mark.parametrize("recipe", ["cpu", "gpu", "smoke"])
def test_every_recipe_is_valid(recipe):
    config = load_config("geometry_evolution").get_config(recipe)
    config.data_dir = "somewhere"
    geometry_evolution.validate(config)
