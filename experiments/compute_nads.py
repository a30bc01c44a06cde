"""NADs of an architecture: an ensemble in stored units, the record, its comparison with stored
NADs, figures.

Writes into the run folder: `units/*.npz` (partial covariances), `nads.npz` (see `nad_jax.NADs`),
`nads.csv` (a row per direction), and with `config.compare` or `config.compare_singular_values` a
`comparison.npz`. With axes in `config.sweep` each point has such a folder of its own in the run
folder, beside `results.csv`, one row per point.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import results, runner
from experiments.ensembles import (
    ESTIMATOR_FIELDS,
    MODEL_FIELDS,
    check_unit_size,
    describe_unit,
    describe_units,
    read_estimator,
    read_execution,
    read_model,
    read_unit,
    report_eigenvalues,
    split_networks,
    write_directions_table,
)
from experiments.estimate import Ensemble, choose_chunk, make_ensemble, measure_ensemble
from experiments.fields import check_known, check_sweep
from experiments.plan import Cost, Plan, Program, Unit
from experiments.shards import Shard
from experiments.units import read_intact
from nad_jax import errors, nads, plotting, store, subspaces
from nad_jax.choices import check_num_networks, check_symmetrized, record_choices
from nad_jax.diagnosis import check_not_zero
from nad_jax.directions import check_orthonormal
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError, check_integer
from nad_jax.estimation import find_directions, finish, make_dense
from nad_jax.geometry import find_problems, make_accumulate, resolve_execution
from nad_jax.moments import Halves, halves_to_arrays, init_halves, merge_halves
from nad_jax.nads import NADs, numerical_rank
from nad_jax.snapshots import Snapshots

# Fields that extend or describe a folder; all others determine the numbers of its units.
FREE_FIELDS = (
    "sweep", "num_networks", "symmetrized", "compare", "compare_singular_values",
    "compare_num_networks",
    "figure_directions",
)  # fmt: skip
SWEEP_FIELDS = (
    "architecture", "pooling", "initialization", "derivative", "step", "point", "point_scale",
    "readout", "seed",
)  # fmt: skip
INDICES = (0, 1, 2, 3, 10, 100, 500)  # at which singular values are compared


@dataclasses.dataclass(frozen=True)
class Point:
    """One ensemble of a command: its folder, its fields without the sweep, and its coordinates in
    the sweep.
    """

    workdir: Path
    config: ConfigDict
    coordinates: dict[str, Any]

    @property
    def identity(self) -> dict[str, Any]:
        return {name: value for name, value in self.config.items() if name not in FREE_FIELDS}

    @functools.cached_property
    def ensemble(self) -> Ensemble:
        """What is accumulated; raises `InputError` for what does not fit the model."""
        model, estimator = read_model(self.config), read_estimator(self.config)
        execution, size = read_execution(self.config), self.config.unit_size
        return make_ensemble(model, estimator, make_dense(model, estimator), execution, size)

    @functools.cached_property
    def empty(self) -> Halves:
        """The state that has seen no networks."""
        return init_halves(self.ensemble.accumulator)


def make_points(config: ConfigDict, workdir: Path) -> list[Point]:
    """Every combination of the axes of `config.sweep` that are not empty; without any, the config
    itself.
    """
    axes = {name: tuple(config.sweep[name]) for name in SWEEP_FIELDS if len(config.sweep[name])}
    points = []
    for values in itertools.product(*axes.values()):
        point = config.copy_and_resolve_references()
        for name, value in zip(axes, values, strict=True):
            try:
                point[name] = value
            except TypeError as error:
                raise InputError(
                    f"sweep.{name}: must hold values of the type of {name}, got {value!r}"
                ) from error
        coordinates = {name: point[name] for name in axes}
        name = ",".join(f"{name}={value}" for name, value in coordinates.items())
        points.append(Point(workdir / name if name else workdir, point, coordinates))
    return points


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    check_known(config, {*MODEL_FIELDS, *ESTIMATOR_FIELDS, *FREE_FIELDS, "seed", "unit_size"})
    if not isinstance(config.sweep, ConfigDict):
        raise InputError(f"sweep: must be the axes {', '.join(SWEEP_FIELDS)}, got {config.sweep!r}")
    check_known({**config.sweep, "experiment": ""}, SWEEP_FIELDS)
    axes = {f"sweep.{name}": values for name, values in config.sweep.items() if values != ()}
    problems = errors.problems(
        *(partial(check_sweep, name, values) for name, values in axes.items())
    )
    if problems:
        raise InputError("\n".join(problems))
    points = make_points(config, Path())
    for point in points:
        problems += _problems(point.config)
    if (
        not problems
    ):  # what fits the model: before there is a folder that could be of another configuration
        problems = errors.problems(*(lambda point=point: point.ensemble for point in points))
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))


def _problems(config: ConfigDict) -> list[str]:
    estimator = read_estimator(config)
    problems = estimator.problems() + find_problems(read_execution(config))
    return problems + errors.problems(
        lambda: check_symmetrized(estimator, read_model(config)),
        lambda: check_num_networks(config.num_networks, estimator),
        lambda: check_unit_size(config.unit_size),
        lambda: check_integer("seed", config.seed, 0, 2**32 - 1),
        lambda: check_integer("compare_num_networks", config.compare_num_networks, 2),
        lambda: check_integer("figure_directions", config.figure_directions, 1),
    )


def _read_comparison(
    config: ConfigDict, dimension: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    directions = store.read_directions(config.compare, dimension) if config.compare else None
    if directions is not None:
        try:
            check_orthonormal(directions)
        except (
            InputError
        ) as error:  # copies of one direction would overlap with its subspace as a whole basis does
            raise InputError(f"{config.compare}: {error}") from error
    values = None
    if config.compare_singular_values:
        values = store.read_singular_values(config.compare_singular_values)
        if len(values) > dimension:
            raise InputError(
                f"{config.compare_singular_values}: {len(values)} singular values, expected at "
                f"most D = {dimension}"
            )
    return directions, values


def _unit_path(workdir: Path, first: int, stop: int) -> Path:
    return workdir / "units" / f"networks_{first:07}_{stop:07}.npz"


def _read_unit(point: Point, networks: tuple[int, int]) -> Halves:
    """A stored unit; raises `DamagedError` where it is not intact."""
    path = _unit_path(point.workdir, *networks)
    return read_unit(path, point.identity, point.empty, networks, point.ensemble.num_rows)


def _stored_units(workdir: Path) -> list[Path]:
    digits = "[0-9]" * 7
    return list(workdir.glob(f"units/networks_{digits}_{digits}.npz"))


def _networks(path: Path) -> tuple[int, int]:
    """First and stop of the networks of a stored unit."""
    return int(path.stem[-15:-8]), int(path.stem[-7:])


def _check_not_lowered(num_networks: int, workdir: Path) -> None:
    stored = max((_networks(path)[1] for path in _stored_units(workdir)), default=0)
    if stored > num_networks:
        raise InputError(
            f"num_networks: can be raised, not lowered; {workdir} already holds {stored}, got "
            f"{num_networks}"
        )


def _check_not_extended(point: Point) -> None:
    """Raises `InputError` where a command of more networks has come to its end meanwhile: its
    record would be lost.
    """
    try:
        record = store.load_nads(point.workdir / "nads.npz")
    except InputError:  # none, or one that is damaged and written again
        return
    if record.num_networks + record.config.get("diverged", 0) > point.config.num_networks:
        _check_not_lowered(point.config.num_networks, point.workdir)


def _paths(point: Point) -> dict[tuple[int, int], Path]:
    """The file of each unit of a point."""
    units = split_networks(point.config.num_networks, point.config.unit_size)
    return {unit: _unit_path(point.workdir, *unit) for unit in units}


def _merge(point: Point) -> Halves:
    """The state of all stored units, in their order, so that an interruption cannot change a bit."""
    total = point.empty
    for networks, path in _paths(point).items():
        halves = read_intact(path, partial(_read_unit, point, networks), True)
        if halves is None:  # a command of more networks may have put a longer unit in its place
            _check_not_lowered(point.config.num_networks, point.workdir)
        else:
            total = merge_halves(point.ensemble.accumulator, total, halves)
    return total


def _remove_cut_units(point: Point) -> None:
    """Removes last units cut short by an earlier, smaller num_networks: their networks now lie in
    full ones.

    The units of the point are stored. One that goes beyond them is of another command.
    """
    units = _paths(point)
    for path in _stored_units(point.workdir):
        first, stop = _networks(path)
        if (first, stop) not in units and any(
            begin <= first and stop <= end for begin, end in units
        ):
            store.remove(path)


def _ensemble(result: NADs) -> dict[str, Any]:
    """What tells a record from others of the same folder; those from before symmetries do not say
    `symmetrized`.
    """
    return {"num_networks": result.num_networks, "symmetrized": result.config.get("symmetrized")}


def _compare(
    result: NADs, config: ConfigDict, directions: np.ndarray | None, values: np.ndarray | None
) -> dict[str, np.ndarray]:
    arrays = {name: np.asarray(value) for name, value in _ensemble(result).items()}
    if directions is not None:
        sizes = tuple(int(size) for size in result.overlap_sizes if size <= len(directions))
        arrays["overlap_sizes"] = np.array(sizes)
        overlap = subspaces.subspace_overlap(result.directions, directions, sizes)
        arrays["overlap"] = np.where(
            np.array(sizes) <= numerical_rank(result.eigenvalues), overlap, np.nan
        )
    if values is not None:
        own = nads.singular_values(result.eigenvalues, config.compare_num_networks)
        arrays["singular_values"] = own[: len(values)]
        arrays["compared_singular_values"] = values
        arrays["compared_eigenvalues"] = values**2 / (config.compare_num_networks - 1)
    return arrays


def _report(result: NADs, comparison: dict[str, np.ndarray], point: Point) -> None:
    """Prints the result as the reader of a log wants it."""
    config = point.config
    kind = config.readout + ", symmetrized" * config.symmetrized
    at = "".join(
        f", {name} {value}"
        for name, value in point.coordinates.items()
        if name not in ("derivative", "readout")
    )
    print(
        f"{config.architecture}: NADs of {result.num_networks} networks, {config.derivative}, "
        f"{kind}{at}"
    )
    report_eigenvalues(result)
    against = comparison.get("overlap", ())
    print(
        "  overlap of leading subspaces: size, split half"
        + (f", with {config.compare}" if len(against) else "")
    )
    for index, size in enumerate(result.overlap_sizes):
        other = f"  {against[index]:.3f}" if index < len(against) else ""
        print(f"  {size:6}  {result.split_half_overlap[index]:.3f}{other}")
    if "singular_values" in comparison:
        own, theirs = comparison["singular_values"], comparison["compared_singular_values"]
        print(f"  singular values: index, own, {config.compare_singular_values}, ratio")
        for index in (i for i in INDICES if i < len(own)):
            ratio = own[index] / theirs[index] if theirs[index] else np.nan
            print(f"  {index:6}  {own[index]:.4g}  {theirs[index]:.4g}  {ratio:.3f}")


def _collect(
    point: Point, directions: np.ndarray | None, values: np.ndarray | None, complete: bool
) -> NADs:
    """Writes and prints the results of what is stored of one point, which are all of its networks
    if `complete`.
    """
    config, halves = point.config, _merge(point)
    model, estimator, accumulator, execution, unit_size, *_ = point.ensemble
    execution, _ = resolve_execution(model, estimator, execution, unit_size)
    check_not_zero(halves, model, estimator, make_key(config.seed))
    if complete and int(halves.networks) + int(halves.diverged) != config.num_networks:
        raise runner.RunAgain(
            f"{point.workdir}: units were damaged after they had been written; run the same "
            "command again"
        )
    choices = record_choices(model, estimator, execution, make_key(config.seed))
    choices |= {"seed": config.seed, "diverged": int(halves.diverged)}
    choices |= describe_units(_paths(point).values())
    found = find_directions(accumulator, halves, estimator.centred)
    sizes = subspaces.default_sizes(accumulator.size)
    result = finish(accumulator, halves, found, choices, sizes, estimator.centred)
    _check_not_extended(point)
    store.save_nads(point.workdir / "nads.npz", result)
    write_directions_table(point.workdir / "nads.csv", result)
    comparison = _compare(result, config, directions, values)
    if config.compare or config.compare_singular_values:
        store.write_npz(point.workdir / "comparison.npz", comparison)
    _report(result, comparison, point)
    return result


def _write_table(points: list[tuple[Point, NADs]], workdir: Path) -> None:
    """Writes `results.csv`: coordinates, size and agreement of the ensemble of each point."""
    rows = []
    for point, result in points:
        row = {
            **point.coordinates,
            "num_networks": result.num_networks,
            "diverged": result.config["diverged"],
        }
        row["trace"] = float(result.eigenvalues.sum())
        row["eigenvalue_0"] = float(result.eigenvalues[0])
        sizes = zip(result.overlap_sizes.tolist(), result.split_half_overlap.tolist(), strict=True)
        rows.append({**row, **{f"split_half_overlap_{size}": overlap for size, overlap in sizes}})
    store.write_text(workdir / "results.csv", results.format_table(rows, tuple(rows[0])))


def _make_program(point: Point, points: list[Point], chunk_size: int) -> Program:
    """What computes the units of all points that differ from `point` in their seed at most."""
    execution = point.ensemble.execution._replace(chunk_size=chunk_size or point.config.chunk_size)
    ensemble = point.ensemble._replace(execution=execution)
    how = (choose_chunk(ensemble), ensemble.num_networks)
    accumulate, execution = make_accumulate(*ensemble[:3], *how)

    def compute(unit: Unit, progress: Callable[[float], None], snapshots: Snapshots) -> int:
        number, (first, stop) = unit.members
        config, workdir = points[number].config, points[number].workdir
        halves = accumulate(make_key(config.seed), point.empty, first, stop, progress, snapshots)
        origin = describe_unit(points[number].identity, execution, networks=[first, stop])
        arrays = {**halves_to_arrays(halves), "config": origin}
        store.write_npz(_unit_path(workdir, first, stop), arrays)
        return int(halves.diverged)

    shared = {name: value for name, value in point.identity.items() if name != "seed"}
    identity = json.loads(str(describe_unit(shared, execution)))
    return Program(compute, execution.chunk_size, 2, identity)


def _measure(point: Point) -> Cost:
    return measure_ensemble(point.ensemble._replace(execution=choose_chunk(point.ensemble)))


def make_plan(config: ConfigDict, workdir: Path) -> Plan:
    """The ensembles of a config as units; all files it names are read."""
    validate(config)
    directions, values = _read_comparison(config, int(np.prod(config.image_shape)))
    points = make_points(config, workdir)
    units: list[Unit] = []
    for number, point in enumerate(points):
        for first, stop in _paths(point):
            name = ",".join(
                [
                    *(f"{n}={v}" for n, v in point.coordinates.items()),
                    f"networks_{first:07}_{stop:07}",
                ]
            )
            unlike = {
                n: v for n, v in point.coordinates.items() if n not in ("architecture", "seed")
            }
            program = (point.config.architecture, *(f"{n}={v}" for n, v in unlike.items()))
            units.append(Unit(name, program, stop - first, (number, (first, stop))))
    of_program = {unit.program: points[unit.members[0]] for unit in units}
    folders = [(point.workdir, point.identity) for point in points]
    if points[0].coordinates:
        swept = {
            name: value
            for name, value in points[0].identity.items()
            if name not in points[0].coordinates
        }
        folders.insert(0, (workdir, {**swept, "sweep": sorted(points[0].coordinates)}))

    def open_folder() -> None:
        for folder, identity in folders:
            store.open_run_folder(folder, identity)
        for point in points:
            _check_not_lowered(point.config.num_networks, point.workdir)
            store.make_folder(point.workdir / "units")

    def check_folder() -> bool:
        there = [store.check_run_folder(folder, identity) for folder, identity in folders]
        for point in points:
            _check_not_lowered(point.config.num_networks, point.workdir)
        return there[0]

    def list_units(shard: Shard) -> list[Unit]:
        return units[shard.index :: shard.count]

    def find_missing(shard: Shard, repair: bool) -> list[Unit]:
        def is_missing(unit: Unit) -> bool:
            number, networks = unit.members
            path = _unit_path(points[number].workdir, *networks)
            return read_intact(path, partial(_read_unit, points[number], networks), repair) is None

        return list(filter(is_missing, list_units(shard)))

    def collect(num_missing: int) -> None:
        collected, failed = [], []
        for point in points:
            if not num_missing:
                _remove_cut_units(point)
            if not any(path.exists() for path in _paths(point).values()):
                continue
            try:
                collected.append((point, _collect(point, directions, values, not num_missing)))
            except (
                InputError
            ) as error:  # its networks have no directions to rank; those of other points may
                failed.append(f"{point.workdir}: {error}")
        if points[0].coordinates and collected:
            _write_table(collected, workdir)
        if failed:
            raise InputError("\n".join(failed))

    return Plan(
        open_folder,
        check_folder,
        list_units,
        find_missing,
        lambda program, chunk_size: _make_program(of_program[program], points, chunk_size),
        lambda program: _measure(of_program[program]),
        collect,
        [point.workdir for point in points],
    )


def run(config: ConfigDict, workdir: Path, shard: Shard = runner.ALONE) -> bool:
    """Computes what is missing, writes `nads.npz` and `comparison.npz` when all is there, prints
    the agreement.
    """
    return runner.run(make_plan(config, workdir), workdir, shard)


def draw(config: ConfigDict, workdir: Path) -> list[Path]:
    """Draws the stored results of `workdir`, of each point: `nads.png`, `spectrum.png`,
    `overlap.png`.
    """
    validate(config)
    points = make_points(config, workdir)
    stored = [point for point in points if (point.workdir / "nads.npz").exists()]
    return [path for point in stored or points for path in _draw(point.config, point.workdir)]


def _draw(config: ConfigDict, workdir: Path) -> list[Path]:
    result = store.load_nads(workdir / "nads.npz")
    comparison: dict[str, np.ndarray] = {}
    path = workdir / "comparison.npz"
    if path.exists():
        stored = store.read_npz(path)
        if all(
            stored.get(name) == value for name, value in _ensemble(result).items()
        ):  # else it is of another one
            comparison = stored
    title = f"{result.config['architecture']}, {result.num_networks} networks, {result.config['derivative']}"
    image_shape = tuple(result.config["image_shape"])
    band = nads.null_band(result) if nads.has_null_band(result) else None
    figures = {
        "nads.png": plotting.plot_directions(
            result.directions[: config.figure_directions],
            image_shape,
            f"Leading NADs: {title}",
            result.symmetry,
        ),
        "spectrum.png": plotting.plot_spectrum(
            result.eigenvalues,
            result.eigenvalue_sem,
            title,
            band,
            comparison.get("compared_eigenvalues"),
        ),
        "overlap.png": plotting.plot_overlap(
            {
                "even against odd members": (result.overlap_sizes, result.split_half_overlap),
                **(
                    {
                        "against the compared directions": (
                            comparison["overlap_sizes"],
                            comparison["overlap"],
                        )
                    }
                    if "overlap" in comparison
                    else {}
                ),
            },
            result.directions.shape[1],
            title,
        ),
    }
    paths = []
    for name, figure in figures.items():
        store.save_figure(workdir / name, figure)
        paths.append(workdir / name)
    return paths
