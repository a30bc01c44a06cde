"""Exactly equal blocks: where they are, against sampled networks, and with the first layer
integrated out.
"""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nad_jax
from nad_jax import InputError, create_model, equal_blocks, integrate_first_layer, state_blocks
from nad_jax.blocks import Alike, make_blocks, read_blocks
from nad_jax.choices import choose_points
from nad_jax.contract import shape_of_variables
from nad_jax.geometry import make_rows

SMALL = {"width": 8, "depth": 1}
BIASED = {"initialization": "sigma:1:0.1"}
NETWORKS = {
    "vit": ("vit", (8, 8, 1), {**SMALL, "heads": 2}),
    "vit_fixed": ("vit", (8, 8, 1), {**SMALL, "heads": 2, "position": "fixed"}),
    "mixer": ("mixer", (8, 8, 1), {**SMALL, **BIASED}),
    "convnext": ("convnext", (16, 16, 1), {"width": 2, "stages": "1-1-1-1", **BIASED}),
    "lenet": ("lenet", (16, 16, 3), {"width": 3, "pooling": "avg"}),
    "mlp": ("mlp", (20,), {"width": 5}),
    "bottleneck_mlp": ("bottleneck_mlp", (20,), SMALL),
}


@functools.cache
def _model(name):
    architecture, shape, options = NETWORKS[name]
    return create_model(architecture, shape, **options)


def _scores(model, matrix, count, sem=0.0):
    """Entries of E[g gᵀ] on and above the diagonal that sampled gradients at x = 0 differ from a
    matrix by, in standard errors.
    """
    zero = jnp.zeros((1, *model.image_shape))

    @jax.jit
    def gradients(keys):
        def one(key):
            variables = model.init(key)
            return jax.grad(lambda x: model.apply(variables, x)[0, 0])(zero).reshape(-1)

        return jax.lax.map(one, keys, batch_size=64)

    rows = np.asarray(gradients(jax.random.split(jax.random.key(7), count)), np.float64)
    mean, square = (one.T @ one / count for one in (rows, rows**2))
    error = np.sqrt((square - mean**2) / count + sem**2)
    return ((mean - matrix) / error)[np.triu_indices(len(mean))]


@pytest.mark.parametrize(
    ("name", "sampled", "integrated"),
    [
        ("vit", 2_048, 1_024),
        ("vit_fixed", 2_048, 1_024),
        ("mixer", 1_024, 512),
        ("convnext", 256, 128),
        ("lenet", 256, 64),
        ("mlp", 2_048, 4_096),
        ("bottleneck_mlp", 1_024, 4_096),
    ],
)
def test_sampled_networks_have_the_geometry_whose_first_layer_is_integrated_out(
    name, sampled, integrated
):
    model = _model(name)
    found = integrate_first_layer(model, integrated)
    scores = _scores(model, found.matrix, sampled, found.blocks.lift(found.sem))
    assert np.abs(scores).max() <= 4.5 and 0.7 < np.mean(scores**2) < 1.3
    distinct = 1 + np.count_nonzero(np.diff(found.eigenvalues) < -1e-5 * found.eigenvalues[0])
    assert distinct <= found.blocks.count <= found.blocks.num_units
    assert found.matrix.shape == (np.prod(model.image_shape),) * 2


@pytest.mark.parametrize("initialization", ["reference", "orthogonal"])
@pytest.mark.parametrize(
    "how",
    [
        {"point_scale": 0.0},
        {"point_scale": 0.0, "derivative": "central_difference", "step": 2.0},
        {"point": "fresh"},
    ],
)
def test_colors_are_alike_at_the_origin_and_at_fresh_points(initialization, how):
    """A convolution whose window has three colors, under a smooth activation."""
    own = nad_jax.from_linen(Smooth(), (2, 2, 3), initialization=initialization, check=False)
    own = own._replace(alike=Alike("colors"))
    estimator = nad_jax.Estimator(**{"derivative": "input_gradient", **how})
    blocks = equal_blocks(own, **{k: v for k, v in how.items() if k != "step"})
    assert (blocks.count, blocks.members, blocks.kind) == (4, 3, "colors")
    rows = _rows(own, estimator, 2_000)
    moment, square = (one.T @ one / len(rows) for one in (rows, rows**2))
    error = np.sqrt((square - moment**2) / len(rows))
    exact = blocks.lift(blocks.average(moment))
    scores = ((moment - exact) / error)[np.triu_indices(12)]
    assert np.abs(scores).max() <= 4.5


