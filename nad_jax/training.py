"""Training many networks at once: on D(v), one for each direction, on images, on any task."""

import math
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, Protocol

import jax
import numpy as np

from nad_jax import ensemble, errors
from nad_jax.chunks import (
    Asked,
    Batch,
    EnsembleObserver,
    Progress,
    make_chunk,
    map_networks,
    resolve_execution,
)
from nad_jax.ensemble import Execution
from nad_jax.errors import (
    InputError,
    check_function,
    check_integer,
    check_number,
    check_record,
    number_array,
)
from nad_jax.fitting import REQUIRED, Members, Observer, Task, make_fit
from nad_jax.models import Model
from nad_jax.points import Points
from nad_jax.recipe import Recipe
from nad_jax.snapshots import Snapshots
from nad_jax.tasks import separable

Observers = Mapping[str, Observer | EnsembleObserver]


def broadcast_members(count: int, **values: Any) -> dict[str, np.ndarray]:
    """Each value as [count]; raises `InputError` naming the one that is neither a number nor a list
    of that length.
    """
    arrays = {}
    for name, value in values.items():
        array = np.asarray(number_array(name, value))
        if array.shape not in ((), (count,)):
            raise InputError(
                f"{name}: must be a number or one for each of the {count} networks, got "
                f"{array.shape}"
            )
        array = np.broadcast_to(array, (count,))
        for entry in array.tolist():
            if name == "seed":
                check_integer(name, entry, 0, 2**32 - 1)
            else:
                check_number(name, entry, 0.0 if name == "learning_rate" else -math.inf)
        arrays[name] = array
    return arrays


class Run(Protocol):
    """Networks trained on a task, by one compiled program for a chunk of them."""

    def __call__(
        self,
        arrays: Mapping[str, Any],
        learning_rate: Any = None,
        seed: Any = 0,
        progress: Progress | None = None,
        snapshots: Snapshots | None = None,
    ) -> Any:
        """The metrics, NumPy arrays with a leading axis [N].

        Args:
          arrays: those of the task, by name.
          learning_rate, seed: one for all, or one for each network [N].
          progress: called after every epoch with the number of networks done, a fraction for those
            in training.
          snapshots: a run that was interrupted is taken up again from there by the same call.
        """


def make_run(
    model: Model,
    task: Task,
    recipe: Recipe | None = None,
    execution: Execution = Execution(),
    observe: Observers | None = None,
    keep: bool = False,
) -> Run:
    """Builds the function that trains networks on a task; see `train_many`.

    Raises:
      InputError: naming the argument, its value and what is allowed.
    """
    check_record("task", task, Task)
    check_record("model", model, Model)
    recipe = task.resolve_recipe(recipe)
    execution = resolve_execution(execution)
    each, together = split_observers(observe)
    chunk = make_chunk(make_fit(model, recipe, task), execution, each)
    asked = Asked(tuple(each), together, keep)

    @lru_cache(maxsize=1)
    def place(seed: int) -> Any:
        data = task.data(model, recipe, seed)
        return jax.device_put(data, ensemble.replicated(execution.devices))

    if task.shared:
        place(0)  # what is wrong with the data is said at once

    def run(
        arrays: Mapping[str, Any],
        learning_rate: Any = None,
        seed: Any = 0,
        progress: Progress | None = None,
        snapshots: Snapshots | None = None,
    ) -> Any:
        learning_rate = task.learning_rate if learning_rate is None else learning_rate
        members, seeds = make_members(model, task, arrays, learning_rate, seed)
        groups = [0] if task.shared else list(dict.fromkeys(seeds.tolist()))
        for name, observer in together.items():
            observer.check(name, len(seeds))
        batches, size = [], execution.chunk_size
        for group in groups:
            mine = np.flatnonzero((seeds == group) | task.shared)
            for numbers in (mine[first : first + size] for first in range(0, len(mine), size)):
                given = jax.tree.map(lambda leaf, numbers=numbers: leaf[numbers], members)
                batches.append(Batch(partial(place, group), given, numbers))
        back = np.argsort(np.concatenate([batch.numbers for batch in batches]))
        how = (size, batches, asked, progress, snapshots)
        metrics, read = map_networks(chunk, recipe.num_epochs, *how)
        metrics = jax.tree.map(lambda values: values[back], metrics)
        return metrics._replace(observed={**(metrics.observed or {}), **read}) if read else metrics

    return run


def split_observers(
    observe: Observers | None,
) -> tuple[dict[str, Observer], dict[str, EnsembleObserver]]:
    """Observers of each network, and of all together; `InputError` for what is neither."""
    observe = {} if observe is None else observe
    if not isinstance(observe, Mapping):
        raise InputError(f"observe: must be observers by name, got {errors.shown(observe)}")
    together = {name: one for name, one in observe.items() if isinstance(one, EnsembleObserver)}
    each = {name: one for name, one in observe.items() if name not in together}
    for name, observer in each.items():
        check_function(f"observe[{name!r}]", observer, optional=False)
    return each, together


