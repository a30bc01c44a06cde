"""Figures from arrays: every function returns a matplotlib `Figure`; nothing is computed from
networks here.

Those of directions and images are in `image_plots`, those of accuracies on D(v) in
`accuracy_plots`.
"""

from itertools import chain

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from nad_jax.figures import (
    COLORS,
    COLUMN,
    GRAY,
    HATCHES,
    INK,
    PAGE,
    PrintedFigure,
    add_legend,
    one_panel,
    series,
    set_title,
    styled,
)
from nad_jax.image_plots import fourier_energy as fourier_energy
from nad_jax.image_plots import plot_directions as plot_directions
from nad_jax.image_plots import plot_images as plot_images

Line = tuple[np.ndarray, np.ndarray]  # places [S] and heights [S]
Curve = tuple[np.ndarray, np.ndarray, np.ndarray]  # indices [K], means [K], standard errors [K]
Estimate = tuple[float, float]  # mean and standard error
Panel = tuple[str, int]  # derivative and subspace size
# Ours over the baseline: median, lowest, highest; and the floor over the baseline. nan: unknown.
Ratio = tuple[float, float, float, float]
OVERLAP = r"overlap $\|U_k V_k^\top\|^2 / k$"


def set_index_axis(axes: Axes, last: int, label: str = "NAD index $i$") -> None:
    """Makes the horizontal axis one of indices 0 … last, logarithmic beyond 1."""
    axes.set_xscale("symlog", linthresh=1)
    decades = [10**power for power in range(len(str(max(last, 1))))]
    steps = (1, 2, 5) if last < 50 else (1,)
    ticks = [
        0,
        *(step * decade for decade in decades for step in steps if step * decade <= 1.25 * last),
    ]
    axes.set_xticks(ticks, map(str, ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlim=(-0.25, 1.25 * max(last, 1)), xlabel=label)


def draw_curve(axes: Axes, curve: Curve, number: int, label: str) -> None:
    """A series of means with error bars, and a band of ± one standard error; without errors where
    they are nan.
    """
    places, means, sem = curve
    style = series(number)
    if np.isfinite(sem).any():
        sem = np.nan_to_num(sem)  # caps are wider than marks, so that small errors are seen
        how = {"color": style["color"], "alpha": 0.25, "linewidth": 0}
        axes.fill_between(places, means - sem, means + sem, **how)
        axes.errorbar(places, means, sem, label=label, **style)
    else:
        axes.plot(places, means, label=label, **style)


@styled
def plot_spectrum(
    eigenvalues: np.ndarray,
    eigenvalue_sem: np.ndarray,
    title: str,
    null_band: tuple[float, float] | None = None,
    compared: np.ndarray | None = None,
    plateaus: tuple[str, np.ndarray] | None = None,
) -> Figure:
    """Eigenvalues [K] against their index, logarithmic, with null band and compared spectrum; below
    it ± one standard error and the compared ones, relative to the eigenvalues.

    `plateaus` are what exactly equal blocks are, and the eigenvalues [K] averaged over them: steps.
    """
    figure = PrintedFigure(figsize=(COLUMN, 2.7), layout="constrained")
    set_title(figure, title)
    axes, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    shown = eigenvalues > np.finfo(np.float32).eps * eigenvalues[0]  # below is rounding
    values, sem, index = eigenvalues[shown], eigenvalue_sem[shown], np.flatnonzero(shown)
    few = np.unique(np.geomspace(1, len(index), 14).round().astype(int) - 1)
    style = {"color": COLORS[0], "label": "eigenvalues ± standard error"}
    relative = 100 * sem / values
    limits = [relative[0], np.percentile(relative, 98)]
    # What the logarithm of a value below zero would be is not drawn.
    below = np.minimum(sem, 0.999 * values)
    axes.errorbar(index, values, **style, marker="o", markevery=few.tolist())
    axes.errorbar(index[few], values[few], (below[few], sem[few]), fmt="none", color=COLORS[0])
    axes.fill_between(index, values - below, values + sem, color=COLORS[0], alpha=0.3, linewidth=0)
    if compared is not None:
        others = np.asarray(compared)
        kept = others > np.finfo(np.float32).eps * others[0]
        style = {"color": COLORS[1], "linestyle": "--", "marker": "s", "linewidth": 0.8}
        style |= {"markerfacecolor": "none", "markersize": 5, "zorder": 3, "label": "compared"}
        axes.plot(
            np.flatnonzero(kept), others[kept], markevery=few[few < kept.sum()].tolist(), **style
        )
        same = index[index < len(others)]
        difference = 100 * (others[same] / eigenvalues[same] - 1)
        lower.plot(same, difference, markevery=few[few < len(same)].tolist(), **style)
        limits.append(np.percentile(np.abs(difference), 98))
    if plateaus is not None:
        label, steps = plateaus
        style = {"color": COLORS[2], "linewidth": 1.2, "zorder": 4, "label": label}
        axes.step(index, steps[shown], where="mid", **style)
    if null_band is not None:
        label = "null band (Marchenko–Pastur)"
        axes.axhspan(*null_band, color=GRAY, alpha=0.35, linewidth=0, label=label)
    axes.set(yscale="log", ylabel=r"eigenvalue $\lambda_i$")
    if values[0] < 1.5 * values.min():  # an isotropic spectrum is drawn flat, not as rounding
        axes.set_ylim(values.min() / 1.5, values[0] * 1.5)
    lower.fill_between(index, -relative, relative, color=COLORS[0], alpha=0.3, linewidth=0.8)
    lower.axhline(0, color=COLORS[0], linewidth=0.8)
    limit = float(np.clip(1.2 * np.nanmax([2.0, *limits]), None, 110))
    lower.set(ylim=(-limit, limit), ylabel="relative to\n" + r"$\lambda_i$ (%)")
    set_index_axis(lower, int(index[-1]))
    add_legend(figure, dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)))
    return figure


