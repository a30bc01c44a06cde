"""The table of a run, `results.csv`: one row per network, as a dictionary of its coordinates and
metrics.

Everything here is a function of such rows: writing and reading them, grouping them, averaging them
over seeds. `command.json` beside the table says which command made it. Rows of networks that only
earlier commands asked for stand behind those of the command, and are in no figure.
"""

import contextlib
import csv
import hashlib
import io
import itertools
import json
import operator
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.run.config import EARLIER
from experiments.run.origin import Json, check_experiment, parse_object
from nad_jax import store
from nad_jax.accuracy_plots import Curve, Frequencies
from nad_jax.errors import InputError
from nad_jax.figures import FORMATS
from nad_jax.subspaces import rank_correlation
from nad_jax.tables import Row, format_table

Rows = list[Row]
# Of every table, with what those of earlier versions are read as: seconds of its unit a network,
# without compilation; device and version of this package; which command asked for the network.
PROVENANCE = {"seconds": "", "device": "", "version": "", "command": "this"}
# Columns that came later, likewise.
LATER_COLUMNS = {**PROVENANCE, "reference_seed": ""}
_TEXTS = ("direction", "device", "version")  # which may look like numbers


def read_results(path: Path, columns: tuple[str, ...]) -> Rows:
    """The rows of a `results.csv` that its command asked for: numbers where there are numbers,
    empty text where a column does not apply.
    """
    rows = list(csv.DictReader(io.StringIO(store.read_text(path))))
    rows = [{**{n: v for n, v in LATER_COLUMNS.items() if n in columns}, **row} for row in rows]
    if any(set(row) != set(columns) or None in row.values() for row in rows):
        raise InputError(
            f"{path}: not a results.csv of this version: columns must be {', '.join(columns)}"
        )
    asked = [row for row in rows if row.get("command", "this") == "this"]
    if not asked:
        raise InputError(f"{path}: holds no networks")
    return [{n: v if n in _TEXTS else _number(v) for n, v in row.items()} for row in asked]


def provenance(said: Json, command: str) -> Row:
    """The device and version that a unit says, and which command asked for it: this, earlier."""
    versions = said.get("versions")
    version = versions.get("nad_jax") if isinstance(versions, dict) else ""
    return {"device": _joined(said.get("device")), "version": _joined(version), "command": command}


def _joined(values: Any) -> str:
    """A text, or several where units differ; "" of what is neither."""
    texts = values if isinstance(values, list) else [values]
    return "; ".join(texts) if all(isinstance(text, str) for text in texts) else ""


def _number(text: str) -> Any:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def write_table(
    workdir: Path, rows: Rows, columns: tuple[str, ...], command: dict[str, Any], missing: int
) -> Rows:
    """Writes `results.csv` and the fields of the command that say which networks are in it, and how
    many are not yet; the rows of the command as they are read.
    """
    store.write_text(workdir / "results.csv", format_table(rows, columns))
    command = json.loads(json.dumps(command))
    said = {"command": command, "missing": missing, "digest": _digest(workdir, command, missing)}
    store.write_text(workdir / "command.json", json.dumps(said, indent=2) + "\n")
    return read_results(workdir / "results.csv", columns)


def _digest(workdir: Path, command: dict[str, Any], missing: int) -> str:
    content = json.dumps([command, missing], sort_keys=True)
    content += store.read_text(workdir / "results.csv")
    return hashlib.sha256(content.encode()).hexdigest()


def read_table(
    workdir: Path, columns: tuple[str, ...], command: dict[str, Any]
) -> tuple[Rows, str]:
    """The rows of `results.csv`, and what figures of it say of missing networks.

    Raises:
      InputError: unless the table is the one of this command, intact.
    """
    path = workdir / "command.json"
    if not path.exists():
        raise InputError(
            f"{path}: there is no finished run here; give the command without --figures_only"
        )
    try:
        said = parse_object(path, store.read_text(path))
        made_by, missing, digest = dict(said["command"]), int(said["missing"]), said["digest"]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            f"{path}: damaged, not JSON ({error}); give the command without --figures_only"
        ) from error
    asked = json.loads(json.dumps(command))
    stored = {EARLIER.get(name, name): value for name, value in made_by.items()}
    other = f"{workdir}: its table was made by another command"
    check_experiment(other, "folder", stored, asked)
    differing = [
        f"  {name}: folder {stored.get(name)!r}, command {asked.get(name)!r}"
        for name in sorted({*asked, *stored})
        if stored.get(name) != asked.get(name)
    ]
    if differing:
        raise InputError("\n".join([other, *differing]))
    if digest != _digest(workdir, made_by, missing):
        raise InputError(
            f"{workdir}: results.csv or command.json was changed; give the command without "
            "--figures_only"
        )
    rows = read_results(workdir / "results.csv", columns)
    return rows, f"\n{missing} networks missing" if missing else ""


