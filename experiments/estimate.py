"""What it will cost: to train networks, from a recipe of two batches an epoch; to add networks to an ensemble."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.plan import Cost
from nad_jax.accumulation import init_halves, make_add_chunk
from nad_jax.ensemble import make_key
from nad_jax.estimator import Estimator
from nad_jax.fitting import Stages, make_chunk
from nad_jax.models import Model
from nad_jax.recipe import Recipe


def shorten(recipe: Recipe) -> Recipe:
    """The same steps, two full batches an epoch and what is left over, so that the same programs are compiled."""
    left = recipe.num_train % recipe.batch_size
    samples = 2 * recipe.batch_size + left + left % 2  # an even number, as D(v) needs it
    return dataclasses.replace(
        recipe, num_train=min(samples, recipe.num_train), num_test=min(samples, recipe.num_test), num_epochs=2
    )


def measure_training(
    stages: Stages, recipe: Recipe, mapping: str, devices: list[jax.Device], shared: Any, members: tuple, nbytes: int
) -> Cost:
    """What a chunk of members [N] costs under a recipe.

    Args:
      stages: of the shortened recipe, with its data `shared`.
      nbytes: what the data of the whole recipe takes.
    """
    short = shorten(recipe)
    chunk = make_chunk(stages, mapping, devices)
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
    seconds = epoch_seconds / short.steps_per_epoch * recipe.num_steps + evaluations * finish_seconds
    peak = max(program_bytes(program) for program in (start, epoch, finish))
    return Cost(compile_seconds, seconds / len(members[0]), peak + nbytes)


def measure_ensemble(model: Model, estimator: Estimator, num_networks: int) -> Cost:
    """What it costs to accumulate networks of an ensemble, `num_networks` at a time."""
    add_chunk, estimator, _ = make_add_chunk(model, estimator, num_networks)
    key, dimension = make_key(0), int(np.prod(model.image_shape))
    numbers = jnp.int32(0), jnp.int32(estimator.chunk_size)
    begun = time.monotonic()
    program = add_chunk.lower(key, init_halves(dimension), *numbers).compile()
    compile_seconds = time.monotonic() - begun
    seconds = fastest(lambda: program(key, init_halves(dimension), *numbers))
    networks = estimator.chunk_size * jax.local_device_count()  # at once
    return Cost(compile_seconds, seconds / networks, program_bytes(program))


def fastest(call: Callable[[], Any]) -> float:
    """The seconds that the fastest of several calls takes: of one, where that takes longer than two seconds."""
    begun, times = time.monotonic(), []
    while not times or (time.monotonic() - begun < 2.0 and len(times) < 20):
        called = time.monotonic()
        jax.block_until_ready(call())
        times.append(time.monotonic() - called)
    return min(times)


def program_bytes(program: Any) -> int:
    """What a compiled program says that it needs: arguments, results and intermediate arrays."""
    memory = program.memory_analysis()
    together = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return together + memory.temp_size_in_bytes
