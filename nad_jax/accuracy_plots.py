"""Figures of accuracies on D(v), from arrays: over frequencies, NAD indices, energies of v, and as
histograms.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nad_jax.figures import (
    COLORS,
    COLUMN,
    GRAY,
    HATCHES,
    INK,
    LEVELS,
    LINES,
    PAGE,
    STEPS,
    PrintedFigure,
    add_legend,
    one_panel,
    series,
    set_title,
    styled,
    wrap,
)
from nad_jax.plotting import Curve, Line, draw_curve, set_index_axis
from nad_jax.subspaces import rank_correlation

Frequencies = tuple[
    np.ndarray, np.ndarray
]  # vertical and horizontal frequencies, [R] and [C], ascending
ByLabel = Mapping[str, np.ndarray]  # of each label
# Of each label, or of each (row, column) of a grid.
Maps = Mapping[str, np.ndarray] | Mapping[tuple[str, str], np.ndarray]
ENERGY = r"energy $v^\top \mathbb{E}[g g^\top] v$"


def _place(maps: Maps, fitting: int) -> tuple[list[tuple[int, int]], list[str], list[str]]:
    """Row and column of each map, the names of the rows and of the columns of a grid."""
    names = list(maps)
    if isinstance(names[0], str):
        return [divmod(k, fitting) for k in range(len(names))], [], []
    rows, columns = (list(dict.fromkeys(axis)) for axis in zip(*names, strict=True))
    return [(rows.index(row), columns.index(column)) for row, column in names], rows, columns


def _edges(frequencies: np.ndarray) -> tuple[float, float]:
    """Where the cells of ascending, equally spaced frequencies begin and end."""
    half = (frequencies[1] - frequencies[0]) / 2 if len(frequencies) > 1 else 0.5
    return frequencies[0] - half, frequencies[-1] + half


def _make_panels(
    maps: Maps, ratio: float, title: str
) -> tuple[Figure, dict[str | tuple[str, str], Axes]]:
    """A figure with a panel of each map; `ratio` is the height of one over its width."""
    width = 1.55 / min(ratio, 1) ** 0.5
    most = max(1, min(len(maps), int((PAGE - 0.9) / width)))
    num_rows = -(-len(maps) // most)  # of as equal length as can be
    places, rows, columns = _place(maps, -(-len(maps) // num_rows))
    num_rows, num_columns = (max(axis) + 1 for axis in zip(*places, strict=True))
    size = COLUMN if num_columns * width + 0.9 <= COLUMN + 0.8 else PAGE
    beside = 1.25 if rows else 1.1  # labels and color bar
    width = min((size - beside) / num_columns, 2.2 / max(ratio, 1))
    height = num_rows * (width * ratio + 0.2) + 0.45
    figure = PrintedFigure(figsize=(size, max(height, 1.5)), layout="constrained")
    set_title(figure, title)
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    panels = {name: axes[place] for name, place in zip(maps, places, strict=True)}
    for panel in set(axes.flat) - set(panels.values()):
        panel.set_visible(False)
    for column, name in enumerate(columns):
        axes[0, column].set_title(name)
    for row, name in enumerate(rows):
        axes[row, 0].set_ylabel(name)
    for name, panel in panels.items():
        if isinstance(name, str):
            panel.set_title(wrap(name, width, 7))
    return figure, panels


def _plot_maps(
    maps: Maps, frequencies: Frequencies, title: str, label: str, **scale: object
) -> Figure:
    """One panel per map over (vertical, horizontal) frequency, all on one scale with one color bar;
    cells without a value are gray.
    """
    rows, columns = frequencies
    ratio = float(np.clip(len(rows) / len(columns), 0.25, 4.0))
    figure, panels = _make_panels(maps, ratio, title)
    extent = (*_edges(columns), *reversed(_edges(rows)))
    specs = [panel.get_subplotspec() for panel in panels.values()]
    places = {(spec.rowspan.start, spec.colspan.start) for spec in specs}
    extend = scale.pop("extend", "neither")
    for name, panel in panels.items():
        panel.set_facecolor("lightgray")
        how = {"extent": extent, "interpolation": "nearest", "aspect": "auto", **scale}
        drawn = panel.imshow(maps[name], **how)
        panel.set_box_aspect(ratio)
        panel.set_xticks(_choose_ticks(columns))
        panel.set_yticks(_choose_ticks(rows))
        # The title of a row stands where labels of axes do, which `label_outer` keeps.
        panel.label_outer()
        below = panel.get_subplotspec().rowspan.stop, panel.get_subplotspec().colspan.start
        if below not in places:
            panel.tick_params(labelbottom=True)
    figure.supxlabel("horizontal frequency (cycles per image)", fontsize=7)
    figure.supylabel("vertical frequency (cycles per image)", fontsize=7)
    how = {"label": label, "aspect": 30, "extend": extend}
    bar = figure.colorbar(drawn, ax=list(panels.values()), **how)
    bar.outline.set_linewidth(0.6)
    if isinstance(drawn.norm, LogNorm):
        levels = _choose_levels(drawn.norm.vmin, drawn.norm.vmax)
        bar.set_ticks(levels, labels=[f"{level:.3g}" for level in levels])
        bar.minorticks_off()
    return figure


def _choose_levels(low: float, high: float) -> np.ndarray:
    """Three to nine round numbers of a logarithmic scale; where it is short, its ends and middle."""
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.log10(high) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 6, 8)):
        levels = np.outer(powers, digits).reshape(-1)
        levels = levels[(levels >= low * 0.999) & (levels <= high * 1.001)]
        if len(levels) >= 3:
            return levels[:: -(-len(levels) // 9)]
    return np.geomspace(low, high, 3)


def _choose_ticks(frequencies: np.ndarray) -> np.ndarray:
    """At most five or six of ascending frequencies, 0 among them where it is one."""
    step = -(-len(frequencies) // 5)
    zero = int(np.abs(frequencies).argmin())
    return frequencies[zero % step :: step]


@styled
def plot_accuracy_maps(maps: Maps, frequencies: Frequencies, title: str) -> Figure:
    """Test accuracies on D(v), one map [R, C] per label, v the real Fourier vector of (vertical,
    horizontal) frequency; maps of pairs of labels are a grid of these rows and columns.

    Frequencies, [R] and [C], ascend, in cycles per image. The scale is always 50 to 100 %, so that
    figures compare.
    """
    percent = {name: 100 * values for name, values in maps.items()}
    below = any((values < 50).any() for values in percent.values())
    scale = {"vmin": 50, "vmax": 100, "cmap": LEVELS, "extend": "min" if below else "neither"}
    label = "test accuracy (%)"
    if any(np.isnan(values).any() for values in percent.values()):
        label += ", gray: not trained"
    return _plot_maps(percent, frequencies, title, label, **scale)


@styled
def plot_steps_maps(maps: Maps, frequencies: Frequencies, title: str) -> Figure:
    """Steps to a small loss as `plot_accuracy_maps`, on a common logarithmic scale that spans a
    factor of 2 at least; white: infinite, never reached; gray: nan, not trained.
    """
    finite = np.concatenate([values[np.isfinite(values)] for values in maps.values()])
    norm = LogNorm(finite.min(), max(finite.max(), finite.min() * 2))
    colors = colormaps[STEPS].with_extremes(over="white")
    label = "training steps, logarithmic (white: never, gray: not trained)"
    # Infinite numbers would be drawn as nan.
    drawn = {n: np.where(np.isposinf(values), 10 * norm.vmax, values) for n, values in maps.items()}
    return _plot_maps(drawn, frequencies, title, label, norm=norm, cmap=colors, extend="max")


@styled
def plot_energy_map(energy: np.ndarray, frequencies: Frequencies) -> Figure:
    """The energy vᵀ E[g gᵀ] v [R, C] of Fourier vectors v as `plot_accuracy_maps`, on a logarithmic
    scale.
    """
    highest = energy.max()
    norm = LogNorm(max(energy.min(), 1e-6 * highest), max(highest, np.finfo(float).tiny))
    title = "Energy of the geometry along Fourier vectors v"
    return _plot_maps({"": energy}, frequencies, title, ENERGY, norm=norm, cmap=LEVELS)


@styled
def plot_energy_curve(energy: np.ndarray, sem: np.ndarray, frequencies: np.ndarray) -> Figure:
    """The energy vᵀ E[g gᵀ] v [L] of Fourier vectors v of signals by their frequencies [L], with
    standard errors (nan: unknown), those below 1e-6 of the highest at the lower end.
    """
    title = "Energy of the geometry along Fourier vectors v"
    cycles = "frequency (cycles per length)"
    figure, axes = one_panel(title, xlabel=cycles, ylabel=ENERGY, yscale="log")
    lowest = max(1e-6 * energy.max(), 1e-100)  # of no energy at all, too
    shown = np.maximum(energy, lowest)
    # A logarithmic scale has no place for an error that reaches below zero.
    errors = np.minimum(np.nan_to_num(sem), 0.999 * shown), np.nan_to_num(sem)
    axes.errorbar(frequencies, shown, errors, **series(0))
    axes.set_ylim(bottom=0.5 * shown.min())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


@styled
def plot_accuracy_by_index(
    curves: dict[str, Curve],
    eigenvalues: np.ndarray | None,
    title: str,
    label: str = "NAD index $i$",
) -> Figure:
    """Accuracy on D(u_i) against the index, (indices, means, standard errors) per label, over the
    eigenvalues; `label` says of which directions.
    """
    figure, axes = one_panel(title, ylabel="test accuracy on $D(u_i)$ (%)")
    bottom = 45.0
    for number, (name, (indices, means, sem)) in enumerate(curves.items()):
        draw_curve(axes, (indices, 100 * means, 100 * sem), number, name or "accuracy")
        bottom = min(bottom, (100 * means - 100 * np.nan_to_num(sem)).min() - 2)
    axes.axhline(50, color=INK, linestyle=":", linewidth=0.8, label="chance")
    axes.set_ylim(bottom, 101.5)
    last = max(int(indices.max()) for indices, *_ in curves.values())
    handles, labels = axes.get_legend_handles_labels()
    if eigenvalues is not None:
        shown = eigenvalues > np.finfo(np.float32).eps * eigenvalues[0]  # below is rounding
        other = axes.twinx()
        line = np.flatnonzero(shown), eigenvalues[shown]
        handles += other.plot(*line, color=GRAY, linestyle="--", linewidth=1)
        labels.append("eigenvalue (right axis)")
        last = max(last, int(line[0][-1]))
        other.set(yscale="log", ylabel=r"eigenvalue $\lambda_i$")
    set_index_axis(axes, last, label)
    add_legend(figure, dict(zip(labels, handles, strict=True)))
    return figure


@styled
def plot_accuracy_by_epoch(
    panels: Mapping[str, Mapping[tuple[str, str], Curve]], chance: float, title: str
) -> Figure:
    """Accuracies by epoch, a panel for each label, with (epochs, means, standard errors) of each
    (plane, split): the split "train" is dashed. `chance` is what a hyperplane reaches.
    """
    figure = PrintedFigure(figsize=(PAGE, 2.1), layout="constrained")
    set_title(figure, title)
    handles = {}
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (name, curves) in zip(axes, panels.items(), strict=True):
        planes = list(dict.fromkeys(plane for plane, _ in curves))
        for (plane, split), (epochs, means, sem) in curves.items():
            style = series(planes.index(plane))
            if split == "train":
                style |= {"linestyle": "--", "markerfacecolor": "none"}
            errors = 100 * np.nan_to_num(sem)
            handles[f"{plane}, {split}"] = panel.errorbar(epochs, 100 * means, errors, **style)
        handles["best hyperplane"] = panel.axhline(100 * chance, color=GRAY, linewidth=0.8)
        handles["chance"] = panel.axhline(50, color=INK, linestyle=":", linewidth=0.8)
        panel.set(title=wrap(name, PAGE / len(panels), 7), xlabel="epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set(ylabel="accuracy (%)", ylim=(None, 101.5))
    add_legend(figure, handles)
    return figure


@styled
def plot_accuracy_histogram(groups: ByLabel, title: str) -> Figure:
    """How the test accuracies [N] of each label are distributed, in bins of 2.5 points; the first
    one has all below.
    """
    figure, axes = one_panel(title, xlabel="test accuracy (%)", ylabel="number of directions")
    bins = np.arange(45, 102.5, 2.5)
    for number, (label, accuracies) in enumerate(groups.items()):
        name = f"{label + ': ' if label else ''}mean {100 * accuracies.mean():.1f} %"
        percent = np.maximum(100 * accuracies, bins[0])
        color, line = COLORS[number % len(COLORS)], LINES[number % len(LINES)]
        how = {"color": color, "edgecolor": color, "linestyle": line}
        hatch = HATCHES[number % len(HATCHES)]
        axes.hist(percent, bins, histtype="stepfilled", alpha=0.35, hatch=hatch, label=name, **how)
        axes.hist(percent, bins, histtype="step", **how)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes.get_legend_handles_labels()
    add_legend(figure, dict(zip(labels, handles, strict=True)))
    return figure


@styled
def plot_accuracy_by_energy(points: dict[str, Line], title: str) -> Figure:
    """Accuracy on D(v) against vᵀ E[g gᵀ] v, (energies [N], accuracies [N]) per label, with their
    rank correlation.
    """
    figure, axes = one_panel(title, xlabel=ENERGY, ylabel="test accuracy on $D(v)$ (%)")
    for number, (label, (energies, accuracies)) in enumerate(points.items()):
        correlation = rank_correlation(energies, accuracies) if len(energies) > 1 else np.nan
        name = f"{label + ': ' if label else ''}rank correlation {correlation:.2f}"
        style = {**series(number), "linestyle": "none", "markersize": 3, "alpha": 0.8}
        axes.plot(energies, 100 * accuracies, label=name, markeredgewidth=0, **style)
    axes.set_xscale("log")
    handles, labels = axes.get_legend_handles_labels()
    add_legend(figure, dict(zip(labels, handles, strict=True)))
    return figure


@styled
def plot_training(losses: np.ndarray, accuracies: np.ndarray) -> Figure:
    """Minibatch losses [N, T] of N networks by step, and their test accuracies [N]."""
    figure = PrintedFigure(figsize=(PAGE, 2.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = np.arange(1, losses.shape[1] + 1)
    left.plot(steps, losses.T, color=COLORS[2], alpha=max(0.1, 1 / len(losses)), linewidth=0.8)
    left.plot(steps, np.nanmedian(losses, 0), color=INK, label="median of the networks")
    left.set(xlabel="step", ylabel="minibatch loss", ylim=(0, None))
    left.legend()
    right.plot(100 * accuracies, **{**series(0), "linestyle": "none"})
    right.set(xlabel="network", ylabel="test accuracy (%)", ylim=(0, 103))
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
