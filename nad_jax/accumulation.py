"""Accumulating the rows of an ensemble, chunk by chunk, on all local devices; interrupted and taken
up again.
"""

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from nad_jax import memory
from nad_jax.choices import Estimator, choose_points
from nad_jax.ensemble import Execution, make_key, place_shapes, replicated, shard_members, spread
from nad_jax.errors import InputError
from nad_jax.geometry import make_add_chunk, resolve_execution
from nad_jax.models import Model
from nad_jax.moments import (
    Accumulator,
    Halves,
    clear_halves,
    init_halves,
    merge_halves,
    pack_states,
    unpack_states,
)
from nad_jax.philox import partitionable
from nad_jax.points import Points
from nad_jax.snapshots import Snapshots
from nad_jax.store import DamagedError

Progress = Callable[[int], None]
Accumulate = Callable[[jax.Array, Halves, int, int, Progress | None, Snapshots | None], Halves]


def spread_chunks(
    add_chunk: jax.stages.Wrapped, devices: list[jax.Device], chunk_size: int
) -> jax.stages.Wrapped:
    """Builds `add_chunks(key, states, first, stop, data, variables) -> states`, one program of
    several devices that adds a chunk on each.

    Every leaf of `states` has a leading axis, the devices. That number p adds the networks
    first + p·chunk_size …; `variables` are of all of these networks.
    """

    def add(shared: tuple, places: jax.Array, states: Halves, variables: Any) -> Halves:
        key, first, stop, data = shared
        state = jax.tree.map(lambda leaf: leaf[0], states)
        begin = first + places[0] * chunk_size
        state = add_chunk(partitionable(key), state, begin, stop, data, variables)
        return jax.tree.map(lambda leaf: leaf[None], state)

    sharded = shard_members(add, devices)

    @partial(jax.jit, donate_argnums=1)
    def add_chunks(
        key: jax.Array,
        states: Halves,
        first: jax.Array,
        stop: jax.Array,
        data: Any,
        variables: Any,
    ) -> Halves:
        places = jnp.arange(len(devices))
        return sharded((key, first, stop, data), places, states, variables)

    return add_chunks


def _placements(devices: list[jax.Device]) -> tuple[Sharding, Sharding]:
    """Where arrays are placed that devices share, and those that have the devices as leading axis."""
    if len(devices) == 1:  # a mesh of one would be another placement than that of its results
        single = SingleDeviceSharding(devices[0])
        return single, single
    return replicated(devices), spread(devices)


class Programs(NamedTuple):
    """Programs that add networks to a state, a chunk on each device, for chunks of any size.

    execution: without automatic choices but for the size of its chunks.
    variables: of given networks, or None.
    """

    model: Model
    estimator: Estimator
    accumulator: Accumulator
    execution: Execution
    points: Points | None = None
    split_points: bool = False
    variables: Any = None

    def make(self, chunk_size: int) -> jax.stages.Wrapped:
        """The program for chunks of one size: see `spread_chunks`."""
        execution = self.execution._replace(chunk_size=chunk_size)
        add_chunk = make_add_chunk(*self[:3], execution, self.points, self.split_points)
        devices = execution.devices
        return add_chunk if len(devices) == 1 else spread_chunks(add_chunk, devices, chunk_size)

    def lower(self, program: jax.stages.Wrapped, chunk_size: int, empty: Any) -> Any:
        """The program, lowered for the devices of the execution, which need not be there.

        empty: the state that has seen no networks, or its shapes.
        """
        devices, ends = self.execution.devices, (np.int32(0), np.int32(chunk_size))
        everywhere, divided = _placements(devices)
        if len(devices) > 1:
            empty = jax.eval_shape(
                lambda state: jax.tree.map(lambda leaf: jnp.stack([leaf] * len(devices)), state),
                empty,
            )
        own = jax.eval_shape(lambda: _chunk_of(self.variables, 0, chunk_size * len(devices)))
        law = choose_points(self.model, self.estimator, self.points)
        key, data = jax.eval_shape(lambda: (make_key(0), law.data))
        key, data = place_shapes((key, data), everywhere)
        return program.lower(
            key, place_shapes(empty, divided), *ends, data, place_shapes(own, divided)
        )

    def place(
        self, devices: list[jax.Device], key: jax.Array, parts: list[Halves]
    ) -> tuple[jax.Array, Halves, Any]:
        """What a program takes, on its devices: the key, a copy of the state of each device, and the
        data of the law of points.
        """
        everywhere, divided = _placements(devices)
        law = choose_points(self.model, self.estimator, self.points)
        key, data = jax.device_put((key, law.data), everywhere)
        return key, jax.device_put(_stack(parts), divided), data

    def choose(self, is_open: bool, empty: Any) -> tuple[int, jax.stages.Wrapped]:
        """The size of chunks, and their program: that of the execution; where it is left open and
        networks are vectorized, the largest up to it that fits into memory.
        """
        if not is_open or self.execution.mapping == "sequential":
            return self.execution.chunk_size, self.make(self.execution.chunk_size)
        made = {}

        def needs(size: int) -> float:
            made[size] = self.make(size)
            return memory.needed_bytes(self.lower(made[size], size, empty))

        size = memory.largest_chunk(needs, self.execution.chunk_size, 2, memory.limit())
        return size, made.get(size) or self.make(size)


