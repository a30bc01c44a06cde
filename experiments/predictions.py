"""The tables of `predictors`: accuracies and energies of what is stored, their rank correlations, and
what is printed and drawn of them.
"""

import math
from typing import NamedTuple

import numpy as np

from experiments import geometry, results
from experiments.cases import Geometry, Trained
from experiments.run.folder import Folder
from experiments.run.progress import read_seconds
from nad_jax.moments import State, is_zero, second_moment
from nad_jax.prediction import RankCorrelations, rank_correlations, tie_levels
from nad_jax.subspaces import rank_correlation

COLUMNS = (
    "architecture", "derivative", "point", "num_directions", "num_epochs", "num_seeds",
    "num_networks", "rank_correlation", "rank_correlation_sem", "best_share", "split_half",
    "num_learned", "lowest_accuracy", "highest_accuracy", "note", *results.PROVENANCE,
)  # fmt: skip
DIRECTION_COLUMNS = (
    "architecture", "derivative", "point", "frequency_row", "frequency_column", "phase",
    "direction", "energy", "energy_even", "energy_odd", "test_accuracy", "test_accuracy_sem",
    "num_seeds",
)  # fmt: skip
LEARNED = 0.99  # from this accuracy on a direction counts as learned completely
Accuracies = dict[str, list[float]]  # of each direction by its name, one for each seed


class Energies(NamedTuple):
    """vᵀGv of the directions [K] that have an accuracy.

    energies: [3, K], of the whole ensemble, of its even and of its odd networks. note: why they
      predict nothing, "" where they may. num_networks: of the ensemble.
    """

    geometry: Geometry
    num_networks: int
    energies: np.ndarray
    note: str


def read_accuracies(folder: Folder, part: Trained) -> Accuracies:
    """The test accuracies that are stored, in the order of the directions."""
    found: Accuracies = {name: [] for name in part.names}
    for member in part.list_members():
        arrays = folder.read(member)
        if arrays is not None:
            for name, accuracy in zip(member.what.names, arrays["test_accuracy"], strict=True):
                found[name].append(float(accuracy))
    return {name: seeds for name, seeds in found.items() if seeds}


def measure_energies(part: Geometry, state: State, rows: np.ndarray) -> np.ndarray:
    """vᵀGv [K] of directions [K, D], rows; G is that of a state, its mean over those pixels that
    are exactly alike to the law of the network.
    """
    matrix, blocks = second_moment(state), part.blocks
    if blocks.count:
        matrix = blocks.lift(blocks.average(matrix))
    return np.einsum("kd,kd->k", rows @ matrix, rows)


def read_energies(folder: Folder, part: Geometry, reason: str, rows: np.ndarray) -> Energies | None:
    """vᵀGv of directions [K, D], rows; None where nothing is stored of the ensemble yet."""
    unknown = np.full((3, len(rows)), np.nan)
    if reason:
        return Energies(part, 0, unknown, reason)
    ensemble = part.ensemble
    looks, _ = geometry.merge(folder, part.list_members(), ensemble)
    halves = looks[-1]
    if geometry.is_empty(halves):
        return None
    if is_zero(halves):
        return Energies(part, int(halves.networks), unknown, "every derivative is exactly zero")
    if not (int(halves.even.count) and int(halves.odd.count)):
        note = "no derivative of a half of the ensemble is finite"
        return Energies(part, int(halves.networks), unknown, note)
    states = ensemble.accumulator.merge(halves.even, halves.odd), halves.even, halves.odd
    energies = np.stack([measure_energies(part, state, rows) for state in states])
    note = "" if tie_levels(energies[0]).any() else "all vᵀGv are equal"
    return Energies(part, int(halves.networks), energies, note)


def correlate(
    energies: list[Energies], accuracies: np.ndarray, num_bootstrap: int
) -> RankCorrelations:
    """The rank correlations of geometries with accuracies [K]; nan of those that have a note."""
    found = RankCorrelations(*np.full((3, len(energies)), np.nan))
    usable = [k for k, one in enumerate(energies) if not one.note]
    if usable:
        levels = np.stack([tie_levels(energies[k].energies[0]) for k in usable])
        known = rank_correlations(levels, accuracies, num_bootstrap)
        for whole, part in zip(found, known, strict=True):
            whole[usable] = part
    return found


def _describe(accuracies: np.ndarray, num_learned: int) -> list[str]:
    """What is to be said of accuracies that tell little."""
    if num_learned == 0:
        return ["no direction is learned"]
    if accuracies.min() >= LEARNED:
        return [f"every direction is learned to {LEARNED:.0%}"]
    return []


