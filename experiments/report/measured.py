"""What is read of the folders that the commands of the report leave: numbers, as JSON values."""

import contextlib
import json
import operator
import statistics
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from experiments import directional_bias, flip_cifar, poison_cifar, published, results
from experiments.run.origin import parse_object
from nad_jax import records, store
from nad_jax.errors import InputError
from nad_jax.subspaces import rank_correlation

Numbers = dict[str, Any]  # of an item, JSON values
SHAPE = (32, 32)  # of the images
SIZES = (1, 4, 16, 64, 256)  # of subspaces
INDICES = (0, 10, 100, 500)  # at which singular values are compared


def read_times(folder: Path) -> Numbers:
    """The seconds of the units of a run folder, of all processes that computed some."""
    compiled = computed = 0.0
    for path in sorted((folder / "progress").glob("*.jsonl")):
        for line in store.read_text(path).splitlines():
            with contextlib.suppress(InputError):  # a line that a killed process has not finished
                said = parse_object(path, line)
                if said["event"] == "unit":
                    compiled += said["compile_seconds"]
                    computed += said["seconds"]
    return {"compile_seconds": compiled, "compute_seconds": computed}


def find_table(folder: Path | None, architecture: str) -> Path | None:
    """The first table of a folder that is a published accuracy map of an architecture, if any."""
    for path in sorted(folder.glob("*.csv")) if folder else ():
        try:
            table = published.read_table(str(path), architecture)
        except InputError:
            continue
        if "x" in table[0]:
            return path
    return None


def read_map(
    folder: Path, table: Path | None, architecture: str, along: Iterable[tuple[int, int]]
) -> Numbers:
    """Accuracies on D(v), cosine Fourier vectors: of all, along some, against a published map."""
    rows = results.read_results(folder / "results.csv", directional_bias.COLUMNS)
    cosine = [row for row in rows if row["phase"] == "cosine"]
    accuracies = [row["test_accuracy"] for row in cosine]
    own = results.by_frequency(cosine, "test_accuracy", SHAPE)
    found: Numbers = {
        "networks": len(rows),
        "diverged": sum(row["diverged_at"] >= 0 for row in rows),
        "mean": statistics.fmean(accuracies),
        "highest": max(accuracies),
        "share_at_90": statistics.fmean(accuracy >= 0.9 for accuracy in accuracies),
        "along": {f"{r},{c}": own[r, c] for r, c in along if (r, c) in own},
        **read_times(folder),
    }
    if table:
        found["published"] = compare_map(published.read_table(str(table), architecture), own)
    return found


def compare_map(table: published.Table, own: dict[tuple[int, int], float]) -> Numbers:
    """A published accuracy map against our accuracies by frequency: how many cells, mean absolute
    difference in points, Pearson's correlation, and Spearman's over those published at 55 % or
    more; None where it is not defined.
    """
    height, width = SHAPE
    cells = []
    for cell in table:
        place = 2 * (cell["y"] - 8) % height, 2 * (cell["x"] - 8) % width
        if place in own:
            cells.append((own[place], cell["accuracy"]))
    ours, theirs = np.array(cells).reshape(-1, 2).T
    learned = theirs >= 0.55
    difference = float(100 * np.abs(ours - theirs).mean()) if cells else None
    found: Numbers = {"cells": len(cells), "mean_difference": difference, "pearson": None}
    if len(cells) > 2 and ours.std() > 0 and theirs.std() > 0:
        found["pearson"] = float(np.corrcoef(ours, theirs)[0, 1])
    ranks = float(rank_correlation(ours[learned], theirs[learned])) if learned.sum() > 2 else np.nan
    found["spearman"] = ranks if np.isfinite(ranks) else None
    return found


def read_torch(folder: Path) -> Numbers:
    """Seconds and accuracies of networks that PyTorch has trained."""
    path = folder / "networks.json"
    report = parse_object(path, store.read_text(path))
    networks, settings = report["networks"], report["settings"]
    return {
        "library": settings["library"],
        "machine": settings["machine"],
        "networks": len(networks),
        "seconds_a_network": statistics.median(one["seconds"] for one in networks),
        "along": {"{},{}".format(*one["frequency"]): one["test_accuracy"] for one in networks},
    }


def read_tests(folder: Path, modules: Iterable[str]) -> Numbers:
    """How many tests passed, failed and were skipped, the names of those that failed, and of
    modules that came to no end in their time.
    """
    counts, failures, paths = {"passed": 0, "failed": 0, "skipped": 0}, [], []
    for module in modules:
        path = folder / f"{module}.xml"
        if path.exists():
            paths.append(path)
        else:
            failures.append(f"{module}: not done in its time")
    for path in paths:
        for case in ElementTree.fromstring(store.read_text(path)).iter("testcase"):
            outcomes = {child.tag for child in case}
            failed = bool(outcomes & {"failure", "error"})
            kind = "failed" if failed else "skipped" if "skipped" in outcomes else "passed"
            counts[kind] += 1
            failures += [f"{path.stem}: {case.get('name')}"] * failed
    if not counts["passed"]:
        raise InputError(f"{folder}: no test has passed: {failures[:1] or 'none was run'}")
    return {**counts, "failures": failures}


