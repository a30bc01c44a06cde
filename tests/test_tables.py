"""Results print, plot and tabulate themselves."""

import csv
import sys
import types

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from nad_jax import (
    Learnability,
    Recipe,
    create_model,
    estimate_leading_nads,
    estimate_nads,
    from_functions,
    train_many,
)
from nad_jax.comparison import EnergyMap
from nad_jax.errors import InputError
from nad_jax.tables import list_metrics

RECIPE = Recipe(num_train=32, num_test=16, num_epochs=2, batch_size=16, loss_window=2)


@pytest.fixture(scope="module")
def nads():
    return estimate_nads(create_model("logreg", (4, 4, 1)), 10, readout="sampled")


@pytest.fixture(scope="module")
def metrics():
    model = create_model("logreg", (4, 4, 1), 2)
    return train_many(model, np.eye(16, dtype=np.float32)[:3], recipe=RECIPE, keep=True)


def test_a_record_prints_what_it_is_in_a_few_words(nads, metrics):
    text = repr(nads)
    assert text.startswith("NADs of logreg, 10 networks: exact gradient at one point of N(0, 1²)")
    assert f"{nads.eigenvalues[0]:.4g} ± {nads.eigenvalue_sem[0]:.1g}" in text
    assert len(text.splitlines()) <= 6 and "array" not in text
    text = repr(metrics)
    assert text.startswith("TrainMetrics(3 networks, test accuracy ") and "with variables" in text
    assert len(text) < 400 and f"{metrics.test_accuracy.mean():.1%}" in text


def test_rows_are_those_of_the_table(nads, metrics, tmp_path):
    for record, first, count in ((nads, "index", 16), (metrics, "network", 3)):
        rows = record.rows()
        assert len(rows) == count and [row[first] for row in rows] == list(range(count))
        record.to_csv(tmp_path / "table.csv")
        with (tmp_path / "table.csv").open(newline="") as file:
            stored = list(csv.DictReader(file))
        assert list(stored[0]) == list(rows[0]) and len(stored) == count
    assert float(stored[1]["test_loss"]) == pytest.approx(float(metrics.test_loss[1]), rel=1e-6)
    with pytest.raises(InputError, match="No such file or directory"):
        nads.to_csv(tmp_path / "nowhere" / "table.csv")


def test_rows_of_networks_say_what_these_were_trained_with(metrics):
    row = metrics.to_rows()[1]
    assert list(row)[:5] == ["network", "seed", "learning_rate", "epsilon", "sigma"]
    assert (row["seed"], row["learning_rate"], row["sigma"]) == (0, 0.5, 1.0)
    assert "direction" not in row  # not one number for each network
    assert list(row)[5:] == [*list_metrics(metrics)] and "settings" not in row
    assert metrics.rows() == metrics.to_rows()
    named = metrics._replace(settings={"test_accuracy": np.arange(3), "network": np.arange(3)})
    row = named.to_rows()[2]
    assert row["task_test_accuracy"] == 2 and row["task_network"] == 2
    assert row["test_accuracy"] == metrics.test_accuracy[2] and row["network"] == 2
    assert list(metrics._replace(settings=None).to_rows()[0])[:2] == ["network", "train_accuracy"]


def _tables(metrics):
    energy = EnergyMap((np.arange(2), np.arange(3)), np.ones((2, 3)), np.zeros((2, 3)))
    accuracy = np.array([0.5, 1.0])
    learned = Learnability(np.array([[0, 1], [1, 0]]), accuracy, accuracy / 100, 0.6, (4, 4, 1))
    return metrics, energy, learned


def test_a_data_frame_holds_the_rows(metrics, monkeypatch):
    stub = types.SimpleNamespace(DataFrame=lambda rows: ("frame", rows))
    monkeypatch.setitem(sys.modules, "pandas", stub)
    for record in _tables(metrics):
        assert record.to_dataframe() == ("frame", record.to_rows())
        assert record.rows() == record.to_rows()


def test_without_pandas_one_line_says_what_to_do(metrics, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    for record in _tables(metrics):
        with pytest.raises(ImportError) as caught:
            record.to_dataframe()
        (line,) = str(caught.value).splitlines()
        assert line.startswith("to_dataframe: needs pandas") and line.endswith("or take to_rows()")


def test_figures_are_returned(nads, metrics):
    figures = nads.plot(num_directions=4)
    assert list(figures) == ["nads", "spectrum", "overlap"]
    assert all(isinstance(figure, Figure) for figure in (*figures.values(), metrics.plot()))


def test_records_of_own_models_of_vectors_are_drawn_too():
    model = from_functions(
        lambda key: jax.random.normal(key, (12, 1)),
        lambda weights, x: x @ weights,
        (12,),
        check=False,
    )
    leading = estimate_leading_nads(model, 20, 3, 2, derivative="input_gradient", readout="sampled")
    assert all(isinstance(figure, Figure) for figure in leading.plot().values())
    assert "3 leading directions of D = 12" in repr(leading)
