"""What a running process tells: a line on a terminal or lines in a log, and in the run folder a JSON
line for every event and a small file that says where it is.
"""

import contextlib
import dataclasses
import json
import math
import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging

from experiments.run import interruption, origin
from experiments.run.plan import RunAgain
from nad_jax.errors import InputError, first_line

LINE_SECONDS = 5.0  # between two lines of a log, and between two versions of the small file
_STAGES = ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")  # of a compilation
_stages: list[tuple[float, float]] = []  # when each began, and its seconds


def _count_compilation(event: str, seconds: float, **_: Any) -> None:
    if event not in [f"/jax/core/compile/{stage}_duration" for stage in _STAGES]:
        return
    begun = time.monotonic() - seconds
    while _stages and _stages[-1][0] >= begun:
        _stages.pop()  # it is a part of this one: a function that is traced calls another
    _stages.append((begun, seconds))


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def compile_seconds() -> float:
    """The time this process has spent on compilation, tracing included, or on reading compiled
    programs from the disk.
    """
    return sum(seconds for _, seconds in _stages)


def write_small(path: Path, said: dict[str, Any]) -> None:
    """Writes a JSON object at once, but without waiting for the disk; raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes in containers have the same number.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_text(json.dumps(said) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@dataclasses.dataclass
class Progress:
    """Counts networks, or what a plan calls them.

    On a terminal the first process rewrites one line in place, others say the end only. In a log or
    a pipe every process writes lines with the time of day, the first at once, then one every few
    seconds.

    log: the file that JSON lines are appended to; each has `event` and `time` (seconds since 1970).
      The small file beside it has the suffix .json, see `experiments.run.status`.
    plan: the digest of what is carried out.
    total, done: the networks of this process, and those that are there.
    speaks: whether this process shows the line on a terminal while it runs.
    counts: what is counted.
    shard: the name of this process where there are several, "" otherwise.
    """

    log: Path
    plan: str
    total: int
    done: int
    speaks: bool
    counts: str
    shard: str = ""

    def __post_init__(self) -> None:
        self._base, self._terminal = self.done, sys.stderr.isatty()
        self._started, self._shown, self._kept = time.monotonic(), -math.inf, -math.inf
        self._compiled, self._diverged = compile_seconds(), 0

    def event(self, name: str, **fields: Any) -> None:
        """Appends a JSON line; a log that cannot be written is said once and does not stop the
        work.
        """
        line = json.dumps({"event": name, "time": round(time.time(), 3), **fields})
        with self._writing():
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logging.log_first_n(
                logging.WARNING, "%s: %s; no events are written", 1, self.log, error.strerror
            )

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Says when the work begins, and how it ends: done, interrupted, or with which error."""
        self._keep("running", 0.0)
        if self.done < self.total:
            self.show(0.0)
        try:
            with interruption.leaving(self._interrupted):
                yield
        except interruption.Interrupted:
            self._interrupted()
            raise
        except Exception as error:
            known = isinstance(error, InputError | RunAgain)
            message = first_line(error) if known else f"{type(error).__name__}: {first_line(error)}"
            self.event("error", message=message)
            self._keep("run again" if isinstance(error, RunAgain) else "failed", 0.0, message)
            raise
        self.event("end")
        self._keep("ended", 0.0)

    def _interrupted(self) -> None:
        self.event("interrupted")
        self._keep("interrupted", 0.0)

    def _keep(self, state: str, in_unit: float, error: str = "") -> None:
        """Writes the small file."""
        self._kept = time.monotonic()
        said = {"plan": self.plan, "state": state, "error": error, "moved": round(time.time(), 3)}
        said |= {"host": socket.gethostname(), "pid": os.getpid()}
        networks = float(self.done + in_unit - self._base)
        said |= {"networks": networks, "seconds": round(self._seconds(), 3)}
        with self._writing():
            write_small(self.log.with_suffix(".json"), said)

    def _seconds(self) -> float:
        """The time since the beginning, without compilation."""
        return max(time.monotonic() - self._started - (compile_seconds() - self._compiled), 0.0)

    def unit(self, networks: int, diverged: int) -> None:
        """A unit of so many networks is stored."""
        self.done += networks
        self._diverged += diverged
        self.show(0.0)

    def show(self, in_unit: float) -> None:
        """Shows where it is, if it is time to; `in_unit` networks of the current unit are done."""
        now, last = time.monotonic(), self.done >= self.total
        if now - self._kept >= LINE_SECONDS:
            self._keep("running", in_unit)
        wait = 0.2 if self._terminal else LINE_SECONDS
        if not last and (now - self._shown < wait or (self._terminal and not self.speaks)):
            return
        self._shown = now
        line = self._line(in_unit, last)
        if self._terminal and self.speaks:
            line = f"\r\x1b[K{line}" + "\n" * last
        else:
            line = f"{time.strftime('%H:%M:%S')} {line}\n"
        sys.stderr.write(line)
        sys.stderr.flush()

    def _line(self, in_unit: float, last: bool) -> str:
        done, compiled = self.done + in_unit, compile_seconds() - self._compiled
        line = f"shard {self.shard}: " if self.shard else ""
        line += f"{math.floor(100 * done) / 100:.12g}/{self.total} {self.counts}"
        if done - self._base >= 0.01:  # of nothing, a rate says nothing
            rate = (done - self._base) / max(self._seconds(), 1e-9)
            line += f", {rate:.3g} {self.counts}/s"
            line += f", ETA {clock((self.total - done) / rate)}" * (not last)
        if self.counts == "networks":
            line += f", compilation {compiled:.0f} s, {self._diverged} diverged"
        return line


def read_seconds(workdir: Path) -> dict[str, float]:
    """What the units of a run folder took, by their labels: seconds a network, without compilation.

    Lines that are damaged say nothing; of several of a unit the last one counts.
    """
    found: dict[str, tuple[float, float]] = {}
    for path in sorted((workdir / "progress").glob("*.jsonl")):
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError, ArithmeticError):
                said = origin.parse_object(path, line)
                when, taken = float(said["time"]), said["seconds"] / said["networks"]
                if said["event"] == "unit" and 0 <= taken < math.inf:
                    found[said["unit"]] = max(found.get(said["unit"], (0.0, 0.0)), (when, taken))
    return {label: taken for label, (_, taken) in found.items()}


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
