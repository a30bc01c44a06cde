"""The geometry of an ensemble, in stored units of networks: what `compute_nads` and `leading_nads`
share.

A unit holds the state that its networks add up to: that of the even and that of the odd ones.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import results
from experiments.networks import read_model
from experiments.run.config import HOW, check_all, check_integers, check_seeds
from experiments.run.costs import Ensemble, measure_ensemble, measure_with_kurtosis
from experiments.run.folder import Folder
from experiments.run.plan import Arrays, Cost, Json, Member, Program, Work
from nad_jax import nads, records, summary
from nad_jax.accumulation import make_accumulate
from nad_jax.batches import add_look
from nad_jax.choices import (
    Estimator,
    check_num_networks,
    check_symmetrized,
    choose_blocks,
    choose_readout,
    record_choices,
)
from nad_jax.diagnosis import check_not_zero
from nad_jax.ensemble import Execution, make_key
from nad_jax.errors import InputError, check_integer, raise_problems
from nad_jax.estimation import Passes
from nad_jax.geometry import find_problems
from nad_jax.kurtosis import Kurtosis
from nad_jax.moments import Halves, halves_from_arrays, halves_to_arrays, merge_halves
from nad_jax.nads import NADs
from nad_jax.reading import Found, find_directions, make_dense
from nad_jax.store import DamagedError

GEOMETRY_HOW = (*HOW, "block_size")
Check = Callable[[], Any]  # raises `InputError`


class Networks(NamedTuple):
    """Networks first … stop − 1 of a seed, which give so many rows each."""

    seed: int
    first: int
    stop: int
    num_rows: int


def read_estimator(config: ConfigDict) -> Estimator:
    """What a config says is measured."""
    return Estimator(**{name: config[name] for name in Estimator.__dataclass_fields__})


def read_ensemble(
    config: ConfigDict,
    passes: Passes | None = None,
    basis: Callable[[], jax.Array] | None = None,
) -> Ensemble:
    """What a config says is accumulated: all directions, or with `passes` the leading ones, from
    the test directions `basis()`.
    """
    model, estimator = read_model(config), read_estimator(config)
    how = Execution(config.mapping, config.chunk_size), config.unit_size
    make_accumulator = make_dense if passes is None else passes.make_accumulator
    return Ensemble(model, estimator, make_accumulator(model, estimator), *how, basis)


def check_measured(estimator: Estimator, execution: Execution) -> None:
    """Raises one `InputError` with a line for each value that is wrong."""
    raise_problems(estimator.problems() + find_problems(execution))


def validate(config: ConfigDict, *own_checks: Check) -> None:
    """Raises one `InputError` with a line per problem; `own_checks` are of the experiment."""
    estimator = read_estimator(config)

    def check_unit_size() -> None:
        check_integer("unit_size", config.unit_size, 2)
        if config.unit_size % 2:
            raise InputError(
                f"unit_size: must be even (halves of even and odd members), got {config.unit_size}"
            )

    check_all(
        lambda: check_measured(estimator, Execution(config.mapping, config.chunk_size)),
        lambda: check_symmetrized(estimator, read_model(config)),
        lambda: check_num_networks(config.num_networks, estimator),
        *own_checks,
        check_unit_size,
        lambda: check_seeds("seed", config.seed),
        lambda: check_integers(config, figure_directions=1),
    )


def split_networks(config: ConfigDict) -> dict[str, tuple[int, int]]:
    """First and stop of the units of an ensemble, by their names: every `unit_size` networks, the
    last one cut short.
    """
    size, stop = config.unit_size, config.num_networks
    ends = [(first, min(first + size, stop)) for first in range(0, stop, size)]
    return {f"networks_{first:07}_{stop:07}": (first, stop) for first, stop in ends}


def parse_units(names: Iterable[str]) -> dict[str, tuple[int, int]]:
    """First and stop of the networks of those names that are a unit's."""
    found = (re.fullmatch(r"networks_(\d{7})_(\d{7})", name) for name in names)
    return {match[0]: (int(match[1]), int(match[2])) for match in found if match}


