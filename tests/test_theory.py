"""What a theorist meets first: the default derivative, its closed forms, errors between points, and
a record that says in seven lines what it is.
"""

import inspect
import subprocess
import sys
from functools import partial
from importlib import resources

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nad_jax
from experiments import compute_nads
from experiments.run import dry_run, runner
from nad_jax.accumulation import make_accumulate
from nad_jax.batches import standard_error
from nad_jax.between_points import error_between_points
from nad_jax.choices import Estimator
from nad_jax.ensemble import Execution, make_key
from nad_jax.errors import InputError
from nad_jax.moments import init_halves
from nad_jax.reading import keep_batches, make_dense
from nad_jax.summary import describe
from tests.test_configs import load_config

DIMENSION = 20


class MLP(nn.Module):
    """Dense layers of one width, weights N(0, σ_w²/fan_in), without biases."""

    width: int
    depth: int
    sigma_w: float

    @nn.compact
    def __call__(self, x):
        law = nn.initializers.variance_scaling(self.sigma_w**2, "fan_in", "normal")
        for _ in range(self.depth):
            x = jnp.tanh(nn.Dense(self.width, use_bias=False, kernel_init=law)(x))
        return nn.Dense(1, kernel_init=law)(x)


def _gaussian_mean(function, covariance):
    """E function(a, b) of centered Gaussian numbers of this covariance, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    (first, mixed), (_, second) = covariance
    rest = np.sqrt(max(second - mixed**2 / first, 0.0))  # 0 in the first layer, where b ~ a
    one, other = np.meshgrid(nodes, nodes, indexing="ij")
    a, b = np.sqrt(first) * one, mixed / np.sqrt(first) * one + rest * other
    return (np.outer(weights, weights) * function(a, b)).sum() / weights.sum() ** 2


def _slope(a):
    return 1 - np.tanh(a) ** 2


def _wide_eigenvalues(radius, depth, sigma_w):
    """The eigenvalues of E[g gᵀ] along x and across it, of wide tanh networks at ‖x‖ = radius.

    Derived: across, (C/D) Π C⟨σ'²⟩; along, the law of the derivative z' = ∂_r z is carried from layer
    to layer with that of z, as (E z², E z z', E z'²).
    """
    variance = sigma_w**2
    moments = np.array([radius**2, radius, 1.0]) * variance / DIMENSION
    across = variance / DIMENSION
    for _ in range(depth):
        covariance = np.array([[moments[0], moments[1]], [moments[1], moments[2]]])
        across *= variance * _gaussian_mean(lambda a, b: _slope(a) ** 2, covariance)
        squares = _gaussian_mean(lambda a, b: np.tanh(a) ** 2, covariance)
        mixed = _gaussian_mean(lambda a, b: np.tanh(a) * _slope(a) * b, covariance)
        slopes = _gaussian_mean(lambda a, b: (_slope(a) * b) ** 2, covariance)
        moments = variance * np.array([squares, mixed, slopes])
    return moments[2], across


@pytest.mark.filterwarnings("ignore:derivative")
def test_a_tanh_network_shows_its_two_eigenvalues_by_default():
    """At σ_w = 2 a step of 100 sees saturated units alone; the definition sees x and what is across."""
    width, depth, sigma_w = 200, 2, 2.0
    x = np.random.default_rng(0).normal(size=DIMENSION).astype(np.float32)
    variance = sigma_w**2 / width
    model = nad_jax.from_linen(
        MLP(width, depth, sigma_w), input_shape=(DIMENSION,), readout_variance=variance
    )
    nads = nad_jax.estimate_nads(model, 600, points=x[None])
    along, across = _wide_eigenvalues(np.linalg.norm(x), depth, sigma_w)
    unit = x / np.linalg.norm(x)
    found = nad_jax.directional_energy(nads, unit[None])[0]
    rest = (nads.trace - found) / (DIMENSION - 1)
    # Finite width biases either by O(1/width); 600 networks know them to 1 %.
    assert found == pytest.approx(along, rel=0.06) and rest == pytest.approx(across, rel=0.04)
    assert abs(along / across - 1) > 0.2
    odd = 0 if along > across else -1  # the one eigenvalue that is apart
    assert abs(nads.directions[odd] @ unit) > 0.9


def test_the_default_is_the_definition_and_says_so_once():
    code = """
