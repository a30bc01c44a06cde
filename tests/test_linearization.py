"""Linearized networks, their kernel, and the directions of the mixed second derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nad_jax
from nad_jax.architectures import ARCHITECTURES
from nad_jax.errors import InputError
from nad_jax.fitting import make_whole
from nad_jax.models import split_trainable
from nad_jax.task import Task

LENET = {"pooling": "avg", "activation": "gelu", "padding": "same", "width": 3}
# Small ones, of the smallest inputs that they take.
SIZES = {"wide_resnet": {"depth": 10}, "bottleneck_mlp": {"depth": 2}, "mixer": {"depth": 2}}
SIZES |= {"vit": {"depth": 2, "heads": 2}, "convnext": {"stages": "1-1-1-1"}}
SHAPES = {"resnet18_imagenet": (64, 64, 1)}


def lenet(shape=(12, 12, 1), **options):
    return nad_jax.create_model("lenet", shape, **LENET, **options)


def _mixed_64(model, variables, points):
    """A [P, D] as JAX's dense derivatives in double precision give it, at the mean over points."""
    with jax.enable_x64(True):
        weights, others, join = split_trainable(model, variables)
        weights = [jnp.asarray(leaf, jnp.float64) for leaf in weights]
        points = jnp.asarray(points, jnp.float64)

        def gradient(weights):
            def output(offset):
                return model.apply(join(weights, others), points + offset[None])[:, 0].mean()

            return jax.grad(output)(jnp.zeros(points.shape[1:])).reshape(-1)

        jacobian = jax.jacrev(gradient)(weights)
        return np.concatenate([np.asarray(leaf).reshape(len(leaf), -1) for leaf in jacobian], 1).T


@pytest.mark.parametrize("num_points", [0, 3])
def test_mixed_directions_are_those_of_the_dense_derivative(num_points):
    model = lenet(convolution="lax")
    variables, points = model.init(jax.random.key(0)), None
    if num_points:
        points = np.random.default_rng(0).normal(size=(num_points, 12, 12, 1))
    found = nad_jax.mixed_directions(model, variables, points)
    dense = _mixed_64(model, variables, np.zeros((1, 12, 12, 1)) if points is None else points)
    values = np.linalg.svd(dense, compute_uv=False)
    np.testing.assert_allclose(found.singular_values, values, atol=1e-5 * values[0])
    matrix = (found.directions.T * found.singular_values**2) @ found.directions
    np.testing.assert_allclose(matrix, dense.T @ dense, atol=1e-5 * values[0] ** 2)


def test_an_ensemble_of_mixed_derivatives_is_the_mean_over_networks():
    model, num_networks = lenet(convolution="lax"), 4
    how = {"derivative": nad_jax.mixed_derivative(model), "point_scale": 0.0}
    nads = nad_jax.estimate_nads(model, num_networks, **how)
    key = nad_jax.ensemble.resolve_key(0)
    keys = nad_jax.ensemble.member_keys(
        nad_jax.ensemble.named_key(key, "networks"), jnp.arange(num_networks)
    )
    expected = 0
    for one in keys:
        dense = _mixed_64(model, model.init(jax.random.split(one, 3)[0]), np.zeros((1, 12, 12, 1)))
        expected += dense.T @ dense / num_networks
    np.testing.assert_allclose(nads.matrix, expected, atol=1e-5 * nads.eigenvalues[0])
    assert nads.config["derivative"] == "mixed_derivative"
    assert nads.config["readout"] == "sampled"


def _linear_model(scale=0.5, rows=20, dimension=12):
    """f = θᵀ Φ x with θ ~ N(0, s² I)."""
    matrix = np.random.default_rng(1).normal(size=(rows, dimension)).astype(np.float32)
    model = nad_jax.from_functions(
        lambda key: {"theta": scale * jax.random.normal(key, (rows,))},
        lambda v, x, key=None, train=False: (
            ((x @ matrix.T @ v["theta"])[:, None], v)
            if train
            else (x @ matrix.T @ v["theta"])[:, None]
        ),
        (dimension,),
    )
    return model, matrix, scale


