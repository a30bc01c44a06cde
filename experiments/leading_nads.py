"""Leading NADs of large inputs: passes over an ensemble in stored units, the record, and figures.

Writes into the run folder: `units/pass_P_basis.npz` (the test directions of the pass that is under
way), `units/pass_P_networks_A_B.npz` (the sketches of the even and of the odd ones of its networks
A … B − 1, without the test directions), `nads.npz` (the record, with `pass_overlap` and `trace`
beside it, see `nad_jax.leading`), `nads.csv` (a row per direction) and figures. A pass begins when
all units of the one before are stored, by whichever process; the files of that one are then
removed.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import runner
from experiments.ensembles import (
    ESTIMATOR_FIELDS,
    MODEL_FIELDS,
    check_unit_size,
    describe_unit,
    join_origins,
    read_estimator,
    read_execution,
    read_model,
    read_unit,
    report_eigenvalues,
    split_networks,
    write_directions_table,
)
from experiments.estimate import Ensemble, choose_chunk, make_ensemble, measure_ensemble
from experiments.fields import check_known
from experiments.plan import Cost, Plan, Program, Unit
from experiments.shards import Shard
from experiments.units import digest, read_intact, set_aside
from nad_jax import errors, plotting, store
from nad_jax.choices import check_num_networks, check_symmetrized, record_choices
from nad_jax.diagnosis import check_not_zero
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError, check_image_shape, check_integer
from nad_jax.estimation import (
    Found,
    Passes,
    check_rows,
    compare_passes,
    find_directions,
    finish,
    next_basis,
)
from nad_jax.geometry import find_problems, make_accumulate, resolve_execution
from nad_jax.moments import Halves, halves_to_arrays, init_halves, merge_halves
from nad_jax.nads import NADs, has_null_band, null_band
from nad_jax.snapshots import Snapshots
from nad_jax.store import DamagedError

OWN_FIELDS = ("num_networks", "seed", "num_directions", "num_extra", "unit_size")
# Fields that extend or describe a folder; all others determine the numbers of its units.
FREE_FIELDS = ("num_passes", "figure_directions")


@dataclasses.dataclass(frozen=True)
class Folder:
    """A run folder and the config that it belongs to."""

    workdir: Path
    config: ConfigDict

    @property
    def identity(self) -> dict[str, Any]:
        return {name: value for name, value in self.config.items() if name not in FREE_FIELDS}

    @property
    def passes(self) -> Passes:
        return read_passes(self.config)

    @functools.cached_property
    def ensemble(self) -> Ensemble:
        """What is accumulated; raises `InputError` for what does not fit the model."""
        model, estimator = read_model(self.config), read_estimator(self.config)
        execution, size = read_execution(self.config), self.config.unit_size
        accumulator = self.passes.make_accumulator(model, estimator)
        shape = (self.passes.count_tests(self.dimension), self.dimension)
        return make_ensemble(model, estimator, accumulator, execution, size, shape)

    @property
    def dimension(self) -> int:
        return int(np.prod(self.config.image_shape))

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.passes.sizes(self.dimension)

    def init_halves(self, directions: np.ndarray) -> Halves:
        """The state that has seen no networks, with test directions [L, D]."""
        return init_halves(self.ensemble.accumulator, directions)

    def basis_path(self, number: int) -> Path:
        return self.workdir / "units" / f"pass_{number}_basis.npz"

    def unit_path(self, number: int, first: int, stop: int) -> Path:
        return self.workdir / "units" / f"pass_{number}_networks_{first:07}_{stop:07}.npz"


class Basis(NamedTuple):
    """The test directions of a pass.

    number: of the pass, from 0.
    directions: [L, D].
    pass_overlap: [max(number − 1, 0), S] between each of the passes before and the one before it.
    digest: a name for their content, which the units of the pass carry.
    """

    number: int
    directions: np.ndarray
    pass_overlap: np.ndarray
    digest: str


def read_passes(config: ConfigDict) -> Passes:
    """How leading directions are refined."""
    return Passes(*(config[name] for name in Passes._fields))


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    check_known(config, {*MODEL_FIELDS, *ESTIMATOR_FIELDS, *OWN_FIELDS, *FREE_FIELDS})
    estimator = read_estimator(config)

    def check_passes() -> None:
        dimension = int(np.prod(check_image_shape(config.image_shape)))
        read_passes(config).check(dimension, estimator)

    problems = estimator.problems() + find_problems(read_execution(config))
    problems += errors.problems(
        lambda: check_symmetrized(estimator, read_model(config)),
        lambda: check_num_networks(config.num_networks, estimator),
        check_passes,
        lambda: check_unit_size(config.unit_size),
        lambda: check_integer("seed", config.seed, 0, 2**32 - 1),
        lambda: check_integer("figure_directions", config.figure_directions, 1),
    )
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    num_rows = Folder(Path(), config).ensemble.num_rows
    check_rows(config.num_networks // 2 * num_rows - config.centred, config.num_directions)


def _stored_passes(folder: Folder) -> list[int]:
    """The passes whose test directions are stored, the last one first."""
    names = (
        re.fullmatch(r"pass_(\d+)_basis\.npz", path.name)
        for path in folder.workdir.glob("units/pass_*_basis.npz")
    )
    return sorted((int(name[1]) for name in names if name), reverse=True)


def _check_not_lowered(folder: Folder) -> None:
    number = max(_stored_passes(folder), default=0)
    if number >= folder.config.num_passes:
        raise InputError(
            f"num_passes: can be raised, not lowered; {folder.workdir} has come to pass "
            f"{number + 1}, "
            f"got {folder.config.num_passes}"
        )


def _read_basis(folder: Folder, number: int) -> Basis:
    """The stored test directions of a pass; raises `DamagedError` where they are not intact."""
    path = folder.basis_path(number)
    arrays = store.read_npz(path, ("directions", "pass_overlap", "digest", "config"))
    store.check_origin(path, arrays["config"], folder.identity)
    directions, pass_overlap = arrays["directions"], arrays["pass_overlap"]
    if directions.shape[1:] != (folder.dimension,) or pass_overlap.shape != (
        max(number - 1, 0),
        len(folder.sizes),
    ):
        raise DamagedError(f"{path}: arrays of shapes {directions.shape} and {pass_overlap.shape}")
    return Basis(number, directions, pass_overlap, str(arrays["digest"]))


def _read_current(folder: Folder, repair: bool) -> Basis | None:
    """The test directions of the pass that is under way; damaged files are moved aside where
    `repair`.
    """
    for number in _stored_passes(folder):
        try:
            return _read_basis(folder, number)
        except DamagedError as error:
            if repair:
                set_aside(folder.basis_path(number), error)
        except InputError:
            if folder.basis_path(number).exists():
                raise
            return _read_current(folder, repair)  # another process has gone on in between
    return None


def _describe_passes(folder: Folder, basis: Basis) -> dict[str, Any]:
    """What computed the pass that is under way, and those before it, see `describe_units`."""
    networks = split_networks(folder.config.num_networks, folder.config.unit_size)
    paths = [
        folder.basis_path(basis.number),
        *(folder.unit_path(basis.number, *unit) for unit in networks),
    ]
    # Another process may have gone on and removed them: then what this one says is not stored
    # either.
    said = [read_intact(path, partial(store.read_origin, path), False) for path in paths]
    said = [origin for origin in said if origin is not None]
    return join_origins([*(origin["before"] for origin in said if "before" in origin), *said])


def _store_basis(
    folder: Folder,
    number: int,
    directions: np.ndarray,
    pass_overlap: np.ndarray,
    before: dict[str, Any] | None = None,
) -> Basis:
    """Stores the test directions of a pass, and `before`: what computed the passes before, whose
    files are removed.
    """
    basis = Basis(number, directions, pass_overlap, digest(directions))
    arrays = {
        name: np.asarray(value) for name, value in basis._asdict().items() if name != "number"
    }
    origin = store.describe_origin(
        folder.identity, **({} if before is None else {"before": before})
    )
    store.write_npz(folder.basis_path(number), {**arrays, "config": origin})
    for earlier in range(number):
        for path in folder.workdir.glob(f"units/pass_{earlier}_*.npz"):
            store.remove(path)
    return basis


def _read_unit(
    folder: Folder, basis: Basis, networks: tuple[int, int], repair: bool
) -> Halves | None:
    """The sketches of a stored unit of a pass; None where there is no intact one."""
    path, like = folder.unit_path(basis.number, *networks), folder.init_halves(basis.directions)
    expected = (like, networks, folder.ensemble.num_rows)
    read = partial(read_unit, path, folder.identity, *expected, basis=basis.digest)
    return read_intact(path, read, repair)


def _merge(folder: Folder, basis: Basis) -> tuple[Halves | None, list[tuple[int, int]]]:
    """The state of all stored units of a pass, in their order, and the networks whose units are
    missing.
    """
    total, missing = None, []
    for networks in split_networks(folder.config.num_networks, folder.config.unit_size):
        halves = _read_unit(folder, basis, networks, True)
        if halves is None:
            missing.append(networks)
            continue
        parts = (halves,) if total is None else (total, halves)
        total = merge_halves(folder.ensemble.accumulator, *parts)
    return total, missing


def _find_leading(folder: Folder, basis: Basis, halves: Halves) -> tuple[Found, np.ndarray]:
    """What the units of a pass say, and `pass_overlap` up to this pass."""
    config, (model, estimator, accumulator, *_) = folder.config, folder.ensemble
    check_not_zero(halves, model, estimator, make_key(config.seed))
    found = find_directions(accumulator, halves, config.centred, config.num_directions)
    if basis.number == 0:
        return found, basis.pass_overlap
    compared = compare_passes(found, basis.directions, folder.sizes)
    return found, np.vstack([basis.pass_overlap, compared])


def _first_basis(folder: Folder) -> jax.Array:
    return folder.passes.first_basis(make_key(folder.config.seed), folder.dimension)


def _begin_pass(folder: Folder, number: int) -> Basis:
    """The test directions of a pass, from the units of the one before; those of a later one where
    it has begun.

    Raises:
      RunAgain: where units of the pass before are missing.
    """
    config, basis = folder.config, _read_current(folder, True)
    if basis is None:
        basis = _store_basis(
            folder, 0, np.asarray(_first_basis(folder)), np.zeros((0, len(folder.sizes)))
        )
    while basis.number < number:
        halves, missing = _merge(folder, basis)
        before = _describe_passes(folder, basis)
        current = _read_current(folder, True)
        if current is not None and current.number > basis.number:  # another process has gone on
            basis = current
            continue
        if missing:
            ranges = ", ".join(f"{first}–{stop - 1}" for first, stop in missing)
            raise runner.RunAgain(
                f"{folder.workdir}: pass {basis.number + 2} of {config.num_passes} begins when "
                f"pass {basis.number + 1} "
                f"is over, of which networks {ranges} are missing; run this command again when "
                "their shards have "
                "computed them"
            )
        found, pass_overlap = _find_leading(folder, basis, halves)
        basis = _store_basis(folder, basis.number + 1, next_basis(found), pass_overlap, before)
    return basis


def _make_program(folder: Folder, chunk_size: int) -> Program:
    config, ensemble = folder.config, folder.ensemble
    execution = ensemble.execution._replace(chunk_size=chunk_size or config.chunk_size)
    how = (choose_chunk(ensemble._replace(execution=execution)), ensemble.num_networks)
    accumulate, execution = make_accumulate(*ensemble[:3], *how)

    def compute(unit: Unit, progress: Callable[[float], None], snapshots: Snapshots) -> int:
        number, (first, stop) = unit.members
        basis = _begin_pass(folder, number)
        if basis.number > number:  # another process has gone on
            return 0
        snapshots.bind({"basis": basis.digest})
        empty = folder.init_halves(basis.directions)
        halves = accumulate(make_key(config.seed), empty, first, stop, progress, snapshots)
        unit_of = {"networks": [first, stop], "basis": basis.digest}
        origin = describe_unit(folder.identity, execution, **unit_of)
        arrays = {**halves_to_arrays(halves), "config": origin}
        store.write_npz(folder.unit_path(number, first, stop), arrays)
        return int(halves.diverged)

    identity = json.loads(str(describe_unit(folder.identity, execution)))
    return Program(compute, execution.chunk_size, 2, identity)


def _collect(folder: Folder, complete: bool) -> None:
    """Writes and prints the results of what is stored of the pass that is under way: of all of it,
    if `complete`.
    """
    config, basis = folder.config, _read_current(folder, True)
    halves, missing = _merge(folder, basis)
    described = _describe_passes(folder, basis)
    _check_not_lowered(
        folder
    )  # a command of more passes may have begun one meanwhile, and removed the units
    if halves is None:
        raise runner.RunAgain(f"{folder.workdir}: nothing of pass {basis.number + 1} is stored yet")
    if complete and missing:
        raise runner.RunAgain(
            f"{folder.workdir}: units were damaged after they had been written; run the same "
            "command again"
        )
    found, pass_overlap = _find_leading(folder, basis, halves)
    model, estimator, accumulator, execution, unit_size, *_ = folder.ensemble
    execution, _ = resolve_execution(model, estimator, execution, unit_size)
    choices = {
        **record_choices(model, estimator, execution, make_key(config.seed)),
        "num_passes": basis.number + 1,
        "num_extra": config.num_extra,
        "seed": config.seed,
        "diverged": int(halves.diverged),
        **described,
    }
    how = (folder.sizes, config.centred, pass_overlap, config.num_directions)
    result = finish(accumulator, halves, found, choices, *how)
    store.save_nads(folder.workdir / "nads.npz", result)
    write_directions_table(folder.workdir / "nads.csv", result)
    _report(result)


def _report(record: NADs) -> None:
    """Prints the result as the reader of a log wants it."""
    choices = record.config
    print(
        f"{choices['architecture']}: leading NADs of {record.num_networks} networks, "
        f"{choices['derivative']}, "
        f"{choices['readout']}{', symmetrized' * choices['symmetrized']}, passes: "
        f"{choices['num_passes']}"
    )
    if choices["num_passes"] == 1:
        print(
            "  of a single pass errors are too small and split-half overlaps too high; raise "
            "num_passes"
        )
    report_eigenvalues(record)
    share = float(record.eigenvalues.sum()) / record.trace
    print(
        f"  {len(record.eigenvalues)} directions of {record.directions.shape[1]} hold {share:.1%} "
        "of the trace"
    )
    changed = 1 - record.pass_overlap[-1:]
    print(
        "  overlap of leading subspaces: size, split half"
        + (", changed by the last pass" if len(changed) else "")
    )
    for index, size in enumerate(record.overlap_sizes):
        by_pass = "".join(f"  {row[index]:.1e}" for row in changed)
        print(f"  {size:6}  {record.split_half_overlap[index]:.3f}{by_pass}")


def make_plan(config: ConfigDict, workdir: Path) -> Plan:
    """The passes of a config as units; those of a pass that is over are not missing, though their
    files are gone.
    """
    validate(config)
    folder = Folder(workdir, config)

    def open_folder() -> None:
        store.open_run_folder(workdir, folder.identity)
        _check_not_lowered(folder)
        store.make_folder(workdir / "units")

    def check_folder() -> bool:
        there = store.check_run_folder(workdir, folder.identity)
        _check_not_lowered(folder)
        return there

    def list_units(shard: Shard) -> list[Unit]:
        networks = split_networks(config.num_networks, config.unit_size)[shard.index :: shard.count]
        return [
            Unit(
                folder.unit_path(number, first, stop).stem,
                config.architecture,
                stop - first,
                (number, (first, stop)),
            )
            for number in range(config.num_passes)
            for first, stop in networks
        ]

    def find_missing(shard: Shard, repair: bool) -> list[Unit]:
        basis = _read_current(folder, repair)
        if basis is None:
            return list_units(shard)
        return [
            unit
            for unit in list_units(shard)
            if unit.members[0] > basis.number
            or (
                unit.members[0] == basis.number
                and _read_unit(folder, basis, unit.members[1], repair) is None
            )
        ]

    def collect(num_missing: int) -> None:
        _check_not_lowered(folder)
        _collect(folder, not num_missing)

    def measure_program(program: str) -> Cost:
        del program
        ensemble = folder.ensemble
        return measure_ensemble(ensemble._replace(execution=choose_chunk(ensemble)))

    return Plan(
        open_folder,
        check_folder,
        list_units,
        find_missing,
        lambda program, chunk_size: _make_program(folder, chunk_size),
        measure_program,
        collect,
        [workdir],
    )


def run(config: ConfigDict, workdir: Path, shard: Shard = runner.ALONE) -> bool:
    """Computes what is missing, writes `nads.npz` when all is there, prints the agreement."""
    return runner.run(make_plan(config, workdir), workdir, shard)


def draw(config: ConfigDict, workdir: Path) -> list[Path]:
    """Draws the stored results of `workdir`: `nads.png`, `spectrum.png`, `overlap.png`."""
    validate(config)
    result = store.load_nads(workdir / "nads.npz")
    sizes = result.overlap_sizes
    choices = result.config
    title = f"{choices['architecture']}, {result.num_networks} networks, {choices['derivative']}"
    band = null_band(result) if has_null_band(result) else None
    curves = {"even against odd members": (sizes, result.split_half_overlap)}
    if len(result.pass_overlap):
        curves["last pass against the one before"] = (sizes, result.pass_overlap[-1])
    figures = {
        "nads.png": plotting.plot_directions(
            result.directions[: config.figure_directions],
            tuple(choices["image_shape"]),
            f"Leading NADs: {title}",
            result.symmetry,
        ),
        "spectrum.png": plotting.plot_spectrum(
            result.eigenvalues, result.eigenvalue_sem, title, band
        ),
        "overlap.png": plotting.plot_overlap(curves, result.directions.shape[1], title),
    }
    for name, figure in figures.items():
        store.save_figure(workdir / name, figure)
    return [workdir / name for name in figures]
