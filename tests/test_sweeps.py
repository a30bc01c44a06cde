"""Sweeps that are killed, interrupted, damaged, starved and shared: every line of the table of
faults.

NAD_KILLS is how often the killed sweep is killed at random: by default twice, and at some of the
writes; from three on at every one of them.
"""

import csv
import inspect
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from experiments import compute_nads, directional_bias, geometry, main, results, trained
from experiments.main import EXPERIMENTS
from experiments.run import dry_run, origin, runner
from experiments.run.folder import Folder
from experiments.run.shards import Shard
from nad_jax import (
    Estimator,
    Execution,
    create_model,
    ensemble,
    from_functions,
    load_nads,
    records,
    spectrum_metrics,
    store,
    target,
)
from nad_jax.accumulation import make_accumulate
from nad_jax.errors import InputError
from nad_jax.moments import halves_to_arrays, init_halves
from nad_jax.reading import make_dense
from tests.commands import ROOT, Command, read_numbers
from tests.test_configs import load_config, run

SWEEP = [
    "--config=configs/directional_bias.py:accuracy_map,logreg",
    "--config.source=pixel",  # 64 directions, a unit each
    "--config.image_shape=8,8,1",
    "--config.frequency_range=-4,4",
    "--config.num_train=200,",
    "--config.num_test=100",
    "--config.num_epochs=2",
]
NADS = [
    "--config=configs/compute_nads.py:lenet",
    "--config.image_shape=16,16,1",
    "--config.num_networks=12",
    "--config.unit_size=4",
    "--config.chunk_size=2",
]


ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu"}


def _start(arguments, place="nothing", **variables):
    return Command(*arguments, place=place, variables=variables)


def _run(arguments, place="nothing"):
    process = _start(arguments, place)
    return process.wait(), process.errors


def _arrays(workdir):
    """Every stored unit and table, by its path; of tables all but the seconds."""
    paths = [*workdir.rglob("units/*.npz"), *workdir.rglob("nads.npz")]
    found = {str(path.relative_to(workdir)): path.read_bytes() for path in paths}
    tables = workdir.rglob("results.csv")
    return found | {str(path.relative_to(workdir)): read_numbers(path) for path in tables}


def _values(workdir):
    """What they hold: a bit may change in a file and in no value."""
    return {
        name: {
            key: (array.dtype, array.shape, array.tobytes())
            for key, array in store.read_npz(workdir / name).items()
        }
        if name.endswith(".npz")
        else content
        for name, content in _arrays(workdir).items()
    }


