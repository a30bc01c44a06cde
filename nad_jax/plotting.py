"""Figures from arrays: every function returns a matplotlib `Figure`; nothing is computed from
networks here.
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nad_jax.directions import spatial_shape, to_images

Line = tuple[np.ndarray, np.ndarray]  # places [S] and heights [S]
Curve = tuple[np.ndarray, np.ndarray, np.ndarray]  # indices [K], means [K], standard errors [K]
Estimate = tuple[float, float]  # mean and standard error
Panel = tuple[str, int]  # derivative and subspace size
OVERLAP = r"overlap $\|U_k V_k^\top\|^2 / k$"


def one_panel(figsize: tuple[float, float] = (6, 4), **settings: Any) -> tuple[Figure, Axes]:
    """A figure of one panel, and this panel; `settings` are those of `Axes.set`."""
    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(subplot_kw=settings)


def _image_panels(
    title: str, figsize: tuple[float, float], rows: int, columns: int
) -> tuple[Figure, np.ndarray]:
    """A figure of panels [rows, columns] without ticks and frames."""
    figure = Figure(figsize=figsize, layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, squeeze=False, subplot_kw={"xticks": [], "yticks": []})
    for panel in axes.flat:
        panel.spines[:].set_visible(False)
    return figure, axes


def _show_signed(panel: Axes, values: np.ndarray, **how: str) -> None:
    """Values [H, W] in diverging colors, symmetric about 0."""
    limit = np.abs(values).max()
    panel.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, **how)


def fourier_energy(image: np.ndarray) -> np.ndarray:
    """|DFT|² of an image [H, W, C] or a signal [L, C], summed over channels, zero frequency at the
    center: [H, W] or [L].
    """
    axes = tuple(range(image.ndim - 1))
    spectrum = np.abs(np.fft.fftn(image, axes=axes)) ** 2
    return np.fft.fftshift(spectrum.sum(-1))


def plot_directions(
    directions: np.ndarray,
    image_shape: tuple[int, ...],
    title: str,
    symmetry: np.ndarray | tuple[str, ...] = (),
) -> Figure:
    """Directions [K, D] as images (diverging, symmetric about 0; channels side by side) over their
    Fourier energy; those of vectors and signals as lines, one for each channel, those of volumes as
    their middle slice.

    Each panel has its own scale and, where given, names the representation of its direction
    (`NADs.symmetry`, [K]). Frequencies are in cycles per length of an axis.
    """
    images = np.asarray(to_images(np.asarray(directions), image_shape))
    draw, label, (height, width, channels) = _draw_image, "pixels", (1, 1, 1)
    if images.ndim == 5:
        images, label = images[:, images.shape[1] // 2], "middle slice"
    if images.ndim == 4:
        _, height, width, channels = images.shape
    else:
        images = images.reshape(len(images), *spatial_shape(tuple(image_shape)), -1)
        draw, label = _draw_lines, "entries"
    # Inches; a pixel of a large image is one of the figure, at 150 dots per inch.
    panel = max(1.35 * max(1, channels / 2), channels * width / 150)
    columns = min(8, len(images), max(1, int(18 / panel)))
    rows = -(-len(images) // columns)
    figsize = (panel * columns + 0.3, 2 * max(1.45, height / 150 + 0.25) * rows + 0.5)
    figure, axes = _image_panels(title, figsize, 2 * rows, columns)
    upper, lower = axes[::2].flat, axes[1::2].flat
    for index, (entries, fourier, image) in enumerate(zip(upper, lower, images, strict=False)):
        draw(entries, fourier, image)
        of = f" {symmetry[index]}" if len(symmetry) else ""
        entries.set_title(f"$u_{{{index}}}${of}", fontsize=9)
        if index % columns == 0:
            entries.set_ylabel(label, fontsize=8)
            fourier.set_ylabel("Fourier energy", fontsize=8)
    first = axes[1, 0]
    for axis, length in zip((first.xaxis, first.yaxis), images.shape[-2:0:-1], strict=False):
        axis.set_ticks([-(length // 2), 0, length - length // 2 - 1])
    first.tick_params(labelsize=6)
    return figure


def _draw_image(pixel: Axes, fourier: Axes, image: np.ndarray) -> None:
    """An image [H, W, C], channels side by side, and its Fourier energy."""
    _show_signed(pixel, np.concatenate(list(np.moveaxis(image, -1, 0)), axis=1))
    height, width = image.shape[:2]
    bottom, left = -(height // 2) - 0.5, -(width // 2) - 0.5
    extent = (left, left + width, bottom + height, bottom)
    fourier.imshow(fourier_energy(image), cmap="magma", vmin=0, extent=extent)


def _draw_lines(entries: Axes, fourier: Axes, signal: np.ndarray) -> None:
    """A signal [L, C], a line for each channel, and its Fourier energy."""
    entries.plot(signal, linewidth=0.8)
    limit = 1.1 * np.abs(signal).max()
    entries.set_ylim(-limit, limit)
    length = len(signal)
    fourier.plot(np.arange(length) - length // 2, fourier_energy(signal), "k", linewidth=0.8)


def plot_spectrum(
    eigenvalues: np.ndarray,
    eigenvalue_sem: np.ndarray,
    title: str,
    null_band: tuple[float, float] | None = None,
    compared: np.ndarray | None = None,
) -> Figure:
    """Eigenvalues [K] against their index, logarithmic, ± one standard error, with null band and
    compared spectrum.
    """
    figure, axes = one_panel(
        title=title, xlabel="NAD index $i + 1$", ylabel=r"eigenvalue $\lambda_i$"
    )
    positive = eigenvalues > np.finfo(np.float32).eps * eigenvalues[0]  # below is rounding
    values, sem = eigenvalues[positive], eigenvalue_sem[positive]
    index = np.flatnonzero(positive) + 1
    top, bottom = values[0], values.min()
    low, high = np.maximum(values - sem, bottom / 2), values + sem
    label = "± split-half standard error"
    axes.fill_between(index, low, high, alpha=0.35, linewidth=0, label=label)
    axes.plot(index, values, label="eigenvalues")
    if compared is not None:
        axes.plot(np.arange(1, len(compared) + 1), compared, "k--", linewidth=1, label="compared")
    if null_band is not None:
        axes.axhspan(*null_band, color="gray", alpha=0.3, label="null band (Marchenko–Pastur)")
    if top < 1.5 * bottom:  # an isotropic spectrum is drawn flat, not as its rounding errors
        axes.set_ylim(bottom / 1.5, top * 1.5)
    axes.loglog()
    axes.legend()
    return figure


def plot_overlap(curves: dict[str, Line], dimension: int, title: str) -> Figure:
    """Subspace overlap against subspace size k, one (sizes [S], overlaps [S]) per label; k/D is
    that of chance.
    """
    figure, axes = one_panel(
        title=title, xlabel="subspace size $k$", ylabel=OVERLAP, ylim=(0, 1.02)
    )
    for label, (sizes, overlaps) in curves.items():
        axes.plot(sizes, overlaps, "o-", label=label)
    sizes = np.unique(np.concatenate([sizes for sizes, _ in curves.values()]))
    axes.plot(sizes, sizes / dimension, ":", color="gray", label="random subspaces")
    axes.set_xscale("log")
    axes.set_xticks(sizes, sizes)
    axes.minorticks_off()
    axes.legend()
    return figure


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
    figsize = max(4.2 * columns + 0.6, 8.0), 2.6 * rows + 1.2
    figure = Figure(figsize=figsize, layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel, (derivative, size) in zip(axes.T.flat, panels, strict=True):
        for number, (variant, lines) in enumerate(panels[derivative, size].items()):
            for line in lines:
                panel.plot(*line, ".-", color=f"C{number}", label=variant)
        panel.axhline(target, color="gray", linestyle="--", linewidth=1, label="target")
        agreement = halves[derivative, size]
        panel.axhline(agreement, color="gray", linestyle=":", label="halves of the reference")
        panel.set(xscale="log", ylim=(0, 1.02), xlabel="seconds", ylabel=OVERLAP)
        panel.set_title(f"{derivative}, $k = {size}$", fontsize=10)
        panel.label_outer()
    handles, labels = axes[0, 0].get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True)).values()  # one of a variant, for all seeds
    figure.legend(handles=entries, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def plot_poison_curve(
    curves: dict[str, Curve],
    clean: dict[str, Estimate],
    published: tuple[tuple[int, int, float, float], ...],
    title: str,
) -> Figure:
    """Test accuracy against the NAD index of the poison: (indices, means, standard errors) [K] per
    label.

    Accuracies are in [0, 1], errors nan where there is one seed. `clean` has the (mean, standard
    error) of networks trained on clean images; `published` ranges for ResNet18, (first index, last,
    lowest accuracy, highest), grey.
    """
    labels = {"xlabel": "NAD index of the poison $i$", "ylabel": "test accuracy (%)"}
    figure, axes = one_panel((6.5, 4), title=title, **labels)
    label = "published ranges, ResNet18"
    for first, last, lowest, highest in published:
        place, reach = [first, max(last, first + 0.1)], (100 * lowest, 100 * highest)
        axes.fill_between(place, *reach, color="lightgray", linewidth=2, label=label)
        label = ""  # one entry for all
    for label, (indices, means, sem) in curves.items():
        error = 100 * sem if np.isfinite(sem).all() else None
        axes.errorbar(indices, 100 * means, error, fmt="o-", capsize=3, label=label)
    for number, (label, (mean, error)) in enumerate(clean.items()):
        color, reach = f"C{number}", (100 * (mean - error), 100 * (mean + error))
        axes.axhline(100 * mean, color=color, linestyle="--", linewidth=1, label=label)
        if np.isfinite(error):
            axes.axhspan(*reach, color=color, alpha=0.2, linewidth=0)
    axes.set_xscale("symlog", linthresh=1)  # so that there is a place for index 0
    axes.set(xlim=(-0.2, 1.2 * 1023), ylim=(0, 101))
    axes.legend(loc="upper left", fontsize=8)
    return figure


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
    size = max(5.0, 2.5 + 1.5 * len(bars)), 4
    figure, axes = one_panel(size, title=title, ylabel="test accuracy (%)", ylim=(0, 101))
    width, marks, handles = 0.8 / len(names), [], {}
    for number, name in enumerate(names):
        offset = (number - (len(names) - 1) / 2) * width
        for place, label in enumerate(bars):
            if name not in bars[label]:
                continue
            x, (mean, error) = place + offset, bars[label][name]
            drawn = axes.bar(x, 100 * mean, width, color=f"C{number}", label=name)
            axes.bar_label(drawn, fmt="%.1f", label_type="center", color="white", fontsize=9)
            axes.errorbar(x, 100 * mean, 100 * error, color="black", capsize=3)
            handles[name] = drawn  # one entry per name
            if name in published.get(label, {}):
                marks.append((x, 100 * published[label][name]))
    if marks:
        style = {"markersize": 5, "fillstyle": "none", "label": "published"}
        (handles["published"],) = axes.plot(*np.transpose(marks), "kD", **style)
    axes.set_xticks(range(len(bars)), bars)
    axes.set_xlim(-0.6, len(bars) - 0.4)
    axes.legend(handles=handles.values(), loc="upper right")
    return figure


def plot_durations(rows: dict[str, dict[str, tuple[float, ...]]], names: tuple[str, ...]) -> Figure:
    """Durations in seconds, nan where there is none, as bars on a logarithmic scale.

    A panel for each key of `rows`, in it a group of bars for each label, one bar for each of
    `names`.
    """
    heights = [len(labels) for labels in rows.values()]
    figure = Figure(figsize=(7.5, 1.0 + 0.45 * sum(heights)), layout="constrained")
    panels = figure.subplots(len(rows), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    height = 0.8 / len(names)
    for axes, (title, labels) in zip(panels, rows.items(), strict=True):
        for number, name in enumerate(names):
            places = np.arange(len(labels)) + (number - (len(names) - 1) / 2) * height
            lengths = [seconds[number] for seconds in labels.values()]
            axes.barh(places, lengths, height, label=name)
        axes.set_yticks(range(len(labels)), labels)
        axes.set(xscale="log", title=title)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("seconds per network or step")
    figure.legend(handles=axes.containers, loc="outside upper center", ncols=len(names))
    return figure


def _displayed(image: np.ndarray) -> np.ndarray:
    """An image [H, W, C] in [0, 1]; one that leaves that range is scaled so that it holds 96 % of
    its entries.
    """
    if image.min() >= 0 and image.max() <= 1:
        return image
    low, high = np.percentile(image, [2, 98])
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1)


def plot_images(
    rows: dict[str, np.ndarray], title: str, carriers: dict[str, np.ndarray] | None = None
) -> Figure:
    """A row of images [B, H, W, 3] per label; on the right the carrier [H, W] of those labels that
    have one.

    Images that leave [0, 1] are scaled to it, each by itself, without their 2 % smallest and
    largest entries. Carriers are diverging, symmetric about 0.
    """
    carriers = carriers or {}
    columns = max(map(len, rows.values())) + bool(carriers)
    figsize = (1.2 * columns + 1, 1.25 * len(rows) + 0.6)
    figure, axes = _image_panels(title, figsize, len(rows), columns)
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label)
        for panel, image in zip(line, images, strict=False):
            panel.imshow(_displayed(image), interpolation="nearest")
        if label in carriers:
            _show_signed(line[-1], carriers[label], interpolation="nearest")
            if label == next(iter(carriers)):
                line[-1].set_title("carrier", fontsize=9)
    return figure
