"""Figures of distances between what networks generate and the data, from arrays."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from nad_jax.figures import add_legend, one_panel, styled
from nad_jax.plotting import Curve, draw_curve


@styled
def plot_distances(
    curves: Mapping[str, Curve], places: Sequence[str], axis: str, title: str
) -> Figure:
    """Distances by place, (places, means, standard errors) per label; a place is a number in the
    list of names, which stand evenly along the horizontal axis `axis`.
    """
    figure, axes = one_panel(title, ylabel="distance from data", xlabel=axis)
    for number, (label, (indices, means, sem)) in enumerate(curves.items()):
        draw_curve(axes, (np.asarray(indices), means, sem), number, label)
    axes.set_xticks(range(len(places)), places)
    axes.set(xlim=(-0.4, len(places) - 0.6), ylim=(0, None))
    handles, labels = axes.get_legend_handles_labels()
    add_legend(figure, dict(zip(labels, handles, strict=True)))
    return figure
