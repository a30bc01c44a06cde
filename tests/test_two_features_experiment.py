"""The experiment `two_features` at smoke size: its tables, what they mean, how they grow, what is
refused.
"""

import csv
import io
import itertools

import numpy as np
import pytest

import nad_jax
from experiments import two_features
from nad_jax.errors import InputError
from nad_jax.feature_plots import plot_bias_map
from nad_jax.tasks.two_features import observe_reliance, optimal_accuracy, optimal_reliance
from tests.test_configs import load_config, run


def _config(recipe="smoke", **changes):
    config = load_config("two_features").get_config(recipe)
    config.update(batch_size=48)  # 128 samples are two batches and a smaller one
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert run(two_features, _config(), workdir)
    return workdir


@pytest.fixture(scope="module")
def nads(tmp_path_factory):
    path = tmp_path_factory.mktemp("nads") / "rows.npy"
    np.save(path, np.eye(16, dtype=np.float32)[::-1])
    return path


def _pairs(nads, **changes):
    own = {"indices": (0, 3, 9), "nads": str(nads), "shortcut_predictivities": (0.9,)}
    own |= {"amplifications": (1.0,), "sigma": 1.0}
    return _config(**{**own, **changes})


def _read(workdir):
    return list(csv.DictReader(io.StringIO((workdir / "results.csv").read_text())))


def test_there_is_a_row_for_every_network_and_epoch_and_a_figure(finished):
    rows = _read(finished)
    names = "shortcut_predictivity", "amplification", "seed", "epoch"
    assert len(rows) == len({tuple(row[n] for n in names) for row in rows}) == 2 * 2 * 2 * 3
    assert {row["step"] for row in rows if row["epoch"] == "2"} == {"6"}
    (figure,) = two_features.draw(_config(), finished)
    assert figure.name == "bias_by_amplification.png" and figure.exists()


def test_the_bias_is_the_reliance_less_that_of_the_optimal_classifier(finished):
    for row in _read(finished):
        predictivity = float(row["shortcut_predictivity"])
        bias = float(row["reliance"]) - optimal_reliance(predictivity)
        assert float(row["shortcut_bias"]) == pytest.approx(bias, abs=1e-5)
        assert float(row["optimal_accuracy"]) == pytest.approx(optimal_accuracy(predictivity), 1e-5)


def test_networks_are_those_of_the_task(finished):
    """Trained again by hand, along the random directions of a seed."""
    config = _config()
    (rows,) = two_features.list_directions(config)[1].values()
    model = nad_jax.create_model("mlp", (4, 4, 1), 2)
    recipe = nad_jax.Recipe(
        "sgd", num_train=128, num_test=64, num_epochs=2, batch_size=48, loss_window=3
    )
    given = {"shortcut": rows[0][None], "core": rows[1][None], "shortcut_predictivity": 0.7}
    found = nad_jax.train_many(
        model, nad_jax.tasks.two_features(), recipe=recipe, seed=1, learning_rate=0.1,
        observe={"reliance": observe_reliance(model)}, shortcut_amplification=4.0, **given,
    )  # fmt: skip
    chosen = [
        float(row["reliance"])
        for row in _read(finished)
        if (row["shortcut_predictivity"], row["amplification"], row["seed"]) == ("0.7", "4", "1")
    ]
    np.testing.assert_allclose(chosen, found.observed["reliance"][0], atol=5e-3)


def test_directions_of_a_seed_are_random_and_not_orthogonal():
    pairs = two_features.list_directions(_config(seeds=tuple(range(40)))).values()
    found = [one["", ""] for one in pairs]
    cosines = [float(shortcut @ core) for shortcut, core in found]
    assert np.std(cosines) == pytest.approx(1 / 4, rel=0.35)  # 1/√D
    assert len({round(cosine, 6) for cosine in cosines}) == 40


def test_a_map_has_every_ordered_pair(nads, tmp_path, capsys):
    config = _pairs(nads)
    assert run(two_features, config, tmp_path)
    printed = capsys.readouterr().out
    assert "pairs of which the earlier NAD is preferred" in printed
    assert "rank correlation of the bias" in printed
    rows = _read(tmp_path)
    pairs = {(row["shortcut_index"], row["core_index"]) for row in rows}
    assert pairs == {(a, b) for a in "039" for b in "039" if a != b}
    (figure,) = two_features.draw(config, tmp_path)
    assert figure.name == "bias_map.png" and figure.exists()


