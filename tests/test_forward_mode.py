"""Linearizations of networks whose fast convolutions have no forward mode at some batch sizes."""

from functools import partial

import jax
import numpy as np

import nad_jax
from nad_jax.convolution import product_convolution


def test_a_batch_of_any_size_can_be_derived():
    def apply(v, x):
        return product_convolution(x, v, (1, 1), "SAME").mean((1, 2, 3))[:, None]

    init = partial(jax.random.normal, shape=(3, 3, 16, 16))
    model = nad_jax.from_functions(init, apply, (8, 8, 16), check=False)
    network, origin = map(init, jax.random.split(jax.random.key(0)))
    for count in (2, 64):  # 64 have so many pixels that the convolution has no forward mode
        x = jax.random.normal(jax.random.key(1), (count, 8, 8, 16))
        found = nad_jax.linearize(model).apply({"network": network, "origin": origin}, x)
        np.testing.assert_allclose(found, apply(network, x), atol=2e-3)
