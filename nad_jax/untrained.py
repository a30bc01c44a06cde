"""What is measured of untrained networks one by one, a chunk at a time.

Network n of a seed is the one that `estimate_nads` has: orders zero and one, and the spectrum, are
of one ensemble.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax import memory
from nad_jax.ensemble import (
    Execution,
    map_members,
    member_keys,
    named_key,
    resolve_key,
    shard_members,
)
from nad_jax.errors import InputError, check_function, check_integer, check_record
from nad_jax.geometry import split_member
from nad_jax.models import Model
from nad_jax.philox import partitionable
from nad_jax.spectrum_metrics import Metric
from nad_jax.vector_fields import count_together

# (variables of a network, a key of its own, what all networks share) -> arrays
Measure = Callable[[Any, jax.Array, Any], Any]
Progress = Callable[[int], None]
ROUNDING = 1e-5  # of the largest value: a hundred times that of float32
_SEQUENTIAL, _VECTORIZED = 8, 64  # networks of an automatic chunk on each device, at most


def measure_networks(
    model: Model,
    measure: Measure,
    data: Any,
    num_networks: int,
    seed: jax.Array | int = 0,
    progress: Progress | None = None,
    execution: Execution | None = None,
) -> Any:
    """What `measure(variables, key, data)` gives of each network at its initialization, NumPy, every
    leaf [N, …].

    Args:
      data: arrays that all networks share.
      num_networks: N ≥ 1.
      seed: an integer, or a typed random key; network n depends on (seed, n) alone.
      progress: called with the number of networks done.
      execution: as of `estimate_nads`; None: automatic.

    Raises:
      InputError: for a bad value.
    """
    check_record("model", model, Model)
    check_function("progress", progress)
    count, key = check_integer("num_networks", num_networks, 1), resolve_key(seed)
    execution = (execution or Execution()).resolved()
    devices = execution.devices
    key = key if len(devices) == 1 else partitionable(key)
    data = jax.tree.map(jnp.asarray, data)

    def measure_some(shared: tuple, numbers: jax.Array) -> Any:
        key, data = shared

        def measure_one(variables: Any, own: jax.Array) -> Any:
            return measure(variables, own, data)

        with jax.default_matmul_precision("highest"):  # as gradients of the same networks
            keys = member_keys(named_key(key, "networks"), numbers)
            variable_keys, _, point_keys = jax.vmap(split_member, out_axes=1)(keys)
            # Apart from what is measured, with which it would take three times as long to compile.
            variables = map_members(model.init, execution.mapping, variable_keys)
            return map_members(measure_one, execution.mapping, variables, point_keys)

    program = jax.jit(shard_members(measure_some, devices))
    size = _choose_size(execution, program, (key, data), count)
    parts = []
    for first in range(0, count, size):
        numbers = jnp.arange(first, first + size)  # those beyond the last one are dropped
        found = jax.device_get(program((key, data), numbers))
        parts.append(jax.tree.map(lambda leaf, left=count - first: leaf[:left], found))
        if progress is not None:
            progress(min(first + size, count))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _choose_size(execution: Execution, program: Any, shared: tuple, count: int) -> int:
    """How many networks are measured by one call, a chunk on each device."""
    devices = len(execution.devices)
    if execution.chunk_size:
        return execution.chunk_size * devices
    vectorized = execution.mapping == "vectorized"
    each = min(_VECTORIZED if vectorized else _SEQUENTIAL, -(-count // devices))
    if not vectorized:
        return each * devices

    def needs(size: int) -> float:
        return memory.needed_bytes(program.lower(shared, jnp.arange(size)))

    return memory.largest_chunk(needs, each * devices, devices, memory.limit())


def evaluate(model: Model, variables: Any, x: jax.Array) -> jax.Array:
    """The logits [B, K] of one network at inputs [B, *input_shape], so many at a time as stay in
    the cache.
    """
    count = -(-len(x) // count_together(model.input_shape))
    size = -(-len(x) // count)
    # The last block is filled up with copies of the last input: one program, which is compiled once.
    places = np.minimum(np.arange(count * size), len(x) - 1).reshape(count, size)
    found = jax.lax.map(lambda place: model.apply(variables, x[place]), jnp.asarray(places))
    return found.reshape(count * size, -1)[: len(x)].astype(jnp.float32)


def is_constant(values: jax.Array, level: jax.Array) -> jax.Array:
    """Whether values [M, …] of one network differ over M by 1e-5 of `level` at most, the largest of
    what they were computed from: what is left is rounding.
    """
    return jnp.all(values.max(0) - values.min(0) <= ROUNDING * level)


def average(values: np.ndarray) -> Metric:
    """The mean over networks [N], and its standard error; nan where there are too few."""
    count, values = len(values), values.astype(np.float64)
    error = values.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
    return Metric(float(values.mean()) if count else math.nan, float(error))


def check_all_finite(finite: np.ndarray, what: str) -> None:
    """Raises `InputError` unless all networks [N] have finite numbers."""
    if not finite.all():
        lost, first = np.count_nonzero(~finite), int(np.argmin(finite))
        raise InputError(
            f"model: {lost} of {len(finite)} networks have {what} that are not finite, the first "
            f"is network {first}"
        )
