"""Times what nad_jax computes against the same in PyTorch, and against what the arithmetic needs.

A unit is one task of one architecture. Its programs run in processes of their own, in rounds that
alternate between ours, the baseline and the machine's rates of matrix products and random numbers,
so that a machine that slows down slows all of them. Without PyTorch there is no baseline, and a
line that says so. What does not fit an accelerator is a unit too, which says so and is not tried
again.

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
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import results
from experiments.benchmark import jax_programs
from experiments.benchmark.report import format_table, make_rows
from experiments.benchmark.stopwatch import FailedError, Specification, Stopwatch
from experiments.run.config import Fields, check_all, check_each, check_integers, check_sweeps
from experiments.run.folder import Folder
from experiments.run.plan import Arrays, Cost, Member, Program, Study, Work
from nad_jax import plotting, store
from nad_jax.architectures import create_model
from nad_jax.convolution import CONVOLUTIONS
from nad_jax.ensemble import MAPPINGS
from nad_jax.errors import (
    InputError,
    check_choice,
    check_image_shape,
    check_integer,
    check_number,
)
from nad_jax.memory import is_exhausted
from nad_jax.recipe import PRECISIONS

# Those that the baseline has.
ARCHITECTURES = ("lenet", "vgg11", "resnet18", "densenet121", "vit", "mixer", "convnext")
TASKS = tuple(task for task in jax_programs.TASKS if task not in jax_programs.RATES)
# Tasks that a precision applies to: NADs are always computed in the highest.
TRAINING = ("step", "directions")
# Tasks of many networks, of which so many at a time may be asked for.
CHUNKED = ("gradient", "central_difference", "directions")
SWEEPS = {  # axes, in the order of `Variant`, and what is allowed on each
    "architectures": ARCHITECTURES,
    "tasks": TASKS,
    "convolutions": ("auto", *CONVOLUTIONS),
    "precisions": PRECISIONS,
    "mappings": ("auto", *MAPPINGS),
    "chunk_sizes": (),  # any even number; 0: as many as an experiment takes by itself
}
FIELDS = Fields("benchmark", how=("python",), grows=tuple(SWEEPS))
STORED = ("variant", "seconds", "peak_bytes", "facts", "baseline", "cores")
PER_ARCHITECTURE = ("num_rounds", "num_steps", "num_directions")


class Variant(NamedTuple):
    """What one unit times. chunk_size: networks at once; 0: automatic."""

    architecture: str
    task: str
    convolution: str
    precision: str
    mapping: str = "auto"
    chunk_size: int = 0

    @property
    def name(self) -> str:
        asked = (self.mapping != "auto", self.mapping), (self.chunk_size > 0, self.chunk_size)
        return "-".join([*self[:4], *(str(value) for given, value in asked if given)])


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    FIELDS.check_known(config)

    def check_architectures(field: str) -> None:
        if not isinstance(config[field], ConfigDict):
            raise InputError(
                f"{field}: must have a number for each architecture, got {config[field]!r}"
            )
        check_each(config, field, check_choice, ARCHITECTURES)

    check_all(
        lambda: check_sweeps(config, SWEEPS),
        *(partial(check_architectures, field) for field in PER_ARCHITECTURE),
    )
    chosen = [name for name in config.architectures if name in ARCHITECTURES]
    named = [axis for axis, allowed in SWEEPS.items() if allowed]
    check_all(
        *(partial(check_each, config, axis, check_choice, SWEEPS[axis]) for axis in named),
        partial(check_each, config, "chunk_sizes", _check_chunk_size),
        lambda: check_image_shape(config.image_shape),
        *(
            partial(check_integer, f"{field}.{name}", config[field].get(name), 1)
            for field, name in itertools.product(PER_ARCHITECTURE, chosen)
        ),
        lambda: check_integers(config, batch_size=2),
        lambda: check_number("seconds", config.seconds, 0.0),
    )


def _check_chunk_size(field: str, value: int) -> None:
    check_integer(field, value, 0)
    if value % 2:
        raise InputError(f"{field}: must be even (halves of even and odd networks), got {value}")


def list_variants(config: ConfigDict) -> list[Variant]:
    """What is timed, in the order of the table; what does not apply to a task is left out."""
    variants = []
    for variant in itertools.starmap(
        Variant, itertools.product(*(config[axis] for axis in SWEEPS))
    ):
        if variant.task not in TRAINING:
            variant = variant._replace(precision="highest")
        if variant.task not in CHUNKED:
            variant = variant._replace(mapping="auto", chunk_size=0)
        if variant.task in TRAINING:  # more at once than there are
            most = config.num_directions[variant.architecture]
            variant = variant._replace(chunk_size=min(variant.chunk_size, most))
        variants.append(variant)
    return list(dict.fromkeys(variants))


def _specify(config: ConfigDict, variant: Variant) -> Specification:
    per_architecture = {field: config[field][variant.architecture] for field in PER_ARCHITECTURE}
    shared = {field: config[field] for field in ("image_shape", "batch_size", "seconds")}
    return {**variant._asdict(), **per_architecture, **shared}


_start_ours = partial(
    Stopwatch,
    "experiments.benchmark.jax_programs",
    python=sys.executable,
    # Compilation is measured, and memory is left for the other processes.
    environment={"JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
)


def _baselines(spec: Specification) -> dict[str, tuple[int, int]]:
    """The ways in which PyTorch is run: label, processes, threads of each (0: its own choice)."""
    ways, cores = {"all threads": (1, 0)}, os.cpu_count() or 1
    if spec["task"] == "directions" and jax.default_backend() == "cpu" and cores > 1:
        ways[f"{cores} processes"] = (cores, 1)
    return ways


@functools.cache
def _has_torch(python: str) -> bool:
    """Whether an interpreter has a PyTorch that computes on the same kind of device."""
    on_cpu = jax.default_backend() == "cpu"
    program = "import torch" + "; assert torch.cuda.is_available()" * (not on_cpu)
    try:
        done = subprocess.run([python, "-c", program], capture_output=True, check=False)
    except OSError as error:
        raise InputError(f"python: {python!r} cannot be run: {error.strerror}") from error
    if done.returncode:
        logging.warning(
            "%s has no PyTorch%s (pip install -e '.[benchmark]'): there is no baseline",
            python,
            "" if on_cpu else " that sees this device",
        )
    return not done.returncode


def measure(spec: Specification, python: str, progress: Callable[[float], None]) -> dict[str, Any]:
    """What a unit stores: seconds per unit of work of every round, ours and of the baselines, and
    the floor of each; or, as `failed` among its facts, that the device has not the memory for it.

    Args:
      spec: see `jax_programs.make`.
      python: the interpreter that has PyTorch; "": there is none.
      progress: called with the share of rounds done.

    Raises:
      InputError: where a program fails in any other way.
    """
    started: dict[str, Stopwatch] = {}
    baselines, rounds = _baselines(spec) if python else {}, spec["num_rounds"]
    labels = ("ours", *baselines)
    try:
        # First: ours has what memory is left.
        started["rates"] = _start_ours([{**spec, "task": task} for task in jax_programs.RATES])
        started["ours"] = _start_ours([spec])
        for label, (processes, threads) in baselines.items():
            settings = {"threads": threads, "accelerator": jax.default_backend() != "cpu"}
            started[label] = Stopwatch(
                "experiments.benchmark.torch_programs", [{**spec, **settings}], python, processes
            )
        facts = started["ours"].facts[0]
        seconds: dict[str, list[float]] = {name: [] for name in (*labels, "floor")}
        begun = time.monotonic()
        for done in range(1, rounds + 1):
            for label in labels:
                seconds[label].append(started[label].run())
            product, number = map(started["rates"].run, range(2))
            seconds["floor"].append(facts["operations"] * product + facts["numbers"] * number)
            progress(done / rounds)
        return {
            "seconds": seconds,
            "peak_bytes": {label: started[label].peak_bytes for label in labels},
            "facts": facts,
            "baseline": started["all threads"].facts[0] if baselines else None,
            "round_seconds": (time.monotonic() - begun) / rounds,
            "cores": os.cpu_count(),
        }
    except FailedError as error:
        if "rates" in started and is_exhausted(error.said):
            facts = {**started["rates"].facts[0], "failed": "out of memory"}
            untimed = {"seconds": {}, "peak_bytes": {}, "facts": facts, "baseline": None}
            return {**untimed, "cores": os.cpu_count()}
        raise InputError(
            f"{spec['task']} of {spec['architecture']} could not be timed: {error}"
        ) from error
    finally:
        for stopwatch in started.values():
            stopwatch.close()


def _collect(identity: dict[str, Any], folder: Folder, num_missing: int) -> None:
    """Writes and prints what is stored, if it is of one machine."""
    stored = [timings for _, timings in folder.stored()]
    machines = {
        json.dumps([unit["facts"]["device"], unit["facts"]["library"], unit["cores"]])
        for unit in stored
    }
    if len(machines) > 1:
        raise InputError(
            f"{folder.workdir}: was measured on different machines: {', '.join(sorted(machines))}"
        )
    report = {"config": identity, "units": stored}
    store.write_text(folder.workdir / "benchmark.json", json.dumps(report, indent=1) + "\n")
    table = format_table(report)
    store.write_text(folder.workdir / "benchmark.md", table)
    print(table, end="")


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
        specification = {**_specify(config, variant), **changes}
        return measure(specification, python if _has_torch(python) else "", progress)

    def compute(work: Work) -> tuple[Arrays, int]:
        (member,) = work.members
        timings = time_variant(member.what, work.progress)
        return {"variant": member.what._asdict(), **timings}, 0

    def measure_cost(member: Member) -> Cost:
        begun = time.monotonic()
        result = time_variant(member.what, lambda share: None, num_rounds=1)
        seconds = time.monotonic() - begun
        if "failed" in result["facts"]:
            return Cost(0.0, seconds, 0, result["facts"]["failed"])
        compile_seconds = result["facts"]["compile_seconds"]
        others = config.num_rounds[member.what.architecture] - 1
        seconds += others * result["round_seconds"]
        return Cost(compile_seconds, seconds - compile_seconds, result["peak_bytes"]["ours"])

    def is_done(member: Member, timings: Arrays) -> bool:
        """Whether there is a baseline, or nothing to make one with or to compare it with."""
        done = timings["baseline"] is not None or "failed" in timings["facts"]
        return done or not _has_torch(python)

    return Study(
        {"": identity},
        [Member(variant.name, variant, variant) for variant in list_variants(config)],
        lambda _: dict.fromkeys(STORED, ()),
        lambda member, chunk_size: Program(compute, 1, 1, {}),
        measure_cost,
        partial(_collect, identity),
        is_done=is_done,
        suffix=".json",
        counts="timings",
        alone="a benchmark is one process, or its programs would slow each other down",
    )


def draw(config: ConfigDict, workdir: Path, formats: tuple[str, ...] = ("png",)) -> list[Path]:
    """Draws `benchmark.json` of `workdir`: durations over those of PyTorch, or where that was
    nowhere measured over the floor.
    """
    validate(config)
    report = json.loads(store.read_text(workdir / "benchmark.json"))
    rows, ratios = make_rows(report), {}
    if not rows:  # nothing fits the device
        return []
    has_baseline = np.isfinite([row.baseline for row in rows]).any()
    for row in rows:
        ratio = *row.ratio, row.floor / row.baseline
        if not has_baseline:
            ratio = *(seconds / row.floor for seconds in (row.seconds, *row.spread)), 1.0
        ratios.setdefault(row.architecture, {})[row.label] = ratio
    baseline = "PyTorch" if has_baseline else "the floor of the arithmetic"
    title = f"Durations over those of {baseline}, on {report['units'][0]['facts']['device']}"
    figure = plotting.plot_ratios(ratios, baseline, title)
    return results.save_figures(workdir, {"benchmark": figure}, formats)
