"""What an experiment is asked to compute: a study of members that do not depend on each other.

An experiment says what there is, which arrays each member has, how they are computed and what
becomes of them; the runner alone opens, checks, lists, reads and writes what is stored.
"""

from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.run.origin import Json
from nad_jax.snapshots import Snapshots

if TYPE_CHECKING:
    from experiments.run.folder import Folder
    from experiments.run.targets import Estimate, Target

Arrays = Mapping[str, np.ndarray]  # of what is stored as JSON, JSON values
Shapes = dict[str, tuple[int | str, ...]]  # an axis with a name has one length in all of a unit


class RunAgain(Exception):
    """The same command will do what this one could not."""


class Member(NamedTuple):
    """The least that is computed: one network, or networks of an ensemble that are merged.

    name: says what determines it, within its folder.
    program: members of equal programs are computed by one compiled program; printable.
    what: what the experiment needs to know of it.
    num_networks: how many they are.
    folder: where it is stored, below the run folder; "": in the run folder itself.
    says: JSON values that its file carries besides; one that says something else is not its own.
    group: members of a unit that differ in it are not computed by the same call of a program.
    """

    name: str
    program: Hashable
    what: Any
    num_networks: int = 1
    folder: str = ""
    says: Mapping[str, Any] = MappingProxyType({})
    group: Hashable = None


class Unit(NamedTuple):
    """Members of one program that are computed together, and stored as one file of this name."""

    name: str
    members: list[Member]

    @property
    def label(self) -> str:
        """Its name among the units of all folders."""
        return ",".join(filter(None, (self.members[0].folder, self.name)))

    @property
    def program(self) -> Hashable:
        return self.members[0].program

    @property
    def num_networks(self) -> int:
        return sum(member.num_networks for member in self.members)


class Work(NamedTuple):
    """A unit to compute: its members, `progress(networks_done)`, and what keeps the state."""

    members: list[Member]
    progress: Callable[[float], None]
    snapshots: Snapshots


class Program(NamedTuple):
    """What computes the units of one program, `chunk_size` networks at a time.

    compute(work): the arrays of a unit, and how many of its networks diverged.
    smallest_chunk: what chunk sizes must be a multiple of.
    how: JSON values that are recorded beside its numbers: mapping, chunk size, the model.
    """

    compute: Callable[[Work], tuple[Arrays, int]]
    chunk_size: int
    smallest_chunk: int
    how: Json


class Cost(NamedTuple):
    """What a program costs, measured with one batch: seconds to compile, seconds a network, bytes
    of memory; what may be said of it besides; and the seconds that the batch took.
    """

    compile_seconds: float
    network_seconds: float
    bytes: int
    note: str = ""
    batch_seconds: float = 0.0


class Weight(NamedTuple):
    """By which cheap programs are told from dear ones before they are measured: operations of a
    network at one input, and in how many arrays its variables are, as its program grows with them.
    """

    operations: float = 1.0
    arrays: int = 1


class Study(NamedTuple):
    """What a command asks for.

    identities: of the run folder, under "", and of each folder below it: what determines the
      numbers of its units, as JSON values.
    members: in the order of the table; those of one program stand together.
    shapes(member): of its arrays; an axis with a name has the same length in all of them.
    make_program(member, chunk_size): what computes units of its program; a chunk size of 0 is that
      of the config; where that leaves it open, programs may be compiled to find what fits.
    measure_cost(member): what its program costs.
    collect(folder, num_missing): writes and prints the results of what is stored; how many networks
      are not.
    unit_size: how many members are stored as one file, their arrays stacked; 0: each in a file of
      its own name.
    check(member, arrays): raises `DamagedError` where arrays of these shapes are not its own.
    is_done(member, arrays): whether what is stored need not be computed again.
    resume(folder): the study that is under way in a folder, of those that follow each other; raises
      `InputError` where the folder holds more than the command asks for.
    then(folder): the study that follows this one, all of which is stored.
    round: the number of this study among as many that follow each other.
    series: a name for all that follow each other, where they are unlike; "": each has as many
      networks as this one.
    following: of unlike ones, members that cost what those to come will.
    suffix: of its files: .npz, or .json for JSON values, whose shapes are not checked.
    counts: what its numbers of networks are called.
    alone: why no other process may share its work; "": others may.
    weigh(member): one of its networks.
    estimate(member, target): what its program takes on devices that need not be there; None: that
      is not estimated.
    """

    identities: dict[str, Json]
    members: list[Member]
    shapes: Callable[[Member], Shapes]
    make_program: Callable[[Member, int], Program]
    measure_cost: Callable[[Member], Cost]
    collect: Callable[["Folder", int], None]
    unit_size: int = 0
    check: Callable[[Member, Arrays], None] = lambda member, arrays: None
    is_done: Callable[[Member, Arrays], bool] = lambda member, arrays: True
    resume: Callable[["Folder"], "Study"] | None = None
    then: Callable[["Folder"], "Study"] | None = None
    round: tuple[int, int] = (0, 1)
    series: str = ""
    following: tuple[Member, ...] = ()
    suffix: str = ".npz"
    counts: str = "networks"
    alone: str = ""
    weigh: Callable[[Member], Weight] = lambda member: Weight()
    estimate: Callable[[Member, "Target"], "Estimate"] | None = None
