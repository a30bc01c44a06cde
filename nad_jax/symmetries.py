"""Symmetries of the grid of inputs that the law of a randomly initialized network has, and what
they are worth.

Let P move the entries of an input, the pixels of an image say, and let f_θ(Px), θ drawn at random,
have the law of f_θ(x): kernels reversed or transposed are just as likely where their entries are
independent. Then E[g gᵀ] at the point Px is P E[g gᵀ] Pᵀ, and the mean of P G Pᵀ over the group of
all P estimates E[g gᵀ] averaged over the points Px, with the error that several times as many
networks would leave. (Derived here; the group average is a Rao–Blackwell estimate. At the origin,
where Px = x, it is that of E[g gᵀ] itself. Ties of max-pooling there, which go to the first entry,
break the symmetry of exact gradients.)

A matrix that does not change under the group maps each of its representations to itself. Its
eigenvectors are taken from there, one representation after the other: eigenvalues that are equal by
symmetry then do not leave them open.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nad_jax.errors import InputError
from nad_jax.spectral import eigh, orient

SYMMETRIES = ("flip", "transpose")


def check_symmetries(
    names: tuple[str, ...] | None, image_shape: tuple[int, ...]
) -> tuple[str, ...]:
    """The names as a tuple, each once; `InputError` for one that is unknown or not of inputs of
    this shape: "flip" needs an axis besides that of channels, "transpose" square images.
    """
    names = () if names is None else names
    names = tuple(dict.fromkeys(names)) if isinstance(names, tuple | list) else (names,)
    for name in names:
        if name not in SYMMETRIES:
            raise InputError(f"symmetries: must be among {', '.join(SYMMETRIES)}, got {name!r}")
    shape = "×".join(map(str, image_shape))
    if "flip" in names and len(image_shape) < 2:
        raise InputError(
            f"symmetries: 'flip' needs signals, images or volumes, got vectors {shape}"
        )
    if "transpose" in names and (len(image_shape) != 3 or image_shape[0] != image_shape[1]):
        raise InputError(f"symmetries: 'transpose' needs square images, got inputs {shape}")
    return names


def all_symmetries(image_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Those of `SYMMETRIES` that inputs of this shape may have."""
    square = len(image_shape) == 3 and image_shape[0] == image_shape[1]
    return SYMMETRIES if square else ("flip",) if len(image_shape) > 1 else ()


def permutations(names: tuple[str, ...], image_shape: tuple[int, ...]) -> np.ndarray:
    """The group that symmetries generate, as permutations [S, D]: x[p] is the input with its
    entries moved by p.

    Args:
      names: of `SYMMETRIES`: "flip" reverses any of the A axes but that of channels, for images the
        rows, the columns or both; "transpose" exchanges the rows and columns of an image. S is 1,
        2^A with "flip", 2 with "transpose", 8 with both.
      image_shape: (D,), (L, C), (H, W, C) or (T, H, W, C).

    Raises:
      InputError: as `check_symmetries`.
    """
    names = check_symmetries(names, image_shape)
    inputs = [np.arange(np.prod(image_shape)).reshape(image_shape)]
    if "flip" in names:
        for axis in range(len(image_shape) - 1):
            inputs += [np.flip(x, axis) for x in inputs]
    if "transpose" in names:
        inputs = [turned for x in inputs for turned in (x, x.swapaxes(0, 1))]
    return np.stack([x.reshape(-1) for x in inputs])


def _characters(count: int) -> dict[str, np.ndarray]:
    """What each reversal of axes, in the order of `permutations`, multiplies vectors by that have
    these signs under the reversal of each axis: "++", "+−", "−+", "−−" for two.
    """
    factors = {"+": [1, 1], "−": [1, -1]}  # of an axis as it is, and reversed
    one = np.ones(1, int)
    return {
        "".join(signs): functools.reduce(np.kron, [factors[s] for s in reversed(signs)], one)
        for signs in itertools.product(factors, repeat=count)
    }


class Representation(NamedTuple):
    """Vectors that a group of permutations changes in one way, and coordinates of them.

    label: with "flip" and "transpose" A1, A2, B1, B2 or E, of the symmetries of the square (B1 does
      not change under reversals, B2 not under transposition); with "flip" the signs under reversal
      of each axis, "+" and "−" for signals, of rows and of columns "++" … "−−" for images, "+++" …
      for volumes; with "transpose" alone "+" or "−"; without symmetries "".
    moved: [S, D] permutations, and signs: [S] what each of them multiplies the vectors by.
    seeds: [n] an entry of each set of entries that are moved to each other; the coordinates of a
      vector belong to them.
    norms: [n] of the signed sums of such sets.
    turns: [1, D] the identity; where there are pairs of vectors (E) [2, D]: the second of each is
      u[turns[1]] of the first, up to its sign.
    """

    label: str
    moved: np.ndarray
    signs: np.ndarray
    seeds: np.ndarray
    norms: np.ndarray
    turns: np.ndarray


def representations(names: tuple[str, ...], image_shape: tuple[int, ...]) -> list[Representation]:
    """Those of the group of `permutations`, without the ones that have no vectors of this shape;
    raises as it does.

    Of the pairs of E the first is the one that does not change under transposition.
    """
    moved = permutations(names, image_shape)
    reversals = _characters(len(image_shape) - 1)
    if {*names} == {"flip", "transpose"}:
        labels = {"A1": ("++", 1), "A2": ("−−", -1), "B1": ("++", -1), "B2": ("−−", 1)}
        found = [
            _represent(label, moved, np.kron(reversals[sign], [1, exchanged]))
            for label, (sign, exchanged) in labels.items()
        ]
        # What E leaves of the group to its first vectors: both reversals at once, and
        # transposition.
        kept = moved.reshape(4, 2, -1)[[0, 3]].reshape(4, -1)
        found.append(_represent("E", kept, [1, 1, -1, -1], moved[3]))
    elif "flip" in names:
        found = [_represent(sign, moved, signs) for sign, signs in reversals.items()]
    elif "transpose" in names:
        found = [_represent("+", moved, [1, 1]), _represent("−", moved, [1, -1])]
    else:
        found = [_represent("", moved, [1])]
    return [representation for representation in found if len(representation.seeds)]


