"""Studies of trained networks: the recipe that a config says, and the networks in stored units.

A network's name is what determines it, so a folder is extended by any sweep axis and nothing is
trained twice.
"""

import ast
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import results
from experiments.run.config import HOW, check_all, check_integers
from experiments.run.costs import (
    Example,
    device_bytes,
    largest_chunk,
    measure_training,
    training_bytes,
)
from experiments.run.folder import Folder
from experiments.run.plan import Arrays, Cost, Member, Program, Study
from nad_jax import errors
from nad_jax.errors import InputError, check_number
from nad_jax.fitting import FitMetrics, resolve_mapping
from nad_jax.recipe import Recipe
from nad_jax.snapshots import Snapshots

TRAINED_HOW = ("unit_size", "num_devices", *HOW)  # `keep_weights` belongs here
RECIPE_FIELDS = (
    "schedule", "clip_norm", "weight_decay", "batch_size", "num_epochs", "loss_threshold",
    "loss_window", "precision",
)  # fmt: skip


def parse_optimizer(field: str, text: str) -> tuple[str, dict[str, Any]]:
    """The name and options of an optimizer, the value of `field`.

    It is written "sgd", "sgd:momentum=0.9" or "adam:b1=0.8:learning_rate=0.001".
    """
    name, *parts = str(text).split(":")
    options = {}
    for part in parts:
        option, equals, value = part.partition("=")
        try:
            options[option] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            equals = ""
        if not equals:
            raise InputError(
                f"{field}: options are written name:option=value:…, with numbers, got {text!r}"
            )
    return name, options


def read_recipe(
    config: ConfigDict, field: str, optimizer: str, num_train: int, num_test: int
) -> tuple[Recipe, float]:
    """How networks are trained with an optimizer, the value of `field`, and their learning rate."""
    optimizer, options = parse_optimizer(field, optimizer)
    learning_rate = options.pop("learning_rate", config.learning_rate)
    fields = {name: config[name] for name in RECIPE_FIELDS}
    sizes = {"num_train": num_train, "num_test": num_test}
    return Recipe(optimizer, options, **sizes, **fields), learning_rate


def check_training(
    config: ConfigDict,
    field: str,
    optimizer: str,
    num_train: int,
    num_test: int,
    num_train_field: str = "num_train",
) -> None:
    """Raises `InputError` where `read_recipe` gives none that can be carried out."""
    recipe, learning_rate = read_recipe(config, field, optimizer, num_train, num_test)
    names = {"num_train": num_train_field, "optimizer": field}
    lines = (line.split(":", 1) for line in recipe.problems())
    problems = [f"{names.get(name, name)}:{rest}" for name, rest in lines]
    problems += errors.problems(lambda: check_number("learning_rate", learning_rate, 0.0))
    if problems:
        raise InputError("\n".join(problems))


def check_execution(config: ConfigDict) -> None:
    """Raises `InputError` where networks cannot be trained in the way that a config says."""
    check_all(
        lambda: check_integers(config, unit_size=0),
        lambda: resolve_mapping(config.mapping, config.chunk_size, config.num_devices),
    )


class Network(NamedTuple):
    """What is to be known of a network: its place in the table, and what its training takes."""

    coordinates: dict[str, Any]
    arrays: tuple[np.ndarray, ...]


class Train(Protocol):
    """Trains the networks of members: their metrics, `fitting.FitMetrics` or more, [N] each."""

    def __call__(
        self, members: list[Member], progress: Callable[[float], None], snapshots: Snapshots
    ) -> FitMetrics: ...


class Training(NamedTuple):
    """How the networks of a study are trained.

    metrics: the names of what goes into the table.
    make_train(program, chunk_size): the training, and a description of the model.
    make_example(program, chunk_size): so many networks of a program, to be measured.
    """

    metrics: tuple[str, ...]
    make_train: Callable[[Any, int], tuple[Train, Mapping[str, Any]]]
    make_example: Callable[[Any, int], Example]


def make_study(
    config: ConfigDict,
    identity: dict[str, Any],
    networks: list[Member],
    training: Training,
    collect: Callable[[Folder, int], None],
) -> Study:
    """Networks in units of `config.unit_size` (0: one chunk) of one program; `what` of each is a
    `Network`.
    """
    _, chunk_size, _ = resolve_mapping(config.mapping, config.chunk_size, config.num_devices)
    unit_size = config.unit_size or chunk_size

    def choose_mapping(program: Any, chunk_size: int) -> tuple[str, int, list[jax.Device]]:
        """As the config says, but no more networks at once than fit where it leaves their number
        open.
        """
        chosen = chunk_size or config.chunk_size
        mapping, chunk_size, devices = resolve_mapping(config.mapping, chosen, config.num_devices)
        if mapping == "vectorized" and not chosen:

            def needs(size: int) -> int:
                return training_bytes(training.make_example(program, size), mapping, devices)

            limit = device_bytes() // 2 * len(devices)
            chunk_size = largest_chunk(needs, unit_size, len(devices), limit)
        return mapping, chunk_size, devices

    def measure_cost(program: Any) -> Cost:
        mapping, chunk_size, devices = choose_mapping(program, 0)
        return measure_training(training.make_example(program, chunk_size), mapping, devices)

    def make_program(program: Any, chunk_size: int) -> Program:
        mapping, chunk_size, devices = choose_mapping(program, chunk_size)
        train, model = training.make_train(program, chunk_size)

        def compute(
            members: list[Member], progress: Callable[[float], None], snapshots: Snapshots
        ) -> tuple[Arrays, int]:
            metrics = train(members, progress, snapshots)
            return metrics._asdict(), int((metrics.diverged_at >= 0).sum())

        how = {"model": dict(model), "mapping": mapping, "chunk_size": chunk_size}
        return Program(compute, chunk_size, len(devices), how)

    shapes = dict.fromkeys(training.metrics, ())
    return Study(
        {"": identity}, networks, lambda _: shapes, make_program, measure_cost, collect, unit_size
    )


def list_rows(folder: Folder) -> list[results.Row]:
    """The coordinates and metrics of the networks that are stored."""
    return [{**member.what.coordinates, **metrics} for member, metrics in folder.stored()]
