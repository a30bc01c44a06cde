"""How far a spectrum is from that of an isotropic geometry, and where its energy lies, in numbers;
each with its error.

Sorted eigenvalues of few networks are further apart than those of G. Participation ratios are free
of that bias, as they come from products of different batches; the entropy and the condition number
are freed from its first order by a jackknife over batches.
"""

import math
from typing import NamedTuple

import numpy as np

from nad_jax.batches import Batches, jackknife, list_parts, standard_error
from nad_jax.comparison import energy_map, format_number, isotropy, needed_batches
from nad_jax.errors import InputError
from nad_jax.nads import NADs, numerical_rank
from nad_jax.tables import Row, Tabular, zip_columns


class Metric(NamedTuple):
    """A number and its standard error between networks; nan: unknown."""

    value: float
    sem: float

    def __repr__(self) -> str:
        return format_number(*self)


_UNKNOWN = Metric(math.nan, math.nan)


class SpectrumMetrics(NamedTuple):
    """The shape of a spectrum λ_1 ≥ … ≥ λ_D, of shares p_i = λ_i / tr G.

    participation_ratio: (tr G)² / tr G², D where all directions are alike, 1 where there is one.
    effective_rank: exp(H), H = −Σ p_i ln p_i the entropy (Roy and Vetterli 2007), D … 1 as well.
    kl_uniform: ln D − H, the Kullback–Leibler divergence of p from the uniform law, in nats; 0 where
      all directions are alike.
    condition: λ_1/λ_D; infinite where λ_D is below rounding, 1e-6 of λ_1.
    dimension: D.
    """

    participation_ratio: Metric
    effective_rank: Metric
    kl_uniform: Metric
    condition: Metric
    dimension: int

    def to_rows(self) -> list[Row]:
        """A row for each metric: its name, value and standard error."""
        names = self._fields[:-1]
        return [{"metric": name, **getattr(self, name)._asdict()} for name in names]

    rows, to_csv, to_dataframe = to_rows, Tabular.to_csv, Tabular.to_dataframe

    def __repr__(self) -> str:
        each = [f"{name} {getattr(self, name)!r}" for name in self._fields[:-1]]
        return f"SpectrumMetrics(D = {self.dimension}: {', '.join(each)})"


class RadialEnergy(NamedTuple):
    """The mean of vᵀGv over the real Fourier vectors v of each length of the frequency.

    radius: [R] lengths, rounded to cycles per image. energy, sem: [R], and the standard error of
      each between networks. count: [R] the frequencies of each, of either sign.
    """

    radius: np.ndarray
    energy: np.ndarray
    sem: np.ndarray
    count: np.ndarray

    def to_rows(self) -> list[Row]:
        """A row for each radius: the energy, its standard error, how many frequencies."""
        return zip_columns({name: getattr(self, name).tolist() for name in self._fields})

    rows, to_csv, to_dataframe = to_rows, Tabular.to_csv, Tabular.to_dataframe

    def __repr__(self) -> str:
        ends = (format_number(self.energy[place], self.sem[place]) for place in (0, -1))
        first, last = ends
        return f"RadialEnergy({len(self.radius)} radii: {first} at 0, {last} at {self.radius[-1]})"


class SymmetryEnergy(NamedTuple):
    """What of the trace lies in each representation of the symmetries of the grid.

    symmetry: [R] their labels, see `symmetries.Representation`. share, sem: [R], which sum to 1, and
      standard errors between networks. dimension: [R] of their spaces: of an isotropic geometry the
      share is dimension/D.
    """

    symmetry: tuple[str, ...]
    share: np.ndarray
    sem: np.ndarray
    dimension: np.ndarray

    def to_rows(self) -> list[Row]:
        """A row for each representation: its label, share, standard error and dimension."""
        return zip_columns({name: list(getattr(self, name)) for name in self._fields})

    rows, to_csv, to_dataframe = to_rows, Tabular.to_csv, Tabular.to_dataframe

    def __repr__(self) -> str:
        columns = self.symmetry, self.share, self.sem
        each = (f"{n or 'all'} {format_number(s, e)}" for n, s, e in zip(*columns, strict=True))
        return f"SymmetryEnergy({', '.join(each)})"


