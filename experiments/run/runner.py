"""Carries out a study: computes the missing units of one shard, collects the results, or says what
there is to do.
"""

import glob
import itertools
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import logging

from experiments.run import command, interruption, origin, status
from experiments.run.folder import ALONE, Folder, read_intact
from experiments.run.lock import held, list_held, lock_path
from experiments.run.plan import RunAgain, Study, Unit, Work
from experiments.run.progress import Progress, compile_seconds
from experiments.run.shards import Shard
from nad_jax.errors import InputError
from nad_jax.memory import halved, is_exhausted
from nad_jax.snapshots import Snapshots

SNAPSHOT_SECONDS = 60.0  # a unit that takes longer keeps snapshots of its state


def damaged_meanwhile(workdir: Path) -> RunAgain:
    """The error of units that were written, and then not there."""
    return RunAgain(
        f"{workdir}: units were damaged after they had been written; run the same command again"
    )


def run(
    study: Study,
    workdir: Path,
    shard: Shard = ALONE,
    allow_other_versions: bool = False,
    said: str = "",
) -> bool:
    """Computes what is missing of a shard, and collects if then nothing of the study is missing:
    whether that is so.

    said: what the folder keeps of the command, see `command.describe`.

    Raises:
      InputError: where it would add to units of other versions, or of another kind of device, and
        must not.
      RunAgain: where another process at work has the shard, and where units were damaged after they
        had been written, or need those that other shards compute.
    """
    check_shard(study, shard)
    folder = Folder(workdir, study).open()
    plan, checked = status.make_plan(folder).digest, None if allow_other_versions else set()
    named = f"{workdir}: shard {shard.name}" if shard.count > 1 else f"{workdir}"
    with held(lock_path(workdir, shard.name, plan), named):
        if to_go := list_missing(folder, shard):
            if checked is not None:
                _check_versions(folder, checked)  # a refused command leaves no trace
            for other in list_held(workdir, plan):
                if other.name != shard.name and other.overlaps(shard):
                    sys.stderr.write(f"{named}: shard {other.name} is at work on the same, too\n")
        if said:
            command.keep(workdir, said)
        progress = _begin(folder, shard, num_networks(to_go))
        with progress.recorded():
            missing = _compute_and_collect(folder, shard, progress, checked)
    if missing:
        print(f"shard {shard.name} is done; other shards have {count(study, missing)} to go")
    return not missing


def _compute_and_collect(
    folder: Folder, shard: Shard, progress: Progress, checked: set[str] | None
) -> list[Unit]:
    """Computes what is missing of a shard, and collects if then nothing is; the units of others
    that are.

    checked: see `_check_versions`; None: other versions may be added to.
    """
    folder = _compute(folder, shard, progress, checked)
    missing = folder.missing()
    if missing and folder.missing(shard):
        raise damaged_meanwhile(folder.workdir)
    if not missing:
        folder.study.collect(folder, 0)
    return missing


def collect(study: Study, workdir: Path, said: str = "") -> bool:
    """Collects what is stored, and says what is damaged or missing: whether that is nothing.

    said: what the folder keeps of the command where it knows none, see `command.describe`.

    Raises:
      RunAgain: where nothing is stored.
    """
    damaged: list[Path] = []
    folder = Folder(workdir, study, damaged=damaged).open(create=False)
    missing = list_missing(folder)
    _tell_damaged(workdir, damaged)
    num_missing = num_networks(missing)
    if num_missing == num_networks(everything(folder)):
        raise RunAgain(f"{workdir}: nothing of this command is stored yet")
    if said:
        command.keep(workdir, said, replace=False)  # what is asked for in between computes nothing
    folder.study.collect(folder, num_missing)
    for name, units in by_program(missing).items():
        sys.stderr.write(f"missing: {name}: {count(study, units)}\n")
    if missing:
        sys.stderr.write("the command without --collect computes them\n")
    return not num_missing


def _tell_damaged(workdir: Path, damaged: list[Path]) -> None:
    """Says in one line which files were found damaged, and what to do."""
    if damaged:
        names = ", ".join(str(path.relative_to(workdir)) for path in damaged)
        them = "them" if len(damaged) > 1 else "it"
        sys.stderr.write(
            f"damaged: {names}: moved aside as *.corrupt; the command without --collect computes "
            f"{them} again\n"
        )


def check_shard(study: Study, shard: Shard) -> None:
    if study.alone and shard.count > 1:
        raise InputError(f"shard: {study.alone}")


def everything(folder: Folder, shard: Shard = ALONE) -> list[Unit]:
    """The units of a shard, of all studies that follow each other; of unlike ones without those
    before.
    """
    before = 0 if folder.study.series else folder.study.round[0]
    return (before + 1) * folder.units(shard) + folder.following(shard)


def list_missing(folder: Folder, shard: Shard = ALONE) -> list[Unit]:
    """Those that are missing: of the study under way, and all of those that follow."""
    return folder.missing(shard) + folder.following(shard)


def _snapshots_path(folder: Folder, unit: Unit) -> Path:
    return folder.workdir / "snapshots" / unit.label


def _check_versions(folder: Folder, checked: set[str]) -> None:
    """Raises `InputError` where other versions, or another kind of device, computed a stored unit.

    What is in `checked` is not read again.
    """
    suffix = folder.study.suffix
    # Names, not paths: there may be thousands, and this is asked before every unit.
    names = {
        name
        for place in {member.folder for member in folder.study.members}
        for name in glob.iglob(f"{glob.escape(str(folder.workdir / place))}/units/*{suffix}")
    }
    for name in sorted(names - checked):
        path = Path(name)
        said = read_intact(path, partial(origin.read_origin, path), False)
        if said is None:
            continue
        checked.add(name)
        if lines := origin.compare_versions(said):
            message = f"{path}: was computed with other versions or on another kind of device"
            message += "; --allow_other_versions adds to its folder nevertheless"
            raise InputError("\n".join([message, *lines]))


