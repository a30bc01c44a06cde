"""Order zero of what untrained networks prefer: which class they give most inputs.

A network at its initialization gives one class more inputs than the other, whatever these are,
though over networks no class is preferred ("initial guessing bias": Francazi, Lucchi, Baity-Jesi,
ICML 2024). What decides is how much of its output all inputs share.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.batches import jackknife
from nad_jax.closed_form import arc_cosine
from nad_jax.contract import check_inputs
from nad_jax.ensemble import Execution
from nad_jax.errors import InputError, check_integer, check_number, check_record
from nad_jax.models import Model
from nad_jax.spectrum_metrics import Metric
from nad_jax.tables import Row, Tabular
from nad_jax.untrained import (
    ROUNDING,
    Progress,
    average,
    check_all_finite,
    evaluate,
    is_constant,
    measure_networks,
)

Classes = tuple[Any, Any, Any]


class InitialBias(NamedTuple):
    """The classes that N untrained networks give to the same inputs.

    fractions: [N, K] the share of inputs of each class: that of the largest logit, in equal parts
      where several are; of one logit, positive (first) and negative.
    common: [N] the squared mean of a network's output over inputs, without what the sampling of
      inputs adds to it: over networks, the variance that all inputs share. May be below 0.
    own: [N] the variance of its output over inputs; 0 where outputs differ by less than 1e-5 of the
      largest: they are constant to rounding. Of several logits both are sums over logits, whose mean
      is subtracted.
    """

    fractions: np.ndarray
    common: np.ndarray
    own: np.ndarray

    @property
    def largest(self) -> np.ndarray:
        """[N] the share of the class that a network prefers; for a histogram, 1/K … 1."""
        return self.fractions.max(1)

    @property
    def mean_largest(self) -> Metric:
        """E max(G_0, 1 − G_0), of two classes, with its standard error between networks at these
        inputs.

        Too large for the number of inputs M, which the error does not say: shares of few inputs are
        further from ½. Where outputs are Gaussian, by 1/(4 M √γ) where Mγ ≫ 1 (.006 of γ = .03 and
        M = 256), and at most by 1/√(2πM), of fair coins (.025).
        """
        return average(self.largest)

    @property
    def gamma(self) -> Metric:
        """γ = c/(1 − c), the variance that all inputs share over that which they do not: the ratio
        of the means of `common` and `own` over networks, freed from its bias of first order and
        with its standard error by the jackknife; infinite where it is above 1e10: the
        outputs of the ensemble are constant to rounding.
        """
        return _ratio(self.common, self.own)

    @property
    def correlation(self) -> Metric:
        """c = E[f(x) f(x')]/E[f²], of different inputs, over networks; estimated as γ is."""
        return _ratio(self.common, self.common + self.own)

    @property
    def gaussian_largest(self) -> float:
        """½ + arctan(√γ)/π, what E max would be if outputs were Gaussian over networks and over
        inputs, for two classes; nan for more.
        """
        if self.fractions.shape[1] != 2:
            return math.nan
        return largest_of_gamma(max(self.gamma.value, 0.0))

    @property
    def num_constant(self) -> int:
        """How many networks are constant to rounding at these inputs."""
        return int(np.count_nonzero(self.own == 0))

    def to_rows(self) -> list[Row]:
        """A row for each network: its number, the shares of classes, the common and own variance."""
        return [
            {
                "network": number,
                **{f"class_{place}": share for place, share in enumerate(shares.tolist())},
                "common": float(common),
                "own": float(own),
            }
            for number, (shares, common, own) in enumerate(zip(*self, strict=True))
        ]

    rows, to_csv, to_dataframe = to_rows, Tabular.to_csv, Tabular.to_dataframe

    def __repr__(self) -> str:
        count, classes = self.fractions.shape
        constant = f", {self.num_constant} constant" if self.num_constant else ""
        return (
            f"InitialBias({count} networks, {classes} classes: largest share "
            f"{self.mean_largest!r}, γ {self.gamma!r}{constant})"
        )


class WideBias(NamedTuple):
    """The bias of infinitely wide networks: c, γ = c/(1 − c) and E max(G_0, 1 − G_0)."""

    correlation: float
    gamma: float
    mean_largest: float


def _ratio(above: np.ndarray, below: np.ndarray) -> Metric:
    """The ratio of the means of [N] and [N] by the jackknife over networks."""
    above, below = above.astype(np.float64), below.astype(np.float64)
    if below.sum() <= ROUNDING**2 * above.sum() or not below.any():
        return Metric(math.inf if above.any() else math.nan, math.nan)
    whole, count = above.sum() / below.sum(), len(above)
    rest = below.sum() - below
    if count < 2 or not rest.all():
        return Metric(float(whole), math.nan)
    return Metric(*jackknife(whole, (above.sum() - above) / rest, np.full(count, 1 / count)))


def largest_of_gamma(gamma: float) -> float:
    """E max(G_0, 1 − G_0) = ½ + arctan(√γ)/π of G_0 = Φ(√γ ζ), ζ ~ N(0, 1)."""
    return 0.5 + math.atan(math.sqrt(gamma)) / math.pi


def wide_relu_bias(num_layers: int, cosine: float = 0.0) -> WideBias:
    """The bias of wide ReLU networks of L hidden layers without biases.

    c_0 = cos(x, x'), c_{l+1} = (√(1 − c_l²) + (π − arccos c_l) c_l)/π: outputs are Gaussian over
    networks, and f = √γ ζ + ξ with ζ the same at all inputs, so that G_0 = Φ(√γ ζ). It is .6908,
    .7480, .7836 of one to three layers. Assumes infinite width, and inputs of one cosine, as of
    many dimensions with independent entries (0). For any variance of Gaussian weights.

    Source: derived, from the arc-cosine kernel (Cho, Saul 2009); the bias is that of Francazi,
    Lucchi, Baity-Jesi 2024.

    Args:
      num_layers: L ≥ 1.
      cosine: between two inputs, at least 0 and below 1.

    Raises:
      InputError: for values out of range.
    """
    num_layers = check_integer("num_layers", num_layers, 1)
    cosine = check_number("cosine", cosine, 0.0)
    if cosine >= 1:
        raise InputError(f"cosine: must be below 1, got {cosine}")
    for _ in range(num_layers):
        cosine = arc_cosine(cosine)
    gamma = cosine / (1 - cosine)
    return WideBias(cosine, gamma, largest_of_gamma(gamma))


def initial_bias(
    model: Model,
    inputs: Any,
    num_networks: int,
    seed: jax.Array | int = 0,
    progress: Progress | None = None,
    *,
    mapping: str = "auto",
    chunk_size: int = 0,
    num_devices: int = 0,
) -> InitialBias:
    """Which classes `num_networks` untrained networks give to inputs, in evaluation mode.

    The networks are those of `estimate_nads` with this seed. Errors are those between networks, at
    these inputs.

    Source: Francazi, Lucchi, Baity-Jesi, "Initial Guessing Bias", ICML 2024.

    Args:
      model: from `create_model`, `from_linen`, `from_nnx` or `from_functions`.
      inputs: [M, *input_shape] or [M, D], M ≥ 2; of M, G_0 of a network has an error of
        ½/√M at most, and the largest share is too large, see `InitialBias.mean_largest`.
      num_networks: N ≥ 1.
      seed: an integer, or a typed random key; network n depends on (seed, n) alone.
      progress: called with the number of networks done.
      mapping, chunk_size, num_devices: fields of `Execution`.

    Raises:
      InputError: for a bad value, and outputs that are not finite.
    """
    check_record("model", model, Model)
    inputs = check_inputs("inputs", model, inputs).astype(jnp.float32)
    if len(inputs) < 2:
        raise InputError(f"inputs: must be two or more, got {len(inputs)}")

    def measure(variables: Any, key: jax.Array, inputs: jax.Array) -> Classes:
        del key
        return classify(evaluate(model, variables, inputs))

    execution = Execution(mapping, chunk_size, num_devices)
    found = measure_networks(model, measure, inputs, num_networks, seed, progress, execution)
    return as_bias(found)


def classify(logits: jax.Array) -> Classes:
    """`fractions`, `common` and `own` of one network with these logits [M, K], see `InitialBias`."""
    centered, level = logits, jnp.abs(logits).max()
    if logits.shape[1] == 1:
        logits = jnp.concatenate([logits, jnp.zeros_like(logits)], 1)  # the classifier (f, 0)
    else:
        centered = logits - logits.mean(1, keepdims=True)
    first = logits == logits.max(1, keepdims=True)
    fractions = (first / first.sum(1, keepdims=True)).mean(0)
    means = centered.mean(0, keepdims=True)
    own = ((centered - means) ** 2).sum() / (len(logits) - 1)
    own = jnp.where(is_constant(centered, level), 0.0, own)
    return fractions, (means**2).sum() - own / len(logits), own


def as_bias(found: Classes) -> InitialBias:
    """The record of what `classify` gives of each network; raises `InputError` where it is not
    finite.
    """
    check_all_finite(np.isfinite(found[1]) & np.isfinite(found[2]), "outputs")
    return InitialBias(*found)
