"""Figures of untrained networks as functions: their classes, geometry and spectrum, from arrays."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nad_jax.figures import (
    COLORS,
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
_DOTS = {
    "largest": "share of the preferred class",
    "effective_rank": "effective rank (share of $D$)",
    "frequency": "mean frequency",
}


class Orders(NamedTuple):
    """What one ensemble says in three orders.

    positive: [N] the share of inputs that each network calls positive. eigenvalues: [D], descending.
    spectra: by plane, "nads" and "random", the mean share of each frequency and its error, [R + 1].
    measures: numbers by name, the effective rank as a share of D.
    """

    positive: np.ndarray
    eigenvalues: np.ndarray
    spectra: Mapping[str, tuple[np.ndarray, np.ndarray]]
    measures: Mapping[str, Metric]


@styled
def plot_orders(orders: Mapping[str, Orders], num_curves: int, linear: float, title: str) -> Figure:
    """Above, of the first few ensembles, how many networks call which share of inputs positive, the
    eigenvalues as multiples of their mean, and the spectrum; below numbers of all ensembles.

    linear: the mean frequency of a linear function.
    """
    heights = [2.2, 0.5 + 0.13 * len(orders)]
    figure = PrintedFigure(figsize=(PAGE, sum(heights)), layout="constrained")
    set_title(figure, title)
    panels = figure.subplots(2, 3, height_ratios=heights)
    shown = {name: orders[name] for name in list(orders)[:num_curves]}
    handles = _plot_curves(panels[0], shown)
    for place in (0, 1):
        panels[1, place + 1].sharey(panels[1, 0])
    _plot_numbers(panels[1], orders, linear)
    add_legend(figure, handles)
    return figure


def _plot_curves(panels: np.ndarray, orders: Mapping[str, Orders]) -> dict[str, object]:
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
        for plane, (shares, sem) in one.spectra.items():
            line = "-" if plane == "nads" else ":"
            radius = np.arange(1, len(shares))
            spectrum.plot(radius, shares[1:], color=style["color"], linestyle=line, linewidth=1)
            low, high = shares[1:] - sem[1:], shares[1:] + sem[1:]
            spectrum.fill_between(radius, low, high, color=style["color"], alpha=0.25, linewidth=0)
    handles["plane of NADs 0 and 1"] = spectrum.plot([], [], color=INK)[0]
    handles["random planes"] = spectrum.plot([], [], color=INK, linestyle=":")[0]
    classes.axhline(1.0, color=GRAY, linewidth=0.6)
    classes.set(xlabel="share of inputs called positive", ylabel="density of networks")
    classes.set_title("order 0: classes")
    size = max(len(one.eigenvalues) for one in orders.values())
    set_index_axis(geometry, size - 1)
    geometry.axhline(1.0, color=GRAY, linewidth=0.6)
    geometry.set(yscale="log", ylabel=r"$\lambda_i \, D \,/\, \mathrm{tr}\,G$")
    geometry.set_title("order 1: geometry")
    spectrum.set(xscale="log", yscale="log", xlabel="cycles per side", ylabel="share of amplitude")
    spectrum.set_title("spectrum of the function")
    return handles


def _plot_numbers(panels: np.ndarray, orders: Mapping[str, Orders], linear: float) -> None:
    """The three lower panels: a row of numbers with their errors for each ensemble."""
    places = np.arange(len(orders))
    for panel, (name, label) in zip(panels, _DOTS.items(), strict=True):
        if name == "frequency":
            _draw_dots(panel, orders, "frequency_nads", places, {"color": COLORS[0], "marker": "o"})
            style = {"color": COLORS[1], "marker": "s", "markerfacecolor": "none"}
            _draw_dots(panel, orders, "frequency_random", places, style)
            panel.axvline(linear, color=GRAY, linewidth=0.8, linestyle="--")
        else:
            _draw_dots(panel, orders, name, places, {"color": INK, "marker": "o"})
        panel.set_xlabel(label)
        panel.grid(axis="x", linewidth=0.4)
    panels[0].set_xlim(0.5, 1.02)
    panels[1].set_xlim(left=0.0)
    panels[0].set_yticks(places, list(orders))
    panels[0].set_ylim(len(orders) - 0.5, -0.5)
    for panel in panels[1:]:
        panel.tick_params(labelleft=False)


def _draw_dots(
    axes: Axes, orders: Mapping[str, Orders], name: str, places: np.ndarray, style: dict[str, str]
) -> None:
    values, sem = np.array([one.measures[name] for one in orders.values()], float).T
    axes.errorbar(values, places, xerr=np.nan_to_num(sem), linestyle="", markersize=3, **style)
