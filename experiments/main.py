"""The command line of every experiment.

    python -m experiments.main --config=configs/compute_nads.py:lenet --workdir=runs/lenet
    python -m experiments.main --config=... --workdir=... --config.num_networks=1200     (overrides one field)
    python -m experiments.main --config=... --workdir=... --figures_only                 (redraws stored results)

Run from the root of the repository. The same command resumes an interrupted run.
"""

import os
import sys
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from experiments import compute_nads
from nad_jax.errors import InputError, unknown

EXPERIMENTS = {"compute_nads": compute_nads}

_CONFIG = config_flags.DEFINE_config_file("config", None, "Recipe, e.g. configs/compute_nads.py:lenet.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run: created, or resumed where it holds the same.")
_FIGURES_ONLY = flags.DEFINE_bool("figures_only", False, "Draw the figures from the stored results and stop.")


def _enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, in a folder only this user can write: they are code."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nad_jax"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        logging.info("no compilation cache: %s: %s", folder, error.strerror)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _fail(message: str) -> None:
    for line in message.splitlines():
        sys.stderr.write(f"error: {line}\n" if not line.startswith(" ") else f"{line}\n")
    sys.exit(2)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses flags; a bad config file, field or value is one line instead of a traceback."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, InputError, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError) as error:
        _fail(str(error))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        _fail(f"unexpected argument {argv[1]!r}: every option is --name=value")
    for name in ("config", "workdir"):
        if flags.FLAGS[name].value is None:
            _fail(f"--{name} is required; see --help")
    config = _CONFIG.value
    try:
        if config.experiment not in EXPERIMENTS:
            raise unknown("experiment", config.experiment, EXPERIMENTS)
        experiment = EXPERIMENTS[config.experiment]
        if not _FIGURES_ONLY.value:
            _enable_compilation_cache()
            experiment.run(config, Path(_WORKDIR.value))
        for figure in experiment.draw(config, Path(_WORKDIR.value)):
            print(figure)
    except InputError as error:
        _fail(str(error))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
