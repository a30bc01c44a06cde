"""Exactly equal blocks: directions that the law of a network cannot tell apart.

The entries of an input are sorted into U units (pixels, patches, or the whole) of M members each
(colors, entries of a patch, all entries). Where members enter a network through a first layer with
independent weights of mean 0 that are as likely with the other sign, or through a random orthogonal
one, then f_θ(Qx) has the law of f_θ(x) for every Q that exchanges members and changes their signs,
in all units alike. Where the law of the points x is that of Qx as well, G = E[g gᵀ] is Q G Qᵀ, and
hence

    G = A ⊗ I,  A [U, U] and I [M, M]:

every eigenvalue comes M times. x = 0 is such a point, so is a fresh x ~ N(0, σ²I) for each network;
one point x ≠ 0 is not. Differences along pixels go over into each other under Q, too, so this holds
of exact gradients and of central differences of any step. Where units are exchangeable, besides,
A = αI + β11ᵀ has two eigenvalues, whatever U is. (Derived.)
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from nad_jax.errors import (
    InputError,
    check_choice,
    check_number,
    check_record,
    shown,
)
from nad_jax.points import Points, as_points, check_points
from nad_jax.spectral import orient
from nad_jax.subspaces import default_sizes
from nad_jax.symmetries import Eigenvectors, eigh_symmetric, representations, width

KINDS = ("all", "colors", "patches")
DERIVATIVES = ("input_gradient", "central_difference")
_MEMBERS = {"all": "entries of the input", "colors": "colors", "patches": "entries of a patch"}


class Alike(NamedTuple):
    """What the law of a network says of its first layer.

    kind: "all": a dense layer of all entries; "colors": a convolution; "patches": a dense layer of
      the entries of a patch, the same for all patches; of own models stated by `state_blocks`.
    patch: the side of a patch, in pixels; 0 for other kinds.
    exchangeable: whether units may be exchanged, too.
    anywhere: the derivatives whose geometry is λI at every point, without any law of points.
    layer: the name of the first layer; "" where it is not known.
    """

    kind: str
    patch: int = 0
    exchangeable: bool = False
    anywhere: tuple[str, ...] = ()
    layer: str = ""

    def check(self, input_shape: tuple[int, ...]) -> "Alike":
        """Returns itself; raises `InputError` where inputs of this shape have no such members."""
        check_choice("kind", self.kind, KINDS)
        check_choice("exchangeable", self.exchangeable, (False, True))
        shape = "×".join(map(str, input_shape))
        if self.kind == "patches":
            if len(input_shape) != 3:
                raise InputError(f"kind: 'patches' needs images [H, W, C], got inputs {shape}")
            _check_patch(self.patch, input_shape, shape)
        elif self.patch:
            raise InputError(f"patch: must be 0 for kind={self.kind!r}, got {shown(self.patch)}")
        if self.kind == "colors" and len(input_shape) < 2:
            raise InputError(f"kind: 'colors' needs an axis of channels, got vectors {shape}")
        return self


def _check_patch(patch: Any, input_shape: tuple[int, ...], shape: str) -> None:
    """Raises `InputError` unless patches of this side cover images."""
    common = math.gcd(*input_shape[:2])
    sides = [side for side in range(1, common + 1) if common % side == 0]
    if type(patch) is not int or patch not in sides:
        raise InputError(
            f"patch: must be the side of a patch, an integer that divides height and width of "
            f"{shape}: {', '.join(map(str, sides))}; got {shown(patch)}"
        )


class Blocks(NamedTuple):
    """The blocks of exactly equal eigenvalues that a geometry has.

    kind: "all", every direction is alike; "colors", those of a pixel; "patches", the entries of a
      patch; "none".
    units: [U] the lengths of their axes: () of all entries, (H, W) of colors, (H/p, W/p) of patches.
    members: M, how often every eigenvalue comes.
    exchangeable: whether A = αI + β11ᵀ.
    reason: why, in a sentence.
    image_shape: of one input.
    """

    kind: str
    units: tuple[int, ...]
    members: int
    exchangeable: bool
    reason: str
    image_shape: tuple[int, ...]

    @property
    def num_units(self) -> int:
        """U."""
        return math.prod(self.units)

    @property
    def count(self) -> int:
        """How many blocks there are: the most distinct eigenvalues; 0 where none is known."""
        if self.kind == "none":
            return 0
        return min(2, self.num_units) if self.exchangeable else self.num_units

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the `count` blocks, which are not in the order of their eigenvalues."""
        if self.exchangeable and self.num_units > 1:
            return self.members, (self.num_units - 1) * self.members
        return (self.members,) * self.count

    def __str__(self) -> str:
        if self.kind == "none":
            return f"no equal blocks: {self.reason}"
        if len({*self.sizes}) > 1:
            blocks = f"2 equal blocks, of {self.sizes[0]} and {self.sizes[1]}"
        else:
            plural = "s" * (self.count > 1)
            blocks = f"{self.count} equal block{plural} of {self.members}"
        return f"{blocks} ({self.kind}): single directions inside are arbitrary"

    def describe(self) -> dict[str, Any] | None:
        """As JSON values, for a record."""
        if self.kind == "none":
            return None
        return {
            "kind": self.kind,
            "members": self.members,
            "exchangeable": self.exchangeable,
            "reason": self.reason,
        }

    def places(self) -> np.ndarray:
        """The entries [U, M] of each unit, as places in a vector [D]."""
        entries = np.arange(math.prod(self.image_shape))
        if self.kind == "patches":
            (rows, columns), channels = self.units, self.image_shape[2]
            side = self.image_shape[0] // rows
            entries = entries.reshape(rows, side, columns, side, channels).swapaxes(1, 2)
        return entries.reshape(self.num_units, self.members)

    def average(self, matrix: np.ndarray) -> np.ndarray:
        """A [U, U] of a matrix [D, D]: the mean over members, and over exchanges of units."""
        order, size = self.places().reshape(-1), (self.num_units, self.members)
        parts = matrix[np.ix_(order, order)].reshape(*size, *size)
        return self.exchange(np.einsum("umvm->uv", parts) / self.members)

    def exchange(self, units: Any) -> Any:
        """The mean of a matrix [U, U] over exchanges of units, where they are exchangeable."""
        count = self.num_units
        if not self.exchangeable or count == 1:
            return units
        own = units.trace() / count
        others = (units.sum() / count - own) / (count - 1)
        same = np.eye(count, dtype=np.float32)
        return own * same + others * (1 - same)

    def lift(self, units: np.ndarray) -> np.ndarray:
        """A ⊗ I [D, D] of A [U, U]."""
        order, whole = self.places().reshape(-1), np.kron(units, np.eye(self.members))
        lifted = np.empty_like(whole)
        lifted[np.ix_(order, order)] = whole
        return lifted

    def eigh(self, matrix: np.ndarray, symmetries: tuple[str, ...] = ()) -> Eigenvectors:
        """All eigenvectors of the mean of a matrix [D, D] over members and symmetries.

        Those of a block follow each other, u ⊗ e_1 … u ⊗ e_M. Their labels end with "×" and its
        size.
        """
        units, names = self.average(matrix), symmetries if self.num_units > 1 else ()
        if self.exchangeable and self.num_units > 1:
            values, vectors, labels, widths = _eigh_exchangeable(units)
        else:
            shape = (*(self.units or (1,)), 1)
            values, vectors, labels, _ = eigh_symmetric(units, representations(names, shape))
            widths = [width(label) for label in labels]
        rows = np.zeros((len(units), self.members, matrix.shape[0]), np.float32)
        for member, place in enumerate(self.places().T):
            rows[:, member, place] = vectors
        pairs = zip(labels, widths, strict=True)
        labels = [f"{label}×{number * self.members}" for label, number in pairs]
        return Eigenvectors(
            np.repeat(values, self.members),
            rows.reshape(-1, len(matrix)),
            np.repeat(labels, self.members),
            float(np.trace(matrix)),
        )

    def cuts(self, symmetry: np.ndarray) -> np.ndarray:
        """The sizes of leading subspaces of whole blocks, of labels [K] of `eigh`."""
        sizes, done = [], 0
        while done < len(symmetry):
            done += width(symmetry[done])
            sizes.append(done)
        return np.array(sizes)

    def whole_sizes(self) -> tuple[int, ...]:
        """The sizes of leading subspaces of whole blocks that are reported by default; of one block
        those that any geometry has.
        """
        if self.num_units == 1:
            return default_sizes(self.members)
        if self.exchangeable and self.num_units > 1:
            return tuple(sorted({*self.sizes}))
        return tuple(self.members * size for size in default_sizes(self.num_units))


