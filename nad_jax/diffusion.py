"""Diffusion with preserved variance: noise levels, noising, and sampling from a score network.

x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε,  ε ~ N(0, I),  ᾱ_t = ∏_{s ≤ t} (1 − β_s),  t = 0 … T − 1

For Gaussian data N(0, S) everything is known in closed form: the best score network, its loss, and
the covariance of what a sampler draws from it.

Sources: DDPM (Ho, Jain, Abbeel, 2020), the noise that a network predicts; DDIM (Song, Meng, Ermon,
2021), the sampler; SAD, the schedule. The closed forms are derived.
"""

import math
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.contract import as_floating
from nad_jax.ensemble import member_keys, resolve_key
from nad_jax.errors import (
    InputError,
    check_input_shape,
    check_integer,
    check_number,
    check_record,
    host_array,
    known,
    number_array,
    raise_problems,
    real_array,
)
from nad_jax.errors import problems as list_problems
from nad_jax.score_networks import ScoreNetwork, check_score_network
from nad_jax.spectral import check_moment


class Schedule(NamedTuple):
    """Noise levels t = 0 … T − 1 with β_t linear from `first`/T to `last`/T; the defaults are SAD's.

    num_levels: T.
    """

    num_levels: int = 1000
    first: float = 0.1
    last: float = 20.0

    def check(self) -> "Schedule":
        """The same with plain numbers; one `InputError` for what is wrong."""
        raise_problems(
            list_problems(
                lambda: check_integer("num_levels", self.num_levels, 1),
                lambda: check_number("first", self.first, 0.0, exclusive=True),
                lambda: check_number("last", self.last, 0.0, exclusive=True),
            )
        )
        if max(self.first, self.last) >= self.num_levels:
            raise InputError(
                f"last: β must be below 1, so first and last must be below num_levels = "
                f"{self.num_levels}, got {self.first} and {self.last}"
            )
        if not _alpha_bar(_betas(self))[-1]:
            raise InputError(
                f"last: nothing of the data is left at the last level, to rounding, got {self.last} "
                f"of {self.num_levels} levels"
            )
        return Schedule(int(self.num_levels), float(self.first), float(self.last))

    @property
    def betas(self) -> np.ndarray:
        """β_t, [T] float64; raises as `check`."""
        return _betas(self.check())

    @property
    def alpha_bar(self) -> np.ndarray:
        """ᾱ_t, the share of the data in the variance of x_t, [T] float64, falling; raises as `check`."""
        return _alpha_bar(self.betas)


def _betas(schedule: Schedule) -> np.ndarray:
    return np.linspace(schedule.first, schedule.last, schedule.num_levels) / schedule.num_levels


def _alpha_bar(betas: np.ndarray) -> np.ndarray:
    return np.exp(np.cumsum(np.log1p(-betas)))


def check_schedule(schedule: Schedule) -> Schedule:
    """Returns a schedule, checked; `InputError` for what is none."""
    check_record("schedule", schedule, Schedule)
    return schedule.check()


def check_levels(levels: Any, count: int, num_levels: int) -> Any:
    """Returns noise levels [B], integers in 0 … T − 1 where they are known; `InputError` otherwise."""
    array = number_array("t", levels)
    if array.shape != (count,) or not jnp.issubdtype(array.dtype, jnp.integer):
        raise InputError(
            f"t: must be integers [{count}], one for each input, got shape {array.shape} of "
            f"{array.dtype}"
        )
    values = known(array)
    if values is not None and ((values < 0) | (values >= num_levels)).any():
        wrong = int(values[(values < 0) | (values >= num_levels)][0])
        raise InputError(f"t: must be in 0 … {num_levels - 1}, got {wrong}")
    return array


def add_noise(
    x: jax.Array, t: jax.Array, noise: jax.Array, schedule: Schedule = Schedule()
) -> jax.Array:
    """x_t of inputs x [B, …], noise levels t [B], integers in 0 … T − 1, and noise ε [B, …]; [B, …]
    of the dtype of x, float32 for integers.

    Raises:
      InputError: for other shapes, and levels outside of the schedule, where they are known.
    """
    alpha_bar = check_schedule(schedule).alpha_bar
    x = as_floating(real_array("x", x, "[B, ...]"))
    t = jnp.asarray(check_levels(t, len(x), schedule.num_levels))
    noise = real_array("noise", noise, "[B, ...]")
    if noise.shape != x.shape:
        raise InputError(f"noise: must be of the shape of x, {x.shape}, got {noise.shape}")
    shape = (len(x),) + (1,) * (x.ndim - 1)
    # Both roots in double precision: 1 − ᾱ₀ is small.
    data, added = (
        jnp.asarray(root, x.dtype)[t].reshape(shape)
        for root in (np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar))
    )
    return data * x + added * noise


