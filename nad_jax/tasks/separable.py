"""The task D(v): linearly separable distributions whose only signal lies along one direction.

x = ε y v + w,  y ∈ {−1, +1} equiprobable,  w ~ N(0, σ² (I − v vᵀ))                            (NAD, Section 2)

The class means are ±ε v: `epsilon` is the paper's amplitude (the reference code places them at
±(ε/2) v). Label 0 is the class at +ε v. The noise has no component along v, so sign⟨x, v⟩ never
errs.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

from nad_jax.contract import as_floating
from nad_jax.directions import direction_identity
from nad_jax.ensemble import keys_of_seeds, make_key, named_key, resolve_key
from nad_jax.errors import (
    InputError,
    check_integer,
    check_labels,
    check_number,
    check_scalar,
    check_units,
    host_array,
    number_array,
    real_array,
)
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.renamed import takes_old_names
from nad_jax.tables import Metrics
from nad_jax.task import REQUIRED, Arrays, PerSample, Task, choose_loss, cross_entropy, has_label


class Noise(NamedTuple):
    """Standard normal noise before projection, the same for every direction: train [B, D], test
    [B', D].
    """

    train: jax.Array
    test: jax.Array


def check_num_samples(name: str, value: int) -> int:
    """Returns `value`, even and at least 2, so that the classes can be balanced exactly;
    `InputError` otherwise.
    """
    value = check_integer(name, value, 2)
    if value % 2:
        raise InputError(f"{name}: must be even (classes are balanced exactly), got {value}")
    return value


def check_sizes(recipe: Recipe) -> tuple[int, int]:
    """Returns (num_train, num_test) of a recipe, checked as by `check_num_samples`."""
    num_train = check_num_samples("num_train", recipe.num_train)
    return num_train, check_num_samples("num_test", recipe.num_test)


@takes_old_names(key="seed")
def sample_noise(seed: jax.Array | int, num_train: int, num_test: int, dimension: int) -> Noise:
    """The noise of one replicate, from `seed` and the split alone: [num_train, D] and
    [num_test, D], N(0, I).

    Args:
      seed: an integer, or a typed random key.

    Raises:
      InputError: for a seed that is neither, and for sizes that are not positive.
    """
    key, dimension = resolve_key(seed), check_integer("dimension", dimension, 1)
    sizes = {
        "train": check_integer("num_train", num_train, 1),
        "test": check_integer("num_test", num_test, 1),
    }

    def draw(split: str) -> jax.Array:
        return jax.random.normal(named_key(key, split), (sizes[split], dimension), jnp.float32)

    return Noise(draw("train"), draw("test"))


def label_samples(indices: jax.Array) -> jax.Array:
    """The label in {0, 1} of sample number `indices` [B]: they alternate, so an even number is
    balanced exactly.
    """
    return indices % 2


def separate(
    noise: jax.Array, labels: jax.Array, direction: jax.Array, epsilon: jax.Array, sigma: jax.Array
) -> jax.Array:
    """Samples x = ε y v + σ (I − v vᵀ) n of D(v) from standard normal noise n.

    Args:
      noise: n, [B, D].
      labels: [B] in {0, 1}; 0 is y = +1.
      direction: v, [D], of unit norm.
      epsilon, sigma: ε and σ, scalars, in units of the input.

    Returns: x [B, D] of the noise's dtype, float32 for integers, with ⟨x, v⟩ = ±ε to rounding.

    Raises:
      InputError: for other shapes, and for values that are not as above, where they are known.
    """
    noise = as_floating(real_array("noise", noise, "[B, D]"))
    labels = jnp.asarray(check_labels("labels", labels, 2))
    if labels.shape != noise.shape[:1]:
        raise InputError(
            f"labels: must be one for each of the {len(noise)} samples, got shape {labels.shape}"
        )
    direction = check_units("direction", real_array("direction", direction, f"[{noise.shape[1]}]"))
    epsilon, sigma = check_scalar("epsilon", epsilon), check_scalar("sigma", sigma)
    given = (direction, epsilon, sigma)
    direction, epsilon, sigma = (jnp.asarray(value, noise.dtype) for value in given)
    # In full precision on every backend: TensorFloat-32 would leave noise along v.
    along = jnp.matmul(noise, direction, precision=jax.lax.Precision.HIGHEST)
    coefficient = epsilon * (1 - 2 * labels) - sigma * along
    return sigma * noise + coefficient[:, None] * direction[None]


@takes_old_names(key="seed")
def sample_separable(
    seed: jax.Array | int,
    direction: jax.Array,
    num_samples: int,
    epsilon: float = 1.0,
    sigma: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """`num_samples` samples of D(v) and their labels: x [B, D] float32, labels [B] in {0, 1}.

    Class means are ±ε v, label 0 at +ε v; labels are balanced exactly; the noise has no component
    along v. Source: NAD, Section 2. `direction` is v, [D], of unit norm; ε and σ are in units of
    the input. `seed` is an integer, or a typed random key, which is consumed.

    Raises:
      InputError: unless `seed` is one of these, `num_samples` is even, `direction` is a
        unit vector, and ε and σ are numbers of at least 0.
    """
    key, num_samples = resolve_key(seed), check_num_samples("num_samples", num_samples)
    direction = real_array("direction", direction, "[D]")
    labels = label_samples(jnp.arange(num_samples))
    noise = jax.random.normal(key, (num_samples, direction.size), jnp.float32)
    return separate(noise, labels, direction, epsilon, sigma), labels


def bayes_classifier(x: jax.Array, direction: jax.Array) -> jax.Array:
    """The labels [B] in {0, 1} of samples x [B, D] of D(v): 0 where ⟨x, v⟩ > 0. It never errs for ε
    > 0.

    `direction` is v, [D], of unit norm; `InputError` for anything else.
    """
    x = real_array("x", x, "[B, D]")
    direction = check_units("direction", real_array("direction", direction, f"[{x.shape[1]}]"))
    return (jnp.matmul(x, direction, precision=jax.lax.Precision.HIGHEST) <= 0).astype(jnp.int32)


def competing_accuracy(
    direction: jax.Array, competitor: jax.Array, epsilon: float = 1.0, sigma: float = 1.0
) -> jax.Array:
    """The accuracy on D(v) of the linear classifier sign⟨x, u⟩: Φ(ε c / (σ √(1 − c²))), c = uᵀv.

    Derived: ⟨x, u⟩ = ε y c + ⟨w, u⟩ with ⟨w, u⟩ ~ N(0, σ² (1 − c²)).

    Args:
      direction, competitor: v and u, [..., D], of unit norm.

    Returns: [...] in [0, 1]; 1 for u = v, 0 for u = −v, ½ for orthogonal ones.

    Raises:
      InputError: for directions that do not fit together or are not of unit norm, and for ε or σ
        below 0.
    """
    direction = check_units("direction", real_array("direction", direction, "[..., D]"))
    competitor = check_units(
        "competitor", real_array("competitor", competitor, f"[..., {direction.shape[-1]}]")
    )
    epsilon, sigma = check_scalar("epsilon", epsilon), check_scalar("sigma", sigma)
    try:
        jnp.broadcast_shapes(direction.shape, competitor.shape)
    except ValueError:
        raise InputError(
            f"competitor: shape {competitor.shape} does not fit {direction.shape} of direction"
        ) from None
    cosine = jnp.sum(direction * competitor, -1)
    # ‖u − v‖ ‖u + v‖ / 2 = √(1 − c²), without the cancellation near c = ±1.
    sine = (
        jnp.linalg.norm(competitor - direction, axis=-1)
        * jnp.linalg.norm(competitor + direction, axis=-1)
        / 2
    )
    margin = epsilon * cosine
    return ndtr(jnp.where(margin == 0, 0.0, margin / (sigma * sine)))


class TrainMetrics(NamedTuple):
    """Metrics of a network trained on D(v); `train_many` adds a leading axis [N].

    gradient_cosine: |cos| between v and the mean over the test set of ∇ₓ(logit₀ − logit₁); 0 where
      that is zero.
    The others: as in `task.FitMetrics`.
    """

    train_accuracy: jax.Array
    test_accuracy: jax.Array
    train_loss: jax.Array
    test_loss: jax.Array
    steps_to_loss: jax.Array
    gradient_cosine: jax.Array
    diverged_at: jax.Array
    losses: jax.Array
    variables: Any = None
    observed: Any = None
    settings: Any = None

    to_rows, rows, to_csv = Metrics.to_rows, Metrics.rows, Metrics.to_csv
    to_dataframe, plot, __repr__ = Metrics.to_dataframe, Metrics.plot, Metrics.__repr__


def separable(loss: PerSample = cross_entropy, correct: PerSample = has_label) -> Task:
    """D(v) as a task: networks differ in `direction` [N, D], `epsilon` and `sigma`.

    The noise depends on the seed alone, initialization and order of the samples on the seed and the
    direction: networks that differ in ε, σ or learning rate share all their random numbers.

    Args:
      loss: of outputs [B, 2] and labels [B] in {0, 1}, label 0 at +ε v, real numbers [B]; default:
        cross-entropy of the labels.
      correct: of the same, truth values [B]; default: whether the larger output is the label's.

    Raises:
      InputError: for what is no function; and, before networks are trained, for functions that
        fail, whose results have another form, and for losses that are not finite at the start.
    """
    return Task(
        data=_make_data,
        sample=_sample,
        arrays={"direction": REQUIRED, "epsilon": 1.0, "sigma": 1.0},
        prepare=_prepare,
        make_keys=network_keys,
        num_outputs=2,
        shared=False,
        learning_rate=0.5,
        probe=lambda logits: logits[:, 0] - logits[:, 1],
        describe=lambda gradient, arrays: {
            "gradient_cosine": _cosine(gradient.reshape(-1), arrays["direction"])
        },
        metrics=TrainMetrics,
        **choose_loss(loss, correct),
    )


def _make_data(model: Model, recipe: Recipe, seed: int) -> Noise:
    sizes = check_sizes(recipe)
    return sample_noise(noise_key(seed), *sizes, int(np.prod(model.image_shape)))


def _sample(
    noise: Noise, split: str, indices: jax.Array, arrays: Arrays
) -> tuple[jax.Array, jax.Array]:
    labels = label_samples(indices)
    normal = getattr(noise, split)[indices]
    x = separate(normal, labels, arrays["direction"], arrays["epsilon"], arrays["sigma"])
    return x, labels


def _prepare(model: Model, arrays: Arrays) -> Arrays:
    """Unit directions [N, D] float32, of norm 1 to rounding; `InputError` for others, and for ε or
    σ below 0.
    """
    for name in ("epsilon", "sigma"):
        for value in np.ravel(number_array(name, arrays[name])).tolist():
            check_number(name, value, 0.0)
    dimension = int(np.prod(model.image_shape))
    directions = host_array("directions", arrays["direction"], f"[N, {dimension}]")
    directions = check_units("directions", directions).astype(np.float32)
    return {**arrays, "direction": directions / np.linalg.norm(directions, axis=1)[:, None]}


def noise_key(seed: int) -> jax.Array:
    """The key of the noise of one replicate: all directions share it."""
    return named_key(make_key(seed), "noise")


def network_keys(seeds: np.ndarray, arrays: Arrays) -> jax.Array:
    """The keys [N] of networks, from their replicate and the direction itself (up to its sign)."""
    names = [direction_identity(direction) % 2**32 for direction in arrays["direction"]]
    return keys_of_seeds("networks", seeds, np.array(names, np.uint32))


def _cosine(left: jax.Array, right: jax.Array) -> jax.Array:
    """|cos| of a vector and a unit vector, which may be too long for its square to be a float32."""
    left = left / jnp.maximum(jnp.abs(left).max(), jnp.finfo(jnp.float32).tiny)
    norm = jnp.linalg.norm(left)
    return jnp.where(norm == 0, 0.0, jnp.abs(jnp.vdot(left, right)) / norm)
