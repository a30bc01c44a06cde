"""Training one network on D(v) as a pure function, and many of them, one for each direction.

Source of the default recipe: NAD, reference code; see `Recipe`.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax import ensemble, separable
from nad_jax.directions import direction_identity
from nad_jax.errors import (
    InputError,
    check_record,
    check_scalar,
    check_units,
    host_array,
    real_array,
)
from nad_jax.fitting import (
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
from nad_jax.separable import Noise
from nad_jax.snapshots import Snapshots


class TrainMetrics(NamedTuple):
    """What became of a network trained on D(v); `train_many` adds a leading axis [N].

    gradient_cosine: |cos| between v and the mean over the test set of ∇ₓ(logit₀ − logit₁); 0 where
      that is zero.
    The others: as in `fitting.FitMetrics`.
    """

    train_accuracy: jax.Array
    test_accuracy: jax.Array
    train_loss: jax.Array
    test_loss: jax.Array
    steps_to_loss: jax.Array
    gradient_cosine: jax.Array
    diverged_at: jax.Array
    losses: jax.Array


def _cosine(left: jax.Array, right: jax.Array) -> jax.Array:
    """|cos| of a vector and a unit vector, which may be too long for its square to be a float32."""
    left = left / jnp.maximum(jnp.abs(left).max(), jnp.finfo(jnp.float32).tiny)
    norm = jnp.linalg.norm(left)
    return jnp.where(norm == 0, 0.0, jnp.abs(jnp.vdot(left, right)) / norm)


def make_stages(model: Model, recipe: Recipe) -> Stages:
    """The stages of training one network on D(v), see `make_train`, whose arguments but `noise` are
    its `member`.
    """
    check_recipe(recipe)
    separable.check_num_samples("num_train", recipe.num_train)
    separable.check_num_samples("num_test", recipe.num_test)
    check_model(model, recipe.batch_size, num_classes=2)
    fit = make_fit(model, recipe, with_gradient=True)

    def sampler(
        noise: jax.Array, direction: jax.Array, epsilon: jax.Array, sigma: jax.Array
    ) -> Sample:
        def sample(indices: jax.Array) -> tuple[jax.Array, jax.Array]:
            labels = separable.label_samples(indices)
            x = separable.separate(noise[indices], labels, direction, epsilon, sigma)
            return x.reshape(-1, *model.image_shape), labels

        return sample

    def start(
        key: jax.Array, direction: jax.Array, epsilon: Any, sigma: Any, learning_rate: Any
    ) -> FitState:
        return fit.start(key, learning_rate)

    def epoch(
        state: FitState,
        noise: Noise,
        key: jax.Array,
        direction: jax.Array,
        epsilon: Any,
        sigma: Any,
        learning_rate: Any,
    ) -> FitState:
        return fit.epoch(state, key, learning_rate, sampler(noise.train, direction, epsilon, sigma))

    def finish(
        state: FitState,
        noise: Noise,
        key: jax.Array,
        direction: jax.Array,
        epsilon: Any,
        sigma: Any,
        learning_rate: Any,
    ) -> tuple[Any, TrainMetrics]:
        samplers = (sampler(split, direction, epsilon, sigma) for split in noise)
        variables, metrics, gradient = fit.finish(state, *samplers)
        cosine = _cosine(gradient.reshape(-1), direction)
        return variables, TrainMetrics(**metrics._asdict(), gradient_cosine=cosine)

    return Stages(start, epoch, finish)


def make_train(
    model: Model, recipe: Recipe | None = None
) -> Callable[..., tuple[Any, TrainMetrics]]:
    """Builds `train(key, direction, epsilon, sigma, learning_rate, noise) -> (variables,
    TrainMetrics)`.

    `train` is pure: it initializes a network, trains it on D(v) by the recipe and evaluates it.
    Everything it takes is an array, so it can be mapped over any of them; `train_many` does.

      key:           of initialization, order of the samples and dropout, or a seed; consumed.
      direction:     v, [D], of unit norm.
      epsilon, sigma, learning_rate: scalars; ε and σ as in `separable`.
      noise:         `separable.Noise` of [num_train, D] and [num_test, D]; labels alternate, see
                     `label_samples`.

    Raises:
      InputError: for bad values in the recipe (default: `Recipe()`), a model without exactly two
        logits or without a training mode, and, from `train`, for noise of other sizes, a key that
        is neither one typed key nor a seed, a direction not of unit norm, and negative numbers
        (inside a compiled function values are not checked).
    """
    recipe = Recipe() if recipe is None else recipe
    whole = make_whole(make_stages(model, recipe), recipe.num_epochs)
    dimension = int(np.prod(model.image_shape))

    def train(
        key: jax.Array,
        direction: jax.Array,
        epsilon: jax.Array,
        sigma: jax.Array,
        learning_rate: jax.Array,
        noise: Noise,
    ) -> tuple[Any, TrainMetrics]:
        key = ensemble.resolve_key(key)
        check_record("noise", noise, Noise)
        noise = Noise(
            *(jnp.asarray(real_array("noise", split, f"[B, {dimension}]")) for split in noise)
        )
        if (len(noise.train), len(noise.test)) != (recipe.num_train, recipe.num_test):
            raise InputError(
                f"noise: the recipe has {recipe.num_train} and {recipe.num_test} samples, "
                f"got {len(noise.train)} and {len(noise.test)}"
            )
        direction = check_units("direction", real_array("direction", direction, f"[{dimension}]"))
        epsilon, sigma = check_scalar("epsilon", epsilon), check_scalar("sigma", sigma)
        return whole(
            key, direction, epsilon, sigma, check_scalar("learning_rate", learning_rate), noise
        )

    return train


def make_train_many(
    model: Model,
    recipe: Recipe | None = None,
    mapping: str = "auto",
    chunk_size: int = 0,
    num_devices: int = 0,
) -> Callable[..., TrainMetrics]:
    """Builds `run(directions, epsilon, sigma, learning_rate, seed, progress, snapshots) ->
    TrainMetrics`.

    See `train_many`. One compiled program trains `chunk_size` networks; with `snapshots`, see
    `Snapshots`, a run that was interrupted is taken up again by the same call.

    Args:
      mapping: "sequential", one network after the other on each device; "vectorized", all networks
        of a chunk in one batched program; "auto": sequential on a CPU, vectorized elsewhere.
      chunk_size: a multiple of the number of devices; 0: one per device where sequential, 32 where
        vectorized.
      num_devices: local devices to shard over; 0: all. (On a CPU there is one, using every core,
        unless JAX_NUM_CPU_DEVICES says otherwise.)
    """
    recipe = Recipe() if recipe is None else recipe
    stages = make_stages(model, recipe)
    mapping, chunk_size, devices = resolve_mapping(mapping, chunk_size, num_devices)
    dimension = int(np.prod(model.image_shape))
    draw_noise = jax.jit(
        lambda key: separable.sample_noise(key, recipe.num_train, recipe.num_test, dimension)
    )
    chunk = make_chunk(stages, mapping, devices)

    @lru_cache(maxsize=1)
    def replicate_noise(seed: int) -> Noise:
        return jax.device_put(draw_noise(noise_key(seed)), ensemble.replicated(devices))

    def run(
        directions: jax.Array,
        epsilon: Any = 1.0,
        sigma: Any = 1.0,
        learning_rate: Any = 0.5,
        seed: Any = 0,
        progress: Callable[[float], None] | None = None,
        snapshots: Snapshots | None = None,
    ) -> TrainMetrics:
        directions = _check_directions(directions, dimension)
        points = broadcast_members(
            len(directions), epsilon=epsilon, sigma=sigma, learning_rate=learning_rate, seed=seed
        )
        order, batches = [], []
        for replicate in dict.fromkeys(points["seed"].tolist()):
            members = np.flatnonzero(points["seed"] == replicate)
            arrays = (
                jnp.stack([network_key(replicate, directions[member]) for member in members]),
                directions[members],
                *(
                    points[name][members].astype(np.float32)
                    for name in ("epsilon", "sigma", "learning_rate")
                ),
            )
            batches += make_batches(partial(replicate_noise, replicate), arrays, chunk_size)
            order.extend(members)
        back = np.argsort(order)
        results = map_networks(chunk, recipe.num_epochs, chunk_size, batches, progress, snapshots)
        return jax.tree.map(lambda values: values[back], results)

    return run


def noise_key(seed: int) -> jax.Array:
    """The key of the noise of one replicate: all directions share it."""
    return ensemble.named_key(ensemble.make_key(seed), "noise")


def network_key(seed: int, direction: np.ndarray) -> jax.Array:
    """The key of one network, from the replicate and the direction itself (up to its sign)."""
    key = ensemble.named_key(ensemble.make_key(seed), "networks")
    return ensemble.portable_key(jax.random.fold_in(key, direction_identity(direction) % 2**32))


def _check_directions(directions: Any, dimension: int) -> np.ndarray:
    directions = host_array("directions", directions, f"[N, {dimension}]")
    directions = check_units("directions", directions).astype(np.float32)
    return directions / np.linalg.norm(directions, axis=1)[:, None]


def train_many(
    model: Model,
    directions: jax.Array,
    epsilon: Any = 1.0,
    sigma: Any = 1.0,
    learning_rate: Any = 0.5,
    seed: Any = 0,
    recipe: Recipe | None = None,
    mapping: str = "auto",
    chunk_size: int = 0,
    num_devices: int = 0,
    progress: Callable[[float], None] | None = None,
) -> TrainMetrics:
    """Trains one network on D(v) for each row v of `directions`: the directional inductive bias of
    a model.

    Source: NAD, Section 2. The noise of D(v) depends on the seed alone, initialization and order of
    the samples on the seed and the direction: networks that differ in ε, σ or learning rate share
    all their random numbers.

    Args:
      model: with two logits, from `create_model(..., num_logits=2)` or an adapter of `models`.
      directions: v, unit rows [N, D].
      epsilon, sigma, learning_rate, seed: one for all, or one for each network [N].
      recipe: default `Recipe()`, the published one.
      mapping, chunk_size, num_devices: how the networks are mapped, see `make_train_many`. Results
        agree to rounding, which training with max-pooling amplifies: in the end hard directions may
        differ as much as between seeds.
      progress: called after every epoch with the number of networks done, a fraction for those in
        training.

    Returns: `TrainMetrics` of NumPy arrays with a leading axis [N].

    Raises:
      InputError: naming the argument, its value and what is allowed.
    """
    run = make_train_many(model, recipe, mapping, chunk_size, num_devices)
    return run(directions, epsilon, sigma, learning_rate, seed, progress)