def read_benchmark(folder: Path) -> Numbers:
    """The timings of a benchmark, medians over rounds: of a unit of work ours, the better
    baseline's and the floor's seconds; and the rates of arithmetic of a step and of products.
    """
    path = folder / "benchmark.json"
    rows = []
    for unit in parse_object(path, store.read_text(path))["units"]:
        row = {**unit["variant"], "failed": unit["facts"].get("failed")}
        row["automatic"] = row["chunk_size"] == 0
        if row["failed"] is None:
            medians = {name: statistics.median(t) for name, t in unit["seconds"].items()}
            row["chunk_size"] = unit["facts"]["chunk_size"]
            row["seconds"], row["floor"] = medians.pop("ours"), medians.pop("floor")
            row["baseline"] = min(medians.values(), default=None)
            row["operations"] = unit["facts"]["operations"]
            row["numbers"] = unit["facts"]["numbers"]
            row["compile_seconds"] = unit["facts"]["compile_seconds"]
            row["peak_bytes"] = unit["peak_bytes"]["ours"]
        rows.append(row)
    if all(row["failed"] for row in rows):
        raise InputError(f"{folder}: nothing fits the memory")
    return {"rows": rows}


def read_nads(folder: Path) -> Numbers:
    """How sure NADs are, and how well they agree with those that they were compared with."""
    record = records.load_nads(folder / "nads.npz")
    sizes, overlap = record.overlap_sizes.tolist(), record.split_half_overlap.tolist()
    found: Numbers = {
        "networks": record.num_networks,
        "diverged": record.config.get("diverged", 0),
        "chunk_size": record.config["chunk_size"],
        "split_half": _chosen(sizes, overlap),
        **read_times(folder),
    }
    path = folder / "comparison.npz"
    compared = store.read_npz(path) if path.exists() else {}
    if "overlap" in compared:
        sizes, overlap = (compared[name].tolist() for name in ("overlap_sizes", "overlap"))
        found["published"] = _chosen(sizes, overlap)
    if "singular_values" in compared:
        own, theirs = compared["singular_values"], compared["compared_singular_values"]
        places = [index for index in INDICES if index < len(theirs) and theirs[index] > 0]
        found["singular_value_ratio"] = {str(i): float(own[i] / theirs[i]) for i in places}
    return found


def read_leading(folder: Path) -> Numbers:
    """How sure leading NADs are, and what the last pass has changed."""
    record = records.load_nads(folder / "nads.npz")
    sizes, overlap = record.overlap_sizes.tolist(), record.split_half_overlap.tolist()
    found = {"networks": record.num_networks, "chunk_size": record.config["chunk_size"]}
    found["split_half"] = _chosen(sizes, overlap)
    if len(record.pass_overlap):
        changed = 1 - record.pass_overlap[-1]
        found["changed"] = _chosen(sizes, changed.tolist())
    # Units of earlier passes count, too.
    return {**found, **read_times(folder)}


def _chosen(sizes: list[int], overlap: list[float]) -> Numbers:
    """The overlaps of `SIZES` by their size, without those that are not known."""
    pairs = zip(sizes, overlap, strict=True)
    return {str(size): value for size, value in pairs if size in SIZES and np.isfinite(value)}


def read_cifar(folder: Path, recipe: str) -> Numbers:
    """Test accuracies on CIFAR-10, means over seeds: by basis, or by NAD index ("clean" for
    none).
    """
    columns, name = {
        "flip_cifar": (flip_cifar.COLUMNS, "basis"),
        "poison_cifar": (poison_cifar.COLUMNS, "nad_index"),
    }[recipe]
    rows = results.read_results(folder / "results.csv", columns)
    groups = results.group(rows, operator.itemgetter(name))
    means = {
        "clean" if key == "" else str(key): statistics.fmean(r["test_accuracy"] for r in group)
        for key, group in groups.items()
    }
    diverged = sum(row["diverged_at"] >= 0 for row in rows)
    return {"networks": len(rows), "diverged": diverged, "by": means, **read_times(folder)}


def read_report(path: Path) -> list[Numbers]:
    """The records of a report; none where there is no file."""
    if not path.exists():
        return []
    found = parse_object(path, store.read_text(path)).get("records")
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise store.DamagedError(f"{path}: must hold a list of records")
    return found


def write_report(path: Path, found: list[Numbers]) -> None:
    """Writes the records of a report."""
    store.write_text(path, json.dumps({"records": found}, indent=1) + "\n")
