"""Carries out the items of the report within a time, each taken up where an earlier call left it."""

import contextlib
import datetime
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from experiments.report.items import Item
from experiments.report.measured import Numbers, read_report, write_report
from experiments.run.origin import parse_object
from nad_jax import store
from nad_jax.errors import InputError, first_line

ROOT = Path(__file__).parents[2]
GRACE_SECONDS = 20.0  # before the end of its time a command is told to end
LEAST_SECONDS = 60.0  # with less time left no item is begun
RUN_AGAIN = 75
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


class Process(Protocol):
    """A command under way; what the report needs of `subprocess.Popen`."""

    def wait(self, timeout: float) -> int: ...
    def send_signal(self, number: int) -> None: ...
    def kill(self) -> None: ...


# `launch(command, environment, log)`: its output is appended to the log.
Launch = Callable[[tuple[str, ...], dict[str, str], Path], Process]


class Report(NamedTuple):
    """Where records go, and what each of them says besides its numbers.

    path: the file. runs: the run folders. says: size, device, platform, versions, … write(): makes
    the pages of it. names: what stands in it for the paths of this machine.
    """

    path: Path
    runs: Path
    says: Numbers
    write: Callable[[], None] = lambda: None
    names: Mapping[str, str] = MappingProxyType({})

    def find(self, item: Item) -> Numbers | None:
        """The finished record of an item, of this size and kind of device, whose commands had all
        options that they have now: with a comparison, say.
        """
        wanted = _words(json.loads(self._named(json.dumps(item.typed))))
        mine = (one for one in self._others(item, same=True) if _is_finished(one))
        return next((one for one in mine if wanted <= _words(one["command"])), None)

    def keep(self, item: Item, **numbers: Any) -> None:
        """Writes the record of an item, in place of an earlier one of the same device, unless that
        holds numbers and this one none.
        """
        if "numbers" not in numbers and any(map(_is_finished, self._others(item, same=True))):
            print(f"{item.name}: its earlier record stays")
            return
        said = {"item": item.name, "kind": item.kind, "part": item.part, "says": item.says}
        date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
        record = {**said, **self.says, **numbers, "command": item.typed, "date": date}
        record = json.loads(self._named(json.dumps(record)))
        write_report(self.path, [*self._others(item, same=False), record])
        self.write()

    def _named(self, text: str) -> str:
        """A JSON text with the names of places."""
        for place in sorted(self.names, key=len, reverse=True):
            text = text.replace(json.dumps(place)[1:-1], self.names[place])
        return text

    def _others(self, item: Item, same: bool) -> Iterator[Numbers]:
        """The records that are, or are not, of this item, size and kind of device."""
        mine = {"item": item.name, "size": self.says["size"], "device": self.says["device"]}
        for record in read_report(self.path):
            if all(record.get(name) == value for name, value in mine.items()) == same:
                yield record


def _is_finished(record: Numbers) -> bool:
    return "numbers" in record


def _words(commands: list[str]) -> set[str]:
    return {word for command in commands for word in shlex.split(command)}


# Has Linux end the command where the report is killed, or it would keep the device.
_ENDS_WITH_PARENT = (
    f"import ctypes, os, signal, sys; ctypes.CDLL(None).prctl({_PARENT_DEATH_SIGNAL}, "
    "signal.SIGTERM); os.execvp(sys.argv[1], sys.argv[1:])"
)


def start(command: tuple[str, ...], environment: dict[str, str], log: Path) -> subprocess.Popen:
    """Starts a command from the root of the repository, which ends with this process."""
    starter = (sys.executable, "-c", _ENDS_WITH_PARENT) if sys.platform == "linux" else ()
    with log.open("ab") as file:
        files = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        return subprocess.Popen((*starter, *command), cwd=ROOT, env=environment, **files)


class _State(NamedTuple):
    """How far an item has come: commands done, seconds of all calls so far, their number, how often
    the next command was begun, and what the commands are.
    """

    done: int = 0
    seconds: float = 0.0
    calls: int = 0
    tries: int = 0
    commands: list[str] = []  # noqa: RUF012, not changed


