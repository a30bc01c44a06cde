"""What an experiment is asked to compute: units that do not depend on each other, each stored as
one file.
"""

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.run.shards import Shard
from nad_jax.snapshots import Snapshots


class Unit(NamedTuple):
    """Networks that are computed together.

    name: of its snapshots; says what determines it.
    program: units of equal programs are computed by one compiled program; printable.
    num_networks: how many they are.
    members: what the experiment needs to know of them.
    """

    name: str
    program: Hashable
    num_networks: int
    members: Any


class Program(NamedTuple):
    """What computes the units of one program, `chunk_size` networks at a time.

    compute(unit, progress, snapshots): computes and stores a unit, and gives the number of its
      diverged networks.
    identity: what its snapshots depend on besides their unit, as JSON values.
    smallest_chunk: what chunk sizes must be a multiple of.
    """

    compute: Callable[[Unit, Callable[[float], None], Snapshots], int]
    chunk_size: int
    smallest_chunk: int
    identity: dict[str, Any]


class Cost(NamedTuple):
    """What a program costs, measured with one batch: seconds to compile, seconds a network, bytes
    of memory.
    """

    compile_seconds: float
    network_seconds: float
    bytes: int


class Plan(NamedTuple):
    """A command, as units and as functions of the run folder.

    open_folder(): creates the run folder, or checks that an existing one holds this configuration.
    check_folder(): whether there is one, of this configuration; changes nothing.
    list_units(shard): the units of a shard. Which networks a shard has does not depend on the
      machine.
    find_missing(shard, repair): those, or the rest of them, that are not stored intact; damaged
      files are moved aside where `repair`.
    make_program(program, chunk_size): a chunk size of 0 is that of the config; where that leaves it
      open, programs may be compiled to find what fits.
    measure(program): what it costs.
    collect(num_missing): writes and prints the results of what is stored; how many networks are
      not.
    folders: where its units are stored, in `units`, each of which says what computed it (see
      `store.describe_origin`).
    counts: what its numbers of networks are called.
    """

    open_folder: Callable[[], None]
    check_folder: Callable[[], bool]
    list_units: Callable[[Shard], list[Unit]]
    find_missing: Callable[[Shard, bool], list[Unit]]
    make_program: Callable[[Any, int], Program]
    measure: Callable[[Any], Cost]
    collect: Callable[[int], None]
    folders: list[Path]
    counts: str = "networks"
