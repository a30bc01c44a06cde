"""Figures of sample complexity, from arrays."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from nad_jax.complexity import Scaling
from nad_jax.figures import COLUMN, PAGE, PrintedFigure, add_legend, series, set_title, styled

Points = tuple[np.ndarray, Scaling]  # scales [P], and the samples that they take


@styled
def plot_sample_complexity(panels: Mapping[str, Mapping[str, Points]], title: str) -> Figure:
    """Numbers of samples against a scale, both logarithmic: a panel for each scale, by its name,
    with a series for each label; bars are the intervals of the bootstrap, lines the fits.

    Sizes that are not of a fit are not drawn.
    """
    size = (COLUMN if len(panels) == 1 else PAGE, 2.3)
    figure = PrintedFigure(figsize=size, layout="constrained")
    set_title(figure, title)
    handles = {}
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (name, lines) in zip(axes, panels.items(), strict=True):
        panel.set(xlabel=name, xscale="log", yscale="log")
        for number, (label, (scales, found)) in enumerate(lines.items()):
            used = found.used
            places, sizes = scales[used], found.sizes[used]
            if not used.any():
                continue
            ends = [
                np.where(np.isfinite(end), end, found.sizes)[used]
                for end in (found.low, found.high)
            ]
            # An interval may be on one side of its size alone.
            bars = np.maximum([sizes - ends[0], ends[1] - sizes], 0.0)
            style = series(number)
            handles[label] = panel.errorbar(places, sizes, bars, **{**style, "linestyle": "none"})
            if np.isfinite(found.slope):
                middle = np.exp(np.log(sizes).mean() - found.slope * np.log(places).mean())
                line = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 0.8}
                panel.plot(places, middle * places**found.slope, **line)
        ticks = sorted({scale for scales, _ in lines.values() for scale in scales.tolist()})
        panel.set_xticks(ticks, map(str, ticks))
        panel.xaxis.set_minor_locator(NullLocator())
    axes[0].set_ylabel("training samples $n$")
    if handles:
        add_legend(figure, handles)
    return figure
