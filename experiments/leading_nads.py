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
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.ensembles import (
    ESTIMATOR_FIELDS,
    MODEL_FIELDS,
    check_unit_size,
    describe_unit,
    join_origins,
    read_estimator,
    read_model,
    read_unit,
    report_eigenvalues,
    split_networks,
    write_directions_table,
)
from experiments.run import runner
from experiments.run.config import check_known
from experiments.run.costs import choose_chunk, measure_ensemble
from experiments.run.folder import digest, read_intact, set_aside
from experiments.run.plan import Cost, Plan, Program, Unit
from experiments.run.shards import Shard
from nad_jax import accumulation, errors, leading, plotting, sketch, store
from nad_jax.accumulation import Halves
from nad_jax.diagnosis import check_not_zero
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError, check_image_shape, check_integer
from nad_jax.estimator import (
    check_num_networks,
    check_symmetrized,
    find_group,
    find_representations,
    record_choices,
    resolve_estimator,
)
from nad_jax.leading import LeadingNADs
from nad_jax.nads import has_null_band, null_band
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

    @functools.cached_property
    def num_rows(self) -> int:
        """The rows that one network gives, its mirror images included."""
        return _rows_per_network(self.config)

    @property
    def dimension(self) -> int:
        return int(np.prod(self.config.image_shape))

    @property
    def sizes(self) -> tuple[int, ...]:
        return leading.overlap_sizes(self.config.num_directions, self.dimension)

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


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    check_known(config, {*MODEL_FIELDS, *ESTIMATOR_FIELDS, *OWN_FIELDS, *FREE_FIELDS})
    estimator = read_estimator(config)

    def check_passes() -> None:
        dimension = int(np.prod(check_image_shape(config.image_shape)))
        leading.check_passes(config.num_directions, config.num_passes, config.num_extra, dimension)

    problems = estimator.problems() + errors.problems(
        lambda: check_symmetrized(estimator, read_model(config)),
        lambda: leading.check_centred(estimator),
        lambda: check_num_networks(config.num_networks, estimator),
        check_passes,
        lambda: check_unit_size(config.unit_size),
        lambda: check_integer("seed", config.seed, 0, 2**32 - 1),
        lambda: check_integer("figure_directions", config.figure_directions, 1),
    )
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    leading.check_rows(
        config.num_networks // 2 * _rows_per_network(config) - config.centred, config.num_directions
    )


def _rows_per_network(config: ConfigDict) -> int:
    model, estimator = read_model(config), read_estimator(config)
    return resolve_estimator(model, estimator, config.unit_size)[1] * len(
        find_group(model, estimator)
    )


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
) -> dict[str, np.ndarray] | None:
    """The arrays of a stored unit of a pass without its test directions; None where there is no
    intact one.
    """
    path = folder.unit_path(basis.number, *networks)
    shapes = {
        "count": (),
        "exponent": (),
        "total": (folder.dimension,),
        "square": (),
        "product": basis.directions.shape,
    }
    read = partial(
        read_unit, path, folder.identity, shapes, networks, folder.num_rows, basis=basis.digest
    )
    return read_intact(path, read, repair)


def _merge(folder: Folder, basis: Basis) -> tuple[Halves | None, list[tuple[int, int]]]:
    """The state of all stored units of a pass, in their order, and the networks whose units are
    missing.
    """
    directions, total, missing = jnp.asarray(basis.directions), None, []
    for networks in split_networks(folder.config.num_networks, folder.config.unit_size):
        arrays = _read_unit(folder, basis, networks, True)
        if arrays is None:
            missing.append(networks)
            continue
        halves = accumulation.halves_from_arrays(
            {**arrays, "even_basis": directions, "odd_basis": directions}
        )
        total = halves if total is None else accumulation.merge_halves(total, halves)
    return total, missing


def _find_leading(folder: Folder, basis: Basis, halves: Halves) -> tuple[leading.Found, np.ndarray]:
    """What the units of a pass say, and `pass_overlap` up to this pass."""
    config = folder.config
    check_not_zero(halves, read_model(config), read_estimator(config), make_key(config.seed))
    representations = find_representations(read_model(config), read_estimator(config))
    found = leading.find_leading(
        halves, config.num_directions, config.num_extra, representations, config.centred
    )
    if basis.number == 0:
        return found, basis.pass_overlap
    return found, np.vstack(
        [basis.pass_overlap, leading.compare_passes(found, basis.directions, folder.sizes)]
    )


