"""Score anisotropy directions: rows against closed forms, their ensemble, and the record."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nad_jax
from nad_jax import InputError, create_score_network, estimate_sads, score_geometry
from nad_jax.diffusion import Schedule, make_sampler
from nad_jax.sads import octaves
from nad_jax.score_networks import ScoreNetwork

SHORT = Schedule(21).alpha_bar
PRECISION = 1.0 / (1.0 - SHORT)
DIT = {"width": 8, "depth": 1, "heads": 2, "patch": 2}


def rows_of(network, count, x=None, **choices):
    """Rows [N, R, D] of freshly drawn networks."""
    field = score_geometry.output(network, signal=SHORT, **choices)
    x = jnp.zeros(network.input_shape) if x is None else jnp.asarray(x, jnp.float32)

    @jax.jit
    def rows(key):
        def one(key):
            keys = jax.random.split(key)
            return field(None, network.init(keys[0]), x, keys[1])

        return jax.lax.map(one, jax.random.split(key, count), batch_size=min(count, 100))

    return np.asarray(rows(nad_jax.make_key(5)), np.float64)


def moment_of(rows):
    flat = rows.reshape(-1, rows.shape[-1])
    return flat.T @ flat / len(flat)


def close(found, expected, tolerance=1e-5):
    return abs(found - expected).max() <= tolerance * abs(expected).max()


def entries(rows, geometry):
    """The second moments [N, E] of networks in the units of a geometry, whose own is the identity."""
    values, vectors = np.linalg.eigh(geometry)
    kept = values > 1e-5 * values[-1]
    rows = rows @ (vectors[:, kept] / np.sqrt(values[kept]))
    products = np.einsum("nri,nrj->nij", rows, rows) / rows.shape[1]
    return products[:, *np.triu_indices(kept.sum())]


def agrees(samples, expected=0.0):
    """Whether the mean of samples [N, E] is `expected` in standard errors."""
    error = samples.std(0) / np.sqrt(len(samples))
    z = (samples.mean(0) - expected) / error  # entries in these units are all but uncorrelated
    return abs(z).max() <= 4.5 and 0.7 <= np.mean(z**2) <= 1.3


def identity(samples):
    """The entries of the identity matrix."""
    size = int(np.sqrt(2 * samples.shape[1]))
    return np.eye(size)[np.triu_indices(size)]


def test_the_schedule_is_the_product_of_linear_steps():
    signal = Schedule().alpha_bar
    betas = [(0.1 + 19.9 * t / 999) / 1000 for t in range(1000)]
    np.testing.assert_allclose(signal[[0, 1, 999]], [1 - betas[0], np.prod(1 - np.array(betas[:2])),
                                                     np.prod(1 - np.array(betas))])  # fmt: skip


@pytest.mark.parametrize("levels", ["importance", "integrated"])
def test_the_dit_at_the_origin_has_its_closed_form(levels):
    network = create_score_network("dit", (8, 8, 1), **DIT)
    expected = nad_jax.dit_geometry((8, 8, 1), 2, 8, SHORT)
    assert close(moment_of(rows_of(network, 1, levels=levels)), expected)


@pytest.mark.parametrize(
    ("name", "shape", "options", "split"),
    [
        ("mlp", (12,), {"width": 8}, nad_jax.split_dense),
        ("cnn", (4, 5, 3), {"width": 4}, lambda g: nad_jax.split_channels(g, 3)),
        (
            "dit",
            (8, 8, 1),
            {**DIT, "zero_init": False},
            lambda g: nad_jax.split_tokens(g, (8, 8, 1), 2),
        ),
    ],
)
def test_every_marginalized_network_is_of_the_family_of_its_last_layer(name, shape, options, split):
    network = create_score_network(name, shape, **options)
    x = np.random.default_rng(0).normal(size=shape)
    found = split(moment_of(rows_of(network, 2, x, levels="integrated")))
    assert found.residual < 1e-5
    if name != "dit":  # weights of different outputs are independent
        assert np.abs(found.parts[1]).max() < 1e-5 * np.abs(found.parts[0]).max()


def test_marginalized_rows_are_those_of_hidden_units_of_an_mlp():
    network = create_score_network("mlp", (12,), width=8)
    x, t = jnp.ones(12), jnp.int32(300)
    variables = network.init(nad_jax.make_key(0))
    rows = jax.jit(lambda v: score_geometry.marginalized_rows(network, v, x, t))(variables)
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    angles = 300.0 * 10_000.0 ** (-np.arange(16) / 16)
    level = np.concatenate([np.cos(angles), np.sin(angles)]) @ weights["level"]["kernel"]
    hidden = np.ones(12) @ weights["dense1"]["kernel"] + weights["dense1"]["bias"]
    hidden = np.maximum(hidden + level + weights["level"]["bias"], 0.0)
    hidden = hidden @ weights["dense2"]["kernel"] + weights["dense2"]["bias"]
    alpha = (np.sum(np.maximum(hidden, 0.0) ** 2) + 1.0) / 24
    assert close(moment_of(np.asarray(rows, np.float64)), alpha * np.eye(12))


@pytest.mark.parametrize("levels", ["importance", "uniform"])
def test_sampled_networks_agree_with_the_closed_form(levels):
    network = create_score_network("dit", (8, 8, 1), **{**DIT, "patch": 4})
    expected = nad_jax.dit_geometry((8, 8, 1), 4, 8, SHORT)
    rows = rows_of(network, 10_000, readout="sampled", levels=levels)
    found = entries(rows, expected)
    assert agrees(found, identity(found))
    assert not agrees(1.2 * found, identity(found))


def test_sampled_networks_agree_with_marginalized_ones():
    network = create_score_network("cnn", (4, 4, 1), width=4)
    sampled = rows_of(network, 5_000, readout="sampled")
    marginalized = rows_of(network, 5_000)
    expected = moment_of(marginalized)
    means = entries(marginalized, expected)
    assert agrees(entries(sampled, expected) - means)
    assert not agrees(entries(1.1 * sampled, expected) - means)


def test_noise_is_that_of_the_level_that_the_network_sees():
    # F = −w x_t / √(1 − ᾱ_t) with E[w²] = 1: E[F Fᵀ] is a mean of known second moments over t.
    linear = ScoreNetwork(
        lambda key: {"w": jax.random.normal(key, ())},
        lambda variables, x, t: variables["w"] * x * jnp.where(t < 10, 1.0, 2.0)[:, None],
        (12,),
        lambda variables: {"w": 1.0},
    )
    x = np.random.default_rng(0).normal(size=12)
    gains = np.where(np.arange(21) < 10, 1.0, 4.0) * PRECISION
    kept = np.mean(gains * SHORT), np.mean(gains * (1 - SHORT))
    expected = kept[0] * np.outer(x, x) + kept[1] * np.eye(12)
    for levels in ("importance", "uniform"):
        found = entries(rows_of(linear, 20_000, x, levels=levels, noised=True), expected)
        assert agrees(found, identity(found))
        assert not agrees(1.2 * found, identity(found))


def test_importance_has_a_fraction_of_the_error_of_uniform_levels():
    # Of one network the factor alone has a relative variance of Σp²/(Σp)²·T − 1, p = 1/(1 − ᾱ).
    network = create_score_network("dit", (8, 8, 1), **DIT)
    spread = []
    for levels in ("importance", "uniform"):
        energies = (rows_of(network, 2000, levels=levels) ** 2).mean((1, 2))
        spread.append(energies.std() / energies.mean())
    assert spread[0] < 1e-6
    expected = np.sqrt(np.mean(PRECISION**2) / np.mean(PRECISION) ** 2 - 1)
    np.testing.assert_allclose(spread[1], expected, rtol=0.1)


def test_bands_double_from_both_ends():
    assert octaves(16) == (0, 1, 2, 4, 8, 12, 14, 15, 16)
    assert octaves(1) == (0, 1)
    assert octaves(3) == (0, 1, 2, 3)


@pytest.fixture(scope="module")
def sads():
    network = create_score_network("mlp", (6,), width=4)
    return estimate_sads(network, 200, signal=SHORT, bands=(0, 2, 6), readout="sampled")


def test_directions_ascend_and_their_matrix_is_the_geometry(sads):
    assert (np.diff(sads.eigenvalues) >= 0).all() and sads.config["order"] == "ascending"
    residual = sads.matrix @ sads.directions.T - sads.directions.T * sads.eigenvalues
    assert abs(residual).max() < 1e-5 * sads.eigenvalues[-1]
    assert sads.band(0).shape == (2, 6) and sads.band(1).shape == (4, 6)
    assert sads.num_zero == 0 and sads.degeneracies == ()
    np.testing.assert_allclose(sads.band_shares, [2 / 6, 4 / 6])


def test_the_record_is_what_its_networks_give(sads):
    network = create_score_network("mlp", (6,), width=4)
    same = estimate_sads(
        network, 200, signal=SHORT, readout="sampled", chunk_size=8, mapping="vectorized"
    )
    np.testing.assert_allclose(same.matrix, sads.matrix, atol=1e-5 * sads.eigenvalues[-1])


def test_a_record_is_read_as_it_was_written(sads, tmp_path):
    sads = sads._replace(degeneracies=("one", "two"))
    sads.save(tmp_path / "sads.npz")
    read = nad_jax.load_sads(tmp_path / "sads.npz")
    for name in sads._fields:
        np.testing.assert_array_equal(getattr(read, name), getattr(sads, name))
    sads._replace(eigenvalues=sads.eigenvalues[::-1]).save(tmp_path / "other.npz")
    with pytest.raises(InputError, match="eigenvalues must ascend"):
        nad_jax.load_sads(tmp_path / "other.npz")


def test_a_record_prints_bands_and_has_a_row_for_each_direction(sads, tmp_path):
    lines = repr(sads).splitlines()
    assert lines[0] == "SADs of mlp, 200 networks: read-out sampled, noise levels importance"
    assert "0–1: " in lines[2] and "2–5: " in lines[2]
    rows = sads.to_rows()
    assert [row["band"] for row in rows] == [0, 0, 1, 1, 1, 1]
    sads.to_csv(tmp_path / "sads.csv")
    assert (tmp_path / "sads.csv").read_text().count("\n") == 7


def test_directions_of_equal_eigenvalues_are_not_determined():
    network = create_score_network("mlp", (4,), width=8)  # αI, exactly
    with pytest.warns(UserWarning, match="4 of 4 eigenvalues are equal to another one"):
        sads = estimate_sads(network, 8, signal=SHORT, bands=(0, 1, 4))
    np.testing.assert_allclose(sads.band_overlap, sads.band_shares, rtol=1e-6)


def test_bands_of_two_equal_halves_are_determined_and_degeneracies_are_said():
    network = create_score_network("dit", (8, 8, 1), **DIT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sads = estimate_sads(network, 4, signal=SHORT, bands=(0, 40, 60, 62, 64))
    # Eigenvalues are equal by p² = 4, one for each pixel of a patch. Bands between them are determined.
    assert sads.num_zero % 4 == 0 and sads.num_equal == 64 - sads.num_zero
    np.testing.assert_allclose(sads.band_overlap, [1.0, 1.0, 0.5, 0.5], atol=1e-4)
    said = [str(one.message) for one in caught if one.category is UserWarning]
    assert [sentence.split(": ", 1)[1] for sentence in said] == list(sads.degeneracies)
    zeros, equal, weights, level = sads.degeneracies
    assert zeros.startswith(f"{sads.num_zero} of 64 eigenvalues are zero") and sads.num_zero > 0
    assert equal.startswith(f"{sads.num_equal} of 64 eigenvalues are equal to another one")
    assert "of the weights that are drawn influence the output" in weights
    assert level.startswith("the output does not depend on the noise level")
    assert repr(sads).count("beware: ") == 4


def test_a_u_net_is_not_degenerate_at_the_origin():
    options = {"width": 4, "levels": 2, "groups": 4, "heads": 2}
    network = create_score_network("unet", (4, 4, 1), **options)
    assert estimate_sads(network, 40, signal=SHORT).degeneracies == ()


@pytest.mark.parametrize(
    ("options", "choices", "message"),
    [
        ({"zero_head": True}, {}, "network: its last layer starts at zero"),
        ({"zero_head": True}, {"readout": "sampled"}, "network: its score is zero at the probe"),
        ({}, {"readout": "both"}, "readout: unknown value 'both'"),
        ({}, {"levels": "all"}, "levels: unknown value 'all'"),
        ({}, {"noised": 1}, "noised: "),
        ({}, {"signal": [0.5, 1.0]}, "signal: must be numbers"),
        ({}, {"signal": [0.1, 0.5]}, r"signal: must be numbers ᾱ \[T\] that fall"),
        ({}, {"bands": (0, 10)}, "bands: must be integers from 0 to D = 64"),
        ({}, {"bands": (0, 9, 9, 64)}, "bands: must ascend"),
        ({}, {"probe": np.zeros((2, 3))}, "probe: must be of shape"),
        ({}, {"num_networks": 1}, "num_networks: must be an integer of at least 2, got 1$"),
    ],
)
def test_bad_choices_are_refused(options, choices, message):
    network = create_score_network("dit", (8, 8, 1), **DIT, **options)
    with pytest.raises(InputError, match=message):
        estimate_sads(network, **{"num_networks": 4, **choices})


def test_a_last_layer_that_is_not_said_cannot_be_integrated_out():
    network = create_score_network("mlp", (6,), width=4)._replace(last_layer=None)
    with pytest.raises(InputError, match="readout: 'marginalized' needs the variances"):
        estimate_sads(network, 4)


@pytest.mark.parametrize(
    "last_layer", [3, lambda v: {"w": 1.0}, lambda v: [1.0, 0.0], lambda v: {"v": 0.0, "w": -1.0}]
)
def test_a_last_layer_must_be_told_as_the_variables_are(last_layer):
    network = ScoreNetwork(
        lambda key: {"v": jax.random.normal(key, (2,)), "w": jax.random.normal(key, (2,))},
        lambda variables, x, t: variables["w"] + variables["v"] * x,
        (2,),
        last_layer,
    )
    with pytest.raises(InputError, match=r"^last_layer: "):
        score_geometry.check_last_layer(network, "marginalized")


def _raising(variables, x, t):
    raise ValueError("no such layer")


@pytest.mark.parametrize(
    ("init", "apply", "message"),
    [
        (lambda key: {}, _raising, r"apply\(variables, x, t\) raised ValueError: no such layer"),
        (lambda key: {}[key], _raising, "init raised "),
        (lambda key: {}, lambda v, x, t: x[:, :1], r"apply must return noise \(2, 2\).* \(2, 1\)"),
        (lambda key: {}, lambda v, x, t: x[0], r"apply must return noise \(2, 2\).* \(2,\)"),
        (lambda key: {}, lambda v, x, t: (x, t), "apply must return noise .* got tuple"),
        (lambda key: {}, lambda v, x, t: x > 0, "apply must return floating-point noise, got bool"),
    ],
)
def test_an_own_network_that_breaks_the_contract_is_told_how(init, apply, message):
    network = ScoreNetwork(init, apply, (2,))
    with pytest.raises(InputError, match=f"^network: {message}"):
        estimate_sads(network, 4, readout="sampled")
    with pytest.raises(InputError, match=f"^network: {message}"):
        make_sampler(network)


def test_an_own_network_may_give_noise_as_vectors():
    def apply(variables, x, t):
        return x.reshape(len(x), -1) @ variables["w"]

    def init(key):
        return {"w": jax.random.normal(key, (4, 4))}

    flat = ScoreNetwork(init, apply, (2, 2, 1))
    shaped = flat._replace(apply=lambda v, x, t: apply(v, x, t).reshape(x.shape))
    samples = [make_sampler(one, 3)(init(jax.random.key(0)), 1, 2) for one in (flat, shaped)]
    np.testing.assert_array_equal(*samples)


def test_a_record_tells_signals_apart():
    network, how = create_score_network("mlp", (3,), width=2), {"readout": "sampled"}
    one, other = (estimate_sads(network, 4, signal=SHORT * s, **how).config for s in (1, 0.9))
    assert one["signal"] != other["signal"] and one["num_levels"] == other["num_levels"] == len(
        SHORT
    )


def test_rows_of_a_wide_last_layer_are_those_that_are_computed_at_once(monkeypatch):
    network = create_score_network("mlp", (3,), width=2)
    at_once = rows_of(network, 5)
    monkeypatch.setattr(score_geometry, "_ENTRIES", 0)
    np.testing.assert_allclose(rows_of(network, 5), at_once, rtol=1e-6)


@pytest.mark.parametrize(
    ("variance", "shape", "message"),
    [
        (
            4.0,
            lambda w: w,
            r"w is said to have entries of variance 4; those of 64 networks have 0.989 ±",
        ),
        (1.0, jnp.tanh, "the output must be linear in w; twice as large entries do not double it"),
        (1.0, lambda w: w + 1, "the output must be linear in w"),
    ],
)
def test_what_is_said_of_a_last_layer_is_tested(variance, shape, message):
    network = ScoreNetwork(
        lambda key: {"w": jax.random.normal(key, (4, 4))},
        lambda variables, x, t: (x + 1) @ shape(variables["w"]),
        (4,),
        lambda variables: {"w": variance},
    )
    with pytest.raises(InputError, match=f"^last_layer: {message}"):
        estimate_sads(network, 4)


def test_little_noise_keeps_its_scale():
    # F = x_t / √(1 − ᾱ) of x₀ = 0 is ε, at a level where 1 − ᾱ is no float32.
    echo = ScoreNetwork(lambda key: {}, lambda variables, x, t: x, (4,))
    how = {"readout": "sampled", "noised": True}
    field = score_geometry.output(echo, signal=[1 - 2e-7], **how)
    plain = score_geometry.output(echo, signal=[0.5], **how)
    found, expected = (one(None, {}, jnp.zeros(4), nad_jax.make_key(0)) for one in (field, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_probes_are_data_to_which_the_noise_of_the_level_is_added():
    # A network that returns its input: E[F Fᵀ] is the mean of (ᾱ S + (1 − ᾱ) I)/(1 − ᾱ).
    echo = ScoreNetwork(lambda key: {}, lambda variables, x, t: x, (4,))
    data = np.float32([[3.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    signal = Schedule(30).alpha_bar
    with pytest.warns(UserWarning, match="but for the factor of the score"):
        probe = nad_jax.images(data, per_network=1)
        how = {"readout": "sampled", "signal": signal}
        found = estimate_sads(echo, 20_000, probe=probe, noised=True, **how).matrix
    moment = data.T @ data / 2
    exact = np.mean([(a * moment + (1 - a) * np.eye(4)) / (1 - a) for a in signal], 0)
    assert close(found, exact, 0.05)


def test_too_few_networks_are_no_fault_of_the_architecture():
    network = create_score_network("mlp", (4, 4, 1), width=8)
    with pytest.warns(UserWarning, match="10 networks have at most as many directions of 16"):
        sads = estimate_sads(network, 10, readout="sampled")
    assert sads.num_zero == 6
