"""How isotropic a geometry is, where its energy lies, and which of two is the more isotropic; each
with its error.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from nad_jax.batches import Batches, average_products, error_of_pairs, standard_error
from nad_jax.blocks import average_blocks
from nad_jax.errors import InputError, check_record
from nad_jax.nads import NADs
from nad_jax.subspaces import SIZES, subspace_overlap
from nad_jax.symmetries import Eigenvectors
from nad_jax.tables import Row, Tabular, zip_columns


def format_number(value: float, error: float) -> str:
    """A number and its standard error, nan where that is not known."""
    return f"{value:.4g} ± {error:.1g}" if np.isfinite(error) else f"{value:.4g}, its error unknown"


class Isotropy(NamedTuple):
    """The share of directions that a network prefers alike, (tr G)² / (D tr G²).

    value: 1 where no direction is preferred, 1/D where there is only one.
    sem: its standard error, from batches of the networks; nan of fewer than four.
    """

    value: float
    sem: float

    def __repr__(self) -> str:
        return f"Isotropy({format_number(*self)})"


class Comparison(NamedTuple):
    """Two geometries of one input space.

    left, right: their isotropies. z: their difference in standard errors between networks; positive
      where the left one is more isotropic; nan where no error is known.
    overlap_sizes, overlap: [S] ‖U_k V_kᵀ‖²/k of their leading subspaces, k/D by chance; of whole
      blocks where a record has exactly equal ones, each averaged over them; [0] where no size is
      whole in both.
    unlike: the choices that say where and how derivatives are taken, and differ.
    """

    left: Isotropy
    right: Isotropy
    z: float
    overlap_sizes: np.ndarray
    overlap: np.ndarray
    unlike: tuple[str, ...] = ()

    def __repr__(self) -> str:
        which = "the first" if self.z > 0 else "the second"
        sure = f"{which} is more isotropic by {abs(self.z):.1f} standard errors"
        if not abs(self.z) > 2:
            sure = "which one is more isotropic is not certain"
        pairs = zip(self.overlap_sizes, self.overlap, strict=True)
        overlaps = ", ".join(f"{overlap:.3f} at {size}" for size, overlap in pairs)
        beware = f"; beware: different {', '.join(self.unlike)}" if self.unlike else ""
        overlaps = overlaps or "unknown, no size is of whole blocks in both"
        return f"Comparison({self.left} and {self.right}: {sure}; overlap {overlaps}{beware})"


class EnergyMap(NamedTuple):
    """The mean of vᵀGv over the real Fourier vectors v of each frequency, phases and channels.

    frequencies: [A] arrays of integers, one for each axis but that of channels, ascending, in
      cycles per length of the axis.
    energy, sem: [*space] in this order, and the standard error of each between networks.
    """

    frequencies: tuple[np.ndarray, ...]
    energy: np.ndarray
    sem: np.ndarray

    def to_rows(self) -> list[Row]:
        """A row for each frequency: that along each axis, the energy and its standard error."""
        axes = np.meshgrid(*self.frequencies, indexing="ij")
        columns = {f"frequency_{a}": one.reshape(-1).tolist() for a, one in enumerate(axes)}
        columns |= {
            "energy": self.energy.reshape(-1).tolist(),
            "sem": self.sem.reshape(-1).tolist(),
        }
        return zip_columns(columns)

    rows, to_csv, to_dataframe = to_rows, Tabular.to_csv, Tabular.to_dataframe

    def to_ranking(self) -> list[Row]:
        """The rows of `to_rows` with the `rank` that they predict for D(v), those of most energy
        first: real Fourier vectors have one of a frequency and its negative.
        """
        rows = self.to_rows()
        names = [f"frequency_{axis}" for axis in range(self.energy.ndim)]

        def is_first(row: Row) -> bool:
            pairs = zip((row[name] for name in names), self.energy.shape, strict=True)
            own = [(k, -k if 2 * k != length else k) for k, length in pairs]
            return [k for k, _ in own] >= [negative for _, negative in own]

        kept = sorted(filter(is_first, rows), key=lambda row: -row["energy"])
        return [{"rank": rank, **row} for rank, row in enumerate(kept)]

    def plot(self) -> Any:
        """A figure of the energies: of images a map over (vertical, horizontal) frequency, of vectors
        and signals a curve with standard errors.

        Raises:
          InputError: for volumes.
        """
        from nad_jax import accuracy_plots  # matplotlib takes longer to import than all the rest

        if self.energy.ndim == 1:
            return accuracy_plots.plot_energy_curve(self.energy, self.sem, self.frequencies[0])
        if self.energy.ndim != 2:
            raise InputError(
                f"plot: draws vectors, signals and images, not {self.energy.ndim} axes; to_rows() "
                "has the numbers"
            )
        return accuracy_plots.plot_energy_map(self.energy, self.frequencies)

    def __repr__(self) -> str:
        place = np.unravel_index(self.energy.argmax(), self.energy.shape)
        highest = tuple(int(axis[k]) for axis, k in zip(self.frequencies, place, strict=True))
        size = "×".join(map(str, self.energy.shape))
        return (
            f"EnergyMap({size} frequencies; the highest energy {self.energy.max():.4g} ± "
            f"{self.sem[place]:.1g} at {highest}, the lowest {self.energy.min():.4g})"
        )


# Choices that two geometries should share, so that what differs are the networks.
_ALIKE = ("derivative", "point", "point_scale", "points")


def needed_batches(nads: NADs, function: str) -> Batches:
    """What is kept of batches of the networks, for a function of this name.

    Raises:
      InputError: where nothing is.
    """
    check_record("nads", nads, NADs)
    if nads.batches is None:
        raise InputError(
            f"{function}: needs the batches of networks that `estimate_nads` keeps; leading NADs and "
            "records of earlier versions have none"
        )
    return nads.batches


def isotropy(nads: NADs) -> Isotropy:
    """How alike all directions are to a network, (tr G)² / (D tr G²), with its standard error
    between networks; given points are taken as they are.

    Products of different batches alone are used: few networks do not bias it. nan where these say
    nothing.

    Raises:
      InputError: for records without batches.
    """
    batches, dimension = needed_batches(nads, "isotropy"), nads.directions.shape[1]
    pairs, kept = np.outer(batches.traces, batches.traces), np.ones(len(batches.weights))
    traces, squares = (average_products(batches, one, kept) for one in (pairs, batches.products))
    if not squares > 0:  # batches of too few networks may have nothing in common
        return Isotropy(math.nan, math.nan)
    value = traces / (dimension * squares)
    total = average_products(batches, np.ones_like(pairs), kept)
    relative = pairs * (total / traces) - batches.products * (total / squares)
    return Isotropy(value, value * error_of_pairs(relative))


def compare(left: NADs, right: NADs) -> Comparison:
    """Which of two geometries is the more isotropic, how sure that is, and how far their leading
    subspaces overlap.

    Raises:
      InputError: for records without batches, or of inputs of different size.
    """
    one, other = isotropy(left), isotropy(right)
    sizes = [nads.directions.shape[1] for nads in (left, right)]
    if sizes[0] != sizes[1]:
        raise InputError(f"right: must have D = {sizes[0]} like the left one, got {sizes[1]}")
    overlap_sizes, overlap = _overlap(left, right)
    error = math.hypot(one.sem, other.sem)
    z = (one.value - other.value) / error if error else math.nan
    unlike = [name for name in _ALIKE if left.config.get(name) != right.config.get(name)]
    return Comparison(one, other, z, overlap_sizes, overlap, tuple(unlike))


def _overlap(left: NADs, right: NADs) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and overlaps [S] of leading subspaces, of whole blocks alone."""
    whole = [average_blocks(_eigenvectors(one), one.blocks) for one in (left, right)]
    directions = [found.directions for found in whole]
    pairs = zip((left, right), whole, strict=True)
    cuts = [
        one.blocks.cuts(found.symmetry)
        for one, found in pairs
        if one.blocks is not None and one.blocks.num_units > 1
    ]
    if not cuts:
        sizes = np.intersect1d(left.overlap_sizes, right.overlap_sizes)
        return sizes, subspace_overlap(*directions, tuple(sizes.tolist()))
    sizes = functools.reduce(np.intersect1d, cuts)
    sizes = sizes[sizes <= min(map(len, directions))]
    few = [place for place in SIZES if place <= len(sizes)]  # the first, the fourth, …
    sizes = sizes[np.array(few, int) - 1]
    return sizes, subspace_overlap(*directions, tuple(sizes.tolist()))


def _eigenvectors(nads: NADs) -> Eigenvectors:
    return Eigenvectors(nads.eigenvalues, nads.directions, nads.symmetry, 0.0)


def energy_map(nads: NADs) -> EnergyMap:
    """Where in Fourier space the energy of a geometry lies, with standard errors.

    Raises:
      InputError: for records without batches.
    """
    batches = needed_batches(nads, "energy_map")
    energy = np.tensordot(batches.weights, batches.energies, 1)
    sem = standard_error(batches.energies, batches.weights)
    frequencies = []
    for axis, length in enumerate(energy.shape):
        # −N/2 < f <= N/2, as in `basis_dft`.
        signed = np.array([k if 2 * k <= length else k - length for k in range(length)])
        order = np.argsort(signed)
        energy, sem = energy.take(order, axis), sem.take(order, axis)
        frequencies.append(signed[order])
    return EnergyMap(tuple(frequencies), energy, sem)
