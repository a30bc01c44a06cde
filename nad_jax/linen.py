"""Models from Flax Linen modules."""

import contextlib
import dataclasses
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict, freeze

from nad_jax.behavior import Probes
from nad_jax.call_arguments import Values, describe_arguments, make_call_arguments, mode_flags
from nad_jax.contract import reported
from nad_jax.convolution import resolve_convolution
from nad_jax.ensemble import named_key
from nad_jax.errors import InputError, check_input_shape, problems
from nad_jax.hyperparameters import linen_hyperparameters
from nad_jax.initializers import (
    Owners,
    check_initialization,
    find_law,
    make_initialization,
    weight_variance,
)
from nad_jax.models import Model, complete_model
from nad_jax.pooling import TooSmall, name_smallest
from nad_jax.renamed import takes_input_shape
from nad_jax.substitution import substituted


class _DenseCall(NamedTuple):
    module: nn.Dense
    kernel: jax.Array
    inputs: jax.Array
    outputs: jax.Array

    def variance(self, initialization: str) -> float | None:
        """τ² of its weights, where the initialization settles it."""
        if initialization == "flax" and self.module.kernel_init is not nn.Dense.kernel_init:
            return None
        return weight_variance(initialization, *self.kernel.shape)


def _own_flags(module: nn.Module) -> set[str]:
    """The mode flags that are attributes of a module, and no arguments of its `__call__` that must
    be given.
    """
    parameters = inspect.signature(type(module).__call__).parameters
    fields = {field.name for field in dataclasses.fields(module) if field.init}
    return {
        name
        for name in fields & set(mode_flags(True))
        if isinstance(getattr(module, name), bool)
        and (name not in parameters or parameters[name].default is None)
    }


class _Module:
    """A Linen module as functions of its variables."""

    def __init__(
        self, module: nn.Module, arguments: Values, train_arguments: Values, convolution: str
    ) -> None:
        own = _own_flags(module)
        self._convolution = convolution
        self._name = f"module: {type(module).__name__}"
        self._call = make_call_arguments(type(module), arguments, train_arguments, left=own)
        self._modules = {
            train: module.clone(**{flag: mode_flags(train)[flag] for flag in own})
            if own
            else module
            for train in (False, True)
        }

    def init(self, key: jax.Array, x: jax.Array) -> Any:
        positional, keyword = self._call(False)
        with reported(f"{self._name}.init"), substituted(self._convolution):
            return self._modules[False].init({"params": key}, x, *positional, **keyword)

    def evaluate(self, variables: Any, x: jax.Array) -> jax.Array:
        positional, keyword = self._call(False)
        with reported(f"{self._name}.__call__ in evaluation mode"), substituted(self._convolution):
            return self._modules[False].apply(variables, x, *positional, **keyword)

    def train(
        self, variables: Any, x: jax.Array, key: jax.Array | None, streams: Iterable[str]
    ) -> tuple[jax.Array, Mapping[str, Any]]:
        """Logits, and the collections that change. Every stream has a key of its own: that of
        "dropout" is the key itself.
        """
        names = () if key is None else streams
        rngs = {name: key if name == "dropout" else named_key(key, name) for name in names}
        positional, keyword = self._call(True)
        with reported(f"{self._name}.__call__ in training mode"), substituted(self._convolution):
            return self._modules[True].apply(
                variables, x, *positional, rngs=rngs, mutable=_state(variables), **keyword
            )

    def describe(self, x: jax.Array) -> tuple[Any, Owners]:
        """The shapes of its variables, and every module by its path."""
        owners: Owners = {}

        def record(next_function: Callable, args: Any, kwargs: Any, context: Any) -> Any:
            module = context.module
            # An unbound module, whose path is that of the whole, owns nothing.
            if module.scope is not None:
                first = owners.setdefault(module.path, module)
                shared = module.scope is first.scope  # as `nn.share_scope` has it
                if shared and find_law(first) is None and find_law(module) is not None:
                    owners[module.path] = module
            return next_function(*args, **kwargs)

        with nn.intercept_methods(record):
            return jax.eval_shape(lambda key: self.init(key, x), jax.random.key(0)), owners

    def readout(self, variables: Any, x: jax.Array) -> _DenseCall | None:
        """The call of an `nn.Dense` whose output is the logits in evaluation mode, if it is a layer
        used once on flat features, with the kernel as stored.
        """
        calls: list[_DenseCall] = []

        def record(next_function: Callable, args: Any, kwargs: Any, context: Any) -> Any:
            outputs, module = next_function(*args, **kwargs), context.module
            # It multiplies by its kernel and adds its bias: a subclass may have another product.
            plain = (
                type(module) is nn.Dense and module.dot_general is module.dot_general_cls is None
            )
            if plain and context.method_name == "__call__":
                kernel = nn.unbox(module.get_variable("params", "kernel"))
                calls.append(_DenseCall(module, kernel, args[0], outputs))
            elif isinstance(module, nn.WeightNorm | nn.SpectralNorm):
                # The layer inside multiplies by a normalized kernel, not by the one that was drawn.
                calls.clear()
            return outputs

        with nn.intercept_methods(record):
            logits = self.evaluate(variables, x)
        if not calls or calls[-1].outputs is not logits or calls[-1].inputs.ndim != 2:
            return None
        last, stored = calls[-1], variables["params"]
        for name in (*last.module.path, "kernel"):
            stored = stored.get(name) if isinstance(stored, Mapping) else None
        if nn.unbox(stored) is not last.kernel:  # nn.map_variables stands between
            return None
        return last if sum(call.module.path == last.module.path for call in calls) == 1 else None


