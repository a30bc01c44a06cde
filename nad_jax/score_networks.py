"""The contract of score networks: pure functions of an input and a noise level.

init(key) -> variables                        one independent initialization
apply(variables, x, t) -> noise               x [B, *shape], t [B] -> the noise in x, [B, *shape]

A score network predicts the noise ε in x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε; −ε/√(1 − ᾱ_t) is its score. The
noise level t counts the steps of a schedule (`diffusion`), 0 … T − 1.

Source: SAD, "On the Anisotropy of Score-Based Generative Models" (Floros, Moosavi-Dezfooli,
Dragotti, 2025).
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nad_jax.contract import as_floating, reported
from nad_jax.errors import InputError, check_input_shape, check_record, real_array
from nad_jax.models import Model, complete_model


class ScoreNetwork(NamedTuple):
    """A score network as pure functions (see the module's docstring).

    input_shape: of one input, (H, W, C) or any other.
    last_layer: maps variables to a tree of numbers, one for each leaf: the variance of the entries
      of a leaf of the last layer, in which the output is linear, and which are independent, of mean
      0, and independent of all others; 0 for the other leaves. None: unknown.
    description: every choice that made the network, for the record of a result.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[[Any, jax.Array, jax.Array], jax.Array]
    input_shape: tuple[int, ...]
    last_layer: Callable[[Any], Any] | None = None
    description: Mapping[str, Any] = MappingProxyType({})


def check_score_network(network: Any) -> None:
    """Raises `InputError` unless a score network gives floating-point noise of the size of its inputs,
    as shapes show it.
    """
    check_record("network", network, ScoreNetwork)
    shape = check_input_shape(network.input_shape)
    x = jax.ShapeDtypeStruct((2, *shape), jnp.float32)
    t = jax.ShapeDtypeStruct((2,), jnp.float32)
    with reported("network: init"):
        variables = jax.eval_shape(network.init, jax.eval_shape(lambda: jax.random.key(0)))
    with reported("network: apply(variables, x, t)"):
        noise = jax.eval_shape(network.apply, variables, x, t)
    size = math.prod(shape)
    if getattr(noise, "shape", None) not in (x.shape, (2, size)):
        raise InputError(
            f"network: apply must return noise {x.shape} or {(2, size)} for inputs {x.shape}, got "
            f"{getattr(noise, 'shape', type(noise).__name__)}"
        )
    if not jnp.issubdtype(noise.dtype, jnp.floating):
        raise InputError(f"network: apply must return floating-point noise, got {noise.dtype}")


def pack(x: jax.Array, t: jax.Array) -> jax.Array:
    """Inputs [B, *shape] and noise levels [B] as one vector each, [B, D + 1]: what the model of a
    score network takes; of the dtype of x, float32 for integers.

    Raises:
      InputError: for other shapes.
    """
    x, t = as_floating(real_array("x", x, "[B, ...]")), jnp.asarray(real_array("t", t, "[B]"))
    if len(t) != len(x):
        raise InputError(f"t: must be one for each of the {len(x)} inputs, got {len(t)}")
    return jnp.concatenate([x.reshape(len(x), -1), t[:, None].astype(x.dtype)], 1)


def as_model(network: ScoreNetwork) -> Model:
    """The model of a score network, from vectors [D + 1], an input and its noise level, to the noise
    [D]: what `train_many` trains.

    Raises:
      InputError: for what is no score network, and networks that break the contract.
    """
    check_score_network(network)
    size = math.prod(network.input_shape)

    def apply(variables: Any, x: Any, key: Any = None, train: bool = False) -> Any:
        noise = network.apply(variables, x[:, :size].reshape(-1, *network.input_shape), x[:, size])
        noise = noise.reshape(len(x), -1)
        return (noise, variables) if train else noise

    model = Model(network.init, apply, (size + 1,), description=network.description)
    return complete_model(model)
