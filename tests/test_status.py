"""What a run tells of itself: the status of a folder, and logs that move while a shard runs."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments import directional_bias
from experiments.main import _parse_flags, app, main
from experiments.run import lock, progress, runner, status
from experiments.run.folder import Folder
from experiments.run.shards import Shard
from nad_jax import store
from nad_jax.errors import InputError
from tests.commands import Command
from tests.test_command import BIAS
from tests.test_configs import load_config, run
from tests.test_folder import _rounds, _study


def _config(**changes):
    config = load_config("directional_bias").get_config("accuracy_map,logreg")
    config.update(source="pixel", image_shape=(4, 4, 1), frequency_range=(0, 2), unit_size=1)
    config.update(num_train=(40,), num_test=20, num_epochs=1, batch_size=10, **changes)
    return config


def _look(workdir):
    """The status by shard, [done, missing, rate, rest, moved, state], and the other two lines."""
    first, _, *shards, last = status.describe(status.read_plan(workdir), workdir).splitlines()
    if not last.startswith("rest: "):
        shards, last = [*shards, last], ""
    rows = (line.replace(" ago", "").split(maxsplit=6) for line in shards)
    return first, {name: cells for name, *cells in rows}, last


def _contents(folder):
    return {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Sixteen networks of four shards: one is done, one killed, one failed, one never began."""
    workdir = tmp_path_factory.mktemp("killed") / "run"
    config = _config()
    run(directional_bias, config, workdir, Shard(0, 4))
    command = [*BIAS, "--config.source=pixel", "--config.unit_size=1", f"--workdir={workdir}"]
    process = Command(*command, "--shard=1/4", place="after the rename:4")
    assert process.wait() == -9
    study = directional_bias.make_study(config)

    def make_program(member, size):
        raise RuntimeError("the device is on fire\nand more")

    with pytest.raises(RuntimeError):
        runner.run(study._replace(make_program=make_program), workdir, Shard(2, 4))
    return workdir


def test_the_status_of_a_killed_run_says_what_is_done_per_shard_and_touches_nothing(killed):
    before = _contents(killed)
    first, shards, last = _look(killed)
    units = len(list((killed / "units").glob("*.npz")))
    assert 4 < units < 8
    assert first == f"{killed}: {units} of 16 networks stored, {16 - units} missing"
    done, missing, rate, rest, moved, state = shards["0-of-4"]
    assert (done, missing, rest, state) == ("4", "0", "0:00:00", "done")
    assert float(rate) > 0 and moved.startswith("0:0")
    assert shards["1-of-4"][:2] == [str(units - 4), str(8 - units)]
    assert shards["1-of-4"][-1] == "stopped"
    assert shards["2-of-4"][:3] == ["0", "4", "?"]
    assert shards["2-of-4"][-1] == "failed: RuntimeError: the device is on fire"
    assert shards["3-of-4"][-2:] == ["never", "not started"]
    waiting = (
        f"rest: {12 - units + 4} networks wait in 3 shards that do not run (once started 0:00:"
    )
    assert last.startswith(waiting)
    assert _contents(killed) == before


def test_the_status_is_that_of_the_folder_not_of_what_processes_said(killed, tmp_path):
    workdir = shutil.copytree(killed, tmp_path / "run")
    unit, damaged, *_ = sorted(workdir.glob("units/*.npz"))
    unit.unlink()
    damaged.write_bytes(damaged.read_bytes()[:100])
    (workdir / "progress" / "1-of-4.json").write_text("{")
    first, shards, _ = _look(workdir)
    left = len(list((killed / "units").glob("*.npz"))) - 2
    assert first.endswith(f"{left} of 16 networks stored, {16 - left} missing, 1 file damaged")
    assert sum(int(done) for done, *_ in shards.values()) == left
    assert shards["1-of-4"][-1] == "not started"
    run(directional_bias, _config(), workdir)
    first, shards, last = _look(workdir)
    assert (first, last) == (f"{workdir}: 16 of 16 networks stored, 0 missing", "")
    assert [*shards] == ["0-of-1"] and shards["0-of-1"][-1] == "done"


def test_the_status_is_that_of_the_last_command(killed, tmp_path):
    workdir = shutil.copytree(killed, tmp_path / "run")
    run(directional_bias, _config(indices=(0,), sigmas=(3.0, 1.0)), workdir, Shard(0, 2))
    first, shards, _ = _look(workdir)
    assert first == f"{workdir}: 1 of 2 networks stored, 1 missing"
    assert [cells[-1] for cells in shards.values()] == ["done", "not started"]


