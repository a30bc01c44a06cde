"""Carries out a plan: computes the missing units of one shard, collects the results, or says what there is to do."""

import itertools
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax
from absl import logging

from experiments import interruption
from experiments.plan import Plan, Program, Unit
from experiments.progress import Progress, clock, compile_seconds
from experiments.shards import Shard
from nad_jax.errors import InputError
from nad_jax.snapshots import Snapshots

SNAPSHOT_SECONDS = 60.0  # a unit that takes longer keeps snapshots of its state
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "Out of memory allocating")  # of accelerators; of a CPU
ALONE = Shard()


def run(plan: Plan, workdir: Path, shard: Shard = ALONE) -> bool:
    """Computes what is missing of a shard, and collects if then nothing of the plan is missing: whether that is so."""
    plan.open_folder()
    _compute(plan, workdir, shard)
    missing = plan.find_missing(True)
    if missing and shard.count == 1:
        raise InputError(f"{workdir}: {len(missing)} units were damaged after they had been written; run it again")
    if missing:
        print(f"shard {shard.name} is done; other shards have {_count(missing)} to go")
        return False
    plan.collect([])
    return True


def collect(plan: Plan) -> bool:
    """Collects what is stored, and says what is missing: whether that is nothing."""
    plan.open_folder()
    missing = plan.find_missing(True)
    if len(missing) == len(plan.units):
        raise InputError("nothing of this command is stored yet")
    plan.collect(missing)
    for line in _describe_missing(missing):
        sys.stderr.write(line + "\n")
    return not missing


def _compute(plan: Plan, workdir: Path, shard: Shard) -> None:
    missing = [unit for unit in plan.find_missing(True) if unit.index % shard.count == shard.index]
    total = sum(unit.num_networks for unit in plan.units if unit.index % shard.count == shard.index)
    done = total - sum(unit.num_networks for unit in missing)
    log = workdir / "progress" / f"{shard.name}.jsonl"
    progress = Progress(log, total, done, speaks=shard.index == 0)
    device = jax.local_devices()[0].device_kind
    progress.event("start", shard=shard.name, networks=total, done=done, device=device, jax=jax.__version__)
    if missing and shard.source:
        logging.info("shard %s, from %s", shard.name, shard.source)
    with interruption.resumable():
        for key, group in itertools.groupby(missing, lambda unit: unit.program):
            program = plan.make_program(key, 0)
            for unit in group:
                compiled = compile_seconds()
                program, diverged = _compute_unit(plan, program, unit, workdir, progress)
                compiled = round(compile_seconds() - compiled, 3)
                fields = {"unit": unit.name, "networks": unit.num_networks, "diverged": diverged}
                progress.event("unit", **fields, chunk_size=program.chunk_size, compile_seconds=compiled)
                progress.unit(unit.num_networks, diverged)
                interruption.check()
            del program  # with the images it holds on the device
    progress.event("end")


def _compute_unit(plan: Plan, program: Program, unit: Unit, workdir: Path, progress: Progress) -> tuple[Program, int]:
    """Computes and stores a unit, in smaller chunks where the device is out of memory.

    Beside the number of diverged networks: the program that fitted, for the next unit.
    """

    def report(networks_done: float) -> None:
        progress.show(networks_done)
        interruption.check()

    while True:
        identity = {**program.identity, "unit": unit.name, "chunk_size": program.chunk_size}
        path = workdir / "snapshots" / unit.name
        snapshots = Snapshots(path, identity, SNAPSHOT_SECONDS, interruption.requested)
        try:
            diverged = program.compute(unit, report, snapshots)
        except jax.errors.JaxRuntimeError as error:
            if not any(sign in str(error) for sign in OUT_OF_MEMORY):
                raise
        else:
            snapshots.clear()
            return program, diverged
        smaller = program.chunk_size // 2 // program.smallest_chunk * program.smallest_chunk
        if smaller == 0:
            raise InputError(
                f"{_name(unit.program)}: the device has not enough memory for {program.chunk_size} networks at once, "
                "and there is no smaller chunk"
            )
        logging.warning("out of memory with %d networks at once: %d from now on", program.chunk_size, smaller)
        progress.event("out of memory", unit=unit.name, chunk_size=program.chunk_size)
        program = plan.make_program(unit.program, smaller)


def _name(program: Any) -> str:
    return " ".join(str(part) for part in program) if isinstance(program, tuple) else str(program)


def _count(units: list[Unit]) -> str:
    networks = sum(unit.num_networks for unit in units)
    return f"{networks} network{'s' * (networks != 1)} in {len(units)} unit{'s' * (len(units) != 1)}"


def _describe_missing(missing: list[Unit]) -> list[str]:
    groups: dict[str, list[Unit]] = {}
    for unit in missing:
        groups.setdefault(_name(unit.program), []).append(unit)
    lines = [f"missing: {name}: {_count(units)}" for name, units in groups.items()]
    return [*lines, "the command without --collect computes them"] if lines else []


def describe(plan: Plan, shard: Shard = ALONE) -> None:
    """Prints what there is to do and an estimate of what it takes; computes one batch of each program to measure it."""
    missing = plan.find_missing(False)
    print(f"plan: {_count(plan.units)}; stored {len(plan.units) - len(missing)} units, missing {_count(missing)}")
    per_shard = Counter(unit.index % shard.count for unit in missing)
    counts = [per_shard[index] for index in range(shard.count)]
    print(f"shards: {shard.count}, each with {min(counts)} to {max(counts)} missing units")
    seconds = Counter()
    for key in dict.fromkeys(unit.program for unit in missing):
        units = [unit for unit in missing if unit.program == key]
        cost = plan.measure(key)
        for index in range(shard.count):
            mine = sum(unit.num_networks for unit in units if unit.index % shard.count == index)
            seconds[index] += mine * cost.network_seconds + (cost.compile_seconds if mine else 0.0)
        print(
            f"{_name(key)}: {_count(units)}; compilation {cost.compile_seconds:.1f} s, "
            f"{cost.network_seconds:.3g} s a network, {cost.bytes / 2**20:.0f} MiB of arrays"
        )
    if missing:
        print(f"estimate on this machine: {clock(max(seconds.values()))} for the longest shard")
