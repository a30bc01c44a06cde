"""What the modules of the table have in common: how many logits, what their entries say, and the
layers of which they are made.
"""

import functools
from typing import ClassVar

import flax.linen as nn

from nad_jax.convolution import Convolution

MOMENTUM, EPSILON = 0.9, 1e-5  # of batch normalization


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


class TableNetwork(nn.Module):
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
