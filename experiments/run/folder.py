"""A run folder: the units of a study, written at once, read with suspicion, found by their names.

A member's name is what determines it, so a folder is extended by any sweep axis and nothing is
computed twice.
"""

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from experiments.run import origin
from experiments.run.origin import Json
from experiments.run.plan import Arrays, Member, Shapes, Study, Unit
from experiments.run.shards import Shard
from nad_jax import store
from nad_jax.errors import InputError
from nad_jax.store import DamagedError

ALONE = Shard()
SETTINGS = ("config.json", "command.json", "run.json")  # which no result is
RESULTS = (".csv", ".json", ".md", ".npz", ".npy", ".png", ".pdf", ".svg")
TEXTS = ("names", "coordinates")  # arrays of text, of each network in a file of several
EARLIER = {"networks", "even_exponent", "odd_exponent"}  # what units of earlier versions lack


def list_results(workdir: Path) -> dict[Path, int]:
    """The files of a run folder that are results: tables, records and figures, of its points too;
    and when each was written.
    """
    inner, found = ("units", "snapshots", "progress"), {}
    for folder, folders, names in os.walk(workdir):
        folders[:] = sorted(name for name in folders if name not in inner)
        for name in sorted(names):
            path = Path(folder, name)
            if name not in SETTINGS and path.suffix in RESULTS:
                with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                    found[path] = path.stat().st_mtime_ns
    return found


