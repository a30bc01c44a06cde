"""The contract between a network and everything else: pure functions, and adapters that give them.

init(key) -> variables                                     one independent initialization
apply(variables, x) -> logits                              evaluation mode; x [B, H, W, C], logits [B, K]
apply(variables, x, key, train=True) -> (logits, variables)    training mode: batch statistics, dropout
features(variables, x) -> [B, F]                           the input of the last linear layer (optional)
"""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from nad_jax.errors import InputError, check_choice, check_image_shape, check_number
from nad_jax.initializers import flax_readout_variance, reference_initialization, reference_readout_variance
from nad_jax.symmetries import check_symmetries

INITIALIZATIONS = ("reference", "flax")


def _trainable_leaves(variables: Any) -> Any:
    """The collection "params" where there is one, as in Flax; otherwise every leaf of real numbers."""
    if isinstance(variables, Mapping) and "params" in variables:
        return jax.tree.map_with_path(lambda path, _: path[0].key == "params", variables)
    return jax.tree.map(lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.floating), variables)


class Model(NamedTuple):
    """A network as pure functions (see the module's docstring).

    features: None where the input of the last linear layer cannot be reached.
    readout_variance: τ² of the weights of that layer, E[w wᵀ] = τ² I, w independent of the features; None: unknown.
    num_logits: K; the adapters find it.
    description: every choice that made the model, for the record of a result.
    trainable: maps variables to booleans, one for each leaf: which of them training changes.
    symmetries: of the law of the network, names of `symmetries.SYMMETRIES`.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[..., Any]
    image_shape: tuple[int, int, int]
    num_logits: int | None = None
    features: Callable[[Any, jax.Array], jax.Array] | None = None
    readout_variance: float | None = None
    description: Mapping[str, Any] = MappingProxyType({})
    trainable: Callable[[Any], Any] = _trainable_leaves
    symmetries: tuple[str, ...] = ()


def split_trainable(model: Model, variables: Any) -> tuple[list[jax.Array], list[jax.Array], Callable[..., Any]]:
    """The leaves that training changes, the other ones, and `join(trained, others) -> variables`."""
    leaves, structure = jax.tree.flatten(variables)
    mask = jax.tree.leaves(model.trainable(variables))

    def join(trained: list[jax.Array], others: list[jax.Array]) -> Any:
        sources = {True: iter(trained), False: iter(others)}
        return jax.tree.unflatten(structure, [next(sources[bool(chosen)]) for chosen in mask])

    trained = [leaf for leaf, chosen in zip(leaves, mask, strict=True) if chosen]
    others = [leaf for leaf, chosen in zip(leaves, mask, strict=True) if not chosen]
    return trained, others, join


def _checked(model: Model) -> Model:
    """The model with its number of logits; raises `InputError` where shapes show that it breaks the contract."""
    image = jax.ShapeDtypeStruct((2, *model.image_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    logits = jax.eval_shape(model.apply, variables, image)
    if getattr(logits, "ndim", None) != 2 or logits.shape[0] != 2:
        got = getattr(logits, "shape", type(logits).__name__)
        raise InputError(f"model: apply must return logits [B, K]; two images {image.shape} gave {got}")
    if model.features is not None:
        features = jax.eval_shape(model.features, variables, image)
        if getattr(features, "ndim", None) != 2 or features.shape[0] != 2:
            raise InputError(f"model: features must return [B, F]; two images {image.shape} gave {features}")
    if model.readout_variance is not None:
        check_number("readout_variance", model.readout_variance, 0.0, exclusive=True)
    symmetries = check_symmetries(model.symmetries, model.image_shape)
    return model._replace(num_logits=logits.shape[1], symmetries=symmetries)


def from_functions(
    init: Callable[[jax.Array], Any],
    apply: Callable[..., Any],
    image_shape: tuple[int, int, int],
    features: Callable[[Any, jax.Array], jax.Array] | None = None,
    readout_variance: float | None = None,
    trainable: Callable[[Any], Any] | None = None,
    symmetries: tuple[str, ...] = (),
) -> Model:
    """A model from pure functions of the contract.

    Args:
      init, apply, features: as in the module's docstring; `train=True` is needed for training alone.
      image_shape: (H, W, C) of one input.
      readout_variance: τ² of the last linear layer's weights; needed, with `features`, for a marginalized
        read-out or several read-outs per network.
      trainable: maps variables to a tree of booleans: which leaves training changes. By default the collection
        "params" where variables are a mapping that has one, otherwise every leaf of real numbers; all other leaves
        are what `apply` in training mode returns.
      symmetries: of the law of the network, names of `symmetries.SYMMETRIES`: "flip" where reversed rows or columns
        leave the law of f_θ(x) over θ as it is, "transpose" where exchanging them does. This is not checked. It holds
        for convolutions and poolings with independent kernel entries that cover the image alike from either side.

    Raises:
      InputError: where the shapes do not fit the contract.
    """
    return _checked(
        Model(
            init,
            apply,
            check_image_shape(image_shape),
            features=features,
            readout_variance=readout_variance,
            description={"model": "functions"},
            trainable=trainable or _trainable_leaves,
            symmetries=symmetries,
        )
    )


class _DenseCall(NamedTuple):
    path: tuple[str, ...]
    kernel_init: Callable[..., Any]
    inputs: jax.Array
    outputs: jax.Array


def _apply_recording_dense(module: nn.Module, variables: Any, x: jax.Array) -> tuple[jax.Array, list[_DenseCall]]:
    """Logits in evaluation mode, and every call of an `nn.Dense` on the way, in order."""
    calls = []

    def record(next_function, args, kwargs, context):
        outputs = next_function(*args, **kwargs)
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            calls.append(_DenseCall(context.module.path, context.module.kernel_init, args[0], outputs))
        elif isinstance(context.module, nn.WeightNorm | nn.SpectralNorm):
            calls.clear()  # the layer inside multiplies by a normalized kernel, not by the one that was drawn
        return outputs

    with nn.intercept_methods(record):
        logits = module.apply(variables, x, **_mode(module, train=False))
    return logits, calls


def _mode(module: nn.Module, train: bool) -> dict[str, bool]:
    """The keyword that says training or evaluation, under the names modules give it; none where it takes none."""
    values = {"train": train, "training": train, "deterministic": not train, "use_running_average": not train}
    taken = inspect.signature(type(module).__call__).parameters
    return {name: value for name, value in values.items() if name in taken}


def _readout(logits: jax.Array, calls: list[_DenseCall]) -> _DenseCall | None:
    """The call whose output is the logits, if it is a layer used once on flat features."""
    if not calls or calls[-1].outputs is not logits or calls[-1].inputs.ndim != 2:
        return None
    return calls[-1] if sum(call.path == calls[-1].path for call in calls) == 1 else None


def from_linen(
    module: nn.Module,
    image_shape: tuple[int, int, int],
    initialization: str = "flax",
    readout_variance: float | None = None,
    reference_convolution: str = "uniform",
    symmetries: tuple[str, ...] = (),
) -> Model:
    """A model from a Linen module: `__call__(x)` or `__call__(x, train)` maps images [B, H, W, C] to logits [B, K].

    `training`, `deterministic` and `use_running_average` are understood as well as `train`.

    The features are found by themselves: they are the input of the `nn.Dense` whose output is returned. A module
    that ends in anything else has none (`features` is None).

    Args:
      module: the module; `train` is passed by keyword where it is taken. Dropout draws from the stream "dropout".
      image_shape: (H, W, C) of one input.
      initialization: "reference" (PyTorch-default, see `initializers`) or "flax" (the module's own).
      readout_variance: τ² of the last layer's weights. Known by itself under "reference", and under "flax" for a
        layer with Flax's default kernel initializer; otherwise state it to marginalize.
      reference_convolution: passed to `initializers.reference_initialization`.
      symmetries: as in `from_functions`.

    Raises:
      InputError: where shapes do not fit the contract, or the reference initialization does not cover a variable.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"module: must be an instance of a Linen module, got {module!r}")
    image_shape = check_image_shape(image_shape)
    check_choice("initialization", initialization, INITIALIZATIONS)

    def init_flax(key: jax.Array) -> Any:
        return module.init({"params": key}, jnp.zeros((1, *image_shape)), **_mode(module, train=False))

    variable_shapes = jax.eval_shape(init_flax, jax.random.key(0))
    init = init_flax
    if initialization == "reference":
        init = reference_initialization(variable_shapes, reference_convolution)

    def apply(variables: Any, x: jax.Array, key: jax.Array | None = None, train: bool = False) -> Any:
        if not train:
            return module.apply(variables, x, **_mode(module, train=False))
        state = [name for name in variables if name != "params"]
        rngs = {} if key is None else {"dropout": key}
        logits, updated = module.apply(variables, x, rngs=rngs, mutable=state, **_mode(module, train=True))
        return logits, {**variables, **updated}

    def features(variables: Any, x: jax.Array) -> jax.Array:
        return _readout(*_apply_recording_dense(module, variables, x)).inputs

    found = []

    def trace(variables: Any, x: jax.Array) -> jax.Array:
        logits, calls = _apply_recording_dense(module, variables, x)
        found.append(_readout(logits, calls))
        return logits

    jax.eval_shape(trace, variable_shapes, jax.ShapeDtypeStruct((2, *image_shape), jnp.float32))
    readout = found[0]
    if readout is not None and readout_variance is None:
        num_features = readout.inputs.shape[-1]
        if initialization == "reference":
            readout_variance = reference_readout_variance(num_features)
        elif readout.kernel_init is nn.Dense.kernel_init:
            readout_variance = flax_readout_variance(num_features)
    return _checked(
        Model(
            init,
            apply,
            image_shape,
            features=features if readout else None,
            readout_variance=readout_variance,
            description={"model": type(module).__name__, "initialization": initialization},
            symmetries=symmetries,
        )
    )


