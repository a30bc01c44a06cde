"""Figures of what networks prefer of two features, from arrays."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from nad_jax.figures import GRAY, INK, PAGE, SIGNED, PrintedFigure, add_legend, set_title, styled
from nad_jax.plotting import Curve, draw_curve

Lines = Mapping[str, Curve]


@styled
def plot_bias_by_amplification(
    by_ratio: Mapping[str, Lines], by_epoch: Mapping[str, Lines], title: str, ratio: float
) -> Figure:
    """Shortcut bias, a column of two panels for each network: at the end by amplification, and with
    the largest amplification by epoch; (places, means, standard errors) of each label.

    ratio: the largest amplification.
    """
    figure = PrintedFigure(figsize=(PAGE, 3.2), layout="constrained")
    set_title(figure, title)
    panels = figure.subplots(2, len(by_ratio), sharey=True, squeeze=False)
    labels = "amplification of the shortcut", f"epoch, at an amplification of {ratio:g}"
    for row, (lines, label) in enumerate(zip((by_ratio, by_epoch), labels, strict=True)):
        for axes, (name, curves) in zip(panels[row], lines.items(), strict=True):
            axes.axhline(0, color=GRAY, linewidth=0.6)
            for number, (which, curve) in enumerate(curves.items()):
                draw_curve(axes, curve, number, which)
            axes.set_xlabel(label)
            axes.set_title(name if row == 0 else "")
        panels[row][0].set_ylabel("shortcut bias")
    handles, names = panels[0][0].get_legend_handles_labels()
    add_legend(figure, dict(zip(names, handles, strict=True)))
    return figure


@styled
def plot_bias_map(
    maps: Mapping[str, tuple[np.ndarray, np.ndarray]], indices: Sequence[int], title: str
) -> Figure:
    """Shortcut bias of every pair of directions, a panel for each network: means [K, K] and standard
    errors, shortcut by row and core by column; nan where there is none. Colors reach to ±1, or to
    the largest mean.
    """
    width = min(PAGE, 3.4 * len(maps))
    figure = PrintedFigure(figsize=(width, 0.9 * width / len(maps)), layout="constrained")
    set_title(figure, title)
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    most = max(float(np.nanmax(np.abs(means), initial=1.0)) for means, _ in maps.values())
    for axes, (name, (means, errors)) in zip(panels, maps.items(), strict=True):
        image = axes.imshow(means, cmap=SIGNED, vmin=-most, vmax=most)
        for (row, column), mean in np.ndenumerate(means):
            if np.isfinite(mean):
                error = errors[row, column]
                text = f"{mean:.2f}" + f"\n±{error:.2f}" * bool(np.isfinite(error))
                color = "white" if abs(mean) > 0.6 * most else INK
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=4)
        axes.set(xlabel="index of the core", ylabel="index of the shortcut", title=name)
        axes.set_xticks(range(len(indices)), indices)
        axes.set_yticks(range(len(indices)), indices)
    figure.colorbar(image, ax=list(panels), label="shortcut bias", shrink=0.8)
    return figure
