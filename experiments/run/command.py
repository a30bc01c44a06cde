"""The command that a run folder keeps, `run.json`: a folder knows what it was last asked for.

It is data from elsewhere when it is read: field values, never a path of a program to run.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.run import origin
from experiments.run.config import EARLIER, RECIPES
from experiments.run.origin import Json
from nad_jax import store
from nad_jax.errors import InputError, plain, unknown
from nad_jax.own_models import is_own

FILE = "run.json"
# Fields whose values name programs, which are not run on the word of a folder.
_MODELS = ("architecture", "architectures", "sweep.architecture")
_PROGRAMS = ("python",)


def describe(config: ConfigDict, arguments: list[str]) -> str:
    """The content of `run.json`: every field of a command, and what of its config was typed.

    Shards of one command have the same.
    """
    fields = {n: v for n, v in plain(config.to_dict()).items() if n not in EARLIER}
    said = {"experiment": config.experiment, "typed": _typed(arguments), "fields": fields}
    return json.dumps(said, indent=1) + "\n"


def _typed(arguments: list[str]) -> list[str]:
    """Those arguments that are a config, its overrides, or a file of these."""
    typed, following = [], [*arguments[1:], ""]
    for argument, after in zip(arguments, following, strict=True):
        if not re.match(r"--?((no)?config(_json)?|flagfile)([.=]|$)", argument):
            continue
        apart = "=" not in argument and not after.startswith("-")
        typed += [argument, after] if apart else [argument]
    return typed


def keep(workdir: Path, content: str, replace: bool = True) -> None:
    """Writes `run.json` at once, unless it says the same fields, however these were typed.

    replace: whether in place of another command; one that is damaged is replaced anyway.
    """
    path, said = workdir / FILE, json.loads(content)
    try:
        there = origin.parse_object(path, store.read_text(path))
    except InputError:  # there is none, or it is damaged
        there = {}
    if there and not replace:
        return
    if any(there.get(name) != said[name] for name in ("experiment", "fields")):
        store.write_text(path, content)


def read(workdir: Path, experiments: Iterable[str]) -> Json:
    """The fields of the last command of a run folder.

    Raises:
      InputError: in one line, where the folder does not say them, is none, or names no experiment.
    """
    path = workdir / FILE
    if not (workdir / "config.json").exists():
        raise InputError(f"{workdir}: there is no run here; give --config=FILE")
    if not path.exists():
        made = _experiment_of(workdir)
        raise InputError(
            f"{workdir}: does not say its command (an earlier version made it, or it was killed as "
            f"it began); give --config=configs/{made}.py:ARGUMENT and what was overridden once more"
        )
    try:
        said = origin.parse_object(path, store.read_text(path))
        if not isinstance(said.get("fields"), dict):
            raise store.DamagedError(f"{path}: does not say the fields of a command")
    except store.StorageError:
        raise
    except InputError as error:  # of another format, or no text
        raise InputError(
            f"{error}; give --config=FILE and what was overridden once more"
        ) from error
    if said.get("experiment") not in [*experiments]:
        raise InputError(f"{path}: {unknown('experiment', said.get('experiment'), experiments)}")
    return {**said["fields"], "experiment": said["experiment"]}


def _experiment_of(workdir: Path) -> str:
    try:
        said = json.loads((workdir / "config.json").read_bytes()).get("experiment")
    except (OSError, ValueError, AttributeError):
        said = None
    return said if isinstance(said, str) and re.fullmatch(r"\w+", said) else "EXPERIMENT"


def value_of(name: str, arguments: list[str]) -> str | None:
    """What is typed last for a flag that takes text; None where it is not among the arguments."""
    value = None
    for argument, after in zip(arguments, [*arguments[1:], ""], strict=True):
        match = re.fullmatch(rf"--?{name}(=(.*))?", argument, re.DOTALL)
        if match:
            value = after if match[1] is None else match[2]
    return value


def last_of_each(arguments: list[str]) -> list[str]:
    """The arguments without overrides of fields that are typed once more: the last one holds.

    Tuples that are given twice would be joined.
    """
    kept, seen = [], set()
    for place in reversed(range(len(arguments))):
        argument, after = arguments[place], arguments[place + 1 : place + 2]
        name = re.match(r"--?(?:no)?(config\.[^=]+)", argument)
        if name and name[1] in seen:
            if "=" not in argument and after and kept[-1:] == after:
                kept.pop()  # its value, typed apart
            continue
        seen |= {name[1]} if name else set()
        kept.append(argument)
    return kept[::-1]


def is_on(name: str, arguments: list[str]) -> bool:
    """Whether a flag of a truth value is typed, and the last time as true."""
    on = False
    for argument in arguments:
        if match := re.fullmatch(rf"--?(no)?{name}(=(.*))?", argument):
            on = not match[1] and (match[3] or "").lower() not in ("false", "f", "0")
    return on


def recipe_argument(experiment: str) -> str:
    """The argument that reads the recipe file of an experiment, which has the types of its fields."""
    return f"--config={RECIPES / experiment}.py"


def take_up(config: ConfigDict, fields: Json, workdir: Path) -> None:
    """Sets the fields of a config, that of a recipe, as a folder says them; overrides that are
    typed stay.

    Raises:
      InputError: for an unknown field, a value of another type, and one that names a program.
    """
    place, typed = workdir / FILE, set(config_flags.get_override_values(flags.FLAGS["config"]))
    chosen = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            _take_entries(config.get(name), value)
            value = {n: v for n, v in value.items() if f"{name}.{n}" not in typed}
        if name not in typed:
            chosen[name] = value
            _check_no_program(place, name, value)
    set_fields(config, chosen, place)


def _take_entries(entries: Any, values: Json) -> None:
    """Gives a field of several entries those that a folder says besides: which there are may depend
    on the argument of the recipe.
    """
    if not isinstance(entries, ConfigDict):  # which is refused where the field is set
        return
    with entries.unlocked():
        for name in {*values} - {*entries}:
            entries[name] = tuple(values[name]) if isinstance(values[name], list) else values[name]


def _check_no_program(place: Path, name: str, value: Any) -> None:
    """Raises `InputError` where a field of a folder names a program."""
    if isinstance(value, dict):
        for inner, one in value.items():
            _check_no_program(place, f"{name}.{inner}", one)
        return
    values = value if isinstance(value, list) else [value]
    programs = [one for one in values if name in _MODELS and is_own(one)]
    programs += [one for one in values if name in _PROGRAMS and one]
    if programs:
        raise InputError(
            f"{place}: {name}: {programs[0]!r} is a program, which is not run on the word of a "
            f'folder; give --config.{name}="{",".join(map(str, values))}" once more'
        )


def set_fields(config: ConfigDict, values: Mapping[str, Any], place: str | Path) -> None:
    """Sets the fields that a JSON object from a place names; a field's type is kept."""
    for name, value in values.items():
        if name not in config:
            raise InputError(f"{place}: {unknown('config field', name, config)}")
        try:
            value = tuple(value) if isinstance(value, list) else value
            config.update({name: _settle_nulls(config, name, value)})
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{place}: {name}: {reason(error)}") from error


