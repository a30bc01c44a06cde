"""Streaming second moments of rows in memory independent of their number: init, update, merge.

The state is a pair (mean, scatter about the mean), updated by Chan, Golub and LeVeque's pairwise
formula, so the covariance does not cancel when the mean is large, and both the centred and the
uncentred moment can be read off. Its sums are float32 of rows divided by a power of two that grows
with the largest entry: rows may be of any size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.scaling import SMALLEST, find_exponent, power_of_two


class Moments(NamedTuple):
    """What is known of rows 2^exponent·g, all of it float32 but the two integers.

    count: [] number of rows, int32. exponent: [] int32, the smallest one where all rows are zero.
    mean: [D], of g. scatter: [D, D], Σ (g − mean)(g − mean)ᵀ.
    """

    count: jax.Array
    exponent: jax.Array
    mean: jax.Array
    scatter: jax.Array


def init(dimension: int) -> Moments:
    """The state that has seen no rows of length `dimension`."""
    mean, scatter = (
        jnp.zeros(dimension, jnp.float32),
        jnp.zeros((dimension, dimension), jnp.float32),
    )
    return Moments(jnp.int32(0), jnp.int32(SMALLEST), mean, scatter)


def _rescale(moments: Moments, exponent: jax.Array) -> Moments:
    """The same rows under a larger exponent."""
    change = moments.exponent - exponent
    mean, scatter = moments.mean * power_of_two(change), moments.scatter * power_of_two(2 * change)
    return Moments(moments.count, exponent, mean, scatter)


def merge(left: Moments, right: Moments) -> Moments:
    """The state that has seen the rows of both. Associative up to rounding."""
    exponent = jnp.maximum(left.exponent, right.exponent)
    left, right = _rescale(left, exponent), _rescale(right, exponent)
    count = left.count + right.count
    share = right.count.astype(jnp.float32) / jnp.maximum(count, 1).astype(jnp.float32)
    delta = right.mean - left.mean
    between = jnp.outer(delta, delta) * (left.count.astype(jnp.float32) * share)
    return Moments(
        count, exponent, left.mean + delta * share, left.scatter + right.scatter + between
    )


def update(moments: Moments, rows: jax.Array, valid: jax.Array) -> Moments:
    """Adds rows [B, D]; those where `valid` [B] is False are left out, whatever they hold."""
    count = jnp.sum(valid, dtype=jnp.int32)
    rows = jnp.where(valid[:, None], rows.astype(jnp.float32), 0.0)
    exponent = find_exponent(rows)
    rows = rows * power_of_two(-exponent)
    mean = rows.sum(0) / jnp.maximum(count, 1).astype(jnp.float32)
    centred = jnp.where(valid[:, None], rows - mean[None], 0.0)
    return merge(moments, Moments(count, exponent, mean, centred.T @ centred))


def second_moment(moments: Moments) -> np.ndarray:
    """E[g gᵀ] [D, D] of the rows themselves, their mean, not centred; float64 on the host."""
    mean = np.asarray(moments.mean, np.float64)
    moment = np.asarray(moments.scatter, np.float64) / int(moments.count) + np.outer(mean, mean)
    return np.ldexp(moment, 2 * int(moments.exponent))


def covariance(moments: Moments) -> np.ndarray:
    """The centred covariance [D, D] of the rows themselves, divided by count − 1; float64 on the
    host.
    """
    return np.ldexp(
        np.asarray(moments.scatter, np.float64) / (int(moments.count) - 1),
        2 * int(moments.exponent),
    )
