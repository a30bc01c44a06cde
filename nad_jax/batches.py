"""How sure a geometry is: second moments of independent batches of the networks, compared.

The batches of an ensemble are estimates of the same G = E[g gᵀ] that share no network. What
differs between them is the error; products of different ones are free of its bias.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from nad_jax.directions import spatial_shape
from nad_jax.moments import Accumulator, Halves, Projected, State, sums_of_rows
from nad_jax.symmetries import (
    Representation,
    all_symmetries,
    block,
    mean_of_pairs,
    representations,
)

_MOST = 8  # looks, of two halves each: errors are known to 1/√(2·15) of themselves
_LARGE = 1536  # from here on an eigendecomposition takes seconds: there are four of them


class Batches(NamedTuple):
    """What is kept of B batches of networks.

    weights:  [B] the share of each in all rows; they sum to 1.
    traces:   [B] tr G_b.
    products: [B, B] tr(G_a G_b).
    energies: [B, *space] the mean over phases and channels of vᵀ G_b v, v the real Fourier vectors
      of each frequency, in the order of `np.fft.fftfreq`.
    parts:    [B, R] what of the trace lies in each of `list_parts` of the inputs.
    groups:   [J] the shares of groups of batches, in all rows; four groups where D is large.
    spectra:  [J + 1, D] the eigenvalues of the mean of all batches, and of that without each group,
              descending. [0, D] of a single batch, which has no groups.
    """

    weights: np.ndarray
    traces: np.ndarray
    products: np.ndarray
    energies: np.ndarray
    parts: np.ndarray
    groups: np.ndarray
    spectra: np.ndarray


EARLY = ("weights", "traces", "products", "energies")  # what records have had longer than the rest


def list_parts(image_shape: tuple[int, ...]) -> list[Representation]:
    """The representations of all symmetries that inputs of this shape may have."""
    return representations(all_symmetries(image_shape), image_shape)


def part_energies(matrix: np.ndarray, parts: list[Representation]) -> np.ndarray:
    """What of the trace of G [D, D] lies in each representation: [R], tr(P_r G)."""
    energies = []
    for one in parts:
        moved = zip(one.signs, one.moved, strict=True)
        signed = [(sign, turn, turn[place]) for sign, place in moved for turn in one.turns]
        total = sum(
            sign * matrix[rows, columns].sum(dtype=np.float64) for sign, rows, columns in signed
        )
        energies.append(total / len(one.signs))
    return np.array(energies)


def spectra_without(
    blocks: list[tuple[np.ndarray, int]], weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues of the weighted mean of matrices, and without one group of them: the weights
    [J] of the groups, and [J + 1, D], descending.

    Args:
      blocks: [B, n, n] of each representation, and how many times its eigenvalues count.
      weights: [B], which sum to 1.
    """
    largest = max(len(matrices[0]) for matrices, _ in blocks)
    count = len(weights) if largest < _LARGE else min(4, len(weights))
    places = np.arange(len(weights)) * count // len(weights)
    groups = np.bincount(places, weights)
    if count < 2:
        return np.zeros(0), np.zeros((0, sum(len(one[0]) * times for one, times in blocks)))
    spectra = []
    for group in range(-1, count):
        kept = weights * (places != group)
        kept /= kept.sum()
        means = [(_mean(matrices, kept), times) for matrices, times in blocks]
        values = [np.repeat(np.linalg.eigvalsh(mean), times) for mean, times in means]
        spectra.append(np.maximum(np.sort(np.concatenate(values))[::-1], 0.0))
    return groups, np.stack(spectra)


