"""NADs of an architecture: an ensemble in stored units, the record, its comparison with stored
NADs, figures.

Writes into the run folder: `units/*.npz` (partial covariances), `nads.npz` (see `nad_jax.NADs`),
`nads.csv` (a row per direction), and with `config.compare` or `config.compare_singular_values` a
`comparison.npz`. With axes in `config.sweep` each point has such a folder of its own in the run
folder, beside `results.csv`, one row per point with the metrics of its spectrum, those of the
command first, and the figures `spectra` and `metrics`.
"""

import itertools
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import geometry, results, spectra
from experiments.run import runner
from experiments.run.config import LATER, Fields, check_all, check_integers, check_sweep
from experiments.run.costs import Ensemble
from experiments.run.folder import Folder
from experiments.run.origin import parse_object
from experiments.run.plan import Cost, Json, Member, Study
from experiments.run.progress import read_seconds
from experiments.run.targets import estimate_ensemble
from nad_jax import nads, records, store, subspaces
from nad_jax.blocks import average_blocks, read_blocks
from nad_jax.directions import check_orthonormal
from nad_jax.errors import InputError
from nad_jax.nads import NADs, numerical_rank
from nad_jax.reading import finish, keep_batches
from nad_jax.symmetries import Eigenvectors
from nad_jax.tables import Row, format_table

FIELDS = Fields(
    "compute_nads",
    how=geometry.GEOMETRY_HOW,
    grows=("sweep", "num_networks"),
    reports=(
        "symmetrized", "compare", "compare_singular_values", "compare_num_networks",
        "figure_directions",
    ),
)  # fmt: skip
INDICES = (0, 1, 2, 3, 10, 100, 500)  # at which singular values are compared


class Point(NamedTuple):
    """One ensemble of a command.

    name: of its folder, "" without a sweep.
    config: its fields. coordinates: those that are swept.
    """

    name: str
    config: ConfigDict
    coordinates: Json

    @property
    def ensemble(self) -> Ensemble:
        return geometry.read_ensemble(self.config)


def make_points(config: ConfigDict) -> list[Point]:
    """Every combination of the axes of `config.sweep` that are not empty; without any, the config
    itself.
    """
    axes = {name: tuple(values) for name, values in config.sweep.items() if len(values)}
    points = []
    for values in itertools.product(*axes.values()):
        point, coordinates = config.copy_and_resolve_references(), {}
        for name, value in zip(axes, values, strict=True):
            try:
                point[name] = value
            except TypeError as error:
                raise InputError(
                    f"sweep.{name}: must hold values of the type of {name}, got {value!r}"
                ) from error
            coordinates[name] = point[name]
        name = ",".join(f"{name}={value}" for name, value in coordinates.items())
        points.append(Point(name, point, coordinates))
    return points


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    FIELDS.check_known(config)
    if not isinstance(config.sweep, ConfigDict):
        raise InputError(f"sweep: must be axes, each a tuple of values, got {config.sweep!r}")
    FIELDS.check_known(config.sweep, "sweep")
    axes = {f"sweep.{name}": values for name, values in config.sweep.items() if values != ()}
    check_all(*(partial(check_sweep, *axis) for axis in axes.items()))
    points = make_points(config)
    check_all(*(partial(geometry.validate, point.config) for point in points))
    check_integers(config, compare_num_networks=2)
    # What fits the model: before there is a folder that could be of another configuration.
    check_all(*(lambda point=point: point.ensemble.resolve() for point in points))


def _read_comparison(
    config: ConfigDict, dimension: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    directions = values = None
    if config.compare:
        directions = records.read_directions(config.compare, dimension)
        try:
            check_orthonormal(directions)
        except InputError as error:
            # Copies of one direction would overlap with its subspace as a whole basis does.
            raise InputError(f"{config.compare}: {error}") from error
    if config.compare_singular_values:
        values = records.read_singular_values(config.compare_singular_values)
        if len(values) > dimension:
            raise InputError(
                f"{config.compare_singular_values}: {len(values)} singular values, expected at "
                f"most D = {dimension}"
            )
    return directions, values


def _check_not_lowered(folder: Folder, point: Point) -> None:
    num_networks = point.config.num_networks
    units = geometry.parse_units(folder.names(point.name)).values()
    stored = max((stop for _, stop in units), default=0)
    if stored > num_networks:
        raise InputError(
            f"num_networks: can be raised, not lowered; {folder.workdir / point.name} already "
            f"holds {stored}, got {num_networks}"
        )


def _check_not_extended(folder: Folder, point: Point) -> None:
    """Raises `InputError` where a command of more networks has come to its end meanwhile: its
    record would be lost.
    """
    try:
        record = records.load_nads(folder.workdir / point.name / "nads.npz")
    except InputError:  # none, or one that is damaged and written again
        return
    if record.num_networks + record.config.get("diverged", 0) > point.config.num_networks:
        _check_not_lowered(folder, point)


def _remove_cut_units(folder: Folder, point: Point) -> None:
    """Removes last units cut short by an earlier, smaller num_networks: their networks now lie in
    full ones.

    The units of the point are stored. One that goes beyond them is of another command.
    """
    units = geometry.split_networks(point.config)
    for name, (first, stop) in geometry.parse_units(folder.names(point.name)).items():
        within = any(begin <= first and stop <= end for begin, end in units.values())
        if name not in units and within:
            folder.remove(name, point.name)


def _ensemble(result: NADs) -> Json:
    """What tells a record from others of the same folder; those from before symmetries do not say
    `symmetrized`.
    """
    return {"num_networks": result.num_networks, "symmetrized": result.config.get("symmetrized")}


def _compare(
    result: NADs, config: ConfigDict, directions: np.ndarray | None, values: np.ndarray | None
) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(value) for name, value in _ensemble(result).items()}
    if directions is not None:
        sizes = result.overlap_sizes[result.overlap_sizes <= len(directions)]
        own = Eigenvectors(result.eigenvalues, result.directions, result.symmetry, 0.0)
        own = average_blocks(own, result.blocks)
        overlap = subspaces.subspace_overlap(own.directions, directions, tuple(sizes.tolist()))
        known = sizes <= numerical_rank(own.eigenvalues)
        arrays |= {"overlap_sizes": sizes, "overlap": np.where(known, overlap, np.nan)}
    if values is not None:
        own = nads.singular_values(result.eigenvalues, config.compare_num_networks)
        arrays["singular_values"] = own[: len(values)]
        arrays["compared_singular_values"] = values
        arrays["compared_eigenvalues"] = values**2 / (config.compare_num_networks - 1)
    return arrays