NO_BLOCKS = Blocks("none", (), 1, False, "nothing is known", ())


def _eigh_exchangeable(
    units: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, list[str], list[int]]:
    """Eigenvalues [U], eigenvectors [U, U], labels and multiplicities of αI + β11ᵀ: the mean of the
    units, and what is across it, cosines over their number.
    """
    count = len(units)
    across, along = units[0, 0] - units[0, 1], units[0, 0] + (count - 1) * units[0, 1]
    places = np.arange(count) + 0.5
    vectors = np.cos(np.pi / count * places * np.arange(count)[:, None])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    values = np.maximum([along, *[across] * (count - 1)], 0.0)
    widths = np.array([1, *[count - 1] * (count - 1)])
    order = np.argsort(-values, kind="stable")
    return values[order], orient(vectors[order]), [""] * count, widths[order].tolist()


def average_blocks(found: Eigenvectors, blocks: Blocks | None) -> Eigenvectors:
    """Eigenvectors as those of the mean over equal blocks; as they are where there are none, where
    all directions are one block, of which a mean would say nothing, and where they are the leading
    ones only.
    """
    if blocks is None or blocks.num_units == 1 or len(found.directions) < found.directions.shape[1]:
        return found
    matrix = (found.directions.T.astype(np.float64) * found.eigenvalues) @ found.directions
    return blocks.eigh(matrix)