def _represent(
    label: str, moved: np.ndarray, signs: Sequence[int], *turns: np.ndarray
) -> Representation:
    """The representation of these signs; `turns` as in `Representation`, without the identity."""
    signs = np.asarray(signs)
    pixels = np.arange(moved.shape[1])
    squares = len(moved) * (signs[:, None] * (moved == pixels)).sum(0)  # zero where signs cancel
    seeds = np.flatnonzero((moved.min(0) == pixels) & (squares > 0))
    turns = np.stack([pixels, *turns])
    return Representation(label, moved, signs, seeds, np.sqrt(squares[seeds]), turns)


def fold(rows: np.ndarray, representation: Representation, turn: np.ndarray) -> np.ndarray:
    """The coordinates [..., n] of rows [..., D] in a representation: of first or of second vectors,
    up to the sign, for a `turn` of its `turns`.
    """
    places = turn[representation.moved[:, representation.seeds]]
    signed = zip(representation.signs, places, strict=True)
    return sum(sign * rows[..., place] for sign, place in signed) / representation.norms


def unfold(coordinates: np.ndarray, representation: Representation) -> np.ndarray:
    """The rows [K, D] of coordinates [K, n] in a representation, each followed by its second vector
    where it has one.

    The first entry within 1e-6 of the largest is positive.
    """
    _, moved, signs, seeds, norms, turns = representation
    rows = np.zeros((len(coordinates), moved.shape[1]))
    for sign, place in zip(signs, moved[:, seeds], strict=True):
        rows[:, place] += sign * (coordinates / norms)
    return np.stack([orient(rows[:, turn]) for turn in turns], axis=1).reshape(-1, rows.shape[1])


def block(matrix: np.ndarray, representation: Representation) -> np.ndarray:
    """The mean of P M Pᵀ over the group in a representation, [n, n], for a matrix M [D, D]."""
    if len(representation.moved) == 1:  # the identity
        return matrix

    turns = representation.turns
    parts = [fold(fold(matrix, representation, t).T, representation, t).T for t in turns]
    return sum(parts) / len(parts)


class Eigenvectors(NamedTuple):
    """Eigenvectors of a matrix that does not change under a group, taken from its representations:
    all of them or the leading ones.

    eigenvalues: [K] descending, float64. directions: [K, D] unit rows, float32. symmetry: [K] the
      labels of the representations; the two of a pair follow each other.
    trace: of the whole matrix.
    """

    eigenvalues: np.ndarray
    directions: np.ndarray
    symmetry: np.ndarray
    trace: float


def eigh_symmetric(matrix: np.ndarray, representations: list[Representation]) -> Eigenvectors:
    """All eigenvectors of the mean of P M Pᵀ over a group, for a positive semi-definite matrix M
    [D, D].

    A direction is determined where its eigenvalue is apart from both neighbors in its
    representation. See `spectral.eigh` for precision, rounding and what is raised; see `unfold` for
    signs.
    """
    scale = np.abs(matrix).max()  # in a representation of its own there may be nothing but rounding
    found = [(one, *eigh(block(matrix, one), scale)) for one in representations]
    return collect(found, float(np.trace(matrix)))


def collect(
    found: list[tuple[Representation, np.ndarray, np.ndarray]],
    trace: float,
    most: int | None = None,
) -> Eigenvectors:
    """The `most` leading ones of what was found, eigenvalues [n] and coordinates [n, ·] in each
    representation.
    """
    repeated = [np.repeat(values, len(one.turns)) for one, values, _ in found]
    smallest = np.sort(np.concatenate(repeated))[::-1][:most].min(initial=np.inf)
    parts = []
    for one, values, coordinates in found:
        kept = values >= smallest
        rows = unfold(coordinates[kept], one).astype(np.float32)
        values = np.repeat(values[kept], len(one.turns))
        parts.append((values, rows, np.full(len(values), one.label)))
    eigenvalues, directions, symmetry = map(np.concatenate, zip(*parts, strict=True))
    order = np.argsort(-eigenvalues, kind="stable")[:most]  # stable: a pair stays together
    return Eigenvectors(eigenvalues[order], directions[order], symmetry[order], trace)


def width(label: str) -> int:
    """How many eigenvalues are equal by symmetry in a representation: 2 in pairs (E), and what
    stands behind "×" in exactly equal blocks.
    """
    size = label.partition("×")[2]
    return int(size) if size else 1 + (label == "E")


def mean_of_pairs(energies: np.ndarray, symmetry: np.ndarray) -> np.ndarray:
    """Quadratic forms [K] of M as those of the mean of P M Pᵀ: the two of each pair (E), and those
    of each block, get their mean.
    """
    energies = energies.copy()
    for label in np.unique(symmetry):
        size, places = width(label), np.flatnonzero(symmetry == label)
        # Leading ones may end in the middle of a pair.
        groups = places[: len(places) // size * size].reshape(-1, size)
        energies[groups] = energies[groups].mean(1, keepdims=True)
    return energies
