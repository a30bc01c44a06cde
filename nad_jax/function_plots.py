"""Figures of untrained networks as functions: their classes, geometry and spectrum, from arrays."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from nad_jax.figures import (
    GRAY,
    INK,
    PAGE,
    PrintedFigure,
    add_legend,
    series,
    set_title,
    styled,
)
from nad_jax.plotting import set_index_axis
from nad_jax.spectrum_metrics import Metric

_BINS = 20
_LETTERS = 33  # of a line of a name
_TICKS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500)  # cycles per side
_DOTS = {
    "largest": "share of the preferred class",
    "effective_rank": "effective rank (share of $D$)",
    "frequency": "mean frequency",
}

_MARKS = {  # of planes
    "nads": {"color": INK, "marker": "o"},
    "random": {"color": INK, "marker": "s", "markerfacecolor": "none"},
}


class Orders(NamedTuple):
    """What one ensemble says in three orders.

    positive: [N] the share of inputs that each network calls positive. eigenvalues: [D], descending.
    shares: the mean share of each frequency on the plane of NADs 0 and 1, and its error, [R + 1].
    measures: numbers by name, the effective rank as a share of D.
    """

    positive: np.ndarray
    eigenvalues: np.ndarray
    shares: tuple[np.ndarray, np.ndarray]
    measures: Mapping[str, Metric]


@styled
def plot_orders(
    orders: Mapping[str, Orders], num_curves: int, linear: np.ndarray, title: str
) -> Figure:
    """Above, of the first few ensembles, how many networks call which share of inputs positive, the
    eigenvalues as multiples of their mean, and the spectrum on the plane of NADs 0 and 1 as multiples
    of that of a linear function; below numbers of all ensembles.

    linear: the shares of a linear function, [R + 1], zero beyond the axes.
    """
    labels = [_break(name) for name in orders]
    heights = [2.0, 0.5 + (0.17 if any("\n" in one for one in labels) else 0.13) * len(orders)]
    figure = PrintedFigure(figsize=(PAGE, sum(heights)), layout="constrained")
    set_title(figure, title)
    above, below = figure.subfigures(
        2, 1, height_ratios=heights
    )  # names narrow the lower one alone
    shown = {name: orders[name] for name in list(orders)[:num_curves]}
    handles = _plot_curves(above.subplots(1, 3), shown, linear)
    frequency = float(linear @ np.arange(len(linear)) / (len(linear) - 1))
    handles |= _plot_numbers(below.subplots(1, 3, sharey=True), orders, frequency)
    panel = below.axes[0]
    panel.set_yticks(range(len(labels)), labels, linespacing=0.9)
    panel.set_ylim(len(labels) - 0.5, -0.5)
    add_legend(figure, handles)
    return figure


def _break(name: str) -> str:
    """A long name in two lines, broken behind a comma."""
    head, comma, tail = name[:_LETTERS].rpartition(",")
    return name if len(name) <= _LETTERS or not comma else f"{head},\n{tail}{name[_LETTERS:]}"


def _plot_curves(
    panels: np.ndarray, orders: Mapping[str, Orders], linear: np.ndarray
) -> dict[str, object]:
    """The three upper panels; the handles of their legend."""
    classes, geometry, spectrum = panels
    bins, handles = np.linspace(0, 1, _BINS + 1), {}
    for number, (name, one) in enumerate(orders.items()):
        style = {**series(number), "markersize": 2}
        counts = np.histogram(one.positive, bins)[0] / len(one.positive) * _BINS
        (handles[name],) = classes.plot((bins[1:] + bins[:-1]) / 2, counts, **style)
        relative = one.eigenvalues / one.eigenvalues.mean()
        kept = np.flatnonzero(relative > 1e-6 * relative[0])  # what is below is rounding
        few = np.unique(np.geomspace(1, len(kept), 6).astype(int)) - 1
        geometry.plot(kept, relative[kept], markevery=few.tolist(), **style)
        radius, thin = np.flatnonzero(linear), {"linewidth": 0.9, "capsize": 1.5}
        ratio, error = (part[radius] / linear[radius] for part in one.shares)
        if np.isfinite(error).all():
            spectrum.errorbar(radius, ratio, error, **{**style, **thin})
    classes.axhline(1.0, color=GRAY, linewidth=0.6)
    classes.set(xlabel="share of inputs called positive", ylabel="density of networks")
    classes.set_title("order 0: classes")
    size = max(len(one.eigenvalues) for one in orders.values())
    set_index_axis(geometry, size - 1)
    geometry.axhline(1.0, color=GRAY, linewidth=0.6)
    geometry.set(yscale="log", ylabel=r"$\lambda_i \, D \,/\, \mathrm{tr}\,G$")
    geometry.set_title("order 1: geometry")
    spectrum.axhline(1.0, color=GRAY, linewidth=0.6)
    spectrum.set(xscale="log", xlabel="cycles per side", ylabel="amplitude (linear: 1)")
    ticks = [one for one in _TICKS if linear[one:].any()]
    spectrum.set_xticks(ticks, map(str, ticks))
    spectrum.xaxis.set_minor_locator(NullLocator())
    spectrum.set_title("spectrum, plane of NADs 0 and 1")
    return handles


def _plot_numbers(
    panels: np.ndarray, orders: Mapping[str, Orders], linear: float
) -> dict[str, object]:
    """The three lower panels: a row of numbers with their errors for each ensemble; the handles of
    their legend.
    """
    largest, rank, frequency = panels
    _draw_dots(largest, orders, "largest", _MARKS["nads"])
    _draw_dots(rank, orders, "effective_rank", _MARKS["nads"])
    handles = {
        label: _draw_dots(frequency, orders, f"frequency_{plane}", _MARKS[plane])
        for label, plane in (("plane of NADs 0 and 1", "nads"), ("random planes", "random"))
    }
    frequency.axvline(linear, color=GRAY, linewidth=0.8, linestyle="--")
    for place, one in enumerate(orders.values()):
        measured = [sem for name, (_, sem) in one.measures.items() if name.startswith("frequency")]
        if not np.isfinite(measured).any():
            where = {"transform": frequency.get_yaxis_transform(), "va": "center", "ha": "center"}
            frequency.text(0.5, place, "constant", fontsize=6, color=GRAY, **where)
    for panel, label in zip(panels, _DOTS.values(), strict=True):
        panel.set_xlabel(label)
        panel.grid(axis="x", linewidth=0.4)
    largest.set_xlim(0.5, 1.02)
    rank.set_xlim(left=0.0)
    return handles


def _draw_dots(
    axes: Axes, orders: Mapping[str, Orders], name: str, style: dict[str, str]
) -> object:
    """Numbers with their errors; one whose error is unknown, of a single network, is left out."""
    values, sem = np.array([one.measures[name] for one in orders.values()], float).T
    kept = np.flatnonzero(np.isfinite(sem))
    return axes.errorbar(
        values[kept], kept, xerr=sem[kept], linestyle="", markersize=3, capsize=2, **style
    )
