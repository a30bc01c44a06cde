import ast
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import published
from experiments.main import EXPERIMENTS
from experiments.report import __main__ as command
from experiments.report import carry_out, items, measured, pages
from experiments.report.carry_out import Report
from experiments.report.items import TESTS, Item, Settings
from nad_jax import basis_random, dft_direction
from nad_jax.errors import InputError
from tests.cifar_files import BINARY, make_batches, write_folder
from tests.commands import ROOT, Command, script
from tests.test_readme import _parse

PYTEST = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
OWN = ROOT / "docs" / "accelerators.json"


class _Forked:
    """A command in a forked process, as the report sees it."""

    def __init__(self, command, environment, log):
        _, _, module, *arguments = command
        forked = {"experiments.main": Command, "pytest": lambda *rest: script(PYTEST, *rest)}
        self._command, self._log = forked[module](*arguments), log
        self.send_signal, self.kill = self._command.send_signal, self._command.kill

    def wait(self, timeout):
        self._command._process.join(timeout)
        code = self._command.poll()
        if code is None:
            raise subprocess.TimeoutExpired("forked", timeout)
        with self._log.open("a") as file:
            file.write(self._command.output + self._command.errors)
        return code


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The folder of a report at smoke size, all four parts, and its arguments."""
    folder = tmp_path_factory.mktemp("report")
    write_folder(folder / "cifar", BINARY, make_batches(count=16))
    (folder / "published").mkdir()
    np.save(folder / "published" / "LeNet_NADs.npy", np.asarray(basis_random(0, 1024)))
    table = "x,y,accuracy_logreg\n8,8,100\n10,8,80\n8,10,60\n10,10,50\n"
    (folder / "published" / "map.csv").write_text(table)
    arguments = ["--size=smoke", f"--runs={folder / 'runs'}", f"--published={folder / 'published'}"]
    arguments += [f"--cifar={folder / 'cifar'}"]
    before = OWN.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "find_lacks", lambda *_: {"torch": "there is no PyTorch"})
        assert command.main(arguments, launch=_Forked) == 0
    assert OWN.read_bytes() == before  # never there
    return folder, arguments


def test_every_part_runs_at_smoke_size(smoke):
    folder, _ = smoke
    found = measured.read_report(folder / "runs" / "accelerators.json")
    assert [(r["part"], r["item"]) for r in found] == [
        (1, "map_lenet"), (1, "torch_lenet"), (1, "tests"), (2, "benchmark_lenet_chunks"),
        (3, "nads_lenet"), (3, "leading"), (4, "map_vgg11"), (4, "flip_lenet"), (4, "poison_lenet"),
    ]  # fmt: skip
    named = {record["item"]: record for record in found}
    assert named.pop("torch_lenet")["missing"] == "there is no PyTorch"
    for record in named.values():
        assert record["seconds"] > 0 and record["size"] == "smoke" and record["platform"] == "cpu"
        assert {"jax", "nad_jax"} <= {*record["versions"]}
        assert not any(str(place) in json.dumps(record) for place in (ROOT, folder / "cifar"))
    numbers = {name: record["numbers"] for name, record in named.items()}
    assert numbers["map_lenet"]["networks"] == 4 + 3  # there is no sine of 0
    assert numbers["map_lenet"]["published"]["cells"] == 4
    assert numbers["tests"]["passed"] > 1 and not numbers["tests"]["failures"]
    (row,) = numbers["benchmark_lenet_chunks"]["rows"]
    assert row["chunk_size"] == 2 and row["seconds"] > 0 and row["operations"] > 0
    assert numbers["nads_lenet"]["networks"] == 4
    assert numbers["nads_lenet"]["published"]["256"] == pytest.approx(256 / 1024, abs=0.03)
    assert {*numbers["leading"]["changed"]} == {"1"}
    assert {*numbers["flip_lenet"]["by"]} == {"original", "flipped"}
    assert {*numbers["poison_lenet"]["by"]} == {"clean", "0", "10"}
    table = (folder / "runs" / "accelerators.md").read_text()
    assert all(f"| {record['says']} | " in table for record in found)


def test_what_is_finished_is_not_computed_again(smoke, monkeypatch, capsys):
    _, arguments = smoke
    monkeypatch.setattr(command, "find_lacks", lambda *_: {"torch": "there is no PyTorch"})
    monkeypatch.setattr(command, "find_device", lambda _: {"platform": "cpu", "device": "cpu"})
    assert command.main([*arguments, "--part=3"], launch=lambda *_: pytest.fail("again")) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["nads_lenet: is there", "leading: is there"]


def test_a_cpu_is_refused_and_leaves_no_trace(tmp_path, monkeypatch, capsys):
    cpu = {"platform": "cpu", "device": "cpu", "num_devices": 1}
    monkeypatch.setattr(command, "find_device", lambda _: cpu)
    before = OWN.read_bytes()
    wrong = {
        "error: device: JAX has a CPU alone": ["--part=1"],
        f"error: json: {OWN} is for measurements": ["--size=smoke", f"--json={OWN}"],
        "error: PUBLISHED: there is no folder '/nowhere'": ["--published=/nowhere"],
        "error: MINUTES: must be more than 0, got 0": ["--minutes=0"],
    }
    for line, arguments in wrong.items():
        with pytest.raises(SystemExit, match="2"):
            command.main([*arguments, f"--runs={tmp_path / 'runs'}"])
        said = capsys.readouterr().err
        assert said.startswith(line) and said.count("\n") == 1
    assert OWN.read_bytes() == before and not (tmp_path / "runs").exists()


def test_missing_packages_are_said_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(command, "NEEDED", ("jax", "no_such_package"))
    with pytest.raises(SystemExit, match="2"):
        command.main(["--size=smoke"])
    assert "has no no_such_package: " in capsys.readouterr().err


def _report(folder):
    says = {"size": "full", "device": "chip", "platform": "gpu", "num_devices": 1}
    says |= {"versions": {"nad_jax": "0"}, "commit": ""}
    return Report(folder / "records.json", folder, says)


def _item(*programs, **fields):
    commands = tuple((sys.executable, "-c", program) for program in programs)
    return Item("one", "tests", 1, "an item", commands, lambda folder: {"number": 1}, **fields)


def test_an_item_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(carry_out, "GRACE_SECONDS", 0.0)
    note = f"open({str(tmp_path / 'note')!r}, 'a').write"
    waiting = (
        f"import os, time; {note}('b'); time.sleep(60 * (not os.path.exists('{tmp_path}/go')))"
    )
    item = _item(f"{note}('a')", waiting)
    assert not carry_out.carry_out([item], _report(tmp_path), 2.0)
    assert measured.read_report(tmp_path / "records.json") == []  # nothing is finished
    state = json.loads((tmp_path / "state" / "one.json").read_text())
    assert state["done"] == 1 and 1.5 < state["seconds"] < 10
    (tmp_path / "go").touch()
    assert carry_out.carry_out([item], _report(tmp_path), 60.0)
    assert (tmp_path / "note").read_text() == "abb"  # the first command is not given again
    (record,) = measured.read_report(tmp_path / "records.json")
    assert record["numbers"] == {"number": 1} and record["calls"] == 2
    assert record["seconds"] > state["seconds"]


def test_a_command_that_never_ends_in_its_time_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(carry_out, "GRACE_SECONDS", 0.0)
    note = f"open({str(tmp_path / 'note')!r}, 'a').write"
    item = _item(f"import time; {note}('a'); time.sleep(60)", f"{note}('b')", tries=2)
    assert not carry_out.carry_out([item], _report(tmp_path), 0.7)
    assert not carry_out.carry_out([item], _report(tmp_path), 0.7)
    assert carry_out.carry_out([item], _report(tmp_path), 60.0)
    assert (tmp_path / "note").read_text() == "aab"


def test_tests_are_counted_and_those_that_failed_are_named(tmp_path):
    cases = '<testcase name="good"/><testcase name="bad"><failure/></testcase>'
    cases += (
        '<testcase name="left"><skipped/></testcase><testcase name="broken"><error/></testcase>'
    )
    (tmp_path / "one.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    assert measured.read_tests(tmp_path, ["one", "two"]) == {
        "passed": 1, "failed": 2, "skipped": 1,
        "failures": ["two: not done in its time", "one: bad", "one: broken"],
    }  # fmt: skip
    (tmp_path / "one.xml").write_text("<testsuite/>")
    with pytest.raises(InputError, match="no test has passed"):
        measured.read_tests(tmp_path, ["one"])


def test_a_finished_item_is_given_further_options_but_none_is_taken_away(tmp_path):
    note = f"import sys; open({str(tmp_path / 'note')!r}, 'a').write(str(len(sys.argv)))"
    plain = _item(note)
    compared = plain._replace(commands=((*plain.commands[0], "--compare=/place/x"),))
    report = _report(tmp_path)._replace(names={"/place": "DIR"})
    for item in (plain, plain, compared, compared, plain):
        assert carry_out.carry_out([item], report, 60.0)
    assert (tmp_path / "note").read_text() == "12"
    (record,) = measured.read_report(report.path)
    assert record["command"][0].endswith(" --compare=DIR/x") and record["calls"] == 2


def test_no_item_begins_without_time(tmp_path, capsys):
    item = _item("raise SystemExit('must not begin')")
    assert not carry_out.carry_out([item], _report(tmp_path), 50.0, least=60.0)
    assert "no time left" in capsys.readouterr().out and not (tmp_path / "state").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_a_report_that_is_ended_ends_its_command(tmp_path, number, code):
    program = (
        "import sys, pathlib; from experiments.report import __main__ as command, carry_out\n"
        "from tests.test_accelerator_report import _item, _report\n"
        "command.take_signals(); folder = pathlib.Path(sys.argv[1])\n"
        "item = _item('import os, sys, time; open(sys.argv[1], \"w\").write(str(os.getpid())); '\n"
        "             'time.sleep(60)')\n"
        "item = item._replace(commands=((*item.commands[0], str(folder / 'pid')),))\n"
        "carry_out.carry_out([item], _report(folder), 60.0)"
    )
    process = script(program, str(tmp_path))
    for _ in range(600):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            break
        process._process.join(0.1)
    process.send_signal(number)
    assert process.wait(30) == code, process.errors
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/status")
    for _ in range(100):
        try:
            if "State:\tZ" in status.read_text():
                return
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail("the command is still there")


def test_what_fails_or_is_missing_is_a_record_and_tried_again(tmp_path):
    report = _report(tmp_path)
    failing = _item("import sys; print('hello'); sys.exit('error: no such thing')")
    assert carry_out.carry_out([failing, _item("")._replace(name="two")], report, 60.0)
    first, second = measured.read_report(report.path)
    assert first["failed"] == "exit code 1, error: no such thing" and "numbers" in second
    assert carry_out.carry_out([_item("", missing="no card")], report, 60.0)
    assert measured.read_report(report.path)[-1]["missing"] == "no card"

    def read(folder):
        raise InputError("a file is damaged")

    assert carry_out.carry_out([_item("")._replace(read=read)], report, 60.0)
    assert measured.read_report(report.path)[-1]["failed"] == "a file is damaged"
    assert carry_out.carry_out([_item("")], report, 60.0)
    records = measured.read_report(report.path)
    assert [record["item"] for record in records] == ["two", "one"] and "numbers" in records[1]
    # What has been measured is not lost where it is tried again with further options.
    for again in (_item("", "--more", missing="no card"), _item("import sys; sys.exit(1)")):
        assert carry_out.carry_out([again], report, 60.0)
    assert measured.read_report(report.path) == records


def test_commands_at_full_size_are_valid(tmp_path):
    (tmp_path / "nads.npz").touch()
    settings = Settings(False, tmp_path, "python", "python", {}, cifar=tmp_path)
    for item in items.list_items(settings):
        for _, _, module, *arguments in item.commands:
            if module == "experiments.main":
                config, _ = _parse(arguments)
                # Networks of the recipes themselves are validated by `test_configs`.
                if config.experiment in ("benchmark", "leading_nads") or item.part == 1:
                    EXPERIMENTS[config.experiment].validate(config)


def test_the_tests_that_are_chosen_keep_to_their_process():
    for name in TESTS:
        text = (ROOT / "tests" / f"test_{name}.py").read_text()
        for node in ast.parse(text).body:
            source = ast.get_source_segment(text, node)
            if isinstance(node, ast.FunctionDef) and re.search(r"\bscript\(|subprocess", source):
                assert "sharded" in node.name, (name, node.name)  # which is not run


def test_a_published_map_is_compared_cell_by_cell(tmp_path):
    (tmp_path / "a.csv").write_text("index,acc_ln\n0,100\n")
    (tmp_path / "b.csv").write_text("x,y,acc_ln\n8,8,90\n1,8,10\n9,8,70\n10,8,60\n11,8,50\n")
    assert measured.find_table(tmp_path, "vgg11") is measured.find_table(None, "lenet") is None
    path = measured.find_table(tmp_path, "lenet")
    assert path.name == "b.csv"
    own = {(0, 0): 0.8, (0, 2): 0.6, (0, 4): 0.5, (0, 6): 0.5}
    found = measured.compare_map(published.read_table(str(path), "lenet"), own)
    assert found["cells"] == 4 and found["mean_difference"] == pytest.approx(7.5)
    expected = np.corrcoef([0.8, 0.6, 0.5, 0.5], [0.9, 0.7, 0.6, 0.5])[0, 1]
    assert found["pearson"] == pytest.approx(expected) and found["spearman"] == 1


def _record(item, kind, numbers, **changes):
    record = {"item": item, "kind": kind, "part": 1, "says": f"{item} says", "size": "full"}
    record |= {"platform": "gpu", "device": "Chip 9", "num_devices": 1, "commit": "abcdef012345"}
    record |= {"versions": {"nad_jax": "0.4", "jax": "1"}, "seconds": 65.2, "numbers": numbers}
    return {**record, "command": ["python -m x --y=1|2"], "date": "2026-01-01", **changes}


def _row(chunk_size, seconds, **changes):
    row = {"architecture": "lenet", "task": "directions", "convolution": "lax", "failed": None}
    row |= {"precision": "default", "chunk_size": chunk_size, "seconds": seconds, "floor": 1e-4}
    row |= {"baseline": 2e-3, "operations": 10**9, "numbers": 0, "peak_bytes": 2 * 10**9}
    row["automatic"] = False
    return {**row, **changes}


def _records():
    own = {"networks": 256, "diverged": 0, "mean": 0.6, "highest": 0.82, "share_at_90": 0.0}
    own |= {"along": {"0,4": 0.77, "8,0": 0.5}, "compile_seconds": 20.0, "compute_seconds": 30.0}
    scores = {"cells": 144, "mean_difference": 1.5, "pearson": 0.97, "spearman": None}
    theirs = {"library": "PyTorch 2", "machine": "Chip 9", "networks": 1, "seconds_a_network": 2.0}
    rows = [_row(8, 1e-3, automatic=True), _row(32, 5e-4), _row(128, 0, failed="out of memory")]
    rows += [_row(8, 3e-3, convolution="product", automatic=True)]
    nads = {"networks": 10_000, "diverged": 0, "chunk_size": 1000, "split_half": {"64": 0.99}}
    return [
        _record("map_lenet", "map", {**own, "published": scores}),
        _record("torch_lenet", "torch", {**theirs, "along": {"0,4": 0.75}}),
        _record("benchmark_lenet_chunks", "benchmark", {"rows": rows}, part=2),
        _record("nads_lenet", "nads", {**nads, "published": {"64": 0.935}}, part=3, seconds=8.0),
    ]


def test_the_table_says_what_the_records_hold():
    table = pages.make_table(_records())
    lines = table.splitlines()
    assert lines[0] == "## Chip 9" and "PyTorch 2, Chip 9: 2.0 s a network, median of 1" in table
    assert next(line for line in lines if "map_lenet" in line) == (
        "| 1 | map_lenet says | 1 min 5 s, 20.0 s of it compilation | 256 networks, 0 diverged; "
        "cosine directions: mean 60.0 %, highest 82.0 %, 0.0 % of them at 90 % or more; published "
        "map, 144 cells: mean difference 1.50 points, Pearson .970 | `python -m x --y=1∣2` | "
        "abcdef0123, 2026-01-01 |"
    )
    assert "takes 255 ms of the whole command, in PyTorch 2 s after a warm-up: ratio 0.127" in table
    assert "accuracies differ by 2.0 points" in table
    assert (
        "| lenet | directions | lax | default | 32 | **500 µs** | 2 ms | 0.25 | 2 | 0.200 | 2 GB |"
        in lines
    )
    assert "| lenet | directions | lax | default | 128 | out of memory |  |  |  |  |  |" in lines
    assert lines[-1] == (
        "lenet, directions at precision default: fastest with convolution=lax and chunk_size=32, "
        "500 µs, 0.200 of the rate of large products; lax and 8 2.00 × the time, product and 8 6.00 × "
        "the time. Automatic are with lax 8 at once, 2.00 × the time; with product 8 at once, "
        "6.00 × the time."
    )
    rows = [_row(2, 1e-3), _row(4, 2e-3), _row(0, 0, failed="out of memory", automatic=True)]
    assert pages.imply_defaults(rows)[0].endswith(" Automatic are with lax out of memory.")
    assert pages.imply_defaults(rows[:2])[0].endswith("; lax and 4 2.00 × the time.")
    asked = [rows[0], _row(8, 5e-4, mapping="sequential"), _row(8, 4e-3, mapping="vectorized")]
    assert "chunk_size=8, mapping=sequential, 500 µs" in pages.imply_defaults(asked)[0]
    assert (
        "; lax and 2 2.00 × the time, lax and 8, vectorized, 8.00"
        in (pages.imply_defaults(asked)[0])
    )
    assert "| 8, vectorized | 4 ms |" in pages.format_timings(asked)[-1]
    assert pages.imply_defaults(rows[:1]) == []  # nothing to choose from
    assert "| auto | out of memory |" in pages.format_timings(rows)[-1]
    assert pages.make_sentence(_records(), "page.md") == (
        "On an accelerator, Chip 9: map_lenet says: 1 min 5 s, 0.127 of PyTorch's time, Pearson "
        "0.970 with the published map, nads_lenet says: 8.0 s ([accelerators](page.md))."
    )


def test_failed_and_missing_items_are_in_the_table():
    records = [_record("tests", "tests", {}, failed="exit code 1, boom"), _record("x", "map", {})]
    for record in records:
        del record["numbers"]
    records[1]["missing"] = "no card"
    table = pages.make_table(records)
    assert "failed: exit code 1, boom" in table and "not measured: no card" in table
    assert "0 of 2 items measured" in pages.make_sentence(records, "page.md")


def test_the_pages_are_those_of_the_stored_records(tmp_path):
    for name in ("README.md", "docs/accelerators.md", "docs/accelerators.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    texts = [(ROOT / name).read_text() for name in ("README.md", "docs/accelerators.md")]
    pages.write_pages(OWN, tmp_path)
    assert [(tmp_path / n).read_text() for n in ("README.md", "docs/accelerators.md")] == texts
    records = measured.read_report(OWN)
    assert (pages.NOTHING in texts[0]) == (pages.NOTHING in texts[1]) == (not records)
    # And with a record they say what it holds.
    measured.write_report(tmp_path / "docs" / "accelerators.json", _records())
    pages.write_pages(tmp_path / "docs" / "accelerators.json", tmp_path)
    for name in ("README.md", "docs/accelerators.md"):
        text = (tmp_path / name).read_text()
        assert pages.NOTHING not in text and "Chip 9" in text
    assert len((tmp_path / "README.md").read_bytes()) < 9_000


@pytest.mark.parametrize("changes", [{"platform": "cpu"}, {"size": "smoke"}])
def test_no_page_shows_a_cpu_or_a_small_size(tmp_path, changes):
    path = tmp_path / "accelerators.json"
    measured.write_report(path, [_record("tests", "tests", {}, **changes)])
    with pytest.raises(InputError, match="no measurement on an accelerator"):
        pages.write_pages(path, tmp_path)


def test_plain_pytorch_trains_on_the_same_task_and_goes_on(tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[benchmark]'")
    from experiments.benchmark import torch_training

    torch.set_num_threads(1)
    shape = (16, 16, 1)
    wave = torch_training.cosine((2, -3), shape, "cpu")
    np.testing.assert_allclose(wave, dft_direction(shape, (2, -3)), atol=1e-6)
    torch.manual_seed(0)
    samples, labels = torch_training.sample(wave, 400, 3.0, shape)
    along = samples.reshape(400, -1) @ wave
    np.testing.assert_allclose(along, 1 - 2.0 * labels, atol=1e-4)
    assert float(samples.std()) == pytest.approx(3.0, abs=0.05)
    settings = {"architecture": "lenet", "image_shape": shape, "device": "cpu", "sigma": 0.1}
    settings |= {"num_train": 512, "num_test": 100, "num_epochs": 4, "batch_size": 32}
    settings["precision"] = "default"
    output = tmp_path / "networks.json"
    torch_training.train_all(settings, [(0, 0)], output)
    (first,) = json.loads(output.read_text())["networks"]
    assert first["test_accuracy"] > 0.9
    torch_training.train_all({**settings, "num_epochs": 4}, [(0, 0), (0, 1)], output)
    kept, second = json.loads(output.read_text())["networks"]
    assert kept == first and second["frequency"] == [0, 1]
    found = measured.read_torch(tmp_path)
    assert found["along"]["0,0"] == first["test_accuracy"] and found["networks"] == 2
