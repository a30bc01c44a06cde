"""LeNet with ReLU and max-pooling (NAD, reference code)."""

from typing import Literal

import flax.linen as nn
import jax

from nad_jax.architectures.network import (
    ACTIVATIONS,
    INCREASING,
    Activation,
    ImageNetwork,
    Normalization,
    normalize,
)
from nad_jax.convolution import max_pooled
from nad_jax.pooling import pool


class LeNet(ImageNetwork):
    """conv 5×5 (w) – pool 2 – conv 5×5 (⌊8w/3⌋) – pool 2 – dense 20w – 14w – K; valid convolutions,
    ReLU throughout. The published width w = 6 gives 6, 16, 120 and 84.

    A normalization, of which the published network has none, stands between a convolution and its
    activation. `padding` "same" keeps height and width in convolutions, as in LIN.
    """

    pooling: Literal["max", "avg", "none"] = "max"
    width: int = 6
    normalization: Normalization = "none"
    activation: Activation = "relu"
    padding: Literal["valid", "same"] = "valid"

    def flips(self, length: int) -> bool:
        return length % 4 == 0 or self.pooling == "none"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        activate = ACTIVATIONS[self.activation]
        # Max-pooling commutes with the bias and ReLU, so it can be part of the convolution.
        early = self.pooling == "max" and self.normalization == "none"
        early = early and self.activation in INCREASING
        convolution = max_pooled(self.convolution) if early else self.convolution
        for features in (self.width, 8 * self.width // 3):
            padding = self.padding.upper()
            x = nn.Conv(features, (5, 5), padding=padding, conv_general_dilated=convolution)(x)
            x = activate(normalize(x, self.normalization, train))
            if self.pooling != "none" and not early:
                x = pool(x, self.pooling, 2)
        x = x.reshape(len(x), -1)
        for features in (20 * self.width, 14 * self.width):
            x = activate(nn.Dense(features)(x))
        return nn.Dense(self.num_logits)(x)