def from_nnx(
    factory: Callable[[nnx.Rngs], nnx.Module],
    image_shape: tuple[int, int, int],
    features: Callable[[nnx.Module, jax.Array], jax.Array] | None = None,
    readout_variance: float | None = None,
    symmetries: tuple[str, ...] = (),
) -> Model:
    """A model from a function that builds an NNX module, e.g. `lambda rngs: Net(rngs=rngs)`.

    Args:
      factory: builds the module from `nnx.Rngs`; the module maps images [B, H, W, C] to logits [B, K].
      image_shape: (H, W, C) of one input.
      features: maps (module, images) to the input of the module's last linear layer [B, F].
      readout_variance: τ² of that layer's weights (1/F for NNX's default initializer).
      symmetries: as in `from_functions`.

    Raises:
      InputError: where shapes do not fit the contract.
    """

    if isinstance(factory, nnx.Module):
        raise InputError("factory: must be a function of nnx.Rngs that builds the module, got a module")
    graph = nnx.split(nnx.eval_shape(lambda: factory(nnx.Rngs(0))))[0]

    def init(key: jax.Array) -> Any:
        return nnx.split(factory(nnx.Rngs(key)))[1]

    def rebuild(variables: Any) -> nnx.Module:
        # A module writes into the state it was merged from: a fresh tree keeps the caller's variables as they are.
        return nnx.merge(graph, jax.tree.map(lambda leaf: leaf, variables))

    def apply(variables: Any, x: jax.Array, key: jax.Array | None = None, train: bool = False) -> Any:
        module = rebuild(variables)
        if not train:
            module.eval()
            return module(x)
        module.train()
        if key is not None:
            nnx.reseed(module, default=key)
        logits = module(x)
        return logits, nnx.split(module)[1]

    def evaluate_features(variables: Any, x: jax.Array) -> jax.Array:
        module = rebuild(variables)
        module.eval()
        return features(module, x)

    def trainable(variables: Any) -> Any:
        is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
        return jax.tree.map(lambda node: isinstance(node, nnx.Param), variables, is_leaf=is_variable)

    model = from_functions(
        init, apply, image_shape, evaluate_features if features else None, readout_variance, symmetries=symmetries
    )
    return model._replace(description={"model": "nnx"}, trainable=trainable)
