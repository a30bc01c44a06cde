"""Old names of arguments, which are still taken, with a warning."""

import functools
import warnings
from collections.abc import Callable
from typing import TypeVar

from nad_jax.errors import InputError

Function = TypeVar("Function", bound=Callable)


def takes_old_names(**new_names: str) -> Callable[[Function], Function]:
    """Lets a function take arguments by names that they once had: old="new"."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args, **given):
            for old, new in new_names.items():
                if old not in given:
                    continue
                if new in given:
                    raise InputError(f"{old}: is the old name of {new}; both are given")
                warnings.warn(f"{old}: is called {new} now", FutureWarning, stacklevel=2)
                given[new] = given.pop(old)
            return function(*args, **given)

        return call

    return decorate
