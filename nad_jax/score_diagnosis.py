"""Why the geometry of a score network is degenerate: what one of its networks shows at the probe."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.ensemble import named_key
from nad_jax.points import Points
from nad_jax.score_networks import ScoreNetwork

_FEW = 0.5  # of the weights that are drawn: where fewer influence the output, a warning says so
_TINY = 1e-5  # of the largest output: what changes less is rounding
_LEVELS = 4  # that are looked at


def explain_degenerate(
    network: ScoreNetwork,
    points: Points,
    noised: bool,
    signal: np.ndarray,
    key: jax.Array,
    num_zero: int,
) -> tuple[str, ...]:
    """What makes a geometry degenerate, a sentence each.

    Args:
      network, points, noised, signal: what was measured, where; see `score_geometry.output`.
      num_zero: how many eigenvalues are zero.
    """
    influences, sizes, varies = _look(network, points, noised, signal, key)
    share = sizes[influences].sum() / max(sizes.sum(), 1)
    sentences = []
    dimension = int(np.prod(network.input_shape))
    if num_zero:
        sentences.append(
            f"{num_zero} of {dimension} eigenvalues are zero: the directions of this band are an "
            "arbitrary basis of it, only the band is meaningful"
        )
    if share < _FEW:
        sentences.append(
            f"{1 - share:.0%} of the weights that are drawn do not influence the output at this "
            "probe: blocks that start as the identity (zero_init), or layers that only meet zeros"
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
        ours, other = network.init(keys[0]), network.init(keys[1])
        ours, structure = jax.tree.flatten(ours)
        other = jax.tree.leaves(other)
        law = points.prepare(named_key(key, "point"), points.data)
        x = jnp.broadcast_to(points.draw(law, keys[2])[:1], (_LEVELS, *network.input_shape))
        if noised:
            kept = jnp.asarray(signal, jnp.float32)[levels].reshape(-1, *(1,) * (x.ndim - 1))
            noise = jax.random.normal(keys[3], x.shape, x.dtype)
            x = jnp.sqrt(kept) * x + jnp.sqrt(1.0 - kept) * noise

        def outputs(leaves: list[jax.Array], t: Any = levels) -> jax.Array:
            variables = jax.tree.unflatten(structure, leaves)
            return network.apply(variables, x, jnp.asarray(t, jnp.float32))

        def change(number: jax.Array) -> jax.Array:
            pairs = zip(ours, other, strict=True)
            mixed = [jnp.where(number == n, b, a) for n, (a, b) in enumerate(pairs)]
            return jnp.abs(outputs(mixed) - usual).max()

        usual = outputs(ours)
        changes = jax.lax.map(change, jnp.arange(-1, len(ours)))  # −1: none is replaced
        later = jnp.abs(outputs(ours, levels[::-1]) - usual).max()
        drawn = jnp.stack([jnp.sum(a != b) for a, b in zip(ours, other, strict=True)])
        return changes, drawn, later, jnp.abs(usual).max()

    changes, drawn, later, largest = map(np.asarray, look(key))
    least = max(_TINY * largest, 2 * changes[0])
    return changes[1:] > least, drawn, bool(later > least)