def make_rows(
    folder: Folder, part: Trained, accuracies: Accuracies, energies: list[Energies]
) -> results.Rows:
    """A row for each geometry of an architecture."""
    config, means = part.config, np.array([np.mean(seeds) for seeds in accuracies.values()])
    fewest = min(map(len, accuracies.values()))
    # Three standard errors of guesses above a half.
    chance = 0.5 + 3.0 * math.sqrt(0.25 / (config.num_test * fewest))
    num_learned = int((means > chance).sum())
    said = {"architecture": config.architecture, "num_directions": len(means)}
    said |= {"num_epochs": config.num_epochs, "num_seeds": fewest, "num_learned": num_learned}
    said |= {"lowest_accuracy": float(means.min()), "highest_accuracy": float(means.max())}
    correlations = correlate(energies, means, config.num_bootstrap)
    seconds, rows = read_seconds(folder.workdir), []
    for one, value, sem, share in zip(energies, *correlations, strict=True):
        row = {**said, "derivative": one.geometry.config.derivative, "point": one.geometry.point}
        row |= {"num_networks": one.num_networks, "rank_correlation": float(value)}
        row |= {"rank_correlation_sem": float(sem), "best_share": float(share)}
        row["split_half"] = _correlate_halves(one)
        equal = ["all accuracies are equal"] * (not one.note and math.isnan(value))
        row["note"] = "; ".join(filter(None, [one.note, *equal, *_describe(means, num_learned)]))
        rows.append({**row, **_read_provenance(folder, part, one, seconds)})
    return rows


def _correlate_halves(one: Energies) -> float:
    """The rank correlation of vᵀGv between the halves of an ensemble; nan where all are equal."""
    if one.note:
        return math.nan
    _, even, odd = map(tie_levels, one.energies)
    return float(rank_correlation(even, odd))


def _read_provenance(
    folder: Folder, part: Trained, one: Energies, seconds: dict[str, float]
) -> results.Row:
    """What computed the networks of a row, and the seconds of each of its ensemble's."""
    ensemble = one.geometry.list_members() if one.num_networks else []
    said = geometry.join_origins(folder.read_origins([*part.list_members(), *ensemble]))
    took = [seconds[f"{m.folder},{m.name}"] for m in ensemble if f"{m.folder},{m.name}" in seconds]
    row = results.provenance(said, "this")
    return {**row, "seconds": float(np.mean(took)) if took else ""}


def list_directions(
    part: Trained, accuracies: Accuracies, energies: list[Energies]
) -> results.Rows:
    """A row for each direction of each geometry of an architecture."""
    places = [p for p in part.directions.coordinates if p["direction"] in accuracies]
    rows = []
    for one in energies:
        said = {"architecture": part.config.architecture, "point": one.geometry.point}
        said["derivative"] = one.geometry.config.derivative
        for place, energy in zip(places, one.energies.T, strict=True):
            seeds = accuracies[place["direction"]]
            mean, error = results.mean_and_error(seeds)
            row = {**said, **{n: place[n] for n in DIRECTION_COLUMNS if n in place}}
            row |= dict(zip(("energy", "energy_even", "energy_odd"), energy, strict=True))
            row |= {"test_accuracy": mean, "test_accuracy_sem": error, "num_seeds": len(seeds)}
            rows.append(row)
    return rows


def report(rows: results.Rows) -> None:
    """Prints the table as the reader of a log wants it."""
    for architecture, group in results.group(rows, lambda row: row["architecture"]).items():
        first = group[0]
        print(
            f"{architecture}: {first['num_directions']} directions, {first['num_epochs']} epochs, "
            f"test accuracy {first['lowest_accuracy']:.1%} … {first['highest_accuracy']:.1%}, "
            f"{first['num_learned']} directions above chance"
        )
        print("  rank correlation of vᵀGv with accuracy ± bootstrap, best in, halves")
        for row in group:
            value, sem = row["rank_correlation"], row["rank_correlation_sem"]
            numbers = (
                f"{value:5.2f} ± {sem:.2f}  {row['best_share']:4.0%}  {row['split_half']:5.2f}"
            )
            numbers = "  nan" if math.isnan(value) else numbers
            note = f"  {row['note']}" if row["note"] else ""
            print(f"  {row['derivative']:18} {row['point']:6} {numbers}{note}")


def list_bars(rows: results.Rows) -> dict[str, dict[str, tuple[float, float]]]:
    """(rank correlation, its error) of each predictor, by architecture and what it is called."""
    groups = results.group(rows, lambda row: row["architecture"])
    return {
        f"{name}\n{group[0]['num_directions']} directions": {
            f"{row['derivative'].replace('_', ' ')}, {row['point']}": (
                row["rank_correlation"],
                row["rank_correlation_sem"],
            )
            for row in group
        }
        for name, group in groups.items()
    }
