"""The U-Net of improved DDPM (Nichol and Dhariwal 2021), as SAD takes it for 16×16 images.

Differs from the code of improved DDPM in: 1. no layer starts at zero (`zero_init`), as in SAD; 2.
all levels have as many channels, there is no dropout, and only the middle attends, as SAD has it.
"""

import functools
import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from nad_jax.architectures.network import check_divisible
from nad_jax.architectures.score_module import HEAD, ScoreModule, embed_levels
from nad_jax.convolution import Convolution
from nad_jax.errors import InputError

EPSILON = 1e-5  # of normalizations
_TIME = 4  # the embedding of a noise level is so many times as wide as images


def _convolve(convolution: Convolution, features: int, name: str, stride: int = 1) -> nn.Conv:
    """A 3×3 convolution; its padding is PyTorch's, which "SAME" is not at stride 2."""
    padding = ((1, 1), (1, 1))
    return nn.Conv(features, (3, 3), stride, padding, conv_general_dilated=convolution, name=name)


class _Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + a dense layer of the noise level)))."""

    width: int
    groups: int
    convolution: Convolution

    @nn.compact
    def __call__(self, x: jax.Array, level: jax.Array) -> jax.Array:
        convolve = functools.partial(_convolve, self.convolution, self.width)
        y = nn.silu(nn.GroupNorm(self.groups, epsilon=EPSILON, name="norm1")(x))
        y = convolve("conv1")(y)
        y = y + nn.Dense(self.width, name="level")(nn.silu(level))[:, None, None]
        y = nn.silu(nn.GroupNorm(self.groups, epsilon=EPSILON, name="norm2")(y))
        y = convolve("conv2")(y)
        if x.shape[-1] != self.width:
            x = nn.Dense(self.width, name="skip")(x)
        return x + y


class _Attention(nn.Module):
    """x + self-attention of the pixels of norm(x)."""

    heads: int
    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        pixels = nn.GroupNorm(self.groups, epsilon=EPSILON, name="norm")(x)
        pixels = pixels.reshape(len(x), -1, width)
        qkv = nn.Dense(3 * width, name="qkv")(pixels)
        qkv = qkv.reshape(*pixels.shape[:2], self.heads, 3, width // self.heads)
        query, key, value = (qkv[..., part, :] for part in range(3))
        scores = jnp.einsum("bthd,bshd->bhts", query, key) / math.sqrt(query.shape[-1])
        read = jnp.einsum("bhts,bshd->bthd", nn.softmax(scores), value)
        return x + nn.Dense(width, name="out")(read.reshape(pixels.shape)).reshape(x.shape)


def _enlarge(x: jax.Array) -> jax.Array:
    """Every pixel as a block of 2×2."""
    batch, height, width, channels = x.shape
    shape = batch, height, 2, width, 2, channels
    x = jnp.broadcast_to(x[:, :, None, :, None], shape)
    return x.reshape(batch, 2 * height, 2 * width, channels)


class UNet(ScoreModule):
    """Convolution – `levels` levels of `blocks` residual blocks, halved by strided convolutions –
    residual block, attention, residual block – back, each block reading what its mirror image
    wrote, enlarged by repetition and a convolution – norm, SiLU, convolution.

    width: channels, everywhere.
    groups: of channels in every normalization, a divisor of `width`. The published 32 groups of 32
      channels give each channel a normalization of its own.
    zero_init: the last layer of every block and of the network starts at zero, as in improved DDPM.
    """

    width: int = 32
    levels: int = 3
    blocks: int = 1
    heads: int = 4
    groups: int = 32
    zero_init: Literal[False, True] = False

    def zeroed(self) -> tuple[str, ...]:
        return ("conv2", "out", HEAD) if self.zero_init else ()

    def _check(self, x: jax.Array) -> None:
        check_divisible(x.shape[1:3], 2 ** (self.levels - 1), f"levels={self.levels}")
        for name in ("heads", "groups"):
            if self.width % getattr(self, name):
                raise InputError(
                    f"{name}: must divide the width {self.width}, got {getattr(self, name)}"
                )
        if self.width % 2:
            raise InputError(f"width: must be even, got {self.width}")

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array) -> jax.Array:
        self._check(x)
        channels, time = x.shape[-1], _TIME * self.width
        convolve = functools.partial(_convolve, self.convolution, self.width)
        block = functools.partial(_Residual, self.width, self.groups, self.convolution)

        level = nn.Dense(time, name="level1")(embed_levels(t, self.width))
        level = nn.Dense(time, name="level2")(nn.silu(level))
        x = convolve("conv")(x)
        kept = [x]
        for depth in range(self.levels):
            for number in range(self.blocks):
                x = block(name=f"down{depth}_{number}")(x, level)
                kept.append(x)
            if depth < self.levels - 1:
                x = convolve(f"halve{depth}", stride=2)(x)
                kept.append(x)

        x = block(name="middle1")(x, level)
        x = _Attention(self.heads, self.groups, name="attention")(x)
        x = block(name="middle2")(x, level)

        for depth in reversed(range(self.levels)):
            for number in range(self.blocks + 1):
                x = jnp.concatenate([x, kept.pop()], -1)
                x = block(name=f"up{depth}_{number}")(x, level)
            if depth > 0:
                x = convolve(f"enlarge{depth}")(_enlarge(x))

        x = nn.silu(nn.GroupNorm(self.groups, epsilon=EPSILON, name="norm")(x))
        return _convolve(self.convolution, channels, HEAD)(x)
