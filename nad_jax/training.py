"""Training many networks at once: on D(v), one for each direction, on images, on any task."""

import math
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from nad_jax import ensemble, errors, memory
from nad_jax.chunks import (
    Asked,
    Cohort,
    EnsembleObserver,
    Progress,
    choose_chunks,
    choose_mapping,
    fit_chunks,
    make_chunk,
    map_networks,
    resize_members,
)
from nad_jax.ensemble import Execution
from nad_jax.errors import (
    InputError,
    check_choice,
    check_function,
    check_integer,
    check_number,
    check_record,
    number_array,
)
from nad_jax.fitting import Observer, Stages, make_fit
from nad_jax.models import Model
from nad_jax.points import Points
from nad_jax.recipe import Recipe
from nad_jax.snapshots import Snapshots
from nad_jax.task import REQUIRED, Arrays, Members, Task
from nad_jax.task_contract import check_task
from nad_jax.tasks import separable

Observers = Mapping[str, Observer | EnsembleObserver]


def _one_for_each(name: str, array: np.ndarray, count: int) -> np.ndarray:
    """A number, or one for each network, as [count]; raises `InputError` naming it otherwise."""
    if array.shape not in ((), (count,)):
        raise InputError(
            f"{name}: must be a number or one for each of the {count} networks, got {array.shape}"
        )
    array = np.broadcast_to(array, (count,))
    for entry in array.tolist():
        if name == "seed":
            check_integer(name, entry, 0, 2**32 - 1)
        else:
            check_number(name, entry, 0.0 if name == "learning_rate" else -math.inf)
    return array if name == "seed" else array.astype(np.float32)


# Trains networks by one compiled program for a chunk of them: (arrays, learning_rate=None, seed=0,
# progress=None, snapshots=None) -> metrics [N], see `train_many`.
Run = Callable[[Arrays, Any, Any, Progress | None, Snapshots | None], Any]


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
    recipe, devices = task.resolve_recipe(recipe), choose_chunks(execution).devices
    asked = split_observers(observe, check_choice("keep", keep, (False, True)))
    for name, observer in asked.each.items():
        sizes = getattr(observer, "sizes", None)
        if sizes not in (None, (recipe.num_train, recipe.num_test)):
            raise InputError(
                f"observe[{name!r}]: is of {sizes[0]} training and {sizes[1]} test samples, the "
                f"training of {recipe.num_train} and {recipe.num_test}; give it the same recipe"
            )
    execution = choose_mapping(model, recipe.batch_size, execution)
    programs = _Programs(make_fit(model, recipe, task, asked.each), execution)

    @lru_cache(maxsize=1)
    def place(seed: int) -> Any:
        data = task.data(model, recipe, seed)
        return jax.device_put(data, ensemble.replicated(devices))

    if task.shared:
        place(0)  # what is wrong with the data is said at once

    def run(
        arrays: Arrays,
        learning_rate: Any = None,
        seed: Any = 0,
        progress: Progress | None = None,
        snapshots: Snapshots | None = None,
    ) -> Any:
        learning_rate = recipe.choose_learning_rate(learning_rate, task.learning_rate)
        members, seeds = make_members(model, task, arrays, learning_rate, seed)
        task.check(recipe, members.arrays)
        for name, observer in asked.together.items():
            observer.check(name, len(seeds))
        if not task.trusted:
            one = jax.tree.map(lambda leaf: leaf[0], members)
            check_task(model, recipe, task, place(0 if task.shared else int(seeds[0])), one)
        groups = [0] if task.shared else list(dict.fromkeys(seeds.tolist()))

        def train(chunk: Stages, size: int) -> tuple[list[Cohort], tuple[Any, Any]]:
            cohorts = plan_cohorts(place, groups, task.shared, members, seeds, size)
            how = asked, progress, snapshots
            return cohorts, map_networks(chunk, recipe.num_epochs, size, cohorts, *how)

        cohorts, (metrics, read) = programs.use(train, partial(place, groups[0]), members)
        back = np.argsort(np.concatenate([cohort.numbers for cohort in cohorts]))
        metrics = jax.tree.map(lambda values: values[back], metrics)
        metrics = metrics._replace(observed={**metrics.observed, **read} or None)
        if "settings" not in metrics._fields:  # a record of the task's own
            return metrics
        return metrics._replace(settings=_list_settings(members, seeds))

    return run


def plan_cohorts(
    place: Callable[[int], Any],
    groups: list[int],
    shared: bool,
    members: Members,
    seeds: np.ndarray,
    size: int,
) -> list[Cohort]:
    """The networks of each group in cohorts of at most `size`; a group is a seed, whose data
    `place` gives, or where data are `shared` the only one, of all networks.
    """
    cohorts = []
    for group in groups:
        mine = np.flatnonzero((seeds == group) | shared)
        for numbers in np.split(mine, np.arange(size, len(mine), size)):
            cohorts.append(Cohort(partial(place, group), members, numbers))
    return cohorts