def list_members(
    config: ConfigDict, program: Hashable, num_rows: int, prefix: str = "", **stored: Any
) -> list[Member]:
    """The units of an ensemble; `prefix` begins their names, `stored` are fields of each."""
    members = []
    for name, (first, stop) in split_networks(config).items():
        networks = Networks(config.seed, first, stop, num_rows)
        members.append(Member(prefix + name, program, networks, stop - first, **stored))
    return members


def state_shapes(ensemble: Ensemble) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays of a unit."""
    state = jax.eval_shape(ensemble.make_empty)
    zeros = jax.tree.map(lambda leaf: np.broadcast_to(0, leaf.shape), state)
    return {name: array.shape for name, array in halves_to_arrays(zeros).items()}


def check_counted(member: Member, arrays: Arrays) -> None:
    """Raises `DamagedError` where a unit of networks holds more or fewer of them."""
    if member.what is None:
        return
    num_rows = member.what.num_rows
    rows = int(arrays["even_count"]) + int(arrays["odd_count"])
    counted, diverged = int(arrays["networks"]), int(arrays["diverged"])
    if counted + diverged != member.num_networks or rows != counted * num_rows:
        held = rows / num_rows + diverged
        raise DamagedError(
            f"holds {held:g} networks, counted or diverged, not {member.num_networks}"
        )


def make_program(ensemble: Ensemble, chunk_size: int) -> Program:
    """What computes the units of ensembles that differ in their seed at most; `what` of a member is
    `Networks`.
    """
    model, estimator, accumulator, how, num_networks, _ = ensemble
    how = how._replace(chunk_size=chunk_size or how.chunk_size)
    empty = jax.eval_shape(ensemble.make_empty)
    accumulate, execution = make_accumulate(
        model, estimator, accumulator, how, num_networks, empty=empty
    )

    def compute(work: Work) -> tuple[Arrays, int]:
        seed, *ends = work.members[0].what[:3]
        halves = accumulate(make_key(seed), ensemble.make_empty(), *ends, *work[1:])
        return halves_to_arrays(halves), int(halves.diverged)

    how = {"mapping": execution.mapping, "chunk_size": execution.chunk_size}
    if known := explain_blocks(ensemble):
        logging.info("%s", known)
    return Program(compute, execution.chunk_size, 2, how)


def measure_cost(ensemble: Ensemble, num_networks: int = 0) -> Cost:
    """What a program of `make_program` costs; of a dense ensemble of so many networks, which error
    they have.
    """
    estimator, readout = ensemble.estimator, choose_readout(ensemble.model, ensemble.estimator)
    exact = estimator.derivative == "input_gradient"
    notes = [summary.explain_passes(readout.num_outputs) if exact else "", explain_blocks(ensemble)]
    if num_networks:
        cost, kurtosis = measure_with_kurtosis(ensemble)
        notes.append(explain_error(kurtosis, num_networks) if kurtosis else "")
    else:
        cost = measure_ensemble(ensemble)
    return cost._replace(note="\n  ".join(filter(None, notes)))


def explain_error(kurtosis: Kurtosis, num_networks: int) -> str:
    """Which relative error so many networks have, and how many a small one takes."""
    known = "exact" if kurtosis.exact else f"measured from {kurtosis.num_networks} networks"
    error, needed = kurtosis.relative_error(num_networks), kurtosis.networks_needed(0.01)
    return (
        f"relative error of vᵀGv {error:.1%} with {num_networks} networks, 1% takes {needed} "
        f"(κ = {kurtosis.value:.3g}, {known})"
    )


def explain_blocks(ensemble: Ensemble) -> str:
    """The exactly equal blocks that its geometry will have, and why; "" where there are none."""
    blocks = choose_blocks(ensemble.model, ensemble.estimator)
    return f"{blocks}; {blocks.reason}" if blocks.count else ""


def merge(
    folder: Folder, members: Iterable[Member], ensemble: Ensemble
) -> tuple[list[Halves], list[Networks]]:
    """The state of those of the members that are stored, in their order, so that an interruption
    cannot change a bit, as it grows: some looks at it, the last one of them all; and the networks
    that are missing.
    """
    missing, looks = [], []
    total = empty = ensemble.make_empty()
    for member in members:
        arrays = folder.read(member)
        if arrays is None:
            missing.append(member.what)
        else:
            halves = halves_from_arrays(dict(arrays), empty)
            total = merge_halves(ensemble.accumulator, total, halves)
            looks = add_look(looks, total)
    return looks or [empty], missing


def find(ensemble: Ensemble, seed: int, halves: Halves, num_directions: int = 1) -> Found:
    """The eigenvectors of the state of an ensemble, at least `num_directions` of them."""
    model, estimator, accumulator, *_ = ensemble
    check_not_zero(halves, model, estimator, make_key(seed))
    return find_directions(accumulator, halves, estimator.centred, num_directions)


def is_empty(halves: Halves) -> bool:
    """Whether a state has seen no networks."""
    return not int(halves.networks) + int(halves.diverged)


def describe(ensemble: Ensemble, seed: int, halves: Halves, origins: list[Json]) -> Json:
    """Every choice that was made, for a record, and what computed the units."""
    execution, _ = ensemble.resolve()
    choices = record_choices(ensemble.model, ensemble.estimator, execution, make_key(seed))
    choices |= {"seed": seed, "diverged": int(halves.diverged)}
    return {**choices, **join_origins(origins)}


def join_origins(origins: list[Json]) -> Json:
    """What units say of themselves: versions, device and chunk size; sorted lists of them where
    units differ.
    """

    def join(said: list[Json], name: str) -> Any:
        values = {
            value for one in said if name in one for value in np.atleast_1d(one[name]).tolist()
        }
        return values.pop() if len(values) == 1 else sorted(values)

    versions = [origin["versions"] for origin in origins]
    joined = {name: join(versions, name) for name in sorted(set().union(*versions))}
    return {"versions": joined} | {name: join(origins, name) for name in ("device", "chunk_size")}


def report(result: NADs, kind: str, more: str) -> None:
    """Prints what a record is of, `kind` and what `more` says included, the first eigenvalues, and
    which directions they do not determine.
    """
    print(f"{kind} of {summary.describe(result)}{more}")
    if (blocks := result.blocks) is not None:
        print(f"  {blocks}")
    if note := summary.explain_passes(result.config.get("backward_passes", 0)):
        print(f"  {note}")
    if diverged := result.config["diverged"]:
        print(f"  {diverged} more networks have derivatives that are not finite and are left out")

    def label(index: int) -> str:
        return f" ({result.symmetry[index]})" if result.symmetry[index] else ""

    pairs = zip(result.eigenvalues[:4], result.eigenvalue_sem, strict=False)
    for index, (value, error) in enumerate(pairs):
        print(f"  eigenvalue {index}{label(index)}: {value:.4g} ± {error:.1g}")
    groups, tolerance = nads.degenerate_groups(result)
    for group in groups:
        equal = f"eigenvalues equal within {tolerance:.0%}, single ones are not determined"
        print(f"  directions {_name_indices(group)}{label(group[0])}: {equal}")


def report_overlaps(result: NADs, label: str, others: Iterable[str]) -> None:
    """Prints the overlap of the halves of each subspace, and beside it what `label` says."""
    print(f"  overlap of leading subspaces: size, split half{label}")
    rows = zip_longest(result.overlap_sizes, result.split_half_overlap, others, fillvalue="")
    for size, overlap, other in rows:
        print(f"  {size:6}  {overlap:.3f}{other}")


def _name_indices(group: list[int]) -> str:
    """Ascending indices as text, runs as 3–7; the end of a long list is left out."""
    numbers = np.array(group)
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)
    text = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    return ", ".join(text if len(text) <= 8 else [*text[:6], "…", text[-1]])


def write_record(workdir: Path, result: NADs) -> None:
    """Writes `nads.npz`, and `nads.csv`, a row for each direction: index, eigenvalue, its standard
    error and representation.
    """
    records.save_nads(workdir / "nads.npz", result)
    result.to_csv(workdir / "nads.csv")


def draw_record(
    workdir: Path,
    result: NADs,
    num_directions: int,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    compared: np.ndarray | None = None,
    formats: tuple[str, ...] = ("png",),
) -> list[Path]:
    """Draws a record: `nads`, `spectrum` and `overlap`.

    Args:
      num_directions: how many of them are shown.
      curves: sizes and overlaps beside those of the halves.
      compared: eigenvalues of others.
      formats: of the files, among `figures.FORMATS`.
    """
    figures = result.plot(num_directions, curves, compared)
    return results.save_figures(workdir, figures, formats)