def _read_state(path: Path, commands: list[str]) -> _State:
    """The stored state; of other commands only what they took."""
    if not path.exists():
        return _State(commands=commands)
    said = parse_object(path, store.read_text(path))
    state = _State(**{name: said[name] for name in _State._fields})
    return state if state.commands == commands else state._replace(done=0, commands=commands)


def _write_state(path: Path, state: _State) -> None:
    store.write_text(path, json.dumps(state._asdict()) + "\n")


def carry_out(
    items: list[Item], report: Report, seconds: float, launch: Launch = start, least: float = 0.0
) -> bool:
    """Carries out what is not finished of some items, in their order: whether nothing is left.

    Args:
      seconds: the time there is, from now on. Where it ends the command under way is told to, and
        goes on in the next call.
      launch: starts a command.
      least: seconds without which no item is begun.
    """
    end = time.monotonic() + seconds
    for item in items:
        if report.find(item):
            print(f"{item.name}: is there")
        elif item.missing:
            print(f"{item.name}: not measured, {item.missing}")
            report.keep(item, missing=item.missing)
        elif end - time.monotonic() < least:
            print(f"{item.name}: there is no time left for it; give the same command again")
            return False
        elif not _carry_out_one(item, report, end, launch):
            print(f"{item.name}: was interrupted; the same command goes on with it")
            return False
    return True


def _carry_out_one(item: Item, report: Report, end: float, launch: Launch) -> bool:
    """Carries out one item and keeps its record: whether it came to its end."""
    small = " (here of the small size)" if report.says["size"] == "smoke" else ""
    print(f"{item.name}: {item.says}{small} …", flush=True)
    folders = {name: report.runs / name for name in (item.name, "state", "logs")}
    for name in ("state", "logs"):
        store.make_folder(folders[name])
    path, log = folders["state"] / f"{item.name}.json", folders["logs"] / f"{item.name}.txt"
    state = _read_state(path, item.typed)
    state = state._replace(calls=state.calls + 1)
    for command in item.commands[state.done :]:
        state = state._replace(tries=state.tries + 1)
        code, state = _run(command, item, end, path, log, state, launch)
        if code == RUN_AGAIN:
            if state.tries == item.tries:
                _write_state(path, state._replace(done=state.done + 1, tries=0))
            return False
        if code not in item.ends_with:
            failed = f"exit code {code}, {_last_line(log)}"
            print(f"{item.name}: failed, {failed}")
            report.keep(item, failed=failed, seconds=round(state.seconds, 1))
            return True
        state = state._replace(done=state.done + 1, tries=0)
        _write_state(path, state)
    took = {"seconds": round(state.seconds, 1), "calls": state.calls}
    try:
        report.keep(item, numbers=item.read(folders[item.name]), **took)
    except InputError as error:
        print(f"{item.name}: failed, {first_line(error)}")
        report.keep(item, failed=first_line(error), **took)
    return True


def _run(
    command: tuple[str, ...],
    item: Item,
    end: float,
    path: Path,
    log: Path,
    state: _State,
    launch: Launch,
) -> tuple[int, _State]:
    """The exit code of a command, `RUN_AGAIN` where it was told to end, and the state after it."""
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join(command)}\n")
    begun, before, told = time.monotonic(), state.seconds, False
    process = launch(command, {**os.environ, **item.environment}, log)
    try:
        while True:
            left = end - (0 if told else GRACE_SECONDS) - time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=min(max(left, 0.01), 5.0))
                break
            # Written now and then: this process may be killed.
            state = state._replace(seconds=before + time.monotonic() - begun)
            _write_state(path, state)
            if left <= 0 and told:
                process.kill()
            elif left <= 0:
                process.send_signal(signal.SIGTERM)
                told = True
    except BaseException:  # this process is told to end
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE_SECONDS)
            raise
        process.kill()
        raise
    state = state._replace(seconds=before + time.monotonic() - begun)
    _write_state(path, state)
    return RUN_AGAIN if told and code not in item.ends_with else code, state


def _last_line(log: Path) -> str:
    """What a command has said last, errors before all else."""
    text = log.read_text(encoding="utf-8", errors="replace").rpartition("\n$ ")[2]
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["without a word"])[-1][:300]
