"""What training takes on accelerators that are not there: XLA compiles for them without one."""

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.run import hlo
from experiments.run.costs import Setup, program_bytes
from nad_jax import ensemble, target
from nad_jax.chunks import choose_chunks, make_chunk
from nad_jax.ensemble import Execution
from nad_jax.errors import InputError, first_line
from nad_jax.fitting import Members, make_fit

GIB = 2**30
# Memory of a chip in GiB, and the clock that XLA counts its cycles by.
TPUS = {"v4": 32, "v5e": 16, "v5p": 95, "v6e": 32}
CYCLES_PER_SECOND = 1.5e9
_ENVIRONMENT = {  # libtpu neither looks for a machine of its own nor shuts others out
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


class Target(NamedTuple):
    """Devices that are compiled for: their name, themselves, and the bytes that each has."""

    name: str
    devices: list[jax.Device]
    bytes: int


def read_target(name: str) -> Target:
    """The devices of a slice of TPUs, "v5e:4x4", say.

    Raises:
      InputError: for a name that is none, and where libtpu is not installed.
    """
    kind, _, size = name.partition(":")
    if kind not in TPUS or not size:
        raise InputError(
            f"target: must be a kind of TPU and the size of a slice, e.g. 'v5e:4x4', kinds "
            f"{', '.join(TPUS)}, got {name!r}"
        )
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    # A single chip is not the smallest slice that a host has.
    single = {"chips_per_host_bounds": (1, 1, 1)} if name == "v5e:1x1" else {}
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **single)
    except Exception as error:  # of libtpu, or for want of it
        raise InputError(
            f"target: {name!r} cannot be compiled for ({first_line(error)}); it needs libtpu, "
            "pip install 'jax[tpu]'"
        ) from error
    return Target(name, list(topology.devices), TPUS[kind] * GIB)


class Estimate(NamedTuple):
    """What a training step of so many networks on each device takes, as its compiled program says.

    step_seconds: 0 where XLA does not say. flops, bytes_moved: of each device. bytes: that each
    needs. collectives: operations that exchange something between devices; there are to be none.
    """

    num_networks: int
    compile_seconds: float
    step_seconds: float
    flops: float
    bytes_moved: float
    bytes: int
    temporary_bytes: int
    collectives: list[str]
    text: str


def estimate_step(
    setup: Setup, arrays: Mapping[str, Any], given: Target, per_device: int, mapping: str = "auto"
) -> Estimate:
    """Compiles a step of training networks with such arrays, so many on each device of a target.

    It is an epoch of one batch.
    """
    model, task, recipe, _ = setup
    recipe = dataclasses.replace(
        recipe, num_train=recipe.batch_size, num_epochs=1, schedule="constant"
    )
    count = per_device * len(given.devices)
    with target.compiled_for(given.devices):
        execution = choose_chunks(Execution(mapping, count))
        chunk = make_chunk(make_fit(model, recipe, task), execution)
        spread = ensemble.spread(given.devices)

        def shape(leaf: Any, sharding: jax.sharding.Sharding = spread) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        data = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, task.data(model, recipe, 0)))
        data = jax.tree.map(lambda leaf: shape(leaf, ensemble.replicated(given.devices)), data)
        keys = jax.eval_shape(lambda: jax.vmap(jax.random.key)(jnp.arange(count)))
        named = {name: np.asarray(value, np.float32) for name, value in arrays.items()}
        each = {n: np.broadcast_to(value, (count, *value.shape)) for n, value in named.items()}
        members = jax.tree.map(shape, Members(keys, np.zeros(count, np.float32), each))
        state = jax.tree.map(shape, jax.eval_shape(chunk.start, members))
        begun = time.monotonic()
        program = chunk.epoch.lower(state, data, members).compile()
    seconds, text, cost = time.monotonic() - begun, program.as_text(), program.cost_analysis() or {}
    return Estimate(
        num_networks=per_device,
        compile_seconds=seconds,
        step_seconds=hlo.count_cycles(text) / CYCLES_PER_SECOND,
        flops=cost.get("flops", 0.0),
        bytes_moved=cost.get("bytes accessed", 0.0),
        bytes=program_bytes(program),
        temporary_bytes=program.memory_analysis().temp_size_in_bytes,
        collectives=hlo.find_collectives(text),
        text=text,
    )
