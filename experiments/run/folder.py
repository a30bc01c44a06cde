"""What a run folder of trained networks holds: the networks in units, each under its name, and the
last command.

A network's name is what determines it, so a folder is extended by any sweep axis and nothing is
trained twice.
"""

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from experiments import results
from experiments.run.costs import (
    Example,
    device_bytes,
    largest_chunk,
    measure_training,
    training_bytes,
)
from experiments.run.plan import Cost, Plan, Program, Unit
from experiments.run.shards import Shard
from nad_jax import store
from nad_jax.errors import InputError
from nad_jax.fitting import resolve_mapping
from nad_jax.store import DamagedError


def digest(*arrays: np.ndarray) -> str:
    """A name for the content of arrays."""
    content = hashlib.sha256()
    for array in arrays:
        content.update(f"{array.dtype.str} {array.shape} ".encode())
        content.update(np.ascontiguousarray(array))
    return content.hexdigest()[:16]


def set_aside(path: Path, error: DamagedError) -> None:
    """Moves a damaged file aside and says so."""
    logging.warning("%s; kept as %s, computed again", error, store.quarantine(path).name)


def read_intact(path: Path, read: Callable[[], Any], repair: bool) -> Any:
    """What `read()` gives of a stored file; None where there is no intact one, damaged ones moved
    aside if `repair`.
    """
    try:
        return read()
    except DamagedError as error:
        if repair:
            set_aside(path, error)
    except InputError:
        if path.exists():
            raise
    return None


def read_units(
    workdir: Path, metrics: tuple[str, ...], identity: dict[str, Any], repair: bool = True
) -> dict[str, dict[str, Any]]:
    """The metrics of every stored network by its name; damaged units are left out, and moved aside
    if `repair`.
    """
    stored: dict[str, dict[str, Any]] = {}
    for path in sorted(workdir.glob("units/networks_*.npz")):
        try:
            arrays = store.read_npz(path, ("names", "config", *metrics))
            count = arrays["names"].shape
            if len(count) != 1 or any(arrays[name].shape != count for name in metrics):
                raise DamagedError(f"{path}: arrays of different lengths")
            store.check_origin(path, arrays["config"], identity)
        except DamagedError as error:
            if repair:
                set_aside(path, error)
            continue
        except InputError:
            if path.exists():
                raise
            continue  # another process has just moved it aside
        for position, name in enumerate(arrays["names"].tolist()):
            stored[name] = {metric: arrays[metric][position] for metric in metrics}
    return stored


