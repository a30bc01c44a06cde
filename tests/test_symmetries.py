import contextlib
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import (
    create_model,
    directional_energy,
    estimate_leading_nads,
    estimate_nads,
    from_functions,
    subspace_overlap,
)
from nad_jax.architectures import ARCHITECTURES
from nad_jax.choices import Estimator, check_symmetrized
from nad_jax.errors import InputError
from nad_jax.moments import random_basis, sketched
from nad_jax.symmetries import eigh_symmetric, permutations, representations

MOVES = {
    "flip": (
        lambda array: array[::-1],
        lambda array: array[:, ::-1],
        lambda array: array[::-1, ::-1],
    ),
    "transpose": (lambda array: array.swapaxes(0, 1),),
}


@pytest.mark.parametrize(
    ("names", "size"), [((), 1), (("flip",), 4), (("transpose",), 2), (("flip", "transpose"), 8)]
)
def test_permutations_are_the_group_of_moves(names, size):
    shape = (4, 4, 3)
    group = permutations(names, shape)
    assert len({tuple(moved) for moved in group}) == len(group) == size
    assert {tuple(left[right]) for left in group for right in group} == {
        tuple(moved) for moved in group
    }
    image = np.random.default_rng(0).standard_normal(shape)
    found = {tuple(image.reshape(-1)[moved]) for moved in group}
    assert {tuple(move(image).reshape(-1)) for name in names for move in MOVES[name]} <= found


def _mean(matrix, names, shape):
    """The mean of P M Pᵀ over a group."""
    return np.mean([matrix[np.ix_(moved, moved)] for moved in permutations(names, shape)], axis=0)


# How the vectors of a representation change under reversal of rows, of columns, and under exchange
# of both (None: not into a multiple of themselves).
CHARACTERS = {
    ("flip", "transpose"): {
        "A1": (1, 1, 1),
        "A2": (-1, -1, -1),
        "B1": (1, 1, -1),
        "B2": (-1, -1, 1),
    },
    ("flip",): {"++": (1, 1, None), "+−": (1, -1, None), "−+": (-1, 1, None), "−−": (-1, -1, None)},
    ("transpose",): {"+": (None, None, 1), "−": (None, None, -1)},
    (): {"": (None, None, None)},
}
GRIDS = [(names, shape) for names in CHARACTERS for shape in ((4, 4, 1), (5, 5, 2), (1, 1, 3))]
GRIDS += [(names, shape) for names in ((), ("flip",)) for shape in ((1, 6, 1), (4, 3, 2))]


@pytest.mark.parametrize(("names", "shape"), GRIDS)
def test_eigenvectors_are_those_of_the_mean_over_the_group_and_belong_to_its_representations(
    names, shape
):
    dimension = int(np.prod(shape))
    rows = np.random.default_rng(0).standard_normal((3 * dimension, dimension))
    matrix = rows.T @ rows
    found, mean = eigh_symmetric(matrix, representations(names, shape)), _mean(matrix, names, shape)
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(mean)[::-1], rtol=1e-10)
    np.testing.assert_allclose(
        mean @ found.directions.T, found.directions.T * found.eigenvalues, atol=1e-4
    )
    np.testing.assert_allclose(found.directions @ found.directions.T, np.eye(dimension), atol=1e-6)
    images = found.directions.reshape(-1, *shape)
    moved = images[:, ::-1], images[:, :, ::-1], images.swapaxes(1, 2)
    for label, characters in CHARACTERS[names].items():
        chosen = found.symmetry == label
        for image, sign in zip(moved, characters, strict=True):
            if sign is not None:
                np.testing.assert_allclose(image[chosen], sign * images[chosen], atol=1e-6)
    pairs = np.flatnonzero(found.symmetry == "E").reshape(-1, 2)
    assert set(found.symmetry) <= {*CHARACTERS[names], "E"} and (len(pairs) > 0) == (
        len(names) == 2 and shape[0] > 1
    )
    for first, second in pairs:
        assert second == first + 1 and found.eigenvalues[first] == found.eigenvalues[second]
        np.testing.assert_allclose(images[first].swapaxes(0, 1), images[first], atol=1e-6)
        np.testing.assert_allclose(
            abs(found.directions[second] @ np.rot90(images[first]).ravel()), 1, atol=1e-6
        )
        assert np.abs(images[first][::-1, ::-1] + images[first]).max() < 1e-6
    for direction in found.directions:
        largest = np.flatnonzero(np.abs(direction) >= np.abs(direction).max() * (1 - 1e-6))
        assert direction[largest[0]] > 0


