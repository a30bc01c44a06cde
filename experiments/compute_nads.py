"""NADs of an architecture: an ensemble in stored units, the record, its comparison with stored NADs, figures.

Writes into the run folder: `units/*.npz` (partial covariances), `nads.npz` (see `nad_jax.NADs`), and with
`config.compare` or `config.compare_singular_values` a `comparison.npz`.
"""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments.progress import Progress
from nad_jax import covariance, errors, nads, plotting, store, subspaces
from nad_jax.architectures import create_model
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError, check_integer, unknown
from nad_jax.models import Model
from nad_jax.nads import NADs

MODEL_FIELDS = ("architecture", "image_shape", "num_logits", "pooling", "initialization", "convolution")
ESTIMATOR_FIELDS = tuple(nads.Estimator.__dataclass_fields__)
# Fields that extend or describe a folder; all others determine the numbers of its units.
FREE_FIELDS = ("num_networks", "compare", "compare_singular_values", "compare_num_networks", "figure_directions")
INDICES = (0, 1, 2, 3, 10, 100, 500)  # at which singular values are compared


def validate(config: ConfigDict) -> nads.Estimator:
    """The estimator of a config; raises one `InputError` with a line per problem."""
    known = {*MODEL_FIELDS, *ESTIMATOR_FIELDS, *FREE_FIELDS, "experiment", "seed", "unit_size"}
    problems = [f"{name}: field is missing" for name in sorted(known - set(config))]
    problems += [str(unknown("config field", name, known)) for name in sorted(set(config) - known)]
    if problems:
        raise InputError("\n".join(problems))
    estimator = nads.Estimator(**{name: config[name] for name in ESTIMATOR_FIELDS})
    problems = estimator.problems() + errors.problems(
        lambda: _create_model(config),
        lambda: nads.check_num_networks(config.num_networks, estimator),
        lambda: check_integer("unit_size", config.unit_size, 2),
        lambda: check_integer("seed", config.seed, 0, 2**32 - 1),
        lambda: check_integer("compare_num_networks", config.compare_num_networks, 2),
        lambda: check_integer("figure_directions", config.figure_directions, 1),
    )
    if config.unit_size % 2:
        problems.append(f"unit_size: must be even (halves of even and odd members), got {config.unit_size}")
    if problems:
        raise InputError("\n".join(problems))
    return estimator


def _create_model(config: ConfigDict) -> Model:
    return create_model(**{name: config[name] for name in MODEL_FIELDS})


