"""Fitting one network to the samples of a task, as a pure function.

What the samples are, and what is asked of a network, a `Task` says; `training` maps this over many
networks. Names of a task that were here once are still, for tasks of one's own.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from nad_jax import ensemble
from nad_jax.contract import check_training, reported
from nad_jax.errors import check_function, check_record, check_scalar
from nad_jax.models import Model, split_trainable
from nad_jax.recipe import PRECISIONS, Recipe, first_step_below
from nad_jax.task import REQUIRED as REQUIRED
from nad_jax.task import SPLITS, Arrays, Members, Perturb, Task, check_recipe
from nad_jax.task import FitMetrics as FitMetrics
from nad_jax.task import cross_entropy as cross_entropy
from nad_jax.task import has_label as has_label
from nad_jax.task_contract import penalized, perturbed

# What is measured of one network, during training or after it: of its variables, the data of the
# task and the network's `Members`, arrays in a tree of any form.
Observer = Callable[[Any, Any, Members], Any]


class FitState(NamedTuple):
    """A network in training: what an epoch changes.

    trained, others: leaves of its variables, see `models.split_trainable`. step: steps done.
    diverged_at: as in `FitMetrics`. losses: [num_epochs, steps_per_epoch] minibatch losses, 0 where
    not yet known.
    """

    trained: list[jax.Array]
    others: list[jax.Array]
    optimizer: optax.OptState
    step: jax.Array
    diverged_at: jax.Array
    losses: jax.Array


class Stages(NamedTuple):
    """Training in stages, so that it can be interrupted between epochs: of one network, or of N at
    once, where every leaf of `member` and of what is returned is [N, …] (`chunks.make_chunk`).

    start(member) -> FitState.
    epoch(state, data, member) -> FitState.
    finish(state, data, member) -> metrics.
    variables(state) -> variables: of the network as it is now.
    observe(state, data, member) -> what is measured of the network as it is now, by name.
    """

    start: Callable[[Members], FitState]
    epoch: Callable[[FitState, Any, Members], FitState]
    finish: Callable[[FitState, Any, Members], Any]
    variables: Callable[[FitState], Any]
    observe: Callable[[FitState, Any, Members], Mapping[str, Any]]


def _all_finite(leaves: Iterable[jax.Array]) -> jax.Array:
    """Whether no leaf has an entry that is not finite: as one vector, which compiles faster than
    leaf by leaf.
    """
    numbers = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.isfinite(ravel_pytree(numbers)[0]).all()


class Batch(NamedTuple):
    """Numbers of samples [B], and which of them are not there to fill the last batch up [B]."""

    indices: jax.Array
    valid: jax.Array


def make_evaluate(
    model: Model, task: Task, recipe: Recipe, split: str, perturb: Perturb | None = None
) -> Observer:
    """An observer of (accuracy, mean loss, gradient) of a split, in evaluation mode.

    The mean gradient of the task's probe, of the test samples alone, comes from the same pass.
    perturb: what the samples become first; None: they stay as they are.
    """
    probe = task.probe if split == "test" else None
    num_samples = recipe.num_train if split == "train" else recipe.num_test

    def losses_of(variables: Any, targets: Any, x: jax.Array) -> jax.Array:
        return task.loss(model.apply(variables, x), targets)

    def evaluate(variables: Any, data: Any, member: Members) -> tuple[jax.Array, ...]:
        def add_batch(sums: tuple[jax.Array, ...], batch: Batch) -> tuple[Any, None]:
            x, targets = task.draw(data, split, batch.indices, member.arrays)
            x = x.reshape(-1, *model.image_shape)
            if perturb is not None:
                key = jax.random.fold_in(
                    ensemble.named_key(member.key, "perturb"), batch.indices[0]
                )
                losses = partial(losses_of, variables, targets)
                x = perturbed(perturb, losses, x, member.arrays, key)

            def probed(x: jax.Array) -> tuple[jax.Array, jax.Array]:
                outputs = model.apply(variables, x)
                return jnp.sum(jnp.where(batch.valid, probe(outputs), 0)), outputs

            if probe is None:
                outputs, gradient = model.apply(variables, x), jnp.float32(0)
            else:
                (_, outputs), gradients = jax.value_and_grad(probed, has_aux=True)(x)
                gradient = gradients.sum(0)
            losses, correct = task.loss(outputs, targets), task.correct(outputs, targets)
            parts = (batch.valid, correct & batch.valid, jnp.where(batch.valid, losses, 0))
            new = (*(part.sum(dtype=jnp.float32) for part in parts), gradient.astype(jnp.float32))
            return jax.tree.map(jnp.add, sums, new), None

        gradient = jnp.zeros(() if probe is None else model.image_shape, jnp.float32)
        zero = (*(jnp.float32(0),) * 3, gradient)
        # The last batch is filled up with copies of the last sample.
        size = -(-num_samples // recipe.batch_size) * recipe.batch_size
        indices = jnp.arange(size).reshape(-1, recipe.batch_size)
        batches = Batch(jnp.minimum(indices, num_samples - 1), indices < num_samples)
        (count, *sums), _ = jax.lax.scan(add_batch, zero, batches)
        # By a constant, XLA would multiply: all of n would be 0.9999999.
        return tuple(total / count for total in sums)

    return _in_precision(recipe, evaluate)


def make_fit(
    model: Model,
    recipe: Recipe,
    task: Task,
    observers: Mapping[str, Observer] = MappingProxyType({}),
) -> Stages:
    """Builds the stages of fitting one network: pure functions.

    Raises:
      InputError: for bad values in the recipe, and a model that cannot be trained on the task.
    """
    check_recipe(recipe)
    check_record("model", model, Model)
    check_training(model, recipe.batch_size, task.num_outputs)
    for name in ("perturb", "penalty"):
        check_function(f"task: {name}", getattr(task, name))
    num_full = recipe.num_train // recipe.batch_size * recipe.batch_size  # samples in full batches
    *_, join = split_trainable(model, jax.eval_shape(model.init, jax.random.key(0)))
    take_step = _make_step(model, recipe, task, join)
    evaluate = {split: make_evaluate(model, task, recipe, split) for split in SPLITS}

    def variables(state: FitState) -> Any:
        return join(state.trained, state.others)

    def start(member: Members) -> FitState:
        trained, others, _ = split_trainable(model, model.init(jax.random.split(member.key, 3)[0]))
        losses = jnp.zeros((recipe.num_epochs, recipe.steps_per_epoch), jnp.float32)
        optimizer = recipe.make_optimizer(member.learning_rate).init(trained)
        return FitState(trained, others, optimizer, jnp.int32(0), jnp.int32(-1), losses)

    def epoch(state: FitState, data: Any, member: Members) -> FitState:
        _, order_key, dropout_key = jax.random.split(member.key, 3)
        step = partial(take_step, data, member, dropout_key)
        number = state.step // recipe.steps_per_epoch
        keys = jax.random.split(order_key, recipe.num_epochs)
        order = jax.random.permutation(keys[number], recipe.num_train)
        state, losses = jax.lax.scan(step, state, order[:num_full].reshape(-1, recipe.batch_size))
        if num_full < recipe.num_train:
            state, last = step(state, order[num_full:])
            losses = jnp.append(losses, last)
        return state._replace(losses=state.losses.at[number].set(losses))

    def finish(state: FitState, data: Any, member: Members) -> Any:
        losses, metrics = state.losses.reshape(-1), {}
        for split, measure in evaluate.items():
            accuracy, loss, gradient = measure(variables(state), data, member)
            metrics |= {f"{split}_accuracy": accuracy, f"{split}_loss": loss}
        return task.metrics(
            steps_to_loss=first_step_below(losses, recipe.loss_window, recipe.loss_threshold),
            diverged_at=state.diverged_at,
            losses=losses,
            **metrics,
            **task.describe(gradient, member.arrays),
        )

    def observe(state: FitState, data: Any, member: Members) -> dict[str, Any]:
        seen = {}
        for name, observer in observers.items():
            with reported(f"observe[{name!r}]"):
                given = observer(variables(state), data, member)
                seen[name] = jax.tree.map(jnp.asarray, given)
        return seen

    start, epoch, finish, observe = (
        _in_precision(recipe, stage) for stage in (start, epoch, finish, observe)
    )
    return Stages(start, epoch, finish, variables, observe)


def _in_precision(recipe: Recipe, stage: Callable[..., Any]) -> Callable[..., Any]:
    """A stage whose matrix products have the recipe's precision."""
    if recipe.precision == "default":
        return stage
    return jax.default_matmul_precision(PRECISIONS[recipe.precision])(stage)


