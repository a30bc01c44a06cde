"""The array that is printed for Slurm, in a real one: `make test-cluster`.

Time limits are looked at every 30 s and `--signal=TERM@120` is for hours, so a task with a limit of
two minutes gets its signal within 30 s.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from nad_jax import load_nads
from tests.cluster.slurm import ON_CORE, Slurm, missing
from tests.test_configs import ROOT

if missing():
    lacks = f"{', '.join(missing())} not installed: apt-get install slurm-wlm munge"
    pytest.skip(lacks, allow_module_level=True)

SHARDS = 4
NUM_NETWORKS = 80_000  # so that no shard is done before it has been preempted
EXPERIMENT = [
    "--config=configs/compute_nads.py:logreg",
    "--config.image_shape=16,16,1",
    "--config.unit_size=1000",
    f"--config.num_networks={NUM_NETWORKS}",
]


@pytest.fixture(scope="module")
def slurm():
    os.environ.pop("XLA_FLAGS", None)  # those of the other tests make slow programs
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("terminated"))  # nothing is left running
    with Slurm() as engine:
        yield engine


@pytest.fixture
def alone(slurm, tmp_path):
    """A run of the same experiment without Slurm, under way in the folder `alone`: on one core, too,
    for how many there are decides how XLA sums.
    """
    command = [*ON_CORE, "max", sys.executable, "-m", "experiments.main", *EXPERIMENT]
    command += [f"--workdir={tmp_path}/alone"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


def _print_job(folder, *arguments, shards=SHARDS, gpus=0):
    """The description that users get, in a file."""
    command = [sys.executable, "-m", "experiments.launch", "--template=slurm_array.sh"]
    command += [f"--shards={shards}", f"--gpus={gpus}", "--cpus=1", f"--python={sys.executable}"]
    script = folder / "job.sh"
    with open(script, "w") as file:
        subprocess.run([*command, "--", *arguments], cwd=ROOT, stdout=file, check=True)
    return script


def _submit(slurm, script, *options):
    """Its number; the log of task i is `i.log` beside the script."""
    return slurm.submit(*options, f"--output={script.parent}/%a.log", str(script), cwd=ROOT)


def _events(workdir, shard, shards=SHARDS):
    path = workdir / "progress" / f"{shard}-of-{shards}.jsonl"
    if not path.exists():
        return []
    return [json.loads(line)["event"] for line in path.read_text().splitlines()]


def _is_storing(workdir, shard):
    """Whether a shard is at work and has stored a unit since it was last started."""
    return _events(workdir, shard)[-1:] == ["unit"]


def _results(workdir):
    """The bytes of every unit and table. Figures are made of them."""
    files = [*workdir.glob("units/*"), *workdir.glob("*.npz"), *workdir.glob("*.csv")]
    return {file.relative_to(workdir): file.read_bytes() for file in files}


def test_an_array_that_is_preempted_ends_with_the_bytes_of_a_run_without_slurm(
    slurm, alone, tmp_path, capsys
):
    began = time.monotonic()
    workdir = tmp_path / "array"
    job = _submit(slurm, _print_job(tmp_path, *EXPERIMENT, f"--workdir={workdir}"), "--time=2")
    tasks = [f"{job}_{shard}" for shard in range(SHARDS)]

    def restarts():
        return [int(slurm.state(task)["Restarts"]) for task in tasks]

    # First their time is up.
    slurm.wait(lambda: min(restarts()) >= 1, 120, "the signal before the time limit")
    for task in tasks:
        slurm.run("scontrol", "update", f"JobId={task}", "TimeLimit=60")
    warned = restarts()
    # Then another job takes the node.
    slurm.wait(lambda: all(_is_storing(workdir, shard) for shard in range(SHARDS)), 300, "units")
    assert {slurm.state(task)["JobState"] for task in tasks} == {"RUNNING"}, "NUM_NETWORKS: too few"
    slurm.submit("--partition=urgent", "--ntasks=4", "--output=/dev/null", "--wrap=sleep 1")
    slurm.wait(lambda: all(map(int.__gt__, restarts(), warned)), 120, "the preemption")
    preempted = restarts()
    slurm.wait(
        lambda: {slurm.state(task)["JobState"] for task in tasks} == {"COMPLETED"}, 600, "the end"
    )

    assert restarts() == preempted and min(preempted) >= 2
    for shard in range(SHARDS):
        events = _events(workdir, shard)
        assert events.count("start") >= 2 and "interrupted" in events and events[-1] == "end"
    assert alone.wait(600) == 0
    expected = _results(tmp_path / "alone")
    assert len(expected) > NUM_NETWORKS // 1000 and _results(workdir) == expected
    assert load_nads(workdir / "nads.npz").num_networks == NUM_NETWORKS
    with capsys.disabled():
        seconds = time.monotonic() - began
        print(f"\ntasks preempted {preempted} times, {seconds:.0f} s, {os.cpu_count()} cores")


def test_a_job_with_a_gpu_that_jax_does_not_find_fails_and_stays_so(slurm, tmp_path):
    workdir = tmp_path / "run"
    script = _print_job(tmp_path, *EXPERIMENT, f"--workdir={workdir}", shards=1, gpus=1)
    job = _submit(slurm, script)
    slurm.wait(lambda: slurm.state(job)["JobState"] not in ("PENDING", "RUNNING"), 120, "its end")
    state = slurm.state(job)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("FAILED", "2:0", "0")
    said = (tmp_path / "0.log").read_text()
    assert "error: require_accelerator: expected a GPU, JAX found " in said
    assert not workdir.exists()


def test_a_job_that_is_cancelled_stays_so(slurm, tmp_path):
    workdir = tmp_path / "run"
    script = _print_job(tmp_path, *EXPERIMENT, f"--workdir={workdir}", shards=1)
    job = _submit(slurm, script)
    slurm.wait(lambda: "unit" in _events(workdir, 0, 1), 120, "a unit")
    slurm.run("scancel", job)
    slurm.wait(lambda: _events(workdir, 0, 1)[-1] == "interrupted", 30, "the interruption")
    time.sleep(3)  # more than the script takes to put its task into the queue again
    state = slurm.state(job)
    assert (state["JobState"], state["Restarts"]) == ("CANCELLED", "0")
