"""Directional bias: networks trained on D(v), one for each direction and point of a sweep.

Writes into the run folder: `units/*.npz` (finished networks), `results.csv` (one row per network of
the command), and figures. Networks are told apart by what determines them, so that a folder is
extended by any sweep axis.
"""

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import published, results, sources, trained
from experiments.run.config import (
    LATER,
    Fields,
    check_all,
    check_each,
    check_seeds,
    check_sweeps,
    read_model,
)
from experiments.run.folder import Folder
from experiments.run.plan import Member, Study
from experiments.sources import frequency_axes, make_directions, name_directions, read_spectrum
from experiments.trained import Network, read_recipe
from nad_jax import accuracy_plots, nads, store
from nad_jax.errors import check_image_shape, check_number
from nad_jax.models import Model
from nad_jax.subspaces import rank_correlation
from nad_jax.tables import list_metrics
from nad_jax.tasks import separable
from nad_jax.tasks.separable import TrainMetrics, check_num_samples

# Every combination of these is trained, in this order; the names of the columns they become.
SWEEPS = {
    "architectures": "architecture",
    "poolings": "pooling",
    "widths": "width",
    "optimizers": "optimizer",
    "nums_train": "num_train",
    "seeds": "seed",
    "sigmas": "sigma",
    "epsilons": "epsilon",
}
METRICS = list_metrics(TrainMetrics)
COLUMNS = (
    "architecture", "pooling", "width", "optimizer", "num_train", "source", "index",
    "frequency_row", "frequency_column", "phase", "direction", "sigma", "epsilon", "seed", *METRICS,
)  # fmt: skip
FIGURES = (
    "accuracy_map.png", "steps_map.png", "accuracy_by_index.png", "accuracy_histogram.png",
    "accuracy_by_energy.png",
)  # fmt: skip
FIELDS = Fields(
    "directional_bias",
    how=trained.TRAINED_HOW,
    grows=(
        *SWEEPS, "frequency_range", "frequency_step", "phases", "channel", "indices",
        "num_directions", "direction_seed", "directions",
    ),
    reports=("nads", "singular_values", "singular_values_num_networks", "compare"),
)  # fmt: skip


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    FIELDS.check_known(config)
    check_all(lambda: check_sweeps(config, SWEEPS), lambda: check_image_shape(config.image_shape))
    networks = itertools.product(config.architectures, config.poolings, config.widths)
    recipes = itertools.product(config.optimizers, config.nums_train)
    check_all(
        *(partial(_read_model, config, *axes) for axes in networks),
        lambda: check_seeds("seeds", *config.seeds),
        lambda: check_each(config, "sigmas", check_number, 0.0),
        lambda: check_each(config, "epsilons", check_number, 0.0),
        lambda: sources.validate(config),
        lambda: check_each(config, "nums_train", check_num_samples),
        lambda: check_num_samples("num_test", config.num_test),
        lambda: trained.check_execution(config),
        *(
            partial(
                trained.check_training, config, "optimizers", *axes, config.num_test, "nums_train"
            )
            for axes in recipes
        ),
    )


def make_networks(config: ConfigDict) -> list[Member]:
    """Every network of a config, in the order of the table."""
    directions = make_directions(config)
    identities = name_directions(directions)
    networks = []
    for values in itertools.product(*(config[field] for field in SWEEPS)):
        point = dict(zip(SWEEPS.values(), values, strict=True))
        point |= {n: float(point[n]) for n in ("sigma", "epsilon")}  # 3 and 3.0 are one value
        said = {n: v for n, v in point.items() if n not in LATER or v != LATER[n]}
        program = (point["architecture"], point["pooling"], point["optimizer"], point["num_train"])
        program += (point["width"],) * (point["width"] != 0)
        for row, coordinates, identity in zip(*directions, identities, strict=True):
            name = json.dumps({**said, "direction": identity}, sort_keys=True)
            arrays = {"direction": row, "epsilon": point["epsilon"], "sigma": point["sigma"]}
            network = Network({**point, **coordinates, "direction": identity}, arrays)
            networks.append(Member(name, program, network))
    return networks


def _read_model(config: ConfigDict, architecture: str, pooling: str, width: int = 0) -> Model:
    """The model of one point of a sweep, with a logit for each class."""
    axes = {"architecture": architecture, "pooling": pooling, "width": width}
    return read_model(config, num_logits=2, **axes)


def _make_setup(config: ConfigDict, member: Member) -> trained.Setup:
    architecture, pooling, optimizer, num_train, *width = member.program
    recipe, learning_rate = read_recipe(config, "optimizers", optimizer, num_train, config.num_test)
    model = _read_model(config, architecture, pooling, *width)
    return trained.Setup(model, separable(), recipe, learning_rate)


