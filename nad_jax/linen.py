"""Models from Flax Linen modules."""

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict, freeze

from nad_jax.call_arguments import describe_arguments, make_call_arguments, mode_flags
from nad_jax.contract import reported
from nad_jax.ensemble import named_key
from nad_jax.errors import InputError, check_choice, check_image_shape
from nad_jax.initializers import flax_readout_variance, reference_initialization, reference_readout_variance
from nad_jax.models import Model, complete_model

INITIALIZATIONS = ("reference", "flax")


class _DenseCall(NamedTuple):
    module: nn.Dense
    inputs: jax.Array
    outputs: jax.Array


class _Module(NamedTuple):
    """A Linen module as functions of its variables.

    init(key) -> variables. evaluate(variables, x) -> logits. train(variables, x, rngs, mutable) -> (logits, updated).
    describe(): the shapes of its variables, and every module by its path; to be called once, before `init` is traced.
    record_dense(variables, x) -> (logits, every call of an `nn.Dense`).
    """

    init: Callable[[jax.Array], Any]
    evaluate: Callable[[Any, jax.Array], jax.Array]
    train: Callable[..., Any]
    describe: Callable[[], tuple[Any, dict[tuple[str, ...], nn.Module]]]
    record_dense: Callable[[Any, jax.Array], tuple[jax.Array, list[_DenseCall]]]


def _is_plain_dense(module: nn.Module) -> bool:
    """Whether a module multiplies by its kernel and adds its bias: a subclass may have another product."""
    return type(module) is nn.Dense and module.dot_general is None and module.dot_general_cls is None


def _with_mode(module: nn.Module, train: bool) -> nn.Module:
    """The module in a mode, where that is an attribute of it instead of an argument of its `__call__`."""
    taken = inspect.signature(type(module).__call__).parameters
    flags = {
        name: value
        for name, value in mode_flags(train).items()
        if name not in taken and isinstance(getattr(module, name, None), bool)
    }
    return module.clone(**flags) if flags else module


def _make_module(
    module: nn.Module,
    image_shape: tuple[int, int, int],
    arguments: Mapping[str, Any] | None,
    train_arguments: Mapping[str, Any] | None,
) -> _Module:
    name = f"module: {type(module).__name__}"
    call = make_call_arguments(type(module), arguments, train_arguments)
    modules = {train: _with_mode(module, train) for train in (False, True)}
    image = jnp.zeros((1, *image_shape), jnp.float32)

    def init(key: jax.Array) -> Any:
        positional, keyword = call(False)
        with reported(f"{name}.init"):
            return modules[False].init({"params": key}, image, *positional, **keyword)

    def evaluate(variables: Any, x: jax.Array) -> jax.Array:
        positional, keyword = call(False)
        with reported(f"{name}.__call__ in evaluation mode"):
            return modules[False].apply(variables, x, *positional, **keyword)

    def train(variables: Any, x: jax.Array, rngs: dict[str, jax.Array], mutable: list[str]) -> Any:
        positional, keyword = call(True)
        with reported(f"{name}.__call__ in training mode"):
            return modules[True].apply(variables, x, *positional, rngs=rngs, mutable=mutable, **keyword)

    def describe() -> tuple[Any, dict[tuple[str, ...], nn.Module]]:
        owners: dict[tuple[str, ...], nn.Module] = {}

        def record(next_function: Callable, args: Any, kwargs: Any, context: Any) -> Any:
            if context.module.scope is not None:  # an unbound module, whose path is that of the whole, owns nothing
                owners.setdefault(context.module.path, context.module)
            return next_function(*args, **kwargs)

        with nn.intercept_methods(record):
            return jax.eval_shape(init, jax.random.key(0)), owners

    def record_dense(variables: Any, x: jax.Array) -> tuple[jax.Array, list[_DenseCall]]:
        """Logits in evaluation mode, and every call of an `nn.Dense` on the way, in order."""
        calls: list[_DenseCall] = []

        def record(next_function: Callable, args: Any, kwargs: Any, context: Any) -> Any:
            outputs = next_function(*args, **kwargs)
            if _is_plain_dense(context.module) and context.method_name == "__call__":
                calls.append(_DenseCall(context.module, args[0], outputs))
            elif isinstance(context.module, nn.WeightNorm | nn.SpectralNorm):
                calls.clear()  # the layer inside multiplies by a normalized kernel, not by the one that was drawn
            return outputs

        with nn.intercept_methods(record):
            logits = evaluate(variables, x)
        return logits, calls

    return _Module(init, evaluate, train, describe, record_dense)