def _first_basis(folder: Folder) -> jax.Array:
    config = folder.config
    return leading.first_basis(
        make_key(config.seed), config.num_directions, config.num_extra, folder.dimension
    )


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
        basis = _store_basis(
            folder, basis.number + 1, leading.next_basis(found), pass_overlap, before
        )
    return basis


def _init_halves(directions: np.ndarray) -> Halves:
    """The state that has seen no networks."""
    directions = jnp.asarray(directions)
    return Halves(sketch.init(directions), sketch.init(directions), jnp.int32(0))


def _init_zeros(folder: Folder) -> Halves:
    """A state as large as that of a pass; its test directions are zeros."""
    return _init_halves(np.zeros(jax.eval_shape(partial(_first_basis, folder)).shape, np.float32))


def _make_program(folder: Folder, chunk_size: int) -> Program:
    config, model, chosen = folder.config, read_model(folder.config), read_estimator(folder.config)
    if chunk_size:
        chosen = dataclasses.replace(chosen, chunk_size=chunk_size)
    chosen = choose_chunk(model, chosen, config.unit_size, partial(_init_zeros, folder))
    accumulate, estimator = accumulation.make_accumulate(model, chosen, config.unit_size)

    def compute(unit: Unit, progress: Callable[[float], None], snapshots: Snapshots) -> int:
        number, (first, stop) = unit.members
        basis = _begin_pass(folder, number)
        if basis.number > number:  # another process has gone on
            return 0
        snapshots.bind({"basis": basis.digest})
        halves = accumulate(
            make_key(config.seed), _init_halves(basis.directions), first, stop, progress, snapshots
        )
        arrays = accumulation.halves_to_arrays(halves)
        arrays = {name: array for name, array in arrays.items() if not name.endswith("_basis")}
        origin = describe_unit(
            folder.identity, estimator, networks=[first, stop], basis=basis.digest
        )
        store.write_npz(folder.unit_path(number, first, stop), {**arrays, "config": origin})
        return int(halves.diverged)

    return Program(
        compute, estimator.chunk_size, 2, json.loads(str(describe_unit(folder.identity, estimator)))
    )


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
    model, key = read_model(config), make_key(config.seed)
    estimator, _ = resolve_estimator(model, read_estimator(config), config.unit_size)
    choices = {
        **record_choices(model, estimator, key),
        "num_passes": basis.number + 1,
        "num_extra": config.num_extra,
        "seed": config.seed,
        "diverged": int(halves.diverged),
        **described,
    }
    num_networks = (int(halves.even.count) + int(halves.odd.count)) // _rows_per_network(config)
    result = leading.finish(
        halves, found, pass_overlap, config.num_directions, num_networks, choices, config.centred
    )
    store.save_nads(
        folder.workdir / "nads.npz",
        result.nads,
        pass_overlap=result.pass_overlap,
        trace=np.asarray(result.trace),
    )
    write_directions_table(folder.workdir / "nads.csv", result.nads)
    _report(result)


def _report(result: LeadingNADs) -> None:
    """Prints the result as the reader of a log wants it."""
    record, choices = result.nads, result.nads.config
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
    share = float(record.eigenvalues.sum()) / result.trace
    print(
        f"  {len(record.eigenvalues)} directions of {record.directions.shape[1]} hold {share:.1%} "
        "of the trace"
    )
    changed = 1 - result.pass_overlap[-1:]
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
        model, make_empty = read_model(config), partial(_init_zeros, folder)
        chosen = choose_chunk(model, read_estimator(config), config.unit_size, make_empty)
        return measure_ensemble(model, chosen, config.unit_size, make_empty)

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
    path = workdir / "nads.npz"
    result = store.load_nads(path)
    arrays, sizes = store.read_npz(path, ("pass_overlap", "trace")), result.overlap_sizes
    if arrays["pass_overlap"].shape[1:] != sizes.shape or arrays["trace"].shape != ():
        raise DamagedError(f"{path}: pass_overlap has shape {arrays['pass_overlap'].shape}")
    choices = result.config
    title = f"{choices['architecture']}, {result.num_networks} networks, {choices['derivative']}"
    band = null_band(result, float(arrays["trace"])) if has_null_band(result) else None
    curves = {"even against odd members": (sizes, result.split_half_overlap)}
    if len(arrays["pass_overlap"]):
        curves["last pass against the one before"] = (sizes, arrays["pass_overlap"][-1])
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
