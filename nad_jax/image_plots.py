"""Figures of directions and of images, from arrays."""

import math
import string
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nad_jax.directions import spatial_shape, to_images
from nad_jax.figures import (
    COLORS,
    COLUMN,
    ENERGIES,
    GRAY,
    INK,
    LINES,
    PAGE,
    SIGNED,
    PrintedFigure,
    set_title,
    styled,
    wrap,
)

Groups = tuple[list[list[int]], float]  # of `nads.degenerate_groups`
NO_GROUPS: Groups = ([], 0.0)
Draw = Callable[[Axes, np.ndarray], None]
# Inches: margins, ticks included; the names above a card, and what is between cards.
_LEFT, _RIGHT, _HEAD, _APART = 0.5, 0.07, 0.44, 0.09


class Part(NamedTuple):
    """A panel of a card: what draws it, its left, top, width and height in widths of the card, a
    name below it, and whether its axes are frequencies.
    """

    draw: Draw
    left: float
    top: float
    width: float
    height: float
    name: str = ""
    is_fourier: bool = False


class Card(NamedTuple):
    """How one direction is shown: its panels, the height of them all in widths of the card, how
    many cards fit a page, whether they are images, and whether the axes beside and below the cards
    are of all of them.
    """

    parts: list[Part]
    height: float
    columns: int
    of_images: bool = True
    has_axes: bool = True


def fourier_energy(image: np.ndarray) -> np.ndarray:
    """|DFT|² of an image [H, W, C] or a signal [L, C], summed over channels, zero frequency at the
    center: [H, W] or [L].
    """
    axes = tuple(range(image.ndim - 1))
    spectrum = np.abs(np.fft.fftn(image, axes=axes)) ** 2
    return np.fft.fftshift(spectrum.sum(-1))


def _show_signed(panel: Axes, values: np.ndarray, limit: float | None = None, **how: str) -> None:
    """Values [H, W] in diverging colors, symmetric about 0."""
    limit = np.abs(values).max() if limit is None else limit
    panel.imshow(values, cmap=SIGNED, vmin=-limit, vmax=limit, aspect="auto", **how)


def _draw_channels(panel: Axes, image: np.ndarray) -> None:
    """An image [H, W, C], channels side by side."""
    _show_signed(panel, np.concatenate(list(np.moveaxis(image, -1, 0)), axis=1))


def _draw_channel(channel: int) -> Draw:
    """Draws one channel of an image [H, W, C], on the scale of them all."""
    return lambda panel, image: _show_signed(panel, image[..., channel], np.abs(image).max())


def _draw_color(panel: Axes, image: np.ndarray) -> None:
    """An image [H, W, 3] in its own colors about gray: zero is gray, the largest entry bright."""
    panel.imshow(0.5 + 0.5 * image / np.abs(image).max(), aspect="auto")


