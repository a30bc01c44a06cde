"""Closed forms against sampled networks, and against quadrature of another kind."""

from typing import get_args

import flax.linen as nn
import jax
import numpy as np
import pytest
from scipy import integrate, optimize, special

import nad_jax
from nad_jax import activations
from nad_jax.architectures.network import ACTIVATIONS, Activation
from nad_jax.errors import InputError

DIMENSION = 20


class ReLU(nn.Module):
    """Dense layers with weights N(0, 2/fan_in) and biases N(0, .09), or no biases."""

    widths: tuple
    biases: bool = True

    @nn.compact
    def __call__(self, x):
        law = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        for width in self.widths:
            bias_law = nn.initializers.normal(0.3)
            x = nn.relu(nn.Dense(width, self.biases, kernel_init=law, bias_init=bias_law)(x))
        return nn.Dense(1, self.biases, kernel_init=law)(x)


def _gradients(model, count):
    """[N, D] gradients of sampled networks at one point."""
    x = jax.random.normal(jax.random.key(1), (1, DIMENSION))

    @jax.jit
    @jax.vmap
    def gradients(key):
        variables = model.init(key)
        return jax.grad(lambda x: model.apply(variables, x)[0, 0])(x)[0]

    return np.asarray(gradients(jax.random.split(jax.random.key(0), count)), np.float64)


@pytest.mark.parametrize(
    ("initialization", "how"),
    [
        ("flax", {"sigma_w": 2**0.5}),  # which the module draws
        *(
            (name, {"initialization": name})
            for name in ("reference", "orthogonal", "sigma:1.4:0.3")
        ),
    ],
)
def test_a_relu_network_of_any_width_is_isotropic(initialization, how):
    """All 210 entries of the matrix in standard errors: narrow, with biases, at one point."""
    widths = (5, 7, 6)
    module = ReLU(widths)
    model = nad_jax.from_linen(module, (DIMENSION,), initialization=initialization)
    rows, theory = _gradients(model, 8_000), np.eye(DIMENSION)
    theory *= nad_jax.relu_eigenvalue(DIMENSION, widths, biases=True, **how)
    mean, square = (one.T @ one / len(rows) for one in (rows, rows**2))
    scores = (mean - theory) / np.sqrt((square - mean**2) / len(rows))
    scores = scores[np.triu_indices(DIMENSION)]
    assert np.abs(scores).max() <= 4.5 and 0.7 < np.mean(scores**2) < 1.3


def test_variances_of_ones_own_are_those_of_the_formula():
    found = nad_jax.relu_eigenvalue(4, (5, 7), weight_variances=(0.3, 0.2, 0.1), slope=0.5)
    assert found == pytest.approx(0.1 * (5 * 0.3 * 0.625) * (7 * 0.2 * 0.625))
    gaussian = nad_jax.relu_eigenvalue(4, (5, 7), sigma_w=1.5)
    assert gaussian == pytest.approx(1.5**2 / 4 * (1.5**2 / 2) ** 2)
    reference = nad_jax.relu_eigenvalue(4, (5, 7), initialization="reference")
    assert reference == pytest.approx(1 / (3 * 7) * (5 / (6 * 4)) * (7 / (6 * 5)))


@pytest.mark.parametrize(
    "initialization", ["reference", "flax", "he", "lecun", "orthogonal", "sigma:1.4:0.1"]
)
def test_initializations_of_models_are_known_by_their_names(initialization):
    """The weights that a model draws have the variances that λ is made of."""
    dimension, widths = 20, (40, 30)

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            for width in widths:
                x = nn.relu(nn.Dense(width)(x))
            return nn.Dense(1)(x)

    model = nad_jax.from_linen(Plain(), (dimension,), initialization=initialization, check=False)
    layers = jax.jit(jax.vmap(model.init))(jax.random.split(jax.random.key(0), 100))["params"]
    squares = [np.mean(np.square(layers[f"Dense_{n}"]["kernel"])) for n in range(3)]
    drawn = nad_jax.relu_eigenvalue(dimension, widths, weight_variances=squares)
    theory = nad_jax.relu_eigenvalue(dimension, widths, initialization=initialization)
    assert theory == pytest.approx(drawn, rel=0.1)  # a read-out of 3,000 weights: 2.6 %
    assert {"he": 1 / 20 * 2, "lecun": 1 / 20 / 4}.get(initialization, theory) == pytest.approx(
        theory
    )


