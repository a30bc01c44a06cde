"""How sure a geometry is of the points that its networks share: what they say of each differs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.choices import Estimator
from nad_jax.ensemble import member_keys, named_key
from nad_jax.geometry import make_rows, split_member
from nad_jax.models import Model
from nad_jax.nads import NADs
from nad_jax.points import Points
from nad_jax.symmetries import mean_of_pairs

_MOST = 16  # networks that are asked again: what points differ in shows in few


def are_shared(points: Points | None) -> bool:
    """Whether every network is measured at the same several points."""
    if points is None:
        return False
    pool_key, *keys = jax.random.split(jax.random.key(0), 3)
    pool = points.prepare(pool_key, points.data)
    one, other = (np.asarray(points.draw(pool, key)) for key in keys)
    return len(one) > 1 and np.array_equal(one, other)


def measure_between_points(
    model: Model,
    estimator: Estimator,
    key: jax.Array,
    nads: NADs,
    points: Points | None,
    variables: Any = None,
) -> NADs:
    """The record with the error between points, from up to 16 of its networks; as it is where
    networks share no several points, and of centered rows.

    The error of one network is that between points alone.
    """
    if estimator.centred or not are_shared(points):
        return nads
    rows_of, directions = make_rows(model, estimator, points), jnp.asarray(nads.directions)
    exponent = int(np.frexp(np.sqrt(nads.eigenvalues[0]))[1])  # so that no square overflows

    @jax.jit
    def measure(key: jax.Array, number: jax.Array, data: Any, variables: Any) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            pool = points.prepare(named_key(key, "point"), data)
            own = member_keys(named_key(key, "networks"), number[None])[0]
            if variables is None:
                variables = model.init(split_member(own)[0])
            rows = jnp.ldexp(rows_of(variables, own, pool), -exponent)
            return jnp.mean((rows @ directions.T) ** 2, 1)

    def energies_of(number: int) -> np.ndarray:
        own = jax.tree.map(lambda leaf: leaf[number], variables)
        return np.asarray(measure(key, jnp.uint32(number), points.data, own), np.float64)

    asked = range(min(nads.num_networks, _MOST))
    energies = np.stack([energies_of(number) for number in asked])
    # The two of a pair (E) have one eigenvalue, the mean of theirs.
    energies = np.moveaxis(mean_of_pairs(np.moveaxis(energies, 2, 0), nads.symmetry), 0, 2)
    sem = np.ldexp(error_between_points(energies, nads.num_networks), 2 * exponent)
    if nads.num_networks == 1:
        nads = nads._replace(eigenvalue_sem=sem)
    return nads._replace(point_sem=sem)


def error_between_points(energies: np.ndarray, num_networks: int) -> np.ndarray:
    """The standard error [K] of the mean over P points that `num_networks` networks share: what
    other points would change while these networks stay; from energies [M, P, K] of M of them.

    Two-way analysis of variance: what points differ in by themselves is what their means over
    networks differ in beyond what the interaction of networks and points explains; of that, more
    networks leave less. Of one network nothing can be told apart, and it is all there is.
    """
    count, num_points, _ = energies.shape
    means = energies.mean(0)
    between = means.var(0, ddof=1)
    if count == 1:
        return np.sqrt(between / num_points)
    rest = energies - means - energies.mean(1, keepdims=True) + means.mean(0)
    interaction = (rest**2).sum((0, 1)) / ((count - 1) * (num_points - 1))
    alone = np.maximum(between - interaction / count, 0.0)
    return np.sqrt((alone + interaction / num_networks) / num_points)
