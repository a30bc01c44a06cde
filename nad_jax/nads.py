"""The record of neural anisotropy directions (NADs), and what can be asked of it.

NADs are the eigenvectors of E_θ[g gᵀ], θ drawn from an architecture's own initialization and g an
input derivative of one logit in evaluation mode (NAD, Section 3).
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nad_jax import spectral
from nad_jax.batches import Batches, standard_error
from nad_jax.blocks import Blocks, read_blocks
from nad_jax.errors import InputError, check_integer, check_number, check_record, host_array
from nad_jax.symmetries import width
from nad_jax.tables import Row, Tabular, zip_columns

if TYPE_CHECKING:
    from nad_jax.kurtosis import Kurtosis

DERIVATIVES = ("central_difference", "input_gradient")  # by name, and where they are taken
POINTS = ("shared", "fresh")
NO_CURVES: Mapping[str, Any] = MappingProxyType({})


class NADs(NamedTuple):
    """Neural anisotropy directions and how sure they are.

    directions:         [K, D] unit rows, descending; float32.
    eigenvalues:        [K] of E[g gᵀ] of the single logit, float64 (the published arrays hold
                        singular values s instead, with eigenvalue = s²/(N − 1), N = 10,000).
    eigenvalue_sem:     [K] standard error of u_iᵀ G u_i at the found u_i, from up to 16 batches of
                        the networks; of leading records and of few networks half its difference
                        between the two halves (one degree of freedom, so read it along i, not at
                        one i). That the u_i were sorted by the same networks is not in it: leading
                        eigenvalues of small ensembles fluctuate less and are biased upward, by 2 to
                        4 of these errors at 40 networks.
    overlap_sizes:      [S] subspace sizes k.
    split_half_overlap: [S] ‖U_k V_kᵀ‖²/k between the NADs of even and of odd members: an estimate
                        of the agreement of two ensembles of half the size. nan beyond the
                        `numerical_rank` of a half.
    num_networks:       N.
    config:             every choice that was made.
    symmetry:           [K] the representation of the group of symmetries that a direction belongs
                        to, see `symmetries.Representation`; "" where no symmetries were used. The
                        two of a pair (E) follow each other.
    trace:              tr E[g gᵀ], of all D directions; None in records that do not say it.
    pass_overlap:       [P − 1, S] ‖U_k V_kᵀ‖²/k between each pass and the one before, for the sizes
                        k of `overlap_sizes`: what a pass changed. Changes shrink from pass to pass,
                        but bound nothing. [0, S] where there is one pass.
    batch_weights, batch_traces, batch_products, batch_energies, batch_parts, batch_groups,
    batch_spectra:      what is kept of batches of the networks, see `batches.Batches`; empty in
                        leading records and those of earlier versions.
    point_sem:          [K] standard error of u_iᵀ G u_i between the points, where all networks share
                        several: what another draw of as many would change while the networks stay,
                        as `eigenvalue_sem` is what other networks would at these points; of one
                        network they are the same. Empty otherwise: points that each network draws for itself
                        are in `eigenvalue_sem`.
    """

    directions: np.ndarray
    eigenvalues: np.ndarray
    eigenvalue_sem: np.ndarray
    overlap_sizes: np.ndarray
    split_half_overlap: np.ndarray
    num_networks: int
    config: dict[str, Any]
    symmetry: np.ndarray
    trace: float | None = None
    pass_overlap: np.ndarray = np.zeros((0, 0))
    batch_weights: np.ndarray = np.zeros(0)
    batch_traces: np.ndarray = np.zeros(0)
    batch_products: np.ndarray = np.zeros((0, 0))
    batch_energies: np.ndarray = np.zeros(0)
    batch_parts: np.ndarray = np.zeros((0, 0))
    batch_groups: np.ndarray = np.zeros(0)
    batch_spectra: np.ndarray = np.zeros((0, 0))
    point_sem: np.ndarray = np.zeros(0)

    @property
    def batches(self) -> Batches | None:
        """What is kept of batches of the networks; None where nothing is."""
        kept = {name: getattr(self, f"batch_{name}") for name in Batches._fields}
        return Batches(**kept) if len(self.batch_weights) else None

    @property
    def blocks(self) -> Blocks | None:
        """The exactly equal blocks that the geometry has, see `equal_blocks`; None where it has
        none, or the record does not say.
        """
        return read_blocks(self.config)

    @property
    def trace_sem(self) -> float:
        """The standard error of the trace between networks, at these points; nan of leading records
        and of one network.
        """
        if self.num_networks == 1:
            return float("nan")
        return float(standard_error(self.batch_traces, self.batch_weights))

    @property
    def matrix(self) -> np.ndarray:
        """E[g gᵀ] [D, D], as far as the K eigenvectors say it: exact where K = D."""
        return (self.directions.T * self.eigenvalues) @ self.directions

    @property
    def rank(self) -> int:
        """How many eigenvalues are above rounding, 1e-6 of the largest."""
        return numerical_rank(self.eigenvalues)

    def kurtosis(self, index: int | None = None) -> "Kurtosis":
        """κ of what one network says of vᵀGv: the relative error of N of them is √((κ − 1)/N).

        Exact where there is a closed form for it, of every direction: `mlp` with Gaussian weights
        and no biases, see `relu_kurtosis`. Otherwise measured, 1 + N (standard error/eigenvalue)²,
        from what batches of the networks differ in, whatever the read-outs and points are: between
        networks alone, at these points.

        Args:
          index: of an eigenvalue; None: the median of the leading 16. It is too large where
            eigenvalues are close to each other, since directions were chosen by the same networks.

        Raises:
          InputError: for one network, fewer than 8 batches of them (leading NADs keep none), and an
            index out of range.
        """
        from nad_jax.kurtosis import record_kurtosis  # which imports this module

        return record_kurtosis(self, index)

    def networks_needed(self, relative_error: float, index: int | None = None) -> int:
        """How many networks bring the standard error between them below a share of an eigenvalue:
        (κ − 1)/ε², κ as of `kurtosis`, which says whether it is exact or measured.

        Args:
          relative_error: ε, above 0.
          index: of an eigenvalue; None: the median of the leading 16.

        Raises:
          InputError: as `kurtosis`, and for an error that is not above 0.
        """
        return self.kurtosis(index).networks_needed(relative_error)

    @property
    def nads(self) -> "NADs":
        """The record itself, which leading NADs were once wrapped around."""
        return self

    def to_rows(self) -> list[Row]:
        """A row for each direction: its index, eigenvalue, standard errors and representation."""
        columns = {
            "index": range(len(self.eigenvalues)),
            "eigenvalue": self.eigenvalues,
            "eigenvalue_sem": self.eigenvalue_sem,
            **({"point_sem": self.point_sem} if len(self.point_sem) else {}),
            "symmetry": self.symmetry,
        }
        return zip_columns(columns)

    rows, to_csv, to_dataframe = to_rows, Tabular.to_csv, Tabular.to_dataframe

    def save(self, path: str | Path) -> None:
        """Writes the record as `.npz`, see `records.save_nads`; `load_nads` reads it."""
        from nad_jax.records import save_nads  # which imports this module

        save_nads(path, self)

    def plot_directions(self, num_directions: int = 16) -> Any:
        """A figure of the leading directions, with their eigenvalues and energies in Fourier space;
        brackets hold those together that are not determined one by one.
        """
        from nad_jax import plotting  # matplotlib takes longer to import than all the rest

        num_directions = check_integer("num_directions", num_directions, 1)
        shown, shape = self.directions[:num_directions], tuple(self.config["image_shape"])
        known = self.symmetry, self.eigenvalues, self.sem
        groups = degenerate_groups(self, max(16, num_directions))
        title = f"NADs of {self._title}"
        said = "" if self.blocks is None else str(self.blocks)
        return plotting.plot_directions(shown, shape, title, *known, groups, said)

    def plot_spectrum(self, compared: np.ndarray | None = None) -> Any:
        """A figure of the eigenvalues with their errors; `compared` are eigenvalues of others."""
        from nad_jax import plotting

        band = null_band(self) if has_null_band(self) else None
        spectrum = self.eigenvalues, self.sem, f"Spectrum of {self._title}"
        return plotting.plot_spectrum(*spectrum, band, compared, self._plateaus())

    def _plateaus(self) -> tuple[str, np.ndarray] | None:
        """What the equal blocks are, and the eigenvalues [D] averaged over them; None where there
        are none, or the leading eigenvalues alone.
        """
        blocks = self.blocks
        if blocks is None or len(self.eigenvalues) < self.directions.shape[1]:
            return None
        return str(blocks).partition(":")[0], blocks.eigh(self.matrix).eigenvalues

    def plot_overlap(self, curves: Mapping[str, tuple[np.ndarray, np.ndarray]] = NO_CURVES) -> Any:
        """A figure of the overlap of leading subspaces of the halves; `curves` are sizes, overlaps
        and, where known, their standard errors that are drawn besides, by their labels.
        """
        from nad_jax import plotting

        halves = {"even against odd members": (self.overlap_sizes, self.split_half_overlap)}
        title, dimension = f"Leading subspaces of {self._title}", self.directions.shape[1]
        groups, _ = degenerate_groups(self)
        return plotting.plot_overlap({**halves, **curves}, dimension, title, groups)

    def plot(
        self,
        num_directions: int = 16,
        curves: Mapping[str, tuple[np.ndarray, np.ndarray]] = NO_CURVES,
        compared: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """All three figures: "nads" of `plot_directions`, "spectrum" and "overlap"."""
        return {
            "nads": self.plot_directions(num_directions),
            "spectrum": self.plot_spectrum(compared),
            "overlap": self.plot_overlap(curves),
        }

    @property
    def _title(self) -> str:
        from nad_jax import summary  # which imports this module

        return summary.describe(self)

    @property
    def sem(self) -> np.ndarray:
        """[K] standard errors of the eigenvalues: between networks and, where all networks share
        several, between points. What a network says of a single point alone is in both: where there
        is nothing else, the two together are √2 too large.
        """
        if not len(self.point_sem):
            return self.eigenvalue_sem
        return np.hypot(self.eigenvalue_sem if self.num_networks > 1 else 0.0, self.point_sem)

    def __repr__(self) -> str:
        from nad_jax import summary  # which imports this module

        return "\n  ".join([f"NADs of {summary.describe(self)}", *summary.summarize(self)])


LeadingNADs = NADs  # the published name of a record of leading directions


def name_model(config: Mapping[str, Any]) -> str:
    """What the network of a record is called."""
    return config.get("architecture") or config.get("model", "own model")


def null_band(nads: NADs, trace: float | None = None) -> tuple[float, float]:
    """The eigenvalues an isotropic covariance of this trace would show from as many sampled
    read-outs.

    Source: Marchenko–Pastur. Eigenvalues outside it are anisotropy, inside it noise. Several
    read-outs of one network count as independent, which only those of a linear one are: the band is
    then too narrow.

    Args:
      trace: tr E[g gᵀ], where the record holds fewer than D eigenvalues.

    Raises:
      InputError: for marginalized or symmetrized ones, whose spectra carry the split-half error
        instead; for leading eigenvalues without the trace.
    """
    check_record("nads", nads, NADs)
    if not has_null_band(nads):
        raise InputError(
            "null_band: belongs to sampled read-outs, not symmetrized; others carry "
            "`eigenvalue_sem`"
        )
    dimension = nads.directions.shape[1]
    trace = nads.trace if trace is None else trace
    if trace is None:
        if len(nads.eigenvalues) < dimension:
            raise _needs_trace(nads.directions)
        trace = nads.eigenvalues.sum()
    trace = check_number("trace", trace, 0.0)
    samples = nads.num_networks * nads.config["num_readouts"]
    return spectral.marchenko_pastur_band(trace / dimension, dimension, samples)


def _needs_trace(directions: np.ndarray) -> InputError:
    count, dimension = directions.shape
    return InputError(f"trace: needed where there are {count} eigenvalues of D = {dimension}")


def has_null_band(nads: NADs) -> bool:
    """Whether what was averaged over are sampled read-outs alone, at one point."""
    chosen = {"derivative": DERIVATIVES[0], "point": POINTS[0], "symmetrized": False, **nads.config}
    # Rows of one network at several points, or of any field, need not be independent.
    plain = chosen["derivative"] in DERIVATIVES and chosen["point"] in POINTS
    return chosen.get("readout") == "sampled" and not chosen["symmetrized"] and plain


def degenerate_groups(nads: NADs, leading: int = 16) -> tuple[list[list[int]], float]:
    """Indices of leading directions that are not determined one by one, in groups, and the
    tolerance applied.

    Those of a group belong to one representation; there eigenvalues count as equal within 5 %, or
    within two standard errors of a difference where that is more (the median of the relative errors
    of the leading ones). A group starts among the `leading` directions and may go on beyond. Groups
    of a smooth spectrum end where the tolerance does, not at a gap. The two of a pair (E) are equal
    by symmetry and determined all the same.
    """
    values = np.maximum(nads.eigenvalues[:leading], np.finfo(np.float64).tiny)
    sem = float(np.median(nads.sem[:leading] / values))
    tolerance = min(max(0.05, 2.0 * np.sqrt(2.0) * sem), 1.0)
    groups = []
    for label in np.unique(nads.symmetry):
        places = np.flatnonzero(nads.symmetry == label)
        size = width(label)
        runs = spectral.near_degenerate_groups(nads.eigenvalues[places[::size]], tolerance)
        groups += [places[first * size : (last + 1) * size].tolist() for first, last in runs]
    return sorted(group for group in groups if group[0] < leading), tolerance


def numerical_rank(eigenvalues: np.ndarray) -> int:
    """How many of eigenvalues [K], descending, are above 1e-6 of the largest; others are rounding
    of float32 sums.
    """
    return np.count_nonzero(eigenvalues > 1e-6 * eigenvalues[0])


class Spectrum(NamedTuple):
    """What stored NADs are at least: `directions` [K, D] with their `eigenvalues` [K]."""

    directions: np.ndarray
    eigenvalues: np.ndarray


def directional_energy(
    nads: NADs | Spectrum, directions: np.ndarray, trace: float | None = None
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """vᵀ E[g gᵀ] v for rows v of `directions` [N, D]: the mean squared derivative along each, [N].

    By Chebyshev's inequality P(|vᵀg| ≥ η) ≤ vᵀ E[g gᵀ] v / η² (NAD, Section 3): what a network can
    see along v.

    Args:
      nads: K eigenvalues of D. One that is missing (the published arrays hold 1,023 of 1,024)
        counts as zero.
      directions: v, of any length.
      trace: tr E[g gᵀ] (default: that of the record). With it the result is (lower, upper), [N]
        each: bounds from what the other D − K eigenvalues can be, which are not above the last
        known one and sum up to the rest of the trace. They hold as far as the K are eigenvalues:
        leading NADs are up to what further passes would change.

    Raises:
      InputError: where D is not that of the NADs, an entry is not finite, more than one eigenvalue
        is missing and there is no trace, or the trace is not one that such eigenvalues can have.
    """
    check_record("nads", nads, NADs, Spectrum)
    basis = host_array("nads: directions", nads.directions, "[K, D]")
    eigenvalues = host_array("nads: eigenvalues", nads.eigenvalues, f"[{len(basis)}]")
    missing = basis.shape[1] - len(basis)
    directions = host_array("directions", directions, f"[N, {basis.shape[1]}]")
    squares = (directions @ basis.T) ** 2
    energies = squares @ eigenvalues
    if trace is None and missing <= 1:
        return energies
    trace = getattr(nads, "trace", None) if trace is None else trace
    if trace is None:
        raise _needs_trace(basis)
    known = eigenvalues.sum()
    rest, most = check_number("trace", trace, 0.0) - known, known + missing * eigenvalues[-1]
    if not -1e-4 * known <= rest <= most * (1 + 1e-4) - known:  # beyond rounding
        raise InputError(
            f"trace: must be in {known:.6g} … {most:.6g}, with {missing} more eigenvalues of at "
            "most the last one, got "
            f"{trace:.6g}"
        )
    outside = np.maximum((directions**2).sum(1) - squares.sum(1), 0.0)
    largest = min(max(rest, 0.0), eigenvalues[-1])
    smallest = max(rest - (missing - 1) * largest, 0.0)
    return energies + min(smallest, largest) * outside, energies + largest * outside


def singular_values(eigenvalues: np.ndarray, num_networks: int = 10_000) -> np.ndarray:
    """√((N − 1) λ): the singular values of the centred [N, D] matrix, which the published arrays
    hold (N = 10,000).

    Raises:
      InputError: for eigenvalues that are negative or not finite, and unless N is an integer of at
        least 2.
    """
    eigenvalues = host_array("eigenvalues", eigenvalues)
    if (eigenvalues < 0).any():
        raise InputError(f"eigenvalues: must not be negative, got {eigenvalues.min():.4g}")
    return np.sqrt((check_integer("num_networks", num_networks, 2) - 1) * eigenvalues)
