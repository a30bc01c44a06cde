"""Two circles in planes of the geometry: does a network learn them where both directions of the
plane are leading ones of E[g gᵀ], and where one of them is not?

First the geometry of every architecture is measured, from networks at their initialization; its
eigenvectors u_i span the planes. Then networks are trained on the circles in each plane, with each
seed; those of a seed start alike, and share the noise, in all planes.

Writes into the run folder: `ARCHITECTURE,input_gradient,fresh/units/*.npz` (partial covariances),
`geometry/units/*.npz` (the eigenvectors that networks are trained along), `units/*.npz` (trained
networks), `results.csv` (a row for each network and epoch) and a figure.
"""

import functools
import itertools
import json
import math
import operator
from functools import partial
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments import cases, geometry, results, trained
from experiments.networks import read_model
from experiments.run import runner
from experiments.run.config import (
    Fields,
    check_all,
    check_each,
    check_integers,
    check_seeds,
    check_sweeps,
)
from experiments.run.costs import Setup
from experiments.run.folder import Folder
from experiments.run.plan import Arrays, Cost, Member, Shapes, Study, Unit, Weight
from experiments.run.targets import Estimate, Target
from nad_jax import accuracy_plots, observers, store
from nad_jax.architectures import OPTIONS
from nad_jax.ensemble import Execution
from nad_jax.errors import InputError, check_choice, check_image_shape, check_integer, check_number
from nad_jax.fitting import Observer
from nad_jax.models import Model
from nad_jax.reading import overlap_halves
from nad_jax.tables import list_metrics
from nad_jax.task import SPLITS, FitMetrics
from nad_jax.tasks.circles import affine_accuracy, check_radii, circles
from nad_jax.tasks.separable import check_num_samples

FIELDS = Fields(
    "circles",
    how=trained.TRAINED_HOW,
    grows=("architectures", "seeds", "second_indices"),
)
METRICS = list_metrics(FitMetrics)
COLUMNS = (
    "architecture", "first_index", "second_index", "seed", "epoch", "train_accuracy",
    "test_accuracy", "diverged_at", *results.PROVENANCE,
)  # fmt: skip
GEOMETRY = "geometry"  # the folder of what the ensembles have found
SIZES = (1, 2, 4)  # of leading subspaces whose agreement between the halves is reported


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    FIELDS.check_known(config)
    check_all(
        lambda: check_sweeps(config, ("architectures", "seeds", "second_indices")),
        lambda: check_image_shape(config.image_shape),
    )
    size = math.prod(config.image_shape)
    samples = config.num_train, config.num_test
    check_all(
        *(partial(read_network, config, name) for name in config.architectures),
        lambda: check_seeds("seeds", *config.seeds),
        lambda: check_seeds("geometry_seed", config.geometry_seed),
        lambda: check_integer("first_index", config.first_index, -size, size - 1),
        lambda: check_each(config, "second_indices", check_integer, -size, size - 1),
        lambda: check_radii(config.radii),
        lambda: check_number("sigma", config.sigma, 0.0),
        lambda: check_num_samples("num_train", config.num_train),
        lambda: check_num_samples("num_test", config.num_test),
        lambda: check_integers(config, num_networks=2, geometry_unit_size=2),
        lambda: check_choice("readout", config.readout, ("marginalized", "sampled")),
        lambda: trained.check_execution(config),
        lambda: trained.check_recipe(config, "optimizer", config.optimizer, *samples),
    )
    if config.num_networks % 2 or config.geometry_unit_size % 2:
        raise InputError(
            "num_networks, geometry_unit_size: must be even (halves of even and odd members), got "
            f"{config.num_networks} and {config.geometry_unit_size}"
        )
    planes = {frozenset(plane) for plane in list_planes(config)}
    if len(planes) < len(config.second_indices) or any(len(plane) == 1 for plane in planes):
        raise InputError(
            "second_indices: must be different directions, and others than first_index = "
            f"{config.first_index}, got {config.second_indices}"
        )
    for ensemble in list_geometries(config).values():
        geometry.check_measured(
            geometry.read_estimator(ensemble.config), Execution(config.mapping, config.chunk_size)
        )


def read_network(config: ConfigDict, architecture: str) -> Model:
    """A network of a config, of two logits."""
    return read_model(config, architecture=architecture, num_logits=2)


def list_planes(config: ConfigDict) -> list[tuple[int, int]]:
    """The indices of the two directions of each plane, from 0; negative ones count from the end."""
    size = math.prod(config.image_shape)
    return [(config.first_index % size, second % size) for second in config.second_indices]


