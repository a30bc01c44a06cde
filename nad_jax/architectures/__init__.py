"""The table of built-in architectures: plain Flax Linen modules, exactly those of the reference
code.

Sources: NAD, reference code; parameter counts with one channel and one logit at 32×32 are 1,025
(logreg), 60,941 (lenet), 9,750,657 (vgg11), 9,745,153 (vgg11_plain), 11,168,193 (resnet18),
6,945,921 (densenet121). `mlp` and `resnet18_w16`, a quarter as wide as the published ResNet18, are
ours: controls that fit a CPU. `resnet18_imagenet` is that of torchvision, 11,689,512 parameters
with three channels and 1,000 logits, for 224×224 images. Its reference initialization is
torchvision's too: convolutions normal with variance 2/(k² c_out) (Kaiming, fan-out), while
PyTorch's default, that of the other networks, is uniform on ±1/√fan_in.

Differs from the reference in: the running variance of batch normalization, which Flax keeps biased
and PyTorch unbiased (by B·H·W/(B·H·W − 1)).
"""

import functools
from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from nad_jax.architectures.densenet import DenseNet
from nad_jax.architectures.lenet import LeNet
from nad_jax.architectures.logreg import LogReg
from nad_jax.architectures.mlp import MLP
from nad_jax.architectures.resnet import ResNet18, ResNet18ImageNet
from nad_jax.architectures.vgg import VGG11
from nad_jax.convolution import CONVOLUTIONS, resolve_convolution
from nad_jax.errors import InputError, check_choice, check_image_shape, check_integer
from nad_jax.linen import INITIALIZATIONS, from_linen
from nad_jax.models import Model


class Architecture(NamedTuple):
    """How a table entry becomes a module.

    build: build(num_logits, pooling, convolution) -> Linen module.
    pooling: the published kind of pooling; None where there is no pooling layer.
    unpooled: whether pooling and strides can be removed (pooling="none").
    reference_convolution: the reference initialization of convolution kernels, see `initializers`.
    flips: flips(length, pooling): whether an axis of that length may be reversed, see `symmetries`.
      Windows that step by 2 must begin as far from one border as they end from the other.
    """

    build: Callable[[int, str | None, Callable], nn.Module]
    pooling: str | None
    unpooled: bool = False
    reference_convolution: str = "uniform"
    flips: Callable[[int, str | None], bool] = lambda length, pooling: length % 32 == 0


ARCHITECTURES: dict[str, Architecture] = {
    "logreg": Architecture(
        lambda logits, pooling, conv: LogReg(logits), None, flips=lambda *_: True
    ),
    "mlp": Architecture(lambda logits, pooling, conv: MLP(logits), None, flips=lambda *_: True),
    "lenet": Architecture(
        LeNet,
        "max",
        unpooled=True,
        flips=lambda length, pooling: length % 4 == 0 or pooling == "none",
    ),
    "vgg11": Architecture(VGG11, "max", reference_convolution="normal_fan_out"),
    "vgg11_plain": Architecture(
        lambda logits, pooling, conv: VGG11(logits, pooling, conv, batch_norm=False),
        "max",
        reference_convolution="normal_fan_out",
    ),
    "resnet18": Architecture(
        ResNet18, "avg", unpooled=True, flips=lambda _, pooling: pooling == "none"
    ),
    "resnet18_w16": Architecture(
        functools.partial(ResNet18, width=16),
        "avg",
        unpooled=True,
        flips=lambda _, pooling: pooling == "none",
    ),
    "resnet18_imagenet": Architecture(
        ResNet18ImageNet,
        "max",
        reference_convolution="normal_fan_out",
        flips=lambda length, _: length % 32 == 1,
    ),
    "densenet121": Architecture(DenseNet, "avg"),
}

POOLINGS = ("default", "max", "avg", "none")


def create_model(
    architecture: str,
    image_shape: tuple[int, int, int] = (32, 32, 1),
    num_logits: int = 1,
    pooling: str = "default",
    initialization: str = "reference",
    convolution: str = "auto",
) -> Model:
    """A built-in architecture as a `Model`.

    Args:
      architecture: a key of `ARCHITECTURES`.
      image_shape: (H, W, C); any size that survives the network's pooling.
      num_logits: K.
      pooling: "default" (as published), "max" or "avg" in place of every pooling layer there is (a
        global average stays), or "none", which removes every pooling and stride and lets the dense
        layer after flattening grow (LeNet, ResNet18).
      initialization: "reference" (PyTorch-default) or "flax".
      convolution: "auto" (by backend), "product" or "lax", see `convolution`.

    Raises:
      InputError: naming the argument, its value and what is allowed.
    """
    architecture = check_choice("architecture", architecture, ARCHITECTURES)
    pooling = check_choice("pooling", pooling, POOLINGS)
    num_logits = check_integer("num_logits", num_logits, 1)
    image_shape = check_image_shape(image_shape)
    entry = ARCHITECTURES[architecture]
    if pooling == "none" and not entry.unpooled:
        removable = ", ".join(name for name, other in ARCHITECTURES.items() if other.unpooled)
        raise InputError(
            f"pooling: 'none' makes no sense for {architecture!r}; it is there for {removable}"
        )
    if entry.pooling is None or pooling == "default":
        pooling = entry.pooling
    initialization = check_choice("initialization", initialization, INITIALIZATIONS)
    choices = (
        architecture,
        image_shape,
        num_logits,
        pooling,
        initialization,
        resolve_convolution(convolution),
    )
    return _create_model(*choices, jnp.result_type(float))


@functools.lru_cache(
    maxsize=64
)  # commands ask again and again, and tracing DenseNet121 takes seconds
def _create_model(
    architecture: str,
    image_shape: tuple[int, int, int],
    num_logits: int,
    pooling: str | None,
    initialization: str,
    convolution: str,
    precision: np.dtype,  # of JAX, which the shapes kept with a model depend on
) -> Model:
    del precision
    entry = ARCHITECTURES[architecture]
    height, width, _ = image_shape
    symmetries = ("flip",) * (entry.flips(height, pooling) and entry.flips(width, pooling))
    symmetries += ("transpose",) * (height == width)
    model = from_linen(
        entry.build(num_logits, pooling, CONVOLUTIONS[convolution]),
        image_shape,
        initialization,
        reference_convolution=entry.reference_convolution,
        symmetries=symmetries,
        streams=("dropout",),
        check=False,  # the tests of the table check it
    )
    description = {
        "architecture": architecture,
        "image_shape": list(image_shape),
        "num_logits": num_logits,
        "pooling": pooling or "default",
        "initialization": initialization,
        "convolution": convolution,
    }
    return model._replace(description=MappingProxyType(description))
