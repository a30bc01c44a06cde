"""How sure a geometry is: second moments of independent batches of the networks, compared.

The batches of an ensemble are estimates of the same G = E[g gᵀ] that share no network. What
differs between them is the error; products of different ones are free of its bias.
"""

from typing import NamedTuple

import numpy as np

from nad_jax.directions import spatial_shape
from nad_jax.symmetries import Representation, block


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


def summarize(
    matrices: list[np.ndarray],
    weights: np.ndarray,
    image_shape: tuple[int, ...],
    representations: list[Representation],
    symmetries: tuple[str, ...],
) -> Batches:
    """What is kept of the second moments [D, D] of batches.

    Args:
      weights: [B], in proportion to the rows of each.
      representations, symmetries: of the group that the geometry is averaged over.
    """
    traces = np.array([np.trace(matrix) for matrix in matrices])
    maps = [average_map(frequency_energies(one, image_shape), symmetries) for one in matrices]
    products = np.zeros((len(matrices), len(matrices)))
    for one in representations:
        blocks = np.stack([block(matrix, one).reshape(-1) for matrix in matrices])
        products += (1 if one.turn is None else 2) * (blocks @ blocks.T)
    return Batches(weights / weights.sum(), traces, products, np.stack(maps))


def standard_error(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The standard error [...] of the weighted mean of independent values [B, ...], whose variances
    are in inverse proportion to the weights [B], which sum to 1; nan of a single one.
    """
    if len(values) < 2:
        return np.full(values.shape[1:], np.nan)
    deviations = values - np.tensordot(weights, values, 1)
    return np.sqrt(np.tensordot(weights, deviations**2, 1) / (len(values) - 1))


def isotropy(batches: Batches, dimension: int) -> tuple[float, float]:
    """(tr G)² / (D tr G²) and its standard error (jackknife over batches): 1 where no direction is
    preferred, 1/D where there is only one.

    Products of different batches alone are used, so the few networks do not bias it.
    """

    def ratio(kept: np.ndarray) -> float:
        pairs = np.outer(batches.weights, batches.weights) * np.outer(kept, kept)
        np.fill_diagonal(pairs, 0.0)
        squares = np.outer(batches.traces, batches.traces)
        return float((pairs * squares).sum() / (dimension * (pairs * batches.products).sum()))

    count = len(batches.weights)
    value = ratio(np.ones(count))
    if count < 4:
        return value, float("nan")
    left_out = np.array([ratio(1.0 - np.eye(count)[b]) for b in range(count)])
    return value, float(np.sqrt((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum()))
