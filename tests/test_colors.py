"""Colors that all readers tell apart, by simulated vision and the difference of colors that is
seen.
"""

import itertools

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb

from nad_jax import figures

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
