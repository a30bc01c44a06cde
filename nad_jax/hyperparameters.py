"""What a module was made with, as JSON values, for the record of a result."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from flax import nnx

from nad_jax.errors import plain


def describe_value(value: Any) -> Any:
    """A value as JSON: numbers, truth values, text and containers of them as they are; functions by
    their names and the numbers that they have closed over; anything else as its text.
    """
    value = plain(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe_value(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [describe_value(entry) for entry in value]
    if isinstance(value, functools.partial):
        given = {**dict(enumerate(value.args)), **value.keywords}
        return {"function": describe_value(value.func), **describe_value(given)}
    if isinstance(value, Callable) and hasattr(value, "__qualname__"):
        return _describe_function(value)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))  # where an object lies differs by run


def _describe_function(function: Callable) -> Any:
    """`nn.initializers.normal(2.0)` is a function, too: its name alone would not tell it from
    others.
    """
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    held = {
        name: plain(cell.cell_contents)
        for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=True)
    }
    numbers = {
        name: held[name] for name in held if isinstance(held[name], bool | int | float | str)
    }
    name = function.__qualname__.partition(".<locals>")[0]
    return {"function": name, **numbers} if numbers else name


def linen_hyperparameters(module: nn.Module) -> dict[str, Any]:
    """The fields of a Linen module."""
    names = [field.name for field in dataclasses.fields(module) if field.init]
    return {
        name: describe_value(getattr(module, name))
        for name in names
        if name not in ("parent", "name")
    }


def nnx_hyperparameters(module: nnx.Module) -> dict[str, Any]:
    """The attributes of an NNX module that are no variables; those of its modules by their names."""
    held = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    plain_ones = {
        name: describe_value(value)
        for name, value in held.items()
        if isinstance(value, bool | int | float | str | tuple | np.generic)
    }
    inner = {n: nnx_hyperparameters(v) for n, v in held.items() if isinstance(v, nnx.Module)}
    return plain_ones | inner