import warnings
import nad_jax
from experiments import compute_nads
from experiments.run import runner
model = nad_jax.create_model("mlp", (4, 4, 1))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    first = nad_jax.estimate_nads(model, 2)
    nad_jax.estimate_nads(model, 2)
    nad_jax.estimate_nads(model, 2, derivative="central_difference")
assert first.config["derivative"] == "input_gradient"
assert len(caught) == 1 and caught[0].category is FutureWarning, caught
assert caught[0].filename == "<string>", caught[0].filename
print(caught[0].message)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "'input_gradient', the definition of NADs" in result.stdout
    assert "'central_difference'" in result.stdout


@pytest.mark.parametrize("function", ["estimate_nads", "estimate_leading_nads"])
def test_choices_are_arguments_with_the_defaults_of_their_records(function):
    parameters = inspect.signature(getattr(nad_jax, function)).parameters
    assert not any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    records = {**Estimator.__dataclass_fields__, **Execution._field_defaults}
    assert {*records} <= {*parameters}
    for name, kept in records.items():
        if name not in ("derivative", "readout"):  # None: see `read_choices`
            assert parameters[name].default == getattr(kept, "default", kept), name


def test_what_points_and_networks_differ_in_is_told_apart():
    """Energies a_n + b_p + c_np of known variances: the error is that of new points, on average."""
    num_networks, asked, num_points, count = 100, 16, 10, 4_000
    draw = np.random.default_rng(0).normal
    energies = 2.0 * draw(size=(asked, 1, count)) + 0.5 * draw(size=(1, num_points, count))
    energies = energies + 1.0 * draw(size=(asked, num_points, count))
    found = (error_between_points(energies, num_networks) ** 2).mean()
    expected = 0.5**2 / num_points + 1.0**2 / (num_networks * num_points)
    assert found == pytest.approx(expected, rel=0.05)


def _squares(scales):
    """f(x) = Σ θ_i x_i² / 2 with random signs θ: the geometry at x is diagonal, x_i², on average."""

    def init(key):
        return jax.random.rademacher(key, (len(scales),)).astype(jnp.float32) * scales

    def apply(variables, x):
        return (x**2 / 2) @ variables[:, None]

    return nad_jax.from_functions(init, apply, (len(scales),), check=False)


@pytest.mark.parametrize("leading", [False, True])
def test_the_error_of_one_network_is_that_between_points(leading):
    scales = np.array([9.0, 3.0, 1.0], np.float32)
    points = np.random.default_rng(1).normal(size=(30, 3)).astype(np.float32)
    model, how = _squares(scales), {"points": points, "derivative": "input_gradient"}
    how["variables"] = jnp.array(scales)[None]
    estimate = partial(nad_jax.estimate_leading_nads, num_directions=1, num_extra=1)
    nads = (estimate if leading else nad_jax.estimate_nads)(model, 1, **how)
    squares = ((points * scales) @ nads.directions[0]) ** 2
    expected = squares.std(ddof=1) / np.sqrt(30)
    np.testing.assert_allclose([nads.point_sem[0], nads.eigenvalue_sem[0]], expected, rtol=1e-4)


def test_the_error_between_points_is_of_points_that_networks_share(tmp_path):
    model = nad_jax.create_model("mlp", (4, 4, 1), width=8)
    x = np.random.default_rng(0).normal(size=(12, 4, 4, 1)).astype(np.float32)
    how = {"derivative": "input_gradient"}
    shared = nad_jax.estimate_nads(model, 6, points=x, symmetrized=False, **how)
    assert shared.point_sem.shape == (16,) and (shared.point_sem > 0).all()
    assert "point_sem" in shared.to_rows()[0]
    shared.save(tmp_path / "nads.npz")
    np.testing.assert_array_equal(
        nad_jax.load_nads(tmp_path / "nads.npz").point_sem, shared.point_sem
    )
    own = nad_jax.estimate_nads(model, 6, points=nad_jax.images(x, per_network=3), **how)
    one = nad_jax.estimate_nads(model, 6, points=x[:1], **how)
    law = nad_jax.estimate_nads(model, 6, **how)
    assert not any(nads.point_sem.size for nads in (own, one, law))
    assert "point_sem" not in one.to_rows()[0]
    # Of whatever size: squares of these are no float32 numbers.
    large = _squares(np.array([3e25, 1e25], np.float32))
    nads = nad_jax.estimate_nads(large, 4, points=x[:, 0, :2, 0], **how, readout="sampled")
    assert np.isfinite(nads.point_sem).all() and nads.point_sem[0] > 1e48