def spectrum_metrics(nads: NADs) -> SpectrumMetrics:
    """Participation ratio, effective rank, divergence from the uniform spectrum and condition
    number of a geometry, with standard errors between networks; given points are taken as they are.

    The last three are corrected for the number of networks by the delete-m_j jackknife over up to 16
    batches (four where more than 1,536 directions are decomposed at once): what is left is of second
    order. They are nan where sampled read-outs are fewer than directions, so that eigenvalues are
    zero that are none of G, and where there is a single batch.

    Raises:
      InputError: for records without batches, or of versions that kept no spectra of them.
    """
    batches, dimension = needed_batches(nads, "spectrum_metrics"), nads.directions.shape[1]
    if batches.spectra.shape[1:] != (dimension,):
        raise InputError(
            "spectrum_metrics: needs spectra of batches, which records of earlier versions lack; "
            "collecting their run again writes them"
        )
    ratio, kl, condition = isotropy(nads), _UNKNOWN, _UNKNOWN
    if len(batches.groups) and not _is_short(nads, batches):
        divergence = _divergence(batches.spectra)
        kl = Metric(*jackknife(divergence[0], divergence[1:], batches.groups))
        condition = _condition(batches)
    rank = dimension * math.exp(-kl.value)
    return SpectrumMetrics(
        Metric(dimension * ratio.value, dimension * ratio.sem),
        Metric(rank, rank * kl.sem),
        kl,
        condition,
        dimension,
    )


def _is_short(nads: NADs, batches: Batches) -> bool:
    """Whether zero eigenvalues may come of too few read-outs, without one of the groups."""
    points = nads.config.get("per_network") or nads.config.get("num_points") or 1
    each = points * nads.config.get("num_readouts", 1)
    rows = nads.num_networks * each * (1 - batches.groups.max())
    singular = any(numerical_rank(one) < len(one) for one in batches.spectra)
    return nads.config.get("readout") == "sampled" and rows < batches.spectra.shape[1] and singular


def _condition(batches: Batches) -> Metric:
    if any(numerical_rank(one) < len(one) for one in batches.spectra):
        return Metric(math.inf, math.nan)
    logs = np.log(batches.spectra[:, 0] / batches.spectra[:, -1])
    value, sem = jackknife(logs[0], logs[1:], batches.groups)
    return Metric(math.exp(value), math.exp(value) * sem)


def _divergence(spectra: np.ndarray) -> np.ndarray:
    """ln D − H of spectra [..., D]."""
    shares = spectra / spectra.sum(-1, keepdims=True)
    logs = np.log(np.where(shares > 0, shares, 1.0))
    return np.log(spectra.shape[-1]) + (shares * logs).sum(-1)


def radial_energy(nads: NADs) -> RadialEnergy:
    """Where along the length of frequencies the energy of a geometry lies, with standard errors.

    Raises:
      InputError: for records without batches.
    """
    batches, frequencies = needed_batches(nads, "radial_energy"), energy_map(nads).frequencies
    # The order of `np.fft.fftfreq`, which the energies have.
    axes = [np.roll(axis, -int(np.flatnonzero(axis == 0)[0])) for axis in frequencies]
    squares = sum(one.astype(float) ** 2 for one in np.meshgrid(*axes, indexing="ij"))
    radius = np.rint(np.sqrt(squares)).astype(int)
    found, places, count = np.unique(radius, return_inverse=True, return_counts=True)
    means = [np.bincount(places.reshape(-1), one.reshape(-1)) / count for one in batches.energies]
    sem = standard_error(np.stack(means), batches.weights)
    return RadialEnergy(found, np.tensordot(batches.weights, means, 1), sem, count)


def symmetry_energy(nads: NADs) -> SymmetryEnergy:
    """What of the trace lies in each representation of the symmetries that inputs of this shape may
    have, whether the network has them or not, with standard errors.

    Raises:
      InputError: for records without batches, or of versions that did not keep it.
    """
    batches = needed_batches(nads, "symmetry_energy")
    parts = list_parts(tuple(nads.config["image_shape"]))
    if batches.parts.shape != (len(batches.weights), len(parts)):
        raise InputError(
            "symmetry_energy: needs energies by representation, which records of earlier versions "
            "lack; collecting their run again writes them"
        )
    trace = batches.weights @ batches.traces
    share = batches.weights @ batches.parts / trace
    sem = standard_error((batches.parts - share * batches.traces[:, None]) / trace, batches.weights)
    dimension = np.array([len(one.seeds) * len(one.turns) for one in parts])
    return SymmetryEnergy(tuple(one.label for one in parts), share, sem, dimension)
