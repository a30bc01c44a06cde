"""Score networks of two hidden layers, ours: the controls of U-Net and DiT."""

from typing import ClassVar

import flax.linen as nn
import jax

from nad_jax.architectures.score_module import HEAD, ScoreModule, embed_levels

_FREQUENCIES = 32  # of the embedding of a noise level, sines and cosines together


class ScoreMLP(ScoreModule):
    """Two hidden ReLU layers of `width` units, the first of which also reads the noise level."""

    width: int = 64
    takes_images: ClassVar[bool] = False

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        shape, x = x.shape, x.reshape(len(x), -1)
        level = nn.Dense(self.width, name="level")(embed_levels(t, _FREQUENCIES))
        y = nn.relu(nn.Dense(self.width, name="dense1")(x) + level)
        y = nn.relu(nn.Dense(self.width, name="dense2")(y))
        return nn.Dense(x.shape[1], name=HEAD)(y).reshape(shape)


class ScoreCNN(ScoreModule):
    """Two hidden ReLU layers of 3×3 convolutions to `width` channels, likewise."""

    width: int = 16

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        def convolve(features: int, name: str) -> nn.Conv:
            return nn.Conv(features, (3, 3), conv_general_dilated=self.convolution, name=name)

        level = nn.Dense(self.width, name="level")(embed_levels(t, _FREQUENCIES))
        y = nn.relu(convolve(self.width, "conv1")(x) + level[:, None, None])
        y = nn.relu(convolve(self.width, "conv2")(y))
        return convolve(x.shape[-1], HEAD)(y)
