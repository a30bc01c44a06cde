"""The command line of every experiment.

    python -m experiments.main --config=configs/compute_nads.py:lenet --workdir=runs/lenet
    python -m experiments.main --config=... --workdir=... --config.num_networks=1200     (overrides one field)
    python -m experiments.main --config=... --workdir=... --figures_only                 (redraws stored results)

Run from the root of the repository. The same command resumes an interrupted run.
"""

import os
import re
import signal
import sys
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from experiments import compute_nads, directional_bias, flip_cifar, poison_cifar
from nad_jax.errors import InputError, unknown

EXPERIMENTS = {
    "compute_nads": compute_nads,
    "directional_bias": directional_bias,
    "poison_cifar": poison_cifar,
    "flip_cifar": flip_cifar,
}

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, e.g. configs/compute_nads.py:lenet; its file lists every field."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run: created, or resumed where it holds the same.")
_FIGURES_ONLY = flags.DEFINE_bool("figures_only", False, "Draw the figures from the stored results and stop.")


def _enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, in a folder only this user can write: they are code."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nad_jax"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except (OSError, RuntimeError) as error:  # the latter: no home folder
        logging.warning("compiled programs are not kept between runs: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _fail(message: str) -> NoReturn:
    """Ends the program with one `error:` line per line of the message (indented lines are details)."""
    for line in message.splitlines():
        sys.stderr.write(f"{line}\n" if line.startswith(" ") else f"error: {line}\n")
    sys.exit(2)


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
            raise InputError("config: get_config must return a ConfigDict with a field 'experiment'")
    except Exception as error:  # a config file is a program, it may fail in any way
        _fail(_reason(error))
    for name in ("config", "workdir"):
        if not flags.FLAGS[name].value:
            _fail(f"--{name} is required; see --help")
    if len(remaining) > 1:
        _fail(f"unexpected argument {remaining[1]!r}: every option is --name=value")
    return remaining


def main(argv: list[str]) -> None:
    del argv
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config, workdir = _CONFIG.value, Path(_WORKDIR.value)
    try:
        if config.experiment not in EXPERIMENTS:
            raise unknown("experiment", config.experiment, EXPERIMENTS)
        experiment = EXPERIMENTS[config.experiment]
        if not _FIGURES_ONLY.value:
            _enable_compilation_cache()
            experiment.run(config, workdir)
        for figure in experiment.draw(config, workdir):
            print(figure)
    except InputError as error:
        _fail(str(error))
    except BrokenPipeError:  # the reader of our output is gone (`| head`); what is stored stays
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from the last finished unit\n")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(75)  # an orderly exit would wait for the computation whose result nobody takes


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
