"""How dense each layer of a randomly pruned network is."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from nad_jax.contract import named_leaves, shape_of_variables
from nad_jax.errors import InputError, check_choice, check_number, check_record, plain, shown
from nad_jax.models import Model
from nad_jax.tables import Row, Tabular, zip_columns

RULES = ("uniform", "er", "erk")


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

    Masks of independent entries; biases and normalization layers stay dense and do not count.

    Source: Liu et al., The Unreasonable Effectiveness of Random Pruning, ICLR 2022; the rules are
    Mocanu et al. 2018 and Evci et al. 2020.

    Args:
      model: its layers are the trainable variables of two axes or more, [window…, in, out] as Flax
        has them.
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
        if changes and len(leaf.shape) >= 2
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
