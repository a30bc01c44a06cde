"""Models from Flax NNX modules."""

import contextlib
import functools
import inspect
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from nad_jax.behavior import Probes
from nad_jax.call_arguments import Values, describe_arguments, make_call_arguments, mode_flags
from nad_jax.contract import reported
from nad_jax.convolution import resolve_convolution
from nad_jax.ensemble import named_key
from nad_jax.errors import InputError, check_function, check_input_shape
from nad_jax.hyperparameters import nnx_hyperparameters
from nad_jax.initializers import flax_readout_variance
from nad_jax.models import Model, complete_model
from nad_jax.renamed import takes_input_shape
from nad_jax.substitution import substitute_nnx


def _mask(variables: Any, kind: type[nnx.Variable]) -> Any:
    """A tree of booleans: which leaves are of a kind of variable."""
    return jax.tree.map(
        lambda node: jax.tree.map(lambda _: isinstance(node, kind), node),
        variables,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )


def _statistics(variables: Any) -> list[bool]:
    return jax.tree.leaves(_mask(variables, nnx.BatchStat))


def _with_fresh_keys(variables: Any, key: jax.Array) -> Any:
    """The variables with new keys in all random streams, of the shapes they have: layers may be
    stacked.
    """
    streams = itertools.count()

    def fresh(leaf: jax.Array, is_key: bool) -> jax.Array:
        if not is_key:
            return leaf
        stream = jax.random.fold_in(key, next(streams))
        bits = jax.random.bits(stream, jax.random.key_data(leaf).shape, jnp.uint32)
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))

    return jax.tree.map(fresh, variables, _mask(variables, nnx.RngKey))


def _updated(variables: Any, after: Any) -> Any:
    """The variables with their values after a call; what the module has sown besides is dropped.

    Raises:
      InputError: for a variable that is new and was not sown: its value would be lost.
    """
    known = {path for path, _ in nnx.to_flat_state(variables)}
    kept = []
    for path, node in nnx.to_flat_state(after):
        if path in known:
            kept.append((path, node))
        elif not isinstance(node, nnx.Intermediate) and not isinstance(node.get_value(), tuple):
            name = "/".join(map(str, path))
            raise InputError(
                f"module: variable {name} is made in a call; make it when the module is built"
            )
    return nnx.from_flat_state(kept)


Factory = Callable[[nnx.Rngs], nnx.Module]


def _make_builder(factory: Factory) -> Factory:
    """The factory, with what is wrong with it or with what it gives said by an `InputError`."""
    if isinstance(factory, nnx.Module) or not callable(factory):
        raise InputError(
            "factory: must be a function of nnx.Rngs that builds the module, as lambda rngs: "
            f"Net(rngs=rngs), got {type(factory).__name__}"
        )

    by_name = _takes_rngs_by_name(factory)

    def build(rngs: nnx.Rngs) -> nnx.Module:
        with reported("factory:"):
            module = factory(rngs=rngs) if by_name else factory(rngs)
        if not isinstance(module, nnx.Module):
            raise InputError(f"factory: must build an NNX module, got {type(module).__name__}")
        return module

    return build


def _takes_rngs_by_name(factory: Factory) -> bool:
    """Whether a factory is a class, or a part of one, whose `rngs` can only be given by name."""
    whole = factory.func if isinstance(factory, functools.partial) else factory
    try:  # of a class its metaclass hides the arguments
        whole = whole.__init__ if isinstance(whole, type) else whole
        rngs = inspect.signature(whole).parameters.get("rngs")
    except (TypeError, ValueError):  # it has no signature that Python can see
        return False
    return rngs is not None and rngs.kind is rngs.KEYWORD_ONLY


def _set_mode(module: nnx.Module, train: bool) -> None:
    """Tells a module and all modules in it the mode, under every name that it has there."""
    # The method of NNX, whatever the module itself calls so.
    (nnx.Module.train if train else nnx.Module.eval)(module)
    for _, node in nnx.iter_graph(module):
        for flag, value in mode_flags(train).items() if isinstance(node, nnx.Module) else ():
            if isinstance(vars(node).get(flag), bool):
                setattr(node, flag, value)