def _readout(logits: jax.Array, calls: list[_DenseCall]) -> _DenseCall | None:
    """The call whose output is the logits, if it is a layer used once on flat features."""
    if not calls or calls[-1].outputs is not logits or calls[-1].inputs.ndim != 2:
        return None
    return calls[-1] if sum(call.module.path == calls[-1].module.path for call in calls) == 1 else None


_PATCHING = threading.Lock()


@contextlib.contextmanager
def _recorded_streams(names: dict[str, None]) -> Iterator[None]:
    """Adds to `names` every random stream that a module asks for, or asks whether it is there.

    `nn.intercept_methods` does not see these two methods of the base class, so they are replaced for the while.
    """
    make_rng, has_rng = nn.Module.make_rng, nn.Module.has_rng

    def recorded_make_rng(self: nn.Module, name: str = "params") -> jax.Array:
        names[name] = None
        return make_rng(self, name)

    def recorded_has_rng(self: nn.Module, name: str) -> bool:
        names[name] = None
        return has_rng(self, name)

    with _PATCHING:
        nn.Module.make_rng, nn.Module.has_rng = recorded_make_rng, recorded_has_rng
        try:
            yield
        finally:
            nn.Module.make_rng, nn.Module.has_rng = make_rng, has_rng


def _without(variables: Mapping[str, Any], collections: tuple[str, ...]) -> Mapping[str, Any]:
    """The variables without some collections, in a container of the same type."""
    if not collections:
        return variables
    kept = {name: variables[name] for name in variables if name not in collections}
    return freeze(kept) if isinstance(variables, FrozenDict) else kept


def _state(variables: Mapping[str, Any]) -> list[str]:
    return [name for name in variables if name != "params"]


def _find_streams(module: _Module, shapes: Any, images: jax.ShapeDtypeStruct) -> tuple[str, ...]:
    """The random streams that training mode asks for. Where it fails for another reason, training it will say so."""
    names: dict[str, None] = {}
    while True:
        known = tuple(names)

        def trace(variables: Any, x: jax.Array, known: tuple[str, ...] = known) -> Any:
            return module.train(variables, x, _make_rngs(jax.random.key(0), known), _state(shapes))

        with contextlib.suppress(InputError), _recorded_streams(names):
            jax.eval_shape(trace, shapes, images)
        if tuple(names) == known:
            return known


def _make_rngs(key: jax.Array, streams: tuple[str, ...]) -> dict[str, jax.Array]:
    """A key for each stream: that of "dropout" is the key itself."""
    return {name: key if name == "dropout" else named_key(key, name) for name in streams}


def _find_sown(module: _Module, shapes: Any, images: jax.ShapeDtypeStruct, streams: tuple[str, ...]) -> tuple[str, ...]:
    """The collections that a module writes and never reads: it runs in both modes without them."""

    def runs_without(name: str) -> bool:
        left = _without(shapes, (name,))

        def train(variables: Any, x: jax.Array) -> Any:
            return module.train(variables, x, _make_rngs(jax.random.key(0), streams), _state(left))

        with contextlib.suppress(InputError):
            jax.eval_shape(module.evaluate, left, images)
            jax.eval_shape(train, left, images)
            return True
        return False

    return tuple(name for name in _state(shapes) if runs_without(name))


