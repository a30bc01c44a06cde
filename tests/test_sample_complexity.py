"""The experiment `sample_complexity` at smoke size: its table, how it grows, what it refuses."""

import csv
import io

import jax
import numpy as np
import pytest

from experiments import sample_complexity
from experiments.run.shards import Shard
from nad_jax import (
    create_patch_network,
    dynamic_signal,
    passing_sizes,
    signal_accuracy_bayes,
    train_many,
    with_two_logits,
)
from nad_jax.errors import InputError
from tests.test_configs import load_config, run


def _config(**changes):
    config = load_config("sample_complexity").get_config("smoke")
    config.update(
        num_patches=(2, 3), patch_sizes=(3,), num_samples=(4, 16, 64), num_train=64, num_test=100,
        num_epochs=3, batch_size=16, loss_window=2, chunk_size=3, threshold=0.75, sigma=0.25,
        scale=1.0, start_threshold=0.0, learning_rate=0.2,
    )  # fmt: skip
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert not run(sample_complexity, _config(), workdir, Shard(0, 2))
    assert run(sample_complexity, _config(), workdir, Shard(1, 2))
    return workdir


def _read(workdir, **chosen):
    rows = csv.DictReader(io.StringIO((workdir / "results.csv").read_text()))
    return [row for row in rows if all(row[n] == str(value) for n, value in chosen.items())]


def test_there_is_a_row_for_every_network_and_a_figure(finished):
    names = ("architecture", "num_patches", "num_samples", "seed")
    places = {tuple(row[name] for name in names) for row in _read(finished)}
    assert len(_read(finished)) == len(places) == 2 * 2 * 3 * 2
    (figure,) = sample_complexity.draw(_config(), finished)
    assert figure.name == "sample_complexity.png" and figure.exists()


def test_networks_are_those_of_the_task(finished):
    config = _config()
    setup = sample_complexity.make_study(config)  # whose recipe is the config's
    assert len(setup.members) == 24
    recipe = sample_complexity.trained.read_recipe(config, "optimizer", config.optimizer, 64, 100)
    model = with_two_logits(create_patch_network("lcn", 3, 3))
    signal = np.full((1, 3), 3**-0.5)
    how = {"signal": signal, "sigma": 0.25, "num_samples": 16, "seed": 1}
    metrics = train_many(model, dynamic_signal(), recipe=recipe[0], learning_rate=recipe[1], **how)
    (row,) = _read(finished, architecture="lcn", num_patches=3, num_samples=16, seed=1)
    assert float(row["test_accuracy"]) == pytest.approx(metrics.test_accuracy[0], abs=0.011)
    assert float(row["train_loss"]) == pytest.approx(metrics.train_loss[0], rel=1e-4)


def test_what_is_printed_is_read_off_the_table(finished, capsys):
    assert run(sample_complexity, _config(), finished)
    printed = capsys.readouterr().out
    for name in ("lcn", "cnn"):
        curves = []
        for number in (2, 3):
            rows = _read(finished, architecture=name, num_patches=number)
            means = [
                np.mean([float(row["test_accuracy"]) for row in rows if row["num_samples"] == n])
                for n in ("4", "16", "64")
            ]
            curves.append(passing_sizes(np.array([4, 16, 64]), np.array(means), 0.75))
        line = next(line for line in printed.splitlines() if line.startswith(f"  {name}, "))
        for number, size in zip((2, 3), curves, strict=True):
            said = f"{size:.0f}" if np.isfinite(size) else "more than the largest n"
            assert f"k = {number}: {said}" in line
    best = signal_accuracy_bayes(3, 0.25, 100_000)[0]
    assert f"k = 3: the best linear classifier 99.0%, Bayes {best:.1%}" in printed


def test_another_threshold_is_only_read_off_and_a_folder_grows(finished, capsys):
    stored = {path: path.read_bytes() for path in finished.glob("units/*.npz")}
    assert run(sample_complexity, _config(threshold=0.6), finished)
    assert "samples for an accuracy of 60.0%, 2 seeds" in capsys.readouterr().out
    grown = _config(seeds=(0, 1, 2), patch_sizes=(3, 4), num_samples=(4, 8, 16, 64))
    assert run(sample_complexity, grown, finished)
    assert all(path.read_bytes() == content for path, content in stored.items())
    assert len(_read(finished)) == 2 * 2 * 2 * 4 * 3
    assert "cnn, k = 2: d = 3: " in capsys.readouterr().out
    assert sample_complexity.draw(grown, finished)
    with pytest.raises(InputError, match="sigma"):
        run(sample_complexity, _config(sigma=0.5), finished)


