"""Options of the networks of the table: the fields of their modules, and what each may be.

The type of a field says it: one of the values of a `Literal`; `int`, a positive integer; `float |
None`, a positive number, or None for none of it; `str`, the numbers of blocks of four stages, as in
"3-3-9-3" or (3, 3, 9, 3).
"""

import dataclasses
import types
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, get_args

from nad_jax.architectures.network import TableNetwork
from nad_jax.errors import InputError, check_integer, check_number, plain, shown, unknown

# What stands for the published value of any option.
PUBLISHED = ("default", None, 0)
NONE = "none"  # None, as it is written on command lines and in records
# The options of every network, one's own too, and what stands for none of them.
MASKING = types.MappingProxyType({"density": 1.0, "mask": "erk"})


class Option(NamedTuple):
    """The published value of an option, and the type of its field."""

    published: Any
    kind: Any

    @property
    def allowed(self) -> tuple[Any, ...]:
        """The values that it is one of; () where it is a number, or several."""
        return () if isinstance(self.kind, types.UnionType) else get_args(self.kind)

    @property
    def unset(self) -> Any:
        """What stands for the published value in a config: of the type that others have there."""
        if self.allowed:
            return self.published if isinstance(self.published, bool) else PUBLISHED[0]
        return 0 if self.kind is int else PUBLISHED[0]

    def check(self, name: str, value: Any) -> Any:
        """Returns a value as the module takes it; raises `InputError` otherwise."""
        if isinstance(self.kind, types.UnionType):
            return None if value in (None, NONE) else _check_positive(name, value)
        if self.kind is str:
            return _check_stages(name, value)
        return check_integer(name, value, 1)

    def is_published(self, value: Any) -> bool:
        """Whether a value stands for the published one. None turns off what may be off."""
        if value is None:
            return not isinstance(self.kind, types.UnionType)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return False
        return value in PUBLISHED and (value != 0 or self.kind is int)  # 0 reads as off elsewhere


def _check_positive(name: str, value: Any) -> float:
    if isinstance(value, str):  # of a command line
        try:
            value = float(value)
        except ValueError as error:
            raise InputError(
                f"{name}: must be a positive number or {NONE!r}, got {value!r}"
            ) from error
    return check_number(name, value, 0.0, exclusive=True)


def _check_stages(name: str, value: Any) -> str:
    parts = value.split("-") if isinstance(value, str) else value
    try:
        whole = [int(part) for part in parts]
        fits = len(whole) == 4 and min(whole) > 0 and all(int(p) == float(p) for p in parts)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise InputError(
            f"{name}: must be four positive integers, as in '3-3-9-3', got {shown(value)}"
        )
    return "-".join(map(str, whole))


def list_options(
    module: type[TableNetwork], values: Mapping[str, Any] = types.MappingProxyType({})
) -> dict[str, Option]:
    """The options of a module by name; `values` are published instead of its defaults."""
    return {
        field.name: Option(values.get(field.name, field.default), field.type)
        for field in dataclasses.fields(module)
        if field.name not in ("parent", "name") and field.default is not dataclasses.MISSING
    }


def check_options(
    architecture: str,
    options: Mapping[str, Option],
    given: Mapping[str, Any],
    known: Mapping[str, Any],
    shared: Iterable[str] = MASKING,
) -> tuple[tuple[str, Any], ...]:
    """The options that are not as published, with their values, by name.

    Args:
      options: those of the architecture.
      given: the values to check.
      known: the names of the options of any architecture.
      shared: the names of those that every architecture has besides.

    Raises:
      InputError: naming the option, its value and what is allowed for this architecture.
    """
    changed, own = {}, (*options, *shared)
    for name, value in given.items():
        if name not in known:
            raise unknown(f"option of {architecture}", name, own)
        value, option = plain(value), options.get(name, Option(None, int))
        if option.is_published(value):
            continue
        allowed = option.allowed
        if name not in options or (allowed and not _is_among(value, allowed)):
            reason = f"allowed: {', '.join(map(repr, allowed))}"
            if name not in options:
                listed = ", ".join(map(repr, own))
                reason = f"it has no {name}, as others have; its options: {listed}"
            raise InputError(
                f"{name}: {shown(value)} makes no sense for {architecture!r}; {reason}"
            )
        value = value if allowed else option.check(name, value)
        if value != option.published:
            changed[name] = value
    return tuple(sorted(changed.items()))


def _is_among(value: Any, allowed: tuple[Any, ...]) -> bool:
    return any(type(value) is type(one) and value == one for one in allowed)