def equal_blocks(
    model: Any,
    points: Any = None,
    *,
    derivative: str = "input_gradient",
    point: str = "shared",
    point_scale: float = 1.0,
) -> Blocks:
    """Which exactly equal blocks the geometry of a model has, known before anything is computed.

    Of the networks of the table it follows from their first layer; every initialization draws its
    weights so that it does. Of other models nothing is claimed, but for what `state_blocks` says.

    Args:
      model: at its initialization: nothing is known of trained networks.
      points, derivative, point, point_scale: as in `estimate_nads`.

    Raises:
      InputError: for what is no model, points of another shape than [P, *input_shape], and values
        out of range.
    """
    from nad_jax.models import Model  # which imports this module

    check_record("model", model, Model)
    if not callable(derivative):
        check_choice("derivative", derivative, DERIVATIVES)
    check_choice("point", point, ("shared", "fresh"))
    scale = check_number("point_scale", point_scale, 0.0)
    points = as_points(points)
    if points is not None:
        check_points(points, model.image_shape)
    return find_blocks(model, derivative, point, scale, points)


def find_blocks(
    model: Any,
    derivative: Any,
    point: str,
    point_scale: float,
    points: Points | None = None,
) -> Blocks:
    """As `equal_blocks`, of values that are checked; `derivative` may be a field of one's own."""
    alike, shape = model.alike, tuple(model.image_shape)

    def none(reason: str) -> Blocks:
        return NO_BLOCKS._replace(reason=reason, image_shape=shape)

    if alike is None:
        return none("nothing is known of the first layer of this model; `state_blocks` states it")
    if derivative not in DERIVATIVES:
        return none("nothing is known of a vector field of one's own")
    if derivative in alike.anywhere:
        reason = "at every point all directions are alike to this network"
        return make_blocks(alike, shape, reason)
    if points is not None:
        said = points.description
        point, point_scale = said.get("point", "own law"), said.get("point_scale")
    if point_scale != 0 and point != "fresh":
        return none("points other than x = 0 tell inputs apart")
    where = "x = 0" if point_scale == 0 else f"points from N(0, {point_scale:g}² I)"
    found = make_blocks(alike, shape, "")
    if found.members == 1:
        return none("the input has one color")
    reason = f"weights of the first layer are drawn alike for all {_MEMBERS[found.kind]}, and "
    reason += f"{where} do{'es' * (point_scale == 0)} not tell them apart"
    return found._replace(reason=reason)


def make_blocks(alike: Alike, input_shape: tuple[int, ...], reason: str = "") -> Blocks:
    """The blocks of a law that treats members alike, and points alike as well."""
    size = math.prod(input_shape)
    units, members = {
        "all": lambda: ((), size),
        "colors": lambda: (input_shape[:-1], input_shape[-1]),
        "patches": lambda: (
            (input_shape[0] // alike.patch, input_shape[1] // alike.patch),
            alike.patch**2 * input_shape[-1],
        ),
    }[alike.kind]()
    return Blocks(alike.kind, units, members, alike.exchangeable, reason, input_shape)


def read_blocks(config: Mapping[str, Any]) -> Blocks | None:
    """The blocks that a record says; None where it says none.

    Raises:
      InputError: for what `Blocks.describe` does not write.
    """
    said = config.get("blocks")
    if said is None:
        return None
    try:
        shape = tuple(config["image_shape"])
        side = math.isqrt(said["members"] // shape[-1]) if said["kind"] == "patches" else 0
        alike = Alike(said["kind"], side, said["exchangeable"]).check(shape)
        found = make_blocks(alike, shape, str(said["reason"]))
    except (InputError, KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"blocks: cannot be {shown(said)}") from error
    if found.members != said["members"]:
        raise InputError(f"blocks: cannot be {shown(said)} of inputs {shape}")
    return found
