"""The figure of guided networks, from arrays."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from nad_jax.figures import GRAY, INK, PAGE, PrintedFigure, add_legend, set_title, styled
from nad_jax.plotting import OVERLAP, Curve, chance_overlap, draw_curve, set_index_axis


@styled
def plot_guidance(
    accuracies: Mapping[str, Curve], overlaps: Mapping[str, Curve], dimension: int, title: str
) -> Figure:
    """Accuracy on D(u_i) against the index of the NAD of the guide, (indices, means, standard errors)
    per label; beside it how far the leading k directions of geometries overlap with the guide's,
    (sizes, means, standard errors) per label, and those of random subspaces ± two standard
    deviations.
    """
    figure = PrintedFigure(figsize=(PAGE, 2.2), layout="constrained")
    set_title(figure, title)
    left, right = figure.subplots(1, 2)
    numbers = {label: number for number, label in enumerate(accuracies)}
    for label, (indices, means, errors) in accuracies.items():
        draw_curve(left, (indices, 100 * means, 100 * errors), numbers[label], label)
    left.axhline(50, color=INK, linestyle=":", linewidth=0.8, label="chance")
    left.set(ylabel="test accuracy on $D(u_i)$ (%)", ylim=(None, 101.5))
    last = max(int(indices.max()) for indices, *_ in accuracies.values())
    set_index_axis(left, last, "index $i$ of the guide's NAD")
    for label, curve in overlaps.items():
        draw_curve(right, curve, numbers[label], label)
    sizes = np.unique(np.concatenate([sizes for sizes, *_ in overlaps.values()]))
    places = np.geomspace(sizes.min(), sizes.max(), 60)
    mean, deviation = chance_overlap(places, dimension)
    band = np.maximum(mean - 2 * deviation, 0), mean + 2 * deviation
    right.fill_between(places, *band, color=GRAY, alpha=0.4, linewidth=0)
    right.plot(places, mean, ":", color=INK)
    right.set_xscale("log")
    right.set_xticks(sizes, [f"{size:g}" for size in sizes])
    right.minorticks_off()
    right.set(xlabel="subspace size $k$", ylabel=OVERLAP, ylim=(0, None))
    handles, labels = left.get_legend_handles_labels()
    add_legend(figure, dict(zip(labels, handles, strict=True)))
    return figure
