"""Every figure in print: sizes, text, colors that all readers tell apart, files."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.text import Text

from nad_jax import accuracy_plots, figures, image_plots, plotting, store
from tests.test_configs import ROOT

# Machado, Oliveira and Fernandes (2009), "A physiologically-based model for simulation of color
# vision deficiency", severity 1.0; of linear RGB.
VISION = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}
# Pairs of CIELAB colors and their CIEDE2000: Sharma, Wu and Dalal (2005), "The CIEDE2000
# color-difference formula: implementation notes, supplementary test data, and mathematical
# observations", table 1.
SHARMA = [
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
    ((50, 0, 0), (50, -1, 2), 2.3669),
    ((50, 2.49, -0.001), (50, -2.49, 0.0009), 7.1792),
    ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
    ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
    ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((90.8027, -2.0831, 1.4410), (91.1528, -1.6435, 0.0447), 1.4441),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.072175],
        [0.0193339, 0.119192, 0.9503041],
    ]
)  # of linear sRGB, white D65


def _lab(rgb, vision="usual"):
    """CIELAB of sRGB colors [..., 3] in [0, 1], as seen."""
    rgb = np.asarray(rgb)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ VISION[vision].T, 0, 1)
    xyz = seen @ XYZ.T / XYZ.sum(1)
    x, y, z = np.moveaxis(
        np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29), -1, 0
    )
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def _ciede2000(one, other):
    """The difference of CIELAB colors [..., 3]."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(one, -1, 0), np.moveaxis(other, -1, 0)
    power = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    stretch = 1.5 - 0.5 * np.sqrt(power / (power + 25.0**7))
    c1, c2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, stretch * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = np.where(c1 * c2 == 0, 0, (h2 - h1 + 180) % 360 - 180)
    hue = np.where(c1 * c2 == 0, h1 + h2, (h1 + turn / 2) % 360)
    lightness, chroma = (l1 + l2) / 2 - 50, (c1 + c2) / 2

    def cos(factor, shift):
        return np.cos(np.radians(factor * hue + shift))

    t = 1 - 0.17 * cos(1, -30) + 0.24 * cos(2, 0) + 0.32 * cos(3, 6) - 0.2 * cos(4, -63)
    by_lightness = (l2 - l1) / (1 + 0.015 * lightness**2 / np.sqrt(20 + lightness**2))
    by_chroma = (c2 - c1) / (1 + 0.045 * chroma)
    by_hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * t)
    angle = np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2)))
    mixed = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * np.sin(angle)
    return np.sqrt(by_lightness**2 + by_chroma**2 + by_hue**2 + mixed * by_chroma * by_hue)


@pytest.mark.parametrize(("one", "other", "difference"), SHARMA)
def test_the_difference_of_colors_is_the_published_one(one, other, difference):
    for pair in ((one, other), (other, one)):
        found = _ciede2000(*np.array(pair, float))
        np.testing.assert_allclose(found, difference, atol=5e-5)


def test_simulated_vision_keeps_gray_and_confuses_red_with_green():
    gray = np.full(3, 0.5)
    for vision in VISION:
        assert _ciede2000(_lab(gray, vision), _lab(gray)) < 0.01
    red, green = np.array([0.8, 0.3, 0.2]), np.array([0.45, 0.5, 0.2])
    usual, *others = (_ciede2000(_lab(red, vision), _lab(green, vision)) for vision in VISION)
    assert max(others) < usual / 2


def _smallest(colors, vision):
    seen = [_lab(to_rgb(color), vision) for color in colors]
    return min(_ciede2000(*pair) for pair in itertools.combinations(seen, 2))


@pytest.mark.parametrize("vision", VISION)
def test_all_readers_tell_all_colors_apart(vision):
    assert _smallest((*figures.COLORS, figures.INK, figures.GRAY), vision) >= 15
    usual = [f"C{number}" for number in range(4)]  # of matplotlib
    assert vision == "usual" or _smallest(usual, vision) < 5