def _draw_energy(panel: Axes, image: np.ndarray) -> None:
    """The Fourier energy of an image [H, W, C] over its frequencies."""
    height, width = image.shape[:2]
    bottom, left = -(height // 2) - 0.5, -(width // 2) - 0.5
    extent = (left, left + width, bottom + height, bottom)
    panel.imshow(fourier_energy(image), cmap=ENERGIES, vmin=0, extent=extent, aspect="auto")


def _draw_lines(panel: Axes, signal: np.ndarray) -> None:
    """A signal [L, C], a line for each channel."""
    panel.axhline(0, color=GRAY, linewidth=0.5)
    for channel, values in enumerate(signal.T):
        color, line = COLORS[channel % len(COLORS)], LINES[channel % len(LINES)]
        panel.plot(values, line, color=color, linewidth=0.9)
    limit = 1.1 * np.abs(signal).max()
    panel.set_ylim(-limit, limit)


def _draw_line_energy(panel: Axes, signal: np.ndarray) -> None:
    """The Fourier energy of a signal [L, C] over its frequencies."""
    places = np.arange(len(signal)) - len(signal) // 2
    panel.fill_between(places, fourier_energy(signal), color=GRAY, linewidth=0)
    panel.plot(places, fourier_energy(signal), color=INK, linewidth=0.7)
    panel.set_ylim(0, None)


def _make_card(shape: tuple[int, ...]) -> Card:
    """How directions of this shape, [H, W, C] or [L, C], are shown."""
    if len(shape) == 2:
        parts = [
            Part(_draw_lines, 0, 0, 1, 0.36),
            Part(_draw_line_energy, 0, 0.41, 1, 0.36, "", True),
        ]
        return Card(parts, 0.77, 4, of_images=False)
    height, width, channels = shape
    ratio = float(np.clip(height / width, 0.25, 4))
    large = max(height, width) > 96  # a pixel of the image is one of the figure
    if channels != 3:
        high, side = ratio / channels, 1 / channels
        parts = [
            Part(_draw_channels, 0, 0, 1, high),
            Part(_draw_energy, (1 - side) / 2, high + 0.08, side, high, "", True),
        ]
        # Low images are wider, so that there is a place for what is written beside them.
        fitting = max(1, 8 // channels // (2 if large else 1))
        fitting = min(fitting, 8 if high >= 0.6 else 4 if high >= 0.3 else 2)
        return Card(parts, 2 * high + 0.08, fitting)
    half, third = 0.48, 0.3
    parts = [
        Part(_draw_color, 0, 0, half, half * ratio, "color"),
        Part(_draw_energy, 1 - half, 0, half, half * ratio, "Fourier energy", True),
    ]
    top = half * ratio + 0.12
    for channel, name in enumerate(("red", "green", "blue")):
        left = channel * (1 - third) / 2
        parts.append(Part(_draw_channel(channel), left, top, third, third * ratio, name))
    return Card(parts, top + third * ratio + 0.1, 2 if large else 4, has_axes=False)


def _name_errors(values: np.ndarray, errors: np.ndarray) -> tuple[list[str], str]:
    """Eigenvalues ± standard errors [K] as text, with a common power of ten, and what this text
    is.
    """
    power = math.floor(math.log10(values[0])) if values[0] > 0 else 0
    known = np.isfinite(errors) & (errors > 0)
    names = []
    for value, error, has_error in zip(values, errors, known, strict=True):
        value, error = value / 10.0**power, error / 10.0**power
        # One digit of the error, two where it starts with 1.
        digits = int(np.clip(-math.floor(math.log10(error / 2)), 0, 4)) if has_error else 2
        names.append(f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if has_error else ""))
    said = "below each name its eigenvalue" + " ± standard error" * bool(known.any())
    return names, said + (rf", in units of $10^{{{power}}}$" if power else "")


@styled
def plot_directions(
    directions: np.ndarray,
    image_shape: tuple[int, ...],
    title: str,
    symmetry: np.ndarray | tuple[str, ...] = (),
    eigenvalues: np.ndarray | None = None,
    eigenvalue_sem: np.ndarray | None = None,
    groups: Groups = NO_GROUPS,
    blocks: str = "",
) -> Figure:
    """Directions [K, D] as images with their Fourier energy, each on its own scale.

    Entries are in diverging colors, symmetric about 0; those of three channels also as a color
    image, gray where they are 0; those of vectors and signals as lines, one for each channel; those
    of volumes as their middle slice. Frequencies are in cycles per image, or per length.

    Args:
      symmetry: [K] the representation of each direction, see `NADs.symmetry`.
      eigenvalues, eigenvalue_sem: [K] of the directions, and their standard errors.
      groups: indices of directions that are not determined one by one, and the tolerance of their
        eigenvalues, of `nads.degenerate_groups`: each is marked by a bracket with a letter.
      blocks: what is said of exactly equal blocks.
    """
    images = np.asarray(to_images(np.asarray(directions), image_shape))
    notes = []
    if images.ndim == 5:
        images = images[:, images.shape[1] // 2]
        notes.append("middle slices")
    elif images.ndim < 4:
        images = images.reshape(len(images), *spatial_shape(tuple(image_shape)), -1)
    count, card = len(images), _make_card(images.shape[1:])
    names = [f"$u_{{{k}}}$" + (f"  {symmetry[k]}" if len(symmetry) else "") for k in range(count)]
    if eigenvalues is not None:
        errors = np.full(count, np.nan) if eigenvalue_sem is None else eigenvalue_sem
        texts, said = _name_errors(eigenvalues[:count], errors[:count])
        names = [f"{name}\n{text}" for name, text in zip(names, texts, strict=True)]
        notes.append(said)
    members, tolerance = groups
    members = [group for group in members if group[0] < count]
    if members:
        notes.append(
            f"brackets of one letter: eigenvalues equal within {tolerance:.0%}, single directions "
            "not determined"
        )
    if blocks:
        notes.append(blocks)
    if not card.has_axes:
        down, across = (f"−{length // 2} … {(length - 1) // 2}" for length in images.shape[1:3])
        notes.append(
            f"Fourier energy over frequencies {across} (across) and {down} (down) in cycles per image"
        )
    if not card.of_images:
        notes.append(f"entries over their index 0 … {images.shape[1] - 1}")
        lines = "solid", "dashed", "dash-dotted", "dotted"
        if 1 < (channels := images.shape[2]) <= len(lines):
            notes.append(f"channels 0 … {channels - 1} {', '.join(lines[:channels])}")
    note = "; ".join([*notes, "each panel on its own scale"])
    sheet = _Sheet(card, count, title, note[:1].upper() + note[1:])
    for index, image in enumerate(images):
        sheet.show(index, image, names[index])
    for number, group in enumerate(members):
        sheet.mark(number, group)
    sheet.label()
    return sheet.figure


class _Sheet:
    """A figure of cards, one for each direction; everything is placed in inches."""

    def __init__(self, card: Card, count: int, title: str, note: str) -> None:
        self.card, self.count, self.columns = card, count, min(count, card.columns)
        width = PAGE if 2 * self.columns > card.columns else COLUMN
        room = width - _LEFT - _RIGHT + _APART
        self.side = min(room / self.columns - _APART, 1.6)
        self.step = _HEAD + card.height * self.side + _APART
        title, note = wrap(title, width), wrap(note, width - 0.2, 6)
        self.top = 0.12 + 0.14 * (title.count("\n") + 1)
        self.below = self.top + -(-count // self.columns) * self.step  # the cards
        self.bars = self.below + (0.36 if card.has_axes else 0.04)
        foot = self.bars + (0.34 if card.of_images else 0.04)
        height = foot + 0.11 * (note.count("\n") + 1) * bool(note) + 0.04
        self.figure = PrintedFigure(figsize=(width, height))
        self.write(title, width / 2, 0.08, fontsize=8, ha="center", va="top")
        self.write(note, 0.1, foot, fontsize=6, ha="left", va="top")

    def write(self, text: str, left: float, top: float, **how: Any) -> None:
        """Writes a text, centered at a place unless `how` says otherwise."""
        wide, high = self.figure.get_size_inches()
        how = {"ha": "center", "va": "center", "fontsize": 6, **how}
        self.figure.text(left / wide, 1 - top / high, text, **how)

    def add_axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """A panel without ticks."""
        wide, high = self.figure.get_size_inches()
        place = left / wide, 1 - (top + height) / high, width / wide, height / high
        axes = self.figure.add_axes(place, xticks=[], yticks=[])
        axes.spines[:].set(linewidth=0.4, color=GRAY)
        return axes

    def corner(self, index: int) -> tuple[float, float]:
        """Left and top of a card."""
        row, column = divmod(index, self.columns)
        return _LEFT + column * (self.side + _APART), self.top + row * self.step

    def show(self, index: int, image: np.ndarray, name: str) -> None:
        """Draws a direction."""
        (left, top), side = self.corner(index), self.side
        how = {"va": "bottom", "fontsize": 6.5, "linespacing": 1.15}
        self.write(name, left + side / 2, top + _HEAD - 0.03, **how)
        for part in self.card.parts:
            x, y = left + part.left * side, top + _HEAD + part.top * side
            axes = self.add_axes(x, y, part.width * side, part.height * side)
            part.draw(axes, image)
            if part.name:
                axes.set_xlabel(part.name, fontsize=5.5, labelpad=1)
            if self.card.has_axes and part.is_fourier:
                self._add_ticks(axes, index, image.shape[:-1])

    def _add_ticks(self, axes: Axes, index: int, lengths: tuple[int, ...]) -> None:
        """Frequencies at the left of the first column of cards, and below the last cards."""
        shown = {axes.xaxis: (lengths[-1], index + self.columns >= self.count)}
        if len(lengths) == 2:
            shown[axes.yaxis] = lengths[0], index % self.columns == 0
        for axis, (length, here) in shown.items():
            if here:
                axis.set_ticks(sorted({-(length // 4), 0, length // 4}))
                axis.set_tick_params(labelsize=5.5)

    def mark(self, number: int, group: list[int]) -> None:
        """Draws the bracket of a group, in pieces where its cards are apart."""
        letter = string.ascii_lowercase[number % 26] + str(number // 26) * (number > 25)
        wide, high = self.figure.get_size_inches()
        for first, last in self._runs(group):
            (left, top), (right, _) = self.corner(first), self.corner(last)
            right, top = right + self.side, top + 0.1
            x = np.array([left, left, right, right]) / wide
            y = 1 - np.array([top + 0.045, top, top, top + 0.045]) / high
            self.figure.add_artist(Line2D(x, y, color=COLORS[number % len(COLORS)]))
            goes_on = group[-1] >= self.count and last == max(k for k in group if k < self.count)
            text = f" {letter}, to $u_{{{group[-1]}}}$ " if goes_on else f" {letter} "
            box = {"facecolor": "white", "edgecolor": "none", "pad": 0}
            self.write(text, (left + right) / 2, top, weight="bold", bbox=box)

    def _runs(self, group: list[int]) -> Iterator[tuple[int, int]]:
        """First and last of the shown members of a group that follow each other in one row."""
        shown = [index for index in group if index < self.count]
        first = shown[0]
        for one, following in zip(shown, [*shown[1:], None], strict=True):
            if following != one + 1 or following % self.columns == 0:
                yield first, one
                first = following

    def label(self) -> None:
        """Says what the rows, the axes and the colors are."""
        card, side = self.card, self.side
        if card.has_axes:
            entries, fourier = card.parts
            for row in range(-(-self.count // self.columns)):
                top = self.top + row * self.step + _HEAD
                for part, text in ((entries, "entries"), (fourier, "Fourier\nenergy")):
                    middle = top + (part.top + part.height / 2) * side
                    self.write(text, 0.14, middle, rotation=90)
            of = "image" if card.of_images else "length"
            middle = self.figure.get_figwidth() / 2
            self.write(f"frequency (cycles per {of})", middle, self.below + 0.2, fontsize=7)
        if card.of_images:
            self._add_bars()

    def _add_bars(self) -> None:
        """The colors of entries and of energies, beside each other below the cards."""
        wide = self.figure.get_figwidth()
        width = min(1.3, wide / 2 - 0.95)
        start = (wide - 2 * width - 0.95) / 2
        bars = (SIGNED, (-1, 0, 1), "entries"), (ENERGIES, (0, 1), "Fourier energy")
        for number, (colors, ticks, name) in enumerate(bars):
            left = start + number * (width + 0.95)
            axes = self.add_axes(left, self.bars, width, 0.07)
            scale = ScalarMappable(Normalize(ticks[0], 1), colors)
            bar = self.figure.colorbar(scale, cax=axes, orientation="horizontal", ticks=ticks)
            bar.set_ticklabels([("−max", "0", "max")[1 + tick] for tick in ticks], fontsize=5.5)
            bar.outline.set_linewidth(0.4)
            self.write(name, left - 0.08, self.bars + 0.035, ha="right")


def _displayed(image: np.ndarray) -> np.ndarray:
    """An image [H, W, C] in [0, 1]; one that leaves that range is scaled so that it holds 96 % of
    its entries.
    """
    if image.min() >= 0 and image.max() <= 1:
        return image
    low, high = np.percentile(image, [2, 98])
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1)


@styled
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
    side = min((PAGE - 0.35) / columns, 0.85)
    size = max(side * columns + 0.35, COLUMN), (side + 0.03) * len(rows) + 0.2
    figure = PrintedFigure(figsize=size, layout="constrained")
    set_title(figure, title)
    axes = figure.subplots(
        len(rows), columns, squeeze=False, subplot_kw={"xticks": [], "yticks": []}
    )
    for panel in axes.flat:
        panel.spines[:].set_visible(False)
    for line, (label, images) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(label)
        for panel, image in zip(line, images, strict=False):
            panel.imshow(_displayed(image), interpolation="nearest")
        if label in carriers:
            _show_signed(line[-1], carriers[label])
            line[-1].set_aspect("equal")
    if carriers:
        above = axes[0, -1]
        place = {"x": 0.5, "y": 1.05 if next(iter(rows)) in carriers else 0.02}
        above.text(s="carrier", ha="center", va="bottom", transform=above.transAxes, **place)
    return figure
