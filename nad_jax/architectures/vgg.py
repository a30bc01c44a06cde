"""VGG11 for 32×32 images, with and without batch normalization (NAD, reference code; published runs
use it).
"""

from collections.abc import Callable

import flax.linen as nn
import jax

from nad_jax.pooling import pool

STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG11(nn.Module):
    """Five stages of 3×3 convolutions, each ending in a pooling of 2, then dense 512 – 512 – K with
    dropout.
    """

    num_logits: int
    pooling: str
    convolution: Callable
    batch_norm: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for stage in STAGES:
            for features in stage:
                x = nn.Conv(features, (3, 3), padding=1, conv_general_dilated=self.convolution)(x)
                if self.batch_norm:
                    x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x)
                x = nn.relu(x)
            x = pool(x, self.pooling, 2)
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(512)(x))
            x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(self.num_logits)(x)
