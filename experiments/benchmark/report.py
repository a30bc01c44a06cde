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


def make_rows(report: dict[str, Any]) -> list[Row]:
    """The rows of a `benchmark.json`."""
    tasks = [(unit["variant"]["architecture"], unit["variant"]["task"]) for unit in report["units"]]
    several = len(set(tasks)) < len(tasks)
    rows = []
    for unit in report["units"]:
        variant, seconds = (
            unit["variant"],
            {name: np.array(times) for name, times in unit["seconds"].items()},
        )
        ours, floor = seconds.pop("ours"), seconds.pop("floor")
        label = LABELS[variant["task"]].format(
            report["config"]["num_directions"][variant["architecture"]]
        )
        if several:
            label += f" ({variant['convolution']}, {variant['precision']})"
        best = min(seconds, key=lambda name: np.median(seconds[name])) if seconds else None
        theirs = seconds[best] if best else np.full(len(ours), np.nan)
        ratio = ours / theirs
        rows.append(
            Row(
                variant["architecture"],
                label,
                float(np.median(ours)),
                (float(ours.min()), float(ours.max())),
                float(np.median(theirs)),
                (float(np.median(ratio)), float(ratio.min()), float(ratio.max())),
                float(np.median(floor)),
                float(np.median(ours / floor)),
                unit["facts"]["compile_seconds"],
                unit["peak_bytes"]["ours"],
                unit["peak_bytes"].get(best, 0),
            )
        )
    return rows


def _duration(seconds: float) -> str:
    """Two or three digits and a unit."""
    if not np.isfinite(seconds):
        return "–"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= 0.995 * scale or unit == "µs":
            return f"{_digits(seconds / scale)} {unit}"
    raise AssertionError


def _digits(number: float) -> str:
    return f"{number:.0f}" if number >= 99.5 else f"{number:.1f}"


def _ratio(value: float) -> str:
    return (
        f"{value:.2f}"
        if 0.0995 <= value < 9.995
        else f"{value:.3f}"
        if value < 1
        else f"{value:.0f}"
    )


def format_table(report: dict[str, Any]) -> str:
    """The report as Markdown: where it was measured, and a row for each unit."""
    first = report["units"][0]
    theirs = next(
        (unit["baseline"]["library"] for unit in report["units"] if unit["baseline"]), "no PyTorch"
    )
    lines = [
        f"{first['facts']['device']}, {first['cores']} cores, {first['facts']['library']}, "
        f"{theirs}; medians of "
        "rounds that alternate, lowest and highest in parentheses.",
        "",
        "| | | ours | PyTorch | ours / PyTorch | ours / floor | compilation | memory, ours and "
        "PyTorch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in make_rows(report):
        low, high = map(_duration, row.spread)
        ratio = f"{_ratio(row.ratio[0])} ({_ratio(row.ratio[1])}–{_ratio(row.ratio[2])})"
        memory = f"{row.peak_bytes / 1e9:.2g} GB" + (
            f", {row.baseline_bytes / 1e9:.2g} GB" if row.baseline_bytes else ""
        )
        cells = (
            row.architecture,
            row.label,
            f"{_duration(row.seconds)} ({low}–{high})",
            _duration(row.baseline),
            ratio if np.isfinite(row.baseline) else "–",
            _ratio(row.above_floor),
            f"{row.compile_seconds:.1f} s",
            memory,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
