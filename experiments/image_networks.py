"""Networks trained on CIFAR-10: the config fields, checks and training that `poison_cifar` and
`flip_cifar` share.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import results, trained
from experiments.networks import read_model
from experiments.run.config import (
    Fields,
    check_all,
    check_integers,
    check_seeds,
    check_sweeps,
)
from experiments.run.folder import Folder, digest
from experiments.run.plan import Arrays, Member, Study
from experiments.trained import Trainee, read_recipe
from nad_jax import cifar, records, store, tasks
from nad_jax.cifar import ImageData
from nad_jax.directions import check_orthonormal
from nad_jax.errors import InputError, check_integer, check_number
from nad_jax.models import Model
from nad_jax.tables import list_metrics
from nad_jax.task import FitMetrics

IMAGE_SHAPE = (32, 32, 3)
METRICS = list_metrics(FitMetrics)
# `make_data(architecture, data)`: the images of that name for networks of an architecture.
MakeData = Callable[[str, str], ImageData]
# `transform(images, labels, carriers, coefficients)`: the images that networks are trained on.
Transform = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def make_fields(experiment: str, *axes: str) -> Fields:
    """The fields of an experiment on CIFAR-10, with axes of its own; the images are known by their
    content.
    """
    grows = ("num_train", "num_test", "nads", "architectures", "seeds", *axes)
    return Fields(experiment, how=("data_dir", *trained.TRAINED_HOW), grows=grows)


def make_network(coordinates: dict[str, Any], key: str, data: str, **arrays: np.ndarray) -> Member:
    """One network of a sweep.

    Args:
      coordinates: its place in the table.
      key: what determines its images, besides those of the folder: part of its name.
      data: the name of its images, for `make_study`.
      arrays: what the transformation of its training images takes besides these.
    """
    name = json.dumps({**coordinates, "images": key}, sort_keys=True)
    return Member(name, (coordinates["architecture"], data), Trainee(coordinates, arrays))


def create_network(config: ConfigDict, architecture: str) -> Model:
    """The model of an architecture with ten logits."""
    return read_model(config, num_logits=10, architecture=architecture, image_shape=IMAGE_SHAPE)


def validate(
    config: ConfigDict, fields: Fields, axes: tuple[str, ...], *own_checks: Callable[[], None]
) -> None:
    """Raises one `InputError` with a line per problem; `axes`, to be swept, and `own_checks` are of
    the experiment.
    """
    fields.check_known(config)
    check_sweeps(config, ("architectures", "seeds", *axes))

    def check_channels(field: str) -> None:
        if not isinstance(config[field], tuple | list) or len(config[field]) != IMAGE_SHAPE[2]:
            raise InputError(
                f"{field}: must be {IMAGE_SHAPE[2]} numbers, one for each channel, got "
                f"{config[field]!r}"
            )
        for value in config[field]:
            check_number(field, value, 0.0 if field == "std" else -math.inf, exclusive=True)

    def check_nads() -> None:
        if not config.nads:
            raise InputError(
                "nads: needs a file of NADs (.npz or .npy), e.g. of the experiment compute_nads"
            )
        if len(config.architectures) > 1 and "{architecture}" not in config.nads:
            raise InputError(
                f"nads: needs {{architecture}} in the path of several architectures, got "
                f"{config.nads!r}"
            )

    def check_data() -> None:
        if not config.data_dir:
            raise cifar.missing_data(config.data_dir)

    sizes = config.num_train or 50_000, 10_000
    check_all(
        *(partial(create_network, config, name) for name in config.architectures),
        lambda: check_seeds("seeds", *config.seeds),
        lambda: check_integers(config, num_train=0, num_test=0),
        lambda: trained.check_execution(config),
        lambda: check_channels("mean"),
        lambda: check_channels("std"),
        lambda: trained.check_recipe(config, "optimizer", config.optimizer, *sizes),
        check_nads,
        check_data,
        *own_checks,
    )


def read_nads(config: ConfigDict) -> Arrays:
    """The NADs of each architecture, [K, 1024]; `{architecture}` in the path stands for its name."""
    nads = {}
    for architecture in config.architectures:
        path = config.nads.replace("{architecture}", architecture)
        nads[architecture] = records.read_directions(path, IMAGE_SHAPE[0] * IMAGE_SHAPE[1])
        try:
            check_orthonormal(nads[architecture])
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return nads


def read_images(config: ConfigDict) -> ImageData:
    """The first `num_train` and `num_test` images (0: all) of CIFAR-10."""
    data = cifar.read_cifar10(config.data_dir)
    sizes = len(data.train_images), len(data.test_images)
    for field, size in zip(("num_train", "num_test"), sizes, strict=True):
        check_integer(field, config[field], 0, size)
    if sizes != (50_000, 10_000):
        logging.warning(
            "%s: %d and %d images; CIFAR-10 has 50000 to train and 10000 to test",
            config.data_dir,
            *sizes,
        )
    train, test = config.num_train or None, config.num_test or None
    ends = zip(data, (train, train, test, test), strict=True)
    return ImageData(*(array[:end] for array, end in ends))


def make_study(
    config: ConfigDict,
    fields: Fields,
    data: ImageData,
    networks: list[Member],
    make_data: MakeData,
    show: Callable[[], Arrays],
    report: Callable[[results.Rows], None],
    transform: Transform | None = None,
) -> Study:
    """The networks of a config; when they are trained `examples.npz` and `results.csv` are written.

    Args:
      data: the images as they are; `make_data(architecture, data)` gives those of a network.
      show(): the arrays of `examples.npz`.
      report: prints the rows of the table.
      transform: is done to batches of images, see `tasks.images`.
    """

    def make_setup(member: Member) -> trained.Setup:
        task = tasks.images(make_data(*member.program), transform, config.mean, config.std)
        recipe, learning_rate = read_recipe(config, "optimizer", config.optimizer, *task.sizes)
        return trained.Setup(create_network(config, member.program[0]), task, recipe, learning_rate)

    def collect(folder: Folder, num_missing: int) -> None:
        store.write_npz(folder.workdir / "examples.npz", show())
        columns = (*networks[0].what.coordinates, *METRICS, *results.PROVENANCE)
        rows = trained.list_rows(folder, columns)
        table = (folder.workdir, rows, columns, fields.command(config), num_missing)
        report(results.write_table(*table))

    identity = {"images": digest(*data), **fields.identity(config)}
    return trained.make_study(config, identity, networks, METRICS, make_setup, collect)


def choose_examples(data: ImageData, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Training images in [0, 1], of different classes, and their labels."""
    chosen = np.unique(data.train_labels, return_index=True)[1][:count]
    return data.train_images[chosen] / np.float32(255), data.train_labels[chosen]


def format_accuracy(values: list[float]) -> str:
    """Accuracies over seeds as a percentage, with a standard error where there is one."""
    mean, error = results.mean_and_error(values)
    return f"{100 * mean:.1f}%" + (f" ± {100 * error:.1f}" if np.isfinite(error) else "")


def report_diverged(rows: results.Rows) -> None:
    """Says how many networks diverged, if any did."""
    for line in results.count_diverged(rows):
        print(line)