def test_no_two_series_have_color_and_marker_or_line_in_common():
    drawn = [tuple(figures.series(number).values()) for number in range(42)]
    assert len({(color, marker) for color, marker, _ in drawn}) == 42
    assert len({marker for _, marker, _ in drawn[: len(figures.COLORS)]}) == len(figures.COLORS)


@pytest.mark.parametrize("name", ["SIGNED", "LEVELS", "ENERGIES", "STEPS"])
def test_equal_steps_of_a_map_look_equal(name):
    def ratio(colors):
        shades = _lab(colormaps.get_cmap(colors)(np.linspace(0, 1, 33))[:, :3])
        steps = _ciede2000(shades[1:], shades[:-1])
        return steps.max() / steps.min(), np.diff(shades[:, 0])

    steps, lightness = ratio(getattr(figures, name))
    assert steps < {"SIGNED": 1.5, "LEVELS": 2}.get(name, 3.2) < ratio("jet")[0] / 2
    if name == "SIGNED":
        assert (lightness[:16] > 0).all() and (lightness[16:] < 0).all()
    else:
        assert (lightness > 0).all() or (lightness < 0).all()


# Every figure, as large as it becomes, with long names.
NAME = "a_network_of_my_own:WithAName(width=3, depth=20), 10000 networks"
TITLE = f"{NAME}: central difference of step 100 at 100 given points, read-out sampled"
RNG = np.random.default_rng(0)
AXES = np.arange(-8, 8, 2), np.arange(-16, 16, 4)
INDICES = np.array([0, 5, 10, 50, 100, 1022])


def _curve(start):
    return INDICES, np.linspace(start, 0.5, 6), np.full(6, 0.01)


