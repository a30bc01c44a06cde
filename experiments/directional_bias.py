"""Directional bias: networks trained on D(v), one for each direction and point of a sweep.

Writes into the run folder: `units/*.npz` (finished networks), `results.csv` (one row per network of the command),
and figures. Networks are told apart by what determines them, so that a folder is extended by any sweep axis.
"""

import ast
import hashlib
import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import published, results
from experiments.progress import Progress
from nad_jax import directions as bases
from nad_jax import errors, nads, plotting, store
from nad_jax.architectures import create_model
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError, check_choice, check_image_shape, check_integer, check_number, unknown
from nad_jax.models import Model
from nad_jax.subspaces import rank_correlation
from nad_jax.training import Recipe, TrainMetrics, make_train_many, resolve_mapping

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
HOW_FIELDS = ("unit_size", "mapping", "chunk_size", "num_devices")
REFERENCE_FIELDS = ("nads", "singular_values", "singular_values_num_networks", "compare")
FIGURES = (
    "accuracy_map.png", "steps_map.png", "accuracy_by_index.png", "accuracy_histogram.png", "accuracy_by_energy.png",
)  # fmt: skip
# Fields that determine the numbers of every network: a folder holds one set of them.
IDENTITY_FIELDS = (
    "image_shape", "initialization", "convolution", "source", "num_test", "learning_rate", "schedule", "clip_norm",
    "weight_decay", "batch_size", "num_epochs", "loss_threshold", "loss_window", "precision",
)  # fmt: skip
FREE_FIELDS = (
    *SWEEPS, "frequency_range", "frequency_step", "phases", "channel", "indices", "num_directions", "direction_seed",
    "directions", *HOW_FIELDS, *REFERENCE_FIELDS,
)  # fmt: skip
RECIPE_FIELDS = (
    "schedule", "clip_norm", "weight_decay", "batch_size", "num_epochs", "num_test", "loss_threshold", "loss_window",
    "precision",
)  # fmt: skip


class Directions(NamedTuple):
    """The directions of a run [K, D] and what names each of them: [K] strings, empty where they do not apply."""

    rows: np.ndarray
    coordinates: list[dict[str, Any]]


class Network(NamedTuple):
    """One network of a sweep: its coordinates, its direction [D], and the name its result is stored under."""

    coordinates: dict[str, Any]
    direction: np.ndarray
    name: str


def parse_optimizer(text: str) -> tuple[str, dict[str, Any]]:
    """The name and options of an optimizer written "sgd", "sgd:momentum=0.9" or "adam:b1=0.8:learning_rate=0.001"."""
    name, *parts = str(text).split(":")
    options = {}
    for part in parts:
        option, equals, value = part.partition("=")
        try:
            options[option] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            equals = ""
        if not equals:
            raise InputError(f"optimizers: options are written name:option=value:…, with numbers, got {text!r}")
    return name, options


def read_recipe(config: ConfigDict, optimizer: str, num_train: int) -> tuple[Recipe, float]:
    """How the networks of one optimizer and number of samples are trained, and their learning rate."""
    name, options = parse_optimizer(optimizer)
    learning_rate = options.pop("learning_rate", config.learning_rate)
    fields = {field: config[field] for field in RECIPE_FIELDS}
    return Recipe(name, options, num_train=num_train, **fields), learning_rate


def create_network(config: ConfigDict, architecture: str, pooling: str) -> Model:
    """The model of one architecture and pooling, with a logit for each class."""
    return create_model(architecture, config.image_shape, 2, pooling, config.initialization, config.convolution)


def _check_sweep(config: ConfigDict, field: str) -> None:
    values = config[field]
    if not isinstance(values, tuple | list) or not len(values) or len(set(values)) < len(values):
        raise InputError(f"{field}: must be a non-empty tuple of different values, got {values!r}")
    for value in values:
        if "," in str(value):
            several = ", ".join(repr(part.strip()) for part in value.split(","))
            raise InputError(f'{field}: several names are written --config.{field}="({several})", got {value!r}')