def _remains(workdir):
    return [
        path
        for path in workdir.rglob("*")
        if path.suffix in (".tmp", ".corrupt") or "snapshots" in path.parts[:-1]
    ]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The sweep and the ensemble without any fault."""
    folder = tmp_path_factory.mktemp("clean")
    for name, arguments in (("sweep", SWEEP), ("nads", NADS)):
        code, printed = _run([*arguments, f"--workdir={folder / name}"])
        assert code == 0, printed
        assert not _remains(folder / name)
    assert len(list((folder / "sweep" / "units").iterdir())) == 64
    return folder


def _wait(condition, process):
    deadline = time.monotonic() + 120
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


WRITES = [  # config.json, units and snapshots
    "no temporary file:1", "before the link:1", "empty temporary file:3", "half a temporary file:1",
    "before the rename:1", "after the rename:1", "before the rename:8", "after the rename:9",
]  # fmt: skip
LAST_WRITES = [
    "before the rename:1",
    "after the rename:1",
    "before the rename:2",
    "after the rename:2",
]  # the table


def test_a_sweep_killed_at_every_write_and_at_random_ends_as_if_it_had_not_been(clean, tmp_path):
    workdir = tmp_path / "run"
    command = [*SWEEP, f"--workdir={workdir}"]
    kills = int(os.environ.get("NAD_KILLS", "2"))
    for place in WRITES if kills > 2 else WRITES[3::2]:
        code, _ = _run(command, place)
        assert code == -signal.SIGKILL, place
    assert list(workdir.rglob("*.tmp"))  # left behind, and never taken for results
    stored = {path: path.stat().st_mtime_ns for path in workdir.glob("units/*.npz")}
    order = random.Random(0)
    for kill in range(kills):
        process = _start(command)
        wanted = (kill + 1) * 60 // kills
        _wait(lambda wanted=wanted: len(list(workdir.glob("units/*.npz"))) >= wanted, process)
        time.sleep(order.random() * 0.02)
        process.kill()
        assert process.wait() == 0 or not (workdir / "results.csv").exists()
    code, printed = _run(command)
    assert code == 0, printed
    for place in (
        LAST_WRITES if kills > 2 else LAST_WRITES[:2]
    ):  # of results.csv and command.json, which every command writes
        (workdir / "results.csv").unlink(missing_ok=True)
        code, _ = _run(command, place)
        assert code == -signal.SIGKILL, place
    code, printed = _run(command)
    assert code == 0, printed
    assert _arrays(workdir) == _arrays(clean / "sweep") and not list(
        workdir.glob("snapshots/*.npz")
    )
    assert stored and all(
        path.stat().st_mtime_ns == at for path, at in stored.items()
    )  # not computed again


def test_an_ensemble_killed_at_every_write_ends_as_if_it_had_not_been(clean, tmp_path):
    command = [*NADS, f"--workdir={tmp_path / 'run'}"]
    for place in [
        "half a temporary file:1",
        "before the rename:3",
        "after the rename:3",
        "after the rename:2",
    ]:
        code, _ = _run(command, place)
        assert code == -signal.SIGKILL, place
    code, printed = _run(command)
    assert code == 0, printed
    assert _arrays(tmp_path / "run") == _arrays(clean / "nads")


DENSENET = [
    "--config=configs/directional_bias.py:accuracy_map,densenet121"
]  # compiles for a minute
LONG = [*SWEEP[:-1], "--config.num_epochs=100000", "--config.indices=0,"]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]
)
def test_a_signal_that_is_not_ignored_asks_for_the_same_command_again(number):
    program = "import os, sys, time; from experiments.run import interruption; interruption.watch()"
    program += "; os.kill(os.getpid(), int(sys.argv[1])); time.sleep(2)"
    ignored = f"trap '' {number.name[3:]}; exec \"$@\""  # as `nohup` does
    for prefix in ([], ["bash", "-c", ignored, "bash"]):
        command = [*prefix, sys.executable, "-c", program, str(int(number))]
        code = subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode
        always = number in (signal.SIGTERM, signal.SIGINT)
        assert code == (0 if prefix and not always else 75)


@pytest.mark.parametrize(
    ("phase", "arguments", "number"),
    [
        ("compilation", DENSENET, signal.SIGUSR1),
        ("training", LONG, signal.SIGUSR2),
        ("evaluation", SWEEP, signal.SIGTERM),
        ("accumulation", NADS, signal.SIGTERM),
        ("collecting", NADS, signal.SIGTERM),
    ],
)
def test_a_signal_ends_every_phase_within_five_seconds(phase, arguments, number, clean, tmp_path):
    workdir = tmp_path / "run"
    command = [*arguments, f"--workdir={workdir}"]
    variables = {"SENT": str(tmp_path / "sent")}
    if phase == "compilation":
        variables["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "cache")
    begun = {
        "compilation": lambda: workdir.glob("progress/*"),
        "training": lambda: workdir.glob("snapshots/*"),
        "accumulation": lambda: workdir.glob("units/*"),
    }
    process = _start(
        command, phase if phase in ("evaluation", "collecting") else "nothing", **variables
    )
    if phase in begun:
        _wait(lambda: list(begun[phase]()), process)
        time.sleep(2.0 if phase == "compilation" else 0.0)
        process.send_signal(number)
        sent = time.monotonic()
    else:  # sends it to itself, and says when
        _wait(lambda: (tmp_path / "sent").exists(), process)
        sent = time.monotonic()
    code, printed = process.wait(60), process.errors
    assert time.monotonic() - sent < 5
    assert code == 75 and "the same command goes on" in printed and "Traceback" not in printed
    assert not (workdir / "results.csv").exists() and not (workdir / "nads.npz").exists()
    said = json.loads((workdir / "progress" / "0-of-1.json").read_text())
    assert said["state"] == "interrupted" and not list(workdir.glob("progress/*.lock"))
    if phase == "training":
        assert list(workdir.glob("snapshots/*.npz"))
    elif phase != "compilation":
        code, printed = _run(command)
        assert code == 0, printed
        assert _arrays(workdir) == _arrays(clean / ("sweep" if arguments is SWEEP else "nads"))


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    arguments = [*DENSENET, f"--workdir={tmp_path / 'run'}"]
    process = _start(arguments, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"))
    _wait(lambda: list(tmp_path.glob("run/progress/*")), process)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    assert process.wait(60) == 75 and time.monotonic() - sent < 1


def _config(**changes):
    """The sweep of four networks, in process."""
    config = load_config("directional_bias").get_config("accuracy_map,logreg")
    config.update(
        source="pixel",
        image_shape=(8, 8, 1),
        frequency_range=(-4, 4),
        num_train=(200,),
        num_test=100,
    )
    config.update(num_epochs=2, indices=(0, 1, 2, 3))
    config.update(changes)
    return config


def _nads_config(**changes):
    config = load_config("compute_nads").get_config("mlp")
    config.update(
        image_shape=(4, 4, 1),
        num_networks=8,
        unit_size=4,
        chunk_size=2,
        derivative="input_gradient",
    )
    config.update(changes)
    return config


CASES = {"directional_bias": _config, "compute_nads": _nads_config}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    for name, config in CASES.items():
        run(EXPERIMENTS[name], config(), folder / name)
        EXPERIMENTS[name].draw(config(), folder / name)
    return folder


def _damaged(content, kind, order):
    if kind == "empty":
        return b""
    if kind == "truncated":
        return content[: order.randrange(1, len(content))]
    position = order.randrange(8 * len(content))
    flipped = bytearray(content)
    flipped[position // 8] ^= 1 << position % 8
    return bytes(flipped)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["flipped", "truncated", "empty"])
def test_every_damaged_file_is_computed_again_or_refused(name, kind, finished, tmp_path):
    experiment, config, order = EXPERIMENTS[name], CASES[name](), random.Random(kind)
    files = sorted(path.relative_to(finished / name) for path in (finished / name).rglob("*.*"))
    files = [file for file in files if file.suffix != ".png"]  # which nothing reads
    assert len(files) >= 4
    for file in files:
        for draw_only in (
            (True, False) if file.parent == Path() else (False,)
        ):  # figures are drawn from the others
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            workdir = Path(shutil.copytree(finished / name, tmp_path / "run"))
            (workdir / file).write_bytes(_damaged((workdir / file).read_bytes(), kind, order))
            try:
                if draw_only:
                    experiment.draw(config, workdir)
                else:
                    run(experiment, config, workdir)
            except InputError as error:
                assert file.name in str(error) or str(workdir) in str(error)
                assert file.suffix != ".npz" or draw_only  # units are computed again
                continue
            if not draw_only:
                assert _values(workdir) == _values(finished / name), file


@pytest.mark.parametrize("name", ["directional_bias", "compute_nads"])
def test_no_single_bit_of_a_unit_or_record_is_read_wrongly(name, finished, tmp_path):
    path = sorted((finished / name).rglob("units/*.npz"))[0]
    content, arrays = path.read_bytes(), store.read_npz(path)
    order = random.Random(0)
    refused = 0
    for _ in range(400):
        (tmp_path / "unit.npz").write_bytes(_damaged(content, "flipped", order))
        try:
            read = store.read_npz(tmp_path / "unit.npz", tuple(arrays))
        except store.DamagedError:
            refused += 1
            continue
        for key, array in arrays.items():  # the bit was in a date, say
            np.testing.assert_array_equal(read[key], array)
    assert refused > 300


def test_a_disk_that_is_full_is_said_in_one_line_and_loses_nothing(clean, tmp_path):
    workdir = tmp_path / "run"
    main = [sys.executable, "-m", "experiments.main", *NADS, f"--workdir={workdir}"]
    limited = [
        "bash",
        "-c",
        'ulimit -f 100; exec "$@"',
        "bash",
        *main,
    ]  # a file may have 100 KiB, a unit has 500
    result = subprocess.run(
        limited, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode == 74 and "Traceback" not in result.stderr
    assert "units/networks_0000000_0000004.npz: File too large (" in line and "MiB free)" in line
    assert not list(workdir.glob("units/*"))
    code, printed = _run([*NADS, f"--workdir={workdir}"])
    assert code == 0, printed
    assert _arrays(workdir) == _arrays(clean / "nads")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to become another user")
def test_a_folder_that_cannot_be_written_is_named(finished):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        workdir = Path(shutil.copytree(finished / "directional_bias", Path(folder) / "run"))
        next(workdir.glob("units/*.npz")).unlink()
        Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).chmod(0o777)
        os.seteuid(65534)
        try:
            with pytest.raises(InputError, match=r"units/networks_\w+\.npz: Permission denied$"):
                run(directional_bias, _config(), workdir)
            with pytest.raises(InputError, match=r"new: Permission denied$"):
                run(directional_bias, _config(), Path(folder) / "new")
        finally:
            os.seteuid(0)
        run(directional_bias, _config(), workdir)
        assert _arrays(workdir) == _arrays(finished / "directional_bias")


def test_units_of_another_configuration_are_never_mixed_in(finished, tmp_path):
    workdir = Path(shutil.copytree(finished / "directional_bias", tmp_path / "run"))
    run(directional_bias, _config(learning_rate=0.1), tmp_path / "other")
    stranger = next((tmp_path / "other" / "units").iterdir())
    shutil.copy(stranger, workdir / "units" / "networks_stranger.npz")
    for act in (
        partial(run, directional_bias),
        lambda config, workdir: runner.collect(directional_bias.make_study(config), workdir),
    ):
        with pytest.raises(
            InputError, match=r"networks_stranger\.npz: is of another configuration"
        ):
            act(_config(), workdir)
    other = sorted((finished / "compute_nads" / "units").iterdir())
    workdir = Path(shutil.copytree(finished / "compute_nads", tmp_path / "nads"))
    run(compute_nads, _nads_config(seed=1), tmp_path / "seed")
    shutil.copy(tmp_path / "seed" / "units" / other[0].name, workdir / "units" / other[0].name)
    with pytest.raises(InputError, match=rf"{other[0].name}: is of another configuration"):
        run(compute_nads, _nads_config(), workdir)


def test_a_unit_under_the_name_of_another_is_not_counted_twice(finished, tmp_path):
    workdir = Path(shutil.copytree(finished / "compute_nads", tmp_path / "run"))
    first, second = sorted((workdir / "units").iterdir())
    shutil.copy(first, second)
    run(compute_nads, _nads_config(), workdir)
    assert _arrays(workdir) == _arrays(finished / "compute_nads")
    assert second.with_name(second.name + ".corrupt").exists()


def test_a_unit_that_does_not_hold_its_networks_is_computed_again(finished, tmp_path, caplog):
    workdir = Path(shutil.copytree(finished / "compute_nads", tmp_path / "run"))
    path = workdir / "units" / "networks_0000004_0000008.npz"
    arrays = store.read_npz(path)
    folder = Folder(workdir, compute_nads.make_study(_nads_config()), repair=False)
    member, rows = folder.study.members[1], geometry.read_ensemble(_nads_config()).num_rows
    assert rows > 1 and arrays["even_count"] == 2 * rows
    for changes in ({"even_count": rows}, {"even_count": 2 * rows - 1}, {"diverged": 1}):
        store.write_npz(
            path, {**arrays, **{name: np.int32(value) for name, value in changes.items()}}
        )
        assert folder.read(member) is None and path.exists()
        with pytest.raises(
            store.DamagedError, match=r"holds [35]\.?\d* networks, counted or diverged, not 4"
        ):
            folder.study.check(member, store.read_npz(path))
    counts = {"even_count": rows, "networks": 3, "diverged": 1}
    store.write_npz(path, {**arrays, **{name: np.int32(n) for name, n in counts.items()}})
    assert folder.read(member)["diverged"] == 1
    store.write_npz(path, {**arrays, "even_count": np.int32(rows)})
    run(compute_nads, _nads_config(), workdir)
    assert _arrays(workdir) == _arrays(finished / "compute_nads")
    assert path.with_name(path.name + ".corrupt").exists()
    assert "0008.npz: holds 3 networks, counted or diverged, not 4" in caplog.text


def test_a_command_that_ends_leaves_units_and_snapshots_of_others(finished, tmp_path):
    workdir = Path(shutil.copytree(finished / "compute_nads", tmp_path / "run"))
    longer = _nads_config(num_networks=14)
    straight = tmp_path / "straight"
    run(compute_nads, longer, straight)
    study = compute_nads.make_study(_nads_config(num_networks=10))

    def collect(meanwhile):
        """The end of the shorter command, after the longer one has done something."""
        return study._replace(collect=lambda *how: (meanwhile(), study.collect(*how)))

    (
        workdir / "snapshots"
    ).mkdir()  # some of a process that was killed after it had stored its unit
    for name in (
        "networks_0000000_0000004.0",
        "networks_0000000_0000004.1",
        "networks_0000012_0000014.0",
    ):
        (workdir / "snapshots" / f"{name}.npz").write_text("")
    runner.run(collect(lambda: run(compute_nads, longer, workdir, Shard(0, 2))), workdir)
    assert [path.stem[9:] for path in sorted(workdir.glob("units/*.npz"))] == [
        "0000000_0000004", "0000004_0000008", "0000008_0000010", "0000008_0000012",
    ]  # fmt: skip
    assert records.load_nads(workdir / "nads.npz").num_networks == 10
    assert [path.stem for path in workdir.glob("snapshots/*.npz")] == ["networks_0000012_0000014.0"]
    run(compute_nads, longer, workdir)
    assert _arrays(workdir) == _arrays(straight) and not list(workdir.glob("snapshots/*.npz"))
    (
        workdir / "units" / "networks_0000008_0000012.npz"
    ).unlink()  # as if the longer command came to its end later
    (workdir / "units" / "networks_0000012_0000014.npz").unlink()
    with pytest.raises(
        InputError, match=r"num_networks: can be raised, not lowered; .* holds 14, got 10"
    ):
        runner.run(collect(lambda: run(compute_nads, longer, workdir)), workdir)
    assert _arrays(workdir) == _arrays(straight)  # not a record of what the other has left
    with pytest.raises(
        InputError, match=r"num_networks: can be raised, not lowered; .* holds 14, got 8"
    ):
        shorter = compute_nads.make_study(_nads_config(num_networks=8))
        shorter.collect(Folder(workdir, shorter), 0)  # whose units are all there
    assert _arrays(workdir) == _arrays(straight)


@pytest.mark.parametrize("name", CASES)
def test_units_of_other_versions_or_devices_are_added_to_on_request_alone(
    name, finished, tmp_path, monkeypatch
):
    config, workdir = CASES[name](), Path(shutil.copytree(finished / name, tmp_path / "run"))
    here = origin.versions()
    monkeypatch.setattr(origin, "versions", lambda: {**here, "jax": "99"})
    experiment, before = EXPERIMENTS[name], _arrays(workdir)
    run(experiment, config, workdir)  # there is nothing to add
    assert _arrays(workdir) == before
    lost = sorted(workdir.glob("units/*.npz"))[0]
    lost.unlink()
    study = experiment.make_study(config)
    assert not runner.collect(study, workdir)
    for changed, line in (
        ("versions", rf"  jax: folder '{here['jax']}', command '99'"),
        ("device_kind", "  device: .*"),
    ):
        with monkeypatch.context() as patch:
            if changed == "device_kind":
                patch.setattr(origin, "versions", lambda: here)
                patch.setattr(origin, "device_kind", lambda: "abacus")
            with pytest.raises(
                InputError,
                match=rf"\.npz: was computed .*; --allow_other_versions adds .*\n{line}$",
            ):
                runner.run(study, workdir)
        assert not lost.exists()
    flags = {
        "_FIGURES_ONLY": False,
        "_DRY_RUN": False,
        "_COLLECT": False,
        "_ALLOW_OTHER_VERSIONS": True,
    }
    for flag, value in flags.items():
        monkeypatch.setattr(main, flag, SimpleNamespace(value=value))
    assert main._carry_out(experiment, config, workdir, Shard()) == 0
    said = origin.read_origin(lost)
    assert said["versions"] == {**here, "jax": "99"} and said["device"] == origin.device_kind()
    if name == "compute_nads":
        said = records.load_nads(workdir / "nads.npz").config
        assert said["versions"] == {**here, "jax": sorted([here["jax"], "99"])}
        assert (said["device"], said["chunk_size"]) == (origin.device_kind(), 2)


def test_versions_of_units_that_others_store_meanwhile_are_seen(finished, tmp_path, monkeypatch):
    study, units = (
        compute_nads.make_study(_nads_config()),
        finished / "compute_nads" / "units",
    )
    here = origin.versions()
    monkeypatch.setattr(origin, "versions", lambda: {**here, "numpy": "99"})

    def make_program(*how):
        shutil.copy(
            units / "networks_0000004_0000008.npz", tmp_path / "units"
        )  # of another command
        return study.make_program(*how)

    with pytest.raises(
        InputError, match=r"0008\.npz: was computed with other versions .*\n  numpy: folder .*'99'"
    ):
        runner.run(
            study._replace(make_program=make_program, is_done=lambda *_: False),
            tmp_path,
        )
    assert len(list(tmp_path.glob("units/*"))) == 2


def test_two_processes_on_the_same_units_write_the_same(clean, tmp_path):
    command = [*NADS, f"--workdir={tmp_path / 'run'}"]
    shares = [], ["--shard=0/2"], ["--shard=1/2"]  # of which the first holds the others
    processes = [_start([*command, *share]) for share in shares]
    for process in processes:
        assert process.wait(120) == 0, process.errors
    assert _arrays(tmp_path / "run") == _arrays(clean / "nads")
    assert not _remains(tmp_path / "run")


def _out_of_memory(*args, **kwargs):
    raise jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 bytes."
    )


def test_a_process_with_too_little_memory_halves_the_chunk(tmp_path):
    arguments = [
        "--config=configs/directional_bias.py:accuracy_map,mlp",
        "--config.image_shape=64,64,1",
    ]
    arguments += [
        "--config.frequency_range=-4,4",
        "--config.num_test=64",
        "--config.num_train=64,",
    ]
    arguments += ["--config.num_epochs=1", "--config.batch_size=64", "--config.mapping=vectorized"]
    arguments += ["--config.schedule=constant", "--config.chunk_size=32", "--config.indices=0,"]
    main = [sys.executable, "-m", "experiments.main", *arguments, f"--workdir={tmp_path / 'run'}"]
    limited = [
        "bash",
        "-c",
        'ulimit -v 3000000; exec "$@"',
        "bash",
        *main,
    ]  # 32 networks would take 1 GB at once
    result = subprocess.run(
        limited, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "out of memory with 32 networks at once: 16 from now on" in result.stderr


def test_out_of_memory_halves_the_chunk_and_nothing_else(finished, tmp_path, monkeypatch):
    make_run, make_accumulate = trained.make_run, geometry.make_accumulate

    def make_run_of_one(*args, **how):
        execution = inspect.signature(make_run).bind(*args, **how).arguments["execution"]
        return make_run(*args, **how) if execution.chunk_size == 1 else _out_of_memory

    monkeypatch.setattr(trained, "make_run", make_run_of_one)
    run(directional_bias, _config(chunk_size=4), tmp_path / "run")
    (unit,) = (tmp_path / "run" / "units").iterdir()
    assert json.loads(str(store.read_npz(unit)["config"]))["chunk_size"] == 1
    expected = read_numbers(finished / "directional_bias" / "results.csv")
    assert read_numbers(tmp_path / "run" / "results.csv") == expected
    events = [
        json.loads(line)
        for line in (tmp_path / "run" / "progress" / "0-of-1.jsonl").read_text().splitlines()
    ]
    assert [event["event"] for event in events] == [
        "start",
        "out of memory",
        "out of memory",
        "unit",
        "end",
    ]

    def make_accumulate_two(*args, **how):
        accumulate, resolved = make_accumulate(*args, **how)
        return (accumulate if resolved.chunk_size == 2 else _out_of_memory), resolved

    monkeypatch.setattr(geometry, "make_accumulate", make_accumulate_two)
    run(compute_nads, _nads_config(chunk_size=4), tmp_path / "nads")
    for unit in (tmp_path / "nads" / "units").iterdir():
        arrays, expected = (
            store.read_npz(unit),
            store.read_npz(finished / "compute_nads" / "units" / unit.name),
        )
        assert json.loads(str(arrays["config"]))["chunk_size"] == 2
        np.testing.assert_allclose(arrays["even_scatter"], expected["even_scatter"], rtol=1e-5)

    monkeypatch.setattr(trained, "make_run", lambda *args, **how: _out_of_memory)
    with pytest.raises(
        InputError, match=r"logreg default sgd 200: the device has not enough memory for 1 networks"
    ):
        run(directional_bias, _config(chunk_size=2), tmp_path / "none")


def test_other_errors_of_the_device_are_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(trained, "make_run", lambda *args, **how: broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        run(directional_bias, _config(chunk_size=4), tmp_path / "run")


def test_diverged_networks_are_contained_and_counted(tmp_path, capsys, monkeypatch):
    config = _config(optimizers=("sgd", "sgd:learning_rate=1e38"), clip_norm=0.0, sigmas=(1e3,))
    run(directional_bias, config, tmp_path / "run")
    assert "4 networks, 4 diverged" in capsys.readouterr().out
    events = [
        json.loads(line)
        for line in (tmp_path / "run" / "progress" / "0-of-1.jsonl").read_text().splitlines()
    ]
    assert [event["diverged"] for event in events if event["event"] == "unit"] == [
        0,
        0,
        0,
        0,
        1,
        1,
        1,
        1,
    ]

    def init(key):
        weights = jax.random.normal(key, (16, 1))
        return jax.numpy.where(weights[0] > 0.5, jax.numpy.nan, weights)

    model = from_functions(
        init, lambda weights, x: x.reshape(len(x), -1) @ weights, (4, 4, 1), check=False
    )
    monkeypatch.setattr(geometry, "read_model", lambda config: model)
    run(
        compute_nads,
        _nads_config(num_networks=40, readout="sampled", symmetrized=False),
        tmp_path / "nads",
    )
    record = records.load_nads(tmp_path / "nads" / "nads.npz")
    key = ensemble.named_key(ensemble.make_key(0), "networks")
    keys = ensemble.member_keys(key, jax.numpy.arange(40))
    weights = np.stack([init(jax.random.split(key, 3)[0])[:, 0] for key in keys])
    finite = np.isfinite(weights).all(1)
    assert (
        record.config["diverged"] == 40 - finite.sum() > 0 and record.num_networks == finite.sum()
    )
    moment = weights[finite].T @ weights[finite] / finite.sum()
    np.testing.assert_allclose(
        record.eigenvalues, np.linalg.eigvalsh(moment)[::-1], rtol=1e-4, atol=1e-6
    )
    assert (
        f"{record.config['diverged']} more networks have derivatives that are not finite"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("name", CASES)
def test_shards_compute_what_one_process_computes(name, finished, tmp_path):
    config = CASES[name]()
    for count in (2, 4):
        complete = [
            run(EXPERIMENTS[name], config, tmp_path / str(count), Shard(i, count))
            for i in range(count)
        ]
        assert not complete[0] and complete[-1]  # the last one collects
        assert _arrays(tmp_path / str(count)) == _arrays(finished / name)
    logs = sorted((tmp_path / "4" / "progress").glob("*.jsonl"))
    assert [path.name for path in logs] == [f"{index}-of-4.jsonl" for index in range(4)]


@pytest.mark.parametrize("name", CASES)
def test_collecting_takes_what_is_there_and_says_what_is_missing(name, finished, tmp_path, capsys):
    config, experiment = CASES[name](), EXPERIMENTS[name]
    study = experiment.make_study(config)
    with pytest.raises(runner.RunAgain, match="new: nothing of this command is stored yet"):
        runner.collect(study, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    run(experiment, config, tmp_path, Shard(0, 2))
    assert runner.collect(study, tmp_path) is False
    printed = capsys.readouterr().err
    assert "missing: " in printed and (
        "mlp: 4 networks in 1 unit" in printed or ": 2 networks in 2 units" in printed
    )
    assert experiment.draw(config, tmp_path)
    if name == "compute_nads":
        assert records.load_nads(tmp_path / "nads.npz").num_networks == 4
    else:
        assert len((tmp_path / "results.csv").read_text().splitlines()) == 3
        assert (
            results.read_table(
                tmp_path, directional_bias.COLUMNS, directional_bias._command(config)
            )[1]
            == "\n2 networks missing"
        )
    run(experiment, config, tmp_path, Shard(1, 2))
    assert _arrays(tmp_path) == _arrays(finished / name)


def test_a_dry_run_says_what_there_is_to_do_and_touches_nothing(finished, tmp_path, capsys):
    for name, config in CASES.items():
        study = EXPERIMENTS[name].make_study(config())
        dry_run.describe(study, tmp_path / name, Shard(0, 2))
        printed = capsys.readouterr().out
        assert "stored 0 networks" in printed and "shards: 2; shard 0-of-2 misses" in printed
        assert (
            "s a network" in printed
            and "compilation" in printed
            and "estimate on this machine: 0:0" in printed
        )
        assert not (tmp_path / name).exists()
        workdir = Path(shutil.copytree(finished / name, tmp_path / name))
        (first, *_) = workdir.glob("units/*.npz")
        first.write_bytes(b"damaged")
        before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
        dry_run.describe(study, workdir)
        assert "missing" in capsys.readouterr().out
        assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}


def test_an_ensemble_is_swept_over_its_fields(tmp_path, caplog):
    config = _nads_config()
    config.sweep.update(seed=(0, 1), readout=("marginalized", "sampled"))
    run(compute_nads, config, tmp_path / "run")
    table = (tmp_path / "run" / "results.csv").read_text().splitlines()
    assert len(table) == 5 and table[0].startswith(
        "readout,seed,num_networks,diverged,trace,eigenvalue_0,split_half"
    )
    run(compute_nads, _nads_config(seed=1, readout="sampled"), tmp_path / "one")
    point = tmp_path / "run" / "readout=sampled,seed=1"
    assert _arrays(point) == _arrays(tmp_path / "one")
    drawn = [path.name for path in compute_nads.draw(config, tmp_path / "run")]
    assert len(drawn) == 14 and drawn[-2:] == ["spectra.png", "metrics.png"]
    config.sweep.seed = (1, 2)  # the table keeps the points of the command before
    config.sweep.readout = ("sampled",)
    run(compute_nads, config, tmp_path / "run")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "run" / "results.csv").read_text())))
    places = [(row["command"], row["readout"], row["seed"]) for row in rows]
    assert places == [
        ("this", "sampled", "1"), ("this", "sampled", "2"), ("earlier", "marginalized", "0"),
        ("earlier", "marginalized", "1"), ("earlier", "sampled", "0"),
    ]  # fmt: skip
    before = {line.split(",", 2)[:2][0] + line.split(",", 2)[1]: line for line in table[1:]}
    for row in rows:
        if (line := before.get(row["readout"] + row["seed"])) is not None:
            assert ",".join([*row.values()][:-1]) == line.rpartition(",")[0]
        assert row["version"] == origin.versions()["nad_jax"] and float(row["seconds"]) > 0
        record = load_nads(
            tmp_path / "run" / f"readout={row['readout']},seed={row['seed']}/nads.npz"
        )
        value, sem = spectrum_metrics(record).kl_uniform
        found = float(row["kl_uniform"]), float(row["kl_uniform_sem"])
        np.testing.assert_allclose(found, (value, sem), rtol=1e-6)
    damaged = tmp_path / "run" / "readout=sampled,seed=0" / "nads.npz"
    damaged.write_bytes(b"")
    run(compute_nads, config, tmp_path / "run")
    assert len((tmp_path / "run" / "results.csv").read_text().splitlines()) == 5
    assert "readout=sampled,seed=0: has no row in results.csv" in caplog.text
    config.sweep.update(seed=(0, 1), readout=("marginalized", "sampled"))
    with pytest.raises(InputError, match="another configuration"):
        config.sweep.seed = ()
        run(compute_nads, config, tmp_path / "run")
    for changes, message in [
        ({"seed": (0, 0)}, r"sweep\.seed: must be a non-empty tuple of different values"),
        ({"step": ("ten",)}, r"sweep\.step: must hold values of the type of step, got 'ten'"),
        ({"pooling": ("mean",)}, "pooling: unknown value 'mean'"),
    ]:
        config = _nads_config()
        config.sweep.update(changes)
        with pytest.raises(InputError, match=message):
            run(compute_nads, config, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_processes_of_jax_distributed_share_a_sweep_and_survive_each_other(clean, tmp_path):
    def start(count):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [*NADS, f"--workdir={tmp_path / 'run'}", "--distributed"]
        return [
            _start([*command, f"--shard={index}/{count}"], JAX_COORDINATOR_ADDRESS=address)
            for index in range(count)
        ]

    killed, *others = start(3)
    _wait(lambda: (tmp_path / "run" / "progress" / "0-of-3.jsonl").exists(), killed)
    killed.kill()
    killed.wait()
    assert [process.wait(120) for process in others] == [0, 0]
    assert not (tmp_path / "run" / "nads.npz").exists()
    processes = start(2)
    assert [process.wait(120) for process in processes] == [0, 0], [
        process.errors for process in processes
    ]
    assert _arrays(tmp_path / "run") == _arrays(clean / "nads")


def _accumulate(model, estimator, chunk_size, num_networks):
    dense, execution = make_dense(model, estimator), Execution(chunk_size=chunk_size)
    accumulate, _ = make_accumulate(model, estimator, dense, execution, num_networks)
    return accumulate(ensemble.make_key(0), init_halves(dense), 0, num_networks)


def _accumulate_on(num_devices):
    """The arrays of an ensemble, and how often the program that adds to it was compiled."""
    model, compiled = create_model("mlp", (4, 4, 1)), []

    def count(event, seconds, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration" and "add_chunk" in fun_name:
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(count)
    with target.compiled_for(jax.devices()[:num_devices]):
        halves = _accumulate(model, Estimator(), 2, 14)
    jax.monitoring.unregister_event_duration_listener(count)
    return halves_to_arrays(halves), compiled


def test_an_ensemble_is_spread_over_the_local_devices_by_one_program():
    (one, once), (four, also_once) = _accumulate_on(1), _accumulate_on(4)
    assert (once, also_once) == (["jit(add_chunk)"], ["jit(add_chunks)"])
    assert one["even_count"] == four["even_count"] > 0
    for name in ("even_scatter", "odd_scatter", "even_mean"):
        np.testing.assert_allclose(
            four[name], one[name], rtol=1e-4, atol=1e-5 * np.abs(one[name]).max()
        )


def test_a_derivative_that_is_not_finite_is_left_out_and_long_ones_are_not():
    def count(long):
        model = from_functions(
            lambda key: (
                jax.random.normal(key, (4, 1))
                * jax.numpy.where(jax.random.bernoulli(key, 0.3), long, 1.0)
            ),
            lambda weights, x: x.reshape(len(x), -1) @ weights,
            (2, 2, 1),
            check=False,
        )
        estimator = Estimator(derivative="input_gradient", readout="sampled")
        halves = _accumulate(model, estimator, 4, 40)
        assert np.isfinite(halves.even.scatter).all() and np.isfinite(halves.odd.scatter).all()
        assert halves.even.count + halves.odd.count == 40 - halves.diverged
        return int(halves.diverged)

    assert count(1e25) == 0
    assert 0 < count(np.inf) < 40


def test_a_file_that_another_process_moves_aside_is_no_error(finished, tmp_path, monkeypatch):
    for name, config in CASES.items():
        workdir = Path(shutil.copytree(finished / name, tmp_path / name))
        folder = Folder(workdir, EXPERIMENTS[name].make_study(config()))
        read, moved = store.read_npz, []

        def vanishing(path, *args, read=read, moved=moved):
            if not moved:
                moved.append(store.quarantine(path))
            return read(path, *args)

        monkeypatch.setattr(store, "read_npz", vanishing)
        missing = folder.missing()
        monkeypatch.undo()
        assert len(moved) == 1 and len(missing) == 1


def test_a_shard_does_not_depend_on_how_networks_are_grouped(tmp_path):
    for shard in (Shard(0, 3), Shard(1, 3)):
        names = []
        for unit_size in (1, 4):
            study = directional_bias.make_study(
                _config(unit_size=unit_size, indices=tuple(range(20)))
            )
            names.append(
                [m.name for unit in Folder(tmp_path, study).units(shard) for m in unit.members]
            )
        assert names[0] == names[1] and len(names[0]) == 7


def test_a_reader_of_messages_that_is_gone_does_not_keep_the_process_alive(tmp_path):
    program = (
        "from experiments import main; from experiments.run import runner; "
        "runner.SNAPSHOT_SECONDS = 0.0; "
        "main.app.run(main.main, flags_parser=main._parse_flags)"
    )
    command = [sys.executable, "-c", program, *LONG, f"--workdir={tmp_path}"]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE)
    _wait(lambda: list(tmp_path.glob("snapshots/*")), process)
    process.stderr.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 75
