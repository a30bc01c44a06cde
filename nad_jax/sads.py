"""Score anisotropy directions (SADs): the record, and its estimate.

SADs are the eigenvectors of E[F Fᵀ] in ascending order, F the score of a network drawn from its own
initialization: directions of small eigenvalue come first, along which data are easy to generate
(a conjecture of SAD).
"""

import hashlib
import itertools
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nad_jax import ensemble
from nad_jax.accumulation import Progress, make_accumulate
from nad_jax.batches import measure_errors
from nad_jax.choices import Estimator, record_choices
from nad_jax.ensemble import Execution
from nad_jax.errors import InputError, check_function, check_integer, plain
from nad_jax.estimation import accumulate_batches, batch_size
from nad_jax.models import Model
from nad_jax.moments import Halves, init_halves, is_zero
from nad_jax.nads import name_model
from nad_jax.points import Points, as_points, at_origin, check_points
from nad_jax.reading import Found, check_finite, find_directions, make_dense
from nad_jax.score_diagnosis import explain_degenerate
from nad_jax.score_geometry import as_measured, check_signal, output
from nad_jax.score_networks import ScoreNetwork
from nad_jax.tables import Row, Tabular, zip_columns

_ZERO = 1e-6  # of the largest eigenvalue: what is less is rounding of float32 sums


class SADs(NamedTuple):
    """Score anisotropy directions, in ascending order, and how sure they are.

    directions:     [D, D] unit rows; the first has the smallest eigenvalue; float32.
    eigenvalues:    [D] of E[F Fᵀ], ascending, float64.
    eigenvalue_sem: [D] standard error of u_iᵀ G u_i at the found u_i, as in `NADs`.
    band_edges:     [B + 1] band b holds the directions band_edges[b] … band_edges[b + 1] − 1.
    band_overlap:   [B] ‖U_b V_bᵀ‖²/size of band b between the directions of even and of odd
                    networks: 1 where the band is determined, its share size/D where it is not at
                    all. Directions inside a band need not be determined one by one. Those of equal
                    eigenvalues may be any basis of what they span: it is the mean over all of them.
    num_networks:   N.
    config:         every choice that was made.
    degeneracies:   what makes this geometry degenerate, a sentence each; () where nothing does.
    """

    directions: np.ndarray
    eigenvalues: np.ndarray
    eigenvalue_sem: np.ndarray
    band_edges: np.ndarray
    band_overlap: np.ndarray
    num_networks: int
    config: dict[str, Any]
    degeneracies: tuple[str, ...] = ()

    @property
    def matrix(self) -> np.ndarray:
        """E[F Fᵀ] [D, D], float64."""
        directions = self.directions.astype(np.float64)
        return (directions.T * self.eigenvalues) @ directions

    @property
    def num_zero(self) -> int:
        """How many eigenvalues are below rounding, 1e-6 of the largest."""
        return int(np.count_nonzero(self.eigenvalues <= _ZERO * self.eigenvalues[-1]))

    @property
    def num_equal(self) -> int:
        """How many of the other eigenvalues are equal to another one to this rounding."""
        sizes = np.bincount(_group_equal(self.eigenvalues[self.num_zero :]))
        return int(sizes[sizes > 1].sum())

    @property
    def band_shares(self) -> np.ndarray:
        """[B] the overlap of each band with a random subspace of its size, in expectation."""
        return np.diff(self.band_edges) / len(self.eigenvalues)

    def band(self, number: int) -> np.ndarray:
        """The directions [K, D] of a band; raises `InputError` for a number that has none."""
        number = check_integer("number", number, 0, len(self.band_overlap) - 1)
        return self.directions[self.band_edges[number] : self.band_edges[number + 1]]

    def to_rows(self) -> list[Row]:
        """A row for each direction: its index, eigenvalue and standard error, its band, and how far
        that is determined.
        """
        sizes = np.diff(self.band_edges)
        columns = {
            "index": range(len(self.eigenvalues)),
            "eigenvalue": self.eigenvalues,
            "eigenvalue_sem": self.eigenvalue_sem,
            "band": np.repeat(np.arange(len(sizes)), sizes).tolist(),
            "band_overlap": np.repeat(self.band_overlap, sizes),
        }
        return zip_columns(columns)

    rows, to_csv, to_dataframe = to_rows, Tabular.to_csv, Tabular.to_dataframe

    def save(self, path: str | Path) -> None:
        """Writes the record as `.npz`, see `score_records.save_sads`; `load_sads` reads it."""
        from nad_jax.score_records import save_sads  # which imports this module

        save_sads(path, self)

    def __repr__(self) -> str:
        values, sems = self.eigenvalues, self.eigenvalue_sem
        ends = [f"{values[i]:.4g} ± {sems[i]:.1g}" for i in (0, -1)]
        bands = itertools.pairwise(self.band_edges.tolist())
        named = [f"{a}–{b - 1}" if b - a > 1 else f"{a}" for a, b in bands]
        overlaps = [
            f"{name}: {overlap:.2f}" for name, overlap in zip(named, self.band_overlap, strict=True)
        ]
        chosen = self.config
        how = f"read-out {chosen['readout']}, noise levels {chosen['levels']}"
        lines = [
            f"SADs of {_name(chosen)}, {self.num_networks} networks: {how}",
            f"eigenvalues, ascending: {ends[0]} … {ends[1]}",
            f"two halves of the networks agree in bands by {', '.join(overlaps)}",
            *(f"beware: {sentence}" for sentence in self.degeneracies),
        ]
        return "\n  ".join(lines)


