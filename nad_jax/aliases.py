"""Published functions that are special cases now: training on D(v) and on images by their own
names.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax import tasks
from nad_jax.chunks import Progress
from nad_jax.cifar import ImageData
from nad_jax.ensemble import Execution
from nad_jax.errors import (
    InputError,
    check_record,
    number_array,
    real_array,
)
from nad_jax.fitting import make_whole
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.task import FitMetrics
from nad_jax.tasks.images import Transform, check_image_data, check_scale, name_arrays
from nad_jax.tasks.separable import Noise, TrainMetrics, check_sizes
from nad_jax.training import make_run


def make_train(
    model: Model, recipe: Recipe | None = None
) -> Callable[..., tuple[Any, TrainMetrics]]:
    """Builds `train(key, direction, epsilon, sigma, learning_rate, noise) -> (variables,
    TrainMetrics)`.

    `train` is pure: it initializes a network, trains it on D(v) by the recipe and evaluates it.
    Everything it takes is an array, so it can be mapped over any of them; `train_many` does.

    key: of initialization, order of the samples and dropout, or a seed; consumed.
    direction: v, [D], of unit norm.
    epsilon, sigma, learning_rate: scalars; ε and σ as in `tasks.separable`; a learning rate of None
      is that of the task, or of the optimizer where it has its own.
    noise: `Noise` of [num_train, D] and [num_test, D]; labels alternate.

    Raises:
      InputError: for bad values in the recipe (default: `Recipe()`), a model without exactly two
        logits or without a training mode, and, from `train`, for noise of other sizes, a key that
        is neither one typed key nor a seed, a direction not of unit norm, and negative numbers
        (inside a compiled function values are not checked).
    """
    task = tasks.separable()
    recipe = task.resolve_recipe(recipe)
    sizes = check_sizes(recipe)
    whole = make_whole(model, recipe, task)
    dimension = int(np.prod(model.image_shape))

    def train(
        key: jax.Array,
        direction: jax.Array,
        epsilon: jax.Array,
        sigma: jax.Array,
        learning_rate: jax.Array,
        noise: Noise,
    ) -> tuple[Any, TrainMetrics]:
        check_record("noise", noise, Noise)
        splits = [jnp.asarray(real_array("noise", split, f"[B, {dimension}]")) for split in noise]
        got = tuple(map(len, splits))
        if got != sizes:
            raise InputError(
                f"noise: the recipe has {sizes[0]} and {sizes[1]} samples, got {got[0]} and {got[1]}"
            )
        # What they must be, `separate` checks.
        direction = real_array("direction", direction, f"[{dimension}]")
        arrays = {"direction": direction, "epsilon": epsilon, "sigma": sigma}
        return whole(key, learning_rate, arrays, Noise(*splits))

    return train


def make_train_many(
    model: Model,
    recipe: Recipe | None = None,
    mapping: str = "auto",
    chunk_size: int = 0,
    num_devices: int = 0,
) -> Callable[..., TrainMetrics]:
    """Builds `run(directions, epsilon, sigma, learning_rate, seed, progress, snapshots) ->
    TrainMetrics`, see `training.train_many`.
    """
    execution = Execution(mapping, chunk_size, num_devices)
    train = make_run(model, tasks.separable(), recipe, execution)

    def run(
        directions: jax.Array, epsilon: Any = 1.0, sigma: Any = 1.0, *args: Any, **others: Any
    ) -> TrainMetrics:
        arrays = {"direction": directions, "epsilon": epsilon, "sigma": sigma}
        return train(arrays, *args, **others)

    return run


def make_train_images(
    model: Model,
    recipe: Recipe,
    transform: Transform | None = None,
    mean: Any = 0.0,
    std: Any = 1.0,
) -> Callable[..., tuple[Any, FitMetrics]]:
    """Builds `train(key, learning_rate, *arrays, data) -> (variables, FitMetrics)`.

    `train` is pure: it initializes a network, trains it by the recipe on images, see
    `tasks.images`, and evaluates it.

      key:           of initialization, order of the samples and dropout, or a seed; consumed.
      learning_rate: scalar; None: that of the task, or of the optimizer where it has its own.
      arrays:        whatever `transform` takes besides images and labels; they can be mapped over.
      data:          `ImageData` of arrays on the device, num_train and num_test of them.

    Raises:
      InputError: for bad values in the recipe, `mean` or `std`, a model without a training mode,
        and, from `train`, for data that do not fit the model or the sizes of the recipe, a
        transformation that fails or changes the shape of images, and a key that is neither one
        typed key nor a seed.
    """
    task = tasks.images(None, transform, mean, std)
    whole = make_whole(model, recipe, task)
    check_scale(model, mean, std)

    def train(key: jax.Array, learning_rate: jax.Array, *rest: Any) -> tuple[Any, FitMetrics]:
        *arrays, data = rest or (None,)
        data = jax.tree.map(jnp.asarray, check_image_data(data, model))
        sizes = len(data.train_images), len(data.test_images)
        if sizes != (recipe.num_train, recipe.num_test):
            raise InputError(
                f"data: the recipe has {recipe.num_train} and {recipe.num_test} images, got {sizes}"
            )
        return whole(key, learning_rate, _named(transform, arrays), data)

    return train


def _named(transform: Transform | None, arrays: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip(name_arrays(transform, len(arrays)), arrays, strict=True))


def make_train_many_images(
    model: Model,
    data: ImageData,
    recipe: Recipe | None = None,
    transform: Transform | None = None,
    mean: Any = 0.0,
    std: Any = 1.0,
    mapping: str = "sequential",
    chunk_size: int = 0,
    num_devices: int = 0,
) -> Callable[..., FitMetrics]:
    """Builds `run(arrays=(), learning_rate=None, seed=0, progress=None, snapshots=None) ->
    FitMetrics`, see `train_many_images`.
    """
    check_record("data", data, ImageData)
    task = tasks.images(data, transform, mean, std)
    execution = Execution(mapping, chunk_size, num_devices)
    train = make_run(model, task, recipe, execution)

    def run(
        arrays: tuple[jax.Array, ...] = (),
        learning_rate: Any = None,
        seed: Any = 0,
        *args: Any,
        **others: Any,
    ) -> FitMetrics:
        if not isinstance(arrays, tuple | list):
            raise InputError(f"arrays: must be a tuple of arrays, got {type(arrays).__name__}")
        arrays = tuple(np.asarray(number_array("arrays", array)) for array in arrays)
        if arrays and transform is None:
            raise InputError("arrays: are what `transform` takes, but there is no transform")
        if any(array.ndim == 0 for array in arrays):
            raise InputError("arrays: must have a leading axis [N], got a number")
        rates = 0.0 if learning_rate is None else number_array("learning_rate", learning_rate)
        count = max(np.size(rates), np.size(number_array("seed", seed)), *map(len, arrays))
        if any(len(array) != count for array in arrays):
            shapes = [array.shape for array in arrays]
            raise InputError(f"arrays: must have one leading axis [{count}], got {shapes}")
        return train(_named(transform, arrays), learning_rate, seed, *args, **others)

    return run


def train_many_images(
    model: Model,
    data: ImageData,
    arrays: tuple[jax.Array, ...] = (),
    learning_rate: Any = None,
    seed: Any = 0,
    recipe: Recipe | None = None,
    transform: Transform | None = None,
    mean: Any = 0.0,
    std: Any = 1.0,
    mapping: str = "sequential",
    chunk_size: int = 0,
    num_devices: int = 0,
    progress: Progress | None = None,
) -> FitMetrics:
    """Trains N networks on images, each with its own seed, learning rate and transformation of the
    training images: `train_many(model, tasks.images(data, transform, mean, std), …)`.

    Args:
      arrays: what differs between the transformations, each [N, …], in the order of its parameters;
        e.g. carriers [N, T, D] and coefficients [N, T].
      learning_rate: default: 0.21.
      recipe: default `cifar_recipe()`; its `num_train` and `num_test` become those of the data.
      data, transform, mean, std: see `tasks.images`; the others: see `training.train_many`.

    Returns: `FitMetrics` of NumPy arrays with a leading axis [N], N the largest length given.

    Raises:
      InputError: naming the argument, its value and what is allowed.
    """
    how = (mapping, chunk_size, num_devices)
    run = make_train_many_images(model, data, recipe, transform, mean, std, *how)
    return run(arrays, learning_rate, seed, progress)