def test_one_point_beside_the_origin_tells_colors_apart():
    own = nad_jax.from_linen(Smooth(), (2, 2, 3), initialization="orthogonal", check=False)
    blocks = make_blocks(Alike("colors"), (2, 2, 3))
    rows = _rows(own, nad_jax.Estimator("input_gradient"), 2_000)
    moment, square = (one.T @ one / len(rows) for one in (rows, rows**2))
    error = np.sqrt((square - moment**2) / len(rows))
    assert np.abs((moment - blocks.lift(blocks.average(moment))) / error).max() > 4.5
    assert not equal_blocks(own._replace(alike=Alike("colors"))).count


class Smooth(nn.Module):
    """A convolution of 2×2 windows, and a dense layer of what its sines are."""

    @nn.compact
    def __call__(self, x):
        x = jnp.sin(nn.Conv(4, (2, 2), padding="SAME")(x))
        return nn.Dense(1)(x.reshape(len(x), -1))


def _rows(model, estimator, count):
    """[N, D] rows of sampled networks."""
    rows_of = make_rows(model, dataclasses.replace(estimator, readout="sampled"))
    law = choose_points(model, estimator)
    pool = law.prepare(jax.random.key(3), law.data)

    @jax.jit
    @jax.vmap
    def rows(key):
        return rows_of(model.init(jax.random.fold_in(key, 0)), key, pool)[0, 0]

    return np.asarray(rows(jax.random.split(jax.random.key(5), count)), np.float64)


def test_every_network_of_the_table_says_what_its_first_layer_cannot_tell_apart():
    small = {"vit": {"depth": 1}, "mixer": {"depth": 1}, "bottleneck_mlp": {"depth": 1}}
    small |= {"convnext": {"stages": "1-1-1-1"}, "wide_resnet": {"depth": 10}}
    modules = {entry.module: name for name, entry in nad_jax.ARCHITECTURES.items()}
    assert len(modules) == 12  # some are several entries
    for name in modules.values():
        model = create_model(name, (32, 32, 3), **small.get(name, {}))
        shapes = shape_of_variables(model)["params"]
        kernel = shapes[model.alike.layer]["kernel"].shape
        blocks = equal_blocks(model, point_scale=0.0)
        # Its inputs are the members of a unit.
        assert kernel[-2] == blocks.members, name
        assert blocks.num_units * blocks.members == 3_072
    assert equal_blocks(create_model("mlp", (8,))).count == 1  # at any point
    steps = equal_blocks(create_model("mlp", (8,)), derivative="central_difference")
    assert steps.count == equal_blocks(_model("bottleneck_mlp")).count == 0
    assert equal_blocks(_model("vit"), point_scale=0.0).sizes == (16, 48)
    assert equal_blocks(_model("vit_fixed"), points=np.zeros((2, 8, 8, 1))).sizes == (16,) * 4
    assert not equal_blocks(_model("vit"), points=np.ones((2, 8, 8, 1))).count
    gray = equal_blocks(create_model("lenet", (16, 16, 1)), point_scale=0.0)
    assert "one color" in str(gray) and not gray.count


