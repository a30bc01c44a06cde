"""Models from Flax Linen modules."""

import contextlib
import dataclasses
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict, freeze

from nad_jax.behavior import Probes
from nad_jax.call_arguments import describe_arguments, make_call_arguments, mode_flags
from nad_jax.contract import reported
from nad_jax.ensemble import named_key
from nad_jax.errors import InputError, check_choice, check_input_shape
from nad_jax.initializers import (
    find_law,
    flax_readout_variance,
    reference_initialization,
    reference_readout_variance,
)
from nad_jax.models import Model, complete_model

INITIALIZATIONS = ("reference", "flax")


class _DenseCall(NamedTuple):
    module: nn.Dense
    kernel: jax.Array
    inputs: jax.Array
    outputs: jax.Array


class _Module(NamedTuple):
    """A Linen module as functions of its variables.

    init(key, x: one input of zeros by default) -> variables. evaluate(variables, x) -> logits.
    train(variables, x, rngs, mutable) -> (logits, updated).
    describe(): the shapes of its variables, and every module by its path.
    record_dense(variables, x) -> (logits, every call of an `nn.Dense`).
    """

    init: Callable[..., Any]
    evaluate: Callable[[Any, jax.Array], jax.Array]
    train: Callable[..., Any]
    describe: Callable[[], tuple[Any, dict[tuple[str, ...], nn.Module]]]
    record_dense: Callable[[Any, jax.Array], tuple[jax.Array, list[_DenseCall]]]


def _is_plain_dense(module: nn.Module) -> bool:
    """Whether a module multiplies by its kernel and adds its bias: a subclass may have another
    product.
    """
    return (
        type(module) is nn.Dense and module.dot_general is None and module.dot_general_cls is None
    )


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


def _make_module(
    module: nn.Module,
    image_shape: tuple[int, ...],
    arguments: Mapping[str, Any] | None,
    train_arguments: Mapping[str, Any] | None,
) -> _Module:
    name = f"module: {type(module).__name__}"
    own = _own_flags(module)
    call = make_call_arguments(type(module), arguments, train_arguments, left=own)
    modules = {
        train: module.clone(**{flag: mode_flags(train)[flag] for flag in own}) if own else module
        for train in (False, True)
    }
    zeros = jnp.zeros((1, *image_shape), jnp.float32)

    def init(key: jax.Array, x: jax.Array = zeros) -> Any:
        positional, keyword = call(False)
        with reported(f"{name}.init"):
            return modules[False].init({"params": key}, x, *positional, **keyword)

    def evaluate(variables: Any, x: jax.Array) -> jax.Array:
        positional, keyword = call(False)
        with reported(f"{name}.__call__ in evaluation mode"):
            return modules[False].apply(variables, x, *positional, **keyword)

    def train(variables: Any, x: jax.Array, rngs: dict[str, jax.Array], mutable: list[str]) -> Any:
        positional, keyword = call(True)
        with reported(f"{name}.__call__ in training mode"):
            return modules[True].apply(
                variables, x, *positional, rngs=rngs, mutable=mutable, **keyword
            )

    def describe() -> tuple[Any, dict[tuple[str, ...], nn.Module]]:
        owners: dict[tuple[str, ...], nn.Module] = {}

        def record(next_function: Callable, args: Any, kwargs: Any, context: Any) -> Any:
            # An unbound module, whose path is that of the whole, owns nothing.
            if context.module.scope is not None:
                first = owners.setdefault(context.module.path, context.module)
                shared = context.module.scope is first.scope  # as `nn.share_scope` has it
                if shared and find_law(first) is None and find_law(context.module) is not None:
                    owners[context.module.path] = context.module
            return next_function(*args, **kwargs)

        with nn.intercept_methods(record):
            return jax.eval_shape(lambda key: init(key), jax.random.key(0)), owners

    def record_dense(variables: Any, x: jax.Array) -> tuple[jax.Array, list[_DenseCall]]:
        """Logits in evaluation mode, and every call of an `nn.Dense` on the way, in order."""
        calls: list[_DenseCall] = []

        def record(next_function: Callable, args: Any, kwargs: Any, context: Any) -> Any:
            outputs = next_function(*args, **kwargs)
            if _is_plain_dense(context.module) and context.method_name == "__call__":
                kernel = nn.unbox(context.module.get_variable("params", "kernel"))
                calls.append(_DenseCall(context.module, kernel, args[0], outputs))
            elif isinstance(context.module, nn.WeightNorm | nn.SpectralNorm):
                # The layer inside multiplies by a normalized kernel, not by the one that was drawn.
                calls.clear()
            return outputs

        with nn.intercept_methods(record):
            logits = evaluate(variables, x)
        return logits, calls

    return _Module(init, evaluate, train, describe, record_dense)