def test_the_kurtosis_knows_initializations_of_independent_gaussian_weights():
    for name in ("he", "lecun", "sigma:1.4:0"):
        assert nad_jax.relu_kurtosis((5, 7), initialization=name) == nad_jax.relu_kurtosis((5, 7))


def _energies(widths, slope, count):
    """[N] what networks without biases say of vᵀGv: read-outs marginalized, and sampled."""
    rng = np.random.default_rng(0)
    x, v = np.ones((1, 20), np.float32), np.eye(1, 20, dtype=np.float32)
    for width in widths:
        weights = rng.standard_normal((count, width, 20), np.float32)
        x, v = ((weights @ one[..., None])[..., 0] for one in (x, v))
        gates = np.where(x > 0, 1, slope)
        x, v = gates * x, gates * v
    readouts = rng.standard_normal((count, widths[-1]), np.float32)
    return (v**2).sum(1), (readouts * v).sum(1) ** 2


def test_the_kurtosis_says_how_many_networks_are_needed():
    """400 ensembles of 200 networks 20-20: an error is known to 4 %, of sampled ones to less."""
    energies = _energies((20, 20), 0.0, 400 * 200)
    kappas = {"marginalized": 1.5625, "sampled": 4.6875}
    for (readout, kappa), one in zip(kappas.items(), energies, strict=True):
        assert nad_jax.relu_kurtosis((20, 20), readout) == pytest.approx(kappa)
        means, error = one.reshape(400, 200).mean(1), np.sqrt((kappa - 1) / 200)
        assert means.std(ddof=1) / means.mean() == pytest.approx(error, rel=0.2)
        assert nad_jax.networks_needed(error, kappa) == 200
    assert nad_jax.networks_needed(0.1, 1.0) == 1 and nad_jax.networks_needed(0.3, 2.0) == 12


def test_the_kurtosis_of_a_leaky_network_is_that_of_its_slope():
    one, _ = _energies((20,), 0.5, 40_000)
    kappa = nad_jax.relu_kurtosis((20,), slope=0.5)
    assert (one**2).mean() / one.mean() ** 2 == pytest.approx(kappa, rel=0.01)
    assert nad_jax.relu_kurtosis((20,), slope=1.0) == pytest.approx(1 + 2 / 20)  # chi-squared
    assert abs(kappa / nad_jax.relu_kurtosis((20,)) - 1) > 0.03


@pytest.mark.parametrize(
    ("widths", "share"), [((7,), 0.5), ((200, 200), 0.3408), ((200, 200, 200), 0.2531)]
)
def test_large_steps_see_a_share_that_depends_on_depth(widths, share):
    how = {"sigma_w": 2**0.5}
    exact = nad_jax.relu_eigenvalue(4, widths, **how)
    theory = nad_jax.relu_eigenvalue(4, widths, derivative="central_difference", **how)
    assert theory / exact == pytest.approx(share, abs=5e-5)
    rng, count = np.random.default_rng(0), 200
    x = np.stack([np.eye(4), -np.eye(4)]).reshape(8, 4)[None]  # a step either way along each entry
    for width in widths:
        weights = rng.standard_normal((count, x.shape[-1], width), np.float32)
        x = np.maximum(x @ weights * np.sqrt(2 / x.shape[-1]), 0)
    rows = (x[:, :4] - x[:, 4:]) / 2
    energies = 2 / widths[-1] * (rows**2).sum(2).mean(1)  # the read-out marginalized
    found, error = energies.mean(), energies.std(ddof=1) / np.sqrt(count)
    # ½ is exact at any width.
    assert abs(found - theory) < 3 * error + (0.03 * theory if len(widths) > 1 else 0)
    assert error < 0.04 * theory


def test_the_published_derivative_is_a_large_step():
    """One hidden layer of 7 units, read-outs marginalized: ½ λ I."""
    model = nad_jax.from_linen(ReLU((7,), biases=False), (4,), readout_variance=2 / 7, check=False)
    nads = nad_jax.estimate_nads(model, 1_000, derivative="central_difference", point_scale=0.0)
    theory = nad_jax.relu_eigenvalue(4, (7,), sigma_w=2**0.5, derivative="central_difference")
    assert abs(nads.trace - 4 * theory) < 4 * nads.trace_sem < 0.2 * nads.trace
    assert np.abs(nads.matrix - theory * np.eye(4)).max() < 0.15 * theory