def save_figures(
    workdir: Path, figures: Mapping[str, Figure], formats: tuple[str, ...]
) -> list[Path]:
    """Writes figures under their names in every format, and in others that are there, which would
    show earlier results; the paths of the files.
    """
    paths = []
    for name, figure in figures.items():
        files = {form: workdir / f"{name}.{form}" for form in FORMATS}
        chosen = [file for form, file in files.items() if form in formats or file.exists()]
        for path in chosen:
            store.save_figure(path, figure)
        paths += chosen
    return paths


_SAID = {
    "sigma": "σ = {}",
    "epsilon": "ε = {}",
    "num_train": "{} training samples",
    "pooling": "pooling {}",
    "width": "width {}",
}
_USUAL = {"pooling": "default", "width": 0, "optimizer": "sgd", "num_train": 10_000, "epsilon": 1}
_AXES = ("architecture", "pooling", "width", "optimizer", "num_train", "sigma", "epsilon")
MAP_COLUMNS = (
    *_AXES, "phase", "frequency_row", "frequency_column", "test_accuracy", "test_accuracy_sem",
    "num_seeds",
)  # fmt: skip


def group(rows: Iterable[Row], key: Callable[[Row], Hashable]) -> dict[Any, Rows]:
    """The rows of each key, in their order."""
    groups: dict[Any, Rows] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def values_by(
    rows: Iterable[Row], column: str, metric: str = "test_accuracy"
) -> dict[Any, list[float]]:
    """The values of a metric, one for each seed, of each entry of a column, in their order."""
    groups = group(rows, operator.itemgetter(column))
    return {entry: [row[metric] for row in seeds] for entry, seeds in groups.items()}


def _varying(rows: Rows) -> list[str]:
    return [name for name in (*_AXES, "phase") if len({row[name] for row in rows}) > 1]


def _coordinates(row: Row, names: list[str]) -> list[str]:
    return [_SAID.get(name, "{}").format(row[name]) for name in names if row[name] != ""]


def group_rows(rows: Rows) -> dict[str, Rows]:
    """The rows of each curve or panel: equal in every coordinate but direction and seed, labelled
    by what varies.
    """
    varying = _varying(rows)
    return group(rows, lambda row: ", ".join(_coordinates(row, varying)))


def describe(rows: Rows) -> str:
    """What all rows have in common, for a title: the architecture, σ, what is not as usual, and how
    many seeds.
    """
    varying = _varying(rows)
    common = [n for n in _AXES if n not in varying and rows[0][n] != _USUAL.get(n)]
    parts = [*_coordinates(rows[0], common), count_seeds(rows), *count_diverged(rows)]
    return ", ".join(parts)


def count_diverged(rows: Rows) -> list[str]:
    """How many networks diverged, in words, if any did."""
    diverged = sum(row["diverged_at"] >= 0 for row in rows)
    return [f"{diverged} of {len(rows)} networks diverged"] * (diverged > 0)


def count_seeds(rows: Rows) -> str:
    """How many seeds there are, in words."""
    seeds = len({row["seed"] for row in rows})
    return f"{seeds} seed" + "s" * (seeds > 1)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """The mean over seeds and its standard error, nan for one seed."""
    error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(np.mean(values)), float(error)


def say_mean(values: list[float], form: str) -> str:
    """The mean over seeds and its standard error, which one seed has not, in words."""
    mean, error = mean_and_error(values)
    return f"{mean:{form}}" + f" ± {error:{form}}" * bool(np.isfinite(error))


def means_by_seed(rows: Rows, metric: str) -> list[float]:
    """The mean of a metric over all rows of each seed."""
    return [float(np.mean(values)) for values in values_by(rows, "seed", metric).values()]


def correlate(rows: Rows, metric: str = "test_accuracy") -> list[float]:
    """Spearman's rank correlation of a metric with the index, of each seed of which it is known."""
    seeds = group(rows, operator.itemgetter("seed")).values()
    return correlate_seeds(
        ([row["index"] for row in one], [row[metric] for row in one]) for one in seeds
    )


def correlate_seeds(pairs: Iterable[tuple[list[float], list[float]]]) -> list[float]:
    """Spearman's rank correlation of the two lists of each seed of which it is known: it is not of a
    single pair of values, nor where one of the lists is constant.
    """
    lists = [tuple(map(np.array, pair)) for pair in pairs]
    known = [pair for pair in lists if all(len(set(one.tolist())) > 1 for one in pair)]
    return [float(rank_correlation(*pair)) for pair in known]


