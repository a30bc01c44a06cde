"""Second moments of rows that stream by, dense or sketched, behind one contract: `Accumulator`.

All sums are float32 of rows divided by a power of two that grows with the largest entry, so rows
may be of any size. Memory does not depend on their number.

Dense: the mean and the scatter about it, updated by Chan, Golub and LeVeque's pairwise formula.
Nothing cancels when the mean is large, and the centered and the uncentered moment can be read off.

Sketched: the product with a few test directions, for a D×D matrix too large to hold. It is linear
in the rows, so it streams and adds up. One pass over the rows gives leading eigenvectors of a steep
spectrum; the next pass, with them as test directions, gives better ones (randomized subspace
iteration: Halko, Martinsson and Tropp 2011, algorithm 4.4). Read off is the Nyström approximation
G ≈ Yᵀ(Q Yᵀ)⁻¹Y, Y = Q G, which is worth about one pass more than Q itself (section 5.5).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.contract import name_path
from nad_jax.errors import InputError
from nad_jax.scaling import SMALLEST, find_exponent, power_of_two
from nad_jax.symmetries import Eigenvectors, Representation, collect, eigh_symmetric, fold


class Dense(NamedTuple):
    """What is known of rows 2^exponent·g, all of it float32 but the two integers: memory D².

    count: [] number of rows, int32. exponent: [] int32, the smallest one where all rows are zero.
    mean: [D], of g. scatter: [D, D], Σ (g − mean)(g − mean)ᵀ.
    """

    count: jax.Array
    exponent: jax.Array
    mean: jax.Array
    scatter: jax.Array


class Sketch(NamedTuple):
    """What is known of rows 2^exponent·g, all of it float32 but the two integers: memory L·D.

    count: [] number of rows, int32. exponent: [] int32, the smallest one where all rows are zero.
    total: [D] Σ g. square: [] Σ ‖g‖².
    basis: [L, D] the test directions, orthonormal rows q. product: [L, D] Σ ⟨q, g⟩ g.
    """

    count: jax.Array
    exponent: jax.Array
    total: jax.Array
    square: jax.Array
    basis: jax.Array
    product: jax.Array


State = Dense | Sketch
_POWERS = {"mean": 1, "total": 1, "scatter": 2, "square": 2, "product": 2}  # of rows in each sum


Projected = tuple[int, np.ndarray, np.ndarray]


class Accumulator(NamedTuple):
    """How rows [B, D] become the eigenvectors of their second moment.

    init(basis): the state that has seen no rows; a sketch needs its test directions [L, D].
    update(state, rows, valid): adds rows [B, D]; those where `valid` [B] is False are left out,
      whatever they hold.
    merge(left, right): the state that has seen the rows of both. Associative up to rounding.
    read(state, centered): the eigenvectors of E[g gᵀ], or of the covariance, divided by count − 1:
      all of a dense one, the leading ones of a sketched one; the trace is exact.
    project(state, directions): how many rows g were seen, Σ uᵀg [K] and Σ (uᵀg)² [K] for rows u of
      `directions` [K, D], of a sketch for what of them its test directions meet; float64.
    size: the most directions that `read` gives.
    copies: how many rows it counts for each row that it is given.
    """

    init: Callable[[jax.Array | None], State]
    update: Callable[[State, jax.Array, jax.Array], State]
    merge: Callable[[State, State], State]
    read: Callable[[State, bool], Eigenvectors]
    project: Callable[[State, np.ndarray], Projected]
    size: int
    copies: int


def dense(dimension: int, representations: list[Representation]) -> Accumulator:
    """The moment as a matrix [D, D], averaged over a group when it is read.

    Args:
      dimension: D.
      representations: of that group, see `symmetries.representations`.
    """

    def read(state: Dense, centered: bool = False) -> Eigenvectors:
        return eigh_symmetric(second_moment(state, centered), representations)

    def project(state: Dense, directions: np.ndarray) -> Projected:
        count, total, square = sums_of_rows(state)
        return count, directions @ total, np.einsum("kd,kd->k", directions @ square, directions)

    def init(basis: jax.Array | None = None) -> Dense:
        del basis
        mean = jnp.zeros(dimension, jnp.float32)
        scatter = jnp.zeros((dimension, dimension), jnp.float32)
        return Dense(jnp.int32(0), jnp.int32(SMALLEST), mean, scatter)

    return Accumulator(init, _update_dense, _merge_dense, read, project, dimension, 1)


def _divided(rows: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How many rows are valid, their exponent, and the rows divided, zero where they are not."""
    count = jnp.sum(valid, dtype=jnp.int32)
    rows = jnp.where(valid[:, None], rows.astype(jnp.float32), 0.0)
    exponent = find_exponent(rows)
    return count, exponent, rows * power_of_two(-exponent)


