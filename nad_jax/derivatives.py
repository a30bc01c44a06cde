"""Input derivatives of one network at one point.

A derivative is a function `derivative(function, x, readouts) -> rows`:

  function: images [B, H, W, C] -> outputs [B, F].
  x:        one image [H, W, C].
  readouts: [R, F]; row r of the result is the derivative of readouts[r] · function(x). None: of
    each output, R = F.
  rows:     [R, D], D = H·W·C.

The two derivatives are not substitutes for each other: in max-pooling networks they rank directions
differently.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.errors import InputError, check_function, check_integer, check_number, real_array

Function = Callable[[jax.Array], jax.Array]
Derivative = Callable[[Function, jax.Array, jax.Array | None], jax.Array]

# Backward passes carried at a time, and the pixels of all of them together: beyond, they outgrow
# the cache.
_PULLBACKS = 128
_PIXELS = 2**17


def _check_point(function: Function, x: jax.Array) -> jax.Array:
    check_function("function", function, optional=False)
    x = jnp.asarray(real_array("x", x, "[H, W, C]"))
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)


def input_gradient(function: Function, x: jax.Array, readouts: jax.Array | None) -> jax.Array:
    """The exact gradient, by reverse mode: one forward pass and R backward passes.

    This is the derivative in the definition of NADs (NAD, Definition 1 and equation 5).

    Raises:
      InputError: for an image, read-outs or outputs of another shape or that are not real.
    """
    x = _check_point(function, x)

    def outputs_at(image: jax.Array) -> jax.Array:
        return real_array("function(x)", function(image[None]), "[1, F]", finite=False)[0]

    outputs, pullback = jax.vjp(outputs_at, x)
    together = max(1, min(_PULLBACKS, _PIXELS // (x.shape[0] * x.shape[1])))

    def row(cotangent: jax.Array) -> jax.Array:
        return pullback(cotangent)[0].reshape(-1)

    if readouts is None:
        size = outputs.size
        return jax.lax.map(
            lambda index: row(jax.nn.one_hot(index, size, dtype=outputs.dtype)),
            jnp.arange(size),
            batch_size=together,
        )
    readouts = jnp.asarray(real_array("readouts", readouts, f"[R, {outputs.size}]")).astype(
        outputs.dtype
    )
    if len(readouts) == 1:  # no batch axis to carry through the backward pass
        return row(readouts[0])[None]
    return jax.lax.map(row, readouts, batch_size=together)


def check_step(step: float) -> float:
    """Returns h; raises `InputError` unless h and 2h are positive float32 numbers."""
    step, limits = check_number("step", step, 0.0, exclusive=True), np.finfo(np.float32)
    if not limits.tiny <= step <= limits.max / 2:
        raise InputError(
            f"step: must be a float32 in {limits.tiny:.2g} … {limits.max / 2:.2g}, got {step!r}"
        )
    return step


def central_difference(step: float = 100.0, block_size: int = 64) -> Derivative:
    """The difference quotient (f(x + h e_j) − f(x − h e_j)) / 2h along every pixel j: 2·D forward
    passes.

    The reference code computes the published NADs this way with h = 100, in units of the input. All
    F outputs come from the same passes, so the number of read-outs costs nothing extra.

    Args:
      step: h > 0.
      block_size: pixels per pass, 2·block_size images: bounds the memory, and keeps it within the
        cache.

    Raises:
      InputError: for bad values of these, and, from the derivative, as `input_gradient`.
    """
    step = check_step(step)
    block_size = check_integer("block_size", block_size, 1)

    def derivative(function: Function, x: jax.Array, readouts: jax.Array | None) -> jax.Array:
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