def list_geometries(config: ConfigDict) -> dict[str, cases.Geometry]:
    """The ensemble of each architecture: exact gradients, at a point of its own of each network."""
    chosen = {"derivative": "input_gradient", "point": "fresh", "num_readouts": 1}
    chosen |= {"step": 1.0, "block_size": 1, "unit_size": config.geometry_unit_size}
    # The same networks as those that are trained.
    chosen |= {name: config[name] for name in ("pooling", "width", *OPTIONS)}
    return {
        name: cases.Geometry(cases.make_config(config, architecture=name, **chosen), "fresh")
        for name in config.architectures
    }


def _found(architecture: str) -> Member:
    """The file of the eigenvectors of an architecture."""
    return Member(architecture, GEOMETRY, None, num_networks=0, folder=GEOMETRY)


def _found_shapes(config: ConfigDict) -> Shapes:
    size = math.prod(config.image_shape)
    return {
        "directions": (size, size),
        "eigenvalues": (size,),
        "split_half_overlap": (len(SIZES),),
        "num_networks": (),
    }


def _identities(config: ConfigDict) -> dict:
    own, ensembles = FIELDS.identity(config), list_geometries(config).values()
    return {
        "": own,
        GEOMETRY: own,
        **{one.folder: {**own, **one.identity()} for one in ensembles},
    }


def make_study(config: ConfigDict) -> Study:
    """The ensembles of a config, which its trained networks follow."""
    validate(config)
    return _make_ensembles(config)


def _under_way(config: ConfigDict, folder: Folder) -> Study:
    """The study that is under way in a folder: that of the ensembles until all of them are read."""
    found = {}
    for name in config.architectures:
        if (arrays := folder.read(_found(name))) is None:
            return _make_ensembles(config)
        found[name] = arrays
    return _make_training(config, found)


def _make_ensembles(config: ConfigDict) -> Study:
    """The untrained networks of every architecture, whose geometry says the planes."""
    parts = {one.folder: one for one in list_geometries(config).values()}
    members = [member for part in parts.values() for member in part.list_members()]
    size = math.prod(config.image_shape)
    rows = np.eye(size, dtype=np.float32)
    likely = {name: {"directions": rows} for name in config.architectures}
    training = _make_training(config, likely)  # by which its cost is known beforehand

    def part_of(member: Member) -> cases.Geometry | None:
        return parts.get(member.folder)

    def shapes(member: Member) -> Shapes:
        if member.folder == GEOMETRY:
            return _found_shapes(config)
        part = part_of(member)
        return part.shapes() if part else training.shapes(member)

    def measure_cost(member: Member) -> Cost:
        part = part_of(member)
        return part.measure_cost() if part else training.measure_cost(member)

    def weigh(member: Member) -> Weight:
        part = part_of(member)
        return part.weigh() if part else training.weigh(member)

    def estimate(member: Member, given: Target) -> Estimate:
        part = part_of(member)
        return part.estimate(given) if part else training.estimate(member, given)

    def then(folder: Folder) -> Study:
        if folder.missing():
            raise runner.RunAgain(
                f"{folder.workdir}: training begins when all geometries are measured, and networks "
                "of them are missing; run this command again when their shards have computed them"
            )
        for place in ("", GEOMETRY):
            store.make_folder(folder.workdir / place / "units")
        for name, part in list_geometries(config).items():
            if folder.read(_found(name)) is None:  # networks that are stored follow the planes
                folder.write(Unit(name, [_found(name)]), _find(folder, part), {})
        return _under_way(config, folder)

    def collect(folder: Folder, num_missing: int) -> None:
        del num_missing
        raise runner.RunAgain(f"{folder.workdir}: not all geometries are measured yet")

    return Study(
        _identities(config),
        members,
        shapes,
        lambda member, chunk_size: part_of(member).make_program(chunk_size),
        measure_cost,
        collect,
        check=geometry.check_counted,
        resume=partial(_under_way, config),
        then=then,
        round=(0, 2),
        series=_name_series(config),
        following=tuple(training.members),
        weigh=weigh,
        estimate=estimate,
    )


def _name_series(config: ConfigDict) -> str:
    return json.dumps(FIELDS.command(config), sort_keys=True)


def _find(folder: Folder, part: cases.Geometry) -> Arrays:
    """The eigenvectors of an ensemble, all of which is stored, and how well they are determined."""
    ensemble = part.ensemble
    looks, _ = geometry.merge(folder, part.list_members(), ensemble)
    found = geometry.find(ensemble, part.config.seed, looks[-1])
    return {
        "directions": np.asarray(found.whole.directions, np.float32),
        "eigenvalues": np.asarray(found.whole.eigenvalues, np.float32),
        "split_half_overlap": overlap_halves(found.even, found.odd, SIZES).astype(np.float32),
        "num_networks": np.int32(looks[-1].networks),
    }


def observe_accuracies(setup: Setup) -> dict[str, Observer]:
    """The accuracy on either split, by its name, of a network in training."""
    model, task, recipe, _ = setup
    return {split: observers.accuracy(model, task, recipe, split) for split in SPLITS}