def _mean(function, variance):
    """⟨function⟩ over N(0, K) by adaptive quadrature."""

    def integrand(z):
        return function(np.sqrt(variance) * z) * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)

    return integrate.quad(integrand, -14, 14, points=[0], epsabs=1e-14, epsrel=1e-13, limit=400)[0]


GELU = (
    lambda u: u * special.ndtr(u),
    lambda u: special.ndtr(u) + u * np.exp(-(u**2) / 2) / np.sqrt(2 * np.pi),
)
SILU = (
    lambda u: u * special.expit(u),
    lambda u: special.expit(u) * (1 + u * special.expit(-u)),
)


@pytest.mark.parametrize(
    ("name", "activation", "square", "bias", "variance"),
    [
        ("gelu", GELU, 1.98305826, 0.17292239, (3 + 17**0.5) / 2),
        ("silu", SILU, 1.98800468, 0.55514317, 14.32017362),
    ],
)
def test_critical_points_are_those_of_another_quadrature(name, activation, square, bias, variance):
    value, slope = activation

    def difference(k):  # of the susceptibilities, by another formula of the parallel one
        parallel = _mean(lambda u: value(u) ** 2 * (u**2 - k), k) / (2 * k**2)
        return parallel - _mean(lambda u: slope(u) ** 2, k)

    root = optimize.brentq(difference, 2.0, 30.0, xtol=1e-12, rtol=1e-12)
    slopes = _mean(lambda u: slope(u) ** 2, root)
    squares = _mean(lambda u: value(u) ** 2, root)
    found = nad_jax.critical_point(name)
    expected = [slopes**-0.5, np.sqrt(root - squares / slopes), root]
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    rounded = [found.sigma_w**2, found.sigma_b**2, found.variance]
    np.testing.assert_allclose(rounded, [square, bias, variance], rtol=0, atol=6e-9)


def test_critical_networks_keep_differences_and_the_variance():
    for name in ("relu", "gelu", "silu"):
        sigma_w, _, variance = nad_jax.critical_point(name)
        found = nad_jax.susceptibilities(name, sigma_w, 1.0 if name == "relu" else variance)
        np.testing.assert_allclose(found, 1.0, rtol=1e-12)
    # To first order in K: tanh² is u² − 2u⁴/3, and its slope squared 1 − 2u².
    for name, a, b in (("tanh", 4, 2), ("sine", 2, 1), ("erf", 4, 2)):
        found = nad_jax.susceptibilities(name, nad_jax.critical_point(name).sigma_w, 1e-5)
        np.testing.assert_allclose(found, (1 - a * 1e-5, 1 - b * 1e-5), rtol=1e-8)
    # Below 0 elu² is u² + u³, and its slope squared 1 + 2u: to first order in √K.
    assert nad_jax.critical_point("elu") == (1.0, 0.0, 0.0)
    found = nad_jax.susceptibilities("elu", 1.0, 1e-10)
    small = 1e-5 / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(found, (1 - 3 * small, 1 - 2 * small), rtol=1e-9)
    below, above = (nad_jax.susceptibilities("tanh", one, 0.5) for one in (0.5, 3.0))
    assert max(below) < 1 < min(above)


