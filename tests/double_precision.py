"""Calls of the package on small models, for a process of its own: in double precision, as its
argument says, or not.
"""

import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import nad_jax
from nad_jax.aliases import make_train_many_images

SHAPE = (4, 4, 1)


def _draw(key, shape, dtype):
    """Kernels that are the same numbers in either precision."""
    return nn.initializers.lecun_normal()(key, shape, jnp.float32).astype(dtype)


class Net(nn.Module):
    logits: int = 1
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(6, kernel_init=_draw, param_dtype=self.dtype)(x.reshape(len(x), -1))
        x = nn.BatchNorm(use_running_average=not train, param_dtype=self.dtype)(x)
        return nn.Dense(self.logits, kernel_init=_draw, param_dtype=self.dtype)(nn.tanh(x))


def _estimates(dtype: type) -> Iterator[tuple[str, np.ndarray]]:
    model = nad_jax.from_linen(Net(1, dtype), SHAPE, readout_variance=1 / 6, check=False)
    for derivative, readout, count in (
        ("input_gradient", "marginalized", 1),
        ("central_difference", "marginalized", 1),
        ("central_difference", "sampled", 1),
        ("input_gradient", "sampled", 3),
    ):
        choices = {
            "derivative": derivative,
            "readout": readout,
            "num_readouts": count,
            "point": "fresh",
        }
        nads = nad_jax.estimate_nads(model, 8, **choices)
        yield f"{derivative}_{readout}_{count}", np.append(nads.eigenvalues, nads.eigenvalue_sem)
    if dtype != jnp.float32:
        return
    choices = {"derivative": "input_gradient", "readout": "sampled", "centred": True}
    stopped = nad_jax.estimate_nads(model, 40, stop_overlap=0.3, stop_size=4, **choices)
    yield "centred", stopped.eigenvalues[:4]
    found = nad_jax.estimate_leading_nads(model, 12, 2, 2, **choices)
    yield "leading", np.append(found.nads.eigenvalues, found.trace)


def _training(dtype: type) -> Iterator[tuple[str, np.ndarray]]:
    model = nad_jax.from_linen(Net(2, dtype), SHAPE, check=False)
    sizes = {"num_train": 40, "num_test": 20, "num_epochs": 2, "batch_size": 20, "loss_window": 2}
    recipe = nad_jax.Recipe("sgd", {"momentum": np.float64(0.9)}, weight_decay=1e-3, **sizes)
    directions = np.eye(16)[:2]
    metrics = nad_jax.train_many(
        model, directions, np.float64(2.0), [0.5, 1.0], 0.05, recipe=recipe
    )
    for part in ("losses", "test_loss", "train_accuracy", "gradient_cosine"):
        yield f"train_many_{part}", np.asarray(getattr(metrics, part))
    if dtype != jnp.float32:
        return
    train = jax.jit(nad_jax.make_train(model, recipe))
    noise = nad_jax.sample_noise(nad_jax.make_key(0), 40, 20, 16)
    _, metrics = train(jax.random.key(1), directions[0], 2.0, 1.0, 0.1, noise)
    yield "make_train", np.asarray(metrics.losses)

    rng = np.random.default_rng(0)
    images = rng.random((60, *SHAPE))
    data = nad_jax.ImageData(images[:40], np.arange(40) % 2, images[40:], np.arange(20) % 2)
    carriers, signs = nad_jax.published_carriers(np.eye(16), 0, SHAPE, num_classes=2)
    poisons = carriers[None].astype(np.float64), 0.05 * signs[None].astype(np.float64)
    metrics = nad_jax.train_many_images(
        model, data, poisons, 0.1, recipe=recipe, transform=nad_jax.poison, std=0.5
    )
    yield "train_many_images", np.asarray(metrics.losses)
    with tempfile.TemporaryDirectory() as folder:
        snapshots = [
            nad_jax.Snapshots(Path(folder) / "state", {"seed": np.int64(3)}, 0.0) for _ in range(2)
        ]
        run = make_train_many_images(model, data, recipe, nad_jax.poison, std=0.5)

        def stop(done: float) -> None:
            raise KeyboardInterrupt

        try:
            run(poisons, 0.1, progress=stop, snapshots=snapshots[0])
        except KeyboardInterrupt:
            resumed = run(poisons, 0.1, snapshots=snapshots[1])
        yield "resumed", np.asarray(resumed.losses)
    whole = nad_jax.make_train_images(model, recipe)
    data = nad_jax.ImageData(
        *(jnp.asarray(array, jnp.float32 if i % 2 == 0 else None) for i, array in enumerate(data))
    )
    yield "make_train_images", np.asarray(whole(3, 0.1, data)[1].losses)


