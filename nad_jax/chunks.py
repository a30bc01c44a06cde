"""Many networks, a chunk at a time: compiled, observed, interrupted and taken up again."""

from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax import ensemble, memory, target
from nad_jax.ensemble import Execution
from nad_jax.errors import InputError, check_function, check_record
from nad_jax.fitting import FitState, Observer, Stages
from nad_jax.operations import count_step
from nad_jax.snapshots import Snapshots
from nad_jax.task import Members

# Operations of a training step from which on one network fills a GPU. On an H200, one after the
# other, ResNet18's 4.3e11 take 0.5 of the time of eight together and 0.6 of that of 32; VGG11's 0.9e11
# take as long.
_FILLS_A_GPU = 2e11

Progress = Callable[[float], None]
Stage = Callable[[Any, Any, Members], Any]  # (state, data, members) -> what it makes of them


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


def choose_chunks(execution: Execution) -> Execution:
    """How networks are trained, without automatic choices: of a chunk each device has one network
    where they are trained one after the other, 32 where together (see `fit_chunks`).

    Raises:
      InputError: for what is wrong.
    """
    execution, count = execution.resolved(), len(execution.devices)
    chunk_size = execution.chunk_size or count * (1 if execution.mapping == "sequential" else 32)
    if chunk_size % count:
        raise InputError(f"chunk_size: must be a multiple of the {count} devices, got {chunk_size}")
    return execution._replace(chunk_size=chunk_size)


def choose_mapping(model: Any, batch_size: int, execution: Execution) -> Execution:
    """The same with a mapping for the training of this model, where it is left open: on a GPU
    networks that fill it alone go one after the other.
    """
    if execution.mapping != "auto" or target.platform() != "gpu":
        return execution
    fills = count_step(model, batch_size) >= _FILLS_A_GPU
    return execution._replace(mapping="sequential" if fills else "vectorized")


def make_chunk(stages: Stages, execution: Execution) -> Stages:
    """Compiles the stages for N networks at once, spread over the devices of an `execution` without
    automatic choices.
    """
    devices = execution.devices

    def mapped(stage: Stage) -> Stage:
        """A stage of all networks; its name, of which the compiled program is told, is kept."""

        def stage_of_all(data: Any, state: Any, members: Members) -> Any:
            def stage_of_one(state: Any, member: Members) -> Any:
                return stage(state, data, member)

            return ensemble.map_members(stage_of_one, execution.mapping, state, members)

        sharded = ensemble.shard_members(stage_of_all, devices)

        @wraps(stage)
        def call(state: Any, data: Any, members: Members) -> Any:
            return sharded(data, state, members)

        return call

    def start(members: Members) -> FitState:
        return mapped(lambda state, data, member: stages.start(member))(None, None, members)

    # Stated, so that the first epoch meets the same placement as all others: else it is compiled
    # once more.
    placed = ensemble.spread(devices)
    return Stages(
        jax.jit(start, out_shardings=placed),
        jax.jit(mapped(stages.epoch), donate_argnums=0, out_shardings=placed),
        jax.jit(mapped(stages.finish)),
        stages.variables,
        jax.jit(mapped(stages.observe)),
    )


def lower_epoch(chunk: Stages, data: Any, members: Members, placed: Any) -> jax.stages.Lowered:
    """An epoch of members, lowered but not compiled; data and members may be shapes, of devices that
    need not be there. `placed` is how members are.
    """
    state = ensemble.place_shapes(jax.eval_shape(chunk.start, members), placed)
    return chunk.epoch.lower(state, data, members)


def fit_chunks(
    stages: Stages,
    execution: Execution,
    most: int,
    data: Any,
    members_of: Callable[[int], Members],
) -> tuple[Execution, Stages]:
    """The largest chunk of at most `most` networks whose training fits into the memory of the
    devices, and its compiled stages.

    A chunk that fits is not compiled again when it is trained.

    Args:
      execution: without automatic choices but for the size of its chunks.
      data: of the task, placed as in training, or shapes of it.
      members_of(size): so many members like those that are trained, or shapes of them.
    """
    count, placed = len(execution.devices), ensemble.spread(execution.devices)
    made = {}

    def needs(size: int) -> float:
        made[size] = make_chunk(stages, execution._replace(chunk_size=size))
        return memory.needed_bytes(lower_epoch(made[size], data, members_of(size), placed))

    size = memory.largest_chunk(needs, most, count, memory.limit())
    execution = execution._replace(chunk_size=size)
    return execution, made.get(size) or make_chunk(stages, execution)


def resize_members(members: Members, size: int) -> Members:
    """So many members, which repeat beyond the last one."""
    return jax.tree.map(lambda leaf: leaf[np.arange(size) % len(leaf)], members)


class Cohort(NamedTuple):
    """Networks that are trained at once, at most a chunk of them.

    data(): that of their task. everyone: members of all cohorts, every leaf [N, …]. numbers: those
    of these networks among them.
    """

    data: Callable[[], Any]
    everyone: Members
    numbers: np.ndarray

    def padded(self, size: int) -> tuple[Members, np.ndarray]:
        """As many members as `size` and their numbers, copies among them, so that a network's
        results do not depend on how many there are.
        """
        numbers = np.resize(self.numbers, size)
        return jax.tree.map(lambda leaf: leaf[numbers], self.everyone), numbers