@pytest.mark.parametrize("shape", [(6, 2), (5, 1), (1, 3), (2, 3, 4, 1), (2, 2, 2, 2)])
def test_reversals_of_signals_and_volumes_have_eigenvectors_of_every_sign(shape):
    dimension, axes = int(np.prod(shape)), range(len(shape) - 1)
    group = permutations(("flip",), shape)
    image = np.random.default_rng(0).standard_normal(shape)
    assert {tuple(image.reshape(-1)[moved]) for moved in group} == {
        tuple(np.flip(image, reversed_).reshape(-1))
        for count in range(len(shape))
        for reversed_ in itertools.combinations(axes, count)
    }
    rows = np.random.default_rng(1).standard_normal((3 * dimension, dimension))
    matrix = rows.T @ rows
    found = eigh_symmetric(matrix, representations(("flip",), shape))
    mean = _mean(matrix, ("flip",), shape)
    np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(mean)[::-1], rtol=1e-10)
    np.testing.assert_allclose(
        mean @ found.directions.T, found.directions.T * found.eigenvalues, atol=1e-4
    )
    for direction, label in zip(found.directions, found.symmetry, strict=True):
        image = direction.reshape(shape)
        for axis, sign in zip(axes, label, strict=True):
            np.testing.assert_allclose(
                np.flip(image, axis), int(f"{sign}1".replace("−", "-")) * image, atol=1e-6
            )


def test_a_vector_has_no_symmetry():
    assert [one.label for one in representations((), (5,))] == [""]
    np.testing.assert_array_equal(permutations((), (5,)), np.arange(5)[None])


def test_rounding_does_not_choose_among_eigenvectors_that_symmetry_makes_equal():
    shape, names = (6, 6, 1), ("flip", "transpose")
    rows = np.random.default_rng(0).standard_normal((50, 36)) * 0.9 ** np.arange(36)
    matrix = rows.T @ rows
    noise = np.random.default_rng(1).standard_normal((36, 36)) * 1e-7 * matrix.max()
    one, other = (
        eigh_symmetric(m, representations(names, shape)) for m in (matrix, matrix + noise + noise.T)
    )
    assert (one.symmetry[:24] == other.symmetry[:24]).all()
    assert (np.einsum("kd,kd->k", one.directions[:24], other.directions[:24]) > 0.999).all()
    # As single vectors of the mean they are lost.
    dense = [
        np.linalg.eigh(_mean(m, names, shape))[1].T[::-1]
        for m in (matrix, matrix + noise + noise.T)
    ]
    assert (np.abs(np.einsum("kd,kd->k", *dense))[:24] < 0.99).any()


def test_representations_that_hold_rounding_alone_are_no_fault():
    shape, names = (4, 4, 1), ("flip", "transpose")
    group, rows = (
        representations(names, shape),
        np.ones((9, 16)) + 1e-7 * np.random.default_rng(0).normal(size=(9, 16)),
    )
    matrix = rows.T @ rows + 1e-7 * np.random.default_rng(1).normal(
        size=(16, 16)
    )  # not even symmetric
    found = eigh_symmetric(matrix, group)
    assert found.symmetry[0] == "A1" and (found.eigenvalues[1:] < 1e-6 * found.eigenvalues[0]).all()
    accumulator = sketched(4, permutations(names, shape), group)
    state = accumulator.init(random_basis(jax.random.key(0), 12, 16))
    state = accumulator.update(state, jnp.asarray(rows, jnp.float32), jnp.ones(len(rows), bool))
    assert int(state.count) == accumulator.copies * len(rows) == 8 * len(rows)
    assert len(accumulator.read(state, False).eigenvalues) == 1  # the others are rounding


