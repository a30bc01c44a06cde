"""Networks trained on CIFAR-10: the config fields, checks and training that `poison_cifar` and `flip_cifar` share."""

import hashlib
import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import units
from experiments.fields import HOW_FIELDS, RECIPE_FIELDS, check_known, check_sweep, read_recipe
from experiments.progress import Progress
from nad_jax import cifar, errors, store
from nad_jax.architectures import create_model
from nad_jax.errors import InputError, check_integer, check_number
from nad_jax.fitting import FitMetrics, resolve_mapping
from nad_jax.image_training import ImageData, make_train_many_images
from nad_jax.models import Model

IMAGE_SHAPE = (32, 32, 3)
METRICS = tuple(name for name in FitMetrics._fields if name != "losses")
# Fields that determine the numbers of every network: a folder holds one set of them, and of the images.
IDENTITY_FIELDS = (
    "num_train", "num_test", "pooling", "initialization", "convolution", "mean", "std", "optimizer", "learning_rate",
    *RECIPE_FIELDS,
)  # fmt: skip
FREE_FIELDS = ("data_dir", "nads", "architectures", "seeds", *HOW_FIELDS)


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
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()[:16]


def create_network(config: ConfigDict, architecture: str) -> Model:
    """The model of an architecture with ten logits."""
    return create_model(architecture, IMAGE_SHAPE, 10, config.pooling, config.initialization, config.convolution)


def validate(config: ConfigDict, own_fields: tuple[str, ...], *own_checks: Callable[[], None]) -> None:
    """Raises one `InputError` with a line per problem; `own_fields` and `own_checks` are of the experiment."""
    check_known(config, (*IDENTITY_FIELDS, *FREE_FIELDS, *own_fields))
    problems = errors.problems(*(partial(check_sweep, config, field) for field in ("architectures", "seeds")))
    if problems:
        raise InputError("\n".join(problems))

    def check_recipe() -> None:
        recipe, learning_rate = read_recipe(config, "optimizer", config.optimizer, 50_000, 10_000)
        check_number("learning_rate", learning_rate, 0.0)
        if recipe.problems():
            raise InputError("\n".join(recipe.problems()))

    def check_channels(field: str) -> None:
        if not isinstance(config[field], tuple | list) or len(config[field]) != IMAGE_SHAPE[2]:
            raise InputError(f"{field}: must be {IMAGE_SHAPE[2]} numbers, one for each channel, got {config[field]!r}")
        for value in config[field]:
            check_number(field, value, 0.0, exclusive=field == "std")

    def check_nads() -> None:
        if not config.nads:
            raise InputError("nads: needs a file of NADs (.npz or .npy), e.g. of the experiment compute_nads")

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
        check_recipe,
        check_nads,
        check_data,
        *own_checks,
    )
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))


def read_nads(config: ConfigDict) -> dict[str, np.ndarray]:
    """The NADs of each architecture, [K, 1024]; `{architecture}` in the path stands for its name."""
    dimension = IMAGE_SHAPE[0] * IMAGE_SHAPE[1]
    paths = {name: config.nads.replace("{architecture}", name) for name in config.architectures}
    return {name: store.read_directions(path, dimension) for name, path in paths.items()}


def read_images(config: ConfigDict) -> ImageData:
    """The first `num_train` and `num_test` images (0: all) of CIFAR-10."""
    data = cifar.read_cifar10(config.data_dir)
    for field, images in (("num_train", data.train_images), ("num_test", data.test_images)):
        check_integer(field, config[field], 0, len(images))
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
    """Trains the networks that are not in the folder, unit by unit.

    `make_data(architecture, data)` gives the images of a network; `transform` is done to batches of them, see
    `image_training.make_train_images`.
    """
    done = units.read_units(workdir, METRICS)
    mapping, chunk_size, devices = resolve_mapping(config.mapping, config.chunk_size, config.num_devices)
    unit_size = config.unit_size or chunk_size
    made = {"mapping": mapping, "chunk_size": chunk_size, "jax": jax.__version__, "device": devices[0].device_kind}
    missing = [network for network in networks if network.name not in done]
    num_done = len(networks) - len(missing)
    progress = Progress(len(networks), num_done, "networks")
    how = (config.mapping, config.chunk_size, config.num_devices)
    programs = itertools.groupby(missing, lambda network: (network.coordinates["architecture"], network.data))
    for (architecture, name), group in programs:
        data, model = make_data(architecture, name), create_network(config, architecture)
        sizes = len(data.train_images), len(data.test_images)
        recipe, learning_rate = read_recipe(config, "optimizer", config.optimizer, *sizes)
        run = make_train_many_images(model, data, recipe, transform, config.mean, config.std, *how)
        group = list(group)
        for first in range(0, len(group), unit_size):
            unit = group[first : first + unit_size]
            arrays = tuple(np.stack(column) for column in zip(*(network.arrays for network in unit), strict=True))
            seeds = [network.coordinates["seed"] for network in unit]
            metrics = run(arrays, learning_rate, seeds)
            units.write_unit(workdir, [network.name for network in unit], metrics, {**model.description, **made})
            num_done += len(unit)
            progress(num_done)


def command(config: ConfigDict, own_fields: tuple[str, ...]) -> dict[str, Any]:
    """The fields that say which networks are in the table of a run."""
    return {name: config[name] for name in (*IDENTITY_FIELDS, "architectures", "seeds", *own_fields)}


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean over seeds and its standard error, nan for one seed."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(np.mean(values)), float(error)


def format_accuracy(values: list[float]) -> str:
    """Accuracies over seeds as a percentage, with a standard error where there is one."""
    mean, error = mean_and_error(values)
    return f"{100 * mean:.1f}%" + (f" ± {100 * error:.1f}" if np.isfinite(error) else "")


def report_diverged(rows: list[dict[str, Any]]) -> None:
    """Says how many networks diverged, if any did."""
    diverged = sum(row["diverged_at"] >= 0 for row in rows)
    if diverged:
        print(f"{diverged} of {len(rows)} networks diverged")
