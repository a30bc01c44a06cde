"""Comparison with the accuracies published with the paper's code, as tables of one row per direction.

Maps have columns x, y and accuracy_<architecture> (percent): cell (x, y) is the real DFT vector of frequency
(2(y − 8), 2(x − 8)); columns x = 1 … 7 are copies of 15 … 9. Curves have columns index and accuracy_<architecture>;
NADs 0 … 10, 14, 18, … were measured, the others interpolated.
"""

import csv
import io

import numpy as np

from experiments.results import Row, by_frequency
from nad_jax import store
from nad_jax.errors import InputError
from nad_jax.subspaces import rank_correlation


def read_table(path: str, architecture: str) -> list[dict[str, float]]:
    """The measured rows of a published table, as numbers, accuracy in [0, 1]; raises `InputError` naming the file."""
    column = f"accuracy_{architecture}"
    reader = csv.DictReader(io.StringIO(store.read_text(path)))
    names = reader.fieldnames or []
    if column not in names or not ({"x", "y"} <= set(names) or "index" in names):
        raise InputError(f"{path}: needs columns {column!r} and 'x', 'y' or 'index', has {', '.join(names) or 'none'}")
    rows = []
    for number, row in enumerate(reader, start=2):
        try:
            place = {name: int(row[name]) for name in ("x", "y", "index") if name in names}
            rows.append({**place, "accuracy": float(row[column]) / 100})
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: line {number}: {error}") from error
    if "index" in names:
        rows = [row for row in rows if row["index"] <= 10 or (row["index"] - 10) % 4 == 0]
    else:
        rows = [row for row in rows if row["x"] == 0 or row["x"] >= 8]
    if not rows:
        raise InputError(f"{path}: holds no measured accuracies")
    return rows


def compare(table: list[dict[str, float]], rows: list[Row], shape: tuple[int, int], source: str) -> list[str]:
    """What there is to say about the agreement of measured networks with a published table, line by line."""
    first, sigma = rows[0], 3 if "x" in table[0] else 1
    if (first["pooling"], first["sigma"], first["epsilon"]) != ("default", sigma, 1) or shape != (32, 32):
        return [f"published at 32x32, σ = {sigma}, ε = 1, with the networks' own pooling: not compared"]
    if source == "dft" and "x" in table[0] and first["phase"] == "cosine":
        return _compare_map(table, rows, shape)
    if source == "nads" and "index" in table[0]:
        return _compare_curve(table, rows)
    return ["published are cosine Fourier vectors (columns x, y) or NADs (column index): not compared"]


def _compare_map(table: list[dict[str, float]], rows: list[Row], shape: tuple[int, int]) -> list[str]:
    height, width = shape
    own = by_frequency(rows, "test_accuracy", shape)
    cells = [(2 * (row["y"] - 8), 2 * (row["x"] - 8), row["accuracy"]) for row in table]
    cells = [(r, c, accuracy) for r, c, accuracy in cells if (r % height, c % width) in own]
    if len(cells) < 3:
        return ["fewer than three cells of the published map were measured: not compared"]
    ours = np.array([own[r % height, c % width] for r, c, _ in cells])
    theirs = np.array([accuracy for _, _, accuracy in cells])
    difference = 100 * np.abs(ours - theirs).mean()
    lines = [f"published map, {len(cells)} cells: mean absolute difference {difference:.2f} points"]
    if ours.std() > 0 and theirs.std() > 0:
        learned = theirs >= 0.55
        lines[0] += f", Pearson {np.corrcoef(ours, theirs)[0, 1]:.3f}"
        if learned.sum() > 2:
            correlation = float(rank_correlation(ours[learned], theirs[learned]))
            lines[0] += f", Spearman {correlation:.3f} over the {learned.sum()} cells published at 55% or more"
    lines.append("largest deviations (row, column frequency): ours, published")
    for place in np.argsort(-np.abs(ours - theirs))[:8]:
        row, column, _ = cells[place]
        lines.append(f"  ({row}, {column}): {ours[place]:.1%}, {theirs[place]:.1%}")
    return lines


def _compare_curve(table: list[dict[str, float]], rows: list[Row]) -> list[str]:
    own: dict[int, list[float]] = {}
    for row in rows:
        own.setdefault(row["index"], []).append(row["test_accuracy"])
    lines = ["NAD index: ours, published (from 50 on the mean of those measured within ±10 indices), points between"]
    for index, values in sorted(own.items()):
        reach = 10 if index >= 50 else 0
        near = [row["accuracy"] for row in table if abs(row["index"] - index) <= reach]
        if not near:  # between two measured indices
            near = [np.interp(index, [row["index"] for row in table], [row["accuracy"] for row in table])]
        ours, theirs = np.mean(values), np.mean(near)
        lines.append(f"  {index:5}: {ours:.1%}, {theirs:.1%}, {(ours - theirs) * 100:+.1f}")
    return lines
