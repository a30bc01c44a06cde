"""Figures of accuracies on D(v), from arrays: over frequencies, NAD indices, energies of v, and as
histograms.
"""

import textwrap

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nad_jax.plotting import Curve, Line, one_panel
from nad_jax.subspaces import rank_correlation

Frequencies = tuple[
    np.ndarray, np.ndarray
]  # vertical and horizontal frequencies, [R] and [C], ascending
ByLabel = dict[str, np.ndarray]  # of each label


def _panels(count: int, ratio: float) -> tuple[Figure, list]:
    """Panels side by side, of equal area whatever their shape; `ratio` is the height of one over
    its width.
    """
    width, height = 3.0 / ratio**0.5, 3.0 * ratio**0.5
    columns = max(1, min(count, int(12.0 / width)))
    rows = -(-count // columns)
    size = width * columns + 1.2, max(height * rows + 0.6, 2.8)
    figure = Figure(figsize=size, layout="constrained")
    figure.subplots(rows, columns)
    for panel in figure.axes[count:]:
        panel.set_visible(False)
    return figure, figure.axes[:count]


def _edges(frequencies: np.ndarray) -> tuple[float, float]:
    """Where the cells of ascending, equally spaced frequencies begin and end."""
    half = (frequencies[1] - frequencies[0]) / 2 if len(frequencies) > 1 else 0.5
    return frequencies[0] - half, frequencies[-1] + half


def _plot_maps(
    maps: ByLabel, frequencies: Frequencies, title: str, label: str, **scale: object
) -> Figure:
    """One panel per map over (vertical, horizontal) frequency, all on one scale; cells without a
    value are grey.
    """
    rows, columns = frequencies
    ratio = float(np.clip(len(rows) / len(columns), 0.25, 4.0))
    figure, panels = _panels(len(maps), ratio)
    width = int(10 * figure.get_figwidth())  # letters
    figure.suptitle("\n".join(textwrap.fill(line, width) for line in title.splitlines()))
    extent = (*_edges(columns), *reversed(_edges(rows)))
    for panel, (name, values) in zip(panels, maps.items(), strict=True):
        panel.set_facecolor("lightgray")
        how = {"extent": extent, "interpolation": "nearest", "aspect": "auto", **scale}
        drawn = panel.imshow(values, **how)
        panel.set_box_aspect(ratio)
        panel.set_title(name, fontsize=9)
        panel.set_xticks(columns[:: max(1, len(columns) // 8)])
        panel.set_yticks(rows[:: max(1, len(rows) // 8)])
        panel.tick_params(labelsize=7)
        panel.label_outer()
    figure.supxlabel("horizontal frequency", fontsize="medium")
    figure.supylabel("vertical frequency", fontsize="medium")
    figure.colorbar(drawn, ax=panels, label=label, shrink=0.8)
    return figure


def plot_accuracy_maps(maps: ByLabel, frequencies: Frequencies, title: str) -> Figure:
    """Test accuracies on D(v), one map [R, C] per label, v the real Fourier vector of (vertical,
    horizontal) frequency.

    Frequencies, [R] and [C], ascend, in cycles per image. The scale is always 50 to 100 %, so that
    figures compare.
    """
    percent = {name: 100 * values for name, values in maps.items()}
    scale = {"vmin": 50, "vmax": 100, "cmap": "viridis"}
    return _plot_maps(percent, frequencies, title, "test accuracy (%)", **scale)


def plot_steps_maps(maps: ByLabel, frequencies: Frequencies, title: str) -> Figure:
    """Steps to a small loss as `plot_accuracy_maps`, on a common logarithmic scale; grey: nan,
    never reached.
    """
    finite = np.concatenate([values[np.isfinite(values)] for values in maps.values()])
    norm = LogNorm(finite.min(), max(finite.max(), finite.min() * 1.01))
    return _plot_maps(maps, frequencies, title, "steps (grey: never)", norm=norm, cmap="magma_r")


def plot_energy_map(energy: np.ndarray, frequencies: Frequencies) -> Figure:
    """The energy vᵀ E[g gᵀ] v [R, C] of Fourier vectors v as `plot_accuracy_maps`, on a logarithmic
    scale.
    """
    highest = energy.max()
    norm = LogNorm(max(energy.min(), 1e-6 * highest), max(highest, np.finfo(float).tiny))
    label = r"$v^\top \mathbb{E}[g g^\top] v$"
    return _plot_maps(
        {"": energy}, frequencies, "Energy of the geometry", label, norm=norm, cmap="viridis"
    )


def plot_accuracy_by_index(
    curves: dict[str, Curve], eigenvalues: np.ndarray | None, title: str
) -> Figure:
    """Accuracy on D(u_i) against the NAD index, (indices, means, standard errors) per label, over
    the eigenvalues.
    """
    labels = {"xlabel": "NAD index $i$", "ylabel": "test accuracy on $D(u_i)$ (%)"}
    figure, axes = one_panel((6.5, 4), title=title, **labels)
    bottom = 45.0
    for label, (indices, means, sem) in curves.items():
        percent, error = 100 * means, 100 * np.nan_to_num(sem)
        name = label or "accuracy"
        axes.errorbar(indices, percent, error, fmt="o-", capsize=3, label=name)
        bottom = min(bottom, (percent - error).min() - 2)
    axes.axhline(50, color="gray", linestyle=":", linewidth=1)
    axes.set_xscale("symlog", linthresh=1)  # so that there is a place for index 0
    axes.set_ylim(bottom, 101.5)
    handles, _ = axes.get_legend_handles_labels()
    if eigenvalues is not None:
        shown = eigenvalues > np.finfo(np.float32).eps * eigenvalues[0]  # below is rounding
        other = axes.twinx()
        line = np.flatnonzero(shown), eigenvalues[shown]
        handles += other.plot(*line, "k--", linewidth=1, label="eigenvalue")
        other.set(yscale="log", ylabel=r"eigenvalue $\lambda_i$")
    axes.legend(handles=handles, loc="lower left")
    return figure


def plot_accuracy_histogram(groups: ByLabel, title: str) -> Figure:
    """How the test accuracies [N] of each label are distributed, in bins of 2.5 points; the first
    one has all below.
    """
    figure, axes = one_panel(title=title, xlabel="test accuracy (%)", ylabel="directions")
    bins = np.arange(45, 102.5, 2.5)
    for label, accuracies in groups.items():
        name = f"{label + ': ' if label else ''}mean {100 * accuracies.mean():.1f} %"
        axes.hist(np.maximum(100 * accuracies, bins[0]), bins, alpha=0.6, label=name)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


def plot_accuracy_by_energy(points: dict[str, Line], title: str) -> Figure:
    """Accuracy on D(v) against vᵀ E[g gᵀ] v, (energies [N], accuracies [N]) per label, with their
    rank correlation.
    """
    ylabel = "test accuracy on $D(v)$ (%)"
    figure, axes = one_panel(title=title, xlabel=r"$v^\top \mathbb{E}[g g^\top] v$", ylabel=ylabel)
    for label, (energies, accuracies) in points.items():
        correlation = rank_correlation(energies, accuracies) if len(energies) > 1 else np.nan
        name = f"{label + ': ' if label else ''}rank correlation {correlation:.2f}"
        axes.plot(energies, 100 * accuracies, "o", markersize=3, label=name)
    axes.set_xscale("log")
    axes.legend(fontsize=8)
    return figure


def plot_training(losses: np.ndarray, accuracies: np.ndarray) -> Figure:
    """Minibatch losses [N, T] of N networks by step, and their test accuracies [N]."""
    figure = Figure(figsize=(8.5, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = np.arange(1, losses.shape[1] + 1)
    left.plot(steps, losses.T, color="tab:blue", alpha=max(0.1, 1 / len(losses)), linewidth=0.8)
    left.plot(steps, np.nanmedian(losses, 0), color="black", label="median")
    left.set(xlabel="step", ylabel="minibatch loss", ylim=(0, None))
    left.legend()
    right.plot(accuracies, "o", markersize=3)
    right.set(xlabel="network", ylabel="test accuracy", ylim=(0, 1.03))
    return figure