def test_susceptibilities_have_closed_forms():
    # ⟨sin²⟩ = (1 − e^{−2K})/2, ⟨cos²⟩ = (1 + e^{−2K})/2, also where it oscillates.
    for variance in (0.3, 40.0):
        found = nad_jax.susceptibilities("sine", 2.0, variance)
        decay = np.exp(-2 * variance)
        np.testing.assert_allclose(found, (4 * decay, 2 + 2 * decay), rtol=1e-11, atol=1e-12)
    # ⟨erf²⟩ = (2/π) arcsin(2K/(1 + 2K)), ⟨erf′²⟩ = (4/π)/√(1 + 4K), also where it is a step.
    for variance in (0.3, 1e6):
        ratio = 2 * variance / (1 + 2 * variance)
        along = 2 / np.pi / np.sqrt(1 - ratio**2) * 2 / (1 + 2 * variance) ** 2
        found = nad_jax.susceptibilities("erf", 1.0, variance)
        across = 4 / np.pi / np.sqrt(1 + 4 * variance)
        np.testing.assert_allclose(found, (along, across), rtol=1e-9)
    # ⟨φ′²⟩ of ELU is ½ + e^{2K} Φ(−2√K).
    for variance in (0.3, 9.0):
        found = nad_jax.susceptibilities("elu", 1.0, variance).perpendicular
        expected = 0.5 + np.exp(2 * variance) * special.ndtr(-2 * np.sqrt(variance))
        np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_activations_are_those_of_models_by_their_names():
    u = np.linspace(-4, 4, 17)  # with 0, where ReLU has a kink
    assert {*get_args(Activation)} == {*ACTIVATIONS}
    others = {"erf": jax.scipy.special.erf, "softplus": jax.nn.softplus}
    assert {*activations.ACTIVATIONS} == {*ACTIVATIONS, *others}
    with jax.enable_x64():
        for name, function in {**ACTIVATIONS, **others}.items():
            value, slope = activations.ACTIVATIONS[name](u)
            np.testing.assert_allclose(value, function(u), atol=1e-12, err_msg=name)
            np.testing.assert_allclose(slope, jax.vmap(jax.grad(function))(u), atol=1e-12)
    for old, name in (("sin", "sine"), ("swish", "silu")):
        for ask in (
            nad_jax.critical_point,
            lambda one: nad_jax.susceptibilities(one, 1.2, 0.5),
            lambda one: nad_jax.wide_eigenvalues(one, 5, 2, 1.0),
        ):
            np.testing.assert_array_equal(ask(old), ask(name))


def test_wide_networks_have_two_eigenvalues():
    """Of ReLU they are λ, of wide tanh networks those of sampled ones, derived by hand for one layer."""
    relu = nad_jax.wide_eigenvalues("relu", 20, 3, 2.5, sigma_w=1.3, sigma_b=0.4)
    theory = nad_jax.relu_eigenvalue(20, (9, 9, 9), sigma_w=1.3)
    np.testing.assert_allclose(relu, theory, rtol=1e-12)
    sines = nad_jax.wide_eigenvalues("sine", 5, 1, 2.0, sigma_w=1.5)
    # z = a u, ∂_r z = z/r: one layer of sines, ⟨cos²(z) z²⟩ = K/2 + e^{−2K} (K/2 − 2K²).
    square, variance = 1.5**2, 1.5**2 / 5 * 4.0
    decay = np.exp(-2 * variance)
    along = square * (variance / 2 + decay * (variance / 2 - 2 * variance**2)) / 4.0
    across = square / 5 * square * (1 + decay) / 2
    np.testing.assert_allclose(sines, (along, across), rtol=1e-12)


def test_the_eigenvalues_of_wide_networks_are_those_of_sampled_ones():
    """Gaussian weights and biases, two layers of 150 units."""
    rng, count, dimension, width = np.random.default_rng(0), 1_000, 8, 150
    x = np.full((count, dimension), 2.0)  # ‖x‖² = 32
    unit = np.full(dimension, dimension**-0.5)
    g = np.stack([np.tile(unit, (count, 1)), np.tile(_across(unit), (count, 1))])
    for _ in range(2):
        weights = rng.standard_normal((count, width, x.shape[1]), np.float32)
        weights *= 1.5 / np.sqrt(x.shape[1])
        z = (weights @ x[..., None])[..., 0] + 0.5 * rng.standard_normal((count, width))
        g = np.stack([(weights @ one[..., None])[..., 0] * (1 - np.tanh(z) ** 2) for one in g])
        x = np.tanh(z)
    energies = 1.5**2 * (g**2).mean(2)
    theory = nad_jax.wide_eigenvalues("tanh", dimension, 2, 32**0.5, sigma_w=1.5, sigma_b=0.5)
    error = energies.std(1) / np.sqrt(count)
    # Of finite width it errs by O(1/150).
    assert (np.abs(energies.mean(1) - theory) < 4 * error + 0.02 * np.array(theory)).all()
    assert (error < 0.02 * np.array(theory)).all() and theory.across > 1.1 * theory.along