def test_networks_that_diverged_are_counted(tmp_path):
    config = _config(indices=(0, 1, 2), sigmas=(1e3,), clip_norm=0.0)
    config.optimizers = ("sgd", "sgd:learning_rate=1e38")
    run(directional_bias, config, tmp_path)
    assert _look(tmp_path)[0].endswith("6 of 6 networks stored, 0 missing, 3 diverged")


def _place(workdir, index, **said):
    plan = status.read_plan(workdir)
    place = {"plan": plan.digest, "state": "running", "error": "", "moved": time.time()}
    place |= {"host": socket.gethostname(), "pid": os.getpid(), "networks": 1.0, "seconds": 60.0}
    path = workdir / "progress" / f"{index}-of-2.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**place, **said}))


def test_the_rest_is_what_is_missing_at_the_rate_of_each_shard(tmp_path):
    study = _study(range(20), [])
    folder = Folder(tmp_path, study).open()
    status.keep_plan(folder)
    assert _look(tmp_path)[1] == {"0-of-1": ["0", "20", "?", "?", "never", "not started"]}
    _place(tmp_path, 0, networks=2.0, seconds=60.0, moved=time.time() - 60)
    _, shards, last = _look(tmp_path)
    assert shards["0-of-2"] == ["0", "10", "2", "0:05:00", "0:01:00", "running"]
    assert shards["1-of-2"] == ["0", "10", "?", "0:05:00", "never", "not started"]
    runs = "rest: 0:05:00 for what runs, each shard at its own rate"
    assert (
        last
        == f"{runs}; 10 networks wait in 1 shard that does not run (once started 0:05:00 and compilation)"
    )
    _place(tmp_path, 1, networks=0.5, seconds=30.0, state="interrupted")
    _, shards, last = _look(tmp_path)
    assert shards["1-of-2"][2:] == ["1", "0:10:00", "0:00:00", "interrupted"]
    assert (
        last
        == f"{runs}; 10 networks wait in 1 shard that does not run (once started 0:10:00 and compilation)"
    )
    _place(tmp_path, 1, networks=0.5, seconds=30.0)
    assert _look(tmp_path)[2] == runs.replace("0:05:00", "0:10:00")
    _place(tmp_path, 0, networks=2.0, seconds=60.0, pid=2**22 + 1)
    _place(tmp_path, 1, networks=0.5, seconds=30.0, state="interrupted")
    waits = (
        "rest: 20 networks wait in 2 shards that do not run (once started 0:10:00 and compilation)"
    )
    assert _look(tmp_path)[2] == waits
    for said, state in [
        ({"networks": 0.0, "seconds": 9.0}, "running, nothing done yet"),
        ({"networks": 0.0, "host": "another"}, "running on another, nothing done yet"),
        ({"moved": time.time() - 1190}, "running"),  # twenty networks of a minute take 1200 s
        ({"moved": time.time() - 1210}, "running, but stands still (it compiles, or hangs)"),
        ({"moved": time.time() - 290, "networks": 99.0}, "running"),
        ({"host": "another"}, "running on another"),
        ({"host": "another", "moved": time.time() - 999}, "silent, on another"),
        ({"pid": 2**22 + 1}, "stopped"),
        ({"pid": -1}, "stopped"),
        ({"pid": 10**400}, "not started"),
        ({"state": "failed", "error": "\x1b[2Jgone"}, "failed: ?[2Jgone"),
        ({"state": "run again", "error": "pass 1\nis not over"}, "run again: pass 1 is not over"),
        ({"moved": float("nan")}, "not started"),
        ({"seconds": "long"}, "not started"),
        ({"plan": "of another command"}, "not started"),
    ]:
        _place(tmp_path, 1, **said)
        assert _look(tmp_path)[1]["1-of-2"][-1] == state


@pytest.mark.parametrize(
    ("host", "held", "touched", "state"),
    [
        ("here", True, 999, "running"),  # whatever its number says
        ("here", False, 0, "stopped"),  # its number may be another process's by now
        ("another", True, 999, "running on another"),
        ("another", False, 10, "running on another"),  # locks of another machine may not be seen
        ("another", False, 999, "silent, on another"),
    ],
)
def test_a_process_is_there_where_it_holds_its_lock_or_touches_it_elsewhere(
    host, held, touched, state, tmp_path
):
    plan = status.keep_plan(Folder(tmp_path, _study(range(20), [])).open())
    pid = 2**22 + 1 if held else os.getpid()
    host = socket.gethostname() if host == "here" else host
    _place(tmp_path, 1, host=host, pid=pid, networks=99.0, moved=time.time() - 290)
    path = lock.lock_path(tmp_path, "1-of-2", plan.digest)
    with lock.held(path, "it") if held else contextlib.nullcontext(path.touch()):
        os.utime(path, (time.time() - touched,) * 2)
        assert _look(tmp_path)[1]["1-of-2"][-1] == state


