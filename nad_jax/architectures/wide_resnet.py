"""Wide residual networks for 32×32 images (Zagoruyko and Komodakis 2016)."""

from typing import Literal

import flax.linen as nn
import jax

from nad_jax.architectures.network import (
    ACTIVATIONS,
    Activation,
    ImageNetwork,
    Normalization,
    make_layers,
    normalize,
)
from nad_jax.blocks import Alike
from nad_jax.convolution import Convolution
from nad_jax.errors import InputError
from nad_jax.pooling import pool


class WideBlock(nn.Module):
    """Normalization, activation and 3×3 convolution, twice, around a skip connection; where
    features change, a 1×1 convolution of what the first one reads.
    """

    features: int
    stride: int
    convolution: Convolution
    normalization: str
    activation: str
    residual: bool

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv, _ = make_layers(self.convolution, train)
        activate, kind = ACTIVATIONS[self.activation], self.normalization
        read = activate(normalize(x, kind, train, "norm1"))
        y = conv(self.features, (3, 3), self.stride, padding=1, name="conv1")(read)
        y = activate(normalize(y, kind, train, "norm2"))
        y = conv(self.features, (3, 3), padding=1, name="conv2")(y)
        if not self.residual:
            return y
        if x.shape != y.shape:
            x = conv(self.features, (1, 1), self.stride, padding=0, name="projection")(read)
        return x + y


class WideResNet(ImageNetwork):
    """3×3 stem of `width` features, three stages of `widen` · (1, 2, 4) times as many, of (depth −
    4) / 6 blocks each, average pool of 8, dense: WRN-depth-widen, here WRN-16-4.

    The published width is 16. Convolutions have no biases. The initialization of the authors' code
    for PyTorch is "he", but for the gains of normalizations, which are drawn there.
    """

    pooling: Literal["avg", "max", "none"] = "avg"
    width: int = 16
    depth: int = 16
    widen: int = 4
    normalization: Normalization = "batch"
    activation: Activation = "relu"
    residual: Literal[True, False] = True

    def flips(self, length: int) -> bool:
        return self.pooling == "none"

    def alike(self) -> Alike:
        return Alike("colors", layer="stem")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        blocks, rest = divmod(self.depth - 4, 6)
        if rest or blocks < 1:
            raise InputError(f"depth: must be 10, 16, 22, … (6n + 4), got {self.depth}")
        conv, _ = make_layers(self.convolution, train)
        how = self.convolution, self.normalization, self.activation, self.residual
        x = conv(self.width, (3, 3), padding=1, name="stem")(x)
        for stage in range(3):
            for block in range(blocks):
                halves = stage > 0 and block == 0 and self.pooling != "none"
                name, stride = f"block{stage + 1}_{block + 1}", 2 if halves else 1
                features = self.width * self.widen * 2**stage
                x = WideBlock(features, stride, *how, name=name)(x, train)
        x = ACTIVATIONS[self.activation](normalize(x, self.normalization, train, "norm"))
        if self.pooling != "none":
            x = pool(x, self.pooling, 8)
        return nn.Dense(self.num_logits)(x.reshape(len(x), -1))