def _report(result: NADs, comparison: dict[str, np.ndarray], point: Point) -> None:
    """Prints the result as the reader of a log wants it."""
    config = point.config
    swept = {n: v for n, v in point.coordinates.items() if n not in ("derivative", "readout")}
    geometry.report(result, "NADs", "".join(f", {name} {value}" for name, value in swept.items()))
    against = [f"  {overlap:.3f}" for overlap in comparison.get("overlap", ())]
    label = f", with {config.compare}" if against else ""
    geometry.report_overlaps(result, label, against)
    if "singular_values" in comparison:
        own, theirs = comparison["singular_values"], comparison["compared_singular_values"]
        print(f"  singular values: index, own, {config.compare_singular_values}, ratio")
        for index in (i for i in INDICES if i < len(own)):
            ratio = own[index] / theirs[index] if theirs[index] else np.nan
            print(f"  {index:6}  {own[index]:.4g}  {theirs[index]:.4g}  {ratio:.3f}")


def find_nads(folder: Folder, point: Point, complete: bool) -> NADs | None:
    """The record of what is stored of one point, which are all of its networks if `complete`; None
    where that is nothing.
    """
    config, ensemble = point.config, point.ensemble
    members = [member for member in folder.study.members if member.folder == point.name]
    looks, missing = geometry.merge(folder, members, ensemble)
    halves = looks[-1]
    if missing:  # a command of more networks may have put a longer unit in its place
        _check_not_lowered(folder, point)
    if missing and complete:
        raise runner.damaged_meanwhile(folder.workdir / point.name)
    if geometry.is_empty(halves):
        return None
    found = geometry.find(ensemble, config.seed, halves)
    choices = geometry.describe(ensemble, config.seed, halves, folder.read_origins(members))
    sizes = subspaces.report_sizes(ensemble.accumulator.size, read_blocks(choices))
    how = sizes, config.centred
    batches = keep_batches(ensemble.model, ensemble.estimator, looks)
    return finish(ensemble.accumulator, halves, found, choices, *how, looks=looks, batches=batches)


def _make_row(workdir: Path, point: Point, result: NADs, seconds: Json, command: str) -> Row:
    """The row of one point: coordinates, size and agreement of its ensemble, what computed it."""
    row = {**point.coordinates, "num_networks": result.num_networks}
    row |= {"diverged": result.config.get("diverged", 0), "trace": float(result.eigenvalues.sum())}
    row["eigenvalue_0"] = float(result.eigenvalues[0])
    sizes = zip(result.overlap_sizes.tolist(), result.split_half_overlap.tolist(), strict=True)
    row |= {f"split_half_overlap_{size}": overlap for size, overlap in sizes}
    row |= spectra.list_metrics(result)
    units = geometry.parse_units(path.stem for path in (workdir / point.name).glob("units/*.npz"))
    took = [(seconds.get(f"{point.name},{name}"), *ends) for name, ends in units.items()]
    known = [(taken * (stop - first), stop - first) for taken, first, stop in took if taken]
    totals = [sum(column) for column in zip(*known, strict=True)]
    row["seconds"] = totals[0] / totals[1] if totals else ""
    return {**row, **results.provenance(result.config, command)}


