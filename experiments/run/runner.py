"""Carries out a plan: computes the missing units of one shard, collects the results, or says what
there is to do.
"""

import glob
import itertools
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import logging

from experiments.run import interruption
from experiments.run.folder import read_intact
from experiments.run.plan import Plan, Unit
from experiments.run.progress import Progress, clock, compile_seconds
from experiments.run.shards import Shard
from nad_jax import store
from nad_jax.errors import InputError
from nad_jax.snapshots import Snapshots

SNAPSHOT_SECONDS = 60.0  # a unit that takes longer keeps snapshots of its state
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory allocating")  # of accelerators; of a CPU
ALONE = Shard()


class RunAgain(Exception):
    """The same command will do what this one could not."""


def run(
    plan: Plan, workdir: Path, shard: Shard = ALONE, allow_other_versions: bool = False
) -> bool:
    """Computes what is missing of a shard, and collects if then nothing of the plan is missing:
    whether that is so.

    Raises:
      InputError: where it would add to units of other versions, or of another kind of device, and
        must not.
      RunAgain: where units were damaged after they had been written, or need those that other
        shards compute.
    """
    plan.open_folder()
    _compute(plan, workdir, shard, allow_other_versions)
    for unit in plan.list_units(shard):  # of a process that was killed after it had stored its unit
        Snapshots(_snapshots_path(workdir, unit), {}, SNAPSHOT_SECONDS).clear()
    missing = plan.find_missing(ALONE, True)
    if missing:
        if plan.find_missing(shard, True):
            raise RunAgain(
                f"{workdir}: units were damaged after they had been written; run the same command "
                "again"
            )
        print(f"shard {shard.name} is done; other shards have {_count(plan, missing)} to go")
        return False
    plan.collect(0)
    return True


def collect(plan: Plan, workdir: Path) -> bool:
    """Collects what is stored, and says what is missing: whether that is nothing.

    Raises:
      RunAgain: where nothing is stored.
    """
    missing = plan.find_missing(ALONE, True) if plan.check_folder() else plan.list_units(ALONE)
    num_missing = _num_networks(missing)
    if num_missing == _num_networks(plan.list_units(ALONE)):
        raise RunAgain(f"{workdir}: nothing of this command is stored yet")
    plan.collect(num_missing)
    for line in _describe_missing(plan, missing):
        sys.stderr.write(line + "\n")
    return not missing


def _snapshots_path(workdir: Path, unit: Unit) -> Path:
    return workdir / "snapshots" / unit.name


def _check_versions(plan: Plan, checked: set[str]) -> None:
    """Raises `InputError` where other versions, or another kind of device, computed a stored unit.

    What is in `checked` is not read again.
    """
    # Names, not paths: there may be thousands, and this is asked before every unit.
    names = {
        name
        for folder in plan.folders
        for name in glob.iglob(f"{glob.escape(str(folder))}/units/*")
    }
    for name in sorted(names - checked):
        path = Path(name)
        if path.suffix not in (".npz", ".json"):
            continue
        origin = read_intact(path, partial(store.read_origin, path), False)
        if origin is None:
            continue
        checked.add(name)
        if lines := store.compare_versions(origin):
            message = f"{path}: was computed with other versions or on another kind of device"
            raise InputError(
                "\n".join(
                    [f"{message}; --allow_other_versions adds to its folder nevertheless", *lines]
                )
            )


def _compute(plan: Plan, workdir: Path, shard: Shard, allow_other_versions: bool) -> None:
    missing, checked = plan.find_missing(shard, True), set()

    def check_versions() -> None:  # before every unit: others may be at work in the folder
        if not allow_other_versions:
            _check_versions(plan, checked)

    total = _num_networks(plan.list_units(shard))
    log = workdir / "progress" / f"{shard.name}.jsonl"
    progress = Progress(
        log, total, total - _num_networks(missing), speaks=shard.index == 0, counts=plan.counts
    )
    device = jax.local_devices()[0].device_kind
    counts = {"networks": total, "missing": _num_networks(missing)}
    progress.event(
        "start",
        pid=os.getpid(),
        shard=shard.name,
        source=shard.source,
        **counts,
        device=device,
        jax=jax.__version__,
    )
    try:
        with interruption.resumable():
            for key, group in itertools.groupby(missing, lambda unit: unit.program):
                _compute_group(plan, key, list(group), workdir, progress, check_versions)
    except interruption.Interrupted:
        progress.event("interrupted")
        raise
    progress.event("end")


