"""Directional bias: networks trained on D(v), one for each direction and point of a sweep.

Writes into the run folder: `units/*.npz` (finished networks), `results.csv` (one row per network of
the command), and figures. Networks are told apart by what determines them, so that a folder is
extended by any sweep axis.
"""

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import published, results, runner, units
from experiments.estimate import Example, shorten
from experiments.fields import HOW_FIELDS, check_known, check_sweep, read_recipe
from experiments.plan import Plan
from experiments.shards import Shard
from nad_jax import accuracy_plots, errors, nads, store
from nad_jax import directions as bases
from nad_jax.architectures import create_model
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError, check_choice, check_image_shape, check_integer, check_number
from nad_jax.fitting import resolve_mapping
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.separable import check_num_samples, sample_noise
from nad_jax.snapshots import Snapshots
from nad_jax.subspaces import rank_correlation
from nad_jax.training import TrainMetrics, make_stages, make_train_many, network_key, noise_key

SOURCES = ("dft", "nads", "dct", "pixel", "random", "file")
PHASES = {"cosine": ("cosine",), "sine": ("sine",), "both": ("cosine", "sine")}
# Every combination of these is trained, in this order; the names of the columns they become.
SWEEPS = {
    "architectures": "architecture",
    "poolings": "pooling",
    "optimizers": "optimizer",
    "nums_train": "num_train",
    "seeds": "seed",
    "sigmas": "sigma",
    "epsilons": "epsilon",
}
METRICS = tuple(name for name in TrainMetrics._fields if name != "losses")
COLUMNS = (
    "architecture", "pooling", "optimizer", "num_train", "source", "index", "frequency_row",
    "frequency_column",
    "phase", "direction", "sigma", "epsilon", "seed", *METRICS,
)  # fmt: skip
REFERENCE_FIELDS = ("nads", "singular_values", "singular_values_num_networks", "compare")
FIGURES = (
    "accuracy_map.png", "steps_map.png", "accuracy_by_index.png", "accuracy_histogram.png", "accuracy_by_energy.png",
)  # fmt: skip
# Fields that determine the numbers of every network: a folder holds one set of them.
IDENTITY_FIELDS = (
    "image_shape", "initialization", "convolution", "source", "num_test", "learning_rate",
    "schedule", "clip_norm",
    "weight_decay", "batch_size", "num_epochs", "loss_threshold", "loss_window", "precision",
)  # fmt: skip
FREE_FIELDS = (
    *SWEEPS, "frequency_range", "frequency_step", "phases", "channel", "indices", "num_directions",
    "direction_seed",
    "directions", *HOW_FIELDS, *REFERENCE_FIELDS,
)  # fmt: skip


class Directions(NamedTuple):
    """The directions of a run [K, D] and what names each of them: [K] strings, empty where they do
    not apply.
    """

    rows: np.ndarray
    coordinates: list[dict[str, Any]]


class Network(NamedTuple):
    """One network of a sweep: its coordinates, its direction [D], and the name its result is stored
    under.
    """

    coordinates: dict[str, Any]
    direction: np.ndarray
    name: str


def create_network(config: ConfigDict, architecture: str, pooling: str) -> Model:
    """The model of one architecture and pooling, with a logit for each class."""
    return create_model(
        architecture, config.image_shape, 2, pooling, config.initialization, config.convolution
    )


def _check_source(config: ConfigDict) -> None:
    check_choice("source", config.source, SOURCES)
    needs = {"nads": "nads", "file": "directions"}.get(config.source)
    if needs and not config[needs]:
        raise InputError(f"{needs}: source={config.source!r} needs a file of directions here")
    if config.source == "random":
        check_integer("num_directions", config.num_directions, 1, int(np.prod(config.image_shape)))


def _check_indices(indices: Any) -> None:
    if not isinstance(indices, tuple | list):
        raise InputError(f"indices: must be a tuple of integers, got {indices!r}")
    for index in indices:
        check_integer("indices", index, 0)


