"""The task of classifying images; what is done to the training images may differ between networks.

Source of `cifar_recipe`: NAD, Section 5 and reference code.
"""

import inspect
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.cifar import ImageData
from nad_jax.contract import reported
from nad_jax.ensemble import keys_of_seeds
from nad_jax.errors import (
    InputError,
    check_function,
    check_labels,
    check_record,
    host_array,
    real_array,
    shown,
)
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.task import REQUIRED, Arrays, PerSample, Task, choose_loss, cross_entropy, has_label

Transform = Callable[..., jax.Array]  # (images [B, H, W, C], labels [B], its own arrays) -> images


def cifar_recipe(num_epochs: int = 50) -> Recipe:
    """The published recipe on CIFAR-10 (50 epochs, learning rate 0.21): momentum 0.9, coupled
    weight decay 5e-4.
    """
    options = {"momentum": 0.9}
    sizes = {"num_train": 50_000, "loss_window": 391}
    return Recipe("sgd", options, weight_decay=5e-4, num_epochs=num_epochs, **sizes)


def check_image_data(data: ImageData, model: Model) -> ImageData:
    """The task as uint8 or float32 images and int32 labels; raises `InputError` where it does not
    fit the model.
    """
    check_record("data", data, ImageData)
    checked = []
    for split in ("train", "test"):
        axes = f"[B, {', '.join(map(str, model.image_shape))}]"
        images = real_array(f"{split}_images", getattr(data, f"{split}_images"), axes)
        if images.dtype != np.uint8:
            if not jnp.issubdtype(images.dtype, np.floating):
                raise InputError(
                    f"{split}_images: must be uint8 or real numbers, got {images.dtype}"
                )
            images = images.astype(np.float32)
        labels = check_labels(f"{split}_labels", getattr(data, f"{split}_labels"), model.num_logits)
        if len(labels) != len(images):
            raise InputError(
                f"{split}_labels: must be one for each of the {len(images)} images, got "
                f"{len(labels)}"
            )
        checked += [images, labels.astype(np.int32)]
    return ImageData(*checked)


def check_scale(model: Model, mean: Any, std: Any) -> None:
    """Raises `InputError` unless mean and std are finite numbers, or one for each channel, std
    positive.
    """
    channels = model.image_shape[-1]
    for name, value in (("mean", mean), ("std", std)):
        array = host_array(name, value).astype(np.float32)
        if array.shape not in ((), (channels,)) or not np.isfinite(array).all():
            raise InputError(
                f"{name}: must be a finite number or one for each of the {channels} channels, got "
                f"{shown(value)}"
            )
        if name == "std" and not (array > 0).all():
            raise InputError(f"std: must be positive, got {array.min():.4g}")


def name_arrays(transform: Transform | None, count: int | None = None) -> list[str]:
    """The names of the arrays that a transform takes besides images and labels: of its parameters,
    and of as many more, where they are not named, as `count` says.
    """
    if transform is None:
        return []
    parameters = list(inspect.signature(transform).parameters.values())[2:]
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [one for one in parameters if one.kind in kinds]
    if count is None:
        count = sum(one.default is one.empty for one in parameters)
    names = [one.name for one in parameters]
    return [*names, *(f"array_{number}" for number in range(len(names), count))][:count]


def _takes_others(transform: Transform | None) -> bool:
    """Whether a transform takes arrays besides those that it requires."""
    parameters = [] if transform is None else inspect.signature(transform).parameters.values()
    return any(p.kind == p.VAR_POSITIONAL or p.default is not p.empty for p in parameters)


def images(
    data: ImageData | None,
    transform: Transform | None = None,
    mean: Any = 0.0,
    std: Any = 1.0,
    loss: PerSample = cross_entropy,
    correct: PerSample = has_label,
) -> Task:
    """Classifying images as a task: a training image x of label y becomes
    (transform(x, y, …) − mean) / std, a test image (x − mean) / std.

    The images lie on the device once for all networks. Networks of one seed share their
    initialization and the order of the images, whatever is done to these.

    Args:
      data: the images, uint8 or in [0, 1]; None where they are given later.
      transform: maps images [B, H, W, C] in [0, 1], labels [B] and arrays of its own, in which
        networks differ, to images of the same shape, e.g. `interventions.poison`, whose
        `carriers` and `coefficients` are then arrays [N, …] of the task.
      mean, std: numbers, or one for each channel [C].
      loss: of outputs [B, K] and labels [B] in 0 … K − 1, real numbers [B]; default: cross-entropy
        of the labels.
      correct: of the same, truth values [B]; default: whether the largest output is the label's.

    Raises:
      InputError: for another transform, loss or correct than a function; where it meets a model,
        for images, labels, `mean` or `std` that do not fit, and a transform that fails or changes
        the shape; before networks are trained, for a loss or correct that fails or whose results
        have another form, and for losses that are not finite at the start.
    """
    check_function("transform", transform)
    if data is not None:
        check_record("data", data, ImageData)

    def prepare_data(model: Model, recipe: Recipe, seed: int) -> ImageData:
        check_scale(model, mean, std)
        return check_image_data(data, model)

    def sample(
        data: ImageData, split: str, indices: jax.Array, arrays: Arrays
    ) -> tuple[jax.Array, jax.Array]:
        x, labels = (getattr(data, f"{split}_{name}")[indices] for name in ("images", "labels"))
        x = x / jnp.float32(255) if x.dtype == jnp.uint8 else x
        if transform is not None and split == "train":
            given = x.shape
            with reported("transform"):
                names = name_arrays(transform, len(arrays))
                x = transform(x, labels, *(arrays[name] for name in names))
                x = real_array("transform", x, finite=False)
            if x.shape != given:
                raise InputError(
                    f"transform: must keep the shape of images, {given}, got {x.shape}"
                )
        shape = (1,) * (x.ndim - 1) + x.shape[-1:]  # inputs need not be images
        center, width = (np.broadcast_to(np.asarray(v, np.float32), shape) for v in (mean, std))
        return (x.astype(jnp.float32) - center) / width, labels

    return Task(
        data=prepare_data,
        sample=sample,
        arrays=MappingProxyType(dict.fromkeys(name_arrays(transform), REQUIRED)),
        takes_others=_takes_others(transform),
        mapping="sequential",  # few and large, and a chunk is always filled up
        make_keys=lambda seeds, arrays: keys_of_seeds("image networks", seeds),
        sizes=None if data is None else (len(data.train_images), len(data.test_images)),
        recipe=cifar_recipe(),
        learning_rate=0.21,
        **choose_loss(loss, correct),
    )