class Steps(NamedTuple):
    """The steps of a sampler, in their order: x ← keep x + remove ε(x, t) + noise z, z ~ N(0, I).

    levels: t, [S] integers, falling. keep, remove, noise: [S] float64.
    """

    levels: np.ndarray
    keep: np.ndarray
    remove: np.ndarray
    noise: np.ndarray


def plan_steps(num_steps: int = 0, eta: float = 1.0, schedule: Schedule = Schedule()) -> Steps:
    """The steps of DDIM (Song, Meng, Ermon, 2021) from level T − 1 to the data.

    From x_t a step predicts x̂₀ = (x_t − √(1 − ᾱ_t) ε) / √ᾱ_t, and goes to the next lower level s by
    x_s = √ᾱ_s x̂₀ + √(1 − ᾱ_s − σ²) ε + σ z, σ = η √((1 − ᾱ_s)(1 − ᾱ_t/ᾱ_s) / (1 − ᾱ_t)). The last
    step leads to x̂₀ itself. x̂₀ is not clamped.

    Args:
      num_steps: S; they start at levels spread evenly from T − 1 to 0, both included; one alone
        starts at T − 1. 0: at every level.
      eta: η in [0, 1]; 1: ancestral sampling (DDPM), 0: no noise is added.

    Raises:
      InputError: for values that are not as above.
    """
    schedule = check_schedule(schedule)
    num_steps = check_integer("num_steps", num_steps, 0, schedule.num_levels)
    eta = check_number("eta", eta, 0.0)
    if eta > 1:
        raise InputError(f"eta: must be a number in 0 … 1, got {eta}")
    last = schedule.num_levels - 1
    levels = np.rint(np.linspace(last, 0, num_steps or last + 1)).astype(int)
    alpha_bar = schedule.alpha_bar[levels]
    lower = np.append(alpha_bar[1:], 1.0)
    noise = eta * np.sqrt((1 - lower) * (1 - alpha_bar / lower) / (1 - alpha_bar))
    keep = np.sqrt(lower / alpha_bar)
    remove = np.sqrt(np.maximum(1 - lower - noise**2, 0)) - keep * np.sqrt(1 - alpha_bar)
    return Steps(levels, keep, remove, noise)


# (variables, key, num_samples) -> samples [N, *shape]
Sampler = Callable[[Any, Any, int], jax.Array]