def test_of_a_model_linear_in_its_weights_they_are_its_nads():
    model, matrix, scale = _linear_model()
    exact = matrix.T.astype(np.float64) @ matrix
    mixed = nad_jax.estimate_nads(model, 4, derivative=nad_jax.mixed_derivative(model))
    np.testing.assert_allclose(mixed.matrix, exact, atol=1e-5 * mixed.eigenvalues[0])
    num_networks = 4000
    nads = nad_jax.estimate_nads(
        model, num_networks, derivative="input_gradient", readout="sampled"
    )
    _check_gaussian(nads.matrix, scale**2 * exact, num_networks)


def _check_gaussian(matrix, expected, count):
    """A second moment of `count` independent rows from N(0, expected), in coordinates in which its
    entries are independent: Var = (1 + δ) / count.
    """
    whitener = np.linalg.inv(np.linalg.cholesky(expected))
    identity = np.eye(len(matrix))
    z = (whitener @ matrix @ whitener.T - identity) / np.sqrt((1 + identity) / count)
    z = z[np.triu_indices(len(z))]
    assert np.abs(z).max() <= 4.5
    assert 0.7 <= np.mean(z**2) <= 1.3


def test_probes_have_the_mixed_derivative_on_average():
    model, matrix, _ = _linear_model()
    num_networks, exact = 2000, matrix.T.astype(np.float64) @ matrix
    mixed = nad_jax.estimate_nads(
        model, num_networks, derivative=nad_jax.mixed_derivative(model, 2)
    )
    _check_gaussian(mixed.matrix, exact, 2 * num_networks)
    assert mixed.config["derivative"] == "mixed_derivative(2)"


def test_the_covariance_of_gradients_is_below_the_mixed_derivative():
    """The Gaussian Poincaré inequality, Cov(∇f) ⪯ s² E[AᵀA] for θ ~ N(0, s² I), strict here."""
    scale, shape = 0.6, (5,)

    def init(key):
        first, last = jax.random.split(key)
        draw = jax.random.normal
        return {"first": scale * draw(first, (5, 7)), "last": scale * draw(last, (7,))}

    model = nad_jax.from_functions(
        init, lambda v, x: (jnp.tanh(x @ v["first"]) @ v["last"])[:, None], shape
    )
    how = {"point_scale": 0.0, "readout": "sampled"}
    gradients = nad_jax.estimate_nads(model, 4000, derivative="input_gradient", **how)
    mixed = nad_jax.estimate_nads(model, 4000, derivative=nad_jax.mixed_derivative(model), **how)
    gap = scale**2 * mixed.matrix - gradients.matrix  # of mean zero, as the last layer
    lowest = np.linalg.eigvalsh(gap)[0]
    assert lowest > 0.1 * gradients.eigenvalues[0]  # ∂/∂last alone makes them equal


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_linearizations_of_every_architecture_have_the_slope_of_central_differences(architecture):
    options = {"width": 4} if architecture != "logreg" else {}
    shape = SHAPES.get(architecture, (32, 32, 1))
    model = nad_jax.create_model(architecture, shape, **options, **SIZES.get(architecture, {}))
    linear = nad_jax.linearize(model)
    variables = model.init(jax.random.key(0))
    generator = np.random.default_rng(1)
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        weights, others, join = split_trainable(model, variables)
        change = [jnp.asarray(generator.normal(size=leaf.shape)) for leaf in weights]
        x = jnp.asarray(generator.normal(size=(2, *shape)))

        def moved(by):
            return join([w + by * c for w, c in zip(weights, change, strict=True)], others)

        @jax.jit
        def values(by):
            linearized = {"network": moved(by), "origin": variables}
            return linear.apply(linearized, x), model.apply(moved(by), x)

        step = 1e-9  # which crosses no kink of a ReLU
        at, ahead, behind = (jax.device_get(values(by)) for by in (0.0, step, -step))
    np.testing.assert_allclose(*at, rtol=1e-9, atol=1e-12)
    slope, quotient = ((a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True))
    np.testing.assert_allclose(slope, quotient, atol=1e-3 * np.abs(slope).max())


