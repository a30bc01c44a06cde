"""The contract of a model, as shapes show it: for evaluation `check_shapes`, for training
`check_training`; and how faults of a user's program are reported. What shapes do not show,
`behavior.check_behavior` evaluates.
"""

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.errors import InputError, check_integer, first_line, real_array


@contextlib.contextmanager
def reported(program: str) -> Iterator[None]:
    """A fault inside a user's program becomes one `InputError` that names the program and says what
    went wrong.

    Faults of the device (`jax.errors.JaxRuntimeError`) are not the user's, and pass.
    """
    try:
        yield
    except (InputError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # a user's program may fail in any way
        raise InputError(f"{program} raised {type(error).__name__}: {first_line(error)}") from error


def name_path(path: tuple[Any, ...]) -> str:
    """The name of a leaf of variables, as in "params/Dense_0/kernel"."""
    # The value inside a box, or inside an NNX variable, is an attribute and not part of the name.
    if len(path) > 1 and getattr(path[-1], "name", None) == "value":
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their names, in the order of `jax.tree.leaves`."""
    return [(name_path(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def as_arrays(variables: Any) -> Any:
    """Variables with numbers and NumPy arrays as JAX arrays; raises `InputError` for a leaf that is
    neither.
    """

    def convert(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
            raise InputError(
                f"model: init must return arrays alone, got {type(leaf).__name__} as "
                f"{name_path(path) or 'its result'}"
                "; let apply close over what is no array"
            )
        return jnp.asarray(leaf)

    return jax.tree.map_with_path(convert, variables)


def input_batch(model: Any, count: int) -> jax.ShapeDtypeStruct:
    """The shape and type of a batch of inputs, [count, *input_shape]."""
    return jax.ShapeDtypeStruct((count, *model.input_shape), jnp.float32)


def shape_of_variables(model: Any) -> Any:
    """The variables of a model as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))


def check_shapes(model: Any) -> int:
    """The number of logits K; raises `InputError` where shapes show that a model breaks the
    contract.
    """
    variables, inputs = shape_of_variables(model), input_batch(model, 2)
    try:
        logits = jax.eval_shape(model.apply, variables, inputs)
    except InputError as error:
        if _takes_one_input(model, variables):
            raise InputError(
                f"model: apply takes one input of shape {model.input_shape}; it must take inputs "
                f"{inputs.shape} and return logits [B, K]: give jax.vmap(apply, in_axes=(None, 0))"
            ) from error
        raise
    _check_rows("apply must return logits [B, K]", "logits", logits, inputs)
    if model.features is not None:
        features = jax.eval_shape(model.features, variables, inputs)
        _check_rows("features must return [B, F]", "features", features, inputs)
    return logits.shape[1]


def _check_rows(
    must: str, what: str, rows: Any, inputs: jax.ShapeDtypeStruct, width: int | None = None
) -> None:
    """Raises `InputError` unless there is a row of real numbers for each input, of that width where
    it is known.
    """
    shape = getattr(rows, "shape", ())
    if len(shape) != 2 or shape != (inputs.shape[0], width or shape[1]):
        got = getattr(rows, "shape", type(rows).__name__)
        raise InputError(f"model: {must}; inputs {inputs.shape} gave {what} {got}")
    if not jnp.issubdtype(rows.dtype, jnp.floating):
        raise InputError(f"model: {must}: real floating-point {what}, got {rows.dtype}")


def _takes_one_input(model: Any, variables: Any) -> bool:
    one = jax.ShapeDtypeStruct(model.input_shape, jnp.float32)
    with contextlib.suppress(Exception):
        return getattr(jax.eval_shape(model.apply, variables, one), "ndim", None) in (0, 1)
    return False


def check_inputs(name: str, model: Any, x: Any) -> jax.Array:
    """Inputs [N, *input_shape] of a model, also given as [N, D], in floating point; raises
    `InputError` for others.
    """
    x, size = real_array(name, x), math.prod(model.input_shape)
    flat = x.reshape(len(x), math.prod(x.shape[1:])) if x.ndim > 1 else x
    return as_floating(real_array(name, flat, f"[N, {size}]")).reshape(-1, *model.input_shape)


def as_floating(array: Any) -> jax.Array:
    """An array of real numbers in its own precision, integers and truth values in float32: what is
    computed beside them takes their type.
    """
    array = jnp.asarray(array)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.float32)


def choose_logit(model: Any, logit: int | None) -> int:
    """Which of the outputs of a model; raises `InputError` where there are several and None is
    given, and for one that there is not.
    """
    if logit is None and model.num_logits != 1:
        raise InputError(f"logit: the model has {model.num_logits} logits; choose one")
    return 0 if logit is None else check_integer("logit", logit, 0, model.num_logits - 1)


def check_training(model: Any, batch_size: int, num_classes: int | None = None) -> None:
    """Raises `InputError` unless a model has a logit for each class and a training mode, and its
    leaves can be trained.

    That is, `apply(variables, x, key, train=True)` returns logits [B, K] and variables whose leaves
    have the shapes and types they had, and the leaves to be trained are real or complex
    floating-point numbers.
    """
    if num_classes is not None and model.num_logits != num_classes:
        raise InputError(
            f"model: needs {num_classes} logits, one for each class; this one has "
            f"{model.num_logits}"
        )
    must = (
        "apply(variables, x, key, train=True) must return "
        f"(logits [B, {model.num_logits}], variables as given)"
    )
    variables, key = shape_of_variables(model), jax.eval_shape(lambda: jax.random.key(0))
    inputs = input_batch(model, batch_size)
    try:
        found = jax.eval_shape(partial(model.apply, train=True), variables, inputs, key)
    except InputError as error:
        raise InputError(f"model: {must}: {str(error).removeprefix('model: ')}") from error
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise InputError(f"model: {must}, got {type(found).__name__}")
    logits, updated = found
    _check_rows(must, "logits", logits, inputs, model.num_logits)
    before, after = dict(named_leaves(variables)), dict(named_leaves(updated))
    for name in [*before, *after]:
        given, returned = before.get(name), after.get(name)
        if not _is_alike(given, returned):
            given, returned = (
                "missing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"
                for leaf in (given, returned)
            )
            raise InputError(
                f"model: {must}; variable {name} is {given} and comes back as {returned}"
            )
    if jax.tree.structure(updated) != jax.tree.structure(variables):
        raise InputError(f"model: {must}; they come back in containers of another type")
    check_trainable(model.trainable(variables), variables)


def check_trainable(mask: Any, variables: Any) -> None:
    """Raises `InputError` unless a tree of booleans says for each leaf whether it is trained, and
    those can be.
    """
    if jax.tree.structure(mask) != jax.tree.structure(variables):
        raise InputError(
            "trainable: must give one boolean for each leaf of variables, in a tree of the same "
            "structure"
        )
    for (name, leaf), trained in zip(named_leaves(variables), jax.tree.leaves(mask), strict=True):
        if not isinstance(trained, bool | np.bool_):
            raise InputError(f"trainable: must give booleans, got {trained!r} for {name}")
        if trained and not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise InputError(
                f"model: {name} is to be trained, but it is {leaf.dtype}: only floating-point "
                "numbers can be; keep it "
                'outside of the collection "params", or say so with `trainable`'
            )


def _is_alike(given: Any, returned: Any) -> bool:
    """Whether an update can take the place of a leaf; real numbers may come back in another
    precision.
    """
    if given is None or returned is None or given.shape != returned.shape:
        return False
    real = (jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in (given, returned))
    return given.dtype == returned.dtype or all(real)
