"""Vector fields on input space: the rows that one network contributes at one point.

A field is a function `field(network, variables, x, key) -> rows [R, D]`:

  network:   (variables, points [B, *input_shape]) -> outputs [B, F], from a read-out (below).
  variables: of one network, so that derivatives in them are fields too.
  x:         one point [*input_shape].
  key:       for fields that draw something.

Two are derivatives of the outputs in the input. They are not substitutes for each other: in
max-pooling networks they rank directions differently. The third, `mixed_derivative`, is one in the
input and the weights.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.contract import input_batch, shape_of_variables
from nad_jax.errors import (
    InputError,
    check_function,
    check_integer,
    check_number,
    check_record,
    real_array,
)
from nad_jax.models import Leaves, Model, split_trainable

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


def mixed_derivative(
    model: Model, num_probes: int | None = None, points: jax.Array | None = None
) -> VectorField:
    """The vector field of AᵀA, A = ∂²f/∂θ∂x [P, D] of one output f, θ the P weights that training
    changes: directions by which the empirical NTK is aligned with linear targets.

    Source: LIN. The rows are those of a triangular matrix R with RᵀR = AᵀA, or Aᵀz with
    z ~ N(0, I), whose expectation it is. LIN measures at the origin: `point_scale=0`.

    Args:
      model: the one whose networks are measured, with their own last layers (readout="sampled").
      num_probes: R of the probes z for each network, which need no P·D numbers of memory; None: A
        is computed, in D backward passes.
      points: [J, *input_shape], added to the point of the field: A is the mean over them.

    Returns: a field of min(P, D) rows, or of `num_probes`, the mean of whose g gᵀ is AᵀA.

    Raises:
      InputError: for bad values, and, from the field, for networks of several outputs.
    """
    check_record("model", model, Model)
    if num_probes is not None:
        num_probes = check_integer("num_probes", num_probes, 1)
    offsets = np.zeros((1, *model.input_shape), np.float32) if points is None else points
    offsets = real_array("points", offsets, f"[J, {', '.join(map(str, model.input_shape))}]")

    def field(network: Network, variables: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        weights, others, join = split_trainable(model, variables)
        if not weights or any(jnp.iscomplexobj(leaf) for leaf in weights):
            raise InputError("model: a mixed derivative needs weights that are real numbers")

        def output(weights: Leaves, x: jax.Array) -> jax.Array:
            outputs = network(join(weights, others), x[None] + jnp.asarray(offsets, x.dtype))
            if outputs.shape[1:] != (1,):
                raise InputError(
                    "derivative: mixed_derivative is of one output and its own last layer, got "
                    f"{outputs.shape[-1]} outputs; take readout='sampled' with num_readouts=1"
                )
            return outputs.mean()

        if num_probes is None:
            matrix = _pull_back_all(lambda weights: jax.grad(output, 1)(weights, x), weights)
            rows = jnp.linalg.qr(matrix.T, "r")
            return np.sqrt(len(rows)) * rows

        def row(key: jax.Array) -> jax.Array:
            keys = jax.random.split(key, len(weights))
            pairs = zip(keys, weights, strict=True)
            probe = [jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in pairs]

            def along_probe(x: jax.Array) -> jax.Array:
                gradients = jax.grad(output)(weights, x)
                return sum(map(jnp.vdot, gradients, probe))

            return jax.grad(along_probe)(x).reshape(-1)

        return jax.lax.map(row, jax.random.split(key, num_probes))

    field.__name__ = "mixed_derivative" if num_probes is None else f"mixed_derivative({num_probes})"
    field.readout = "sampled"
    return field


def _pull_back_all(function: Callable[[Leaves], jax.Array], weights: Leaves) -> jax.Array:
    """The derivative [D, P] of a function of P weights, whose value has D entries."""
    value, pullback = jax.vjp(function, weights)

    def row(number: jax.Array) -> jax.Array:
        cotangent = jax.nn.one_hot(number, value.size, dtype=value.dtype).reshape(value.shape)
        (leaves,) = pullback(cotangent)
        return jnp.concatenate([leaf.reshape(-1) for leaf in leaves])

    return jax.lax.map(row, jnp.arange(value.size), batch_size=count_together(value.shape))


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
