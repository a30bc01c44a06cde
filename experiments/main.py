"""The command line of every experiment.

    python -m experiments.main --config=configs/compute_nads.py:lenet --workdir=runs/lenet
    python -m experiments.main --workdir=runs/lenet OPTION

    --config.num_networks=1200   overrides one field
    --status                     what is done, per shard, how fast, and what failed
    --dry_run                    says what it will take, measured here
    --dry_run --target=v5e:4x4   on accelerators that are not there
    --shard=0/4                  one of four processes
    --shard=auto                 a task of a Slurm array, ...
    --collect                    results of what is stored
    --figures_only               redraws stored results
    --figure_formats=png,pdf     also as PDF (or SVG)
    --allow_other_versions       adds to units of others
    --require_accelerator=gpu    stops where there is none

Run from the root of the repository. The same command resumes an interrupted run, and so does
--workdir alone, for a folder knows its last command. It ends with 0 when its work is done, 75 when
it was interrupted and can be run again, 2 where the input is bad, 74 where the disk is full or
fails.
"""

import ast
import contextlib
import os
import re
import sys
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
    circles,
    compute_nads,
    directional_bias,
    flip_cifar,
    geometry_evolution,
    guidance,
    initial_functions,
    isotropy_search,
    leading_nads,
    linearization,
    poison_cifar,
    predictors,
    robust_training,
    sample_complexity,
    score_directions,
    time_to_accuracy,
    two_features,
)
from experiments.benchmark import benchmark
from experiments.run import command, dry_run, origin, runner, status
from experiments.run.accelerator import check_accelerator
from experiments.run.folder import Folder, list_results
from experiments.run.shards import Shard, find_shard, join_cluster
from experiments.run.targets import read_target
from nad_jax import store, target
from nad_jax.errors import InputError, unknown
from nad_jax.figures import FORMATS

