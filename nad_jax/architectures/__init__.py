"""The table of built-in architectures: plain Flax Linen modules, exactly those of the reference
code.

Sources: NAD, reference code; parameter counts with one channel and one logit at 32×32 are 1,025
(logreg), 60,941 (lenet), 9,750,657 (vgg11), 9,745,153 (vgg11_plain), 11,168,193 (resnet18),
6,945,921 (densenet121). `mlp` and `resnet18_w16`, `resnet18` at a quarter of its width, are ours:
controls that fit a CPU. `resnet18_imagenet` is that of torchvision, 11,689,512 parameters
with three channels and 1,000 logits, for 224×224 images. Its reference initialization is
torchvision's too: convolutions normal with variance 2/(k² c_out) (Kaiming, fan-out), while
PyTorch's default, that of the other networks, is uniform on ±1/√fan_in.

Networks of others, with the initialization of their papers: `vit`, `mixer`, `convnext`,
`bottleneck_mlp`, `wide_resnet`.

Differs from the reference in: the running variance of batch normalization, which Flax keeps biased
and PyTorch unbiased (by B·H·W/(B·H·W − 1)).
"""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from nad_jax.architectures.bottleneck_mlp import BottleneckMLP
from nad_jax.architectures.convnext import ConvNeXt
from nad_jax.architectures.densenet import DenseNet
from nad_jax.architectures.lenet import LeNet
from nad_jax.architectures.logreg import LogReg
from nad_jax.architectures.mixer import Mixer
from nad_jax.architectures.mlp import MLP
from nad_jax.architectures.network import ImageNetwork, TableNetwork
from nad_jax.architectures.options import MASKING, NONE, Option, check_options, list_options
from nad_jax.architectures.resnet import ResNet18, ResNet18ImageNet
from nad_jax.architectures.vgg import VGG11
from nad_jax.architectures.vit import ViT
from nad_jax.architectures.wide_resnet import WideResNet
from nad_jax.convolution import CONVOLUTIONS, resolve_convolution
from nad_jax.errors import (
    InputError,
    check_choice,
    check_image_shape,
    check_input_shape,
    check_integer,
)
from nad_jax.initializers import INITIALIZATIONS, check_initialization
from nad_jax.linen import from_linen
from nad_jax.masks import apply_mask_options
from nad_jax.models import Model
from nad_jax.own_models import is_own, make_own_model, read_options
from nad_jax.renamed import takes_input_shape


class Architecture(NamedTuple):
    """A table entry: a class of Linen modules, and the published values of those options whose
    defaults, in the fields of the module, are another entry's.
    """

    module: type[TableNetwork]
    values: Mapping[str, Any] = MappingProxyType({})

    def options(self) -> dict[str, Option]:
        """The published value of every option, and what else it may be."""
        return list_options(self.module, self.values)


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
    "wide_resnet": Architecture(WideResNet),
    "bottleneck_mlp": Architecture(BottleneckMLP),
    "vit": Architecture(ViT),
    "mixer": Architecture(Mixer),
    "convnext": Architecture(ConvNeXt),
}

# The options of architectures, besides width and pooling, as fields of configs: "default", 0 and
# True are as published.
OPTIONS: dict[str, Any] = {
    name: option.unset
    for entry in ARCHITECTURES.values()
    for name, option in entry.options().items()
    if name not in ("width", "pooling")
} | dict(MASKING)

POOLINGS = ("default", "max", "avg", "none", "token")


