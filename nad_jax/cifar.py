"""CIFAR-10 from disk to arrays, read with suspicion: official binary or pickled layout, as a folder or an archive.

Nothing is extracted and no pickle is ever run: a pickled batch goes through an unpickler that knows placeholders for
NumPy's three names and refuses every other one.
Source of the layouts: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nad_jax.errors import InputError
from nad_jax.image_training import ImageData

# Of the training images, per channel, in [0, 1] (NAD, reference code).
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.247, 0.243, 0.261)

_NUM_PIXELS = 3072
_LARGEST_FILE = 512 * 2**20  # bytes; an official batch has 31 MB
_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


class _Layout(NamedTuple):
    folder: str
    archive: str
    suffix: str
    parse: Callable[[bytes, str], tuple[np.ndarray, np.ndarray]]

    def files(self) -> list[str]:
        return [name + self.suffix for name in _BATCHES]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_labels(labels: np.ndarray, name: str) -> np.ndarray:
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if len(wrong):
        raise InputError(f"{name}: record {wrong[0]} has label {labels[wrong[0]]}, allowed are 0 … 9")
    return labels.astype(np.int32)


def _parse_binary(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Records of one label byte and 3,072 pixels, channel by channel."""
    size = 1 + _NUM_PIXELS
    if not content or len(content) % size:
        raise InputError(f"{name}: {len(content)} bytes are not a whole number of {size}-byte records (truncated?)")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return records[:, 1:], _check_labels(records[:, 0], name)


class _PickledType:
    """Stands for a NumPy name in a pickle; NumPy itself never sees what an untrusted file says."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state = arguments, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _PickledArray(_PickledType):
    pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return _PickledArray
        if module == "numpy" and name in ("ndarray", "dtype"):
            return _PickledType
        raise pickle.UnpicklingError(f"it calls {module}.{name}; nothing but an array is read")


def _parse_pickle(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A dictionary with b"data", an array [B, 3072] of uint8, and b"labels", a list of B integers."""
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # damaged or hostile bytes fail in many ways
        raise InputError(f"{name}: refused or damaged pickle ({_first_line(error)})") from error
    array, labels = (batch.get(key) if isinstance(batch, dict) else None for key in (b"data", b"labels"))
    if not isinstance(array, _PickledArray) or not isinstance(labels, list):
        raise InputError(f"{name}: must be a dictionary with an array b'data' and a list b'labels'")
    try:
        _, shape, dtype, fortran, pixels = array.state
        count, num_pixels = shape
        kind = dtype.arguments[0]
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{name}: b'data' is no plain array ({_first_line(error)})") from error
    if kind not in ("u1", b"u1") or num_pixels != _NUM_PIXELS or not isinstance(pixels, bytes):
        raise InputError(f"{name}: b'data' must be [B, {_NUM_PIXELS}] of type u1, got {shape} of {kind!r}")
    if not count or len(labels) != count or len(pixels) != count * _NUM_PIXELS:
        raise InputError(
            f"{name}: b'data' says {count} images, but there are {len(pixels)} bytes of pixels and {len(labels)} labels"
        )
    if not all(type(label) is int and 0 <= label <= 9 for label in labels):
        wrong = next(label for label in labels if type(label) is not int or not 0 <= label <= 9)
        raise InputError(f"{name}: b'labels' holds {wrong!r}, allowed are integers 0 … 9")
    images = np.frombuffer(pixels, np.uint8).reshape(count, _NUM_PIXELS, order="F" if fortran else "C")
    return images, np.array(labels, np.int32)


# In order of preference.
_LAYOUTS = (
    _Layout("cifar-10-batches-bin", "cifar-10-binary.tar.gz", ".bin", _parse_binary),
    _Layout("cifar-10-batches-py", "cifar-10-python.tar.gz", "", _parse_pickle),
)


