"""The contract of a model, tested: what shapes do not show, one tiny evaluation does.

`check_shapes` looks at shapes alone. `check_behavior` compiles one program, of one initialization and two images, and
compares what it gives. `check_training` is what every training function asks of a model.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.errors import InputError, first_line

_ACCEPT = "check=False accepts it as it is"


@contextlib.contextmanager
def reported(program: str) -> Iterator[None]:
    """A fault inside a user's program becomes one `InputError` that names the program and says what went wrong.

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
    keys = (getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))) for key in path)
    names = [str(key) for key in keys]
    # The value inside a box, or inside an NNX variable, is not part of the name.
    return "/".join(names[:-1] if len(names) > 1 and names[-1] == "value" else names)


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a tree with their names, in the order of `jax.tree.leaves`."""
    return [(name_path(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def as_arrays(variables: Any) -> Any:
    """Variables with numbers and NumPy arrays as JAX arrays; raises `InputError` for a leaf that is neither."""

    def convert(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
            raise InputError(
                f"model: init must return arrays alone, got {type(leaf).__name__} as {name_path(path) or 'its result'}"
                "; let apply close over what is no array"
            )
        return jnp.asarray(leaf)

    return jax.tree.map_with_path(convert, variables)


def _images(model: Any, count: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count, *model.image_shape), jnp.float32)


def shape_of_variables(model: Any) -> Any:
    """The variables of a model as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))


def check_shapes(model: Any) -> int:
    """The number of logits K; raises `InputError` where shapes show that a model breaks the contract."""
    variables, images = shape_of_variables(model), _images(model, 2)
    try:
        logits = jax.eval_shape(model.apply, variables, images)
    except InputError as error:
        if _takes_one_image(model, variables):
            raise InputError(
                "model: apply takes one image [H, W, C]; it must take images [B, H, W, C] and return logits [B, K]: "
                "give jax.vmap(apply, in_axes=(None, 0))"
            ) from error
        raise
    if getattr(logits, "ndim", None) != 2 or logits.shape[0] != 2:
        got = getattr(logits, "shape", type(logits).__name__)
        raise InputError(f"model: apply must return logits [B, K]; two images {images.shape} gave {got}")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise InputError(f"model: apply must return real floating-point logits, got {logits.dtype}")
    if model.features is not None:
        features = jax.eval_shape(model.features, variables, images)
        if getattr(features, "ndim", None) != 2 or features.shape[0] != 2:
            raise InputError(f"model: features must return [B, F]; two images {images.shape} gave {features}")
        if not jnp.issubdtype(features.dtype, jnp.floating):
            raise InputError(f"model: features must return real floating-point numbers, got {features.dtype}")
    return logits.shape[1]


def _takes_one_image(model: Any, variables: Any) -> bool:
    image = jax.ShapeDtypeStruct(tuple(model.image_shape), jnp.float32)
    with contextlib.suppress(Exception):
        return getattr(jax.eval_shape(model.apply, variables, image), "ndim", None) in (0, 1)
    return False


class _Seen(NamedTuple):
    """What the tiny evaluation gives: logits [2, K] and features [2, F], where there are any, of two images.

    together, again: in one batch, twice. alone: of each in a batch of its own.
    changed: [leaves] whether training mode changed a leaf; empty where there is no training mode.
    """

    together: tuple[jax.Array, ...]
    again: tuple[jax.Array, ...]
    alone: tuple[jax.Array, ...]
    changed: jax.Array


