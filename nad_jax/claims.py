"""What users say of the law of a model, tested on a few of its networks: the variance of the
read-out, the last layer of a score network, symmetries, equal blocks.

A test refuses only what networks contradict; it cannot prove a claim.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.blocks import make_blocks
from nad_jax.contract import named_leaves, shape_of_variables
from nad_jax.directions import spatial_shape
from nad_jax.errors import InputError
from nad_jax.symmetries import permutations

_NETWORKS = 64
_INPUTS = 8
_POINTS = 4  # at which derivatives are taken
# In standard errors.
_LARGEST = 5.0


def check_readout_variance(model: Any) -> None:
    """Raises `InputError` where differences of logits are not those of weights of the variance that
    the model states on the features that it states.

    Between two inputs a logit differs by wᵀ(φ − φ'), whose square over τ²‖φ − φ'‖² has mean 1.
    """
    key, points = _draw(model, _INPUTS)

    @jax.jit
    @jax.vmap
    def ratios(key: jax.Array) -> jax.Array:
        variables = model.init(key)
        logits, features = model.apply(variables, points), model.features(variables, points)
        logits, features = logits[::2] - logits[1::2], features[::2] - features[1::2]
        size = (features.astype(jnp.float32) ** 2).sum(1, keepdims=True)
        # Of equal features nothing is known.
        return jnp.where(size > 0, logits**2 / (model.readout_variance * size), jnp.nan)

    seen = np.asarray(ratios(key), np.float64).reshape(_NETWORKS, -1)
    seen = np.nanmean(seen[np.isfinite(seen).any(1)], axis=1)
    if len(seen) < _NETWORKS // 2 or not seen.any():
        return  # no signal, of which others speak, or a head that starts at zero: τ² stands for it
    mean, error = seen.mean(), seen.std(ddof=1) / np.sqrt(len(seen))
    if abs(mean - 1) > _LARGEST * max(error, 0.02):
        raise InputError(
            f"readout_variance: {model.readout_variance:.4g} is stated, but the logits of "
            f"{len(seen)} networks are those of weights of variance "
            f"{mean * model.readout_variance:.3g} ± {error * model.readout_variance:.1g} on the "
            "features; state the variance that the layer is initialized with, or check=False to "
            "take the claim at its word"
        )


def check_last_layer_holds(network: Any) -> None:
    """Raises `InputError` where the entries of the last layer of a score network have not the mean
    squares that it states, or its output is not linear in them.
    """
    names, leaves = zip(*named_leaves(network.last_layer(shape_of_variables(network))), strict=True)
    variances = np.asarray(leaves, np.float64)
    drawn = np.flatnonzero(variances)

    @jax.jit
    @jax.vmap
    def squares(key: jax.Array) -> jax.Array:
        found = jax.tree.leaves(network.init(key))
        return jnp.stack([jnp.mean(found[place].astype(jnp.float32) ** 2) for place in drawn])

    seen = np.asarray(squares(jax.random.split(jax.random.key(0), _NETWORKS)), np.float64)
    for place, found in zip(drawn, seen.T, strict=True):
        mean, error = found.mean(), found.std(ddof=1) / np.sqrt(_NETWORKS)
        if abs(mean - variances[place]) > _LARGEST * max(error, 0.02 * mean):
            raise InputError(
                f"last_layer: {names[place]} is said to have entries of variance "
                f"{variances[place]:.4g}; those of {_NETWORKS} networks have {mean:.3g} ± {error:.1g}"
            )

    @jax.jit
    def outputs(key: jax.Array) -> jax.Array:
        init_key, points_key = jax.random.split(key)
        leaves, structure = jax.tree.flatten(network.init(init_key))
        x = jax.random.normal(points_key, (1, *network.input_shape), jnp.float32)
        scaled = []
        for factor in (1.0, 2.0):
            given = [leaf * factor if n in drawn else leaf for n, leaf in enumerate(leaves)]
            scaled.append(network.apply(jax.tree.unflatten(structure, given), x, jnp.zeros(1)))
        return jnp.stack(scaled)

    once, twice = np.asarray(outputs(jax.random.key(0)), np.float64)
    if np.abs(twice - 2 * once).max() > 1e-2 * np.abs(twice).max():
        raise InputError(
            f"last_layer: the output must be linear in {', '.join(names[n] for n in drawn)}; twice "
            "as large entries do not double it"
        )


def check_symmetries_hold(model: Any) -> None:
    """Raises `InputError` where the mean squared derivatives of a model are not as symmetric as it
    states.

    A half of the networks says where the squares of a derivative differ most from their mirror
    image; on the other half that difference must have mean zero.
    """
    seen = _gradients(model)
    for name in model.symmetries:
        for moved in permutations((name,), model.image_shape)[1:]:
            differences = _energies(seen, model.image_shape)
            differences -= _energies(seen[..., moved], model.image_shape)
            score = _score(differences)
            if score > _LARGEST:
                raise InputError(
                    f"symmetries: {name!r} is stated, but the derivatives of {len(seen)} "
                    f"networks differ from their mirror images by {score:.1f} standard errors; "
                    "leave it out, or check=False to take the claim at its word"
                )


def check_alike(model: Any) -> None:
    """Raises `InputError` where the mean squared derivatives of a model tell apart what `alike`
    says its first layer cannot: the members of a unit, as they are, turned at random and over
    frequencies of units; and units themselves, where they are said to be exchangeable.
    """
    blocks, seen = make_blocks(model.alike, tuple(model.image_shape)), _gradients(model)
    size = blocks.members, blocks.members
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=size))[0]
    images = seen[..., blocks.places()]
    mixed = images @ turn
    waves = np.abs(np.fft.fft(mixed, axis=2)) ** 2 / blocks.num_units
    squares = [part.mean(1) for part in (images**2, mixed**2, waves)]  # [N, U, M]
    differences = [part - part.mean(2, keepdims=True) for part in squares]
    if blocks.exchangeable:
        differences += [part - part.mean((1, 2), keepdims=True) for part in squares[:2]]
    score = _score(np.concatenate(differences, 1).reshape(len(seen), -1))
    if score > _LARGEST:
        raise InputError(
            f"kind: {blocks.kind!r} is stated, but the derivatives of {len(seen)} networks tell "
            f"such entries apart by {score:.1f} standard errors; leave it out, or check=False "
            "to take the claim at its word"
        )


def _gradients(model: Any) -> np.ndarray:
    """Derivatives [N, P, D] of length 1 of those networks that have some, each at points of its
    own.
    """
    key, _ = _draw(model, 1)

    @jax.jit
    @jax.vmap
    def gradients(key: jax.Array) -> jax.Array:
        init_key, point_key = jax.random.split(key)
        variables = model.init(init_key)
        points = jax.random.normal(point_key, (_POINTS, *model.image_shape), jnp.float32)
        gradient = jax.grad(lambda x: model.apply(variables, x[None])[0, 0])
        return jax.lax.map(gradient, points).reshape(_POINTS, -1)

    seen = np.asarray(gradients(key), np.float64)
    seen = seen[np.isfinite(seen).all((1, 2)) & seen.any(2).all(1)]
    return seen / np.linalg.norm(seen, axis=2, keepdims=True)


def _score(differences: np.ndarray) -> float:
    """How far the mean of differences [N, …] is from zero, in standard errors: of one half of the
    networks, along what the other half says; 0 where too few say anything.
    """
    differences = differences[differences.any(1)]
    if len(differences) < _NETWORKS // 2:
        return 0.0
    found, tested = differences[::2], differences[1::2]
    along = tested @ found.mean(0)
    error = along.std(ddof=1) / np.sqrt(len(along))
    return float(along.mean() / max(error, np.finfo(np.float64).tiny))


def _energies(rows: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
    """What the law of rows [N, P, D] of N networks is compared by: the mean over P points of their
    squares, of pixels and of frequencies [N, …].
    """
    space = spatial_shape(image_shape)
    images = rows.reshape(*rows.shape[:2], *space, -1)
    waves = np.fft.fftn(images, axes=tuple(range(2, 2 + len(space)))) / np.sqrt(np.prod(space))
    squares = np.concatenate([images**2, np.abs(waves) ** 2], axis=-1).mean(1)
    return squares.reshape(len(rows), -1)


def _draw(model: Any, num_inputs: int) -> tuple[jax.Array, jax.Array]:
    key, points_key = jax.random.split(jax.random.key(0))
    points = jax.random.normal(points_key, (num_inputs, *model.image_shape), jnp.float32)
    return jax.random.split(key, _NETWORKS), points