def _read_limited(file: BinaryIO, size: int, name: str) -> bytes:
    if size > _LARGEST_FILE:
        raise InputError(f"{name}: {size} bytes, a batch has at most {_LARGEST_FILE}")
    content = file.read(size)
    if len(content) != size:
        raise InputError(f"{name}: truncated, {len(content)} of {size} bytes")
    return content


def _read_folder(folder: Path, layout: _Layout) -> dict[str, bytes]:
    contents = {}
    for name in layout.files():
        path = folder / name
        try:
            with path.open("rb") as file:
                contents[name] = _read_limited(file, path.stat().st_size, str(path))
        except FileNotFoundError:
            raise InputError(f"{path}: missing; CIFAR-10 is {', '.join(layout.files())}") from None
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
    return contents


def _read_archive(path: Path, layout: _Layout) -> dict[str, bytes]:
    """The batches of an archive, in memory; its checksum is verified to the end."""
    contents: dict[str, bytes] = {}
    try:
        with gzip.open(path, "rb") as stream:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    if member.size > _LARGEST_FILE:
                        raise InputError(f"{path}: {member.name} has {member.size} bytes, at most {_LARGEST_FILE}")
                    name = member.name.removeprefix("./").removeprefix(f"{layout.folder}/")
                    if name not in layout.files():
                        continue
                    if not member.isreg():
                        raise InputError(f"{path}: {member.name} is not a regular file")
                    if name in contents:
                        raise InputError(f"{path}: {member.name} is there twice")
                    file = archive.extractfile(member)
                    contents[name] = _read_limited(file, member.size, f"{path}: {member.name}")
            while stream.read(2**20):
                pass
    except InputError:
        raise
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
        raise InputError(f"{path}: damaged or not a .tar.gz archive ({_first_line(error)})") from error
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    missing = [name for name in layout.files() if name not in contents]
    if missing:
        raise InputError(f"{path}: holds no {layout.folder}/{missing[0]}")
    return contents


def _find(data_dir: Path) -> tuple[_Layout, dict[str, bytes]]:
    """The layout that lies in a folder (or is that folder, or that archive), and the contents of its files."""
    for layout in _LAYOUTS:
        for folder in (data_dir / layout.folder, data_dir):
            if any((folder / name).exists() for name in layout.files()):
                return layout, _read_folder(folder, layout)
        for archive in (data_dir / layout.archive, data_dir):
            if archive.is_file() and archive.name == layout.archive:
                return layout, _read_archive(archive, layout)
    raise missing_data(data_dir)


def missing_data(data_dir: str | Path) -> InputError:
    """The error for a folder without CIFAR-10: which files are expected, and where they come from."""
    forms = (f"{layout.folder}/ (with {layout.files()[0]}, …) or {layout.archive}" for layout in _LAYOUTS)
    return InputError(
        f"data_dir: no CIFAR-10 in {str(data_dir)!r}; expected is one of {', '.join(forms)}, "
        "from https://www.cs.toronto.edu/~kriz/cifar.html"
    )


def read_cifar10(data_dir: str | Path) -> ImageData:
    """CIFAR-10 as uint8 images [B, 32, 32, 3] and int32 labels [B] in 0 … 9; 50,000 to train, 10,000 to test.

    Args:
      data_dir: the folder that holds `cifar-10-batches-bin`, `cifar-10-binary.tar.gz`, `cifar-10-batches-py` or
        `cifar-10-python.tar.gz` (the first of them that is there is read), or one of these itself. Batches may hold
        any number of images.

    Raises:
      InputError: where there is none, saying which files are expected; and for a file that is missing, truncated,
        damaged, or (pickled) calls anything but NumPy's arrays, naming it and the reason.
    """
    layout, contents = _find(Path(data_dir))
    images, labels = {}, {}
    for name, content in contents.items():
        pixels, labels[name] = layout.parse(content, name)
        images[name] = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    train, test = layout.files()[:-1], layout.files()[-1]
    return ImageData(
        np.concatenate([images[name] for name in train]),
        np.concatenate([labels[name] for name in train]),
        np.ascontiguousarray(images[test]),
        labels[test],
    )
