"""Fitting one network to labelled samples as a pure function, and mapping that over many networks.

What the samples are is said by whoever calls: `training` draws them from D(v), `image_training`
takes images.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from nad_jax import ensemble
from nad_jax.contract import check_training
from nad_jax.errors import (
    InputError,
    check_choice,
    check_function,
    check_integer,
    check_number,
    check_record,
    number_array,
)
from nad_jax.models import Model, split_trainable
from nad_jax.recipe import PRECISIONS, Recipe
from nad_jax.snapshots import Snapshots

Sample = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class FitMetrics(NamedTuple):
    """What became of a network that was trained; `map_networks` adds a leading axis [N].

    train_accuracy, test_accuracy: share of samples classified correctly after training, in
      evaluation mode.
    train_loss, test_loss: mean cross-entropy there.
    steps_to_loss: first step t = 1 … T at which the mean minibatch loss of the last `loss_window`
      steps is at most `loss_threshold`; −1: never.
    diverged_at: the step at which the loss, the norm of the gradient or the network it led to was
      not finite; the network is kept as it was before that step, and evaluated so. −1: never.
    losses: [T] minibatch losses; nan from the divergence on.
    """

    train_accuracy: jax.Array
    test_accuracy: jax.Array
    train_loss: jax.Array
    test_loss: jax.Array
    steps_to_loss: jax.Array
    diverged_at: jax.Array
    losses: jax.Array


class FitState(NamedTuple):
    """A network in training: what an epoch changes.

    trained, others: leaves of its variables, see `models.split_trainable`. step: steps done.
      diverged_at: as in
    `FitMetrics`. losses: [num_epochs, steps_per_epoch] minibatch losses, 0 where not yet known.
    """

    trained: list[jax.Array]
    others: list[jax.Array]
    optimizer: optax.OptState
    step: jax.Array
    diverged_at: jax.Array
    losses: jax.Array


class Stages(NamedTuple):
    """Training of one network in stages, so that it can be interrupted between epochs.

    `member` is what differs between networks (a key, a direction, …), `shared` the data they have
    in common.
    """

    start: Callable[..., FitState]  # start(*member)
    epoch: Callable[..., FitState]  # epoch(state, shared, *member)
    finish: Callable[..., tuple[Any, Any]]  # finish(state, shared, *member) -> (variables, metrics)


def _first_step_below(losses: jax.Array, window: int, threshold: float) -> jax.Array:
    """The first step, counted from 1, at which the mean of the last `window` losses [T] is at most
    `threshold`; −1.
    """
    if len(losses) < window:
        return jnp.int32(-1)
    reached = (
        jax.lax.reduce_window(losses, jnp.float32(0), jax.lax.add, (window,), (1,), "VALID")
        / window
        <= threshold
    )
    return jnp.where(reached.any(), jnp.argmax(reached).astype(jnp.int32) + window, -1)


def _all_finite(leaves: Iterable[jax.Array]) -> jax.Array:
    """Whether no leaf has an entry that is not finite: as one vector, which compiles faster than
    leaf by leaf.
    """
    parts = [(leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else leaf for leaf in leaves]
    parts = [part for part in jax.tree.leaves(parts) if jnp.issubdtype(part.dtype, jnp.floating)]
    return jnp.isfinite(ravel_pytree(parts)[0]).all()


def _as_before(new: jax.Array, old: jax.Array) -> jax.Array:
    """Numbers with the dtype that they had: statistics in single precision of layers in double
    precision, say.
    """
    return new.astype(old.dtype) if jnp.issubdtype(old.dtype, jnp.floating) else new


def _make_evaluate(
    model: Model, batch_size: int, with_gradient: bool
) -> Callable[..., tuple[jax.Array, ...]]:
    """`evaluate(variables, sample, num_samples) -> (accuracy, loss, gradient)`; the mean of ∇ₓ(l₀ −
    l₁) [H, W, C].
    """

    def evaluate(variables: Any, sample: Callable, num_samples: int) -> tuple[jax.Array, ...]:
        def add_batch(
            sums: tuple[jax.Array, ...], first: jax.Array
        ) -> tuple[tuple[jax.Array, ...], None]:
            indices = first + jnp.arange(batch_size)
            valid = (
                indices < num_samples
            )  # the last batch is filled up with copies of the last sample
            x, labels = sample(jnp.minimum(indices, num_samples - 1))

            def difference(x: jax.Array) -> tuple[jax.Array, jax.Array]:
                logits = model.apply(variables, x)
                return jnp.sum(jnp.where(valid, logits[:, 0] - logits[:, 1], 0)), logits

            if with_gradient:
                (_, logits), gradients = jax.value_and_grad(difference, has_aux=True)(x)
                gradient = gradients.sum(0)
            else:
                logits, gradient = model.apply(variables, x), jnp.zeros(x.shape[1:], jnp.float32)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            correct = logits.argmax(-1) == labels
            count, hits = valid.sum(dtype=jnp.float32), (correct & valid).sum(dtype=jnp.float32)
            new = (count, hits, jnp.sum(jnp.where(valid, losses, 0)), gradient)
            return tuple(
                total + part.astype(jnp.float32) for total, part in zip(sums, new, strict=True)
            ), None

        zero = (*(jnp.float32(0) for _ in range(3)), jnp.zeros(model.image_shape, jnp.float32))
        (count, *sums), _ = jax.lax.scan(add_batch, zero, jnp.arange(0, num_samples, batch_size))
        return tuple(
            total / count for total in sums
        )  # by a constant, XLA would multiply: all of n would be 0.9999999

    return evaluate


def check_model(model: Model, batch_size: int, num_classes: int | None = None) -> None:
    """Raises `InputError` unless the model has a logit for each class and can be trained, see
    `check_training`.
    """
    check_record("model", model, Model)
    check_training(model, batch_size, num_classes)


def check_recipe(recipe: Recipe) -> None:
    """Raises one `InputError` with a line for each problem of the recipe."""
    check_record("recipe", recipe, Recipe)
    problems = recipe.problems()
    if problems:
        raise InputError("\n".join(problems))


def make_fit(model: Model, recipe: Recipe, with_gradient: bool = False) -> Stages:
    """Builds the three stages of fitting one network: pure functions that are `Stages` but for what
    a sample is.

      start(key, learning_rate) -> FitState
      epoch(state, key, learning_rate, sample_train) -> FitState
      finish(state, sample_train, sample_test) -> (variables, FitMetrics, gradient)

      key:            of initialization, order of the samples and dropout; the same for all stages.
      learning_rate:  scalar.
      sample_train, sample_test: functions of indices [B] in 0 … num_train − 1 (num_test − 1) that
        return samples x [B, H, W, C] and their labels [B].

    `gradient` is the mean over the test samples of ∇ₓ(logit₀ − logit₁), [H, W, C]; zeros unless
    `with_gradient`.
    """
    evaluate_train = _make_evaluate(model, recipe.batch_size, with_gradient=False)
    evaluate_test = _make_evaluate(model, recipe.batch_size, with_gradient)
    num_full = recipe.num_train // recipe.batch_size * recipe.batch_size  # samples in full batches
    *_, join = split_trainable(model, jax.eval_shape(model.init, jax.random.key(0)))

    def start(key: jax.Array, learning_rate: jax.Array) -> FitState:
        init_key, _, _ = jax.random.split(key, 3)
        trained, others, _ = split_trainable(model, model.init(init_key))
        losses = jnp.zeros((recipe.num_epochs, recipe.steps_per_epoch), jnp.float32)
        optimizer = recipe.make_optimizer(learning_rate).init(trained)
        return FitState(trained, others, optimizer, jnp.int32(0), jnp.int32(-1), losses)

    def epoch(
        state: FitState, key: jax.Array, learning_rate: jax.Array, sample_train: Sample
    ) -> FitState:
        _, order_key, dropout_key = jax.random.split(key, 3)
        optimizer = recipe.make_optimizer(learning_rate)

        def step(state: FitState, indices: jax.Array) -> tuple[FitState, jax.Array]:
            number = state.step + 1
            x, labels = sample_train(indices)

            def loss(trained: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
                variables = join(trained, state.others)
                logits, updated = model.apply(
                    variables, x, jax.random.fold_in(dropout_key, number), train=True
                )
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                others = split_trainable(model, updated)[1]
                return losses.mean(), [
                    _as_before(*leaves) for leaves in zip(others, state.others, strict=True)
                ]

            value, pullback, others = jax.vjp(loss, state.trained, has_aux=True)
            # Conjugated, the gradient of a complex parameter w points where the loss grows: ∂/∂Re w
            # + i ∂/∂Im w.
            gradients = jax.tree.map(jnp.conj, pullback(jnp.ones_like(value))[0])
            updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trained)
            trained = optax.apply_updates(state.trained, updates)
            finite = jnp.isfinite(optax.tree.norm(gradients)) & _all_finite(
                [value, *trained, *others]
            )
            finite = finite & (state.diverged_at < 0)
            new, old = (
                (trained, others, optimizer_state),
                (state.trained, state.others, state.optimizer),
            )
            kept = jax.tree.map(partial(jnp.where, finite), new, old)
            diverged_at = jnp.where(finite | (state.diverged_at >= 0), state.diverged_at, number)
            value = jnp.where(finite, value.astype(jnp.float32), jnp.nan)
            return FitState(*kept, number, diverged_at, state.losses), value

        number = state.step // recipe.steps_per_epoch
        order = jax.random.permutation(
            jax.random.split(order_key, recipe.num_epochs)[number], recipe.num_train
        )
        state, losses = jax.lax.scan(step, state, order[:num_full].reshape(-1, recipe.batch_size))
        if num_full < recipe.num_train:
            state, last = step(state, order[num_full:])
            losses = jnp.append(losses, last)
        return state._replace(losses=state.losses.at[number].set(losses))

    def finish(
        state: FitState, sample_train: Sample, sample_test: Sample
    ) -> tuple[Any, FitMetrics, jax.Array]:
        losses, variables = state.losses.reshape(-1), join(state.trained, state.others)
        train_accuracy, train_loss, _ = evaluate_train(variables, sample_train, recipe.num_train)
        test_accuracy, test_loss, gradient = evaluate_test(variables, sample_test, recipe.num_test)
        metrics = FitMetrics(
            train_accuracy,
            test_accuracy,
            train_loss,
            test_loss,
            _first_step_below(losses, recipe.loss_window, recipe.loss_threshold),
            state.diverged_at,
            losses,
        )
        return variables, metrics, gradient

    def in_precision(stage: Callable) -> Callable:
        def precise(*args: Any) -> Any:
            with jax.default_matmul_precision(PRECISIONS[recipe.precision]):
                return stage(*args)

        return stage if recipe.precision == "default" else precise

    return Stages(*map(in_precision, (start, epoch, finish)))


def make_whole(stages: Stages, num_epochs: int) -> Callable[..., tuple[Any, Any]]:
    """`train(*member, shared) -> (variables, metrics)`: all stages as one pure function."""

    def train(*args: Any) -> tuple[Any, Any]:
        *member, shared = args
        state = jax.lax.fori_loop(
            0,
            num_epochs,
            lambda _, state: stages.epoch(state, shared, *member),
            stages.start(*member),
        )
        return stages.finish(state, shared, *member)

    return train


def resolve_mapping(
    mapping: str, chunk_size: int, num_devices: int
) -> tuple[str, int, list[jax.Device]]:
    """The mapping, the networks per call and the devices that automatic choices come to.

    See `training.make_train_many` for what the choices are.
    """
    check_choice("mapping", mapping, ("auto", *ensemble.MAPPINGS))
    num_devices = check_integer("num_devices", num_devices, 0, jax.local_device_count())
    chunk_size = check_integer("chunk_size", chunk_size, 0)
    devices = jax.local_devices()[: num_devices or None]
    if mapping == "auto":
        mapping = "sequential" if jax.default_backend() == "cpu" else "vectorized"
    chunk_size = chunk_size or len(devices) * (1 if mapping == "sequential" else 32)
    if chunk_size % len(devices):
        raise InputError(
            f"chunk_size: must be a multiple of the {len(devices)} devices, got {chunk_size}"
        )
    return mapping, chunk_size, devices


def make_chunk(stages: Stages, mapping: str, devices: list[jax.Device]) -> Stages:
    """The compiled stages of N networks at once, spread over the devices; `finish` gives their
    metrics, [N] each.
    """

    def mapped(stage: Callable) -> Callable:
        return lambda shared, *members: ensemble.map_members(
            lambda *member: stage(shared, *member), mapping, *members
        )

    start_all = ensemble.shard_members(
        mapped(lambda shared, *member: stages.start(*member)), devices
    )
    epoch_all = ensemble.shard_members(
        mapped(lambda shared, state, *member: stages.epoch(state, shared, *member)), devices
    )
    finish_all = ensemble.shard_members(
        mapped(lambda shared, state, *member: stages.finish(state, shared, *member)[1]), devices
    )
    # Stated, so that the first epoch meets the same placement as all others: else it is compiled
    # once more.
    placed = ensemble.spread(devices)

    @partial(jax.jit, out_shardings=placed)
    def start(*members: jax.Array) -> FitState:
        return start_all(None, *members)

    @partial(jax.jit, donate_argnums=0, out_shardings=placed)
    def epoch(state: FitState, shared: Any, *members: jax.Array) -> FitState:
        return epoch_all(shared, state, *members)

    @jax.jit
    def finish(state: FitState, shared: Any, *members: jax.Array) -> Any:
        return finish_all(shared, state, *members)

    return Stages(start, epoch, finish)


class Batch(NamedTuple):
    """Networks that are trained at once, at most a chunk of them: `shared()` gives their data,
    `members` are [N].
    """

    shared: Callable[[], Any]
    members: tuple[jax.Array, ...]


def make_batches(
    shared: Callable[[], Any], members: tuple[jax.Array, ...], chunk_size: int
) -> list[Batch]:
    """Members [N] with the same data, `chunk_size` at a time."""
    starts = range(0, len(members[0]), chunk_size)
    return [
        Batch(shared, tuple(array[first : first + chunk_size] for array in members))
        for first in starts
    ]


def map_networks(
    chunk: Stages,
    num_epochs: int,
    chunk_size: int,
    batches: list[Batch],
    progress: Callable[[float], None] | None = None,
    snapshots: Snapshots | None = None,
) -> Any:
    """The metrics of the networks of all batches [N], NumPy, by calls of `chunk` on `chunk_size` of
    them.

    A batch that is smaller is filled up with copies, so that a network's numbers do not depend on
    how many there are.

    Args:
      chunk: from `make_chunk`.
      progress: called after every epoch with the number of networks done, a fraction for those in
        training.
      snapshots: where the state is kept between epochs, and from where it is taken up again.

    Raises:
      InputError: for another `progress` than a function, and other `snapshots` than `Snapshots`.
    """
    check_function("progress", progress)
    if snapshots is not None:
        check_record("snapshots", snapshots, Snapshots)

    def padded(batch: Batch) -> tuple[jax.Array, ...]:
        places = np.resize(np.arange(len(batch.members[0])), chunk_size)
        return tuple(array[places] for array in batch.members)

    batches_done, epochs_done, state, results = 0, 0, None, []
    if snapshots is not None and (kept := snapshots.load()) is not None:
        batches_done, epochs_done = int(kept["batches_done"]), int(kept["epochs_done"])
        state = chunk.start(*padded(batches[0]))
        metrics = jax.eval_shape(chunk.finish, state, batches[0].shared(), *padded(batches[0]))
        placed = jax.tree.map(lambda leaf: leaf.sharding, state)
        state = jax.device_put(_restore("state", state, kept), placed)
        results = [_restore("results", metrics, kept)] if batches_done else []
    num_done = sum(len(batch.members[0]) for batch in batches[:batches_done])
    for number, batch in list(enumerate(batches))[batches_done:]:
        shared, members, count = batch.shared(), padded(batch), len(batch.members[0])
        state = chunk.start(*members) if state is None else state
        for epoch in range(epochs_done, num_epochs):
            state = jax.block_until_ready(chunk.epoch(state, shared, *members))
            if snapshots is not None and snapshots.due():
                kept = {"batches_done": np.asarray(number), "epochs_done": np.asarray(epoch + 1)}
                kept |= _flatten("state", state) | _flatten("results", _join(results))
                snapshots.save(number * num_epochs + epoch, kept)
            if progress is not None and epoch + 1 < num_epochs:
                progress(num_done + count * (epoch + 1) / num_epochs)
        finished = jax.device_get(chunk.finish(state, shared, *members))
        results.append(jax.tree.map(lambda values, count=count: values[:count], finished))
        num_done, epochs_done, state = num_done + count, 0, None
        if progress is not None:
            progress(num_done)
    return _join(results)


def _join(results: list[Any]) -> Any:
    """Metrics of several batches as those of one; None for none."""
    return jax.tree.map(lambda *values: np.concatenate(values), *results) if results else None


def _flatten(name: str, tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a tree, numbered, as arrays that a file can hold."""

    def plain(leaf: jax.Array) -> np.ndarray:
        array = np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        return (
            array if array.dtype.kind in "biuf" else array.view(f"u{array.dtype.itemsize}")
        )  # bfloat16, say

    return {f"{name}_{index}": plain(leaf) for index, leaf in enumerate(jax.tree.leaves(tree))}


def _restore(name: str, like: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of `_flatten`, for a tree like another one."""

    def restored(index: int, leaf: Any) -> Any:
        array = arrays[f"{name}_{index}"]
        if _is_key(leaf):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
        return array.view(leaf.dtype)

    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(
        structure, [restored(index, leaf) for index, leaf in enumerate(leaves)]
    )


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


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
                check_number(name, entry, 0.0)
        arrays[name] = array
    return arrays