def _align(left: State, right: State) -> tuple[State, State]:
    """The same two with one exponent, the larger of theirs."""
    exponent = jnp.maximum(left.exponent, right.exponent)

    def rescaled(state: State) -> State:
        change = state.exponent - exponent
        sums = {name: getattr(state, name) for name in state._fields if name in _POWERS}
        sums = {n: value * power_of_two(_POWERS[n] * change) for n, value in sums.items()}
        return state._replace(exponent=exponent, **sums)

    return rescaled(left), rescaled(right)


def _update_dense(state: Dense, rows: jax.Array, valid: jax.Array) -> Dense:
    count, exponent, rows = _divided(rows, valid)
    mean = rows.sum(0) / jnp.maximum(count, 1).astype(jnp.float32)
    centered = jnp.where(valid[:, None], rows - mean[None], 0.0)
    return _merge_dense(state, Dense(count, exponent, mean, centered.T @ centered))


def _merge_dense(left: Dense, right: Dense) -> Dense:
    left, right = _align(left, right)
    count = left.count + right.count
    share = right.count.astype(jnp.float32) / jnp.maximum(count, 1).astype(jnp.float32)
    delta = right.mean - left.mean
    between = jnp.outer(delta, delta) * (left.count.astype(jnp.float32) * share)
    scatter = left.scatter + right.scatter + between
    return Dense(count, left.exponent, left.mean + delta * share, scatter)


def sums_of_rows(state: Dense) -> tuple[int, np.ndarray, np.ndarray]:
    """How many rows g a state has seen, Σ g [D] and Σ g gᵀ [D, D]; float64 on the host."""
    count, unit = int(state.count), int(state.exponent)
    mean, scatter = np.asarray(state.mean, np.float64), np.asarray(state.scatter, np.float64)
    square = scatter + count * np.outer(mean, mean)
    return count, np.ldexp(count * mean, unit), np.ldexp(square, 2 * unit)


def second_moment(state: Dense, centered: bool = False) -> np.ndarray:
    """E[g gᵀ] [D, D] of the rows themselves, or their covariance; float64 on the host."""
    scatter = np.asarray(state.scatter, np.float64)
    if centered:
        moment = scatter / (int(state.count) - 1)
    else:
        mean = np.asarray(state.mean, np.float64)
        moment = scatter / int(state.count) + np.outer(mean, mean)
    return np.ldexp(moment, 2 * int(state.exponent))


def sketched(
    num_directions: int, group: np.ndarray, representations: list[Representation]
) -> Accumulator:
    """Leading eigenvectors from the product with test directions, averaged over a group.

    The eigenvalues are too small rather than too large: the Nyström approximation is below G. There
    are fewer than K where the rows seen, or what of them the test directions meet, span fewer.

    Args:
      num_directions: K; of fewer test directions there are fewer eigenvectors.
      group: permutations [S, D] of pixels; every row counts S times, moved by each of them.
      representations: of that group, see `symmetries.representations`.
    """

    def init(basis: jax.Array | None) -> Sketch:
        basis = jnp.asarray(basis, jnp.float32)
        total, square, product = jnp.zeros_like(basis[0]), jnp.float32(0), jnp.zeros_like(basis)
        return Sketch(jnp.int32(0), jnp.int32(SMALLEST), total, square, basis, product)

    def update(state: Sketch, rows: jax.Array, valid: jax.Array) -> Sketch:
        if len(group) > 1:
            rows = rows[:, group].reshape(-1, rows.shape[1])
            valid = jnp.repeat(valid, len(group))
        count, exponent, rows = _divided(rows, valid)
        product = (rows @ state.basis.T).T @ rows
        new = Sketch(count, exponent, rows.sum(0), jnp.sum(rows**2), state.basis, product)
        return _merge_sketches(state, new)

    def read(state: Sketch, centered: bool = False) -> Eigenvectors:
        basis, product, trace = _product(state, centered)
        # One representation may hold rounding alone.
        found, scale = [], np.einsum("ld,ld->l", basis, product).max()
        for one in representations:
            # Of a pair either vector meets the same matrix.
            tests, products = (
                np.concatenate([fold(part, one, turn) for turn in one.turns])
                for part in (basis, product)
            )
            found.append((one, *_nystrom(tests, products, num_directions, scale)))
        return collect(found, trace, num_directions)

    def project(state: Sketch, directions: np.ndarray) -> Projected:
        basis, product = (np.array(one, np.float64) for one in (state.basis, state.product))
        inside, unit = np.asarray(directions, np.float64) @ basis.T, int(state.exponent)
        square = np.einsum("kd,kd->k", inside @ product, inside @ basis)
        total = inside @ (basis @ np.asarray(state.total, np.float64))
        return int(state.count), np.ldexp(total, unit), np.ldexp(square, 2 * unit)

    return Accumulator(init, update, _merge_sketches, read, project, num_directions, len(group))


def random_basis(key: jax.Array, size: int, dimension: int) -> jax.Array:
    """The test directions of a first pass: `size` random orthonormal rows [L, D]."""
    if not 1 <= size <= dimension:
        raise InputError(f"size: must be in 1 … D = {dimension}, got {size}")
    return jnp.linalg.qr(jax.random.normal(key, (dimension, size), jnp.float32))[0].T


