"""The table of a benchmark: medians over rounds, and ratios of the same round."""

from typing import Any, NamedTuple

import numpy as np


class Row(NamedTuple):
    """A unit as the table shows it: medians over rounds; ratios are of the same round.

    seconds, baseline, floor: per unit of work. spread: (lowest, highest) of ours. ratio: ours over
      the better of the
    baselines, with its lowest and highest; nan without a baseline. above_floor: ours over the
    floor.
    """

    architecture: str
    label: str
    seconds: float
    spread: tuple[float, float]
    baseline: float
    ratio: tuple[float, float, float]
    floor: float
    above_floor: float
    compile_seconds: float
    peak_bytes: int
    baseline_bytes: int


LABELS = {
    "initialization": "initialization",
    "gradient": "exact gradient",
    "central_difference": "central difference",
    "step": "training step",
    "directions": "{} directions, step of one",
}


def _label(report: dict[str, Any], variant: dict[str, Any]) -> str:
    """What a unit times, and in which way where there are several."""
    label = LABELS[variant["task"]].format(
        report["config"]["num_directions"][variant["architecture"]]
    )
    tasks = {(u["variant"]["architecture"], u["variant"]["task"]) for u in report["units"]}
    if len(tasks) == len(report["units"]):
        return label
    # What earlier versions did not ask for.
    chunk_size, mapping = variant.get("chunk_size", 0), variant.get("mapping", "auto")
    asked = [variant["convolution"], variant["precision"]]
    asked += [mapping] * (mapping != "auto") + [f"{chunk_size} at once"] * (chunk_size > 0)
    return f"{label} ({', '.join(asked)})"


def make_rows(report: dict[str, Any]) -> list[Row]:
    """The rows of a `benchmark.json`; what did not fit the device has none."""
    rows = []
    for unit in report["units"]:
        if "failed" in unit["facts"]:
            continue
        variant = unit["variant"]
        seconds = {name: np.array(times) for name, times in unit["seconds"].items()}
        ours, floor = seconds.pop("ours"), seconds.pop("floor")
        architecture, memory = variant["architecture"], unit["peak_bytes"]
        best = min(seconds, key=lambda name: _median(seconds[name]), default=None)
        theirs = seconds.get(best, np.full(len(ours), np.nan))
        ratio = ours / theirs
        row = Row(
            architecture,
            _label(report, variant),
            _median(ours),
            (float(ours.min()), float(ours.max())),
            _median(theirs),
            (_median(ratio), float(ratio.min()), float(ratio.max())),
            _median(floor),
            _median(ours / floor),
            unit["facts"]["compile_seconds"],
            memory["ours"],
            memory.get(best, 0),
        )
        rows.append(row)
    return rows


def _median(values: np.ndarray) -> float:
    return float(np.median(values))


def _duration(seconds: float) -> str:
    """Two or three digits and a unit."""
    if not np.isfinite(seconds):
        return "–"
    scales = {"s": 1.0, "ms": 1e-3, "µs": 1e-6}
    unit = next((unit for unit in scales if seconds >= 0.995 * scales[unit]), "µs")
    number = seconds / scales[unit]
    return f"{number:.0f} {unit}" if number >= 99.5 else f"{number:.1f} {unit}"


def _ratio(value: float) -> str:
    digits = 3 if value < 0.0995 else 2 if value < 9.995 else 0
    return f"{value:.{digits}f}"


def format_table(report: dict[str, Any]) -> str:
    """The report as Markdown: where it was measured, and a row for each unit."""
    first = report["units"][0]
    theirs = next(
        (unit["baseline"]["library"] for unit in report["units"] if unit["baseline"]), "no PyTorch"
    )
    facts = first["facts"]
    lines = [
        f"{facts['device']}, {first['cores']} cores, {facts['library']}, {theirs}; medians of "
        "rounds that alternate, lowest and highest in parentheses.",
        "",
        "| | | ours | PyTorch | ours / PyTorch | ours / floor | compilation | memory, ours and "
        "PyTorch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in make_rows(report):
        low, high = map(_duration, row.spread)
        ratio = f"{_ratio(row.ratio[0])} ({_ratio(row.ratio[1])}–{_ratio(row.ratio[2])})"
        memory = [f"{size / 1e9:.2g} GB" for size in (row.peak_bytes, row.baseline_bytes) if size]
        cells = (
            row.architecture,
            row.label,
            f"{_duration(row.seconds)} ({low}–{high})",
            _duration(row.baseline),
            ratio if np.isfinite(row.baseline) else "–",
            _ratio(row.above_floor),
            f"{row.compile_seconds:.1f} s",
            ", ".join(memory),
        )
        lines.append(f"| {' | '.join(cells)} |")
    for unit in (unit for unit in report["units"] if "failed" in unit["facts"]):
        variant = unit["variant"]
        cells = variant["architecture"], _label(report, variant), unit["facts"]["failed"]
        lines.append(f"| {' | '.join(cells)} |" + " |" * 5)
    return "\n".join(lines) + "\n"