def test_what_is_stated_of_a_model_of_ones_own_is_tested():
    own = nad_jax.from_linen(Smooth(), (2, 2, 3), check=False)
    assert not equal_blocks(own, point_scale=0.0).count
    stated = state_blocks(own, "colors")
    assert equal_blocks(stated, point_scale=0.0).count == 4
    with pytest.raises(InputError, match="kind: 'all' is stated, but the derivatives of 64"):
        state_blocks(own, "all")
    with pytest.raises(InputError, match="kind: "):
        state_blocks(own, "pixels")


def test_a_patch_that_does_not_cover_images_is_answered_with_those_that_do():
    own = nad_jax.from_linen(Smooth(), (4, 12, 3), check=False)
    for patch in (3, 0, 8, 2.5, 2.0, True, "2", [2], None):
        said = f"height and width of 4×12×3: 1, 2, 4; got {re.escape(repr(patch))}$"
        with pytest.raises(InputError, match=f"^patch: must be the side .* that divides {said}"):
            state_blocks(own, "patches", patch=patch)
    with pytest.raises(InputError, match=r"^patch: must be .* 1, 2, 4; got 0$"):
        state_blocks(own, "patches")
    for patch in (1, 2, np.int32(4)):
        alike = state_blocks(own, "patches", patch, check=False).alike
        assert alike.patch == patch and type(alike.patch) is int
    vectors = create_model("mlp", (20,), width=2)
    with pytest.raises(InputError, match=r"^kind: 'patches' needs images .*, got inputs 20$"):
        state_blocks(vectors, "patches", patch=2)


@pytest.mark.parametrize(
    "model",
    [
        ("vit", (8, 8, 1), {**SMALL, "heads": 2, "position": "none"}),
        ("mixer", (8, 8, 1), SMALL),
        ("bottleneck_mlp", (6,), {**SMALL, "initialization": "he"}),
    ],
)
def test_a_normalization_of_zero_is_refused_before_anything_is_computed(model):
    name, shape, options = model
    zero = create_model(name, shape, **options)
    with pytest.raises(InputError, match="is a normalization of zero there"):
        nad_jax.estimate_nads(zero, 2, derivative="input_gradient", point_scale=0.0)
    with pytest.raises(InputError, match="is a normalization of zero there"):
        nad_jax.estimate_nads(zero, 2, derivative="input_gradient", points=np.zeros((2, *shape)))
    with pytest.raises(InputError, match="is a normalization of zero there"):
        integrate_first_layer(zero, 2)


@pytest.mark.parametrize("exchangeable", [False, True])
def test_eigenvectors_of_blocks_are_those_of_the_averaged_matrix(exchangeable):
    blocks = make_blocks(Alike("patches", 2, exchangeable), (4, 6, 2))
    rows = np.random.default_rng(0).normal(size=(60, 48))
    matrix, found = rows.T @ rows, blocks.eigh(rows.T @ rows)
    exact = blocks.lift(blocks.average(matrix))
    v = found.directions
    np.testing.assert_allclose(v @ v.T, np.eye(48), atol=1e-5)
    np.testing.assert_allclose(exact @ v.T, v.T * found.eigenvalues, atol=1e-4 * np.trace(exact))
    assert np.isclose(np.trace(exact), np.trace(matrix)) and (np.diff(found.eigenvalues) <= 0).all()
    # Each member of each unit enters alike.
    np.testing.assert_allclose(blocks.average(exact), blocks.average(matrix))
    sizes = {1: {"×8"}, 2: {"×8", "×40"}}[1 + exchangeable]
    assert {*found.symmetry.tolist()} == sizes
    said = {"image_shape": [4, 6, 2], "blocks": blocks.describe()}
    assert read_blocks(said) == blocks
    with pytest.raises(InputError, match="blocks: cannot be"):
        read_blocks({**said, "blocks": {**said["blocks"], "members": 7}})


@pytest.fixture(scope="module")
def records():
    """Two halves' worth of colors of a small network, another seed, and one without blocks."""
    own = state_blocks(nad_jax.from_linen(Smooth(), (2, 2, 3), check=False), "colors")
    how = {"derivative": "input_gradient", "readout": "sampled"}
    origin = [nad_jax.estimate_nads(own, 64, seed, point_scale=0.0, **how) for seed in (0, 1)]
    return *origin, nad_jax.estimate_nads(own, 64, 0, **how)


