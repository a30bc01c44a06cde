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

from experiments.run.plan import Cost
from nad_jax.accumulation import Halves, make_add_chunk
from nad_jax.ensemble import make_key
from nad_jax.estimator import Estimator, resolve_estimator
from nad_jax.fitting import Stages, make_chunk
from nad_jax.models import Model
from nad_jax.recipe import Recipe


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
    """A chunk of networks to measure.

    stages: of the shortened recipe, with its data `shared` and its `members` [N]. recipe: the whole
      one. data_bytes:
    what its data takes.
    """

    stages: Stages
    recipe: Recipe
    shared: Any
    members: tuple
    data_bytes: int


def measure_training(example: Example, mapping: str, devices: list[jax.Device]) -> Cost:
    """What a chunk of networks costs under the whole recipe."""
    recipe, shared, members = example.recipe, example.shared, example.members
    short = shorten(recipe)
    chunk = make_chunk(example.stages, mapping, devices)
    begun = time.monotonic()
    start = chunk.start.lower(*members).compile()
    state = jax.eval_shape(chunk.start, *members)
    epoch = chunk.epoch.lower(state, shared, *members).compile()
    finish = chunk.finish.lower(state, shared, *members).compile()
    compile_seconds = time.monotonic() - begun
    both_seconds = fastest(lambda: epoch(start(*members), shared, *members))
    epoch_seconds = max(both_seconds - fastest(lambda: start(*members)), 0.0)
    state = epoch(start(*members), shared, *members)
    finish_seconds = fastest(lambda: finish(state, shared, *members))
    evaluations = (recipe.num_train + recipe.num_test) / (short.num_train + short.num_test)
    seconds = (
        epoch_seconds / short.steps_per_epoch * recipe.num_steps + evaluations * finish_seconds
    )
    peak = max(program_bytes(program) for program in (start, epoch, finish))
    return Cost(compile_seconds, seconds / len(members[0]), peak + example.data_bytes)


def training_bytes(example: Example, mapping: str, devices: list[jax.Device]) -> int:
    """What training a chunk of networks needs, on all devices together."""
    chunk = make_chunk(example.stages, mapping, devices)
    state = jax.eval_shape(chunk.start, *example.members)
    epoch = chunk.epoch.lower(state, example.shared, *example.members).compile()
    return (program_bytes(epoch) + example.data_bytes) * len(devices)


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


def choose_chunk(
    model: Model, estimator: Estimator, num_networks: int, make_empty: Callable[[], Halves]
) -> Estimator:
    """The estimator with the most networks at once that fit, where it leaves that open and maps
    vectorized.

    Args: as in `measure_ensemble`.
    """
    if (
        estimator.chunk_size
        or resolve_estimator(model, estimator, num_networks)[0].mapping == "sequential"
    ):
        return estimator

    def needs(size: int) -> int:
        chosen = dataclasses.replace(estimator, chunk_size=size)
        return program_bytes(compile_ensemble(model, chosen, num_networks, make_empty)[0])

    most = -(-num_networks // jax.local_device_count())  # so that each device has some
    return dataclasses.replace(
        estimator, chunk_size=largest_chunk(needs, most, 2, device_bytes() // 2)
    )


def compile_ensemble(
    model: Model, estimator: Estimator, num_networks: int, make_empty: Callable[[], Halves]
) -> tuple[Any, tuple]:
    """The compiled program that adds a chunk of networks, and what it takes besides the state: key,
    0, chunk size.
    """
    add_chunk, estimator, _ = make_add_chunk(model, estimator, num_networks)
    key, numbers = make_key(0), (jnp.int32(0), jnp.int32(estimator.chunk_size))
    return add_chunk.lower(key, jax.eval_shape(make_empty), *numbers).compile(), (key, *numbers)


def measure_ensemble(
    model: Model, estimator: Estimator, num_networks: int, make_empty: Callable[[], Halves]
) -> Cost:
    """What it costs to accumulate networks of an ensemble, `num_networks` at a time; `make_empty()`
    has seen none.
    """
    begun = time.monotonic()
    program, (key, first, stop) = compile_ensemble(model, estimator, num_networks, make_empty)
    compile_seconds = time.monotonic() - begun
    halves = jax.tree.map(jnp.copy, make_empty())

    def add() -> Halves:
        nonlocal halves  # its arrays are given to the program
        halves = program(key, halves, first, stop)
        return halves

    seconds = fastest(add)
    networks = int(stop) * jax.local_device_count()  # at once
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
