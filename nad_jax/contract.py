"""The contract of a model, tested: what shapes do not show, one tiny evaluation does.

`check_shapes` looks at shapes alone. `check_behavior` compiles one program, of one initialization
and two images, and compares what it gives. `check_training` is what every training function asks of
a model.
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
    return "/".join(
        str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path
    )


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


def _images(model: Any, count: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((count, *model.image_shape), jnp.float32)


def shape_of_variables(model: Any) -> Any:
    """The variables of a model as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))


def check_shapes(model: Any) -> int:
    """The number of logits K; raises `InputError` where shapes show that a model breaks the
    contract.
    """
    variables, images = shape_of_variables(model), _images(model, 2)
    try:
        logits = jax.eval_shape(model.apply, variables, images)
    except InputError as error:
        if _takes_one_image(model, variables):
            raise InputError(
                "model: apply takes one image [H, W, C]; it must take images [B, H, W, C] and "
                "return logits [B, K]: "
                "give jax.vmap(apply, in_axes=(None, 0))"
            ) from error
        raise
    if getattr(logits, "ndim", None) != 2 or logits.shape[0] != 2:
        got = getattr(logits, "shape", type(logits).__name__)
        raise InputError(
            f"model: apply must return logits [B, K]; two images {images.shape} gave {got}"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise InputError(f"model: apply must return real floating-point logits, got {logits.dtype}")
    if model.features is not None:
        features = jax.eval_shape(model.features, variables, images)
        if getattr(features, "ndim", None) != 2 or features.shape[0] != 2:
            raise InputError(
                f"model: features must return [B, F]; two images {images.shape} gave {features}"
            )
        if not jnp.issubdtype(features.dtype, jnp.floating):
            raise InputError(
                f"model: features must return real floating-point numbers, got {features.dtype}"
            )
    return logits.shape[1]


def _takes_one_image(model: Any, variables: Any) -> bool:
    image = jax.ShapeDtypeStruct(tuple(model.image_shape), jnp.float32)
    with contextlib.suppress(Exception):
        return getattr(jax.eval_shape(model.apply, variables, image), "ndim", None) in (0, 1)
    return False


class _Seen(NamedTuple):
    """What the tiny evaluation gives: logits [2, K] and features [2, F], where there are any, of
    two images.

    together, again: in one batch, twice.
    alone: [4, …] of each in a batch of its own, and of the same changed in their last digits.
    mixed: whether what one image gives has a derivative in another one.
    unsettled: [leaves] whether initialization gives another value where it is shown other images;
      empty: not asked.
    changed: [leaves] whether training mode changed a leaf; empty where there is no training mode.
    """

    together: tuple[jax.Array, ...]
    again: tuple[jax.Array, ...]
    alone: tuple[jax.Array, ...]
    mixed: jax.Array
    unsettled: jax.Array
    changed: jax.Array


class Probes(NamedTuple):
    """What the test of a model can use, beyond its functions, where an adapter knows more.

    statistics: which leaves of variables training mode must change, at least one for each layer; by
      default those of the collection "batch_stats".
    called_twice: the logits of a second call of the same module, which keeps what the first one has
      left in it.
    init_at: the variables of a key where initialization is shown other images.
    """

    statistics: Callable[[Any], list[bool]] | None = None
    called_twice: Callable[[Any, jax.Array], jax.Array] | None = None
    init_at: Callable[[jax.Array, jax.Array], Any] | None = None


def check_behavior(model: Any, probes: Probes | None = None) -> None:
    """Evaluates two images of one initialization, in one compiled program, and raises `InputError`
    where

    - the logits of an image depend on its batch (by more than rounding, or by a derivative that is
      not zero), on the size of the batch, or change from call to call;
    - initialization depends on the images that it is shown;
    - training mode leaves the statistics of a layer as they were, so that nobody has told that
      layer its mode;
    - training mode changes a leaf that the optimizer changes, too: that change would be lost.

    A model without a training mode is tested in evaluation mode alone.
    """
    probes = probes or Probes()
    variables = shape_of_variables(model)
    trains = _has_training_mode(model)
    functions = [model.apply] if model.features is None else [model.apply, model.features]

    def observe(given: Any, images: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(function(given, images) for function in functions)

    def first_of(images: jax.Array, given: Any) -> jax.Array:
        return sum(jnp.sum(values[0].astype(jnp.float32)) for values in observe(given, images))

    differentiable = _is_differentiable(first_of, _images(model, 2), variables)

    def evaluate(key: jax.Array) -> _Seen:
        init_key, image_key, train_key = jax.random.split(key, 3)
        images = jax.random.normal(image_key, (2, *model.image_shape), jnp.float32)
        drawn = model.init(init_key)
        given, unsettled, mixed = _off_zero(model, drawn), jnp.zeros(0, bool), jnp.zeros((), bool)
        if probes.init_at is not None:
            unsettled = _differences(drawn, probes.init_at(init_key, images[:1]))
        if differentiable:
            other = jax.grad(first_of)(images, given)[1]
            mixed = jnp.any((other != 0) & jnp.isfinite(other))
        nearby = jnp.concatenate([images, images * (1 + 2.0**-21)])
        alone = jax.lax.map(
            lambda image: tuple(values[0] for values in observe(given, image[None])), nearby
        )
        changed = jnp.zeros(0, bool)
        if trains:
            _, updated = model.apply(given, images, train_key, train=True)
            changed = _differences(given, updated)
        again = observe(given, images)
        if probes.called_twice is not None:
            again = (probes.called_twice(given, images), *again[1:])
        return _Seen(observe(given, images), again, alone, mixed, unsettled, changed)

    with jax.default_matmul_precision(
        "highest"
    ):  # the defaults of accelerators round as batches of other sizes do not
        lowered = jax.jit(evaluate).lower(jax.random.key(0))
    # It runs once: there is nothing that optimization could pay for.
    seen = lowered.compile(compiler_options=_quick_options())(jax.random.key(0))
    _check_evaluation(jax.device_get(seen), _rounding(lowered.as_text()))
    trained = jax.tree.leaves(model.trainable(variables))
    for (name, _), unsettled, mine in zip(
        named_leaves(variables), np.asarray(seen.unsettled), trained, strict=False
    ):
        if unsettled and mine:
            raise InputError(
                f"model: initialization of {name} depends on the image it is shown, which is one "
                "of zeros here: "
                f"draw it from the key alone; {_ACCEPT}"
            )
    if trains:
        _check_updates(
            model, variables, np.asarray(seen.changed), probes.statistics or _batch_statistics
        )


def _quick_options() -> dict[str, Any]:
    """Options of XLA for a program that runs once."""
    options: dict[str, Any] = {"xla_backend_optimization_level": 0}
    if jax.default_backend() == "cpu" and jax.__version_info__ < (
        0,
        11,
    ):  # later versions cannot do without
        options["xla_cpu_use_fusion_emitters"] = False
    return options


def _is_differentiable(function: Callable, images: jax.ShapeDtypeStruct, variables: Any) -> bool:
    with contextlib.suppress(
        InputError
    ):  # of a callback, say; central differences need no derivative
        jax.eval_shape(jax.grad(function), images, variables)
        return True
    return False


def _off_zero(model: Any, variables: Any) -> Any:
    """The variables with a little added to those that are trained: behind a head of zeros nothing
    would be seen.
    """

    def shifted(leaf: jax.Array, trained: bool) -> jax.Array:
        if not trained or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return (leaf + 0.01 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(shifted, variables, model.trainable(variables))


def _has_training_mode(model: Any) -> bool:
    """Whether `apply` in training mode returns logits and variables as given; why not is said when
    it is trained.
    """
    with contextlib.suppress(InputError):
        check_training(model, 2)
        return True
    return False


def _differences(before: Any, after: Any) -> jax.Array:
    """Whether the leaves of two trees differ: [leaves]."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return jnp.array([_differs(*pair) for pair in pairs], bool)


def _differs(before: jax.Array, after: jax.Array) -> jax.Array:
    if jnp.issubdtype(before.dtype, jax.dtypes.prng_key):
        before, after = jax.random.key_data(before), jax.random.key_data(after)
    return jnp.any((before != after) & ~((before != before) & (after != after)))  # nan is as it was


def _rounding(program: str) -> float:
    """What batches of other sizes may change in the logits by rounding alone, relative to the
    largest of them.
    """
    smallest = next((kind for kind in ("bf16", "f16") if f"x{kind}>" in program), "f32")
    return {"bf16": 0.1, "f16": 0.03, "f32": 1e-3}[smallest]


def _check_evaluation(seen: _Seen, rounding: float) -> None:
    alone, nudged = (
        tuple(values[part] for values in seen.alone) for part in (slice(2), slice(2, 4))
    )
    with np.errstate(invalid="ignore"):  # of what is not finite
        differences = [
            np.subtract(*pair, dtype=np.float64) for pair in zip(alone, nudged, strict=True)
        ]
    changes = [np.nan_to_num(np.abs(difference)).max() for difference in differences]
    for other, depend in (
        (
            seen.again,
            "change from one call to the next: something besides variables and images enters",
        ),
        (alone, "depend on the other images of the batch, or on its size"),
    ):
        for what, *pair, change in zip(
            ("logits", "features"), seen.together, other, changes, strict=False
        ):
            left, right = (array.astype(np.float64) for array in pair)
            finite = np.isfinite(left)
            one, two = (np.where(finite, array, 0.0) for array in (left, right))
            # A chaotic network amplifies what batches of other sizes round, as it does a change of
            # the last digits.
            apart = np.abs(one - two) > rounding * np.abs(one).max() + 10 * change
            if (apart | (finite != np.isfinite(right))).any():
                raise InputError(
                    f"model: the {what} of an image {depend}; in evaluation mode the same image "
                    "must always give the "
                    f"same (here {_numbers(left[0])} and {_numbers(right[0])}); {_ACCEPT}"
                )
    if seen.mixed:
        raise InputError(
            "model: the logits of an image depend on the other images of the batch: their "
            "derivative in another image "
            f"is not zero; {_ACCEPT}"
        )


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.7g}" for value in values[:3]) + (", …" if len(values) > 3 else "")


def _batch_statistics(variables: Any) -> list[bool]:
    return [name.startswith("batch_stats/") for name, _ in named_leaves(variables)]


def _check_updates(
    model: Any, variables: Any, changed: np.ndarray, statistics: Callable[[Any], list[bool]]
) -> None:
    names = [name for name, _ in named_leaves(variables)]
    trainable = jax.tree.leaves(model.trainable(variables))
    for name, moved, trained in zip(names, changed, trainable, strict=True):
        if moved and trained:
            raise InputError(
                f"model: training mode itself changes {name}, which is trained: its change would "
                "be lost; keep it in "
                f"a collection that is not trained; {_ACCEPT}"
            )
    layers: dict[str, bool] = {}
    for name, moved, statistic in zip(names, changed, statistics(variables), strict=True):
        if statistic:
            layer = name.rpartition("/")[0] or name
            layers[layer] = layers.get(layer, False) or bool(moved)
    for layer, moved in layers.items():
        if not moved:
            raise InputError(
                f"model: training mode leaves the statistics {layer} as they are: that layer is "
                "not told the mode (by "
                f"the flag of __call__, say), or meant to stay frozen; {_ACCEPT}"
            )


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
    must = f"apply(variables, x, key, train=True) must return (logits [B, {model.num_logits}], variables as given)"
    variables, key = shape_of_variables(model), jax.eval_shape(lambda: jax.random.key(0))
    try:
        found = jax.eval_shape(
            partial(model.apply, train=True), variables, _images(model, batch_size), key
        )
    except InputError as error:
        raise InputError(f"model: {must}: {str(error).removeprefix('model: ')}") from error
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise InputError(f"model: {must}, got {type(found).__name__}")
    logits, updated = found
    if getattr(logits, "shape", None) != (batch_size, model.num_logits):
        got = getattr(logits, "shape", type(logits).__name__)
        raise InputError(f"model: {must}; {batch_size} images gave logits {got}")
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise InputError(
            f"model: {must}; the logits must be real floating-point numbers, got {logits.dtype}"
        )
    before, after = dict(named_leaves(variables)), dict(named_leaves(updated))
    for name in [*before, *after]:
        given, returned = before.get(name), after.get(name)
        if not _is_alike(given, returned):
            raise InputError(
                f"model: {must}; variable {name} is {_describe(given)} and comes back as "
                f"{_describe(returned)}"
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


def _describe(leaf: Any) -> str:
    return "missing" if leaf is None else f"{leaf.dtype}{list(leaf.shape)}"
