"""Powers of two that rows are divided by, so that the sums of their squares are float32 whatever
the rows' size.

Multiplying by a power of two changes no digit: results are those without it, wherever these do not
overflow.
"""

import jax
import jax.numpy as jnp

SMALLEST, LARGEST = -126, 126  # of an exponent: 2^−e and 2^e are then both float32 with all digits


def find_exponent(rows: jax.Array) -> jax.Array:
    """e [] int32 with the largest |entry| of float32 `rows` in [2^(e−1), 2^e), within the limits;
    zeros: the smallest.

    Read off the bits, which also order the absolute values: no rounding, and nothing that is not
    finite gets in.
    """
    bits = jax.lax.bitcast_convert_type(rows, jnp.int32) & 0x7FFFFFFF
    return jnp.clip((jnp.max(bits) >> 23) - 126, SMALLEST, LARGEST)


def power_of_two(exponent: jax.Array) -> jax.Array:
    """2^exponent [] float32, exact, for an int32 of at most 127; zero below −126."""
    return jax.lax.bitcast_convert_type((jnp.maximum(exponent, -127) + 127) << 23, jnp.float32)