def _read_comparison(config: ConfigDict, dimension: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    directions = store.read_directions(config.compare, dimension) if config.compare else None
    values = None
    if config.compare_singular_values:
        values = store.read_singular_values(config.compare_singular_values)
        if len(values) > dimension:
            raise InputError(
                f"{config.compare_singular_values}: {len(values)} singular values, expected at most D = {dimension}"
            )
    return directions, values


def _unit_path(workdir: Path, first: int, stop: int) -> Path:
    return workdir / "units" / f"networks_{first:07}_{stop:07}.npz"


def _write_unit(path: Path, halves: nads.Halves, estimator: nads.Estimator) -> None:
    arrays = {
        f"{half}_{name}": np.asarray(value)
        for half, moments in halves._asdict().items()
        for name, value in moments._asdict().items()
    }
    device = jax.devices()[0]
    made = {"chunk_size": estimator.chunk_size, "jax": jax.__version__, "device": device.device_kind}
    store.write_npz(path, {**arrays, "config": np.asarray(json.dumps(made))})


def _read_unit(path: Path, dimension: int) -> nads.Halves | None:
    """A stored unit; None where there is none, or where it was damaged and has been moved aside."""
    if not path.exists():
        return None
    names = [f"{half}_{name}" for half in nads.Halves._fields for name in covariance.Moments._fields]
    try:
        arrays = store.read_npz(path, tuple(names))
        shapes = {"count": (), "mean": (dimension,), "scatter": (dimension, dimension)}
        for name, array in arrays.items():
            if array.shape != shapes[name.split("_")[1]]:
                raise InputError(f"{path}: {name} has shape {array.shape}")
    except InputError as error:
        logging.warning("%s; kept as %s, computed again", error, store.quarantine(path).name)
        return None
    count = len(covariance.Moments._fields)
    values = [jnp.asarray(arrays[name]) for name in names]
    return nads.Halves(covariance.Moments(*values[:count]), covariance.Moments(*values[count:]))


def _plan(num_networks: int, unit_size: int) -> list[tuple[int, int]]:
    """The units [first, stop) of an ensemble: every `unit_size` networks, the last one cut short."""
    return [(first, min(first + unit_size, num_networks)) for first in range(0, num_networks, unit_size)]


def _stored_units(workdir: Path) -> list[Path]:
    digits = "[0-9]" * 7
    return list(workdir.glob(f"units/networks_{digits}_{digits}.npz"))


def _check_not_lowered(num_networks: int, workdir: Path) -> None:
    stored = max((int(path.stem[-7:]) for path in _stored_units(workdir)), default=0)
    if stored > num_networks:
        raise InputError(
            f"num_networks: can be raised, not lowered; {workdir} already holds {stored}, got {num_networks}"
        )


def _ensemble(
    accumulate: Callable[..., nads.Halves], estimator: nads.Estimator, config: ConfigDict, workdir: Path
) -> nads.Halves:
    """The merged state of all units, after computing and storing those that are missing."""
    dimension = int(np.prod(config.image_shape))
    paths = {unit: _unit_path(workdir, *unit) for unit in _plan(config.num_networks, config.unit_size)}
    missing = [unit for unit, path in paths.items() if _read_unit(path, dimension) is None]
    done = config.num_networks - sum(stop - first for first, stop in missing)
    progress = Progress(config.num_networks, done, "networks")
    for first, stop in missing:
        halves = accumulate(
            make_key(config.seed),
            nads.init_halves(dimension),
            first,
            stop,
            lambda in_unit, done=done: progress(done + in_unit),
        )
        _write_unit(paths[first, stop], halves, estimator)
        done += stop - first
    for path in _stored_units(workdir):
        # A last unit cut short by an earlier, smaller num_networks: its networks now lie in a full unit.
        if path not in paths.values():
            store.remove(path)
    # From the stored units and in their order, so that an interruption cannot change a bit.
    total = nads.init_halves(dimension)
    for path in paths.values():
        halves = _read_unit(path, dimension)
        if halves is None:
            raise InputError(f"{path}: was damaged after it had been written; run the same command again")
        total = nads.merge_halves(total, halves)
    return total


def _compare(
    result: NADs, config: ConfigDict, directions: np.ndarray | None, values: np.ndarray | None
) -> dict[str, np.ndarray]:
    arrays = {"num_networks": np.asarray(result.num_networks)}
    if directions is not None:
        sizes = tuple(int(size) for size in result.overlap_sizes if size <= len(directions))
        arrays["overlap_sizes"] = np.array(sizes)
        arrays["overlap"] = subspaces.subspace_overlap(result.directions, directions, sizes)
    if values is not None:
        own = nads.singular_values(result.eigenvalues, config.compare_num_networks)
        arrays["singular_values"] = own[: len(values)]
        arrays["compared_singular_values"] = values
        arrays["compared_eigenvalues"] = values**2 / (config.compare_num_networks - 1)
    return arrays


def _report(result: NADs, comparison: dict[str, np.ndarray], config: ConfigDict) -> None:
    """Prints the result as the reader of a log wants it."""
    print(f"{config.architecture}: NADs of {result.num_networks} networks, {config.derivative}, {config.readout}")
    for index in range(min(4, len(result.eigenvalues))):
        print(f"  eigenvalue {index}: {result.eigenvalues[index]:.4g} ± {result.eigenvalue_sem[index]:.1g}")
    groups, tolerance = nads.degenerate_groups(result)
    for first, last in groups:
        print(f"  directions {first}–{last}: eigenvalues equal within {tolerance:.0%}, single ones are not determined")
    against = comparison.get("overlap", ())
    print("  overlap of leading subspaces: size, split half" + (f", with {config.compare}" if len(against) else ""))
    for index, size in enumerate(result.overlap_sizes):
        other = f"  {against[index]:.3f}" if index < len(against) else ""
        print(f"  {size:6}  {result.split_half_overlap[index]:.3f}{other}")
    if "singular_values" in comparison:
        own, theirs = comparison["singular_values"], comparison["compared_singular_values"]
        print(f"  singular values: index, own, {config.compare_singular_values}, ratio")
        for index in (i for i in INDICES if i < len(own)):
            print(f"  {index:6}  {own[index]:.4g}  {theirs[index]:.4g}  {own[index] / max(theirs[index], 1e-30):.3f}")


def run(config: ConfigDict, workdir: Path) -> None:
    """Computes what is missing in `workdir`, writes `nads.npz` and `comparison.npz`, prints the agreement."""
    estimator = validate(config)
    model = _create_model(config)
    directions, values = _read_comparison(config, int(np.prod(model.image_shape)))
    accumulate, estimator = nads.make_accumulate(model, estimator, config.unit_size)
    identity = {name: value for name, value in config.items() if name not in FREE_FIELDS}
    store.open_run_folder(workdir, identity)
    _check_not_lowered(config.num_networks, workdir)
    store.make_folder(workdir / "units")
    halves = _ensemble(accumulate, estimator, config, workdir)

    choices = {**nads.record_choices(model, estimator, make_key(config.seed)), "seed": config.seed}
    result = nads.finalize(halves, config.num_networks, choices, estimator.centred)
    store.save_nads(workdir / "nads.npz", result)
    comparison = _compare(result, config, directions, values)
    if config.compare or config.compare_singular_values:
        store.write_npz(workdir / "comparison.npz", comparison)
    _report(result, comparison, config)


def draw(config: ConfigDict, workdir: Path) -> list[Path]:
    """Draws the stored results of `workdir`: `nads.png`, `spectrum.png`, `overlap.png`."""
    validate(config)
    result = store.load_nads(workdir / "nads.npz")
    comparison: dict[str, np.ndarray] = {}
    path = workdir / "comparison.npz"
    if path.exists():
        stored = store.read_npz(path)
        if stored["num_networks"] == result.num_networks:  # else it belongs to a smaller ensemble
            comparison = stored
    title = f"{result.config['architecture']}, {result.num_networks} networks, {result.config['derivative']}"
    image_shape = tuple(result.config["image_shape"])
    band = nads.null_band(result) if result.config["readout"] == "sampled" else None
    figures = {
        "nads.png": plotting.plot_directions(
            result.directions[: config.figure_directions], image_shape, f"Leading NADs: {title}"
        ),
        "spectrum.png": plotting.plot_spectrum(
            result.eigenvalues, result.eigenvalue_sem, title, band, comparison.get("compared_eigenvalues")
        ),
        "overlap.png": plotting.plot_overlap(
            {
                "even against odd members": (result.overlap_sizes, result.split_half_overlap),
                **(
                    {"against the compared directions": (comparison["overlap_sizes"], comparison["overlap"])}
                    if "overlap" in comparison
                    else {}
                ),
            },
            result.directions.shape[1],
            title,
        ),
    }
    paths = []
    for name, figure in figures.items():
        store.save_figure(workdir / name, figure)
        paths.append(workdir / name)
    return paths
