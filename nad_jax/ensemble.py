"""Ensembles of independently initialized networks: their keys, and mapping a function over members."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nad_jax.errors import check_choice, check_integer

MAPPINGS = ("vectorized", "sequential")


def make_key(seed: int) -> jax.Array:
    """A typed random key whose draws are fast on a CPU and do not depend on the chunk size under `vmap`.

    Raises:
      InputError: unless `seed` is an integer in 0 … 2³² − 1 (beyond, different seeds would give one key).
    """
    check_integer("seed", seed, 0, 2**32 - 1)
    return jax.random.key(seed, impl="philox4x32")


def named_key(key: jax.Array, name: str) -> jax.Array:
    """The sub-key of a named purpose."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def member_keys(key: jax.Array, members: jax.Array) -> jax.Array:
    """Keys [N] of the members [N]: each is tied to its number, so growing an ensemble keeps its first members."""
    return jax.vmap(lambda member: jax.random.fold_in(key, member))(members)


def map_members(function: Callable[..., Any], mapping: str, *args: jax.Array) -> Any:
    """Applies `function` to every member along the leading axis of `args`.

    "vectorized" is one program for all members (`vmap`), best on accelerators and for tiny programs;
    "sequential" is one after another in one compiled loop, which keeps the members' working set in cache.
    """
    check_choice("mapping", mapping, MAPPINGS)
    if mapping == "vectorized":
        return jax.vmap(function)(*args)
    return jax.lax.map(lambda member: function(*member), args)


def padded_members(first: jax.Array, stop: jax.Array, chunk_size: int) -> tuple[jax.Array, jax.Array]:
    """Members first … first + chunk_size − 1 [N], and which of them lie below `stop` [N]."""
    members = first + jnp.arange(chunk_size)
    return members, members < stop
