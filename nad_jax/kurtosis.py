"""How far single networks scatter about vᵀE[g gᵀ]v, and so how many of them an error takes: in
closed form where there is one, measured otherwise.
"""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from nad_jax.batches import standard_error
from nad_jax.closed_form import networks_needed, relu_kurtosis
from nad_jax.contract import named_leaves, shape_of_variables
from nad_jax.errors import InputError, check_integer, check_record
from nad_jax.models import Model
from nad_jax.nads import NADs
from nad_jax.symmetries import Representation, fold

if TYPE_CHECKING:
    from nad_jax.choices import Estimator
    from nad_jax.moments import Dense
    from nad_jax.points import Points

FEWEST = 8  # batches: of fewer, κ − 1 is not known to a half of itself
_LEADING = 16  # eigenvalues, the median of which is taken


class Kurtosis(NamedTuple):
    """κ = E[e²]/E[e]² of what one network says of vᵀGv, e: N networks know it to √((κ − 1)/N).

    value: κ. sem: its standard error; 0 where it is exact.
    num_networks: how many it was measured from; 0 where it is exact.
    """

    value: float
    sem: float
    num_networks: int

    @property
    def exact(self) -> bool:
        """Whether it is that of the closed form, see `relu_kurtosis`."""
        return not self.num_networks

    def relative_error(self, num_networks: int) -> float:
        """The standard error of vᵀĜv of N networks over vᵀGv.

        Raises:
          InputError: for N below 1.
        """
        number = check_integer("num_networks", num_networks, 1)
        return math.sqrt(max(self.value - 1, 0.0) / number)

    def networks_needed(self, relative_error: float) -> int:
        """How many networks have this relative error, see `closed_form.networks_needed`.

        Raises:
          InputError: for an error that is not above 0.
        """
        return networks_needed(relative_error, max(self.value, 1.0))

    def __repr__(self) -> str:
        if self.exact:
            return f"Kurtosis({self.value:.4g}, exact)"
        said = f"{self.value:.3g} ± {self.sem:.1g}, measured from {self.num_networks} networks"
        return f"Kurtosis({said})"


def find_kurtosis(
    model: Model, estimator: "Estimator", points: "Points | None" = None
) -> Kurtosis | None:
    """The kurtosis that the closed form gives, of every v; None where it does not apply.

    It does to `mlp` with Gaussian weights and without biases (initialization he, lecun, sigma:W:0),
    exact gradients at one point other than 0, a single read-out or marginalized ones, and neither
    masks, nor averages over symmetries, nor a mean that is subtracted.
    """
    said = model.description
    name, *sigmas = str(said.get("initialization")).split(":")
    averaged = estimator.symmetrized and model.symmetries
    if (
        said.get("architecture") != "mlp"
        or "density" in said
        or name not in ("he", "lecun", "sigma")
        or any(map(float, sigmas[1:]))  # σ_b
        or estimator.derivative != "input_gradient"
        or points is not None
        or not estimator.point_scale
        or estimator.num_readouts > 1
        or estimator.centred
        or averaged
    ):
        return None
    leaves = named_leaves(shape_of_variables(model))
    kernels = [leaf.shape for name, leaf in leaves if re.fullmatch("params/.*kernel", name)]
    widths = [shape[-1] for shape in kernels[:-1]]
    return Kurtosis(relu_kurtosis(widths, estimator.readout), 0.0, 0)


def record_kurtosis(nads: NADs, index: int | None = None) -> Kurtosis:
    """See `NADs.kurtosis`."""
    check_record("nads", nads, NADs)
    count = len(nads.eigenvalues)
    if index is not None:
        index = check_integer("index", index, 0, count - 1)
    if "kurtosis" in nads.config:
        return Kurtosis(nads.config["kurtosis"], 0.0, 0)
    batches = len(nads.batch_weights)
    if nads.num_networks == 1 or batches < FEWEST:
        held = "a single network" if nads.num_networks == 1 else f"{batches} batches of networks"
        raise InputError(
            f"kurtosis: needs {FEWEST} batches of networks, this record holds {held}; take more "
            "networks, or smaller chunks or units (leading NADs keep none)"
        )
    places = [index] if index is not None else range(min(_LEADING, nads.rank))
    errors = [nads.eigenvalue_sem[one] / nads.eigenvalues[one] for one in places]
    excess = nads.num_networks * float(np.median(np.square(errors)))
    return Kurtosis(1 + excess, _error(excess, batches), nads.num_networks)


def pool_kurtosis(
    energies: np.ndarray, weights: Sequence[int], num_networks: int
) -> Kurtosis | None:
    """The kurtosis of directions given beforehand, each counted by the square of its energy; None
    where batches say nothing of it.

    Args:
      energies: [B, K] vᵀG_b v of batches of the networks.
      weights: [B] the rows of each.
      num_networks: of all batches.
    """
    weights = np.asarray(weights, float) / np.sum(weights)
    squares = standard_error(energies, weights) ** 2
    known = (np.tensordot(weights, energies, 1) ** 2 - squares).sum()
    if len(energies) < FEWEST or not known > 0:
        return None
    excess = num_networks * float(squares.sum() / known)
    return Kurtosis(1 + excess, _error(excess, len(energies)), num_networks)


def _error(excess: float, batches: int) -> float:
    """Of κ: that of a variance from so many values."""
    return excess * math.sqrt(2 / (batches - 1))


def pixel_energies(state: "Dense", representations: list[Representation]) -> np.ndarray:
    """vᵀGv [D] of the second moment of a state that has seen rows, averaged over a group; v the
    pixels, or what of them each of its representations has.
    """
    count, mean = int(state.count), np.asarray(state.mean, np.float64)
    scatter, energies = np.asarray(state.scatter), []
    for one in representations:
        found = 0.0
        for turn in one.turns:
            places = turn[one.moved[:, one.seeds]]
            entries = scatter[places[:, None], places[None]].astype(np.float64)
            inside = np.einsum("s,t,stn->n", one.signs, one.signs, entries) / one.norms**2
            found = found + inside / count + fold(mean, one, turn) ** 2
        energies.append(np.repeat(found / len(one.turns), len(one.turns)))
    return np.ldexp(np.concatenate(energies), 2 * int(state.exponent))
