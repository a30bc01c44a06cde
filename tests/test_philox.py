"""Keys for programs of several devices: the draws are those of JAX's own, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import target
from nad_jax.ensemble import shard_members
from nad_jax.philox import partitionable

DRAWS = {
    "uint8": lambda key: jax.random.bits(key, (7,), jnp.uint8),
    "uint16": lambda key: jax.random.bits(key, (7,), jnp.uint16),
    "uint32": lambda key: jax.random.bits(key, (300, 50), jnp.uint32),
    "scalar": lambda key: jax.random.normal(key),
    "normal": lambda key: jax.random.normal(key, (100,)),
    "gamma": lambda key: jax.random.gamma(key, 2.0, (5,)),
    "permutation": lambda key: jax.random.permutation(key, 50),
    "orthogonal": lambda key: jax.random.orthogonal(key, 4),
    "split": lambda key: jax.random.key_data(jax.random.split(key, (3, 2))),
    "fold_in": lambda key: jax.random.key_data(jax.random.fold_in(key, 2**31 + 7)),
    "vmap": lambda key: jax.vmap(jax.random.normal)(jax.random.split(key, 4)),
}


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1])
def test_draws_are_those_of_the_original_key(draw, seed):
    key = jax.random.fold_in(jax.random.key(seed, impl="philox4x32"), 3)
    np.testing.assert_array_equal(DRAWS[draw](partitionable(key)), DRAWS[draw](key))


def test_64_bits_are_those_of_the_original_key():
    with jax.enable_x64(True):
        key = jax.random.key(1, impl="philox4x32")
        both = [jax.random.bits(one, (5,), jnp.uint64) for one in (key, partitionable(key))]
    assert both[0].dtype == np.uint64
    np.testing.assert_array_equal(*both)


def test_several_devices_draw_what_one_draws():
    def draw(key, members):
        keys = jax.vmap(lambda member: jax.random.fold_in(partitionable(key), member))(members)
        return jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)

    key, members = jax.random.key(0, impl="philox4x32"), jnp.arange(8)
    with target.compiled_for(jax.devices()[:4]):
        sharded = jax.jit(shard_members(draw, target.local_devices()))(key, members)
    assert len(sharded.sharding.device_set) == 4
    np.testing.assert_array_equal(sharded, draw(key, members))


def test_keys_of_other_kinds_stay_as_they_are():
    key = jax.random.key(0, impl="threefry2x32")
    assert partitionable(key) is key
