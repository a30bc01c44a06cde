"""VGG11 for 32×32 images, with and without batch normalization (NAD, reference code; published runs
use it).
"""

from typing import ClassVar, Literal

import flax.linen as nn
import jax

from nad_jax.architectures.network import ImageNetwork, make_layers
from nad_jax.pooling import pool

STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))  # in units of the width


class VGG11(ImageNetwork):
    """Five stages of 3×3 convolutions of `width` times 1, 2, 4, 8 and 8 features, each ending in a
    pooling of 2, then dense 8·width – 8·width – K with dropout.
    """

    pooling: Literal["max", "avg"] = "max"
    width: int = 64
    normalization: Literal["batch", "none"] = "batch"
    reference_convolution: ClassVar[str] = "normal_fan_out"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv, norm = make_layers(self.convolution, train)
        for stage in STAGES:
            for multiple in stage:
                x = conv(multiple * self.width, (3, 3), padding=1, use_bias=True)(x)
                if self.normalization == "batch":
                    x = norm()(x)
                x = nn.relu(x)
            x = pool(x, self.pooling, 2)
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(8 * self.width)(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.num_logits)(x)
