"""Every figure in print: sizes, text, what it shows, files."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.text import Text

from experiments import directional_bias, poison_cifar, results
from nad_jax import accuracy_plots, figures, image_plots, plotting, store, sweep_plots
from nad_jax.nads import NADs
from nad_jax.spectrum_metrics import Metric, SpectrumMetrics
from tests.test_configs import ROOT

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
    groups = [[1, 2, 4], [3, 5], [6, 7, 8, 30]], 0.09
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


def _metrics(kl):
    share = Metric(100 * np.exp(-kl), 2.0)
    return SpectrumMetrics(share, share, Metric(kl, 0.05), Metric(np.inf, np.nan), 100)


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
    "energy of signals": lambda: accuracy_plots.plot_energy_curve(
        np.geomspace(1, 1e-9, 16), np.full(16, 0.1), np.arange(-7, 9)
    ),
    "by index": lambda: accuracy_plots.plot_accuracy_by_index(
        CURVES, np.geomspace(1, 1e-5, 1024), TITLE
    ),
    "histogram": lambda: accuracy_plots.plot_accuracy_histogram(
        {name: means for name, (_, means, _) in CURVES.items()}, TITLE
    ),
    "by energy": lambda: accuracy_plots.plot_accuracy_by_energy(
        {name: (means**9, means) for name, (_, means, _) in CURVES.items()}, TITLE
    ),
    "spectra": lambda: sweep_plots.plot_spectra(
        {f"{n}: {NAME}": np.geomspace(1, 10.0 ** -(n + 1), 300) for n in range(8)}, TITLE
    ),
    "metrics": lambda: sweep_plots.plot_metrics(
        {f"network{n}(normalization=layer)": _metrics(0.1 * n) for n in range(30)}, TITLE
    ),
    "search": lambda: sweep_plots.plot_search(
        [{f"network{n}: {NAME}": Metric(0.1 * n, 0.05) for n in range(size)} for size in (9, 4, 2)],
        [32, 64, 1024], {"start": [0.5, 0.9, 1.0], "found": [0.6, 0.8, 0.99]}, "kl_uniform", TITLE,
    ),
    "correlations": lambda: sweep_plots.plot_correlations(
        {f"network{n}(normalization=layer)\n{n + 8} directions": {
            f"central difference {k}": (0.3 * k - 0.8 if n else np.nan, 0.2) for k in range(6)
        } for n in range(8)}, TITLE
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


def test_a_figure_of_another_format_shows_no_earlier_results(tmp_path):
    (tmp_path / "name.svg").write_text("of an earlier run")
    made = accuracy_plots.plot_training(RNG.random((2, 5)), RNG.random(2))
    paths = results.save_figures(tmp_path, {"name": made}, ("png",))
    assert [path.name for path in paths] == ["name.png", "name.svg"]
    assert "<svg" in paths[1].read_text() and not (tmp_path / "name.pdf").exists()


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
    monkeypatch.setitem(matplotlib.rcParams, "ytick.labelsize", 30)
    made = plotting.plot_spectrum(np.linspace(3, 1.6, 9), np.full(9, 0.1), "")  # with minor ticks
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
    assert letters == ["a", "a", "b", "b", "c", "c, to $u_{30}$"]
    brackets = [artist for artist in made.artists if isinstance(artist, Line2D)]
    assert [to_hex(line.get_color()) for line in brackets] == [
        figures.COLORS[number] for number in (0, 0, 1, 1, 2, 2)
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


def test_a_variant_has_one_color_in_all_panels_and_stands_in_the_legend():
    line = [(np.geomspace(1, 9, 3), np.linspace(0, 1, 3))]
    panels = {("one", 4): {"b": line}, ("two", 4): {"a": line, "b": line}}
    made = plotting.plot_time_to_accuracy(panels, dict.fromkeys(panels, 0.9), 0.9, "")
    colors = {}
    for one in (line for panel in made.axes for line in panel.get_lines()):
        colors.setdefault(one.get_label(), set()).add(one.get_color())
    assert all(len(colors[name]) == 1 for name in "ab") and colors["a"] != colors["b"]
    (legend,) = made.legends
    found = {
        text.get_text(): {mark.get_color()}
        for text, mark in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    assert found == colors


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


def test_color_bars_of_logarithmic_scales_have_three_to_nine_round_numbers():
    for low, high in ((30, 90), (1e-12, 1), (12, 4000), (0.00144, 0.00184), (5, 5.05)):
        levels = accuracy_plots._choose_levels(low, high)
        assert 3 <= len(levels) <= 9 and (np.diff(levels) > 0).all()
        assert levels[0] >= 0.99 * low and levels[-1] <= 1.01 * high
    assert accuracy_plots._choose_levels(12, 4000).tolist() == [30, 100, 300, 1000, 3000]


def test_lines_of_text_fit_and_equations_stay_whole():
    lines = figures.wrap("iiii " * 60 + "σ = 1\nWWWW", 2).splitlines()
    assert lines[-1] == "WWWW" and "σ\u00a0=\u00a01" in lines[-2]
    assert len(lines[0]) > 2 * len(figures.wrap("WWWW " * 60, 2).splitlines()[0])
    assert max(map(len, figures.wrap("W" * 200, 2).splitlines())) < 20


def _record(**changes):
    values = np.array([4.0, 3.0, 2.99, 1.0])
    fields = {
        "directions": np.eye(4), "eigenvalues": values, "eigenvalue_sem": np.full(4, 0.03),
        "overlap_sizes": np.array([1, 2, 4]), "split_half_overlap": np.array([0.9, 0.8, 1.0]),
        "num_networks": 50, "symmetry": np.full(4, ""),
        "config": {
            "architecture": "mlp", "derivative": "input_gradient", "point": "shared",
            "readout": "marginalized", "image_shape": (2, 2, 1),
        },
    }  # fmt: skip
    return NADs(**{**fields, **changes})


def test_figures_of_a_record_name_its_choices_and_its_groups():
    made = _record().plot()
    for figure in made.values():
        said = " ".join(text.get_text().replace("\n", " ") for text in figure.findobj(Text))
        assert "mlp, 50 networks: exact gradient at one point of N(0, 1²)" in said
        assert "input_gradient" not in said
    assert len([artist for artist in made["nads"].artists if isinstance(artist, Line2D)]) == 1
    (axes,) = made["overlap"].axes
    assert [round(patch.get_x() + patch.get_width() / 2) for patch in axes.patches] == [2]


def test_errors_between_points_are_in_the_figures_too():
    sem = _record(point_sem=np.full(4, 0.04)).sem
    np.testing.assert_allclose(sem, 0.05)
    alone = _record(point_sem=np.full(4, 0.04), num_networks=1, eigenvalue_sem=np.full(4, np.nan))
    np.testing.assert_allclose(alone.sem, 0.04)


def test_clean_networks_of_a_curve_have_its_seeds():
    rows = [
        {"architecture": name, "nad_index": index, "epsilon": 0.5, "seed": seed, "test_accuracy": a}
        for name, index, seed, a in (
            ("lenet", "", 0, 0.7), ("lenet", "", 1, 0.8), ("lenet", "", 2, 0.1), ("mlp", "", 0, 0.2),
            ("lenet", 5, 0, 0.5), ("lenet", 5, 1, 0.4), ("vgg11", 5, 0, 0.3),
        )
    ]  # fmt: skip
    assert poison_cifar._clean_of_curves(rows) == {"lenet": [0.7, 0.8]}


def test_phases_are_the_columns_of_a_grid():
    groups = {
        f"lenet, σ = {sigma}, {phase}": [{"phase": phase}]
        for sigma in (1, 3)
        for phase in ("cosine", "sine")
    }
    maps = {name: np.full((1, 1), number) for number, name in enumerate(groups)}
    grid = directional_bias._make_grid(groups, maps)
    assert [*grid] == list(itertools.product(("lenet, σ = 1", "lenet, σ = 3"), ("cosine", "sine")))
    assert [*grid.values()] == [*maps.values()]
    one = {"σ = 1": [{"phase": "sine"}]}
    assert directional_bias._make_grid(one, one) == one