def test_what_is_done_says_when_whoever_did_it(tmp_path):
    """Three shards have done all; then one process finds nothing to do, as one of two."""
    for index in range(3):
        run(directional_bias, _config(indices=(0, 1, 2)), tmp_path, Shard(index, 3))
    for path in tmp_path.glob("units/*"):
        os.utime(path, (time.time() - 3700,) * 2)
    run(directional_bias, _config(indices=(0, 1, 2)), tmp_path, Shard(0, 2))
    _, shards, last = _look(tmp_path)
    assert shards["1-of-2"][4:] == ["1:01:40", "done"] and last == ""


def test_a_folder_that_says_it_has_too_many_shards_is_not_believed(tmp_path):
    status.keep_plan(Folder(tmp_path, _study(range(3), [])).open())
    _place(tmp_path, 0)
    path = tmp_path / "progress" / "0-of-2.json"
    path.rename(path.with_name("0-of-999999999.json"))
    assert [*_look(tmp_path)[1]] == ["0-of-1"]


def test_studies_that_follow_each_other_are_one_run(tmp_path):
    computed = []
    with pytest.raises(runner.RunAgain):
        runner.run(_rounds(computed), tmp_path, Shard(0, 2))
    first, shards, _ = _look(tmp_path)
    assert first.endswith("1 of 6 networks stored, 5 missing")
    assert shards["0-of-2"][-1] == "run again: round 0 is not over"
    with pytest.raises(runner.RunAgain):
        runner.run(_rounds(computed), tmp_path, Shard(1, 2))
    first, shards, _ = _look(tmp_path)  # the second shard has begun the second round
    assert first.endswith("3 of 6 networks stored, 3 missing")
    assert shards["0-of-2"][0] == "1" and shards["1-of-2"][0] == "2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": [["a", -1]]}, "is damaged"),
        ({"members": 3}, "is damaged"),
        ({"folders": ["../elsewhere"]}, "is damaged"),
        ({"folders": ["/etc"]}, "is damaged"),
        ({"suffix": "*"}, "is damaged"),
        ({"round": [0]}, "is damaged"),
        ({"round": [5, 1]}, "is damaged"),
        ({"members": [["a", 10**400]]}, "is damaged"),
    ],
)
def test_a_plan_that_is_damaged_is_refused_in_one_line(changes, message, killed, tmp_path):
    workdir = shutil.copytree(killed, tmp_path / "run")
    path = workdir / "progress" / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InputError, match=message) as caught:
        status.read_plan(workdir)
    assert len(str(caught.value).splitlines()) == 1 and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "stacked"),
    [
        ({"diverged": np.zeros(2)}, False),
        ({"diverged": np.nan}, False),
        ({"diverged": "many"}, False),
        ({"names": ["a"], "diverged_at": [[1, 2]]}, True),
        ({"names": ["a", "b"], "diverged_at": [1]}, True),
        ({"names": "a"}, True),
    ],
)
def test_a_unit_that_says_odd_things_is_counted_as_damaged(arrays, stacked, tmp_path):
    (tmp_path / "units").mkdir()
    store.write_npz(tmp_path / "units" / "a.npz", arrays)
    plan = status.Plan("networks", (0, 1), stacked, ".npz", [""], [(status._key("", "a"), 1)])
    assert "0 of 1 networks stored, 1 missing, 1 file damaged" in status.describe(plan, tmp_path)


def test_processes_of_one_number_write_one_plan(tmp_path, monkeypatch):
    replace, path, before = os.replace, tmp_path / "plan.json", []

    def replaced(*names):
        if not before:  # another process, as the first is about to rename its file
            before.append(names)
            progress.write_small(path, {"by": "the other"})
        replace(*names)

    monkeypatch.setattr(progress.os, "replace", replaced)
    progress.write_small(path, {"by": "the first"})
    assert json.loads(path.read_text()) == {"by": "the first"}
    assert [*tmp_path.iterdir()] == [path]


