"""What networks cost, and how many fit at once; for training, measured with a recipe of two batches
an epoch.
"""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.run.plan import Cost
from nad_jax.choices import Estimator
from nad_jax.chunks import make_chunk
from nad_jax.ensemble import Execution, make_key
from nad_jax.fitting import Members, Stages, Task, make_fit
from nad_jax.geometry import make_add_chunk, resolve_execution
from nad_jax.models import Model
from nad_jax.moments import Accumulator, Halves, init_halves
from nad_jax.recipe import Recipe
from nad_jax.training import make_members


def shorten(recipe: Recipe) -> Recipe:
    """The same steps, two full batches an epoch and what is left over, so that the same programs
    are compiled.
    """
    left = recipe.num_train % recipe.batch_size
    samples = 2 * recipe.batch_size + left + left % 2  # an even number, as D(v) needs it
    return dataclasses.replace(
        recipe,
        num_train=min(samples, recipe.num_train),
        num_test=min(samples, recipe.num_test),
        num_epochs=2,
    )


class Example(NamedTuple):
    """Networks to measure.

    recipe: the whole one. arrays: of N networks, [N, …] each, by name. size: N.
    """

    model: Model
    task: Task
    recipe: Recipe
    arrays: dict[str, np.ndarray]
    learning_rate: float
    size: int


def _make_chunk(example: Example, execution: Execution) -> tuple[Stages, Any, Members]:
    """The compiled stages under a shortened recipe, the whole data, and the members."""
    model, task, recipe, arrays, learning_rate, size = example
    data = jax.tree.map(jnp.asarray, task.data(model, recipe, 0))
    members, _ = make_members(model, task, arrays, learning_rate, np.zeros(size, int))
    return make_chunk(make_fit(model, shorten(recipe), task), execution), data, members


def measure_training(example: Example, execution: Execution) -> Cost:
    """What as many networks as an example has cost under the whole recipe."""
    recipe, short = example.recipe, shorten(example.recipe)
    chunk, data, members = _make_chunk(example, execution)
    begun = time.monotonic()
    start = chunk.start.lower(members).compile()
    state = jax.eval_shape(chunk.start, members)
    epoch = chunk.epoch.lower(state, data, members).compile()
    finish = chunk.finish.lower(state, data, members).compile()
    compile_seconds = time.monotonic() - begun
    both_seconds = fastest(lambda: epoch(start(members), data, members))
    epoch_seconds = max(both_seconds - fastest(lambda: start(members)), 0.0)
    state = epoch(start(members), data, members)
    finish_seconds = fastest(lambda: finish(state, data, members))
    evaluations = (recipe.num_train + recipe.num_test) / (short.num_train + short.num_test)
    seconds = epoch_seconds / short.steps_per_epoch * recipe.num_steps
    seconds += evaluations * finish_seconds
    peak = max(program_bytes(program) for program in (start, epoch, finish))
    return Cost(compile_seconds, seconds / len(members.learning_rate), peak)


def training_bytes(example: Example, execution: Execution) -> int:
    """What training as many networks as an example has needs, on all devices together."""
    chunk, data, members = _make_chunk(example, execution)
    state = jax.eval_shape(chunk.start, members)
    epoch = chunk.epoch.lower(state, data, members).compile()
    return program_bytes(epoch) * len(execution.devices)


def device_bytes() -> int:
    """The memory of a local device; of a CPU, its share of the machine's."""
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return (
        limit
        or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()
    )


