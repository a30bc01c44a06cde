"""What the modules of the table have in common: how many logits, what their entries say, and the
layers of which they are made.
"""

import functools
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from nad_jax.blocks import Alike
from nad_jax.convolution import Convolution
from nad_jax.errors import InputError
from nad_jax.initializers import INITIALIZATIONS

MOMENTUM, EPSILON = 0.9, 1e-5  # of batch normalization
GROUP = 16  # channels of a group, at most (Wu & He 2018 compare these)

Activation = Literal["relu", "gelu", "silu", "tanh", "elu", "sigmoid", "sine", "linear"]
Normalization = Literal["batch", "layer", "group", "none"]
Function = Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Function] = {
    "relu": nn.relu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "silu": nn.silu,
    "tanh": jnp.tanh,
    "elu": nn.elu,
    "sigmoid": nn.sigmoid,
    "sine": jnp.sin,
    "linear": lambda x: x,
}
# Of these the maximum of a window is the value at its largest entry.
INCREASING = ("relu", "tanh", "elu", "sigmoid", "linear")


def make_layers(
    convolution: Convolution, train: bool
) -> tuple[functools.partial[nn.Conv], functools.partial[nn.BatchNorm]]:
    """The convolution, without a bias, and the batch normalization of a mode."""
    return (
        functools.partial(nn.Conv, use_bias=False, conv_general_dilated=convolution),
        functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=MOMENTUM, epsilon=EPSILON
        ),
    )


def normalize(
    x: jax.Array, kind: str, train: bool, name: str | None = None, epsilon: float = EPSILON
) -> jax.Array:
    """Images or tokens [..., C], normalized.

    Args:
      kind: "batch": each channel over the batch and all pixels; "layer": each pixel, or token, over
        its channels; "group": each image over all pixels and a group of channels, as many as divide
        C and are no more than 16; "none": as they are.
      name: of the layer.
      epsilon: added to the variance.
    """
    if kind == "batch":
        _, norm = make_layers(None, train)
        return norm(name=name)(x)
    if kind == "layer":
        return nn.LayerNorm(epsilon, name=name)(x)
    if kind == "group":
        size = next(n for n in range(GROUP, 0, -1) if x.shape[-1] % n == 0)
        return nn.GroupNorm(None, size, epsilon, name=name)(x)
    return x


def split_patches(x: jax.Array, patch: int) -> jax.Array:
    """The patches of images [B, H, W, C], row by row: [B, H/p · W/p, p · p · C].

    Raises:
      InputError: where patches do not cover the images.
    """
    check_divisible(x.shape[1:3], patch, f"patch={patch}")
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.swapaxes(2, 3).reshape(batch, -1, patch * patch * channels)


def check_divisible(space: Sequence[int], by: int, reason: str) -> None:
    """Raises `InputError` unless the height and width of images are multiples of `by`."""
    if any(length % by for length in space):
        raise InputError(
            f"image_shape: height and width must be multiples of {by} ({reason}), got "
            f"{'x'.join(map(str, space))}"
        )


class Parameter(nn.Module):
    """An array that is neither of a product nor of a normalization: a position embedding, say. It
    keeps its law under every initialization.

    law: an initializer of `flax.linen.initializers`.
    """

    law: Callable[..., jax.Array]
    shape: tuple[int, ...]
    reference_law: ClassVar[str] = "own"

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("value", self.law, self.shape)


class TableNetwork(nn.Module):
    """A module of the table, of inputs [B, *shape] of any shape.

    Every field with a default is an option of `create_model`; the default is the published value.
    What an option may be is said by its type, see `options`.

    num_logits: K.
    initializations: those it has, the default first; see `initializers`.
    reference_convolution: the reference initialization of convolution kernels, see `initializers`.
    flax_readout_variance: τ² under "flax" where the last layer has another initializer than Flax's.
    """

    num_logits: int
    initializations: ClassVar[tuple[str, ...]] = INITIALIZATIONS
    reference_convolution: ClassVar[str] = "uniform"
    flax_readout_variance: ClassVar[float | None] = None

    def flips(self, length: int) -> bool:
        """Whether an axis of that length may be reversed, see `symmetries`."""
        return True

    def alike(self) -> Alike:
        """What its first layer cannot tell apart, see `blocks`."""
        return Alike("all", layer="Dense_0")


class ImageNetwork(TableNetwork):
    """A module of the table, of images [B, H, W, C].

    convolution: see `convolution`.
    """

    convolution: Convolution

    def flips(self, length: int) -> bool:
        """Windows that step by 2 must begin as far from one border as they end from the other: here
        for five of them, of even size.
        """
        return length % 32 == 0

    def alike(self) -> Alike:
        return Alike("colors", layer="Conv_0")
