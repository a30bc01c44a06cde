"""Figures of sample complexity, from arrays."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from nad_jax.complexity import Scaling
from nad_jax.figures import COLUMN, PAGE, PrintedFigure, series, set_title, styled

Points = tuple[np.ndarray, Scaling]  # scales [P], and the samples that they take


@styled
def plot_sample_complexity(panels: Mapping[str, Mapping[str, Points]], title: str) -> Figure:
    """Numbers of samples against a scale, both logarithmic: a panel for each scale, by its name,
    with a series for each label; bars are the intervals of the bootstrap, lines the fits. A bar
    leaves the panel at the top where the interval has no upper end.

    Sizes that are not of a fit are not drawn; the legend says where a series has no other.
    """
    columns = 1 if max(map(len, panels.values())) <= 4 else 2
    rows = max(-(-len(lines) // columns) for lines in panels.values())
    size = (COLUMN if len(panels) == 1 else PAGE, 2.4 + 0.15 * rows)
    figure = PrintedFigure(figsize=size, layout="constrained")
    set_title(figure, title)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (name, lines) in zip(axes, panels.items(), strict=True):
        panel.set(xlabel=name, xscale="log", yscale="log")
        for number, (label, points) in enumerate(lines.items()):
            _draw_series(panel, number, label, points)
        ticks = sorted({scale for scales, _ in lines.values() for scale in scales.tolist()})
        panel.set_xticks(ticks, map(str, ticks))
        panel.xaxis.set_minor_locator(NullLocator())
        # Of each panel: the same color is another series in the next one.
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns)
    axes[0].set_ylabel("training samples $n$")
    drawn = [found for lines in panels.values() for _, found in lines.values()]
    if ends := [end for found in drawn for end in _finite_ends(found)]:
        axes[0].set_ylim(min(ends) / 1.4, 1.4 * max(ends))
    return figure


def _finite_ends(found: Scaling) -> list[float]:
    """The sizes of a fit and the finite ends of their intervals."""
    ends = np.stack([found.sizes, found.low, found.high])[:, found.used]
    return ends[np.isfinite(ends)].tolist()


def _draw_series(panel: Axes, number: int, label: str, points: Points) -> None:
    scales, found = points
    style, used = series(number), found.used
    if not used.any():
        said = f"{label}: no n between the ends of its grid"
        panel.errorbar([], [], [], **{**style, "linestyle": "none"}, label=said)
        return
    places, sizes, low, high = (
        array[used] for array in (scales, found.sizes, found.low, found.high)
    )
    # An interval may be on one side of its size alone, have no upper end, or not be known.
    high = np.where(np.isposinf(high), 1e6 * sizes, high)
    bars = np.nan_to_num(np.maximum([sizes - low, high - sizes], 0.0))
    panel.errorbar(places, sizes, bars, **{**style, "linestyle": "none"}, label=label)
    if np.isfinite(found.slope):
        middle = np.exp(np.log(sizes).mean() - found.slope * np.log(places).mean())
        line = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 0.8}
        panel.plot(places, middle * places**found.slope, **line)
