"""The geometry of score networks on their output space: E[F Fᵀ], F the score of a network drawn
from its own initialization, at probes: inputs with their noise levels.

Source: SAD, "On the Anisotropy of Score-Based Generative Models" (Floros, Moosavi-Dezfooli,
Dragotti, 2025).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from nad_jax.claims import check_last_layer_holds
from nad_jax.diffusion import Schedule
from nad_jax.errors import (
    InputError,
    check_choice,
    check_function,
    check_number,
    host_array,
)
from nad_jax.models import Model
from nad_jax.score_networks import ScoreNetwork, check_score_network
from nad_jax.vector_fields import Network, VectorField, count_together

READOUTS = ("marginalized", "sampled")
LEVELS = ("importance", "uniform", "integrated")

# Rows are replaced by the triangular matrix of the same second moment where there are so many times
# as many as numbers in one.
_MANY = 4
_ENTRIES = 2**22  # of the rows that are computed at once, 16 MB

RowsAt = Callable[[jax.Array], jax.Array]  # of a noise level


def check_signal(signal: Any) -> np.ndarray:
    """Returns ᾱ [T] in float64, that of `Schedule()` for None; `InputError` unless it falls in (0, 1)."""
    if signal is None:
        return Schedule().alpha_bar
    signal = host_array("signal", signal, "[T]").astype(np.float64)
    if not signal.size or not ((signal > 0) & (signal < 1)).all():
        raise InputError("signal: must be numbers ᾱ [T] above 0 and below 1")
    if (np.diff(signal) > 0).any():
        raise InputError(
            "signal: must be numbers ᾱ [T] that fall, as noise is added level by level"
        )
    return signal


def output(
    network: ScoreNetwork,
    readout: str = "marginalized",
    levels: str = "importance",
    noised: bool = False,
    signal: Any = None,
) -> VectorField:
    """The vector field of the geometry of a score network: its score −ε/√(1 − ᾱ_t), at the point of
    the field and at a noise level t that it draws.

    Args:
      network: its `init` draws the variables that the field is given.
      readout: "sampled": one row, with the last layer as it is. "marginalized": the last layer
        integrated out, exactly. The output is linear in its entries, so the rows are its derivatives
        in them, times their standard deviations.
      levels: how the mean over t = 0 … T − 1 is taken. "uniform": t is uniform, as in SAD.
        "importance": t has a probability in proportion to 1/(1 − ᾱ_t), and the row is divided by
        its root: the same mean, without the noise of that factor, which is 10,000 at t = 0 and 1 at
        the end. "integrated": all of them, exactly, in T forward passes.
      noised: the points are data x₀, and the network sees √ᾱ_t x₀ + √(1 − ᾱ_t) ε.
      signal: ᾱ [T]; None: `Schedule().alpha_bar`.

    Returns: a field of 1 row, or, marginalized, of one for each entry of the last layer, at most 4·D.

    Raises:
      InputError: for bad values, and a network that does not say its last layer, or starts with one
        of zeros, where it is marginalized.
    """
    check_score_network(network)
    check_choice("readout", readout, READOUTS)
    check_choice("levels", levels, LEVELS)
    check_choice("noised", noised, (True, False))
    signal = check_signal(signal)
    precision, count = 1.0 / (1.0 - signal), len(signal)  # the square of the factor of a score
    # Both roots in double precision: 1 − ᾱ₀ is small.
    roots = np.sqrt(signal), np.sqrt(1.0 - signal)
    data_share, noise_share = (jnp.asarray(root, jnp.float32) for root in roots)
    thresholds = jnp.asarray(np.cumsum(precision) / precision.sum(), jnp.float32)
    rows_of = marginalized_rows if readout == "marginalized" else sampled_rows
    check_last_layer(network, readout)

    def field(unused: Network, variables: Any, x: jax.Array, key: jax.Array) -> jax.Array:
        del unused
        level_key, noise_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, x.shape, x.dtype) if noised else None

        def rows_at(t: jax.Array) -> jax.Array:
            seen = x
            if noised:
                seen = data_share[t] * x + noise_share[t] * noise
            return rows_of(network, variables, seen, t)

        if levels == "integrated":
            return _integrate(rows_at, precision, x.size)
        if levels == "uniform":
            t = jax.random.randint(level_key, (), 0, count, jnp.int32)
            return jnp.asarray(np.sqrt(precision), jnp.float32)[t] * rows_at(t)
        drawn = jnp.searchsorted(thresholds, jax.random.uniform(level_key, (), jnp.float32))
        return float(np.sqrt(precision.mean())) * rows_at(jnp.minimum(drawn, count - 1))

    field.__name__ = "output"
    field.readout = "sampled"  # its own read-out is not that of an `Estimator`
    return field


def check_last_layer(network: ScoreNetwork, readout: str) -> None:
    """Raises `InputError` where the last layer of a network is to be integrated out and is unknown,
    is always zero, or is not what a network of one's own says of it.
    """
    if readout != "marginalized":
        return
    if network.last_layer is None:
        raise InputError(
            "readout: 'marginalized' needs the variances of the last layer, which this network does "
            "not say; give `last_layer`, or take readout='sampled'"
        )
    check_function("last_layer", network.last_layer)
    variables = jax.eval_shape(network.init, jax.random.key(0))
    variances = network.last_layer(variables)
    if jax.tree.structure(variances) != jax.tree.structure(variables):
        raise InputError(
            "last_layer: must give a tree of numbers as the variables are, "
            f"{jax.tree.structure(variables)}, got {jax.tree.structure(variances)}"
        )
    for variance in jax.tree.leaves(variances):
        check_number("last_layer", variance, 0.0)
    if not any(variance > 0 for variance in jax.tree.leaves(variances)):
        raise InputError(
            "network: its last layer starts at zero (zero_init, zero_head), and so does its score: "
            "there is no geometry"
        )
    if "score_network" not in network.description:  # those of the table are tested
        check_last_layer_holds(network)


def _noise(network: ScoreNetwork, variables: Any, x: jax.Array, t: jax.Array) -> jax.Array:
    """What a network takes for the noise [D] in one input."""
    noise = network.apply(variables, x[None], t[None].astype(jnp.float32))
    return noise.reshape(-1).astype(jnp.float32)


def sampled_rows(network: ScoreNetwork, variables: Any, x: jax.Array, t: jax.Array) -> jax.Array:
    """The row [1, D] of a network with its own last layer: −ε."""
    return -_noise(network, variables, x, t)[None]


def marginalized_rows(
    network: ScoreNetwork, variables: Any, x: jax.Array, t: jax.Array
) -> jax.Array:
    """The rows [R, D] of a network whose last layer is integrated out: the mean of g gᵀ over them is
    E[ε εᵀ] over the last layer.
    """
    leaves, structure = jax.tree.flatten(variables)
    variances = jax.tree.leaves(network.last_layer(variables))
    drawn = [place for place, variance in enumerate(variances) if variance > 0]

    def outputs(last: list[jax.Array]) -> jax.Array:
        given = list(leaves)
        for place, leaf in zip(drawn, last, strict=True):
            given[place] = leaf
        return _noise(network, jax.tree.unflatten(structure, given), x, t)

    _, push = jax.linearize(outputs, [leaves[place] for place in drawn])
    sizes = [
        jnp.full(leaves[place].shape, np.sqrt(variances[place]), leaves[place].dtype)
        for place in drawn
    ]
    deviations, unravel = ravel_pytree(sizes)
    count = deviations.size

    def row(number: jax.Array) -> jax.Array:
        return push(unravel(deviations * jax.nn.one_hot(number, count, dtype=deviations.dtype)))

    if count * max(count, x.size) <= _ENTRIES:  # each row has an input of `count` numbers
        rows = jax.vmap(row)(jnp.arange(count))
    else:
        rows = jax.lax.map(row, jnp.arange(count), batch_size=count_together(x.shape))
    if count > _MANY * x.size:
        rows = jnp.linalg.qr(rows, "r")
    return np.float32(np.sqrt(len(rows))) * rows


def _integrate(rows_at: RowsAt, precision: np.ndarray, dimension: int) -> jax.Array:
    """Rows [D, D] whose mean g gᵀ is that of the scores at all noise levels."""

    def add(total: jax.Array, level: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        t, weight = level
        rows = rows_at(t)
        return total + weight * (rows.T @ rows) / len(rows), None

    weights = jnp.asarray(precision / len(precision), jnp.float32)
    start = jnp.zeros((dimension, dimension), jnp.float32)
    total, _ = jax.lax.scan(add, start, (jnp.arange(len(precision)), weights))
    values, vectors = jnp.linalg.eigh(total)
    return jnp.sqrt(dimension * jnp.maximum(values, 0.0))[:, None] * vectors.T


def as_measured(network: ScoreNetwork) -> Model:
    """The model of a score network that an ensemble of it is drawn from; its rows are those of
    `output`, so that it needs no outputs of its own.
    """

    def apply(variables: Any, x: jax.Array) -> jax.Array:
        return network.apply(variables, x, jnp.zeros(len(x), x.dtype)).reshape(len(x), -1)[:, :1]

    described = {"model": "score network", **network.description}
    return Model(network.init, apply, network.input_shape, 1, description=described)