def _check_source(config: ConfigDict) -> None:
    check_choice("source", config.source, SOURCES)
    needs = {"nads": "nads", "file": "directions"}.get(config.source)
    if needs and not config[needs]:
        raise InputError(f"{needs}: source={config.source!r} needs a file of directions here")
    if config.source == "random":
        check_integer("num_directions", config.num_directions, 1, int(np.prod(config.image_shape)))


def _check_frequency_range(config: ConfigDict) -> None:
    highest = min(config.image_shape[:2]) // 2
    for frequency in config.frequency_range:
        check_integer("frequency_range", frequency, -highest, highest + 1)
    if len(config.frequency_range) != 2 or config.frequency_range[0] >= config.frequency_range[1]:
        raise InputError(f"frequency_range: must be first, stop with first < stop, got {config.frequency_range!r}")


def validate(config: ConfigDict) -> None:
    """Raises one `InputError` with a line per problem."""
    known = {*IDENTITY_FIELDS, *FREE_FIELDS, "experiment"}
    problems = [f"{name}: field is missing" for name in sorted(known - set(config))]
    problems += [str(unknown("config field", name, known)) for name in sorted(set(config) - known)]
    if not problems:
        problems = errors.problems(
            *(partial(_check_sweep, config, field) for field in SWEEPS), lambda: check_image_shape(config.image_shape)
        )
    if problems:
        raise InputError("\n".join(problems))
    problems = errors.problems(
        *(partial(create_network, config, *pair) for pair in itertools.product(config.architectures, config.poolings)),
        *(partial(check_integer, "seeds", seed, 0, 2**32 - 1) for seed in config.seeds),
        *(partial(check_number, "sigmas", sigma, 0.0) for sigma in config.sigmas),
        *(partial(check_number, "epsilons", epsilon, 0.0) for epsilon in config.epsilons),
        *(partial(check_integer, "indices", index, 0) for index in config.indices),
        lambda: _check_source(config),
        lambda: _check_frequency_range(config),
        lambda: check_integer("frequency_step", config.frequency_step, 1),
        lambda: check_choice("phases", config.phases, PHASES),
        lambda: check_integer("channel", config.channel, 0, config.image_shape[2] - 1),
        lambda: check_integer("direction_seed", config.direction_seed, 0, 2**32 - 1),
        lambda: check_number("learning_rate", config.learning_rate, 0.0),
        lambda: check_integer("unit_size", config.unit_size, 0),
        lambda: resolve_mapping(config.mapping, config.chunk_size, config.num_devices),
        lambda: check_integer("singular_values_num_networks", config.singular_values_num_networks, 2),
    )
    for optimizer, num_train in itertools.product(config.optimizers, config.nums_train):
        try:
            recipe, learning_rate = read_recipe(config, optimizer, num_train)
            check_number("learning_rate", learning_rate, 0.0)
            names = {"num_train": "nums_train", "optimizer": "optimizers"}
            lines = (line.split(":", 1) for line in recipe.problems())
            problems += [f"{names.get(name, name)}:{rest}" for name, rest in lines]
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))


def _frequency_grid(config: ConfigDict) -> list[tuple[int, int]]:
    """The frequencies (row, column) of the grid, lowest first, of ±f the one that starts positive."""
    axis = range(config.frequency_range[0], config.frequency_range[1], config.frequency_step)
    return sorted(itertools.product(axis, axis), key=lambda f: (f[0] ** 2 + f[1] ** 2, -f[0], -f[1]))