def largest_chunk(needs: Callable[[int], int], most: int, multiple: int, limit: int) -> int:
    """The most networks at once of which a program fits: `most`, or what is left of it after
    halving.

    Args:
      needs: the bytes of a program of so many networks, taken as linear in their number: it is
        asked for `multiple` and for twice as many.
      multiple: what the number must be a multiple of.
      limit: in bytes.
    """
    size = max(most // multiple, 1) * multiple
    if size == multiple:
        return size
    one = needs(multiple)
    more = max(needs(2 * multiple) - one, 0)
    while size > multiple and one + more * (size // multiple - 1) > limit:
        size = max(size // 2 // multiple, 1) * multiple
    return size


class Ensemble(NamedTuple):
    """An ensemble to measure.

    num_networks: that are added at a time. num_rows: that a network counts as.
    basis_shape: of the test directions of a sketch.
    """

    model: Model
    estimator: Estimator
    accumulator: Accumulator
    execution: Execution
    num_networks: int
    num_rows: int
    basis_shape: tuple[int, int] = (0, 0)

    def make_empty(self) -> Halves:
        """A state as large as that of the ensemble; its test directions are zeros."""
        return init_halves(self.accumulator, jnp.zeros(self.basis_shape))


def make_ensemble(
    model: Model,
    estimator: Estimator,
    accumulator: Accumulator,
    execution: Execution,
    num_networks: int,
    basis_shape: tuple[int, int] = (0, 0),
) -> Ensemble:
    """An ensemble; raises `InputError` for what is wrong or does not fit the model."""
    num_rows = resolve_execution(model, estimator, execution, num_networks)[1]
    num_rows *= accumulator.copies
    return Ensemble(model, estimator, accumulator, execution, num_networks, num_rows, basis_shape)


def choose_chunk(ensemble: Ensemble) -> Execution:
    """How an ensemble is accumulated, with the most networks at once that fit where that is left
    open and they are mapped vectorized.
    """
    execution, most = ensemble.execution.resolved(), ensemble.num_networks
    if execution.chunk_size or execution.mapping == "sequential":
        return execution

    def needs(size: int) -> int:
        chosen = ensemble._replace(execution=execution._replace(chunk_size=size))
        return program_bytes(compile_ensemble(chosen)[0])

    most = -(-most // jax.local_device_count())  # so that each device has some
    chunk_size = largest_chunk(needs, most, 2, device_bytes() // 2)
    return execution._replace(chunk_size=chunk_size)


def compile_ensemble(ensemble: Ensemble) -> tuple[jax.stages.Compiled, tuple]:
    """The compiled program that adds a chunk of networks, and what it takes besides the state: key,
    0, chunk size, and no arrays.
    """
    model, estimator, accumulator, execution, num_networks, *_ = ensemble
    execution, _ = resolve_execution(model, estimator, execution, num_networks)
    add_chunk = make_add_chunk(model, estimator, accumulator, execution)
    key, numbers = make_key(0), (jnp.int32(0), jnp.int32(execution.chunk_size))
    empty = jax.eval_shape(ensemble.make_empty)
    program = add_chunk.lower(key, empty, *numbers, None, None).compile()
    return program, (key, *numbers, None, None)


def measure_ensemble(ensemble: Ensemble) -> Cost:
    """What it costs to accumulate networks of an ensemble."""
    begun = time.monotonic()
    program, (key, *rest) = compile_ensemble(ensemble)
    compile_seconds = time.monotonic() - begun
    halves = jax.tree.map(jnp.copy, ensemble.make_empty())

    def add() -> Halves:
        nonlocal halves  # its arrays are given to the program
        halves = program(key, halves, *rest)
        return halves

    seconds = fastest(add)
    networks = int(rest[1]) * jax.local_device_count()  # at once
    return Cost(compile_seconds, seconds / networks, program_bytes(program))


def fastest(call: Callable[[], Any]) -> float:
    """The seconds that the fastest of several calls takes: of one, where that takes longer than two
    seconds.
    """
    begun, times = time.monotonic(), []
    while not times or (time.monotonic() - begun < 2.0 and len(times) < 20):
        called = time.monotonic()
        jax.block_until_ready(call())
        times.append(time.monotonic() - called)
    return min(times)


def program_bytes(program: Any) -> int:
    """What a compiled program says that it needs: arguments, results and intermediate arrays."""
    memory = program.memory_analysis()
    together = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    )
    return together + memory.temp_size_in_bytes
