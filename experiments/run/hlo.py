"""What an optimized program of XLA says of itself: estimated time, kernels, communication."""

import re
from collections.abc import Iterator

Computations = dict[str, list[str]]
COLLECTIVES = ("all-reduce", "all-gather", "collective-permute", "all-to-all", "reduce-scatter")
_HEADER = re.compile(r"(?:ENTRY )?%?([\w.\-]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"\swhile\(.*condition=%?([\w.\-]+)")
_BODY = re.compile(r"\swhile\(.*body=%?([\w.\-]+)")
_CONSTANT = re.compile(r"s32\[\]\S* constant\((\d+)\)")
_CALL = re.compile(r"\scall\(.*to_apply=%?([\w.\-]+)")
_KERNEL = re.compile(r"\s(?:fusion|custom-call|copy|sort|convolution|dot|reduce)\(")
_UNKNOWN = 2**60  # estimates from here on say that there is none


def split_computations(text: str) -> tuple[Computations, str]:
    """The lines of every computation of a program by its name, and which one is the entry."""
    found, entry, lines = {}, "", []
    for line in text.splitlines():
        begins = line.rstrip().endswith("{") and not line.startswith((" ", "HloModule"))
        if begins:
            name = _HEADER.match(line)[1]
            lines = found.setdefault(name, [])
            entry = name if line.startswith("ENTRY") else entry
        elif " = " in line:
            lines.append(line)
    return found, entry


def _count_turns(computations: Computations, loop: str) -> int:
    """How often a loop turns: as it says, or as it counts from zero to the only number that its
    condition compares with; 1 where that is not known.
    """
    if trips := _TRIPS.search(loop):
        return int(trips[1])
    condition = computations.get(_CONDITION.search(loop)[1], [])
    ends = [match[1] for match in map(_CONSTANT.search, condition) if match]
    counts = any("compare(" in line and "direction=LT" in line for line in condition)
    return int(ends[0]) if counts and len(ends) == 1 else 1


def _executed(computations: Computations, name: str, times: int = 1) -> Iterator[tuple[str, int]]:
    """Every line that is executed from a computation on, and how often."""
    for line in computations.get(name, ()):
        yield line, times
        if loop := _BODY.search(line):
            yield from _executed(computations, loop[1], times * _count_turns(computations, line))
        if called := _CALL.search(line):
            yield from _executed(computations, called[1], times)


def count_cycles(text: str) -> int:
    """The cycles that XLA expects of a program for a TPU; 0 where it does not say."""
    total = 0
    for line, times in _executed(*split_computations(text)):
        found = _CYCLES.search(line)
        if found and int(found[1]) < _UNKNOWN:
            total += times * int(found[1])
    return total


def count_kernels(text: str) -> int:
    """The kernels of a program for a GPU, or of its largest loop body where these are more: of a
    training step, whether XLA has kept the loop around it or not.
    """
    computations, entry = split_computations(text)
    bodies = {
        match[1] for lines in computations.values() for match in map(_BODY.search, lines) if match
    }
    return max(
        sum(bool(_KERNEL.search(line)) for line in computations[name]) for name in bodies | {entry}
    )


def find_collectives(text: str) -> list[str]:
    """The operations of a program that exchange something between devices."""
    return [name for name in COLLECTIVES if re.search(rf"\s{name}(-start)?\(", text)]
