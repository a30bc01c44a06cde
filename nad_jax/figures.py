"""What all figures share: colors, marks and sizes for print, and files that are the same each time.

Figures fit a column (`COLUMN`) or the width of a page (`PAGE`), in inches; text is 6 to 8 points.
"""

import textwrap
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

COLUMN, PAGE = 3.25, 6.75  # of the narrowest usual two-column page
FORMATS = ("png", "pdf", "svg")
# Any two are at least 17 apart (CIEDE2000), for readers without red or green cones too.
COLORS = ("#29516e", "#cc5f0e", "#7fc3f0", "#157056", "#f3ab00", "#9e6cb0")
INK, GRAY = "#000000", "#8c8c8c"  # of what series are compared with
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")
# Blue to red, steps of equal CIEDE2000: `RdBu_r` of matplotlib has steps that differ by 2.3.
SIGNED = LinearSegmentedColormap.from_list(
    "signed",
    (
        "#053061", "#175392", "#2c75b3", "#4796c4", "#82bbd8", "#c3deec", "#f7f7f7",
        "#fdddcb", "#f5ae8e", "#e27b62", "#ca4a42", "#a41429", "#67001f",
    ),
)  # fmt: skip
LEVELS, ENERGIES, STEPS = "viridis", "magma", "magma_r"  # perceptually uniform
_STYLE = {
    "font.size": 7, "axes.titlesize": 7, "axes.labelsize": 7, "figure.titlesize": 8,
    "xtick.labelsize": 6, "ytick.labelsize": 6, "legend.fontsize": 6,
    "lines.linewidth": 1.2, "lines.markersize": 3.5, "axes.linewidth": 0.6, "hatch.linewidth": 0.5,
    "errorbar.capsize": 3, "legend.columnspacing": 1, "patch.linewidth": 0.6, "legend.frameon": False,
    "legend.handlelength": 2.5,
    **{f"{axis}tick.major.{name}": value
       for axis in "xy" for name, value in (("width", 0.6), ("size", 2.5), ("pad", 2))},
    "pdf.fonttype": 42, "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "nad_jax",
}  # fmt: skip
_NO_DATE = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}

styled = matplotlib.rc_context(_STYLE)  # a decorator of what makes figures


class PrintedFigure(Figure):
    """A figure that is saved in this style, whatever matplotlib is set to: text embedded as text,
    no date in the file.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"dpi": 200, **settings})

    @styled
    def savefig(self, fname: Any, **settings: Any) -> None:
        kind = settings.get("format") or str(fname).rpartition(".")[2].lower()
        metadata = {**_NO_DATE.get(kind, {}), **(settings.pop("metadata", None) or {})}
        super().savefig(fname, **settings, **({"metadata": metadata} if metadata else {}))


@styled
def one_panel(
    title: str, size: tuple[float, float] = (COLUMN, 1.95), **settings: Any
) -> tuple[Figure, Axes]:
    """A figure of one panel, and this panel; `settings` are those of `Axes.set`.

    The size is without title and legend, which add to the height.
    """
    figure = PrintedFigure(figsize=size, layout="constrained")
    set_title(figure, title)
    return figure, figure.subplots(subplot_kw=settings)


def set_title(figure: Figure, title: str) -> None:
    """Gives a figure its title, in lines that fit its width, and the height that they take."""
    if title:
        text = wrap(title, figure.get_figwidth())
        figure.set_figheight(figure.get_figheight() + 0.14 * (text.count("\n") + 1))
        figure.suptitle(text)


def wrap(text: str, inches: float, points: float = 8) -> str:
    """A text of this size in lines that fit; its own line breaks are kept, and equations whole."""
    limit, lines = 72 * (inches - 0.1), []
    for line in text.replace(" = ", "\u00a0=\u00a0").splitlines():
        row = ""
        for word in line.split(" "):
            # A word that is too long for a line is cut, by the width of wide letters.
            cut = (
                textwrap.wrap(word, int(limit / points)) if _width(word, points) > limit else [word]
            )
            for piece in cut:
                longer = f"{row} {piece}" if row else piece
                if row and _width(longer, points) > limit:
                    lines.append(row)
                    longer = piece
                row = longer
        lines.append(row)
    return "\n".join(lines)


def _width(text: str, points: float) -> float:
    """How wide a line of text is, in points."""
    font = FontProperties(size=points)
    return text_to_path.get_text_width_height_descent(text, font, ismath="$" in text)[0]


def series(number: int) -> dict[str, str]:
    """Color, marker and line of a series, for `Axes.plot`; no two of the first 42 are alike in color
    and marker.
    """
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[number // len(COLORS) % len(LINES)],
    }


def add_legend(figure: Figure, handles: dict[str, Any]) -> None:
    """A legend below all panels, in as many columns as fit, and the height that it takes."""
    longest = max(_width(label, 6) for label in handles)
    columns = int((figure.get_figwidth() * 72 - 6) / (longest + 25))  # marks and space beside
    columns = max(1, min(columns, len(handles)))
    rows = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.13 * rows + 0.05)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns)
