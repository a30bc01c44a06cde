"""The evolution of an ensemble's geometry, against gradients that are observed network by network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nad_jax import (
    ImageData,
    Recipe,
    create_model,
    from_functions,
    geometry_evolution,
    observers,
    tasks,
    train_many,
)
from nad_jax.errors import InputError
from nad_jax.evolution import _jackknife
from nad_jax.snapshots import Snapshots

D, RNG = 16, np.random.default_rng(0)
SHAPE = (4, 4, 1)
IMAGES = RNG.normal(size=(40, *SHAPE)).astype(np.float32)
LABELS = (IMAGES[:, 0, 0, 0] > 0).astype(np.int32)
DATA = ImageData(IMAGES, LABELS, IMAGES, LABELS)
POINTS = RNG.normal(size=(6, *SHAPE)).astype(np.float32)
RECIPE = Recipe(
    "sgd", {"momentum": 0.9}, schedule="constant", clip_norm=5.0, weight_decay=5e-4,
    num_train=40, num_test=40, batch_size=40, num_epochs=3,
)  # fmt: skip
FLAT = IMAGES.reshape(40, D)
REFERENCES = {"data": FLAT.T @ FLAT, "other": np.diag(np.arange(1.0, D + 1))}
SEEDS = np.arange(5)
MODEL = create_model("mlp", SHAPE, num_logits=2, width=12)


def _evolve(**changes):
    given = {"seed": SEEDS, "learning_rate": 0.3, "recipe": RECIPE, **changes}
    return geometry_evolution(MODEL, tasks.images(DATA), REFERENCES, POINTS, **given)


@pytest.fixture(scope="module")
def found():
    return _evolve()


@pytest.fixture(scope="module")
def observed():
    """G [N, E + 1, D, D], accuracy and weights of every network, by `train_many`."""

    def gradients(variables, data, member):
        return jax.vmap(jax.grad(lambda x: MODEL.apply(variables, x[None])[0, 0]))(POINTS)

    def weights(variables, data, member):
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(variables)])

    task = tasks.images(DATA)
    accuracy = observers.accuracy(MODEL, task, RECIPE, "train")
    observe = {"gradients": gradients, "weights": weights, "accuracy": accuracy}
    how = {"seed": SEEDS, "learning_rate": 0.3, "recipe": RECIPE}
    metrics = train_many(MODEL, task, observe=observe, **how)
    rows = np.float64(metrics.observed["gradients"]).reshape(5, 4, 6, D)
    return np.einsum("nepi,nepj->neij", rows, rows) / 6, metrics


def test_what_is_found_is_what_networks_one_by_one_have(found, observed):
    geometry, metrics = observed
    for name, matrix in REFERENCES.items():
        expected = np.einsum("neij,ij->en", geometry, matrix) / np.linalg.norm(matrix)
        np.testing.assert_allclose(found.alignments[name], expected, rtol=2e-3)
    pairs = np.einsum("neij,meij->enm", geometry, geometry)
    steps = np.einsum("neij,meij->enm", geometry[:, :-1], geometry[:, 1:])
    np.testing.assert_allclose(found.products, pairs, rtol=2e-3)
    np.testing.assert_allclose(found.steps, steps, rtol=2e-3)
    weights = metrics.observed["weights"]
    start = weights[:, :1]
    distance = np.linalg.norm(weights - start, axis=2) / np.linalg.norm(start, axis=2)
    np.testing.assert_allclose(found.distance, distance.T, rtol=2e-3)
    np.testing.assert_allclose(found.accuracy, metrics.observed["accuracy"].T, atol=0.026)
    np.testing.assert_allclose(found.losses, metrics.losses, rtol=1e-3)
    assert np.ptp(found.distance[-1]) > 0 and (found.distance[0] == 0).all()


def test_lengths_in_cosines_are_means_over_pairs_of_different_networks(found):
    pairs = [(n, m) for n in range(5) for m in range(5) if n != m]
    square = np.array([[one[pair] for pair in pairs] for one in found.products]).mean(1)
    cosine, error = found.cosine("data")
    expected = found.alignments["data"].mean(1) / np.sqrt(square)
    np.testing.assert_allclose(cosine, expected, rtol=1e-5)
    assert (error > 0).all()


def test_velocity_is_that_of_the_mean_geometry(found, observed):
    mean = observed[0].mean(0).reshape(4, -1)
    mean /= np.linalg.norm(mean, axis=1)[:, None]
    velocity, error = found.velocity()
    np.testing.assert_allclose(velocity, 1 - np.sum(mean[1:] * mean[:-1], 1), rtol=0.02)
    assert (velocity > 0).all() and (error > 0).all()


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = RNG.normal(size=9)
    mean, error = _jackknife(lambda kept: values[kept].mean()[None], np.arange(9))
    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.std(ddof=1) / 3)
    _, unknown = _jackknife(lambda kept: values[kept].mean()[None], np.arange(2))
    assert np.isnan(unknown)


def test_of_a_linear_model_the_cosine_is_without_the_noise_of_few_networks():
    # f = θᵀAx: G = AᵀA, and the G of a network has one direction alone.
    matrix = RNG.normal(size=(6, D)).astype(np.float32)

    def apply(variables, x, key=None, train=False):
        outputs = x.reshape(len(x), -1) @ matrix.T @ variables
        return (outputs, variables) if train else outputs

    model = from_functions(lambda key: jax.random.normal(key, (6, 2)), apply, SHAPE, check=False)
    recipe = Recipe(schedule="constant", num_train=40, num_test=40, batch_size=40, num_epochs=1)
    exact = {"exact": matrix.T @ matrix}
    how = {"seed": np.arange(400), "recipe": recipe, "mapping": "vectorized", "chunk_size": 400}
    found = geometry_evolution(model, tasks.images(DATA), exact, POINTS[:1], **how)
    cosine, error = found.cosine("exact")
    assert abs(cosine[0] - 1) < 3 * error[0] < 0.06
    # With eight networks the mean over all pairs, equal ones too, is too large by a half.
    biased = found.alignments["exact"][0, :8].mean() / np.sqrt(found.products[0, :8, :8].mean())
    assert biased < 0.9


def test_networks_advance_together_whatever_the_chunks_are(found):
    other = _evolve(chunk_size=2)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-6)


def test_what_was_interrupted_is_taken_up_again(found, tmp_path):
    class Interrupted(Exception):
        pass

    def interrupt(done):
        if done > 3:
            raise Interrupted

    for progress in (interrupt, None):
        snapshots = Snapshots(tmp_path / "unit", {}, 0.0, lambda: True)
        try:
            resumed = _evolve(snapshots=snapshots, progress=progress)
        except Interrupted:
            assert progress is interrupt and list(tmp_path.iterdir())
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, two)


def test_networks_that_diverge_are_left_out():
    rates = np.array([0.3, 0.3, 0.3, 0.3, 1e30], np.float32)
    found = _evolve(learning_rate=rates)
    assert (found.diverged_at >= 0).tolist() == [False] * 4 + [True]
    kept = _evolve(seed=SEEDS[:4])
    for one, two in zip(found.cosine("data"), kept.cosine("data"), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4)
    assert "1 networks diverged" in repr(found)


def test_where_all_networks_diverge_nothing_is_estimated(found):
    lost = found._replace(diverged_at=np.zeros_like(found.diverged_at))
    assert repr(lost).endswith("all of them diverged")
    assert all(
        np.isnan(value) for row in lost.to_rows() for n, value in row.items() if n != "epoch"
    )


def test_integer_points_are_those_of_floating_point():
    points = np.round(3 * POINTS).astype(int)
    how = {"seed": SEEDS[:2], "recipe": dataclasses.replace(RECIPE, num_epochs=1)}
    both = (
        geometry_evolution(MODEL, tasks.images(DATA), REFERENCES, one, **how)
        for one in (points, np.float32(points))
    )
    np.testing.assert_array_equal(*(one.products for one in both))


def test_a_cosine_with_what_was_not_given_is_refused(found):
    with pytest.raises(InputError, match=r"^name: unknown value 'dat' .did you mean 'data'"):
        found.cosine("dat")


def test_rows_have_every_epoch_and_print_themselves(found, tmp_path):
    rows = found.to_rows()
    assert [row["epoch"] for row in rows] == [0, 1, 2, 3]
    assert np.isnan(rows[0]["velocity"]) and rows[1]["velocity"] > 0
    assert rows[3]["distance_sem"] > 0
    found.to_csv(tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text().startswith("epoch,cosine_data,cosine_data_sem")
    assert repr(found).startswith("Geometry of 5 networks over 3 epochs")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 3}, "^seed: must be of at least two networks, got 1"),
        ({"seed": [3, 4, 3]}, "^seed: must be another one for each network, got .3, 4, 3."),
        ({"points": POINTS[:, :3]}, r"^points: must be real numbers \[N, 16\]"),
        ({"logit": 2}, "^logit: must be an integer in 0 … 1, got 2"),
        ({"references": {"S": np.eye(3)}}, r"^references\['S'\]: must be real numbers \[16, 16\]"),
        ({"references": {"S": np.zeros((16, 16))}}, r"^references\['S'\]: must not be zero"),
        ({"references": np.eye(16)}, "^references: must be matrices by name"),
        ({"task": "images"}, "^task: "),
        ({"progress": 3}, "^progress: "),
    ],
)
def test_bad_arguments_are_refused_by_name(changes, message):
    given = {"model": MODEL, "task": tasks.images(DATA), "references": REFERENCES}
    given |= {"points": POINTS, "seed": SEEDS, "recipe": RECIPE, **changes}
    with pytest.raises(InputError, match=message):
        geometry_evolution(**given)
