"""The geometry E[g gᵀ]: every vector field, read-out and law of points against float64, and closed
forms of initialized, of trained and of single networks.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import (
    Estimator,
    FitMetrics,
    Recipe,
    Task,
    at_origin,
    create_model,
    ensemble,
    estimate_leading_nads,
    estimate_nads,
    from_functions,
    gaussian,
    images,
    make_key,
    null_band,
    observers,
    train_many,
)
from nad_jax.errors import InputError
from nad_jax.geometry import make_rows, split_member

SHAPE, D, WIDTH, NETWORKS, TAU = (3, 2), 6, 5, 6, 0.7
DATA = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)


def _init(key):
    first, last = jax.random.split(key)
    return {
        "first": jax.random.normal(first, (D, WIDTH)),
        "last": jax.random.normal(last, (WIDTH,)),
    }


def _features(variables, x):
    return jnp.tanh(x.reshape(len(x), -1) @ variables["first"])


def _apply(variables, x):
    return (_features(variables, x) @ variables["last"])[:, None]


MODEL = from_functions(_init, _apply, SHAPE, _features, readout_variance=TAU**2, check=False)


def _weighted_input(network, variables, x, key):
    """A vector field that is no derivative: each output times the input."""
    return network(variables, x[None]).T * x.reshape(1, -1)


def _gradient_64(weights, x):
    """Of each output tanh(x W)·w for rows w of `weights` [R, WIDTH], at x [D]: [R, D]."""
    first, readouts = weights
    return (readouts * (1 - np.tanh(x @ first) ** 2)) @ first.T


def _difference_64(weights, x, step=0.5):
    first, readouts = weights
    steps = step * np.eye(D)
    difference = np.tanh((x + steps) @ first) - np.tanh((x - steps) @ first)
    return readouts @ difference.T / (2 * step)


def _weighted_64(weights, x):
    first, readouts = weights
    return (readouts @ np.tanh(x @ first))[:, None] * x


FIELDS = {
    "input_gradient": ("input_gradient", _gradient_64),
    "central_difference": ("central_difference", _difference_64),
    "a third one": (_weighted_input, _weighted_64),
}
READOUTS = {
    "logit": {"readout": "sampled"},
    "sampled": {"readout": "sampled", "num_readouts": 3},
    "marginalized": {"readout": "marginalized"},
}
LAWS = {
    "origin": at_origin(SHAPE),
    "shared": gaussian(SHAPE, 0.8),
    "fresh": gaussian(SHAPE, 0.8, shared=False),
    "given": images(DATA),
    "some of those given": images(DATA, per_network=2),
}


def _reference(field_64, readout, law, key):
    """E[g gᵀ] of the same networks, read-outs and points in float64."""
    keys = ensemble.member_keys(ensemble.named_key(key, "networks"), jnp.arange(NETWORKS))
    pool, total = law.prepare(ensemble.named_key(key, "point"), law.data), 0.0
    for init_key, readout_key, point_key in jax.vmap(split_member)(keys):
        variables = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), _init(init_key))
        if readout == "logit":
            readouts, factor = variables["last"][None], 1.0
        elif readout == "sampled":
            bound = np.sqrt(3) * TAU
            shape = (3, WIDTH)
            drawn = jax.random.uniform(readout_key, shape, minval=-bound, maxval=bound)
            readouts, factor = np.asarray(drawn, np.float64), 1 / 3
        else:
            readouts, factor = np.eye(WIDTH), TAU**2
        points = np.asarray(law.draw(pool, point_key), np.float64).reshape(-1, D)
        for x in points:
            rows = field_64((variables["first"], readouts), x)
            total = total + factor * rows.T @ rows / len(points) / NETWORKS
    return total


def _matrix(nads):
    directions = nads.directions.astype(np.float64)
    return directions.T @ (nads.eigenvalues[:, None] * directions)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("field", FIELDS)
def test_every_choice_equals_its_float64_reference(field, readout, law):
    derivative, field_64 = FIELDS[field]
    key = make_key(5)
    expected = _reference(field_64, readout, LAWS[law], key)
    choices = {"derivative": derivative, "step": 0.5, "chunk_size": 2, "points": LAWS[law]}
    choices |= READOUTS[readout]
    if not expected.any():  # times an input of zeros
        with pytest.raises(InputError, match="every derivative is exactly zero at this point"):
            estimate_nads(MODEL, NETWORKS, key, **choices)
        return
    nads = estimate_nads(MODEL, NETWORKS, key, **choices)
    np.testing.assert_allclose(_matrix(nads), expected, atol=2e-6 * max(1, np.abs(expected).max()))
    assert nads.trace == pytest.approx(np.trace(expected), rel=1e-5)


def test_a_field_and_points_of_ones_own_are_in_the_record_and_in_leading_nads():
    choices = {"derivative": _weighted_input, "points": images(DATA), "readout": "sampled"}
    dense = estimate_nads(MODEL, 8, 1, **choices)
    assert dense.config["derivative"] == "_weighted_input"
    assert (dense.config["point"], dense.config["num_points"]) == ("given", 4)
    leading = estimate_leading_nads(MODEL, 8, 2, seed=1, **choices)
    np.testing.assert_allclose(leading.eigenvalues, dense.eigenvalues[:2], rtol=1e-4)
    assert leading.nads is leading and dense.pass_overlap.shape == (0, len(dense.overlap_sizes))


def test_points_that_do_not_fit_are_refused():
    for points, message in [
        (images(np.ones((4, 5))), r"points: must be of shape \(3, 2\) each, got \(5,\)"),
        ("data", "points: must be real numbers .*, got 'data'"),
    ]:
        with pytest.raises(InputError, match=message):
            estimate_nads(MODEL, 4, points=points)
    for call, message in [
        (lambda: images(np.ones(4)), r"points: must be \[P, \*input_shape\]"),
        (lambda: images(DATA * np.nan), "points: has entries that are not finite"),
        (lambda: images(DATA, 5), "per_network: must be an integer in 0 … 4, got 5"),
        (lambda: gaussian(SHAPE, -1.0), "point_scale: must be a finite number at least 0"),
    ]:
        with pytest.raises(InputError, match=message):
            call()


def test_choices_that_contradict_each_other_are_refused():
    lenet = create_model("lenet", (16, 16, 1))
    gradient = {"derivative": "input_gradient", "symmetrized": True}
    for call, message in [
        (
            lambda: estimate_nads(MODEL, 4, points=images(DATA), point_scale=5.0),
            "points: are given",
        ),
        (
            lambda: estimate_nads(lenet, 4, points=at_origin((16, 16, 1)), **gradient),
            "symmetrized: must be False for exact gradients of this network at the origin",
        ),
        (
            lambda: estimate_nads(lenet, 4, points=images(np.zeros((2, 16, 16, 1))), **gradient),
            "symmetrized: must be False for exact gradients of this network at the origin",
        ),
        (
            lambda: estimate_nads(MODEL, 4, derivative=lambda f, v, x, key: x, readout="sampled"),
            r"derivative: must give rows \[R, 6\], got shape \(3, 2\)",
        ),
        (
            lambda: estimate_nads(
                MODEL, 4, derivative=lambda f, v, x, key: x @ x, readout="sampled"
            ),
            "derivative raised",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            call()
    own = estimate_nads(MODEL, 8, derivative=_weighted_input, readout="sampled", point="fresh")
    with pytest.raises(InputError, match="null_band: belongs to sampled read-outs"):
        null_band(own)


def test_the_average_gradient_outer_product_of_a_linear_model_is_that_of_its_weight():
    model = from_functions(
        lambda key: jax.random.normal(key, (D,)), lambda w, x: (x.reshape(-1, D) @ w)[:, None], (D,)
    )
    weight = np.arange(1.0, 1.0 + D, dtype=np.float32)
    agop = estimate_nads(
        model, 1, points=images(DATA.reshape(4, D)), variables=weight[None],
        derivative="input_gradient", readout="sampled",
    )  # fmt: skip
    outer = np.outer(weight, weight)
    np.testing.assert_allclose(_matrix(agop), outer, atol=1e-6 * outer.max())
    assert agop.num_networks == 1 and agop.eigenvalue_sem[0] < 1e-6 * agop.eigenvalues[0]


def test_variables_of_another_model_or_with_a_drawn_last_layer_are_refused():
    one = _init(jax.random.key(0))
    given = jax.tree.map(lambda leaf: leaf[None], one)
    choices = {"points": images(DATA), "readout": "sampled"}
    for changes, message in [
        ({"variables": {"first": given["first"]}}, "variables: must be those of the model"),
        ({"variables": one}, r"variables: a leaf must be \[N, 6, 5\] with N ≥ num_networks = 1"),
        ({"variables": given, "readout": "marginalized"}, "readout: must be 'sampled' with num_"),
    ]:
        with pytest.raises(InputError, match=message):
            estimate_nads(MODEL, 1, **{**choices, **changes})


def test_a_relu_mlp_is_isotropic_with_the_published_factor():
    # Exact at any width, for weights and biases of any sign-symmetric law (method of moments):
    # λ = (1/(3 n_L)) Π n_l/(6 n_{l−1}) with PyTorch's initialization.
    dimension, width, networks = 20, 16, 4000
    model = create_model("mlp", (dimension,), width=width)
    rows = make_rows(model, Estimator("input_gradient"))
    keys = jax.random.split(make_key(0), networks)

    @jax.jit
    @jax.vmap
    def moments(key):
        point = jax.random.normal(jax.random.fold_in(key, 1), (1, dimension))
        mine = rows(model.init(key), key, point)[0]
        return mine.T @ mine / len(mine)

    matrices = np.asarray(moments(keys), np.float64)
    expected = width / (6 * dimension) * (width / (6 * width)) / (3 * width) * np.eye(dimension)
    error = matrices.std(0, ddof=1) / np.sqrt(networks)
    z = ((matrices.mean(0) - expected) / error)[np.triu_indices(dimension)]
    assert np.abs(z).max() < 4.5 and 0.7 < (z**2).mean() < 1.3


A = np.random.default_rng(1).normal(size=(D, D)) / 3
X = np.random.default_rng(2).normal(size=(12, D))
S, SPREAD = X.T @ X, 0.7


def _regression(targets):
    """Least squares ½ Σ (f − y)² over all of X, as a task."""
    data = jnp.asarray(X, jnp.float32), jnp.asarray(targets, jnp.float32)
    return Task(
        data=lambda model, recipe, seed: data,
        sample=lambda data, split, indices, arrays: (data[0][indices], data[1][indices]),
        loss=lambda outputs, y: len(X) / 2 * (outputs[:, 0] - y) ** 2,
        correct=lambda outputs, y: outputs[:, 0] * y > 0,
    )


def _apply_linear(variables, x, key=None, train=False):
    outputs = (x @ jnp.asarray(A.T, jnp.float32) @ variables["params"])[:, None]
    return (outputs, variables) if train else outputs


LINEAR = from_functions(
    lambda key: {"params": SPREAD * jax.random.normal(key, (D,))}, _apply_linear, (D,), check=False
)
FULL = Recipe(
    schedule="constant", clip_norm=0.0, num_train=12, num_test=12, batch_size=12, num_epochs=1
)


@pytest.mark.parametrize("labels", ["zero", "random"])
def test_the_geometry_of_a_trained_ensemble_starts_to_move_as_derived(labels):
    # f = θᵀA x, θ ~ N(0, s² I): gradient flow moves G = s² AᵀA by dG/dt = −(2/s²) G S G.
    targets = np.zeros(12)
    if labels == "random":
        targets = np.random.default_rng(3).choice([-1.0, 1.0], 12)
    rate = 1e-3 / np.linalg.eigvalsh(A @ S @ A.T)[-1]
    observer = observers.geometry(
        LINEAR, readout="sampled", derivative="input_gradient", mapping="vectorized"
    )
    metrics = train_many(
        LINEAR, _regression(targets), learning_rate=rate, seed=np.arange(100_000), recipe=FULL,
        mapping="vectorized", chunk_size=20_000, observe={"geometry": observer},
    )  # fmt: skip
    before, after = map(_matrix, metrics.observed["geometry"])
    exact = SPREAD**2 * A.T @ A
    moved, expected = (after - before) / rate, -2 / SPREAD**2 * exact @ S @ exact
    assert np.linalg.norm(moved - expected) < 0.01 * np.linalg.norm(expected)
    assert metrics.observed["geometry"][1].num_networks == 100_000
    assert isinstance(metrics, FitMetrics)


def test_fresh_points_are_those_of_each_network_and_shared_ones_of_the_ensemble():
    keys = jax.random.split(jax.random.key(0), 500)
    for shared in (True, False):
        law = gaussian((4,), 3.0, shared)
        pool = law.prepare(jax.random.key(1), law.data)
        drawn = np.stack([law.draw(pool, key) for key in keys])[:, 0]
        assert (len(np.unique(drawn, axis=0)) == 1) == shared
        if not shared:
            z = (drawn**2 / 9 - 1).mean(0) / np.sqrt(2 / len(keys))
            assert np.abs(z).max() < 4.5