def say_known(values: list[float], num_seeds: int, form: str) -> str:
    """The mean over those of so many seeds of which a value is known, its standard error and, where
    they are not all, how many they are, in words.
    """
    if not values:
        return f"known of none of {num_seeds} seeds"
    left_out = f" over {len(values)} of {num_seeds} seeds" * (len(values) < num_seeds)
    return say_mean(values, form) + left_out


def bootstrap_interval(values: list[float], level: float = 0.95) -> tuple[float, float]:
    """Between which of their means that share of bootstrap samples of the seeds lies; nan for one
    seed.
    """
    if len(values) < 2:
        return np.nan, np.nan
    drawn = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    rest = 100 * (1 - level) / 2
    low, high = np.percentile(np.asarray(values)[drawn].mean(1), (rest, 100 - rest))
    return float(low), float(high)


# Of Student's t, two-sided 95 %, by degrees of freedom from 1.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def mean_interval(values: list[float]) -> tuple[float, float, str]:
    """The 95 % interval of a mean over seeds, and how it was found: by Student's t up to 10 seeds,
    whose bootstrap is hardly more than their range, and by the bootstrap above; nan for one seed.
    """
    if len(values) > 1 + len(_STUDENT):
        return *bootstrap_interval(values), "bootstrap"
    mean, error = mean_and_error(values)
    reach = _STUDENT[len(values) - 2] * error
    return mean - reach, mean + reach, "Student's t"


def mean_curve(values: dict[int, list[float]]) -> Curve:
    """Indices ascending, the mean over the seeds of each, its standard error (nan for one seed)."""
    indices = sorted(values)
    means, errors = np.transpose([mean_and_error(values[index]) for index in indices])
    return np.array(indices), means, errors


def by_direction(rows: Rows) -> dict[str, Rows]:
    """The rows of each direction, one per seed, under the direction's name."""
    return group(rows, operator.itemgetter("direction"))


def mean_accuracies(rows: Rows) -> np.ndarray:
    """The test accuracy of each direction, averaged over seeds, in the order of `by_direction`."""
    return np.array(list(map(np.mean, values_by(rows, "direction").values())))


def by_frequency(
    rows: Rows,
    metric: str,
    shape: tuple[int, int],
    average: Callable[[list[float]], float] = np.mean,
) -> dict[tuple[int, int], float]:
    """The mean of a metric of Fourier directions, or another average, by their frequency modulo
    (H, W); ±f is one direction.
    """
    values = _values_by_frequency(rows, metric, shape)
    return {place: float(average(numbers)) for place, numbers in values.items()}


def _values_by_frequency(
    rows: Rows, metric: str, shape: tuple[int, int]
) -> dict[tuple[int, int], list[float]]:
    height, width = shape
    values: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        r, c = row["frequency_row"], row["frequency_column"]
        for place in {(r % height, c % width), (-r % height, -c % width)}:
            values.setdefault(place, []).append(row[metric])
    return values


def map_rows(rows: Rows, frequencies: Frequencies, shape: tuple[int, int]) -> Rows:
    """The map of accuracies as a table: a row for every cell, in which ±f are two, and every
    combination of the other coordinates; nan where no network is.
    """
    (vertical, horizontal), (height, width) = frequencies, shape
    names, cells = (*_AXES, "phase"), []
    for place, chosen in group(rows, operator.itemgetter(*names)).items():
        values = _values_by_frequency(chosen, "test_accuracy", shape)
        for r, c in itertools.product(vertical.tolist(), horizontal.tolist()):
            seeds = values.get((r % height, c % width), [])
            mean, error = mean_and_error(seeds) if seeds else (np.nan, np.nan)
            cell = {"frequency_row": r, "frequency_column": c, "test_accuracy": mean}
            cell |= {"test_accuracy_sem": error, "num_seeds": len(seeds)}
            cells.append({**dict(zip(names, place, strict=True)), **cell})
    return cells


def map_panels(
    groups: dict[str, Rows],
    metric: str,
    frequencies: Frequencies,
    shape: tuple[int, int],
    average: Callable[[list[float]], float] = np.mean,
) -> dict[str, np.ndarray]:
    """For each group the mean of a metric over seeds, or another average, at (vertical, horizontal)
    frequencies; nan where there is none.
    """
    (rows, columns), (height, width) = frequencies, shape
    panels = {}
    for label, chosen in groups.items():
        values = by_frequency(chosen, metric, shape, average)
        panels[label] = np.array(
            [[values.get((r % height, c % width), np.nan) for c in columns] for r in rows]
        )
    return panels


def curves(groups: dict[str, Rows]) -> dict[str, Curve]:
    """For each group the mean test accuracy by index, see `mean_curve`."""
    return {label: mean_curve(values_by(chosen, "index")) for label, chosen in groups.items()}
