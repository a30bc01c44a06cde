"""Networks trained on CIFAR-10: the config fields, checks and training that `poison_cifar` and `flip_cifar` share."""

import hashlib
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import results, units
from experiments.fields import HOW_FIELDS, RECIPE_FIELDS, check_known, check_sweep, read_recipe
from nad_jax import cifar, errors, store
from nad_jax.architectures import create_model
from nad_jax.cifar import ImageData
from nad_jax.directions import check_orthonormal
from nad_jax.errors import InputError, check_integer, check_number
from nad_jax.fitting import FitMetrics, check_recipe, resolve_mapping
from nad_jax.image_training import make_train_many_images
from nad_jax.models import Model

IMAGE_SHAPE = (32, 32, 3)
METRICS = tuple(name for name in FitMetrics._fields if name != "losses")
# Fields that determine the numbers of every network: a folder holds one set of them, and of the images.
IDENTITY_FIELDS = (
    "pooling", "initialization", "convolution", "mean", "std", "optimizer", "learning_rate",
    *RECIPE_FIELDS,
)  # fmt: skip
FREE_FIELDS = ("data_dir", "num_train", "num_test", "nads", "architectures", "seeds", *HOW_FIELDS)


class ImageNetwork(NamedTuple):
    """One network: its coordinates in the table, what of `arrays` and `data` it is trained on.

    arrays: what the transformation of its training images takes besides these.
    data: the name of its images, for `train_missing`.
    key: what determines its images, besides those of the folder: part of the name it is stored under.
    """

    coordinates: dict[str, Any]
    arrays: tuple[np.ndarray, ...]
    data: str
    key: str

    @property
    def name(self) -> str:
        return json.dumps({**self.coordinates, "images": self.key}, sort_keys=True)


