"""Philox keys whose draws compile in programs of several devices, and are those of JAX's philox4x32
to the bit.

JAX takes the high half of a product by an operation that XLA (of JAX 0.10 and 0.12) cannot
partition; here it is put together from 16-bit halves.

Source: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"; which
words JAX counts in: its philox4x32 keys.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl

_MULTIPLIERS = np.uint32(0xD2511F53), np.uint32(0xCD9E8D57)
_INCREMENTS = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)  # of the two words of the key
_ROUNDS = 10
_HALF = np.uint32(16)
_LOW = np.uint32(0xFFFF)
_NAME = "philox4x32"
_Words = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _high(factor: np.uint32, x: jax.Array) -> jax.Array:
    """The upper 32 bits of the products of 32-bit numbers."""
    (low, high), (x_low, x_high) = ((n & _LOW, n >> _HALF) for n in (factor, x))
    middle = high * x_low + (low * x_low >> _HALF)  # at most 2³² − 2¹⁶
    carried = low * x_high + (middle & _LOW)
    return high * x_high + (middle >> _HALF) + (carried >> _HALF)


def _rounds(key: jax.Array, counter: _Words) -> _Words:
    """Four random words for each counter of four."""
    first, second = key[0], key[1]
    x0, x1, x2, x3 = counter
    for _ in range(_ROUNDS):
        left, right = _high(_MULTIPLIERS[0], x0), _high(_MULTIPLIERS[1], x2)
        x0, x1, x2, x3 = (
            right ^ x1 ^ first,
            _MULTIPLIERS[1] * x2,
            left ^ x3 ^ second,
            _MULTIPLIERS[0] * x0,
        )
        first, second = first + _INCREMENTS[0], second + _INCREMENTS[1]
    return x0, x1, x2, x3


def _count(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Zeros, and 0, 1, … in a shape of fewer than 2³² entries."""
    numbers = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    return jnp.zeros_like(numbers), numbers


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    zeros, numbers = _count(shape)
    return jnp.stack(_rounds(key, (zeros, zeros, zeros, numbers))[:2], -1)


def _fold_in(key: jax.Array, data: jax.Array) -> jax.Array:
    zero = jnp.uint32(0)
    return jnp.stack(_rounds(key, (zero, zero, zero, jnp.asarray(data, jnp.uint32)))[:2])


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    zeros, numbers = _count(shape)
    x0, x1, x2, x3 = _rounds(key, (zeros, numbers, zeros, zeros))
    if bit_width == 64:
        return x0.astype(jnp.uint64) << np.uint64(32) | x1.astype(jnp.uint64)
    return (x0 ^ x1 ^ x2 ^ x3).astype(f"uint{bit_width}")


def _seed(seed: jax.Array) -> jax.Array:
    return jax.random.key_data(jax.random.key(seed, impl=_NAME))


_PARTITIONABLE = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="partitionable_philox4x32",
    tag="pphx4",
)


def partitionable(key: jax.Array) -> jax.Array:
    """A key of the same draws that programs of several devices can use; of other kinds than
    philox4x32, the key itself.
    """
    if str(jax.random.key_impl(key)) != _NAME:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_PARTITIONABLE)
