"""Geometries at x = 0 with the first layer integrated out.

There f = F(Wx + b) has the gradient Wᵀa, a the derivative in what the first layer returns, which
does not know of W. With weights of mean 0 and variance s², uncorrelated, E[g gᵀ] is s² times a sum
over the weights of one member of all units: of a dense layer s² E‖a‖² I, of patches s² E[Σ_k a_k
a_kᵀ] ⊗ I over its outputs k, of a convolution the same sum over the window as well (see `blocks`).
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.architectures import ARCHITECTURES
from nad_jax.blocks import Blocks, make_blocks
from nad_jax.choices import Estimator, check_normalizations
from nad_jax.ensemble import member_keys, named_key, resolve_key
from nad_jax.errors import InputError, check_integer, check_record
from nad_jax.initializers import weight_variance
from nad_jax.models import Model
from nad_jax.vector_fields import input_gradient

_CHUNK, _TOGETHER = 64, 16  # networks of a call, and those that are carried at a time


class Integrated(NamedTuple):
    """E[g gᵀ] = A ⊗ I at x = 0, the first layer integrated out, the others sampled.

    units: [U, U] A, float64. sem: [U, U] standard errors of its entries, between networks.
    blocks: how A ⊗ I is one of inputs.
    num_networks: N.
    """

    units: np.ndarray
    sem: np.ndarray
    blocks: Blocks
    num_networks: int

    @property
    def matrix(self) -> np.ndarray:
        """E[g gᵀ] [D, D]."""
        return self.blocks.lift(self.units)

    @property
    def eigenvalues(self) -> np.ndarray:
        """[D], descending: each comes as often as there are members."""
        values = np.linalg.eigvalsh(self.units)[::-1]
        return np.repeat(np.maximum(values, 0.0), self.blocks.members)

    def __repr__(self) -> str:
        first = ", ".join(f"{value:.4g}" for value in self.eigenvalues[:: self.blocks.members][:3])
        return f"Integrated({self.num_networks} networks, {self.blocks}; eigenvalues {first})"


def integrate_first_layer(
    model: Model, num_networks: int, seed: jax.Array | int = 0, logit: int = 0
) -> Integrated:
    """E[g gᵀ] of exact gradients of a logit at x = 0, exact in the first layer.

    What is left to sampling are the derivatives a of the layers above: one network says of all
    members of a unit what it takes M networks, and more, to sample. Of `logreg` nothing is left.

    Args:
      model: of the table, at its initialization.
      num_networks: N ≥ 2, of which the layers above are taken.
      seed: an integer, or a typed random key.
      logit: which of several.

    Raises:
      InputError: for other models, where a normalization meets zeros at x = 0, and where every
        derivative is zero there or one is not finite.
    """
    check_record("model", model, Model)
    num_networks = check_integer("num_networks", num_networks, 2)
    logit, key = check_integer("logit", logit, 0, model.num_logits - 1), resolve_key(seed)
    if model.description.get("architecture") not in ARCHITECTURES or model.alike is None:
        raise InputError("model: must be of the table (`create_model`), whose first layer is known")
    check_normalizations(Estimator("input_gradient", point_scale=0.0), model)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    shape = shapes["params"][model.alike.layer]["kernel"].shape
    blocks = make_blocks(model.alike, tuple(model.image_shape))
    means = _make_means(model, blocks, shape, logit)
    keys = member_keys(named_key(key, "networks"), jnp.arange(num_networks))
    total, square = (np.zeros((blocks.num_units, blocks.num_units)) for _ in range(2))
    for first in range(0, num_networks, _CHUNK):
        part = keys[np.minimum(np.arange(first, first + _CHUNK), num_networks - 1)]
        valid = jnp.arange(first, first + _CHUNK) < num_networks
        sums = (np.asarray(one, np.float64) for one in means(part, valid))
        total, square = (old + new for old, new in zip((total, square), sums, strict=True))
    mean = total / num_networks
    if not (np.isfinite(total).all() and np.isfinite(square).all()):
        raise InputError("model: a derivative at x = 0 is not finite")
    if not mean.any():
        raise InputError(
            "model: every derivative is exactly zero at x = 0: a bias-free ReLU network, say"
        )
    spread = np.maximum(square / num_networks - mean**2, 0.0)
    variance = find_weight_variance(model, shape)
    sem = variance * np.sqrt(spread / (num_networks - 1))
    return Integrated(variance * mean, sem, blocks, num_networks)


def find_weight_variance(model: Model, shape: tuple[int, ...]) -> float:
    """s² of the weights [..., out] of the first layer of a network of the table."""
    module = ARCHITECTURES[model.description["architecture"]].module
    initialization, (*inputs, features) = model.description["initialization"], shape
    fan_out = module.reference_convolution == "normal_fan_out" and len(shape) == 4
    if initialization == "reference" and fan_out:
        return 2.0 / (math.prod(inputs[:-1]) * features)
    if initialization == "flax":
        return module.flax_readout_variance or 1.0 / math.prod(inputs)
    return weight_variance(initialization, math.prod(inputs), features)


def _make_means(model: Model, blocks: Blocks, shape: tuple[int, ...], logit: int) -> Any:
    """Builds `means(keys [n], valid [n]) -> (Σ A_n / s², Σ (A_n / s²)²)` over networks."""
    places, members = jnp.asarray(blocks.places()), blocks.members
    window, parts = math.prod(shape[:-2]), -(-shape[-1] // members)
    layer, zero = model.alike.layer, jnp.zeros(model.image_shape, jnp.float32)

    def one(key: jax.Array) -> jax.Array:
        variables = model.init(jax.random.split(key, 3)[0])

        def gram(number: jax.Array) -> jax.Array:
            # It passes output p·M + m on to member m, from one place of the window.
            place, part = number // parts, number % parts
            passes = jnp.arange(members)[:, None] + part * members == jnp.arange(shape[-1])[None]
            here = jax.nn.one_hot(place, window)[:, None, None]
            kernel = (here * passes[None]).reshape(shape)
            changed = {**variables["params"][layer], "kernel": kernel}
            replaced = {**variables, "params": {**variables["params"], layer: changed}}
            row = input_gradient(lambda x: model.apply(replaced, x)[:, logit, None], zero)[0]
            found = row[places]
            return found @ found.T

        return blocks.exchange(jnp.sum(jax.lax.map(gram, jnp.arange(window * parts)), 0))

    @jax.jit
    def means(keys: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        with jax.default_matmul_precision("highest"):
            found = jax.lax.map(one, keys, batch_size=_TOGETHER)
        found = jnp.where(valid[:, None, None], found, 0.0)
        return found.sum(0), (found**2).sum(0)

    return means
