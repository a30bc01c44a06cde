"""Sample complexity: the fewest samples of a moving signal with which the mean test accuracy of
patch networks over seeds passes a threshold, over the number of patches and their length.

Networks are trained with every number of samples n of a grid and every seed. Where the mean passes,
log n is interpolated between two of the grid. All take the same number of steps, whatever n is.

Writes into the run folder: `units/*.npz` (finished networks), `results.csv` (one row per network,
those of the command first) and a figure.
"""

import functools
import itertools
import json
import math
import operator
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import results, trained
from experiments.run.config import Fields, check_all, check_each, check_seeds, check_sweeps
from experiments.run.costs import Setup
from experiments.run.folder import Folder
from experiments.run.plan import Member, Study
from nad_jax import complexity_plots
from nad_jax.complexity import Scaling, check_threshold, fit_scaling
from nad_jax.errors import InputError, check_choice, check_integer, check_number
from nad_jax.linearization import with_two_logits
from nad_jax.models import Model
from nad_jax.patch_networks import PATCH_ACTIVATIONS, PATCH_NETWORKS, create_patch_network
from nad_jax.tables import list_metrics
from nad_jax.task import FitMetrics
from nad_jax.tasks.dynamic_signal import (
    dynamic_signal,
    signal_accuracy_bayes,
    signal_accuracy_linear,
)
from nad_jax.tasks.separable import check_num_samples

FIELDS = Fields(
    "sample_complexity",
    how=trained.TRAINED_HOW,
    grows=(
        "architectures", "activations", "num_patches", "patch_sizes", "num_samples", "seeds",
    ),
    reports=("threshold",),
)  # fmt: skip
METRICS = list_metrics(FitMetrics)
SERIES = ("architecture", "activation")
AXES = ("num_patches", "patch_size")
COLUMNS = (*SERIES, *AXES, "num_samples", "seed", *METRICS, *results.PROVENANCE)
SYMBOLS = {"num_patches": "k", "patch_size": "d"}


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    FIELDS.check_known(config)
    check_sweeps(config, FIELDS.grows)
    samples = config.num_train, config.num_test
    check_all(
        lambda: check_each(config, "architectures", check_choice, PATCH_NETWORKS),
        lambda: check_each(config, "activations", check_choice, PATCH_ACTIVATIONS),
        lambda: check_each(config, "num_patches", check_integer, 1),
        lambda: check_each(config, "patch_sizes", check_integer, 1),
        lambda: check_seeds("seeds", *config.seeds),
        lambda: check_number("sigma", config.sigma, 0.0),
        lambda: check_number("start_threshold", config.start_threshold, -math.inf),
        lambda: check_each(config, "num_samples", check_num_samples),
        lambda: check_num_samples("num_train", config.num_train),
        lambda: check_num_samples("num_test", config.num_test),
        lambda: check_threshold(config.threshold),
        lambda: trained.check_execution(config),
        lambda: trained.check_recipe(config, "optimizer", config.optimizer, *samples),
    )
    if max(config.num_samples) > config.num_train:
        raise InputError(
            f"num_samples: must be at most num_train = {config.num_train}, got "
            f"{max(config.num_samples)}"
        )
    read_network(config, config.architectures[0], config.activations[0], 2, 2)


def read_network(
    config: ConfigDict, architecture: str, activation: str, num_patches: int, patch_size: int
) -> Model:
    """A network of a config, of two logits."""
    threshold = 0.0 if activation == "linear" else config.start_threshold
    how = config.width, activation, config.scale, threshold
    return with_two_logits(create_patch_network(architecture, num_patches, patch_size, *how))


def read_sigma(config: ConfigDict, num_patches: int) -> float:
    """σ of a number of patches k: that of the config, or 1/√k where it is 0."""
    return config.sigma or num_patches**-0.5


def make_networks(config: ConfigDict) -> list[Member]:
    """Every network of a config, in the order of the table."""
    axes = config.architectures, config.activations, config.num_patches, config.patch_sizes
    networks = []
    for *program, seed, count in itertools.product(*axes, config.seeds, config.num_samples):
        place = dict(zip((*SERIES, *AXES), program, strict=True))
        place |= {"num_samples": count, "seed": seed}
        arrays = {
            # Any direction would do: the law of noise and weights is the same along all.
            "signal": np.full(place["patch_size"], place["patch_size"] ** -0.5, np.float32),
            "sigma": np.float32(read_sigma(config, place["num_patches"])),
            "num_samples": np.float32(count),
        }
        name = json.dumps(place, sort_keys=True)
        networks.append(Member(name, tuple(program), trained.Trainee(place, arrays), group=seed))
    return networks


def make_study(config: ConfigDict) -> Study:
    """The networks of a config."""
    validate(config)
    samples = config.num_train, config.num_test

    @functools.cache
    def setup_of(*program: Any) -> Setup:
        recipe = trained.read_recipe(config, "optimizer", config.optimizer, *samples)
        return Setup(read_network(config, *program), dynamic_signal(), *recipe)

    return trained.make_study(
        config,
        FIELDS.identity(config),
        make_networks(config),
        METRICS,
        lambda member: setup_of(*member.program),
        partial(_collect, config),
    )


