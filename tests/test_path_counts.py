"""Path counts of ReLU networks against sampled networks, and against another way to count."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nad_jax
from nad_jax import ConvLayer, DenseLayer
from nad_jax.errors import InputError


class Convs(nn.Module):
    """Convolutions (features, kernel, stride, padding, dilation), dense layers, one logit."""

    convolutions: tuple
    dense: tuple = ()

    @nn.compact
    def __call__(self, x):
        for features, kernel, stride, padding, dilation in self.convolutions:
            how = {"strides": stride, "padding": padding, "kernel_dilation": dilation}
            x = nn.relu(nn.Conv(features, kernel, **how)(x))
        x = x.reshape(len(x), -1)
        for units in self.dense:
            x = nn.relu(nn.Dense(units)(x))
        return nn.Dense(1)(x)


def _gradients(model, count):
    """[N, D] gradients of sampled networks at one point."""
    x = jax.random.normal(jax.random.key(1), (1, *model.input_shape))

    @jax.jit
    def gradients(keys):
        def gradient(key):
            variables = model.init(key)
            return jax.grad(lambda x: model.apply(variables, x)[0, 0])(x).reshape(-1)

        return jax.lax.map(gradient, keys, batch_size=100)

    return np.asarray(gradients(jax.random.split(jax.random.key(0), count)), np.float64)


def _check(rows, diagonal, largest_error=0.06):
    """All entries of the matrix in standard errors, which are a few per cent of the diagonal."""
    mean, square = (one.T @ one / len(rows) for one in (rows, rows**2))
    errors = np.sqrt((square - mean**2) / len(rows))
    scores = ((mean - np.diag(diagonal)) / errors)[np.triu_indices(len(mean))]
    assert np.median(errors.diagonal() / diagonal) < largest_error
    assert np.abs(scores).max() <= 4.5 and 0.7 < np.mean(scores**2) < 1.3


def _layers(model, convolutions, dense):
    """The layers of `Convs` under PyTorch's initialization, and the variance of the read-out."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))]
    variances = [1 / (3 * np.prod(shape[:-1])) for shape in shapes if len(shape) > 1]
    *hidden, readout = variances
    layers = [
        ConvLayer(features, kernel, hidden[place], *how)
        for place, (features, kernel, *how) in enumerate(convolutions)
    ]
    pairs = zip(dense, hidden[len(layers) :], strict=True)
    return layers + [DenseLayer(units, variance) for units, variance in pairs], readout


