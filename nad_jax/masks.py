"""Randomly pruned networks: how dense each layer is, and models with masks drawn at initialization
and kept through training.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict, freeze
from jax.extend import core

from nad_jax.contract import input_batch, name_path, named_leaves, shape_of_variables
from nad_jax.ensemble import named_key
from nad_jax.errors import InputError, check_choice, check_number, check_record, plain, shown
from nad_jax.models import Model
from nad_jax.tables import Row, Tabular, zip_columns

RULES = ("uniform", "er", "erk")
_CALLS = ("jit", "pjit", "closed_call", "remat2", "checkpoint", "custom_jvp_call")  # of programs
MASKS = "masks"  # the collection that they are in
# Names of variables that are no weights of a layer, whatever their shape: biases of attention have
# two axes, position embeddings three.
_DENSE = ("bias", "scale", "embedding", "value")


class Densities(NamedTuple):
    """The share of weights that each layer keeps.

    layers: [L] the names of the kernels. shapes: [L] theirs. density: [L] in 0 … 1. rule: "uniform",
      "er" or "erk".
    """

    layers: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    density: np.ndarray
    rule: str

    @property
    def total(self) -> float:
        """The share of all weights that are kept, on average over masks."""
        counts = np.array([math.prod(shape) for shape in self.shapes])
        return float(counts @ self.density / counts.sum())

    def to_rows(self) -> list[Row]:
        """A row for each layer: its name, how many weights it has, and its density."""
        columns = {
            "layer": self.layers,
            "weights": [math.prod(shape) for shape in self.shapes],
            "density": self.density.tolist(),
        }
        return zip_columns(columns)

    rows, to_csv, to_dataframe = to_rows, Tabular.to_csv, Tabular.to_dataframe

    def __repr__(self) -> str:
        pairs = zip(self.layers, self.density, strict=True)
        each = ", ".join(f"{layer} {density:.4f}" for layer, density in pairs)
        return f"Densities({self.rule}, {self.total:.4f} of all weights: {each})"


def mask_densities(model: Model, density: float, rule: str = "erk") -> Densities:
    """How dense random masks make each layer of a model, for a density d of all its weights.

    "uniform" keeps d of each layer. "er" (Erdős–Rényi) keeps p_l ∝ (n_in + n_out)/(n_in n_out), and
    "erk" p_l ∝ (n_in + n_out + Σ k)/(n_in n_out Π k), k the lengths of the window of a convolution;
    the factor is such that Σ p_l N_l = d Σ N_l. Layers that would keep more than all of their
    weights are dense, and the others share what is left.

    Masks of independent entries; biases, normalization layers and embeddings stay dense and do not
    count.

    Source: Liu et al., The Unreasonable Effectiveness of Random Pruning, ICLR 2022; the rules are
    Mocanu et al. 2018 and Evci et al. 2020.

    Args:
      model: its layers are the trainable variables of two axes or more, [window…, in, out] as Flax
        has them, but for those called bias, scale, embedding or value.
      density: d, above 0 and at most 1.
      rule: "uniform", "er" or "erk".

    Raises:
      InputError: for a density or rule out of range, and a model without such variables.
    """
    check_record("model", model, Model)
    check_choice("rule", rule, RULES)
    if check_number("density", density, 0.0, exclusive=True) > 1:
        raise InputError(f"density: must be at most 1, got {shown(plain(density))}")
    layers = dict(_kernels(model))
    if not layers:
        raise InputError("model: has no trainable variables of two axes, so no layers to mask")
    counts = np.array([math.prod(shape) for shape in layers.values()], float)
    raw = np.array([_raw_density(shape, rule) for shape in layers.values()])
    kept = _share(counts, raw, float(density))
    return Densities(tuple(layers), tuple(layers.values()), kept, rule)


def _kernels(model: Model) -> list[tuple[str, tuple[int, ...]]]:
    variables = shape_of_variables(model)
    trained = jax.tree.leaves(model.trainable(variables))
    leaves: list[tuple[str, Any]] = named_leaves(variables)
    return [
        (name, tuple(leaf.shape))
        for (name, leaf), changes in zip(leaves, trained, strict=True)
        if changes and len(leaf.shape) >= 2 and name.rpartition("/")[2] not in _DENSE
    ]


def _raw_density(shape: tuple[int, ...], rule: str) -> float:
    """p_l up to the common factor."""
    if rule == "uniform":
        return 1.0
    counted = shape[-2:] if rule == "er" else shape
    return sum(counted) / math.prod(counted)


def _share(counts: np.ndarray, raw: np.ndarray, density: float) -> np.ndarray:
    """The densities [L] in proportion to `raw` of which none is above 1."""
    dense = np.zeros(len(raw), bool)
    while True:
        left = density * counts.sum() - counts[dense].sum()
        rest = ~dense
        kept = np.where(dense, 1.0, raw * left / (raw[rest] @ counts[rest]))
        if kept.max() <= 1 + 1e-12:  # rounding
            return np.minimum(kept, 1.0)
        dense |= kept > 1


def masked(model: Model, density: float, rule: str = "erk") -> Model:
    """A model whose weights are pruned at random at initialization, and stay so in training.

    Initialization draws the weights as the model does, from the same key, and the masks: independent
    entries, 1 with the density of their layer, see `mask_densities`. Variables have them besides, in
    the collection "masks", as truth values under the names of the layers; where variables are no
    dictionary, the model's own are `variables["variables"]`. Masked weights are exactly 0. So are
    their gradients, hence they stay 0 under momentum, weight decay and Adam; of an optimizer that
    mixes the entries of a layer (Muon) the stored weights may not, but the network does not see
    them. Of layers that stay dense, and with a density of 1, nothing changes.

    A marginalized read-out is that of masked weights, of variance p τ², p the density of the last
    layer. Symmetries are those of the model: masks know no place.

    Args:
      model: of any kind.
      density, rule: as of `mask_densities`; the description says them.

    Raises:
      InputError: as `mask_densities`, for a model that has a collection "masks", and where the
        weights of a read-out of known variance cannot be told.
    """
    check_record("model", model, Model)
    check_choice("rule", rule, RULES)
    density = check_number("density", density, 0.0, exclusive=True)
    how = model._replace(description=None), density, rule
    try:
        hash(how)
        make = _make
    except TypeError:  # of a function that cannot be looked up
        make = _make.__wrapped__
    made = make(*how)
    said = {"density": density, "mask": rule} if density < 1 else {}
    return made._replace(description={**model.description, **said})


def apply_mask_options(model: Model, density: float | None, mask: str | None) -> Model:
    """The model with the masks that options say: a density (None: 1) and a rule (None: "erk").

    Raises:
      InputError: as `masked`, and for a rule without a density, which would mask nothing.
    """
    if mask is not None and density is None:
        raise InputError(f"mask: {mask!r} needs a density, the share of weights that are kept")
    rule = check_choice("mask", "erk" if mask is None else mask, RULES)
    return masked(model, 1.0 if density is None else density, rule)


# Commands ask again and again, and compiled programs are known by their functions.
@functools.lru_cache(maxsize=512)
def _make(model: Model, density: float, rule: str) -> Model:
    found = mask_densities(model, density, rule)
    if density == 1:
        return model
    shapes = dict(zip(found.layers, found.shapes, strict=True))
    kept = dict(zip(found.layers, found.density.tolist(), strict=True))
    masks = _Masks({n: (shapes[n], p) for n, p in kept.items() if p < 1}, shape_of_variables(model))

    def init(key: jax.Array) -> Any:
        return masks.join(*masks.prune(model.init(key), masks.draw(named_key(key, MASKS))))

    def apply(
        variables: Any, x: jax.Array, key: jax.Array | None = None, train: bool = False
    ) -> Any:
        pruned, drawn = masks.prune(*masks.split(variables))
        if not train:
            return model.apply(pruned, x)
        logits, updated = model.apply(pruned, x, key, train=True)
        return logits, masks.join(updated, drawn)

    def features(variables: Any, x: jax.Array) -> jax.Array:
        return model.features(masks.prune(*masks.split(variables))[0], x)

    def trainable(variables: Any) -> Any:
        inner, drawn = masks.split(variables)
        return masks.join(model.trainable(inner), dict.fromkeys(drawn, False))

    variance = model.readout_variance
    if model.features is not None and variance is not None:
        variance *= _readout_density(model, kept)
    return model._replace(
        init=init,
        apply=apply,
        features=features if model.features is not None else None,
        readout_variance=variance,
        trainable=trainable,
    )


class _Masks:
    """Masks beside the variables of a model.

    layers: shapes and densities by name. variables: their shapes, without masks.
    """

    def __init__(self, layers: dict[str, tuple[tuple[int, ...], float]], variables: Any) -> None:
        self.layers = layers
        self.inside = type(variables) in (dict, FrozenDict)  # as a collection of their own
        if self.inside and MASKS in variables:
            raise InputError(
                f"model: has variables called {MASKS!r} already; masks are drawn once, for a model "
                "without"
            )

    def draw(self, key: jax.Array) -> dict[str, jax.Array]:
        # One draw for all: a draw for each layer compiles slowly.
        sizes = [math.prod(shape) for shape, _ in self.layers.values()]
        parts = jnp.split(
            jax.random.uniform(key, (sum(sizes),), jnp.float32), np.cumsum(sizes[:-1])
        )
        pairs = zip(self.layers.items(), parts, strict=True)
        return {name: (part < p).reshape(shape) for (name, (shape, p)), part in pairs}

    def prune(self, variables: Any, drawn: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        """Variables with masked weights at 0, and the masks."""

        def prune_leaf(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            name = name_path(path)
            return jnp.where(drawn[name], leaf, 0) if name in drawn else leaf

        return jax.tree.map_with_path(prune_leaf, variables), drawn

    def join(self, variables: Any, drawn: Mapping[str, Any]) -> Any:
        if not self.inside:
            return {"variables": variables, MASKS: drawn}
        joined = {**variables, MASKS: drawn}
        return freeze(joined) if isinstance(variables, FrozenDict) else joined

    def split(self, variables: Any) -> tuple[Any, Mapping[str, jax.Array]]:
        if not self.inside:
            return variables["variables"], variables[MASKS]
        rest = {name: variables[name] for name in variables if name != MASKS}
        rest = freeze(rest) if isinstance(variables, FrozenDict) else rest
        return rest, variables[MASKS]


def _readout_density(model: Model, kept: Mapping[str, float]) -> float:
    """The density p of the last layer: of the variable that the logits depend on, and the features
    do not.
    """
    variables, x = shape_of_variables(model), input_batch(model, 1)
    names = [name for name, _ in named_leaves(variables)]
    used = (_list_used(function, variables, x) for function in (model.apply, model.features))
    last = [name for name, *uses in zip(names, *used, strict=True) if uses == [True, False]]
    weights = [name for name in last if name in kept]
    if len(weights) > 1 or not last:
        raise InputError(
            "readout_variance: the weights that it is of cannot be told from others, so that their "
            f"masks are not known: between features and logits are {', '.join(last) or 'none'}; "
            "make the model without readout_variance= or features="
        )
    return kept[weights[0]] if weights else 1.0


def _list_used(function: Callable[..., Any], variables: Any, x: Any) -> list[bool]:
    """For each leaf of variables, whether what a function gives of them depends on it."""
    jaxpr = jax.make_jaxpr(function)(variables, x).jaxpr
    return _find_used(jaxpr, [True] * len(jaxpr.outvars))[: len(jax.tree.leaves(variables))]


def _find_used(jaxpr: core.Jaxpr, wanted: list[bool]) -> list[bool]:
    """Which inputs of a program its wanted outputs depend on."""
    live = {id(one) for one, chosen in zip(jaxpr.outvars, wanted, strict=True) if chosen}
    for equation in reversed(jaxpr.eqns):
        asked = [id(one) in live for one in equation.outvars]
        if not any(asked):
            continue
        taken = [True] * len(equation.invars)
        inner = list(core.jaxprs_in_params(equation.params))
        # Of loops the inputs are not those of the program inside.
        if equation.primitive.name in _CALLS and len(inner) == 1:
            taken = _find_used(inner[0], asked)
        live |= {id(one) for one, taking in zip(equation.invars, taken, strict=True) if taking}
    return [id(one) in live for one in jaxpr.invars]
