"""The experiment `robust_training` at smoke size: its table, how it grows, what it refuses."""

import csv
import io

import jax
import numpy as np
import pytest

from experiments import results, robust_training
from nad_jax import Recipe, adversarial, create_model, observers, separable, train_many
from nad_jax.errors import InputError
from nad_jax.training import make_members
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
    observe = {
        f"robust_{norm}": observers.robust_accuracy(
            model, separable(), recipe, norm=norm, steps=2, radius=radius
        )
        for norm, radius in (("l2", config.test_l2), ("linf", config.test_linf))
    }
    found = train_many(
        model, adversarial(separable(), steps=2), direction=direction, radius=0.5,
        sigma=config.sigma, seed=1, recipe=recipe, observe=observe,
    )  # fmt: skip
    (row,) = [
        row for row in _read(finished)
        if (row["norm"], row["seed"], row["index"]) == ("l2", "1", "9")
    ]  # fmt: skip
    for name in ("test_accuracy", "test_loss", "gradient_cosine"):
        assert float(row[name]) == pytest.approx(float(getattr(found, name)[0]), rel=1e-4), name
    for name, values in found.observed.items():
        assert float(row[name]) == pytest.approx(float(values[0, -1])), name


def test_each_norm_is_tested_at_the_radius_of_its_field():
    """Within 5, samples of size 1 can be moved across any boundary; within 0, nowhere."""
    found = []
    for changes in ({"test_l2": 0.0, "test_linf": 5.0}, {"test_l2": 5.0, "test_linf": 0.0}):
        config = _config(initialization="flax", attacks=("none",), **changes)  # of zero biases
        study = robust_training.make_setup(config, lambda: np.eye(16), "none")
        variables = study.model.init(jax.random.key(0))
        more = robust_training.make_measure(config, lambda: np.eye(16))
        measured = more.measure(robust_training.make_networks(config)[0], variables)
        found.append([float(measured[name]) for name in ("robust_l2", "robust_linf")])
    (still, moved), (other_moved, other_still) = found
    assert still == other_still and max(moved, other_moved) < 0.2 < still


def test_correlations_are_those_of_networks_of_a_seed():
    def rows(*values):
        return [
            {"seed": seed, "index": index, "test_accuracy": value}
            for seed, one in enumerate(values)
            for index, value in enumerate(one)
        ]

    plain, attacked = rows((0.9, 0.7, 0.6), (0.9, 0.8, 0.5)), rows((0.8, 0.7, 0.5), (0.6, 0.7, 0.8))
    assert robust_training.correlate(plain, attacked) == pytest.approx([1, -1])
    # A seed of which all are equal is left out, and said to be.
    found = robust_training.correlate(plain, rows((0.5, 0.5, 0.5), (0.1, 0.2, 0.3)))
    assert found == pytest.approx([-1])
    assert results.say_known(found, 2, ".2f") == "-1.00 over 1 of 2 seeds"
    assert results.say_known([0.5, 0.7], 2, ".2f") == "0.60 ± 0.10"
    assert results.say_known([], 2, ".2f") == "known of none of 2 seeds"
    assert robust_training.correlate(rows((0.5,)), rows((0.4,))) == []  # of one index


def test_the_strength_is_that_of_the_mean_cosine_of_a_seed():
    """One network whose gradient is zero, and one all but orthogonal, leave it finite."""
    cosines = ((0.0, 0.5, 0.25), (1e-9, 0.2, 0.4), (0.0, 0.0, 0.0))
    rows = [
        {"seed": seed, "gradient_cosine": cosine}
        for seed, one in enumerate(cosines)
        for cosine in one
    ]
    assert robust_training.list_strengths(rows) == pytest.approx([4, 5])


@pytest.mark.parametrize(
    ("cosine", "angle", "strength"), [(0.0, 90, np.inf), (0.5, 60, 2), (1.0000001, 0, 1)]
)
def test_angle_and_strength_of_a_network_follow_from_its_cosine(cosine, angle, strength):
    row = robust_training.add_tilt({"gradient_cosine": cosine, "seed": 3})
    assert row["seed"] == 3 and row["deviation_angle"] == pytest.approx(angle)
    assert row["adversarial_strength"] == pytest.approx(strength)


def test_radii_that_differ_in_the_table_are_different_groups():
    rows = [{"norm": "l2", "radius": radius} for radius in (0.5, 0.5000001, 1)]
    labels = ["L2, 0.5", "L2, 0.5000001", "L2, 1"]
    assert list(robust_training.group_attacks(rows)) == labels


def test_networks_are_listed_without_estimating_their_directions(monkeypatch):
    monkeypatch.setattr(robust_training, "estimate_nads", None)
    assert len(robust_training.make_study(_config()).members) == 8


def test_networks_of_an_index_are_those_of_the_direction(monkeypatch):
    """Their random numbers, too; the radius is checked as for any attack."""
    directions, config = np.eye(16)[::-1], _config()
    monkeypatch.setattr(robust_training, "find_directions", lambda config: directions)
    study = robust_training.make_setup(config, lambda: directions, "linf")
    given = {"epsilon": [1.0, 2.0], "radius": [0.3, 0.5]}
    found, _ = make_members(study.model, study.task, {"index": [3, 9], **given}, 0.1, [0, 1])
    task = adversarial(separable(), "linf", config.steps)
    arrays = {"direction": directions[[3, 9]], **given}
    expected, _ = make_members(study.model, task, arrays, 0.1, [0, 1])
    assert found.arrays.keys() == expected.arrays.keys()
    jax.tree.map(np.testing.assert_array_equal, found.arrays, dict(expected.arrays))
    assert (jax.random.key_data(found.key) == jax.random.key_data(expected.key)).all()


def test_an_index_beyond_the_rank_of_the_directions_is_refused():
    """Two networks of two features have four rows at most, and five leading directions need five."""
    config = _config(width=2, num_networks=2, indices=(0, 4))
    with pytest.raises(
        InputError, match=r"^indices: must be below [1-4], .*num_networks=2, got \(0, 4\)"
    ):
        robust_training.find_directions(config)


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
        ({"attacks": ("l2:1_0",)}, "^attacks: are none"),
        ({"attacks": ("l2:0.5", "none", "l2:.5")}, "^attacks: must be .*'l2:0.5' and 'l2:.5'"),
        ({"attacks": ("l2:0.5", "l2:0.50000000001")}, "^attacks: must be different"),
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