def _digest_names(names: list[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def _write_unit(workdir: Path, names: list[str], metrics: Any, origin: np.ndarray) -> None:
    """Stores the metrics [N] of the networks of these names, and where they come from."""
    arrays = {name: np.asarray(values) for name, values in metrics._asdict().items()}
    arrays |= {"names": np.array(names), "config": origin}
    store.write_npz(workdir / "units" / f"networks_{_digest_names(names)}.npz", arrays)


class Sweep(NamedTuple):
    """Networks to train, and how a folder of them is written.

    identity: the values that all networks of the folder share.
    networks: with `name` and `coordinates`; those of one program stand together.
    metrics: the names of what is stored of a network and goes into the table.
    program(network): what networks must have in common to be trained by one compiled program.
    make_run(program, chunk_size): gives `run(members, progress, snapshots)`, the metrics [N] of
      networks [N], and a description of the model.
    make_example(program, chunk_size): so many networks of it, to be measured.
    collect(missing): writes the results; `missing` counts the networks that are not there yet.
    """

    identity: dict[str, Any]
    networks: list[Any]
    metrics: tuple[str, ...]
    program: Callable[[Any], tuple]
    make_run: Callable[[tuple, int], tuple[Callable[..., Any], dict[str, Any]]]
    make_example: Callable[[tuple, int], Example]
    collect: Callable[[int], None]


def make_plan(config: ConfigDict, workdir: Path, sweep: Sweep) -> Plan:
    """The plan of a sweep: units of `config.unit_size` networks (0: one chunk) of one program."""
    _, chunk_size, _ = resolve_mapping(config.mapping, config.chunk_size, config.num_devices)
    unit_size = config.unit_size or chunk_size

    def group(networks: list[Any]) -> list[Unit]:
        units = []
        for program, members in itertools.groupby(networks, sweep.program):
            members = list(members)
            units += [
                _make_unit(program, members[i : i + unit_size])
                for i in range(0, len(members), unit_size)
            ]
        return units

    def list_units(shard: Shard) -> list[Unit]:
        return group(sweep.networks[shard.index :: shard.count])

    def open_folder() -> None:
        store.open_run_folder(workdir, sweep.identity)
        store.make_folder(workdir / "units")

    def find_missing(shard: Shard, repair: bool) -> list[Unit]:
        stored = read_units(workdir, sweep.metrics, sweep.identity, repair)
        mine = sweep.networks[shard.index :: shard.count]
        return group([network for network in mine if network.name not in stored])

    def choose_mapping(program: tuple, chunk_size: int) -> tuple[str, int, list[jax.Device]]:
        """As the config says, but no more networks at once than fit where it leaves their number
        open.
        """
        chosen = chunk_size or config.chunk_size
        mapping, chunk_size, devices = resolve_mapping(config.mapping, chosen, config.num_devices)
        if mapping == "vectorized" and not chosen:

            def needs(size: int) -> int:
                return training_bytes(sweep.make_example(program, size), mapping, devices)

            chunk_size = largest_chunk(
                needs, unit_size, len(devices), device_bytes() // 2 * len(devices)
            )
        return mapping, chunk_size, devices

    def measure(program: tuple) -> Cost:
        mapping, chunk_size, devices = choose_mapping(program, 0)
        return measure_training(sweep.make_example(program, chunk_size), mapping, devices)

    def make_program(program: tuple, chunk_size: int) -> Program:
        mapping, chunk_size, devices = choose_mapping(program, chunk_size)
        run, model = sweep.make_run(program, chunk_size)
        origin = store.describe_origin(
            sweep.identity, model=model, mapping=mapping, chunk_size=chunk_size
        )

        def compute(unit: Unit, progress: Callable[[float], None], snapshots: Any) -> int:
            metrics = run(unit.members, progress, snapshots)
            _write_unit(workdir, [network.name for network in unit.members], metrics, origin)
            return int((metrics.diverged_at >= 0).sum())

        return Program(compute, chunk_size, len(devices), json.loads(str(origin)))

    return Plan(
        open_folder,
        lambda: store.check_run_folder(workdir, sweep.identity),
        list_units,
        find_missing,
        make_program,
        measure,
        sweep.collect,
        [workdir],
    )


def _make_unit(program: tuple, members: list[Any]) -> Unit:
    return Unit(
        _digest_names([network.name for network in members]), program, len(members), members
    )


def write_table(workdir: Path, sweep: Sweep, columns: tuple[str, ...]) -> list[results.Row]:
    """Writes `results.csv`, the coordinates and metrics of the stored networks, and returns its
    rows.
    """
    stored = read_units(workdir, sweep.metrics, sweep.identity)
    rows = [
        {**network.coordinates, **stored[network.name]}
        for network in sweep.networks
        if network.name in stored
    ]
    store.write_text(workdir / "results.csv", results.format_table(rows, columns))
    return results.read_results(workdir / "results.csv", columns)


def _digest_table(workdir: Path, command: Any, missing: int) -> str:
    content = json.dumps([command, missing], sort_keys=True) + store.read_text(
        workdir / "results.csv"
    )
    return hashlib.sha256(content.encode()).hexdigest()


def write_command(workdir: Path, command: dict[str, Any], missing: int) -> None:
    """Keeps the fields that say which networks are in the table of the folder, and how many are not
    yet.
    """
    command = json.loads(json.dumps(command))
    digest = _digest_table(workdir, command, missing)
    text = json.dumps({"command": command, "missing": missing, "digest": digest}, indent=2)
    store.write_text(workdir / "command.json", text + "\n")


def check_command(workdir: Path, command: dict[str, Any]) -> str:
    """What figures of the table say of missing networks; `InputError` unless it is the one of this
    command, intact.
    """
    path = workdir / "command.json"
    if not path.exists():
        raise InputError(
            f"{path}: there is no finished run here; give the command without --figures_only"
        )
    try:
        stored = json.loads(store.read_text(path))
        made_by, missing, digest = stored["command"], int(stored["missing"]), stored["digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: damaged, not JSON ({error}); give the command without --figures_only"
        ) from error
    asked = json.loads(json.dumps(command))
    made_by = made_by if isinstance(made_by, dict) else {}
    differing = [
        f"  {name}: folder {made_by.get(name)!r}, command {asked[name]!r}"
        for name in asked
        if made_by.get(name) != asked[name]
    ]
    if differing:
        raise InputError(
            "\n".join([f"{workdir}: its table was made by another command", *differing])
        )
    if digest != _digest_table(workdir, made_by, missing):
        raise InputError(
            f"{workdir}: results.csv or command.json was changed; give the command without "
            "--figures_only"
        )
    return f"\n{missing} networks missing" if missing else ""
