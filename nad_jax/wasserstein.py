"""Sliced Wasserstein distances between two sets of samples.

W₂(u) is the Wasserstein-2 distance between the projections ⟨u, x⟩ and ⟨u, y⟩ on a unit direction u:
between two sets of n numbers it is √(1/n ∑ (x₍ᵢ₎ − y₍ᵢ₎)²), of the numbers in ascending order.

SW₂ = √(mean over random u of W₂(u)²),  max-sliced: the largest W₂(u) of the same directions

Sources: Bonneel, Rabin, Peyré, Pfister, 2015 (sliced), Deshpande et al., 2019 (max-sliced); SAD uses
64 D directions for both.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.ensemble import member_keys, resolve_key
from nad_jax.errors import InputError, check_integer, real_array

_NUMBERS = 2**22  # projections that lie in memory at once


class SlicedDistance(NamedTuple):
    """SW₂ and the max-sliced distance of two sets of samples, in units of the input.

    sem: the standard error of `sliced` over the directions, which are random; that of the samples
      is not in it.
    """

    sliced: float
    max_sliced: float
    sem: float


@jax.jit
def _squared_distances(x: jax.Array, y: jax.Array, keys: jax.Array) -> jax.Array:
    """W₂(u)² of samples [n, D] along one random direction for each key [P]: [P]."""

    def draw(key: jax.Array) -> jax.Array:
        normal = jax.random.normal(key, x.shape[1:], x.dtype)
        return normal / jnp.linalg.norm(normal)

    directions = jax.vmap(draw)(keys)
    # In full precision on every backend: of close sets the difference is small.
    projected = (jnp.matmul(directions, one.T, precision="highest") for one in (x, y))
    ordered = (jnp.sort(one, axis=1) for one in projected)
    return jnp.mean(jnp.square(jnp.subtract(*ordered)), 1)


def sliced_wasserstein(
    x: jax.Array, y: jax.Array, seed: jax.Array | int = 0, num_projections: int = 0
) -> SlicedDistance:
    """SW₂ and the max-sliced distance between two sets of as many samples.

    Direction k has a key of its own: more of them keep the first.

    Args:
      x, y: [n, …], of the same shape; an input counts as a vector [D].
      seed: an integer, or a typed random key.
      num_projections: directions, uniform on the sphere; 0: 64 D, as in SAD.

    Raises:
      InputError: for sets of different shapes, and values that are not as above.
    """
    x, y = (jnp.asarray(real_array(*one, "[n, ...]")) for one in (("x", x), ("y", y)))
    for name, samples in (("x", x), ("y", y)):
        if samples.ndim < 2:
            raise InputError(f"{name}: must be samples [n, D] or [n, …], got shape {samples.shape}")
    if x.shape != y.shape:
        raise InputError(f"y: must be samples [n, …] of the shape of x, {x.shape}, got {y.shape}")
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    dtype = jnp.promote_types(jnp.result_type(x, y), jnp.float32)
    x, y = x.astype(dtype), y.astype(dtype)
    num_projections = check_integer("num_projections", num_projections, 0) or 64 * x.shape[1]
    key = resolve_key(seed)
    size = max(1, min(num_projections, _NUMBERS // len(x)))
    blocks = np.arange(-(-num_projections // size) * size).reshape(-1, size)
    squares = [_squared_distances(x, y, member_keys(key, jnp.asarray(block))) for block in blocks]
    squares = np.concatenate(squares, dtype=np.float64)[:num_projections]
    sliced = np.sqrt(squares.mean())
    # Of a root: half the relative error of what is under it.
    spread = squares.std(ddof=1) / np.sqrt(num_projections) if num_projections > 1 else np.nan
    sem = spread / (2 * sliced) if sliced else 0.0
    return SlicedDistance(float(sliced), float(np.sqrt(squares.max())), float(sem))
