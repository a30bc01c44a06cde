"""ConvNeXt (Liu et al. 2022)."""

from typing import ClassVar, Literal

import flax.linen as nn
import jax

from nad_jax.architectures.network import (
    ACTIVATIONS,
    Activation,
    ImageNetwork,
    Parameter,
    check_divisible,
    normalize,
    split_patches,
)
from nad_jax.architectures.vit import EPSILON
from nad_jax.blocks import Alike
from nad_jax.convolution import Convolution, product_convolution
from nad_jax.depthwise import depthwise_products
from nad_jax.initializers import INITIALIZATIONS

EXPANSION, SIZE = 4, 7
DEVIATION = 0.02  # of weights; the authors' code cuts them at ±2, a hundred deviations

_weights = nn.initializers.normal(DEVIATION)


class Block(nn.Module):
    """x + scale · dense C(GELU(dense 4 C(norm(depthwise 7×7(x)))))."""

    convolution: Convolution
    layer_scale: float | None
    normalization: str
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        features = x.shape[-1]
        by_products = self.convolution is product_convolution
        convolve = depthwise_products if by_products else jax.lax.conv_general_dilated
        y = nn.Conv(
            features,
            (SIZE, SIZE),
            padding=SIZE // 2,
            feature_group_count=features,
            kernel_init=_weights,
            conv_general_dilated=convolve,
            name="depthwise",
        )(x)
        y = normalize(y, self.normalization, train, "norm", EPSILON)
        y = nn.Dense(EXPANSION * features, kernel_init=_weights, name="expand")(y)
        y = nn.Dense(features, kernel_init=_weights, name="contract")(
            ACTIVATIONS[self.activation](y)
        )
        if self.layer_scale is not None:
            scale = nn.initializers.constant(self.layer_scale)
            y = y * Parameter(scale, (1, 1, 1, features), name="scale")()
        return x + y


class ConvNeXt(ImageNetwork):
    """Patches – four stages of `width` · (1, 2, 4, 8) features, between which 2×2 convolutions of
    stride 2 halve – global average – norm – dense K.

    The defaults are ConvNeXt-T with a stem of 2×2 instead of 4×4 patches, for 32×32 images.
    `stages` says how many blocks each stage has. What a block adds is multiplied by a learned
    `layer_scale` for each channel. It starts at the paper's 1e-6: every block is the identity at
    initialization, to six digits, and NADs are those of the stem and of what halves. None ("none"
    on command lines) leaves it out.
    """

    patch: int = 2
    width: int = 96
    stages: str = "3-3-9-3"
    layer_scale: float | None = 1e-6
    normalization: Literal["layer", "none"] = "layer"
    activation: Activation = "gelu"
    initializations: ClassVar[tuple[str, ...]] = ("flax", *INITIALIZATIONS[2:])
    flax_readout_variance: ClassVar[float] = DEVIATION**2

    def flips(self, length: int) -> bool:
        """Patches cover the images, and paddings of 7×7 windows are the same on all sides."""
        return True

    def alike(self) -> Alike:
        return Alike("patches", self.patch, layer="patches")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        check_divisible(x.shape[1:3], 8 * self.patch, f"8 patches of {self.patch}")
        how = self.layer_scale, self.normalization, self.activation
        for stage, blocks in enumerate(map(int, self.stages.split("-"))):
            if stage:
                x = normalize(x, self.normalization, train, f"halve{stage}_norm", EPSILON)
            name, size = (f"halve{stage}", 2) if stage else ("patches", self.patch)
            rows, columns = x.shape[1] // size, x.shape[2] // size
            dense = nn.Dense(self.width * 2**stage, kernel_init=_weights, name=name)
            x = dense(split_patches(x, size)).reshape(len(x), rows, columns, -1)
            if not stage:
                x = normalize(x, self.normalization, train, "patches_norm", EPSILON)
            for block in range(1, blocks + 1):
                x = Block(self.convolution, *how, name=f"block{stage + 1}_{block}")(x, train)
        x = normalize(x.mean((1, 2)), self.normalization, train, "norm", EPSILON)
        return nn.Dense(self.num_logits, kernel_init=_weights, name="head")(x)
