"""The table of built-in architectures: plain Flax Linen modules, exactly those of the reference
code.

Sources: NAD, reference code; parameter counts with one channel and one logit at 32×32 are 1,025
(logreg), 60,941 (lenet), 9,750,657 (vgg11), 9,745,153 (vgg11_plain), 11,168,193 (resnet18),
6,945,921 (densenet121). `mlp` and `resnet18_w16`, `resnet18` at a quarter of its width, are ours:
controls that fit a CPU. `resnet18_imagenet` is that of torchvision, 11,689,512 parameters
with three channels and 1,000 logits, for 224×224 images. Its reference initialization is
torchvision's too: convolutions normal with variance 2/(k² c_out) (Kaiming, fan-out), while
PyTorch's default, that of the other networks, is uniform on ±1/√fan_in.

Differs from the reference in: the running variance of batch normalization, which Flax keeps biased
and PyTorch unbiased (by B·H·W/(B·H·W − 1)).
"""

import dataclasses
import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

import jax.numpy as jnp
import numpy as np

from nad_jax.architectures.densenet import DenseNet
from nad_jax.architectures.lenet import LeNet
from nad_jax.architectures.logreg import LogReg
from nad_jax.architectures.mlp import MLP
from nad_jax.architectures.network import ImageNetwork, TableNetwork
from nad_jax.architectures.resnet import ResNet18, ResNet18ImageNet
from nad_jax.architectures.vgg import VGG11
from nad_jax.convolution import CONVOLUTIONS, resolve_convolution
from nad_jax.errors import (
    InputError,
    check_choice,
    check_image_shape,
    check_input_shape,
    check_integer,
    plain,
    shown,
)
from nad_jax.linen import INITIALIZATIONS, from_linen
from nad_jax.models import Model
from nad_jax.own_models import is_own, make_own_model
from nad_jax.renamed import takes_input_shape


class Architecture(NamedTuple):
    """A table entry: a class of Linen modules, and the published values of those options whose
    defaults, in the fields of the module, are another entry's.
    """

    module: type[TableNetwork]
    values: Mapping[str, Any] = MappingProxyType({})

    def options(self) -> dict[str, tuple[Any, tuple[Any, ...]]]:
        """The published value of every option, and the allowed ones; () for positive integers."""
        return {
            field.name: (self.values.get(field.name, field.default), get_args(field.type))
            for field in dataclasses.fields(self.module)
            if field.name not in ("parent", "name") and field.default is not dataclasses.MISSING
        }


ARCHITECTURES: dict[str, Architecture] = {
    "logreg": Architecture(LogReg),
    "mlp": Architecture(MLP),
    "lenet": Architecture(LeNet),
    "vgg11": Architecture(VGG11),
    "vgg11_plain": Architecture(VGG11, {"normalization": "none"}),
    "resnet18": Architecture(ResNet18),
    "resnet18_w16": Architecture(ResNet18, {"width": 16}),
    "resnet18_imagenet": Architecture(ResNet18ImageNet),
    "densenet121": Architecture(DenseNet),
}

POOLINGS = ("default", "max", "avg", "none")