def read_curves(rows: results.Rows) -> tuple[np.ndarray, dict[int, list[float]]]:
    """The numbers of samples n [T], ascending, and the test accuracies [T] of each seed that has
    been trained with all of them.
    """
    sizes, found = sorted({row["num_samples"] for row in rows}), {}
    for seed, group in results.group(rows, operator.itemgetter("seed")).items():
        if len(group) == len(sizes):
            one = {row["num_samples"]: row["test_accuracy"] for row in group}
            found[seed] = [one[size] for size in sizes]
    return np.array(sizes), found


def fit(
    rows: results.Rows, axis: str, threshold: float
) -> Iterator[tuple[str, np.ndarray, Scaling]]:
    """How n grows along an axis: for each architecture, activation and value of the other axis, in
    words (the activation where there are several), the scales [P] and the fit.

    Points at which no seed is complete are left out, and seeds that are not complete at all others;
    nothing is given where no seed is left.
    """
    (other,) = set(AXES) - {axis}
    several = len({row["activation"] for row in rows}) > 1
    for series, group in results.group(rows, operator.itemgetter(*SERIES, other)).items():
        points = results.group(group, operator.itemgetter(axis))
        curves = {scale: read_curves(points[scale]) for scale in sorted(points)}
        curves = {scale: one for scale, one in curves.items() if one[1]}
        seeds = [set(found) for _, found in curves.values()]
        if common := sorted(set.intersection(*seeds)) if seeds else []:
            chosen = [
                (sizes, np.transpose([found[seed] for seed in common]))
                for sizes, found in curves.values()
            ]
            architecture, activation, at = series
            label = f"{architecture}{' ' + activation if several else ''}, {SYMBOLS[other]} = {at}"
            yield label, np.array([*curves]), fit_scaling([*curves], chosen, threshold)


def _collect(config: ConfigDict, folder: Folder, num_missing: int) -> None:
    """Writes the table of what is stored, and prints what is read off it."""
    rows = trained.list_rows(folder, COLUMNS)
    command = FIELDS.command(config)
    rows = results.write_table(folder.workdir, rows, COLUMNS, command, num_missing)
    for text in results.count_diverged(rows):
        print(text)
    for num_patches in sorted({row["num_patches"] for row in rows}):
        law = num_patches, read_sigma(config, num_patches)
        linear, (best, _) = signal_accuracy_linear(*law), signal_accuracy_bayes(*law, 100_000)
        print(f"k = {num_patches}: the best linear classifier {linear:.1%}, Bayes {best:.1%}")
    print(f"samples for an accuracy of {config.threshold:.1%}, {results.count_seeds(rows)}:")
    for axis in AXES:
        for label, scales, found in fit(rows, axis, config.threshold):
            if axis == AXES[0] or len(scales) > 1:
                print(f"  {label}: {_say_sizes(SYMBOLS[axis], scales, found)}")
            if len(scales) > 1:
                print(f"    {_say_slope(SYMBOLS[axis], found)}")


def _say_sizes(symbol: str, scales: np.ndarray, found: Scaling) -> str:
    """The numbers of samples, with their intervals."""
    said = []
    for number, scale in enumerate(scales):
        size, low, high = (one[number] for one in (found.sizes, found.low, found.high))
        text = f"{size:.0f}" if np.isfinite(size) else "more than the largest n"
        text += " or fewer" * bool(np.isfinite(size) and not found.used[number])
        text += f" ({low:.0f} … {high:.0f})" * bool(np.isfinite(low))
        said.append(f"{symbol} = {scale}: {text}")
    return ", ".join(said)


def _say_slope(symbol: str, found: Scaling) -> str:
    if not np.isfinite(found.slope):
        return "no slope: fewer than two points between the smallest and the largest n"
    error = f" ± {found.slope_error:.2f}" * bool(np.isfinite(found.slope_error))
    return f"n ∝ {symbol}^{found.slope:.2f}{error}, of {found.used.sum()} points"


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws `results.csv` of `workdir`."""
    validate(config)
    rows, missing = results.read_table(workdir, COLUMNS, FIELDS.command(config))
    panels: dict[str, dict[str, complexity_plots.Points]] = {}
    for axis, name in (("num_patches", "number of patches $k$"), ("patch_size", "length $d$")):
        for label, scales, found in fit(rows, axis, config.threshold):
            if len(scales) > 1:
                slope = f", slope {found.slope:.2f}" * bool(np.isfinite(found.slope))
                slope += f" ± {found.slope_error:.2f}" * bool(np.isfinite(found.slope_error))
                panels.setdefault(name, {})[label + slope] = scales, found
    sigma = f"{config.sigma:g}" if config.sigma else "1/√k"
    title = f"Samples for an accuracy of {config.threshold:.0%}, σ = {sigma}, "
    title += results.count_seeds(rows)
    if not panels:  # of one network size
        return []
    figure = complexity_plots.plot_sample_complexity(panels, title + missing)
    return results.save_figures(workdir, {"sample_complexity": figure}, formats)
