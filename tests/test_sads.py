"""Score networks and their directions: closed forms of what the last layer alone decides, what is
sampled against what is integrated, degenerate geometries, records.
"""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nad_jax
from nad_jax import ScoreNetwork, align, alignment, create_score_network, estimate_sads
from nad_jax.diffusion import Schedule
from nad_jax.errors import InputError
from nad_jax.sads import octaves
from nad_jax.score_closed_forms import (
    channel_geometry,
    dense_geometry,
    dit_geometry,
    split_channels,
    split_dense,
    split_tokens,
    token_geometry,
)
from nad_jax.score_geometry import output

SHAPE = (8, 8, 1)


def _estimate(network, num_networks, **choices):
    """Without the warnings, which have tests of their own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return estimate_sads(network, num_networks, **choices)


def _off(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(("patch", "rank"), [(2, 11), (4, 7)])
def test_the_dit_at_the_default_probe_is_known_without_sampling(patch, rank):
    network = create_score_network("dit", patch=patch, depth=1)
    exact = dit_geometry((16, 16, 1), patch)
    found = _estimate(network, 2)
    assert _off(found.matrix, exact) < 1e-5
    # Each eigenvalue of the position embeddings comes as often as a patch has pixels.
    zero = 256 - rank * patch**2
    assert np.count_nonzero(np.linalg.eigvalsh(exact) < 1e-6 * np.linalg.norm(exact, 2)) == zero
    assert found.num_zero == zero


def test_depth_and_weights_of_the_dit_do_not_matter_there_but_do_elsewhere():
    shape = (4, 4, 1)
    small, large = (create_score_network("dit", shape, depth=n, width=8) for n in (1, 3))
    there = [_estimate(one, 2, seed=seed).matrix for seed, one in enumerate((small, large))]
    assert _off(*there) < 1e-5
    probe = nad_jax.gaussian(shape, 1.0, shared=False)
    assert _off(_estimate(small, 2, probe=probe).matrix, there[0]) > 0.1
    free = create_score_network("dit", shape, depth=1, width=8, zero_init=False)
    assert _off(_estimate(free, 2).matrix, there[0]) > 1e-3  # gates are small


def test_what_a_dense_last_layer_makes_is_a_multiple_of_the_identity():
    network = create_score_network("mlp", (3, 2, 2), width=7)
    found = _estimate(network, 4, levels="integrated", signal=Schedule(25).alpha_bar)
    split = split_dense(found.matrix)
    assert split.residual < 1e-5
    assert abs(split.parts[1]) < 1e-5 * split.parts[0]


def test_what_a_convolution_makes_is_alike_in_all_channels():
    network = create_score_network("cnn", (4, 4, 3), width=5)
    found = _estimate(network, 4, probe=nad_jax.gaussian((4, 4, 3), 1.0, shared=False))
    own, shared = split_channels(found.matrix, 3).parts
    assert split_channels(found.matrix, 3).residual < 1e-5
    assert np.abs(shared).max() < 1e-5 * np.abs(own).max()
    # It is no multiple of the identity: neighbors read the same features.
    assert split_dense(found.matrix).residual > 0.05


def test_what_tokens_share_has_as_many_eigenvalues_as_there_are_tokens():
    network = create_score_network("dit", SHAPE, patch=4, depth=1, width=16, zero_init=False)
    found = _estimate(network, 4, probe=nad_jax.gaussian(SHAPE, 1.0, shared=False))
    assert split_tokens(found.matrix, SHAPE, 4).residual < 1e-5
    values = found.eigenvalues.reshape(4, 16)
    assert (np.ptp(values, 1) < 1e-4 * values[-1, -1]).all()
    assert (np.diff(values.mean(1)) > 0.01 * values[-1, -1]).any()


def test_the_families_are_what_they_say():
    rng = np.random.default_rng(0)
    a, b = (m + m.T for m in rng.normal(size=(2, 6, 6)))
    np.testing.assert_allclose(dense_geometry(2.0, 0.5, 3)[0], [2.5, 0.5, 0.5])
    channels = channel_geometry(a, b, 2)
    assert channels[0, 2] == a[0, 1] + b[0, 1] and channels[0, 3] == b[0, 1]
    for found, wanted in zip(split_channels(channels, 2).parts, (a, b), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-12)
    tokens = token_geometry(a, (4, 6, 1), 2)
    assert tokens[0, 2] == a[0, 1] and tokens[0, 1] == 0  # the first pixels of two patches
    np.testing.assert_allclose(split_tokens(tokens, (4, 6, 1), 2).parts[0], a)


@pytest.mark.parametrize("name", ["mlp", "cnn", "dit", "unet"])
def test_sampled_rows_have_the_mean_of_integrated_ones(name):
    options = {
        "dit": {"depth": 1, "width": 16, "patch": 4},
        "unet": {"width": 8, "groups": 4, "levels": 2},
    }
    shape, count = (4, 4, 1), 4000
    known = nad_jax.score_table.score_options(name)
    chosen = {n: v for n, v in options.get(name, {"width": 6}).items() if n in known}
    network = create_score_network(name, shape, **chosen)
    exact = _estimate(network, count, seed=1).matrix
    field = output(network, "sampled")

    @jax.jit
    @jax.vmap
    def row(key):
        init, draw = jax.random.split(key)
        return field(None, network.init(init), jnp.zeros(shape), draw)[0]

    rows = np.asarray(row(jax.random.split(nad_jax.make_key(2), count)), np.float64)
    # In the eigenvectors of the integrated one, whose own error is small beside that of one row.
    values, vectors = np.linalg.eigh(exact)
    vectors = vectors[:, values > 1e-5 * values[-1]]
    along = rows @ vectors
    squares = along[:, :, None] * along[:, None]
    upper = np.triu_indices(vectors.shape[1])
    mean, sem = squares.mean(0), squares.std(0) / np.sqrt(count)
    z = ((mean - vectors.T @ exact @ vectors) / sem)[upper]
    assert np.abs(z).max() < 4.5
    assert 0.7 < np.mean(z**2) < 1.3


def test_noise_levels_by_importance_have_the_mean_of_uniform_ones_and_less_noise():
    network = create_score_network("mlp", (3,), width=8)
    count, found = 4000, {}
    for levels in ("uniform", "importance"):
        field = output(network, "marginalized", levels)

        @jax.jit
        @jax.vmap
        def trace(key, field=field):
            init, draw = jax.random.split(key)
            rows = field(None, network.init(init), jnp.ones(3), draw)
            return (rows**2).sum(1).mean()

        found[levels] = np.asarray(trace(jax.random.split(jax.random.key(0), count)))
    mean = {name: values.mean() for name, values in found.items()}
    sem = {name: values.std() / np.sqrt(count) for name, values in found.items()}
    difference = mean["uniform"] - mean["importance"]
    assert abs(difference) < 4.5 * np.hypot(*sem.values())
    assert sem["uniform"] > 5 * sem["importance"]


def test_probes_are_data_to_which_the_noise_of_the_level_is_added():
    # A network that returns its input: E[F Fᵀ] is the mean of (ᾱ S + (1 − ᾱ) I)/(1 − ᾱ).
    echo = ScoreNetwork(lambda key: {}, lambda variables, x, t: x, (4,))
    data = np.float32([[3.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    signal = Schedule(30).alpha_bar
    found = _estimate(
        echo, 20_000, probe=nad_jax.images(data, per_network=1), noised=True,
        readout="sampled", signal=signal,
    ).matrix  # fmt: skip
    moment = data.T @ data / 2
    exact = np.mean([(a * moment + (1 - a) * np.eye(4)) / (1 - a) for a in signal], 0)
    assert _off(found, exact) < 0.05


def test_what_makes_a_geometry_degenerate_is_said():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = estimate_sads(create_score_network("dit", SHAPE, depth=1, width=16), 2)
    said = " ".join(str(one.message) for one in caught)
    assert f"{found.num_zero} of 64 eigenvalues are zero" in said
    assert "do not influence the output" in said
    assert "does not depend on the noise level but for the factor" in said
    assert len(found.degeneracies) == 3 and found.degeneracies[0] in repr(found)
    with pytest.raises(InputError, match="last layer starts at zero"):
        estimate_sads(create_score_network("dit", SHAPE, depth=1, width=16, zero_head=True), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not estimate_sads(create_score_network("mlp", (4,), width=64), 64).degeneracies


def test_records_ascend_and_say_so(tmp_path):
    network = create_score_network("cnn", (4, 4, 1), width=4)
    found = estimate_sads(network, 200)
    assert (np.diff(found.eigenvalues) >= 0).all()
    assert found.config["order"] == "ascending" and "ascending" in repr(found)
    np.testing.assert_allclose(found.directions @ found.directions.T, np.eye(16), atol=1e-5)
    left = found.matrix @ found.directions.T - found.directions.T * found.eigenvalues
    assert np.abs(left).max() < 1e-4 * found.eigenvalues[-1]
    assert found.band_edges.tolist() == list(octaves(16)) == [0, 1, 2, 4, 8, 12, 14, 15, 16]
    assert ((found.band_overlap >= 0) & (found.band_overlap <= 1 + 1e-6)).all()
    assert np.mean(found.band_overlap - found.band_shares) > 0.3
    assert len(found.band(2)) == 2
    found.save(tmp_path / "sads.npz")
    read = nad_jax.load_sads(tmp_path / "sads.npz")
    for name in ("directions", "eigenvalues", "eigenvalue_sem", "band_overlap"):
        np.testing.assert_array_equal(getattr(read, name), getattr(found, name))
    assert read.config == found.config and repr(read) == repr(found)
    rows = found.to_rows()
    assert [row["band"] for row in rows[:4]] == [0, 1, 2, 2]
    with pytest.raises(InputError, match="eigenvalues must ascend"):
        found._replace(eigenvalues=found.eigenvalues[::-1]).save(tmp_path / "wrong.npz")
        nad_jax.load_sads(tmp_path / "wrong.npz")


def test_data_are_turned_where_the_geometry_is_small_or_large():
    rng = np.random.default_rng(0)
    geometry, moment = (m @ m.T for m in rng.normal(size=(2, 5, 5)))
    most, least = align(geometry, moment), align(geometry, moment, reverse=True)
    ends = [np.linalg.eigvalsh(one) for one in (geometry, moment)]
    assert alignment(geometry, moment, most) == pytest.approx(ends[0] @ ends[1])
    assert alignment(geometry, moment, least) == pytest.approx(ends[0] @ ends[1][::-1])
    for _ in range(200):
        other, _ = np.linalg.qr(rng.normal(size=(5, 5)))
        between = alignment(geometry, moment, other)
        assert ends[0] @ ends[1][::-1] <= between <= ends[0] @ ends[1]
    np.testing.assert_allclose(least @ least.T, np.eye(5), atol=1e-12)


def test_the_unet_has_the_layers_of_improved_ddpm():
    # Counted by hand for 16×16×1, width 32, three levels of one residual block, attention once.
    network = create_score_network("unet")
    count = sum(
        leaf.size for leaf in jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0)))
    )

    def conv(inputs, outputs, size=3):
        return inputs * outputs * size**2 + outputs

    def block(inputs, outputs=32):
        skip = conv(inputs, outputs, 1) if inputs != outputs else 0
        norms = 2 * inputs + 2 * outputs
        return (
            norms
            + conv(inputs, outputs)
            + conv(outputs, outputs)
            + 129 * outputs
            - outputs
            + outputs
            + skip
        )

    level = (32 * 128 + 128) + (128 * 128 + 128)
    down = conv(1, 32) + 3 * block(32) + 2 * conv(32, 32)
    middle = 2 * block(32) + 64 + conv(32, 96, 1) + conv(32, 32, 1)
    up = 6 * block(64) + 2 * conv(32, 32)
    assert count == level + down + middle + up + 64 + conv(32, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: create_score_network("unets"),
            "^name: unknown value 'unets'.*did you mean 'unet'",
        ),
        (lambda: create_score_network("dit", (16, 15, 1)), "patch"),
        (lambda: create_score_network("dit", width=10), "heads|width"),
        (lambda: create_score_network("unet", (16,)), "^image_shape|^input_shape"),
        (lambda: _estimate(create_score_network("mlp", (4,)), 1), "^num_networks: must be"),
        (lambda: _estimate(create_score_network("mlp", (4,)), 4, levels="all"), "^levels: unknown"),
        (lambda: _estimate(create_score_network("mlp", (4,)), 4, readout="all"), "^readout: unk"),
        (lambda: _estimate(create_score_network("mlp", (4,)), 4, signal=[1.5]), "^signal: must be"),
        (lambda: _estimate(create_score_network("mlp", (4,)), 4, bands=(0, 3)), "^bands: must be"),
        (lambda: _estimate("unet", 4), "^network: "),
        (lambda: align(np.eye(3), np.eye(4)), "^second_moment: must be"),
        (lambda: dit_geometry((16, 16, 1), 3), "^patch: must divide"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, message):
    with pytest.raises(InputError) as raised:
        call()
    assert re.search(message, str(raised.value))
