"""What a command will take: units and totals at once, then what is measured of each program, or
estimated for devices that are not there.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from experiments.run.folder import ALONE, Folder
from experiments.run.plan import Cost, Study, Unit, Weight
from experiments.run.progress import clock
from experiments.run.runner import (
    by_program,
    check_shard,
    count,
    everything,
    list_missing,
    num_networks,
)
from experiments.run.shards import Shard
from experiments.run.targets import Estimate, Target
from nad_jax import target
from nad_jax.errors import InputError

MEASURE_SECONDS = 120.0  # no measurement is begun that is expected to end later than this


class _Programs(NamedTuple):
    """The missing units of one program: all of them, and those of a shard."""

    name: str
    units: list[Unit]
    mine: list[Unit]

    @property
    def networks(self) -> int:
        return num_networks(self.units)


def _say(line: str) -> None:
    print(line, flush=True)  # the next one may take a minute


def describe(
    study: Study,
    workdir: Path,
    shard: Shard = ALONE,
    measure: bool = True,
    given: Target | None = None,
) -> None:
    """Prints what there is to do and what it will take; touches nothing.

    Args:
      measure: whether a batch of each program is computed to measure it.
      given: devices that programs are compiled for instead, and nothing is measured.

    Raises:
      InputError: for a study whose programs are not compiled for devices that are not there.
    """
    check_shard(study, shard)
    if given and study.estimate is None:
        raise InputError("target: what this experiment takes elsewhere is not estimated")
    folder = Folder(workdir, study, repair=False).open(create=False)
    whole, missing = everything(folder), list_missing(folder)
    stored = num_networks(whole) - num_networks(missing)
    _say(
        f"plan: {count(study, whole)}; stored {stored} {study.counts}, missing "
        f"{count(study, missing)}"
    )
    mine = list_missing(folder, shard) if shard.count > 1 else missing
    _say(f"shards: {shard.count}; shard {shard.name} misses {count(study, mine)}")
    own = by_program(mine)
    programs = [
        _Programs(name, units, own.get(name, [])) for name, units in by_program(missing).items()
    ]
    for program in programs if len(programs) > 1 or not measure else ():
        _say(f"  {program.name}: {count(study, program.units)}")
    if given and programs:
        _estimate(study, programs, shard, given)
    elif measure and programs and not given:
        _measure(study, programs, shard)


def _measure(study: Study, programs: list[_Programs], shard: Shard) -> None:
    """Measures programs, the cheapest first, and says what all of them take on this machine."""
    if len(programs) > 1:
        _say(f"measured on this machine, the cheapest first, for about {MEASURE_SECONDS:.0f} s:")
    weights = {one.name: _weigh(study, one, programs) for one in programs}
    begun, last, costs = time.monotonic(), "", {}
    for program in sorted(programs, key=lambda one: weights[one.name]):
        name, past = program.name, time.monotonic() - begun
        expected = _scale(costs[last], weights[last], weights[name]) if last else None
        if expected and past + _count_seconds(expected) > MEASURE_SECONDS:
            costs[name] = expected
            _say(
                f"{name}: {count(study, program.units)}; not measured, by its operations about "
                f"{expected.network_seconds:.3g} s a {study.counts.removesuffix('s')}"
            )
            continue
        costs[name], last = study.measure_cost(program.units[0].members[0]), name
        _say(_describe_cost(study, program, costs[name]))
    seconds = sum(
        num_networks(one.mine) * costs[one.name].network_seconds
        + (costs[one.name].compile_seconds if one.mine else 0.0)
        for one in programs
    )
    hours = sum(
        one.networks * costs[one.name].network_seconds
        + min(shard.count, len(one.units)) * costs[one.name].compile_seconds
        for one in programs
    )
    hours /= 3600
    devices = len(target.local_devices())
    _say(
        f"estimate on this machine: {clock(seconds)} for shard {shard.name}; "
        f"{hours * devices:.3g} device-hours in all"
    )


def _weigh(study: Study, program: _Programs, programs: list[_Programs]) -> Weight:
    """One of its networks, where there are others to compare with."""
    return Weight() if len(programs) == 1 else study.weigh(program.units[0].members[0])


def _scale(cost: Cost, measured: Weight, other: Weight) -> Cost:
    """What a program is expected to cost by what another one does."""
    slower = other.operations / measured.operations
    return cost._replace(
        compile_seconds=cost.compile_seconds * other.arrays / measured.arrays,
        network_seconds=cost.network_seconds * slower,
        batch_seconds=cost.batch_seconds * slower,
    )


def _count_seconds(cost: Cost) -> float:
    """How long it takes to measure it: the batch is computed once, and smaller parts of it."""
    return cost.compile_seconds + 1.5 * cost.batch_seconds


def _describe_cost(study: Study, program: _Programs, cost: Cost) -> str:
    line = (
        f"{program.name}: {count(study, program.units)}; "
        f"compilation {cost.compile_seconds:.1f} s, {cost.network_seconds:.3g} s a "
        f"{study.counts.removesuffix('s')}, {cost.bytes / 2**20:.0f} MiB of arrays"
    )
    return f"{line}\n  {cost.note}" if cost.note else line


def _estimate(study: Study, programs: Iterable[_Programs], shard: Shard, given: Target) -> None:
    """Compiles programs for devices that need not be there, and says what they take on them."""
    number = len(given.devices)
    devices = f"{number} device{'s' * (number > 1)}"
    _say(f"compiled for {given.name}, {devices}; nothing has run on one:")
    seconds, own = 0.0, 0.0
    for program in programs:
        found = study.estimate(program.units[0].members[0], given)
        one = found.num_steps * found.step_seconds  # of a call for as many as are computed at once
        at_once = found.num_networks * number
        seconds += one * _count_calls(program.units, at_once)
        own += one * _count_calls(program.mine, at_once)
        _say(f"{program.name}: {count(study, program.units)}; {_describe_estimate(found)}")
    if seconds:
        hours = seconds * number / 3600
        _say(
            f"estimate on {given.name}: {clock(own)} for shard {shard.name}; {hours:.3g} "
            "device-hours in all"
        )
    else:
        _say("how long it takes, XLA does not say for these devices")


def _count_calls(units: Iterable[Unit], at_once: int) -> int:
    """How often a program is called that computes so many networks at once: for each unit, and in
    it for each group of its members.
    """
    calls = 0
    for unit in units:
        groups = Counter()
        for member in unit.members:
            groups[member.group] += member.num_networks
        calls += sum(math.ceil(number / at_once) for number in groups.values())
    return calls


def _describe_estimate(found: Estimate) -> str:
    parts = [
        f"compilation {found.compile_seconds:.0f} s",
        f"{found.num_networks} networks a device at once",
        f"{found.bytes / 2**20:.0f} MiB on each",
    ]
    if found.step_seconds:
        parts.append(f"{found.step_seconds * 1e3:.3g} ms {found.per}")
    else:
        parts.append(f"{found.kernels} kernels {found.per}")
    if found.collectives:
        parts.append(f"devices exchange {', '.join(found.collectives)}")
    return ", ".join(parts)
