"""The task of denoising: to predict the noise ε in x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε, what score networks
are trained to do.

Every epoch shows each x₀ once, with a noise level t, uniform on 0 … T − 1, and noise ε ~ N(0, I) of
its own. The data are rank-one, x₀ ~ N(0, D v vᵀ), as many directions v as networks, or images.

Source: SAD, and its recipe.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.diffusion import Schedule, add_noise, check_schedule
from nad_jax.ensemble import make_key, member_keys, named_key, portable_key, resolve_key
from nad_jax.errors import InputError, check_integer, check_units, host_array, real_array
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.task import REQUIRED, Arrays, Task


class Clean(NamedTuple):
    """What is noised: of rank-one data the numbers z [n] of x₀ = √D z v, of images their entries
    [n, D]; and the key of all noise.
    """

    train: jax.Array
    test: jax.Array
    key: jax.Array


def score_recipe(num_epochs: int = 200) -> Recipe:
    """SAD's recipe for rank-one data (200 epochs of 10,000 samples, learning rate 1e-4)."""
    return Recipe(
        "adam", schedule="constant", clip_norm=1.0, batch_size=1000, num_epochs=num_epochs
    )


def squared_error(outputs: jax.Array, noise: jax.Array) -> jax.Array:
    """The mean squared error of predicted noise by entry: of [B, D] and [B, D], [B]."""
    return jnp.mean((outputs - noise) ** 2, 1)


def beats_zero(outputs: jax.Array, noise: jax.Array) -> jax.Array:
    """Whether the error is below that of predicting 0: of [B, D] and [B, D], truth values [B]."""
    return squared_error(outputs, noise) < jnp.mean(noise**2, 1)


def sample_rank_one(seed: jax.Array | int, direction: Any, num_samples: int) -> jax.Array:
    """Samples x₀ ~ N(0, D v vᵀ), [n, D] float32.

    Args:
      seed: an integer, or a typed random key, which is consumed.
      direction: v, [D], of unit norm.

    Raises:
      InputError: for values that are not as above.
    """
    key, num_samples = resolve_key(seed), check_integer("num_samples", num_samples, 1)
    direction = check_units("direction", real_array("direction", direction, "[D]"))
    numbers = jax.random.normal(key, (num_samples,), jnp.float32)
    return _on_line(numbers, jnp.asarray(direction, jnp.float32))


def _on_line(numbers: jax.Array, direction: jax.Array) -> jax.Array:
    return np.float32(np.sqrt(direction.size)) * numbers[:, None] * direction[None]


def denoising(schedule: Schedule = Schedule()) -> Task:
    """Denoising rank-one data N(0, D v vᵀ) as a task: networks, from `as_model`, differ in their
    `direction` [N, D].

    Data, noise, initialization and order depend on the seed alone: networks of a seed differ in v
    and nothing else. The loss is the mean squared error by entry; a sample is correct where it is
    below that of predicting 0. `gaussian_loss` says the least loss that there is.

    Raises:
      InputError: for a schedule that is none; where it meets them, for models that do not take
        inputs with their noise levels, and directions that do not fit.
    """

    def make_data(model: Model, recipe: Recipe, seed: int) -> Clean:
        _dimension(model)
        sizes, key = (recipe.num_train, recipe.num_test), _data_key(seed)
        names = zip(("train", "test"), sizes, strict=True)
        draws = [jax.random.normal(named_key(key, name), (n,), jnp.float32) for name, n in names]
        return Clean(*draws, _noise_key(seed))

    task = _make_task(make_data, _on_line_of, schedule)
    return task._replace(arrays={"direction": REQUIRED}, prepare=_prepare)