def make_linen_model(
    module: nn.Module,
    image_shape: tuple[int, int, int],
    initialization: str = "flax",
    readout_variance: float | None = None,
    reference_convolution: str = "uniform",
    symmetries: tuple[str, ...] = (),
    arguments: Mapping[str, Any] | None = None,
    train_arguments: Mapping[str, Any] | None = None,
    streams: tuple[str, ...] | None = None,
) -> Model:
    """`from_linen` without its checks; `streams` are the random streams where they are known, and nothing is sown."""
    if not isinstance(module, nn.Module):
        raise InputError(f"module: must be an instance of a Linen module, got {module!r}")
    image_shape = check_image_shape(image_shape)
    check_choice("initialization", initialization, INITIALIZATIONS)
    functions = _make_module(module, image_shape, arguments, train_arguments)
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    (shapes, owners), sown = functions.describe(), ()
    if streams is None:
        streams = _find_streams(functions, shapes, images)
        sown = _find_sown(functions, shapes, images, streams)
        shapes = _without(shapes, sown)

    def init_flax(key: jax.Array) -> Any:
        return _without(functions.init(key), sown)

    init = init_flax
    if initialization == "reference":
        init = reference_initialization(shapes, owners, reference_convolution)

    def apply(variables: Any, x: jax.Array, key: jax.Array | None = None, train: bool = False) -> Any:
        if not train:
            return functions.evaluate(variables, x)
        rngs = {} if key is None else _make_rngs(key, streams)
        logits, updated = functions.train(variables, x, rngs, _state(variables))
        updated = {**variables, **updated}
        return logits, freeze(updated) if isinstance(variables, FrozenDict) else updated

    def features(variables: Any, x: jax.Array) -> jax.Array:
        return _readout(*functions.record_dense(variables, x)).inputs

    found: list[_DenseCall | None] = []

    def trace(variables: Any, x: jax.Array) -> jax.Array:
        logits, calls = functions.record_dense(variables, x)
        found.append(_readout(logits, calls))
        return logits

    jax.eval_shape(trace, shapes, images)
    readout = found[0]
    if readout is not None and readout_variance is None:
        num_features = readout.inputs.shape[-1]
        if initialization == "reference":
            readout_variance = reference_readout_variance(num_features)
        elif readout.module.kernel_init is nn.Dense.kernel_init:
            readout_variance = flax_readout_variance(num_features)
    return Model(
        init,
        apply,
        image_shape,
        features=features if readout else None,
        readout_variance=readout_variance,
        description={
            "model": type(module).__name__,
            "initialization": initialization,
            **describe_arguments(arguments, train_arguments),
        },
        symmetries=symmetries,
    )


def from_linen(
    module: nn.Module,
    image_shape: tuple[int, int, int],
    initialization: str = "flax",
    readout_variance: float | None = None,
    reference_convolution: str = "uniform",
    symmetries: tuple[str, ...] = (),
    arguments: Mapping[str, Any] | None = None,
    train_arguments: Mapping[str, Any] | None = None,
    check: bool = True,
) -> Model:
    """A model from a Linen module: `__call__(x)` or `__call__(x, train)` maps images [B, H, W, C] to logits [B, K].

    The mode is passed under the name that `__call__` gives it, one of `call_arguments.TRAINING_FLAGS` or
    `EVALUATION_FLAGS`, or set where it is an attribute of that name. Every random stream that training asks for has a
    key of its own. Collections that the module writes and never reads (`sow`) are no variables of the model.

    The features are found by themselves: they are the input of the `nn.Dense` whose output is returned. A module
    that ends in anything else, a subclass of `nn.Dense` included, has none (`features` is None).

    Args:
      module: the module.
      image_shape: (H, W, C) of one input.
      initialization: "reference" (PyTorch-default, see `initializers`) or "flax" (the module's own).
      readout_variance: τ² of the last layer's weights. Known by itself under "reference", and under "flax" for a
        layer with Flax's default kernel initializer; otherwise state it to marginalize.
      reference_convolution: passed to `initializers.reference_initialization`.
      symmetries: as in `from_functions`.
      arguments: values of all further arguments of `__call__`, by name; those with a default, too.
      train_arguments: the values that differ in training mode.
      check: as in `from_functions`.

    Raises:
      InputError: where the module raises or breaks the contract (see `contract.check_behavior`), an argument of
        `__call__` is not known, or the reference initialization does not cover a variable.
    """
    model = make_linen_model(
        module, image_shape, initialization, readout_variance, reference_convolution, symmetries, arguments,
        train_arguments,
    )  # fmt: skip
    return complete_model(model._replace(description={**model.description, "checked": check}), check)
