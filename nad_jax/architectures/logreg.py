"""Logistic regression: one linear layer."""

import flax.linen as nn
import jax

from nad_jax.architectures.network import TableNetwork


class LogReg(TableNetwork):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dense(self.num_logits)(x.reshape(len(x), -1))
