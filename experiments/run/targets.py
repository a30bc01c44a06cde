"""What programs take on accelerators that are not there: XLA compiles for them without one."""

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from experiments.run import hlo
from experiments.run.costs import Ensemble, Setup, make_alike, shapes_of_data
from nad_jax import ensemble
from nad_jax.accumulation import Programs
from nad_jax.chunks import choose_chunks, choose_mapping, fit_chunks, lower_epoch, make_chunk
from nad_jax.ensemble import Execution, place_shapes
from nad_jax.errors import InputError, first_line
from nad_jax.fitting import make_fit
from nad_jax.memory import program_bytes

GIB = 2**30
# Memory of a chip in GiB, and the clock that XLA counts its cycles by.
TPUS = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
CYCLES_PER_SECOND = 1.5e9
_ENVIRONMENT = {  # libtpu neither looks for a machine of its own nor shuts others out
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
# What XLA knows of a card: NVIDIA H100 SXM, by its data sheet and CUDA's table of compute
# capability 9.0.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  clock_rate_ghz: 1.98
  core_count: 132
  fpus_per_core: 128
  memory_bandwidth: 3352320000000
  device_memory_size: 84978434048
  l2_cache_size: 52428800
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  threads_per_warp: 32
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
GPUS = {"h100": (_H100, 84978434048)}


class Target(NamedTuple):
    """Devices that are compiled for: their name, themselves, and the bytes that each has."""

    name: str
    devices: list[jax.Device]
    bytes: int


def read_target(name: str) -> Target:
    """The devices of a slice of TPUs, "v5e:4x4", say, or a card, "h100".

    Raises:
      InputError: for a name that is none, and where the compiler for it is not installed.
    """
    kind, _, size = name.partition(":")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    if kind in TPUS and size:
        # A single chip is not the smallest slice that a host has.
        options = {"chips_per_host_bounds": (1, 1, 1)} if name == "v5e:1x1" else {}
        options |= {"platform": "tpu", "topology_name": name}
        memory_bytes, needed = TPUS[kind] * GIB, "libtpu, pip install -e '.[tpu]'"
    elif name in GPUS:
        description, memory_bytes = GPUS[name]
        options = {"platform": "cuda", "topology_name": name, "topology": "1x1x1"}
        options["target_config"] = description
        needed = "JAX's CUDA plugin, pip install -e '.[cuda]'"
    else:
        raise InputError(
            f"target: must be a kind of TPU and the size of a slice, e.g. 'v5e:4x4', kinds "
            f"{', '.join(TPUS)}, or {', '.join(GPUS)}, got {name!r}"
        )
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(**options)
    except Exception as error:  # of the compiler, or for want of it
        there = "INVALID_ARGUMENT" in str(error)  # it has read the size
        hint = "no such slice" if there else f"it needs {needed}"
        raise InputError(
            f"target: {name!r} cannot be compiled for ({first_line(error)}); {hint}"
        ) from error
    return Target(name, list(topology.devices), memory_bytes)


class Estimate(NamedTuple):
    """What a program takes on each device, as it says when it is compiled for them.

    num_networks: that each device has at once. num_steps: how often it is called for them. per: what
      a call is.
    compile_seconds: on this machine, those for other numbers of networks included.
    step_seconds: of a call; 0 where XLA does not say. kernels: of a call, on a GPU.
    flops, bytes_moved: of a call. bytes: that are needed, of them temporary_bytes for what lies
      between.
    collectives: operations that exchange something between devices; there are to be none.
    """

    num_networks: int
    num_steps: int
    per: str
    compile_seconds: float
    step_seconds: float
    kernels: int
    flops: float
    bytes_moved: float
    bytes: int
    temporary_bytes: int
    collectives: list[str]
    text: str


def _read(lowered: jax.stages.Lowered, begun: float, *how: Any) -> Estimate:
    """What a program says when it is compiled; `how` are the first fields."""
    program = lowered.compile()
    seconds, text, cost = time.monotonic() - begun, program.as_text(), program.cost_analysis() or {}
    return Estimate(
        *how,
        compile_seconds=seconds,
        step_seconds=hlo.count_cycles(text) / CYCLES_PER_SECOND,
        kernels=hlo.count_kernels(text),
        flops=cost.get("flops", 0.0),
        bytes_moved=cost.get("bytes accessed", 0.0),
        bytes=program_bytes(program),
        temporary_bytes=program.memory_analysis().temp_size_in_bytes,
        collectives=hlo.find_collectives(text),
        text=text,
    )


def estimate_training(
    setup: Setup,
    arrays: Mapping[str, Any],
    given: Target,
    execution: Execution = Execution(),
    most: int = 0,
) -> Estimate:
    """Compiles a step of training networks with such arrays for a target that programs are made for
    (`target.compiled_for`): where the size of chunks is left open, of as many networks as fit, at
    most 32 on each device and `most` in all (0: no limit).

    It is an epoch of one batch.
    """
    begun, (model, task, recipe, _) = time.monotonic(), setup
    short = dataclasses.replace(
        recipe, num_train=recipe.batch_size, num_epochs=1, schedule="constant"
    )
    spread = ensemble.spread(given.devices)

    def some(size: int) -> Any:
        shapes = jax.eval_shape(lambda: make_alike(setup, arrays, size))
        return place_shapes(shapes, spread)

    execution = choose_mapping(model, recipe.batch_size, execution._replace(num_devices=0))
    chosen = choose_chunks(execution)
    data = shapes_of_data(setup._replace(recipe=short), given.devices)
    stages = make_fit(model, short, task)
    if execution.chunk_size:
        chunk = make_chunk(stages, chosen)
    else:
        most = min(most or chosen.chunk_size, chosen.chunk_size)
        chosen, chunk = fit_chunks(stages, chosen, most, data, some)
    lowered = lower_epoch(chunk, data, some(chosen.chunk_size), spread)
    each = chosen.chunk_size // len(given.devices)
    return _read(lowered, begun, each, recipe.num_steps, "a step")


def estimate_ensemble(chosen: Ensemble, given: Target) -> Estimate:
    """Compiles the program that adds a chunk of networks to an ensemble, for a target that programs
    are made for.
    """
    begun, (resolved, _) = time.monotonic(), chosen.resolve()
    programs, empty = Programs(*chosen[:3], resolved), jax.eval_shape(chosen.make_empty)
    size, program = programs.choose(chosen.execution.chunk_size == 0, empty)
    lowered = programs.lower(program, size, empty)
    return _read(lowered, begun, size, 1, "a chunk")