def _name(config: dict[str, Any]) -> str:
    return config.get("score_network") or name_model(config)


def octaves(dimension: int) -> tuple[int, ...]:
    """The edges of bands that double in size from both ends: 0, 1, 2, 4, 8, … and mirrored.

    Raises:
      InputError: unless D is a positive integer.
    """
    dimension = check_integer("dimension", dimension, 1)
    near = [
        0,
        *(2**power for power in range(dimension.bit_length()) if 2 ** (power + 1) <= dimension),
    ]
    return tuple(sorted({*near, *(dimension - edge for edge in near)}))


def check_bands(bands: Any, dimension: int) -> tuple[int, ...]:
    """Returns the edges of bands, `octaves` for None; raises `InputError` unless they ascend from 0
    to D.
    """
    if bands is None:
        return octaves(dimension)
    edges = plain(bands)
    edges = edges.tolist() if isinstance(edges, np.ndarray) else edges
    whole = isinstance(edges, Sequence) and all(type(edge) is int for edge in edges)
    if not whole or len(edges) < 2 or (edges[0], edges[-1]) != (0, dimension):
        raise InputError(f"bands: must be integers from 0 to D = {dimension}, got {bands!r}")
    if any(right <= left for left, right in itertools.pairwise(edges)):
        raise InputError(f"bands: must ascend, got {bands!r}")
    return tuple(edges)