def _merge_sketches(left: Sketch, right: Sketch) -> Sketch:
    """Their test directions must be the same."""
    left, right = _align(left, right)
    added = ("count", "total", "square", "product")
    return left._replace(**{name: getattr(left, name) + getattr(right, name) for name in added})


def _product(state: Sketch, centered: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """The test directions Q [L, D], Q G [L, D] and tr G of the rows themselves; float64."""
    count, square = int(state.count), float(state.square)
    basis, product = np.array(state.basis, np.float64), np.array(state.product, np.float64)
    if centered:
        total = np.asarray(state.total, np.float64)
        product -= np.outer(basis @ total / count, total)
        square -= total @ total / count
    unit = 4.0 ** int(state.exponent) / (count - centered)
    product *= unit
    return basis, product, square * unit


def _nystrom(
    tests: np.ndarray, products: np.ndarray, most: int, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Leading eigenvalues [K] and eigenvectors [K, n] of G, from test vectors Q [L, n] and Q G.

    What is small against `scale`, an entry of Q G Qᵀ, is rounding.
    """
    core, square = tests @ products.T, products @ products.T
    values, vectors = np.linalg.eigh((core + core.T) / 2)
    kept = values > len(tests) * np.finfo(np.float32).eps * max(values[-1], scale)
    root = (vectors[:, kept] / np.sqrt(values[kept])).T  # (root Y)ᵀ(root Y) approximates G
    values, vectors = np.linalg.eigh(root @ square @ root.T)
    order = np.argsort(values)[::-1][:most]
    return values[order], ((vectors[:, order] / np.sqrt(values[order])).T @ root) @ products


class Halves(NamedTuple):
    """The second moments of either half of an ensemble, whose difference is the error of both.

    even, odd: the states of networks of even and of odd number; of one network, of its points.
    networks: [] int32, how many they are. diverged: [] int32, how many more had a row that is not
      finite and were left out.
    """

    even: State
    odd: State
    networks: jax.Array
    diverged: jax.Array


def init_halves(accumulator: Accumulator, basis: jax.Array | None = None) -> Halves:
    """The state that has seen no networks; `basis` [L, D] are the test directions of a sketch."""
    even, odd = accumulator.init(basis), accumulator.init(basis)
    return Halves(even, odd, jnp.int32(0), jnp.int32(0))


def clear_halves(accumulator: Accumulator, halves: Halves) -> Halves:
    """The state of the same kind that has seen no networks."""
    return init_halves(accumulator, getattr(halves.even, "basis", None))


def merge_halves(accumulator: Accumulator, *parts: Halves) -> Halves:
    """The state that has seen the networks of all parts, merged in this order."""

    def merge(left: Halves, right: Halves) -> Halves:
        even, odd = (accumulator.merge(*pair) for pair in zip(left[:2], right[:2], strict=True))
        return Halves(even, odd, left.networks + right.networks, left.diverged + right.diverged)

    return functools.reduce(merge, parts)


def is_zero(halves: Halves) -> bool:
    """Whether rows have been seen, and every one of them is exactly zero."""

    named = jax.tree.leaves_with_path(halves)
    sums = [leaf for path, leaf in named if _name(path).partition("_")[2] in _POWERS]
    return int(halves.networks) > 0 and not any(bool(jnp.any(leaf != 0)) for leaf in sums)


def halves_to_arrays(halves: Halves) -> dict[str, np.ndarray]:
    """The state as named NumPy arrays: even_<field>, odd_<field>, networks and diverged.

    Test directions are not among them: whoever stores a sketch has them.
    """
    return {
        _name(path): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(halves)
        if not _name(path).endswith("basis")
    }


def _name(path: tuple[Any, ...]) -> str:
    """The name of an array of `Halves`, as in "even_count"."""
    return name_path(path).replace("/", "_")


def halves_from_arrays(arrays: dict[str, Any], like: Halves) -> Halves:
    """The inverse of `halves_to_arrays`, a state like another one; other arrays are left alone.

    Raises:
      InputError: for a state of an earlier version, which did not count networks.
    """
    if "networks" not in arrays:
        raise InputError(
            "state: does not count its networks, an earlier version stored it; remove its snapshots"
        )

    def stored(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = _name(path)
        return leaf if name.endswith("basis") else jnp.asarray(arrays[name])

    return jax.tree.map_with_path(stored, like)


def pack_states(states: list[Halves]) -> dict[str, np.ndarray]:
    """States as named arrays, each under its number."""
    return {
        f"{place}_{name}": array
        for place, state in enumerate(states)
        for name, array in halves_to_arrays(state).items()
    }


def unpack_states(arrays: dict[str, np.ndarray], like: Halves) -> list[Halves]:
    """The inverse of `pack_states`, whatever the number of states; test directions are those of `like`."""
    names, count = halves_to_arrays(like), sum(name.endswith("_diverged") for name in arrays)
    return [
        halves_from_arrays({name: arrays[f"{place}_{name}"] for name in names}, like)
        for place in range(count)
    ]
