"""The command line of every experiment.

    python -m experiments.main --config=configs/compute_nads.py:lenet --workdir=runs/lenet
    python -m experiments.main --config=... --workdir=... OPTION

    --config.num_networks=1200   overrides one field
    --dry_run                    says what it will take
    --shard=0/4                  one of four processes
    --shard=auto                 a task of a Slurm array, ...
    --collect                    results of what is stored
    --figures_only               redraws stored results
    --allow_other_versions       adds to units of others

Run from the root of the repository. The same command resumes an interrupted run. It ends with 0
when its work is done, 75 when it was interrupted and can be run again, 2 where the input is bad, 74
where the disk is full or fails.
"""

import ast
import os
import re
import sys
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, NoReturn

from experiments.run import interruption

if __name__ == "__main__":
    interruption.watch()  # the imports below take seconds

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import tuple_parser

from experiments import (
    compute_nads,
    directional_bias,
    flip_cifar,
    leading_nads,
    poison_cifar,
    time_to_accuracy,
)
from experiments.benchmark import benchmark
from experiments.run import origin, runner
from experiments.run.shards import Shard, find_shard, join_cluster
from nad_jax import store
from nad_jax.errors import InputError, unknown

_MODULES = (
    compute_nads, leading_nads, directional_bias, poison_cifar, flip_cifar, benchmark,
    time_to_accuracy,
)  # fmt: skip
EXPERIMENTS = {module.FIELDS.experiment: module for module in _MODULES}


def _make_parser(kind: str, parser: type[flags.ArgumentParser]) -> flags.ArgumentParser:
    """Reads the value of a config field of one type, or None: that the field is not set."""

    class Parser(parser):
        def parse(self, argument: Any) -> Any:
            if argument == "None":
                return None
            try:
                return super().parse(argument)
            except ValueError as error:
                raise ValueError(f"must be {kind}") from error

    return Parser()


for _type, _kind, _parser in (
    (int, "an integer", flags.IntegerParser),
    (float, "a number", flags.FloatParser),
    (bool, "True or False", flags.BooleanParser),
    (str, "text", flags.ArgumentParser),
):
    config_flags.register_flag_parser_for_type(_type, _make_parser(_kind, _parser))


_WORD = r"""(?:\([^()]*\)|'[^']*'|"[^"]*"|[^,])+"""  # brackets and quotes are one piece


class _TupleParser(tuple_parser.TupleParser):
    """Values with commas between them; text needs no quotes: lenet,vgg11 or nets:Net(width=3),mlp."""

    def parse(self, argument: Any) -> tuple:
        if not isinstance(argument, str) or not argument.strip():
            return super().parse(argument)
        try:
            ast.literal_eval(argument)
        except (ValueError, SyntaxError):
            whole = re.fullmatch(r"\((.*)\)", argument.strip())
            words = re.findall(_WORD, whole[1] if whole else argument)
            argument = f"({', '.join(map(_quoted, words))},)"
        return super().parse(argument)


def _quoted(word: str) -> str:
    """A word as Python writes it: in quotes unless it is a value."""
    try:
        ast.literal_eval(word.strip())
        return word.strip()
    except (ValueError, SyntaxError):
        return repr(word.strip())


config_flags.register_flag_parser_for_type(tuple, _TupleParser())

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, e.g. configs/compute_nads.py:lenet; its file lists every field."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of this run: created, or resumed where it holds the same."
)
_FIGURES_ONLY = flags.DEFINE_bool(
    "figures_only", False, "Draw the figures from the stored results and stop."
)
_COLLECT = flags.DEFINE_bool(
    "collect",
    False,
    "Compute nothing: write tables and figures of what is stored, say what is missing (exit code "
    "75).",
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "Print units, shards, estimated time, memory and compilation per architecture, and stop.",
)
_SHARD = flags.DEFINE_string(
    "shard",
    "",
    "i/n: compute every n-th unit from i in 0 … n − 1; auto: as a Slurm array or Kubernetes "
    "indexed job says.",
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Take the shard from the cluster that jax.distributed finds: TPU pods, Slurm, GKE, MPI.",
)
_ALLOW_OTHER_VERSIONS = flags.DEFINE_bool(
    "allow_other_versions",
    False,
    "Add units to a folder whose units were computed with other versions of packages, or on "
    "another kind of device.",
)
_CONFIG_JSON = flags.DEFINE_string(
    "config_json",
    "",
    "A JSON object of config fields, read last. (Config files are programs; this is only data.)",
)


