"""Where stored numbers come from: the configuration of a run folder, and what computed a unit."""

import contextlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from nad_jax import store
from nad_jax.errors import InputError, shown
from nad_jax.versions import device_kind, versions

Json = dict[str, Any]  # an object of JSON values


def describe_origin(identity: Json, **how: Any) -> np.ndarray:
    """What a unit carries as its array `config`, JSON: its configuration, how it was computed,
    versions and device.
    """
    said = {"identity": identity, **how, "device": device_kind(), "versions": versions()}
    return np.asarray(json.dumps(said))


def parse_object(path: str | Path, content: str | bytes) -> Json:
    """The object that a JSON text is; raises `store.DamagedError`, naming its file, for another."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise store.DamagedError(f"{path}: must be a JSON object, is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise store.DamagedError(f"{path}: must be a JSON object, got {type(values).__name__}")
    return values


def one_line(value: object) -> str:
    """A value of a file as one line of a terminal."""
    text = " ".join(str(value).split())[:200]
    return "".join(one if one.isprintable() else "?" for one in text)


def _parse_origin(path: Path, origin: str) -> Json:
    """What a unit says of itself; raises `store.DamagedError` where it does not."""
    said = parse_object(path, origin)
    kinds = {"identity": dict, "versions": dict, "device": str}
    if not all(isinstance(said.get(name), kind) for name, kind in kinds.items()):
        raise store.DamagedError(
            f"{path}: does not say what configuration it is of, or what computed it"
        )
    return said


def read_origin(path: Path) -> Json:
    """What a stored unit says of itself, see `describe_origin`: its array `config`, or fields of a
    JSON object.
    """
    if path.suffix == ".json":
        return _parse_origin(path, store.read_text(path))
    return _parse_origin(path, str(store.read_npz(path, ("config",))["config"]))


def check_origin(path: Path, origin: Any, identity: Json) -> Json:
    """What the array `config` of a unit, or its JSON text, says; raises `InputError` where it is of
    another configuration.
    """
    said = _parse_origin(path, str(origin))
    _check_same(f"{path}: is of another configuration", "file", said["identity"], identity)
    return said


def compare_versions(origin: Json) -> list[str]:
    """A line for each version, and for the kind of device, that a unit says and that is another one
    here and now.
    """
    here = {"device": device_kind(), **versions()}
    # Of earlier versions, nad_jax is not among them.
    stored = {"device": origin["device"], **origin["versions"]}
    return _list_differing(stored, "folder", stored, here)


def _list_differing(names: Iterable[str], place: str, stored: Json, here: Json) -> list[str]:
    """A line for each of these values that was stored otherwise in a place."""
    differing = [name for name in names if stored.get(name) != here.get(name)]
    return [f"  {n}: {place} {stored.get(n)!r}, command {here.get(n)!r}" for n in differing]


def _check_same(message: str, place: str, stored: Json, identity: Json) -> None:
    """Raises `InputError` with every field that differs from what was stored in a place."""
    identity = json.loads(json.dumps(identity))
    check_experiment(message, place, stored, identity)
    if stored != identity:
        names = sorted({*stored, *identity})
        lines = _list_differing(names, place, stored, identity)
        raise InputError("\n".join([message, *lines]))


def check_experiment(message: str, place: str, stored: Json, here: Json) -> None:
    """Raises `InputError`, in one line, where a place is of another experiment: then most of its
    other fields are unknown here.
    """
    one, other = (said.get("experiment") for said in (stored, here))
    if one != other:
        raise InputError(f"{message}: experiment: {place} {shown(one)}, command {shown(other)}")


def check_run_folder(workdir: Path, identity: Json) -> bool:
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
            names = [path.name for path in workdir.iterdir()] if workdir.exists() else []
            strangers = [name for name in names if not name.startswith((".", "config.json"))]
            if file.exists():  # another process has just made the folder
                return check_run_folder(workdir, identity)
            if strangers:
                raise InputError(
                    f"{workdir}: holds {min(strangers)!r} but no config.json, so it is no run "
                    "folder; name another"
                )
            return False
        content = file.read_bytes()
    except OSError as error:
        raise store.os_error(file, error) from error
    stored = parse_object(file, content)
    _check_same(f"{workdir}: holds results of another configuration", "folder", stored, identity)
    return True


def open_run_folder(workdir: Path, identity: Json) -> None:
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
        # The name itself is never empty.
        store.write_text(aside, file.read_text(encoding="utf-8", errors="replace"))
        logging.warning("%s; kept as %s, written again", error, aside.name)
        store.write_text(file, text)
    # Killed processes have left temporary files.
    left = [(folder, ".*.tmp") for folder in ("", "units", "snapshots", "progress")]
    for folder, pattern in left:
        for path in (workdir / folder).glob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > 3600:  # one in use is younger
                    path.unlink()
