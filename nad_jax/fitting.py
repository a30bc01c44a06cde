"""Fitting one network to labelled samples as a pure function, and mapping that over many networks.

What the samples are is said by whoever calls: `training` draws them from D(v), `image_training` takes images.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nad_jax import ensemble
from nad_jax.errors import InputError, check_choice, check_integer, check_number
from nad_jax.models import Model, split_trainable
from nad_jax.recipe import Recipe

Sample = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class FitMetrics(NamedTuple):
    """What became of a network that was trained; `map_networks` adds a leading axis [N].

    train_accuracy, test_accuracy: share of samples classified correctly after training, in evaluation mode.
    train_loss, test_loss: mean cross-entropy there.
    steps_to_loss: first step t = 1 … T at which the mean minibatch loss of the last `loss_window` steps is at most
      `loss_threshold`; −1: never.
    diverged_at: the step at which the loss, the gradient or the network it led to was not finite; the network is
      kept as it was before that step, and evaluated so. −1: never.
    losses: [T] minibatch losses; nan from the divergence on.
    """

    train_accuracy: jax.Array
    test_accuracy: jax.Array
    train_loss: jax.Array
    test_loss: jax.Array
    steps_to_loss: jax.Array
    diverged_at: jax.Array
    losses: jax.Array


class _State(NamedTuple):
    trained: list[jax.Array]
    others: list[jax.Array]
    optimizer: optax.OptState
    step: jax.Array
    diverged_at: jax.Array


def _first_step_below(losses: jax.Array, window: int, threshold: float) -> jax.Array:
    """The first step, counted from 1, at which the mean of the last `window` losses [T] is at most `threshold`; −1."""
    if len(losses) < window:
        return jnp.int32(-1)
    reached = jax.lax.reduce_window(losses, 0.0, jax.lax.add, (window,), (1,), "VALID") / window <= threshold
    return jnp.where(reached.any(), jnp.argmax(reached).astype(jnp.int32) + window, -1)


def _all_finite(leaves: Iterable[jax.Array]) -> jax.Array:
    real = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in real]).all()


def _make_evaluate(model: Model, batch_size: int, with_gradient: bool) -> Callable[..., tuple[jax.Array, ...]]:
    """`evaluate(variables, sample, num_samples) -> (accuracy, loss, gradient)`; the mean of ∇ₓ(l₀ − l₁) [H, W, C]."""

    def evaluate(variables: Any, sample: Callable, num_samples: int) -> tuple[jax.Array, ...]:
        def add_batch(sums: tuple[jax.Array, ...], first: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
            indices = first + jnp.arange(batch_size)
            valid = indices < num_samples  # the last batch is filled up with copies of the last sample
            x, labels = sample(jnp.minimum(indices, num_samples - 1))

            def difference(x: jax.Array) -> tuple[jax.Array, jax.Array]:
                logits = model.apply(variables, x)
                return jnp.sum(jnp.where(valid, logits[:, 0] - logits[:, 1], 0.0)), logits

            if with_gradient:
                (_, logits), gradients = jax.value_and_grad(difference, has_aux=True)(x)
                gradient = gradients.sum(0)
            else:
                logits, gradient = model.apply(variables, x), jnp.zeros(x.shape[1:])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            correct = logits.argmax(-1) == labels
            count, hits = valid.sum(dtype=jnp.float32), (correct & valid).sum(dtype=jnp.float32)
            new = (count, hits, jnp.sum(jnp.where(valid, losses, 0.0)), gradient)
            return jax.tree.map(jnp.add, sums, new), None

        zero = (jnp.zeros(()), jnp.zeros(()), jnp.zeros(()), jnp.zeros(model.image_shape))
        (count, *sums), _ = jax.lax.scan(add_batch, zero, jnp.arange(0, num_samples, batch_size))
        return tuple(total / count for total in sums)  # by a constant, XLA would multiply: all of n would be 0.9999999

    return evaluate


def check_model(model: Model, batch_size: int, num_classes: int | None = None) -> None:
    """Raises `InputError` unless the model has a logit for each class and its `apply` a training mode."""
    if not isinstance(model, Model):
        raise InputError(f"model: must come from create_model, from_linen, from_nnx or from_functions, got {model!r}")
    if num_classes is not None and model.num_logits != num_classes:
        raise InputError(f"model: needs {num_classes} logits, one for each class; this one has {model.num_logits}")
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(model.init, key)
    images = jax.ShapeDtypeStruct((batch_size, *model.image_shape), jnp.float32)
    try:
        logits, updated = jax.eval_shape(partial(model.apply, train=True), variables, images, key)
        same = jax.tree.structure(updated) == jax.tree.structure(variables)
    except Exception as error:  # the model is the user's program
        raise InputError(
            f"model: apply(variables, x, key, train=True) must return (logits, variables): {error}"
        ) from error
    if not same or logits.shape != (batch_size, model.num_logits):
        raise InputError(
            f"model: apply(variables, x, key, train=True) must return (logits [B, {model.num_logits}], "
            "variables as given)"
        )


def check_recipe(recipe: Recipe) -> None:
    """Raises one `InputError` with a line for each problem of the recipe."""
    if not isinstance(recipe, Recipe):
        raise InputError(f"recipe: must be a Recipe, got {recipe!r}")
    problems = recipe.problems()
    if problems:
        raise InputError("\n".join(problems))


def make_fit(
    model: Model, recipe: Recipe, with_gradient: bool = False
) -> Callable[[jax.Array, jax.Array, Sample, Sample], tuple[Any, FitMetrics, jax.Array]]:
    """Builds `fit(key, learning_rate, sample_train, sample_test) -> (variables, FitMetrics, gradient)`.

    `fit` is pure: it initializes a network, trains it by the recipe, the whole schedule in `lax.scan`, and
    evaluates it.

      key:            of initialization, order of the samples and dropout; consumed.
      learning_rate:  scalar.
      sample_train, sample_test: functions of indices [B] in 0 … num_train − 1 (num_test − 1) that return samples
        x [B, H, W, C] and their labels [B].

    `gradient` is the mean over the test samples of ∇ₓ(logit₀ − logit₁), [H, W, C]; zeros unless `with_gradient`.
    """
    evaluate_train = _make_evaluate(model, recipe.batch_size, with_gradient=False)
    evaluate_test = _make_evaluate(model, recipe.batch_size, with_gradient)
    num_full = recipe.num_train // recipe.batch_size * recipe.batch_size  # samples in full batches

    def fit(
        key: jax.Array, learning_rate: jax.Array, sample_train: Sample, sample_test: Sample
    ) -> tuple[Any, FitMetrics, jax.Array]:
        init_key, order_key, dropout_key = jax.random.split(key, 3)
        optimizer = recipe.make_optimizer(learning_rate)
        trained, others, join = split_trainable(model, model.init(init_key))

        def step(state: _State, indices: jax.Array) -> tuple[_State, jax.Array]:
            number = state.step + 1
            x, labels = sample_train(indices)

            def loss(trained: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
                variables = join(trained, state.others)
                logits, updated = model.apply(variables, x, jax.random.fold_in(dropout_key, number), train=True)
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
                return losses.mean(), split_trainable(model, updated)[1]

            (value, others), gradients = jax.value_and_grad(loss, has_aux=True)(state.trained)
            updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trained)
            trained = optax.apply_updates(state.trained, updates)
            finite = _all_finite([value, *gradients, *trained, *others]) & (state.diverged_at < 0)
            new, old = (trained, others, optimizer_state), (state.trained, state.others, state.optimizer)
            kept = jax.tree.map(partial(jnp.where, finite), new, old)
            diverged_at = jnp.where(finite | (state.diverged_at >= 0), state.diverged_at, number)
            return _State(*kept, number, diverged_at), jnp.where(finite, value, jnp.nan)

        def epoch(state: _State, key: jax.Array) -> tuple[_State, jax.Array]:
            order = jax.random.permutation(key, recipe.num_train)
            state, losses = jax.lax.scan(step, state, order[:num_full].reshape(-1, recipe.batch_size))
            if num_full < recipe.num_train:
                state, last = step(state, order[num_full:])
                losses = jnp.append(losses, last)
            return state, losses

        state = _State(trained, others, optimizer.init(trained), jnp.int32(0), jnp.int32(-1))
        state, losses = jax.lax.scan(epoch, state, jax.random.split(order_key, recipe.num_epochs))
        losses = losses.reshape(-1)
        variables = join(state.trained, state.others)
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

    if recipe.precision == "default":
        return fit

    def fit_in_precision(*args: Any) -> tuple[Any, FitMetrics, jax.Array]:
        with jax.default_matmul_precision(recipe.precision):
            return fit(*args)

    return fit_in_precision


def resolve_mapping(mapping: str, chunk_size: int, num_devices: int) -> tuple[str, int, list[jax.Device]]:
    """The mapping, the networks per call and the devices that automatic choices come to, see `make_train_many`."""
    check_choice("mapping", mapping, ("auto", *ensemble.MAPPINGS))
    check_integer("num_devices", num_devices, 0, jax.local_device_count())
    check_integer("chunk_size", chunk_size, 0)
    devices = jax.local_devices()[: num_devices or None]
    if mapping == "auto":
        mapping = "sequential" if jax.default_backend() == "cpu" else "vectorized"
    chunk_size = chunk_size or len(devices) * (1 if mapping == "sequential" else 32)
    if chunk_size % len(devices):
        raise InputError(f"chunk_size: must be a multiple of the {len(devices)} devices, got {chunk_size}")
    return mapping, chunk_size, devices


def make_chunk(train: Callable, mapping: str, devices: list[jax.Device]) -> Callable[..., Any]:
    """The compiled `chunk(shared, *members)`: the metrics of `train(*member, shared)` for N members, [N] each."""

    def chunk(shared: Any, *members: jax.Array) -> Any:
        return ensemble.map_members(lambda *member: train(*member, shared)[1], mapping, *members)

    return jax.jit(ensemble.shard_members(chunk, devices))


def map_networks(
    chunk: Callable[..., Any],
    chunk_size: int,
    shared: Any,
    members: tuple[jax.Array, ...],
    progress: Callable[[int], None] | None = None,
) -> Any:
    """The metrics of all members [N], NumPy, by calls of `chunk` on `chunk_size` of them.

    The last chunk is filled up with copies, so that a network's numbers do not depend on how many there are.

    Args:
      chunk: from `make_chunk`.
      members: arrays with a leading axis [N]: what differs between the networks.
      progress: called with the number of networks done.
    """
    count, results = len(members[0]), []
    for first in range(0, count, chunk_size):
        stop = min(first + chunk_size, count)
        padded = np.resize(np.arange(first, stop), chunk_size)
        results.append(jax.device_get(chunk(shared, *(array[padded] for array in members))))
        if progress is not None:
            progress(stop)
    return jax.tree.map(lambda *values: np.concatenate(values)[:count], *results)


def broadcast_members(count: int, **values: Any) -> dict[str, np.ndarray]:
    """Each value as [count]; raises `InputError` naming the one that is neither a number nor a list of that length."""
    arrays = {}
    for name, value in values.items():
        array = np.asarray(value)
        if array.shape not in ((), (count,)):
            raise InputError(f"{name}: must be a number or one for each of the {count} networks, got {array.shape}")
        array = np.broadcast_to(array, (count,))
        for entry in array.tolist():
            if name == "seed":
                check_integer(name, entry, 0, 2**32 - 1)
            else:
                check_number(name, entry, 0.0)
        arrays[name] = array
    return arrays