def _directions(shape, count=10):
    rows = RNG.normal(size=(count, int(np.prod(shape))))
    values = np.linspace(2.34e-7, 1e-9, count)
    groups = [[1, 2, 4], [3, 5], [8, 30]], 0.09
    symmetry = np.array(["A1", "E"] * (count // 2))
    return image_plots.plot_directions(rows, shape, TITLE, symmetry, values, values / 9, groups)


CURVES = {f"lenet, pooling {name}": _curve(start) for name, start in (("max", 1), ("none", 0.7))}
LENGTHS = np.array([1, 4, 16, 64, 256, 512])
OVERLAPS = {
    "even against odd members": (LENGTHS, np.linspace(1, 0.9, 6)),
    "against the compared directions": (LENGTHS, np.linspace(1, 0.8, 6), np.full(6, 0.02)),
}
PANELS = {
    (derivative, size): {
        f"variant {number}, symmetrized": [(np.geomspace(0.1, 30, 5), np.linspace(0, 1, 5))]
        for number in range(4)
    }
    for derivative in ("central difference of step 100", "exact gradient")
    for size in (64, 256)
}
MAPS = {
    (f"σ = {sigma}", phase): RNG.uniform(0.45, 1, (8, 8))
    for sigma in (0.5, 1.0, 3.0)
    for phase in ("cosine", "sine")
}
BARS = {f"network{n}": {"original": (0.9, 0.01), "flipped": (0.5, np.nan)} for n in range(4)}
RATIOS = {
    "lenet": {"training step": (0.45, 0.4, 0.5, 0.1), "directions": (np.nan,) * 4},
    "densenet121": {"64 directions, step of one (auto, bfloat16)": (1.3, 1.2, 1.9, 0.2)},
}
FIGURES = {
    "directions": lambda: _directions((8, 8, 1)),
    "three colors": lambda: _directions((8, 8, 3), 6),
    "two channels": lambda: _directions((8, 8, 2)),
    "low images": lambda: _directions((4, 16, 1)),
    "large images": lambda: _directions((100, 100, 3), 4),
    "signals": lambda: _directions((16, 3)),
    "vectors": lambda: _directions((20,)),
    "volumes": lambda: _directions((4, 8, 8, 1), 2),
    "spectrum": lambda: plotting.plot_spectrum(
        np.geomspace(1e-5, 1e-9, 500), np.geomspace(1e-6, 1e-9, 500), TITLE, (1e-7, 1e-6),
        np.geomspace(9e-6, 1e-9, 400),
    ),
    "overlap": lambda: plotting.plot_overlap(OVERLAPS, 1024, TITLE, [[1, 2], [12, 14], [13, 70]]),
    "time to accuracy": lambda: plotting.plot_time_to_accuracy(
        PANELS, dict.fromkeys(PANELS, 0.95), 0.9, TITLE
    ),
    "poison": lambda: plotting.plot_poison_curve(
        CURVES, dict.fromkeys(CURVES, (0.9, 0.02)), ((0, 0, 0.18, 0.18), (10, 60, 0.3, 0.5)), TITLE
    ),
    "bars": lambda: plotting.plot_bars(
        BARS, ("original", "flipped"), {"network1": {"original": 0.7}}, TITLE
    ),
    "ratios": lambda: plotting.plot_ratios(RATIOS, "PyTorch", TITLE),
    "images": lambda: plotting.plot_images(
        {"original": RNG.random((4, 8, 8, 3)), "NAD 1000": RNG.normal(size=(4, 8, 8, 3))},
        TITLE, {"NAD 1000": RNG.normal(size=(8, 8))},
    ),
    "grid of maps": lambda: accuracy_plots.plot_accuracy_maps(MAPS, AXES, TITLE),
    "map": lambda: accuracy_plots.plot_accuracy_maps({"": MAPS["σ = 1.0", "sine"]}, AXES, TITLE),
    "maps": lambda: accuracy_plots.plot_steps_maps(
        {f"lenet, pooling default, σ = {k}": np.full((8, 8), 10.0 + k) for k in range(5)}, AXES, TITLE
    ),
    "energy": lambda: accuracy_plots.plot_energy_map(MAPS["σ = 1.0", "sine"], AXES),
    "by index": lambda: accuracy_plots.plot_accuracy_by_index(
        CURVES, np.geomspace(1, 1e-5, 1024), TITLE
    ),
    "histogram": lambda: accuracy_plots.plot_accuracy_histogram(
        {name: means for name, (_, means, _) in CURVES.items()}, TITLE
    ),
    "by energy": lambda: accuracy_plots.plot_accuracy_by_energy(
        {name: (means**9, means) for name, (_, means, _) in CURVES.items()}, TITLE
    ),
    "training": lambda: accuracy_plots.plot_training(RNG.random((9, 50)), RNG.random(9)),
}  # fmt: skip


def _draw(made):
    """Draws a figure; the texts that are there, with their boxes in pixels."""
    texts, draw = [], Text.draw

    def record(text, renderer, *rest, **how):
        if text.get_visible() and text.get_text().strip():
            texts.append((text.get_text(), text.get_window_extent(renderer)))
        draw(text, renderer, *rest, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", record)
        FigureCanvasAgg(made).draw()
    return texts


@pytest.fixture(scope="module", params=FIGURES)
def drawn(request):
    made = FIGURES[request.param]()
    return made, _draw(made)


def test_a_figure_fits_a_page_and_no_text_is_cut_or_overlaps(drawn):
    figure, texts = drawn
    assert figure.get_figwidth() <= figures.PAGE and figure.get_figheight() <= 9.3
    assert len(texts) > 3
    for name, box in texts:
        assert box.x0 >= -1 and box.y0 >= -1, name
        assert box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1, name
    for (one, box), (other, beside) in itertools.combinations(texts, 2):
        width = min(box.x1, beside.x1) - max(box.x0, beside.x0)
        height = min(box.y1, beside.y1) - max(box.y0, beside.y0)
        assert min(width, height) < 2, (one, other)


def test_a_figure_has_no_colors_but_those_of_the_palette(drawn):
    figure, _ = drawn
    allowed = {*map(to_hex, (*figures.COLORS, figures.INK, figures.GRAY, "white"))}
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    assert {to_hex(line.get_color()) for line in lines} <= allowed


def test_several_series_differ_in_more_than_color(drawn):
    figure, _ = drawn
    for axes in figure.axes:
        lines = {line.get_color(): line for line in axes.get_lines() if line.get_label()[0] != "_"}
        seen = [(line.get_marker(), line.get_linestyle()) for line in lines.values()]
        assert len(set(seen)) == len(seen), axes.get_title()


@pytest.mark.parametrize("form", figures.FORMATS)
def test_files_are_the_same_each_time_and_hold_text(form, tmp_path):
    stored, own = tmp_path / f"stored.{form}", tmp_path / f"own.{form}"
    store.save_figure(stored, FIGURES["overlap"]())
    FIGURES["overlap"]().savefig(own, dpi=300)  # as a user does
    data = stored.read_bytes()
    assert data == own.read_bytes()
    assert b"CreationDate" not in data and b"dc:date" not in data
    if form == "pdf":
        assert b"/CIDFontType2" in data and b"/Type3" not in data
    if form == "svg":
        assert data.count(b"<text") > 10


def test_another_process_writes_the_same_file(tmp_path):
    program = (
        "import sys, numpy as np; from nad_jax.accuracy_plots import plot_accuracy_histogram; "
        "plot_accuracy_histogram({'σ': np.linspace(.5, 1, 9)}, 'b').savefig(sys.argv[1])"
    )
    here, there = tmp_path / "here.pdf", tmp_path / "there.pdf"
    made = accuracy_plots.plot_accuracy_histogram({"σ": np.linspace(0.5, 1, 9)}, "b")
    made.savefig(here)
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", program, there]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    assert here.read_bytes() == there.read_bytes()


def test_the_style_is_not_that_of_the_user(monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30)
    monkeypatch.setitem(matplotlib.rcParams, "xtick.labelsize", 30)
    made = FIGURES["by energy"]()
    FigureCanvasAgg(made).draw()
    sizes = {text.get_fontsize() for text in made.findobj(Text) if text.get_text()}
    assert max(sizes) <= 8


def _texts(made):
    return [text.get_text() for text in made.texts]


def test_a_direction_has_its_representation_its_eigenvalue_and_its_group():
    made = _directions((8, 8, 1))
    assert "$u_{0}$  A1\n2.3 ± 0.3" in _texts(made)
    # The row of eight ends after u_7, and groups have members of others between them.
    letters = [
        text.strip() for text in _texts(made) if text.strip()[:1] in "abc" and len(text) < 20
    ]
    assert letters == ["a", "a", "b", "b", "c, to $u_{30}$"]
    brackets = [artist for artist in made.artists if isinstance(artist, Line2D)]
    assert [to_hex(line.get_color()) for line in brackets] == [
        figures.COLORS[number] for number in (0, 0, 1, 1, 2)
    ]
    spans = [np.ptp(line.get_xdata()) for line in brackets]
    assert spans[0] > 2 * spans[1]  # u_1 and u_2 under one bracket
    note = next(text for text in _texts(made) if "Below each name" in text)
    assert "$10^{-7}$" in note and "equal within 9%" in note.replace("\n", " ")


def test_errors_say_how_many_digits_are_shown():
    values = np.array([3.456e-6, 2.5e-6, 1.234e-6, 1e-6])
    errors = np.array([0.2e-6, 0.016e-6, np.nan, 3e-6])
    names, said = image_plots._name_errors(values, errors)
    assert names == ["3.5 ± 0.2", "2.500 ± 0.016", "1.23", "1 ± 3"]
    assert said.endswith("± standard error, in units of $10^{-6}$")
    assert image_plots._name_errors(values[:1], errors[2:3])[1].startswith(
        "below each name its eigenvalue, in"
    )


def test_three_colors_are_an_image_and_channels_on_one_scale():
    direction = RNG.normal(size=(1, 8 * 8 * 3))
    made = image_plots.plot_directions(direction, (8, 8, 3), "")
    image = direction.reshape(8, 8, 3)
    limit = np.abs(image).max()
    color, _, *channels = [panel.get_images()[0] for panel in made.axes[:5]]
    np.testing.assert_allclose(color.get_array(), 0.5 + image / limit / 2)
    for number, drawn in enumerate(channels):
        np.testing.assert_array_equal(drawn.get_array(), image[..., number])
        assert drawn.get_clim() == (-limit, limit) and drawn.get_cmap().name == "signed"
    names = [panel.get_xlabel() for panel in made.axes[:5]]
    assert names == ["color", "Fourier energy", "red", "green", "blue"]


def test_subspaces_that_cut_through_a_group_are_marked():
    made = plotting.plot_overlap(OVERLAPS, 1024, "", [[6, 7, 8, 9], [12, 14], [600, 700]])
    spans = [patch for patch in made.axes[0].patches if patch.get_alpha() == 0.3]
    found = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in spans]
    whole = [[k for k in range(1, 600) if low < k < high] for low, high in found]
    # The first k directions cut through 6 … 9 where 6 is among them and 9 is not.
    assert whole == [[7, 8, 9], [13, 14]]


def test_random_subspaces_overlap_as_the_band_says():
    dimension, size, rng = 12, 3, np.random.default_rng(1)
    bases = [np.linalg.qr(rng.normal(size=(dimension, size)))[0] for _ in range(4000)]
    overlaps = [np.sum(basis[:size] ** 2) / size for basis in bases]  # with the first axes
    mean, deviation = plotting.chance_overlap([size], dimension)
    np.testing.assert_allclose(np.mean(overlaps), mean[0], atol=4 * deviation[0] / np.sqrt(4000))
    np.testing.assert_allclose(np.std(overlaps), deviation[0], rtol=0.05)
    assert plotting.chance_overlap([12], 12)[1][0] == 0


def test_a_grid_has_rows_columns_one_scale_and_one_color_bar():
    made = FIGURES["grid of maps"]()
    *panels, bar = made.axes
    assert len(panels) == 6 and bar.get_ylabel() == "test accuracy (%)"
    places = {}
    for panel in panels:
        (drawn,) = (child for child in panel.get_children() if isinstance(child, AxesImage))
        assert drawn.get_clim() == (50, 100)
        spot = panel.get_subplotspec()
        places[spot.rowspan.start, spot.colspan.start] = np.asarray(drawn.get_array())
    for place, values in zip(itertools.product(range(3), range(2)), MAPS.values(), strict=True):
        np.testing.assert_allclose(places[place], 100 * values)
    assert [panels[place].get_title() for place in (0, 1)] == ["cosine", "sine"]
    assert [panels[place].get_ylabel() for place in (0, 2, 4)] == ["σ = 0.5", "σ = 1.0", "σ = 3.0"]


def test_errors_of_a_spectrum_are_seen_beside_it():
    values, sem = np.geomspace(1, 1e-4, 50), 0.01 * np.geomspace(1, 1e-4, 50)
    made = plotting.plot_spectrum(values, sem, "", compared=1.02 * values)
    _, lower = made.axes
    band = lower.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([band.min(), band.max()], [-1, 1])
    low, high = lower.get_ylim()
    assert 2 / (high - low) > 0.3  # of the panel's height
    (compared,) = (line for line in lower.get_lines() if line.get_label() == "compared")
    np.testing.assert_allclose(compared.get_ydata(), 2)


def test_a_poison_curve_has_the_line_of_its_own_clean_networks():
    clean = {name: (0.9 - 0.1 * number, 0.02) for number, name in enumerate(CURVES)}
    (axes,) = plotting.plot_poison_curve(CURVES, clean, (), "").axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    spans = {to_hex(patch.get_facecolor()): patch for patch in axes.patches}
    for number, (name, (mean, error)) in enumerate(clean.items()):
        line, color = lines[f"{name}, clean images"], figures.COLORS[number]
        assert line.get_color() == color and line.get_ydata()[0] == 100 * mean
        np.testing.assert_allclose(spans[color].get_height(), 200 * error)


def test_ratios_are_on_one_axis_with_a_line_at_one():
    (axes,) = FIGURES["ratios"]().axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert lines["PyTorch"].get_xdata() == [1, 1]
    nan = np.nan
    medians = lines["median, lowest to highest"].get_xdata()
    np.testing.assert_array_equal(medians, [nan, 0.45, nan, nan, 1.3])
    assert axes.get_xscale() == "linear" and axes.get_xlim()[0] == 0
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names[:3] == ["lenet", "training step", "directions"]
    assert [text.get_text() for text in axes.texts] == ["0.45", "no baseline", "1.30"]
