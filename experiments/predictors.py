"""Does geometry predict accuracy? Rank correlations of vᵀGv with accuracy on D(v), over Fourier
vectors v, for every derivative and law of points that G can be made of.

The directions of an architecture are the first ones of a random order of the grid, so that those of
fewer are among those of more. A network is trained on D(v) for each and every seed, and for each
derivative and law of points there is an ensemble of untrained ones. Where G cannot be measured, or
all vᵀGv or all accuracies are equal, there is no correlation: it is nan, and `note` says why. What
is known beforehand is not measured.

Writes into the run folder: `ARCHITECTURE,training/units/*.npz` (metrics of trained networks),
`ARCHITECTURE,DERIVATIVE,POINT/units/*.npz` (partial covariances), `results.csv` (a row for each
architecture and predictor), `directions.csv` (a row for each direction of each of these: vᵀGv, that
of the halves of the ensemble, and the accuracy) and a figure.
"""

import itertools
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import cases, geometry, predictions, results, sources, trained
from experiments.cases import POINTS, Geometry, Part, Trained
from experiments.networks import read_model
from experiments.run import runner
from experiments.run.config import (
    Fields,
    check_aligned,
    check_all,
    check_each,
    check_integers,
    check_seeds,
    check_sweeps,
)
from experiments.run.folder import Folder
from experiments.run.plan import Member, Study
from nad_jax import store, sweep_plots
from nad_jax.ensemble import Execution, make_key
from nad_jax.errors import InputError, check_choice, check_image_shape, check_integer, check_number
from nad_jax.nads import DERIVATIVES
from nad_jax.tables import format_table
from nad_jax.tasks.separable import check_num_samples

FIELDS = Fields(
    "predictors",
    how=geometry.GEOMETRY_HOW,
    grows=(
        "architectures", "num_directions", "num_epochs", "num_networks", "seeds", "derivatives",
        "points", "num_bootstrap",
    ),
)  # fmt: skip
EACH = ("num_directions", "num_epochs", "num_networks")  # a value for each architecture
GRID = (
    "image_shape", "frequency_range", "frequency_step", "phases", "channel", "direction_seed",
)  # fmt: skip


class Case(NamedTuple):
    """One architecture of a command: its trained networks, and what may predict their accuracy,
    each geometry with the reason why it cannot ("" where it may), for which it is not measured.
    """

    trained: Trained
    geometries: list[tuple[Geometry, str]]

    @property
    def parts(self) -> list[Part]:
        return [self.trained, *(one for one, reason in self.geometries if not reason)]


def _read_grid(config: ConfigDict) -> ConfigDict:
    """The fields that say the directions, as `sources` reads them."""
    said = {"source": "dft", "indices": (), "nads": "", "singular_values_num_networks": 2}
    return ConfigDict({**{name: config[name] for name in GRID}, **said})


def order_directions(config: ConfigDict) -> sources.Directions:
    """The directions of the grid in the random order of `direction_seed`."""
    rows, coordinates = sources.make_directions(_read_grid(config))
    order = jax.random.permutation(make_key(config.direction_seed), len(rows)).tolist()
    return sources.Directions(rows[order], [coordinates[k] for k in order])


def make_cases(config: ConfigDict) -> list[Case]:
    """The architectures of a config, in the order of the table."""
    (rows, coordinates), found = order_directions(config), []
    axes = (config[name] for name in ("architectures", *EACH))
    for architecture, count, num_epochs, num_networks in zip(*axes, strict=True):
        chosen = {"architecture": architecture, "num_epochs": num_epochs}
        one = partial(cases.make_config, config, **chosen)
        geometries = []
        for derivative, point in itertools.product(config.derivatives, config.points):
            factor = config.gradient_factor if derivative == "input_gradient" else 1
            sizes = {"num_networks": factor * num_networks, "unit_size": factor * config.unit_size}
            measured = Geometry(one(derivative=derivative, **POINTS[point], **sizes), point)
            geometries.append((measured, measured.find_reason()))
        directions = sources.Directions(rows[:count], coordinates[:count])
        found.append(Case(Trained(one(), directions), geometries))
    return found


def _check_num_networks(config: ConfigDict, field: str, num_networks: int) -> None:
    """Raises `InputError` unless they are whole units, each of two halves."""
    unit_size = check_integer("unit_size", config.unit_size, 2)
    if unit_size % 2:
        raise InputError(
            f"unit_size: must be even (halves of even and odd members), got {unit_size}"
        )
    if check_integer(field, num_networks, unit_size) % unit_size:
        raise InputError(f"{field}: must be multiples of unit_size={unit_size}, got {num_networks}")