def denoising_images(
    images: Any, test_images: Any, rotation: Any = None, schedule: Schedule = Schedule()
) -> Task:
    """Denoising given images as a task for networks from `as_model`.

    Args:
      images, test_images: [n, …] and [n', …], as x₀: they should be of about variance 1.
      rotation: W, [D, D], orthogonal: x₀ is W x of an image x, as a vector [D].
      schedule: the noise levels.

    Raises:
      InputError: for values that are not as above; where it meets them, for models that do not take
        such images with their noise levels.
    """
    given = {"images": images, "test_images": test_images}
    found = [host_array(name, value, "[n, ...]") for name, value in given.items()]
    found = [one.reshape(len(one), -1) for one in found]
    size = found[0].shape[1]
    if found[1].shape[1] != size:
        raise InputError(f"test_images: must have {size} entries each, got {found[1].shape[1]}")
    if rotation is not None:
        matrix = check_rotation("rotation", rotation, size)
        found = [one @ matrix.T for one in found]

    def make_data(model: Model, recipe: Recipe, seed: int) -> Clean:
        if _dimension(model) != size:
            raise InputError(
                f"images: must have {_dimension(model)} entries each, as the model has inputs, "
                f"got {size}"
            )
        return Clean(*(jnp.asarray(one, jnp.float32) for one in found), _noise_key(seed))

    task = _make_task(make_data, lambda clean, arrays: clean, schedule)
    return task._replace(sizes=(len(found[0]), len(found[1])))


def check_rotation(name: str, rotation: Any, size: int) -> np.ndarray:
    """Returns an orthogonal matrix [D, D] in float64; `InputError` for what is none."""
    matrix = host_array(name, rotation, f"[{size}, {size}]")
    error = np.abs(matrix @ matrix.T - np.eye(size)).max()
    if error > 1e-3:
        raise InputError(f"{name}: must be orthogonal, but W Wᵀ is {error:.2g} off the identity")
    return matrix


def _make_task(
    make_data: Callable[[Model, Recipe, int], Clean],
    restore: Callable[[jax.Array, Arrays], jax.Array],
    schedule: Schedule,
) -> Task:
    """Denoising `restore(clean [B, …], arrays) -> x₀ [B, D]`."""
    schedule = check_schedule(schedule)

    def sample(
        data: Clean, split: str, indices: jax.Array, arrays: Arrays, epoch: Any
    ) -> tuple[jax.Array, jax.Array]:
        x = restore(getattr(data, split)[indices], arrays)
        key = jax.random.fold_in(named_key(data.key, split), epoch)

        def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
            level_key, noise_key = jax.random.split(key)
            level = jax.random.randint(level_key, (), 0, schedule.num_levels)
            return level, jax.random.normal(noise_key, x.shape[1:], x.dtype)

        t, noise = jax.vmap(draw)(member_keys(key, indices))
        noised = add_noise(x, t, noise, schedule)
        return jnp.concatenate([noised, t[:, None].astype(x.dtype)], 1), noise

    return Task(
        data=make_data,
        sample=sample,
        loss=squared_error,
        correct=beats_zero,
        trusted=True,
        shared=False,
        fresh=True,
        recipe=score_recipe(),
        learning_rate=1e-4,
    )


def _on_line_of(numbers: jax.Array, arrays: Arrays) -> jax.Array:
    return _on_line(numbers, arrays["direction"])


def _data_key(seed: int) -> jax.Array:
    return named_key(make_key(seed), "data")


def _noise_key(seed: int) -> jax.Array:
    return portable_key(named_key(make_key(seed), "noise"))


def _dimension(model: Model) -> int:
    """D of a model of inputs [D + 1]; `InputError` for another one."""
    shape, outputs = tuple(model.image_shape), model.num_logits
    if shape != (outputs + 1,):
        raise InputError(
            "model: must take an input and its noise level, [D + 1], and give the noise, [D], as "
            f"from as_model; got inputs {shape} and {outputs} outputs"
        )
    return outputs


def _prepare(model: Model, arrays: Arrays) -> Arrays:
    """Unit directions [N, D] float32, of norm 1 to rounding; `InputError` for others."""
    rows = host_array("direction", arrays["direction"], f"[N, {_dimension(model)}]")
    rows = check_units("direction", rows)
    return {**arrays, "direction": np.float32(rows / np.linalg.norm(rows, axis=1)[:, None])}
