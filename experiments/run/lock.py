"""Which process computes a shard: a file that it locks and touches, so that a second one is refused.

The system gives the lock back when a process ends, however it does. Between machines locks may not
be seen, and some file systems have none: there the file's time says whether its process is alive.
"""

import contextlib
import fcntl
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from absl import logging

from experiments.run import interruption
from experiments.run.origin import one_line
from experiments.run.plan import RunAgain
from experiments.run.shards import Shard

BEAT_SECONDS = 5.0  # between two times that a process at work touches its file
WATCH_SECONDS = 20.0  # a process that has not touched it for so long, while another looks, is gone
OLD_SECONDS = 3600.0  # by any clock


class Holder(NamedTuple):
    """The process that has made a lock file, "" and 0 where it does not say."""

    host: str = ""
    pid: int = 0


def lock_path(workdir: Path, shard: str, plan: str) -> Path:
    """The lock file of a shard of a plan: other commands in the folder have other ones."""
    return workdir / "progress" / f"{shard}.{plan}.lock"


def list_held(workdir: Path, plan: str) -> list[Shard]:
    """The shards of a plan that a process has, as far as this machine sees."""
    found = []
    for path in sorted((workdir / "progress").glob(f"*.{plan}.lock")):
        match = re.match(r"(\d{1,9})-of-([1-9]\d{0,8})\.", path.name)
        if match and is_held(path):
            found.append(Shard(int(match[1]), int(match[2])))
    return found


@contextlib.contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file of a shard, called `what` in messages.

    Where it cannot be written, that is said once and nothing is held.

    Raises:
      RunAgain: in one line, naming the process, where another one at work holds it.
    """
    descriptor, over = None, threading.Event()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _take(path, what)
    except OSError as error:
        logging.log_first_n(logging.WARNING, "%s: %s; not locked", 1, path, error.strerror)
    if descriptor is None:
        yield
        return
    beat = threading.Thread(target=_beat, args=(descriptor, over), daemon=True)
    beat.start()

    def remove() -> None:
        if _is_same(descriptor, path):
            path.unlink()  # before the lock is gone: the file may be another's afterwards

    try:
        with interruption.leaving(remove):
            yield
    finally:
        over.set()
        beat.join(1.0)
        with contextlib.suppress(OSError):
            remove()
        os.close(descriptor)


def _beat(descriptor: int, over: threading.Event) -> None:
    while not over.wait(BEAT_SECONDS):
        with contextlib.suppress(OSError):  # the storage is gone, for now
            os.utime(descriptor)


def _take(path: Path, what: str) -> int:
    """The descriptor of a lock file that is this process's from now on."""
    while True:
        try:
            made, descriptor = True, os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            try:
                made, descriptor = False, os.open(path, os.O_RDWR)
            except FileNotFoundError:  # its holder has just removed it
                continue
        mine = False
        try:
            mine = _claim(path, descriptor, made, what)
        finally:
            if not mine:
                os.close(descriptor)
        if mine:
            return descriptor


def _claim(path: Path, descriptor: int, made: bool, what: str) -> bool:
    """Whether an open lock file is this process's from now on; else it must be opened again.

    made: whether this process has made it.
    """
    locked = _lock(descriptor, fcntl.LOCK_EX)
    if not _is_same(descriptor, path):
        return False
    if locked is False and not os.fstat(descriptor).st_size:
        time.sleep(0.1)  # its process is about to write who it is
    holder = _read(descriptor)
    first = made and locked is not False
    if not first and _is_at_work(path, holder, locked, what):
        who = f"process {holder.pid} on {holder.host}" if holder.host else "another process"
        raise RunAgain(f"{what} is being computed by {who}; let it end, or end it")
    if not first and not locked:  # of a process that is gone
        if _is_same(descriptor, path):  # another process may have done so, and made its own
            path.unlink(missing_ok=True)
        return False
    os.truncate(descriptor, 0)
    said = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
    os.pwrite(descriptor, said.encode(), 0)
    return True


def _is_at_work(path: Path, holder: Holder, locked: bool | None, what: str) -> bool:
    """Whether the process of a lock file is alive."""
    if holder.host in ("", socket.gethostname()):
        if locked is not None:
            return not locked
        if holder.host and not is_alive(holder.pid):
            return False
    with contextlib.suppress(FileNotFoundError):  # it has just ended
        first = _touched(path)
        if locked is not False and time.time() - first > OLD_SECONDS:
            return False
        where = f"process {holder.pid} on {holder.host}" if holder.host else "another process"
        sys.stderr.write(f"{what}: waiting to see whether {where} is still at work\n")
        until = time.monotonic() + WATCH_SECONDS
        while time.monotonic() < until:
            time.sleep(0.1)
            interruption.check()
            if _touched(path) != first:
                return True
    return False


def is_held(path: Path) -> bool | None:
    """Whether a process holds a lock file, as far as this machine sees; None where it has no locks."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        locked = _lock(descriptor, fcntl.LOCK_SH)
        return None if locked is None else not locked
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool | None:
    """Locks a file: whether that was possible; None where its file system has no locks."""
    for _ in range(5 if kind == fcntl.LOCK_EX else 1):  # `is_held` has it for an instant
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:
            return None
    return False


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _touched(path: Path) -> float:
    """When a file was touched last."""
    with path.open("rb") as file:  # what a network file system keeps of it is then read again
        return os.fstat(file.fileno()).st_mtime


def _read(descriptor: int) -> Holder:
    """What a lock file says of its process."""
    try:
        said = json.loads(os.pread(descriptor, 10_000, 0))
        return Holder(one_line(said["host"]), int(said["pid"]))
    except (ValueError, KeyError, TypeError, OverflowError):
        return Holder()


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(pid, 0)  # which signals nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return pid > 0
