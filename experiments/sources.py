"""The directions of a run of `directional_bias`: Fourier vectors of a grid, NADs, or those of
another basis, each with what names it in the table.
"""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.run.config import check_all, check_each, check_integers, check_seeds
from nad_jax import directions as bases
from nad_jax import nads, records
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError, check_choice, check_integer

SOURCES = ("dft", "nads", "dct", "pixel", "random", "file")
PHASES = {"cosine": ("cosine",), "sine": ("sine",), "both": ("cosine", "sine")}


class Directions(NamedTuple):
    """The directions of a run [K, D] and what names each of them: [K] strings, empty where they do
    not apply.
    """

    rows: np.ndarray
    coordinates: list[dict[str, Any]]


def _check_source(config: ConfigDict) -> None:
    check_choice("source", config.source, SOURCES)
    needs = {"nads": "nads", "file": "directions"}.get(config.source)
    if needs and not config[needs]:
        raise InputError(f"{needs}: source={config.source!r} needs a file of directions here")
    if config.source == "random":
        check_integer("num_directions", config.num_directions, 1, int(np.prod(config.image_shape)))


def _check_indices(config: ConfigDict) -> None:
    if not isinstance(config.indices, tuple | list):
        raise InputError(f"indices: must be a tuple of integers, got {config.indices!r}")
    check_each(config, "indices", check_integer, 0)


def _check_frequency_range(config: ConfigDict) -> None:
    values = config.frequency_range
    if not isinstance(values, tuple | list) or len(values) != 2:
        raise InputError(f"frequency_range: must be first, stop, got {values!r}")
    highest = max(config.image_shape[:2]) // 2  # of the longer axis; see `frequency_axes`
    for frequency in values:
        check_integer("frequency_range", frequency, -highest, highest + 1)
    if values[0] >= values[1]:
        raise InputError(f"frequency_range: must be first, stop with first < stop, got {values!r}")
    check_integer("frequency_step", config.frequency_step, 1)
    if config.source == "dft":
        frequency_axes(config)


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
                f"… {length // 2}, of "
                f"which none is in {tuple(config.frequency_range)} in steps of "
                f"{config.frequency_step}"
            )
    return axes[0], axes[1]


def _frequency_grid(config: ConfigDict) -> list[tuple[int, int]]:
    """Frequencies (row, column) of the grid, lowest first, of ±f the one that starts positive."""
    rows, columns = frequency_axes(config)
    grid = itertools.product(rows.tolist(), columns.tolist())
    return sorted(grid, key=lambda f: (f[0] ** 2 + f[1] ** 2, -f[0], -f[1]))


def _fourier_directions(config: ConfigDict) -> Directions:
    height, width, _ = config.image_shape
    rows, coordinates = [], []
    for frequency, phase in itertools.product(_frequency_grid(config), PHASES[config.phases]):
        row, column = frequency
        if phase == "sine" and (2 * row) % height == 0 and (2 * column) % width == 0:
            continue  # a self-conjugate frequency has no sine
        rows.append(
            np.asarray(bases.dft_direction(config.image_shape, frequency, phase, config.channel))
        )
        coordinates.append(
            {
                "index": len(coordinates),
                "frequency_row": row,
                "frequency_column": column,
                "phase": phase,
            }
        )
    if not rows:
        raise InputError("phases: this grid of frequencies has no sine; use phases='cosine'")
    return Directions(np.stack(rows), coordinates)


def read_spectrum(config: ConfigDict) -> nads.Spectrum | None:
    """The NADs of `config.nads` with their eigenvalues, or None where there is no file or none are
    known.
    """
    if not config.nads:
        return None
    dimension = int(np.prod(config.image_shape))
    if Path(config.nads).suffix == ".npz":
        record = records.load_nads(config.nads)
        if record.directions.shape[1] != dimension:
            raise InputError(
                f"{config.nads}: directions have D = {record.directions.shape[1]}, expected "
                f"{dimension}"
            )
        return nads.Spectrum(record.directions, record.eigenvalues)
    directions = records.read_directions(config.nads, dimension)
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
    dimension = int(np.prod(config.image_shape))
    if config.source == "dft":
        found = _fourier_directions(config)
    else:
        rows = {
            "nads": lambda: records.read_directions(config.nads, dimension),
            "file": lambda: records.read_directions(config.directions, dimension),
            "dct": lambda: np.asarray(bases.basis_dct(config.image_shape)),
            "pixel": lambda: np.asarray(bases.basis_pixel(config.image_shape)),
            "random": lambda: np.asarray(
                bases.basis_random(
                    make_key(config.direction_seed), dimension, config.num_directions
                )
            ),
        }[config.source]()
        found = Directions(rows, [{"index": index} for index in range(len(rows))])
    chosen = list(config.indices) or list(range(len(found.rows)))
    if max(chosen) >= len(found.rows):
        raise InputError(f"indices: must be in 0 … {len(found.rows) - 1}, got {max(chosen)}")
    kept = [chosen[position] for position in bases.distinct_directions(found.rows[chosen])]
    return Directions(
        found.rows[kept], [{"source": config.source, **found.coordinates[k]} for k in kept]
    )


def name_directions(directions: Directions) -> list[str]:
    return [f"{bases.direction_identity(row):016x}" for row in directions.rows]