def digest(*arrays: np.ndarray) -> str:
    """A name for the content of arrays."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(f"{array.dtype.str} {array.shape} ".encode())
        content.update(np.ascontiguousarray(array))
    return content.hexdigest()[:16]


def create_network(config: ConfigDict, architecture: str) -> Model:
    """The model of an architecture with ten logits."""
    return create_model(architecture, IMAGE_SHAPE, 10, config.pooling, config.initialization, config.convolution)


def validate(config: ConfigDict, own_fields: tuple[str, ...], *own_checks: Callable[[], None]) -> None:
    """Raises one `InputError` with a line per problem; `own_fields` and `own_checks` are of the experiment."""
    check_known(config, (*IDENTITY_FIELDS, *FREE_FIELDS, *own_fields))
    problems = errors.problems(*(partial(check_sweep, config, field) for field in ("architectures", "seeds")))
    if problems:
        raise InputError("\n".join(problems))

    def check_optimizer() -> None:
        recipe, learning_rate = read_recipe(config, "optimizer", config.optimizer, config.num_train or 50_000, 10_000)
        check_number("learning_rate", learning_rate, 0.0)
        check_recipe(recipe)

    def check_channels(field: str) -> None:
        if not isinstance(config[field], tuple | list) or len(config[field]) != IMAGE_SHAPE[2]:
            raise InputError(f"{field}: must be {IMAGE_SHAPE[2]} numbers, one for each channel, got {config[field]!r}")
        for value in config[field]:
            check_number(field, value, 0.0 if field == "std" else -math.inf, exclusive=True)

    def check_nads() -> None:
        if not config.nads:
            raise InputError("nads: needs a file of NADs (.npz or .npy), e.g. of the experiment compute_nads")
        if len(config.architectures) > 1 and "{architecture}" not in config.nads:
            raise InputError(f"nads: needs {{architecture}} in the path of several architectures, got {config.nads!r}")

    def check_data() -> None:
        if not config.data_dir:
            raise cifar.missing_data(config.data_dir)

    problems = errors.problems(
        *(partial(create_network, config, architecture) for architecture in config.architectures),
        *(partial(check_integer, "seeds", seed, 0, 2**32 - 1) for seed in config.seeds),
        lambda: check_integer("num_train", config.num_train, 0),
        lambda: check_integer("num_test", config.num_test, 0),
        lambda: check_integer("unit_size", config.unit_size, 0),
        lambda: resolve_mapping(config.mapping, config.chunk_size, config.num_devices),
        lambda: check_channels("mean"),
        lambda: check_channels("std"),
        check_optimizer,
        check_nads,
        check_data,
        *own_checks,
    )
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))


def read_nads(config: ConfigDict) -> dict[str, np.ndarray]:
    """The NADs of each architecture, [K, 1024]; `{architecture}` in the path stands for its name."""
    nads = {}
    for architecture in config.architectures:
        path = config.nads.replace("{architecture}", architecture)
        nads[architecture] = store.read_directions(path, IMAGE_SHAPE[0] * IMAGE_SHAPE[1])
        try:
            check_orthonormal(nads[architecture])
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return nads


def read_images(config: ConfigDict) -> ImageData:
    """The first `num_train` and `num_test` images (0: all) of CIFAR-10."""
    data = cifar.read_cifar10(config.data_dir)
    for field, images in (("num_train", data.train_images), ("num_test", data.test_images)):
        check_integer(field, config[field], 0, len(images))
    sizes = len(data.train_images), len(data.test_images)
    if sizes != (50_000, 10_000):
        logging.warning("%s: %d and %d images; CIFAR-10 has 50000 to train and 10000 to test", config.data_dir, *sizes)
    train, test = config.num_train or None, config.num_test or None
    return ImageData(
        data.train_images[:train], data.train_labels[:train], data.test_images[:test], data.test_labels[:test]
    )


def open_folder(config: ConfigDict, workdir: Path, data: ImageData) -> None:
    """Creates the run folder, or checks that it holds networks of these images and fields."""
    identity = {name: config[name] for name in IDENTITY_FIELDS}
    store.open_run_folder(workdir, {"experiment": config.experiment, "images": digest(*data), **identity})
    store.make_folder(workdir / "units")


def train_missing(
    config: ConfigDict,
    workdir: Path,
    networks: list[ImageNetwork],
    make_data: Callable[[str, str], ImageData],
    transform: Callable[..., jax.Array] | None = None,
) -> None:
    """Trains the networks that are not in the folder.

    `make_data(architecture, data)` gives the images of a network; `transform` is done to batches of them, see
    `image_training.make_train_images`.
    """

    def make_run(program: tuple[str, str]) -> tuple[Callable[..., FitMetrics], dict[str, Any]]:
        architecture, name = program
        data, model = make_data(architecture, name), create_network(config, architecture)
        sizes = len(data.train_images), len(data.test_images)
        recipe, learning_rate = read_recipe(config, "optimizer", config.optimizer, *sizes)
        how = (config.mapping, config.chunk_size, config.num_devices)
        train = make_train_many_images(model, data, recipe, transform, config.mean, config.std, *how)

        def run(unit: list[ImageNetwork], progress: Callable[[int], None]) -> FitMetrics:
            arrays = tuple(np.stack(column) for column in zip(*(network.arrays for network in unit), strict=True))
            return train(arrays, learning_rate, [network.coordinates["seed"] for network in unit], progress)

        return run, dict(model.description)

    def program(network: ImageNetwork) -> tuple[str, str]:
        return network.coordinates["architecture"], network.data

    units.train_missing(config, workdir, networks, METRICS, program, make_run)


def command(config: ConfigDict, own_fields: tuple[str, ...]) -> dict[str, Any]:
    """The fields that say which networks are in the table of a run."""
    fields = ("num_train", "num_test", "nads", "architectures", "seeds")
    return {name: config[name] for name in (*IDENTITY_FIELDS, *fields, *own_fields)}


def format_accuracy(values: list[float]) -> str:
    """Accuracies over seeds as a percentage, with a standard error where there is one."""
    mean, error = results.mean_and_error(values)
    return f"{100 * mean:.1f}%" + (f" ± {100 * error:.1f}" if np.isfinite(error) else "")


def report_diverged(rows: list[dict[str, Any]]) -> None:
    """Says how many networks diverged, if any did."""
    diverged = sum(row["diverged_at"] >= 0 for row in rows)
    if diverged:
        print(f"{diverged} of {len(rows)} networks diverged")
