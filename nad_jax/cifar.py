"""CIFAR-10 from disk to arrays, read with suspicion: official binary or pickled layout, as a folder
or an archive.

Nothing is extracted and no pickle is ever run: a pickled batch is read as data (`pickled`).
Source of the layouts: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import contextlib
import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nad_jax.errors import InputError, as_path, first_line
from nad_jax.pickled import read_pickle, to_array, to_integer

# Of the training images, per channel, in [0, 1] (NAD, reference code).
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.247, 0.243, 0.261)

_NUM_PIXELS = 3072
# Bytes of a file, or of an archive when decompressed; the official ones have 31 and 184 MB.
_LARGEST = 512 * 2**20
_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


class ImageData(NamedTuple):
    """A classification task: images [B, H, W, C], uint8 or float32, and labels [B], integers in 0 …
    K − 1.

    Entries of uint8 images stand for v / 255; float images are taken as they are.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


class _Layout(NamedTuple):
    folder: str
    archive: str
    suffix: str
    parse: Callable[[bytes, str], tuple[np.ndarray, np.ndarray]]

    def files(self) -> list[str]:
        return [name + self.suffix for name in _BATCHES]


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes one `InputError` that opens with `what`: damaged or
    hostile bytes fail in many ways.
    """
    try:
        yield
    except (InputError, PermissionError, FileNotFoundError):
        raise
    except Exception as error:
        raise InputError(f"{what} ({first_line(error)[:200]})") from error


def _check_labels(labels: np.ndarray, name: str) -> np.ndarray:
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if len(wrong):
        found = str(labels[wrong[0]])[:20]
        raise InputError(f"{name}: record {wrong[0]} has label {found}, allowed are 0 … 9")
    return labels.astype(np.int32)


def _parse_binary(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Records of one label byte and 3,072 pixels, channel by channel."""
    size = 1 + _NUM_PIXELS
    if not content or len(content) % size:
        raise InputError(
            f"{name}: {len(content)} bytes are not a whole number of {size}-byte records "
            "(truncated?)"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return records[:, 1:], _check_labels(records[:, 0], name)


def _parse_pickle(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A dictionary with b"data", an array [B, 3072] of uint8, and b"labels", a list or an array of
    B integers.
    """
    with _refused(f"{name}: refused or damaged pickle"):
        batch = read_pickle(content)
    if not isinstance(batch, dict) or not batch.keys() >= {b"data", b"labels"}:
        raise InputError(f"{name}: must be a dictionary with an array b'data' and a list b'labels'")
    with _refused(f"{name}: b'data' must be an array [B, {_NUM_PIXELS}] of bytes"):
        pixels = to_array(batch[b"data"])
    labels = _read_labels(batch[b"labels"], name)
    # What an untrusted pickle holds is not printed: it may be without end.
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        raise InputError(
            f"{name}: b'data' must be an array [B, {_NUM_PIXELS}] of bytes (u1), "
            f"it is {list(pixels.shape)} of {pixels.dtype}"
        )
    if pixels.shape[1] != _NUM_PIXELS or not len(pixels) or len(labels) != len(pixels):
        raise InputError(
            f"{name}: b'data' must be [B, {_NUM_PIXELS}] and b'labels' [B]; it says "
            f"{list(pixels.shape)}, and there are {len(labels)} labels"
        )
    return pixels, labels


def _read_labels(labels: Any, name: str) -> np.ndarray:
    """Labels [B] from a list of integers, or an array of any type of them."""
    if isinstance(labels, list | tuple):
        numbers = []
        for place, label in enumerate(labels):
            found = f"record {place} has label {type(label).__name__}"
            with _refused(f"{name}: {found}, allowed are integers 0 … 9"):
                numbers.append(to_integer(label))
        return _check_labels(np.array(numbers, object), name)
    with _refused(f"{name}: b'labels' must be a list or array of integers"):
        array = to_array(labels)
    if array.ndim != 1:
        raise InputError(f"{name}: b'labels' must be [B], it is {list(array.shape)}")
    return _check_labels(array, name)


# In order of preference.
_LAYOUTS = (
    _Layout("cifar-10-batches-bin", "cifar-10-binary.tar.gz", ".bin", _parse_binary),
    _Layout("cifar-10-batches-py", "cifar-10-python.tar.gz", "", _parse_pickle),
)


def _read_limited(file: BinaryIO, name: str) -> bytes:
    content = io.BytesIO()
    while piece := file.read(2**20):  # `read` takes the memory for all that it is asked for
        content.write(piece)
        if content.tell() > _LARGEST:
            raise InputError(f"{name}: more than {_LARGEST} bytes, which CIFAR-10 has not")
    return content.getvalue()


def _read_folder(folder: Path, layout: _Layout) -> dict[str, bytes]:
    contents = {}
    for name in layout.files():
        path = folder / name
        try:
            with path.open("rb") as file:
                contents[str(path)] = _read_limited(file, str(path))
        except FileNotFoundError:
            raise InputError(f"{path}: missing; CIFAR-10 is {', '.join(layout.files())}") from None
    return contents


def _read_archive(path: Path, layout: _Layout) -> dict[str, bytes]:
    """The batches of an archive, in memory. It is decompressed to its end, which verifies its
    checksum.
    """
    contents: dict[str, bytes] = {}
    with _refused(f"{path}: damaged or not a .tar.gz archive"):
        with gzip.open(path, "rb") as stream:
            content = _read_limited(stream, str(path))
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./").removeprefix(f"{layout.folder}/")
                if name not in layout.files():
                    continue
                if not member.isreg():
                    raise InputError(f"{path}: {name} is not a regular file")
                if name in contents:
                    raise InputError(f"{path}: {name} is there twice")
                contents[name] = archive.extractfile(member).read()
                if len(contents[name]) != member.size:
                    raise InputError(f"{path}: {name} is truncated")
    for name in layout.files():
        if name not in contents:
            raise InputError(f"{path}: holds no {layout.folder}/{name}")
    return {f"{path}: {name}": contents[name] for name in layout.files()}


def _find(data_dir: Path) -> tuple[_Layout, dict[str, bytes]]:
    """The layout in a folder (or which is that folder or archive), and its batches in order, each
    under its path.
    """
    for layout in _LAYOUTS:
        for place in (data_dir / layout.folder, data_dir, data_dir / layout.archive):
            if any((place / name).exists() for name in layout.files()):
                return layout, _read_folder(place, layout)
            if place.name == layout.archive and place.is_file():
                return layout, _read_archive(place, layout)
    raise missing_data(data_dir)


def missing_data(data_dir: str | Path) -> InputError:
    """The error for a folder without CIFAR-10: which files are expected, and where from."""
    forms = (
        f"{layout.folder}/ (with {layout.files()[0]}, …) or {layout.archive}" for layout in _LAYOUTS
    )
    return InputError(
        f"data_dir: no CIFAR-10 in {str(data_dir)!r}; expected is one of {', '.join(forms)}, "
        "from https://www.cs.toronto.edu/~kriz/cifar.html"
    )


def read_cifar10(data_dir: str | Path) -> ImageData:
    """CIFAR-10 as uint8 images [B, 32, 32, 3] and int32 labels [B] in 0 … 9; 50,000 to train,
    10,000 to test.

    Args:
      data_dir: the folder that holds `cifar-10-batches-bin`, `cifar-10-binary.tar.gz`,
        `cifar-10-batches-py` or `cifar-10-python.tar.gz` (the first of them that is there is read),
        or one of these itself. Batches may hold any number of images.

    Raises:
      InputError: where there is none, saying which files are expected; and for a file that is
        missing, truncated, damaged, or (pickled) calls anything but what arrays are written with,
        naming it and the reason.
    """
    data_dir = as_path("data_dir", data_dir)
    try:
        layout, contents = _find(data_dir)
    except OSError as error:
        raise InputError(f"{error.filename or data_dir}: {error.strerror or error}") from error
    batches = [layout.parse(content, name) for name, content in contents.items()]
    images = [pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) for pixels, _ in batches]
    labels = [numbers for _, numbers in batches]
    train_images, train_labels = np.concatenate(images[:-1]), np.concatenate(labels[:-1])
    return ImageData(train_images, train_labels, np.ascontiguousarray(images[-1]), labels[-1])
