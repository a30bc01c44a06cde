"""Config fields that the experiments which train networks have in common: their checks, and the
recipe they say.
"""

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from nad_jax.errors import InputError, unknown
from nad_jax.recipe import Recipe

RECIPE_FIELDS = (
    "schedule", "clip_norm", "weight_decay", "batch_size", "num_epochs", "loss_threshold",
    "loss_window", "precision",
)  # fmt: skip
HOW_FIELDS = ("unit_size", "mapping", "chunk_size", "num_devices")  # not part of what a network is


def check_known(config: Mapping[str, Any], fields: Iterable[str]) -> None:
    """Raises `InputError` with a line for each field that is missing or that the experiment does
    not know.
    """
    known = {*fields, "experiment"}
    problems = [f"{name}: field is missing" for name in sorted(known - set(config))]
    problems += [str(unknown("config field", name, known)) for name in sorted(set(config) - known)]
    if problems:
        raise InputError("\n".join(problems))


def check_sweep(field: str, values: Any) -> None:
    """Raises `InputError` unless a sweep axis is a non-empty tuple of different values."""
    repeated = isinstance(values, tuple | list) and any(
        value in values[:i] for i, value in enumerate(values)
    )
    if not isinstance(values, tuple | list) or not len(values) or repeated:
        raise InputError(f"{field}: must be a non-empty tuple of different values, got {values!r}")
    for value in values:
        if isinstance(value, str) and "," in value:
            several = ", ".join(repr(part.strip()) for part in value.split(","))
            raise InputError(
                f'{field}: several names are written --config.{field}="({several})", got {value!r}'
            )


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
    return Recipe(
        optimizer, options, num_train=num_train, num_test=num_test, **fields
    ), learning_rate