@takes_input_shape
def create_model(
    architecture: str,
    image_shape: tuple[int, ...] = (32, 32, 1),
    num_logits: int = 1,
    pooling: str = "default",
    initialization: str = "default",
    convolution: str = "auto",
    *,
    density: float | None = None,
    mask: str | None = None,
    **options: Any,
) -> Model:
    """A built-in architecture as a `Model`, or a model of one's own by its name.

    Args:
      architecture: a key of `ARCHITECTURES`, also with options, as in "vit(depth=6)" or
        "lenet(initialization='sigma:2:0')"; or `package.module:Name`, `path/to/file.py:Name` or a
        name given by `register`, see `own_models`.
      image_shape: of one input; also `input_shape`. "logreg", "mlp" and "bottleneck_mlp" take any,
        (D,), (L, C), (H, W, C) or (T, H, W, C), the others images (H, W, C) of any size that
        survives their pooling, or that their patches cover.
      num_logits: K.
      pooling: "default" (as published), "max" or "avg" in place of every pooling layer there is (a
        global average stays), or "none", which removes every pooling and stride and lets the dense
        layer after flattening grow (LeNet, ResNet18, WideResNet); "token" is the class token of
        ViT, "avg" the mean of its tokens.
      initialization: "reference" (PyTorch-default), "flax" (that of the modules), "he", "lecun",
        "orthogonal", "sigma:W:B" with the numbers σ_w and σ_b, see `initializers`; or "default":
        "reference" for built-in architectures, "flax" for vit, mixer and convnext, whose modules
        have that of their papers, and for models of one's own.
      convolution: "auto" (by backend), "product" or "lax", see `convolution`.
      density, mask: of random masks and their rule, "uniform", "er" or "erk", see `masked`; None: 1,
        without any, and "erk". What makes a model of one's own and takes arguments of these names
        is given them instead.
      options: fields of the architecture's module; "default", None and 0 as published (None for
        `layer_scale`: without it). A model's description holds those that are not as published.
        Every built-in architecture but logreg has a width: the units of the hidden layers (mlp,
        published 512), channels of the first layer, with all others in proportion (lenet 6, vgg11
        64, resnet18 64), the growth of channels per layer (densenet121 32), or the channels of a
        token (vit 192). `docs/models.md` lists all options. Or arguments of what makes a model of
        one's own, of which None is left out.

    Raises:
      InputError: naming the argument, its value and what is allowed.
    """
    written = {}
    if isinstance(architecture, str) and architecture.partition("(")[0] in ARCHITECTURES:
        architecture, written = read_options(architecture)
    initialization = written.pop("initialization", initialization)
    if initialization != "default":
        initialization = check_initialization(initialization, ("default", *INITIALIZATIONS))
    if is_own(architecture):
        own = initialization if initialization != "default" else "flax"
        chosen = {"pooling": None if pooling == "default" else pooling, **options}
        chosen |= {"density": density, "mask": mask}
        return make_own_model(architecture, image_shape, num_logits, own, convolution, chosen)
    pooling, density = written.pop("pooling", pooling), written.pop("density", density)
    mask, options = written.pop("mask", mask), {**options, **written}
    architecture = check_choice("architecture", architecture, ARCHITECTURES)
    entry = ARCHITECTURES[architecture]
    known = entry.module.initializations
    if initialization == "default":
        initialization = known[0]
    if initialization.partition(":")[0] not in known:
        raise InputError(
            f"initialization: {initialization!r} is not known of {architecture!r}, whose paper has "
            f"another; allowed: {', '.join(map(repr, known))}"
        )
    takes_images = issubclass(entry.module, ImageNetwork)
    pooling = check_choice("pooling", pooling, POOLINGS)
    if pooling == "default" or (pooling != "none" and not takes_images):
        pooling = None
    model = _create_model(
        architecture,
        (check_image_shape if takes_images else check_input_shape)(image_shape),
        check_integer("num_logits", num_logits, 1),
        initialization,
        resolve_convolution(convolution),
        check_options(
            architecture, entry.options(), {"pooling": pooling, **options}, list_known_options()
        ),
        jnp.result_type(float),
    )
    return apply_mask_options(model, density, mask)


def list_known_options() -> dict[str, Option]:
    """The options of all architectures, in the order of the table; where several have one, as the
    first has it.
    """
    known: dict[str, Option] = {}
    for entry in ARCHITECTURES.values():
        known |= {name: option for name, option in entry.options().items() if name not in known}
    return known


# Commands ask again and again, and tracing DenseNet121 takes seconds.
@functools.lru_cache(maxsize=512)
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
        module.flax_readout_variance if initialization == "flax" else None,
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
        **{name: NONE if value is None else value for name, value in changed.items()},
    }
    return model._replace(description=MappingProxyType(description), alike=module.alike())
