"""What networks cost, and how many fit at once; for training, measured with a recipe of two batches
an epoch.
"""

import dataclasses
import os
import time
import timeit
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.run.plan import Cost
from nad_jax import target
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


class Setup(NamedTuple):
    """How the networks of a program are trained."""

    model: Model
    task: Task
    recipe: Recipe
    learning_rate: float


def _make_chunk(
    setup: Setup, arrays: Mapping[str, Any], execution: Execution
) -> tuple[Stages, Any, Members]:
    """The compiled stages under a shortened recipe, the whole data, and a chunk of members that are
    all alike.
    """
    model, task, recipe, learning_rate = setup
    data = jax.tree.map(jnp.asarray, task.data(model, recipe, 0))
    size = execution.chunk_size
    arrays = {name: np.stack([array] * size) for name, array in arrays.items()}
    members, _ = make_members(model, task, arrays, learning_rate, np.zeros(size, int))
    return make_chunk(make_fit(model, shorten(recipe), task), execution), data, members


def measure_training(setup: Setup, arrays: Mapping[str, Any], execution: Execution) -> Cost:
    """What a chunk of networks with such arrays costs under the whole recipe."""
    recipe = setup.recipe
    short = shorten(recipe)
    chunk, data, members = _make_chunk(setup, arrays, execution)
    begun = time.monotonic()
    start = chunk.start.lower(members).compile()
    rest = jax.eval_shape(chunk.start, members), data, members
    epoch, finish = (stage.lower(*rest).compile() for stage in (chunk.epoch, chunk.finish))
    compile_seconds = time.monotonic() - begun
    both_seconds = fastest(lambda: epoch(start(members), data, members))
    epoch_seconds = max(both_seconds - fastest(lambda: start(members)), 0.0)
    state = epoch(start(members), data, members)
    finish_seconds = fastest(lambda: finish(state, data, members))
    evaluations = (recipe.num_train + recipe.num_test) / (short.num_train + short.num_test)
    seconds = epoch_seconds / short.steps_per_epoch * recipe.num_steps
    seconds += evaluations * finish_seconds
    peak = max(map(program_bytes, (start, epoch, finish)))
    return Cost(compile_seconds, seconds / execution.chunk_size, peak)


def training_bytes(setup: Setup, arrays: Mapping[str, Any], execution: Execution) -> int:
    """What training a chunk of networks with such arrays needs, on all devices together."""
    chunk, data, members = _make_chunk(setup, arrays, execution)
    state = jax.eval_shape(chunk.start, members)
    epoch = chunk.epoch.lower(state, data, members).compile()
    return program_bytes(epoch) * len(execution.devices)


def device_bytes() -> int:
    """The memory of a local device; of a CPU, its share of the machine's."""
    limit = (target.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    return limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(
        target.local_devices()
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
    count = max(most // multiple, 1)  # in multiples
    if count > 1:
        one = needs(multiple)
        more = max(needs(2 * multiple) - one, 0)
        while count > 1 and one + more * (count - 1) > limit:
            count //= 2
    return count * multiple


class Ensemble(NamedTuple):
    """An ensemble: what is measured of which networks, and how it is accumulated.

    num_networks: that are added at a time. basis(): the test directions of a sketch.
    """

    model: Model
    estimator: Estimator
    accumulator: Accumulator
    execution: Execution
    num_networks: int
    basis: Callable[[], jax.Array] | None = None

    def make_empty(self) -> Halves:
        """The state that has seen no networks."""
        return init_halves(self.accumulator, self.basis and self.basis())

    def resolve(self) -> tuple[Execution, int]:
        """How it is accumulated without automatic choices, and the rows that a network counts as;
        raises `InputError` for what is wrong or does not fit the model.
        """
        how = self.execution, self.num_networks
        execution, num_rows = resolve_execution(self.model, self.estimator, *how)
        return execution, num_rows * self.accumulator.copies

    @property
    def num_rows(self) -> int:
        return self.resolve()[1]


def choose_chunk(ensemble: Ensemble, chunk_size: int = 0) -> Ensemble:
    """An ensemble that is accumulated `chunk_size` networks at a time; where that is 0, as many as
    it says. Where that too is open and they are mapped vectorized, the most that fit.
    """
    execution = ensemble.execution.resolved()

    def of_size(size: int) -> Ensemble:
        return ensemble._replace(execution=execution._replace(chunk_size=size))

    chunk_size = chunk_size or execution.chunk_size
    if chunk_size or execution.mapping == "sequential":
        return of_size(chunk_size)

    def needs(size: int) -> int:
        return program_bytes(compile_ensemble(of_size(size))[0])

    most = -(-ensemble.num_networks // len(execution.devices))  # so that each device has some
    return of_size(largest_chunk(needs, most, 2, device_bytes() // 2))


def compile_ensemble(ensemble: Ensemble) -> tuple[jax.stages.Compiled, tuple]:
    """The compiled program that adds a chunk of networks, and what it takes besides the state: key,
    0, chunk size, and no arrays.
    """
    execution, _ = ensemble.resolve()
    add_chunk = make_add_chunk(*ensemble[:3], execution)
    key, *rest = make_key(0), jnp.int32(0), jnp.int32(execution.chunk_size), None, None
    program = add_chunk.lower(key, jax.eval_shape(ensemble.make_empty), *rest).compile()
    return program, (key, *rest)


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
    networks = int(rest[1]) * len(ensemble.execution.devices)  # at once
    return Cost(compile_seconds, seconds / networks, program_bytes(program))


def fastest(call: Callable[[], Any]) -> float:
    """The seconds that the fastest of several calls takes: of one, where that takes longer than two
    seconds.
    """
    timer = timeit.Timer(lambda: jax.block_until_ready(call()))
    first = timer.timeit(1)
    return min([first, *timer.repeat(min(int(2.0 / first), 19), 1)])


def program_bytes(program: Any) -> int:
    """What a compiled program says that it needs: arguments, results and intermediate arrays."""
    memory = program.memory_analysis()
    arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return arrays - memory.alias_size_in_bytes + memory.temp_size_in_bytes