def _fourier_directions(config: ConfigDict) -> Directions:
    height, width, _ = config.image_shape
    rows, coordinates = [], []
    for frequency, phase in itertools.product(_frequency_grid(config), PHASES[config.phases]):
        row, column = frequency
        if phase == "sine" and (2 * row) % height == 0 and (2 * column) % width == 0:
            continue  # a self-conjugate frequency has no sine
        rows.append(np.asarray(bases.dft_direction(config.image_shape, frequency, phase, config.channel)))
        coordinates.append(
            {"index": len(coordinates), "frequency_row": row, "frequency_column": column, "phase": phase}
        )
    if not rows:
        raise InputError("phases: this grid of frequencies has no sine; use phases='cosine'")
    return Directions(np.stack(rows), coordinates)


def read_spectrum(config: ConfigDict) -> nads.Spectrum | None:
    """The NADs of `config.nads` with their eigenvalues, or None where there is no file or none are known."""
    if not config.nads:
        return None
    dimension = int(np.prod(config.image_shape))
    if Path(config.nads).suffix == ".npz":
        record = store.load_nads(config.nads)
        if record.directions.shape[1] != dimension:
            raise InputError(f"{config.nads}: directions have D = {record.directions.shape[1]}, expected {dimension}")
        return nads.Spectrum(record.directions, record.eigenvalues)
    directions = store.read_directions(config.nads, dimension)
    if not config.singular_values:
        return None
    values = store.read_singular_values(config.singular_values)
    if len(values) != len(directions):
        raise InputError(f"{config.singular_values}: {len(values)} singular values for {len(directions)} directions")
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
                bases.basis_random(make_key(config.direction_seed), dimension, config.num_directions)
            ),
        }[config.source]()
        found = Directions(rows, [{"index": index} for index in range(len(rows))])
    chosen = list(config.indices) or list(range(len(found.rows)))
    if max(chosen) >= len(found.rows):
        raise InputError(f"indices: must be in 0 … {len(found.rows) - 1}, got {max(chosen)}")
    kept = [chosen[position] for position in bases.distinct_directions(found.rows[chosen])]
    return Directions(found.rows[kept], [{"source": config.source, **found.coordinates[k]} for k in kept])


def _name_directions(directions: Directions) -> list[str]:
    return [f"{bases.direction_identity(row):016x}" for row in directions.rows]


def make_networks(config: ConfigDict) -> list[Network]:
    """Every network of a config, in the order of the table."""
    directions = make_directions(config)
    identities = _name_directions(directions)
    networks = []
    for values in itertools.product(*(config[field] for field in SWEEPS)):
        point = dict(zip(SWEEPS.values(), values, strict=True))
        point |= {name: float(point[name]) for name in ("sigma", "epsilon")}  # 3 and 3.0 are one value
        for row, coordinates, identity in zip(directions.rows, directions.coordinates, identities, strict=True):
            name = json.dumps({**point, "direction": identity}, sort_keys=True)
            networks.append(Network({**point, **coordinates, "direction": identity}, row, name))
    return networks


def _read_units(workdir: Path) -> dict[str, dict[str, Any]]:
    """The metrics of every stored network by its name; damaged units are moved aside."""
    stored: dict[str, dict[str, Any]] = {}
    for path in sorted(workdir.glob("units/networks_*.npz")):
        try:
            arrays = store.read_npz(path, ("names", *TrainMetrics._fields))
            count = arrays["names"].shape
            if len(count) != 1 or any(arrays[name].shape[:1] != count for name in TrainMetrics._fields):
                raise InputError(f"{path}: arrays of different lengths")
        except InputError as error:
            logging.warning("%s; kept as %s, computed again", error, store.quarantine(path).name)
            continue
        for position, name in enumerate(arrays["names"].tolist()):
            stored[name] = {metric: arrays[metric][position] for metric in results.METRICS}
    return stored


def _write_unit(workdir: Path, networks: list[Network], metrics: TrainMetrics, made: dict[str, Any]) -> None:
    names = [network.name for network in networks]
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    arrays = {name: np.asarray(values) for name, values in metrics._asdict().items()}
    arrays |= {"names": np.array(names), "config": np.asarray(json.dumps(made))}
    store.write_npz(workdir / "units" / f"networks_{digest}.npz", arrays)