def _settle_nulls(config: ConfigDict, name: str, value: Any) -> Any:
    """The value of a field of a JSON object, at any depth, with what null stands for."""
    if isinstance(value, dict):
        return {n: _settle_nulls(config, f"{name}.{n}", inner) for n, inner in value.items()}
    return unset(config, name) if value is None else value


def unset(config: ConfigDict, name: str) -> Any:
    """The value of a field that is given as None: the recipe's, where that says "not set" (None or
    empty).

    Raises:
      InputError: where the recipe sets the field.
    """
    flag = f"config.{name}"  # its default is the recipe's value
    recipe = (
        flags.FLAGS[flag].default
        if flag in flags.FLAGS
        else reduce(getitem, name.split("."), config)
    )
    if recipe not in (None, "", (), []):
        raise InputError(
            f"{name}: must have a value, got None, which is for fields that the recipe leaves empty"
        )
    return () if recipe == [] else recipe  # a flag has lists for tuples


def explain(error: BaseException, arguments: list[str]) -> str:
    """What went wrong while flags or a config file were read, and what was meant: which file, which
    field, or a model of one's own that stands behind the colon.
    """
    file, _, argument = (value_of("config", arguments) or "").partition(":")
    if value_of("config", arguments) is not None and not Path(file).is_file():
        return f"config: {_no_recipe(file)}"
    if isinstance(error, flags.UnrecognizedFlagError):
        return _unknown_flag(error.flagname)
    said = reason(error)
    own = re.sub(r"^\w+,", "", argument)
    if said.startswith("config argument: ") and is_own(own):
        said += f"; a model of your own is a field: --config.architecture={own}"
        said += " (--config.architectures, where the recipe has that)"
    return said


def _no_recipe(file: str) -> str:
    """That there is no such config file, and which there are."""
    there = {path.stem: path for path in sorted(RECIPES.glob("*.py"))}
    close = difflib.get_close_matches(Path(file).stem, there, n=1)
    root = RECIPES.parent
    hint = f" (did you mean {there[close[0]].relative_to(root)}?)" if close else ""
    known = ", ".join(str(path.relative_to(root)) for path in there.values())
    return f"there is no file {file!r} here{hint}; those of {root} are {known}"


def _unknown_flag(name: str) -> str:
    """That there is no such flag, and the field of the config, or the flag, that may be meant."""
    config = flags.FLAGS["config"].value
    fields = config.to_dict() if isinstance(config, ConfigDict) else {}
    inner = [f"{n}.{one}" for n, entries in fields.items() if isinstance(entries, dict)
             for one in entries]  # fmt: skip
    meant = {one: f"config.{one}" for one in (*fields, *inner)}
    if name in meant:
        return f"unknown flag --{name}: a field of the config is given as --{meant[name]}=VALUE"
    own = flags.FLAGS.flags_by_module_dict().get("experiments.main", [])
    meant |= {one.name: one.name for one in (*own, *flags.FLAGS.get_flags_for_module("__main__"))}
    close = difflib.get_close_matches(name, meant, n=1)
    return f"unknown flag --{name}" + (
        f" (did you mean --{meant[close[0]]}?)" if close else "; --help lists all"
    )


def reason(error: BaseException) -> str:
    """What went wrong while flags or a config file were read, without the loader's own traces."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return str(cause).splitlines()[-1].removeprefix("nad_jax.errors.InputError: ")
        cause = cause.__cause__ or cause.__context__
    hint = re.search(r'Did you mean "(.+?)" instead of "(.+?)"', str(error))
    if hint:
        return f"unknown config field {hint[2]!r} (did you mean {hint[1]!r}?)"
    if "'get_config'" in str(error):
        return "config: the file defines no function get_config"
    if isinstance(error, KeyError | AttributeError):
        return f"unknown config field {str(error).strip(chr(34) + chr(39))!r}"
    return str(error).strip().splitlines()[-1].strip()
