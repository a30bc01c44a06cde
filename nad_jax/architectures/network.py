"""What the modules of the table have in common: how many logits, and what their entries say."""

from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn


class Network(nn.Module):
    """A module of the table, of inputs [B, *shape] of any shape.

    Every field with a default is an option of `create_model`; the default is the published value.
    An option has the values of its `Literal` type, or positive integers.

    num_logits: K.
    reference_convolution: the reference initialization of convolution kernels, see `initializers`.
    """

    num_logits: int
    reference_convolution: ClassVar[str] = "uniform"

    def flips(self, length: int) -> bool:
        """Whether an axis of that length may be reversed, see `symmetries`."""
        return True


class ImageNetwork(Network):
    """A module of the table, of images [B, H, W, C].

    convolution: see `convolution`.
    """

    convolution: Callable

    def flips(self, length: int) -> bool:
        """Windows that step by 2 must begin as far from one border as they end from the other: here
        for five of them, of even size.
        """
        return length % 32 == 0