def _programs(networks: list[Network]) -> Iterator[tuple[tuple[Any, ...], list[Network]]]:
    """The networks of each compiled program: those of one architecture, pooling, optimizer and number of samples."""
    static = ("architecture", "pooling", "optimizer", "num_train")
    for program, group in itertools.groupby(networks, lambda network: [network.coordinates[name] for name in static]):
        yield tuple(program), list(group)


def _train_missing(config: ConfigDict, networks: list[Network], workdir: Path) -> None:
    done = _read_units(workdir)
    mapping, chunk_size, devices = resolve_mapping(config.mapping, config.chunk_size, config.num_devices)
    unit_size = config.unit_size or chunk_size
    made = {"mapping": mapping, "chunk_size": chunk_size, "jax": jax.__version__, "device": devices[0].device_kind}
    missing = [network for network in networks if network.name not in done]
    num_done = len(networks) - len(missing)
    progress = Progress(len(networks), num_done, "networks")
    for (architecture, pooling, optimizer, num_train), group in _programs(missing):
        recipe, learning_rate = read_recipe(config, optimizer, num_train)
        model = create_network(config, architecture, pooling)
        run = make_train_many(model, recipe, config.mapping, config.chunk_size, config.num_devices)
        for first in range(0, len(group), unit_size):
            unit = group[first : first + unit_size]
            epsilon, sigma, seed = ([n.coordinates[name] for n in unit] for name in ("epsilon", "sigma", "seed"))
            metrics = run(
                np.stack([network.direction for network in unit]),
                epsilon,
                sigma,
                learning_rate,
                seed,
                lambda in_unit, num_done=num_done: progress(num_done + in_unit),
            )
            _write_unit(workdir, unit, metrics, {**model.description, **made})
            num_done += len(unit)


def _energies(config: ConfigDict, groups: dict[str, list[results.Row]]) -> dict[str, np.ndarray]:
    """vᵀGv of the directions of each group, in the order of `by_direction`; empty where `config.nads` gives no G."""
    spectrum = read_spectrum(config)
    if spectrum is None:
        return {}
    directions = make_directions(config)
    energies = nads.directional_energy(spectrum, directions.rows)
    named = dict(zip(_name_directions(directions), energies, strict=True))
    return {label: np.array([named[name] for name in results.by_direction(group)]) for label, group in groups.items()}


def _report(config: ConfigDict, rows: list[dict[str, Any]]) -> None:
    """Prints the results as the reader of a log wants them."""
    groups = results.group_rows(rows)
    energies = _energies(config, groups)
    for label, group in groups.items():
        accuracy = np.array([row["test_accuracy"] for row in group])
        diverged = sum(row["diverged_at"] >= 0 for row in group)
        print(
            f"{label or group[0]['architecture']}: {len(group)} networks" + (f", {diverged} diverged" * (diverged > 0))
        )
        print(
            f"  test accuracy: mean {accuracy.mean():.1%}, lowest {accuracy.min():.1%}, highest {accuracy.max():.1%}, "
            f"{(accuracy >= 0.9).mean():.1%} of networks at 90% or more"
        )
        steps = np.array([row["steps_to_loss"] for row in group])
        if (steps >= 0).any():
            print(
                f"  loss of {config.loss_threshold:g}: reached by {(steps >= 0).mean():.1%} of networks, "
                f"median step {np.median(steps[steps >= 0]):.0f}"
            )
        if label in energies and len(energies[label]) > 1:
            correlation = float(rank_correlation(energies[label], results.mean_accuracies(group)))
            print(f"  rank correlation of vᵀGv with accuracy, {len(energies[label])} directions: {correlation:.2f}")
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
    return json.loads(json.dumps({name: config[name] for name in sorted(fields)}))


