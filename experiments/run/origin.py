"""Where stored numbers come from: the configuration of a run folder, and what computed a unit."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from nad_jax import store
from nad_jax.errors import InputError
from nad_jax.versions import device_kind, versions


def describe_origin(identity: dict[str, Any], **how: Any) -> np.ndarray:
    """What a unit carries as its array `config`, JSON: its configuration, how it was computed,
    versions and device.
    """
    return np.asarray(
        json.dumps({"identity": identity, **how, "device": device_kind(), "versions": versions()})
    )


def _parse_origin(path: Path, origin: str) -> dict[str, Any]:
    """What a unit says of itself; raises `store.DamagedError` where it does not."""
    try:
        said = json.loads(origin)
    except ValueError:
        said = None
    kinds = {"identity": dict, "versions": dict, "device": str}
    if not isinstance(said, dict) or not all(
        isinstance(said.get(name), kind) for name, kind in kinds.items()
    ):
        raise store.DamagedError(
            f"{path}: does not say what configuration it is of, or what computed it"
        )
    return said


def read_origin(path: Path) -> dict[str, Any]:
    """What a stored unit says of itself, see `describe_origin`: its array `config`, or fields of a
    JSON object.
    """
    return _parse_origin(
        path,
        store.read_text(path)
        if path.suffix == ".json"
        else str(store.read_npz(path, ("config",))["config"]),
    )


def check_origin(path: Path, origin: np.ndarray, identity: dict[str, Any]) -> dict[str, Any]:
    """What the array `config` of a unit says; raises `InputError` where it is of another
    configuration.
    """
    said = _parse_origin(path, str(origin))
    _check_same(f"{path}: is of another configuration", "file", said["identity"], identity)
    return said


def compare_versions(origin: dict[str, Any]) -> list[str]:
    """A line for each version, and for the kind of device, that a unit says and that is another one
    here and now.
    """
    here = {"device": device_kind(), **versions()}
    stored = {
        "device": origin["device"],
        **origin["versions"],
    }  # of earlier versions, nad_jax is not among them
    differing = (name for name in stored if stored[name] != here.get(name))
    return [f"  {name}: folder {stored[name]!r}, command {here.get(name)!r}" for name in differing]


def _check_same(message: str, place: str, stored: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raises `InputError` with every field that differs from what was stored in a place."""
    identity = json.loads(json.dumps(identity))
    if stored != identity:
        names = sorted({*stored, *identity})
        differing = [name for name in names if stored.get(name) != identity.get(name)]
        lines = [
            f"  {name}: {place} {stored.get(name)!r}, command {identity.get(name)!r}"
            for name in differing
        ]
        raise InputError("\n".join([message, *lines]))


def check_run_folder(workdir: Path, identity: dict[str, Any]) -> bool:
    """Whether a run folder holds the same configuration; False where it holds none yet.

    Args:
      workdir: the folder.
      identity: the config fields that determine the numbers of a unit.

    Raises:
      InputError: where it holds another configuration: every differing field; or files that are not
        of a run.
      store.DamagedError: where its configuration is not readable.
    """
    file = workdir / "config.json"
    try:
        if not file.exists():
            strangers = sorted(path.name for path in workdir.iterdir()) if workdir.exists() else []
            strangers = [name for name in strangers if not name.startswith((".", "config.json"))]
            if file.exists():  # another process has just made the folder
                return check_run_folder(workdir, identity)
            if strangers:
                raise InputError(
                    f"{workdir}: holds {strangers[0]!r} but no config.json, so it is no run "
                    "folder; name another"
                )
            return False
        stored = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise store.os_error(file, error) from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise store.DamagedError(f"{file}: damaged, not JSON ({error})") from error
    if not isinstance(stored, dict):
        raise store.DamagedError(f"{file}: damaged, not a JSON object")
    _check_same(f"{workdir}: holds results of another configuration", "folder", stored, identity)
    return True


def open_run_folder(workdir: Path, identity: dict[str, Any]) -> None:
    """Creates a run folder, or checks that an existing one holds the same configuration, see
    `check_run_folder`.

    A damaged config.json is moved aside and written again, if the units in the folder are of this
    configuration.
    """
    store.make_folder(workdir)
    file, text = workdir / "config.json", json.dumps(identity, indent=2) + "\n"
    try:
        if not check_run_folder(workdir, identity) and not store.create_text(file, text):
            check_run_folder(workdir, identity)  # another command was first
    except store.DamagedError as error:
        for path in (workdir / "units").glob("*.npz"):
            with contextlib.suppress(store.DamagedError):
                check_origin(path, store.read_npz(path, ("config",))["config"], identity)
        aside = file.with_name(file.name + ".corrupt")
        store.write_text(
            aside, file.read_text(encoding="utf-8", errors="replace")
        )  # the name itself is never empty
        logging.warning("%s; kept as %s, written again", error, aside.name)
        store.write_text(file, text)
    for folder in (workdir, workdir / "units", workdir / "snapshots"):
        _remove_remains(folder)


def _remove_remains(folder: Path) -> None:
    """Removes temporary files that killed processes have left; one in use is younger than an hour."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink()
