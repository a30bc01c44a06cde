"""Labels along a direction: a function of the coefficient α of the samples along one direction says
the label, thresholded at its median.

x = α u + w,  α ~ N(0, ε²),  w ~ N(0, σ² (I − u uᵀ)),  y = 0 where h(α) is above its median

Unlike D(v), where α is ±ε, the classes touch, and with a quadratic or sinusoidal h they are not
linearly separable. Source: GIH, which measures accuracy along the eigenvectors u_i of the geometry
E[g gᵀ] of a network.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from nad_jax.contract import as_floating, reported
from nad_jax.ensemble import named_key
from nad_jax.errors import (
    InputError,
    check_choice,
    check_scalar,
    check_units,
    real_array,
    unknown,
)
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.task import REQUIRED, Arrays, PerSample, Task, choose_loss, cross_entropy, has_label
from nad_jax.tasks.circles import check_rows, check_scales, invariance_recipe, make_noise
from nad_jax.tasks.separable import Noise, label_samples, noise_key

Function = Callable[[jax.Array], jax.Array]  # of coefficients [B], real numbers [B]
FUNCTIONS: dict[str, Function] = {
    "linear": lambda alpha: alpha,
    "quadratic": lambda alpha: alpha**2,
    "sinusoidal": jnp.sin,
}
CHI_SQUARE_MEDIAN = 0.454936423119572  # of one degree of freedom
_QUANTILES = 2**16  # of α, at which the median of another function is found


class Labels(NamedTuple):
    """Labels that say nothing about the samples: train [B], test [B'] in {0, 1}."""

    train: jax.Array
    test: jax.Array


class Data(NamedTuple):
    """What networks of one seed share: noise, and random labels where they are asked for."""

    noise: Noise
    labels: Labels | None


def find_function(function: str | Function) -> Function:
    """The function of that name, one of one's own as it is; raises `InputError` for others."""
    if callable(function):
        return function
    if not isinstance(function, str) or function not in FUNCTIONS:
        raise unknown("function", function, FUNCTIONS)
    return FUNCTIONS[function]


def label_median(function: str | Function, epsilon: float = 1.0) -> float:
    """The median of h(α), α ~ N(0, ε²), at which labels change.

    It is 0 for "linear" and "sinusoidal", 0.4549 ε² for "quadratic" (that of chi-square). That of a
    function of one's own is the median over 65,536 quantiles of α, of equal probability.

    Raises:
      InputError: for another name, an ε below 0, and a function that fails, or does not give a
        finite number for each coefficient.
    """
    apply, epsilon = find_function(function), check_scalar("epsilon", epsilon)
    if function == "quadratic":
        return CHI_SQUARE_MEDIAN * epsilon**2
    if isinstance(function, str):
        return 0.0
    middles = (jnp.arange(_QUANTILES, dtype=jnp.float32) + 0.5) / _QUANTILES
    with reported("function"):
        values = real_array("function", apply(epsilon * ndtri(middles)), f"[{_QUANTILES}]")
    return float(np.median(np.asarray(values)))


def spread_along(
    noise: jax.Array, direction: jax.Array, epsilon: Any = 1.0, sigma: Any = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Samples x = α u + σ (I − u uᵀ) n from standard normal noise n, and α = ε⟨n, u⟩.

    Args:
      noise: n, [B, D].
      direction: u, [D], of unit norm.
      epsilon, sigma: ε and σ, numbers in units of the input.

    Returns: x [B, D], and α [B], of the noise's dtype, float32 for integers.

    Raises:
      InputError: for other shapes, and for values that are not as above, where they are known.
    """
    noise = as_floating(real_array("noise", noise, "[B, D]"))
    direction = check_units("direction", real_array("direction", direction, f"[{noise.shape[1]}]"))
    epsilon, sigma = check_scalar("epsilon", epsilon), check_scalar("sigma", sigma)
    given = (direction, epsilon, sigma)
    direction, epsilon, sigma = (jnp.asarray(value, noise.dtype) for value in given)
    # In full precision on every backend: the labels depend on it.
    along = jnp.matmul(noise, direction, precision=jax.lax.Precision.HIGHEST)
    x = sigma * noise + ((epsilon - sigma) * along)[:, None] * direction[None]
    return x, epsilon * along


def label_along(
    x: jax.Array, direction: jax.Array, function: str | Function = "linear", epsilon: float = 1.0
) -> jax.Array:
    """The labels [B] in {0, 1} of samples x [B, D]: 0 where h(⟨x, u⟩) is above the median of h(α),
    α ~ N(0, ε²). No classifier is better.

    `direction` is u, [D], of unit norm, `function` h; `InputError` for anything else.
    """
    x = real_array("x", x, "[B, D]")
    direction = check_units("direction", real_array("direction", direction, f"[{x.shape[1]}]"))
    alpha = jnp.matmul(x, direction, precision=jax.lax.Precision.HIGHEST)
    return _threshold(find_function(function), alpha, label_median(function, epsilon))


def _threshold(function: Function, alpha: jax.Array, median: Any) -> jax.Array:
    return (function(alpha) <= median).astype(jnp.int32)


def along_direction(
    function: str | Function = "linear",
    random_labels: bool = False,
    loss: PerSample = cross_entropy,
    correct: PerSample = has_label,
) -> Task:
    """Labels along a direction as a task: networks differ in `direction` [N, D], `epsilon` (the
    standard deviation of α) and `sigma`.

    The noise, the initialization and the order of the samples depend on the seed alone: networks of
    one seed share all random numbers, whatever their directions are. Labels are as many of either
    class on average; of random ones exactly so.

    Args:
      function: h, "linear" (α), "quadratic" (α²) or "sinusoidal" (sin α), or a function of
        coefficients [B] that gives real numbers [B].
      random_labels: whether labels say nothing about the samples, so that they can only be
        memorized.
      loss: of outputs [B, 2] and labels [B] in {0, 1}, real numbers [B]; default: cross-entropy of
        the labels.
      correct: of the same, truth values [B]; default: whether the larger output is the label's.

    Raises:
      InputError: for another name, and what is no function; and, before networks are trained, for
        functions that fail or whose results have another form, and for losses that are not finite
        at the start.
    """
    apply = find_function(function)
    check_choice("random_labels", random_labels, (False, True))

    def make_data(model: Model, recipe: Recipe, seed: int) -> Data:
        noise = make_noise(model, recipe, seed)
        return Data(noise, _shuffle_labels(noise, seed) if random_labels else None)

    def sample(
        data: Data, split: str, indices: jax.Array, arrays: Arrays
    ) -> tuple[jax.Array, jax.Array]:
        normal, scales = getattr(data.noise, split)[indices], (arrays["epsilon"], arrays["sigma"])
        x, alpha = spread_along(normal, arrays["direction"], *scales)
        if random_labels:
            return x, getattr(data.labels, split)[indices]
        return x, _threshold(apply, alpha, arrays["median"])

    def prepare(model: Model, arrays: Arrays) -> Arrays:
        check_scales(arrays, "epsilon", "sigma")
        rows = check_rows("direction", arrays["direction"], int(np.prod(model.image_shape)))
        rows /= np.linalg.norm(rows, axis=1)[:, None]
        epsilons = np.ravel(np.asarray(arrays["epsilon"], np.float32))
        if not epsilons.all():
            raise InputError("epsilon: must be positive: without it no label is another one, got 0")
        if len(epsilons) not in (1, len(rows)):
            raise InputError(
                f"epsilon: must be a number or one for each of the {len(rows)} networks, got "
                f"{epsilons.shape}"
            )
        with reported("function"):  # compiled, too: NumPy's functions take no traced coefficients
            jax.eval_shape(apply, jax.ShapeDtypeStruct((_QUANTILES,), jnp.float32))
        medians = {one: label_median(function, one) for one in {*epsilons.tolist()}}
        median = np.array([medians[one] for one in epsilons.tolist()], np.float32)
        median = np.broadcast_to(median, len(rows))
        return {**arrays, "direction": rows.astype(np.float32), "median": median}

    return Task(
        data=make_data,
        sample=sample,
        arrays={"direction": REQUIRED, "epsilon": 1.0, "sigma": 1.0},
        prepare=prepare,
        num_outputs=2,
        shared=False,
        recipe=invariance_recipe(),
        learning_rate=0.1,
        **choose_loss(loss, correct),
    )


def _shuffle_labels(noise: Noise, seed: int) -> Labels:
    """Labels of one replicate, as many of either class, in an order that the seed alone says."""
    key = named_key(noise_key(seed), "labels")

    def draw(split: str) -> jax.Array:
        labels = label_samples(jnp.arange(len(getattr(noise, split))))
        return jax.random.permutation(named_key(key, split), labels)

    return Labels(draw("train"), draw("test"))
