"""What a run folder of trained networks holds: the networks in units, each under its name, and the last command.

A network's name is what determines it, so a folder is extended by any sweep axis and nothing is trained twice.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from nad_jax import store
from nad_jax.errors import InputError


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


def make_rows(workdir: Path, networks: dict[str, dict[str, Any]], metrics: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows of the table: coordinates and metrics of the networks, by name; raises where one was lost."""
    stored = read_units(workdir, metrics)
    lost = sum(name not in stored for name in networks)
    if lost:
        raise InputError(f"{workdir}: {lost} networks were damaged after they had been written; run the command again")
    return [{**coordinates, **stored[name]} for name, coordinates in networks.items()]


def write_command(workdir: Path, command: dict[str, Any]) -> None:
    """Keeps the fields that say which networks are in the table of the folder."""
    store.write_text(workdir / "command.json", json.dumps(command, indent=2, sort_keys=True) + "\n")


def check_command(workdir: Path, command: dict[str, Any]) -> None:
    """Raises `InputError` unless the table of the folder is the one of this command."""
    path = workdir / "command.json"
    if not path.exists():
        raise InputError(f"{path}: there is no finished run here; give the command without --figures_only")
    stored, asked = json.loads(store.read_text(path)), json.loads(json.dumps(command, sort_keys=True))
    differing = [
        f"  {name}: folder {stored.get(name)!r}, command {asked[name]!r}"
        for name in asked
        if stored.get(name) != asked[name]
    ]
    if differing:
        raise InputError("\n".join([f"{workdir}: its table was made by another command", *differing]))