class Asked(NamedTuple):
    """What is asked for besides the metrics.

    each: observers of networks one by one, by name. together: observers of all of them.
    keep: whether the trained variables are returned.
    """

    each: Mapping[str, Observer]
    together: Mapping[str, EnsembleObserver]
    keep: bool


class _Position(NamedTuple):
    """How far a computation has come: what a snapshot holds.

    results: the metrics of finished cohorts, joined; None for none. state: of the cohort in
    training. series: what was observed of each of its networks, by epoch. together: the states of
    observers of all networks, by name and epoch.
    """

    results: Any
    state: FitState | None
    series: list[Any]
    together: dict[str, list[Any]]


def map_networks(
    chunk: Stages,
    num_epochs: int,
    chunk_size: int,
    cohorts: list[Cohort],
    asked: Asked,
    progress: Progress | None = None,
    snapshots: Snapshots | None = None,
) -> tuple[Any, dict[str, list[Any]]]:
    """The metrics of the networks of all cohorts [N], NumPy, by calls of `chunk` on `chunk_size` of
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
    observers, first, begin = asked.together, 0, 0
    together = {
        name: [one.init() for _ in range(num_epochs + 1)] for name, one in observers.items()
    }
    results, state, series = None, None, []
    if snapshots is not None:
        check_record("snapshots", snapshots, Snapshots)
        how = {"keep": asked.keep, "chunk_size": chunk_size}
        snapshots.bind({**how, "observed": sorted([*asked.each, *observers])})
        if (kept := snapshots.load()) is not None:
            first, begin = int(kept["batches_done"]), int(kept["epochs_done"]) + 1
            example = cohorts[0].data(), cohorts[0].padded(chunk_size)[0]
            results, state, series, together = _take_up(chunk, asked, *example, together, kept)
    num_done = sum(len(cohort.numbers) for cohort in cohorts[:first])

    for place, cohort in list(enumerate(cohorts))[first:]:
        data, (members, numbers) = cohort.data(), cohort.padded(chunk_size)
        count = len(cohort.numbers)
        for epoch in range(begin, num_epochs + 1):  # 0: initialization
            state = chunk.epoch(state, data, members) if epoch else chunk.start(members)
            jax.block_until_ready(state)
            series.append(jax.device_get(chunk.observe(state, data, members)) if asked.each else {})
            for name, observer in observers.items():
                valid = np.arange(chunk_size) < count
                given = (chunk.variables(state), members, numbers, valid)
                given = jax.device_put(given, target.local_devices()[0])
                together[name][epoch] = observer.update(together[name][epoch], *given)
            if epoch and snapshots is not None and snapshots.due():
                kept = {"batches_done": np.asarray(place), "epochs_done": np.asarray(epoch)}
                kept |= flatten_tree(_Position(results, state, series, together))
                snapshots.save(place * num_epochs + epoch - 1, kept)
            if progress is not None and 0 < epoch < num_epochs:
                progress(num_done + count * epoch / num_epochs)
        metrics = jax.device_get(_describe(chunk, asked, state, data, members, series))
        metrics = jax.tree.map(lambda values, count=count: values[:count], metrics)
        if results is not None:
            metrics = jax.tree.map(lambda *parts: np.concatenate(parts), results, metrics)
        results, series, begin = metrics, [], 0
        num_done += count
        if progress is not None:
            progress(num_done)
    return results, {n: [observers[n].read(one) for one in together[n]] for n in together}


def _describe(
    chunk: Stages, asked: Asked, state: FitState, data: Any, members: Members, series: list[Any]
) -> Any:
    """The metrics of a chunk, with what was asked for besides."""
    # A series [E + 1, N, …] of each leaf as [N, E + 1, …].
    observed = jax.tree.map(lambda *values: jnp.stack(values, 1), *series)
    variables = chunk.variables(state) if asked.keep else None
    return chunk.finish(state, data, members)._replace(observed=observed, variables=variables)


def _take_up(
    chunk: Stages,
    asked: Asked,
    data: Any,
    members: Members,
    together: dict[str, list[Any]],
    kept: dict[str, np.ndarray],
) -> _Position:
    """The position that a snapshot holds; what is computed of a cohort has the same form."""
    state = chunk.start(members)
    look = jax.eval_shape(chunk.observe, state, data, members)
    describe = partial(_describe, chunk, asked)
    results = jax.eval_shape(describe, state, data, members, [look])
    results = results if kept["batches_done"] else None
    series = [look] * (int(kept["epochs_done"]) + 1)
    found = restore_tree(_Position(results, state, series, together), kept)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    return found._replace(state=jax.device_put(found.state, placed))


def flatten_tree(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree, numbered, as arrays that a file can hold."""

    def plain(leaf: jax.Array) -> np.ndarray:
        array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        kind = array.dtype.kind
        return array if kind in "biuf" else array.view(f"u{array.dtype.itemsize}")  # bfloat16, say

    return {f"leaf_{index}": plain(leaf) for index, leaf in enumerate(jax.tree.leaves(tree))}


def restore_tree(like: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of `flatten_tree`, for a tree like another one."""
    leaves, structure = jax.tree.flatten(like)
    for index, leaf in enumerate(leaves):
        array = arrays[f"leaf_{index}"]
        if _is_key(leaf):
            leaves[index] = jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
        else:
            leaves[index] = array.view(leaf.dtype)
    return jax.tree.unflatten(structure, leaves)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