def estimate_sads(
    network: ScoreNetwork,
    num_networks: int,
    seed: jax.Array | int = 0,
    probe: Any = None,
    noised: bool = False,
    progress: Progress | None = None,
    *,
    readout: str = "marginalized",
    levels: str = "importance",
    signal: Any = None,
    bands: Any = None,
    mapping: str = "auto",
    chunk_size: int = 0,
    num_devices: int = 0,
) -> SADs:
    """The SADs of a score network from `num_networks` independent initializations.

    Source: SAD, whose estimate is readout="sampled", levels="uniform" at the origin; the other
    choices have the same expectation and less variance.

    Args:
      network: from `create_score_network`, or one's own.
      num_networks: N >= 2.
      seed: an integer, or a typed random key; network n depends on (seed, n) alone.
      probe: where networks are evaluated: a law of points, e.g. `gaussian((16, 16, 1), 0.5,
        shared=False)`, or an array [P, *input_shape], averaged over; None: the origin, as in SAD.
      noised: probes are data, to which noise of the level is added: `probe=images(x,
        per_network=1), noised=True`. See `score_geometry.output`.
      progress: called with the number of networks done.
      readout, levels, signal: see `score_geometry.output`.
      bands: the edges of the bands, 0 … D; None: `octaves(D)`.
      mapping, chunk_size, num_devices: fields of `Execution`.

    Warns:
      UserWarning: where the initialization or the probe makes the geometry degenerate, see
        `score_diagnosis`; the record says it, too.

    Raises:
      InputError: for a bad value, a network whose score is not finite, and one whose score is zero
        because its last layer starts there.
    """
    check_function("progress", progress)
    key, signal = ensemble.resolve_key(seed), check_signal(signal)
    field = output(network, readout, levels, noised, signal)  # which checks them
    points = at_origin(network.input_shape) if probe is None else as_points(probe)
    check_points(points, network.input_shape, "probe")
    edges = check_bands(bands, math.prod(network.input_shape))
    model, estimator = as_measured(network), Estimator(derivative=field, readout="sampled")
    num_networks = check_integer("num_networks", num_networks, 2)
    execution = Execution(mapping, chunk_size, num_devices)
    found, halves, sem, execution = _accumulate(
        model, estimator, execution, key, num_networks, points, progress
    )
    choices = {
        **record_choices(model, estimator, execution, key, points),
        **plain({"readout": readout, "levels": levels, "noised": noised}),
        "num_levels": len(signal),
        "signal": hashlib.sha256(signal.tobytes()).hexdigest()[:16],  # a name for ᾱ
        "order": "ascending",
    }
    for unused in ("step", "num_readouts", "logit", "symmetrized", "centred", "block_size"):
        del choices[unused]
    sads = SADs(
        directions=found.whole.directions[::-1].copy(),
        eigenvalues=found.whole.eigenvalues[::-1].copy(),
        eigenvalue_sem=sem[::-1].copy(),
        band_edges=np.array(edges),
        band_overlap=_overlap_bands(found, edges),
        num_networks=int(halves.networks),
        config=choices,
    )
    sentences = explain_degenerate(
        network, points, noised, signal, key, (sads.num_zero, sads.num_equal), num_networks
    )
    for sentence in sentences:
        warnings.warn(f"estimate_sads: {sentence}", stacklevel=2)
    return sads._replace(degeneracies=sentences)


def _accumulate(
    model: Model,
    estimator: Estimator,
    execution: Execution,
    key: jax.Array,
    num_networks: int,
    points: Points,
    progress: Progress | None,
) -> tuple[Found, Halves, np.ndarray, Execution]:
    """The eigenvectors of an ensemble, its state, the errors of its eigenvalues, all descending, and
    how it was carried out.
    """
    accumulator = make_dense(model, estimator)
    accumulate, execution = make_accumulate(
        model, estimator, accumulator, execution, batch_size(num_networks), points
    )
    how = execution, key, init_halves(accumulator), num_networks, progress
    halves, looks = accumulate_batches(accumulate, *how)
    check_finite(halves, "network: the score")
    if is_zero(halves):
        raise InputError(
            "network: its score is zero at the probe for every network; its last layer starts at "
            "zero (zero_init, zero_head), or no network sees the probe"
        )
    found = find_directions(accumulator, halves, False)
    sem = measure_errors(accumulator, looks, found.whole.directions, found.whole.symmetry)
    return found, halves, sem, execution


def _group_equal(eigenvalues: np.ndarray) -> np.ndarray:
    """The number of its group [D] for each of ascending eigenvalues: those of a group are equal but
    for rounding.
    """
    apart = np.diff(eigenvalues) > _ZERO * eigenvalues[-1]
    return np.concatenate([[0], np.cumsum(apart)])


def _overlap_bands(found: Found, edges: tuple[int, ...]) -> np.ndarray:
    """The overlaps [B] of the bands of the two halves, with the mean projection on a band over all
    bases that equal eigenvalues leave open.
    """
    groups = _group_equal(found.whole.eigenvalues[::-1])
    starts = np.searchsorted(groups, np.arange(groups[-1] + 1))
    even, odd = (half.directions[::-1].astype(np.float64) for half in (found.even, found.odd))
    squares = np.add.reduceat(np.add.reduceat((even @ odd.T) ** 2, starts, 0), starts, 1)
    overlaps = []
    for a, b in itertools.pairwise(edges):
        shares = np.bincount(groups[a:b], minlength=len(starts)) / np.bincount(groups)
        overlaps.append(shares @ squares @ shares / (b - a))
    return np.array(overlaps)