def _earlier_rows(workdir: Path, axes: list[str], names: set[str], seconds: Json) -> Iterator[Row]:
    """The rows of the points of other commands in a run folder; not of those of these names.

    Raises nothing: one that is damaged is said in a warning.
    """
    for path in sorted(workdir.glob("*/nads.npz")):
        if path.parent.name in names:
            continue
        try:
            text = store.read_text(path.parent / "config.json")
            said = {**LATER, **parse_object(path.parent / "config.json", text)}
            coordinates = {axis: said[axis] for axis in axes}
            point = Point(path.parent.name, ConfigDict(), coordinates)
            row = _make_row(workdir, point, records.load_nads(path), seconds, "earlier")
        except (InputError, KeyError, RecursionError) as error:
            logging.warning("%s: has no row in results.csv: %s", path.parent, error)
            continue
        yield row


def _write_table(found: list[tuple[Point, NADs]], points: list[Point], workdir: Path) -> None:
    """Writes `results.csv`: a row for each point of the command, then those of earlier ones."""
    axes, seconds = list(points[0].coordinates), read_seconds(workdir)
    rows = [_make_row(workdir, *one, seconds, "this") for one in found]
    rows += _earlier_rows(workdir, axes, {point.name for point in points}, seconds)
    columns = dict.fromkeys(name for row in rows for name in row if name not in results.PROVENANCE)
    store.write_text(workdir / "results.csv", format_table(rows, (*columns, *results.PROVENANCE)))


def _list_members(points: list[Point]) -> list[Member]:
    members = []
    for point in points:
        unlike = {n: v for n, v in point.coordinates.items() if n not in ("architecture", "seed")}
        program = (point.config.architecture, *(f"{n}={v}" for n, v in unlike.items()))
        how = point.config, program, point.ensemble.num_rows
        members += geometry.list_members(*how, folder=point.name)
    return members


def make_study(config: ConfigDict) -> Study:
    """The ensembles of a config; all files it names are read."""
    validate(config)
    directions, values = _read_comparison(config, math.prod(config.image_shape))
    points = make_points(config)
    members, named = _list_members(points), {point.name: point for point in points}
    identities = {point.name: FIELDS.identity(point.config) for point in points}
    if axes := points[0].coordinates:
        own = {n: v for n, v in identities[points[0].name].items() if n not in axes}
        identities = {"": {**own, "sweep": sorted(axes)}, **identities}
    shapes = geometry.state_shapes(points[0].ensemble)

    def measure_cost(member: Member) -> Cost:
        point = named[member.folder]
        return geometry.measure_cost(point.ensemble, point.config.num_networks)

    def resume(folder: Folder) -> Study:
        for point in points:
            _check_not_lowered(folder, point)
        return folder.study

    def collect(folder: Folder, num_missing: int) -> None:
        found, failed = [], []
        for point in points:
            place = folder.workdir / point.name
            if not num_missing:
                _remove_cut_units(folder, point)
            try:
                result = find_nads(folder, point, not num_missing)
                if result is None:
                    continue
                _check_not_extended(folder, point)
            except InputError as error:
                # Its networks have no directions to rank; those of other points may.
                failed.append(f"{place}: {error}")
                continue
            found.append((point, result))
            geometry.write_record(place, result)
            comparison = _compare(result, config, directions, values)
            if config.compare or config.compare_singular_values:
                store.write_npz(place / "comparison.npz", comparison)
            _report(result, comparison, point)
        if axes and found:
            _write_table(found, points, folder.workdir)
        if failed:
            raise InputError("\n".join(failed))

    return Study(
        identities,
        members,
        lambda _: shapes,
        lambda member, size: geometry.make_program(named[member.folder].ensemble, size),
        measure_cost,
        collect,
        check=geometry.check_counted,
        resume=resume,
        estimate=lambda member, given: estimate_ensemble(named[member.folder].ensemble, given),
    )


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws the stored results of `workdir`, of each point: `nads`, `spectrum`, `overlap`; of a
    sweep also `spectra` and `metrics`.
    """
    validate(config)
    points = make_points(config)
    stored = [one for one in points if (workdir / one.name / "nads.npz").exists()]
    paths = [
        path for one in stored or points for path in _draw(config, workdir / one.name, formats)
    ]
    if len(stored) > 1:
        found = {_label(one): records.load_nads(workdir / one.name / "nads.npz") for one in stored}
        paths += spectra.draw(workdir, found, formats)
    return paths


def _label(point: Point) -> str:
    """What tells a point from the others, in a figure."""
    pairs = point.coordinates.items()
    return ", ".join(str(v) if n == "architecture" else f"{n} {v}" for n, v in pairs)


def _draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...]) -> list[Path]:
    result, comparison = records.load_nads(workdir / "nads.npz"), {}
    path, curves = workdir / "comparison.npz", {}
    if path.exists():
        stored = store.read_npz(path)
        # Else it is of another ensemble.
        if all(stored.get(name) == value for name, value in _ensemble(result).items()):
            comparison = stored
    if "overlap" in comparison:
        overlap = comparison["overlap_sizes"], comparison["overlap"]
        curves["against the compared directions"] = overlap
    compared = comparison.get("compared_eigenvalues")
    shown = result, config.figure_directions, curves, compared
    return geometry.draw_record(workdir, *shown, formats)