def make_networks(config: ConfigDict, found: dict[str, Arrays]) -> list[Member]:
    """Every trained network of a config, in the order of the table."""
    networks = []
    axes = config.architectures, list_planes(config), config.seeds
    scales = {"radius_0": config.radii[0], "radius_1": config.radii[1], "sigma": config.sigma}
    for architecture, (first, second), seed in itertools.product(*axes):
        place = {"architecture": architecture, "first_index": first, "second_index": second}
        place["seed"] = seed
        rows = found[architecture]["directions"]
        arrays = {"first": rows[first], "second": rows[second]}
        arrays |= {name: np.float32(value) for name, value in scales.items()}
        name = json.dumps(place, sort_keys=True)
        what = trained.Trainee(place, arrays)
        networks.append(Member(name, (architecture,), what, group=seed))
    return networks


def _make_training(config: ConfigDict, found: dict[str, Arrays]) -> Study:
    """The networks that are trained in the planes of what the ensembles have found."""
    samples = config.num_train, config.num_test

    @functools.cache
    def setup_of(architecture: str) -> Setup:
        recipe = trained.read_recipe(config, "optimizer", config.optimizer, *samples)
        return Setup(read_network(config, architecture), circles(), *recipe)

    study = trained.make_study(
        config,
        FIELDS.identity(config),
        make_networks(config, found),
        METRICS,
        lambda member: setup_of(*member.program),
        partial(_collect, config, found),
        observe_accuracies,
    )

    def shapes(member: Member) -> Shapes:
        return _found_shapes(config) if member.folder == GEOMETRY else study.shapes(member)

    return study._replace(
        identities=_identities(config),
        shapes=shapes,
        resume=partial(_under_way, config),
        round=(1, 2),
        series=_name_series(config),
    )


def _collect(
    config: ConfigDict, found: dict[str, Arrays], folder: Folder, num_missing: int
) -> None:
    """Writes and prints the table of what is stored."""
    rows = []
    for row in trained.list_rows(folder, (*COLUMNS, *SPLITS)):
        curves = {f"{split}_accuracy": row.pop(split) for split in SPLITS}
        for epoch in range(config.num_epochs + 1):
            now = {name: float(values[epoch]) for name, values in curves.items()}
            rows.append({**row, "epoch": epoch, **now})
    if not any(row["command"] == "this" for row in rows):
        raise runner.RunAgain(f"{folder.workdir}: no trained network is stored yet")
    rows = [{name: row[name] for name in COLUMNS} for row in rows]
    command = FIELDS.command(config)
    rows = results.write_table(folder.workdir, rows, COLUMNS, command, num_missing)
    for architecture, group in _by(rows, "architecture").items():
        _report(config, architecture, found[architecture], group)
    print(f"a hyperplane has {affine_accuracy(tuple(config.radii)):.1%} at most")


def _by(rows: results.Rows, *names: str) -> dict[object, results.Rows]:
    return results.group(rows, operator.itemgetter(*names))


def _report(config: ConfigDict, architecture: str, found: Arrays, rows: results.Rows) -> None:
    """Prints how well the geometry of an architecture is determined, and the last accuracies."""
    overlaps = zip(SIZES, found["split_half_overlap"], strict=True)
    agreement = ", ".join(f"{overlap:.2f} of {size}" for size, overlap in overlaps)
    print(f"{architecture}: {int(found['num_networks'])} networks; halves agree by {agreement}")
    for (first, second), group in _by(rows, "first_index", "second_index").items():
        last = [row for row in group if row["epoch"] == config.num_epochs]
        ratio = found["eigenvalues"][second] / found["eigenvalues"][0]
        told = [f"  u_{first}, u_{second} (eigenvalue {ratio:.2g} of the largest):"]
        for split in SPLITS:
            accuracies = [row[f"{split}_accuracy"] for row in last]
            told.append(f"{split} {results.say_mean(accuracies, '.1%')}")
        print(" ".join([*told, *results.count_diverged(last)]))


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws `results.csv` of `workdir`."""
    validate(config)
    rows, missing = results.read_table(workdir, COLUMNS, FIELDS.command(config))
    panels = {}
    for architecture, mine in _by(rows, "architecture").items():
        lines = panels.setdefault(architecture, {})
        for (first, second), group in _by(mine, "first_index", "second_index").items():
            for split in SPLITS:
                values = results.values_by(group, "epoch", f"{split}_accuracy")
                lines[f"$u_{{{first}}}, u_{{{second}}}$", split] = results.mean_curve(values)
    zero, one = config.radii
    title = f"Circles of radii {zero:g} and {one:g}, σ = {config.sigma:g}, "
    title += results.count_seeds(rows) + missing
    best = affine_accuracy((zero, one))
    figure = accuracy_plots.plot_accuracy_by_epoch(panels, best, title)
    return results.save_figures(workdir, {"accuracy_by_epoch": figure}, formats)
