"""How much memory compiled programs need, and how many networks fit at once."""

import math
import os
from collections.abc import Callable
from typing import Any

import jax

from nad_jax import target

SHARE = 0.7  # of the memory of a device, which a program may need; the rest is for what it does not know
_EXHAUSTED = ("RESOURCE_EXHAUSTED", "Out of memory allocating")  # of accelerators; of a CPU


def device_bytes() -> int:
    """The memory of a device that programs are made for; of a CPU, its share of the machine's."""
    if given := target.memory():
        return given
    devices = target.local_devices()
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(devices)


def limit() -> float:
    """How many bytes a program may need on each device."""
    return SHARE * device_bytes()


def program_bytes(program: Any) -> int:
    """What a compiled program says that it needs on each device: arguments, results and
    intermediate arrays.
    """
    memory = program.memory_analysis()
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return arrays - memory.alias_size_in_bytes + memory.temp_size_in_bytes


def is_exhausted(error: Exception | str) -> bool:
    """Whether an error, or what a process has said of one, is that a device has not enough memory."""
    return any(sign in str(error) for sign in _EXHAUSTED)


def needed_bytes(lowered: jax.stages.Lowered) -> float:
    """What a program needs on each device; infinity where it cannot be compiled for want of memory,
    as on a TPU.
    """
    try:
        return program_bytes(lowered.compile())
    except jax.errors.JaxRuntimeError as error:
        if not is_exhausted(error):
            raise
        return math.inf


def halved(size: int, multiple: int) -> int:
    """The next smaller chunk, a multiple of `multiple`; 0: there is none."""
    return size // multiple // 2 * multiple


def largest_chunk(needs: Callable[[int], float], most: int, multiple: int, allowed: float) -> int:
    """The most networks at once of which a program fits: `most`, or what is left of it after
    halving; at least `multiple`.

    Args:
      needs: the bytes that a program of so many networks needs; it is compiled for it, so few are
        asked for.
      multiple: what the number must be a multiple of.
      allowed: bytes.
    """
    size = max(most // multiple, 1) * multiple
    while size > multiple and (found := needs(size)) > allowed:
        # No program needs more than its share of a larger one, but for what networks share.
        one = needs(multiple) / multiple if math.isinf(found) else found / size
        size = halved(size, multiple)
        while size > multiple and one * size > allowed:
            size = halved(size, multiple)
    return size