def test_a_sketch_finds_leading_eigenvectors_in_each_representation():
    shape, names = (6, 6, 1), ("flip", "transpose")
    rows = np.random.default_rng(0).standard_normal((50, 36)) * 0.9 ** np.arange(36)
    group, moved = representations(names, shape), permutations(names, shape)
    exact = eigh_symmetric(rows.T @ rows / len(rows), group)
    accumulator = sketched(12, moved, group)
    state = accumulator.init(random_basis(jax.random.key(0), 20, 36))
    state = accumulator.update(state, jnp.asarray(rows, jnp.float32), jnp.ones(len(rows), bool))
    found = accumulator.read(state, False)
    assert (found.symmetry == exact.symmetry[:12]).all()
    assert (np.einsum("kd,kd->k", found.directions, exact.directions[:12]) > 0.999).all()
    np.testing.assert_allclose(found.eigenvalues, exact.eigenvalues[:12], rtol=1e-4)
    np.testing.assert_allclose(found.trace, exact.eigenvalues.sum(), rtol=1e-5)


def _move_network(variables, move, flat_shape):
    """The network whose kernels see the moved image as the given one sees the image."""

    def move_leaf(leaf):
        if leaf.ndim == 4:
            return move(leaf)
        if leaf.ndim == 2 and leaf.shape[0] == np.prod(
            flat_shape
        ):  # the dense layer after flattening
            return move(leaf.reshape(*flat_shape, -1)).reshape(leaf.shape)
        return leaf

    return jax.tree.map(move_leaf, variables)


