"""The directions of a run of `directional_bias`: Fourier vectors of a grid, NADs, or those of
another basis, each with what names it in the table.
"""

import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.run.config import check_all, check_each, check_integers, check_seeds
from experiments.run.plan import Json
from nad_jax import directions as bases
from nad_jax import nads, records
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError, check_choice, check_integer, problems

SOURCES = ("dft", "nads", "dct", "pixel", "random", "file")
FILES = {"nads": "nads", "file": "directions"}  # the fields that name the files of sources
PHASES = {"cosine": ("cosine",), "sine": ("sine",), "both": ("cosine", "sine")}


class Directions(NamedTuple):
    """The directions of a run [K, D], and what names each of them in the table: [K]."""

    rows: np.ndarray
    coordinates: list[Json]


def _check_source(config: ConfigDict) -> None:
    check_choice("source", config.source, SOURCES)
    needs = FILES.get(config.source)
    if needs and not config[needs]:
        raise InputError(f"{needs}: source={config.source!r} needs a file of directions here")
    if config.source == "random":
        check_integer("num_directions", config.num_directions, 1, math.prod(config.image_shape))


def _check_indices(config: ConfigDict) -> None:
    if not isinstance(config.indices, tuple | list):
        raise InputError(f"indices: must be a tuple of integers, got {config.indices!r}")
    check_each(config, "indices", check_integer, 0)


def _check_frequency_range(config: ConfigDict) -> None:
    values, (height, width) = config.frequency_range, config.image_shape[:2]
    highest = max(height, width) // 2  # of the longer axis; see `frequency_axes`
    two = isinstance(values, tuple | list) and len(values) == 2
    if config.source != "dft":  # which have no frequencies: whatever the recipe says will do
        highest = math.inf
    if not two or not all(_is_within(value, -highest, highest + 1) for value in values):
        limits = "two integers"
        if config.source == "dft":
            pixels = f"{height}×{width} pixels"
            limits += f" in {-highest} … {highest + 1}, the frequencies of {pixels}"
        raise InputError(f"frequency_range: must be first, stop, {limits}, got {values!r}")
    if values[0] >= values[1]:
        raise InputError(f"frequency_range: must be first, stop with first < stop, got {values!r}")
    step, most = check_integer("frequency_step", config.frequency_step, 1), values[1] - values[0]
    if config.source != "dft":
        return
    if step > most > 1:
        first = f"{values[0]},{values[0] + 1}"
        raise InputError(
            f"frequency_step: must be at most {most} for frequency_range={tuple(values)}, got "
            f"{step}; frequency {values[0]} alone is --config.frequency_range={first}"
        )
    frequency_axes(config)


def _is_within(value: Any, low: float, high: float) -> bool:
    return not problems(lambda: check_integer("", value, low, high))


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem of the fields that say the directions."""
    check_all(
        lambda: _check_indices(config),
        lambda: _check_source(config),
        lambda: _check_frequency_range(config),
        lambda: check_integers(config, frequency_step=1, singular_values_num_networks=2),
        lambda: check_choice("phases", config.phases, PHASES),
        lambda: check_integer("channel", config.channel, 0, config.image_shape[2] - 1),
        lambda: check_seeds("direction_seed", config.direction_seed),
    )


def frequency_axes(config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """The frequencies of the grid, vertical [R] and horizontal [C], ascending.

    An axis of N pixels has those of the range that lie in −N/2 … N/2; an axis of one pixel has 0,
    whatever the range.

    Raises:
      InputError: where none is left of an axis.
    """
    wanted = range(*config.frequency_range, config.frequency_step)
    axes = []
    for length in config.image_shape[:2]:
        axes.append(np.array([f for f in wanted if abs(f) <= length // 2] if length > 1 else [0]))
        if not len(axes[-1]):
            raise InputError(
                f"frequency_range: an axis of {length} pixels has the frequencies {-(length // 2)} "
                f"… {length // 2}, of which none is in {tuple(config.frequency_range)} in steps of "
                f"{config.frequency_step}"
            )
    return tuple(axes)


def _fourier_directions(config: ConfigDict) -> Directions:
    height, width, _ = config.image_shape
    grid = itertools.product(*(axis.tolist() for axis in frequency_axes(config)))
    # Lowest first, of ±f the one that starts positive.
    grid = sorted(grid, key=lambda f: (f[0] ** 2 + f[1] ** 2, -f[0], -f[1]))
    rows, coordinates = [], []
    for frequency, phase in itertools.product(grid, PHASES[config.phases]):
        row, column = frequency
        if phase == "sine" and 2 * row % height == 0 and 2 * column % width == 0:
            continue  # a self-conjugate frequency has no sine
        found = bases.dft_direction(config.image_shape, frequency, phase, config.channel)
        rows.append(np.asarray(found))
        place = {"frequency_row": row, "frequency_column": column, "phase": phase}
        coordinates.append({"index": len(coordinates), **place})
    if not rows:
        raise InputError("phases: this grid of frequencies has no sine; use phases='cosine'")
    return Directions(np.stack(rows), coordinates)


def read_spectrum(config: ConfigDict) -> nads.Spectrum | None:
    """The NADs of `config.nads` with their eigenvalues, or None where there is no file or none are
    known.
    """
    if not config.nads:
        return None
    directions = records.read_directions(config.nads, math.prod(config.image_shape))
    if Path(config.nads).suffix == ".npz":
        return nads.Spectrum(directions, records.load_nads(config.nads).eigenvalues)
    if not config.singular_values:
        return None
    values = records.read_singular_values(config.singular_values)
    if len(values) != len(directions):
        raise InputError(
            f"{config.singular_values}: {len(values)} singular values for {len(directions)} "
            "directions"
        )
    return nads.Spectrum(directions, values**2 / (config.singular_values_num_networks - 1))


def make_directions(config: ConfigDict) -> Directions:
    """The distinct directions of a config, up to sign."""
    if config.source == "dft":
        found = _fourier_directions(config)
    else:
        rows = _read_rows(config)
        found = Directions(rows, [{"index": index} for index in range(len(rows))])
    chosen = list(config.indices) or list(range(len(found.rows)))
    if max(chosen) >= len(found.rows):
        raise InputError(f"indices: must be in 0 … {len(found.rows) - 1}, got {max(chosen)}")
    kept = [chosen[position] for position in bases.distinct_directions(found.rows[chosen])]
    coordinates = []
    for k in kept:
        name = f"{bases.direction_identity(found.rows[k]):016x}"
        coordinates.append({"source": config.source, **found.coordinates[k], "direction": name})
    return Directions(found.rows[kept], coordinates)


def _read_rows(config: ConfigDict) -> np.ndarray:
    """The directions of a basis or a file."""
    dimension = math.prod(config.image_shape)
    if config.source in FILES:
        return records.read_directions(config[FILES[config.source]], dimension)
    if config.source == "random":
        how = make_key(config.direction_seed), dimension, config.num_directions
        return np.asarray(bases.basis_random(*how))
    make_basis = {"dct": bases.basis_dct, "pixel": bases.basis_pixel}[config.source]
    return np.asarray(make_basis(config.image_shape))
