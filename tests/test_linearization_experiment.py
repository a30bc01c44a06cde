"""The experiment `linearization` at smoke size: its table, how it grows, what it refuses."""

import csv
import io

import jax
import numpy as np
import pytest

from experiments import linearization
from nad_jax import MixedDirections, mixed_directions, sample_noise
from nad_jax.errors import InputError
from nad_jax.tasks.separable import noise_key, separate
from tests.test_configs import load_config, run


def _config(**changes):
    config = load_config("linearization").get_config("cpu")
    config.update(
        architecture="mlp", pooling="default", activation="default", padding="default", width=8,
        image_shape=(4, 4, 1), indices=(0, 9), seeds=(0, 1), num_train=128, num_test=128,
        num_epochs=2, batch_size=32, loss_window=3, kernel_samples=24, epsilon=2.0,
    )  # fmt: skip
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert run(linearization, _config(), workdir)
    return workdir


def _read(workdir, **chosen):
    rows = csv.DictReader(io.StringIO((workdir / "results.csv").read_text()))
    return [row for row in rows if all(row[n] == value for n, value in chosen.items())]


def _losses(workdir):
    """Minibatch losses by (kind, seed, index)."""
    found = {}
    for path in workdir.glob("units/*.npz"):
        with np.load(path) as arrays:
            for name, losses in zip(arrays["names"], arrays["losses"], strict=True):
                found[str(name)] = losses
    return found


def test_there_is_a_row_for_every_network_and_a_figure(finished):
    rows = _read(finished)
    places = {(row["kind"], row["seed"], row["index"]) for row in rows}
    assert len(rows) == len(places) == 8
    (figure,) = linearization.draw(_config(), finished)
    assert figure.name == "accuracy_by_index.png" and figure.exists()
    assert {row["alignment"] for row in _read(finished, kind="network")} == {"nan"}
    for row in _read(finished, kind="linearization"):
        assert 0 < float(row["alignment"]) <= 1


def test_both_kinds_start_alike_and_part_by_training(finished):
    losses = _losses(finished)
    assert len(losses) == 8
    for name, network in losses.items():
        if '"network"' in name:
            linear = losses[name.replace('"network"', '"linearization"')]
            assert network[0] == pytest.approx(linear[0], rel=1e-5)
            assert network[-1] != linear[-1]


def test_kernel_regression_is_that_of_the_start_on_the_first_samples(finished):
    config, seed, index = _config(), 1, 9
    model = linearization.read_network(config)
    variables = linearization.start(model, seed)
    direction = mixed_directions(model, variables).directions[index].astype(np.float32)
    noise = sample_noise(noise_key(seed), 128, 128, 16)
    labels = np.arange(24) % 2
    x, test_x = (separate(one[:24], labels, direction, 2.0, 1.0) for one in noise)

    def outputs(variables, x):
        return model.apply(variables, x.reshape(-1, 4, 4, 1))[:, 0]

    def gradients(x):
        rows = jax.jacrev(outputs)(variables, x)
        return np.concatenate([np.reshape(leaf, (24, -1)) for leaf in jax.tree.leaves(rows)], 1)

    targets = 1 - 2 * labels
    change, *_ = np.linalg.lstsq(
        gradients(x).astype(np.float64), targets - np.asarray(outputs(variables, x)), rcond=1e-4
    )
    predicted = outputs(variables, test_x) + gradients(test_x) @ change
    (row,) = _read(finished, kind="linearization", seed="1", index="9")
    accuracy = np.mean(np.sign(predicted) == targets)
    assert float(row["kernel_accuracy"]) == pytest.approx(accuracy, abs=1e-6)
    kernel = gradients(x) @ gradients(x).T
    share = targets @ kernel @ targets / (24 * np.trace(kernel))
    assert float(row["alignment"]) == pytest.approx(share, rel=1e-4)


def test_a_folder_grows_by_seeds_and_indices(finished, capsys):
    stored = {path.name: path.read_bytes() for path in finished.glob("units/*.npz")}
    grown = _config(seeds=(0, 1, 2), indices=(0, 9, 3), kinds=("network",), kernel_samples=24)
    assert run(linearization, grown, finished)
    assert "network: 9 networks" in capsys.readouterr().out
    for name, content in stored.items():
        assert (finished / "units" / name).read_bytes() == content
    with pytest.raises(InputError, match="kernel_samples"):
        run(linearization, _config(kernel_samples=12), finished)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": (0, 16)}, "^indices: must be an integer in 0 … 15, got 16"),
        ({"kinds": ("kernel",)}, "^kinds: unknown value 'kernel'"),
        ({"kernel_samples": 130}, "^kernel_samples: must be at most 128, got 130"),
        ({"kernel_samples": -1}, "^kernel_samples: must be an integer"),
        ({"num_points": -1}, "^num_points: must be an integer"),
        ({"num_train": 9}, "^num_train: must be even"),
        ({"seeds": (0, 0)}, "^seeds: must be a non-empty tuple of different values"),
        ({"optimizer": "nonsense"}, "^optimizer: "),
        ({"activation": "tanh"}, "^activation: 'tanh' makes no sense for 'mlp'"),
    ],
)
def test_bad_fields_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        linearization.validate(_config(**changes))


def test_an_index_beyond_the_directions_of_a_small_network_is_refused(monkeypatch):
    config = _config()
    few = MixedDirections(np.ones(9), np.eye(16)[:9])
    monkeypatch.setattr(linearization, "find_directions", lambda config, seed: few)
    setup = linearization.make_setup(config, linearization.make_task(config), "network")
    with pytest.raises(InputError, match=r"^indices: must be below 9, got \(0, 9\)"):
        setup.task.data(setup.model, setup.recipe, 0)


@pytest.mark.parametrize("recipe", ["cpu", "gpu", "smoke"])
def test_every_recipe_is_valid(recipe):
    config = load_config("linearization").get_config(recipe)
    linearization.validate(config)
