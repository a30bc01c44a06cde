"""Streaming second moments of rows in memory independent of their number: init, update, merge.

The state is a pair (mean, scatter about the mean), updated by Chan, Golub and LeVeque's pairwise formula, so the
covariance does not cancel when the mean is large, and both the centred and the uncentred moment can be read off.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Moments(NamedTuple):
    """count: [] number of rows, int32. mean: [D]. scatter: [D, D], Σ (g − mean)(g − mean)ᵀ."""

    count: jax.Array
    mean: jax.Array
    scatter: jax.Array


def init(dimension: int) -> Moments:
    """The state that has seen no rows of length `dimension`."""
    return Moments(jnp.zeros((), jnp.int32), jnp.zeros((dimension,)), jnp.zeros((dimension, dimension)))


def merge(left: Moments, right: Moments) -> Moments:
    """The state that has seen the rows of both. Associative up to rounding."""
    count = left.count + right.count
    share = right.count / jnp.maximum(count, 1)
    delta = right.mean - left.mean
    between = jnp.outer(delta, delta) * (left.count * share)
    return Moments(count, left.mean + delta * share, left.scatter + right.scatter + between)


def update(moments: Moments, rows: jax.Array, valid: jax.Array) -> Moments:
    """Adds rows [B, D]; those where `valid` [B] is False are left out, whatever they hold."""
    count = jnp.sum(valid, dtype=jnp.int32)
    rows = jnp.where(valid[:, None], rows, 0.0)
    mean = rows.sum(0) / jnp.maximum(count, 1)
    centred = jnp.where(valid[:, None], rows - mean[None], 0.0)
    return merge(moments, Moments(count, mean, centred.T @ centred))


def second_moment(moments: Moments) -> jax.Array:
    """E[g gᵀ] [D, D], the mean over rows, not centred."""
    return moments.scatter / moments.count + jnp.outer(moments.mean, moments.mean)


def covariance(moments: Moments) -> jax.Array:
    """The centred covariance [D, D], divided by count − 1."""
    return moments.scatter / (moments.count - 1)