def test_networks_are_named_by_the_directions_as_they_stand(nads, tmp_path):
    """Eigenvectors have either sign, and (−v_s, v_c) is another question than (v_s, v_c)."""
    rows = np.load(nads)

    def names(rows):
        np.save(tmp_path / "other.npy", rows)
        networks = two_features.make_networks(_pairs(tmp_path / "other.npy"))
        return {one.name for one in networks}

    stored = {one.name for one in two_features.make_networks(_pairs(nads))}
    assert len(stored) == 6 * 2 and names(rows) == stored
    turned = rows * np.where(np.arange(16) == 3, -1, 1)[:, None].astype(np.float32)
    assert len(names(turned) & stored) == 2 * 2  # of 0 and 9, which are as they were
    assert not names(np.roll(rows, 1, axis=1)) & stored
    assert not names(-rows) & stored


def test_a_file_of_nads_is_read_once(nads, monkeypatch):
    calls, read = [], two_features.records.read_directions
    monkeypatch.setattr(
        two_features.records, "read_directions", lambda *given: calls.append(given) or read(*given)
    )
    assert len(two_features.make_networks(_pairs(nads, seeds=tuple(range(5))))) == 6 * 5
    assert len(calls) == 1


def test_rows_of_the_map_are_those_of_the_shortcut(nads):
    rows = [
        {"shortcut_index": a, "core_index": b, "shortcut_bias": a - b / 100 + shift}
        for a, b in itertools.permutations((0, 3, 9), 2)
        for shift in (-0.1, 0.1)
    ]
    means, errors = two_features._make_map(_pairs(nads), rows)
    expected = np.subtract.outer([0, 3, 9], np.array([0, 3, 9]) / 100)
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(means, expected, atol=1e-12)
    np.testing.assert_allclose(errors[~np.eye(3, dtype=bool)], 0.1)


def test_colors_of_the_map_reach_to_the_largest_bias():
    for largest, limit in ((1.7, 1.7), (0.3, 1.0)):
        means = np.array([[np.nan, -largest], [0.2, np.nan]])
        figure = plot_bias_map({"mlp": (means, 0.1 * np.ones((2, 2)))}, [0, 1], "")
        assert figure.axes[0].images[0].get_clim() == pytest.approx((-limit, limit))


def test_a_preference_for_earlier_nads_is_said(nads, capsys):
    config, place = _pairs(nads), {0: 0, 3: 1, 9: 2}
    rows = [
        {"seed": 0, "shortcut_index": a, "core_index": b, "shortcut_bias": place[b] - place[a]}
        for a, b in itertools.permutations(place, 2)
    ]
    two_features._report_pairs(config, rows)
    printed = capsys.readouterr().out
    assert "preferred: 100.0%" in printed
    assert "stands: 1.00" in printed


def test_a_folder_grows_by_seeds_and_amplifications(finished):
    stored = {path: path.read_bytes() for path in finished.rglob("units/*.npz")}
    assert run(two_features, _config(seeds=(0, 1, 2), amplifications=(1.0, 2.0, 4.0)), finished)
    assert all(path.read_bytes() == content for path, content in stored.items())
    assert len(_read(finished)) == 2 * 3 * 3 * 3
    with pytest.raises(InputError, match="correlation"):
        run(two_features, _config(correlation=0.3), finished)
    assert run(two_features, _config(), finished)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shortcut_predictivities": (0.5,)}, "shortcut_predictivity: .* 0.5"),
        ({"core_predictivity": 1.0}, "core_predictivity: "),
        ({"correlation": 1.0}, "correlation: "),
        ({"amplifications": (-1.0,)}, "amplifications: .*-1"),
        ({"amplifications": ()}, "amplifications: must be a non-empty"),
        ({"num_train": 3}, "num_train: must be even"),
        ({"num_probes": 1}, "num_probes: "),
        ({"num_probes": 5}, "num_probes: must be even"),
        ({"indices": (0, 1)}, "nads: indices need the file"),
        ({"nads": "/nope.npz"}, "^nads: is read where indices are given, got '/nope.npz' and none"),
        ({"indices": (0, 16)}, "indices: .*16"),
        ({"architectures": ("mpl",)}, "mpl"),
    ],
)
def test_bad_fields_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        two_features.validate(_config(**changes))


def test_a_map_of_a_sweep_and_indices_that_a_file_has_not_are_refused(nads, tmp_path):
    with pytest.raises(InputError, match="amplifications: must be one where indices are given"):
        two_features.validate(_pairs(nads, amplifications=(1.0, 2.0)))
    with pytest.raises(InputError, match="indices: must be at least two"):
        two_features.validate(_pairs(nads, indices=(1,)))
    np.save(tmp_path / "few.npy", np.eye(16)[:4])
    with pytest.raises(InputError, match=r"indices: .*few.npy has 0 … 3"):
        two_features.make_study(_pairs(tmp_path / "few.npy"))