def test_symmetrized_pairs_have_one_error_between_points():
    model = nad_jax.create_model("mlp", (4, 4, 1), width=8)
    model = model._replace(symmetries=("flip", "transpose"))
    x = np.random.default_rng(0).normal(size=(5, 4, 4, 1)).astype(np.float32)
    nads = nad_jax.estimate_nads(model, 6, points=x, symmetrized=True, derivative="input_gradient")
    pairs = nads.point_sem[nads.symmetry == "E"].reshape(-1, 2)
    np.testing.assert_allclose(pairs[:, 0], pairs[:, 1])


RECORDS = {
    "exact gradient at one point of N(0, 1²), read-out marginalized": {},
    "central difference of step 3 at the origin, read-out marginalized, symmetrized": {
        "derivative": "central_difference",
        "step": 3.0,
        "point_scale": 0.0,
        "symmetrized": True,
    },
    "exact gradient at a point of N(0, 2²) for each network, read-out sampled, 4 of each network": {
        "point": "fresh",
        "point_scale": 2.0,
        "readout": "sampled",
        "num_readouts": 4,
    },
    "exact gradient at 3 given points, read-out sampled, centered": {
        "points": np.eye(3, 36).reshape(3, 6, 6, 1),
        "readout": "sampled",
        "centred": True,
    },
    "exact gradient at 2 of 3 given points for each network, read-out marginalized": {
        "points": nad_jax.images(np.eye(3, 36).reshape(3, 6, 6, 1), per_network=2),
    },
}


@pytest.mark.parametrize("expected", RECORDS)
def test_a_record_says_in_seven_lines_what_it_is_and_how_sure(expected):
    model = nad_jax.create_model("logreg", (6, 6, 1))
    choices = {"derivative": "input_gradient", **RECORDS[expected]}
    nads = nad_jax.estimate_nads(model, 40, **choices)
    first, *lines = repr(nads).splitlines()
    assert first == f"NADs of logreg, 40 networks: {expected}"
    assert len(lines) <= 6
    assert lines[0].startswith("  eigenvalues: ") and "±" in lines[0] and "trace" in lines[0]
    assert lines[2].startswith(f"  rank {nads.rank} of D = 36; isotropy ")


def test_a_record_warns_of_directions_that_are_not_determined_and_of_passes():
    model = nad_jax.create_model("mlp", (4, 4, 1), width=64)
    nads = nad_jax.estimate_nads(model, 4, derivative="input_gradient")
    text = repr(nads)
    assert (
        "64 backward passes a network and point; readout='sampled', num_readouts=16 takes 16"
        in text
    )
    assert "beware: directions 0–" in text and "are not determined one by one" in text
    few = nad_jax.estimate_nads(
        model, 4, derivative="input_gradient", readout="sampled", num_readouts=16
    )
    assert "backward passes" not in repr(few)
    leading = nad_jax.estimate_leading_nads(model, 8, 2, derivative="input_gradient")
    assert "2 leading directions of D = 16" in repr(leading) and "isotropy" not in repr(leading)
    assert describe(leading).startswith("mlp, 8 networks: exact gradient at one point")


def test_the_namespace_is_what_is_public_and_typed():
    assert set(dir(nad_jax)) == set(nad_jax.__all__)
    assert resources.files("nad_jax").joinpath("py.typed").is_file()


def test_given_networks_have_their_own_read_out():
    model = nad_jax.create_model("mlp", (4, 4, 1), width=8)
    variables = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 4))
    how = {"variables": variables, "derivative": "input_gradient"}
    nads = nad_jax.estimate_nads(model, 4, **how)
    assert nads.config["readout"] == "sampled"
    assert describe(nads).startswith("mlp, 4 given networks: ")
    with pytest.raises(InputError, match="readout: must be 'sampled'"):
        nad_jax.estimate_nads(model, 4, readout="marginalized", **how)


