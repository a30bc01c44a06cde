"""What a task of one's own must keep to: `check_task` tests it before its networks are trained, what
changes their training (`perturb`, `penalty`) is tested where it is traced.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.contract import as_floating, reported, shape_of_variables
from nad_jax.errors import InputError, first_line, shown
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.task import SPLITS, Arrays, Members, Penalty, Perturb, Task, cross_entropy

# What a sample that is written for arrays of JAX alone raises of others.
_FOR_JAX_ALONE = (AttributeError, TypeError, ValueError, AssertionError, NotImplementedError)


def check_task(model: Model, recipe: Recipe, task: Task, data: Any, member: Members) -> None:
    """Raises `InputError` where a task gives no samples of the model's inputs, has fewer than the
    recipe asks for, its `loss` or `correct` are not one number or truth value for each sample, or
    the first losses are not finite.

    Args:
      data: of the task. member: of one network.
    """
    variables = shape_of_variables(model)
    # Other than the number of outputs, with which it could be confused.
    batch = 3 if model.num_logits == 2 else 2
    arrays = data, member.arrays
    on_host = jax.tree.map(_on_host, arrays)
    for split, count in zip(SPLITS, (recipe.num_train, recipe.num_test), strict=True):
        indices = np.linspace(0, count - 1, batch).astype(int)
        sample = partial(_sample, task, split, indices)
        with reported(f"task: sample({split!r})"):
            # JAX would take the last sample again and again where there are too few; NumPy says so.
            try:
                sample(*on_host)
            except IndexError as error:
                raise InputError(
                    f"recipe: num_{split}={count} asks for more samples than the task has: "
                    f"{first_line(error)}"
                ) from error
            except _FOR_JAX_ALONE:
                pass
            samples = jax.eval_shape(sample, *arrays)
        if not isinstance(samples, tuple) or len(samples) != 2:
            raise InputError(f"task: sample must return (x, targets), got {type(samples).__name__}")
        x, targets = samples
        size = int(np.prod(model.image_shape))
        if x.shape[:1] != (batch,) or np.prod(x.shape) != batch * size:
            raise InputError(
                f"task: sample must give inputs [B, {', '.join(map(str, model.image_shape))}] or "
                f"[B, {size}], got shape {x.shape} for B = {batch}"
            )
        x = jax.ShapeDtypeStruct((batch, *model.image_shape), x.dtype)
        outputs = jax.eval_shape(model.apply, variables, x)
        _check_numbers(task, outputs, targets)
    _check_finite(model, recipe, task, data, member)


def _on_host(leaf: Any) -> Any:
    """A leaf as an array of NumPy; random keys, which it does not know, as they are."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return leaf if is_key else np.asarray(leaf)


def _sample(task: Task, split: str, indices: np.ndarray, data: Any, arrays: Any) -> Any:
    return task.draw(data, split, indices, arrays)


def _check_numbers(task: Task, outputs: jax.ShapeDtypeStruct, targets: Any) -> None:
    labels = jax.tree.leaves(targets)
    integers = all(jnp.issubdtype(one.dtype, jnp.integer) for one in labels)
    if task.loss is cross_entropy and not integers:
        raise InputError(
            f"task: targets are {labels[0].dtype}, but the default loss is cross-entropy "
            "of integer labels [B]; give a loss"
        )
    count = len(outputs)
    for name, kind, needed in (
        ("loss", jnp.floating, "real numbers"),
        ("correct", jnp.bool_, "truth values"),
    ):
        with reported(f"task: {name}"):
            found = jax.eval_shape(getattr(task, name), outputs, targets)
        shape = getattr(found, "shape", type(found).__name__)
        if shape != (count,):
            raise InputError(
                f"task: {name} must be one number for each sample, [B], got {shape} for B = {count}"
            )
        if not jnp.issubdtype(found.dtype, kind):
            raise InputError(f"task: {name} must give {needed}, got {found.dtype}")


def _check_finite(model: Model, recipe: Recipe, task: Task, data: Any, member: Members) -> None:
    """Raises `InputError` where losses of the first batch are not finite though the outputs of the
    network, as it is initialized, are.
    """

    @jax.jit
    def first_losses(data: Any, member: Members) -> tuple[jax.Array, jax.Array]:
        start_key, _, key = jax.random.split(member.key, 3)
        indices = jnp.arange(min(recipe.batch_size, recipe.num_train))
        x, targets = task.draw(data, "train", indices, member.arrays)
        x = x.reshape(-1, *model.image_shape)
        outputs, _ = model.apply(model.init(start_key), x, key, train=True)
        losses = task.loss(outputs, targets)
        return losses, jnp.isfinite(outputs).all(1)

    losses, valid = map(np.asarray, first_losses(data, member))
    wrong = losses[valid & ~np.isfinite(losses)]
    if len(wrong):
        raise InputError(
            f"task: loss must be finite, got {shown(float(wrong[0]))} for {len(wrong)} of the first "
            f"{len(losses)} training samples, whose outputs are finite, before any training"
        )


def perturbed(
    perturb: Perturb, losses: Any, x: jax.Array, arrays: Arrays, key: jax.Array
) -> jax.Array:
    """What samples x [B, *input_shape] become; raises `InputError` where `perturb` fails or gives
    others than samples of this shape and type. (Integers may become floating-point numbers.)
    """
    with reported("task: perturb"):
        found = perturb(losses, x, arrays, key)
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
    if shape != x.shape or dtype not in (x.dtype, as_floating(x).dtype):
        got = type(found).__name__ if shape is None else f"{dtype}{list(shape)}"
        raise InputError(
            f"task: perturb must give samples as it takes them, {x.dtype}{list(x.shape)}, got {got}"
        )
    return found


def penalized(
    penalty: Penalty, variables: Any, x: jax.Array, data: Any, arrays: Arrays
) -> jax.Array:
    """What is added to the mean loss of a batch: []; raises `InputError` where `penalty` fails or
    gives anything else.
    """
    with reported("task: penalty"):
        found = jnp.asarray(penalty(variables, x, data, arrays))
    if found.shape != () or not jnp.issubdtype(found.dtype, jnp.floating):
        raise InputError(
            f"task: penalty must be one real floating-point number, got {found.dtype}"
            f"{list(found.shape)}"
        )
    return found
