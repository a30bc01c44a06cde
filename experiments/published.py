"""Comparison with the accuracies published with the paper's code, as tables of one row per
direction.

Accuracies are percent, in a column of each architecture. Maps have columns x and y: cell (x, y) is
the real DFT vector of frequency (2(y − 8), 2(x − 8)); columns x = 1 … 7 are copies of 15 … 9.
Curves have a column index; NADs 0 … 10, 14, 18, … were measured, the others interpolated.
"""

import csv
import io

import numpy as np

from experiments.results import Rows, by_frequency, values_by
from nad_jax import store
from nad_jax.errors import InputError
from nad_jax.subspaces import rank_correlation

# The columns of the tables in the paper's repository; accuracy_<architecture> is known as well.
_ARCHITECTURES = {
    "acc_lr": "logreg",
    "acc_ln": "lenet",
    "acc_rn": "resnet18",
    "acc_dn": "densenet121",
    "acc_vgg": "vgg11",
}
# What names a row, and the highest value of each: cells of the map, or NADs of 32×32 pixels.
_PLACES = {("x", "y"): 15, ("index",): 1023}
Table = list[dict[str, float]]


def read_table(path: str, architecture: str) -> Table:
    """The measured rows of a published table, as numbers, accuracy in [0, 1], curves in the order
    of their indices.

    Cells without an accuracy are rows that were not measured; other columns are not read.

    Raises:
      InputError: naming the file, and the line and column of what is wrong there.
    """
    reader = csv.reader(io.StringIO(store.read_text(path)))
    try:
        lines = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: {error}") from error
    (_, names), *lines = [line for line in lines if any(line[1])] or [(0, [])]
    column, places = _find_columns(path, names, architecture)
    found: dict[tuple[int, ...], float] = {}
    for number, cells in lines:
        where = f"{path}: line {number}"
        if len(cells) != len(names):
            raise InputError(f"{where}: has {len(cells)} cells for {len(names)} columns")
        row = dict(zip(names, cells, strict=True))
        if not row[column]:
            continue
        last = _PLACES[places]
        place = tuple(int(_number(f"{where}: {n}", row[n], last, whole=True)) for n in places)
        if place in found:
            raise InputError(
                f"{where}: {', '.join(places)} = {', '.join(map(str, place))} is there twice"
            )
        found[place] = _number(f"{where}: {column}", row[column], 100) / 100
    order = sorted(found) if places == ("index",) else found
    found = {place: found[place] for place in order if _is_measured(*place)}
    if not found:
        raise InputError(f"{path}: holds no measured accuracies of {architecture!r}")
    if (highest := max(found.values())) <= 0.01:
        raise InputError(f"{path}: {column} must be in percent, the largest is {100 * highest:g}")
    columns = (*places, "accuracy")
    return [dict(zip(columns, (*place, found[place]), strict=True)) for place in found]


def _is_measured(first: int, *others: int) -> bool:
    """Whether a cell of the map is no copy, or an index not interpolated."""
    return first == 0 or first >= 8 if others else first <= 10 or first % 4 == 2


def _find_columns(path: str, names: list[str], architecture: str) -> tuple[str, tuple[str, ...]]:
    """The column with the accuracies of an architecture, and those that name a row."""
    places = next((places for places in _PLACES if {*places} <= {*names}), None)
    if places is None:
        raise InputError(
            f"{path}: needs columns x, y or index, has {', '.join(names)[:200] or 'none'}"
        )
    owners = {name: _ARCHITECTURES.get(name, name.removeprefix("accuracy_")) for name in names}
    owners = {name: owner for name, owner in owners.items() if owner != name}
    columns = [name for name in names if owners.get(name) == architecture]
    if not columns:
        known = ", ".join(owners.values())[:200] or "none"
        raise InputError(f"{path}: has no accuracies of {architecture!r}, has those of {known}")
    for name in (*columns, *places):
        if names.count(name) > 1 or len({*columns}) > 1:
            raise InputError(f"{path}: has several columns for {name!r}: {', '.join(names)[:200]}")
    return columns[0], places


def _number(where: str, text: str, highest: int, whole: bool = False) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not 0 <= value <= highest or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise InputError(f"{where}: must be {kind} in 0 … {highest}, got {text[:50]!r}")
    return value


def compare(table: Table, rows: Rows, shape: tuple[int, int], source: str) -> list[str]:
    """What there is to say about the agreement of measured networks with a published table, line by
    line.
    """
    first, is_map = rows[0], "x" in table[0]
    sigma = 3 if is_map else 1
    setting = first["pooling"], first["sigma"], first["epsilon"], shape
    if setting != ("default", sigma, 1, (32, 32)):
        return [
            f"published at 32x32, σ = {sigma}, ε = 1, with the networks' own pooling: not compared"
        ]
    if source == "dft" and is_map and first["phase"] == "cosine":
        return _compare_map(table, rows, shape)
    if source == "nads" and not is_map:
        return _compare_curve(table, rows)
    return [
        "published are cosine Fourier vectors (columns x, y) or NADs (column index): not compared"
    ]


def _compare_map(table: Table, rows: Rows, shape: tuple[int, int]) -> list[str]:
    own, cells = by_frequency(rows, "test_accuracy", shape), []
    for cell in table:
        frequency = 2 * (cell["y"] - 8), 2 * (cell["x"] - 8)
        place = frequency[0] % shape[0], frequency[1] % shape[1]
        if place in own:
            cells.append((frequency, own[place], cell["accuracy"]))
    if len(cells) < 3:
        return ["fewer than three cells of the published map were measured: not compared"]
    frequencies, *accuracies = zip(*cells, strict=True)
    ours, theirs = map(np.array, accuracies)
    difference = 100 * np.abs(ours - theirs).mean()
    lines = [f"published map, {len(cells)} cells: mean absolute difference {difference:.2f} points"]
    if ours.std() > 0 and theirs.std() > 0:
        learned = theirs >= 0.55
        lines[0] += f", Pearson {np.corrcoef(ours, theirs)[0, 1]:.3f}"
        if learned.sum() > 2:
            correlation = float(rank_correlation(ours[learned], theirs[learned]))
            lines[0] += (
                f", Spearman {correlation:.3f} over the {learned.sum()} cells published at 55% or "
                "more"
            )
    lines.append("largest deviations (row, column frequency): ours, published")
    for place in np.argsort(-np.abs(ours - theirs))[:8]:
        lines.append(f"  {frequencies[place]}: {ours[place]:.1%}, {theirs[place]:.1%}")
    return lines


def _compare_curve(table: Table, rows: Rows) -> list[str]:
    measured = np.array([[row["index"], row["accuracy"]] for row in table]).T
    lines = [
        "NAD index: ours, published (from 50 on the mean of those measured within ±10 indices), "
        "points between"
    ]
    for index, values in sorted(values_by(rows, "index").items()):
        near = np.abs(measured[0] - index) <= (10 if index >= 50 else 0)
        # Where none is near, it is between two measured indices.
        theirs = measured[1, near].mean() if near.any() else np.interp(index, *measured)
        ours = np.mean(values)
        lines.append(f"  {index:5}: {ours:.1%}, {theirs:.1%}, {(ours - theirs) * 100:+.1f}")
    return lines
