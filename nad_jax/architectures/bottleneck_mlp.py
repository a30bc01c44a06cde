"""The bottleneck MLP of "Scaling MLPs" (Bachmann, Anagnostidis and Hofmann 2023)."""

from typing import Literal

import flax.linen as nn
import jax

from nad_jax.architectures.network import ACTIVATIONS, Activation, TableNetwork, normalize

EXPANSION = 4


class BottleneckMLP(TableNetwork):
    """dense w – `depth` blocks x + dense w(GELU(dense 4w(norm(x)))) – dense K, without a last
    normalization: B_depth-Wi_width, here B_6-Wi_512.
    """

    width: int = 512
    depth: int = 6
    normalization: Literal["layer", "none"] = "layer"
    activation: Activation = "gelu"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dense(self.width)(x.reshape(len(x), -1))
        for _ in range(self.depth):
            y = nn.Dense(EXPANSION * self.width)(normalize(x, self.normalization, train))
            x = x + nn.Dense(self.width)(ACTIVATIONS[self.activation](y))
        return nn.Dense(self.num_logits)(x)