def _readout(variables: Any, logits: jax.Array, calls: list[_DenseCall]) -> _DenseCall | None:
    """The call whose output is the logits, if it is a layer used once on flat features, with the
    kernel as stored.
    """
    if not calls or calls[-1].outputs is not logits or calls[-1].inputs.ndim != 2:
        return None
    stored = variables["params"]
    for name in (*calls[-1].module.path, "kernel"):
        stored = stored.get(name) if isinstance(stored, Mapping) else None
    if nn.unbox(stored) is not calls[-1].kernel:  # nn.map_variables stands between
        return None
    return (
        calls[-1] if sum(call.module.path == calls[-1].module.path for call in calls) == 1 else None
    )


def _readout_variance(readout: _DenseCall | None, initialization: str) -> float | None:
    """τ² of the weights of a read-out, where the initialization settles it."""
    if readout is not None and initialization == "reference":
        return reference_readout_variance(readout.inputs.shape[-1])
    if readout is not None and readout.module.kernel_init is nn.Dense.kernel_init:
        return flax_readout_variance(readout.inputs.shape[-1])
    return None


_WATCHING = threading.Lock()


class _Asked(NamedTuple):
    """What a module asks for while it is traced: names of random streams, and of collections that
    it sows into.
    """

    streams: dict[str, None]
    sown: dict[str, None]


@contextlib.contextmanager
def _watched(asked: _Asked) -> Iterator[None]:
    """Adds to `asked` what modules of this thread ask for.

    `nn.intercept_methods` does not see these methods of the base class, so they are replaced for
    the while.
    """
    thread = threading.get_ident()
    methods = {}

    def note(names: dict[str, None], name: str) -> None:
        if threading.get_ident() == thread:
            names[name] = None

    def make_rng(self: nn.Module, name: str = "params") -> jax.Array:
        note(asked.streams, name)
        return methods["make_rng"](self, name)

    def has_rng(self: nn.Module, name: str) -> bool:
        note(asked.streams, name)
        return methods["has_rng"](self, name)

    def sow(self: nn.Module, col: str, *args: Any, **kwargs: Any) -> bool:
        note(asked.sown, col)
        return methods["sow"](self, col, *args, **kwargs)

    def perturb(self: nn.Module, name: str, value: Any, collection: str = "perturbations") -> Any:
        note(asked.sown, collection)
        return methods["perturb"](self, name, value, collection)

    with _WATCHING:
        watching = {"make_rng": make_rng, "has_rng": has_rng, "sow": sow, "perturb": perturb}
        methods |= {name: getattr(nn.Module, name) for name in watching}
        try:
            for name, method in watching.items():
                setattr(nn.Module, name, method)
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

    def trace(function: Callable, *args: Any) -> None:
        with contextlib.suppress(InputError), _watched(asked):
            jax.eval_shape(lambda *arrays: function(*arrays), *args)

    trace(module.evaluate, shapes, inputs)
    asked.streams.clear()  # evaluation has none
    while True:
        known = tuple(asked.streams)
        rngs = _make_rngs(jax.random.key(0), known)
        trace(
            lambda variables, x, rngs=rngs: module.train(variables, x, rngs, _state(shapes)),
            shapes,
            inputs,
        )
        if tuple(asked.streams) == known:
            return asked


def _make_rngs(key: jax.Array, streams: tuple[str, ...]) -> dict[str, jax.Array]:
    """A key for each stream: that of "dropout" is the key itself."""
    return {name: key if name == "dropout" else named_key(key, name) for name in streams}


