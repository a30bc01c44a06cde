"""What can be measured of networks while they are trained, besides functions of one's own.

A function (variables, data, member) -> arrays measures one network; an `EnsembleObserver` measures
all of them together. `train_many(observe={name: …})` asks at the start and after every epoch.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from nad_jax import ensemble
from nad_jax.attacks import make_attack
from nad_jax.choices import (
    Estimator,
    check_own_layer,
    choose_points,
    read_choices,
    record_choices,
)
from nad_jax.chunks import EnsembleObserver
from nad_jax.errors import InputError, check_choice, check_record
from nad_jax.fitting import Observer, make_evaluate
from nad_jax.geometry import make_measure
from nad_jax.models import Model
from nad_jax.moments import Halves, init_halves
from nad_jax.nads import NADs
from nad_jax.points import as_points
from nad_jax.reading import find_directions, finish, make_dense
from nad_jax.recipe import Recipe
from nad_jax.renamed import takes_old_names
from nad_jax.subspaces import default_sizes
from nad_jax.task import SPLITS, Members, Perturb, Task
from nad_jax.tasks import separable
from nad_jax.vector_fields import VectorField


def accuracy(
    model: Model, task: Task, recipe: Recipe | None = None, split: str = "test"
) -> Observer:
    """The accuracy of one network on the samples of a split, in evaluation mode: []."""
    return _make_accuracy(model, task, recipe, split)


def _make_accuracy(
    model: Model, task: Task, recipe: Recipe | None, split: str, perturb: Perturb | None = None
) -> Observer:
    check_record("model", model, Model)
    check_record("task", task, Task)
    check_choice("split", split, SPLITS)
    if recipe is None and task.sizes is None:
        raise InputError("recipe: is needed for the sizes of this task, that of the training")
    recipe = task.resolve_recipe(recipe)
    evaluate = make_evaluate(model, task, recipe, split, perturb)

    def observe(variables: Any, data: Any, member: Members) -> jax.Array:
        return evaluate(variables, data, member)[0]

    observe.sizes = recipe.num_train, recipe.num_test  # the training must have the same
    return observe


def robust_accuracy(
    model: Model,
    task: Task,
    recipe: Recipe | None = None,
    split: str = "test",
    *,
    norm: str | None = None,
    steps: int | None = None,
    radius: float | None = None,
) -> Observer:
    """The accuracy of one network on samples of a split that `attacks.pgd` has moved against it: [].

    radius: of the ball, for all networks; None: the attack is that which each is trained under, of a
    task from `adversarial`. norm, steps: as in `pgd`, of the attack of a given radius; None: "l2"
    and 7. What a weak attack leaves is an upper bound.

    Raises:
      InputError: for anything else, a task that has no attack where no radius is given, and a norm
        or steps without a radius.
    """
    check_record("task", task, Task)
    given = {"norm": norm, "steps": steps}
    given = {name: value for name, value in given.items() if value is not None}
    if radius is not None:
        return _make_accuracy(model, task, recipe, split, make_attack(radius=radius, **given))
    if task.perturb is None:
        raise InputError("radius: is needed for a task without an attack; see nad_jax.adversarial")
    if given:
        raise InputError(
            f"{next(iter(given))}: without a radius it is that of the task's own attack; give both"
        )
    return _make_accuracy(model, task, recipe, split, task.perturb)


def gradient_cosine(model: Model, recipe: Recipe) -> Observer:
    """|cos| between v and the mean input gradient of one network trained on D(v), as in
    `TrainMetrics`: [].
    """
    check_record("model", model, Model)
    task = separable()
    recipe = task.resolve_recipe(recipe)
    evaluate = make_evaluate(model, task, recipe, "test")

    def observe(variables: Any, data: Any, member: Members) -> jax.Array:
        _, _, gradient = evaluate(variables, data, member)
        return task.describe(gradient, member.arrays)["gradient_cosine"]

    observe.sizes = recipe.num_train, recipe.num_test
    return observe


@takes_old_names(key="seed")
def geometry(
    model: Model,
    seed: jax.Array | int = 0,
    points: Any = None,
    *,
    derivative: str | VectorField | None = None,
    step: float = Estimator.step,
    point: str = Estimator.point,
    point_scale: float = Estimator.point_scale,
    readout: str | None = None,
    logit: int | None = None,
    centred: bool = Estimator.centred,
    block_size: int = Estimator.block_size,
    mapping: str = "auto",
) -> EnsembleObserver:
    """The geometry E[g gᵀ] of all networks in training: a record (`NADs`) of each epoch, from 0.

    Its halves are those of networks of even and of odd number.

    Args:
      seed: of the points: an integer, or a typed random key.
      readout: "sampled", also None: the last layer is that of the network.
      model, points, and the others: as in `estimate_nads`; how many networks are measured at a time
        the training says.

    An epoch whose geometry has no directions (all networks dead, say) is None, with a warning;
    networks with rows that are not finite are counted as `diverged` in its config. The states of
    all E + 1 epochs are held at once, 8·D² bytes each.

    Raises:
      InputError: as `estimate_nads`, and before the training for fewer than two networks.
    """
    estimator, execution = read_choices(locals())
    key, points = ensemble.resolve_key(seed), as_points(points)
    check_own_layer(estimator)
    law, execution = choose_points(model, estimator, points), execution.resolved()
    accumulator = make_dense(model, estimator)
    measure = make_measure(model, estimator, accumulator, points, execution.mapping)

    def check(name: str, count: int) -> None:
        fewest = 4 if estimator.centred else 2
        if count < fewest:
            raise InputError(f"observe[{name!r}]: needs at least {fewest} networks, got {count}")

    @partial(jax.jit, donate_argnums=1)
    def update(
        data: Any,
        halves: Halves,
        variables: Any,
        members: Members,
        numbers: jax.Array,
        valid: jax.Array,
    ) -> Halves:
        pool = law.prepare(ensemble.named_key(key, "point"), data)
        keys = ensemble.member_keys(ensemble.named_key(key, "networks"), numbers)
        return measure(variables, keys, halves, valid, pool, numbers)

    def read(halves: Halves) -> NADs | None:
        try:
            found = find_directions(accumulator, halves, estimator.centred)
        except InputError as error:  # of one epoch; what was trained is not lost
            logging.warning("geometry of an epoch: %s", error)
            return None
        config = record_choices(model, estimator, execution, key, points, given=True)
        config["diverged"] = int(halves.diverged)
        sizes = default_sizes(accumulator.size)
        return finish(accumulator, halves, found, config, sizes, estimator.centred)

    init, data = partial(init_halves, accumulator), jax.tree.map(jnp.asarray, law.data)
    return EnsembleObserver(check, init, partial(update, data), read)