def _scores(dtype: type) -> Iterator[tuple[str, np.ndarray]]:
    """A score network of one's own, whose variables and outputs are of a dtype."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return {"w": _draw(key, (16, 16), dtype)}

    def apply(variables: dict[str, jax.Array], x: jax.Array, t: jax.Array) -> jax.Array:

        noise = (x.reshape(len(x), -1) + 1.0 + t[:, None] / 1000) @ variables["w"]
        return noise.reshape(x.shape)

    network = nad_jax.ScoreNetwork(init, apply, SHAPE, lambda variables: {"w": 1 / 16})
    signal = nad_jax.Schedule(21).alpha_bar
    warnings.simplefilter("ignore", UserWarning)
    for choices in (
        {},
        {"levels": "integrated"},
        {"levels": "uniform", "readout": "sampled", "noised": True},
    ):
        sads = nad_jax.estimate_sads(network, 40, signal=signal, **choices)
        yield f"sads_{'_'.join(map(str, choices.values()))}", sads.matrix
    warnings.simplefilter("error")
    yield "sample_ddim", nad_jax.sample_ddim(network, init(jax.random.key(0)), 1, 3, 5)


def _functions() -> Iterator[tuple[str, np.ndarray]]:
    images = np.random.default_rng(0).random((6, *SHAPE))
    labels, directions = (
        np.arange(6) % 2,
        np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16)))[0],
    )
    key = nad_jax.make_key(2**32 - 1)
    for kind in (np.float32, np.float64):
        given = images.astype(kind)
        yield (
            f"poison_{kind.__name__}",
            nad_jax.poison(given, labels, directions[:2], np.array([0.1, -0.1])),
        )
        yield f"set_{kind.__name__}", nad_jax.set_coefficients(given, directions[:6], np.zeros(6))
        yield f"flip_{kind.__name__}", nad_jax.flip(given, directions)
        yield f"project_{kind.__name__}", nad_jax.project_out(given, directions[:3])
    yield "basis_pixel", nad_jax.basis_pixel(SHAPE)
    yield "basis_dft", nad_jax.basis_dft(SHAPE).directions
    yield "basis_dct", nad_jax.basis_dct(SHAPE)
    yield "basis_random", nad_jax.basis_random(key, 16, 5)
    yield "dft_direction", nad_jax.dft_direction(SHAPE, np.array([1.0, 2.0]))
    yield "complete_basis", nad_jax.complete_basis(directions[:15])[:15]
    x, labels = nad_jax.sample_separable(key, directions[0], 8, np.float64(2.0), np.float64(0.5))
    yield "sample_separable", x
    yield "bayes_classifier", nad_jax.bayes_classifier(x, directions[0])
    yield (
        "competing_accuracy",
        nad_jax.competing_accuracy(
            directions[:2], (directions[1:3] + directions[0]) / 2**0.5, 1.0, 2.0
        ),
    )
    yield "noise", np.concatenate(nad_jax.sample_noise(key, 4, 2, 16))
    yield "rank_correlation", nad_jax.rank_correlation(images[0].ravel(), images[1].ravel())
    yield "overlap", nad_jax.subspace_overlap(directions[:4], nad_jax.basis_pixel(SHAPE), (1, 4))
    yield "angles", nad_jax.principal_angles(directions[:4], nad_jax.basis_pixel(SHAPE)[:4])
    yield "eigenvalues", nad_jax.eigh_dense(directions @ np.diag(np.arange(16)) @ directions.T)[0]


def write(path: str, precision: str) -> None:
    """Writes the numbers that come out to an `.npz` file; no warning is passed over."""
    warnings.simplefilter("error")
    double = precision == "double"
    jax.config.update("jax_enable_x64", double)
    found = dict(_functions())
    kept_in_single = {
        name for name, value in found.items() if "float64" not in name and hasattr(value, "dtype")
    }
    wrong = [n for n in kept_in_single - {"eigenvalues", "overlap", "angles", "competing_accuracy", "rank_correlation"}
             if found[n].dtype not in (np.float32, np.int32)]  # fmt: skip
    assert not wrong, wrong
    for kind in ("float32", "float64") if double else ("float32",):
        dtype = getattr(jnp, kind)
        found |= {
            f"{name}_{kind}": value
            for name, value in (*_estimates(dtype), *_training(dtype), *_scores(dtype))
        }
    np.savez(path, **{name: np.asarray(value) for name, value in found.items()})
