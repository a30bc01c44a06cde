"""How far a run is, told from its folder alone: what is stored, and where its processes were last.

`progress/plan.json` says what the last command is to compute, `progress/i-of-n.json` where shard i
is. Nothing is computed, compiled or touched, and no file but those is needed: no data, no config.
"""

import contextlib
import hashlib
import json
import math
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging

from experiments.run import origin
from experiments.run.folder import Folder
from experiments.run.lock import is_alive, is_held, list_held, lock_path
from experiments.run.origin import Json, one_line
from experiments.run.progress import clock, write_small
from nad_jax import store
from nad_jax.errors import InputError, check_integer
from nad_jax.store import DamagedError

MOST, MOST_SHARDS = 2**31, 65_536  # a folder that says more is not believed
SILENT_SECONDS = 120.0  # a process on another machine that is silent for so long may be dead
STILL_SECONDS, STILL_NETWORKS = 300.0, 20  # of both, what is longer is worth a word


class Plan(NamedTuple):
    """What a command is to compute.

    counts: what its numbers of networks are called.
    round: the number of the study under way, and of all that follow each other.
    stacked: whether files hold several members each.
    suffix: of files.
    folders: below the run folder, that files are in.
    members: key, see `_key`, and number of networks of each, in the order of the plan.
    series: see `Study`. following: the networks of unlike studies to come.
    """

    counts: str
    round: tuple[int, int]
    stacked: bool
    suffix: str
    folders: list[str]
    members: list[tuple[str, int]]
    series: str = ""
    following: int = 0

    @property
    def digest(self) -> str:
        """A name for it, the same for all studies that follow each other."""
        members = self.members if self.round[1] == 1 else [number for _, number in self.members]
        said = self.series or json.dumps([self.round[1], self.stacked, members])
        return hashlib.sha256(said.encode()).hexdigest()[:16]


class ShardStatus(NamedTuple):
    """Where a shard is.

    done, missing: networks.
    rate: networks a second of its last process, 0: unknown.
    moved: when its last network was stored or advanced, in seconds since 1970, 0: never.
    state: in words.
    runs: whether a process is at work on it.
    """

    name: str
    done: int
    missing: int
    rate: float = 0.0
    moved: float = 0.0
    state: str = "not started"
    runs: bool = False


def _key(folder: str, name: str) -> str:
    """A short name for a member."""
    return hashlib.sha256(f"{folder}\n{name}".encode()).hexdigest()[:16]


def make_plan(folder: Folder) -> Plan:
    """The plan of the study that is under way in a folder."""
    study = folder.study
    members = [(_key(one.folder, one.name), one.num_networks) for one in study.members]
    folders = sorted({one.folder for one in study.members})
    following = sum(one.num_networks for one in study.following)
    how = study.counts, study.round, study.unit_size > 0, study.suffix
    return Plan(*how, folders, members, study.series, following)


def keep_plan(folder: Folder) -> Plan:
    """Writes the plan of the study under way; a folder that cannot be written is said once."""
    plan = make_plan(folder)
    path = folder.workdir / "progress" / "plan.json"
    try:
        write_small(path, plan._asdict())
    except OSError as error:
        logging.log_first_n(logging.WARNING, "%s: %s; no plan is kept", 1, path, error.strerror)
    return plan


def read_plan(workdir: Path) -> Plan:
    """The plan of the last command of a run folder; raises `InputError`, in one line, where there
    is none.
    """
    path = workdir / "progress" / "plan.json"
    if not (workdir / "config.json").exists():
        raise InputError(f"{workdir}: there is no run here")
    if not path.exists():
        raise InputError(
            f"{path}: is missing, for no command of this version has begun here; give its --config=FILE"
        )
    said = origin.parse_object(path, store.read_text(path))
    try:
        members = [(str(key), check_integer("networks", n, 0, MOST)) for key, n in said["members"]]
        number, rounds = said["round"]
        rounds = check_integer("rounds", rounds, 1, MOST)
        number = check_integer("round", number, 0, rounds - 1)
        folders = [_check_folder(name) for name in said["folders"]]
        suffix = re.fullmatch(r"\.(npz|json)", said["suffix"])[0]
        stacked, counts = bool(said["stacked"]), one_line(said["counts"])
        # Which plans of earlier versions lack.
        series = one_line(said.get("series", ""))
        following = check_integer("following", said.get("following", 0), 0, MOST)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(
            f"{path}: is damaged ({type(error).__name__}); give --config=FILE"
        ) from error
    return Plan(counts, (number, rounds), stacked, suffix, folders, members, series, following)


