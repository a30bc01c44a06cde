"""Arguments that are also taken by another name; one that a function does not have is refused with
the nearest that it has.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import TypeVar

from nad_jax.errors import InputError, unknown

Function = TypeVar("Function", bound=Callable)


def takes_old_names(**new_names: str) -> Callable[[Function], Function]:
    """Lets a function take arguments by names that they once had, with a warning: old="new"."""
    return _takes_names(new_names, "old")


def takes_input_shape(function: Function) -> Function:
    """Lets a function take `image_shape` as `input_shape`, which vectors and signals also have."""
    return _takes_names({"input_shape": "image_shape"}, "other")(function)


def _takes_names(names: dict[str, str], kind: str) -> Callable[[Function], Function]:

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        known = signature.parameters
        others = any(one.kind is one.VAR_KEYWORD for one in known.values())

        @functools.wraps(function)
        def call(*args, **given):
            said = {own: name for name, own in names.items() if name in given}
            for name, own in names.items():
                if name not in given:
                    continue
                if own in given:
                    raise InputError(f"{name}: is the {kind} name of {own}; both are given")
                if kind == "old":
                    warnings.warn(f"{name}: is called {own} now", FutureWarning, stacklevel=2)
                given[own] = given.pop(name)
            for name in given:
                if not others and name not in known:
                    raise unknown(f"argument of {function.__name__}", name, known)
            try:
                signature.bind(*args, **given)
            except TypeError as error:  # one is missing, or given twice
                raise InputError(f"{function.__name__}: {error}") from None
            try:
                return function(*args, **given)
            except InputError as error:
                own, colon, rest = str(error).partition(":")
                if colon and own in said and kind == "old":  # by the name that the caller gave it
                    raise InputError(f"{said[own]}:{rest}") from error
                raise

        return call

    return decorate
