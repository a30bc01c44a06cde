"""ResNet18 for 32×32 images (NAD, reference code), and the one for ImageNet (He et al. 2016,
torchvision).
"""

import itertools
from typing import ClassVar, Literal

import flax.linen as nn
import jax

from nad_jax.architectures.network import ImageNetwork, make_layers
from nad_jax.convolution import Convolution
from nad_jax.pooling import pool


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with batch normalization around a skip connection, a 1×1 projection
    where shapes change.
    """

    features: int
    stride: int
    convolution: Convolution

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv, norm = make_layers(self.convolution, train)
        # Explicit padding: at stride 2, "SAME" would pad another side than PyTorch does.
        y = conv(self.features, (3, 3), self.stride, padding=1, name="conv1")(x)
        y = nn.relu(norm(name="norm1")(y))
        y = norm(name="norm2")(conv(self.features, (3, 3), padding=1, name="conv2")(y))
        if x.shape != y.shape:
            x = conv(self.features, (1, 1), self.stride, padding=0, name="projection")(x)
            x = norm(name="projection_norm")(x)
        return nn.relu(x + y)


def _stages(network: ImageNetwork, x: jax.Array, train: bool, shrink: bool = True) -> jax.Array:
    """Four stages of two blocks, of 1, 2, 4, 8 times the width, inside a network; all but the
    first halve.
    """
    for stage, block in itertools.product(range(4), range(2)):
        stride = 2 if shrink and stage > 0 and block == 0 else 1
        name = f"block{stage + 1}_{block + 1}"
        features = network.width * 2**stage
        x = BasicBlock(features, stride, network.convolution, name=name)(x, train)
    return x


class ResNet18(ImageNetwork):
    """3×3 stem of `width` features, stages of 1, 2, 4, 8 times as many with two blocks each,
    average pool of 4, dense.

    The published network has a width of 64.
    """

    pooling: Literal["avg", "max", "none"] = "avg"
    width: int = 64

    def flips(self, length: int) -> bool:
        return self.pooling == "none"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv, norm = make_layers(self.convolution, train)
        x = conv(self.width, (3, 3), padding=1, name="stem")(x)
        x = norm(name="stem_norm")(x)
        x = _stages(self, nn.relu(x), train, shrink=self.pooling != "none")
        if self.pooling != "none":
            x = pool(x, self.pooling, 4)
        return nn.Dense(self.num_logits)(x.reshape(len(x), -1))


class ResNet18ImageNet(ImageNetwork):
    """7×7 stem of `width` features with stride 2, 3×3 pooling with stride 2, the stages of
    ResNet18, global average, dense. The published network has a width of 64.

    `pooling` is the kind of the 3×3 pooling.
    """

    pooling: Literal["max", "avg"] = "max"
    width: int = 64
    reference_convolution: ClassVar[str] = "normal_fan_out"

    def flips(self, length: int) -> bool:
        return length % 32 == 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv, norm = make_layers(self.convolution, train)
        x = conv(self.width, (7, 7), 2, padding=3, name="stem")(x)
        x = norm(name="stem_norm")(x)
        x = pool(nn.relu(x), self.pooling, 3, stride=2, padding=1)
        x = _stages(self, x, train)
        return nn.Dense(self.num_logits)(x.mean((1, 2)))
