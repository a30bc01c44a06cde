"""Which share of a plan's units is this process's: shard i of n takes units i, i + n, i + 2n, …"""

import math
import re
import sys
from collections.abc import Mapping
from typing import NamedTuple

import jax

from nad_jax.errors import InputError, first_line


class Shard(NamedTuple):
    """This process among those that share a run folder; `source` says where that was read."""

    index: int = 0
    count: int = 1
    source: str = ""

    @property
    def name(self) -> str:
        return f"{self.index}-of-{self.count}"

    def overlaps(self, other: "Shard") -> bool:
        """Whether both have a unit in common, of however many."""
        return (self.index - other.index) % math.gcd(self.count, other.count) == 0


def find_shard(flag: str, environment: Mapping[str, str]) -> Shard:
    """The shard of this process: the flag "i/n"; with "auto" a Slurm array's or an indexed
    Kubernetes job's; else all.

    Without the flag the environment is not read: tasks of an array may well be runs of their own.

    Raises:
      InputError: naming the flag or variable, its value and what is allowed.
    """
    if flag == "auto":
        return _scheduled_shard(environment)
    if flag:
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", flag)
        if not match:
            raise InputError(f"shard: must be i/n, e.g. 0/4, or auto, got {flag!r}")
        return _checked("shard", int(match[1]), int(match[2]), "--shard")
    return Shard()


def _scheduled_shard(environment: Mapping[str, str]) -> Shard:
    if "SLURM_ARRAY_TASK_ID" in environment:
        names = (
            "SLURM_ARRAY_TASK_ID",
            "SLURM_ARRAY_TASK_MIN",
            "SLURM_ARRAY_TASK_STEP",
            "SLURM_ARRAY_TASK_COUNT",
        )
        task, first, step, count = (_integer(environment, name) for name in names)
        if step < 1 or (task - first) % step or not 0 <= (task - first) // step < count:
            raise InputError(
                f"SLURM_ARRAY_TASK_ID: {task} is no member of {count} tasks from {first} in steps "
                f"of {step}; submit a regular range, or give --shard=i/n"
            )
        return Shard((task - first) // step, count, "Slurm array")
    if "JOB_COMPLETION_INDEX" in environment:
        if "NAD_NUM_SHARDS" not in environment:
            raise InputError(
                "NAD_NUM_SHARDS: this is a Kubernetes indexed job (JOB_COMPLETION_INDEX is set), "
                "so it must be the number of completions; or give --shard=i/n"
            )
        names = ("JOB_COMPLETION_INDEX", "NAD_NUM_SHARDS")
        index, count = (_integer(environment, name) for name in names)
        return _checked("JOB_COMPLETION_INDEX", index, count, "Kubernetes index")
    raise InputError(
        "shard: auto finds neither a Slurm array (SLURM_ARRAY_TASK_ID) nor a Kubernetes indexed "
        "job (JOB_COMPLETION_INDEX) around it; give --shard=i/n, or leave it out to compute "
        "everything"
    )


def join_cluster(flag: str) -> Shard:
    """The shard of this process among those of the cluster that `jax.distributed` finds (TPU pod,
    Slurm, GKE, MPI).

    Where it finds none, JAX_COORDINATOR_ADDRESS=host:port and the flag "i/n" name the first process
    and this one. All have to come, within the five minutes that JAX waits. They know each other
    just long enough to be counted: afterwards none depends on another, so that one that is killed,
    or is done earlier, does not end the rest.
    """
    arguments = {}
    if flag == "auto":
        raise InputError(
            "shard: auto does not go with --distributed, which finds the shard itself; leave one "
            "of them out"
        )
    if flag:
        shard = find_shard(flag, {})
        arguments = {"num_processes": shard.count, "process_id": shard.index}
    sys.stderr.write("waiting for all processes of the cluster\n")
    try:
        jax.distributed.initialize(**arguments)
        shard = Shard(jax.process_index(), jax.process_count(), "jax.distributed")
        jax.distributed.shutdown()
    except Exception as error:  # an address without a port, say, is an IndexError
        raise InputError(
            f"distributed: JAX finds no cluster, or not all of it ({first_line(error)}); where it "
            "detects none, set JAX_COORDINATOR_ADDRESS=host:port of the first process and "
            "--shard=i/n, or leave out --distributed"
        ) from error
    return shard


def _integer(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise InputError(f"{name}: must be a whole number, got {value!r}")
    return int(value)


def _checked(name: str, index: int, count: int, source: str) -> Shard:
    if not 0 <= index < count:
        raise InputError(f"{name}: must be in 0 … n − 1, got index {index} of n = {count}")
    return Shard(index, count, source)
