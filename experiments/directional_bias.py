"""Directional bias: networks trained on D(v), one for each direction and point of a sweep.

Writes into the run folder: `units/*.npz` (finished networks), `results.csv` (one row per network,
those of the command first), of source dft `map.csv` (one row per cell of the accuracy map), and
figures. Networks are told apart by what determines them, so that a folder is extended by any sweep
axis.
"""

import itertools
import json
from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import published, results, sources, trained
from experiments.networks import read_model
from experiments.run.config import (
    Fields,
    check_all,
    check_each,
    check_seeds,
    check_sweeps,
    take_earlier_names,
    written,
)
from experiments.run.folder import Folder
from experiments.run.plan import Json, Member, Study
from experiments.sources import frequency_axes, make_directions, read_spectrum
from nad_jax import accuracy_plots, nads, store
from nad_jax.errors import check_image_shape, check_number
from nad_jax.figures import FORMATS
from nad_jax.models import Model
from nad_jax.subspaces import rank_correlation
from nad_jax.tables import format_table, list_metrics
from nad_jax.tasks import separable
from nad_jax.tasks.separable import TrainMetrics, check_num_samples

# Every combination of these is trained, in this order; the names of the columns they become.
SWEEPS = {
    "architectures": "architecture",
    "poolings": "pooling",
    "widths": "width",
    "optimizers": "optimizer",
    "num_train": "num_train",
    "seeds": "seed",
    "sigmas": "sigma",
    "epsilons": "epsilon",
}
PROGRAM = ("architecture", "pooling", "optimizer", "num_train", "width")  # what is compiled for
METRICS = list_metrics(TrainMetrics)
COLUMNS = (
    "architecture", "pooling", "width", "optimizer", "num_train", "source", "index",
    "frequency_row", "frequency_column", "phase", "direction", "sigma", "epsilon", "seed", *METRICS,
    *results.PROVENANCE,
)  # fmt: skip
FIGURES = (
    "accuracy_map", "steps_map", "accuracy_by_index", "accuracy_histogram", "accuracy_by_energy",
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
    """Raises one `InputError` with a line per problem; fields under earlier names are renamed."""
    take_earlier_names(config)
    FIELDS.check_known(config)
    check_all(lambda: check_sweeps(config, SWEEPS), lambda: check_image_shape(config.image_shape))
    networks = itertools.product(config.architectures, config.poolings, config.widths)
    recipes = itertools.product(config.optimizers, config.num_train)
    check_all(
        *(partial(_read_model, config, *axes) for axes in networks),
        lambda: check_seeds("seeds", *config.seeds),
        lambda: check_each(config, "sigmas", check_number, 0.0),
        lambda: check_each(config, "epsilons", check_number, 0.0),
        lambda: sources.validate(config),
        lambda: check_each(config, "num_train", check_num_samples),
        lambda: check_num_samples("num_test", config.num_test),
        lambda: trained.check_execution(config),
        *(
            partial(trained.check_recipe, config, "optimizers", *axes, config.num_test)
            for axes in recipes
        ),
    )


def make_networks(config: ConfigDict) -> list[Member]:
    """Every network of a config, in the order of the table."""
    directions, networks = make_directions(config), []
    for values in itertools.product(*(config[field] for field in SWEEPS)):
        point = dict(zip(SWEEPS.values(), values, strict=True))
        point |= {n: float(point[n]) for n in ("sigma", "epsilon")}  # 3 and 3.0 are one value
        said = written(point)
        program = tuple(said[name] for name in PROGRAM if name in said)
        for row, coordinates in zip(*directions, strict=True):
            name = json.dumps({**said, "direction": coordinates["direction"]}, sort_keys=True)
            arrays = {"direction": row, "epsilon": point["epsilon"], "sigma": point["sigma"]}
            trainee = trained.Trainee({**point, **coordinates}, arrays)
            networks.append(Member(name, program, trainee, group=point["seed"]))
    return networks


def _read_model(config: ConfigDict, architecture: str, pooling: str, width: int = 0) -> Model:
    """The model of one point of a sweep, with a logit for each class."""
    how = {"pooling": pooling, "width": width, "num_logits": 2}
    return read_model(config, architecture=architecture, **how)


def make_setup(config: ConfigDict, member: Member) -> trained.Setup:
    architecture, pooling, optimizer, num_train, *width = member.program
    recipe, learning_rate = trained.read_recipe(
        config, "optimizers", optimizer, num_train, config.num_test
    )
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
    names = (coordinates["direction"] for coordinates in directions.coordinates)
    named = dict(zip(names, energies, strict=True))
    return {
        label: np.array([named[name] for name in results.by_direction(group)])
        for label, group in groups.items()
    }


def _report(config: ConfigDict, rows: list[results.Row]) -> None:
    """Prints the results as the reader of a log wants them."""
    groups = results.group_rows(rows)
    energies = _energies(config, groups)
    for label, group in groups.items():
        names = "test_accuracy", "steps_to_loss", "diverged_at"
        accuracy, steps, diverged_at = (np.array([row[n] for row in group]) for n in names)
        architecture = group[0]["architecture"]
        diverged = int((diverged_at >= 0).sum())
        print(
            f"{label or architecture}: {len(group)} networks"
            + f", {diverged} diverged" * (diverged > 0)
        )
        print(
            f"  test accuracy: mean {accuracy.mean():.1%}, lowest {accuracy.min():.1%}, highest "
            f"{accuracy.max():.1%}, {(accuracy >= 0.9).mean():.1%} of networks at 90% or more"
        )
        reached = steps >= 0
        if reached.any():
            print(
                f"  training loss of {config.loss_threshold:g}: reached by {reached.mean():.1%} of networks, "
                f"median step {np.median(steps[reached]):.0f}"
            )
        if label in energies and len(energies[label]) > 1:
            correlation = float(rank_correlation(energies[label], results.mean_accuracies(group)))
            print(
                f"  rank correlation of vᵀGv with accuracy, {len(energies[label])} directions: "
                f"{correlation:.2f}"
            )
        if config.compare:
            table = published.read_table(config.compare, architecture)
            shape = tuple(config.image_shape[:2])
            for line in published.compare(table, group, shape, config.source):
                print(f"  {line}")


def _command(config: ConfigDict) -> Json:
    """The fields that say which networks are in the table of a run."""
    directions = {"nads": config.nads} if config.source == "nads" else {}
    return {**FIELDS.command(config), **directions}


def _write_map(config: ConfigDict, rows: list[results.Row], workdir: Path) -> None:
    """Writes `map.csv`, a row for every cell of the accuracy map: both f and −f."""
    cells = results.map_rows(rows, frequency_axes(config), tuple(config.image_shape[:2]))
    store.write_text(workdir / "map.csv", format_table(cells, results.MAP_COLUMNS))


def make_study(config: ConfigDict) -> Study:
    """The networks of a config; all files it names are read."""
    validate(config)
    read_spectrum(config)  # a bad file is an error before anything is computed
    if config.compare:
        for architecture in config.architectures:
            published.read_table(config.compare, architecture)

    def collect(folder: Folder, num_missing: int) -> None:
        rows = trained.list_rows(folder, COLUMNS)
        command = _command(config)
        rows = results.write_table(folder.workdir, rows, COLUMNS, command, num_missing)
        if config.source == "dft":
            _write_map(config, rows, folder.workdir)
        _report(config, rows)

    networks = make_networks(config)
    setup = partial(make_setup, config)
    return trained.make_study(config, FIELDS.identity(config), networks, METRICS, setup, collect)


def _make_grid(groups: dict[str, results.Rows], maps: accuracy_plots.Maps) -> accuracy_plots.Maps:
    """The maps of groups, where there are several phases by (what else varies, phase)."""
    phases = [group[0]["phase"] for group in groups.values()]
    if len(set(phases)) == 1:
        return maps
    names = zip(groups, phases, strict=True)
    return {(name.removesuffix(p).removesuffix(", "), p): maps[name] for name, p in names}


def median_steps(
    groups: dict[str, results.Rows], axes: accuracy_plots.Frequencies, shape: tuple[int, int]
) -> dict[str, np.ndarray]:
    """For each group the median over seeds of the steps to the loss, by frequency: infinite where
    it is never reached, which is longer than any; nan where nothing is trained.
    """
    never = {"steps_to_loss": np.inf}
    reached = {
        label: [row if row["steps_to_loss"] >= 0 else {**row, **never} for row in group]
        for label, group in groups.items()
    }
    return results.map_panels(reached, "steps_to_loss", axes, shape, np.median)


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws `results.csv` of `workdir`; which figures there are depends on the source of the
    directions.
    """
    validate(config)
    rows, missing = results.read_table(workdir, COLUMNS, _command(config))
    groups, title = results.group_rows(rows), results.describe(rows) + missing
    accuracies = {label: results.mean_accuracies(group) for label, group in groups.items()}
    figures = {}
    if config.source == "dft":
        axes, shape = frequency_axes(config), tuple(config.image_shape[:2])
        accuracy = results.map_panels(groups, "test_accuracy", axes, shape)
        figures["accuracy_map"] = accuracy_plots.plot_accuracy_maps(
            _make_grid(groups, accuracy), axes, f"Accuracy on D(v): {title}"
        )
        steps = median_steps(groups, axes, shape)
        if np.isfinite(list(steps.values())).any():
            figures["steps_map"] = accuracy_plots.plot_steps_maps(
                _make_grid(groups, steps),
                axes,
                f"Steps to a training loss of {config.loss_threshold:g}: {title}",
            )
    elif config.source == "nads":
        spectrum = read_spectrum(config)
        eigenvalues = None if spectrum is None else spectrum.eigenvalues
        figures["accuracy_by_index"] = accuracy_plots.plot_accuracy_by_index(
            results.curves(groups), eigenvalues, f"Accuracy on $D(u_i)$: {title}"
        )
    else:
        figures["accuracy_histogram"] = accuracy_plots.plot_accuracy_histogram(
            accuracies, f"Accuracy on D(v), {config.source} directions: {title}"
        )
    if energies := _energies(config, groups):
        points = {label: (energies[label], accuracies[label]) for label in groups}
        figures["accuracy_by_energy"] = accuracy_plots.plot_accuracy_by_energy(
            points, f"Accuracy on D(v) against the energy along v: {title}"
        )
    for name in {*FIGURES} - {*figures}:
        for form in FORMATS:
            store.remove(workdir / f"{name}.{form}")  # it showed an earlier table
    return results.save_figures(workdir, figures, formats)