def make_members(
    model: Model, task: Task, arrays: Mapping[str, Any], learning_rate: Any, seed: Any
) -> tuple[Members, np.ndarray]:
    """What differs between N networks, every leaf [N, …], and their seeds [N]; N is the length of
    the arrays that a task requires, or the largest length given.

    Raises:
      InputError: naming the array, its value and what is allowed.
    """
    given = {**task.arrays, **arrays}
    for name, value in given.items():
        if value is REQUIRED:
            raise InputError(f"{name}: is needed, [N, …], one for each network")
        if name not in task.arrays and not task.takes_others:
            raise errors.unknown("array of this task", name, task.arrays)
    given = task.prepare(model, given)
    each = [name for name in given if task.arrays.get(name, REQUIRED) is REQUIRED]
    given = {**given, **{name: np.asarray(number_array(name, given[name])) for name in each}}
    scalars = {name: given[name] for name in given if name not in each}
    scalars |= {"learning_rate": learning_rate, "seed": seed}
    sizes = [np.size(number_array(*pair)) for pair in scalars.items()]
    count = max((len(np.atleast_1d(given[name])) for name in each), default=max(sizes))
    for name in each:
        if given[name].shape[:1] != (count,):
            raise InputError(
                f"{name}: must have a leading axis [{count}], got shape {given[name].shape}"
            )
    scalars = broadcast_members(count, **scalars)
    seeds = scalars.pop("seed")
    scalars = {name: values.astype(np.float32) for name, values in scalars.items()}
    given = {**given, **{name: scalars[name] for name in given if name not in each}}
    return Members(task.make_keys(seeds, given), scalars["learning_rate"], given), seeds


def train_many(
    model: Model,
    task: Task | jax.Array | None = None,
    epsilon: Any = None,
    sigma: Any = None,
    learning_rate: Any = None,
    seed: Any = 0,
    recipe: Recipe | None = None,
    mapping: str = "auto",
    chunk_size: int = 0,
    num_devices: int = 0,
    progress: Progress | None = None,
    *,
    observe: Observers | None = None,
    keep: bool = False,
    snapshots: Snapshots | None = None,
    **arrays: Any,
) -> Any:
    """Trains N networks on a task; directions v, unit rows [N, D], stand for D(v), one network for
    each: the directional inductive bias of a model.

    Source: NAD, Section 2. Networks of one seed share what the task says; on D(v) the noise, and
    with one direction all random numbers, whatever ε, σ and the learning rate are.

    Args:
      model: with an output for each class, from `create_model(..., num_logits=2)`, say.
      task: from `tasks`, or directions [N, D], which may also be given as `directions`.
      epsilon, sigma: of D(v), in units of the input, one for all or one for each network [N]; 1.
      learning_rate, seed: one for all, or one for each network [N]; default: the task's, 0.5 for
        D(v).
      recipe: default: the task's; for D(v) `Recipe()`, the published one.
      mapping, chunk_size, num_devices: see `Execution`; chunk_size is a multiple of the number of
        devices. Results agree to rounding, which training with max-pooling amplifies: in the end
        hard directions may differ as much as between seeds.
      progress: called after every epoch with the number of networks done, a fraction for those in
        training.
      observe: functions (variables, data, member) -> arrays of one network, or observers of all
        networks together (`observers`), by name: what they give at the start and after each of the
        E epochs is `observed[name]`, [N, E + 1, …] or a list of E + 1.
      keep: whether the trained variables are returned, every leaf [N, …].
      snapshots: a run that was interrupted is taken up again from there by the same call.
      **arrays: those of the task: direction=…, carriers=….

    Returns: the task's metrics (`TrainMetrics` of D(v), `FitMetrics`), NumPy, leading axis [N].

    Raises:
      InputError: naming the argument, its value and what is allowed.
    """
    if isinstance(task, Points):
        raise InputError("task: is a law of points; that of images is nad_jax.tasks.images(data)")
    if not isinstance(task, Task):
        given = {"task": task, **{n: arrays.pop(n, None) for n in ("directions", "direction")}}
        given = [value for value in given.values() if value is not None]
        if len(given) != 1:
            raise InputError("task: must be one from `tasks`, or directions [N, D], given once")
        task, arrays = separable(), {**arrays, "direction": given[0]}
    arrays |= {n: v for n, v in {"epsilon": epsilon, "sigma": sigma}.items() if v is not None}
    mapping = task.mapping if mapping == "auto" else mapping
    execution = Execution(mapping, chunk_size, num_devices)
    run = make_run(model, task, recipe, execution, observe, keep)
    return run(arrays, learning_rate, seed, progress, snapshots)
