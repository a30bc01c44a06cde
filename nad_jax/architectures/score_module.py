"""What the modules of the table of score networks have in common."""

import math
from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nad_jax.convolution import Convolution

WAVELENGTH = 10_000  # the longest of the embedding of noise levels, over 2π, in levels
HEAD = "head"  # the name of the last layer


class Law(NamedTuple):
    """A law of independent numbers: "uniform" on ±size, "normal" of that standard deviation, or
    "constant".
    """

    kind: str
    size: float

    @property
    def variance(self) -> float:
        """Of one number."""
        return {"uniform": self.size**2 / 3.0, "normal": self.size**2, "constant": 0.0}[self.kind]


ZERO = Law("constant", 0.0)


class ScoreModule(nn.Module):
    """A module of the table, of inputs x [B, *shape] and noise levels t [B] -> noise [B, *shape].

    Every field with a default is an option of `create_score_network`; the default is the published
    value. The last layer is an `nn.Dense` or `nn.Conv` named `head`, in which the output is linear.

    convolution: see `convolution`.
    initialization: what its law is called in a record.
    takes_images: whether inputs must be images (H, W, C).
    """

    convolution: Convolution
    initialization: ClassVar[str] = "reference"
    takes_images: ClassVar[bool] = True

    def zeroed(self) -> tuple[str, ...]:
        """The names of the layers that start at zero, whatever their law is."""
        return ()

    def law(self, layer: str, kernel: tuple[int, ...]) -> tuple[Law, Law]:
        """The laws of the entries of the kernel [..., inputs, outputs] of a layer of that name, and
        of its bias: PyTorch's defaults.
        """
        uniform = Law("uniform", 1.0 / math.sqrt(math.prod(kernel[:-1])))
        return uniform, uniform


def embed_levels(t: jax.Array, width: int) -> jax.Array:
    """Noise levels [B] as cosines and sines [B, width] of `width` / 2 frequencies.

    Source: improved DDPM (Nichol and Dhariwal 2021), as in its code.
    """
    half = width // 2
    frequencies = jnp.exp(-math.log(WAVELENGTH) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], 1)
