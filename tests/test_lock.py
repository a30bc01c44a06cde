"""A shard is computed by one process at a time: who has it, who is refused, and who is gone."""

import errno
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import time

import pytest

from experiments.main import _parse_flags, app, main
from experiments.run import lock, runner, status
from experiments.run.folder import Folder
from experiments.run.plan import RunAgain
from experiments.run.shards import Shard
from tests.commands import Command, read_numbers
from tests.test_command import BIAS
from tests.test_folder import _study

ELSEWHERE = json.dumps({"host": "elsewhere", "pid": 17})


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.5)


def test_a_lock_is_touched_on_after_its_storage_was_away(tmp_path, monkeypatch):
    failed, utime = [], os.utime

    def touch(descriptor):
        if len(failed) < 2:
            failed.append(descriptor)
            raise OSError(errno.ESTALE, "Stale file handle")
        utime(descriptor)

    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.02)
    path = tmp_path / "0-of-1.lock"
    with lock.held(path, "it"):
        utime(path, (0, 0))
        monkeypatch.setattr(lock.os, "utime", touch)
        until = time.monotonic() + 10
        while path.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.02)
        assert path.stat().st_mtime > 0 and len(failed) == 2
        monkeypatch.setattr(lock.os, "utime", utime)


def _without_locks(monkeypatch):
    def flock(descriptor, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", flock)


def _refused(path, message):
    with pytest.raises(RunAgain, match=message) as caught, lock.held(path, "it"):
        pass
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("locks", [True, False])
def test_a_second_process_is_refused_until_the_first_has_ended(locks, tmp_path, monkeypatch):
    if not locks:
        _without_locks(monkeypatch)
    path = tmp_path / "progress" / "0-of-1.lock"
    who = f"it is being computed by process {os.getpid()} on {socket.gethostname()}; let it end"
    with lock.held(path, "it"):
        _refused(path, who)
        with lock.held(path.with_name("1-of-2.lock"), "another shard"):
            pass
    assert not [*path.parent.iterdir()]
    with lock.held(path, "it"):
        assert path.exists()


def test_a_lock_of_a_process_that_is_gone_does_not_block(tmp_path, monkeypatch, capsys):
    path = tmp_path / "0-of-1.lock"
    for said in (json.dumps({"host": socket.gethostname(), "pid": os.getpid()}), "", "{", "[3]"):
        path.write_text(said)
        with lock.held(path, "it"):
            assert json.loads(path.read_text())["pid"] == os.getpid()
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": 2**22 + 1}))
    _without_locks(monkeypatch)
    with lock.held(path, "it"):
        pass
    assert capsys.readouterr().err == ""  # none of these is waited for


@pytest.mark.parametrize("seen", ["held", "free", "no locks"])
@pytest.mark.parametrize("alive", [True, False])
def test_a_process_elsewhere_is_at_work_where_its_file_is_touched(
    alive, seen, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "0-of-1.lock"
    path.write_text(ELSEWHERE)
    other = path.open("r+")
    over = threading.Event()
    if seen == "held":
        fcntl.flock(other, fcntl.LOCK_EX)
    elif seen == "no locks":
        _without_locks(monkeypatch)
    beat = threading.Thread(target=lock._beat, args=(other.fileno(), over), daemon=True)
    if alive:
        beat.start()
        _refused(path, "it is being computed by process 17 on elsewhere")
        assert path.read_text() == ELSEWHERE
        over.set()
        beat.join()
    else:
        with lock.held(path, "it"):
            assert json.loads(path.read_text())["host"] == socket.gethostname()
            _refused(path, f"it is being computed by process {os.getpid()} on ")
            same = os.path.samestat(os.fstat(other.fileno()), path.stat())
            assert same == (seen == "free")  # a lock that stays does not stay on this one's file
    assert "waiting to see whether process 17 on elsewhere is still" in capsys.readouterr().err
    other.close()


def test_a_folder_that_cannot_be_written_is_not_locked(tmp_path):
    (tmp_path / "progress").write_text("in the way")
    with lock.held(tmp_path / "progress" / "0-of-1.lock", "it"):
        pass


def test_the_lock_of_another_that_took_it_over_stays(tmp_path):
    path = tmp_path / "0-of-1.lock"
    with lock.held(path, "it"):
        path.unlink()
        path.write_text(ELSEWHERE)
    assert path.read_text() == ELSEWHERE


@pytest.mark.parametrize(
    ("mine", "other", "overlap"),
    [
        ((0, 1), (1, 4), True),
        ((1, 2), (3, 4), True),
        ((1, 2), (2, 4), False),
        ((1, 2), (2, 3), True),
    ],
)
def test_shards_by_other_numbers_overlap_where_they_have_a_unit_in_common(mine, other, overlap):
    units = [set(range(60)[index::count]) for index, count in (mine, other)]
    assert Shard(*mine).overlaps(Shard(*other)) == bool(units[0] & units[1]) == overlap


def test_shards_at_work_are_those_of_a_plan_that_are_held(tmp_path):
    with lock.held(lock.lock_path(tmp_path, "1-of-3", "p"), "it"):
        lock.lock_path(tmp_path, "0-of-3", "p").write_text(ELSEWHERE)
        assert lock.list_held(tmp_path, "p") == [Shard(1, 3)]
        assert not lock.list_held(tmp_path, "another")
    assert not lock.list_held(tmp_path, "p")


def test_a_shard_is_refused_in_a_run_and_other_commands_and_shards_are_not(tmp_path):
    study, computed = _study(range(4), []), []
    plan = status.make_plan(Folder(tmp_path, study).open()).digest
    with lock.held(lock.lock_path(tmp_path, "0-of-2", plan), "it"):
        with pytest.raises(RunAgain, match=rf"^{tmp_path}: shard 0-of-2 is being computed by "):
            runner.run(study, tmp_path, Shard(0, 2))
        assert not (tmp_path / "progress" / "plan.json").exists()  # it leaves no trace
        runner.run(_study(range(4), computed), tmp_path, Shard(1, 2))
        runner.run(_study(range(5), computed), tmp_path, Shard(0, 2))
    assert computed == [[1], [3], [0], [2], [4]]


def test_what_two_processes_share_by_other_numbers_of_shards_is_said(tmp_path, capsys):
    study = _study(range(4), [])
    plan = status.make_plan(Folder(tmp_path, study).open()).digest
    with lock.held(lock.lock_path(tmp_path, "0-of-2", plan), "it"):
        runner.run(study, tmp_path, Shard(1, 2))
        assert "at work" not in capsys.readouterr().err
        runner.run(study, tmp_path)
        said = f"{tmp_path}: shard 0-of-2 is at work on the same, too\n"
        assert said in capsys.readouterr().err
        told = status.describe(status.read_plan(tmp_path), tmp_path)
        assert "\nshard 0-of-2 is at work, too" in told
    assert "at work" not in status.describe(status.read_plan(tmp_path), tmp_path)
    assert not [*(tmp_path / "progress").glob("*.lock")]


def test_two_resumes_of_a_folder_are_told_apart_and_a_killed_one_does_not_block(tmp_path):
    workdir = tmp_path / "run"
    alone = f"--workdir={workdir}"
    long = Command(*BIAS, "--config.sigmas=3,1,2", alone, program=_long)
    begun = time.monotonic()
    while not [*workdir.glob("units/*")]:
        assert long.poll() is None and time.monotonic() - begun < 120
        time.sleep(0.01)
    assert "running" in status.describe(status.read_plan(workdir), workdir)
    second = Command(alone)
    assert second.wait() == 75
    pid = json.loads((workdir / "progress" / "0-of-1.json").read_text())["pid"]
    assert second.errors == (
        f"error: {workdir} is being computed by process {pid} on {socket.gethostname()}; "
        "let it end, or end it\n"
    )
    long.send_signal(signal.SIGKILL)
    assert long.wait() == -9
    assert "stopped" in status.describe(status.read_plan(workdir), workdir)
    assert [*workdir.glob("progress/0-of-1.*.lock")]
    third = Command(alone)
    assert third.wait() == 0, third.errors
    assert "waiting" not in third.errors and not [*workdir.glob("progress/*.lock")]
    assert len(read_numbers(workdir / "results.csv")) == 12


def _long(*arguments):
    """The command line, which does not go on after its second network."""
    written, write = [], Folder.write

    def slow(*args):
        write(*args)
        written.append(args)
        if len(written) == 2:
            time.sleep(300)

    Folder.write = slow
    sys.argv = ["experiments.main", *arguments]
    app.run(main, flags_parser=_parse_flags)
