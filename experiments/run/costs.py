"""What networks cost, and how many fit at once; for training, measured with a recipe of two batches
an epoch.
"""

import dataclasses
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.run.plan import Cost, Weight
from nad_jax.accumulation import Programs
from nad_jax.choices import Estimator, find_symmetries
from nad_jax.chunks import choose_chunks, choose_mapping, fit_chunks, make_chunk
from nad_jax.contract import input_batch, shape_of_variables
from nad_jax.ensemble import Execution, make_key, place_shapes, replicated
from nad_jax.fitting import Stages, make_fit
from nad_jax.geometry import resolve_execution
from nad_jax.kurtosis import Kurtosis, find_kurtosis, pixel_energies, pool_kurtosis
from nad_jax.memory import program_bytes
from nad_jax.models import Model
from nad_jax.moments import Accumulator, Dense, Halves, init_halves
from nad_jax.recipe import Recipe
from nad_jax.task import Members, Task
from nad_jax.training import make_members

_SAMPLE_SECONDS = 3.0  # at most, for which more networks are computed to see how far they scatter
_FEWEST_LOOKS, _MOST_LOOKS = 4, 16  # of two batches each


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
    model, task, recipe, _ = setup
    data = jax.tree.map(jnp.asarray, task.data(model, recipe, 0))
    members = make_alike(setup, arrays, execution.chunk_size)
    return make_chunk(make_fit(model, shorten(recipe), task), execution), data, members


def weigh(model: Model) -> Weight:
    """The floating-point operations and arrays of a network."""
    shapes = shape_of_variables(model)
    lowered = jax.jit(model.apply).lower(shapes, input_batch(model, 1))
    operations = (lowered.cost_analysis() or {}).get("flops") or 1.0  # a network may have none
    return Weight(operations, len(jax.tree.leaves(shapes)))


def measure_training(
    setup: Setup, arrays: Mapping[str, Any], execution: Execution, num_looks: int = 0
) -> Cost:
    """What a chunk of networks with such arrays costs under the whole recipe, where both splits are
    evaluated so often besides.
    """
    recipe = setup.recipe
    short = shorten(recipe)
    chunk, data, members = _make_chunk(setup, arrays, execution)
    begun = time.monotonic()
    start = chunk.start.lower(members).compile()
    rest = jax.eval_shape(chunk.start, members), data, members
    epoch, finish = (stage.lower(*rest).compile() for stage in (chunk.epoch, chunk.finish))
    compile_seconds = time.monotonic() - begun
    state = None

    def train() -> Any:
        nonlocal state
        state = epoch(start(members), data, members)
        return state

    both_seconds = fastest(train)
    epoch_seconds = max(both_seconds - fastest(lambda: start(members)), 0.0)
    finish_seconds = fastest(lambda: finish(state, data, members))
    evaluations = (recipe.num_train + recipe.num_test) / (short.num_train + short.num_test)
    seconds = epoch_seconds / short.steps_per_epoch * recipe.num_steps
    seconds += (num_looks + 1) * evaluations * finish_seconds
    peak = max(map(program_bytes, (start, epoch, finish)))
    batch_seconds = both_seconds + finish_seconds
    return Cost(compile_seconds, seconds / execution.chunk_size, peak, batch_seconds=batch_seconds)


def choose_training(
    setup: Setup, arrays: Mapping[str, Any], execution: Execution, most: int
) -> Execution:
    """How networks with such arrays are trained without automatic choices: where the size of
    vectorized chunks is left open, at most `most` at once and as many as fit into memory.
    """
    model, task, recipe, _ = setup
    resolved = choose_chunks(choose_mapping(model, recipe.batch_size, execution))
    if execution.chunk_size or resolved.mapping == "sequential":
        return resolved
    data = shapes_of_data(setup, resolved.devices)
    some = partial(make_alike, setup, arrays)
    return fit_chunks(make_fit(model, recipe, task), resolved, most, data, some)[0]


def make_alike(setup: Setup, arrays: Mapping[str, Any], size: int) -> Members:
    """So many networks with such arrays, all alike."""
    model, task, _, learning_rate = setup
    arrays = {name: np.stack([array] * size) for name, array in arrays.items()}
    return make_members(model, task, arrays, learning_rate, np.zeros(size, int))[0]


