"""Models from Flax NNX modules."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from nad_jax.behavior import Probes
from nad_jax.call_arguments import Values, describe_arguments, make_call_arguments, mode_flags
from nad_jax.contract import reported
from nad_jax.ensemble import named_key
from nad_jax.errors import InputError, check_function, check_input_shape
from nad_jax.models import Model, complete_model


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

    def build(rngs: nnx.Rngs) -> nnx.Module:
        with reported("factory:"):
            module = factory(rngs)
        if not isinstance(module, nnx.Module):
            raise InputError(f"factory: must build an NNX module, got {type(module).__name__}")
        return module

    return build


def _set_mode(module: nnx.Module, train: bool) -> None:
    """Tells a module and all modules in it the mode, under every name that it has there."""
    # The method of NNX, whatever the module itself calls so.
    (nnx.Module.train if train else nnx.Module.eval)(module)
    for _, node in nnx.iter_graph(module):
        for flag, value in mode_flags(train).items() if isinstance(node, nnx.Module) else ():
            if isinstance(vars(node).get(flag), bool):
                setattr(node, flag, value)


def from_nnx(
    factory: Factory,
    image_shape: tuple[int, ...],
    features: Callable[[nnx.Module, jax.Array], jax.Array] | None = None,
    readout_variance: float | None = None,
    symmetries: tuple[str, ...] = (),
    arguments: Values = None,
    train_arguments: Values = None,
    check: bool = True,
) -> Model:
    """A model from a function that builds an NNX module, e.g. `lambda rngs: Net(rngs=rngs)`.

    The mode is set as `nnx.Module` sets it, in all attributes of modules that are truth values
    under the names of `call_arguments`, and passed where `__call__` takes it. In training mode
    every random stream of the module has new keys in each call, and an argument `rngs` of
    `__call__` gets an `nnx.Rngs`; in evaluation mode it is None. Parameters (`nnx.Param`) are
    trained.

    Args:
      factory: builds the module from `nnx.Rngs`; the module maps inputs [B, *image_shape] to
        logits [B, K].
      image_shape: of one input, (D,), (L, C), (H, W, C) or (T, H, W, C).
      features: maps (module, inputs) to the input of the module's last linear layer [B, F].
      readout_variance: τ² of that layer's weights (1/F for NNX's default initializer).
      symmetries: as in `from_functions`.
      arguments, train_arguments: as in `from_linen`.
      check: as in `from_functions`.

    Raises:
      InputError: where the factory or the module raises or breaks the contract (see
        `behavior.check_behavior`), or an argument of `__call__` is not known.
    """
    image_shape, build = check_input_shape(image_shape), _make_builder(factory)
    check_function("features", features)
    example = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    module_class, graph = type(example), nnx.split(example)[0]
    name = f"module: {module_class.__name__}.__call__"
    call = make_call_arguments(module_class, arguments, train_arguments, supplied=("rngs",))

    def init(key: jax.Array) -> Any:
        return nnx.split(build(nnx.Rngs(key)))[1]

    def rebuild(variables: Any, train: bool) -> nnx.Module:
        # A module writes into the state it is merged from: the caller's stays as it is.
        module = nnx.merge(graph, jax.tree.map(lambda leaf: leaf, variables))
        _set_mode(module, train)
        return module

    def run(
        module: nnx.Module, x: jax.Array, train: bool, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        positional, keyword = call(train, rngs=rngs)
        with reported(f"{name} in {'training' if train else 'evaluation'} mode"):
            return module(x, *positional, **keyword)

    def apply(
        variables: Any, x: jax.Array, key: jax.Array | None = None, train: bool = False
    ) -> Any:
        rngs = None
        if train and key is not None:
            variables = _with_fresh_keys(variables, key)
            rngs = nnx.Rngs(named_key(key, "call"))
        module = rebuild(variables, train)
        logits = run(module, x, train, rngs)
        return (logits, _updated(variables, nnx.split(module)[1])) if train else logits

    def called_twice(variables: Any, x: jax.Array) -> jax.Array:
        module = rebuild(variables, train=False)
        run(module, x, train=False)
        return run(module, x, train=False)

    def evaluate_features(variables: Any, x: jax.Array) -> jax.Array:
        with reported("model: features"):
            return features(rebuild(variables, train=False), x)

    model = Model(
        init,
        apply,
        image_shape,
        features=evaluate_features if features else None,
        readout_variance=readout_variance,
        description={
            "model": module_class.__name__,
            **describe_arguments(arguments, train_arguments),
            "checked": check,
        },
        trainable=lambda variables: _mask(variables, nnx.Param),
        symmetries=symmetries,
    )
    return complete_model(model, check, Probes(_statistics, called_twice))
