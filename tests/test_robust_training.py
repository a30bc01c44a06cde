"""The experiment `robust_training` at smoke size: its table, how it grows, what it refuses."""

import csv
import io

import numpy as np
import pytest

from experiments import robust_training
from nad_jax import Recipe, adversarial, create_model, observers, separable, train_many
from nad_jax.errors import InputError
from tests.test_configs import load_config, run


def _config(**changes):
    config = load_config("robust_training").get_config("smoke")
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert run(robust_training, _config(), workdir)
    return workdir


def _read(workdir):
    return list(csv.DictReader(io.StringIO((workdir / "results.csv").read_text())))


def test_there_is_a_row_for_every_network_and_a_figure(finished):
    rows = _read(finished)
    places = {(row["norm"], row["radius"], row["seed"], row["index"]) for row in rows}
    assert len(rows) == len(places) == 8
    for row in rows:
        cosine = float(row["gradient_cosine"])
        assert np.cos(np.radians(float(row["deviation_angle"]))) == pytest.approx(cosine, abs=1e-5)
        assert float(row["adversarial_strength"]) == pytest.approx(1 / cosine, rel=1e-4)
        assert float(row["robust_l2"]) <= float(row["test_accuracy"])
    (figure,) = robust_training.draw(_config(), finished)
    assert figure.name == "accuracy_by_index.png" and figure.exists()


def test_a_row_is_the_network_that_the_api_trains_and_attacks(finished):
    config = _config()
    fields = "num_train", "num_test", "num_epochs", "batch_size", "loss_window"
    recipe = Recipe(**{name: config[name] for name in fields})
    model = create_model("mlp", (4, 4, 1), 2, width=8)
    direction = robust_training.find_directions(config)[[9]]
    robust = observers.robust_accuracy(model, separable(), recipe, steps=2, radius=config.test_l2)
    found = train_many(
        model, adversarial(separable(), steps=2), direction=direction, radius=0.5,
        sigma=config.sigma, seed=1, recipe=recipe, observe={"robust": robust},
    )  # fmt: skip
    (row,) = [
        row for row in _read(finished)
        if (row["norm"], row["seed"], row["index"]) == ("l2", "1", "9")
    ]  # fmt: skip
    for name in ("test_accuracy", "test_loss", "gradient_cosine"):
        assert float(row[name]) == pytest.approx(float(getattr(found, name)[0]), rel=1e-4), name
    assert float(row["robust_l2"]) == pytest.approx(float(found.observed["robust"][0, -1]))


def test_correlations_are_those_of_networks_of_a_seed():
    def rows(*values):
        return [
            {"seed": seed, "index": index, "test_accuracy": value}
            for seed, one in enumerate(values)
            for index, value in enumerate(one)
        ]

    plain, attacked = rows((0.9, 0.7, 0.6), (0.9, 0.8, 0.5)), rows((0.8, 0.7, 0.5), (0.6, 0.7, 0.8))
    assert robust_training.correlate(plain, attacked) == pytest.approx((0, 1))
    assert np.isnan(robust_training.correlate(plain, rows((0.5, 0.5, 0.5), (0.1, 0.2, 0.3)))[0])


def test_a_folder_grows_by_attacks_and_seeds(finished, capsys):
    stored = {path.name: path.read_bytes() for path in finished.glob("units/*.npz")}
    assert run(robust_training, _config(attacks=("none",), seeds=(0, 1, 2)), finished)
    assert "no attack: 6 networks" in capsys.readouterr().out
    for name, content in stored.items():
        assert (finished / "units" / name).read_bytes() == content
    with pytest.raises(InputError, match="steps"):
        run(robust_training, _config(steps=3), finished)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": ("l1:0.5",)}, r"^attacks: are none, l2:RADIUS or linf:RADIUS, got 'l1:0.5'"),
        ({"attacks": ("l2:x",)}, "^attacks: are none"),
        ({"attacks": ("l2:-1",)}, "^attacks: are none"),
        ({"attacks": (1.0,)}, "^attacks: are none"),
        ({"indices": (0, 16)}, "^indices: must be an integer in 0 … 15, got 16"),
        ({"steps": 0}, "^steps: must be an integer"),
        ({"test_l2": -1.0}, "^test_l2: must be a finite number"),
        ({"num_networks": 1}, "^num_networks: must be an integer"),
        ({"num_train": 9}, "^num_train: must be even"),
    ],
)
def test_bad_fields_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        robust_training.validate(_config(**changes))
