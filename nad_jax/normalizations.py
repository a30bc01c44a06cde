"""Normalizations that divide by nothing but their epsilon, at x = 0."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

_KINDS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm, nn.RMSNorm)
# The first ones that are met: what comes behind them meets nothing that they did not pass on.
_FIRST = 2
# Of the largest factor that a normalization has, 1/√epsilon: what varies by √3 epsilon has half.
_SHARE = 0.5


@functools.lru_cache(maxsize=512)
def find_zero_normalization(
    init: Callable[[jax.Array], Any], apply: Callable, input_shape: tuple[int, ...]
) -> str | None:
    """The name of a normalization of Flax that meets a vector of zeros at x = 0 and passes on its
    derivative, about 1/√epsilon times as large; None where there is none.

    What a class token that is zero meets does not count: it has no derivative there.
    """
    met: list[tuple[str, float]] = []

    def watch(variables: Any, x: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        met.clear()
        values = []

        def record(next_function: Callable, args: Any, kwargs: Any, context: Any) -> Any:
            outputs, module = next_function(*args, **kwargs), context.module
            if isinstance(module, _KINDS) and context.method_name == "__call__" and args:
                met.append(("/".join(module.path), float(module.epsilon)))
                values.append((args[0], outputs))
            return outputs

        with nn.intercept_methods(record):
            apply(variables, x)
        return values

    @jax.jit
    def gains() -> list[jax.Array]:
        variables, x = init(jax.random.key(0)), jnp.zeros((1, *input_shape), jnp.float32)
        step = jax.random.normal(jax.random.key(1), x.shape)
        _, changes = jax.jvp(lambda x: watch(variables, x), (x,), (step,))
        # Of zeros there is no gain.
        return [jnp.linalg.norm(b) / jnp.linalg.norm(a) for a, b in changes[:_FIRST]]

    found = zip(gains(), met, strict=False)
    zero = (name for gain, (name, epsilon) in found if gain * epsilon**0.5 > _SHARE)
    return next(zero, None)
