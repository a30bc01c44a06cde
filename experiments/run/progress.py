"""What a running process tells: one line on a terminal, and a JSON line for every event in the run
folder.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
from absl import logging

_compile_seconds = 0.0


def _count_compilation(event: str, seconds: float, **_: Any) -> None:
    global _compile_seconds
    if event in (
        "/jax/core/compile/jaxpr_to_mlir_module_duration",
        "/jax/core/compile/backend_compile_duration",
    ):
        _compile_seconds += seconds


jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def compile_seconds() -> float:
    """The time this process has spent on compilation, or on reading compiled programs from the
    disk.
    """
    return _compile_seconds


@dataclasses.dataclass
class Progress:
    """Counts networks, or what a plan calls them. The line is rewritten in place on a terminal by
    the first process; others say the end only.

    log: the file that JSON lines are appended to; each has `event` and `time` (seconds since 1970).
    total, done: the networks of this process, and those that are there.
    speaks: whether this process shows the line while it runs.
    counts: what is counted.
    """

    log: Path
    total: int
    done: int
    speaks: bool
    counts: str

    def __post_init__(self) -> None:
        self._base, self._terminal = self.done, self.speaks and sys.stderr.isatty()
        self._started, self._shown = time.monotonic(), 0.0
        self._compiled, self._diverged = compile_seconds(), 0

    def event(self, name: str, **fields: Any) -> None:
        """Appends a JSON line; a log that cannot be written is said once and does not stop the
        work.
        """
        line = json.dumps({"event": name, "time": round(time.time(), 3), **fields})
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            logging.log_first_n(
                logging.WARNING, "%s: %s; no events are written", 1, self.log, error.strerror
            )

    def unit(self, networks: int, diverged: int) -> None:
        """A unit of so many networks is stored."""
        self.done += networks
        self._diverged += diverged
        self.show(0.0)

    def show(self, in_unit: float) -> None:
        """Shows the line; `in_unit` networks of the current unit are done."""
        now, done = time.monotonic(), self.done + in_unit
        last = self.done >= self.total
        if not last and (not self._terminal or now - self._shown < 0.2):
            return
        self._shown = now
        compiled = compile_seconds() - self._compiled
        rate = (done - self._base) / max(now - self._started - compiled, 1e-9)
        line = f"{int(done)}/{self.total} {self.counts}, {rate:.3g} {self.counts}/s"
        if not last:
            line += f", ETA {clock((self.total - done) / rate) if rate > 0 else '?'}"
        if self.counts == "networks":
            line += f", compilation {compiled:.0f} s, {self._diverged} diverged"
        sys.stderr.write(
            f"\r\x1b[K{line}" + ("\n" if last else "") if self._terminal else line + "\n"
        )
        sys.stderr.flush()


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