def _begin(folder: Folder, shard: Shard, to_go: int) -> Progress:
    """Says in the run folder what there is to do, and that this process begins with its share, of
    which so many networks are missing.
    """
    total = num_networks(everything(folder, shard))
    log, plan = folder.workdir / "progress" / f"{shard.name}.jsonl", status.keep_plan(folder)
    named = shard.name if shard.count > 1 else ""
    how = {"speaks": shard.index == 0, "counts": folder.study.counts, "shard": named}
    progress = Progress(log, plan.digest, total, total - to_go, **how)
    says = {"pid": os.getpid(), "shard": shard.name, "source": shard.source}
    says |= {"device": jax.local_devices()[0].device_kind, "jax": jax.__version__}
    progress.event("start", **says, networks=total, missing=to_go)
    return progress


def _compute(folder: Folder, shard: Shard, progress: Progress, checked: set[str] | None) -> Folder:
    """Computes what is missing of a shard, of this study and of those that follow it; the folder
    with the last of them.

    checked: see `_check_versions`; None: other versions may be added to.
    """

    def check_versions() -> None:  # before every unit: others may be at work in the folder
        if checked is not None:
            _check_versions(folder, checked)

    with interruption.resumable():
        while True:
            missing = folder.missing(shard)
            for _, group in itertools.groupby(missing, lambda unit: unit.program):
                _compute_group(folder, list(group), progress, check_versions)
            for unit in folder.units(shard):  # of a process killed after it had stored its unit
                Snapshots(_snapshots_path(folder, unit), {}, SNAPSHOT_SECONDS).clear()
            if folder.study.then is None:
                return folder
            check_versions()
            folder = _go_on(folder)
            status.keep_plan(folder)


def _go_on(folder: Folder) -> Folder:
    """The folder with the study that follows, or with a later one that another process began."""
    try:
        return folder._replace(study=folder.study.then(folder))
    except (RunAgain, InputError):  # its units are removed when the next study begins
        later = folder.under_way()
        if later.study.round <= folder.study.round:
            raise
        return later


def _compute_group(
    folder: Folder, units: list[Unit], progress: Progress, check_versions: Callable[[], None]
) -> None:
    """Computes and stores the units of one program, in smaller chunks from where the device is out
    of memory.
    """

    def report(networks_done: float) -> None:
        progress.show(networks_done)
        interruption.check()

    program, chunk_size = None, 0
    for unit in units:
        if folder.study.round[1] > 1 and folder.under_way().study.round > folder.study.round:
            return  # another process has gone on
        check_versions()
        compiled, done = compile_seconds(), None
        while done is None:
            program = program or folder.study.make_program(unit.members[0], chunk_size)
            _, chunk_size, smallest, how = program
            identity = {"says": str(folder.describe(unit, how)), "chunk_size": chunk_size}
            path = _snapshots_path(folder, unit)
            how_long = SNAPSHOT_SECONDS, interruption.requested, _clock
            snapshots = Snapshots(path, identity, *how_long)
            try:
                done = program.compute(Work(unit.members, report, snapshots))
            except jax.errors.JaxRuntimeError as error:
                if not is_exhausted(error):
                    raise
                program = None  # frees what it holds before the smaller one takes its place
            if done is None:
                progress.event("out of memory", unit=unit.label, chunk_size=chunk_size)
                chunk_size = _halved(unit.program, chunk_size, smallest)
        (arrays, diverged), seconds = done, snapshots.elapsed()
        folder.write(unit, arrays, how)
        snapshots.clear()
        fields = {"unit": unit.label, "networks": unit.num_networks, "diverged": diverged}
        fields["compile_seconds"] = round(compile_seconds() - compiled, 3)
        fields["seconds"] = round(max(seconds, 0.0), 6)  # without these
        progress.event("unit", **fields, chunk_size=chunk_size)
        progress.unit(unit.num_networks, diverged)
        interruption.check()


def _clock() -> float:
    """Time without compilation."""
    return time.monotonic() - compile_seconds()


def _halved(key: Any, chunk_size: int, smallest: int) -> int:
    """Half the chunk size, as a multiple of the smallest one; raises `InputError` where there is
    none.
    """
    smaller = halved(chunk_size, smallest)
    if smaller == 0:
        raise InputError(
            f"{_name(key)}: the device has not enough memory for {chunk_size} networks at once, "
            "and there is no smaller chunk"
        )
    logging.warning("out of memory with %d networks at once: %d from now on", chunk_size, smaller)
    return smaller


def _name(program: Any) -> str:
    return " ".join(map(str, program)) if isinstance(program, tuple) else str(program)


def by_program(units: list[Unit]) -> dict[str, list[Unit]]:
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        groups.setdefault(_name(unit.program), []).append(unit)
    return groups


def num_networks(units: list[Unit]) -> int:
    return sum(unit.num_networks for unit in units)


def count(study: Study, units: list[Unit]) -> str:
    networks = num_networks(units)
    counts = study.counts if networks != 1 else study.counts.removesuffix("s")
    return f"{networks} {counts} in {len(units)} unit{'s' * (len(units) != 1)}"
