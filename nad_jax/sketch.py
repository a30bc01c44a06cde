"""Leading eigenvectors of a second moment too large to hold, from its product with a few test
directions.

The product is linear in the rows: it streams, and sketches of the same test directions add up, like
the moments of `covariance`. One pass over the rows gives leading eigenvectors of a steep spectrum;
the next pass, with them as test directions, gives better ones (randomized subspace iteration:
Halko, Martinsson and Tropp 2011, algorithm 4.4). Read off is the Nyström approximation G ≈ Yᵀ(Q
Yᵀ)⁻¹Y, Y = Q G, which is worth about one pass more than Q itself (section 5.5). As in `covariance`,
the sums are of rows divided by a power of two: rows may be of any size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.errors import InputError
from nad_jax.scaling import SMALLEST, find_exponent, power_of_two
from nad_jax.symmetries import Representation, collect, fold


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


def init(basis: jax.Array) -> Sketch:
    """The state that has seen no rows; `basis` [L, D] are orthonormal rows."""
    basis = jnp.asarray(basis, jnp.float32)
    total, product = jnp.zeros(basis.shape[1], jnp.float32), jnp.zeros(basis.shape, jnp.float32)
    return Sketch(jnp.int32(0), jnp.int32(SMALLEST), total, jnp.float32(0), basis, product)


def random_basis(key: jax.Array, size: int, dimension: int) -> jax.Array:
    """The test directions of a first pass: `size` random orthonormal rows [L, D]."""
    if not 1 <= size <= dimension:
        raise InputError(f"size: must be in 1 … D = {dimension}, got {size}")
    return jnp.linalg.qr(jax.random.normal(key, (dimension, size), jnp.float32))[0].T


def update(sketch: Sketch, rows: jax.Array, valid: jax.Array) -> Sketch:
    """Adds rows [B, D]; those where `valid` [B] is False are left out, whatever they hold."""
    rows = jnp.where(valid[:, None], rows.astype(jnp.float32), 0.0)
    exponent = find_exponent(rows)
    rows = rows * power_of_two(-exponent)
    new = sketch._replace(
        count=jnp.sum(valid, dtype=jnp.int32),
        exponent=exponent,
        total=rows.sum(0),
        square=jnp.sum(rows**2),
        product=(rows @ sketch.basis.T).T @ rows,
    )
    return merge(sketch, new)


def _rescale(sketch: Sketch, exponent: jax.Array) -> Sketch:
    """The same rows under a larger exponent."""
    change = sketch.exponent - exponent
    once, twice = power_of_two(change), power_of_two(2 * change)
    return sketch._replace(
        exponent=exponent,
        total=sketch.total * once,
        square=sketch.square * twice,
        product=sketch.product * twice,
    )


def merge(left: Sketch, right: Sketch) -> Sketch:
    """The state that has seen the rows of both; their test directions must be the same."""
    exponent = jnp.maximum(left.exponent, right.exponent)
    left, right = _rescale(left, exponent), _rescale(right, exponent)
    return left._replace(
        count=left.count + right.count,
        total=left.total + right.total,
        square=left.square + right.square,
        product=left.product + right.product,
    )


class Leading(NamedTuple):
    """Leading eigenvectors and what is known of the rest.

    eigenvalues, directions, symmetry: [K], see `symmetries.Eigenvectors`. trace: of the whole
      second moment, exact.
    """

    eigenvalues: np.ndarray
    directions: np.ndarray
    symmetry: np.ndarray
    trace: float


def leading(
    sketch: Sketch,
    num_directions: int,
    representations: list[Representation],
    centred: bool = False,
) -> Leading:
    """Leading eigenvectors of the second moment, or of the covariance, of the rows seen; float64 on
    the host.

    They are those within each representation of the group that the rows were averaged over.

    The eigenvalues are too small rather than too large: the Nyström approximation is below G. There
    are fewer than K where the rows seen, or what of them the test directions meet, span fewer.

    Args:
      num_directions: K in 1 … L.
      representations: of that group, see `symmetries.representations`.
      centred: of the covariance Σ (g − mean)(g − mean)ᵀ/(count − 1) instead of Σ g gᵀ/count.

    Raises:
      InputError: for a bad K.
    """
    size = len(sketch.basis)
    if not 1 <= num_directions <= size:
        raise InputError(
            f"num_directions: must be in 1 … {size} test directions, got {num_directions}"
        )
    basis, product, trace = _moment(sketch, centred)
    found, scale = (
        [],
        np.einsum("ld,ld->l", basis, product).max(),
    )  # one representation may hold rounding alone
    for one in representations:
        sides = (
            (False,) if one.turn is None else (False, True)
        )  # of a pair either vector meets the same matrix
        tests, products = (
            np.concatenate([fold(part, one, side) for side in sides]) for part in (basis, product)
        )
        found.append((one, *_nystrom(tests, products, num_directions, scale)))
    return Leading(*collect(found, num_directions), trace)


def _nystrom(
    tests: np.ndarray, products: np.ndarray, most: int, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Leading eigenvalues [K] and eigenvectors [K, n] of G, from test vectors Q [L, n] and their
    products Q G.

    What is small against `scale`, an entry of Q G Qᵀ, is rounding.
    """
    core, square = tests @ products.T, products @ products.T
    values, vectors = np.linalg.eigh((core + core.T) / 2)
    kept = values > len(tests) * np.finfo(np.float32).eps * max(values[-1], scale)
    root = (
        vectors[:, kept] / np.sqrt(values[kept])
    ).T  # (root Y)ᵀ(root Y) is the approximation of G
    values, vectors = np.linalg.eigh(root @ square @ root.T)
    order = np.argsort(values)[::-1][:most]
    return values[order], ((vectors[:, order] / np.sqrt(values[order])).T @ root) @ products


def energies(sketch: Sketch, directions: np.ndarray, centred: bool = False) -> np.ndarray:
    """uᵀ G u for rows u of `directions` [K, D], of what of them lies in the span of the test
    directions: [K].
    """
    basis, product, _ = _moment(sketch, centred)
    inside = np.asarray(directions, np.float64) @ basis.T
    return np.einsum("kd,kd->k", inside @ product, inside @ basis)


def _moment(sketch: Sketch, centred: bool) -> tuple[np.ndarray, np.ndarray, float]:
    """The test directions Q [L, D], Q G [L, D] and tr G of the rows themselves, centred or not;
    float64.
    """
    count, square = int(sketch.count), float(sketch.square)
    basis, product = np.array(sketch.basis, np.float64), np.array(sketch.product, np.float64)
    if centred:
        total = np.asarray(sketch.total, np.float64)
        product -= np.outer(basis @ total / count, total)
        square -= total @ total / count
    unit = 4.0 ** int(sketch.exponent) / (count - centred)
    product *= unit
    return basis, product, square * unit
