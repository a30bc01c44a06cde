"""The one exception raised on bad input, and the checks that word it.

A check of a number or a name returns it as Python's own: what NumPy or JAX give is converted here,
once.
"""

import contextlib
import dataclasses
import difflib
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class InputError(ValueError):
    """Bad input: the message names the field or file, the value and what is allowed."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message that is not blank, or its name where there is none."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def shown(value: Any) -> str:
    """A value in one line, as messages show it."""
    text = " ".join(repr(value).split("\n"))
    return text if len(text) <= 200 else f"{text[:200]}…"


def plain(value: Any) -> Any:
    """Numbers, truth values and texts of NumPy and JAX as Python's own, arrays as lists; also
    inside containers.

    Anything else, a random key or a number that is not known while a function is compiled, is
    returned as it is.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    dtype = None if isinstance(value, type) else getattr(value, "dtype", None)
    for kind, convert in ((np.bool_, bool), (np.integer, int), (np.floating, float)):
        if dtype is not None and jnp.issubdtype(dtype, kind):
            try:
                return [plain(entry) for entry in value] if value.ndim else convert(value)
            except TypeError:  # traced
                return value
    return value


def plain_fields(record: Any) -> None:
    """Makes the fields of a new frozen dataclass plain; a number where a field holds a float
    becomes one.
    """
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
    return InputError(
        f"{kind}: unknown value {shown(value)}{hint}; allowed: {', '.join(map(repr, allowed))}"
    )


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """Returns `value`, one of `allowed`; raises `InputError` otherwise."""
    value, allowed = plain(value), list(allowed)
    if not any(type(value) is type(option) and value == option for option in allowed):
        raise unknown(name, value, allowed)
    return value


def check_integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """Returns an integer between `minimum` and `maximum`, both included; raises `InputError`
    otherwise.
    """
    value = plain(value)
    highest = math.inf if maximum is None else maximum
    if not _is_number(value, numbers.Integral) or not minimum <= value <= highest:
        allowed = f"of at least {minimum}" if maximum is None else f"in {minimum} … {maximum}"
        raise InputError(f"{name}: must be an integer {allowed}, got {shown(value)}")
    return int(value)


def check_number(name: str, value: Any, minimum: float, exclusive: bool = False) -> float:
    """Returns a finite real number of at least (or above) `minimum` as a float; raises `InputError`
    otherwise.
    """
    value = plain(value)
    number = _as_float(value) if _is_number(value, numbers.Real) else math.nan
    if not math.isfinite(number) or number < minimum or (exclusive and number == minimum):
        bound = f" greater than {minimum}" if exclusive else f" at least {minimum}"
        bound *= minimum > -math.inf
        raise InputError(f"{name}: must be a finite number{bound}, got {shown(value)}")
    return number


def check_scalar(name: str, value: Any) -> Any:
    """Returns a number as `check_number` with a minimum of 0 does; one that is traced as it is, if
    it is real.
    """
    return (
        real_array(name, value, "[]")
        if isinstance(plain(value), jax.Array)
        else check_number(name, value, 0.0)
    )


def check_function(name: str, value: Any, optional: bool = True) -> None:
    """Raises `InputError` unless `value` is a function, or None where it is optional."""
    if not callable(value) and not (optional and value is None):
        raise InputError(f"{name}: must be a function, got {shown(value)}")


_RECORDS = {
    "Model": "come from create_model, from_linen, from_nnx or from_functions",
    "Noise": "come from sample_noise",
    "Recipe": "be a Recipe",
}


def check_record(name: str, value: Any, *kinds: type) -> None:
    """Raises `InputError` unless `value` is a record of one of these kinds; the message names the
    first of them.
    """
    if not isinstance(value, kinds):
        kind = kinds[0].__name__
        raise InputError(
            f"{name}: must {_RECORDS.get(kind, f'be {kind}')}, got {type(value).__name__}"
        )


def as_path(name: str, value: Any) -> Path:
    """Returns a path that a file system can have; raises `InputError` otherwise."""
    with contextlib.suppress(TypeError, ValueError):
        path = Path(value)
        if b"\0" not in os.fsencode(path):
            return path
    raise InputError(f"{name}: must be a path, got {shown(value)}")


def known(array: Any) -> np.ndarray | None:
    """The values of an array; None where they are not known, since a function is being compiled."""
    try:
        return np.asarray(array)
    except jax.errors.TracerArrayConversionError:
        return None


def number_array(name: str, value: Any, needed: str = "numbers") -> np.ndarray | jax.Array:
    """Returns an array of numbers, lists of them as one of NumPy, one of JAX as it is; `InputError`
    otherwise.
    """
    # An object may fail in any way to be an array: lists of unequal length, say.
    with contextlib.suppress(Exception):
        array = value if isinstance(value, jax.Array) else known(value)
        array = jnp.asarray(value) if array is None else array  # a list of traced numbers
        if any(jnp.issubdtype(array.dtype, kind) for kind in (np.bool_, np.number)):
            return array
    raise InputError(f"{name}: must be {needed}, got {shown(value)}")