class _LinearCall(NamedTuple):
    """A call of a layer in a module; path: where it is there."""

    layer: nnx.Linear
    inputs: jax.Array
    outputs: jax.Array
    path: tuple = ()


_WATCHING = threading.Lock()


@contextlib.contextmanager
def _watched(name: str, note: Callable[..., None]) -> Iterator[None]:
    """While it lasts, `note(result, module, *args, **kwargs)` is called after a method of
    `nnx.Linear` in this thread.

    NNX has no interceptors of methods, so this one is replaced for the while.
    """
    method, thread = getattr(nnx.Linear, name), threading.get_ident()

    def watch(module: nnx.Linear, *args: Any, **kwargs: Any) -> Any:
        result = method(module, *args, **kwargs)
        if threading.get_ident() == thread:
            note(result, module, *args, **kwargs)
        return result

    with _WATCHING:
        setattr(nnx.Linear, name, watch)
        try:
            yield
        finally:
            setattr(nnx.Linear, name, method)


def _find_default_kernels(build: Factory) -> dict[tuple, bool]:
    """Whether each `nnx.Linear` of a module draws its kernel by the default law, by its path: the
    layer itself does not keep its initializer.
    """
    default = inspect.signature(nnx.Linear.__init__).parameters["kernel_init"].default
    laws: dict[int, bool] = {}
    found: dict[tuple, bool] = {}

    def note(_: None, module: nnx.Linear, *args: Any, **kwargs: Any) -> None:
        laws[id(module)] = kwargs.get("kernel_init", default) is default

    def trace() -> nnx.Module:
        with _watched("__init__", note):
            module = build(nnx.Rngs(0))
        nodes = nnx.iter_graph(module)
        found.update({path: laws[id(node)] for path, node in nodes if id(node) in laws})
        return module

    nnx.eval_shape(trace)
    return found


def _readout(module: nnx.Module, call: Callable[[], jax.Array]) -> _LinearCall | None:
    """The call of an `nnx.Linear` whose output is what `call` returns, the logits, if it is a layer
    used once on flat features, with a kernel of its own.
    """
    calls: list[_LinearCall] = []

    def note(outputs: jax.Array, layer: nnx.Linear, inputs: jax.Array, *_: Any, **__: Any) -> None:
        calls.append(_LinearCall(layer, inputs, outputs))

    with _watched("__call__", note):
        logits = call()
    if not calls or calls[-1].outputs is not logits or calls[-1].inputs.ndim != 2:
        return None
    last = calls[-1].layer
    nodes = {path: one for path, one in nnx.iter_graph(module) if isinstance(one, nnx.Module)}
    # Of a subclass the product may be another one; a normalized kernel is not the one drawn.
    plain = type(last) is nnx.Linear and last.dot_general is jax.lax.dot_general
    normalized = any(isinstance(one, nnx.WeightNorm | nnx.SpectralNorm) for one in nodes.values())
    kernels = [value for one in nodes.values() for value in vars(one).values()]
    once = sum(value is last.kernel for value in kernels) == 1
    if not plain or normalized or not once or sum(one.layer is last for one in calls) > 1:
        return None
    return calls[-1]._replace(path=next(path for path, one in nodes.items() if one is last))