def test_a_linearized_network_is_linear_and_starts_like_the_network():
    model = lenet()
    linear = nad_jax.linearize(model)
    variables = linear.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (3, 12, 12, 1))
    moved = jax.tree.map(lambda leaf: leaf + 0.1, variables["network"])
    twice = jax.tree.map(lambda leaf: leaf + 0.2, variables["network"])
    values = [
        linear.apply({**variables, "network": network}, x)
        for network in (variables["network"], moved, twice)
    ]
    np.testing.assert_allclose(values[0], model.apply(variables["origin"], x), rtol=1e-5)
    np.testing.assert_allclose(values[2] - values[0], 2 * (values[1] - values[0]), rtol=1e-4)
    how = {"num_networks": 4, "derivative": "input_gradient", "readout": "sampled"}
    nads, others = (nad_jax.estimate_nads(one, **how) for one in (model, linear))
    np.testing.assert_allclose(others.matrix, nads.matrix, atol=1e-5 * nads.eigenvalues[0])
    assert linear.description["linearized"]


def test_training_starts_where_it_is_told_and_moves_the_network_alone():
    model = nad_jax.with_two_logits(lenet())
    variables = model.init(jax.random.key(3))
    start = nad_jax.starting_from(model, variables)
    recipe = nad_jax.Recipe(num_epochs=2, num_train=64, num_test=64, batch_size=32)
    directions = np.eye(144, dtype=np.float32)[:2]
    losses = []
    for one in (start, nad_jax.linearize(start)):
        found = nad_jax.train_many(one, directions, recipe=recipe, learning_rate=0.01, keep=True)
        losses.append(found.losses[:, 0])
        kept = found.variables.get("origin", variables)
        for leaf, given in zip(*map(jax.tree.leaves, (kept, variables)), strict=True):
            np.testing.assert_array_equal(np.broadcast_to(given, leaf.shape), leaf)
    np.testing.assert_allclose(*losses, rtol=1e-5)
    outputs = model.apply(variables, jnp.ones((2, 12, 12, 1)))
    assert outputs.shape == (2, 2)
    assert not outputs[:, 1].any()


def test_given_weights_keep_their_last_layer():
    model = nad_jax.create_model("mlp", (4,), width=3)
    start = nad_jax.starting_from(model, model.init(jax.random.key(0)))
    how = {"derivative": "input_gradient", "readout": "sampled", "point_scale": 0.0}
    values = nad_jax.estimate_nads(start, 4, **how).eigenvalues
    assert values[1] < 1e-5 * values[0]  # the gradient at a point is one vector
    for how in ({}, {"readout": "sampled", "num_readouts": 2}):
        with pytest.raises(
            InputError, match=r"^readout: .* in place of the given one; take readout"
        ):
            nad_jax.estimate_nads(start, 4, **how)
    x = np.ones((2, 4), np.float32)
    variables = start.init(jax.random.key(1))
    np.testing.assert_array_equal(start.features(variables, x), model.features(variables, x))


def _squares(model, x, targets, test_x):
    """The task of fitting targets with half the squared error, all samples a batch."""
    data = {"train": (x, targets), "test": (test_x, jnp.zeros(len(test_x)))}

    def sample(data, split, numbers, arrays):
        inputs, values = data[split]
        return inputs[numbers], values[numbers]

    return Task(
        data=lambda model, recipe, seed: data,
        sample=sample,
        loss=lambda outputs, values: 0.5 * (outputs[:, 0] - values) ** 2,
        correct=lambda outputs, values: outputs[:, 0] * values > 0,
        sizes=(len(x), len(test_x)),
    )


