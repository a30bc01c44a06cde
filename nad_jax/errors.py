"""The one exception raised on bad input, and the checks that word it.

A check of a number or a name returns it as Python's own: what NumPy or JAX give is converted here, once.
"""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np


class InputError(ValueError):
    """Bad input: the message names the field or file, the value and what is allowed."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def plain(value: Any) -> Any:
    """Numbers, truth values and texts of NumPy and JAX as Python's own, arrays as lists; also inside containers.

    Anything else, a random key or a number that is not known while a function is compiled, is returned as it is.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    dtype = getattr(value, "dtype", None)
    for kind, convert in ((np.bool_, bool), (np.integer, int), (np.floating, float)):
        if dtype is not None and jnp.issubdtype(dtype, kind):
            try:
                return [plain(entry) for entry in value] if value.ndim else convert(value)
            except TypeError:  # traced
                return value
    return value


def plain_fields(record: Any) -> None:
    """Makes the fields of a new frozen dataclass plain; a number where a field holds a float becomes one."""
    for field in dataclasses.fields(record):
        value = plain(getattr(record, field.name))
        if field.type is float and _is_number(value, numbers.Real):
            value = _as_float(value)
        object.__setattr__(record, field.name, value)


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def unknown(kind: str, value: Any, allowed: Iterable[Any]) -> InputError:
    """The error for a name that is not in a table, with the closest known name."""
    allowed = list(allowed)
    close = difflib.get_close_matches(str(value), map(str, allowed), n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return InputError(f"{kind}: unknown value {value!r}{hint}; allowed: {', '.join(map(repr, allowed))}")


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """Returns `value`, one of `allowed`; raises `InputError` otherwise."""
    value, allowed = plain(value), list(allowed)
    if not any(type(value) is type(option) and value == option for option in allowed):
        raise unknown(name, value, allowed)
    return value


def check_integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Returns an integer between `minimum` and `maximum`, both included; raises `InputError` otherwise."""
    value = plain(value)
    if not _is_number(value, numbers.Integral) or value < minimum or (maximum is not None and value > maximum):
        allowed = f"of at least {minimum}" if maximum is None else f"in {minimum} … {maximum}"
        raise InputError(f"{name}: must be an integer {allowed}, got {value!r}")
    return int(value)


def check_number(name: str, value: Any, minimum: float, exclusive: bool = False) -> float:
    """Returns a finite real number of at least (or above) `minimum` as a float; raises `InputError` otherwise."""
    value = plain(value)
    number = _as_float(value) if _is_number(value, numbers.Real) else math.nan
    if not math.isfinite(number) or number < minimum or (exclusive and number == minimum):
        bound = f"greater than {minimum}" if exclusive else f"at least {minimum}"
        raise InputError(f"{name}: must be a finite number {bound}, got {value!r}")
    return number


def check_labels(name: str, labels: np.ndarray, num_classes: int) -> None:
    """Raises `InputError` unless `labels` are integers [B] in 0 … num_classes − 1."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{name}: must be integers [B], got shape {labels.shape} of {labels.dtype}")
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise InputError(f"{name}: must be in 0 … {num_classes - 1}, got {wrong[0]}")


def problems(*checks: Callable[[], None]) -> list[str]:
    """The messages of those checks that raise `InputError`, so that all of them can be reported at once."""
    messages = []
    for check in checks:
        try:
            check()
        except InputError as error:
            messages += str(error).splitlines()
    return messages


def check_image_shape(image_shape: Any) -> tuple[int, int, int]:
    """Returns `image_shape` as (height, width, channels); raises `InputError` otherwise."""
    image_shape = plain(image_shape)
    shape = tuple(image_shape) if isinstance(image_shape, Iterable) else ()
    if len(shape) != 3 or any(not _is_number(n, numbers.Integral) or n < 1 for n in shape):
        raise InputError(f"image_shape: must be three positive integers (height, width, channels), got {image_shape!r}")
    return tuple(map(int, map(plain, shape)))
