"""What a task of one's own must keep to, tested before its networks are trained."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nad_jax.contract import reported, shape_of_variables
from nad_jax.errors import InputError, first_line
from nad_jax.fitting import SPLITS, Members, Task
from nad_jax.models import Model
from nad_jax.recipe import Recipe


def check_task(model: Model, recipe: Recipe, task: Task, data: Any, member: Members) -> None:
    """Raises `InputError` where a task gives no samples of the model's inputs, has fewer than the
    recipe asks for, or its `loss` or `correct` are not one number for each sample.

    Args:
      data: of the task. member: of one network.
    """
    variables = shape_of_variables(model)
    for split, count in zip(SPLITS, (recipe.num_train, recipe.num_test), strict=True):
        indices, arrays = np.array([0, count - 1]), (data, member.arrays)
        sample = partial(_sample, task, split, indices)
        # JAX would take the last sample again and again where there are too few; NumPy says so.
        try:
            sample(*jax.tree.map(np.asarray, arrays))
        except IndexError as error:
            raise InputError(
                f"recipe: num_{split}={count} asks for more samples than the task has: "
                f"{first_line(error)}"
            ) from error
        except Exception:  # a sample may be written for arrays of JAX alone
            pass
        with reported(f"task: sample({split!r})"):
            samples = jax.eval_shape(sample, *arrays)
        if not isinstance(samples, tuple) or len(samples) != 2:
            raise InputError(f"task: sample must return (x, targets), got {type(samples).__name__}")
        x, targets = samples
        size = int(np.prod(model.image_shape))
        if x.shape[:1] != (2,) or np.prod(x.shape) != 2 * size:
            raise InputError(
                f"task: sample must give inputs [B, {', '.join(map(str, model.image_shape))}] or "
                f"[B, {size}], got shape {x.shape} for B = 2"
            )
        x = jax.ShapeDtypeStruct((2, *model.image_shape), x.dtype)
        outputs = jax.eval_shape(model.apply, variables, x)
        _check_numbers(task, outputs, targets)


def _sample(task: Task, split: str, indices: np.ndarray, data: Any, arrays: Any) -> Any:
    return task.sample(data, split, indices, arrays)


def _check_numbers(task: Task, outputs: jax.ShapeDtypeStruct, targets: Any) -> None:
    labels = jax.tree.leaves(targets)
    default = task.loss is optax.softmax_cross_entropy_with_integer_labels
    if default and not all(jnp.issubdtype(one.dtype, jnp.integer) for one in labels):
        raise InputError(
            f"task: targets are {labels[0].dtype}, but the default loss is cross-entropy "
            "of integer labels [B]; give a loss"
        )
    for name in ("loss", "correct"):
        function = getattr(task, name)
        with reported(f"task: {name}"):
            shape = jax.eval_shape(function, outputs, targets).shape
        if shape != (2,):
            raise InputError(f"task: {name} must be one number for each sample, [B], got {shape}")
