"""The geometry of an ensemble, in stored units of networks: what `compute_nads` and `leading_nads`
share.

A unit holds the state that its networks add up to: that of the even and that of the odd ones.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments import results
from experiments.run.config import HOW, check_all, check_integers, check_seeds, read_model
from experiments.run.costs import choose_chunk, measure_ensemble
from experiments.run.folder import Folder
from experiments.run.plan import Arrays, Cost, Member, Program
from nad_jax import accumulation, nads, plotting, store
from nad_jax.accumulation import Halves, count_rows
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError, check_integer
from nad_jax.estimator import (
    Estimator,
    check_num_networks,
    check_symmetrized,
    record_choices,
    resolve_estimator,
)
from nad_jax.models import Model
from nad_jax.nads import NADs
from nad_jax.snapshots import Snapshots
from nad_jax.store import DamagedError

GEOMETRY_HOW = (*HOW, "block_size")
Check = Callable[[], Any]  # raises `InputError`
MakeEmpty = Callable[[], Halves]  # the state that has seen no networks


class Networks(NamedTuple):
    """Networks first … stop − 1 of a seed, and the number of their point in a sweep."""

    seed: int
    first: int
    stop: int
    point: int = 0


def read_estimator(config: ConfigDict) -> Estimator:
    """The estimator that a config says."""
    return Estimator(**{field.name: config[field.name] for field in dataclasses.fields(Estimator)})


def check_estimator(estimator: Estimator) -> None:
    """Raises one `InputError` with a line for each value that is wrong."""
    if problems := estimator.problems():
        raise InputError("\n".join(problems))


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
        lambda: check_estimator(estimator),
        lambda: check_symmetrized(estimator, read_model(config)),
        lambda: check_num_networks(config.num_networks, estimator),
        *own_checks,
        check_unit_size,
        lambda: check_seeds("seed", config.seed),
        lambda: check_integers(config, figure_directions=1),
    )


def resolve(config: ConfigDict) -> tuple[Model, Estimator, int]:
    """The model, the estimator without automatic choices, and R, the rows that one network gives."""
    model = read_model(config)
    return model, *resolve_estimator(model, read_estimator(config), config.unit_size)


def split_networks(config: ConfigDict) -> list[tuple[int, int]]:
    """The units [first, stop) of an ensemble: every `unit_size` networks, the last one cut short."""
    size, stop = config.unit_size, config.num_networks
    return [(first, min(first + size, stop)) for first in range(0, stop, size)]


def state_shapes(**shapes: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays of a unit, whose halves have arrays of these."""
    halves = {f"{half}_{name}": shape for half in ("even", "odd") for name, shape in shapes.items()}
    return {**halves, "diverged": ()}


def check_counted(member: Member, arrays: Arrays, num_rows: int) -> None:
    """Raises `DamagedError` where a unit holds more or fewer networks, of `num_rows` rows each."""
    held = count_rows(arrays, num_rows) / num_rows
    if held != member.num_networks:
        raise DamagedError(
            f"holds {held:g} networks, counted or diverged, not {member.num_networks}"
        )


def make_program(config: ConfigDict, make_empty: MakeEmpty, chunk_size: int) -> Program:
    """What computes the units of ensembles that differ from a config in their seed at most; `what`
    of a member is `Networks`.

    Of a sketch, the test directions are not in the arrays of a unit.
    """
    model, chosen, unit_size = read_model(config), read_estimator(config), config.unit_size
    if chunk_size:
        chosen = dataclasses.replace(chosen, chunk_size=chunk_size)
    chosen = choose_chunk(model, chosen, unit_size, make_empty)
    accumulate, estimator = accumulation.make_accumulate(model, chosen, unit_size)

    def compute(
        members: list[Member], progress: Callable[[float], None], snapshots: Snapshots
    ) -> tuple[Arrays, int]:
        seed, first, stop, _ = members[0].what
        halves = accumulate(make_key(seed), make_empty(), first, stop, progress, snapshots)
        arrays = accumulation.halves_to_arrays(halves)
        arrays = {name: array for name, array in arrays.items() if not name.endswith("_basis")}
        return arrays, int(halves.diverged)

    how = {"mapping": estimator.mapping, "chunk_size": estimator.chunk_size}
    return Program(compute, estimator.chunk_size, 2, how)


def measure_cost(config: ConfigDict, make_empty: MakeEmpty) -> Cost:
    """What a program of `make_program` costs."""
    model, unit_size = read_model(config), config.unit_size
    chosen = choose_chunk(model, read_estimator(config), unit_size, make_empty)
    return measure_ensemble(model, chosen, unit_size, make_empty)


