"""Sample complexity: bisection, where curves pass, and slopes with errors."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from nad_jax import (
    Recipe,
    complexity,
    create_patch_network,
    dynamic_signal,
    fit_scaling,
    passing_sizes,
    sample_complexity,
    separable,
    train_many,
    with_two_logits,
)
from nad_jax.complexity import Scaling, bisect_first
from nad_jax.complexity_plots import plot_sample_complexity
from nad_jax.errors import InputError

SIGNAL = np.array([0.6, 0.8])
MODEL = with_two_logits(create_patch_network("cnn", 3, 2, scale=0.3, threshold=0.05))
RECIPE = Recipe("sgd", {"momentum": 0.9}, num_train=64, num_test=200, num_epochs=20, batch_size=16)
HOW = {"recipe": RECIPE, "learning_rate": 0.05, "sigma": 0.4}


@pytest.mark.parametrize("count", [1, 2, 7, 16])
def test_bisection_finds_the_first_that_passes_and_asks_few(count):
    sizes = [4 * 2**number for number in range(count)]
    for first in range(count + 1):
        asked = []

        def passes(size, first=first, asked=asked):
            asked.append(size)
            return sizes.index(size) >= first

        assert bisect_first(passes, sizes) == (sizes[first] if first < count else None)
        assert len(asked) == len(set(asked)) <= 1 + math.ceil(math.log2(count))


def test_a_curve_that_is_linear_in_log_n_passes_where_it_says():
    sizes = np.array([4, 8, 16, 64, 128])
    curve = 0.5 + 0.1 * np.log2(sizes / 4)
    curves = np.stack([curve, curve + 0.45, curve - 0.5])
    found = passing_sizes(sizes, curves, 0.75)
    assert found[0] == pytest.approx(4 * 2**2.5)
    assert found[1] == 4 and found[2] == np.inf
    assert passing_sizes(sizes, curve, 0.6) == pytest.approx(8)


def test_a_threshold_is_compared_in_single_precision():
    """9 of 10 samples pass .9, which in single precision is below .9 in double precision."""
    for shares in ([0.9], [0.9, 0.9, 0.9], [0.85, 0.95], [0.8, 1.0], [0.88, 0.91, 0.91]):
        mean = np.float32(shares).mean(dtype=np.float64)
        for accuracies in ([0.5, mean], [0.5, np.float32(mean)], [0.5, 0.9]):
            assert passing_sizes([2, 4], accuracies, 0.9) == pytest.approx(4, rel=1e-6)
    assert passing_sizes([2, 4], [0.5, 0.9 - 1e-6], 0.9) == np.inf


def test_a_bisection_passes_where_the_curve_of_the_same_networks_does(monkeypatch):
    accuracies = {2: [0.5, 0.6], 4: [0.9, 0.9]}
    accuracies = {size: np.float32(values) for size, values in accuracies.items()}

    def make_run(*given):
        return lambda arrays, rate, seeds: SimpleNamespace(
            test_accuracy=accuracies[int(arrays["num_samples"][0])]
        )

    monkeypatch.setattr(complexity, "make_run", make_run)
    found = sample_complexity(MODEL, dynamic_signal(), [2, 4], 0.9, (0, 1), recipe=RECIPE)
    means = np.stack([*accuracies.values()]).mean(1)
    assert found.size == 4 == pytest.approx(passing_sizes([2, 4], means, 0.9), rel=1e-6)


def _curves(rng, scales, exponent, num_seeds, noise):
    """Sigmoid accuracies in log n, centered at 10 scale^exponent, with noise of each seed."""
    sizes = 2.0 ** np.arange(1, 16)
    for scale in scales:
        place = np.log(sizes / (10 * scale**exponent))
        clean = 0.5 + 0.4 / (1 + np.exp(-2 * place))
        yield sizes, clean[:, None] + noise * rng.normal(size=(len(sizes), num_seeds))


def test_slopes_without_noise_are_the_exponent():
    scales = [2, 4, 8, 16]
    for exponent in (0.5, 1.0, 2.0):
        found = fit_scaling(
            scales, [*_curves(np.random.default_rng(0), scales, exponent, 3, 0.0)], 0.7
        )
        assert found.slope == pytest.approx(exponent, abs=0.02)
        assert found.slope_error == pytest.approx(0, abs=1e-9)
        np.testing.assert_allclose(found.sizes, 10 * np.array(scales) ** exponent, rtol=0.05)


def test_the_error_of_a_slope_is_its_spread_over_repetitions():
    scales, rng = [2, 4, 8], np.random.default_rng(0)
    found = [fit_scaling(scales, [*_curves(rng, scales, 1.0, 20, 0.05)], 0.7) for _ in range(60)]
    spread = np.std([one.slope for one in found])
    assert np.mean([one.slope_error for one in found]) == pytest.approx(spread, rel=0.3)
    inside = [
        (one.low <= 10 * np.array(scales)) & (10 * np.array(scales) <= one.high) for one in found
    ]
    assert 0.5 < np.mean(inside) < 0.85  # 68 % of intervals hold the truth, to interpolation


@pytest.mark.parametrize("num_seeds", [2, 8])
def test_the_error_of_a_slope_is_that_of_a_mean_over_seeds(num_seeds):
    """Where curves are linear in log n, n follows the accuracy: the error of log n is that of the
    mean accuracy, by how steep they are.
    """
    shifts = np.random.default_rng(1).normal(size=num_seeds)
    shifts *= 0.01 / shifts.std(ddof=1)
    sizes = 2.0 ** np.arange(1, 10)
    curve = 0.3 + 0.05 * np.arange(1, 10)
    still = np.tile(curve[:, None], num_seeds)
    found = fit_scaling([1, 4], [(sizes, still), (sizes, still + shifts)], 0.53, num_draws=4000)
    error = 0.01 / np.sqrt(num_seeds) / 0.05 * np.log(2)  # of log n at the second scale
    assert found.slope_error == pytest.approx(error / np.log(4), rel=0.05)
    np.testing.assert_allclose([found.low[0], found.high[0]], found.sizes[0])
    if num_seeds == 8:  # two seeds have three means alone
        reach = np.log([found.sizes[1] / found.low[1], found.high[1] / found.sizes[1]])
        assert reach.mean() == pytest.approx(error, rel=0.1)


def test_points_beyond_the_grid_are_not_of_the_fit():
    scales, rng = [2, 4, 8, 2**13], np.random.default_rng(0)
    found = fit_scaling(scales, [*_curves(rng, scales, 1.0, 4, 0.0)], 0.7)
    assert found.used.tolist() == [True, True, True, False] and found.sizes[3] == np.inf
    assert found.slope == pytest.approx(1.0, abs=0.02)
    found = fit_scaling([2, 4], [*_curves(rng, [2, 4], 1.0, 1, 0.0)], 0.55)
    assert np.isnan(found.slope_error) and np.isnan(found.low).all()
    found = fit_scaling([2, 4], [*_curves(rng, [2, 4], 1.0, 2, 0.0)], 0.5001)
    assert not found.used.any() and np.isnan(found.slope)


def _draw(found, panels=("number of patches $k$",)):
    lines = {label: (np.array([2, 4, 8]), one) for label, one in found.items()}
    return plot_sample_complexity(dict.fromkeys(panels, lines), "").axes


def test_every_panel_of_the_figure_has_a_legend_of_its_own():
    used, sizes = np.ones(3, bool), np.array([8.0, 20.0, 50.0])
    known = Scaling(1.3, 0.1, sizes, sizes / 2, sizes * 2, used)
    below = Scaling(np.nan, np.nan, np.full(3, 4.0), np.full(3, 4.0), np.full(3, 4.0), ~used)
    for panel in _draw({"lcn": known, "cnn": below}, ("k", "d")):
        texts = [text.get_text() for text in panel.get_legend().get_texts()]
        assert texts == ["lcn", "cnn: no n between the ends of its grid"]


def test_a_bar_without_an_upper_end_leaves_the_figure():
    sizes, low = np.array([8.0, 20.0, 50.0]), np.array([5.0, 10.0, 30.0])
    found = Scaling(1.3, 0.1, sizes, low, np.array([9.0, 30.0, np.inf]), np.ones(3, bool))
    (panel,) = _draw({"lcn": found})
    segments = np.array(panel.containers[0].lines[2][0].get_segments())  # [3, 2, 2]
    np.testing.assert_allclose(segments[:, 0, 1], low)
    np.testing.assert_allclose(segments[:2, 1, 1], [9, 30])
    bottom, top = panel.get_ylim()
    assert bottom < 5 and 50 < top < 100 < segments[2, 1, 1]


def test_bisection_over_networks_finds_a_size_that_passes_below_one_that_fails():
    sizes = [2, 4, 8, 16, 32, 64]
    found = sample_complexity(MODEL, dynamic_signal(), sizes, 0.85, (0, 1), signal=SIGNAL, **HOW)
    means = dict(zip(found.tried.tolist(), found.accuracies.mean(1).tolist(), strict=True))
    assert found.size in means and means[found.size] >= 0.85
    assert all(mean < 0.85 for size, mean in means.items() if size < found.size)
    assert len(means) <= 4
    crossing = passing_sizes(found.tried, found.accuracies.mean(1), 0.85)
    assert found.tried[np.searchsorted(found.tried, crossing)] == found.size
    size = found.tried[0]
    alone = train_many(
        MODEL, dynamic_signal(), signal=SIGNAL[None], num_samples=size, seed=1, **HOW
    )
    assert alone.test_accuracy[0] == found.accuracies[0, 1]
    assert sample_complexity(
        MODEL, dynamic_signal(), sizes[:1], 1.0, (0,), signal=SIGNAL, **HOW
    ).size is None  # fmt: skip


def test_bad_input_is_refused_by_name():
    def find(sizes=(2, 4), threshold=0.9, seeds=(0,), task=None, **arrays):
        task = task or dynamic_signal()
        return sample_complexity(MODEL, task, sizes, threshold, seeds, **HOW, **arrays)

    curves = [(np.arange(1, 4), np.ones((3, 2)))] * 2
    for call, message in [
        (lambda: find(task=separable()), "^task: must take num_samples"),
        (lambda: find((4, 2)), r"^sizes: must ascend, up to num_train = 64, got \[4, 2\]"),
        (lambda: find((2, 128)), "^sizes: must ascend, up to num_train = 64"),
        (lambda: find((2, 5)), "^sizes: must be even"),
        (lambda: find(threshold=1.5, signal=SIGNAL), "^threshold: must be at most 1, got 1.5"),
        (lambda: find(seeds=()), "^seeds: must be different ones, one at least"),
        (lambda: find(seeds=(1, 1)), "^seeds: must be different ones, one at least"),
        (lambda: find(sizes=4), r"^sizes: must be integers \[N\], got 4"),
        (lambda: find(seeds=3), r"^seeds: must be integers \[N\], got 3"),
        (lambda: find(seed=4), "^seed: is not taken, give seeds; got 4"),
        (lambda: find(num_samples=4), "^num_samples: is not taken, give sizes; got 4"),
        (lambda: find(), "^signal: is needed"),
        (lambda: passing_sizes([2, 4], np.ones(2), 0.0), "^threshold: must be a finite number"),
        (lambda: passing_sizes([2, 4], np.ones(3), 0.5), r"^accuracies: .* \[..., 2\], got"),
        (lambda: passing_sizes([2, 4], [0.1, 0.2, 0.9], 0.5), r"^accuracies: .* \[..., 2\], got"),
        (lambda: passing_sizes([2, 4], "abc", 0.5), "^accuracies: must be real .* got 'abc'"),
        (lambda: passing_sizes([2, 4], [0.1, np.nan], 0.5), "^accuracies: has entries .* finite"),
        (lambda: passing_sizes([8, 4], np.ones(2), 0.5), "^sizes: must be above 0 and ascend, got"),
        (lambda: passing_sizes([0, 4], np.ones(2), 0.5), "^sizes: must be above 0 and ascend, got"),
        (lambda: fit_scaling([2, 4], [(np.ones(1), np.ones((1, 2)))], 0.5), "^curves: must be one"),
        (
            lambda: fit_scaling([2], [(np.arange(1, 4), np.ones((2, 2)))], 0.5),
            r"^accuracies: must be real numbers \[3, S\]",
        ),
        (lambda: fit_scaling([2], [np.ones(3)], 0.5), "^curves: must be pairs"),
        (lambda: fit_scaling([2], 7, 0.5), "^curves: must be pairs"),
        (lambda: fit_scaling([0, 1], curves, 0.5), "^scales: must be above 0 and different"),
        (lambda: fit_scaling([-1, 1], curves, 0.5), "^scales: must be above 0 and different"),
        (lambda: fit_scaling([2, 2], curves, 0.5), "^scales: must be above 0 and different"),
        (lambda: fit_scaling([1, 2], curves, 0.5, 0), "^num_draws: must be an integer of at least"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
