"""Logistic regression: one linear layer."""

import flax.linen as nn
import jax

from nad_jax.architectures.network import TableNetwork
from nad_jax.blocks import DERIVATIVES, Alike


class LogReg(TableNetwork):
    def alike(self) -> Alike:
        """The derivative is the weights themselves, wherever it is taken."""
        return Alike("all", anywhere=DERIVATIVES, layer="Dense_0")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dense(self.num_logits)(x.reshape(len(x), -1))