def _across(unit):
    """A unit vector that is orthogonal to one."""
    rest = np.eye(len(unit))[0] - unit[0] * unit
    return rest / np.linalg.norm(rest)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nad_jax.relu_eigenvalue(0, (5,)), "input_dimension: must be an integer of at"),
        (lambda: nad_jax.relu_eigenvalue(4, ()), "widths: must be the widths of the hidden"),
        (lambda: nad_jax.relu_eigenvalue(4, 5), "widths: must be the widths of the hidden"),
        (lambda: nad_jax.relu_eigenvalue(4, (5,), initialization="xavier"), "initialization: unkn"),
        (
            lambda: nad_jax.relu_eigenvalue(4, (5,), initialization="he", sigma_w=1.0),
            "sigma_w: must be left out with initialization='he'",
        ),
        (
            lambda: nad_jax.relu_eigenvalue(
                4, (5,), initialization="sigma:1:0.1", derivative="central_difference"
            ),
            "initialization: σ_b must be 0 for central differences",
        ),
        (
            lambda: nad_jax.relu_kurtosis((5,), initialization="sigma:1:0.1"),
            "initialization: σ_b must be 0 for the kurtosis",
        ),
        (
            lambda: nad_jax.relu_eigenvalue(4, (5,), initialization="reference", sigma_w=1.0),
            "sigma_w: must be left out with initialization='reference'",
        ),
        (
            lambda: nad_jax.relu_eigenvalue(4, (5,), weight_variances=(1.0,)),
            "weight_variances: must be 2 numbers",
        ),
        (
            lambda: nad_jax.relu_eigenvalue(4, (5,), sigma_w=1.0, weight_variances=(1.0, 1.0)),
            "sigma_w: must be left out where weight_variances are given",
        ),
        (lambda: nad_jax.relu_eigenvalue(4, (5,), slope="x"), "slope: must be a finite number"),
        (
            lambda: nad_jax.relu_eigenvalue(4, (5,), biases=True, derivative="central_difference"),
            "biases: must be False for central differences",
        ),
        (
            lambda: nad_jax.relu_eigenvalue(4, (5,), slope=0.1, derivative="central_difference"),
            "slope: must be 0 for central differences, got 0.1",
        ),
        (lambda: nad_jax.relu_kurtosis((5,), biases=True), "biases: must be False for the kurtosi"),
        *(
            (
                lambda name=name: nad_jax.relu_kurtosis((5,), initialization=name),
                f"initialization: the kurtosis needs independent Gaussian weights: 'gaussian', 'he', "
                f"'lecun', 'sigma:W:0', got {name!r}",
            )
            for name in ("reference", "flax", "orthogonal")
        ),
        (lambda: nad_jax.relu_kurtosis((5,), "mean"), "readout: unknown value 'mean'"),
        (
            lambda: nad_jax.critical_point("sigmoid"),
            "activation: 'sigmoid' has no critical point; these have: 'linear', 'relu', 'tanh', 's",
        ),
        (
            lambda: nad_jax.critical_point("softplus"),
            "activation: 'softplus' has no critical point; these have: 'linear', 'relu', 'tanh', 's",
        ),
        (lambda: nad_jax.critical_point(["sin"]), "activation: unknown value ['sin']"),
        (
            lambda: nad_jax.susceptibilities("tanh", 1.0, 0.0),
            "variance: must be a finite number gre",
        ),
        (
            lambda: nad_jax.susceptibilities("tanh", 0.0, 1.0),
            "sigma_w: must be a finite number grea",
        ),
        (
            lambda: nad_jax.wide_eigenvalues("tanh", 5, 0, 1.0),
            "depth: must be an integer of at leas",
        ),
        (
            lambda: nad_jax.wide_eigenvalues("tanh", 5, 2, 0.0),
            "radius: must be a finite number grea",
        ),
        (
            lambda: nad_jax.wide_eigenvalues("tanh", 5, 2, 1.0, sigma_b=-1.0),
            "sigma_b: must be a finite number at least 0",
        ),
        (lambda: nad_jax.networks_needed(0.0, 2.0), "relative_error: must be a finite number"),
        (lambda: nad_jax.networks_needed(0.1, 0.5), "kappa: must be a finite number at least 1"),
    ],
)
def test_what_is_outside_of_the_assumptions_is_refused(call, message):
    with pytest.raises(InputError) as raised:
        call()
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)
