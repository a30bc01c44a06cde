"""Training on images: the recipe against a float64 reference, what is transformed and what is not,
bad input.
"""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from nad_jax import (
    ImageData,
    Recipe,
    basis_random,
    cifar_recipe,
    create_model,
    make_key,
    make_train_images,
    make_train_many_images,
    poison,
    published_carriers,
    tasks,
    train_many_images,
)
from nad_jax.ensemble import keys_of_seeds
from nad_jax.errors import InputError
from tests.test_training import reference_regression

SHAPE = (8, 8, 3)
CLASSES = 4
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
SMALL = Recipe(
    "sgd",
    {"momentum": 0.9},
    weight_decay=5e-2,
    clip_norm=0.3,
    batch_size=32,
    num_epochs=3,
    loss_window=3,
)


def _data(num_train=100, num_test=60, dtype=np.uint8):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_train + num_test, *SHAPE), np.uint8)
    images = images if dtype == np.uint8 else (images / np.float32(255)).astype(dtype)
    labels = np.arange(num_train + num_test) % CLASSES
    return ImageData(images[:num_train], labels[:num_train], images[num_train:], labels[num_train:])


def _carriers(index=3, epsilon=0.5):
    carriers, signs = published_carriers(
        np.asarray(basis_random(make_key(1), 64)), index, SHAPE, CLASSES
    )
    return carriers, np.float32(epsilon) * signs


def _model(name="logreg"):
    return create_model(name, SHAPE, CLASSES)


def test_training_on_poisoned_images_equals_its_float64_reference():
    data, model, (carriers, coefficients) = _data(), _model(), _carriers()
    recipe = dataclasses.replace(SMALL, num_train=100, num_test=60)
    key = keys_of_seeds("image networks", [7])[0]
    train = make_train_images(model, recipe, poison, MEAN, STD)
    variables, metrics = jax.jit(train)(key, 0.2, carriers, coefficients, data)
    init_key, order_key, _ = jax.random.split(key, 3)
    start = model.init(init_key)["params"]["Dense_0"]
    x = data.train_images.reshape(100, -1) / 255.0
    v = carriers[data.train_labels].astype(np.float64)
    x = x + (coefficients[data.train_labels] - (x * v).sum(1))[:, None] * v
    mean, std = np.tile(MEAN, 64), np.tile(STD, 64)
    weights, bias, losses = reference_regression(
        recipe,
        np.asarray(start["kernel"], np.float64),
        np.asarray(start["bias"], np.float64),
        (x - mean) / std,
        data.train_labels,
        order_key,
        0.2,
        momentum=0.9,
    )
    np.testing.assert_allclose(metrics.losses, losses, atol=2e-5)
    np.testing.assert_allclose(variables["params"]["Dense_0"]["kernel"], weights, atol=2e-5)
    # The test images are normalized, but not poisoned.
    logits = (data.test_images.reshape(60, -1) / 255.0 - mean) / std @ weights + bias
    assert float(metrics.test_accuracy) == pytest.approx(
        (logits.argmax(1) == data.test_labels).mean(), abs=1e-6
    )
    logits = (x - mean) / std @ weights + bias
    assert float(metrics.train_accuracy) == pytest.approx(
        (logits.argmax(1) == data.train_labels).mean(), abs=1e-6
    )


def test_a_network_takes_up_the_carrier_where_the_images_say_nothing():
    data, (carriers, coefficients) = _data(400, 400), _carriers(epsilon=2.0)
    recipe = dataclasses.replace(SMALL, num_epochs=30, weight_decay=0.0, clip_norm=0.5)
    arrays = tuple(np.stack([array, 0 * array]) for array in (carriers, coefficients))
    metrics = train_many_images(_model(), data, arrays, 0.1, recipe=recipe, transform=poison)
    assert metrics.train_accuracy[0] > 0.99 and metrics.train_accuracy[1] < 0.9
    assert (metrics.test_accuracy < 0.4).all()  # chance is ¼


@pytest.mark.parametrize("mapping", ["sequential", "vectorized"])
def test_a_network_does_not_depend_on_its_company(mapping):
    data, model = _data(), _model("mlp")
    arrays = tuple(
        np.stack(column) for column in zip(_carriers(0), _carriers(3), _carriers(5), strict=True)
    )
    run = make_train_many_images(model, data, SMALL, poison, MEAN, STD, mapping, chunk_size=2)
    done = []
    many = run(arrays, 0.1, seed=[0, 0, 1], progress=done.append)
    assert (
        {2, 3} < set(done)
        and done == sorted(done)
        and done[-1] == 3
        and len({float(loss) for loss in many.train_loss}) == 3
    )
    for index, seed in enumerate([0, 0, 1]):
        one = run(tuple(array[index : index + 1] for array in arrays), 0.1, seed)
        jax.tree.map(lambda a, b, i=index: np.testing.assert_array_equal(a[0], b[i]), one, many)


def test_mappings_and_kinds_of_images_agree():
    recipe = dataclasses.replace(SMALL, precision="highest")
    runs = [
        train_many_images(
            _model("mlp"), _data(dtype=dtype), seed=[0, 1], recipe=recipe, mapping=mapping
        )
        for dtype, mapping in [
            (np.uint8, "sequential"),
            (np.uint8, "vectorized"),
            (np.float64, "sequential"),
        ]
    ]
    for other in runs[1:]:
        np.testing.assert_allclose(other.losses, runs[0].losses, atol=1e-5)
        np.testing.assert_array_equal(other.test_accuracy, runs[0].test_accuracy)


def test_fewer_images_than_a_batch_are_one_batch():
    metrics = train_many_images(_model(), _data(20, 10), recipe=SMALL)
    assert metrics.losses.shape == (1, 3) and np.isfinite(metrics.losses).all()


