"""SIGTERM and its like: the process ends within seconds, whatever it is doing, and says that it can
be run again.

Schedulers warn with SIGTERM, SIGUSR1 or SIGUSR2, as they are told; SIGHUP says that the terminal is
gone, SIGINT is Ctrl-C.

Python runs a signal handler between two of its own instructions, which is not before a compilation
is over. So a thread waits for the byte that the interpreter writes on arrival, and ends the process
from there.
"""

import contextlib
import functools
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

EXIT_CODE = 75  # EX_TEMPFAIL: run me again
GRACE_SECONDS = 3.0  # for the computation to reach its next epoch and keep a snapshot
ECHO_SECONDS = 0.15  # Slurm's srun sends once more, after .02 s, what Slurm has sent
FAREWELL_SECONDS = 0.5  # for what is to be written in the end; storage may not answer
_ALWAYS = (signal.SIGINT, signal.SIGTERM)
# The others unless who started the process, as `nohup` does, ignores them.
_SIGNALS = (*_ALWAYS, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

_farewells: list[Callable[[], None]] = []
_requested = threading.Event()
_resumable = threading.Event()


class Interrupted(Exception):
    """The end of the process has been asked for."""


@functools.cache  # once
def watch() -> None:
    """From now on these signals end the process; before, which is milliseconds, they do as they do
    without Python.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    take_signals()
    threading.Thread(target=_wait, args=(reader,), daemon=True).start()


def take_signals() -> None:
    """Takes the signals of `watch` again from what has installed handlers of its own, as
    `jax.distributed` does.
    """
    for number in _SIGNALS:
        if number in _ALWAYS or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # a signal without a handler would write no byte


def _wait(reader: int) -> None:
    while os.read(reader, 1)[0] not in _SIGNALS:
        pass
    _requested.set()
    if _resumable.is_set():
        first = time.monotonic()
        while select.select([reader], [], [], max(0, first + GRACE_SECONDS - time.monotonic()))[0]:
            os.read(reader, 4096)
            if time.monotonic() - first > ECHO_SECONDS:
                break  # a second signal ends the wait
    leave()


def leave() -> NoReturn:
    """Ends the process at once: an orderly exit would wait for a computation whose result nobody
    takes.
    """
    last = threading.Thread(target=_take_leave, daemon=True)
    last.start()
    last.join(FAREWELL_SECONDS)
    try:
        _, writable, _ = select.select([], [2], [], 0)
        if writable:  # standard error may be a pipe that nobody reads any more
            os.write(2, b"interrupted; the same command goes on from what is stored\n")
    finally:
        os._exit(EXIT_CODE)


def _take_leave() -> None:
    for farewell in reversed(_farewells):
        with contextlib.suppress(OSError):
            farewell()


@contextlib.contextmanager
def leaving(farewell: Callable[[], None]) -> Iterator[None]:
    """A block out of which the process may be ended: this is called before it is."""
    _farewells.append(farewell)
    try:
        yield
    finally:
        _farewells.remove(farewell)


def requested() -> bool:
    """Whether the end of the process has been asked for."""
    return _requested.is_set()


def check() -> None:
    """Raises `Interrupted` where the end of the process has been asked for."""
    if _requested.is_set():
        raise Interrupted


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Work that calls `check` when its state is stored: a first signal leaves it some time to get
    there.
    """
    _resumable.set()
    try:
        yield
    finally:
        _resumable.clear()
    check()