@takes_input_shape
def create_model(
    architecture: str,
    image_shape: tuple[int, ...] = (32, 32, 1),
    num_logits: int = 1,
    pooling: str = "default",
    initialization: str = "default",
    convolution: str = "auto",
    **options: Any,
) -> Model:
    """A built-in architecture as a `Model`, or a model of one's own by its name.

    Args:
      architecture: a key of `ARCHITECTURES`; or `package.module:Name`, `path/to/file.py:Name` or a
        name given by `register`, see `own_models`.
      image_shape: of one input; also `input_shape`. "logreg" and "mlp" take any, (D,), (L, C),
        (H, W, C) or (T, H, W, C), the others images (H, W, C) of any size that survives their
        pooling.
      num_logits: K.
      pooling: "default" (as published), "max" or "avg" in place of every pooling layer there is (a
        global average stays), or "none", which removes every pooling and stride and lets the dense
        layer after flattening grow (LeNet, ResNet18).
      initialization: "reference" (PyTorch-default), "flax" (that of the modules), or "default": the
        former for built-in architectures, the latter for models of one's own.
      convolution: "auto" (by backend), "product" or "lax", see `convolution`.
      options: fields of the architecture's module, None and 0 as published, of which a model's
        description holds those that are not; or arguments of what makes a model of one's own, of
        which None is left out. Of built-in architectures: width, the units of the hidden layers
        (mlp, published 512), channels of the first layer, with all others in proportion (lenet 6,
        vgg11 64, resnet18 64), or the growth of channels per layer (densenet121 32); normalization,
        "batch" or "none" (vgg11).

    Raises:
      InputError: naming the argument, its value and what is allowed.
    """
    check_choice("initialization", initialization, ("default", *INITIALIZATIONS))
    if is_own(architecture):
        own = initialization if initialization != "default" else "flax"
        chosen = {"pooling": None if pooling == "default" else pooling, **options}
        return make_own_model(architecture, image_shape, num_logits, own, convolution, chosen)
    if initialization == "default":
        initialization = "reference"
    architecture = check_choice("architecture", architecture, ARCHITECTURES)
    entry = ARCHITECTURES[architecture]
    takes_images = issubclass(entry.module, ImageNetwork)
    pooling = check_choice("pooling", pooling, POOLINGS)
    if pooling == "default" or (pooling != "none" and not takes_images):
        pooling = None
    return _create_model(
        architecture,
        (check_image_shape if takes_images else check_input_shape)(image_shape),
        check_integer("num_logits", num_logits, 1),
        initialization,
        resolve_convolution(convolution),
        _check_options(architecture, {"pooling": pooling, **options}),
        jnp.result_type(float),
    )


def _check_options(architecture: str, given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The options of an architecture that are not as published, with their values, by name."""
    options, changed = ARCHITECTURES[architecture].options(), {}
    known = dict.fromkeys(name for entry in ARCHITECTURES.values() for name in entry.options())
    for name, value in given.items():
        check_choice("option", name, known)
        value = plain(value)
        if value in (None, 0):
            continue
        published, allowed = options.get(name, (None, ()))
        if name not in options or (allowed and value not in allowed):
            reason = f"allowed: {', '.join(map(repr, allowed))}" if allowed else f"it has no {name}"
            raise InputError(
                f"{name}: {shown(value)} makes no sense for {architecture!r}; {reason}"
            )
        value = value if allowed else check_integer(name, value, 1)
        if value != published:
            changed[name] = value
    return tuple(sorted(changed.items()))


# Commands ask again and again, and tracing DenseNet121 takes seconds.
@functools.lru_cache(maxsize=64)
def _create_model(
    architecture: str,
    image_shape: tuple[int, ...],
    num_logits: int,
    initialization: str,
    convolution: str,
    options: tuple[tuple[str, Any], ...],
    precision: np.dtype,  # of JAX, which the shapes kept with a model depend on
) -> Model:
    del precision
    entry, changed = ARCHITECTURES[architecture], dict(options)
    fields = {**entry.values, **changed}
    if issubclass(entry.module, ImageNetwork):
        fields["convolution"] = CONVOLUTIONS[convolution]
    module = entry.module(num_logits, **fields)
    lengths = image_shape[:-1]
    symmetries = ("flip",) * (len(lengths) > 0 and all(map(module.flips, lengths)))
    symmetries += ("transpose",) * (len(lengths) == 2 and lengths[0] == lengths[1])
    model = from_linen(
        module,
        image_shape,
        initialization,
        reference_convolution=module.reference_convolution,
        symmetries=symmetries,
        streams=("dropout",),
        convolution=convolution,
        check=False,  # the tests of the table check it
    )
    description = {
        "architecture": architecture,
        "image_shape": list(image_shape),
        "num_logits": num_logits,
        "pooling": getattr(module, "pooling", "default"),
        "initialization": initialization,
        "convolution": convolution,
        **changed,
    }
    return model._replace(description=MappingProxyType(description))
