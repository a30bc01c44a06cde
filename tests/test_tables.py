"""Results print, plot and tabulate themselves."""

import csv

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

from nad_jax import (
    Recipe,
    create_model,
    estimate_leading_nads,
    estimate_nads,
    from_functions,
    train_many,
)
from nad_jax.errors import InputError

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
    assert text.startswith("NADs(16 of D = 16 directions, 10 networks; eigenvalues ")
    assert f"{nads.eigenvalues[0]:.4g} ± {nads.eigenvalue_sem[0]:.1g}" in text
    assert len(text) < 400 and "array" not in text
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
    assert repr(leading).startswith("NADs(3 of D = 12 directions")
