"""Vector fields on input space: the rows that one network contributes at one point.

A field is a function `field(network, variables, x, key) -> rows [R, D]`:

  network:   (variables, points [B, *input_shape]) -> outputs [B, F], from a read-out (below).
  variables: of one network, so that derivatives in them are fields too.
  x:         one point [*input_shape].
  key:       for fields that draw something.

The two of today are derivatives of the outputs in the input. They are not substitutes for each
other: in max-pooling networks they rank directions differently.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.contract import input_batch, shape_of_variables
from nad_jax.errors import InputError, check_function, check_integer, check_number, real_array
from nad_jax.models import Model

Network = Callable[[Any, jax.Array], jax.Array]
VectorField = Callable[[Network, Any, jax.Array, jax.Array], jax.Array]
Function = Callable[[jax.Array], jax.Array]
Derivative = Callable[[Function, jax.Array, jax.Array | None], jax.Array]

# Backward passes carried at a time, and the pixels of all of them together: beyond, they outgrow
# the cache.
_PULLBACKS = 128
_PIXELS = 2**17


def count_together(input_shape: tuple[int, ...]) -> int:
    """How many passes over one input are carried at a time."""
    return max(1, min(_PULLBACKS, _PIXELS // math.prod(input_shape[:2])))


def _check_point(function: Function, x: jax.Array) -> jax.Array:
    check_function("function", function, optional=False)
    x = jnp.asarray(real_array("x", x, "[..., D]"))
    if not x.size:
        raise InputError(f"x: must be real numbers [..., D], got shape {x.shape}")
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)


def input_gradient(
    function: Function, x: jax.Array, readouts: jax.Array | None = None
) -> jax.Array:
    """The exact gradient, by reverse mode: one forward pass and R backward passes.

    This is the derivative in the definition of NADs (NAD, Definition 1 and equation 5).

    Args:
      function: inputs [B, *input_shape] -> outputs [B, F].
      x: one input [*input_shape].
      readouts: [R, F]; row r of the result is the derivative of readouts[r] · function(x). None: of
        each output, R = F.

    Returns: rows [R, D].

    Raises:
      InputError: for an input, read-outs or outputs of another shape or that are not real.
    """
    x = _check_point(function, x)

    def outputs_at(point: jax.Array) -> jax.Array:
        return real_array("function(x)", function(point[None]), "[1, F]", finite=False)[0]

    outputs, pullback = jax.vjp(outputs_at, x)
    size = outputs.size
    given = jnp.arange(size)
    if readouts is not None:
        readouts = jnp.asarray(real_array("readouts", readouts, f"[R, {size}]"))
        given = readouts.astype(outputs.dtype)

    def row(one: jax.Array) -> jax.Array:
        cotangent = one if one.ndim else jax.nn.one_hot(one, size, dtype=outputs.dtype)
        return pullback(cotangent)[0].reshape(-1)

    if len(given) == 1:  # no batch axis to carry through the backward pass
        return row(given[0])[None]
    return jax.lax.map(row, given, batch_size=count_together(x.shape))


def check_step(name: str, step: float) -> float:
    """Returns h; raises `InputError` unless h and 2h are positive float32 numbers."""
    step, limits = check_number(name, step, 0.0, exclusive=True), np.finfo(np.float32)
    if not limits.tiny <= step <= limits.max / 2:
        allowed = f"{limits.tiny:.2g} … {limits.max / 2:.2g}"
        raise InputError(f"{name}: must be a float32 in {allowed}, got {step!r}")
    return step


def central_difference(step: float = 100.0, block_size: int = 64) -> Derivative:
    """The difference quotient (f(x + h e_j) − f(x − h e_j)) / 2h along every pixel j.

    It takes 2·D forward passes. The reference code computes the published NADs this way with
    h = 100, in units of the input. All F outputs come from the same passes, so the number of
    read-outs costs nothing extra.

    Args:
      step: h > 0.
      block_size: pixels per pass, 2·block_size inputs: bounds the memory, and keeps it within the
        cache.

    Returns: a function of the arguments of `input_gradient`.

    Raises:
      InputError: for bad values of these, and, from the derivative, as `input_gradient`.
    """
    step = check_step("step", step)
    block_size = check_integer("block_size", block_size, 1)

    def derivative(
        function: Function, x: jax.Array, readouts: jax.Array | None = None
    ) -> jax.Array:
        x = _check_point(function, x)
        dimension = x.size
        block = min(block_size, dimension)
        num_blocks = -(-dimension // block)

        def quotient(index: jax.Array) -> jax.Array:
            # Pixels past the last one (padding of the last block) give all-zero steps and are cut
            # off below.
            steps = step * jax.nn.one_hot(
                index * block + jnp.arange(block), dimension, dtype=x.dtype
            )
            steps = steps.reshape(block, *x.shape)
            values = function(jnp.concatenate([x[None] + steps, x[None] - steps]))
            real_array("function(x)", values, f"[{2 * block}, F]")
            return (values[:block] - values[block:]) / (2.0 * step)

        columns = jax.lax.map(quotient, jnp.arange(num_blocks)).reshape(num_blocks * block, -1)
        jacobian = columns[:dimension].T
        if readouts is None:
            return jacobian
        return jnp.asarray(real_array("readouts", readouts, f"[R, {len(jacobian)}]")) @ jacobian

    return derivative


def from_derivative(derivative: Derivative) -> VectorField:
    """The vector field of a derivative: that of each output of the network."""

    def field(network: Network, variables: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        del key
        return derivative(lambda points: network(variables, points), x, None)

    return field


class Readout(NamedTuple):
    """A law of the outputs of a network whose derivatives are taken.

    draw(key) -> network: the outputs [B, R].
    num_outputs: R. scale: what rows are multiplied by, so that their mean g gᵀ is that of one logit.
    """

    draw: Callable[[jax.Array], Network]
    num_outputs: int
    scale: float = 1.0


def logit(model: Model, index: int = 0) -> Readout:
    """One logit, with the last layer as it is: R = 1."""
    return Readout(lambda key: lambda variables, x: model.apply(variables, x)[:, index, None], 1)


def sampled(model: Model, num_readouts: int) -> Readout:
    """Independent last layers on the same features, uniform with variance τ²: R = `num_readouts`.

    Only this second moment enters E[g gᵀ].
    """
    bound = float(np.sqrt(3.0 * model.readout_variance))
    shape = (num_readouts, num_features(model))

    def draw(key: jax.Array) -> Network:
        weights = jax.random.uniform(key, shape, jnp.float32, minval=-bound, maxval=bound)

        def network(variables: Any, x: jax.Array) -> jax.Array:
            features = model.features(variables, x)
            return features @ weights.T.astype(features.dtype)

        return network

    return Readout(draw, num_readouts)


def marginalized(model: Model) -> Readout:
    """The features, the last layer integrated out in closed form: R = F.

    E[g gᵀ | φ] = τ² JᵀJ, J the derivative of the features φ (derived: NAD, equation 5, with
    independent weights of variance τ²). √F τ makes it the mean over the F rows.
    """
    count = num_features(model)
    scale = float(np.sqrt(count * model.readout_variance))
    return Readout(lambda key: model.features, count, scale)


def num_features(model: Model) -> int:
    """F, the width of the input of the last linear layer."""
    return shape_of_outputs(model, "features").shape[-1]


def shape_of_outputs(model: Model, name: str) -> jax.ShapeDtypeStruct:
    """The shape and type of what a function of the model, "apply" or "features", gives of two inputs,
    of which JAX has it from `check_shapes`.
    """
    return jax.eval_shape(getattr(model, name), shape_of_variables(model), input_batch(model, 2))
