"""MLP-Mixer (Tolstikhin et al. 2021).

Differs from the authors' code in: 1. the last layer starts as Flax's own does, not at zero, so that
an untrained network has derivatives; 2. GELU is the exact one, not its approximation.
"""

from typing import ClassVar, Literal

import flax.linen as nn
import jax

from nad_jax.architectures.network import (
    ACTIVATIONS,
    Activation,
    ImageNetwork,
    normalize,
    split_patches,
)
from nad_jax.architectures.vit import EPSILON
from nad_jax.blocks import Alike
from nad_jax.initializers import INITIALIZATIONS


class Block(nn.Module):
    """x + MLP(norm(x)) over the tokens of each channel, and then over the channels of each token.

    tokens, channels: units of the hidden layers.
    """

    tokens: int
    channels: int
    normalization: str
    activation: str

    def _mlp(self, x: jax.Array, units: int, name: str) -> jax.Array:
        y = ACTIVATIONS[self.activation](nn.Dense(units, name=f"{name}_expand")(x))
        return nn.Dense(x.shape[-1], name=f"{name}_contract")(y)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = normalize(x, self.normalization, train, "norm1", EPSILON).swapaxes(1, 2)
        x = x + self._mlp(y, self.tokens, "tokens").swapaxes(1, 2)
        y = normalize(x, self.normalization, train, "norm2", EPSILON)
        return x + self._mlp(y, self.channels, "channels")


class Mixer(ImageNetwork):
    """Patches – dense `width` – `depth` blocks that mix tokens, then channels – norm – mean of the
    tokens – dense K.

    The defaults are Mixer-S with patches of 4×4, 64 of them at 32×32. Hidden layers have
    `token_width` and `channel_width` units: by default, as in all published sizes, `width` / 2 and
    4 · `width`.
    """

    patch: int = 4
    width: int = 512
    depth: int = 8
    token_width: int = 0
    channel_width: int = 0
    normalization: Literal["layer", "none"] = "layer"
    activation: Activation = "gelu"
    initializations: ClassVar[tuple[str, ...]] = ("flax", *INITIALIZATIONS[2:])

    def flips(self, length: int) -> bool:
        """Pixels of a patch, and patches, are alike to networks whose weights are drawn alike."""
        return True

    def alike(self) -> Alike:
        """Tokens are alike, too: what mixes them is drawn alike for all."""
        return Alike("patches", self.patch, exchangeable=True, layer="patches")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dense(self.width, name="patches")(split_patches(x, self.patch))
        units = self.token_width or max(1, self.width // 2), self.channel_width or 4 * self.width
        for number in range(1, self.depth + 1):
            block = Block(*units, self.normalization, self.activation, name=f"block{number}")
            x = block(x, train)
        x = normalize(x, self.normalization, train, "norm", EPSILON)
        return nn.Dense(self.num_logits, name="head")(x.mean(1))
