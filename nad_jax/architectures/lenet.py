"""LeNet with ReLU and max-pooling (NAD, reference code)."""

from collections.abc import Callable

import flax.linen as nn
import jax

from nad_jax.convolution import max_pooled
from nad_jax.pooling import pool


class LeNet(nn.Module):
    """conv 5×5 (6) – pool 2 – conv 5×5 (16) – pool 2 – dense 120 – 84 – K; valid convolutions, ReLU
    throughout.
    """

    num_logits: int
    pooling: str
    convolution: Callable

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        # Max-pooling commutes with the bias and ReLU, so it can be part of the convolution.
        convolution = max_pooled(self.convolution) if self.pooling == "max" else self.convolution
        for features in (6, 16):
            x = nn.relu(
                nn.Conv(features, (5, 5), padding="VALID", conv_general_dilated=convolution)(x)
            )
            if self.pooling == "avg":
                x = pool(x, "avg", 2)
        x = x.reshape(len(x), -1)
        for width in (120, 84):
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_logits)(x)
