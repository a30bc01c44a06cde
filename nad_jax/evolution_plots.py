"""Figures of how geometries evolve during training, from arrays."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from nad_jax.figures import PAGE, PrintedFigure, add_legend, series, set_title, styled

_PANELS = {
    "cosine_data": r"$\cos(G_t, S)$",
    "cosine_predicted": r"$\cos(G_t, G_0 S G_0)$",
    "velocity": r"$1 - \cos(G_{t-1}, G_t)$",
    "accuracy": "training accuracy",
    "distance": r"$\|\theta_t - \theta_0\| / \|\theta_0\|$",
}


@styled
def plot_evolution(curves: Mapping[str, Mapping[str, np.ndarray]], title: str) -> Figure:
    """A panel for each measure over the steps, with bands of ± one standard error.

    curves: of each label the columns of `Evolution.to_rows`: `epoch` [E + 1], and each measure
    with its `_sem`.
    """
    figure = PrintedFigure(figsize=(PAGE, 3.4), layout="constrained")
    set_title(figure, title)
    panels, handles = figure.subplots(2, 3).flat, {}
    for panel, (name, label) in zip(panels, _PANELS.items(), strict=False):
        for number, (which, columns) in enumerate(curves.items()):
            epochs, values, sem = columns["epoch"], columns[name], columns[f"{name}_sem"]
            if name == "velocity":  # which the start has none of, and noise may bring below 0
                epochs, values, sem = epochs[1:], np.maximum(values[1:], 1e-9), sem[1:]
            style = series(number)
            every = max(1, len(epochs) // 8)
            (handles[which],) = panel.plot(epochs, values, markevery=every, **style)
            low, high = values - np.nan_to_num(sem), values + np.nan_to_num(sem)
            low = np.maximum(low, 1e-9) if name == "velocity" else low
            panel.fill_between(epochs, low, high, color=style["color"], alpha=0.25, linewidth=0)
        panel.set_ylabel(label)
        if name == "velocity":
            velocities = np.concatenate([columns[name] for columns in curves.values()])
            if (velocities > 0).any():
                panel.set(yscale="log", ylim=(velocities[velocities > 0].min() / 3, None))
        if name.startswith("cosine"):  # of few networks, errors may be larger than all cosines
            panel.set_ylim(0, min(1.1, panel.get_ylim()[1]))
    *shown, last = figure.axes
    last.set_visible(False)
    for panel in shown[2:]:
        panel.set_xlabel("step of the full batch")
    add_legend(figure, handles)
    return figure