def _check_folder(name: str) -> str:
    """Returns the name of a folder inside the run folder; raises `ValueError` for others."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError
    return name


class Stored(NamedTuple):
    """A member that is stored: how many of its networks diverged, and when it was stored."""

    diverged: int
    at: float


def _read_stored(plan: Plan, workdir: Path) -> tuple[dict[str, Stored], int]:
    """Every stored member, by its key; and how many files are damaged."""
    stored, damaged = {}, 0
    for folder in plan.folders:
        for path in sorted((workdir / folder / "units").glob(f"*{plan.suffix}")):
            try:
                members = list(_read_members(plan, path, folder))
                at = path.stat().st_mtime
                stored |= {key: Stored(diverged, at) for key, diverged in members}
            except (InputError, FileNotFoundError):  # the latter: moved aside just now
                damaged += path.exists()
    return stored, damaged


def _read_members(plan: Plan, path: Path, folder: str) -> Iterator[tuple[str, int]]:
    """The key of each member in a file, and its networks that diverged."""
    if plan.stacked:
        arrays = store.read_npz(path, ("names",), ("diverged_at",))
        names = arrays["names"]
        diverged = arrays.get("diverged_at", np.full(names.shape, -1))
        if names.ndim != 1 or diverged.shape != names.shape or diverged.dtype.kind not in "iuf":
            raise DamagedError(f"{path}: does not say where each network diverged")
        for name, step in zip(names.tolist(), diverged, strict=True):
            yield _key(folder, name), int(step >= 0)
    elif plan.suffix == ".npz":
        diverged = store.read_npz(path, (), ("diverged",)).get("diverged", np.array(0))
        if diverged.shape or diverged.dtype.kind not in "iuf" or not 0 <= diverged <= MOST:
            raise DamagedError(f"{path}: does not say how many networks diverged")
        yield _key(folder, path.stem), int(diverged)
    else:
        origin.parse_object(path, store.read_text(path))
        yield _key(folder, path.stem), 0


def _read_places(plan: Plan, workdir: Path) -> tuple[int, dict[int, Json]]:
    """How many shards there were last, and what each of those that began this plan says."""
    found: dict[int, dict[int, Json]] = {}
    for path in (workdir / "progress").glob("*-of-*.json"):
        match = re.fullmatch(r"(\d{1,9})-of-([1-9]\d{0,8})", path.stem)
        if not match or int(match[2]) > MOST_SHARDS:
            continue
        with contextlib.suppress(InputError, KeyError, TypeError, ValueError, OverflowError):
            said = origin.parse_object(path, store.read_text(path))
            numbers = ("moved", "networks", "seconds", "pid")
            said |= {name: float(said[name]) for name in numbers}
            if said["plan"] == plan.digest and all(map(math.isfinite, map(said.get, numbers))):
                found.setdefault(int(match[2]), {})[int(match[1])] = said
    if not found:
        return 1, {}
    count = max(found, key=lambda n: max(said["moved"] for said in found[n].values()))
    return count, found[count]


def _runs(said: Json, lock: Path) -> bool:
    """Whether the process that says where a shard is, is still there."""
    state, host = one_line(said.get("state")), one_line(said.get("host"))
    if state != "running":
        return False
    held, here = is_held(lock), host == socket.gethostname()
    if held or (here and held is False):
        return held
    if here:  # no locks in this file system
        return is_alive(int(said["pid"]))
    heard = said["moved"]
    with contextlib.suppress(OSError):
        heard = max(heard, lock.stat().st_mtime)
    return time.time() - heard < SILENT_SECONDS


def _state(said: Json, missing: int, runs: bool) -> str:
    """What a process is doing, or what became of it, in words."""
    state, error, host = (one_line(said.get(name, "")) for name in ("state", "error", "host"))
    if state in ("failed", "run again"):
        return f"{state}: {error}"
    if state == "interrupted":
        return "interrupted"
    if state == "ended":
        return "done" if not missing else "ended"
    where = "" if host == socket.gethostname() else f" on {host}"
    if not runs:
        return f"silent,{where}" if where else "stopped"
    networks, seconds, still = said["networks"], said["seconds"], time.time() - said["moved"]
    if networks <= 0:
        return f"running{where}, nothing done yet"
    if still > max(STILL_SECONDS, STILL_NETWORKS * seconds / networks):
        return f"running{where}, but stands still (it compiles, or hangs)"
    return f"running{where}"


def list_shards(plan: Plan, workdir: Path, stored: dict[str, Stored]) -> list[ShardStatus]:
    """Where each shard is, of as many as there were last."""
    count, places = _read_places(plan, workdir)
    number, rounds = plan.round
    shards = []
    for index in range(count):
        mine = plan.members[index::count]
        total = sum(networks for _, networks in mine)
        done = sum(networks for key, networks in mine if key in stored)
        missing = total - done
        if plan.series:
            missing += (plan.following + count - 1 - index) // count
        else:  # each has as many networks
            done, missing = done + number * total, missing + (rounds - 1 - number) * total
        shard = ShardStatus(f"{index}-of-{count}", done, missing)
        if said := places.get(index):
            networks, seconds = (max(said[name], 0.0) for name in ("networks", "seconds"))
            rate = networks / seconds if seconds else 0.0
            runs = _runs(said, lock_path(workdir, shard.name, plan.digest))
            state = _state(said, shard.missing, runs)
            shard = shard._replace(rate=rate, moved=said["moved"], state=state, runs=runs)
        elif not shard.missing:  # by other commands, or other numbers of shards
            moved = max((stored[key].at for key, _ in mine if key in stored), default=0.0)
            shard = shard._replace(moved=moved, state="done")
        shards.append(shard)
    return shards


def describe(plan: Plan, workdir: Path) -> str:
    """The status of a run folder as text: a line for all of it, and one for each shard."""
    stored, damaged = _read_stored(plan, workdir)
    shards = list_shards(plan, workdir, stored)
    done, missing = (
        sum(numbers) for numbers in zip(*(shard[1:3] for shard in shards), strict=True)
    )
    total = done + missing
    diverged = sum(stored[key].diverged for key, _ in plan.members if key in stored)
    lines = [f"{workdir}: {done} of {total} {plan.counts} stored, {missing} missing"]
    lines[0] += f", {diverged} diverged" * (diverged > 0)
    lines[0] += f", {damaged} file{'s' * (damaged > 1)} damaged" * (damaged > 0)
    rates = [shard.rate for shard in shards if shard.rate > 0]
    usual = sum(rates) / len(rates) if rates else 0.0
    table = [("shard", "done", "missing", f"{plan.counts}/min", "rest", "last moved", "state")]
    rests = []
    for shard in shards:
        rate = shard.rate or usual
        rests.append(shard.missing / rate if rate else math.inf if shard.missing else 0.0)
        moved = f"{clock(max(time.time() - shard.moved, 0.0))} ago" if shard.moved else "never"
        speed = f"{60 * shard.rate:.3g}" if shard.rate else "?"
        row = (shard.name, str(shard.done), str(shard.missing), speed, _rest(rests[-1]), moved)
        table.append((*row, shard.state))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for *cells, state in table:
        aligned = (cell.rjust(width) for cell, width in zip(cells, widths, strict=False))
        lines.append(f"  {'  '.join(aligned)}  {state}")
    count = len(shards)
    others = [one.name for one in list_held(workdir, plan.digest) if one.count != count]
    lines += [f"shard {name} is at work, too" for name in others]
    if missing:
        lines.append(f"rest: {_describe_rest(shards, rests, plan.counts)}")
    return "\n".join(lines)


def _describe_rest(shards: list[ShardStatus], rests: list[float], counts: str) -> str:
    """How long it takes until all is there: what runs, and what waits for somebody to run it."""
    pairs = [pair for pair in zip(shards, rests, strict=True) if pair[0].missing]
    running = [rest for shard, rest in pairs if shard.runs]
    waiting = [rest for shard, rest in pairs if not shard.runs]
    parts = []
    if running:
        parts.append(f"{_rest(max(running))} for what runs, each shard at its own rate")
    if waiting:
        networks = sum(shard.missing for shard, _ in pairs if not shard.runs)
        where = "1 shard that does" if len(waiting) == 1 else f"{len(waiting)} shards that do"
        once = f"once started {_rest(max(waiting))} and compilation"
        parts.append(f"{networks} {counts} wait in {where} not run ({once})")
    return "; ".join(parts)


def _rest(seconds: float) -> str:
    return clock(seconds) if seconds < math.inf else "?"
