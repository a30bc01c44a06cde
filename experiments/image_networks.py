"""Networks trained on CIFAR-10: the config fields, checks and training that `poison_cifar` and
`flip_cifar` share.
"""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import results
from experiments.run import folder
from experiments.run.config import HOW_FIELDS, RECIPE_FIELDS, check_known, check_sweep, read_recipe
from experiments.run.costs import Example, shorten
from experiments.run.plan import Plan
from nad_jax import cifar, errors, store
from nad_jax.architectures import create_model
from nad_jax.cifar import ImageData
from nad_jax.directions import check_orthonormal
from nad_jax.errors import InputError, check_integer, check_number
from nad_jax.fitting import FitMetrics, check_recipe, resolve_mapping
from nad_jax.image_training import (
    check_image_data,
    image_network_key,
    make_image_stages,
    make_train_many_images,
)
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.snapshots import Snapshots

IMAGE_SHAPE = (32, 32, 3)
METRICS = tuple(name for name in FitMetrics._fields if name != "losses")
# Fields that determine the numbers of every network: a folder holds one set of them, and of the
# images.
IDENTITY_FIELDS = (
    "pooling", "initialization", "convolution", "mean", "std", "optimizer", "learning_rate",
    *RECIPE_FIELDS,
)  # fmt: skip
FREE_FIELDS = ("data_dir", "num_train", "num_test", "nads", "architectures", "seeds", *HOW_FIELDS)


class ImageNetwork(NamedTuple):
    """One network of a sweep.

    coordinates: its place in the table.
    arrays: what the transformation of its training images takes besides these.
    data: the name of its images, for `make_plan`.
    key: what determines its images, besides those of the folder: part of the name it is stored
      under.
    """

    coordinates: dict[str, Any]
    arrays: tuple[np.ndarray, ...]
    data: str
    key: str

    @property
    def name(self) -> str:
        return json.dumps({**self.coordinates, "images": self.key}, sort_keys=True)


def create_network(config: ConfigDict, architecture: str) -> Model:
    """The model of an architecture with ten logits."""
    return create_model(
        architecture, IMAGE_SHAPE, 10, config.pooling, config.initialization, config.convolution
    )


def validate(
    config: ConfigDict, own_fields: tuple[str, ...], *own_checks: Callable[[], None]
) -> None:
    """Raises one `InputError` with a line per problem; `own_fields` and `own_checks` are of the
    experiment.
    """
    check_known(config, (*IDENTITY_FIELDS, *FREE_FIELDS, *own_fields))
    problems = errors.problems(
        *(partial(check_sweep, field, config[field]) for field in ("architectures", "seeds"))
    )
    if problems:
        raise InputError("\n".join(problems))

    def check_optimizer() -> None:
        recipe, learning_rate = read_recipe(
            config, "optimizer", config.optimizer, config.num_train or 50_000, 10_000
        )
        check_number("learning_rate", learning_rate, 0.0)
        check_recipe(recipe)

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
        logging.warning(
            "%s: %d and %d images; CIFAR-10 has 50000 to train and 10000 to test",
            config.data_dir,
            *sizes,
        )
    train, test = config.num_train or None, config.num_test or None
    return ImageData(
        data.train_images[:train],
        data.train_labels[:train],
        data.test_images[:test],
        data.test_labels[:test],
    )


def make_plan(
    config: ConfigDict,
    workdir: Path,
    data: ImageData,
    networks: list[ImageNetwork],
    own_fields: tuple[str, ...],
    columns: tuple[str, ...],
    make_data: Callable[[str, str], ImageData],
    report: Callable[[list[results.Row]], None],
    transform: Callable[..., jax.Array] | None = None,
) -> Plan:
    """The networks of a config as units.

    Args:
      data: the images as they are; `make_data(architecture, data)` gives those of a network.
      own_fields, columns: of the experiment.
      report: prints the rows of the table, and writes what the figures need besides.
      transform: is done to batches of images, see `image_training.make_train_images`.
    """

    def make_model_and_recipe(program: tuple[str, str]) -> tuple[Model, Recipe, float]:
        sizes = len(data.train_images), len(data.test_images)
        recipe, learning_rate = read_recipe(config, "optimizer", config.optimizer, *sizes)
        return create_network(config, program[0]), recipe, learning_rate

    def make_run(
        program: tuple[str, str], chunk_size: int
    ) -> tuple[Callable[..., FitMetrics], dict[str, Any]]:
        model, recipe, learning_rate = make_model_and_recipe(program)
        how = (config.mapping, chunk_size, config.num_devices)
        images = make_data(*program)
        train = make_train_many_images(
            model, images, recipe, transform, config.mean, config.std, *how
        )

        def run(
            members: list[ImageNetwork], progress: Callable[[float], None], snapshots: Snapshots
        ) -> FitMetrics:
            arrays = tuple(
                np.stack(column)
                for column in zip(*(network.arrays for network in members), strict=True)
            )
            seeds = [network.coordinates["seed"] for network in members]
            return train(arrays, learning_rate, seeds, progress, snapshots)

        return run, dict(model.description)

    def make_example(program: tuple[str, str], chunk_size: int) -> Example:
        model, recipe, learning_rate = make_model_and_recipe(program)
        short = shorten(recipe)
        images, train, test = make_data(*program), short.num_train, short.num_test
        few = ImageData(
            *(array[:train] for array in images[:2]), *(array[:test] for array in images[2:])
        )
        example = next(network for network in networks if _program(network) == program)
        keys = jnp.stack([image_network_key(0)] * chunk_size)
        arrays = (np.stack([array] * chunk_size) for array in example.arrays)
        members = (keys, np.full(chunk_size, learning_rate, np.float32), *arrays)
        stages = make_image_stages(model, short, transform, config.mean, config.std)
        nbytes = sum(array.nbytes for array in images)
        return Example(stages, recipe, check_image_data(few, model), members, nbytes)

    def collect(missing: int) -> None:
        rows = folder.write_table(workdir, sweep, columns)
        report(rows)
        folder.write_command(workdir, command(config, own_fields), missing)

    identity = {name: config[name] for name in IDENTITY_FIELDS}
    identity = {"experiment": config.experiment, "images": folder.digest(*data), **identity}
    sweep = folder.Sweep(identity, networks, METRICS, _program, make_run, make_example, collect)
    return folder.make_plan(config, workdir, sweep)


def _program(network: ImageNetwork) -> tuple[str, str]:
    return network.coordinates["architecture"], network.data


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