def test_linearized_training_on_squares_is_kernel_regression():
    def init(key):
        first, last = jax.random.split(key)
        draw = jax.random.normal
        return {"first": draw(first, (6, 64)) / 6**0.5, "last": draw(last, (64,)) / 8}

    def apply(variables, x, key=None, train=False):
        outputs = (jnp.tanh(x @ variables["first"]) @ variables["last"])[:, None]
        return (outputs, variables) if train else outputs

    model = nad_jax.from_functions(init, apply, (6,))
    variables = model.init(jax.random.key(0))
    x, test_x = (jax.random.normal(jax.random.key(n), (size, 6)) for n, size in ((1, 8), (2, 5)))
    targets = jnp.sign(x[:, 0])
    linear = nad_jax.linearize(nad_jax.starting_from(model, variables))
    kernel = nad_jax.empirical_ntk(model, variables, x)
    rate = 1.8 * len(x) / np.linalg.eigvalsh(kernel)[-1]
    task = _squares(model, x, targets, test_x)
    how = {"num_epochs": 4000, "batch_size": len(x), "clip_norm": 0.0, "schedule": "constant"}
    recipe = task.resolve_recipe(nad_jax.Recipe(**how))
    train = jax.jit(make_whole(linear, recipe, task), static_argnums=1)
    trained, _ = train(jax.random.key(0), rate, {}, task.data(linear, recipe, 0))
    start = [model.apply(variables, one)[:, 0] for one in (x, test_x)]
    test_kernel = nad_jax.empirical_ntk(model, variables, test_x, x)
    expected = nad_jax.ntk_regression(kernel, targets, test_kernel, *start)
    np.testing.assert_allclose(linear.apply(trained, test_x)[:, 0], expected, atol=1e-3)
    assert np.abs(expected - start[1]).max() > 0.1


def test_the_kernel_and_alignment_are_products_of_gradients():
    model = nad_jax.create_model("mlp", (4,), width=5)
    variables = model.init(jax.random.key(0))
    x, other = (jax.random.normal(jax.random.key(n), (size, 4)) for n, size in ((1, 3), (2, 2)))

    def gradients(x):
        rows = jax.jacrev(lambda variables: model.apply(variables, x)[:, 0])(variables)
        return np.concatenate([np.reshape(leaf, (len(x), -1)) for leaf in jax.tree.leaves(rows)], 1)

    expected = gradients(x) @ gradients(other).T
    found = nad_jax.empirical_ntk(model, variables, x, other)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    kernel, targets = gradients(x) @ gradients(x).T, np.array([[1.0, 0.0], [-1.0, 2.0], [1.0, 0.0]])
    aligned = np.linalg.norm(targets.T @ gradients(x), axis=1) ** 2 / 9
    np.testing.assert_allclose(nad_jax.ntk_alignment(kernel, targets), aligned, rtol=1e-5)
    np.testing.assert_allclose(nad_jax.ntk_alignment(kernel, targets[:, 0]), aligned[0], rtol=1e-5)