_WATCHING = threading.Lock()


class _Asked(NamedTuple):
    """What a module asks for while it is traced: names of random streams, and of collections that
    it sows into.
    """

    streams: dict[str, None]
    sown: dict[str, None]


# The methods by which modules ask, each with a field of `_Asked` and the argument that goes there.
_ASKING = {
    "make_rng": ("streams", "name"),
    "has_rng": ("streams", "name"),
    "sow": ("sown", "col"),
    "perturb": ("sown", "collection"),
}


@contextlib.contextmanager
def _watched(asked: _Asked) -> Iterator[None]:
    """Adds to `asked` what modules of this thread ask for.

    `nn.intercept_methods` does not see these methods of the base class, so they are replaced for
    the while.
    """
    thread = threading.get_ident()

    def watching(method: Callable, kind: str, argument: str) -> Callable:
        signature = inspect.signature(method)

        def watch(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == thread:
                call = signature.bind(*args, **kwargs)
                call.apply_defaults()
                getattr(asked, kind)[call.arguments[argument]] = None
            return method(*args, **kwargs)

        return watch

    with _WATCHING:
        methods = {name: getattr(nn.Module, name) for name in _ASKING}
        try:
            for name, method in methods.items():
                setattr(nn.Module, name, watching(method, *_ASKING[name]))
            yield
        finally:
            for name, method in methods.items():
                setattr(nn.Module, name, method)


def _without(variables: Mapping[str, Any], collections: tuple[str, ...]) -> Mapping[str, Any]:
    """The variables without some collections, in a container of the same type."""
    if not collections:
        return variables
    kept = {name: variables[name] for name in variables if name not in collections}
    return freeze(kept) if isinstance(variables, FrozenDict) else kept


def _state(variables: Mapping[str, Any]) -> list[str]:
    return [name for name in variables if name != "params"]


def _find_asked(module: _Module, shapes: Any, inputs: jax.ShapeDtypeStruct) -> _Asked:
    """What a module asks for in both modes. Where it fails for another reason, `check` or training
    will say so.
    """
    asked = _Asked({}, {})
    with contextlib.suppress(InputError), _watched(asked):
        jax.eval_shape(module.evaluate, shapes, inputs)
    asked.streams.clear()  # evaluation has none
    known = None
    while known != tuple(asked.streams):
        known = tuple(asked.streams)
        with contextlib.suppress(InputError), _watched(asked):
            _trace_training(module, shapes, inputs, known)
    return asked


def _trace_training(
    module: _Module, shapes: Any, inputs: jax.ShapeDtypeStruct, streams: Iterable[str]
) -> None:
    key = jax.random.key(0)
    jax.eval_shape(lambda variables, x: module.train(variables, x, key, streams), shapes, inputs)


def _find_sown(
    module: _Module, shapes: Any, inputs: jax.ShapeDtypeStruct, asked: _Asked
) -> tuple[str, ...]:
    """The collections that a module sows into and runs without in both modes."""

    def runs_without(name: str) -> bool:
        left = _without(shapes, (name,))
        return not problems(
            lambda: jax.eval_shape(module.evaluate, left, inputs),
            lambda: _trace_training(module, left, inputs, asked.streams),
        )

    return tuple(name for name in _state(shapes) if name in asked.sown and runs_without(name))


def _find_readout(module: _Module, shapes: Any, inputs: jax.ShapeDtypeStruct) -> _DenseCall | None:
    found: list[_DenseCall | None] = []

    def trace(variables: Any, x: jax.Array) -> None:
        found.append(module.readout(variables, x))

    jax.eval_shape(trace, shapes, inputs)
    return found[0]


def _describe(module: _Module, x: jax.Array) -> tuple[Any, Owners]:
    """`_Module.describe`; an image that is too small is refused with the smallest one that fits."""
    try:
        return module.describe(x)
    except TooSmall as error:
        named = name_smallest(
            error, lambda shape: module.describe(jnp.zeros((1, *shape), x.dtype)), x.shape[1:]
        )
        raise named from error


@takes_input_shape
def from_linen(
    module: nn.Module,
    image_shape: tuple[int, ...],
    initialization: str = "flax",
    readout_variance: float | None = None,
    reference_convolution: str = "uniform",
    symmetries: tuple[str, ...] = (),
    arguments: Values = None,
    train_arguments: Values = None,
    *,
    streams: tuple[str, ...] | None = None,
    convolution: str = "auto",
    check: bool = True,
) -> Model:
    """A model from a Linen module: `__call__(x)` or `__call__(x, train)` maps inputs
    [B, *image_shape] to logits [B, K].

    The mode is passed under the name that `__call__` gives it, one of
    `call_arguments.TRAINING_FLAGS` or `EVALUATION_FLAGS`, or set where it is an attribute of that
    name. Every random stream that training asks for has a key of its own. Collections that the
    module writes and never reads (`sow`) are no variables of the model.

    The features are found by themselves: they are the input of the `nn.Dense` whose output is
    returned. A module that ends in anything else, a subclass of `nn.Dense` included, has none
    (`features` is None).

    Args:
      module: the module.
      image_shape: of one input, (D,), (L, C), (H, W, C) or (T, H, W, C); also `input_shape`.
      initialization: "flax" (the module's own, shown one input of zeros), "reference"
        (PyTorch-default), "he", "lecun", "orthogonal" or "sigma:W:B", see `initializers`.
      readout_variance: τ² of the last layer's weights. Known by itself, but under "flax" only for a
        layer with Flax's default kernel initializer; otherwise state it to marginalize.
      reference_convolution: passed to `initializers.make_initialization`.
      symmetries: as in `from_functions`.
      arguments: values of all further arguments of `__call__`, by name; those with a default, too.
      train_arguments: the values that differ in training mode.
      streams: the random streams of training mode, where they are known and nothing is sown; None:
        found out.
      convolution: what runs plain `nn.Conv` of signals and images: "product", which is fast on a
        CPU, "lax", or "auto", by backend (see `substitution`); the description says which.
      check: as in `from_functions`.

    Raises:
      InputError: where the module raises or breaks the contract (see `behavior.check_behavior`), an
        argument of `__call__` is not known, or the initialization does not cover a variable.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"module: must be an instance of a Linen module, got {module!r}")
    image_shape = check_input_shape(image_shape)
    initialization = check_initialization(initialization)
    convolution = resolve_convolution(convolution)
    functions = _Module(module, arguments, train_arguments, convolution)
    zeros = jnp.zeros((1, *image_shape), jnp.float32)
    inputs = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    # Without `jit`, inside the module: what was traced before would not be run again, and nothing
    # of it seen.
    with contextlib.nullcontext() if streams is not None else jax.disable_jit():
        (shapes, owners), sown = _describe(functions, zeros), ()
        if streams is None:
            asked = _find_asked(functions, shapes, inputs)
            streams, sown = tuple(asked.streams), _find_sown(functions, shapes, inputs, asked)
            shapes = _without(shapes, sown)

    def init(key: jax.Array, x: jax.Array = zeros) -> Any:
        return _without(functions.init(key, x), sown)

    probes = Probes(init_at=init)
    if initialization != "flax":
        how = shapes, owners, reference_convolution
        init = make_initialization(initialization, *how, own=init)
        probes = Probes()

    def apply(
        variables: Any, x: jax.Array, key: jax.Array | None = None, train: bool = False
    ) -> Any:
        if not train:
            return functions.evaluate(variables, x)
        logits, updated = functions.train(variables, x, key, streams)
        updated = {**variables, **updated}
        return logits, freeze(updated) if isinstance(variables, FrozenDict) else updated

    def features(variables: Any, x: jax.Array) -> jax.Array:
        return functions.readout(variables, x).inputs

    readout = _find_readout(functions, shapes, inputs)
    known_variance = readout.variance(initialization) if readout else None
    model = Model(
        init,
        apply,
        image_shape,
        features=features if readout else None,
        readout_variance=readout_variance,
        description={
            "model": type(module).__name__,
            "initialization": initialization,
            "convolution": convolution,
            "hyperparameters": linen_hyperparameters(module),
            **describe_arguments(arguments, train_arguments),
            "checked": check,
        },
        symmetries=symmetries,
    )
    return complete_model(model, check, probes, known_variance, convolution)