def test_a_short_recipe_is_checked_with_the_number_of_images():
    short = dataclasses.replace(
        SMALL, num_epochs=1, num_train=16
    )  # one step of 16, but four of 100
    assert np.isfinite(train_many_images(_model(), _data(), recipe=short).losses).all()


def test_the_published_recipe():
    recipe = cifar_recipe()
    assert (recipe.optimizer, dict(recipe.optimizer_options), recipe.weight_decay) == (
        "sgd",
        {"momentum": 0.9},
        5e-4,
    )
    assert (recipe.clip_norm, recipe.batch_size, recipe.num_epochs, recipe.schedule) == (
        0.5,
        128,
        50,
        "linear",
    )
    assert recipe.num_steps == 50 * 391 and recipe.problems() == []


def test_bad_input_is_named():
    data, model = _data(), _model()
    carriers, coefficients = (array[None] for array in _carriers())
    for change, message in [
        (
            {"train_images": data.train_images[..., :1]},
            r"train_images: must be real numbers \[B, 8, 8, 3\]",
        ),
        (
            {"test_images": data.test_images.astype(int)},
            "test_images: must be uint8 or real numbers, got int64",
        ),
        (
            {"test_images": data.test_images * np.float32("nan")},
            "test_images: has entries that are not finite",
        ),
        ({"train_labels": data.train_labels + 1}, r"train_labels: must be in 0 … 3, got 4"),
        ({"train_labels": data.train_labels / 2}, r"train_labels: must be integers \[B\]"),
        (
            {"test_labels": data.test_labels[1:]},
            "test_labels: must be one for each of the 60 images, got 59",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            train_many_images(model, data._replace(**change), recipe=SMALL)
    for arguments, message in [
        ({"mean": (0.1, 0.2)}, "mean: must be a finite number or one for each of the 3 channels"),
        ({"std": 0.0}, "std: must be positive, got 0"),
        (
            {"seed": [0, 1, 2], "arrays": (carriers, coefficients)},
            r"arrays: must have one leading axis \[3\]",
        ),
        (
            {"learning_rate": [0.1, 0.2], "seed": [0, 1, 2], "transform": None},
            "learning_rate: must be a number or one for each of the 3",
        ),
        (
            {"recipe": dataclasses.replace(SMALL, batch_size=0)},
            "batch_size: must be an integer of at least 1",
        ),
        ({"chunk_size": -1}, "chunk_size"),
        ({"arrays": (carriers,)}, "coefficients: is needed"),
        (
            {"arrays": (carriers, coefficients), "transform": None},
            "arrays: .* there is no transform",
        ),
        ({"arrays": (0.5,)}, "arrays: must have a leading axis"),
        (
            {"transform": lambda x, labels: x[:, 1:]},
            r"transform: must keep the shape of images, \(32, 8, 8, 3\)",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            train_many_images(model, data, **{"recipe": SMALL, "transform": poison, **arguments})
    with pytest.raises(InputError, match="model: must come from create_model"):
        train_many_images("lenet", data)
    with pytest.raises(InputError, match="data: must be ImageData, got tuple"):
        train_many_images(model, tuple(data))
    train = make_train_images(model, SMALL)
    with pytest.raises(
        InputError, match=r"data: the recipe has 10000 and 10000 images, got \(100, 60\)"
    ):
        train(jax.random.key(0), 0.1, data)


def test_a_label_without_a_carrier_is_not_passed_over():
    carriers, coefficients = (array[None, :2] for array in _carriers())  # two of four classes
    metrics = train_many_images(
        _model(), _data(), (carriers, coefficients), recipe=SMALL, transform=poison
    )
    assert metrics.diverged_at.tolist() == [1]


def test_the_rate_is_the_published_one_or_that_of_an_optimizer_object():
    model, data = _model(), _data(32, 16)
    recipe = dataclasses.replace(SMALL, num_epochs=2)
    by_default, given = (
        train_many_images(model, data, recipe=recipe, **rate)
        for rate in ({}, {"learning_rate": [0.21]})
    )
    jax.tree.map(np.testing.assert_array_equal, by_default, given)
    own = dataclasses.replace(recipe, optimizer=optax.sgd(0.1), optimizer_options={})
    metrics = train_many_images(model, data, recipe=own, seed=[0, 1])
    plain = dataclasses.replace(own, optimizer="sgd", schedule="constant")
    expected = train_many_images(model, data, recipe=plain, seed=[0, 1], learning_rate=0.1)
    np.testing.assert_array_equal(metrics.losses, expected.losses)
    assert list(metrics.settings) == ["seed"]
    with pytest.raises(InputError, match=r"^learning_rate: 0\.21 cannot be combined"):
        train_many_images(model, data, recipe=own, learning_rate=0.21)


@pytest.mark.parametrize("shape", [(5,), (4, 3), (4, 4, 2), (2, 4, 4, 2)])
def test_inputs_of_any_shape_are_scaled_channel_by_channel(shape):
    rng = np.random.default_rng(0)
    inputs, labels = rng.normal(size=(6, *shape)).astype(np.float32), np.arange(6) % 2
    mean, std = np.arange(shape[-1]), 1.0 + np.arange(shape[-1])
    task = tasks.images(ImageData(inputs, labels, inputs, labels), mean=mean, std=std)
    model = create_model("mlp", shape, num_logits=2, width=3)
    data = task.data(model, task.resolve_recipe(), 0)
    x, _ = task.sample(data, "train", np.array([4, 1]), {})
    np.testing.assert_allclose(x, (inputs[[4, 1]] - mean) / std, rtol=1e-6)
