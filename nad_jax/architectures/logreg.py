"""Logistic regression: one linear layer."""

import flax.linen as nn
import jax


class LogReg(nn.Module):
    num_logits: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dense(self.num_logits)(x.reshape(len(x), -1))
