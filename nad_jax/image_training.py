"""Training networks to classify images: one as a pure function, and many that differ in seed or in
their images.

Source of `cifar_recipe`: NAD, Section 5 and reference code.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax import ensemble
from nad_jax.cifar import ImageData
from nad_jax.contract import reported
from nad_jax.errors import (
    InputError,
    check_function,
    check_labels,
    check_record,
    check_scalar,
    host_array,
    number_array,
    real_array,
    shown,
)
from nad_jax.fitting import (
    FitMetrics,
    FitState,
    Sample,
    Stages,
    broadcast_members,
    check_model,
    check_recipe,
    make_batches,
    make_chunk,
    make_fit,
    make_whole,
    map_networks,
    resolve_mapping,
)
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.snapshots import Snapshots


def cifar_recipe(num_epochs: int = 50) -> Recipe:
    """The published recipe on CIFAR-10 (50 epochs, learning rate 0.21): momentum 0.9, coupled
    weight decay 5e-4.
    """
    options = {"momentum": 0.9}
    return Recipe(
        "sgd", options, weight_decay=5e-4, num_epochs=num_epochs, num_train=50_000, loss_window=391
    )


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


def _per_channel(name: str, value: Any, channels: int) -> np.ndarray:
    array = host_array(name, value).astype(np.float32)
    if array.shape not in ((), (channels,)) or not np.isfinite(array).all():
        raise InputError(
            f"{name}: must be a finite number or one for each of the {channels} channels, got "
            f"{shown(value)}"
        )
    return np.broadcast_to(array, (1, 1, 1, channels))


def make_image_stages(
    model: Model,
    recipe: Recipe,
    transform: Callable[..., jax.Array] | None = None,
    mean: Any = 0.0,
    std: Any = 1.0,
) -> Stages:
    """The stages of training one network on images, see `make_train_images`, whose arguments are
    their `member`.
    """
    check_recipe(recipe)
    check_model(model, recipe.batch_size)
    check_function("transform", transform)
    mean, std = (
        _per_channel(name, value, model.image_shape[2])
        for name, value in (("mean", mean), ("std", std))
    )
    if not (std > 0).all():
        raise InputError(f"std: must be positive, got {std.min():.4g}")
    fit = make_fit(model, recipe)

    def scaled(images: jax.Array) -> jax.Array:
        return images / jnp.float32(255) if images.dtype == jnp.uint8 else images

    def train_sampler(data: ImageData, *arrays: Any) -> Sample:
        def sample(indices: jax.Array) -> tuple[jax.Array, jax.Array]:
            x, labels = scaled(data.train_images[indices]), data.train_labels[indices]
            if transform is not None:
                given = x.shape
                with reported("transform"):
                    x = real_array("transform", transform(x, labels, *arrays), finite=False)
                if x.shape != given:
                    raise InputError(
                        f"transform: must keep the shape of images, {given}, got {x.shape}"
                    )
            return (x.astype(jnp.float32) - mean) / std, labels

        return sample

    def test_sampler(data: ImageData) -> Sample:
        return lambda indices: (
            (scaled(data.test_images[indices]) - mean) / std,
            data.test_labels[indices],
        )

    def start(key: jax.Array, learning_rate: jax.Array, *arrays: Any) -> FitState:
        return fit.start(key, learning_rate)

    def epoch(
        state: FitState, data: ImageData, key: jax.Array, learning_rate: jax.Array, *arrays: Any
    ) -> FitState:
        return fit.epoch(state, key, learning_rate, train_sampler(data, *arrays))

    def finish(
        state: FitState, data: ImageData, key: jax.Array, learning_rate: jax.Array, *arrays: Any
    ) -> tuple[Any, FitMetrics]:
        variables, metrics, _ = fit.finish(state, train_sampler(data, *arrays), test_sampler(data))
        return variables, metrics

    return Stages(start, epoch, finish)


def make_train_images(
    model: Model,
    recipe: Recipe,
    transform: Callable[..., jax.Array] | None = None,
    mean: Any = 0.0,
    std: Any = 1.0,
) -> Callable[..., tuple[Any, FitMetrics]]:
    """Builds `train(key, learning_rate, *arrays, data) -> (variables, FitMetrics)`.

    `train` is pure: it initializes a network, trains it by the recipe and evaluates it. A training
    image x of label y becomes (transform(x, y, *arrays) − mean) / std, a test image (x − mean) /
    std.

      key:           of initialization, order of the samples and dropout, or a seed; consumed.
      learning_rate: scalar.
      arrays:        whatever `transform` takes besides images and labels; they can be mapped over.
      data:          `ImageData` of arrays on the device, num_train and num_test of them.

    Args:
      model: with a logit for each class.
      recipe: how it is trained.
      transform: maps images [B, H, W, C] in [0, 1] and labels [B] to images, e.g.
        `interventions.poison`.
      mean, std: numbers, or one for each channel [C].

    Raises:
      InputError: for bad values in the recipe, `mean` or `std`, a model without a training mode,
        and, from `train`, for data that do not fit the model or the sizes of the recipe, a
        transformation that fails or changes the shape of images, and a key that is neither one
        typed key nor a seed.
    """
    whole = make_whole(make_image_stages(model, recipe, transform, mean, std), recipe.num_epochs)

    def train(key: jax.Array, learning_rate: jax.Array, *rest: Any) -> tuple[Any, FitMetrics]:
        key, learning_rate = ensemble.resolve_key(key), check_scalar("learning_rate", learning_rate)
        data = jax.tree.map(jnp.asarray, check_image_data(rest[-1] if rest else None, model))
        sizes = len(data.train_images), len(data.test_images)
        if sizes != (recipe.num_train, recipe.num_test):
            raise InputError(
                f"data: the recipe has {recipe.num_train} and {recipe.num_test} images, got {sizes}"
            )
        return whole(key, learning_rate, *rest[:-1], data)

    return train


def image_network_key(seed: int) -> jax.Array:
    """The key of a network, from the replicate alone: what is done to the images does not change
    the random numbers.
    """
    return ensemble.portable_key(ensemble.named_key(ensemble.make_key(seed), "image networks"))


def make_train_many_images(
    model: Model,
    data: ImageData,
    recipe: Recipe | None = None,
    transform: Callable[..., jax.Array] | None = None,
    mean: Any = 0.0,
    std: Any = 1.0,
    mapping: str = "sequential",
    chunk_size: int = 0,
    num_devices: int = 0,
) -> Callable[..., FitMetrics]:
    """Builds `run(arrays=(), learning_rate=0.21, seed=0, progress=None, snapshots=None) ->
    FitMetrics`.

    See `train_many_images`. One compiled program trains `chunk_size` networks; the images are put
    on the devices once. With `snapshots`, see `Snapshots`, a run that was interrupted is taken up
    again by the same call.
    """
    recipe = cifar_recipe() if recipe is None else recipe
    check_record("model", model, Model)
    data = check_image_data(data, model)
    if isinstance(recipe, Recipe):
        recipe = dataclasses.replace(
            recipe, num_train=len(data.train_images), num_test=len(data.test_images)
        )
    stages = make_image_stages(model, recipe, transform, mean, std)
    mapping, chunk_size, devices = resolve_mapping(mapping, chunk_size, num_devices)
    chunk = make_chunk(stages, mapping, devices)
    shared = jax.device_put(data, ensemble.replicated(devices))

    def run(
        arrays: tuple[jax.Array, ...] = (),
        learning_rate: Any = 0.21,
        seed: Any = 0,
        progress: Callable[[float], None] | None = None,
        snapshots: Snapshots | None = None,
    ) -> FitMetrics:
        if not isinstance(arrays, tuple | list):
            raise InputError(f"arrays: must be a tuple of arrays, got {type(arrays).__name__}")
        arrays = tuple(np.asarray(number_array("arrays", array)) for array in arrays)
        if arrays and transform is None:
            raise InputError("arrays: are what `transform` takes, but there is no transform")
        if any(array.ndim == 0 for array in arrays):
            raise InputError("arrays: must have a leading axis [N], got a number")
        sizes = (
            number_array(*given).size
            for given in (("learning_rate", learning_rate), ("seed", seed))
        )
        count = max([*sizes, *(len(array) for array in arrays)])
        if any(len(array) != count for array in arrays):
            raise InputError(
                f"arrays: must have one leading axis [{count}], got "
                f"{[array.shape for array in arrays]}"
            )
        points = broadcast_members(count, learning_rate=learning_rate, seed=seed)
        keys = jnp.stack([image_network_key(one) for one in points["seed"].tolist()])
        members = (keys, points["learning_rate"].astype(np.float32), *arrays)
        batches = make_batches(lambda: shared, members, chunk_size)
        return map_networks(chunk, recipe.num_epochs, chunk_size, batches, progress, snapshots)

    return run


def train_many_images(
    model: Model,
    data: ImageData,
    arrays: tuple[jax.Array, ...] = (),
    learning_rate: Any = 0.21,
    seed: Any = 0,
    recipe: Recipe | None = None,
    transform: Callable[..., jax.Array] | None = None,
    mean: Any = 0.0,
    std: Any = 1.0,
    mapping: str = "sequential",
    chunk_size: int = 0,
    num_devices: int = 0,
    progress: Callable[[float], None] | None = None,
) -> FitMetrics:
    """Trains N networks on images, each with its own seed, learning rate and transformation of the
    training images.

    The images lie on the device once for all networks; `transform` is done to the batches. Networks
    of one seed share their initialization and the order of the images, whatever is done to these.

    Args:
      model: with a logit for each class, e.g. `create_model("lenet", (32, 32, 3), num_logits=10)`.
      data: the images.
      arrays: what differs between the transformations, each [N, …]; e.g. carriers [N, T, D] and
        coefficients [N, T].
      learning_rate, seed: one for all, or one for each network [N].
      recipe: default `cifar_recipe()`; its `num_train` and `num_test` become those of the data.
      transform, mean, std: see `make_train_images`.
      mapping, chunk_size, num_devices: how the networks are mapped, see `training.make_train_many`.
        The default is one network after the other on each device: they are few and large, and a
        chunk is always filled up.
      progress: called after every epoch with the number of networks done, a fraction for those in
        training.

    Returns: `FitMetrics` of NumPy arrays with a leading axis [N], N the largest length given.

    Raises:
      InputError: naming the argument, its value and what is allowed.
    """
    run = make_train_many_images(
        model, data, recipe, transform, mean, std, mapping, chunk_size, num_devices
    )
    return run(arrays, learning_rate, seed, progress)