def test_shapes_are_taken_by_either_name():
    assert nad_jax.create_model("mlp", input_shape=(5,)).input_shape == (5,)
    with pytest.raises(InputError, match="input_shape: is the other name of image_shape"):
        nad_jax.create_model("mlp", input_shape=(5,), image_shape=(5,))


class ReLU(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.Dense(32)(x))
        return nn.Dense(1)(x)


def test_the_error_of_the_trace_covers_the_closed_form():
    """A ReLU MLP of any width: E[g gᵀ] = λ I, λ = τ² Π n_l s_l² / 2. 100 seeds."""
    model, theory = nad_jax.from_linen(ReLU(), (DIMENSION,)), 32 / 20 / 2 / 2 / 2 / 32
    estimator, scores = Estimator("input_gradient"), []
    accumulator = make_dense(model, estimator)
    accumulate, _ = make_accumulate(model, estimator, accumulator, Execution(), 50)
    for seed in range(100):
        looks = [init_halves(accumulator)]
        for first in range(0, 400, 50):
            looks.append(accumulate(make_key(seed), looks[-1], first, first + 50))
        batches = keep_batches(model, estimator, looks[1:])
        trace = batches.weights @ batches.traces
        error = standard_error(batches.traces, batches.weights)  # `NADs.trace_sem`
        scores.append((trace - DIMENSION * theory) / error)
    assert np.abs(scores).max() < 4.5 and 0.7 < np.mean(np.square(scores)) < 1.3


def test_what_exact_gradients_cost_is_said_before_and_after(tmp_path, capsys):
    config = load_config("compute_nads").get_config("mlp")
    config.update(
        {"image_shape": (4, 4, 1), "num_networks": 4, "unit_size": 2, "width": 24}
        | {"derivative": "input_gradient", "figure_directions": 2}
    )
    said = "24 backward passes a network and point; readout='sampled', num_readouts=16 takes 16"
    study = compute_nads.make_study(config)
    dry_run.describe(study, tmp_path / "run")
    assert f"\n  {said}\n" in capsys.readouterr().out
    runner.run(study, tmp_path / "run")
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == (
        "NADs of mlp, 4 networks: exact gradient at one point of N(0, 1²), read-out marginalized, "
        "symmetrized"
    )
    assert f"  {said}" in rest


def test_a_single_network_prints_itself_whatever_its_points_are():
    model = nad_jax.create_model("mlp", (4, 4, 1), width=8)
    x = np.random.default_rng(0).normal(size=(6, 4, 4, 1)).astype(np.float32)
    for choices in (
        {"points": nad_jax.images(x, per_network=4)},
        {"points": x, "readout": "sampled", "centred": True},
        {"points": x},
    ):
        nads = nad_jax.estimate_nads(model, 1, derivative="input_gradient", **choices)
        assert "(between points)" in repr(nads) and "halves of the points" in repr(nads)
        assert np.isnan(nads.trace_sem)


def test_weights_that_were_not_kept_are_not_taken_for_those_of_the_initialization():
    model = nad_jax.create_model("mlp", (4, 4, 1), width=8)
    for estimate in (nad_jax.estimate_nads, nad_jax.estimate_leading_nads):
        with pytest.raises(InputError, match=r"variables: is None; .*keep=True"):
            estimate(model, 4, variables=None, derivative="input_gradient")


def test_what_is_given_twice_or_missing_is_said_in_one_line():
    with pytest.raises(InputError, match="estimate_nads: multiple values for argument 'seed'"):
        nad_jax.estimate_nads(None, 4, 0, seed=1)
    with pytest.raises(InputError, match="from_linen: missing a required argument: 'image_shape'"):
        nad_jax.from_linen(ReLU())


@pytest.mark.parametrize(
    ("name", "value"), [("num_readouts", None), ("point_scale", "x"), ("derivative", 3)]
)
def test_a_record_that_could_not_be_printed_is_refused(name, value, tmp_path):
    model = nad_jax.create_model("logreg", (4, 4, 1))
    nads = nad_jax.estimate_nads(model, 4, derivative="input_gradient")
    wrong = nads._replace(config={**nads.config, name: value})
    with pytest.raises(InputError, match=f"config: {name} cannot be"):
        wrong.save(tmp_path / "nads.npz")
