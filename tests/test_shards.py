"""Which share of a sweep a process takes, from flags, schedulers and jax.distributed."""

import os
import socket
import subprocess
import sys

import pytest

from experiments.run.shards import Shard, find_shard, join_cluster
from nad_jax.errors import InputError
from tests.test_configs import ROOT


def _slurm(task, first, step, count):
    values = {"ID": task, "MIN": first, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


KUBERNETES = {"JOB_COMPLETION_INDEX": "5", "NAD_NUM_SHARDS": "8"}


def test_a_shard_comes_from_the_flag_and_from_the_scheduler_where_the_flag_says_so():
    assert find_shard("2/4", _slurm(0, 0, 1, 9))[:2] == (2, 4)
    assert find_shard("auto", _slurm(7, 3, 2, 3))[:2] == (2, 3)
    assert find_shard("auto", KUBERNETES)[:2] == (5, 8)


@pytest.mark.parametrize(
    "environment", [{}, _slurm(7, 3, 2, 3), _slurm("", "", "", ""), KUBERNETES]
)
def test_without_the_flag_a_process_computes_everything_whatever_is_around_it(environment):
    assert find_shard("", environment) == Shard(0, 1, "")


@pytest.mark.parametrize(
    ("flag", "environment", "message"),
    [
        ("4/4", {}, "shard: must be in 0 … n − 1, got index 4 of n = 4"),
        ("-1/4", {}, "shard: must be i/n"),
        ("1of4", {}, "shard: must be i/n, e.g. 0/4, or auto, got '1of4'"),
        ("Auto", KUBERNETES, "shard: must be i/n, e.g. 0/4, or auto, got 'Auto'"),
        ("٢/4", {}, "shard: must be i/n"),
        (
            "auto",
            {},
            "shard: auto finds neither a Slurm array (SLURM_ARRAY_TASK_ID) nor a Kubernetes "
            "indexed job",
        ),
        (
            "auto",
            {"SLURM_JOB_ID": "5", "SLURM_PROCID": "1"},
            "shard: auto finds neither",
        ),  # a job, but no array
        ("0/0", {}, "got index 0 of n = 0"),
        (
            "auto",
            _slurm(5, 3, 1, 2),
            "SLURM_ARRAY_TASK_ID: 5 is no member of 2 tasks from 3 in steps of 1",
        ),  # --array=3,5
        ("auto", _slurm(4, 3, 2, 2), "SLURM_ARRAY_TASK_ID: 4 is no member"),
        ("auto", _slurm(4, "", 2, 2), "SLURM_ARRAY_TASK_MIN: must be a whole number, got ''"),
        ("auto", {"JOB_COMPLETION_INDEX": "5"}, "NAD_NUM_SHARDS: this is a Kubernetes indexed job"),
        (
            "auto",
            {"JOB_COMPLETION_INDEX": "8", "NAD_NUM_SHARDS": "8"},
            "JOB_COMPLETION_INDEX: must be in",
        ),
    ],
)
def test_what_is_no_shard_is_refused(flag, environment, message):
    with pytest.raises(InputError) as caught:
        find_shard(flag, environment)
    assert str(caught.value).startswith(message) or message in str(caught.value)


def test_a_cluster_counts_its_processes_itself():
    with pytest.raises(InputError, match="shard: auto does not go with --distributed"):
        join_cluster("auto")


JOIN = """
import os, sys, time
from experiments.run.shards import join_cluster
shard = join_cluster(sys.argv[1])
import jax
assert jax.device_count() > len(jax.local_devices()) == 2, jax.devices()
if shard.index == 1:
    os._exit(9)
time.sleep(2)
print(shard.index, shard.count, jax.jit(lambda x: x + 1)(shard.index))
"""


def test_processes_of_a_cluster_are_counted_and_do_not_die_with_each_other():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    places = {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
        "JAX_COORDINATOR_ADDRESS": address,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN, f"{index}/3"],
            cwd=ROOT,
            env={**os.environ, **places},
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(3)
    ]
    printed = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert printed == ["0 3 1", "", "2 3 3"] and [process.returncode for process in processes] == [
        0,
        9,
        0,
    ]
