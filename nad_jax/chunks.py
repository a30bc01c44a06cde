"""Many networks, a chunk at a time: compiled, observed, interrupted and taken up again."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax import ensemble
from nad_jax.ensemble import Execution
from nad_jax.errors import InputError, check_function, check_record
from nad_jax.fitting import FitState, Members, Observer, Stages
from nad_jax.snapshots import Snapshots

Progress = Callable[[float], None]


class EnsembleObserver(NamedTuple):
    """What is measured of all networks together, at the start and after every epoch.

    check(name, count): raises `InputError`, before the training, where so many networks are too few
      for the observer of this name.
    init() -> state: that has seen no networks.
    update(state, variables, members, numbers, valid) -> state: that has also seen networks of these
      numbers [N]; every leaf of `variables` and `members` is [N, …]; those that are not `valid` [N]
      are left out. To be compiled by the observer.
    read(state) -> result, on the host.
    """

    check: Callable[[str, int], None]
    init: Callable[[], Any]
    update: Callable[[Any, Any, Members, jax.Array, jax.Array], Any]
    read: Callable[[Any], Any]


def resolve_execution(execution: Execution) -> Execution:
    """How networks are trained, without automatic choices: of a chunk each device has one network
    where they are trained one after the other, 32 where together.

    Raises:
      InputError: for what is wrong.
    """
    execution, count = execution.resolved(), len(execution.devices)
    chunk_size = execution.chunk_size or count * (1 if execution.mapping == "sequential" else 32)
    if chunk_size % count:
        raise InputError(f"chunk_size: must be a multiple of the {count} devices, got {chunk_size}")
    return execution._replace(chunk_size=chunk_size)


class Chunk(NamedTuple):
    """The compiled stages of N networks at once, spread over the devices; see `fitting.Stages`.

    observe(state, data, members) -> trees with leaves [N, …]: what is measured of each network.
    variables(state) -> every leaf [N, …].
    """

    start: Callable[[Members], FitState]
    epoch: Callable[[FitState, Any, Members], FitState]
    finish: Callable[[FitState, Any, Members], Any]
    observe: Callable[[FitState, Any, Members], Any]
    variables: Callable[[FitState], Any]


def make_chunk(
    stages: Stages, execution: Execution, observers: Mapping[str, Observer] | None = None
) -> Chunk:
    """Compiles the stages for an `execution` without automatic choices."""
    mapping, devices = execution.mapping, execution.devices

    def mapped(stage: Callable[[Any, Any, Members], Any]) -> Callable[[Any, Any, Members], Any]:
        def stage_of_all(data: Any, state: Any, members: Members) -> Any:
            return ensemble.map_members(partial(stage, data), mapping, state, members)

        return ensemble.shard_members(stage_of_all, devices)

    def observe(data: Any, state: FitState, member: Members) -> Any:
        variables, chosen = stages.variables(state), (observers or {}).items()
        return {name: observer(variables, data, member) for name, observer in chosen}

    start_all = mapped(lambda _, nothing, member: stages.start(member))
    epoch_all = mapped(lambda data, state, member: stages.epoch(state, data, member))
    finish_all = mapped(lambda data, state, member: stages.finish(state, data, member))
    observe_all = mapped(observe)
    # Stated, so that the first epoch meets the same placement as all others: else it is compiled
    # once more.
    placed = ensemble.spread(devices)

    @partial(jax.jit, out_shardings=placed)
    def start(members: Members) -> FitState:
        return start_all(None, None, members)

    @partial(jax.jit, donate_argnums=0, out_shardings=placed)
    def epoch(state: FitState, data: Any, members: Members) -> FitState:
        return epoch_all(data, state, members)

    @jax.jit
    def finish(state: FitState, data: Any, members: Members) -> Any:
        return finish_all(data, state, members)

    @jax.jit
    def observe_chunk(state: FitState, data: Any, members: Members) -> Any:
        return observe_all(data, state, members)

    return Chunk(start, epoch, finish, observe_chunk, stages.variables)


class Batch(NamedTuple):
    """Networks that are trained at once, at most a chunk of them.

    data(): that of their task. members: every leaf [N, …]. numbers: [N], of the networks.
    """

    data: Callable[[], Any]
    members: Members
    numbers: np.ndarray

    def padded(self, size: int) -> "Batch":
        """As many networks as `size`, copies among them, so that a network's numbers do not depend
        on how many there are.
        """
        places = np.resize(np.arange(len(self.numbers)), size)
        members, numbers = jax.tree.map(lambda leaf: leaf[places], (self.members, self.numbers))
        return Batch(self.data, members, numbers)


class Asked(NamedTuple):
    """What is asked for besides the metrics.

    each: the names of what is observed of networks one by one. together: observers of all of them.
    keep: whether the trained variables are returned.
    """

    each: tuple[str, ...] = ()
    together: Mapping[str, EnsembleObserver] = {}
    keep: bool = False


class _Position(NamedTuple):
    """How far a computation has come: what a snapshot holds.

    results: the metrics of finished batches, joined; None for none. state: of the batch in
    training. series: what was observed of each of its networks, by epoch. together: the states of
    observers of all networks, by name and epoch.
    """

    results: Any
    state: FitState
    series: list[Any]
    together: dict[str, list[Any]]


def map_networks(
    chunk: Chunk,
    num_epochs: int,
    chunk_size: int,
    batches: list[Batch],
    asked: Asked,
    progress: Progress | None = None,
    snapshots: Snapshots | None = None,
) -> tuple[Any, dict[str, list[Any]]]:
    """The metrics of the networks of all batches [N], NumPy, by calls of `chunk` on `chunk_size` of
    them; and what observers of all networks read, at the start and after every epoch.

    Args:
      chunk: from `make_chunk`.
      asked: what is asked for besides.
      progress: called after every epoch with the number of networks done, a fraction for those in
        training.
      snapshots: where the state is kept between epochs, and from where it is taken up again.

    Raises:
      InputError: for another `progress` than a function, and other `snapshots` than `Snapshots`.
    """
    check_function("progress", progress)
    observers = asked.together
    if snapshots is not None:
        check_record("snapshots", snapshots, Snapshots)
        snapshots.bind({"keep": asked.keep, "observed": sorted([*asked.each, *observers])})
    together = {
        name: [one.init() for _ in range(num_epochs + 1)] for name, one in observers.items()
    }
    results, series, state, first, epochs_done = None, [], None, 0, 0
    if snapshots is not None and (kept := snapshots.load()) is not None:
        first, epochs_done = int(kept["batches_done"]), int(kept["epochs_done"])
        like = _position_like(chunk, batches[0].padded(chunk_size), asked, together)
        results, state, series, together = _restore_position(like, kept, epochs_done)
    num_done = sum(len(batch.numbers) for batch in batches[:first])

    def look(batch: Batch, count: int, epoch: int) -> None:
        if asked.each:
            series.append(jax.device_get(chunk.observe(state, data, batch.members)))
        for name, observer in observers.items():
            given = (chunk.variables(state), batch.members, batch.numbers)
            given = jax.device_put((*given, np.arange(chunk_size) < count), jax.local_devices()[0])
            together[name][epoch] = observer.update(together[name][epoch], *given)

    for number, batch in list(enumerate(batches))[first:]:
        count, batch = len(batch.numbers), batch.padded(chunk_size)
        data, members = batch.data(), batch.members
        if state is None:
            state, series = chunk.start(members), []
            look(batch, count, 0)
        for epoch in range(epochs_done, num_epochs):
            state = jax.block_until_ready(chunk.epoch(state, data, members))
            look(batch, count, epoch + 1)
            if snapshots is not None and snapshots.due():
                kept = {"batches_done": np.asarray(number), "epochs_done": np.asarray(epoch + 1)}
                position = _Position(results, state, series, together)
                snapshots.save(number * num_epochs + epoch, kept | _flatten(position))
            if progress is not None and epoch + 1 < num_epochs:
                progress(num_done + count * (epoch + 1) / num_epochs)
        metrics = _describe(chunk, state, data, members, asked, series)
        metrics = jax.tree.map(lambda values, count=count: values[:count], metrics)
        if results is not None:
            metrics = jax.tree.map(lambda *parts: np.concatenate(parts), results, metrics)
        results = metrics
        num_done, epochs_done, state = num_done + count, 0, None
        if progress is not None:
            progress(num_done)
    return results, {n: [observers[n].read(one) for one in together[n]] for n in together}


def _describe(
    chunk: Chunk, state: FitState, data: Any, members: Members, asked: Asked, series: list[Any]
) -> Any:
    """The metrics of a chunk, with what was asked for besides, as NumPy arrays."""
    metrics = jax.device_get(chunk.finish(state, data, members))
    if asked.each:  # a series [E + 1, N, …] of each leaf as [N, E + 1, …]
        observed = jax.tree.map(lambda *values: np.stack(values, 1), *series)
        metrics = metrics._replace(observed=observed)
    if asked.keep:
        metrics = metrics._replace(variables=jax.device_get(chunk.variables(state)))
    return metrics


def _position_like(
    chunk: Chunk, batch: Batch, asked: Asked, together: dict[str, list[Any]]
) -> _Position:
    """A position of the same form as any other; its series is what one look gives."""
    data, members = batch.data(), batch.members
    state = chunk.start(members)
    metrics = jax.eval_shape(chunk.finish, state, data, members)
    look = jax.eval_shape(chunk.observe, state, data, members) if asked.each else None
    variables = chunk.variables(state) if asked.keep else None
    return _Position(metrics._replace(observed=look, variables=variables), state, look, together)


def _restore_position(like: _Position, kept: dict[str, np.ndarray], epochs: int) -> _Position:
    """The position that a snapshot holds, at an epoch of its batch."""
    series = [] if like.series is None else [like.series] * (epochs + 1)
    results = None if int(kept["batches_done"]) == 0 else like.results
    found = _restore(_Position(results, like.state, series, like.together), kept)
    placed = jax.tree.map(lambda leaf: leaf.sharding, like.state)
    return found._replace(state=jax.device_put(found.state, placed))


def _flatten(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree, numbered, as arrays that a file can hold."""

    def plain(leaf: jax.Array) -> np.ndarray:
        array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        kind = array.dtype.kind
        return array if kind in "biuf" else array.view(f"u{array.dtype.itemsize}")  # bfloat16, say

    return {f"leaf_{index}": plain(leaf) for index, leaf in enumerate(jax.tree.leaves(tree))}


def _restore(like: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of `_flatten`, for a tree like another one."""

    def restored(index: int, leaf: Any) -> Any:
        array = arrays[f"leaf_{index}"]
        if _is_key(leaf):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
        return array.view(leaf.dtype)

    leaves, structure = jax.tree.flatten(like)
    leaves = [restored(index, leaf) for index, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, leaves)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