def _enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, in a folder only this user can write: they are code.

    JAX_COMPILATION_CACHE_DIR names another folder.
    """
    if jax.config.jax_compilation_cache_dir:
        return
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nad_jax"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except (OSError, RuntimeError) as error:  # the latter: no home folder
        logging.warning("compiled programs are not kept between runs: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _fail(message: str, code: int = 2) -> NoReturn:
    """Ends the program with an `error:` line per line of the message (indented ones are details)."""
    for line in message.splitlines():
        sys.stderr.write(f"{line}\n" if line.startswith(" ") else f"error: {line}\n")
    sys.exit(code)


def _reason(error: BaseException) -> str:
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


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; a bad config file, field or value is one line instead of a traceback."""
    try:
        remaining = flags.FLAGS(argv)
        if flags.FLAGS["verbosity"].using_default_value:
            flags.FLAGS.verbosity = logging.WARNING
        # A file that could not be loaded says so on its first use.
        fields = ["experiment"] if _CONFIG.value is None else list(_CONFIG.value.keys())
        if "experiment" not in fields or isinstance(_CONFIG.value, dict):
            raise InputError(
                "config: get_config must return a ConfigDict with a field 'experiment'"
            )
        for name, value in config_flags.get_override_values(flags.FLAGS["config"]).items():
            if value in (None, (None,)):
                _CONFIG.value.update_from_flattened_dict({name: _unset(_CONFIG.value, name)})
    except Exception as error:  # a config file is a program, it may fail in any way
        _fail(_reason(error))
    chosen = [flag.name for flag in (_FIGURES_ONLY, _COLLECT, _DRY_RUN) if flag.value]
    if len(chosen) > 1:
        _fail(f"--{chosen[0]}, --{chosen[1]}: give one of them")
    for name in ("config", "workdir"):
        if not flags.FLAGS[name].value:
            _fail(f"--{name} is required; see --help")
    if len(remaining) > 1:
        _fail(f"unexpected argument {remaining[1]!r}: every option is --name=value")
    return remaining


def _unset(config: ConfigDict, name: str) -> Any:
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


def _settle_nulls(config: ConfigDict, name: str, value: Any) -> Any:
    """The value of a field of a JSON object, at any depth, with what null stands for."""
    if isinstance(value, dict):
        return {n: _settle_nulls(config, f"{name}.{n}", inner) for n, inner in value.items()}
    return _unset(config, name) if value is None else value


def _read_json(config: ConfigDict, path: str) -> None:
    """Sets the fields that a JSON object names; a field's type is kept."""
    values = origin.parse_object(path, store.read_text(path))
    for name, value in values.items():
        if name not in config:
            raise InputError(f"{path}: {unknown('config field', name, config)}")
        try:
            value = tuple(value) if isinstance(value, list) else value
            config.update({name: _settle_nulls(config, name, value)})
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{path}: {name}: {_reason(error)}") from error


def _carry_out(experiment: Any, config: ConfigDict, workdir: Path, shard: Shard) -> int:
    """Does what the flags ask for, and gives the exit code."""
    complete = True
    if not _FIGURES_ONLY.value:
        study = experiment.make_study(config)
        if _DRY_RUN.value:
            runner.describe(study, workdir, shard)
            return 0
        if _COLLECT.value:
            complete = runner.collect(study, workdir)
        else:
            complete = runner.run(study, workdir, shard, _ALLOW_OTHER_VERSIONS.value)
    if complete or _COLLECT.value:
        for figure in experiment.draw(config, workdir):
            print(figure)
    return 0 if complete or not _COLLECT.value else interruption.EXIT_CODE


def main(argv: list[str]) -> int:
    del argv
    interruption.watch()
    config, workdir = _CONFIG.value, Path(_WORKDIR.value)
    try:
        shard = (
            join_cluster(_SHARD.value)
            if _DISTRIBUTED.value
            else find_shard(_SHARD.value, os.environ)
        )
        interruption.take_signals()
        if config.experiment not in EXPERIMENTS:
            raise unknown("experiment", config.experiment, EXPERIMENTS)
        if _CONFIG_JSON.value:
            _read_json(config, _CONFIG_JSON.value)
        if _DRY_RUN.value:
            jax.config.update(
                "jax_enable_compilation_cache", False
            )  # what compilation takes is measured
        else:
            _enable_compilation_cache()
        return _carry_out(EXPERIMENTS[config.experiment], config, workdir, shard)
    except store.StorageError as error:
        _fail(str(error), os.EX_IOERR)
    except InputError as error:
        _fail(str(error))
    except runner.RunAgain as error:
        _fail(str(error), interruption.EXIT_CODE)
    except BrokenPipeError:  # the reader of our output is gone (`| head`); what is stored stays
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except interruption.Interrupted:
        interruption.leave()


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