def merge(
    folder: Folder, members: Iterable[Member], **beside: Any
) -> tuple[Halves | None, list[Networks]]:
    """The state of those of the members that are stored, in their order, so that an interruption
    cannot change a bit; and the networks that are missing. `beside` are arrays of every state.
    """
    total, missing = None, []
    for member in members:
        arrays = folder.read(member)
        if arrays is None:
            missing.append(member.what)
            continue
        halves = accumulation.halves_from_arrays({**arrays, **beside})
        total = halves if total is None else accumulation.merge_halves(total, halves)
    return total, missing


def count_networks(halves: Halves, num_rows: int) -> int:
    """The networks that a state has seen, those that diverged left out."""
    return (int(halves.even.count) + int(halves.odd.count)) // num_rows


def describe(config: ConfigDict, halves: Halves, origins: list[dict[str, Any]]) -> dict[str, Any]:
    """Every choice that was made, for a record, and what computed the units."""
    model, estimator, _ = resolve(config)
    choices = {**record_choices(model, estimator, make_key(config.seed)), "seed": config.seed}
    return {**choices, "diverged": int(halves.diverged), **join_origins(origins)}


def join_origins(origins: list[dict[str, Any]]) -> dict[str, Any]:
    """What units say of themselves: versions, device and chunk size; sorted lists of them where
    units differ.
    """

    def join(said: list[dict[str, Any]], name: str) -> Any:
        values = [
            value for one in said if name in one for value in np.atleast_1d(one[name]).tolist()
        ]
        return values[0] if len(set(values)) == 1 else sorted(set(values))

    versions = [origin["versions"] for origin in origins]
    names = sorted({name for one in versions for name in one})
    return {
        "versions": {name: join(versions, name) for name in names},
        **{name: join(origins, name) for name in ("device", "chunk_size")},
    }


def report_eigenvalues(result: NADs) -> None:
    """Prints the first eigenvalues, and which directions they do not determine."""
    if result.config["diverged"]:
        print(
            f"  {result.config['diverged']} more networks have derivatives that are not finite and "
            "are left out"
        )

    def label(index: int) -> str:
        return f" ({result.symmetry[index]})" if result.symmetry[index] else ""

    for index in range(min(4, len(result.eigenvalues))):
        values = f"{result.eigenvalues[index]:.4g} ± {result.eigenvalue_sem[index]:.1g}"
        print(f"  eigenvalue {index}{label(index)}: {values}")
    groups, tolerance = nads.degenerate_groups(result)
    for group in groups:
        equal = f"eigenvalues equal within {tolerance:.0%}, single ones are not determined"
        print(f"  directions {_name_indices(group)}{label(group[0])}: {equal}")


def _name_indices(group: list[int]) -> str:
    """Ascending indices as text, runs as 3–7; the end of a long list is left out."""
    runs: list[list[int]] = []
    for index in group:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    text = [str(first) if first == last else f"{first}–{last}" for first, last in runs]
    return ", ".join(text if len(text) <= 8 else [*text[:6], "…", text[-1]])


def write_record(workdir: Path, result: NADs, **beside: np.ndarray) -> None:
    """Writes `nads.npz`, and `nads.csv`, a row for each direction: index, eigenvalue, its standard
    error and representation.
    """
    store.save_nads(workdir / "nads.npz", result, **beside)
    names = ("eigenvalue_sem", "symmetry")
    columns = {"index": range(len(result.eigenvalues)), "eigenvalue": result.eigenvalues}
    columns |= {name: getattr(result, name) for name in names}
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    store.write_text(workdir / "nads.csv", results.format_table(rows, tuple(columns)))


def draw_record(
    workdir: Path,
    result: NADs,
    num_directions: int,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    trace: float | None = None,
    compared: np.ndarray | None = None,
) -> list[Path]:
    """Draws a record: `nads.png`, `spectrum.png` and `overlap.png`.

    Args:
      num_directions: how many of them are shown.
      curves: sizes and overlaps beside those of the halves.
      trace: of all directions, where these are the leading ones.
      compared: eigenvalues of others.
    """
    choices, halves = result.config, (result.overlap_sizes, result.split_half_overlap)
    title = f"{choices['architecture']}, {result.num_networks} networks, {choices['derivative']}"
    band = nads.null_band(result, trace) if nads.has_null_band(result) else None
    shown, shape = result.directions[:num_directions], tuple(choices["image_shape"])
    figures = {
        "nads.png": plotting.plot_directions(
            shown, shape, f"Leading NADs: {title}", result.symmetry
        ),
        "spectrum.png": plotting.plot_spectrum(
            result.eigenvalues, result.eigenvalue_sem, title, band, compared
        ),
        "overlap.png": plotting.plot_overlap(
            {"even against odd members": halves, **curves}, result.directions.shape[1], title
        ),
    }
    return results.save_figures(workdir, figures)
