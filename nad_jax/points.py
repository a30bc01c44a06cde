"""Laws of points: where a vector field is evaluated."""

import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.errors import InputError, check_integer, check_number, check_record, host_array


class Points(NamedTuple):
    """A law of points on input space.

    prepare(key, data) -> pool: what all networks share, from the key of the ensemble.
    draw(pool, key) -> points [P, *input_shape] of one network, from a key of its own.
    data: the arrays that `prepare` takes.
    description: the choices as JSON values, for the record of a result.
    """

    prepare: Callable[[jax.Array, Any], Any]
    draw: Callable[[Any, jax.Array], jax.Array]
    data: Any
    description: dict[str, Any]


def shape_of_points(points: Points) -> tuple[int, ...]:
    """[P, *input_shape], of the points that a law gives a network."""

    def draw(key: jax.Array, data: Any) -> jax.Array:
        return points.draw(points.prepare(key, data), key)

    return jax.eval_shape(draw, jax.random.key(0), points.data).shape


def check_points(points: Points, input_shape: tuple[int, ...], name: str = "points") -> None:
    """Raises `InputError` unless they are a law of inputs of this shape."""
    check_record(name, points, Points)
    shape = shape_of_points(points)[1:]
    if shape != tuple(input_shape):
        raise InputError(f"{name}: must be of shape {input_shape} each, got {shape}")


def gaussian(input_shape: tuple[int, ...], scale: float = 1.0, shared: bool = True) -> Points:
    """One point from N(0, scale² I), shared by all networks or a fresh one for each.

    Raises:
      InputError: for a negative scale.
    """
    scale = check_number("point_scale", scale, 0.0)

    def point(key: jax.Array) -> jax.Array:
        return scale * jax.random.normal(key, input_shape, jnp.float32)[None]

    described = {"point": "shared" if shared else "fresh", "point_scale": scale}
    return Points(
        lambda key, data: point(key) if shared else None,
        lambda pool, key: pool if shared else point(key),
        None,
        described,
    )


def at_origin(input_shape: tuple[int, ...]) -> Points:
    """The origin, for every network."""
    return gaussian(input_shape, 0.0)


def images(x: Any, per_network: int = 0) -> Points:
    """Given points, images or any other inputs: all of them for every network, or some for each.

    Args:
      x: [P, *input_shape], real numbers, as the network takes them; uint8 as x/255, like the task
        `tasks.images`.
      per_network: how many of them each network draws for itself, without replacement; 0: all.

    Raises:
      InputError: for points that are not finite real numbers, and more of them than there are.
    """
    scale = np.float32(255 if getattr(x, "dtype", None) == np.uint8 else 1)
    x = host_array("points", x).astype(np.float32) / scale
    if x.ndim < 2 or not len(x):
        raise InputError(f"points: must be [P, *input_shape] with P ≥ 1, got shape {x.shape}")
    per_network = check_integer("per_network", per_network, 0, len(x))

    def draw(pool: jax.Array, key: jax.Array) -> jax.Array:
        if not per_network:
            return pool
        return pool[jax.random.permutation(key, len(x))[:per_network]]

    digest = hashlib.sha256(x.tobytes()).hexdigest()[:16]
    described = {"point": "given", "points": digest, "num_points": len(x)}
    described["per_network"] = per_network
    if not x.any():
        described["point_scale"] = 0.0
    return Points(lambda key, data: data, draw, x, described)


def as_points(points: Any) -> Points | None:
    """A law of points as it is, None too; an array [P, *input_shape] as that of `images`."""
    return points if points is None or isinstance(points, Points) else images(points)