_MODULES = (
    compute_nads, leading_nads, directional_bias, poison_cifar, flip_cifar, benchmark,
    time_to_accuracy, isotropy_search, predictors, linearization, geometry_evolution, circles,
    score_directions, two_features, initial_functions, sample_complexity, robust_training,
    guidance,
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
            text = (whole[1] if whole else argument).strip()
            words = re.findall(_WORD, text)
            if ",".join(words) != text.removesuffix(","):
                raise ValueError("must be values with a comma between two of them") from None
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

try:
    _CONFIG = config_flags.DEFINE_config_file(
        "config", None, "Recipe, e.g. configs/compute_nads.py:lenet; its file lists every field."
    )
except flags.Error as error:  # it reads the arguments, and so a file of flags
    sys.stderr.write(f"error: flagfile: {str(error).removeprefix('ERROR:: ')}\n")
    sys.exit(2)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of this run: created, or resumed where it holds the same."
)
_FIGURES_ONLY = flags.DEFINE_bool(
    "figures_only", False, "Draw the figures from the stored results and stop."
)
_FIGURE_FORMATS = flags.DEFINE_list(
    "figure_formats", ["png"], f"Formats of the figures: {', '.join(FORMATS)}."
)
_COLLECT = flags.DEFINE_bool(
    "collect",
    False,
    "Compute nothing: write tables and figures of what is stored, say what is missing (exit code "
    "75).",
)
_STATUS = flags.DEFINE_bool(
    "status",
    False,
    "Print what is done and missing, in all and per shard, how fast, and what failed; touch nothing.",
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run",
    False,
    "Print units and shards, then estimated time, memory and compilation per architecture, and stop.",
)
_NO_MEASURE = flags.DEFINE_bool(
    "no_measure", False, "With --dry_run: print units, shards and totals, and measure nothing."
)
_TARGET = flags.DEFINE_string(
    "target",
    "",
    "With --dry_run: devices that need not be there, e.g. v5e:4x4 or h100; programs are compiled "
    "for them, and nothing is measured.",
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
_REQUIRE_ACCELERATOR = flags.DEFINE_string(
    "require_accelerator",
    "",
    "gpu or tpu: stop where JAX finds another device, instead of computing on it.",
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


_HELP = ("help", "helpfull", "helpshort", "helpxml")


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; a bad config file, field or value is one line instead of a traceback.

    Without --config the fields are those of the last command of the run folder.
    """
    stored = None
    try:
        argv = [argv[0], *flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)]
        argv = command.last_of_each(argv)
        workdir = command.value_of("workdir", argv)
        told = command.value_of("config", argv) is not None
        told = told or any(command.is_on(name, argv) for name in ("status", *_HELP))
        if workdir and not told:
            stored = command.read(Path(workdir), EXPERIMENTS)
            argv = [argv[0], command.recipe_argument(stored["experiment"]), *argv[1:]]
        remaining = flags.FLAGS(argv)
        if flags.FLAGS["verbosity"].using_default_value:
            flags.FLAGS.verbosity = logging.WARNING
        # A file that could not be loaded says so on its first use.
        if _CONFIG.value is not None:
            _settle_config(_CONFIG.value)
        if stored:
            command.take_up(_CONFIG.value, stored, Path(workdir))
    except SystemExit as end:
        # Flags of help end the program with 1, as if that were an error.
        helped = end.code == 1 and any(command.is_on(name, argv) for name in _HELP)
        sys.exit(0 if helped else end.code)
    except Exception as error:  # a config file is a program, it may fail in any way
        _fail(command.explain(error, argv))
    chosen = [flag.name for flag in (_FIGURES_ONLY, _COLLECT, _DRY_RUN, _STATUS) if flag.value]
    for flag in (_NO_MEASURE, _TARGET):
        if flag.value and not _DRY_RUN.value:
            _fail(f"--{flag.name}: goes with --dry_run")
    if len(chosen) > 1:
        _fail(f"--{chosen[0]}, --{chosen[1]}: give one of them")
    for name in ("workdir",) if _STATUS.value else ("config", "workdir"):
        if not flags.FLAGS[name].value:
            _fail(f"--{name} is required; see --help")
    if len(remaining) > 1:
        _fail(f"unexpected argument {remaining[1]!r}: every option is --name=value")
    return remaining


def _settle_config(config: ConfigDict) -> None:
    """Checks what a config file gives, and sets the fields that are given as None."""
    if "experiment" not in list(config.keys()) or isinstance(config, dict):
        raise InputError("config: get_config must return a ConfigDict with a field 'experiment'")
    for name, value in config_flags.get_override_values(flags.FLAGS["config"]).items():
        if value in (None, (None,)):
            config.update_from_flattened_dict({name: command.unset(config, name)})


def _read_json(config: ConfigDict, path: str) -> None:
    """Sets the fields that a JSON object names; a field's type is kept."""
    command.set_fields(config, origin.parse_object(path, store.read_text(path)), path)


def _tell_status(config: ConfigDict | None, workdir: Path) -> None:
    """Prints the status of a folder: of its last command, or of the one that is given."""
    if config is None:
        plan = status.read_plan(workdir)
    else:
        study = EXPERIMENTS[config.experiment].make_study(config)
        plan = status.make_plan(Folder(workdir, study, repair=False).open(create=False))
    print(status.describe(plan, workdir))


def _read_formats(names: list[str]) -> tuple[str, ...]:
    """The formats of figures that a flag names."""
    chosen = tuple(dict.fromkeys(name.strip().lower() for name in names))
    if not chosen or not set(chosen) <= set(FORMATS):
        allowed, given = ", ".join(FORMATS), ",".join(names)
        raise InputError(f"figure_formats: must be some of {allowed}, got {given!r}")
    return chosen


def _describe(experiment: Any, config: ConfigDict, workdir: Path, shard: Shard) -> None:
    """Says what a command will take, here or on devices that need not be there."""
    given = read_target(_TARGET.value) if _TARGET.value else None
    with target.compiled_for(*given[1:]) if given else contextlib.nullcontext():
        study = experiment.make_study(config)
        dry_run.describe(study, workdir, shard, not _NO_MEASURE.value, given)


def _carry_out(
    experiment: Any,
    config: ConfigDict,
    workdir: Path,
    shard: Shard,
    formats: tuple[str, ...] = ("png",),
) -> int:
    """Does what the flags ask for, prints which results it has written, and gives the exit code."""
    if _DRY_RUN.value:
        _describe(experiment, config, workdir, shard)
        return 0
    complete, before = True, list_results(workdir)
    if not _FIGURES_ONLY.value:
        study = experiment.make_study(config)
        said = command.describe(config, sys.argv)
        if _COLLECT.value:
            complete = runner.collect(study, workdir, said)
        else:
            complete = runner.run(study, workdir, shard, _ALLOW_OTHER_VERSIONS.value, said)
    if complete or _COLLECT.value:
        figures = experiment.draw(config, workdir, formats)
        written = [path for path, at in list_results(workdir).items() if before.get(path) != at]
        for path in (*(path for path in written if path not in figures), *figures):
            print(path)
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
        formats = _read_formats(_FIGURE_FORMATS.value)
        interruption.take_signals()
        if _REQUIRE_ACCELERATOR.value:
            check_accelerator(_REQUIRE_ACCELERATOR.value)
        if config is not None and config.experiment not in EXPERIMENTS:
            raise unknown("experiment", config.experiment, EXPERIMENTS)
        if config is not None and _CONFIG_JSON.value:
            _read_json(config, _CONFIG_JSON.value)
        if _STATUS.value:
            _tell_status(config, workdir)
            return 0
        if _DRY_RUN.value:
            jax.config.update(
                "jax_enable_compilation_cache", False
            )  # what compilation takes is measured
        else:
            _enable_compilation_cache()
        return _carry_out(EXPERIMENTS[config.experiment], config, workdir, shard, formats)
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
