"""What a run folder of trained networks holds: the networks in units, each under its name, and the last command.

A network's name is what determines it, so a folder is extended by any sweep axis and nothing is trained twice.
"""

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import results
from experiments.progress import Progress
from nad_jax import store
from nad_jax.errors import InputError
from nad_jax.fitting import resolve_mapping


def read_units(workdir: Path, metrics: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The metrics of every stored network by its name; damaged units are moved aside."""
    stored: dict[str, dict[str, Any]] = {}
    for path in sorted(workdir.glob("units/networks_*.npz")):
        try:
            arrays = store.read_npz(path, ("names", *metrics))
            count = arrays["names"].shape
            if len(count) != 1 or any(arrays[name].shape != count for name in metrics):
                raise InputError(f"{path}: arrays of different lengths")
        except InputError as error:
            logging.warning("%s; kept as %s, computed again", error, store.quarantine(path).name)
            continue
        for position, name in enumerate(arrays["names"].tolist()):
            stored[name] = {metric: arrays[metric][position] for metric in metrics}
    return stored


def write_unit(workdir: Path, names: list[str], metrics: Any, made: dict[str, Any]) -> None:
    """Stores the metrics [N] of the networks of these names, and how they were made."""
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    arrays = {name: np.asarray(values) for name, values in metrics._asdict().items()}
    arrays |= {"names": np.array(names), "config": np.asarray(json.dumps(made))}
    store.write_npz(workdir / "units" / f"networks_{digest}.npz", arrays)


def train_missing(
    config: ConfigDict,
    workdir: Path,
    networks: list[Any],
    metrics: tuple[str, ...],
    program: Callable[[Any], tuple],
    make_run: Callable[[tuple], tuple[Callable[..., Any], dict[str, Any]]],
) -> None:
    """Trains the networks that are not in the folder, and stores each unit of them when it is done.

    Args:
      networks: with `name` and `coordinates`; those of one program stand together.
      metrics: the names of what is stored of a network and goes into the table.
      program: what networks must have in common to be trained by one compiled program.
      make_run: gives, for such a program, `run(unit, progress)`, the metrics [N] of networks [N], and a description.
    """
    done = read_units(workdir, metrics)
    mapping, chunk_size, devices = resolve_mapping(config.mapping, config.chunk_size, config.num_devices)
    unit_size = config.unit_size or chunk_size
    made = {"mapping": mapping, "chunk_size": chunk_size, "jax": jax.__version__, "device": devices[0].device_kind}
    missing = [network for network in networks if network.name not in done]
    num_done = len(networks) - len(missing)
    progress = Progress(len(networks), num_done, "networks")
    for key, group in itertools.groupby(missing, program):
        run, description = make_run(key)
        group = list(group)
        for first in range(0, len(group), unit_size):
            unit = group[first : first + unit_size]
            trained = run(unit, lambda in_unit, num_done=num_done: progress(num_done + in_unit))
            write_unit(workdir, [network.name for network in unit], trained, {**description, **made})
            num_done += len(unit)
        del run  # and the images it holds on the device


def write_table(
    workdir: Path, networks: list[Any], metrics: tuple[str, ...], columns: tuple[str, ...]
) -> list[results.Row]:
    """Writes `results.csv`, the coordinates and metrics of the networks, and returns its rows; all must be stored."""
    stored = read_units(workdir, metrics)
    lost = sum(network.name not in stored for network in networks)
    if lost:
        raise InputError(f"{workdir}: {lost} networks were damaged after they had been written; run the command again")
    rows = [{**network.coordinates, **stored[network.name]} for network in networks]
    store.write_text(workdir / "results.csv", results.format_table(rows, columns))
    return results.read_results(workdir / "results.csv", columns)


def write_command(workdir: Path, command: dict[str, Any]) -> None:
    """Keeps the fields that say which networks are in the table of the folder."""
    store.write_text(workdir / "command.json", json.dumps(command, indent=2, sort_keys=True) + "\n")


def check_command(workdir: Path, command: dict[str, Any]) -> None:
    """Raises `InputError` unless the table of the folder is the one of this command."""
    path = workdir / "command.json"
    if not path.exists():
        raise InputError(f"{path}: there is no finished run here; give the command without --figures_only")
    try:
        stored, asked = json.loads(store.read_text(path)), json.loads(json.dumps(command, sort_keys=True))
    except ValueError as error:
        raise InputError(f"{path}: damaged, not JSON ({error}); give the command without --figures_only") from error
    stored = stored if isinstance(stored, dict) else {}
    differing = [
        f"  {name}: folder {stored.get(name)!r}, command {asked[name]!r}"
        for name in asked
        if stored.get(name) != asked[name]
    ]
    if differing:
        raise InputError("\n".join([f"{workdir}: its table was made by another command", *differing]))