def _compute_group(
    plan: Plan,
    key: Any,
    units: list[Unit],
    workdir: Path,
    progress: Progress,
    check_versions: Callable[[], None],
) -> None:
    """Computes and stores the units of one program, in smaller chunks from where the device is out
    of memory.
    """

    def report(networks_done: float) -> None:
        progress.show(networks_done)
        interruption.check()

    program, chunk_size = None, 0
    for unit in units:
        check_versions()
        compiled, diverged = compile_seconds(), None
        while diverged is None:
            program = program or plan.make_program(key, chunk_size)
            chunk_size = program.chunk_size
            identity = {**program.identity, "unit": unit.name, "chunk_size": chunk_size}
            path = _snapshots_path(workdir, unit)
            snapshots = Snapshots(path, identity, SNAPSHOT_SECONDS, interruption.requested)
            try:
                diverged = program.compute(unit, report, snapshots)
            except jax.errors.JaxRuntimeError as error:
                if not any(sign in str(error) for sign in OUT_OF_MEMORY):
                    raise
                smallest = program.smallest_chunk
                program = (
                    None  # frees what it holds on the device before the smaller one takes its place
                )
            if diverged is None:
                progress.event("out of memory", unit=unit.name, chunk_size=chunk_size)
                chunk_size = _halved(key, chunk_size, smallest)
        snapshots.clear()
        fields = {
            "unit": unit.name,
            "networks": unit.num_networks,
            "diverged": diverged,
            "chunk_size": chunk_size,
        }
        progress.event("unit", **fields, compile_seconds=round(compile_seconds() - compiled, 3))
        progress.unit(unit.num_networks, diverged)
        interruption.check()


def _halved(key: Any, chunk_size: int, smallest: int) -> int:
    """Half the chunk size, as a multiple of the smallest one; raises `InputError` where there is
    none.
    """
    smaller = chunk_size // 2 // smallest * smallest
    if smaller == 0:
        raise InputError(
            f"{_name(key)}: the device has not enough memory for {chunk_size} networks at once, "
            "and there is no "
            "smaller chunk"
        )
    logging.warning("out of memory with %d networks at once: %d from now on", chunk_size, smaller)
    return smaller


def _name(program: Any) -> str:
    return " ".join(str(part) for part in program) if isinstance(program, tuple) else str(program)


def _num_networks(units: list[Unit]) -> int:
    return sum(unit.num_networks for unit in units)


def _count(plan: Plan, units: list[Unit]) -> str:
    networks = _num_networks(units)
    counts = plan.counts if networks != 1 else plan.counts.removesuffix("s")
    return f"{networks} {counts} in {len(units)} unit{'s' * (len(units) != 1)}"


def _describe_missing(plan: Plan, missing: list[Unit]) -> list[str]:
    groups: dict[str, list[Unit]] = {}
    for unit in missing:
        groups.setdefault(_name(unit.program), []).append(unit)
    lines = [f"missing: {name}: {_count(plan, units)}" for name, units in groups.items()]
    return [*lines, "the command without --collect computes them"] if lines else []


def describe(plan: Plan, shard: Shard = ALONE) -> None:
    """Prints what there is to do and an estimate of what it takes; computes one batch of each
    program to measure it.
    """
    plan.check_folder()
    everything, missing = plan.list_units(ALONE), plan.find_missing(ALONE, False)
    stored = _num_networks(everything) - _num_networks(missing)
    print(
        f"plan: {_count(plan, everything)}; stored {stored} {plan.counts}, missing "
        f"{_count(plan, missing)}"
    )
    mine = plan.find_missing(shard, False) if shard.count > 1 else missing
    print(f"shards: {shard.count}; shard {shard.name} misses {_count(plan, mine)}")
    seconds = 0.0
    for key in dict.fromkeys(unit.program for unit in missing):
        cost = plan.measure(key)
        networks = _num_networks([unit for unit in mine if unit.program == key])
        seconds += networks * cost.network_seconds + (cost.compile_seconds if networks else 0.0)
        print(
            f"{_name(key)}: {_count(plan, [unit for unit in missing if unit.program == key])}; "
            f"compilation {cost.compile_seconds:.1f} s, {cost.network_seconds:.3g} s a "
            f"{plan.counts.removesuffix('s')}, {cost.bytes / 2**20:.0f} MiB of arrays"
        )
    if missing:
        print(f"estimate on this machine: {clock(seconds)} for shard {shard.name}")
