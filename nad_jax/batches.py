"""How sure a geometry is: second moments of independent batches of the networks, compared.

The batches of an ensemble are estimates of the same G = E[g gᵀ] that share no network. What
differs between them is the error; products of different ones are free of its bias.
"""

from typing import NamedTuple

import numpy as np

from nad_jax.directions import spatial_shape
from nad_jax.moments import Halves, sums_of_rows
from nad_jax.symmetries import Representation, block

_MOST = 8  # looks, of two halves each: errors are known to 1/√(2·15) of themselves


class Batches(NamedTuple):
    """What is kept of B batches of networks.

    weights:  [B] the share of each in all rows; they sum to 1.
    traces:   [B] tr G_b.
    products: [B, B] tr(G_a G_b).
    energies: [B, *space] the mean over phases and channels of vᵀ G_b v, v the real Fourier vectors
      of each frequency, in the order of `np.fft.fftfreq`.
    """

    weights: np.ndarray
    traces: np.ndarray
    products: np.ndarray
    energies: np.ndarray


def frequency_energies(matrix: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
    """The mean over phases and channels of vᵀ G v for the real Fourier vectors v of each frequency.

    Args:
      matrix: G [D, D].

    Returns: [*space], in the order of `np.fft.fftfreq` along each axis.
    """
    space = spatial_shape(image_shape)
    channels, axes = matrix.shape[0] // int(np.prod(space)), range(len(space))
    total = np.zeros(space)
    both = matrix.reshape(*space, channels, *space, channels)
    for channel in range(channels):
        one = both.take(channel, axis=len(space)).take(channel, axis=-1)
        left = np.fft.fftn(one, axes=axes)
        spectrum = np.fft.ifftn(left, axes=[axis + len(space) for axis in axes])
        count = int(np.prod(space))
        total += np.diagonal(spectrum.reshape(count, count)).real.reshape(space)
    return total / channels


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


def split_moments(looks: list[Halves], centered: bool) -> tuple[list[np.ndarray], np.ndarray]:
    """The second moments [D, D] of the networks that were added between looks at an ensemble, those
    of even and of odd number apart, and how many rows are behind each: [B].

    Args:
      looks: dense states, each of which has seen the networks of the one before and more.
      centered: whether they are covariances.
    """
    matrices, counts = [], []
    for half in ("even", "odd"):
        count, total, square = 0, 0.0, 0.0
        for look in looks:
            after = sums_of_rows(getattr(look, half))
            rows = after[0] - count
            if rows > centered:  # a batch without rows says nothing
                mean = (after[1] - total) / rows
                matrix = (after[2] - square) / rows
                if centered:
                    matrix = (matrix - np.outer(mean, mean)) * (rows / (rows - 1))
                matrices.append(matrix.astype(np.float32))
                counts.append(rows)
                count, total, square = after
    return matrices, np.array(counts, np.float64)


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
    products = np.zeros((len(matrices), len(matrices)))
    for one in representations:
        blocks = np.stack([block(matrix, one).reshape(-1) for matrix in matrices])
        products += len(one.turns) * (blocks @ blocks.T)
    return Batches(counts / counts.sum(), traces, products, np.stack(maps))


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