def _draw(model):
    """Variables about as large as initial ones, without a program that draws them."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        spread = np.sqrt(2 / np.prod(leaf.shape[:-1])) if name == "kernel" else 0.03
        return np.float32(spread) * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


# Architecture, pooling, image side, side and channels where it is flattened, symmetries.
CASES = [
    ("logreg", "default", 8, (8, 8, 1), ("flip", "transpose")),
    ("mlp", "default", 8, (8, 8, 1), ("flip", "transpose")),
    ("lenet", "default", 32, (5, 5, 16), ("flip", "transpose")),
    ("lenet", "avg", 16, (1, 1, 16), ("flip", "transpose")),
    ("lenet", "default", 30, (4, 4, 16), ("transpose",)),
    ("lenet", "none", 18, (10, 10, 16), ("flip", "transpose")),
    ("vgg11", "default", 32, (1, 1, 512), ("flip", "transpose")),
    ("resnet18_w16", "default", 32, (1, 1, 128), ("transpose",)),
    ("resnet18_w16", "none", 8, (8, 8, 128), ("flip", "transpose")),
    ("resnet18_imagenet", "default", 33, (1, 1, 512), ("flip", "transpose")),
    ("densenet121", "default", 32, (1, 1, 1024), ("flip", "transpose")),
]


@pytest.mark.parametrize(("architecture", "pooling", "side", "flat_shape", "symmetries"), CASES)
def test_architectures_have_the_symmetries_that_they_state_and_no_others(
    architecture, pooling, side, flat_shape, symmetries
):
    model = create_model(architecture, (side, side, 1), pooling=pooling, convolution="lax")
    assert model.symmetries == symmetries
    variables = _draw(model)
    x = np.asarray(jax.random.normal(jax.random.key(1), (side, side, 1)))
    apply = jax.jit(lambda variables, image: model.apply(variables, image[None])[0, 0])
    logit = apply(variables, x)
    for name, moves in MOVES.items():
        for move in moves:
            moved = apply(_move_network(variables, move, flat_shape), move(x))
            equal = abs(float(moved - logit)) < 1e-5 * abs(float(logit))
            assert equal == (name in symmetries), (name, moved, logit)


def test_every_architecture_is_among_the_cases():
    # Those of `claims` are asked of the others, in `test_architectures`.
    others = {
        "resnet18",
        "vgg11_plain",
        "wide_resnet",
        "bottleneck_mlp",
        "vit",
        "mixer",
        "convnext",
    }
    assert {case[0] for case in CASES} | others == set(ARCHITECTURES)
    for architecture, side in (("resnet18", 32), ("resnet18_imagenet", 64)):
        assert create_model(architecture, (side, side, 1)).symmetries == ("transpose",)
    assert create_model("lenet", (32, 28, 1)).symmetries == ("flip",)
    for architecture in ("logreg", "mlp"):
        for shape in ((6, 2), (3, 3, 3, 1), (3, 4, 1)):
            assert create_model(architecture, shape).symmetries == ("flip",)
        assert create_model(architecture, (9,)).symmetries == ()


@functools.cache
def _model():
    return create_model("lenet", (16, 16, 1), pooling="avg")


def test_symmetrized_nads_are_worth_several_times_the_networks():
    choices = {"derivative": "input_gradient", "point_scale": 0.0, "chunk_size": 20}
    reference = estimate_nads(_model(), 400, seed=1, **choices)
    plain, better = (
        estimate_nads(_model(), 60, symmetrized=flag, **choices) for flag in (False, True)
    )
    errors = [
        1 - subspace_overlap(nads.directions, reference.directions, (64,))
        for nads in (plain, better)
    ]
    assert errors[1] < 0.5 * errors[0], errors
    # In the mean nothing changes: the trace is the same, and energies agree within their errors.
    np.testing.assert_allclose(better.eigenvalues.sum(), plain.eigenvalues.sum(), rtol=1e-4)
    leading = reference.directions[:8]
    np.testing.assert_allclose(
        directional_energy(better, leading), directional_energy(reference, leading), rtol=0.25
    )
    assert (better.split_half_overlap[2:] > plain.split_half_overlap[2:]).all()
    assert better.config["symmetrized"] is True


def test_leading_nads_are_symmetrized_like_dense_ones():
    choices = {
        "derivative": "input_gradient",
        "readout": "sampled",
        "num_readouts": 8,
        "symmetrized": True,
    }
    dense = estimate_nads(_model(), 40, **choices)
    leading = estimate_leading_nads(_model(), 40, num_directions=16, num_passes=4, **choices)
    assert subspace_overlap(leading.nads.directions, dense.directions, (16,))[0] > 0.99
    np.testing.assert_allclose(leading.trace, dense.eigenvalues.sum(), rtol=1e-4)
    np.testing.assert_allclose(leading.nads.eigenvalues, dense.eigenvalues[:16], rtol=1e-2)


def _functions(symmetries, image_shape=(4, 4, 1)):
    return from_functions(
        lambda key: jax.random.normal(key, (4, 1)),
        lambda w, x: x[:, 0, :4, 0] @ w,
        image_shape,
        symmetries=symmetries,
        check=False,
    )


def test_what_is_not_a_symmetry_is_refused():
    assert _functions(None).symmetries == () and _functions(("flip", "flip")).symmetries == (
        "flip",
    )
    with pytest.raises(
        InputError, match=r"symmetries: must be among flip, transpose, got 'rotate'"
    ):
        _functions(("rotate",))
    for shape, shown in (((4, 5, 1), "4×5×1"), ((4, 4), "4×4"), ((4, 4, 4, 1), "4×4×4×1")):
        match = f"symmetries: 'transpose' needs square images, got inputs {shown}$"
        with pytest.raises(InputError, match=match):
            permutations(("transpose",), shape)
    with pytest.raises(InputError, match=r"symmetries: 'flip' needs signals, .* got vectors 4$"):
        representations(("flip",), (4,))
    with pytest.raises(InputError, match=r"symmetries: 'transpose' needs square images"):
        _functions(("transpose",), (4, 5, 1))
    for pooling, refused in (("max", True), ("avg", False)):
        estimator = Estimator("input_gradient", point_scale=0.0, symmetrized=True)
        model = create_model("lenet", (16, 16, 1), pooling=pooling)
        match = "symmetrized: must be False for exact gradients of this network at the origin"
        with pytest.raises(InputError, match=match) if refused else contextlib.nullcontext():
            check_symmetrized(estimator, model)
        for other in (
            {"point_scale": 1.0},
            {"derivative": "central_difference"},
            {"symmetrized": False},
        ):
            check_symmetrized(dataclasses.replace(estimator, **other), model)
        tiny = dataclasses.replace(estimator, point_scale=1e-30, readout="sampled")
        with pytest.raises(InputError, match=match) if refused else contextlib.nullcontext():
            check_symmetrized(tiny, model)
    with pytest.raises(
        InputError, match=r"symmetrized: must be False, this model states no symmetries for .* 4×4"
    ):
        estimate_nads(_functions(()), 4, readout="sampled", symmetrized=True)
    assert jnp.isfinite(
        estimate_nads(_functions(("flip",)), 4, readout="sampled", symmetrized=True).eigenvalues
    ).all()


def test_leading_directions_are_not_centred_and_symmetrized_at_once():
    with pytest.raises(InputError, match="centred: must be False with symmetrized=True"):
        estimate_leading_nads(_model(), 20, readout="sampled", centred=True, symmetrized=True)