Step = Callable[[Any, Members, jax.Array, FitState, jax.Array], tuple[FitState, jax.Array]]


def _make_step(model: Model, recipe: Recipe, task: Task, join: Callable[..., Any]) -> Step:
    """Builds `step(data, member, dropout_key, state, indices) -> (state, loss)`."""

    def step(
        data: Any, member: Members, dropout_key: jax.Array, state: FitState, indices: jax.Array
    ) -> tuple[FitState, jax.Array]:
        number, optimizer = state.step + 1, recipe.make_optimizer(member.learning_rate)
        epoch = state.step // recipe.steps_per_epoch + 1
        x, targets = task.draw(data, "train", indices, member.arrays, epoch=epoch)
        x, key = x.reshape(-1, *model.image_shape), jax.random.fold_in(dropout_key, number)
        if task.perturb is not None:
            now = join(state.trained, state.others)

            def losses(x: jax.Array) -> jax.Array:
                return task.loss(model.apply(now, x), targets)

            # A key of its own: dropout is as without it.
            own_key = jax.random.fold_in(key, 1)
            x = perturbed(task.perturb, losses, x, member.arrays, own_key)

        def loss(trained: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
            variables = join(trained, state.others)
            outputs, updated = model.apply(variables, x, key, train=True)
            others = split_trainable(model, updated)[1]
            # As they were: statistics in single precision of layers in double precision, say.
            others = [
                new if new.dtype == old.dtype else new.astype(old.dtype)
                for new, old in zip(others, state.others, strict=True)
            ]
            value = task.loss(outputs, targets).mean()
            if task.penalty is None:
                return value, (value, others)
            penalty = penalized(task.penalty, variables, x, data, member.arrays)
            return value + penalty, (value, others)

        (_, (value, others)), gradients = jax.value_and_grad(loss, has_aux=True)(state.trained)
        # Conjugated, the gradient of a complex parameter w points where the loss grows:
        # ∂/∂Re w + i ∂/∂Im w.
        gradients = jax.tree.map(jnp.conj, gradients)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        finite = jnp.isfinite(optax.tree.norm(gradients))
        finite &= _all_finite([value, *trained, *others]) & (state.diverged_at < 0)
        new = (trained, others, optimizer_state)
        kept = jax.tree.map(partial(jnp.where, finite), new, tuple(state[:3]))
        unchanged = finite | (state.diverged_at >= 0)
        diverged_at = jnp.where(unchanged, state.diverged_at, number)
        value = jnp.where(finite, value.astype(jnp.float32), jnp.nan)
        return FitState(*kept, number, diverged_at, state.losses), value

    return step


def make_whole(
    model: Model, recipe: Recipe, task: Task
) -> Callable[[Any, Any, Arrays, Any], tuple[Any, Any]]:
    """`train(key, learning_rate, arrays, data) -> (variables, metrics)`: all stages as one pure
    function; see `make_fit`.
    """
    stages = make_fit(model, recipe, task)

    def train(key: Any, learning_rate: Any, arrays: Arrays, data: Any) -> tuple[Any, Any]:
        rate = recipe.choose_learning_rate(learning_rate, task.learning_rate)
        rate = jnp.nan if rate is None else check_scalar("learning_rate", rate)
        member = Members(ensemble.resolve_key(key, "key"), rate, arrays)

        state = jax.lax.fori_loop(
            0,
            recipe.num_epochs,
            lambda _, state: stages.epoch(state, data, member),
            stages.start(member),
        )
        return stages.variables(state), stages.finish(state, data, member)

    return train