def test_progress_that_cannot_be_written_does_not_stop_the_work(tmp_path):
    (tmp_path / "progress").write_text("in the way")
    (tmp_path / "config.json").write_text('{"power": 2}')
    assert runner.run(_study((1, 2), []), tmp_path)


def test_a_log_has_a_line_at_once_and_then_one_every_five_seconds(tmp_path, capsys, monkeypatch):
    now = [0.0]
    clock = SimpleNamespace(monotonic=lambda: now[0], time=time.time, strftime=lambda _: "12:34:56")
    monkeypatch.setattr(progress, "time", clock)
    told = progress.Progress(tmp_path / "0-of-1.jsonl", "", 100, 0, False, "networks")
    with told.recorded():
        for tenth in range(601):  # a network a second, after the first three
            now[0] = tenth / 10
            told.show(now[0] if now[0] > 7 else 0.0)
        lines = capsys.readouterr().err.splitlines()
        assert json.loads((tmp_path / "0-of-1.json").read_text())["networks"] == 60
    assert all(line.startswith("12:34:56 ") for line in lines)
    counts = [line.removeprefix("12:34:56 ").partition("/")[0] for line in lines]
    assert counts == ["0", "0", *map(str, range(10, 61, 5))]
    for line in lines[:2]:  # no rate, and no rest, of nothing
        assert line == "12:34:56 0/100 networks, compilation 0 s, 0 diverged"
    assert lines[-1].startswith("12:34:56 60/100 networks, 1 networks/s, ETA 0:00:40, ")


@pytest.mark.parametrize(
    ("in_unit", "said"),
    [(0.0, "3/10 networks, comp"), (0.004, "3/10 networks, comp"), (0.29, "3.29/10 networks, 0.29 n"),
     (4, "7/10 networks, 4 networks/s, ETA 0:00:01")],
)  # fmt: skip
def test_a_rate_is_said_once_a_part_of_a_network_is_done(in_unit, said, tmp_path, monkeypatch):
    told = progress.Progress(tmp_path / "0-of-1.jsonl", "", 10, 3, False, "networks")
    monkeypatch.setattr(told, "_seconds", lambda: 1.0)
    assert told._line(in_unit, False).startswith(said)


def test_what_a_compilation_takes_is_counted_once_and_with_tracing(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(progress, "_stages", [])
    for at, stage, seconds in (
        (101.0, "jaxpr_trace", 0.5),  # of a function that the next one calls
        (103.0, "jaxpr_trace", 3.0),
        (104.0, "jaxpr_to_mlir_module", 1.0),
        (109.0, "backend_compile", 4.0),
        (110.0, "cache_retrieval", 5.0),
    ):
        now[0] = at
        progress._count_compilation(f"/jax/core/compile/{stage}_duration", seconds)
    assert progress.compile_seconds() == pytest.approx(8.0)


def _hurried(*arguments):
    """The command line with a line of its log every fifth of a second."""
    progress.LINE_SECONDS = 0.2
    sys.argv = ["experiments.main", *arguments]
    app.run(main, flags_parser=_parse_flags)


def test_the_log_of_a_running_shard_moves_line_by_line(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    long = [*BIAS, "--config.num_epochs=1000000", workdir, "--shard=1/2"]
    begun, process = time.monotonic(), Command(*long, program=_hurried)
    place = Path(tmp_path, "run", "progress", "1-of-2.json")

    def wait(num_lines):
        while not place.exists() or process.errors.count("\n") < num_lines:
            assert process.poll() is None and time.monotonic() - begun < 120
            time.sleep(0.01)

    wait(1)
    first_line = r"\d\d:\d\d:\d\d shard 1-of-2: 0/2 networks, compilation 0 s, 0 diverged\n"
    assert re.match(first_line, process.errors)
    assert process.errors.endswith("\n")
    wait(4)
    assert process.poll() is None
    first = json.loads(place.read_text())
    assert first["state"] == "running"
    while json.loads(place.read_text()) == first:
        assert time.monotonic() - begun < 120
        time.sleep(0.01)
    shards = _look(tmp_path / "run")[1]
    assert shards["1-of-2"][-1].startswith("running") and shards["0-of-2"][-1] == "not started"
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert _look(tmp_path / "run")[1]["1-of-2"][-1] == "interrupted"
    *lines, last = process.errors.splitlines()
    assert last.startswith("interrupted; ")
    assert all(" shard 1-of-2: 0" in line for line in lines)
    assert 4 <= len(lines) <= (time.monotonic() - begun) / 0.2 + 1
