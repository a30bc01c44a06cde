"""The looks at the growing ensembles of `time_to_accuracy`: the rows of its table, and what is
printed and drawn of them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from experiments import results
from experiments.run.plan import Arrays
from nad_jax import plotting, summary
from nad_jax.subspaces import subspace_overlap


class Ensemble(NamedTuple):
    """What a unit is.

    variants: what is read off it; a marginalized one twice, where the model states symmetries.
    max_seconds: where it ends, if it does not have all its networks before.
    """

    derivative: str
    variants: tuple[str, ...]
    seed: int
    max_seconds: float

    @property
    def readout(self) -> str:
        """sampled, sampled_<M> (M read-outs a network), marginalized or reference."""
        return self.variants[0]


class Reference(NamedTuple):
    """What ensembles are compared with: the leading directions [K, D] of one of another seed."""

    seed: int
    directions: np.ndarray | None


def make_rows(
    config: ConfigDict, ensemble: Ensemble, arrays: Arrays, reference: Reference
) -> results.Rows:
    """The rows of the table that a unit gives, with the overlaps of its variants with a reference,
    but for what computed it.
    """
    rows, sizes, networks = [], tuple(config.sizes), arrays["networks"]
    for variant in ensemble.variants:
        overlaps = [
            subspace_overlap(leading, reference.directions, sizes) for leading in arrays[variant]
        ]
        overlaps = np.array(arrays.get("split_half_overlap", overlaps))
        if variant.startswith("sampled"):  # so many directions are all that have been seen
            seen = networks * (1 if variant == "sampled" else config.num_readouts)
            overlaps = np.where(np.less_equal.outer(sizes, seen).T, overlaps, np.nan)
        for look in zip(networks, arrays["seconds"], *overlaps.T, strict=True):
            values = (ensemble.derivative, variant, ensemble.seed, reference.seed, *look)
            rows.append(dict(zip(list_columns(config), values, strict=False)))
    return rows


def list_columns(config: ConfigDict) -> tuple[str, ...]:
    """The columns of the table; `reference_seed` is that of the reference a row is compared with."""
    overlaps = (f"overlap_{size}" for size in config.sizes)
    _, *origin = results.PROVENANCE  # the seconds are those of the looks
    return (
        "derivative", "variant", "seed", "reference_seed", "networks", "seconds", *overlaps, *origin,
    )  # fmt: skip


def list_panels(
    config: ConfigDict, rows: results.Rows
) -> Iterator[tuple[plotting.Panel, results.Row, dict[tuple[str, int], results.Rows]]]:
    """Of each derivative and size, (these, the last row of the reference, the rows of each variant
    and seed).
    """
    for derivative, chosen in results.group(rows, lambda row: row["derivative"]).items():
        curves = results.group(chosen, lambda row: (row["variant"], row["seed"]))
        last = curves.pop(("reference", config.reference_seed))[-1]
        for size in config.sizes:
            yield (derivative, size), last, curves


def report(config: ConfigDict, rows: results.Rows) -> None:
    """Prints the first look of each curve that reaches the target; nothing is interpolated."""
    target = config.target_overlap
    until = f"until leading subspaces overlap with the reference by {target}"
    print(f"{config.architecture}: networks and seconds {until}")
    for (derivative, size), last, curves in list_panels(config, rows):
        overlap = f"overlap_{size}"
        halves = f"{last['networks']} networks, halves overlap by {last[overlap]:.3f}"
        print(f"  {derivative}, size {size} (reference: {halves})")
        for (variant, seed), curve in curves.items():
            reached = (row for row in curve if row[overlap] >= target)
            row = next(reached, None) or max(curve, key=lambda row: np.nan_to_num(row[overlap]))
            text = f"{row['networks']:6} networks {row['seconds']:8.2f} s   {row[overlap]:.3f}"
            end = "" if row[overlap] >= target else ", the best: not reached"
            print(f"    {variant:24} seed {seed} {text}{end}")


def plot(config: ConfigDict, rows: results.Rows, missing: str) -> Figure:
    """Overlaps over seconds, a panel for each derivative and size; `missing` ends the title."""
    panels: dict[plotting.Panel, dict[str, list[plotting.Line]]] = {}
    halves: dict[plotting.Panel, float] = {}
    for panel, last, curves in list_panels(config, rows):
        derivative, size = panel
        named = summary.name_derivative(derivative, config.step), size
        overlap, lines = f"overlap_{size}", panels.setdefault(named, {})
        halves[named] = last[overlap]
        for (variant, _), curve in curves.items():
            points = np.transpose([(row["seconds"], row[overlap]) for row in curve])
            lines.setdefault(variant, []).append(tuple(points))
    title = f"{config.architecture}: leading subspaces against a reference of "
    title += f"{config.reference_networks} networks{missing}"
    return plotting.plot_time_to_accuracy(panels, halves, config.target_overlap, title)
