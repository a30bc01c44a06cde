"""The command line, or a script, in processes of its own, which are forked from one that has imported
everything: in milliseconds.

A test may have a part of the program replaced there, to kill or hold it up at a place of its
choice.
"""

import csv
import io
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import jax

from experiments import compute_nads
from experiments.main import _parse_flags, app, main
from experiments.run import runner
from nad_jax import store, training

ROOT = Path(__file__).parent.parent
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


class Command:
    """A process of the command line. place: what is replaced there, see `_replace`. variables: of
    its environment. program: a function that is called with the arguments instead.
    """

    def __init__(
        self,
        *arguments: str,
        place: str = "",
        variables: dict[str, str] | None = None,
        program: Callable[..., None] | None = None,
    ) -> None:
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._files = [Path(folder, name) for name in ("out", "err")]
        self._process = _CONTEXT.Process(
            target=_run, args=(arguments, place, variables or {}, program, self._files)
        )
        self._process.start()
        self.send_signal = lambda number: os.kill(self._process.pid, number)
        self.kill = self._process.kill

    def poll(self) -> int | None:
        """The exit code, negative for that of a signal; None while the process runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 300) -> int:
        """Waits for the end and returns the exit code."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(f"still running after {timeout} s: {self.errors}")
        return self._process.exitcode

    @property
    def output(self) -> str:
        """What it has written to the standard output."""
        return self._files[0].read_text()

    @property
    def errors(self) -> str:
        """What it has written to the standard error."""
        return self._files[1].read_text()


def read_numbers(table: Path) -> list[dict[str, str]]:
    """The rows of a `results.csv` but for the seconds that its networks took, which are those of a
    clock.
    """
    rows = csv.DictReader(io.StringIO(table.read_text()))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def script(text: str, *arguments: str, variables: dict[str, str] | None = None) -> Command:
    """A process of a script, as of `python -c`."""
    return Command(text, *arguments, variables=variables, program=_execute)


def _execute(text: str, *arguments: str) -> None:
    sys.argv = ["script", *arguments]
    exec(compile(text, "script", "exec"), {"__name__": "__main__"})


def _run(
    arguments: tuple[str, ...],
    place: str,
    variables: dict[str, str],
    program: Callable[..., None] | None,
    files: list[Path],
) -> None:
    for number, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.chdir(ROOT)
    os.environ.update(variables)
    for name, kind in (("JAX_COMPILATION_CACHE_DIR", str), ("JAX_NUM_CPU_DEVICES", int)):
        if name in variables:  # JAX has read its variables when it was imported
            jax.config.update(name.lower(), kind(variables[name]))
    # One command runs the programs of another, the small ones too.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if program:
        program(*arguments)
        return
    if place:
        runner.SNAPSHOT_SECONDS = 0.0  # after every epoch and chunk
        _replace(*place.partition(":")[::2])
    sys.argv = ["experiments.main", *arguments]
    app.run(main, flags_parser=_parse_flags)


class _Replaced:
    """A module but for some of its functions."""

    def __init__(self, module, **functions):
        self.__dict__.update(functions)
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, name)


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _nothing():
    pass


def _half_written(file, **arrays):
    file.write(b"PK half of it")
    file.flush()
    _kill()


def _send():
    Path(os.environ["SENT"]).touch()
    os.kill(os.getpid(), signal.SIGTERM)


def _long_lasting(*args, **kwargs):
    threading.Timer(0.2, _send).start()
    time.sleep(20)


def _replace(place: str, which: str) -> None:
    """Kills the process at a place of the `which`-th write, or makes a stage long that signals
    itself.
    """

    def at_call(function, before, after=_nothing):
        calls = []

        def replaced(*args, **kwargs):
            calls.append(args)
            if len(calls) == int(which):
                before()
            result = function(*args, **kwargs)
            if len(calls) == int(which):
                after()
            return result

        return replaced

    if place == "no temporary file":
        store.tempfile = _Replaced(store.tempfile, mkstemp=at_call(store.tempfile.mkstemp, _kill))
    elif place == "empty temporary file":
        store.tempfile = _Replaced(
            store.tempfile, mkstemp=at_call(store.tempfile.mkstemp, _nothing, _kill)
        )
    elif place == "half a temporary file":
        store.np = _Replaced(store.np, savez=_half_written)
    elif place == "before the link":
        store.os = _Replaced(os, link=at_call(os.link, _kill))
    elif place == "before the rename":
        store.os = _Replaced(os, replace=at_call(os.replace, _kill))
    elif place == "after the rename":
        store.os = _Replaced(os, replace=at_call(os.replace, _nothing, _kill))
    elif place == "evaluation":
        make_chunk = training.make_chunk
        training.make_chunk = lambda *args: make_chunk(*args)._replace(finish=_long_lasting)
    elif place == "collecting":
        compute_nads.finish = _long_lasting
    elif place != "nothing":
        raise ValueError(place)
