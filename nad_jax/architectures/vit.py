"""Vision transformer (Dosovitskiy et al. 2021).

Differs from the authors' code in: 1. the last layer starts as Flax's own does, not at zero, so that
an untrained network has derivatives; 2. GELU is the exact one, not its approximation; 3. there is
no dropout.
"""

import math
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.architectures.network import (
    ACTIVATIONS,
    Activation,
    ImageNetwork,
    Parameter,
    normalize,
    split_patches,
)
from nad_jax.blocks import Alike
from nad_jax.errors import InputError
from nad_jax.initializers import INITIALIZATIONS

EXPANSION = 4
EPSILON = 1e-6  # of normalizations
WAVELENGTH = 10_000  # the longest of a fixed embedding, over 2π, in patches

_xavier = nn.initializers.xavier_uniform()


class Attention(nn.Module):
    """Self-attention of tokens [B, T, C] in so many heads."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, width = x.shape
        shape = batch, tokens, self.heads, width // self.heads
        query, key, value = (
            nn.Dense(width, kernel_init=_xavier, name=name)(x).reshape(shape)
            for name in ("query", "key", "value")
        )
        scores = jnp.einsum("bthd,bshd->bhts", query, key) / math.sqrt(shape[-1])
        read = jnp.einsum("bhts,bshd->bthd", nn.softmax(scores), value)
        return nn.Dense(width, kernel_init=_xavier, name="out")(read.reshape(x.shape))


class Block(nn.Module):
    """x + attention(norm(x)), and then x + MLP(norm(x)) with one hidden layer of 4 C."""

    heads: int
    normalization: str
    activation: str

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        how = {"kernel_init": _xavier, "bias_init": nn.initializers.normal(1e-6)}
        y = normalize(x, self.normalization, train, "norm1", EPSILON)
        x = x + Attention(self.heads, name="attention")(y)
        y = normalize(x, self.normalization, train, "norm2", EPSILON)
        y = nn.Dense(EXPANSION * x.shape[-1], name="expand", **how)(y)
        return x + nn.Dense(x.shape[-1], name="contract", **how)(ACTIVATIONS[self.activation](y))


def sinusoids(rows: int, columns: int, width: int) -> np.ndarray:
    """The fixed position embedding [rows · columns, width]: sines and cosines of the row, of the
    column, each at width / 4 frequencies.
    """
    frequencies = WAVELENGTH ** (-np.arange(width // 4) / (width / 4))
    row, column = np.indices((rows, columns)).reshape(2, -1, 1) * frequencies
    waves = [np.sin(row), np.cos(row), np.sin(column), np.cos(column)]
    return np.concatenate(waves, 1).astype(np.float32)


class ViT(ImageNetwork):
    """Patches – dense `width` – position embedding – `depth` blocks of attention and MLP – norm –
    dense K, which reads the class token ("token") or the mean of all tokens ("avg").

    The defaults are ViT-Ti with patches of 4×4: 64 of them at 32×32, as many tokens as 16×16 gives
    at 128×128. The MLP is 4 · `width` wide.

    At x = 0 and without a position embedding every token is zero, since biases start there: every
    normalization then divides zero by the root of its epsilon, 1e-3, and derivatives grow a
    thousandfold with each, until they leave float32.
    """

    pooling: Literal["token", "avg"] = "token"
    patch: int = 4
    width: int = 192
    depth: int = 12
    heads: int = 3
    position: Literal["learned", "fixed", "none"] = "learned"
    normalization: Literal["layer", "none"] = "layer"
    activation: Activation = "gelu"
    initializations: ClassVar[tuple[str, ...]] = ("flax", *INITIALIZATIONS[2:])

    def flips(self, length: int) -> bool:
        """Patches are alike to a network that draws their embedding; a fixed one tells the first
        from the last.
        """
        return self.position != "fixed"

    def alike(self) -> Alike:
        """Tokens are alike, too, but for a fixed embedding."""
        return Alike("patches", self.patch, self.position != "fixed", layer="patches")

    def _embed(self, x: jax.Array, rows: int, columns: int) -> jax.Array:
        if self.position == "learned":
            shape = (1, x.shape[1], self.width)
            return x + Parameter(nn.initializers.normal(0.02), shape, name="position")()
        waves = sinusoids(rows, columns, self.width)[None]
        # A class token is at no place.
        return x + jnp.pad(waves, ((0, 0), (x.shape[1] - rows * columns, 0), (0, 0)))

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.width % self.heads:
            raise InputError(f"heads: must divide the width {self.width}, got {self.heads}")
        if self.position == "fixed" and self.width % 4:
            raise InputError(f"width: must be a multiple of 4 (position='fixed'), got {self.width}")
        rows, columns = x.shape[1] // self.patch, x.shape[2] // self.patch
        x = nn.Dense(self.width, name="patches")(split_patches(x, self.patch))
        if self.pooling == "token":
            token = Parameter(nn.initializers.zeros, (1, 1, self.width), name="token")()
            x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)), x], 1)
        if self.position != "none":
            x = self._embed(x, rows, columns)
        for number in range(1, self.depth + 1):
            block = Block(self.heads, self.normalization, self.activation, name=f"block{number}")
            x = block(x, train)
        x = normalize(x, self.normalization, train, "norm", EPSILON)
        x = x[:, 0] if self.pooling == "token" else x.mean(1)
        return nn.Dense(self.num_logits, name="head")(x)
