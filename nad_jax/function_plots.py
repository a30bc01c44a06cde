"""Figures of untrained networks as functions: their classes, geometry and spectrum, from arrays."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
    spectra: by plane, "nads" and "random", the mean share of each frequency and its error, [R + 1].
    measures: numbers by name, the effective rank as a share of D.
    """

    positive: np.ndarray
    eigenvalues: np.ndarray
    spectra: Mapping[str, tuple[np.ndarray, np.ndarray]]
    measures: Mapping[str, Metric]


@styled
def plot_orders(
    orders: Mapping[str, Orders], num_curves: int, linear: np.ndarray, title: str
) -> Figure:
    """Above, of the first few ensembles, how many networks call which share of inputs positive, the
    eigenvalues as multiples of their mean, and the spectrum as multiples of that of a linear function;
    below numbers of all ensembles.

    linear: the shares of a linear function, [R + 1], zero beyond the axes.
    """
    heights = [2.2, 0.5 + 0.13 * len(orders)]
    figure = PrintedFigure(figsize=(PAGE, sum(heights)), layout="constrained")
    set_title(figure, title)
    panels = figure.subplots(2, 3, height_ratios=heights)
    shown = {name: orders[name] for name in list(orders)[:num_curves]}
    handles = _plot_curves(panels[0], shown, linear)
    for place in (0, 1):
        panels[1, place + 1].sharey(panels[1, 0])
    frequency = float(linear @ np.arange(len(linear)) / (len(linear) - 1))
    _plot_numbers(panels[1], orders, frequency)
    add_legend(figure, handles)
    return figure


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
        for plane, (shares, sem) in one.spectra.items():
            line = "-" if plane == "nads" else ":"
            radius = np.flatnonzero(linear)
            ratio, error = shares[radius] / linear[radius], sem[radius] / linear[radius]
            spectrum.plot(radius, ratio, color=style["color"], linestyle=line, linewidth=1)
            low, high = ratio - error, ratio + error
            spectrum.fill_between(radius, low, high, color=style["color"], alpha=0.25, linewidth=0)
    handles["plane of NADs 0 and 1"] = spectrum.plot([], [], **_MARKS["nads"], linestyle="-")[0]
    handles["random planes"] = spectrum.plot([], [], **_MARKS["random"], linestyle=":")[0]
    classes.axhline(1.0, color=GRAY, linewidth=0.6)
    classes.set(xlabel="share of inputs called positive", ylabel="density of networks")
    classes.set_title("order 0: classes")
    size = max(len(one.eigenvalues) for one in orders.values())
    set_index_axis(geometry, size - 1)
    geometry.axhline(1.0, color=GRAY, linewidth=0.6)
    geometry.set(yscale="log", ylabel=r"$\lambda_i \, D \,/\, \mathrm{tr}\,G$")
    geometry.set_title("order 1: geometry")
    spectrum.axhline(1.0, color=GRAY, linewidth=0.6)
    spectrum.set(xscale="log", xlabel="cycles per side", ylabel="amplitude, over a linear function")
    spectrum.set_title("spectrum of the function")
    return handles


def _plot_numbers(panels: np.ndarray, orders: Mapping[str, Orders], linear: float) -> None:
    """The three lower panels: a row of numbers with their errors for each ensemble."""
    places = np.arange(len(orders))
    for panel, (name, label) in zip(panels, _DOTS.items(), strict=True):
        if name == "frequency":
            for plane, style in _MARKS.items():
                _draw_dots(panel, orders, f"frequency_{plane}", places, style)
            panel.axvline(linear, color=GRAY, linewidth=0.8, linestyle="--")
        else:
            _draw_dots(panel, orders, name, places, _MARKS["nads"])
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