def _check_frequency_range(config: ConfigDict) -> None:
    values = config.frequency_range
    if not isinstance(values, tuple | list) or len(values) != 2:
        raise InputError(f"frequency_range: must be first, stop, got {values!r}")
    highest = max(config.image_shape[:2]) // 2  # of the longer axis; see `_frequency_axes`
    for frequency in values:
        check_integer("frequency_range", frequency, -highest, highest + 1)
    if values[0] >= values[1]:
        raise InputError(f"frequency_range: must be first, stop with first < stop, got {values!r}")
    check_integer("frequency_step", config.frequency_step, 1)
    if config.source == "dft":
        _frequency_axes(config)


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    check_known(config, (*IDENTITY_FIELDS, *FREE_FIELDS))
    problems = errors.problems(
        *(partial(check_sweep, field, config[field]) for field in SWEEPS),
        lambda: check_image_shape(config.image_shape),
    )
    if problems:
        raise InputError("\n".join(problems))
    problems = errors.problems(
        *(
            partial(create_network, config, *pair)
            for pair in itertools.product(config.architectures, config.poolings)
        ),
        *(partial(check_integer, "seeds", seed, 0, 2**32 - 1) for seed in config.seeds),
        *(partial(check_number, "sigmas", sigma, 0.0) for sigma in config.sigmas),
        *(partial(check_number, "epsilons", epsilon, 0.0) for epsilon in config.epsilons),
        lambda: _check_indices(config.indices),
        lambda: _check_source(config),
        lambda: _check_frequency_range(config),
        lambda: check_integer("frequency_step", config.frequency_step, 1),
        lambda: check_choice("phases", config.phases, PHASES),
        lambda: check_integer("channel", config.channel, 0, config.image_shape[2] - 1),
        lambda: check_integer("direction_seed", config.direction_seed, 0, 2**32 - 1),
        lambda: check_number("learning_rate", config.learning_rate, 0.0),
        *(partial(check_num_samples, "nums_train", count) for count in config.nums_train),
        lambda: check_num_samples("num_test", config.num_test),
        lambda: check_integer("unit_size", config.unit_size, 0),
        lambda: resolve_mapping(config.mapping, config.chunk_size, config.num_devices),
        lambda: check_integer(
            "singular_values_num_networks", config.singular_values_num_networks, 2
        ),
    )
    for optimizer, num_train in itertools.product(config.optimizers, config.nums_train):
        try:
            recipe, learning_rate = read_recipe(
                config, "optimizers", optimizer, num_train, config.num_test
            )
            check_number("learning_rate", learning_rate, 0.0)
            names = {"num_train": "nums_train", "optimizer": "optimizers"}
            lines = (line.split(":", 1) for line in recipe.problems())
            problems += [f"{names.get(name, name)}:{rest}" for name, rest in lines]
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))


