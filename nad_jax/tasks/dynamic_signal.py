"""A signal that moves: the task that tells what locality and weight sharing save in samples.

x = (x_1, …, x_k) ∈ R^{k d},  x_j = y w⋆ [j = i] + σ n_j,  y ∈ {−1, +1} equiprobable,  i uniform in
1 … k,  n_j ~ N(0, I)

One of k patches of length d holds the unit signal w⋆ with the sign of the class, and noise of
standard deviation σ lies on all coordinates. Patch j is coordinates (j − 1) d … j d − 1. Label 0 is
y = +1. It is D(v) with a v that moves over k places. Source: Lahoti, Karp, Winston, Singh, Li, Role
of Locality and Weight Sharing; the closed forms are derived here.

With s_j = w⋆ᵀx_j every classifier sign Σ_j ψ(s_j), ψ odd and not decreasing, has the accuracy
P(ψ(s_1) > −Σ_{j>1} ψ(s_j)), s_1 ~ N(1, σ²), s_j ~ N(0, σ²): the best one is ψ = sinh(·/σ²), the
linear one ψ(s) = s, the network of one shared filter ψ(s) = φ_b(s), the soft threshold.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

from nad_jax.contract import as_floating
from nad_jax.ensemble import named_key, resolve_key
from nad_jax.errors import (
    InputError,
    check_integer,
    check_labels,
    check_number,
    check_scalar,
    check_units,
    host_array,
    known,
    number_array,
    real_array,
)
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.task import REQUIRED, Arrays, PerSample, Task, choose_loss, cross_entropy, has_label
from nad_jax.tasks.separable import (
    Noise,
    check_num_samples,
    check_sizes,
    label_samples,
    noise_key,
    sample_noise,
)

_CHUNK = 100_000  # samples drawn at once by a closed form


class Draws(NamedTuple):
    """The random numbers of one replicate: the noise, N(0, I), and where the signals are, as shares
    of the patches, uniform in [0, 1): train [B], test [B'].
    """

    noise: Noise
    train: jax.Array
    test: jax.Array


def sample_draws(seed: jax.Array | int, num_train: int, num_test: int, dimension: int) -> Draws:
    """The random numbers of one replicate, from `seed` and the split alone; see `sample_noise`."""
    key = resolve_key(seed)
    noise = sample_noise(key, num_train, num_test, dimension)

    def places(split: str, count: int) -> jax.Array:
        return jax.random.uniform(named_key(key, f"{split} places"), (count,), jnp.float32)

    return Draws(noise, places("train", num_train), places("test", num_test))


def _check_signal(signal: jax.Array, dimension: int) -> jax.Array:
    """A unit vector [d] whose length divides that of inputs; raises `InputError` otherwise."""
    signal = check_units("signal", real_array("signal", signal, "[d]"))
    if dimension % len(signal):
        raise InputError(
            f"signal: its length must divide that of inputs, {dimension}, got {len(signal)}"
        )
    return signal


def _check_places(places: jax.Array, count: int) -> jax.Array:
    """Numbers [count], in [0, 1) where they are known; raises `InputError` otherwise."""
    places = as_floating(real_array("places", places, f"[{count}]"))
    values = known(places)  # as they are rounded: not to 1
    wrong = () if values is None else values[(values < 0) | (values >= 1)]
    if len(wrong):
        raise InputError(f"places: must be at least 0 and below 1, got {wrong[0]}")
    return places


def insert_signal(
    noise: jax.Array, places: jax.Array, labels: jax.Array, signal: jax.Array, sigma: jax.Array
) -> jax.Array:
    """Samples x = y e_i ⊗ w⋆ + σ n from standard normal noise n.

    Args:
      noise: n, [B, D], of k = D / d patches.
      places: [B] in [0, 1); the signal is in patch number ⌊k · place⌋, from 0.
      labels: [B] in {0, 1}; 0 is y = +1.
      signal: w⋆, [d], of unit norm.
      sigma: σ, a number, in units of the input.

    Returns: x [B, D] of the noise's dtype, float32 for integers.

    Raises:
      InputError: for other shapes, and for values that are not as above, where they are known.
    """
    noise = as_floating(real_array("noise", noise, "[B, D]"))
    labels = jnp.asarray(check_labels("labels", labels, 2))
    places = _check_places(places, len(noise))
    if labels.shape != noise.shape[:1]:
        raise InputError(
            f"labels: must be one for each of the {len(noise)} samples, got shape {labels.shape}"
        )
    signal = jnp.asarray(_check_signal(signal, noise.shape[1]), noise.dtype)
    sigma = jnp.asarray(check_scalar("sigma", sigma), noise.dtype)
    num_patches = noise.shape[1] // len(signal)
    numbers = jnp.floor(places * num_patches).astype(jnp.int32)
    signs = (1 - 2 * labels).astype(noise.dtype)
    where = signs[:, None] * jax.nn.one_hot(numbers, num_patches, dtype=noise.dtype)
    return sigma * noise + (where[:, :, None] * signal[None, None]).reshape(noise.shape)


def sample_dynamic_signal(
    seed: jax.Array | int,
    signal: jax.Array,
    num_patches: int,
    num_samples: int,
    sigma: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """`num_samples` samples of the moving signal and their labels: x [B, k d] float32, labels [B]
    in {0, 1}, balanced exactly, label 0 at y = +1.

    Source: Role of Locality and Weight Sharing. `signal` is w⋆, [d], of unit norm, `num_patches` is
    k; σ is in units of the input. `seed` is an integer, or a typed random key.

    Raises:
      InputError: unless `seed` is one of these, `num_samples` is even, and the others are as
        `insert_signal` takes them.
    """
    key, num_samples = resolve_key(seed), check_num_samples("num_samples", num_samples)
    signal = real_array("signal", signal, "[d]")
    dimension = check_integer("num_patches", num_patches, 1) * len(signal)
    draws = sample_draws(key, num_samples, 1, dimension)
    labels = label_samples(jnp.arange(num_samples))
    return insert_signal(draws.noise.train, draws.train, labels, signal, sigma), labels


def classify_signal(x: jax.Array, signal: jax.Array, sigma: float = 1.0) -> jax.Array:
    """The labels [B] in {0, 1} that the Bayes classifier gives samples x [B, k d]: 0 where
    logsumexp_j(s_j/σ²) > logsumexp_j(−s_j/σ²), s_j = w⋆ᵀx_j.

    Derived: the likelihood of y is proportional to Σ_j exp(y s_j/σ²). The same as
    Σ_j sinh(s_j/σ²) > 0: a convolutional network of one filter. `signal` is w⋆, [d], of unit norm.

    Raises:
      InputError: for other shapes, and unless σ is above 0.
    """
    x = real_array("x", x, "[B, D]")
    signal = jnp.asarray(_check_signal(signal, x.shape[1]))
    sigma = check_number("sigma", sigma, 0.0, exclusive=True)
    patches = jnp.reshape(x, (len(x), -1, len(signal)))
    along = jnp.matmul(patches, signal, precision=jax.lax.Precision.HIGHEST) / sigma**2
    evidence = [jax.nn.logsumexp(sign * along, axis=1) for sign in (1, -1)]
    return (evidence[0] <= evidence[1]).astype(jnp.int32)


def signal_accuracy_linear(num_patches: int, sigma: float) -> float:
    """The accuracy of the best linear classifier of the moving signal, Σ_j w⋆ᵀx_j: Φ(1/(σ√k)).

    Derived: a linear classifier u has mean_j Φ(u_jᵀw⋆/(σ‖u‖)), and Φ is concave above 0, so equal
    u_j ∝ w⋆ are best. A higher accuracy proves a non-linear use of locality.

    Raises:
      InputError: unless k is a positive integer and σ above 0.
    """
    num_patches, sigma = _check_law(num_patches, sigma)
    return float(ndtr(1 / (sigma * math.sqrt(num_patches))))


def signal_accuracy_bayes(
    num_patches: int, sigma: float, num_samples: int = 1_000_000
) -> tuple[float, float]:
    """The accuracy of the Bayes classifier of the moving signal (`classify_signal`) and its
    standard error; it does not depend on d.

    Derived: given R = Σ_{j>1} sinh(s_j/σ²) it is Φ((1 + σ² arsinh R)/σ). Its mean is taken over
    `num_samples` draws of the other patches, always the same ones, and their negatives. Exact for
    one patch.

    Raises:
      InputError: unless k is a positive integer, σ above 0, and there are two samples at least.
    """
    num_patches, sigma = _check_law(num_patches, sigma)

    def given_others(others: np.ndarray) -> np.ndarray:
        exponents = others / sigma**2
        # All divided by the largest exponential, so that none overflows.
        largest = np.abs(exponents).max(1, initial=0.0)
        scaled = [np.exp(sign * exponents - largest[:, None]).sum(1) for sign in (1, -1)]
        rest = (scaled[0] - scaled[1]) / 2
        size = largest + np.log(np.abs(rest) + np.hypot(rest, np.exp(-largest)))
        return ndtr((1 + sigma**2 * np.sign(rest) * size) / sigma)

    return _average(given_others, num_patches, sigma, num_samples)


def signal_accuracy_threshold(
    num_patches: int,
    sigma: float,
    threshold: float,
    num_samples: int = 1_000_000,
    zeros: float = 0.5,
) -> tuple[float, float]:
    """The accuracy on the moving signal of the network sign Σ_j φ_b(w⋆ᵀx_j), φ_b(t) = ReLU(t − b) −
    ReLU(−t − b), and its standard error.

    It is the CNN of one filter that has found the signal (`create_patch_network`); b = 0 is linear.
    `zeros` is which share of the samples on which it is 0 counts as correct: half of them where
    they all get the same label.
    Derived: given R = Σ_{j>1} φ_b(s_j) it is Φ((1 + R + b sign R)/σ), where sign 0 is 1 for the
    share `zeros` and −1 for the rest. The mean is taken as in `signal_accuracy_bayes`.

    Raises:
      InputError: unless k is a positive integer, σ above 0, b at least 0, the share in [0, 1], and
        there are two samples at least.
    """
    num_patches, sigma = _check_law(num_patches, sigma)
    threshold = check_number("threshold", threshold, 0.0)
    if check_number("zeros", zeros, 0.0) > 1:
        raise InputError(f"zeros: must be at most 1, got {zeros!r}")

    def given_others(others: np.ndarray) -> np.ndarray:
        rest = (np.sign(others) * np.maximum(np.abs(others) - threshold, 0)).sum(1)
        signs = [np.where(rest == 0, sign, np.sign(rest)) for sign in (-1, 1)]
        least, most = (ndtr((1 + rest + sign * threshold) / sigma) for sign in signs)
        return (1 - zeros) * least + zeros * most

    return _average(given_others, num_patches, sigma, num_samples)


def _check_law(num_patches: int, sigma: float) -> tuple[int, float]:
    num_patches = check_integer("num_patches", num_patches, 1)
    return num_patches, check_number("sigma", sigma, 0.0, exclusive=True)


def _average(
    given_others: Callable[[np.ndarray], np.ndarray],
    num_patches: int,
    sigma: float,
    num_samples: int,
) -> tuple[float, float]:
    """The mean of a function of the patches without the signal, s_j ~ N(0, σ²), [B, k − 1], and its
    standard error, in float64.
    """
    num_samples, rng = check_integer("num_samples", num_samples, 2), np.random.default_rng(0)
    sums = np.zeros(2)
    for first in range(0, num_samples, _CHUNK):
        shape = min(_CHUNK, num_samples - first), num_patches - 1
        others = sigma * rng.standard_normal(shape)
        # As likely with the other sign: the mean of both scatters less.
        values = np.mean([given_others(others), given_others(-others)], 0, np.float64)
        sums += values.sum(), (values**2).sum()
    mean, square = sums / num_samples
    variance = max(square - mean**2, 0.0)
    return float(mean), math.sqrt(variance / (num_samples - 1))


def dynamic_signal(loss: PerSample = cross_entropy, correct: PerSample = has_label) -> Task:
    """The moving signal as a task: networks differ in `signal` w⋆ [N, d], `sigma`, and
    `num_samples`, the training samples that they have; 0: all of the recipe's.

    Inputs are vectors of any shape whose length d divides, (k, d) say. The noise, the places of the
    signal, the initialization and the order of the samples depend on the seed alone.

    A network with n samples has the first n: number m of the recipe's `num_train` is m mod n. So
    all take the same number of steps, whatever n is, in one compiled program, and a network sees
    each of its samples the more often the fewer there are. Where n does not divide `num_train`, the
    first num_train mod n of them are seen once more than the others: n = 2896 of 4096 counts as
    (Σ w)²/Σ w² = 2583 samples of equal weight.

    Args:
      loss: of outputs [B, 2] and labels [B] in {0, 1}, real numbers [B]; default: cross-entropy of
        the labels.
      correct: of the same, truth values [B]; default: whether the larger output is the label's.

    Raises:
      InputError: for what is no function; and, before networks are trained, for functions that
        fail, whose results have another form, and for losses that are not finite at the start.
    """
    return Task(
        data=_make_data,
        sample=_sample,
        arrays={"signal": REQUIRED, "sigma": 1.0, "num_samples": 0},
        prepare=_prepare,
        check=_check_counts,
        num_outputs=2,
        shared=False,
        **choose_loss(loss, correct),
    )


def _make_data(model: Model, recipe: Recipe, seed: int) -> Draws:
    return sample_draws(noise_key(seed), *check_sizes(recipe), math.prod(model.image_shape))


def _sample(
    draws: Draws, split: str, indices: jax.Array, arrays: Arrays
) -> tuple[jax.Array, jax.Array]:
    noise, places = getattr(draws.noise, split), getattr(draws, split)
    if split == "train":
        count = jnp.asarray(arrays["num_samples"]).astype(jnp.int32)
        indices = indices % jnp.where(count == 0, len(noise), count)
    labels = label_samples(indices)
    given = noise[indices], places[indices], labels
    return insert_signal(*given, arrays["signal"], arrays["sigma"]), labels


def _prepare(model: Model, arrays: Arrays) -> Arrays:
    """Unit signals [N, d] float32; `InputError` for others, for σ below 0, and for numbers of
    samples that are odd or negative.
    """
    for value in np.ravel(number_array("sigma", arrays["sigma"])).tolist():
        check_number("sigma", value, 0.0)
    counts = real_array("num_samples", arrays["num_samples"], finite=False)
    for value in np.ravel(counts).tolist():
        if value:
            whole = float(value).is_integer()
            check_num_samples("num_samples", int(value) if whole else value)
    signals = check_units("signal", host_array("signal", arrays["signal"], "[N, d]"))
    _check_signal(signals[0], math.prod(model.image_shape))
    signals = signals / np.linalg.norm(signals, axis=1)[:, None]
    return {**arrays, "signal": signals.astype(np.float32)}


def _check_counts(recipe: Recipe, arrays: Arrays) -> None:
    """Raises `InputError` for a network of more samples than there are."""
    most = np.max(arrays["num_samples"])
    if most > recipe.num_train:
        raise InputError(
            f"num_samples: must be at most num_train = {recipe.num_train} of the recipe, got "
            f"{most:g}"
        )
