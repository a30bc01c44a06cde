"""Figures from arrays: every function returns a matplotlib `Figure`; nothing is computed from
networks here.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nad_jax.directions import spatial_shape, to_images


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
    label = "entries" if images.ndim < 4 else "pixels"
    if images.ndim == 5:
        images, label = images[:, images.shape[1] // 2], "middle slice"
    if images.ndim < 4:
        images = images.reshape(len(images), *spatial_shape(tuple(image_shape)), -1)
    draw = _draw_image if images.ndim == 4 else _draw_lines
    height, width, channels = images.shape[1:] if images.ndim == 4 else (1, 1, 1)
    # Inches; a pixel of a large image is one of the figure, at 150 dots per inch.
    panel = max(1.35 * max(1, channels / 2), channels * width / 150)
    columns = min(8, len(images), max(1, int(18 / panel)))
    rows = -(-len(images) // columns)
    figsize = (panel * columns + 0.3, 2 * max(1.45, height / 150 + 0.25) * rows + 0.5)
    figure = Figure(figsize=figsize, layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    for index, image in enumerate(images):
        row, column = 2 * (index // columns), index % columns
        draw(axes[row, column], axes[row + 1, column], image)
        of = f" {symmetry[index]}" if len(symmetry) else ""
        axes[row, column].set_title(f"$u_{{{index}}}${of}", fontsize=9)
        if column == 0:
            axes[row, column].set_ylabel(label, fontsize=8)
            axes[row + 1, column].set_ylabel("Fourier energy", fontsize=8)
    first = axes[1, 0]
    for axis, length in zip((first.xaxis, first.yaxis), images.shape[-2:0:-1], strict=False):
        axis.set_ticks([-(length // 2), 0, length - length // 2 - 1])
    first.tick_params(labelsize=6)
    return figure


def _draw_image(pixel: Axes, fourier: Axes, image: np.ndarray) -> None:
    """An image [H, W, C], channels side by side, and its Fourier energy."""
    limit = np.abs(image).max()
    tiled = np.concatenate(list(np.moveaxis(image, -1, 0)), axis=1)
    pixel.imshow(tiled, cmap="RdBu_r", vmin=-limit, vmax=limit)
    height, width = image.shape[:2]
    bottom, left = -(height // 2) - 0.5, -(width // 2) - 0.5
    extent = (left, left + width, bottom + height, bottom)
    fourier.imshow(fourier_energy(image), cmap="magma", vmin=0, extent=extent)


def _draw_lines(entries: Axes, fourier: Axes, signal: np.ndarray) -> None:
    """A signal [L, C], a line for each channel, and its Fourier energy."""
    entries.plot(signal, linewidth=0.8)
    entries.set_ylim(*(1.1 * np.abs(signal).max() * np.array([-1, 1])))
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
    index = np.arange(1, len(eigenvalues) + 1)
    positive = eigenvalues > np.finfo(np.float32).eps * eigenvalues[0]  # below is rounding
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    floor = eigenvalues[positive].min() / 2
    low, high = np.maximum(eigenvalues - eigenvalue_sem, floor), eigenvalues + eigenvalue_sem
    axes.fill_between(
        index[positive],
        low[positive],
        high[positive],
        alpha=0.35,
        linewidth=0,
        label="± split-half standard error",
    )
    axes.plot(index[positive], eigenvalues[positive], label="eigenvalues")
    if compared is not None:
        axes.plot(np.arange(1, len(compared) + 1), compared, "k--", linewidth=1, label="compared")
    if null_band is not None:
        axes.axhspan(*null_band, color="gray", alpha=0.3, label="null band (Marchenko–Pastur)")
    top, bottom = eigenvalues[0], eigenvalues[positive].min()
    if top < 1.5 * bottom:  # an isotropic spectrum is drawn flat, not as its rounding errors
        axes.set_ylim(bottom / 1.5, top * 1.5)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="NAD index $i + 1$",
        ylabel=r"eigenvalue $\lambda_i$",
        title=title,
    )
    axes.legend()
    return figure


def plot_overlap(
    curves: dict[str, tuple[np.ndarray, np.ndarray]], dimension: int, title: str
) -> Figure:
    """Subspace overlap against subspace size k, one (sizes [S], overlaps [S]) per label; k/D is
    that of chance.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for label, (sizes, overlaps) in curves.items():
        axes.plot(sizes, overlaps, "o-", label=label)
    sizes = np.unique(np.concatenate([sizes for sizes, _ in curves.values()]))
    axes.plot(sizes, sizes / dimension, ":", color="gray", label="random subspaces")
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="subspace size $k$", title=title)
    axes.set_ylabel(r"overlap $\|U_k V_k^\top\|^2 / k$")
    axes.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    axes.minorticks_off()
    axes.legend()
    return figure