class _Programs:
    """The compiled stages of training networks, and how many are trained at once: where that is
    left open, as many as fit into memory.
    """

    def __init__(self, stages: Stages, execution: Execution):
        self.stages, self.execution = stages, choose_chunks(execution)
        vectorized = self.execution.mapping == "vectorized"
        self.open = vectorized and execution.chunk_size == 0
        self.chunk = None if self.open else make_chunk(stages, self.execution)

    def use(
        self, train: Callable[[Stages, int], Any], data: Callable[[], Any], members: Members
    ) -> Any:
        """`train(stages, chunk_size)`, again with half of them where the device is out of memory.

        data(): that some of the networks are trained on; members: of all of them.
        """
        if self.chunk is None:
            most = self.execution, self.execution.chunk_size
            some = partial(resize_members, members)
            self.execution, self.chunk = fit_chunks(self.stages, *most, data(), some)
        while True:
            size = self.execution.chunk_size
            try:
                return train(self.chunk, size)
            except jax.errors.JaxRuntimeError as error:
                smaller = memory.halved(size, len(self.execution.devices))
                if not (self.open and smaller and memory.is_exhausted(error)):
                    raise
            warnings.warn(
                f"out of memory with {size} networks at once: {smaller} from now on", stacklevel=4
            )
            self.execution = self.execution._replace(chunk_size=smaller)
            self.chunk = make_chunk(self.stages, self.execution)


def _list_settings(members: Members, seeds: np.ndarray) -> dict[str, np.ndarray]:
    """What N networks were trained with, as far as it is one number for each: [N] by name."""
    numbers = {name: array for name, array in members.arrays.items() if array.ndim == 1}
    rates = {"learning_rate": members.learning_rate}
    return {"seed": seeds, **(rates if np.isfinite(members.learning_rate).all() else {}), **numbers}


def split_observers(observe: Observers | None, keep: bool) -> Asked:
    """Observers of each network, and of all together; `InputError` for what is neither."""
    observe = {} if observe is None else observe
    if not isinstance(observe, Mapping):
        raise InputError(f"observe: must be observers by name, got {errors.shown(observe)}")
    together = {name: one for name, one in observe.items() if isinstance(one, EnsembleObserver)}
    each = {name: one for name, one in observe.items() if name not in together}
    for name, observer in each.items():
        check_function(f"observe[{name!r}]", observer, optional=False)
    return Asked(each, together, keep)


def make_members(
    model: Model, task: Task, arrays: Arrays, learning_rate: Any, seed: Any
) -> tuple[Members, np.ndarray]:
    """What differs between N networks, every leaf [N, …], and their seeds [N]; N is the length of
    the arrays that a task requires, or the largest length given.

    learning_rate: None where the optimizer has its own.

    Raises:
      InputError: naming the array, its value and what is allowed.
    """
    given = {**task.arrays, **arrays}
    for name, value in given.items():
        if value is REQUIRED:
            raise InputError(f"{name}: is needed, [N, …], one for each network")
        if name not in task.arrays and not task.takes_others:
            allowed = (*task.arrays, "learning_rate", "seed", "recipe")
            raise errors.unknown("argument or array of this task", name, allowed)
    given = {**task.prepare(model, given), "seed": seed}
    if learning_rate is not None:
        given["learning_rate"] = learning_rate
    given = {name: np.asarray(number_array(name, value)) for name, value in given.items()}
    options = {**task.arrays, "learning_rate": None, "seed": None}
    each = [name for name in given if options.get(name, REQUIRED) is REQUIRED]
    scalars = [name for name in given if name not in each]
    most = max(given[name].size for name in scalars)
    count = max((len(np.atleast_1d(given[name])) for name in each), default=most)
    for name in each:
        if given[name].shape[:1] != (count,):
            raise InputError(
                f"{name}: must have a leading axis [{count}], got shape {given[name].shape}"
            )
    given |= {name: _one_for_each(name, given[name], count) for name in scalars}
    own_rates = np.full(count, np.nan, np.float32)
    seeds, rates = given.pop("seed"), given.pop("learning_rate", own_rates)
    return Members(task.make_keys(seeds, given), rates, given), seeds


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
        D(v). No learning rate goes with an optimizer object, which has its own (see `Recipe`).
      recipe: default: the task's; for D(v) `Recipe()`, the published one.
      mapping, chunk_size, num_devices: see `Execution`; chunk_size is a multiple of the number of
        devices. Results agree to rounding, which training with max-pooling amplifies: in the end
        hard directions may differ as much as between seeds.
      progress: called after every epoch with the number of networks done, a fraction for those in
        training.
      observe: functions (variables, data, member) -> arrays of one network, whose own arrays are
        `member.arrays` (v is `member.arrays["direction"]`), or observers of all
        networks together (`observers`), by name: what they give at the start and after each of the
        E epochs is `observed[name]`, [N, E + 1, …] or a list of E + 1.
      keep: whether the trained variables are returned, every leaf [N, …].
      snapshots: a run that was interrupted is taken up again from there by the same call.
      **arrays: those of the task: direction=…, carriers=….

    Returns: the task's metrics (`TrainMetrics` of D(v), `FitMetrics`), NumPy, leading axis [N];
      their `settings` say what each network was trained with.

    Raises:
      InputError: naming the argument, its value and what is allowed.
    """
    if isinstance(task, Points):
        raise InputError("task: is a law of points; that of images is nad_jax.tasks.images(data)")
    if not isinstance(task, Task):
        given = [task, arrays.pop("directions", None), arrays.pop("direction", None)]
        given = [value for value in given if value is not None]
        if len(given) != 1:
            raise InputError("task: must be one from `tasks`, or directions [N, D], given once")
        task, arrays["direction"] = separable(), given[0]
    arrays |= {n: v for n, v in {"epsilon": epsilon, "sigma": sigma}.items() if v is not None}
    mapping = task.mapping if mapping == "auto" else mapping
    execution = Execution(mapping, chunk_size, num_devices)
    run = make_run(model, task, recipe, execution, observe, keep)
    return run(arrays, learning_rate, seed, progress, snapshots)
