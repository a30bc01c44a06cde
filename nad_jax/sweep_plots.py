"""Figures of several geometries: their spectra, and the metrics of these."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nad_jax.figures import (
    GRAY,
    PAGE,
    PrintedFigure,
    add_legend,
    one_panel,
    series,
    set_title,
    styled,
)
from nad_jax.plotting import set_index_axis
from nad_jax.spectrum_metrics import Metric, SpectrumMetrics

_PANELS = {
    "kl_uniform": "divergence from a\nuniform spectrum (nats)",
    "effective_rank": "effective rank\n(share of $D$)",
    "participation_ratio": "participation ratio\n(share of $D$)",
}
_OBJECTIVES = {
    "kl_uniform": "divergence from a\nuniform spectrum (nats)",
    "effective_rank": "effective rank",
    "participation_ratio": "participation ratio",
}


@styled
def plot_spectra(spectra: dict[str, np.ndarray], title: str) -> Figure:
    """Eigenvalues [D] against their index, as multiples of their mean, by label; logarithmic."""
    figure, axes = one_panel(
        title, (PAGE, 2.6), ylabel=r"$\lambda_i \, D \,/\, \mathrm{tr}\,G$", yscale="log"
    )
    lowest = []
    for number, (label, values) in enumerate(spectra.items()):
        relative = values / values.mean()
        shown = relative > 1e-6 * relative[0]  # what is below is rounding
        few = np.unique(np.geomspace(1, np.count_nonzero(shown), 6).astype(int)) - 1
        style = {**series(number), "markevery": few.tolist()}
        axes.plot(np.flatnonzero(shown), relative[shown], label=label, **style)
        lowest.append(relative[shown].min())
    set_index_axis(axes, max(map(len, spectra.values())) - 1)
    axes.axhline(1.0, color="k", linewidth=0.6)
    axes.set_ylim(bottom=max(min(lowest) / 2, 1e-5))
    handles, labels = axes.get_legend_handles_labels()
    add_legend(figure, dict(zip(labels, handles, strict=True)))
    return figure


@styled
def plot_metrics(metrics: dict[str, SpectrumMetrics], title: str) -> Figure:
    """Three metrics of each label with their standard errors, the most isotropic ones first."""
    order = sorted(metrics, key=lambda label: metrics[label].kl_uniform.value)
    figure = PrintedFigure(figsize=(PAGE, 1.1 + 0.17 * len(order)), layout="constrained")
    set_title(figure, title)
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    for number, (axes, (name, label)) in enumerate(zip(panels, _PANELS.items(), strict=True)):
        found = [_scaled(metrics[one], name) for one in order]
        values, sem = np.array(found).T
        style = {**series(number), "linestyle": ""}
        axes.errorbar(values, range(len(order)), xerr=np.nan_to_num(sem), **style)
        axes.set_xlabel(label)
        axes.grid(axis="x", linewidth=0.4)
        axes.set_xlim(left=0.0)
    panels[0].set_yticks(range(len(order)), order)
    panels[0].invert_yaxis()
    return figure


@styled
def plot_correlations(groups: dict[str, dict[str, tuple[float, float]]], title: str) -> Figure:
    """(Rank correlation, its standard error) of several predictors of each group, one row of the
    figure for each group; those that are nan have no mark.
    """
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    figure = PrintedFigure(figsize=(PAGE, 1.2 + 0.5 * len(groups)), layout="constrained")
    set_title(figure, title)
    axes, handles = figure.subplots(), {}
    for number, name in enumerate(names):
        pairs = [group.get(name, (np.nan, np.nan)) for group in groups.values()]
        values, sem = np.transpose(pairs)
        places = np.arange(len(groups)) + 0.7 * ((number + 0.5) / len(names) - 0.5)
        style = {**series(number), "linestyle": ""}
        handles[name] = axes.errorbar(values, places, xerr=np.nan_to_num(sem), **style)
    axes.axvline(0.0, color="k", linewidth=0.6)
    axes.set(xlim=(-1.05, 1.05), xlabel="rank correlation with accuracy, ± its bootstrap error")
    axes.set_yticks(range(len(groups)), list(groups))
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(axis="x", linewidth=0.4)
    add_legend(figure, handles)
    return figure


def _scaled(metrics: SpectrumMetrics, name: str) -> Metric:
    value, sem = getattr(metrics, name)
    scale = 1.0 if name == "kl_uniform" else 1.0 / metrics.dimension
    return Metric(scale * value, scale * sem)


@styled
def plot_search(
    rungs: list[dict[str, Metric]],
    num_networks: list[int],
    accuracies: dict[str, list[float]],
    objective: str,
    title: str,
) -> Figure:
    """The points of each rung of a search, by label, with their standard errors: the first of each
    is the start, the last rung is of other networks; and where they are known, the accuracies on
    D(v) of the start against those of what was found.
    """
    size = 3 if accuracies else 2
    figure = PrintedFigure(figsize=(PAGE, 2.4), layout="constrained")
    set_title(figure, title)
    panels = figure.subplots(1, size - 1, width_ratios=[2, 1][: size - 1], squeeze=False)[0]
    axes, last = panels[0], len(rungs) - 1
    names = list(rungs[-1])
    for label in rungs[0]:
        places = [number for number, rung in enumerate(rungs) if label in rung]
        found = [rungs[number][label] for number in places]
        values, sem = (np.array(column, float) for column in zip(*found, strict=True))
        if label not in names:
            axes.plot(
                places, values, color=GRAY, linewidth=0.5, marker=".", markersize=2, alpha=0.6
            )
            continue
        style = series(names.index(label))
        axes.errorbar(places, values, yerr=np.nan_to_num(sem), label=label, **style, zorder=3)
    labels = [f"{count:,}" for count in num_networks]
    labels[last] += "\nother seed" if last else ""
    axes.set_xticks(range(len(rungs)), labels)
    axes.set_xlabel("networks of each point of a rung")
    axes.set_ylabel(_OBJECTIVES[objective])
    axes.set_ylim(bottom=0.0)
    add_legend(figure, dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True)))
    if accuracies:
        _plot_pairs(panels[1], accuracies["start"], accuracies["found"])
    return figure


def _plot_pairs(axes: Axes, start: list[float], found: list[float]) -> None:
    """Accuracies of two networks along the same directions, in per cent."""
    pairs = 100 * np.array([start, found])
    low = min(45.0, pairs.min() - 2)
    axes.plot([low, 102], [low, 102], color=GRAY, linewidth=0.6)
    axes.plot(*pairs, **{**series(1), "linestyle": ""})
    axes.set(xlim=(low, 102), ylim=(low, 102), aspect="equal")
    axes.set_xlabel("accuracy on $D(v)$ of the start (%)")
    axes.set_ylabel("of what was found (%)")
