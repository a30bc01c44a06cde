"""Which frequencies a model learns and which it cannot."""

import csv

import numpy as np
import pytest

from experiments.published import read_table
from nad_jax import InputError, Recipe, create_model, learnable
from nad_jax.learnability import _grid

QUICK = Recipe(num_train=2000, num_test=2000, num_epochs=5)


@pytest.fixture(scope="module")
def lenet():
    """A frequency that LeNet learns, and one whose published accuracy is that of chance."""
    model = create_model("lenet", (32, 32, 1), num_logits=2)
    recipe = Recipe(num_train=2000, num_test=2000, num_epochs=3)
    return learnable(model, [(0, 2), (16, 16)], sigma=0.5, recipe=recipe)


def test_lenet_learns_a_low_frequency_and_not_the_highest(lenet):
    assert lenet.learned.tolist() == [True, False]
    assert lenet.cannot_learn == [(16, 16)]
    assert lenet.accuracy[0] > 0.8
    assert lenet.chance == pytest.approx(0.5 + 3 * np.sqrt(0.25 / 2000))
    assert "1 at chance" in repr(lenet) and "(16, 16)" in repr(lenet)


def test_the_map_of_lenet_is_the_published_one(published):
    table = read_table(str(published("dft_accuracies_lenet.csv")), "lenet")
    accuracy = {(2 * row["y"] - 16, 2 * row["x"] - 16): row["accuracy"] for row in table}
    frequencies = [(0, 0), (0, 2), (8, 0), (8, 8)]
    model = create_model("lenet", (32, 32, 1), num_logits=2)
    found = learnable(model, frequencies, sigma=1.0, recipe=QUICK)
    assert found.learned.tolist() == [accuracy[one] > 0.55 for one in frequencies]


def test_a_linear_model_learns_every_frequency():
    model = create_model("logreg", (6, 6, 1), num_logits=2)
    found = learnable(model, frequency_step=2, num_seeds=2, recipe=QUICK)
    assert found.learned.all() and found.cannot_learn == []
    # One of each conjugate pair of the frequencies −2, 0, 2 of either axis.
    assert len(found.frequencies) == 5 and (found.accuracy_sem >= 0).all()


def test_it_is_a_table_and_a_figure(lenet, tmp_path):
    lenet.to_csv(tmp_path / "learned.csv")
    rows = list(csv.DictReader((tmp_path / "learned.csv").read_text().splitlines()))
    assert [row["frequency_0"] for row in rows] == ["0", "16"]
    assert [row["learned"] for row in rows] == ["True", "False"]
    (image,) = lenet.plot().axes[0].images
    cells = np.asarray(image.get_array().filled(np.nan))
    assert np.nanmax(cells) == pytest.approx(100 * lenet.accuracy[0])


def test_bad_input_is_named():
    model = create_model("logreg", (6, 6, 1), num_logits=2)
    for problem, given in (
        ("frequencies", {"frequencies": [(0, 1, 2)]}),
        ("frequencies: must be integers", {"frequencies": [(0.5, 1)]}),
        ("num_seeds", {"num_seeds": 0}),
        ("sigma", {"sigma": -1.0}),
        ("frequency_step", {"frequency_step": 0}),
        ("channel", {"frequencies": [(0, 1)], "channel": 3}),
    ):
        with pytest.raises(InputError, match=problem):
            learnable(model, **given)
    with pytest.raises(InputError, match="plot: draws maps of images"):
        vectors = create_model("logreg", (8,), num_logits=2)
        learnable(vectors, [(1,)], recipe=QUICK).plot()


def test_frequencies_of_large_images_need_no_basis():
    frequencies = _grid((224, 224, 3), 32)
    assert len(frequencies) == 25 and (frequencies % 32 == 0).all()  # one of each pair of 7 × 7
