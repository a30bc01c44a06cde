"""Patch networks: what they compute, and under which transformations training does not notice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nad_jax import Recipe, Task, create_patch_network, starting_from, train_many, with_two_logits
from nad_jax.errors import InputError

K, LENGTH = 3, 4
RECIPE = Recipe("sgd", {"momentum": 0.9}, schedule="constant", clip_norm=0.0, num_train=80,
                num_test=80, num_epochs=10, batch_size=16, loss_window=1)  # 50 steps # fmt: skip


def _soft(t, b):
    return np.maximum(t - b, 0) - np.maximum(-t - b, 0)


def _outputs(name, filters, threshold, x, activation):
    """The network of the definition, in float64, sample by sample."""

    def units(filters, sample):
        if name == "fcn":
            return np.array([np.sum(one * sample) for one in filters])
        if name == "lcn":
            return np.array([w @ sample[j] for j in range(K) for w in filters[j]])
        return np.array([w @ sample[j] for j in range(K) for w in filters])

    found = []
    for sample in x:
        if activation == "relu":
            above, below = (np.maximum(units(one, sample) - threshold, 0) for one in filters)
            found.append((above - below).sum())
        elif activation == "soft_threshold":
            found.append(_soft(units(filters, sample), threshold).sum())
        else:
            found.append(units(filters, sample).sum())
    return np.array(found)


@pytest.mark.parametrize("activation", ["soft_threshold", "relu", "linear"])
@pytest.mark.parametrize("name", ["fcn", "lcn", "cnn"])
def test_networks_are_those_of_the_definition(name, activation):
    x = np.random.default_rng(0).normal(size=(6, K, LENGTH))
    threshold = 0.0 if activation == "linear" else 0.3
    model = create_patch_network(name, K, LENGTH, 2, activation, threshold=threshold)
    variables = model.init(jax.random.key(0))
    filters = np.asarray(variables["filters"], np.float64)
    count = {"fcn": 2 * K * K * LENGTH, "lcn": 2 * K * LENGTH, "cnn": 2 * LENGTH}[name]
    assert filters.size == count * (2 if activation == "relu" else 1)
    expected = _outputs(name, filters, threshold, x, activation)
    found = model.apply(variables, jnp.asarray(x, jnp.float32))
    assert model.input_shape == (K, LENGTH) and model.num_logits == 1
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)
    trained, after = model.apply(variables, jnp.asarray(x, jnp.float32), None, train=True)
    np.testing.assert_array_equal(trained, found)
    assert after is variables


def test_filters_start_from_their_law():
    filters = create_patch_network("fcn", 20, 10, scale=0.5).init(jax.random.key(1))["filters"]
    scaled = np.ravel(filters) * np.sqrt(200) / 0.5
    assert scipy.stats.kstest(scaled, "norm").pvalue > 0.01


def test_relu_pairs_of_opposite_filters_are_the_soft_threshold():
    pairs, soft = (create_patch_network("lcn", K, LENGTH, 1, a) for a in ("relu", "soft_threshold"))
    filters, x = (np.random.default_rng(2).normal(size=(2, K, 1, LENGTH)) for _ in range(2))
    x = x[:, :, 0].astype(np.float32)
    one = {"filters": filters[0], "threshold": 0.4}
    two = {"filters": np.stack([filters[0], -filters[0]]), "threshold": 0.4}
    np.testing.assert_allclose(pairs.apply(two, x), soft.apply(one, x), atol=1e-6)


def test_a_linear_cnn_is_the_threshold_at_zero():
    linear, soft = (
        create_patch_network("cnn", K, LENGTH, 1, a) for a in ("linear", "soft_threshold")
    )
    variables = soft.init(jax.random.key(3))
    x = jax.random.normal(jax.random.key(4), (5, K, LENGTH))
    only = {"filters": variables["filters"]}
    np.testing.assert_allclose(linear.apply(only, x), soft.apply(variables, x), atol=1e-6)


def _rotation(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def _transform(kind, x, filters):
    """Inputs [B, k, d] and filters, transformed."""
    rng = np.random.default_rng(5)
    order, blocks = np.array([2, 0, 1]), np.stack([_rotation(rng, LENGTH) for _ in range(K)])
    if kind == "rotation":  # of the whole input
        whole = _rotation(rng, K * LENGTH)
        flat = whole.reshape(K, LENGTH, K, LENGTH)
        return tuple(np.einsum("jdie,...ie->...jd", flat, one) for one in (x, filters))
    if kind == "blocks":  # of each patch by itself, the filters alike
        return np.einsum("jde,bje->bjd", blocks, x), np.einsum(
            "jde,...jue->...jud", blocks, filters
        )
    if kind == "blocks, first for filters":
        return np.einsum("jde,bje->bjd", blocks, x), filters @ blocks[0].T
    if kind == "one rotation":  # of all patches
        return x @ blocks[0].T, filters @ blocks[0].T
    if kind == "one rotation of inputs":
        return x @ blocks[0].T, filters
    if kind == "exchange with filters":
        return x[:, order], filters[..., order, :, :]
    assert kind == "exchange of inputs"
    return x[:, order], filters


def _train(model, variables, x, labels):
    """Outputs [B] on x after 50 steps, in double precision."""
    task = Task(
        data=lambda model, recipe, seed: (jnp.asarray(x), jnp.asarray(labels)),
        sample=lambda data, split, indices, arrays: (data[0][indices], data[1][indices]),
        sizes=(len(x), len(x)),
        trusted=True,
    )
    model = starting_from(with_two_logits(model), variables)
    metrics = train_many(model, task, learning_rate=0.05, recipe=RECIPE, keep=True)
    assert metrics.losses.shape[1] == 50 and metrics.diverged_at[0] == -1
    trained = jax.tree.map(lambda leaf: leaf[0], metrics.variables)
    assert trained["filters"].dtype == np.float64
    return np.asarray(model.apply(trained, jnp.asarray(x)))[:, 0]


@pytest.mark.parametrize(
    ("name", "kind", "alike"),
    [
        ("fcn", "rotation", True),
        ("lcn", "blocks", True),
        ("lcn", "exchange with filters", True),
        ("lcn", "exchange of inputs", False),
        ("cnn", "exchange of inputs", True),
        ("cnn", "one rotation", True),
        ("cnn", "one rotation of inputs", False),
        ("cnn", "blocks, first for filters", False),
    ],
)
def test_after_50_steps_outputs_are_those_of_transformed_inputs_and_filters(name, kind, alike):
    with jax.enable_x64(True):
        rng, labels = np.random.default_rng(6), np.arange(80) % 2
        model = create_patch_network(name, K, LENGTH, activation="relu")
        filters = rng.normal(size=model.init(jax.random.key(0))["filters"].shape) / 2
        x = 0.5 * rng.normal(size=(80, K, LENGTH))
        x[np.arange(80), rng.integers(K, size=80)] += (1 - 2 * labels)[:, None] / 2
        start = {"filters": filters, "threshold": np.float64(0.1)}
        outputs = _train(model, start, x, labels)
        assert np.abs(outputs - np.asarray(model.apply(start, x))[:, 0]).max() > 0.5  # it has moved
        turned, changed = _transform(kind, x, filters)
        other = _train(model, {**start, "filters": changed}, turned, labels)
        difference = np.abs(other - outputs).max() / np.abs(outputs).max()
        assert difference < 1e-6 if alike else difference > 0.1


def test_bad_input_is_refused_by_name():
    for arguments, message in [
        (("dense", 2, 2), "^name: unknown value 'dense'"),
        (("cnn", 0, 2), "^num_patches: must be an integer of at least 1"),
        (("cnn", 2, 2.5), "^patch_size: must be an integer of at least 1"),
        (("cnn", 2, 2, 0), "^width: must be an integer of at least 1"),
        (("cnn", 2, 2, 1, "tanh"), "^activation: unknown value 'tanh'"),
        (("cnn", 2, 2, 1, "relu", -1.0), "^scale: must be a finite number at least 0"),
        (("cnn", 2, 2, 1, "relu", 1.0, np.nan), "^threshold: must be a finite number, got nan"),
        (("cnn", 8, 4, 1, "linear", 1.0, 0.5), "^threshold: linear .* must be 0, got 0.5"),
    ]:
        with pytest.raises(InputError, match=message):
            create_patch_network(*arguments)
