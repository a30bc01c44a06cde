"""Ensembles of independent networks: their keys, mapping a function over members, and over devices."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from nad_jax import errors, target
from nad_jax.errors import InputError, check_choice, check_integer, shown

MAPPINGS = ("vectorized", "sequential")
_MEMBERS = PartitionSpec("networks")  # their axis spread over the devices

Shared = Callable[Concatenate[Any, ...], Any]  # (what all members share, *arrays of members)


class Execution(NamedTuple):
    """How a program is carried out; it changes results by rounding alone.

    mapping: "sequential", one network after the other on each device; "vectorized", all networks of
      a chunk in one batched program; "auto": sequential on a CPU and, in training, of networks that fill a GPU
      alone, vectorized elsewhere.
    chunk_size: networks per call of the compiled program; 0 is automatic: where they are vectorized,
      what fits into 70 % of the memory of the devices, 32 trained networks on each at most.
    num_devices: local devices to use; 0: all. (On a CPU there is one, using every core, unless
      JAX_NUM_CPU_DEVICES says otherwise.)
    """

    mapping: str = "auto"
    chunk_size: int = 0
    num_devices: int = 0

    def problems(self) -> list[str]:
        """What is wrong with these values, one line each."""
        return errors.problems(
            lambda: check_choice("mapping", self.mapping, ("auto", *MAPPINGS)),
            lambda: check_integer("chunk_size", self.chunk_size, 0),
            lambda: check_integer("num_devices", self.num_devices, 0, len(target.local_devices())),
        )

    @property
    def devices(self) -> list[jax.Device]:
        """The local devices that are used."""
        return target.local_devices()[: self.num_devices or None]

    def resolved(self) -> "Execution":
        """The same with a mapping that is not automatic; one `InputError` for what is wrong."""
        errors.raise_problems(self.problems())
        mapping, *numbers = self
        if mapping == "auto":
            mapping = "sequential" if target.platform() == "cpu" else "vectorized"
        return Execution(errors.plain(mapping), *map(int, numbers))


def make_key(seed: int) -> jax.Array:
    """A typed random key whose draws are fast on a CPU and do not depend on the chunk size under
    `vmap`.

    Raises:
      InputError: unless `seed` is an integer in 0 … 2³² − 1 (beyond, different seeds would give one
        key).
    """
    return key_of_seed(check_integer("seed", seed, 0, 2**32 - 1))


def key_of_seed(seed: int | jax.Array) -> jax.Array:
    """The key of `make_key` for a seed that is known to be one; it may be traced."""
    return jax.random.key(seed, impl="philox4x32")


def resolve_key(seed: jax.Array | int, name: str = "seed") -> jax.Array:
    """A typed random key as it is, an integer as the key of `make_key`; `name` is the argument's.

    Raises:
      InputError: for anything else, several keys at once, a key of `jax.random.PRNGKey`, and a key
        of rbg, whose draws depend on which networks are computed together.
    """
    needed = f"{name}: must be an integer in 0 … 4294967295, or one key as of jax.random.key(0)"
    dtype, shape = getattr(seed, "dtype", np.dtype(object)), getattr(seed, "shape", ())
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        if shape != ():
            raise InputError(f"{needed}, got keys of shape {shape}")
        kind = jax.random.key_impl(seed)
        if "rbg" in str(kind):
            raise InputError(
                f"{name}: must be of philox4x32 or threefry2x32, got a key of {kind}; pass an integer"
            )
        return seed
    if shape != ():
        legacy = dtype == np.uint32 and shape[-1] in (2, 4)
        got = "one of jax.random.PRNGKey" if legacy else f"an array of shape {shape}"
        raise InputError(f"{needed}, got {got}")
    try:
        return make_key(seed)
    except InputError:
        raise InputError(f"{needed}, got {shown(seed)}") from None


def named_key(key: jax.Array, name: str) -> jax.Array:
    """The sub-key of a named purpose."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def member_keys(key: jax.Array, members: jax.Array) -> jax.Array:
    """Keys [N] of the members [N]: each is tied to its number, so growing an ensemble keeps its
    first members.
    """
    return jax.vmap(lambda member: jax.random.fold_in(key, member))(members)


def map_members(function: Callable[..., Any], mapping: str, *args: jax.Array) -> Any:
    """Applies `function` to every member along the leading axis of `args`.

    "vectorized" is one program for all members (`vmap`), best on accelerators and for tiny
    programs; "sequential" is one after another in one compiled loop, which keeps the members'
    working set in cache.
    """
    check_choice("mapping", mapping, MAPPINGS)
    if mapping == "vectorized":
        return jax.vmap(function)(*args)
    return jax.lax.map(lambda member: function(*member), args)


def padded_members(
    first: jax.Array, stop: jax.Array, chunk_size: int
) -> tuple[jax.Array, jax.Array]:
    """Members first … first + chunk_size − 1 [N], and which of them lie below `stop` [N]."""
    members = first + jnp.arange(chunk_size)
    return members, members < stop


def portable_key(key: jax.Array) -> jax.Array:
    """A threefry key drawn from `key`: draws from the keys of `make_key` do not compile inside
    `shard_map`.

    (XLA of JAX 0.10 cannot partition the 64-bit products of philox.)
    """
    return jax.random.wrap_key_data(jax.random.bits(key, (2,), jnp.uint32), impl="threefry2x32")


def keys_of_seeds(purpose: str, seeds: np.ndarray, *names: np.ndarray) -> jax.Array:
    """Keys [N] of the networks of seeds [N], and of whatever else names them, integers [N]: what
    differs besides does not change random numbers.
    """

    def key_of(seed: jax.Array, *names: jax.Array) -> jax.Array:
        key = named_key(key_of_seed(seed), purpose)
        for name in names:
            key = jax.random.fold_in(key, name)
        return portable_key(key)

    return jax.vmap(key_of)(*(jnp.asarray(one, jnp.uint32) for one in (seeds, *names)))


def _mesh(devices: Sequence[jax.Device]) -> jax.sharding.Mesh:
    # `jax.make_mesh` wants whole boxes of a pod.
    return jax.sharding.Mesh(np.asarray(devices), ("networks",), axis_types=(AxisType.Auto,))


def replicated(devices: Sequence[jax.Device]) -> jax.sharding.Sharding:
    """A copy of the whole array on every device."""
    return NamedSharding(_mesh(devices), PartitionSpec())


def spread(devices: Sequence[jax.Device]) -> jax.sharding.Sharding:
    """The leading axis spread over the devices, or all of the array on the only one."""
    return NamedSharding(_mesh(devices), _MEMBERS)


def place_shapes(tree: Any, placed: jax.sharding.Sharding) -> Any:
    """The shapes and types of the arrays of a tree, said to lie on devices that need not be there."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed), tree
    )


def shard_members(function: Shared, devices: Sequence[jax.Device]) -> Shared:
    """`function(shared, *args)` with the leading axis of each of `args` spread over the devices,
    `shared` copied.

    The program of a device knows nothing of the others: there is no communication between them.
    """
    if len(devices) == 1:
        return function

    def sharded(shared: Any, *args: jax.Array) -> Any:
        specs = (PartitionSpec(), *(_MEMBERS for _ in args))
        return jax.shard_map(
            function, mesh=_mesh(devices), in_specs=specs, out_specs=_MEMBERS, check_vma=False
        )(shared, *args)

    return sharded
