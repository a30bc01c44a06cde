"""Diffusion against closed forms: noise levels, the sampler on Gaussian data, the best loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import (
    Schedule,
    ScoreNetwork,
    add_noise,
    as_model,
    gaussian_loss,
    gaussian_network,
    pack,
    sample_ddim,
    sampled_variance,
)
from nad_jax.diffusion import make_sampler, plan_steps
from nad_jax.errors import InputError

SHORT = Schedule(50, 0.1, 20.0)


def _direction(size=6):
    v = np.arange(1.0, size + 1)
    return v / np.linalg.norm(v)


def _covariance(size=6):
    rows = np.random.default_rng(0).normal(size=(size, size))
    return rows @ rows.T / size


def test_alpha_bar_is_the_product_over_the_levels_so_far():
    betas = [(0.1 + (20 - 0.1) * t / 999) / 1000 for t in range(1000)]
    np.testing.assert_allclose(Schedule().betas, betas, rtol=1e-12)
    np.testing.assert_allclose(Schedule().alpha_bar, np.cumprod(1 - np.array(betas)), rtol=1e-12)


def test_noised_inputs_have_the_share_of_data_that_alpha_bar_says():
    x, noise = np.random.default_rng(1).normal(size=(2, 3, 4, 4, 1)).astype(np.float32)
    levels = np.array([0, 20, 49])
    share = np.cumprod(1 - SHORT.betas)[levels].reshape(3, 1, 1, 1)
    noised = add_noise(jnp.asarray(x), jnp.asarray(levels), jnp.asarray(noise), SHORT)
    np.testing.assert_allclose(noised, np.sqrt(share) * x + np.sqrt(1 - share) * noise, atol=1e-6)


def _reference_step(x, noise, z, t, s, eta, alpha_bar):
    """One step of DDIM as its paper writes it, from level t to s; the data are s = −1."""
    at, lower = alpha_bar[t], alpha_bar[s] if s >= 0 else 1.0
    predicted = (x - np.sqrt(1 - at) * noise) / np.sqrt(at)
    sigma = eta * np.sqrt((1 - lower) / (1 - at)) * np.sqrt(1 - at / lower)
    return np.sqrt(lower) * predicted + np.sqrt(1 - lower - sigma**2) * noise + sigma * z


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_a_step_is_that_of_ddim(eta):
    steps, alpha_bar = plan_steps(4, eta, SHORT), np.cumprod(1 - SHORT.betas)
    assert steps.levels.tolist() == [49, 33, 16, 0]
    x, noise, z = np.random.default_rng(2).normal(size=(3, 5))
    for number, (t, s) in enumerate([(49, 33), (33, 16), (16, 0), (0, -1)]):
        keep, remove, added = (one[number] for one in steps[1:])
        expected = _reference_step(x, noise, z, t, s, eta, alpha_bar)
        np.testing.assert_allclose(keep * x + remove * noise + added * z, expected, rtol=1e-9)


def test_with_all_levels_and_eta_one_a_step_draws_from_the_posterior_of_ddpm():
    steps, betas = plan_steps(0, 1.0, SHORT), SHORT.betas
    alpha_bar = np.cumprod(1 - betas)
    lower = np.append(1.0, alpha_bar[:-1])
    variance = betas * (1 - lower) / (1 - alpha_bar)
    np.testing.assert_allclose(steps.noise[::-1] ** 2, variance, atol=1e-12)
    # The mean is (x − β ε / √(1 − ᾱ)) / √(1 − β).
    np.testing.assert_allclose(steps.keep[::-1], 1 / np.sqrt(1 - betas))
    removed = -betas / np.sqrt(1 - alpha_bar) / np.sqrt(1 - betas)
    np.testing.assert_allclose(steps.remove[::-1], removed, rtol=1e-9)


def _scatter(size=6):
    v = _direction(size)
    return size * np.outer(v, v)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("covariance", [_covariance(), _scatter()], ids=["full", "rank one"])
def test_samples_of_the_best_network_have_the_covariance_of_the_recursion(covariance, eta):
    network, count = gaussian_network(covariance, (2, 3, 1), SHORT), 20_000
    samples = sample_ddim(network, {}, 3, count, 20, eta, SHORT, batch_size=5_000)
    variances, basis = np.linalg.eigh(covariance)
    expected = sampled_variance(np.maximum(variances, 0), 20, eta, SHORT)
    assert samples.shape == (count, 2, 3, 1)
    rotated = np.asarray(samples, np.float64).reshape(count, 6) @ basis
    found = rotated.T @ rotated / count
    # Var of a product of Gaussians: s_i s_j, and 2 s_i² for a square.
    error = np.sqrt(np.outer(expected, expected) * (1 + np.eye(6)) / count)
    assert np.all(np.abs(found - np.diag(expected)) < 4 * error + 1e-5)


def test_the_variance_of_samples_tends_to_that_of_the_data_with_levels():
    data, sizes = np.array([0.1, 1.0, 16.0, 256.0]), (50, 100, 200, 400, 800)
    for eta in (0.0, 1.0):
        errors = []
        for schedule in (Schedule(size, 0.1, 20.0) for size in sizes):
            # Without noise, samples begin at 1 and not at the variance of noised data, and keep that.
            share = schedule.alpha_bar[-1]
            limit = data if eta else data / (share * data + 1 - share)
            errors.append(np.abs(sampled_variance(data, 0, eta, schedule) - limit))
        errors = np.array(errors)
        # Of first order: half with twice as many levels.
        assert (errors[-1] / errors[-2] < 0.56).all() and (errors[-1] < 0.06 * data).all()
    assert sampled_variance(0.0, 20, 1.0, SHORT) < 1e-20


def test_a_sample_depends_on_neither_the_batches_nor_the_others():
    network = gaussian_network(_covariance(), (), SHORT)
    first = sample_ddim(network, {}, 5, 7, 10, 1.0, SHORT, batch_size=3)
    np.testing.assert_allclose(
        first, sample_ddim(network, {}, 5, 9, 10, 1.0, SHORT, batch_size=9)[:7], atol=1e-5
    )
    other = sample_ddim(network, {}, 6, 7, 10, 1.0, SHORT, batch_size=3)
    assert np.abs(first - other).min() > 1e-4
    draw = make_sampler(network, 10, 1.0, SHORT, 3)
    np.testing.assert_array_equal(first, draw({}, 5, 7))


def test_the_network_is_asked_at_falling_levels_of_the_noise():
    seen = []

    def apply(variables, x, t):
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), t, ordered=True)
        return x

    network = ScoreNetwork(lambda key: {}, apply, (3,))
    jax.block_until_ready(sample_ddim(network, {}, 0, 2, 4, 1.0, SHORT, 2))
    jax.effects_barrier()
    np.testing.assert_array_equal(np.stack(seen), [[49, 49], [33, 33], [16, 16], [0, 0]])


def test_the_best_network_is_the_mean_of_the_noise_given_the_input():
    covariance, t, rng = _covariance(3), 20, np.random.default_rng(0)
    share = np.cumprod(1 - SHORT.betas)[t]
    x0 = rng.multivariate_normal(np.zeros(3), covariance, 40_000)
    noise = rng.normal(size=x0.shape)
    x = np.sqrt(share) * x0 + np.sqrt(1 - share) * noise
    fitted, *_ = np.linalg.lstsq(x, noise, rcond=None)  # regression finds the conditional mean
    network = gaussian_network(covariance, (), SHORT)
    predicted = network.apply({}, jnp.eye(3), jnp.full(3, float(t)))
    np.testing.assert_allclose(predicted, fitted, atol=0.02)


def test_its_loss_is_the_closed_form():
    v, share = _direction(), np.cumprod(1 - SHORT.betas)
    rank_one = np.mean(share * 6 / (share * 6 + 1 - share)) / 6
    assert gaussian_loss(6 * np.outer(v, v), SHORT) == pytest.approx(rank_one, rel=1e-9)
    covariance, total = _covariance(), 0.0
    for at in share:  # of the matrix: E‖ε‖² − ‖E[ε|x]‖²
        best = (1 - at) * np.linalg.inv(at * covariance + (1 - at) * np.eye(6))
        total += (6 - np.trace(best)) / 6 / len(share)
    assert gaussian_loss(covariance, SHORT) == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan_steps(51, 1.0, SHORT), "^num_steps: must be an integer in 0 … 50, got 51"),
        (lambda: plan_steps(5, 1.5, SHORT), "^eta: must be a number in 0 … 1, got 1.5"),
        (lambda: plan_steps(5, -0.5, SHORT), "^eta: must be a finite number of at least 0|^eta"),
        (lambda: plan_steps(5, 1.0, (50, 1, 2)), "^schedule: must be Schedule, got tuple"),
        (lambda: plan_steps(5, 1.0, Schedule(10)), "^last: β must be below 1"),
        (lambda: plan_steps(5, 1.0, Schedule(0)), "^num_levels: must be an integer of at least 1"),
        (lambda: Schedule(num_levels=3).alpha_bar, "^last: β must be below 1"),
        (lambda: Schedule(num_levels=2.5).betas, "^num_levels: must be an integer"),
        (lambda: plan_steps(5, 1.0, Schedule(first=0.0)), "^first: must be a finite number gr"),
        (lambda: sample_ddim(None, {}, 0, 5), "^network: must be ScoreNetwork, got NoneType"),
        (lambda: sample_ddim(gaussian_network(np.eye(2)), {}, 0, 0), "^num_samples: must be an"),
        (lambda: sample_ddim(gaussian_network(np.eye(2)), {}, 0.5, 1), "^key: must be an integer"),
        (lambda: make_sampler(gaussian_network(np.eye(2)), 5, batch_size=0), "^batch_size: must"),
        (lambda: gaussian_network(np.eye(4), (3, 1)), "^input_shape: must have 4 entries"),
        (lambda: gaussian_network(np.ones((2, 3))), "^covariance: must be symmetric"),
        (lambda: gaussian_network(-np.eye(2)), "^covariance: must have no negative eigenvalue"),
        (lambda: gaussian_loss([[0.0, 1.0], [2.0, 0.0]]), "^covariance: must be symmetric"),
        (lambda: sampled_variance(-1.0), "^variance: must be at least 0, got -1"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_integer_images_are_noised_as_numbers():
    x, t = np.full((2, 3), 200, np.uint8), np.array([0, 999])
    found = add_noise(x, t, np.zeros((2, 3), np.float32))
    roots = np.sqrt(Schedule().alpha_bar[[0, 999]])
    np.testing.assert_allclose(found, 200 * roots[:, None].repeat(3, 1), rtol=1e-5)
    assert pack(x, np.array([300, 999]))[:, -1].tolist() == [300, 999]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"t": [0, 1000]}, r"t: must be in 0 … 999, got 1000"),
        ({"t": [-1, 0]}, r"t: must be in 0 … 999, got -1"),
        ({"t": [0.0, 1.0]}, "t: must be integers"),
        ({"t": [0]}, r"t: must be integers \[2\]"),
        ({"schedule": None}, "schedule: "),
        ({"noise": np.zeros((2, 2))}, "noise: must be of the shape of x"),
        ({"x": "text"}, "x: "),
    ],
)
def test_what_noise_cannot_be_added_to_is_named(given, message):
    usual = {"x": np.zeros((2, 3)), "t": [0, 1], "noise": np.zeros((2, 3))}
    with pytest.raises(InputError, match=message):
        add_noise(**{**usual, **given})


def test_inputs_and_levels_of_other_numbers_are_not_packed():
    with pytest.raises(InputError, match="t: must be one for each of the 2 inputs, got 3"):
        pack(np.zeros((2, 3)), np.zeros(3))


def test_a_network_of_inputs_of_no_shape_is_refused():
    network = ScoreNetwork(lambda key: {}, lambda variables, x, t: x, 4)
    with pytest.raises(InputError, match="_shape: "):
        as_model(network)
