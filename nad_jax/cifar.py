"""CIFAR-10 from disk to arrays, read with suspicion: official binary or pickled layout, as a folder or an archive.

Nothing is extracted and no pickle is ever run: a pickled batch goes through an unpickler that knows placeholders for
NumPy's three names and refuses every other one.
Source of the layouts: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

import gzip
import io
import pickle
import pickletools
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nad_jax.errors import InputError, first_line

# Of the training images, per channel, in [0, 1] (NAD, reference code).
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.247, 0.243, 0.261)

_NUM_PIXELS = 3072
_LARGEST = 512 * 2**20  # bytes of a file, or of an archive when decompressed; the official ones have 31 and 184 MB
_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


class ImageData(NamedTuple):
    """A classification task: images [B, H, W, C], uint8 or float32, and labels [B], integers in 0 … K − 1.

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
        raise pickle.UnpicklingError(f"it calls {module[:50]}.{name[:50]}; nothing but an array is read")


# What pickles of protocol 2 to 4 build dictionaries, lists, numbers, strings and arrays with.
_OPCODES = {
    "PROTO", "FRAME", "STOP", "MARK", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "EMPTY_DICT", "EMPTY_LIST",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "NONE", "NEWTRUE",
    "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINSTRING", "BINSTRING", "SHORT_BINBYTES", "BINBYTES",
    "SHORT_BINUNICODE", "BINUNICODE", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET",
}  # fmt: skip
_MOST_TUPLES, _MOST_MEMOS = 32, 10**6  # an array has five; a dictionary of file names has one memo for each


def _scan_pickle(content: bytes) -> None:
    """Raises unless a pickle is made of what a batch is made of: others could use up memory or time unpickled."""
    tuples = 0
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name not in _OPCODES:
            raise pickle.UnpicklingError(f"it uses {opcode.name}; nothing but an array and lists is read")
        tuples += opcode.name.startswith("TUPLE")
        if tuples > _MOST_TUPLES or (opcode.name == "LONG_BINPUT" and argument > _MOST_MEMOS):
            raise pickle.UnpicklingError("it is too complex for a batch")


def _parse_pickle(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A dictionary with b"data", an array [B, 3072] of uint8, and b"labels", a list of B integers."""
    try:
        _scan_pickle(content)
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # damaged or hostile bytes fail in many ways
        raise InputError(f"{name}: refused or damaged pickle ({first_line(error)})") from error
    array, labels = (batch.get(key) if isinstance(batch, dict) else None for key in (b"data", b"labels"))
    if not isinstance(array, _PickledArray) or not isinstance(labels, list):
        raise InputError(f"{name}: must be a dictionary with an array b'data' and a list b'labels'")
    try:
        _, (count, num_pixels), dtype, fortran, pixels = array.state
        kind = dtype.arguments[0]
    except Exception as error:  # anything may stand there
        raise InputError(f"{name}: b'data' is no plain array [B, {_NUM_PIXELS}]") from error
    # What an untrusted pickle holds is not printed: it may be without end.
    if not type(count) is type(num_pixels) is int or kind not in ("u1", b"u1") or type(pixels) is not bytes:
        raise InputError(f"{name}: b'data' must be an array [B, {_NUM_PIXELS}] of bytes (u1)")
    if num_pixels != _NUM_PIXELS or count < 1 or len(labels) != count or len(pixels) != count * _NUM_PIXELS:
        raise InputError(
            f"{name}: b'data' must be [B, {_NUM_PIXELS}] and b'labels' [B]; it says [{count}, {num_pixels}], "
            f"and there are {len(pixels)} bytes of pixels and {len(labels)} labels"
        )
    for place, label in enumerate(labels):
        if type(label) is not int or not 0 <= label <= 9:
            found = label if type(label) is int else type(label).__name__
            raise InputError(f"{name}: record {place} has label {found}, allowed are integers 0 … 9")
    images = np.frombuffer(pixels, np.uint8).reshape(count, _NUM_PIXELS, order="F" if fortran is True else "C")
    return images, np.array(labels, np.int32)


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
    """The batches of an archive, in memory. It is decompressed to its end, which verifies its checksum."""
    contents: dict[str, bytes] = {}
    try:
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
    except (InputError, PermissionError, FileNotFoundError):
        raise
    except Exception as error:  # damaged or hostile archives fail in many ways
        raise InputError(f"{path}: damaged or not a .tar.gz archive ({first_line(error)})") from error
    missing = [name for name in layout.files() if name not in contents]
    if missing:
        raise InputError(f"{path}: holds no {layout.folder}/{missing[0]}")
    return {f"{path}: {name}": contents[name] for name in layout.files()}


def _find(data_dir: Path) -> tuple[_Layout, dict[str, bytes]]:
    """The layout in a folder (or which is that folder or archive), and its batches in order, each under its path."""
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
    try:
        layout, contents = _find(Path(data_dir))
    except OSError as error:
        raise InputError(f"{error.filename or data_dir}: {error.strerror or error}") from error
    images, labels = [], []
    for name, content in contents.items():
        pixels, numbers = layout.parse(content, name)
        images.append(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(numbers)
    train_images, train_labels = np.concatenate(images[:-1]), np.concatenate(labels[:-1])
    return ImageData(train_images, train_labels, np.ascontiguousarray(images[-1]), labels[-1])