def chance_overlap(sizes: np.ndarray, dimension: int) -> Line:
    """Mean and standard deviation of ‖UVᵀ‖²/k of random subspaces of sizes k, [S] each.

    k/D, and √2 (D − k) / (D √((D − 1)(D + 2))): tr PQ of a fixed and a uniformly turned projection
    of rank k. (From the second moments of a uniformly distributed orthogonal matrix.)
    """
    sizes, others = np.asarray(sizes, float), max(dimension - 1, 1) * (dimension + 2)
    deviation = np.sqrt(2 / others) * (dimension - sizes) / dimension
    return sizes / dimension, deviation


@styled
def plot_overlap(
    curves: dict[str, Line | Curve],
    dimension: int,
    title: str,
    groups: list[list[int]] | tuple = (),
) -> Figure:
    """Subspace overlap against subspace size k, (sizes [S], overlaps [S]) per label, and where there
    are, their standard errors [S]; that of random subspaces ± two standard deviations.

    `groups` are indices of directions of equal eigenvalues: sizes that cut through one are gray,
    overlaps say less there.
    """
    figure, axes = one_panel(title, xlabel="subspace size $k$", ylabel=OVERLAP, ylim=(0, 1.03))
    for number, (label, (sizes, overlaps, *errors)) in enumerate(curves.items()):
        error = errors[0] if errors else np.full(len(sizes), np.nan)
        draw_curve(axes, (sizes, overlaps, error), number, label)
    sizes = np.unique(np.concatenate([sizes for sizes, *_ in curves.values()]))
    for group in groups:
        # A leading subspace cuts through a group between its first and its last member.
        reach = group[0] + 0.6, group[-1] + 0.4
        if reach[0] <= sizes.max():
            style = {"color": GRAY, "alpha": 0.3, "linewidth": 0}
            label = "cuts equal eigenvalues"
            axes.axvspan(reach[0], min(reach[1], 1.2 * sizes.max()), label=label, **style)
    places = np.unique(np.geomspace(sizes.min(), sizes.max(), 60))
    mean, deviation = chance_overlap(places, dimension)
    band = np.maximum(mean - 2 * deviation, 0), mean + 2 * deviation
    axes.fill_between(places, *band, color=GRAY, alpha=0.4, linewidth=0)
    axes.plot(places, mean, ":", color=INK, label="random subspaces ± 2σ")
    axes.set_xscale("log")
    axes.set_xticks(sizes, map(str, sizes))
    axes.set_xlim(0.85 * sizes.min(), 1.2 * sizes.max())
    axes.minorticks_off()
    handles, labels = axes.get_legend_handles_labels()
    add_legend(figure, dict(zip(labels, handles, strict=True)))  # one entry for all groups
    return figure


