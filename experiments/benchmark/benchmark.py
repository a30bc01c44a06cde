"""Times what nad_jax computes against the same in PyTorch, and against what the arithmetic needs.

A unit is one task of one architecture. Its programs run in processes of their own, in rounds that
alternate between ours, the baseline and the machine's rates of matrix products and random numbers,
so that a machine that slows down slows all of them. Without PyTorch there is no baseline, and a
line that says so.

Writes into the run folder: `units/*.json`, `benchmark.json` (all of them), `benchmark.md` (the
table) and `benchmark.png`.
"""

import functools
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from ml_collections import ConfigDict

from experiments import results
from experiments.benchmark.jax_programs import FORWARD_PASSES
from experiments.benchmark.report import format_table, make_rows
from experiments.benchmark.stopwatch import FailedError, Stopwatch
from experiments.run.config import Fields, check_all, check_each, check_integers, check_sweeps
from experiments.run.folder import Folder
from experiments.run.plan import Arrays, Cost, Member, Program, Study
from nad_jax import plotting, store
from nad_jax.architectures import create_model
from nad_jax.convolution import CONVOLUTIONS
from nad_jax.errors import (
    InputError,
    check_choice,
    check_image_shape,
    check_integer,
    check_number,
)
from nad_jax.recipe import PRECISIONS

ARCHITECTURES = ("lenet", "vgg11", "resnet18", "densenet121")  # those that the baseline has
TASKS = tuple(FORWARD_PASSES)
TRAINING = (
    "step",
    "directions",
)  # tasks that a precision applies to: NADs are always computed in the highest
SWEEPS = ("architectures", "tasks", "convolutions", "precisions")
FIELDS = Fields("benchmark", how=("python",), grows=SWEEPS)
STORED = ("variant", "seconds", "peak_bytes", "facts", "baseline", "cores")
PER_ARCHITECTURE = ("num_rounds", "num_steps", "num_directions")


class Variant(NamedTuple):
    """What one unit times."""

    architecture: str
    task: str
    convolution: str
    precision: str

    @property
    def name(self) -> str:
        return "-".join(self)


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    FIELDS.check_known(config)

    def check_architectures(field: str) -> None:
        if not isinstance(config[field], ConfigDict):
            raise InputError(
                f"{field}: must have a number for each architecture, got {config[field]!r}"
            )
        for name in config[field]:
            check_choice(field, name, ARCHITECTURES)

    check_all(
        lambda: check_sweeps(config, SWEEPS),
        *(partial(check_architectures, field) for field in PER_ARCHITECTURE),
    )
    allowed = (ARCHITECTURES, TASKS, ("auto", *CONVOLUTIONS), PRECISIONS)
    numbers = itertools.product(PER_ARCHITECTURE, {*config.architectures} & {*ARCHITECTURES})
    check_all(
        *(
            partial(check_each, config, field, check_choice, names)
            for field, names in zip(SWEEPS, allowed, strict=True)
        ),
        lambda: check_image_shape(config.image_shape),
        *(
            partial(check_integer, f"{field}.{name}", config[field].get(name), 1)
            for field, name in numbers
        ),
        lambda: check_integers(config, batch_size=2),
        lambda: check_number("seconds", config.seconds, 0.0),
    )


def list_variants(config: ConfigDict) -> list[Variant]:
    """What is timed, in the order of the table."""
    combinations = itertools.product(
        config.architectures, config.tasks, config.convolutions, config.precisions
    )
    chosen = (
        Variant(*names, precision if names[1] in TRAINING else "highest")
        for *names, precision in combinations
    )
    return list(dict.fromkeys(chosen))


def _specification(config: ConfigDict, variant: Variant) -> dict[str, Any]:
    per_architecture = {field: config[field][variant.architecture] for field in PER_ARCHITECTURE}
    fixed = {field: config[field] for field in ("batch_size", "seconds")}
    shape = {"image_shape": list(config.image_shape)}
    return {**variant._asdict(), **per_architecture, **fixed, **shape}


