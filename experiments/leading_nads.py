"""Leading NADs of large inputs: passes over an ensemble in stored units, the record, and figures.

Writes into the run folder: `units/pass_P_basis.npz` (the test directions of the pass that is under
way; those of the first are random), `units/pass_P_networks_A_B.npz` (the sketches of the even and
of the odd ones of its networks A … B − 1, without the test directions), `nads.npz` (the record, see
`nad_jax.NADs`), `nads.csv` (a row per direction) and figures. A pass begins when all units of the
one before are stored, by whichever process; the files of that one are then removed.
"""

import functools
import math
import re
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import geometry
from experiments.networks import read_model
from experiments.run import runner
from experiments.run.config import Fields
from experiments.run.costs import Ensemble
from experiments.run.folder import Folder, digest
from experiments.run.plan import Json, Member, Shapes, Study, Unit
from experiments.run.targets import estimate_ensemble
from nad_jax import records
from nad_jax.choices import choose_blocks
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError, check_input_shape
from nad_jax.estimation import Passes, compare_passes, next_basis
from nad_jax.moments import Halves
from nad_jax.nads import NADs
from nad_jax.reading import Found, check_rows, finish

FIELDS = Fields(
    "leading_nads",
    how=geometry.GEOMETRY_HOW,
    grows=("num_passes",),
    reports=("figure_directions",),
)


class Pass(NamedTuple):
    """One pass over the ensemble.

    number: from 0.
    directions: its test directions [L, D]; None: random ones.
    pass_overlap: [max(number − 1, 0), S] between each of the passes before and the one before it.
    """

    number: int
    directions: np.ndarray | None
    pass_overlap: np.ndarray


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    FIELDS.check_known(config)

    def check_passes() -> None:
        dimension = math.prod(check_input_shape(config.image_shape))
        _read_passes(config).check(dimension, geometry.read_estimator(config))

    geometry.validate(config, check_passes)
    num_rows = (
        config.num_networks // 2 * geometry.read_ensemble(config, _read_passes(config)).num_rows
    )
    check_rows(num_rows - config.centred, config.num_directions)


def _read_passes(config: ConfigDict) -> Passes:
    """How leading directions are refined."""
    return Passes(*(config[name] for name in Passes._fields))


def _read_ensemble(config: ConfigDict, this: Pass) -> Ensemble:
    passes, directions = _read_passes(config), this.directions

    def basis() -> jax.Array:
        if directions is not None:
            return jnp.asarray(directions)
        return passes.first_basis(make_key(config.seed), math.prod(config.image_shape))

    return geometry.read_ensemble(config, passes, basis)


def _sizes(config: ConfigDict) -> tuple[int, ...]:
    found = choose_blocks(read_model(config), geometry.read_estimator(config))
    return _read_passes(config).sizes(math.prod(config.image_shape), found if found.count else None)


def _basis(number: int) -> Member:
    """The file of the test directions of a pass."""
    return Member(f"pass_{number}_basis", "basis", None, num_networks=0)


def _stored_passes(folder: Folder) -> list[int]:
    """The passes whose test directions are stored, the last one first."""
    names = (re.fullmatch(r"pass_(\d+)_basis", name) for name in folder.names())
    return sorted((int(name[1]) for name in names if name), reverse=True)


def _check_not_lowered(config: ConfigDict, folder: Folder) -> None:
    number = max(_stored_passes(folder), default=0)
    if number >= config.num_passes:
        raise InputError(
            f"num_passes: can be raised, not lowered; {folder.workdir} has come to pass "
            f"{number + 1}, got {config.num_passes}"
        )


def _first_pass(config: ConfigDict) -> Pass:
    return Pass(0, None, np.zeros((0, len(_sizes(config)))))


def _read_pass(config: ConfigDict, folder: Folder) -> Pass:
    """The pass that is under way."""
    stored = _stored_passes(folder)
    for number in stored:
        arrays = folder.read(_basis(number))
        if arrays is not None:
            return Pass(number, **arrays)
    if {*_stored_passes(folder)} - {*stored}:  # another process has gone on in between
        return _read_pass(config, folder)
    return _first_pass(config)


def _find_leading(config: ConfigDict, this: Pass, halves: Halves) -> tuple[Found, np.ndarray]:
    """What the units of a pass say, and `pass_overlap` up to this pass."""
    ensemble, overlap = _read_ensemble(config, this), this.pass_overlap
    found = geometry.find(ensemble, config.seed, halves, config.num_directions)
    if this.number > 0:
        changed = compare_passes(found, this.directions, _sizes(config))
        overlap = np.vstack([overlap, changed])
    return found, overlap


def _read_origins(folder: Folder, this: Pass) -> list[Json]:
    """What computed the pass that is under way, and those before it."""
    # Another process may have gone on and removed them: then what this one says is not stored
    # either.
    said = folder.read_origins([_basis(this.number), *folder.study.members])
    return [*(origin["before"] for origin in said if "before" in origin), *said]