def shapes_of_data(setup: Setup, devices: Sequence[jax.Device]) -> Any:
    """The shapes of what networks are trained on, placed as in training."""
    model, task, recipe, _ = setup
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, task.data(model, recipe, 0)))
    return place_shapes(shapes, replicated(devices))


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


def compile_ensemble(ensemble: Ensemble) -> tuple[jax.stages.Compiled, Halves, tuple]:
    """The compiled program that adds a chunk of networks on each device, the states that have seen
    none, and what it takes around them: key, 0, the number of networks, data of points and no
    variables.

    Where the size of vectorized chunks is left open, they are what fits into memory.
    """
    execution, _ = ensemble.resolve()
    programs, empty = Programs(*ensemble[:3], execution), ensemble.make_empty()
    size, program = programs.choose(ensemble.execution.chunk_size == 0, empty)
    compiled, devices = programs.lower(program, size, empty).compile(), execution.devices
    key, states, data = programs.place(devices, make_key(0), [empty] * len(devices))
    return compiled, states, (key, np.int32(0), np.int32(size * len(devices)), data, None)


def measure_ensemble(ensemble: Ensemble) -> Cost:
    """What it costs to accumulate networks of an ensemble."""
    return _measure(ensemble)[0]


def measure_with_kurtosis(ensemble: Ensemble) -> tuple[Cost, Kurtosis | None]:
    """What it costs to accumulate networks of a dense ensemble, and how far these scatter: exact
    where there is a closed form, otherwise about pixels; None where so few are computed in some
    seconds that they do not say.
    """
    if found := find_kurtosis(ensemble.model, ensemble.estimator):
        return measure_ensemble(ensemble), found
    _, representations = find_symmetries(ensemble.model, ensemble.estimator)
    single, looks, networks = len(ensemble.resolve()[0].devices) == 1, [], 0

    def look(halves: Halves) -> None:
        """Keeps how many rows were seen until now, and the sums of their squares."""
        nonlocal networks
        halves = jax.device_get(halves)
        networks = int(np.sum(halves.networks))
        parts = [
            part
            for half in halves[:2]
            for part in ([half] if single else map(Dense._make, zip(*half, strict=True)))
        ]
        counts = np.array([part.count for part in parts])
        sums = [int(part.count) * pixel_energies(part, representations) for part in parts]
        looks.append((counts, np.stack(sums)))

    cost, add = _measure(ensemble, look)
    more = int(_SAMPLE_SECONDS / max(cost.batch_seconds, 1e-9))
    if len(looks) + more >= _FEWEST_LOOKS:
        for _ in range(min(more, _MOST_LOOKS - len(looks))):
            look(add())
    counts, sums = (np.stack(one) for one in zip(*looks, strict=True))
    counts, sums = (np.diff(one, axis=0, prepend=0 * one[:1]) for one in (counts, sums))
    kept = counts > 0
    energies = sums[kept] / counts[kept][:, None]
    return cost, pool_kurtosis(energies, counts[kept], networks)


def _measure(
    ensemble: Ensemble, look: Callable[[Halves], None] | None = None
) -> tuple[Cost, Callable[[], Halves]]:
    """What it costs to accumulate networks, and what adds the next chunk of them; `look` sees the
    state after each.
    """
    begun = time.monotonic()
    program, states, (key, done, together, *rest) = compile_ensemble(ensemble)
    compile_seconds = time.monotonic() - begun

    def add() -> Halves:
        nonlocal states, done  # the arrays of the states are given to the program
        states = program(key, states, done, done + together, *rest)
        done += together
        return states

    seconds = fastest(add, look)
    each = seconds / int(together)
    return Cost(compile_seconds, each, program_bytes(program), batch_seconds=seconds), add


def fastest(call: Callable[[], Any], look: Callable[[Any], None] | None = None) -> float:
    """The seconds that the fastest of several calls takes: of one, where that takes longer than two
    seconds. `look` sees what each returns, and is not counted.
    """
    found = None

    def timed() -> None:
        nonlocal found
        found = jax.block_until_ready(call())

    timer, seconds, most = timeit.Timer(timed), [], 1
    while len(seconds) < most:
        seconds.append(timer.timeit(1))
        most = 1 + min(int(2.0 / seconds[0]), 19)
        if look is not None:
            look(found)
    return min(seconds)
