"""DenseNet121 for 32×32 images (NAD, reference code)."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from nad_jax.convolution import pool

GROWTH = 32
BLOCKS = (6, 12, 24, 16)


class DenseNet(nn.Module):
    """3×3 stem, four dense blocks with bottlenecks of 4·growth, transitions that halve channels and pool by 2."""

    num_logits: int
    pooling: str
    convolution: Callable

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, conv_general_dilated=self.convolution)
        norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5)
        x = conv(2 * GROWTH, (3, 3), padding=1)(x)
        for block, num_layers in enumerate(BLOCKS):
            for _ in range(num_layers):
                y = conv(4 * GROWTH, (1, 1), padding=0)(nn.relu(norm()(x)))
                y = conv(GROWTH, (3, 3), padding=1)(nn.relu(norm()(y)))
                x = jnp.concatenate([y, x], axis=-1)
            if block < len(BLOCKS) - 1:
                x = conv(x.shape[-1] // 2, (1, 1), padding=0)(nn.relu(norm()(x)))
                x = pool(x, self.pooling, 2)
        x = pool(nn.relu(norm()(x)), self.pooling, 4)
        return nn.Dense(self.num_logits)(x.reshape(len(x), -1))