def check_behavior(model: Any, statistics: Callable[[Any], list[bool]] | None = None) -> None:
    """Evaluates two images of one initialization, in one compiled program, and raises `InputError` where

    - the logits of an image depend on its batch, on the size of the batch, or change from call to call;
    - training mode leaves the statistics of a layer as they were, so that nobody has told that layer its mode;
    - training mode changes a leaf that the optimizer changes, too: that change would be lost.

    A model without a training mode is tested in evaluation mode alone.

    Args:
      statistics: which leaves of variables training mode must change, at least one for each layer; by default those of
        the collection "batch_stats".
    """
    variables = shape_of_variables(model)
    trains = _has_training_mode(model, variables)
    functions = [model.apply] if model.features is None else [model.apply, model.features]

    def observe(given: Any, images: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(function(given, images) for function in functions)

    def evaluate(key: jax.Array) -> _Seen:
        init_key, image_key, train_key = jax.random.split(key, 3)
        images = jax.random.normal(image_key, (2, *model.image_shape), jnp.float32)
        given = _off_zero(model, model.init(init_key))
        alone = jax.lax.map(lambda image: tuple(values[0] for values in observe(given, image[None])), images)
        changed = jnp.zeros(0, bool)
        if trains:
            _, updated = model.apply(given, images, train_key, train=True)
            pairs = zip(jax.tree.leaves(given), jax.tree.leaves(updated), strict=True)
            changed = jnp.array([_differs(before, after) for before, after in pairs], bool)
        return _Seen(observe(given, images), observe(given, images), alone, changed)

    # Seconds of optimization would save microseconds here.
    lowered = jax.jit(evaluate).lower(jax.random.key(0))
    seen = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})(jax.random.key(0))
    _check_evaluation(jax.device_get(seen), _rounding(lowered.as_text()))
    if trains:
        _check_updates(model, variables, np.asarray(seen.changed), statistics or _batch_statistics)


def _off_zero(model: Any, variables: Any) -> Any:
    """The variables with a little added to those that are trained: behind a head of zeros nothing would be seen."""

    def shifted(leaf: jax.Array, trained: bool) -> jax.Array:
        if not trained or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return (leaf + 0.01 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(shifted, variables, model.trainable(variables))


def _has_training_mode(model: Any, variables: Any) -> bool:
    """Whether `apply` in training mode returns logits and variables as given; why not is said when it is trained."""
    with contextlib.suppress(InputError):
        check_training(model, 2)
        return True
    return False


def _differs(before: jax.Array, after: jax.Array) -> jax.Array:
    if jnp.issubdtype(before.dtype, jax.dtypes.prng_key):
        before, after = jax.random.key_data(before), jax.random.key_data(after)
    return jnp.any((before != after) & ~((before != before) & (after != after)))  # nan is as it was


def _rounding(program: str) -> float:
    """What batches of other sizes may change in the logits by rounding alone, relative to the largest of them."""
    smallest = next((kind for kind in ("bf16", "f16") if f"x{kind}>" in program), "f32")
    return {"bf16": 0.1, "f16": 0.03, "f32": 1e-3}[smallest]


def _check_evaluation(seen: _Seen, rounding: float) -> None:
    for other, depend in (
        (seen.again, "change from one call to the next: something besides variables and images enters"),
        (seen.alone, "depend on the other images of the batch, or on its size"),
    ):
        for what, left, right in zip(("logits", "features"), seen.together, other, strict=False):
            left, right = left.astype(np.float64), right.astype(np.float64)
            finite = np.isfinite(left)
            largest = np.abs(left[finite]).max(initial=0.0)
            apart = np.abs(np.where(finite, left, 0.0) - np.where(finite, right, 0.0)) > rounding * largest
            if (apart | (finite != np.isfinite(right))).any():
                raise InputError(
                    f"model: the {what} of an image {depend}; in evaluation mode the same image must always give the "
                    f"same (here {_numbers(left[0])} and {_numbers(right[0])}); {_ACCEPT}"
                )


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.4g}" for value in values[:3]) + (", …" if len(values) > 3 else "")


def _batch_statistics(variables: Any) -> list[bool]:
    return [name.startswith("batch_stats/") for name, _ in named_leaves(variables)]


