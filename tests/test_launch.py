"""Job descriptions: each is rendered, checked, and carried out with local processes standing in for
hosts.
"""

import os
import re
import socket
import subprocess
import sys

import pytest
import yaml

from experiments.launch.__main__ import TEMPLATES, render
from nad_jax import load_nads
from nad_jax.errors import InputError
from tests.commands import Command
from tests.test_configs import ROOT

SWEEP = [
    "--config=configs/compute_nads.py:logreg",
    "--config.image_shape=4,4,1",
    "--config.unit_size=2",
]


def _render(template, arguments, **changes):
    options = {
        "shards": 2,
        "gpus": 0,
        "cpus": 8,
        "python": sys.executable,
        "image": "me/nad:1",
        "claim": "disk",
    }
    return render(template, arguments, **{**options, **changes})


def _environment(tmp_path, **variables):
    """Without what a scheduler would say to these tests themselves; commands in `bin` stand in for
    its own.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "JOB_COMPLETION"))
    }
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return {**kept, "JAX_PLATFORMS": "cpu", "PATH": path, **variables}


def _stand_in(tmp_path, name, script):
    (tmp_path / "bin").mkdir(exist_ok=True)
    path = tmp_path / "bin" / name
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


def _complete(workdir):
    return load_nads(workdir / "nads.npz").num_networks == 10


def test_a_slurm_array_computes_a_sweep_and_requeues_what_was_interrupted(tmp_path):
    workdir = tmp_path / "run of mine"
    script = tmp_path / "job.sh"
    script.write_text(_render("slurm_array.sh", [*SWEEP, f"--workdir={workdir}"]))
    assert "#SBATCH --array=0-1\n" in script.read_text()
    _stand_in(tmp_path, "srun", 'if [ -e "$INTERRUPTED" ]; then exit 75; fi; shift; exec "$@"')
    _stand_in(tmp_path, "scontrol", f'echo "$@" >> "{tmp_path}/requeued"')
    array = {"SLURM_ARRAY_JOB_ID": "77", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_STEP": "1"}
    array |= {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "8"}

    def task(index, **more):
        environment = _environment(tmp_path, **array, SLURM_ARRAY_TASK_ID=str(index), **more)
        return subprocess.run(["bash", script], cwd=ROOT, env=environment, check=False).returncode

    assert task(1, INTERRUPTED=str(script)) == 75
    assert (tmp_path / "requeued").read_text() == "requeue incomplete 77_1\n"
    assert task(0) == 0 and not (workdir / "nads.npz").exists()
    assert task(1) == 0 and _complete(workdir)
    assert len((tmp_path / "requeued").read_text().splitlines()) == 1


def test_tasks_of_an_array_that_are_runs_of_their_own_compute_all_of_it(tmp_path):
    for task in (1, 2, 3):
        array = {"ID": task, "MIN": 1, "MAX": 3, "STEP": 1, "COUNT": 3}
        array = {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in array.items()}
        command = [*SWEEP, f"--config.seed={task}", f"--workdir={tmp_path / str(task)}"]
        process = Command(*command, variables=array)
        assert process.wait() == 0, process.errors
        assert (
            _complete(tmp_path / str(task))
            and len(list((tmp_path / str(task) / "units").iterdir())) == 5
        )


def test_asking_for_a_shard_where_there_is_none_is_an_error(tmp_path):
    command = [
        sys.executable,
        "-m",
        "experiments.main",
        *SWEEP,
        f"--workdir={tmp_path / 'run'}",
        "--shard=auto",
    ]
    result = subprocess.run(
        command, cwd=ROOT, env=_environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert result.returncode == 2 and result.stderr.startswith("error: shard: auto finds neither")
    assert len(result.stderr.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_cores_and_gpus_are_what_is_asked_for(tmp_path):
    arguments = [*SWEEP, "--workdir=/runs/sweep"]

    def resources(**changes):
        (job,) = yaml.safe_load(_render("jobset.yaml", arguments, **changes))["spec"][
            "replicatedJobs"
        ]
        (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
        return container["resources"]

    script = tmp_path / "job.sh"
    script.write_text(_render("slurm_array.sh", arguments, gpus=0, cpus=3))
    assert (
        "gpu" not in script.read_text()
    )  # a cluster without any refuses the line, whatever its number
    lines = script.read_text().splitlines()
    header = [line for line in lines if line.startswith("#SBATCH")]
    assert "#SBATCH --cpus-per-task=3" in header
    # Slurm reads no further than the first command.
    assert not [line for line in lines[: lines.index(header[-1])] if not line.startswith("#")]
    assert "#SBATCH --gpus-per-task=2\n" in _render("slurm_array.sh", arguments, gpus=2)
    subprocess.run(["bash", "-n", script], check=True)
    assert resources(gpus=0, cpus=3) == {"requests": {"cpu": 3}}
    assert resources(gpus=2) == {"requests": {"cpu": 8}, "limits": {"nvidia.com/gpu": 2}}


def test_a_jobset_computes_a_sweep(tmp_path):
    jobset = yaml.safe_load(_render("jobset.yaml", [*SWEEP, "--workdir=/runs/sweep"]))
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (job,) = jobset["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 2, 2)
    rules = {
        rule["onExitCodes"]["values"][0]: rule["action"]
        for rule in job["podFailurePolicy"]["rules"][::2]
    }
    assert rules == {75: "Ignore", 2: "FailIndex"}
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "me/nad:1" and pod["restartPolicy"] == "Never"
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "disk"
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert container["volumeMounts"][0]["mountPath"] == "/runs"
    command = [argument.replace("/runs", str(tmp_path)) for argument in container["command"]]
    for index in range(2):
        environment = _environment(tmp_path, **variables, JOB_COMPLETION_INDEX=str(index))
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    assert _complete(tmp_path / "sweep")


# Runs the command on two "hosts", which have no TPU, that find each other as the members of a cluster do.
POD = """
for argument in "$@"; do case "$argument" in --command=*) command=${argument#--command=};; esac; done
cd "$HOSTS"
echo run >> log
if [ "$(wc -l < log)" -eq 1 ]; then exit 75; fi  # as if the first time had been interrupted
command=${command/ --require_accelerator=tpu/}
for i in 0 1; do (eval "$command --shard=$i/2") & pids="$pids $!"; done
for pid in $pids; do wait "$pid" || code=$?; done
exit "${code:-0}"
"""


def _free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_a_tpu_pod_computes_a_sweep_and_runs_again_what_was_interrupted(tmp_path):
    workdir = tmp_path / "run"
    script = tmp_path / "pod.sh"
    script.write_text(_render("tpu_pod.sh", [*SWEEP, f"--workdir={workdir}"]))
    _stand_in(tmp_path, "gcloud", POD)
    _stand_in(tmp_path, "sleep", "exit 0")
    (tmp_path / "nad_jax").symlink_to(ROOT)
    pod = {"TPU": "pod", "ZONE": "here", "HOSTS": str(tmp_path)}
    pod["JAX_COORDINATOR_ADDRESS"] = _free_address()
    subprocess.run(["bash", script], env=_environment(tmp_path, **pod), check=True)
    assert _complete(workdir) and (tmp_path / "log").read_text() == "run\nrun\n"


# Runs the command of one host, whose name and zone are the fourth argument and the fifth.
HOST = """
cd "$HOSTS"
for argument in "$@"; do case "$argument" in --command=*) command=${argument#--command=};; esac; done
echo "$5 $6 ${command##* }" >> log
if [ "$5" = tpu-1 ] && [ "$(grep -c tpu-1 log)" -eq 1 ]; then exit 75; fi
[ -z "$FAILS" ] || exit "$FAILS"
exec bash -c "${command/ --require_accelerator=tpu/}"
"""


def test_of_tpu_hosts_with_their_own_slices_one_is_run_again_alone(tmp_path):
    workdir = tmp_path / "run"
    script = tmp_path / "hosts.sh"
    script.write_text(_render("tpu_hosts.sh", [*SWEEP, f"--workdir={workdir}"]))
    _stand_in(tmp_path, "gcloud", HOST)
    _stand_in(tmp_path, "sleep", "exit 0")
    (tmp_path / "nad_jax").symlink_to(ROOT)
    hosts = {"TPU": "tpu", "ZONE": "here", "HOSTS": str(tmp_path)}

    def run(**more):
        (tmp_path / "log").unlink(missing_ok=True)
        environment = _environment(tmp_path, **hosts, **more)
        done = subprocess.run(["bash", script], env=environment, capture_output=True, check=False)
        return done.returncode, sorted((tmp_path / "log").read_text().splitlines())

    first, second = "tpu-0 --zone=here --shard=0/2", "tpu-1 --zone=here --shard=1/2"
    assert run(FAILS="2") == (2, [first, second, second]) and not workdir.exists()
    assert run() == (0, [first, second, second]) and _complete(workdir)


@pytest.mark.parametrize(
    ("template", "gpus", "accelerator", "installs"),
    [
        ("slurm_array.sh", 2, "gpu", "pip install -e '.[cuda]'"),
        ("slurm_array.sh", 0, "", "pip install -e ."),
        ("jobset.yaml", 2, "gpu", "pip install -e '.[cuda]'"),
        ("jobset.yaml", 0, "", "pip install -e ."),
        ("tpu_pod.sh", 0, "tpu", "pip install -e '.[tpu]'"),
        ("tpu_hosts.sh", 2, "tpu", "pip install -e '.[tpu]'"),
    ],
)
def test_a_job_installs_and_insists_on_the_accelerator_it_asks_for(
    template, gpus, accelerator, installs
):
    arguments = [*SWEEP, "--workdir=/runs/sweep"]
    text = _render(template, arguments, gpus=gpus)
    assert f"{installs}\n" in text
    assert re.findall(r"--require_accelerator=(\w+)", text) == [accelerator] * bool(accelerator)
    text = _render(template, [*arguments, "--require_accelerator=other"], gpus=gpus)
    assert re.findall(r"--require_accelerator=(\w+)", text) == ["other"]  # the user knows better


def test_the_command_prints_a_description_and_names_bad_input(tmp_path):
    def launch(*arguments):
        command = [sys.executable, "-m", "experiments.launch", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    result = launch(
        "--template=slurm_array.sh", "--shards=16", "--", "--config=c.py", "--workdir=a b"
    )
    assert (
        result.returncode == 0
        and "--array=0-15" in result.stdout
        and "--config=c.py '--workdir=a b'" in result.stdout
    )
    for options, message in [
        (["--template=slurm"], "error: template: unknown value 'slurm'"),
        (["--template=slurm_array.sh", "--gpus=many"], "error: flag --gpus=many: "),
        (["--template=slurm_array.sh", "--cpu=4"], "error: Unknown command line flag 'cpu'"),
    ]:
        result = launch(*options, "--", "--config=c.py", "--workdir=w")
        assert result.returncode == 2 and not result.stdout
        assert result.stderr.startswith(message) and len(result.stderr.splitlines()) == 1
    for template in TEMPLATES:
        with pytest.raises(InputError, match="--workdir=… is missing"):
            _render(template, ["--config=c.py"])
    for template, arguments, changes, message in [
        (
            "slurm_array.sh",
            ["--workdir=w"],
            {"shards": 0},
            "shards: must be an integer of at least 1, got 0",
        ),
        (
            "slurm_array.sh",
            ["--workdir=w"],
            {"gpus": -1},
            "gpus: must be an integer of at least 0, got -1",
        ),
        (
            "jobset.yaml",
            ["--workdir=/runs/w"],
            {"cpus": 0},
            "cpus: must be an integer of at least 1, got 0",
        ),
        (
            "jobset.yaml",
            ["--workdir=/runs/w"],
            {"claim": "My_Disk"},
            "claim: must be a name of .* got 'My_Disk'",
        ),
        (
            "jobset.yaml",
            ["--workdir=/runs/w"],
            {"image": ""},
            "image: must be the name of an image, got ''",
        ),
        (
            "jobset.yaml",
            ["--workdir=w"],
            {},
            "--workdir: must start with /runs/, which all hosts see, got 'w'",
        ),
        ("tpu_pod.sh", ["--workdir=w"], {}, "--workdir: must start with /, which all hosts see"),
        (
            "slurm_array.sh",
            ["--workdir=w", "--collect"],
            {},
            "--collect: does not belong into a job",
        ),
        (
            "slurm_array.sh",
            ["--workdir=w", "--status"],
            {},
            "--status: does not belong into a job",
        ),
        (
            "slurm_array.sh",
            ["--workdir=w", "--shard=0/4"],
            {},
            "--shard: does not belong into a job",
        ),
        (
            "slurm_array.sh",
            ["--workdir=w", "-shard", "0/4"],
            {},
            "--shard: does not belong into a job",
        ),
        (None, ["--workdir=w"], {}, "--template: is required, one of slurm_array.sh"),
    ]:
        with pytest.raises(InputError, match=message):
            _render(template, [*SWEEP, *arguments], **changes)