def test_a_record_says_its_blocks_and_keeps_them_in_its_file(records, tmp_path):
    blocks = records[0].blocks
    assert (blocks.count, blocks.members, blocks.kind) == (4, 3, "colors")
    line = "4 equal blocks of 3 (colors): single directions inside are arbitrary"
    assert line in repr(records[0]) and "equal block" not in repr(records[2])
    assert records[2].blocks is None
    # Halves are compared by whole blocks, averaged over their members.
    assert records[0].overlap_sizes.tolist() == [3] and records[2].overlap_sizes.tolist() == [1, 4]
    nad_jax.save_nads(tmp_path / "nads.npz", records[0])
    assert nad_jax.load_nads(tmp_path / "nads.npz").blocks == blocks
    old = {name: value for name, value in records[0].config.items() if name != "blocks"}
    nad_jax.save_nads(tmp_path / "old.npz", records[0]._replace(config=old))
    assert nad_jax.load_nads(tmp_path / "old.npz").blocks is None
    said = {**records[0].config, "blocks": {**blocks.describe(), "members": 5}}
    with pytest.raises(InputError, match=r"config: blocks: cannot be"):
        nad_jax.save_nads(tmp_path / "bad.npz", records[0]._replace(config=said))


def test_comparisons_are_of_whole_blocks(records):
    """Of the same geometry turned inside its blocks nothing is different."""
    one, other, plain = records
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = (one.directions.reshape(12, 4, 3) @ turn).reshape(12, 12).astype(np.float32)
    same = nad_jax.compare(one, one._replace(directions=turned))
    np.testing.assert_allclose(same.overlap, 1.0, atol=1e-5)
    assert same.overlap_sizes.tolist() == [3, 12]
    assert nad_jax.subspace_overlap(one.directions, turned, (1,))[0] < 0.99
    assert nad_jax.compare(one, other).overlap_sizes.tolist() == [3, 12]
    assert nad_jax.compare(one, plain).overlap_sizes.tolist() == [3, 12]
    assert nad_jax.compare(plain, plain).overlap_sizes.tolist() == [1, 4]
    # One block of all directions cuts nothing: what overlaps it by chance is seen.
    whole = {**one.config, "blocks": {**one.blocks.describe(), "kind": "all", "members": 12}}
    isotropic = one._replace(config=whole)
    assert nad_jax.compare(one, isotropic).overlap_sizes.tolist() == [3, 12]
    assert nad_jax.compare(isotropic, isotropic).overlap_sizes.tolist() == [3]


def test_figures_point_blocks_out(records):
    plateaus = records[0]._plateaus()
    assert plateaus[0] == "4 equal blocks of 3 (colors)" and records[2]._plateaus() is None
    steps = plateaus[1].reshape(4, 3)
    np.testing.assert_allclose(steps, steps[:, :1] * np.ones((1, 3)))
    assert np.isclose(steps.sum(), records[0].trace)
    for nads, expected in ((records[0], True), (records[2], False)):
        spectrum, drawn = nads.plot_spectrum(), nads.plot_directions(4)
        legend = [text.get_text() for one in spectrum.legends for text in one.get_texts()]
        assert ("4 equal blocks of 3 (colors)" in legend) is expected
        said = " ".join(text.get_text().replace("\n", " ") for text in drawn.texts)
        assert ("single directions inside are arbitrary" in said) is expected


def test_what_is_no_model_or_no_input_of_it_is_refused():
    with pytest.raises(InputError, match="model: must come from create_model, "):
        equal_blocks("vit")
    model = create_model("lenet", (16, 16, 2))
    with pytest.raises(InputError, match="points: must be of shape"):
        equal_blocks(model, np.zeros((5, 16, 16, 1)))