def make_accumulate(
    model: Model,
    estimator: Estimator,
    accumulator: Accumulator,
    execution: Execution,
    num_networks: int,
    points: Points | None = None,
    variables: Any = None,
    empty: Any = None,
) -> tuple[Accumulate, Execution]:
    """Builds `accumulate(key, halves, first, stop, progress=None, snapshots=None) -> halves`, chunk
    by chunk on the local devices, and says how it does without automatic choices.

    A network with a row that is not finite is counted and left out. Memory does not depend on the
    number of networks.

    Args:
      num_networks: how many it is given at a time: no automatic chunk is larger. Of a single one
        the halves are those of its points.
      points: another law of points than the estimator's.
      variables: of networks 0, 1, …, every leaf [N, …]; None: as `model.init` draws them.
      empty: the state that has seen no networks, or its shapes; where None, that of a dense moment.
        Where the size of vectorized chunks is left open, it is what fits into memory with it.

    Raises:
      InputError: where values are wrong or do not fit the model.
    """
    is_open = execution.chunk_size == 0 and num_networks > 1
    execution, num_rows = resolve_execution(model, estimator, execution, num_networks, points)
    counted = num_rows * accumulator.copies
    choices = model, estimator, accumulator, execution
    programs = Programs(*choices, points, num_networks == 1, variables)
    if empty is None and is_open and execution.mapping == "vectorized":
        empty = jax.eval_shape(lambda: init_halves(accumulator))
    chunk_size, add_chunk = programs.choose(is_open, empty)
    execution = execution._replace(chunk_size=chunk_size)
    devices = execution.devices
    divided = _placements(devices)[1]

    def accumulate(
        key: jax.Array,
        halves: Halves,
        first: int,
        stop: int,
        progress: Progress | None = None,
        snapshots: Snapshots | None = None,
    ) -> Halves:
        """The state that has also seen the networks first … stop − 1, `first` even.

        Args:
          progress: called after each chunk with the number of networks done so far.
          snapshots: where a call that was interrupted is taken up again by the same one: to the bit
            with as many devices, to rounding with more or fewer. What the state is before and, of a
            sketch, its test directions must be part of their identity.
        """
        if first % 2:
            raise InputError(f"first: must be even (halves of even and odd members), got {first}")
        if stop * counted >= 2**31:
            most = 2**31 // counted
            raise InputError(
                f"num_networks: at most {most} of {counted} rows each are counted, got {stop}"
            )
        # One state on each device, so that none waits for another; they are merged in the end.
        parts, done = _load(halves, first, snapshots)
        parts += [clear_halves(accumulator, halves)] * (len(devices) - len(parts))
        # Of more states than there are devices now, each takes several.
        parts = [
            merge_halves(accumulator, *parts[place :: len(devices)])
            for place in range(len(devices))
        ]
        key, states, data = programs.place(devices, key, parts)
        together = chunk_size * len(devices)
        for begin in range(done, stop, together):
            own = jax.device_put(_chunk_of(variables, begin, together), divided)
            states = add_chunk(key, states, np.int32(begin), np.int32(stop), data, own)
            done = min(begin + together, stop)
            if progress is not None or snapshots is not None:
                jax.block_until_ready(states)
            if snapshots is not None and snapshots.due():
                kept = pack_states(_unstack(states, devices))
                snapshots.save(done, {**kept, "done": np.asarray(done)})
            if progress is not None:
                progress(done - first)
        return merge_halves(accumulator, *_unstack(states, devices))

    return accumulate, execution


def _stack(parts: list[Halves]) -> Halves:
    """A copy of the states of devices as one, with the devices as leading axis if there are several."""
    if len(parts) == 1:
        return jax.tree.map(jnp.copy, parts[0])
    return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)


def _unstack(states: Halves, devices: list[jax.Device]) -> list[Halves]:
    """The inverse of `_stack`, all on the first device."""
    if len(devices) == 1:
        return [states]
    states = jax.device_get(states)
    return [
        jax.device_put(jax.tree.map(itemgetter(place), states), devices[0])
        for place in range(len(devices))
    ]


def _load(halves: Halves, first: int, snapshots: Snapshots | None) -> tuple[list[Halves], int]:
    """The states of an interrupted call and the number of its networks done, or the beginning."""

    def check_kept(kept: dict[str, np.ndarray]) -> None:
        counts = ("_networks", "_diverged")
        networks = sum(int(kept[name]) for name in kept if name.endswith(counts))
        networks -= int(halves.networks) + int(halves.diverged)
        if networks != int(kept["done"]) - first:
            raise DamagedError(f"it holds {networks} networks, not {int(kept['done']) - first}")

    if snapshots is None or (kept := snapshots.load(check_kept)) is None:
        return [halves], first
    return unpack_states(kept, halves), int(kept["done"])


def _chunk_of(variables: Any, start: int, chunk_size: int) -> Any:
    """The given variables of a chunk, those of the last network repeated beyond the end."""
    places = np.arange(start, start + chunk_size)
    return jax.tree.map(lambda leaf: leaf[np.minimum(places, len(leaf) - 1)], variables)
