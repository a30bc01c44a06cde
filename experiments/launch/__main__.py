"""Prints a job description for a command of `experiments.main`, whose arguments stand after `--`.

python -m experiments.launch --template=slurm_array.sh --shards=8 -- --config=... --workdir=... >
job.sh
"""

import json
import re
import shlex
import sys
from pathlib import Path
from string import Template
from typing import NoReturn

from absl import app, flags

from experiments.run.accelerator import EXTRAS
from nad_jax.errors import InputError, check_choice, check_integer

FOLDER = Path(__file__).parent
ON_TPUS = ("tpu_pod.sh", "tpu_hosts.sh")
TEMPLATES = ("slurm_array.sh", "jobset.yaml", *ON_TPUS)

_TEMPLATE = flags.DEFINE_string("template", None, f"One of {', '.join(TEMPLATES)}.")
_OPTIONS = (
    flags.DEFINE_integer(
        "shards", 8, "How many processes share the work (a TPU pod has its own number)."
    ),
    flags.DEFINE_integer(
        "gpus", 1, "GPUs of each process of a Slurm array or JobSet; 0: none is asked for."
    ),
    flags.DEFINE_integer("cpus", 8, "Cores of each process."),
    flags.DEFINE_string(
        "python", "", "The interpreter; default .venv/bin/python, in a JobSet python."
    ),
    flags.DEFINE_string("image", "nad_jax:latest", "The container image of a JobSet."),
    flags.DEFINE_string("claim", "runs", "The volume claim of a JobSet."),
)


def render(
    template: str,
    arguments: list[str],
    shards: int,
    gpus: int,
    cpus: int,
    python: str,
    image: str,
    claim: str,
) -> str:
    """The job description of a command line of `experiments.main`.

    Raises:
      InputError: for an unknown template, a bad number or name, or arguments without a config, with
        a workdir that hosts would not share, or with what the description says itself.
    """
    if template is None:
        raise InputError(f"--template: is required, one of {', '.join(TEMPLATES)}")
    check_choice("template", template, TEMPLATES)
    check_integer("shards", shards, 1)
    check_integer("gpus", gpus, 0)
    check_integer("cpus", cpus, 1)
    if not re.fullmatch(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", claim):
        raise InputError(
            f"claim: must be a name of lower-case letters, digits, - and ., got {claim!r}"
        )
    if not re.fullmatch(r"\S+", image):
        raise InputError(f"image: must be the name of an image, got {image!r}")
    values = dict(argument.lstrip("-").partition("=")[::2] for argument in arguments)
    for name in ("config", "workdir"):
        if not values.get(name):
            raise InputError(
                f"--{name}=… is missing among the arguments after --, got {shlex.join(arguments)!r}"
            )
    for name in ("shard", "distributed", "collect", "dry_run", "figures_only", "status"):
        if name in values:
            raise InputError(
                f"--{name}: does not belong into a job; shards are known by the engine, and "
                "collect in the end"
            )
    needed = "/runs/" if template == "jobset.yaml" else "/" * (template in ON_TPUS)
    if not values["workdir"].startswith(needed):
        raise InputError(
            f"--workdir: must start with {needed}, which all hosts see, got {values['workdir']!r}"
        )
    python = python or ("python" if template == "jobset.yaml" else ".venv/bin/python")
    accelerator = "tpu" if template in ON_TPUS else "gpu" * (gpus > 0)
    if accelerator and "require_accelerator" not in values:
        arguments = [*arguments, f"--require_accelerator={accelerator}"]
    command = [python, "-m", "experiments.main", *arguments]
    remote = f"cd nad_jax && {shlex.join(command)}" + " --distributed" * (template == "tpu_pod.sh")
    limits = {"limits": {"nvidia.com/gpu": gpus}} if gpus else {}
    return Template((FOLDER / template).read_text(encoding="utf-8")).substitute(
        arguments=shlex.join(arguments),
        install=_installation(template, accelerator),
        command=json.dumps([*command, "--shard=auto"]),
        remote=shlex.quote(remote),
        python=shlex.quote(python),
        shards=shards,
        last=shards - 1,
        cpus=cpus,
        gpus=f"\n#SBATCH --gpus-per-task={gpus}" * (gpus > 0),  # some clusters refuse one of 0
        resources=json.dumps({"requests": {"cpu": cpus}, **limits}),
        image=json.dumps(image),
        claim=json.dumps(claim),
    )


def _installation(template: str, accelerator: str) -> str:
    """The command that installs the program for an accelerator; "": for none."""
    what = f"'.[{EXTRAS[accelerator]}]'" if accelerator else "."
    if template == "jobset.yaml":
        return f"pip install -e {what}"
    return f"python3 -m venv .venv && .venv/bin/pip install -e {what}"


def main(argv: list[str]) -> None:
    options = {option.name: option.value for option in _OPTIONS}
    try:
        sys.stdout.write(render(_TEMPLATE.value, argv[1:], **options))
    except InputError as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    sys.stderr.write(f"error: {error}\n")
    sys.exit(2)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _fail(error)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
