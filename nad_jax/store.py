"""Files: arrays written atomically and read with suspicion, the NADs record, and a run folder of
  units.

Nothing is ever unpickled. A `.npy` header is checked against the file's size before anything is
allocated, and the members of an `.npz` are stored uncompressed with a checksum each, so damage is
found on reading.
"""

import contextlib
import errno
import io
import json
import math
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from absl import logging

from nad_jax.errors import (
    InputError,
    as_path,
    check_integer,
    check_record,
    first_line,
    number_array,
    plain,
)
from nad_jax.nads import NADs
from nad_jax.versions import device_kind, versions


class DamagedError(InputError):
    """A file that could be read but does not hold what it must: truncated, altered, of another
    format.
    """


class StorageError(InputError):
    """The storage failed, not the user: the disk is full, or does not answer."""


_USERS_ERRORS = (
    errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP,
    errno.ENAMETOOLONG, errno.EINVAL,
)  # fmt: skip


def _os_error(path: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason += f" ({shutil.disk_usage(path.parent).free / 2**20:.0f} MiB free)"
    return (InputError if error.errno in _USERS_ERRORS else StorageError)(f"{path}: {reason}")


@contextlib.contextmanager
def _written_at_once(
    path: Path, rename: Callable[[str, Path], None] | None = None
) -> Iterator[BinaryIO]:
    """A file that appears under its final name complete or not at all: temporary name, fsync,
    rename.

    Raises what `_write_bytes` does, and `FileExistsError` where `rename` does.
    """
    try:
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
    except OSError as error:
        raise _os_error(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            umask = os.umask(
                0
            )  # temporary files are private; results are what the user's other files are
            os.umask(umask)
            os.fchmod(descriptor, 0o666 & ~umask)
            yield file
            file.flush()
            os.fsync(file.fileno())
        (rename or os.replace)(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise _os_error(path, error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _write_bytes(path: Path, content: bytes) -> None:
    with _written_at_once(path) as file:
        file.write(content)


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays to `path` at once.

    Raises:
      InputError: naming the path, the reason and the free space; nothing partial is left under the
        final name.
    """
    with _written_at_once(path) as file:
        np.savez(file, **arrays)


def _read_array(content: bytes, name: str) -> np.ndarray:
    """The array of a whole `.npy` file, without a copy; raises `DamagedError` naming what is wrong."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read_header is None:
            raise DamagedError(f"{name}: unsupported .npy version {version}")
        shape, fortran, dtype = read_header(file)
    except DamagedError:
        raise
    except (
        Exception
    ) as error:  # NumPy parses the header as Python: a hostile one fails in many ways
        raise DamagedError(f"{name}: not a .npy array ({first_line(error)})") from error
    if dtype.hasobject or dtype.kind not in "biufU":
        raise DamagedError(
            f"{name}: holds {dtype} entries, allowed are numbers and text (objects are never "
            "unpickled)"
        )
    count, start = math.prod(shape), file.tell()
    if any(length < 0 for length in shape) or count * dtype.itemsize != len(content) - start:
        raise DamagedError(
            f"{name}: header says shape {shape} of {dtype}, {count * dtype.itemsize} bytes, "
            f"but {len(content) - start} bytes follow"
        )
    try:
        return np.frombuffer(content, dtype, count, start).reshape(
            shape, order="F" if fortran else "C"
        )
    except ValueError as error:  # lengths that NumPy does not know, beside a length of zero
        raise DamagedError(
            f"{name}: no array has shape {shape} of {dtype} ({first_line(error)})"
        ) from error


def read_npy(path: str | Path) -> np.ndarray:
    """An untrusted `.npy` file as an array of numbers; raises `InputError` naming the file and the
    reason.
    """
    path = as_path("path", path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _os_error(path, error) from error
    return _read_array(content, str(path))


def read_npz(
    path: str | Path, names: tuple[str, ...] | None = None, optional: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """The named arrays (None: all) of an untrusted `.npz` file written uncompressed; checksums are
    verified.

    Besides the named ones, those `optional` ones that are there.

    Raises:
      InputError: naming the file and the reason it cannot be opened or read.
      DamagedError: an `InputError` where it can: not a zip file, truncated, altered, compressed,
        array missing.
    """
    path = as_path("path", path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            names = (
                tuple(entries)
                if names is None
                else (*names, *(name for name in optional if name in entries))
            )
            for name in names:
                if name not in entries:
                    raise DamagedError(f"{path}: array {name!r} is missing")
                if entries[name].compress_type != zipfile.ZIP_STORED:
                    raise DamagedError(f"{path}: array {name!r} is compressed")
            if sum(info.file_size for info in entries.values()) > path.stat().st_size:
                raise DamagedError(f"{path}: says that its arrays are larger than itself")
            # Reading a whole member verifies its CRC-32.
            return {
                name: _read_array(archive.read(entries[name]), f"{path}: {name}") for name in names
            }
    except DamagedError:
        raise
    except OSError as error:
        if error.errno not in (
            None,
            errno.EINVAL,
        ):  # a place outside the file, which a damaged directory may name
            raise _os_error(path, error) from error
        raise DamagedError(f"{path}: damaged or not an .npz file ({first_line(error)})") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        # zipfile raises NotImplementedError for a compression that it does not know.
        raise DamagedError(f"{path}: damaged or not an .npz file ({first_line(error)})") from error


def save_nads(path: str | Path, nads: NADs, **beside: np.ndarray) -> None:
    """Writes the record as `.npz`, its config as a JSON string; `beside` are further arrays of the
    file.

    Raises:
      InputError: for a record that `load_nads` would not read, for what is no array beside it or
        has the name of one of its own, and where the file cannot be written.
    """
    path = as_path("path", path)
    check_record("nads", nads, NADs)
    for name, value in beside.items():
        if name in (*NADs._fields, "file"):
            raise InputError(f"{name}: an array beside the record must have another name")
        beside[name] = np.asarray(number_array(name, value))
    try:
        config = json.dumps(plain(nads.config))
    except (TypeError, ValueError) as error:
        raise InputError(f"nads: config must be JSON values ({error})") from error
    arrays = {
        name: np.asarray(number_array(f"nads: {name}", value))
        for name, value in nads._asdict().items()
        if name not in ("config", "symmetry", "trace")
    }
    arrays["trace"] = np.asarray(np.nan if nads.trace is None else nads.trace)
    arrays |= {"config": np.asarray(config), "symmetry": np.asarray(nads.symmetry)}
    _check_nads(dict(arrays), "nads")
    write_npz(path, {**arrays, **beside})


def load_nads(path: str | Path) -> NADs:
    """Reads a record written by `save_nads`; raises `InputError` naming the file and what is wrong
    with it.
    """
    later = ("symmetry", "trace", "pass_overlap")  # earlier versions did not write them
    required = tuple(name for name in NADs._fields if name not in later)
    arrays = read_npz(path, required, optional=later)
    if ("trace" in arrays) != ("pass_overlap" in arrays):
        raise DamagedError(f"{path}: trace and pass_overlap are written together, one is missing")
    # Directions of earlier versions are of no representation in particular.
    symmetry = np.full(len(np.atleast_1d(arrays["directions"])), "")
    return _check_nads({"symmetry": symmetry, **arrays}, str(path))


def _check_nads(arrays: dict[str, np.ndarray], path: str) -> NADs:
    """The record of the arrays of a file; raises `InputError` naming the file and what is wrong
    with it.
    """
    directions = _check_directions(arrays["directions"], path)
    num_directions, num_sizes = len(directions), arrays["overlap_sizes"].size
    expected = {
        "eigenvalues": (num_directions,),
        "eigenvalue_sem": (num_directions,),
        "overlap_sizes": (num_sizes,),
        "split_half_overlap": (num_sizes,),
        "num_networks": (),
        "config": (),
        "symmetry": (num_directions,),
        "trace": (),
        "pass_overlap": (len(np.atleast_1d(arrays.get("pass_overlap", ()))), num_sizes),
    }
    if arrays.get("pass_overlap", np.zeros(1)).size == 0:  # of one pass
        arrays["pass_overlap"] = np.zeros((0, num_sizes))
    for name, shape in expected.items():
        if name not in arrays:
            continue
        if arrays[name].shape != shape:
            raise InputError(f"{path}: {name} has shape {arrays[name].shape}, expected {shape}")
        if name in ("config", "symmetry"):
            continue
        if arrays[name].dtype.kind not in "iuf":
            raise InputError(f"{path}: {name} is not an array of finite numbers")
        # Overlaps beyond the rank of a half, and a trace that is not known.
        undefined = np.isnan(arrays[name]) & (name in ("split_half_overlap", "trace"))
        if not (np.isfinite(arrays[name]) | undefined).all():
            raise InputError(f"{path}: {name} is not an array of finite numbers")
    if arrays["symmetry"].dtype.kind != "U":
        raise InputError(f"{path}: symmetry is not an array of text")
    try:
        config = json.loads(str(arrays.pop("config")))
    except ValueError as error:
        raise InputError(f"{path}: config is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: config is not a JSON object")
    numbers = {"num_networks": int(arrays["num_networks"]), "config": config}
    if not np.isnan(arrays.get("trace", np.nan)):
        numbers["trace"] = float(arrays["trace"])
    arrays.pop("trace", None)
    return NADs(**{**arrays, **numbers})


def _check_directions(
    directions: np.ndarray, name: str, dimension: int | None = None
) -> np.ndarray:
    if directions.dtype.kind not in "iuf" or directions.ndim != 2 or min(directions.shape) == 0:
        raise InputError(
            f"{name}: directions must be a non-empty array [K, D] of real numbers, "
            f"got shape {directions.shape} of {directions.dtype}"
        )
    if dimension is not None and directions.shape[1] != dimension:
        raise InputError(
            f"{name}: directions have D = {directions.shape[1]}, expected D = {dimension}"
        )
    if len(directions) > directions.shape[1]:
        raise InputError(
            f"{name}: {len(directions)} directions of D = {directions.shape[1]} cannot be "
            "orthogonal"
        )
    with np.errstate(over="ignore"):
        directions = directions.astype(np.float32)
        norms = np.linalg.norm(directions, axis=1)
    for index, norm in enumerate(norms):
        if not np.isfinite(norm):
            raise InputError(f"{name}: direction {index} has entries that are not finite")
        if norm == 0:
            raise InputError(f"{name}: direction {index} is zero")
        if abs(norm - 1) > 1e-3:
            raise InputError(f"{name}: direction {index} has norm {norm:.4g}, expected 1")
    return directions


def read_directions(path: str | Path, dimension: int | None = None) -> np.ndarray:
    """Directions as unit rows [K, D], float32, from an untrusted `.npy` file or an own `nads.npz`.

    Args:
      path: a `.npy` file of directions as rows, or a `.npz` file with an array `directions`.
      dimension: the D the caller needs, if it needs one.

    Raises:
      InputError: naming the file and the reason: unreadable, not an array of real numbers (objects
        are never unpickled), header and file size that disagree, wrong shape or D, entries that are
        not finite, a direction that is zero or not of unit norm (to 1e-3).
    """
    path = as_path("path", path)
    dimension = None if dimension is None else check_integer("dimension", dimension, 1)
    if path.suffix not in (".npy", ".npz"):
        raise InputError(f"{path}: directions are read from .npy or .npz files")
    if path.suffix == ".npz":
        return _check_directions(
            read_npz(path, ("directions",))["directions"], str(path), dimension
        )
    return _check_directions(read_npy(path), str(path), dimension)


def read_singular_values(path: str | Path) -> np.ndarray:
    """Descending, non-negative singular values [K], float64, from an untrusted `.npy` file."""
    values = read_npy(path)
    if values.ndim != 1 or values.size == 0 or values.dtype.kind not in "iuf":
        raise InputError(
            f"{path}: singular values must be a list of real numbers, got shape {values.shape}"
        )
    values = values.astype(np.float64)
    if not np.isfinite(values).all() or (values < 0).any() or (np.diff(values) > 0).any():
        raise InputError(f"{path}: singular values must be finite, non-negative and descending")
    return values


def describe_origin(identity: dict[str, Any], **how: Any) -> np.ndarray:
    """What a unit carries as its array `config`, JSON: its configuration, how it was computed,
    versions and device.
    """
    return np.asarray(
        json.dumps({"identity": identity, **how, "device": device_kind(), "versions": versions()})
    )


def _parse_origin(path: Path, origin: str) -> dict[str, Any]:
    """What a unit says of itself; raises `DamagedError` where it does not."""
    try:
        said = json.loads(origin)
    except ValueError:
        said = None
    kinds = {"identity": dict, "versions": dict, "device": str}
    if not isinstance(said, dict) or not all(
        isinstance(said.get(name), kind) for name, kind in kinds.items()
    ):
        raise DamagedError(f"{path}: does not say what configuration it is of, or what computed it")
    return said


def read_origin(path: Path) -> dict[str, Any]:
    """What a stored unit says of itself, see `describe_origin`: its array `config`, or fields of a
    JSON object.
    """
    return _parse_origin(
        path,
        read_text(path) if path.suffix == ".json" else str(read_npz(path, ("config",))["config"]),
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
      DamagedError: where its configuration is not readable.
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
        raise _os_error(file, error) from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise DamagedError(f"{file}: damaged, not JSON ({error})") from error
    if not isinstance(stored, dict):
        raise DamagedError(f"{file}: damaged, not a JSON object")
    _check_same(f"{workdir}: holds results of another configuration", "folder", stored, identity)
    return True


def open_run_folder(workdir: Path, identity: dict[str, Any]) -> None:
    """Creates a run folder, or checks that an existing one holds the same configuration, see
    `check_run_folder`.

    A damaged config.json is moved aside and written again, if the units in the folder are of this
    configuration.
    """
    make_folder(workdir)
    file, text = workdir / "config.json", json.dumps(identity, indent=2) + "\n"
    try:
        if not check_run_folder(workdir, identity) and not _create_text(file, text):
            check_run_folder(workdir, identity)  # another command was first
    except DamagedError as error:
        for path in (workdir / "units").glob("*.npz"):
            with contextlib.suppress(DamagedError):
                check_origin(path, read_npz(path, ("config",))["config"], identity)
        aside = file.with_name(file.name + ".corrupt")
        write_text(
            aside, file.read_text(encoding="utf-8", errors="replace")
        )  # the name itself is never empty
        logging.warning("%s; kept as %s, written again", error, aside.name)
        write_text(file, text)
    for folder in (workdir, workdir / "units", workdir / "snapshots"):
        _remove_remains(folder)


def _remove_remains(folder: Path) -> None:
    """Removes temporary files that killed processes have left; one in use is younger than an hour."""
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink()


def read_text(path: str | Path) -> str:
    """A text file, without the mark that some programs begin one with; raises `InputError` naming
    it and the reason.
    """
    path = Path(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _os_error(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file ({error})") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file, at once."""
    _write_bytes(path, text.encode())


def _create_text(path: Path, text: str) -> bool:
    """Writes a text file, at once, where there is none: whether that was so. Of several processes
    one is the first.
    """
    try:
        with _written_at_once(path, _rename_to_new) as file:
            file.write(text.encode())
    except FileExistsError:
        return False
    return True


def _rename_to_new(temporary: str, path: Path) -> None:
    """Gives a file a name that no other has; raises `FileExistsError`."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (
            errno.EPERM,
            errno.ENOTSUP,
            errno.EOPNOTSUPP,
            errno.ENOSYS,
            errno.EMLINK,
        ):
            raise
        # A file system without hard links: for an instant the file is empty.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(temporary, path)


def make_folder(folder: Path) -> None:
    """Creates a folder with its parents; raises `InputError` naming it where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _os_error(folder, error) from error


def save_figure(path: Path, figure: Any) -> None:
    """Writes a figure as PNG, at once."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    _write_bytes(path, image.getvalue())


def quarantine(path: Path) -> Path:
    """Moves a damaged file aside as `*.corrupt` and returns its new name; another process may have
    done so already.
    """
    aside = path.with_name(path.name + ".corrupt")
    try:
        os.replace(path, aside)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _os_error(path, error) from error
    return aside


def remove(path: Path) -> None:
    """Removes a file, if it is there; raises `InputError` naming it where that fails."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _os_error(path, error) from error
