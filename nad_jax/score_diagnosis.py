"""Why the geometry of a score network is degenerate: what one of its networks shows at the probe."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.ensemble import named_key
from nad_jax.points import Points
from nad_jax.score_networks import ScoreNetwork

# Of the weights that are drawn: where fewer influence the output, a warning says so. And of eigenvalues:
# where more are equal.
_FEW = 0.5
_TINY = 1e-5  # of the largest output: what changes less is rounding
_LEVELS = 4  # that are looked at
# In place of the number of a leaf: no leaf is replaced, but the noise levels; nothing is. And where
# the outputs are in which nothing is.
_OTHER_LEVELS, _USUAL = -2, 1


def explain_degenerate(
    network: ScoreNetwork,
    points: Points,
    noised: bool,
    signal: np.ndarray,
    key: jax.Array,
    counts: tuple[int, int],
    num_rows: int,
) -> tuple[str, ...]:
    """What makes a geometry degenerate, a sentence each.

    Args:
      network, points, noised, signal: what was measured, where; see `score_geometry.output`.
      counts: how many eigenvalues are zero, and how many others are equal to another one.
      num_rows: how many vectors they are from at least.
    """
    num_zero, num_equal = counts
    influences, sizes, varies = _look(network, points, noised, signal, key)
    share = sizes[influences].sum() / sizes.sum() if sizes.any() else 1.0
    sentences = []
    dimension = int(np.prod(network.input_shape))
    if num_zero and num_zero == dimension - num_rows:
        sentences.append(
            f"{num_rows} networks have at most as many directions of {dimension}: take more networks"
        )
    elif num_zero:
        sentences.append(
            f"{num_zero} of {dimension} eigenvalues are zero: the directions of this band are an "
            "arbitrary basis of it, only the band is meaningful"
        )
    if num_equal > _FEW * (dimension - num_zero):
        sentences.append(
            f"{num_equal} of {dimension} eigenvalues are equal to another one: directions among equal "
            "ones are an arbitrary basis, and bands that cut them are not determined"
        )
    if share < _FEW:
        sentences.append(
            f"only {share:.2g} of the weights that are drawn influence the output at this probe: "
            "blocks start as the identity (zero_init), or layers meet zeros alone"
        )
    if not varies:
        sentences.append(
            "the output does not depend on the noise level but for the factor of the score"
        )
    return tuple(sentences)


def _look(
    network: ScoreNetwork, points: Points, noised: bool, signal: np.ndarray, key: jax.Array
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Which leaves of the variables influence the output [L], how many numbers each has that are
    drawn [L], and whether the noise level does.

    Each leaf in turn is replaced by that of another network.
    """
    levels = np.linspace(0, len(signal) - 1, _LEVELS).astype(np.int32)

    @jax.jit
    def look(key: jax.Array) -> Any:
        keys = jax.random.split(named_key(key, "diagnosis"), 4)
        leaves, structure = jax.tree.flatten(jax.vmap(network.init)(keys[:2]))
        data = jax.tree.map(jnp.asarray, points.data)
        pool = points.prepare(named_key(key, "point"), data)
        x = jnp.broadcast_to(points.draw(pool, keys[2])[:1], (_LEVELS, *network.input_shape))
        if noised:
            kept = signal[levels].reshape(-1, *(1,) * (x.ndim - 1))
            data, added = (jnp.asarray(np.sqrt(a), x.dtype) for a in (kept, 1.0 - kept))
            noise = jax.random.normal(keys[3], x.shape, x.dtype)
            x = data * x + added * noise

        def outputs(number: jax.Array) -> jax.Array:
            mixed = [jnp.where(number == n, b, a) for n, (a, b) in enumerate(leaves)]
            t = jnp.where(number == _OTHER_LEVELS, levels[::-1], levels).astype(jnp.float32)
            return network.apply(jax.tree.unflatten(structure, mixed), x, t)

        found = jax.lax.map(outputs, jnp.arange(_OTHER_LEVELS, len(leaves)))
        drawn = jnp.asarray([jnp.sum(a != b) for a, b in leaves], jnp.int32)
        changes = jnp.abs(found - found[_USUAL][None]).max(range(1, found.ndim))
        return changes, drawn, jnp.abs(found[_USUAL]).max()

    changes, drawn, largest = map(np.asarray, look(key))
    influences = changes > _TINY * largest
    return influences[2:], drawn, bool(influences[0])