def make_sampler(
    network: ScoreNetwork,
    num_steps: int = 0,
    eta: float = 1.0,
    schedule: Schedule = Schedule(),
    batch_size: int = 250,
) -> Sampler:
    """Builds the function that samples from a score network; see `sample_ddim`. It is compiled
    once.
    """
    check_score_network(network)
    steps = plan_steps(num_steps, eta, schedule)
    batch_size = check_integer("batch_size", batch_size, 1)

    def draw_noise(keys: jax.Array, step: jax.Array) -> jax.Array:
        def draw(key: jax.Array) -> jax.Array:
            key = jax.random.fold_in(key, step)
            return jax.random.normal(key, network.input_shape, jnp.float32)

        return jax.vmap(draw)(keys)

    @jax.jit
    def sample_batch(variables: Any, keys: jax.Array) -> jax.Array:
        def take_step(x: jax.Array, step: tuple[jax.Array, Any]) -> tuple[jax.Array, None]:
            number, (level, keep, remove, noise) = step
            t = jnp.full(len(x), level, jnp.float32)
            noise_in_x = network.apply(variables, x, t).reshape(x.shape).astype(x.dtype)
            x = keep * x + remove * noise_in_x
            return x + noise * draw_noise(keys, number) if eta else x, None

        coefficients = jax.tree.map(lambda one: jnp.asarray(one, jnp.float32), steps)
        numbers = jnp.arange(1, len(steps.levels) + 1)
        return jax.lax.scan(take_step, draw_noise(keys, 0), (numbers, coefficients))[0]

    def sample(variables: Any, key: jax.Array | int, num_samples: int) -> jax.Array:
        key, num_samples = resolve_key(key, "key"), check_integer("num_samples", num_samples, 1)
        numbers = np.arange(-(-num_samples // batch_size) * batch_size)  # the last batch is full
        batches = numbers.reshape(-1, batch_size)
        samples = [sample_batch(variables, member_keys(key, jnp.asarray(n))) for n in batches]
        return jnp.concatenate(samples)[:num_samples]

    return sample


def sample_ddim(
    network: ScoreNetwork,
    variables: Any,
    key: jax.Array | int,
    num_samples: int,
    num_steps: int = 0,
    eta: float = 1.0,
    schedule: Schedule = Schedule(),
    batch_size: int = 250,
) -> jax.Array:
    """Samples from a score network, [N, *shape] float32: by the steps of `plan_steps` from N(0, I).

    Sample n has a key of its own: it depends neither on how many there are nor on the batches, but
    for rounding.

    Args:
      variables: of the network.
      key: a typed random key, or an integer.
      num_samples: N.
      num_steps, eta, schedule: see `plan_steps`; by default ancestral sampling over all levels.
      batch_size: samples at a time.

    Raises:
      InputError: for values that are not as above.
    """
    sampler = make_sampler(network, num_steps, eta, schedule, batch_size)
    return sampler(variables, key, num_samples)


def gaussian_network(
    covariance: Any, input_shape: tuple[int, ...] = (), schedule: Schedule = Schedule()
) -> ScoreNetwork:
    """The best score network for data N(0, S), without variables: √(1 − ᾱ) (ᾱ S + (1 − ᾱ) I)⁻¹ x.

    Derived: it is E[ε | x_t = x]. Levels are rounded to whole ones.

    Args:
      covariance: S, [D, D].
      input_shape: of one input; default: (D,).

    Raises:
      InputError: for a matrix that is no covariance, and a shape of another size.
    """
    variances, basis = _eigh_covariance(covariance)
    shape = check_input_shape(input_shape or (len(variances),))
    if math.prod(shape) != len(variances):
        raise InputError(
            f"input_shape: must have {len(variances)} entries, as the covariance, got {shape}"
        )
    gains = _gaussian_gains(variances, check_schedule(schedule))

    def apply(variables: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        flat, level = x.reshape(len(x), -1), jnp.clip(jnp.rint(t), 0, len(gains) - 1)
        gain = jnp.asarray(gains, x.dtype)[level.astype(jnp.int32)]
        rotated = jnp.matmul(flat, jnp.asarray(basis, x.dtype), precision="highest")
        back = jnp.asarray(basis.T, x.dtype)
        return jnp.matmul(gain * rotated, back, precision="highest").reshape(x.shape)

    description = MappingProxyType({"architecture": "gaussian"})
    return ScoreNetwork(lambda key: {}, apply, shape, description=description)


def _eigh_covariance(covariance: Any) -> tuple[np.ndarray, np.ndarray]:
    """The variances [D] of a covariance [D, D] and their directions as columns [D, D]."""
    variances, basis = np.linalg.eigh(check_moment("covariance", covariance))
    return np.maximum(variances, 0.0), basis


def _gaussian_gains(variances: np.ndarray, schedule: Schedule) -> np.ndarray:
    """The noise that is expected of an input of 1, by level and variance: [T, ...]."""
    alpha_bar = schedule.alpha_bar.reshape(-1, *(1,) * variances.ndim)
    return np.sqrt(1 - alpha_bar) / (alpha_bar * variances + 1 - alpha_bar)


def gaussian_loss(covariance: Any, schedule: Schedule = Schedule()) -> float:
    """The least mean squared error of the noise, by entry, for data N(0, S) and t uniform:
    the mean over t and the eigenvalues s of S of ᾱ_t s / (ᾱ_t s + 1 − ᾱ_t).

    Derived: it is the loss of `gaussian_network`. `covariance` is S, [D, D]; raises `InputError`
    for another matrix.
    """
    variances, alpha_bar = _eigh_covariance(covariance)[0], check_schedule(schedule).alpha_bar
    signal = alpha_bar[:, None] * variances
    return float(np.mean(signal / (signal + 1 - alpha_bar[:, None])))


def sampled_variance(
    variance: Any, num_steps: int = 0, eta: float = 1.0, schedule: Schedule = Schedule()
) -> np.ndarray:
    """The variance of what a sampler draws from the best network for data of a variance s: [...].

    Derived: for Gaussian data a step is linear, x ← (keep + remove g_t) x + noise z with the gain
    g_t = √(1 − ᾱ_t) / (ᾱ_t s + 1 − ᾱ_t), so variances follow a recursion, each eigenvalue of S on
    its own. The rest of the difference from s is the error of finitely many steps.

    Args:
      variance: s, numbers of at least 0, [...].
      num_steps, eta, schedule: see `plan_steps`.

    Raises:
      InputError: for values that are not as above.
    """
    variance = host_array("variance", variance)
    if (variance < 0).any():
        raise InputError(f"variance: must be at least 0, got {variance.min():.4g}")
    steps = plan_steps(num_steps, eta, schedule)
    gains = _gaussian_gains(variance, schedule)
    sampled = np.ones_like(variance)
    for level, keep, remove, noise in zip(*steps, strict=True):
        sampled = (keep + remove * gains[level]) ** 2 * sampled + noise**2
    return sampled
