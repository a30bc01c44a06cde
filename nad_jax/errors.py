"""The one exception raised on bad input, and the checks that word it."""

import difflib
import math
from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Bad input: the message names the field or file, the value and what is allowed."""


def unknown(kind: str, value: Any, allowed: Iterable[str]) -> InputError:
    """The error for a name that is not in a table, with the closest known name."""
    allowed = list(allowed)
    close = difflib.get_close_matches(str(value), allowed, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return InputError(f"{kind}: unknown value {value!r}{hint}; allowed: {', '.join(map(repr, allowed))}")


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises `InputError` unless `value` is one of `allowed`."""
    allowed = list(allowed)
    if value not in allowed:
        raise unknown(name, value, allowed)


def check_integer(name: str, value: Any, minimum: int) -> None:
    """Raises `InputError` unless `value` is an integer of at least `minimum`."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < minimum:
        raise InputError(f"{name}: must be an integer of at least {minimum}, got {value!r}")


def check_number(name: str, value: Any, minimum: float, exclusive: bool = False) -> None:
    """Raises `InputError` unless `value` is a finite real number of at least (or above) `minimum`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < minimum or (exclusive and number == minimum):
        bound = f"greater than {minimum}" if exclusive else f"at least {minimum}"
        raise InputError(f"{name}: must be a finite number {bound}, got {value!r}")


def check_image_shape(image_shape: Any) -> tuple[int, int, int]:
    """Returns `image_shape` as (height, width, channels); raises `InputError` otherwise."""
    shape = tuple(image_shape) if isinstance(image_shape, Iterable) else ()
    if len(shape) != 3 or any(isinstance(n, bool) or not hasattr(n, "__index__") or n < 1 for n in shape):
        raise InputError(f"image_shape: must be three positive integers (height, width, channels), got {image_shape!r}")
    return shape