SAMPLED = {
    "signal": ((11, 2), ((4, (3,), 1, "VALID", 1), (5, (3,), 2, "SAME", 1)), ()),
    "image": (
        (6, 5, 1),
        ((4, (3, 3), 1, "SAME", 1), (3, (2, 3), (2, 1), ((1, 0), (0, 2)), 1)),
        (6,),
    ),
    "valid": ((7, 7, 1), ((3, (3, 3), 2, "VALID", 1), (4, (2, 2), 1, "VALID", 1)), ()),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_geometries_of_sampled_networks_are_path_counts(name):
    shape, convolutions, dense = SAMPLED[name]
    model = nad_jax.from_linen(Convs(convolutions, dense), shape, "reference", check=False)
    found = nad_jax.count_paths(shape, *_layers(model, convolutions, dense))
    assert len(np.unique(found.counts)) > 2 and found.counts.shape == shape[:-1]
    _check(_gradients(model, 6_000), found.diagonal)


def test_the_geometry_of_lenet_without_pooling_is_its_path_counts():
    model = nad_jax.create_model("lenet", (10, 10, 1), pooling="none", width=3)
    found = nad_jax.count_paths_of(model)
    along = np.array([1, 2, 2, 2, 2, 2, 2, 2, 2, 1])  # two windows of 5, to 6 and to 2 places
    assert found.counts.sum() == (5 * 5 * 2) ** 2 and found.counts[0, 0] == 1
    assert (found.counts[0] / along > 0).all() and found.counts[5, 5] == found.counts.max()
    _check(_gradients(model, 2_000), found.diagonal)


def test_masked_lenets_have_the_path_counts_of_less_variance():
    options = {"pooling": "none", "density": 0.3, "mask": "er", "width": 3}
    model = nad_jax.create_model("lenet", (10, 10, 1), **options)
    found = nad_jax.count_paths_of(model).diagonal
    dense = nad_jax.create_model("lenet", (10, 10, 1), pooling="none", width=3)
    shares = nad_jax.mask_densities(dense, 0.3, "er").density
    np.testing.assert_allclose(found, nad_jax.count_paths_of(dense).diagonal * np.prod(shares))
    _check(_gradients(model, 3_000), found, largest_error=0.12)


@pytest.mark.parametrize(
    ("shape", "windows"),
    [
        ((13, 1), ((3, 2, "SAME", 1), (3, 1, "VALID", 2), (2, 2, ((1, 3),), 1))),
        ((9, 12, 2), ((3, (1, 2), "SAME", 1), ((2, 4), 2, "SAME", (2, 1)), (3, 1, 1, 1))),
        ((4, 6, 5, 1), ((2, 1, "VALID", 1), ((1, 3, 2), (1, 2, 1), "SAME", 1))),
    ],
)
def test_paths_are_those_of_windows_of_ones(shape, windows):
    """Their number is the derivative of a network of ones, of signals, images and volumes."""
    axes = len(shape) - 1

    def sum_of(x):
        for kernel, stride, padding, dilation in windows:
            kernel, stride, dilation = (
                (one,) * axes if isinstance(one, int) else one for one in (kernel, stride, dilation)
            )
            padding = [(padding, padding)] * axes if isinstance(padding, int) else padding
            spec = ("NCDHW"[: 2 + axes], "OIDHW"[: 2 + axes], "NCDHW"[: 2 + axes])
            spec = tuple(one[:2] + "DHW"[:axes] for one in spec)
            x = jax.lax.conv_general_dilated(
                x, jnp.ones((1, 1, *kernel)), stride, padding, None, dilation, spec
            )
        return x.sum()

    expected = jax.grad(sum_of)(jnp.ones((1, 1, *shape[:-1])))[0, 0]
    layers = [ConvLayer(2, kernel, 0.5, *how) for kernel, *how in windows]
    found = nad_jax.count_paths(shape, layers, 3.0, slope=0.5)
    np.testing.assert_array_equal(found.counts, expected)
    value = 3.0 * 0.625 ** len(windows)
    np.testing.assert_allclose(found.diagonal, value * np.repeat(expected, shape[-1]))


def test_dense_networks_have_one_path_and_the_known_eigenvalue():
    layers = [DenseLayer(5, 0.3), DenseLayer(7, 0.2)]
    found = nad_jax.count_paths((4,), layers, 0.1, slope=0.5)
    theory = nad_jax.relu_eigenvalue(4, (5, 7), weight_variances=(0.3, 0.2, 0.1), slope=0.5)
    np.testing.assert_allclose(found.diagonal, np.full(4, theory))
    for initialization in ("reference", "flax", "he", "lecun", "orthogonal", "sigma:1.5:0.1"):
        model = nad_jax.create_model("mlp", (6, 1), initialization=initialization, width=9)
        square = {"reference": 1 / 3, "he": 2.0, "sigma:1.5:0.1": 2.25}.get(initialization, 1.0)
        variances = [square / n for n in (6, 9, 9)]
        if initialization == "orthogonal":
            variances = [1 / 9] * 3
        theory = nad_jax.relu_eigenvalue(6, (9, 9), weight_variances=variances)
        np.testing.assert_allclose(nad_jax.count_paths_of(model).diagonal, np.full(6, theory))
    linear = nad_jax.count_paths_of(nad_jax.create_model("logreg", (2, 3, 2)))
    np.testing.assert_allclose(linear.diagonal, np.full(12, 1 / 36))
    assert linear.counts.shape == (2, 3)


class ReLU(nn.Module):
    @nn.compact
    def __call__(self, x):
        law = nn.initializers.normal(0.5)
        for width in (7, 6):
            x = nn.relu(nn.Dense(width, kernel_init=law, bias_init=nn.initializers.normal(0.3))(x))
        return nn.Dense(2, kernel_init=law)(x)


def test_a_fixed_mask_opens_some_paths():
    """Weights of many networks under the masks of one, the read-out's included."""
    model = nad_jax.from_linen(ReLU(), (5,), check=False)
    variables = nad_jax.masked(model, 0.6, "uniform").init(nad_jax.make_key(1))
    masks = variables["masks"]
    found = nad_jax.count_masked_paths(variables, [0.25] * 3, logit=1)
    arrays = [np.asarray(masks[f"params/Dense_{place}/kernel"]).T for place in range(3)]
    paths = itertools.product(range(5), range(7), range(6))
    expected = np.zeros(5)
    for q, i, j in paths:
        expected[q] += arrays[0][i, q] * arrays[1][j, i] * arrays[2][1, j]
    np.testing.assert_array_equal(found.counts, expected)
    assert len({*expected}) > 2
    np.testing.assert_array_equal(
        nad_jax.count_masked_paths(arrays, [0.25] * 3, logit=1).diagonal, found.diagonal
    )
    opened = nad_jax.count_masked_paths(arrays[:2], [0.25] * 3)
    np.testing.assert_array_equal(opened.counts, np.ones(6) @ arrays[1] @ arrays[0])
    steep = nad_jax.count_masked_paths(arrays, [0.25] * 3, slope=1.0, logit=1)
    np.testing.assert_allclose(steep.diagonal, 4 * found.diagonal)

    def apply(params, x):
        params = jax.tree.map(lambda leaf: leaf, params)
        for place in range(3):
            mask = masks[f"params/Dense_{place}/kernel"]
            params["params"][f"Dense_{place}"]["kernel"] *= mask
        return model.apply(params, x)[:, 1:]

    fixed = model._replace(apply=apply)
    _check(_gradients(fixed, 6_000), found.diagonal)


LENET = {"architecture": "lenet", "image_shape": (10, 10, 1)}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: nad_jax.count_paths_of(nad_jax.create_model("lenet", (16, 16, 1))),
            "model: pooling must be 'none', got 'max'",
        ),
        (
            lambda: nad_jax.count_paths_of(
                nad_jax.create_model(**LENET, pooling="none", normalization="batch")
            ),
            "model: normalization must be 'none', got 'batch'",
        ),
        (
            lambda: nad_jax.count_paths_of(
                nad_jax.create_model(**LENET, pooling="none", activation="tanh")
            ),
            "model: activation must be relu or linear, got 'tanh'",
        ),
        (
            lambda: nad_jax.count_paths_of(nad_jax.create_model("resnet18_w16", pooling="none")),
            "model: must be logreg, mlp, lenet, got 'resnet18_w16'",
        ),
        (
            lambda: nad_jax.count_paths_of(nad_jax.from_linen(ReLU(), (5,), check=False)),
            "model: must be logreg, mlp, lenet, got 'ReLU'",
        ),
        (lambda: nad_jax.count_paths_of("lenet"), "model: must come from create_model"),
        (lambda: nad_jax.count_paths((4, 1), 3, 1.0), "layers: must be ConvLayer and DenseLayer"),
        (lambda: nad_jax.count_paths((4, 1), [(3, 3)], 1.0), "layers: must be ConvLayer"),
        (
            lambda: nad_jax.count_paths((4, 1), [ConvLayer(1, 5, 1.0)], 1.0),
            "layers: the window of ConvLayer(",
        ),
        (
            lambda: nad_jax.count_paths((4,), [ConvLayer(1, 3, 1.0)], 1.0),
            "layers: convolutions need pixels, inputs (D,) have none",
        ),
        (
            lambda: nad_jax.count_paths((4, 1), [DenseLayer(2, 1.0), ConvLayer(1, 3, 1.0)], 1.0),
            "layers: convolutions need pixels, dense layers come after",
        ),
        (
            lambda: nad_jax.count_paths(
                (8, 1), [ConvLayer(1, 3, 1.0), DenseLayer(2, 1.0), ConvLayer(1, 3, 1.0)], 1.0
            ),
            "layers: convolutions need pixels, dense layers come after",
        ),
        (
            lambda: nad_jax.count_paths((4, 1), [ConvLayer(1, (3, 3), 1.0)], 1.0),
            "layers: kernel must be one number or 1, got (3, 3)",
        ),
        (
            lambda: nad_jax.count_paths((4, 1), [ConvLayer(1, 3, 1.0, padding="full")], 1.0),
            "layers: padding must be 'valid', 'same' or numbers, got 'full'",
        ),
        (
            lambda: nad_jax.count_paths((4, 1), [ConvLayer(1, 3, 1.0, stride=0)], 1.0),
            "layers: stride: must be an integer of at least 1, got 0",
        ),
        (
            lambda: nad_jax.count_paths((4, 1), [ConvLayer(1, 3, -1.0)], 1.0),
            "layers: weight_variance: must be a finite number greater than 0.0",
        ),
        (
            lambda: nad_jax.count_masked_paths([np.eye(3)], [1.0] * 3),
            "masks: must be those of 3 layers (the last may be left out)",
        ),
        (
            lambda: nad_jax.count_masked_paths([np.eye(3), np.ones((2, 4))], [1.0] * 3),
            "masks[1]: must be [2, 3] after the layer before, got [2, 4]",
        ),
        (
            lambda: nad_jax.count_masked_paths([2 * np.eye(3)], [1.0] * 2),
            "masks[0]: must be zeros and ones",
        ),
        (
            lambda: nad_jax.count_masked_paths([np.eye(3)], [1.0, 1.0], logit=-1),
            "logit: must be an integer",
        ),
        (
            lambda: nad_jax.count_masked_paths(
                nad_jax.create_model(**LENET, pooling="none", density=0.5).init(
                    nad_jax.make_key(0)
                ),
                [1.0] * 5,
            ),
            "masks: variables must be kernels [in, out] and biases of one network's dense layers, "
            "got params/Conv_0/kernel [5, 5, 1, 6]",
        ),
    ],
)
def test_what_is_no_such_network_is_refused(call, message):
    with pytest.raises(InputError) as raised:
        call()
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)
