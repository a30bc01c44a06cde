"""The contract between a network and everything else: pure functions.

init(key) -> variables                                    one independent initialization
apply(variables, x) -> logits                             evaluation mode; x [B, *shape] to [B, K]
apply(variables, x, key, train=True) -> (logits, variables)   training: batch statistics, dropout
features(variables, x) -> [B, F]                          the input of the last linear layer

The shape of one input is (D,) of a vector, (L, C) of a signal, (H, W, C) of an image or
(T, H, W, C) of a volume.

`from_functions` takes such functions; adapters that give them are `linen.from_linen` and
`nnx.from_nnx`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from nad_jax.behavior import Probes, check_behavior
from nad_jax.blocks import Alike
from nad_jax.claims import check_alike, check_readout_variance, check_symmetries_hold
from nad_jax.contract import (
    as_arrays,
    check_shapes,
    check_trainable,
    reported,
    shape_of_variables,
)
from nad_jax.convolution import resolve_convolution
from nad_jax.errors import (
    check_choice,
    check_function,
    check_input_shape,
    check_number,
    check_record,
    plain,
)
from nad_jax.renamed import takes_input_shape
from nad_jax.substitution import warn_of_slow_convolutions
from nad_jax.symmetries import check_symmetries


def _trainable_leaves(variables: Any) -> Any:
    """The collection "params" where there is one, as in Flax; otherwise every leaf of
    floating-point numbers.
    """
    if isinstance(variables, Mapping) and "params" in variables:
        return jax.tree.map_with_path(lambda path, _: path[0].key == "params", variables)
    return jax.tree.map(lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact), variables)


Features = Callable[[Any, jax.Array], jax.Array]


class Apply(Protocol):
    """The function of a network in both modes, see the module's docstring."""

    def __call__(
        self, variables: Any, x: jax.Array, key: jax.Array | None = None, train: bool = False
    ) -> Any: ...