def plot_time_to_accuracy(
    panels: dict[tuple[str, int], dict[str, list[tuple[np.ndarray, np.ndarray]]]],
    halves: dict[tuple[str, int], float],
    target: float,
    title: str,
) -> Figure:
    """Overlap with a reference against seconds, logarithmic.

    Args:
      panels: for each derivative (a column) and subspace size (a row) the lines (seconds [T],
        overlaps [T]) of each variant, of one seed or several.
      halves: for each of them, how much the halves of the reference overlap; dotted.
      target: the overlap that is asked for; dashed.
    """
    derivatives, sizes = ({key[place]: None for key in panels} for place in (0, 1))
    shape = len(sizes), len(derivatives)
    figure = Figure(
        figsize=(max(4.2 * shape[1] + 0.6, 8.0), 2.6 * shape[0] + 1.2), layout="constrained"
    )
    figure.suptitle(title)
    axes = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False)
    for row, size in zip(axes, sizes, strict=True):
        for panel, derivative in zip(row, derivatives, strict=True):
            for number, (variant, lines) in enumerate(panels[derivative, size].items()):
                for seconds, overlaps in lines:
                    panel.plot(seconds, overlaps, ".-", color=f"C{number}", label=variant)
            panel.axhline(target, color="gray", linestyle="--", linewidth=1, label="target")
            panel.axhline(
                halves[derivative, size],
                color="gray",
                linestyle=":",
                label="halves of the reference",
            )
            panel.set(xscale="log", ylim=(0, 1.02))
            panel.set_title(f"{derivative}, $k = {size}$", fontsize=10)
        row[0].set_ylabel(r"overlap $\|U_k V_k^\top\|^2 / k$")
    for panel in axes[-1]:
        panel.set_xlabel("seconds")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    lines = dict(
        zip(labels, handles, strict=True)
    )  # one entry per variant, whatever the number of seeds
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def plot_poison_curve(
    curves: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    clean: dict[str, tuple[float, float]],
    published: tuple[tuple[int, int, float, float], ...],
    title: str,
) -> Figure:
    """Test accuracy against the NAD index of the poison: (indices, means, standard errors) [K] per
    label.

    Accuracies are in [0, 1], errors nan where there is one seed. `clean` has the (mean, standard
    error) of networks trained on clean images; `published` ranges for ResNet18, (first index, last,
    lowest accuracy, highest), grey.
    """
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for number, (first, last, lowest, highest) in enumerate(published):
        label = "" if number else "published ranges, ResNet18"
        place = [first, max(last, first + 0.1)]
        axes.fill_between(
            place, 100 * lowest, 100 * highest, color="lightgray", linewidth=2, label=label
        )
    for label, (indices, means, sem) in curves.items():
        error = 100 * sem if np.isfinite(sem).all() else None
        axes.errorbar(indices, 100 * means, error, fmt="o-", capsize=3, label=label)
    for number, (label, (mean, error)) in enumerate(clean.items()):
        axes.axhline(100 * mean, color=f"C{number}", linestyle="--", linewidth=1, label=label)
        if np.isfinite(error):
            axes.axhspan(
                100 * (mean - error),
                100 * (mean + error),
                color=f"C{number}",
                alpha=0.2,
                linewidth=0,
            )
    axes.set_xscale("symlog", linthresh=1)  # so that there is a place for index 0
    axes.set(xlabel="NAD index of the poison $i$", ylabel="test accuracy (%)", title=title)
    axes.set(xlim=(-0.2, 1.2 * 1023), ylim=(0, 101))
    axes.legend(loc="upper left", fontsize=8)
    return figure


def plot_bars(
    bars: dict[str, dict[str, tuple[float, float]]],
    names: tuple[str, ...],
    published: dict[str, dict[str, float]],
    title: str,
) -> Figure:
    """Test accuracies in [0, 1], (mean, standard error), as bars: a group per label, in it a bar
    for each of `names`.

    Errors are nan where there is one seed. `published` accuracies of the same labels and names are
    marked.
    """
    figure = Figure(figsize=(max(5.0, 2.5 + 1.5 * len(bars)), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(names)
    marks = []
    for number, name in enumerate(names):
        offset = (number - (len(names) - 1) / 2) * width
        for place, (label, group) in enumerate(bars.items()):
            if name in group:
                mean, error = group[name]
                drawn = axes.bar(place + offset, 100 * mean, width, color=f"C{number}", label=name)
                axes.bar_label(drawn, fmt="%.1f", label_type="center", color="white", fontsize=9)
                if np.isfinite(error):
                    axes.errorbar(place + offset, 100 * mean, 100 * error, color="black", capsize=3)
            if name in group and name in published.get(label, {}):
                marks.append((place + offset, 100 * published[label][name]))
    if marks:
        axes.plot(*np.transpose(marks), "kD", markersize=5, fillstyle="none", label="published")
    axes.set_xticks(range(len(bars)), list(bars))
    axes.set(ylabel="test accuracy (%)", xlim=(-0.6, len(bars) - 0.4), ylim=(0, 101), title=title)
    handles = dict(
        reversed(list(zip(*axes.get_legend_handles_labels()[::-1], strict=True)))
    )  # one entry per name
    shown = [name for name in (*names, "published") if name in handles]
    axes.legend([handles[name] for name in shown], shown, loc="upper right")
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
            axes.barh(
                places, [durations[number] for durations in labels.values()], height, label=name
            )
        axes.set_yticks(range(len(labels)), list(labels))
        axes.set(xscale="log", title=title)
        axes.invert_yaxis()
        axes.grid(axis="x", alpha=0.3)
    panels[-1].set_xlabel("seconds per network or step")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(names)
    )
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
    figure = Figure(figsize=(1.2 * columns + 1, 1.25 * len(rows) + 0.6), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for panel in axes.flat:
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label)
        for panel, image in zip(line, images, strict=False):
            panel.imshow(_displayed(image), interpolation="nearest")
        if label in carriers:
            limit = np.abs(carriers[label]).max()
            line[-1].imshow(
                carriers[label], cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest"
            )
    for label in list(carriers)[:1]:
        axes[list(rows).index(label), -1].set_title("carrier", fontsize=9)
    return figure