def _begin_next(config: ConfigDict, folder: Folder, this: Pass) -> Study:
    """Stores the test directions of the pass after this one, all units of which are stored.

    Raises:
      RunAgain: where some are missing.
    """
    looks, missing = geometry.merge(folder, folder.study.members, _read_ensemble(config, this))
    halves = looks[-1]
    before = geometry.join_origins(_read_origins(folder, this))
    if missing:
        ranges = ", ".join(f"{networks.first}–{networks.stop - 1}" for networks in missing)
        raise runner.RunAgain(
            f"{folder.workdir}: pass {this.number + 2} of {config.num_passes} begins when pass "
            f"{this.number + 1} is over, of which networks {ranges} are missing; run this command "
            "again when their shards have computed them"
        )
    found, pass_overlap = _find_leading(config, this, halves)
    number, directions = this.number + 1, next_basis(found)
    basis = {"directions": directions, "pass_overlap": pass_overlap}
    member = _basis(number)
    folder.write(Unit(member.name, [member]), basis, {"before": before})
    for name in folder.names():
        earlier = re.match(r"pass_(\d+)_", name)
        if earlier and int(earlier[1]) < number:
            folder.remove(name)
    return _make_pass(config, Pass(number, **basis))


def _collect(config: ConfigDict, this: Pass, folder: Folder, num_missing: int) -> None:
    """Writes and prints the results of what is stored of the pass that is under way."""
    looks, missing = geometry.merge(folder, folder.study.members, _read_ensemble(config, this))
    halves = looks[-1]
    origins = _read_origins(folder, this)
    # A command of more passes may have begun one meanwhile, and removed the units.
    _check_not_lowered(config, folder)
    if geometry.is_empty(halves):
        raise runner.RunAgain(f"{folder.workdir}: nothing of pass {this.number + 1} is stored yet")
    if missing and not num_missing:
        raise runner.damaged_meanwhile(folder.workdir)
    found, pass_overlap = _find_leading(config, this, halves)
    ensemble = _read_ensemble(config, this)
    choices = geometry.describe(ensemble, config.seed, halves, origins)
    choices |= {"num_passes": this.number + 1, "num_extra": config.num_extra}
    how = {"pass_overlap": pass_overlap, "num_directions": config.num_directions, "looks": looks}
    state = ensemble.accumulator, halves, found
    result = finish(*state, choices, _sizes(config), config.centred, **how)
    geometry.write_record(folder.workdir, result)
    _report(result)


def _report(record: NADs) -> None:
    """Prints the result as the reader of a log wants it."""
    num_passes = record.config["num_passes"]
    geometry.report(record, "leading NADs", f", passes: {num_passes}")
    if num_passes == 1:
        print(
            "  of a single pass errors are too small and split-half overlaps too high; raise "
            "num_passes"
        )
    share = float(record.eigenvalues.sum()) / record.trace
    print(
        f"  {len(record.eigenvalues)} directions of {record.directions.shape[1]} hold {share:.1%} "
        "of the trace"
    )
    changed = [f"  {1 - overlap:.1e}" for row in record.pass_overlap[-1:] for overlap in row]
    geometry.report_overlaps(record, ", changed by the last pass" if changed else "", changed)


def _make_pass(config: ConfigDict, this: Pass) -> Study:
    """One pass of a config; the next one follows it."""
    ensemble = _read_ensemble(config, this)
    how = config.architecture, ensemble.num_rows
    basis = "random" if this.directions is None else digest(this.directions)
    says, prefix = {"basis": basis}, f"pass_{this.number}_"
    members = geometry.list_members(config, *how, prefix=prefix, says=says)
    sketch_shapes = functools.cache(partial(geometry.state_shapes, ensemble))

    def shapes(member: Member) -> Shapes:
        if member.what is not None:
            return sketch_shapes()
        overlap = max(int(member.name.split("_")[1]) - 1, 0), len(_sizes(config))
        directions = "directions", math.prod(config.image_shape)
        return {"directions": directions, "pass_overlap": overlap}

    def resume(folder: Folder) -> Study:
        if _stored_passes(folder)[:1] == [this.number]:
            return folder.study
        _check_not_lowered(config, folder)
        return _make_pass(config, _read_pass(config, folder))

    is_last = this.number + 1 == config.num_passes
    return Study(
        {"": FIELDS.identity(config)},
        members,
        shapes,
        lambda member, chunk_size: geometry.make_program(ensemble, chunk_size),
        lambda member: geometry.measure_cost(ensemble),
        partial(_collect, config, this),
        check=geometry.check_counted,
        resume=resume,
        estimate=lambda member, given: estimate_ensemble(ensemble, given),
        then=None if is_last else lambda folder: _begin_next(config, folder, this),
        round=(this.number, config.num_passes),
    )


def make_study(config: ConfigDict) -> Study:
    """The passes of a config, from the first one on."""
    validate(config)
    return _make_pass(config, _first_pass(config))


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws the stored results of `workdir`: `nads`, `spectrum`, `overlap`."""
    validate(config)
    result = records.load_nads(workdir / "nads.npz")
    sizes, overlap = result.overlap_sizes, result.pass_overlap
    curves = {"last pass against the one before": (sizes, overlap[-1])} if len(overlap) else {}
    shown = result, config.figure_directions, curves
    return geometry.draw_record(workdir, *shown, formats=formats)