class Model(NamedTuple):
    """A network as pure functions (see the module's docstring).

    image_shape: of one input (the published name; `input_shape` is the same).
    features: None where the input of the last linear layer cannot be reached.
    readout_variance: τ² of the weights of that layer, E[w wᵀ] = τ² I, w independent of the
      features; None: unknown.
    num_logits: K; the adapters find it.
    description: every choice that made the model, for the record of a result.
    trainable: maps variables to booleans, one for each leaf: which of them training changes.
    symmetries: of the law of the network, names of `symmetries.SYMMETRIES`.
    alike: what its first layer cannot tell apart, see `blocks`; None: unknown.
    """

    init: Callable[[jax.Array], Any]
    apply: Apply
    image_shape: tuple[int, ...]
    num_logits: int | None = None
    features: Features | None = None
    readout_variance: float | None = None
    description: Mapping[str, Any] = MappingProxyType({})
    trainable: Callable[[Any], Any] = _trainable_leaves
    symmetries: tuple[str, ...] = ()
    alike: Alike | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one input, (D,), (L, C), (H, W, C) or (T, H, W, C)."""
        return self.image_shape


Leaves = list[jax.Array]


def split_trainable(
    model: Model, variables: Any
) -> tuple[Leaves, Leaves, Callable[[Leaves, Leaves], Any]]:
    """The leaves that training changes, the others, and `join(trained, others) -> variables`."""
    leaves, structure = jax.tree.flatten(variables)
    mask = jax.tree.leaves(model.trainable(variables))

    def join(trained: Leaves, others: Leaves) -> Any:
        sources = {True: iter(trained), False: iter(others)}
        return jax.tree.unflatten(structure, [next(sources[bool(chosen)]) for chosen in mask])

    trained = [leaf for leaf, chosen in zip(leaves, mask, strict=True) if chosen]
    others = [leaf for leaf, chosen in zip(leaves, mask, strict=True) if not chosen]
    return trained, others, join


def complete_model(
    model: Model,
    check: bool = True,
    probes: Probes | None = None,
    known_variance: float | None = None,
    convolution: str = "lax",
) -> Model:
    """The model with its number of logits, tested against the contract.

    Args:
      check: whether its behavior is tested (see `behavior.check_behavior`) and what is claimed of
        its law (see `claims`), besides the shapes.
      probes: what the adapter knows besides.
      known_variance: of the read-out, where the adapter knows it and nothing is stated.
      convolution: "product" where the network should have no slow convolutions left.

    Raises:
      InputError: where it breaks the contract.
    """
    check = check_choice("check", check, (True, False))
    if model.readout_variance is not None:
        variance = check_number("readout_variance", model.readout_variance, 0.0, exclusive=True)
        model = model._replace(readout_variance=variance)
    symmetries = check_symmetries(model.symmetries, model.input_shape)
    model = model._replace(num_logits=check_shapes(model), symmetries=symmetries)
    if check:
        check_behavior(model, probes)
        if model.readout_variance is not None and model.features is not None:
            check_readout_variance(model)
        if model.symmetries:
            check_symmetries_hold(model)
    if check and convolution == "product":
        warn_of_slow_convolutions(model.apply, shape_of_variables(model), model.image_shape)
    if model.readout_variance is None:
        model = model._replace(readout_variance=known_variance)
    return model


def state_blocks(
    model: Model, kind: str, patch: int = 0, exchangeable: bool = False, check: bool = True
) -> Model:
    """The model with a statement: which entries of the input the law of its network cannot tell
    apart, see `blocks`. What follows for a geometry, `equal_blocks` says.

    It holds where these entries enter through one first layer alone, whose weights are independent,
    of mean 0 and as likely with the other sign, or random and orthogonal.

    Args:
      kind: "all": a dense layer of all entries; "colors": a convolution; "patches": a dense layer
        of the entries of a patch, the same for all patches.
      patch: the side of a patch, for "patches".
      exchangeable: whether pixels or patches may be exchanged, too, as without positions.
      check: test it on 64 initializations, as symmetries are.

    Raises:
      InputError: where inputs have no such entries, and where the networks contradict.
    """
    check_record("model", model, Model)
    alike = Alike(kind, plain(patch), plain(exchangeable)).check(tuple(model.image_shape))
    model = model._replace(alike=alike)
    if check_choice("check", check, (True, False)):
        check_alike(model)
    return model


@takes_input_shape
def from_functions(
    init: Callable[[jax.Array], Any],
    apply: Apply,
    image_shape: tuple[int, ...],
    features: Features | None = None,
    readout_variance: float | None = None,
    trainable: Callable[[Any], Any] | None = None,
    symmetries: tuple[str, ...] = (),
    check: bool = True,
) -> Model:
    """A model from pure functions of the contract.

    Args:
      init, apply, features: as in the module's docstring; `train=True` is needed for training
        alone.
      image_shape: of one input, (D,), (L, C), (H, W, C) or (T, H, W, C); also `input_shape`.
      readout_variance: τ² of the last linear layer's weights; needed, with `features`, for a
        marginalized read-out or several read-outs per network.
      trainable: maps variables to a tree of booleans: which leaves training changes. By default the
        collection "params" where variables are a mapping that has one, otherwise every leaf of
        floating-point numbers, complex ones included; all other leaves are what `apply` in training
        mode returns.
      symmetries: of the law of the network, names of `symmetries.SYMMETRIES`: "flip" where
        reversing an axis, any but that of channels, leaves the law of f_θ(x) over θ as it is,
        "transpose" where exchanging the rows and columns of an image does. It holds for
        convolutions and poolings with independent kernel entries that cover the input alike from
        either side.
      check: test the contract on one initialization and two inputs, see `behavior.check_behavior`,
        and what is claimed (`readout_variance`, `symmetries`) on 64 initializations, see `claims`;
        False skips that, and the record of a result says so.

    Raises:
      InputError: where the functions raise or break the contract, saying which one and how.
    """
    functions = {"init": init, "apply": apply, "features": features, "trainable": trainable}
    for name, function in functions.items():
        check_function(name, function, optional=name not in ("init", "apply"))
        if function is not None:
            functions[name] = reported(f"model: {name}")(function)
    model = Model(
        lambda key: as_arrays(functions["init"](key)),
        functions["apply"],
        check_input_shape(image_shape),
        features=functions["features"],
        readout_variance=readout_variance,
        description={"model": "functions", "checked": check},
        trainable=functions["trainable"] or _trainable_leaves,
        symmetries=symmetries,
    )
    if trainable is not None:
        variables = shape_of_variables(model)
        check_trainable(model.trainable(variables), variables)
    return complete_model(model, check, convolution=resolve_convolution("auto"))