def digest(*arrays: np.ndarray) -> str:
    """A name for the content of arrays."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(f"{array.dtype.str} {array.shape} ".encode())
        content.update(np.ascontiguousarray(array))
    return content.hexdigest()[:16]


def read_intact(
    path: Path, read: Callable[[], Any], repair: bool, damaged: list[Path] | None = None
) -> Any:
    """What `read()` gives of a stored file; None where there is no intact one, damaged ones moved
    aside if `repair`, and either said to be computed again or added to `damaged`.
    """
    try:
        return read()
    except DamagedError as error:
        if repair:
            aside = store.quarantine(path)
            if damaged is None:
                logging.warning("%s; kept as %s, computed again", error, aside.name)
            else:
                damaged.append(path)
    except InputError:
        if path.exists():
            raise
        # Another process has just moved it aside, or removed it.
    return None


class Stored(NamedTuple):
    """A member as it is found in a file of several.

    name: of the member. arrays: its own. label: of the file. said: by it of itself.
    """

    name: str
    arrays: Arrays
    label: str
    said: Json


class Folder(NamedTuple):
    """The run folder of a study; damaged files in it are moved aside if `repair`, see
    `read_intact`.
    """

    workdir: Path
    study: Study
    repair: bool = True
    damaged: list[Path] | None = None

    def open(self, create: bool = True) -> "Folder":
        """Checks that it holds this study, and makes it where there is none, if `create`; it as
        `under_way`.
        """
        check = origin.open_run_folder if create else origin.check_run_folder
        for name, identity in self.study.identities.items():
            check(self.workdir / name, identity)
        found = self.under_way()
        for name in {member.folder for member in self.study.members} if create else ():
            store.make_folder(self.workdir / name / "units")
        return found

    def under_way(self) -> "Folder":
        """It with the study that is under way, of those that follow each other."""
        return self._replace(study=self.study.resume(self)) if self.study.resume else self

    def units(self, shard: Shard = ALONE) -> list[Unit]:
        """The units of a shard: which networks a shard has does not depend on the machine."""
        return self._group(self.study.members[shard.index :: shard.count])

    def following(self, shard: Shard = ALONE) -> list[Unit]:
        """Units that cost what those of the studies to come will."""
        number, rounds = self.study.round
        if self.study.series:
            return self._group(self.study.following[shard.index :: shard.count])
        return (rounds - 1 - number) * self.units(shard)

    def missing(self, shard: Shard = ALONE) -> list[Unit]:
        """Those, or the rest of them, that are not stored intact."""
        mine = self.study.members[shard.index :: shard.count]
        stored = self.stored(mine)
        done = {(m.folder, m.name) for m, arrays in stored if self.study.is_done(m, arrays)}
        return self._group([m for m in mine if (m.folder, m.name) not in done])

    def _group(self, members: Sequence[Member]) -> list[Unit]:
        size = self.study.unit_size
        if not size:
            return [Unit(member.name, [member]) for member in members]
        units = []
        for _, group in itertools.groupby(members, lambda member: member.program):
            same = list(group)
            for first in range(0, len(same), size):
                chosen = same[first : first + size]
                names = "\n".join(member.name for member in chosen)
                name = hashlib.sha256(names.encode()).hexdigest()[:16]
                units.append(Unit(f"networks_{name}", chosen))
        return units

    def stored(self, members: Iterable[Member] | None = None) -> Iterator[tuple[Member, Arrays]]:
        """The members (default: all) that are stored intact, and their arrays, one by one."""
        members = self.study.members if members is None else members
        if self.study.unit_size:
            table = self._read_table()
            yield from ((one, table[one.name].arrays) for one in members if one.name in table)
            return
        for member in members:
            arrays = self.read(member)
            if arrays is not None:
                yield member, arrays

    def read(self, member: Member) -> Arrays | None:
        """The arrays of a member that is a file of its own; None where there is no intact one."""
        path, shapes = self.path(member.name, member.folder), self.study.shapes(member)

        def read() -> Arrays:
            arrays, said = self._read_file(path, shapes, member.folder)
            own = {"unit": member.name, **member.says}
            if any(said.get(name) != value for name, value in own.items()):
                raise DamagedError(f"{path}: is a unit of something else")
            try:
                self.study.check(member, arrays)
            except DamagedError as error:
                raise DamagedError(f"{path}: {error}") from error
            return arrays

        return read_intact(path, read, self.repair, self.damaged)

    def _read_table(self) -> dict[str, Stored]:
        """Every stored member by its name, those of other commands included."""
        found = {}
        shapes = self.study.shapes(self.study.members[0])
        shapes = {name: ("networks", *shape) for name, shape in {**shapes, "names": ()}.items()}
        more = {"coordinates": ("networks",)}
        for path in sorted((self.workdir / "units").glob("networks_*.npz")):
            read = partial(self._read_file, path, shapes, optional=more)
            stored = read_intact(path, read, self.repair, self.damaged)
            if stored is None:
                continue
            columns, said = stored
            for row in zip(*columns.values(), strict=True):
                arrays = dict(zip(columns, row, strict=True))
                name = str(arrays.pop("names"))
                found[name] = Stored(name, arrays, path.stem, said)
        return found

    def stored_by_command(self) -> tuple[list[tuple[Member, Stored]], list[Stored]]:
        """The members that are stored in files of several, and what else there is of other
        commands.
        """
        table = self._read_table()
        mine = [(one, table.pop(one.name)) for one in self.study.members if one.name in table]
        return mine, list(table.values())

    def _read_file(
        self, path: Path, shapes: Shapes, folder: str = "", optional: Shapes | None = None
    ) -> tuple[Arrays, Json]:
        """The arrays of a file, of these shapes, and what it says of itself; those `optional` ones
        too that are there.

        Raises:
          DamagedError: where it is not intact.
          InputError: where it is of another configuration, or of an earlier version, which did not
            count networks.
        """
        identity = self.study.identities[folder]
        is_json = path.suffix == ".json"
        if is_json:
            text = store.read_text(path)
            arrays = {**origin.parse_object(path, text), "config": text}
        else:
            arrays = store.read_npz(path)
        missing = [name for name in (*shapes, "config") if name not in arrays]
        if missing and {*missing} <= EARLIER:
            raise InputError(
                f"{path}: does not count its networks, an earlier version wrote it; name another "
                "folder"
            )
        if missing:
            raise DamagedError(f"{path}: array {missing[0]!r} is missing")
        said = origin.check_origin(path, arrays["config"], identity)
        shapes = {**shapes, **{n: s for n, s in (optional or {}).items() if n in arrays}}
        lengths: dict[str, int] = {}
        for name, shape in () if is_json else shapes.items():
            array, kinds = arrays[name], "U" if name in TEXTS else "iuf"
            wanted = [
                lengths.setdefault(axis, length) if isinstance(axis, str) else axis
                for axis, length in zip(shape, array.shape, strict=False)
            ]
            if [len(shape), *wanted] != [array.ndim, *array.shape] or array.dtype.kind not in kinds:
                raise DamagedError(f"{path}: {name} has shape {array.shape} of {array.dtype}")
        return {name: arrays[name] for name in shapes}, said

    def path(self, name: str, folder: str = "") -> Path:
        """The file of this name."""
        return self.workdir / folder / "units" / f"{name}{self.study.suffix}"

    def names(self, folder: str = "") -> list[str]:
        """The names of the files that are stored."""
        files = (self.workdir / folder / "units").glob(f"*{self.study.suffix}")
        return sorted(path.stem for path in files)

    def describe(self, unit: Unit, how: Json) -> np.ndarray:
        """What a unit says of itself, see `origin.describe_origin`."""
        member = unit.members[0]
        identity = self.study.identities[member.folder]
        return origin.describe_origin(identity, unit=unit.name, **member.says, **how)

    def write(self, unit: Unit, arrays: Arrays, how: Json) -> None:
        """Stores the arrays of a unit, at once, and what computed them."""
        said, path = self.describe(unit, how), self.path(unit.name, unit.members[0].folder)
        if path.suffix == ".json":
            content = {**json.loads(str(said)), **arrays}
            store.write_text(path, json.dumps(content, indent=1) + "\n")
            return
        if self.study.unit_size:
            arrays = {**arrays, "names": [member.name for member in unit.members]}
        store.write_npz(path, {**arrays, "config": said})

    def read_origins(self, members: Iterable[Member]) -> list[Json]:
        """What the stored ones of these members, files of their own, say of themselves."""
        paths = [self.path(member.name, member.folder) for member in members]
        said = [read_intact(path, partial(origin.read_origin, path), False) for path in paths]
        return [one for one in said if one is not None]

    def remove(self, name: str, folder: str = "") -> None:
        """Removes a file that other ones stand in place of."""
        store.remove(self.path(name, folder))