@styled
def plot_time_to_accuracy(
    panels: dict[Panel, dict[str, list[Line]]],
    halves: dict[Panel, float],
    target: float,
    title: str,
) -> Figure:
    """Overlap with a reference against seconds, logarithmic.

    Args:
      panels: for each derivative (a column) and in it each subspace size (a row) the lines
        (seconds [T], overlaps [T]) of each variant, of one seed or several.
      halves: for each of them, how much the halves of the reference overlap; dotted.
      target: the overlap that is asked for; dashed.
    """
    columns = len({derivative for derivative, _ in panels})
    rows = len(panels) // columns
    size = PAGE if columns > 1 else COLUMN, 1.65 * rows + 0.3
    figure = PrintedFigure(figsize=size, layout="constrained")
    set_title(figure, title)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    # A panel may lack variants that others have.
    numbers = {name: n for n, name in enumerate(dict.fromkeys(chain(*panels.values())))}
    handles = {}
    for panel, (derivative, size) in zip(axes.T.flat, panels, strict=True):
        for variant, lines in panels[derivative, size].items():
            for line in lines:
                panel.plot(*line, label=variant, **series(numbers[variant]))
        panel.axhline(target, color=INK, linestyle="--", linewidth=0.8, label="target")
        agreement = halves[derivative, size]
        style = {"color": INK, "linestyle": ":", "linewidth": 0.8}
        panel.axhline(agreement, **style, label="halves of the reference")
        panel.set(xscale="log", ylim=(0, 1.03), xlabel="time (s)", ylabel=OVERLAP)
        panel.set_title(f"{derivative}, $k = {size}$")
        panel.label_outer()
        handles |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    order = [*numbers, *(label for label in handles if label not in numbers)]
    add_legend(figure, {label: handles[label] for label in order})  # one for all seeds
    return figure


@styled
def plot_poison_curve(
    curves: dict[str, Curve],
    clean: dict[str, Estimate],
    published: tuple[tuple[int, int, float, float], ...],
    title: str,
) -> Figure:
    """Test accuracy against the NAD index of the poison: (indices, means, standard errors) [K] per
    label.

    Accuracies are in [0, 1], errors nan where there is one seed. `clean` has the (mean, standard
    error) of networks trained on clean images, for the labels of the curves: a line of the same
    color with its band. `published` are ranges for ResNet18, (first index, last, lowest accuracy,
    highest), gray.
    """
    figure, axes = one_panel(title, ylabel="test accuracy (%)")
    for first, last, lowest, highest in published:
        place, reach = [first - 0.1, max(last, first + 0.1)], (100 * lowest, 100 * highest)
        how = {"color": GRAY, "alpha": 0.3, "linewidth": 1.5}
        axes.fill_between(place, *reach, **how, label="published, ResNet18")
    for number, (label, (indices, means, sem)) in enumerate(curves.items()):
        draw_curve(axes, (indices, 100 * means, 100 * sem), number, label)
        if label not in clean:
            continue
        color, (mean, error) = COLORS[number % len(COLORS)], clean[label]
        style = series(number) | {"linestyle": "--", "markerfacecolor": "none", "linewidth": 0.9}
        ends = indices[[0, -1]], [100 * mean] * 2
        axes.plot(*ends, label=f"{label}, clean images", **style)
        if np.isfinite(error):
            reach = 100 * (mean - error), 100 * (mean + error)
            axes.axhspan(*reach, color=color, alpha=0.25, linewidth=0)
    last = max(int(indices.max()) for indices, *_ in curves.values())
    set_index_axis(axes, last, "NAD index of the poison $i$")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low - 2, 0), min(high + 2, 101))
    handles, labels = axes.get_legend_handles_labels()
    add_legend(figure, dict(zip(labels, handles, strict=True)))
    return figure


