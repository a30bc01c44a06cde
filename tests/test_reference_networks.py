"""Every network of the table against its definition in float64, in both modes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from nad_jax.architectures import ARCHITECTURES, create_model
from tests import reference_networks

# Each at the smallest images that meet every layer of it, of uneven sides where it takes them.
CASES = {
    ("logreg", "default"): (3, 4, 2),
    ("mlp", "default"): (3, 4, 2),
    ("lenet", "default"): (16, 19, 2),
    ("lenet", "avg"): (16, 19, 2),
    ("lenet", "none"): (10, 11, 2),
    ("vgg11", "default"): (32, 32, 1),
    ("vgg11_plain", "default"): (32, 32, 1),
    ("resnet18", "default"): (32, 28, 1),
    ("resnet18_w16", "none"): (4, 5, 1),
    ("resnet18_imagenet", "default"): (40, 36, 3),
    ("densenet121", "default"): (32, 32, 1),
    ("wide_resnet", "default"): (32, 36, 1),
    ("bottleneck_mlp", "default"): (3, 4, 2),
    ("vit", "default"): (4, 6, 2),
    ("vit", "avg"): (4, 6, 2),
    ("mixer", "default"): (4, 6, 2),
    ("convnext", "default"): (16, 32, 2),
}
OPTIONS = {
    "wide_resnet": {"width": 2, "depth": 16, "widen": 2},
    "bottleneck_mlp": {"width": 6, "depth": 2},
    "vit": {"width": 12, "depth": 2, "heads": 3, "patch": 2},
    "mixer": {"width": 6, "depth": 2, "token_width": 5, "channel_width": 7, "patch": 2},
    "convnext": {"width": 3, "stages": "1-2-1-1", "layer_scale": 0.5, "patch": 2},
}


def test_the_table_is_covered():
    assert (
        {architecture for architecture, _ in CASES}
        == set(ARCHITECTURES)
        == set(reference_networks.NETWORKS)
    )


def _close(actual, expected):
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max()
    )  # 1.5e-6 were seen


def _draw(model):
    """Variables and two images at random; variances that are normalized are about as large as the
    epsilon beside them.

    With larger ones an epsilon a hundred times as large would go unnoticed.
    """
    rng, shapes = (
        np.random.default_rng(0),
        flatten_dict(jax.eval_shape(model.init, jax.random.key(0)), sep="/"),
    )
    size = 3e-3 if any(name.startswith("batch_stats") for name in shapes) else 1.0

    def draw(name, shape):
        module, kind = name.rsplit("/", 1)
        if kind == "scale":
            return rng.uniform(0.5, 1.5, shape)
        if kind == "var":
            return size**2 * rng.uniform(0.3, 3.0, shape)
        kernel = shapes.get(f"{module}/kernel")
        unit = size if kind == "mean" or (kernel is not None and len(kernel.shape) == 4) else 1.0
        spread = np.sqrt(2 / np.prod(shape[:-1])) if kind == "kernel" else 0.3
        return unit * spread * rng.standard_normal(shape, np.float32)

    variables = {name: draw(name, leaf.shape).astype(np.float32) for name, leaf in shapes.items()}
    return variables, rng.standard_normal((2, *model.image_shape), np.float32)


@pytest.mark.parametrize(("architecture", "pooling"), CASES)
def test_evaluation_and_its_derivative_are_those_of_the_definition(architecture, pooling):
    # Convolutions as they are on a CPU; in the next test, as they are elsewhere.
    options = OPTIONS.get(architecture, {})
    shape = CASES[architecture, pooling]
    model = create_model(architecture, shape, 3, pooling, convolution="product", **options)
    variables, images = _draw(model)

    @jax.jit
    def evaluate(variables, x, weights):
        features, pull_back = jax.vjp(lambda x: model.features(variables, x), x)
        return (
            model.apply(variables, x),
            features,
            *pull_back(jnp.broadcast_to(weights, features.shape)),
        )

    logits, features, gradients = evaluate(
        unflatten_dict(variables, sep="/"), images, np.ones((1, 1), np.float32)
    )
    # In this mode most networks are linear between the kinks of ReLU and pooling, and float64
    # resolves a step so small.
    step, along = 1e-7, np.random.default_rng(1).normal(size=images.shape)
    images = np.concatenate([images, images + step * along])
    expected = reference_networks.run(architecture, variables, images, pooling, options=options)
    _close(logits, expected.logits[:2])
    _close(features, expected.features[:2])
    slopes = (expected.features[2:] - expected.features[:2]).sum(1) / step
    norms = np.sqrt((np.asarray(gradients) ** 2).sum((1, 2, 3)))
    assert (norms > 0).all()
    assert (np.abs((gradients * along).sum((1, 2, 3)) - slopes) < 1e-3 * norms).all()


@pytest.mark.parametrize(("architecture", "pooling"), CASES)
def test_training_is_that_of_the_definition(architecture, pooling):
    options = OPTIONS.get(architecture, {})
    shape = CASES[architecture, pooling]
    model = create_model(architecture, shape, 3, pooling, convolution="lax", **options)
    variables, images = _draw(model)

    @jax.jit
    def train(variables, x, key):
        kept = []

        def record(next_function, args, kwargs, context):
            outputs = next_function(*args, **kwargs)
            if isinstance(context.module, nn.Dropout):
                kept.append(outputs != 0)
            return outputs

        with nn.intercept_methods(record):
            return *model.apply(variables, x, key, train=True), kept

    trained = train(unflatten_dict(variables, sep="/"), images, jax.random.key(0))
    logits, updated, masks = jax.device_get(trained)
    expected = reference_networks.run(architecture, variables, images, pooling, masks, options)
    _close(logits, expected.logits)
    updated = flatten_dict(updated, sep="/")
    assert set(updated) == set(variables)
    for name, array in updated.items():
        _close(array, expected.variables[name])
    assert len(masks) == len(expected.units)
    for mask, units in zip(masks, expected.units, strict=True):
        share, count = mask[units > 0].mean(), (units > 0).sum()
        assert abs(share - (1 - reference_networks.DROPPED)) < 4.5 * np.sqrt(0.25 / count)