def _find_sown(
    module: _Module, shapes: Any, inputs: jax.ShapeDtypeStruct, asked: _Asked
) -> tuple[str, ...]:
    """The collections that a module sows into and runs without in both modes."""

    def runs_without(name: str) -> bool:
        left = _without(shapes, (name,))

        def train(variables: Any, x: jax.Array) -> Any:
            return module.train(
                variables, x, _make_rngs(jax.random.key(0), tuple(asked.streams)), _state(left)
            )

        with contextlib.suppress(InputError):
            jax.eval_shape(module.evaluate, left, inputs)
            jax.eval_shape(train, left, inputs)
            return True
        return False

    return tuple(name for name in _state(shapes) if name in asked.sown and runs_without(name))


def from_linen(
    module: nn.Module,
    image_shape: tuple[int, ...],
    initialization: str = "flax",
    readout_variance: float | None = None,
    reference_convolution: str = "uniform",
    symmetries: tuple[str, ...] = (),
    arguments: Mapping[str, Any] | None = None,
    train_arguments: Mapping[str, Any] | None = None,
    *,
    streams: tuple[str, ...] | None = None,
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
      image_shape: of one input, (D,), (L, C), (H, W, C) or (T, H, W, C).
      initialization: "reference" (PyTorch-default, see `initializers`) or "flax" (the module's own,
        shown one input of zeros).
      readout_variance: τ² of the last layer's weights. Known by itself under "reference", and under
        "flax" for a layer with Flax's default kernel initializer; otherwise state it to
        marginalize.
      reference_convolution: passed to `initializers.reference_initialization`.
      symmetries: as in `from_functions`.
      arguments: values of all further arguments of `__call__`, by name; those with a default, too.
      train_arguments: the values that differ in training mode.
      streams: the random streams of training mode, where they are known and nothing is sown; None:
        found out.
      check: as in `from_functions`.

    Raises:
      InputError: where the module raises or breaks the contract (see `behavior.check_behavior`), an
        argument of `__call__` is not known, or the reference initialization does not cover a
        variable.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"module: must be an instance of a Linen module, got {module!r}")
    image_shape = check_input_shape(image_shape)
    check_choice("initialization", initialization, INITIALIZATIONS)
    functions = _make_module(module, image_shape, arguments, train_arguments)
    inputs = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    # Without `jit`, inside the module: what was traced before would not be run again, and nothing
    # of it seen.
    with contextlib.nullcontext() if streams is not None else jax.disable_jit():
        (shapes, owners), sown = functions.describe(), ()
        if streams is None:
            asked = _find_asked(functions, shapes, inputs)
            streams, sown = tuple(asked.streams), _find_sown(functions, shapes, inputs, asked)
            shapes = _without(shapes, sown)

    def init_flax(key: jax.Array, *x: jax.Array) -> Any:
        return _without(functions.init(key, *x), sown)

    init = init_flax
    if initialization == "reference":
        init = reference_initialization(shapes, owners, reference_convolution)

    def apply(
        variables: Any, x: jax.Array, key: jax.Array | None = None, train: bool = False
    ) -> Any:
        if not train:
            return functions.evaluate(variables, x)
        rngs = {} if key is None else _make_rngs(key, streams)
        logits, updated = functions.train(variables, x, rngs, _state(variables))
        updated = {**variables, **updated}
        return logits, freeze(updated) if isinstance(variables, FrozenDict) else updated

    def features(variables: Any, x: jax.Array) -> jax.Array:
        return _readout(variables, *functions.record_dense(variables, x)).inputs

    found: list[_DenseCall | None] = []

    def trace(variables: Any, x: jax.Array) -> None:
        found.append(_readout(variables, *functions.record_dense(variables, x)))

    jax.eval_shape(trace, shapes, inputs)
    readout = found[0]
    if readout_variance is None:
        readout_variance = _readout_variance(readout, initialization)
    model = Model(
        init,
        apply,
        image_shape,
        features=features if readout else None,
        readout_variance=readout_variance,
        description={
            "model": type(module).__name__,
            "initialization": initialization,
            **describe_arguments(arguments, train_arguments),
            "checked": check,
        },
        symmetries=symmetries,
    )
    return complete_model(model, check, Probes(init_at=init if initialization == "flax" else None))