def _start_ours(specifications: list[dict[str, Any]]) -> Stopwatch:
    # Compilation is measured, and memory is left for the other processes.
    environment = {
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    return Stopwatch(
        "experiments.benchmark.jax_programs",
        specifications,
        sys.executable,
        environment=environment,
    )


def _baselines(spec: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The ways in which PyTorch is run: label, processes, threads of each (0: its own choice)."""
    cores = os.cpu_count() or 1
    if spec["task"] == "directions" and jax.default_backend() == "cpu" and cores > 1:
        return {"all threads": (1, 0), f"{cores} processes": (cores, 1)}
    return {"all threads": (1, 0)}


def _start_theirs(spec: dict[str, Any], processes: int, threads: int, python: str) -> Stopwatch:
    settings = {"threads": threads, "accelerator": jax.default_backend() != "cpu"}
    return Stopwatch(
        "experiments.benchmark.torch_programs", [{**spec, **settings}], python, processes
    )


@functools.cache
def _has_torch(python: str) -> bool:
    try:
        done = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    except OSError as error:
        raise InputError(f"python: {python!r} cannot be run: {error.strerror}") from error
    if done.returncode:
        logging.warning(
            "%s has no PyTorch (pip install -e '.[benchmark]'): there is no baseline", python
        )
    return not done.returncode


def measure(spec: dict[str, Any], python: str, progress: Callable[[float], None]) -> dict[str, Any]:
    """What a unit stores: seconds per unit of work of every round, ours and of the baselines, and
    the floor of each.

    Args:
      spec: see `jax_programs.make`.
      python: the interpreter that has PyTorch; "": there is none.
      progress: called with the share of rounds done.

    Raises:
      InputError: where a program fails.
    """
    started: dict[str, Stopwatch] = {}
    rates = [{**spec, "task": task} for task in ("product", "numbers")]
    baselines = _baselines(spec) if python else {}
    try:
        started["ours"] = _start_ours([spec])
        started["rates"] = _start_ours(rates)
        for label, (processes, threads) in baselines.items():
            started[label] = _start_theirs(spec, processes, threads, python)
        facts = started["ours"].facts[0]
        seconds: dict[str, list[float]] = {name: [] for name in ("ours", "floor", *baselines)}
        begun = time.monotonic()
        for done in range(spec["num_rounds"]):
            for label in ("ours", *baselines):
                seconds[label].append(started[label].run())
            product, number = started["rates"].run(0), started["rates"].run(1)
            seconds["floor"].append(facts["operations"] * product + facts["numbers"] * number)
            progress((done + 1) / spec["num_rounds"])
        return {
            "seconds": seconds,
            "peak_bytes": {label: started[label].peak_bytes for label in ("ours", *baselines)},
            "facts": facts,
            "baseline": started[next(iter(baselines))].facts[0] if baselines else None,
            "round_seconds": (time.monotonic() - begun) / spec["num_rounds"],
            "cores": os.cpu_count(),
        }
    except FailedError as error:
        raise InputError(
            f"{spec['task']} of {spec['architecture']} could not be timed: {error}"
        ) from error
    finally:
        for stopwatch in started.values():
            stopwatch.close()


def make_study(config: ConfigDict) -> Study:
    """The timings of a config."""
    validate(config)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # this process computes nothing
    for name in config.architectures:  # an image that is too small is an error before any timing
        create_model(name, config.image_shape)
    python, identity = config.python or sys.executable, FIELDS.identity(config)

    def time_variant(
        variant: Variant, progress: Callable[[float], None], **changes: int
    ) -> dict[str, Any]:
        specification = {**_specification(config, variant), **changes}
        return measure(specification, python if _has_torch(python) else "", progress)

    def make_program(variant: Variant, chunk_size: int) -> Program:
        del chunk_size

        def compute(
            members: list[Member], progress: Callable[[float], None], snapshots: Any
        ) -> tuple[Arrays, int]:
            del members, snapshots
            return {"variant": variant._asdict(), **time_variant(variant, progress)}, 0

        return Program(compute, 1, 1, {})

    def measure_cost(variant: Variant) -> Cost:
        begun = time.monotonic()
        result = time_variant(variant, lambda share: None, num_rounds=1)
        compile_seconds = result["facts"]["compile_seconds"]
        others = config.num_rounds[variant.architecture] - 1
        seconds = time.monotonic() - begun + others * result["round_seconds"]
        return Cost(compile_seconds, seconds - compile_seconds, result["peak_bytes"]["ours"])

    def collect(folder: Folder, num_missing: int) -> None:
        del num_missing
        stored = [timings for _, timings in folder.stored()]
        machines = {
            json.dumps([unit["facts"]["device"], unit["facts"]["library"], unit["cores"]])
            for unit in stored
        }
        if len(machines) > 1:
            raise InputError(
                f"{folder.workdir}: was measured on different machines: "
                f"{', '.join(sorted(machines))}"
            )
        report = {"config": identity, "units": stored}
        store.write_text(folder.workdir / "benchmark.json", json.dumps(report, indent=1) + "\n")
        table = format_table(report)
        store.write_text(folder.workdir / "benchmark.md", table)
        print(table, end="")

    def is_done(member: Member, timings: Arrays) -> bool:
        """Whether there is a baseline, or nothing to make one with."""
        return timings["baseline"] is not None or not _has_torch(python)

    return Study(
        {"": identity},
        [Member(variant.name, variant, variant) for variant in list_variants(config)],
        lambda _: dict.fromkeys(STORED, ()),
        make_program,
        measure_cost,
        collect,
        is_done=is_done,
        suffix=".json",
        counts="timings",
        alone="a benchmark is one process, or its programs would slow each other down",
    )


def draw(config: ConfigDict, workdir: Path) -> list[Path]:
    """Draws `benchmark.json` of `workdir` as bars."""
    validate(config)
    report = json.loads(store.read_text(workdir / "benchmark.json"))
    rows: dict[str, dict[str, tuple[float, float, float]]] = {}
    for row in make_rows(report):
        rows.setdefault(row.architecture, {})[row.label] = (row.seconds, row.baseline, row.floor)
    names = "nad_jax", "PyTorch", "floor of the arithmetic"
    return results.save_figures(workdir, {"benchmark.png": plotting.plot_durations(rows, names)})