def real_array(
    name: str, value: Any, axes: str = "[...]", finite: bool = True
) -> np.ndarray | jax.Array:
    """Returns an array of real numbers as `number_array` does; raises `InputError` for another
    shape or dtype.

    Args:
      name: of the argument.
      value: an array, which may be traced, or lists.
      axes: its axes, none of them empty: letters and lengths as in "[K, 16]"; after "..." those at
        the end, before it those at the start.
      finite: whether its entries must be finite, where they are known.
    """
    array = number_array(name, value, f"real numbers {axes}")
    lengths = [length for length in axes[1:-1].split(", ") if length not in ("", "...")]
    shape = array.shape
    if axes.endswith(", ...]"):
        shape = shape[: len(lengths)]
    elif "..." in axes:
        shape = shape[max(0, array.ndim - len(lengths)) :]
    fits = len(shape) == len(lengths) and all(
        found == int(length) if length.isdigit() else found > 0
        for found, length in zip(shape, lengths, strict=True)
    )
    if not fits or jnp.issubdtype(array.dtype, np.complexfloating):
        raise InputError(
            f"{name}: must be real numbers {axes}, got shape {array.shape} of {array.dtype}"
        )
    if finite and jnp.issubdtype(array.dtype, np.floating):
        values = known(array)
        if values is not None and not np.isfinite(values).all():
            raise InputError(f"{name}: has entries that are not finite")
    return array


def host_array(name: str, value: Any, axes: str = "[...]") -> np.ndarray:
    """Returns finite numbers, checked as by `real_array`, in float64; raises `InputError` for
    traced ones too.
    """
    array = known(real_array(name, value, axes))
    if array is None:
        raise InputError(f"{name}: must be known while a function is compiled, got a traced array")
    return array.astype(np.float64)


def check_units(name: str, rows: Any, zero: bool = False) -> Any:
    """Returns vectors [..., D] that have norm 1, to 1e-3, or are zero where that is allowed;
    `InputError` otherwise.

    Those that are not known, since a function is being compiled, are returned too.
    """
    values = known(rows)
    if values is None:
        return rows
    with np.errstate(over="ignore"):
        values = values.reshape(-1, values.shape[-1]).astype(
            np.promote_types(values.dtype, np.float32), copy=False
        )
        norms = np.linalg.norm(values, axis=1)
    wrong = np.flatnonzero(~((np.abs(norms - 1) <= 1e-3) | (zero & (norms == 0))))
    if len(wrong):
        row = f"row {wrong[0]} has" if np.ndim(rows) > 1 else "has"
        raise InputError(
            f"{name}: {row} norm {norms[wrong[0]]:.4g}, expected 1{' (or 0)' if zero else ''}"
        )
    return rows


def check_labels(name: str, labels: Any, num_classes: int) -> np.ndarray | jax.Array:
    """Returns integers [B], in 0 … num_classes − 1 where they are known; raises `InputError`
    otherwise.
    """
    labels = number_array(name, labels, "integers [B]")
    if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{name}: must be integers [B], got shape {labels.shape} of {labels.dtype}"
        )
    values = known(labels)
    wrong = () if values is None else values[(values < 0) | (values >= num_classes)]
    if len(wrong):
        raise InputError(f"{name}: must be in 0 … {num_classes - 1}, got {wrong[0]}")
    return labels


def problems(*checks: Callable[[], None]) -> list[str]:
    """The messages of those checks that raise `InputError`, so that all of them can be reported at
    once.
    """
    messages = []
    for check in checks:
        try:
            check()
        except InputError as error:
            messages += str(error).splitlines()
    return messages


def check_input_shape(image_shape: Any) -> tuple[int, ...]:
    """Returns the shape of one input, (D,), (L, C), (H, W, C) or (T, H, W, C), as integers; raises
    `InputError` otherwise.
    """
    return _check_shape(
        image_shape,
        (1, 2, 3, 4),
        "one to four positive integers, (length,), "
        "(length, channels), (height, width, channels) or (time, height, width, channels)",
    )


def raise_problems(problems: list[str]) -> None:
    """Raises one `InputError` with a line for each problem, each once; nothing where there is none."""
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))


def check_image_shape(image_shape: Any) -> tuple[int, int, int]:
    """Returns `image_shape` as (height, width, channels); raises `InputError` otherwise."""
    return _check_shape(image_shape, (3,), "three positive integers (height, width, channels)")


def _check_shape(value: Any, axes: tuple[int, ...], allowed: str) -> tuple[int, ...]:
    value = plain(value)
    shape = tuple(value) if isinstance(value, list | tuple) else ()
    if len(shape) not in axes or any(not _is_number(n, numbers.Integral) or n < 1 for n in shape):
        raise InputError(f"image_shape: must be {allowed}, got {shown(value)}")
    return tuple(map(int, shape))
