"""How fast training sets a geometry in motion: dG/dt at the initialization, without training."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.contract import check_inputs, choose_logit
from nad_jax.ensemble import member_keys, named_key, resolve_key
from nad_jax.errors import InputError, check_integer, check_record, real_array
from nad_jax.models import Leaves, Model, split_trainable
from nad_jax.vector_fields import logit as one_logit

_TOGETHER = 64  # networks at a time


class Velocity(NamedTuple):
    """dG/dt, see `geometry_velocity`. velocity: [D, D]. error: [D, D], its standard error."""

    velocity: np.ndarray
    error: np.ndarray

    def __repr__(self) -> str:
        size, error = np.linalg.norm(self.velocity), np.linalg.norm(self.error)
        return f"Velocity dG/dt [{len(self.velocity)}, …]: Frobenius norm {size:.4g}, of its error {error:.2g}"


def geometry_velocity(
    model: Model,
    num_networks: int,
    x: Any,
    targets: Any,
    points: Any = None,
    seed: jax.Array | int = 0,
    logit: int | None = None,
) -> Velocity:
    """dG/dt of G = E[∇f ∇fᵀ] at the initialization, under gradient flow on the squared loss
    ½ Σ_i (f(x_i) − y_i)²: the mean over networks of ġ gᵀ + g ġᵀ, g = ∇f, ġ = ∂²f/∂x∂θ θ̇.

    It is exact for networks that are smooth in x and θ together. Of ReLU the gates that open and
    close are missing: measure those by `geometry_evolution`.

    Source: GIH (average geometry evolution).

    Args:
      num_networks: N ≥ 2.
      x: [n, *input_shape] or [n, D], the inputs that are trained on. targets: y [n].
      points: [P, *input_shape] or [P, D], where the geometry is measured; None: at x.
      seed: an integer, or a typed random key.
      logit: which of several is f; None where there is one.

    Raises:
      InputError: naming the argument, its value and what is allowed.
    """
    check_record("model", model, Model)
    num_networks = check_integer("num_networks", num_networks, 2)
    network = one_logit(model, choose_logit(model, logit)).draw(None)
    x = check_inputs("x", model, x)
    points = x if points is None else check_inputs("points", model, points)
    targets = jnp.asarray(real_array("targets", targets, f"[{len(x)}]"), x.dtype)

    def output(weights: Leaves, others: Leaves, join: Any, x: jax.Array) -> jax.Array:
        return network(join(weights, others), x)[:, 0]

    def velocity(key: jax.Array) -> jax.Array:
        weights, others, join = split_trainable(model, model.init(key))
        f = partial(output, others=others, join=join)
        movement = jax.grad(lambda at: -0.5 * jnp.sum((f(at, x=x) - targets) ** 2))(weights)

        def gradients(point: jax.Array) -> tuple[jax.Array, jax.Array]:
            def along_movement(point: jax.Array) -> jax.Array:
                slopes = jax.grad(lambda at: f(at, x=point[None])[0])(weights)
                return sum(map(jnp.vdot, slopes, movement))

            first = jax.grad(lambda point: f(weights, x=point[None])[0])(point)
            return first.reshape(-1), jax.grad(along_movement)(point).reshape(-1)

        now, rate = jax.vmap(gradients)(points)
        half = rate.T @ now / len(points)
        return half + half.T

    @jax.jit
    def sums_of(key: jax.Array, numbers: jax.Array) -> jax.Array:
        found = jax.vmap(velocity)(member_keys(key, numbers))
        found = jnp.where((numbers < num_networks)[:, None, None], found, 0)
        return jnp.stack([found.sum(0), (found**2).sum(0)])

    key, size = named_key(resolve_key(seed), "networks"), min(_TOGETHER, num_networks)
    total = np.zeros((2, *(math.prod(model.input_shape),) * 2))
    with jax.default_matmul_precision("highest"):
        for first in range(0, num_networks, size):
            total += np.asarray(sums_of(key, first + jnp.arange(size)))
    mean = total[0] / num_networks
    variance = np.maximum(total[1] / num_networks - mean**2, 0) * num_networks
    if not np.isfinite(mean).all():
        raise InputError("model: its derivatives there are not finite")
    return Velocity(mean, np.sqrt(variance / (num_networks - 1) / num_networks))