@styled
def plot_bars(
    bars: dict[str, dict[str, Estimate]],
    names: tuple[str, ...],
    published: dict[str, dict[str, float]],
    title: str,
) -> Figure:
    """Test accuracies in [0, 1], (mean, standard error), as bars: a group per label, in it a bar
    for each of `names`.

    Errors are nan where there is one seed. `published` accuracies of the same labels and names are
    marked.
    """
    size = COLUMN if len(bars) <= 4 else PAGE, 2.1
    figure, axes = one_panel(title, size, ylabel="test accuracy (%)", ylim=(0, 101))
    width, marks, handles = 0.8 / len(names), [], {}
    for number, name in enumerate(names):
        offset = (number - (len(names) - 1) / 2) * width
        for place, label in enumerate(bars):
            if name not in bars[label]:
                continue
            x, (mean, error) = place + offset, bars[label][name]
            how = {"color": COLORS[number], "hatch": HATCHES[number], "edgecolor": "white"}
            handles[name] = axes.bar(x, 100 * mean, width, **how)  # one entry per name
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            axes.text(x, 6, f"{100 * mean:.1f}", ha="center", fontsize=6, bbox=box)
            axes.errorbar(x, 100 * mean, 100 * error, color=INK)
            if name in published.get(label, {}):
                marks.append((x, 100 * published[label][name]))
    if marks:
        style = {"markersize": 4, "markerfacecolor": "white", "markeredgewidth": 0.8}
        (handles["published"],) = axes.plot(*np.transpose(marks), "D", color=INK, **style)
    axes.set_xticks(range(len(bars)), bars)
    axes.set_xlim(-0.6, len(bars) - 0.4)
    add_legend(figure, handles)
    return figure


@styled
def plot_ratios(rows: dict[str, dict[str, Ratio]], baseline: str, title: str) -> Figure:
    """Durations over those of a baseline, on one axis with a line at 1: left of it we are faster.

    For each key of `rows` (a heading) and in it each label the median ratio with its lowest and
    highest, and that of the floor of the arithmetic; a label whose ratio is nan has no baseline.
    """
    lines = [
        entry for key in rows for entry in ((key, None), *((key, label) for label in rows[key]))
    ]
    figure, axes = one_panel(title, (PAGE, 0.45 + 0.15 * len(lines)))
    ratios = np.array([rows[k][n] if n else [np.nan] * 4 for k, n in lines])
    places = np.arange(len(lines))
    middle, low, high, floor = ratios.T
    largest = np.nanmax([1.0, *high, *floor])
    axes.hlines(places, low, high, color=COLORS[0], linewidth=2.5, alpha=0.4)
    style = {"linestyle": "none", "label": "median, lowest to highest"}
    axes.plot(middle, places, **{**series(0), **style})
    style = {"linestyle": "none", "markerfacecolor": "white", "label": "floor of the arithmetic"}
    axes.plot(floor, places, **{**series(1), **style})
    axes.axvline(1, color=INK, linestyle="--", linewidth=0.8, label=baseline)
    for place, (_, name) in zip(places, lines, strict=True):
        if name is None:
            axes.axhline(place, color=GRAY, linewidth=0.3)
        else:
            known = not np.isnan(middle[place])
            text = f"{middle[place]:.2f}" if known else "no baseline"
            axes.text(1.19 * largest, place, text, ha="right", va="center", fontsize=6)
    axes.set_yticks(places, [key if name is None else name for key, name in lines])
    for tick, (_, name) in zip(axes.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("bold" if name is None else "normal")
    axes.set(ylim=(len(lines) - 0.4, -0.6), xlim=(0, 1.2 * largest))
    axes.set_xlabel(f"time over that of {baseline}")
    axes.grid(axis="x", linewidth=0.3)
    axes.tick_params(axis="y", length=0)
    handles, labels = axes.get_legend_handles_labels()
    add_legend(figure, dict(zip(labels, handles, strict=True)))
    return figure