def _check_network(config: ConfigDict, architecture: str, num_epochs: int) -> None:
    """Raises `InputError` where an architecture cannot be trained as a config says."""
    one = cases.make_config(config, architecture=architecture, num_epochs=num_epochs)
    how = config.optimizer, config.num_train, config.num_test
    check_all(
        lambda: read_model(one, num_logits=2),
        lambda: trained.check_recipe(one, "optimizer", *how),
    )


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    FIELDS.check_known(config)
    check_all(
        lambda: check_sweeps(config, ("architectures", "seeds", "derivatives", "points")),
        lambda: check_image_shape(config.image_shape),
        lambda: check_aligned(config, "architectures", EACH),
    )
    check_all(lambda: sources.validate(_read_grid(config)))
    size = len(sources.make_directions(_read_grid(config)).rows)
    networks = zip(config.architectures, config.num_epochs, strict=True)
    estimate = {"derivative": DERIVATIVES[0], **POINTS["shared"]}
    estimator = geometry.read_estimator(cases.make_config(config, **estimate))
    execution = Execution(config.mapping, config.chunk_size)
    check_all(
        lambda: check_each(config, "derivatives", check_choice, DERIVATIVES),
        lambda: check_each(config, "points", check_choice, tuple(POINTS)),
        lambda: check_each(config, "num_directions", check_integer, 2, size),
        lambda: check_each(config, "num_networks", partial(_check_num_networks, config)),
        *(partial(_check_network, config, *one) for one in networks),
        lambda: check_seeds("seeds", *config.seeds),
        lambda: check_seeds("geometry_seed", config.geometry_seed),
        lambda: check_number("sigma", config.sigma, 0.0),
        lambda: check_number("epsilon", config.epsilon, 0.0),
        lambda: check_num_samples("num_train", config.num_train),
        lambda: check_num_samples("num_test", config.num_test),
        lambda: check_integers(config, training_unit_size=1, gradient_factor=1, num_bootstrap=2),
        lambda: geometry.check_measured(estimator, execution),
    )


def _collect(config: ConfigDict, found: list[Case], folder: Folder, num_missing: int) -> None:
    """Writes and prints the tables of what is stored."""
    rows, details = [], []
    for case in found:
        accuracies = predictions.read_accuracies(folder, case.trained)
        if len(accuracies) < 2:
            continue
        kept = [k for k, name in enumerate(case.trained.names) if name in accuracies]
        chosen = case.trained.directions.rows[kept].astype(np.float64)
        read = [predictions.read_energies(folder, *one, chosen) for one in case.geometries]
        # An ensemble of which nothing is stored yet has no row.
        energies = [one for one in read if one is not None]
        rows += predictions.make_rows(folder, case.trained, accuracies, energies)
        details += predictions.list_directions(case.trained, accuracies, energies)
    if not rows:
        raise runner.RunAgain(f"{folder.workdir}: no architecture has an accuracy and a geometry")
    table = predictions.DIRECTION_COLUMNS
    store.write_text(folder.workdir / "directions.csv", format_table(details, table))
    how = predictions.COLUMNS, FIELDS.command(config), num_missing
    predictions.report(results.write_table(folder.workdir, rows, *how))


def make_study(config: ConfigDict) -> Study:
    """The trained networks and ensembles of a config."""
    validate(config)
    found, own = make_cases(config), FIELDS.identity(config)
    parts = {part.folder: part for case in found for part in case.parts}
    members = [member for part in parts.values() for member in part.list_members()]

    def part_of(member: Member) -> Part:
        return parts[member.folder]

    def check(member: Member, arrays: dict) -> None:
        if isinstance(part_of(member), Geometry):
            geometry.check_counted(member, arrays)
        else:
            cases.check_trained(member, arrays)

    return Study(
        {"": own, **{name: {**own, **part.identity()} for name, part in parts.items()}},
        members,
        lambda member: part_of(member).shapes(),
        lambda member, chunk_size: part_of(member).make_program(chunk_size),
        lambda member: part_of(member).measure_cost(),
        partial(_collect, config, found),
        check=check,
        weigh=lambda member: part_of(member).weigh(),
        estimate=lambda member, given: part_of(member).estimate(given),
    )


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws `results.csv` of `workdir`."""
    validate(config)
    columns, command = predictions.COLUMNS, FIELDS.command(config)
    rows, missing = results.read_table(workdir, columns, command)
    title = rf"Rank correlation of $v^\top\!Gv$ with accuracy on $D(v)$, σ = {config.sigma:g}"
    figure = sweep_plots.plot_correlations(predictions.list_bars(rows), title + missing)
    return results.save_figures(workdir, {"predictors": figure}, formats)
