"""The one exception raised on bad input, and the checks that word it."""

import difflib
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


class InputError(ValueError):
    """Bad input: the message names the field or file, the value and what is allowed."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def unknown(kind: str, value: Any, allowed: Iterable[Any]) -> InputError:
    """The error for a name that is not in a table, with the closest known name."""
    allowed = list(allowed)
    close = difflib.get_close_matches(str(value), map(str, allowed), n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return InputError(f"{kind}: unknown value {value!r}{hint}; allowed: {', '.join(map(repr, allowed))}")


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raises `InputError` unless `value` is one of `allowed`."""
    allowed = list(allowed)
    if value not in allowed:
        raise unknown(name, value, allowed)


def check_integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> None:
    """Raises `InputError` unless `value` is an integer between `minimum` and `maximum`, both included."""
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integer or value < minimum or (maximum is not None and value > maximum):
        allowed = f"of at least {minimum}" if maximum is None else f"in {minimum} … {maximum}"
        raise InputError(f"{name}: must be an integer {allowed}, got {value!r}")


def check_number(name: str, value: Any, minimum: float, exclusive: bool = False) -> None:
    """Raises `InputError` unless `value` is a finite real number of at least (or above) `minimum`."""
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or value < minimum or (exclusive and value == minimum):
        bound = f"greater than {minimum}" if exclusive else f"at least {minimum}"
        raise InputError(f"{name}: must be a finite number {bound}, got {value!r}")


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
    shape = tuple(image_shape) if isinstance(image_shape, Iterable) else ()
    if len(shape) != 3 or any(isinstance(n, bool) or not isinstance(n, numbers.Integral) or n < 1 for n in shape):
        raise InputError(f"image_shape: must be three positive integers (height, width, channels), got {image_shape!r}")
    return shape
