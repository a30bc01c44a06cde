"""The fields of a config: which of them say what is computed, and the checks that several share.

A field is declared once, in the recipe file of its experiment. It belongs to the identity of a run
folder, unless the experiment names it in one of three sets, see `Fields`.
"""

import functools
import re
import runpy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from experiments.run.origin import Json
from nad_jax import errors
from nad_jax.errors import InputError, check_integer, unknown

RECIPES = Path(__file__).parents[2] / "configs"
LARGEST_SEED = 2**32 - 1
HOW = ("mapping", "chunk_size")
CheckValue = Callable[..., Any]  # of `errors`: takes a field's name, its value and bounds
# Fields that came later, with the value that folders from before them have: it is not written down.
LATER = {"width": 0, "widths": (0,)}
# Names that fields once had, in recipe files empty, which are still taken; they are not written
# down.
EARLIER = {"nums_train": "num_train"}


class Fields(NamedTuple):
    """The fields of an experiment: those of its recipe file, and what three sets of them are for.

    experiment: the name of the recipe file in `configs`.
    how: how it is executed, which changes numbers by rounding at most: recorded beside them.
    grows: what extends a folder: sizes of ensembles, axes of sweeps.
    reports: what is only shown: comparisons, figures.
    All others are the identity of a folder: they determine the numbers of every unit in it.
    """

    experiment: str
    how: tuple[str, ...]
    grows: tuple[str, ...]
    reports: tuple[str, ...] = ()

    def identity(self, config: ConfigDict) -> Json:
        """The fields that determine the numbers of every unit."""
        return written(config.to_dict(), (*self.how, *self.grows, *self.reports))

    def command(self, config: ConfigDict) -> Json:
        """The fields that say what is in the table of a run."""
        return written(config.to_dict(), (*self.how, *self.reports))

    def check_known(self, config: ConfigDict, place: str = "") -> None:
        """Raises `InputError` with a line for each field that is missing or not in the recipe file.

        place: of these fields in the config, where they are not its own.
        """
        known = _recipe(self.experiment)
        known = known[place] if place else known
        missing = [name for name in known if name not in config and name not in EARLIER]
        lines = [f"{name}: field is missing" for name in missing]
        lines += [str(unknown("config field", n, known)) for n in config if n not in known]
        errors.raise_problems(lines)


def written(values: Json, left_out: tuple[str, ...] = ()) -> Json:
    """Those of these fields that are written down, but for those that are left out."""
    left = {name for name, value in LATER.items() if values.get(name) == value}
    left |= {*EARLIER, *left_out}
    return {name: value for name, value in values.items() if name not in left}


def take_earlier_names(config: ConfigDict) -> None:
    """Moves what was given under the earlier name of a field to the field, with a warning.

    Raises:
      InputError: where the field is given, too.
    """
    for earlier, name in EARLIER.items():
        if not config.get(earlier):
            continue
        default = _recipe(config.experiment)[name]
        if config.get(name, default) != default:
            raise InputError(f"{earlier}: is the earlier name of {name}; both are given")
        logging.warning("%s: is called %s now", earlier, name)
        # A recipe file of one's own may have the earlier name alone; what is wrong is said later.
        with config.unlocked(), config.ignore_type():
            config[name], config[earlier] = config[earlier], ()


@functools.cache
def _recipe(experiment: str) -> ConfigDict:
    return runpy.run_path(str(RECIPES / f"{experiment}.py"))["get_config"]()


def check_all(*checks: Callable[[], Any]) -> None:
    """Raises one `InputError` with the lines of all checks that raise one."""
    errors.raise_problems(errors.problems(*checks))


def check_sweep(field: str, values: Any) -> None:
    """Raises `InputError` unless a sweep axis is a non-empty tuple of different values."""
    listed = isinstance(values, tuple | list)
    if not listed or not values or any(v in values[:i] for i, v in enumerate(values)):
        raise InputError(f"{field}: must be a non-empty tuple of different values, got {values!r}")
    for value in values:
        # Commas between parentheses are those of options: vit(depth=2,heads=2).
        if isinstance(value, str) and "," in re.sub(r"\([^()]*\)", "", value):
            several = ", ".join(repr(part.strip()) for part in value.split(","))
            raise InputError(
                f'{field}: several names are written --config.{field}="({several})", got {value!r}'
            )
        if isinstance(value, str) and re.fullmatch(r"\s*-?\d+\s*(:|-|\.\.+|;|\s)\s*\d+\s*", value):
            raise InputError(
                f"{field}: values are written one by one, as in --config.{field}=0,1,2, got {value!r}"
            )


def check_sweeps(config: ConfigDict, fields: Iterable[str]) -> None:
    """Raises one `InputError` with a line for each sweep axis that is none."""
    check_all(*(functools.partial(check_sweep, field, config[field]) for field in fields))


def check_each(config: ConfigDict, field: str, check: CheckValue, *bounds: Any) -> None:
    """Checks every value of a sweep axis."""
    check_all(*(functools.partial(check, field, value, *bounds) for value in config[field]))


def check_aligned(config: ConfigDict, axis: str, fields: Iterable[str]) -> None:
    """Raises `InputError` unless fields have a value for each of those of an axis."""
    if not isinstance(config[axis], tuple | list):
        return  # which is said of it already
    count = len(config[axis])
    for field in fields:
        if not isinstance(config[field], tuple | list) or len(config[field]) != count:
            raise InputError(
                f"{field}: must be a tuple of one value for each of the {count} {axis}, got "
                f"{config[field]!r}"
            )


def check_integers(config: ConfigDict, **minimum: int) -> None:
    """Raises `InputError` unless fields are integers of at least so much."""
    check_all(
        *(functools.partial(check_integer, n, config[n], least) for n, least in minimum.items())
    )


def check_seeds(field: str, *seeds: Any) -> None:
    """Raises `InputError` unless seeds are integers that give different keys."""
    for seed in seeds:
        check_integer(field, seed, 0, LARGEST_SEED)