def _check_command(config: ConfigDict, workdir: Path) -> None:
    """Raises `InputError` unless the table of the folder is the one of this command."""
    path = workdir / "command.json"
    if not path.exists():
        raise InputError(f"{path}: there is no finished run here; give the command without --figures_only")
    stored, asked = json.loads(store.read_text(path)), _command(config)
    differing = [
        f"  {name}: folder {stored.get(name)!r}, command {asked[name]!r}"
        for name in asked
        if stored.get(name) != asked[name]
    ]
    if differing:
        raise InputError("\n".join([f"{workdir}: its table was made by another command", *differing]))


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains what is missing in `workdir`, writes `results.csv`, prints a summary and the comparison."""
    validate(config)
    networks = make_networks(config)
    read_spectrum(config)  # a bad file is an error before anything is computed
    if config.compare:
        for architecture in config.architectures:
            published.read_table(config.compare, architecture)
    store.open_run_folder(workdir, {name: config[name] for name in IDENTITY_FIELDS})
    store.make_folder(workdir / "units")
    _train_missing(config, networks, workdir)
    stored = _read_units(workdir)
    lost = sum(network.name not in stored for network in networks)
    if lost:
        raise InputError(f"{workdir}: {lost} networks were damaged after they had been written; run the command again")
    rows = [{**network.coordinates, **stored[network.name]} for network in networks]
    store.write_text(workdir / "results.csv", results.format_table(rows))
    store.write_text(workdir / "command.json", json.dumps(_command(config), indent=2) + "\n")
    _report(config, results.read_results(workdir / "results.csv"))


def draw(config: ConfigDict, workdir: Path) -> list[Path]:
    """Draws `results.csv` of `workdir`; which figures there are depends on the source of the directions."""
    validate(config)
    _check_command(config, workdir)
    rows = results.read_results(workdir / "results.csv")
    groups, title = results.group_rows(rows), results.describe(rows)
    figures = {}
    if config.source == "dft":
        shape = tuple(config.image_shape[:2])
        axis = np.arange(config.frequency_range[0], config.frequency_range[1], config.frequency_step)
        accuracy = results.map_panels(groups, "test_accuracy", axis, shape)
        figures["accuracy_map.png"] = plotting.plot_accuracy_maps(accuracy, axis, f"Accuracy on D(v): {title}")
        # Averaged over the seeds that reached the loss.
        reached = {label: [row for row in group if row["steps_to_loss"] >= 0] for label, group in groups.items()}
        steps = results.map_panels(reached, "steps_to_loss", axis, shape)
        if any(np.isfinite(panel).any() for panel in steps.values()):
            figures["steps_map.png"] = plotting.plot_steps_maps(
                steps, axis, f"Steps to a loss of {config.loss_threshold:g}: {title}"
            )
    elif config.source == "nads":
        spectrum = read_spectrum(config)
        figures["accuracy_by_index.png"] = plotting.plot_accuracy_by_index(
            results.curves(groups), None if spectrum is None else spectrum.eigenvalues, f"Accuracy on $D(u_i)$: {title}"
        )
    else:
        accuracies = {label: results.mean_accuracies(group) for label, group in groups.items()}
        figures["accuracy_histogram.png"] = plotting.plot_accuracy_histogram(
            accuracies, f"Accuracy on D(v), {config.source} directions: {title}"
        )
    energies = _energies(config, groups)
    if energies:
        points = {label: (energies[label], results.mean_accuracies(group)) for label, group in groups.items()}
        figures["accuracy_by_energy.png"] = plotting.plot_accuracy_by_energy(points, f"Accuracy against vᵀGv: {title}")
    paths = []
    for name in FIGURES:
        if name in figures:
            store.save_figure(workdir / name, figures[name])
            paths.append(workdir / name)
        elif (workdir / name).exists():
            store.remove(workdir / name)  # it showed an earlier table
    return paths