def test_points_of_which_no_seed_is_complete_are_left_out():
    rows = [
        {"architecture": "cnn", "activation": "relu", "num_patches": k, "patch_size": 2,
         "num_samples": n, "seed": seed, "test_accuracy": 0.5 + 0.02 * n / k}
        for k in (2, 4, 8) for n in (4, 8, 16) for seed in (0, 1, 2)
        if (k, n, seed) != (2, 8, 2) and (k, n) != (8, 16) and (k != 8 or (n == 4) == (seed == 0))
    ]  # fmt: skip
    ((label, scales, found),) = sample_complexity.fit(rows, "num_patches", 0.55)
    assert label == "cnn, d = 2" and scales.tolist() == [2, 4]
    np.testing.assert_allclose(found.sizes, [4 * 2**0.25, 8 * 2**0.25], rtol=1e-6)


def test_a_seed_is_the_same_one_at_every_point():
    """Of accuracies that differ between seeds alone: those that are complete at all points."""

    def fit(seeds):
        rows = [
            {"architecture": "cnn", "activation": "relu", "num_patches": k, "patch_size": 2,
             "num_samples": n, "seed": seed, "test_accuracy": 0.4 + 0.05 * np.log2(n) + 0.1 * seed}
            for k, mine in seeds.items() for n in (4, 8, 16, 32) for seed in mine
        ]  # fmt: skip
        return [*sample_complexity.fit(rows, "num_patches", 0.72)]

    ((_, _, found),) = fit({2: (0, 1, 2), 4: (2, 1)})
    alone = [fit({2: seeds, 4: seeds})[0][2] for seeds in ((1, 2), (2, 1))]
    for one in alone:
        np.testing.assert_array_equal(found.sizes, one.sizes)
    assert found.sizes[0] == found.sizes[1] and found.slope_error < 1e-9  # of the same seeds
    assert found.high[0] > found.low[0]
    assert fit({2: (0,), 4: (1,)}) == []


def test_linear_networks_have_no_threshold_at_the_start():
    config = _config(activations=("linear", "relu"), start_threshold=0.05)
    sample_complexity.validate(config)
    said = [
        sample_complexity.read_network(config, "cnn", name, 2, 2) for name in config.activations
    ]
    variables = [model.init(jax.random.key(0)) for model in said]
    assert "threshold" not in variables[0]
    assert float(variables[1]["threshold"]) == pytest.approx(0.05 * 2**0.5)


def test_without_a_sigma_it_is_that_of_the_linear_limit():
    networks = sample_complexity.make_networks(_config(sigma=0.0, num_patches=(4, 16)))
    assert {float(one.what.arrays["sigma"]) for one in networks} == {0.5, 0.25}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ("mlp",)}, "^architectures: unknown value 'mlp'"),
        ({"activations": ("tanh",)}, "^activations: unknown value 'tanh'"),
        ({"num_patches": (0, 2)}, "^num_patches: must be an integer of at least 1"),
        ({"patch_sizes": (2.5,)}, "^patch_sizes: must be an integer of at least 1"),
        ({"num_samples": (4, 5)}, "^num_samples: must be even"),
        ({"num_samples": (4, 128)}, "^num_samples: must be at most num_train = 64, got 128"),
        ({"sigma": -1.0}, "^sigma: must be a finite number"),
        ({"threshold": 1.5}, "^threshold: must be at most 1"),
        ({"width": 0}, "^width: must be an integer of at least 1"),
        ({"start_threshold": np.nan}, "^start_threshold: must be a finite number, got nan$"),
        ({"scale": -1.0}, "^scale: must be a finite number"),
        ({"seeds": (0, 0)}, "^seeds: must be a non-empty tuple of different values"),
        ({"optimizer": "nonsense"}, "^optimizer: "),
    ],
)
def test_bad_fields_are_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        sample_complexity.validate(_config(**changes))