def _mean(matrices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ w_b M_b in float64, without copies of all matrices [B, n, n]."""
    return sum(weight * one for weight, one in zip(weights, matrices, strict=True) if weight)


def frequency_energies(matrix: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
    """The mean over phases and channels of vᵀ G v for the real Fourier vectors v of each frequency.

    Args:
      matrix: G [D, D].

    Returns: [*space], in the order of `np.fft.fftfreq` along each axis.
    """
    space = spatial_shape(image_shape)
    count = int(np.prod(space))
    channels = len(matrix) // count
    alike = np.einsum("ncmc->nm", matrix.reshape(count, channels, count, channels))
    # Sums over all pairs of places that are as far apart, whose spectrum is that of the energies.
    places = np.indices(space).reshape(len(space), count)
    apart = (places[:, :, None] + places[:, None, :]) % np.array(space)[:, None, None]
    pairs = np.take_along_axis(alike, np.ravel_multi_index(tuple(apart), space), 1)
    sums = pairs.sum(0, dtype=np.float64)
    return np.fft.fftn(sums.reshape(space)).real / (count * channels)


def average_map(energies: np.ndarray, symmetries: tuple[str, ...]) -> np.ndarray:
    """A map over frequencies [*space] as that of the mean of P G Pᵀ over a group of symmetries."""
    if "flip" in symmetries:
        for axis in range(energies.ndim):
            # Frequency −f stands at place −k modulo the length.
            mirrored = np.roll(np.flip(energies, axis), 1, axis)
            energies = (energies + mirrored) / 2
    return (energies + energies.T) / 2 if "transpose" in symmetries else energies


def thin_looks(looks: list[Halves]) -> list[Halves]:
    """Eight looks at an ensemble at most, about evenly spaced, the last one included."""
    places = np.linspace(0, len(looks), min(_MOST, len(looks)) + 1).round().astype(int)[1:] - 1
    return [looks[place] for place in places]


def add_look(looks: list[Halves], halves: Halves) -> list[Halves]:
    """The looks and one more; where they are many, every other one is dropped."""
    return [*(looks if len(looks) < 4 * _MOST else looks[1::2]), halves]


def _differences(
    looks: list[Halves], sums: Callable[[State], Projected], centered: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """How many rows were added between looks, of networks of even and of odd number apart, and
    their mean square, or variance.

    Args:
      sums: the number of rows that a state has seen, their sum and the sum of their squares.
    """
    for half in ("even", "odd"):
        before = (0, 0.0, 0.0)
        for look in looks:
            after = sums(getattr(look, half))
            count, total, square = (one - other for one, other in zip(after, before, strict=True))
            if count > centered:  # a batch without rows says nothing
                mean, moment = total / count, square / count
                if centered:
                    spread = np.outer(mean, mean) if moment.ndim == 2 else mean**2
                    moment = (moment - spread) * (count / (count - 1))
                yield count, moment
                before = after


def measure_errors(
    accumulator: Accumulator,
    looks: list[Halves],
    directions: np.ndarray,
    symmetry: np.ndarray,
    centered: bool = False,
) -> np.ndarray:
    """The standard errors [K] of uᵀGu, u rows of `directions` [K, D] and `symmetry` [K] their
    representations, from what batches of the networks differ in.

    Args:
      looks: states, each of which has seen the networks of the one before and more.
      centered: whether G is the covariance.
    """

    def project(state: State) -> Projected:
        return accumulator.project(state, directions)

    counts, energies = zip(*_differences(thin_looks(looks), project, centered), strict=True)
    energies = np.stack([mean_of_pairs(one, symmetry) for one in energies])
    return standard_error(energies, np.array(counts) / sum(counts))


def measure_batches(
    looks: list[Halves],
    image_shape: tuple[int, ...],
    representations: list[Representation],
    symmetries: tuple[str, ...] = (),
    centered: bool = False,
) -> Batches:
    """What is kept of batches of the networks of dense states.

    Args:
      looks, centered: as in `measure_errors`.
      representations, symmetries: of the group that the geometry is averaged over.
    """
    # Divided, so that squares are float32 numbers whatever the size of the rows.
    unit = 2 * max(int(look.exponent) for look in looks[-1][:2])
    counts, matrices = [], []
    for count, moment in _differences(thin_looks(looks), sums_of_rows, centered):
        counts.append(count)
        matrices.append(np.ldexp(moment, -unit).astype(np.float32))
    found = summarize(matrices, np.array(counts), image_shape, representations, symmetries)
    scaled = {name: np.ldexp(getattr(found, name), unit) for name in _OF_ROWS_SQUARED}
    return found._replace(products=np.ldexp(found.products, 2 * unit), **scaled)


_OF_ROWS_SQUARED = ("traces", "energies", "parts", "spectra")


def summarize(
    matrices: list[np.ndarray],
    counts: np.ndarray,
    image_shape: tuple[int, ...],
    representations: list[Representation],
    symmetries: tuple[str, ...] = (),
) -> Batches:
    """What is kept of the second moments [D, D] of batches.

    Args:
      counts: [B] the rows of each.
      representations, symmetries: of the group that the geometry is averaged over.
    """
    traces = np.array([np.trace(matrix, dtype=np.float64) for matrix in matrices])
    maps = [average_map(frequency_energies(one, image_shape), symmetries) for one in matrices]
    all_parts = list_parts(image_shape)
    parts = np.stack([part_energies(one, all_parts) for one in matrices])
    products, blocks = np.zeros((len(matrices), len(matrices))), []
    for one in representations:
        flat = np.stack([block(matrix, one).reshape(-1) for matrix in matrices])
        products += len(one.turns) * (flat @ flat.T)
        blocks.append((flat.reshape(len(matrices), *[len(one.seeds)] * 2), len(one.turns)))
    weights = counts / counts.sum()
    without = spectra_without(blocks, weights)
    return Batches(weights, traces, products, np.stack(maps), parts, *without)


def jackknife(whole: float, without: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """A function of a mean, freed from its bias of first order, and its standard error.

    Args:
      whole: its value at the mean of all groups. without: [J] its values without one of each.
      groups: [J] their weights, which sum to 1.

    Source: Busing, Meijer and van der Leeden 1999, the delete-m_j jackknife. nan of fewer than two
    groups.
    """
    if len(groups) < 2:
        return float("nan"), float("nan")
    value = len(groups) * whole - ((1 - groups) * without).sum()
    pseudo = (whole - (1 - groups) * without) / groups
    variance = np.mean((pseudo - value) ** 2 * groups / (1 - groups))
    return float(value), float(np.sqrt(variance))


def standard_error(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The standard error [...] of the weighted mean of independent values [B, ...], whose variances
    are in inverse proportion to the weights [B], which sum to 1; nan of a single one.
    """
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    deviations = values - np.tensordot(weights, values, 1)
    return np.sqrt(np.tensordot(weights, deviations**2, 1) / (len(values) - 1))


def average_products(batches: Batches, values: np.ndarray, kept: np.ndarray) -> float:
    """The weighted mean of values [B, B] of pairs of different batches, of those that are kept [B],
    up to a factor of the weights: an estimate of a square that few networks do not bias.
    """
    weights = batches.weights * kept
    pairs = np.outer(weights, weights)
    np.fill_diagonal(pairs, 0.0)
    return float((pairs * values).sum())


def error_of_pairs(values: np.ndarray) -> float:
    """The standard error of the mean of values [B, B] of pairs of different batches, symmetric and
    of mean 0; nan of fewer than four.

    A pair differs by what either batch does, l_a + l_b, and by what the two have in common, d_ab:
    the variance of the mean is 4 σ_l²/B + 2 σ_d²/(B (B − 1)) (Hoeffding's decomposition). A
    jackknife counts the last part twice. Where it is all there is, this is some 15 % too large.
    """
    count = len(values)
    if count < 4:
        return float("nan")
    values = values - np.diag(np.diag(values))
    own = values.sum(1) / (count - 2)
    rest = values - own[:, None] - own[None]
    np.fill_diagonal(rest, 0.0)
    common = (rest**2).sum() / (count * (count - 3))
    alone = (own**2).sum() / (count - 1) - common * (count - 1) / (count - 2) ** 2
    return float(np.sqrt(4 * max(alone, 0.0) / count + 2 * common / (count * (count - 1))))