def _frequency_axes(config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
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
    """The frequencies (row, column) of the grid, lowest first, of ±f the one that starts positive."""
    rows, columns = _frequency_axes(config)
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
        record = store.load_nads(config.nads)
        if record.directions.shape[1] != dimension:
            raise InputError(
                f"{config.nads}: directions have D = {record.directions.shape[1]}, expected "
                f"{dimension}"
            )
        return nads.Spectrum(record.directions, record.eigenvalues)
    directions = store.read_directions(config.nads, dimension)
    if not config.singular_values:
        return None
    values = store.read_singular_values(config.singular_values)
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
            "nads": lambda: store.read_directions(config.nads, dimension),
            "file": lambda: store.read_directions(config.directions, dimension),
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


def _name_directions(directions: Directions) -> list[str]:
    return [f"{bases.direction_identity(row):016x}" for row in directions.rows]


def make_networks(config: ConfigDict) -> list[Network]:
    """Every network of a config, in the order of the table."""
    directions = make_directions(config)
    identities = _name_directions(directions)
    networks = []
    for values in itertools.product(*(config[field] for field in SWEEPS)):
        point = dict(zip(SWEEPS.values(), values, strict=True))
        point |= {
            name: float(point[name]) for name in ("sigma", "epsilon")
        }  # 3 and 3.0 are one value
        for row, coordinates, identity in zip(
            directions.rows, directions.coordinates, identities, strict=True
        ):
            name = json.dumps({**point, "direction": identity}, sort_keys=True)
            networks.append(Network({**point, **coordinates, "direction": identity}, row, name))
    return networks


def _program(network: Network) -> tuple[Any, ...]:
    return tuple(
        network.coordinates[name] for name in ("architecture", "pooling", "optimizer", "num_train")
    )


def _make_model_and_recipe(
    config: ConfigDict, program: tuple[Any, ...]
) -> tuple[Model, Recipe, float]:
    architecture, pooling, optimizer, num_train = program
    recipe, learning_rate = read_recipe(config, "optimizers", optimizer, num_train, config.num_test)
    return create_network(config, architecture, pooling), recipe, learning_rate


def _make_run(
    config: ConfigDict, program: tuple[Any, ...], chunk_size: int
) -> tuple[Callable[..., TrainMetrics], dict[str, Any]]:
    model, recipe, learning_rate = _make_model_and_recipe(config, program)
    train = make_train_many(model, recipe, config.mapping, chunk_size, config.num_devices)

    def run(
        members: list[Network], progress: Callable[[float], None], snapshots: Snapshots
    ) -> TrainMetrics:
        epsilon, sigma, seed = (
            [n.coordinates[name] for n in members] for name in ("epsilon", "sigma", "seed")
        )
        directions = np.stack([network.direction for network in members])
        return train(directions, epsilon, sigma, learning_rate, seed, progress, snapshots)

    return run, dict(model.description)


def _make_example(config: ConfigDict, program: tuple[Any, ...], chunk_size: int) -> Example:
    model, recipe, learning_rate = _make_model_and_recipe(config, program)
    short, dimension = shorten(recipe), int(np.prod(model.image_shape))
    noise = sample_noise(noise_key(0), short.num_train, short.num_test, dimension)
    directions = np.resize(np.eye(dimension, dtype=np.float32), (chunk_size, dimension))
    ones = np.ones(chunk_size, np.float32)
    keys = jnp.stack([network_key(0, direction) for direction in directions])
    members = (keys, directions, ones, ones, learning_rate * ones)
    nbytes = 4 * dimension * (recipe.num_train + recipe.num_test)
    return Example(make_stages(model, short), recipe, noise, members, nbytes)


def _energies(config: ConfigDict, groups: dict[str, list[results.Row]]) -> dict[str, np.ndarray]:
    """vᵀGv of the directions of each group, in the order of `by_direction`; empty where
    `config.nads` gives no G.

    Leading NADs do not: a direction that they leave out may have any energy below theirs.
    """
    spectrum = read_spectrum(config)
    if spectrum is None or len(spectrum.directions) < spectrum.directions.shape[1] - 1:
        return {}
    directions = make_directions(config)
    energies = nads.directional_energy(spectrum, directions.rows)
    named = dict(zip(_name_directions(directions), energies, strict=True))
    return {
        label: np.array([named[name] for name in results.by_direction(group)])
        for label, group in groups.items()
    }


def _report(config: ConfigDict, rows: list[dict[str, Any]]) -> None:
    """Prints the results as the reader of a log wants them."""
    groups = results.group_rows(rows)
    energies = _energies(config, groups)
    for label, group in groups.items():
        accuracy = np.array([row["test_accuracy"] for row in group])
        diverged = sum(row["diverged_at"] >= 0 for row in group)
        print(
            f"{label or group[0]['architecture']}: {len(group)} networks"
            + (f", {diverged} diverged" * (diverged > 0))
        )
        print(
            f"  test accuracy: mean {accuracy.mean():.1%}, lowest {accuracy.min():.1%}, highest "
            f"{accuracy.max():.1%}, "
            f"{(accuracy >= 0.9).mean():.1%} of networks at 90% or more"
        )
        steps = np.array([row["steps_to_loss"] for row in group])
        if (steps >= 0).any():
            print(
                f"  loss of {config.loss_threshold:g}: reached by {(steps >= 0).mean():.1%} of "
                "networks, "
                f"median step {np.median(steps[steps >= 0]):.0f}"
            )
        if label in energies and len(energies[label]) > 1:
            correlation = float(rank_correlation(energies[label], results.mean_accuracies(group)))
            print(
                f"  rank correlation of vᵀGv with accuracy, {len(energies[label])} directions: "
                f"{correlation:.2f}"
            )
        if config.compare:
            architecture = group[0]["architecture"]
            table = published.read_table(config.compare, architecture)
            shape = tuple(config.image_shape[:2])
            for line in published.compare(table, group, shape, config.source):
                print(f"  {line}")


def _command(config: ConfigDict) -> dict[str, Any]:
    """The fields that say which networks are in the table of a run."""
    fields = {*IDENTITY_FIELDS, *FREE_FIELDS} - {*HOW_FIELDS, *REFERENCE_FIELDS}
    fields |= {"nads"} if config.source == "nads" else set()
    return {name: config[name] for name in sorted(fields)}


def make_plan(config: ConfigDict, workdir: Path) -> Plan:
    """The networks of a config as units; all files it names are read."""
    validate(config)
    read_spectrum(config)  # a bad file is an error before anything is computed
    if config.compare:
        for architecture in config.architectures:
            published.read_table(config.compare, architecture)

    def collect(missing: int) -> None:
        rows = units.write_table(workdir, sweep, COLUMNS)
        units.write_command(workdir, _command(config), missing)
        _report(config, rows)

    sweep = units.Sweep(
        identity={name: config[name] for name in IDENTITY_FIELDS},
        networks=make_networks(config),
        metrics=METRICS,
        program=_program,
        make_run=partial(_make_run, config),
        make_example=partial(_make_example, config),
        collect=collect,
    )
    return units.make_plan(config, workdir, sweep)


def run(config: ConfigDict, workdir: Path, shard: Shard = runner.ALONE) -> bool:
    """Trains what is missing, writes `results.csv` when all is there, prints a summary and the
    comparison.
    """
    return runner.run(make_plan(config, workdir), workdir, shard)


def draw(config: ConfigDict, workdir: Path) -> list[Path]:
    """Draws `results.csv` of `workdir`; which figures there are depends on the source of the
    directions.
    """
    validate(config)
    missing = units.check_command(workdir, _command(config))
    rows = results.read_results(workdir / "results.csv", COLUMNS)
    groups, title = results.group_rows(rows), results.describe(rows) + missing
    figures = {}
    if config.source == "dft":
        shape = tuple(config.image_shape[:2])
        axes = _frequency_axes(config)
        accuracy = results.map_panels(groups, "test_accuracy", axes, shape)
        figures["accuracy_map.png"] = accuracy_plots.plot_accuracy_maps(
            accuracy, axes, f"Accuracy on D(v): {title}"
        )
        # Averaged over the seeds that reached the loss.
        reached = {
            label: [row for row in group if row["steps_to_loss"] >= 0]
            for label, group in groups.items()
        }
        steps = results.map_panels(reached, "steps_to_loss", axes, shape)
        if any(np.isfinite(panel).any() for panel in steps.values()):
            figures["steps_map.png"] = accuracy_plots.plot_steps_maps(
                steps, axes, f"Steps to a loss of {config.loss_threshold:g}: {title}"
            )
    elif config.source == "nads":
        spectrum = read_spectrum(config)
        figures["accuracy_by_index.png"] = accuracy_plots.plot_accuracy_by_index(
            results.curves(groups),
            None if spectrum is None else spectrum.eigenvalues,
            f"Accuracy on $D(u_i)$: {title}",
        )
    else:
        accuracies = {label: results.mean_accuracies(group) for label, group in groups.items()}
        figures["accuracy_histogram.png"] = accuracy_plots.plot_accuracy_histogram(
            accuracies, f"Accuracy on D(v), {config.source} directions: {title}"
        )
    energies = _energies(config, groups)
    if energies:
        points = {
            label: (energies[label], results.mean_accuracies(group))
            for label, group in groups.items()
        }
        figures["accuracy_by_energy.png"] = accuracy_plots.plot_accuracy_by_energy(
            points, f"Accuracy against vᵀGv: {title}"
        )
    paths = []
    for name in FIGURES:
        if name in figures:
            store.save_figure(workdir / name, figures[name])
            paths.append(workdir / name)
        elif (workdir / name).exists():
            store.remove(workdir / name)  # it showed an earlier table
    return paths
