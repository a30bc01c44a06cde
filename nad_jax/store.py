"""Files: arrays and texts written atomically and read with suspicion.

Nothing is ever unpickled. A `.npy` header is checked against the file's size before anything is
allocated, and the members of an `.npz` are stored uncompressed with a checksum each, so damage is
found on reading.
"""

import contextlib
import errno
import io
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nad_jax.errors import (
    InputError,
    as_path,
    first_line,
)


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
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def os_error(path: Path, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        reason += f" ({shutil.disk_usage(path.parent).free / 2**20:.0f} MiB free)"
    return (InputError if error.errno in _USERS_ERRORS else StorageError)(f"{path}: {reason}")


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """What the system refuses becomes one `InputError` that names the path."""
    try:
        yield
    except OSError as error:
        raise os_error(path, error) from error


@contextlib.contextmanager
def _written_at_once(
    path: Path, rename: Callable[[str, Path], None] | None = None
) -> Iterator[BinaryIO]:
    """A file that appears under its final name complete or not at all: temporary name, fsync,
    rename; raises `InputError` where that fails.
    """
    with _reported(path):
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                # Temporary files are private; results are what the user's other files are.
                umask = os.umask(0)
                os.umask(umask)
                os.fchmod(descriptor, 0o666 & ~umask)
                yield file
                file.flush()
                os.fsync(file.fileno())
            (rename or os.replace)(temporary, path)
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
    file, headers = io.BytesIO(content), np.lib.format
    read = {(1, 0): headers.read_array_header_1_0, (2, 0): headers.read_array_header_2_0}
    try:
        version = headers.read_magic(file)
        if version not in read:
            raise ValueError(f"unsupported version {version}, allowed are (1, 0) and (2, 0)")
        shape, fortran, dtype = read[version](file)
    except Exception as error:  # NumPy parses headers as Python: hostile ones fail in many ways
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
    order = "F" if fortran else "C"
    try:
        return np.frombuffer(content, dtype, count, start).reshape(shape, order=order)
    except ValueError as error:  # lengths that NumPy does not know, beside a length of zero
        raise DamagedError(
            f"{name}: no array has shape {shape} of {dtype} ({first_line(error)})"
        ) from error


def read_npy(path: str | Path) -> np.ndarray:
    """An untrusted `.npy` file as an array of numbers; raises `InputError` naming the file and the
    reason.
    """
    path = as_path("path", path)
    with _reported(path):
        content = path.read_bytes()
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
            if names is None:
                names = tuple(entries)
            names += tuple(name for name in optional if name in entries)
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
    except (OSError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError) as error:
        # EINVAL: a place outside the file, which a damaged directory may name. A compression that
        # zipfile does not know is a RuntimeError (NotImplementedError).
        if getattr(error, "errno", None) not in (None, errno.EINVAL):
            raise os_error(path, error) from error
        raise DamagedError(f"{path}: damaged or not an .npz file ({first_line(error)})") from error


def read_text(path: str | Path) -> str:
    """A text file, without the mark that some programs begin one with; raises `InputError` naming
    it and the reason.
    """
    path = Path(path)
    try:
        with _reported(path):
            return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file ({error})") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text file, at once."""
    _write_bytes(path, text.encode())


def create_text(path: Path, text: str) -> bool:
    """Writes a text file, at once, where there is none: whether that was so. Of several processes
    one is the first.
    """
    try:
        with _written_at_once(path, _rename_to_new) as file:
            file.write(text.encode())
    except InputError as error:
        if isinstance(error.__cause__, FileExistsError):
            return False
        raise
    return True


def _rename_to_new(temporary: str, path: Path) -> None:
    """Gives a file a name that no other has; raises `FileExistsError`."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without hard links: for an instant the file is empty.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(temporary, path)


def make_folder(folder: Path) -> None:
    """Creates a folder with its parents; raises `InputError` naming it where that fails."""
    with _reported(folder):
        folder.mkdir(parents=True, exist_ok=True)


def save_figure(path: Path, figure: Any) -> None:
    """Writes a figure at once, for print; its name ends in the format: .png, .pdf or .svg."""
    image = io.BytesIO()
    figure.savefig(image, format=path.suffix[1:], dpi=300)
    _write_bytes(path, image.getvalue())


def quarantine(path: Path) -> Path:
    """Moves a damaged file aside as `*.corrupt` and returns its new name; another process may have
    done so already.
    """
    aside = path.with_name(path.name + ".corrupt")
    with _reported(path), contextlib.suppress(FileNotFoundError):
        os.replace(path, aside)
    return aside


def remove(path: Path) -> None:
    """Removes a file, if it is there; raises `InputError` naming it where that fails."""
    with _reported(path):
        path.unlink(missing_ok=True)
