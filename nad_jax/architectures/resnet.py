"""ResNet18 for 32×32 images (NAD, reference code), and the one for ImageNet (He et al. 2016,
torchvision).
"""

import itertools
from typing import ClassVar, Literal

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
from nad_jax.pooling import pool


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with normalizations around a skip connection, a 1×1 projection where
    shapes change; no connection where it is not residual.
    """

    features: int
    stride: int
    convolution: Convolution
    normalization: str = "batch"
    activation: str = "relu"
    residual: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv, _ = make_layers(self.convolution, train)
        activate, kind = ACTIVATIONS[self.activation], self.normalization
        # Explicit padding: at stride 2, "SAME" would pad another side than PyTorch does.
        y = conv(self.features, (3, 3), self.stride, padding=1, name="conv1")(x)
        y = activate(normalize(y, kind, train, "norm1"))
        y = conv(self.features, (3, 3), padding=1, name="conv2")(y)
        y = normalize(y, kind, train, "norm2")
        if not self.residual:
            return activate(y)
        if x.shape != y.shape:
            x = conv(self.features, (1, 1), self.stride, padding=0, name="projection")(x)
            x = normalize(x, kind, train, "projection_norm")
        return activate(x + y)


def _stages(network: ImageNetwork, x: jax.Array, train: bool, shrink: bool = True) -> jax.Array:
    """Four stages of two blocks, of 1, 2, 4, 8 times the width, inside a network; all but the
    first halve.
    """
    how = network.convolution, network.normalization, network.activation, network.residual
    for stage, block in itertools.product(range(4), range(2)):
        stride = 2 if shrink and stage > 0 and block == 0 else 1
        name = f"block{stage + 1}_{block + 1}"
        x = BasicBlock(network.width * 2**stage, stride, *how, name=name)(x, train)
    return x


class ResNet18(ImageNetwork):
    """3×3 stem of `width` features, stages of 1, 2, 4, 8 times as many with two blocks each,
    average pool of 4, the whole map at 32×32 and below, dense.

    The published network has a width of 64. Its convolutions have no biases, without normalization
    neither.
    """

    pooling: Literal["avg", "max", "none"] = "avg"
    width: int = 64
    normalization: Normalization = "batch"
    activation: Activation = "relu"
    residual: Literal[True, False] = True

    def flips(self, length: int) -> bool:
        return self.pooling == "none"

    def alike(self) -> Alike:
        return Alike("colors", layer="stem")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv, _ = make_layers(self.convolution, train)
        x = conv(self.width, (3, 3), padding=1, name="stem")(x)
        x = ACTIVATIONS[self.activation](normalize(x, self.normalization, train, "stem_norm"))
        x = _stages(self, x, train, shrink=self.pooling != "none")
        if self.pooling != "none":
            x = pool(x, self.pooling, min(4, *x.shape[1:3]))
        return nn.Dense(self.num_logits)(x.reshape(len(x), -1))


class ResNet18ImageNet(ImageNetwork):
    """7×7 stem of `width` features with stride 2, 3×3 pooling with stride 2, the stages of
    ResNet18, global average, dense. The published network has a width of 64.

    `pooling` is the kind of the 3×3 pooling.
    """

    pooling: Literal["max", "avg"] = "max"
    width: int = 64
    normalization: Normalization = "batch"
    activation: Activation = "relu"
    residual: Literal[True, False] = True
    reference_convolution: ClassVar[str] = "normal_fan_out"

    def flips(self, length: int) -> bool:
        return length % 32 == 1

    def alike(self) -> Alike:
        return Alike("colors", layer="stem")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv, _ = make_layers(self.convolution, train)
        x = conv(self.width, (7, 7), 2, padding=3, name="stem")(x)
        x = ACTIVATIONS[self.activation](normalize(x, self.normalization, train, "stem_norm"))
        x = pool(x, self.pooling, 3, stride=2, padding=1)
        x = _stages(self, x, train)
        return nn.Dense(self.num_logits)(x.mean((1, 2)))
