"""The diffusion transformer (Peebles and Xie 2023), without labels.

Differs from the authors' code in: 1. the kernel of the last layer does not start at zero
(`zero_head`), as in SAD; 2. sines and cosines of positions come in another order, which no kernel
that is drawn can tell.
"""

import math
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from nad_jax.architectures.network import split_patches
from nad_jax.architectures.score_module import HEAD, ZERO, Law, ScoreModule, embed_levels
from nad_jax.architectures.vit import sinusoids
from nad_jax.errors import InputError

EPSILON = 1e-6  # of normalizations
_FREQUENCIES = 256  # of the embedding of a noise level, sines and cosines together
_LEVEL = ("level1", "level2")  # the layers of that embedding
MODULATION = "modulation"  # the layers that read it


def _normalize(x: jax.Array) -> jax.Array:
    return nn.LayerNorm(EPSILON, use_bias=False, use_scale=False)(x)


def _modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    return x * (1.0 + scale[:, None]) + shift[:, None]


class _Attention(nn.Module):
    """Self-attention of tokens [B, T, C] in so many heads, one kernel for all that they read."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, tokens, width = x.shape
        qkv = nn.Dense(3 * width, name="qkv")(x)
        qkv = qkv.reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = (qkv[:, :, part] for part in range(3))
        scores = jnp.einsum("bthd,bshd->bhts", query, key) / math.sqrt(query.shape[-1])
        read = jnp.einsum("bhts,bshd->bthd", nn.softmax(scores), value)
        return nn.Dense(width, name="out")(read.reshape(x.shape))


class _Block(nn.Module):
    """Attention and MLP, whose normalized inputs are shifted and scaled, and whose outputs are
    scaled, by what a dense layer reads in the noise level.
    """

    heads: int
    ratio: int

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        width = x.shape[-1]
        modulation = nn.Dense(6 * width, name=MODULATION)
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation(level), 6, 1)
        y = _modulate(_normalize(x), shift1, scale1)
        x = x + gate1[:, None] * _Attention(self.heads, name="attention")(y)
        y = _modulate(_normalize(x), shift2, scale2)
        y = nn.Dense(self.ratio * width, name="expand")(y)
        y = nn.Dense(width, name="contract")(nn.gelu(y, approximate=True))
        return x + gate2[:, None] * y


class DiT(ScoreModule):
    """Patches – dense `width` – fixed sines and cosines of the position – `depth` blocks – norm,
    shifted and scaled by the noise level – dense layer of the pixels of a patch.

    ratio: the hidden units of an MLP, in `width`.
    zero_init: the layers that read the noise level start at zero ("adaLN-Zero"), so that every
      block starts as the identity.
    zero_head: so does the last layer.
    """

    width: int = 48
    depth: int = 8
    heads: int = 4
    ratio: int = 2
    patch: int = 2
    zero_init: Literal[True, False] = True
    zero_head: Literal[False, True] = False
    initialization: ClassVar[str] = "xavier"

    def zeroed(self) -> tuple[str, ...]:
        return (MODULATION,) * self.zero_init + (HEAD,) * self.zero_head

    def law(self, layer: str, kernel: tuple[int, ...]) -> tuple[Law, Law]:
        """Kernels are uniform on ±√(6 / (inputs + outputs)), those of the noise level narrower."""
        if layer in _LEVEL:
            return Law("normal", 0.02), ZERO
        return Law("uniform", math.sqrt(6.0 / sum(kernel))), ZERO

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        if self.width % self.heads:
            raise InputError(f"heads: must divide the width {self.width}, got {self.heads}")
        if self.width % 4:
            raise InputError(f"width: must be a multiple of 4, got {self.width}")
        shape, patch = x.shape, self.patch
        rows, columns = shape[1] // patch, shape[2] // patch
        x = nn.Dense(self.width, name="patches")(split_patches(x, patch))
        x = x + sinusoids(rows, columns, self.width)[None]

        level = nn.Dense(self.width, name=_LEVEL[0])(embed_levels(t, _FREQUENCIES))
        level = nn.Dense(self.width, name=_LEVEL[1])(nn.silu(level))
        level = nn.silu(level)  # every layer that reads it does so through this
        for number in range(1, self.depth + 1):
            x = _Block(self.heads, self.ratio, name=f"block{number}")(x, level)

        last = nn.Dense(2 * self.width, name=MODULATION)
        x = _modulate(_normalize(x), *jnp.split(last(level), 2, 1))
        x = nn.Dense(patch * patch * shape[3], name=HEAD)(x)
        x = x.reshape(shape[0], rows, columns, patch, patch, shape[3])
        return x.swapaxes(2, 3).reshape(shape)