def test_regression_passes_through_its_targets():
    kernel = np.diag([3.0, 2.0, 1.0]) + 0.1
    targets = np.array([[1.0, 2.0], [0.0, 1.0], [-1.0, 0.5]])
    found = nad_jax.ntk_regression(kernel, targets, kernel, 0.5, 0.5)
    np.testing.assert_allclose(found, targets, atol=1e-12)
    for how, kept in (({}, 1.0), ({"cutoff": 1e-6}, 0.0)):
        faint = np.diag([1.0, 5e-7]), [1.0, 1.0], np.diag([1.0, 5e-7])
        np.testing.assert_allclose(nad_jax.ntk_regression(*faint, **how), [1, kept], atol=1e-9)
    low = np.diag([1.0, 1e-12])
    np.testing.assert_allclose(nad_jax.ntk_regression(low, [1.0, 1.0], low), [1.0, 0.0], atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, v: nad_jax.mixed_derivative(m, 0), "^num_probes: must be"),
        (lambda m, v: nad_jax.mixed_derivative(3), "^model: must come from"),
        (lambda m, v: nad_jax.mixed_directions(m, v, np.ones((2, 3))), r"^points: .*\[J, 4\]"),
        (
            lambda m, v: nad_jax.estimate_nads(
                m, 4, derivative=nad_jax.mixed_derivative(m), readout="marginalized"
            ),
            "derivative: mixed_derivative is of one output",
        ),
        (
            lambda m, v: nad_jax.mixed_directions(m, jax.tree.map(jnp.zeros_like, v)),
            "^model: its mixed derivative there is not finite, or zero",
        ),
        (lambda m, v: nad_jax.starting_from(m, {}), "^variables: must be those of the model"),
        (
            lambda m, v: nad_jax.starting_from(m, jax.tree.map(lambda w: w[None], v)),
            "^variables: a leaf must be",
        ),
        (
            lambda m, v: nad_jax.with_two_logits(m._replace(num_logits=3)),
            "^model: must have one logit, got 3",
        ),
        (lambda m, v: nad_jax.linearize(None), "^model: must come from"),
        (lambda m, v: nad_jax.empirical_ntk(m, {}, np.ones((1, 4))), "^variables: must be those"),
        (lambda m, v: nad_jax.empirical_ntk(m, None, np.ones((1, 4))), "^variables: must be those"),
        (lambda m, v: nad_jax.empirical_ntk("mlp", v, np.ones((1, 4))), "^model: must come from"),
        (lambda m, v: nad_jax.mixed_directions("mlp", v), "^model: must come from"),
        (lambda m, v: nad_jax.empirical_ntk(m, v, np.ones((0, 4))), r"^x: .*\[N, 4\]"),
        (lambda m, v: nad_jax.empirical_ntk(m, v, np.ones(4)), r"^x: .*\[N, 4\]"),
        (
            lambda m, v: nad_jax.empirical_ntk(m._replace(num_logits=2), v, np.ones((2, 4))),
            "^logit: the model has 2 logits; choose one",
        ),
        (lambda m, v: nad_jax.ntk_alignment(np.ones((2, 3)), np.ones(2)), r"^kernel: .*\[2, 2\]"),
        (lambda m, v: nad_jax.ntk_alignment(np.eye(2), np.ones(3)), r"^targets: .*\[2\]"),
        (
            lambda m, v: nad_jax.ntk_regression(*[np.eye(2)] * 3, cutoff=1),
            "^cutoff: must be below 1, a share of the largest, got 1",
        ),
        (
            lambda m, v: nad_jax.ntk_regression(np.eye(2), np.ones(2), np.ones((3, 3))),
            r"^test_kernel: .*\[M, 2\]",
        ),
        (
            lambda m, v: nad_jax.ntk_regression([[1, 2], [0, 1]], np.ones(2), np.eye(2)),
            "^kernel: must be symmetric",
        ),
        (
            lambda m, v: nad_jax.ntk_regression(-np.eye(2), np.ones(2), np.eye(2)),
            "^kernel: must have no negative eigenvalue",
        ),
        (
            lambda m, v: nad_jax.ntk_regression(np.eye(2), np.ones(2), np.eye(2), np.ones(3)),
            r"^start: .*\[2\]",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    model = nad_jax.create_model("mlp", (4,), width=3)
    with pytest.raises(InputError, match=message):
        call(model, model.init(jax.random.key(0)))


def test_a_network_without_a_forward_derivative_is_derived_in_reverse():
    @jax.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (double(x), None), lambda _, g: (2 * g,))

    def make(function):
        return nad_jax.from_functions(
            lambda key: {"w": jax.random.normal(key, (3,))},
            lambda v, x: jnp.sin(function(x @ v["w"]))[:, None],
            (3,),
            check=False,
        )

    x, variables = jnp.ones((2, 3)), {"network": {"w": jnp.ones(3)}, "origin": {"w": jnp.zeros(3)}}
    found, expected = (
        nad_jax.linearize(make(function)).apply(variables, x)
        for function in (double, lambda x: 2 * x)
    )
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(found, 6.0)


def test_same_padding_keeps_the_size_and_the_fast_convolution_its_values():
    fast, slow = (
        nad_jax.create_model("lenet", (16, 16, 1), padding="same", convolution=convolution)
        for convolution in ("product", "lax")
    )
    variables = fast.init(jax.random.key(0))
    assert variables["params"]["Dense_0"]["kernel"].shape == (4 * 4 * 16, 120)
    x = jax.random.normal(jax.random.key(1), (3, 16, 16, 1))
    np.testing.assert_allclose(fast.apply(variables, x), slow.apply(variables, x), atol=1e-5)
