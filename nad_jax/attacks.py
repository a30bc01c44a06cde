"""Adversarial training and attacks: samples moved within a ball so that their loss grows.

    max over ‖δ‖ ≤ r of loss(x + δ)

Approximated by projected gradient descent: k steps of length 2.5 r/k along the gradient of the loss
in the sample, normalized (L2) or its sign (L∞), each followed by projection on the ball. Source:
Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.contract import as_floating, reported
from nad_jax.ensemble import resolve_key
from nad_jax.errors import (
    InputError,
    check_choice,
    check_function,
    check_integer,
    check_number,
    check_record,
    check_scalar,
    real_array,
)
from nad_jax.task import Arrays, Perturb, Task, with_scale

NORMS = ("l2", "linf")
STEP = 2.5  # length of all steps together, in radii


def pgd(
    losses: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    radius: Any,
    norm: str = "l2",
    steps: int = 7,
    key: jax.Array | None = None,
) -> jax.Array:
    """Samples x + δ [B, …] of large loss, ‖δ‖ ≤ `radius` in the L2 or L∞ norm of each sample.

    A sample whose gradient is zero is not moved, and at radius 0 all are returned exactly. What is
    found is a lower bound of the largest loss: where rounding makes the gradient of a confident
    network zero, its samples stay as they are.

    Args:
      losses: of samples [B, …], real floating-point numbers [B], each of its own sample alone.
      x: [B, …], real numbers; integers are moved in single precision.
      radius: a number of at least 0, in units of the input; it may be traced.
      norm: "l2" or "linf".
      steps: how many, at least 1, of length 2.5 `radius` / `steps`.
      key: a typed random key, or an integer, from which δ begins at a random point of the ball;
        None: at 0.

    Raises:
      InputError: for anything else, and where `losses` fails.
    """
    check_function("losses", losses, optional=False)
    check_choice("norm", norm, NORMS)
    steps = check_integer("steps", steps, 1)
    x = as_floating(real_array("x", x, "[B, ...]"))
    radius = jnp.asarray(check_scalar("radius", radius), x.dtype)
    project = _project_l2 if norm == "l2" else _project_linf
    ascend = _normalize if norm == "l2" else jnp.sign
    gradient = jax.grad(partial(_total, losses))

    def step(moved: jax.Array, _: None) -> tuple[jax.Array, None]:
        along = ascend(gradient(x + moved))
        return project(moved + STEP / steps * radius * along, radius), None

    start = jnp.zeros_like(x) if key is None else radius * _draw(resolve_key(key, "key"), x, norm)
    return x + jax.lax.scan(step, project(start, radius), length=steps)[0]


def _total(losses: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """The sum of the losses [B] of samples; `InputError` where they are none."""
    with reported("losses"):
        found = losses(x)
    shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", object)
    if shape != x.shape[:1] or not jnp.issubdtype(dtype, jnp.floating):
        got = type(found).__name__ if shape is None else f"{shape} of {dtype}"
        raise InputError(
            "losses: must be one real floating-point number for each sample, [B], got "
            f"{got} for B = {len(x)}"
        )
    return found.sum()


def _scale(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Samples over their largest entries, and these, [B, 1, …]; 1 of samples that are 0."""
    largest = jnp.abs(x).max(tuple(range(1, x.ndim)), keepdims=True)
    largest = jnp.where(largest == 0, 1, largest)
    return x / largest, largest


def _norms(x: jax.Array) -> jax.Array:
    """The L2 norm of each sample, [B, 1, …], whose squares need not be representable."""
    scaled, largest = _scale(x)
    return largest * jnp.sqrt((scaled**2).sum(tuple(range(1, x.ndim)), keepdims=True))


def _normalize(x: jax.Array) -> jax.Array:
    """Samples of L2 norm 1, and 0 where they are."""
    scaled, _ = _scale(x)
    norms = _norms(scaled)
    return scaled / jnp.where(norms == 0, 1, norms)


def _project_l2(moved: jax.Array, radius: jax.Array) -> jax.Array:
    norms = _norms(moved)
    outside = norms > radius
    return jnp.where(outside, radius / jnp.where(outside, norms, 1), 1) * moved


def _project_linf(moved: jax.Array, radius: jax.Array) -> jax.Array:
    return jnp.clip(moved, -radius, radius)


def _draw(key: jax.Array, x: jax.Array, norm: str) -> jax.Array:
    """Points [B, …] uniform in the unit ball."""
    if norm == "linf":
        return jax.random.uniform(key, x.shape, x.dtype, -1, 1)
    along, length = jax.random.split(key)
    shape = (len(x), *(1,) * (x.ndim - 1))
    share = jax.random.uniform(length, shape, x.dtype) ** (1 / np.prod(x.shape[1:]))
    return share * _normalize(jax.random.normal(along, x.shape, x.dtype))


def make_attack(
    norm: str = "l2", steps: int = 7, radius: Any = None, random_start: bool = False
) -> Perturb:
    """`pgd` as what becomes of samples of one network.

    radius: None: that of the network, the array `radius` of its task.

    Raises:
      InputError: as `pgd` does.
    """
    check_choice("norm", norm, NORMS)
    steps = check_integer("steps", steps, 1)
    check_choice("random_start", random_start, (False, True))
    radius = None if radius is None else check_number("radius", radius, 0.0)

    def perturb(
        losses: Callable[[jax.Array], jax.Array], x: jax.Array, arrays: Arrays, key: jax.Array
    ) -> jax.Array:
        reach = arrays["radius"] if radius is None else radius
        return pgd(losses, x, reach, norm, steps, key if random_start else None)

    return perturb


def adversarial(
    task: Task, norm: str = "l2", steps: int = 7, radius: Any = 0.5, random_start: bool = False
) -> Task:
    """The same task, trained on the samples that `pgd` makes of it against the network as it is,
    in evaluation mode; networks also differ in `radius` [N].

    Metrics are those of the samples as they are: see `observers.robust_accuracy`. Random numbers do
    not depend on the radius, and at 0 training is that of the task.

    Args:
      task: any that has no `perturb` and no array `radius` of its own.
      norm, steps, random_start: as in `pgd`; random_start: from a random point of the ball.
      radius: the default, a number of at least 0.

    Raises:
      InputError: for anything else, and where networks are trained for radii below 0.
    """
    check_record("task", task, Task)
    if task.perturb is not None or "radius" in task.arrays:
        raise InputError("task: must have neither perturb nor an array radius of its own")
    attack = make_attack(norm, steps, None, random_start)
    return with_scale(task, "radius", radius)._replace(perturb=attack)
