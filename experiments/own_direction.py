"""The geometry of networks each of which is trained along a direction of its own, without what
training puts there by itself; and what is to be expected of it by chance.
"""

import functools
from collections.abc import Iterable

import numpy as np

from nad_jax.subspaces import default_sizes, subspace_overlap

# Of chance geometries together. 12 networks of 64 gradients in 256 dimensions: to 2e-4.
_EIGENVECTORS = 2**13


def compare_geometry(gradients: list[np.ndarray], own: Iterable[int]) -> dict[str, np.ndarray]:
    """The overlap of the leading eigenvectors of E[g gᵀ] with the first unit vectors, its share of
    energy in their span, and both by chance, for each of `default_sizes`.

    gradients: [P, D] of each network. own: which component of each is left out; −1: none.
    """
    own, shape = tuple(own), gradients[0].shape
    second = np.zeros((shape[1],) * 2)
    for rows, index in zip(gradients, own, strict=True):
        rows = leave_out(rows.astype(np.float64), index)
        second += rows.T @ rows
    sizes = np.array(default_sizes(shape[1]))
    chance = {
        "chance": chance_overlaps(own, *shape),
        "energy_chance": chance_energies(own, shape[1]),
    }
    trace = np.trace(second)
    if not trace > 0:  # every network is dead
        nothing = np.full(len(sizes), np.nan)
        return {"size": sizes, "overlap": nothing, "energy": nothing, **chance}
    vectors = _eigenvectors(second)
    overlap = subspace_overlap(vectors, np.eye(len(second)), tuple(sizes.tolist()))
    energy = np.cumsum(np.diag(second))[sizes - 1] / trace
    return {"size": sizes, "overlap": overlap, "energy": energy, **chance}


def leave_out(rows: np.ndarray, index: int) -> np.ndarray:
    """Gradients [P, D] with one component at 0; −1: as they are."""
    return np.where(np.arange(rows.shape[1])[None] == index, 0, rows)


def chance_energies(own: Iterable[int], dimension: int) -> np.ndarray:
    """The share of the energy of isotropic gradients in the span of the first k unit vectors, in
    expectation, for each of `default_sizes`.

    Without its component i each network has (k − [i < k])/(D − 1) of it there; all have as much.
    """
    sizes = np.array(default_sizes(dimension))
    own = np.array(list(own))[:, None]
    left_out = own >= 0
    inside = sizes[None] - (left_out & (own < sizes[None]))
    return np.mean(inside / (dimension - left_out), 0)


@functools.lru_cache(maxsize=64)
def chance_overlaps(own: tuple[int, ...], num_points: int, dimension: int) -> np.ndarray:
    """The expected overlap of the leading k eigenvectors of as many independent isotropic Gaussian
    gradients with the first k unit vectors, for each of `default_sizes`: k/D where nothing is left
    out, otherwise from simulated geometries, always the same ones.

    It is below that of energies: eigenvectors shun a direction that has but little less energy.
    Directions that as many networks leave out are alike, and their mean is taken.
    """
    sizes = np.array(default_sizes(dimension))
    if max(own) < 0:
        return sizes / dimension
    rng, weights = np.random.default_rng(0), np.zeros((len(sizes), dimension))
    draws = max(1, _EIGENVECTORS // dimension)
    for _ in range(draws):
        second = np.zeros((dimension,) * 2)
        for index in own:
            rows = leave_out(rng.normal(size=(num_points, dimension)), index)
            second += rows.T @ rows
        weights += np.cumsum(_eigenvectors(second) ** 2, 0)[sizes - 1] / draws
    times = np.bincount([index for index in own if index >= 0], minlength=dimension)
    for count in np.unique(times):
        alike = times == count
        weights[:, alike] = weights[:, alike].mean(1, keepdims=True)
    return np.array([row[:size].sum() / size for row, size in zip(weights, sizes, strict=True)])


def _eigenvectors(matrix: np.ndarray) -> np.ndarray:
    """Rows in descending order of eigenvalues."""
    return np.linalg.eigh(matrix)[1].T[::-1]
