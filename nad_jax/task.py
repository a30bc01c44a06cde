"""What networks are trained to do: the record of a task, and what it is made of.

`fitting` fits one network to it; `training` maps this over many networks.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from nad_jax import ensemble
from nad_jax.errors import (
    check_function,
    check_number,
    check_record,
    number_array,
    raise_problems,
)
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.tables import Metrics

Arrays = Mapping[str, jax.Array]
SPLITS = ("train", "test")


class Members(NamedTuple):
    """What differs between networks; every leaf has a leading axis [N] where there are N of them.

    key: of initialization, order of the samples and dropout. learning_rate: a number; nan where
    the recipe's optimizer has its own.
    arrays: what a task takes besides, by name.
    """

    key: jax.Array
    learning_rate: jax.Array
    arrays: Arrays


class FitMetrics(NamedTuple):
    """Metrics of a network that was trained; `training.train_many` adds a leading axis [N].

    train_accuracy, test_accuracy: share of samples that are correct after training, in evaluation
      mode.
    train_loss, test_loss: mean loss there.
    steps_to_loss: first step t = 1 … T at which the mean minibatch loss of the last `loss_window`
      steps is at most `loss_threshold`; −1: never.
    diverged_at: the step at which the loss, the norm of the gradient or the network it led to was
      not finite; the network is kept as it was before that step, and evaluated so. −1: never.
    losses: [T] minibatch losses; nan from the divergence on.
    variables: of the trained network, where they were asked for (`keep`).
    observed: what was asked for at the start and after every epoch (`observe`), by name.
    settings: [N] arrays by name, what each network was trained with: its seed, its learning rate
      (unless the recipe's optimizer has its own), and what the task takes as one number for each.
    """

    train_accuracy: jax.Array
    test_accuracy: jax.Array
    train_loss: jax.Array
    test_loss: jax.Array
    steps_to_loss: jax.Array
    diverged_at: jax.Array
    losses: jax.Array
    variables: Any = None
    observed: Mapping[str, Any] | None = None
    settings: Mapping[str, np.ndarray] | None = None

    to_rows, rows, to_csv = Metrics.to_rows, Metrics.rows, Metrics.to_csv
    to_dataframe, plot, __repr__ = Metrics.to_dataframe, Metrics.plot, Metrics.__repr__


# Of outputs [B, K] and targets, one number for each sample [B].
PerSample = Callable[[jax.Array, Any], jax.Array]
# What samples [B, *input_shape] become for one network: of the loss of inputs, [B, *input_shape] to
# [B], in evaluation mode; the samples; the network's own arrays; and a key.
Perturb = Callable[[Callable[[jax.Array], jax.Array], jax.Array, Arrays, jax.Array], jax.Array]
# A number that training adds to the mean loss of a batch: of the network's variables, its samples
# [B, *input_shape], the data of the task, and the network's own arrays.
Penalty = Callable[[Any, jax.Array, Any, Arrays], jax.Array]
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


def has_label(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Whether the largest of logits [B, K] is that of the label [B]."""
    return outputs.argmax(-1) == labels


class Task(NamedTuple):
    """What networks are trained to do. Only `data` and `sample` must be given.

    data(model, recipe, seed) -> data: the arrays that networks share, all of them (then the seed
      is 0) or, where `shared` is False, those of one seed; checked here.
    sample(data, split, indices, arrays) -> (x, targets): the samples of numbers `indices` [B], in
      0 … num_train − 1 of the split "train" or 0 … num_test − 1 of "test": x [B, *input_shape] or
      [B, D]; of one network, whose own `arrays` they may depend on.
    loss(outputs, targets) -> [B] real numbers, correct(outputs, targets) -> [B] truth values: of
      outputs [B, K].
    arrays: the names of what differs between networks, and their defaults (`REQUIRED`: none).
    takes_others: whether `sample` also takes arrays of other names.
    prepare(model, arrays) -> arrays: arrays [N, …], checked, as `sample` takes them.
    check(recipe, arrays): raises `InputError` where arrays, as `prepare` gives them, do not fit a
      recipe.
    make_keys(seeds, arrays) -> keys [N]: those of networks, from their seeds [N].
    num_outputs: K that the model must have; None: any.
    sizes: (num_train, num_test); None: those of the recipe.
    trusted: whether it need not be tested before the training (see `task_contract`).
    shared: whether the data are the same for all seeds.
    fresh: whether samples differ between epochs: `sample` also takes that, 1, 2, …; 0: evaluation.
    perturb: what training samples become before each step, against the network as it is then
      (`Perturb`); None: they stay as they are.
    penalty: what is added to the mean loss of a batch (`Penalty`), other than to `losses`; None:
      nothing.
    mapping: of networks, where it is left open; see `Execution`.
    recipe, learning_rate: the defaults.
    probe(outputs) -> [B]: a number of the outputs, whose gradient in the inputs, averaged over the
      test samples, goes to `describe`; None: there is none.
    describe(gradient, arrays) -> more fields of `metrics`, of the gradient [*input_shape].
    metrics: the record that is made of it all.
    """

    data: Callable[[Model, Recipe, int], Any]
    sample: Callable[..., tuple[jax.Array, Any]]
    loss: PerSample = cross_entropy
    correct: PerSample = has_label
    arrays: Arrays = MappingProxyType({})
    takes_others: bool = False
    prepare: Callable[[Model, Arrays], Arrays] = lambda model, arrays: arrays
    check: Callable[[Recipe, Arrays], None] = lambda recipe, arrays: None
    make_keys: Callable[[np.ndarray, Arrays], jax.Array] = lambda seeds, arrays: (
        ensemble.keys_of_seeds("networks", seeds)
    )
    num_outputs: int | None = None
    sizes: tuple[int, int] | None = None
    trusted: bool = False
    shared: bool = True
    fresh: bool = False
    perturb: Perturb | None = None
    penalty: Penalty | None = None
    mapping: str = "auto"
    recipe: Recipe = Recipe()
    learning_rate: float = 0.1
    probe: Callable[[jax.Array], jax.Array] | None = None
    describe: Callable[[jax.Array, Arrays], Arrays] = lambda gradient, arrays: {}
    metrics: Callable[..., NamedTuple] = FitMetrics

    def resolve_recipe(self, recipe: Recipe | None = None) -> Recipe:
        """The recipe, or the default one, with the sizes of the task; raises `InputError` for what
        is wrong with it.
        """
        recipe = self.recipe if recipe is None else recipe
        if self.sizes is not None and isinstance(recipe, Recipe):
            num_train, num_test = self.sizes
            recipe = dataclasses.replace(recipe, num_train=num_train, num_test=num_test)
        check_recipe(recipe)
        return recipe

    def draw(self, *given: Any, epoch: Any = 0) -> tuple[jax.Array, Any]:
        """What `sample` makes of its arguments in an epoch; 0: in evaluations."""
        return self.sample(*given, *((epoch,) if self.fresh else ()))


REQUIRED = "required"  # in place of a default


def choose_loss(loss: PerSample, correct: PerSample) -> dict[str, Any]:
    """The fields of a task whose loss may be a user's: with the defaults alone it is trusted.

    Raises:
      InputError: for what is no function.
    """
    check_function("loss", loss, optional=False)
    check_function("correct", correct, optional=False)
    trusted = loss is cross_entropy and correct is has_label
    return {"loss": loss, "correct": correct, "trusted": trusted}


def with_scale(task: Task, name: str, default: float) -> Task:
    """The task with one more array, a number of at least 0 for each network, of which the task's own
    functions see nothing: what it is for is added by the caller.

    name: of which the task has no array. default: a number of at least 0.

    Raises:
      InputError: for another default, and before networks are trained, for numbers below 0.
    """

    def own(arrays: Arrays) -> Arrays:
        return {other: array for other, array in arrays.items() if other != name}

    def prepare(model: Model, arrays: Arrays) -> Arrays:
        for value in np.ravel(number_array(name, arrays[name])).tolist():
            check_number(name, value, 0.0)
        return {**task.prepare(model, own(arrays)), name: arrays[name]}

    def sample(data: Any, split: str, indices: Any, arrays: Arrays, *epoch: Any) -> Any:
        return task.sample(data, split, indices, own(arrays), *epoch)

    def perturb(losses: Any, x: jax.Array, arrays: Arrays, key: jax.Array) -> jax.Array:
        return task.perturb(losses, x, own(arrays), key)

    def penalty(variables: Any, x: jax.Array, data: Any, arrays: Arrays) -> jax.Array:
        return task.penalty(variables, x, data, own(arrays))

    return task._replace(
        sample=sample,
        arrays={**task.arrays, name: check_number(name, default, 0.0)},
        prepare=prepare,
        make_keys=lambda seeds, arrays: task.make_keys(seeds, own(arrays)),
        describe=lambda gradient, arrays: task.describe(gradient, own(arrays)),
        perturb=task.perturb and perturb,
        penalty=task.penalty and penalty,
    )


def check_recipe(recipe: Recipe) -> None:
    """Raises one `InputError` with a line for each problem of the recipe."""
    check_record("recipe", recipe, Recipe)
    raise_problems(recipe.problems())