def _check_updates(model: Any, variables: Any, changed: np.ndarray, statistics: Callable[[Any], list[bool]]) -> None:
    names = [name for name, _ in named_leaves(variables)]
    trainable = jax.tree.leaves(model.trainable(variables))
    for name, moved, trained in zip(names, changed, trainable, strict=True):
        if moved and trained:
            raise InputError(
                f"model: training mode itself changes {name}, which is trained: its change would be lost; keep it in "
                f"a collection that is not trained; {_ACCEPT}"
            )
    layers: dict[str, bool] = {}
    for name, moved, statistic in zip(names, changed, statistics(variables), strict=True):
        if statistic:
            layer = name.rpartition("/")[0]
            layers[layer] = layers.get(layer, False) or bool(moved)
    for layer, moved in layers.items():
        if not moved:
            raise InputError(
                f"model: training mode leaves the statistics {layer} as they are, so that layer is not told the mode; "
                f"pass the flag of __call__ on to it; {_ACCEPT}"
            )


def check_training(model: Any, batch_size: int, num_classes: int | None = None) -> None:
    """Raises `InputError` unless a model has a logit for each class and a training mode, and its leaves can be trained.

    That is, `apply(variables, x, key, train=True)` returns logits [B, K] and variables whose leaves have the shapes and
    types they had, and the leaves to be trained are real or complex floating-point numbers.
    """
    if num_classes is not None and model.num_logits != num_classes:
        raise InputError(f"model: needs {num_classes} logits, one for each class; this one has {model.num_logits}")
    must = f"apply(variables, x, key, train=True) must return (logits [B, {model.num_logits}], variables as given)"
    variables, key = shape_of_variables(model), jax.eval_shape(lambda: jax.random.key(0))
    try:
        found = jax.eval_shape(partial(model.apply, train=True), variables, _images(model, batch_size), key)
    except InputError as error:
        raise InputError(f"model: {must}: {str(error).removeprefix('model: ')}") from error
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise InputError(f"model: {must}, got {type(found).__name__}")
    logits, updated = found
    if getattr(logits, "shape", None) != (batch_size, model.num_logits):
        got = getattr(logits, "shape", type(logits).__name__)
        raise InputError(f"model: {must}; {batch_size} images gave logits {got}")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise InputError(f"model: {must}; the logits must be real floating-point numbers, got {logits.dtype}")
    before, after = dict(named_leaves(variables)), dict(named_leaves(updated))
    for name in [*before, *after]:
        given, returned = before.get(name), after.get(name)
        if not _is_alike(given, returned):
            raise InputError(
                f"model: {must}; variable {name} is {_describe(given)} and comes back as {_describe(returned)}"
            )
    if jax.tree.structure(updated) != jax.tree.structure(variables):
        raise InputError(f"model: {must}; they come back in containers of another type")
    check_trainable(model.trainable(variables), variables)


def check_trainable(mask: Any, variables: Any) -> None:
    """Raises `InputError` unless a tree of booleans says for each leaf whether it is trained, and those can be."""
    if jax.tree.structure(mask) != jax.tree.structure(variables):
        raise InputError("trainable: must give one boolean for each leaf of variables, in a tree of the same structure")
    for (name, leaf), trained in zip(named_leaves(variables), jax.tree.leaves(mask), strict=True):
        if not isinstance(trained, bool | np.bool_):
            raise InputError(f"trainable: must give booleans, got {trained!r} for {name}")
        if trained and not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise InputError(
                f"model: {name} is to be trained, but it is {leaf.dtype}: only floating-point numbers can be; keep it "
                'outside of the collection "params", or say so with `trainable`'
            )


def _is_alike(given: Any, returned: Any) -> bool:
    """Whether an update can take the place of a leaf; real numbers may come back in another precision."""
    if given is None or returned is None or given.shape != returned.shape:
        return False
    real = (jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in (given, returned))
    return given.dtype == returned.dtype or all(real)


def _describe(leaf: Any) -> str:
    return "missing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"