def _energies(config: ConfigDict, groups: dict[str, list[results.Row]]) -> dict[str, np.ndarray]:
    """vᵀGv of the directions of each group, in the order of `by_direction`; empty where
    `config.nads` gives no G.

    Leading NADs do not: a direction that they leave out may have any energy below theirs.
    """
    spectrum = read_spectrum(config)
    if spectrum is None or len(spectrum.directions) < spectrum.directions.shape[1] - 1:
        return {}
    directions = make_directions(config)
    energies = nads.directional_energy(spectrum, directions.rows)
    named = dict(zip(name_directions(directions), energies, strict=True))
    return {
        label: np.array([named[name] for name in results.by_direction(group)])
        for label, group in groups.items()
    }


def _report(config: ConfigDict, rows: list[dict[str, Any]]) -> None:
    """Prints the results as the reader of a log wants them."""
    groups = results.group_rows(rows)
    energies = _energies(config, groups)
    for label, group in groups.items():
        accuracy = np.array([row["test_accuracy"] for row in group])
        diverged = sum(row["diverged_at"] >= 0 for row in group)
        print(
            f"{label or group[0]['architecture']}: {len(group)} networks"
            + (f", {diverged} diverged" * (diverged > 0))
        )
        print(
            f"  test accuracy: mean {accuracy.mean():.1%}, lowest {accuracy.min():.1%}, highest "
            f"{accuracy.max():.1%}, "
            f"{(accuracy >= 0.9).mean():.1%} of networks at 90% or more"
        )
        steps = np.array([row["steps_to_loss"] for row in group])
        if (steps >= 0).any():
            print(
                f"  loss of {config.loss_threshold:g}: reached by {(steps >= 0).mean():.1%} of "
                "networks, "
                f"median step {np.median(steps[steps >= 0]):.0f}"
            )
        if label in energies and len(energies[label]) > 1:
            correlation = float(rank_correlation(energies[label], results.mean_accuracies(group)))
            print(
                f"  rank correlation of vᵀGv with accuracy, {len(energies[label])} directions: "
                f"{correlation:.2f}"
            )
        if config.compare:
            architecture = group[0]["architecture"]
            table = published.read_table(config.compare, architecture)
            shape = tuple(config.image_shape[:2])
            for line in published.compare(table, group, shape, config.source):
                print(f"  {line}")


def _command(config: ConfigDict) -> dict[str, Any]:
    """The fields that say which networks are in the table of a run."""
    directions = {"nads": config.nads} if config.source == "nads" else {}
    return {**FIELDS.command(config), **directions}


def make_study(config: ConfigDict) -> Study:
    """The networks of a config; all files it names are read."""
    validate(config)
    read_spectrum(config)  # a bad file is an error before anything is computed
    if config.compare:
        for architecture in config.architectures:
            published.read_table(config.compare, architecture)

    def collect(folder: Folder, num_missing: int) -> None:
        rows = trained.list_rows(folder)
        command = _command(config)
        _report(config, results.write_table(folder.workdir, rows, COLUMNS, command, num_missing))

    networks = make_networks(config)
    setup = partial(_make_setup, config)
    return trained.make_study(config, FIELDS.identity(config), networks, METRICS, setup, collect)


def draw(config: ConfigDict, workdir: Path) -> list[Path]:
    """Draws `results.csv` of `workdir`; which figures there are depends on the source of the
    directions.
    """
    validate(config)
    rows, missing = results.read_table(workdir, COLUMNS, _command(config))
    groups, title = results.group_rows(rows), results.describe(rows) + missing
    figures = {}
    if config.source == "dft":
        shape = tuple(config.image_shape[:2])
        axes = frequency_axes(config)
        accuracy = results.map_panels(groups, "test_accuracy", axes, shape)
        figures["accuracy_map.png"] = accuracy_plots.plot_accuracy_maps(
            accuracy, axes, f"Accuracy on D(v): {title}"
        )
        # Averaged over the seeds that reached the loss.
        reached = {
            label: [row for row in group if row["steps_to_loss"] >= 0]
            for label, group in groups.items()
        }
        steps = results.map_panels(reached, "steps_to_loss", axes, shape)
        if any(np.isfinite(panel).any() for panel in steps.values()):
            figures["steps_map.png"] = accuracy_plots.plot_steps_maps(
                steps, axes, f"Steps to a loss of {config.loss_threshold:g}: {title}"
            )
    elif config.source == "nads":
        spectrum = read_spectrum(config)
        figures["accuracy_by_index.png"] = accuracy_plots.plot_accuracy_by_index(
            results.curves(groups),
            None if spectrum is None else spectrum.eigenvalues,
            f"Accuracy on $D(u_i)$: {title}",
        )
    else:
        accuracies = {label: results.mean_accuracies(group) for label, group in groups.items()}
        figures["accuracy_histogram.png"] = accuracy_plots.plot_accuracy_histogram(
            accuracies, f"Accuracy on D(v), {config.source} directions: {title}"
        )
    energies = _energies(config, groups)
    if energies:
        points = {
            label: (energies[label], results.mean_accuracies(group))
            for label, group in groups.items()
        }
        figures["accuracy_by_energy.png"] = accuracy_plots.plot_accuracy_by_energy(
            points, f"Accuracy against vᵀGv: {title}"
        )
    for name in {*FIGURES} - {*figures}:
        store.remove(workdir / name)  # it showed an earlier table
    return results.save_figures(workdir, figures)