class _Module:
    """An NNX module as functions of its variables."""

    def __init__(
        self, example: nnx.Module, arguments: Values, train_arguments: Values, convolution: str
    ) -> None:
        kind = type(example)
        self._graph, self._convolution = nnx.split(example)[0], convolution
        self._name = f"module: {kind.__name__}.__call__"
        self._call = make_call_arguments(kind, arguments, train_arguments, supplied=("rngs",))

    def rebuild(self, variables: Any, train: bool) -> nnx.Module:
        # A module writes into the state it is merged from: the caller's stays as it is.
        module = nnx.merge(self._graph, jax.tree.map(lambda leaf: leaf, variables))
        _set_mode(module, train)
        substitute_nnx(module, self._convolution)
        return module

    def _run(
        self, module: nnx.Module, x: jax.Array, train: bool = False, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        positional, keyword = self._call(train, rngs=rngs)
        with reported(f"{self._name} in {'training' if train else 'evaluation'} mode"):
            return module(x, *positional, **keyword)

    def apply(
        self, variables: Any, x: jax.Array, key: jax.Array | None = None, train: bool = False
    ) -> Any:
        rngs = None
        if train and key is not None:
            variables = _with_fresh_keys(variables, key)
            rngs = nnx.Rngs(named_key(key, "call"))
        module = self.rebuild(variables, train)
        logits = self._run(module, x, train, rngs)
        return (logits, _updated(variables, nnx.split(module)[1])) if train else logits

    def called_twice(self, variables: Any, x: jax.Array) -> jax.Array:
        module = self.rebuild(variables, train=False)
        self._run(module, x)
        return self._run(module, x)

    def readout(self, variables: Any, x: jax.Array) -> _LinearCall | None:
        module = self.rebuild(variables, train=False)
        return _readout(module, lambda: self._run(module, x))


@takes_input_shape
def from_nnx(
    factory: Factory,
    image_shape: tuple[int, ...],
    features: Callable[[nnx.Module, jax.Array], jax.Array] | None = None,
    readout_variance: float | None = None,
    symmetries: tuple[str, ...] = (),
    arguments: Values = None,
    train_arguments: Values = None,
    check: bool = True,
    *,
    convolution: str = "auto",
) -> Model:
    """A model from a function that builds an NNX module, e.g. `lambda rngs: Net(rngs=rngs)`, or the
    class itself.

    The mode is set as `nnx.Module` sets it, in all attributes of modules that are truth values
    under the names of `call_arguments`, and passed where `__call__` takes it. In training mode
    every random stream of the module has new keys in each call, and an argument `rngs` of
    `__call__` gets an `nnx.Rngs`; in evaluation mode it is None. Parameters (`nnx.Param`) are
    trained.

    Args:
      factory: builds the module from `nnx.Rngs`, by position or as `rngs`; the module maps inputs [B, *image_shape] to
        logits [B, K].
      image_shape: of one input, (D,), (L, C), (H, W, C) or (T, H, W, C); also `input_shape`.
      features: maps (module, inputs) to the input of the module's last linear layer [B, F]; None:
        found out where the logits are the output of an `nnx.Linear`.
      readout_variance: τ² of that layer's weights; known by itself (1/F) where that layer has NNX's
        default initializer.
      symmetries: as in `from_functions`.
      arguments, train_arguments: as in `from_linen`.
      check: as in `from_functions`.
      convolution: as in `from_linen`, of `nnx.Conv`.

    Raises:
      InputError: where the factory or the module raises or breaks the contract (see
        `behavior.check_behavior`), or an argument of `__call__` is not known.
    """
    image_shape, build = check_input_shape(image_shape), _make_builder(factory)
    check_function("features", features)
    convolution = resolve_convolution(convolution)
    example = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    module = _Module(example, arguments, train_arguments, convolution)

    def init(key: jax.Array) -> Any:
        return nnx.split(build(nnx.Rngs(key)))[1]

    def evaluate_features(variables: Any, x: jax.Array) -> jax.Array:
        if features is None:
            return module.readout(variables, x).inputs
        with reported("model: features"):
            return features(module.rebuild(variables, train=False), x)

    found: list[_LinearCall] = []

    def trace(variables: Any, x: jax.Array) -> None:
        found.extend(filter(None, [module.readout(variables, x)]))

    shapes, inputs = nnx.split(example)[1], jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    if features is None:
        jax.eval_shape(trace, shapes, inputs)
    known_variance = None
    if found and _find_default_kernels(build).get(found[0].path):
        known_variance = flax_readout_variance(found[0].inputs.shape[-1])

    model = Model(
        init,
        module.apply,
        image_shape,
        features=evaluate_features if features or found else None,
        readout_variance=readout_variance,
        description={
            "model": type(example).__name__,
            "convolution": convolution,
            "hyperparameters": nnx_hyperparameters(example),
            **describe_arguments(arguments, train_arguments),
            "checked": check,
        },
        trainable=lambda variables: _mask(variables, nnx.Param),
        symmetries=symmetries,
    )
    probes = Probes(_statistics, module.called_twice)
    return complete_model(model, check, probes, known_variance, convolution)
