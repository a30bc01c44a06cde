"""Reading CIFAR-10: four official forms, one result; whatever is wrong with a file is said, and
nothing is run.
"""

import gzip
import io
import pickle
import tarfile
import time
import tracemalloc

import numpy as np
import pytest

from nad_jax import cifar, read_cifar10
from nad_jax.errors import InputError
from tests.cifar_files import (
    ARCHIVES,
    BINARY,
    PICKLED,
    encode,
    make_batches,
    pickle_as_text,
    pickle_batch,
    write_archive,
    write_folder,
)


def _expected(batches):
    pixels = {
        name: values.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        for name, (values, _) in batches.items()
    }
    train = [name for name in batches if name != "test_batch"]
    return (
        np.concatenate([pixels[name] for name in train]),
        np.concatenate([batches[name][1] for name in train]),
        pixels["test_batch"],
        batches["test_batch"][1],
    )


@pytest.mark.parametrize("layout", [BINARY, PICKLED])
@pytest.mark.parametrize("form", ["folder", "folder itself", "archive", "archive itself"])
def test_every_form_gives_the_same_arrays(layout, form, tmp_path):
    batches = make_batches()
    batches["data_batch_3"] = (
        batches["data_batch_3"][0][:1],
        batches["data_batch_3"][1][:1],
    )  # any whole number
    if form.startswith("folder"):
        folder = write_folder(tmp_path / "data", layout, batches)
        data = read_cifar10(folder if form.endswith("itself") else tmp_path / "data")
    else:
        archive = write_archive(tmp_path / "data", layout, batches, tmp_path / "source")
        data = read_cifar10(archive if form.endswith("itself") else str(tmp_path / "data"))
    for array, expected in zip(data, _expected(batches), strict=True):
        np.testing.assert_array_equal(array, expected)
    assert data.train_images.dtype == np.uint8 and data.train_images.shape == (17, 32, 32, 3)
    assert data.train_labels.dtype == np.int32


def test_the_binary_layout_is_preferred(tmp_path):
    write_folder(tmp_path, PICKLED, make_batches(seed=1))
    write_folder(tmp_path, BINARY, make_batches(seed=2))
    np.testing.assert_array_equal(
        read_cifar10(tmp_path).train_images, _expected(make_batches(seed=2))[0]
    )


def test_missing_data_say_what_is_expected(tmp_path):
    with pytest.raises(
        InputError,
        match=r"data_dir: no CIFAR-10 in.*cifar-10-batches-bin.*python\.tar\.gz.*toronto",
    ):
        read_cifar10(tmp_path)
    with pytest.raises(InputError, match="data_dir: no CIFAR-10"):
        read_cifar10(tmp_path / "nowhere")
    with pytest.raises(InputError, match="File name too long"):
        read_cifar10("x" * 300)


def _record(batches, **changes):
    pixels, labels = batches["data_batch_2"]
    return {b"labels": labels.tolist(), b"data": pixels} | {
        key.encode(): value for key, value in changes.items()
    }


class _Calls:
    """Pickles as a call of something else."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def _nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


BATCHES = make_batches()
BINARY_CONTENT = encode(BINARY, "data_batch_2", *BATCHES["data_batch_2"])[1]
PICKLED_CONTENT = encode(PICKLED, "data_batch_2", *BATCHES["data_batch_2"])[1]
COUNT = b"K\x04M\x00\x0c\x86"  # the shape (4, 3072) in a pickle
BAD_BATCHES = {
    "truncated binary": (
        BINARY,
        BINARY_CONTENT[:-1],
        "12291 bytes are not a whole number of 3073-byte records",
    ),
    "empty binary": (BINARY, b"", "0 bytes are not a whole number"),
    "binary label": (
        BINARY,
        b"\x0a" + BINARY_CONTENT[1:],
        "record 0 has label 10, allowed are 0 … 9",
    ),
    "truncated pickle": (PICKLED, PICKLED_CONTENT[:-100], "refused or damaged pickle"),
    "empty pickle": (PICKLED, b"", "refused or damaged pickle"),
    "no dictionary": (PICKLED, pickle.dumps([1, 2]), "must be a dictionary with an array b'data'"),
    "no labels": (PICKLED, pickle_batch({b"data": BATCHES["data_batch_2"][0]}), "a list b'labels'"),
    "pickled label": (
        PICKLED,
        pickle_batch(_record(BATCHES, labels=[1, 2, 3, -1])),
        "record 3 has label -1",
    ),
    "too few labels": (
        PICKLED,
        pickle_batch(_record(BATCHES, labels=[1, 2, 3])),
        r"says \[4, 3072\].* are 3 labels",
    ),
    "text labels": (
        PICKLED,
        pickle_batch(_record(BATCHES, labels=["a", 2, 3, 4])),
        "record 0 has label str",
    ),
    "wide pixels": (
        PICKLED,
        pickle_batch(_record(BATCHES, data=np.zeros((4, 3072), np.int32))),
        r"of bytes \(u1\)",
    ),
    "few pixels": (
        PICKLED,
        pickle_batch(_record(BATCHES, data=np.zeros((4, 300), np.uint8))),
        r"says \[4, 300\]",
    ),
    "flat pixels": (
        PICKLED,
        pickle_batch(_record(BATCHES, data=np.zeros(3072, np.uint8))),
        r"it is \[3072\] of",
    ),
    "objects": (PICKLED, pickle_batch(_record(BATCHES, data=np.array([[None]]))), "must be"),
    "eval": (
        PICKLED,
        pickle_batch(_record(BATCHES, data=_Calls(eval, "1 + 1"))),
        "it calls builtins.eval",
    ),
    "real count": (
        PICKLED,
        PICKLED_CONTENT.replace(COUNT, b"G?\xf0" + b"\x00" * 6 + COUNT[2:]),
        "it uses BINFLOAT",
    ),
    "true count": (
        PICKLED,
        PICKLED_CONTENT.replace(COUNT, b"\x88" + COUNT[2:]),
        "must be an array",
    ),
    "deep label": (
        PICKLED,
        pickle_batch(_record(BATCHES, labels=[1, 2, 3, _nested(100)])),
        "record 3 has label list",
    ),
    "memo": (PICKLED, b"\x80\x02]r\x00\x00\x00\x10.", "must be a dictionary"),
    "numpy": (PICKLED, pickle_batch(_record(BATCHES, data=_Calls(np.zeros, 3))), "it calls numpy"),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_a_bad_batch_is_refused_with_its_reason(case, tmp_path):
    layout, content, message = BAD_BATCHES[case]
    folder = write_folder(tmp_path, layout, BATCHES)
    (folder / ("data_batch_2.bin" if layout == BINARY else "data_batch_2")).write_bytes(content)
    with pytest.raises(InputError, match=f"data_batch_2.*{message}"):
        read_cifar10(tmp_path)


def test_a_pickle_that_calls_something_runs_nothing(tmp_path):
    target = tmp_path / "made by the pickle"
    content = pickle_batch(_record(BATCHES, extra=_Calls(open, str(target), "w")))
    folder = write_folder(tmp_path, PICKLED, BATCHES)
    (folder / "data_batch_2").write_bytes(content)
    with pytest.raises(
        InputError, match=r"data_batch_2: refused or damaged pickle \(it calls .*open"
    ):
        read_cifar10(tmp_path)
    assert not target.exists()
    pickle.loads(content, encoding="bytes")[b"extra"].close()  # it would have been
    assert target.exists()


_PIXELS, _LABELS = BATCHES["data_batch_2"]
_NAMES = [f"cat_s_00{place}.png".encode() for place in range(3)] + [b""]
SAVED_AGAIN = {
    "bytes": {
        b"batch_label": b"",
        b"labels": _LABELS.tolist(),
        b"data": _PIXELS,
        b"filenames": _NAMES,
    },
    "text": {
        "labels": _LABELS.tolist(),
        "data": _PIXELS,
        "filenames": [name.decode() for name in _NAMES],
    },
    "Fortran order": {b"data": np.asfortranarray(_PIXELS), b"labels": _LABELS.tolist()},
    "a slice of more": {
        b"data": np.repeat(_PIXELS, 2, axis=0)[::2],
        b"labels": np.repeat(_LABELS, 2)[::2],
    },
    "read-only": {
        b"data": np.frombuffer(_PIXELS.tobytes(), np.uint8).reshape(4, 3072),
        b"labels": _LABELS.tolist(),
    },
    "one array twice": {
        b"data": _PIXELS,
        b"again": _PIXELS,
        b"labels": _LABELS,
        b"fine": [_LABELS, _LABELS],
    },
    "a tuple": {b"data": _PIXELS, b"labels": tuple(_LABELS.tolist())},
    "NumPy's integers": {b"data": _PIXELS, b"labels": list(_LABELS)},
    **{
        kind: {b"data": _PIXELS, b"labels": _LABELS.astype(kind)}
        for kind in ("i1", "u1", "<i2", ">i4", ">u8", "<i8")
    },
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("form", SAVED_AGAIN)
def test_a_batch_that_was_saved_again_is_the_same(form, protocol, tmp_path):
    folder = write_folder(tmp_path, PICKLED, BATCHES)
    (folder / "data_batch_2").write_bytes(pickle.dumps(SAVED_AGAIN[form], protocol))
    for array, expected in zip(read_cifar10(tmp_path), _expected(BATCHES), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_a_batch_that_python_2_saved_as_text_is_the_same(tmp_path):
    folder = write_folder(tmp_path, PICKLED, BATCHES)
    (folder / "data_batch_2").write_bytes(pickle_as_text(*BATCHES["data_batch_2"]))
    for array, expected in zip(read_cifar10(tmp_path), _expected(BATCHES), strict=True):
        np.testing.assert_array_equal(array, expected)


def _tuples_of_tuples(levels):
    """A dictionary whose key is a tuple, a hundred times in a tuple, a hundred times in a tuple, …"""
    return (
        b"\x80\x02](K\x01q\x01" + levels * (b"(" + 100 * b"h\x01" + b"tq\x01") + b"e}h\x01K\x01s."
    )


HOSTILE = {
    "a key that takes hours to hash": (_tuples_of_tuples(8), "a key that is no short text"),
    "lists without end": (b"\x80\x02" + 10**6 * b"]" + b".", "too complex"),
    "one long text as bytes, over and over": (
        b"\x80\x02c_codecs\nencode\nq\x00X" + (10**6).to_bytes(4, "little") + 10**6 * b"x" + b"q\x01X\x06\0\0\0latin1"
        + b"q\x02](" + 3000 * b"h\x00h\x01h\x02\x86R" + b"e.",
        "must be a dictionary",
    ),
    "calls within calls": (b"\x80\x02cnumpy\ndtype\nq\x00)R" + 300 * b"\x85q\x01h\x00h\x01R" + b".", "too complex"),
    "numbers of many digits": (b"(dS'data'\nI" + 10**5 * b"9" + b"\ns.", "refused or damaged"),
    "a module with an escape": (b"\x80\x04\x8c\x02\x1b[\x8c\x01x\x93.", r"it calls \\x1b\[\.x"),
    "an entry that is no integer": (pickle_batch(_record(BATCHES, labels=[1, 2.5, 3, 4])), "it uses BINFLOAT"),
    "real labels": (pickle_batch(_record(BATCHES, labels=np.zeros(4))), "array is not one of integers"),
    "labels in columns": (pickle_batch(_record(BATCHES, labels=np.zeros((4, 1), int))), r"must be \[B\], it is \[4, 1"),
    "labels of objects": (pickle_batch(_record(BATCHES, labels=np.array([None]))), "array is not one of integers"),
    "a label of an array": (pickle_batch(_record(BATCHES, labels=np.array([0, 3, 11, 1]))), "record 2 has label 11"),
    "its bytes elsewhere": (b"\x80\x05\x97.", "it uses NEXT_BUFFER"),
    "more shape than bytes": (PICKLED_CONTENT.replace(COUNT, b"K\x05" + COUNT[2:]), "its shape is not that of 12288"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_batch_is_refused_at_once_in_one_line(case, tmp_path):
    content, message = HOSTILE[case]
    folder = write_folder(tmp_path, PICKLED, BATCHES)
    (folder / "data_batch_2").write_bytes(content)
    begun = time.monotonic()
    tracemalloc.start()
    with pytest.raises(InputError, match=f"data_batch_2.*{message}") as caught:
        read_cifar10(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.monotonic() - begun < 2 and peak < 8 * len(content) + 2**21
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("layout", [BINARY, PICKLED])
def test_a_missing_batch_is_named(layout, tmp_path):
    folder = write_folder(tmp_path, layout, BATCHES)
    (folder / encode(layout, "data_batch_4", *BATCHES["data_batch_4"])[0]).unlink()
    with pytest.raises(InputError, match=r"data_batch_4.*: missing; CIFAR-10 is data_batch_1"):
        read_cifar10(tmp_path)


@pytest.mark.parametrize("layout", [BINARY, PICKLED])
def test_a_damaged_archive_is_refused(layout, tmp_path):
    archive = write_archive(tmp_path, layout, BATCHES, tmp_path / "source")
    content = archive.read_bytes()
    for damaged in (
        content[: len(content) // 2],
        content[:-9],  # all members are there, but the checksum is not
        b"",
        b"no archive",
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 1])
        + content[len(content) // 2 + 1 :],
    ):
        archive.write_bytes(damaged)
        with pytest.raises(InputError, match=rf"{ARCHIVES[layout]}: damaged or not a \.tar\.gz"):
            read_cifar10(archive)


def _write_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def test_a_bad_batch_in_a_good_archive_is_refused(tmp_path):
    members = [(f"{BINARY}/{name}", content) for name, content in _files()]
    _write_tar(
        tmp_path / ARCHIVES[BINARY],
        [*members[:3], (members[3][0], b"\x0b" + members[3][1][1:]), *members[4:]],
    )
    with pytest.raises(InputError, match=r"data_batch_4\.bin: record 0 has label 11"):
        read_cifar10(tmp_path)


def test_headers_without_end_are_refused(tmp_path):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 0
    with gzip.open(tmp_path / ARCHIVES[BINARY], "wb") as file:
        file.write(3000 * header.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(InputError, match=r"binary\.tar\.gz: damaged or not a \.tar\.gz"):
        read_cifar10(tmp_path)


def _files():
    return [encode(BINARY, name, *batch) for name, batch in BATCHES.items()]


def test_an_archive_of_something_else_is_refused(tmp_path):
    path = tmp_path / ARCHIVES[BINARY]
    members = [(f"./{BINARY}/{name}", content) for name, content in _files()]
    _write_tar(path, [("../outside", b"ignored"), *members])
    np.testing.assert_array_equal(read_cifar10(path).test_labels, BATCHES["test_batch"][1])
    assert not (tmp_path.parent / "outside").exists()
    for changed, message in [
        ([(members[0][0], None), *members[1:]], "data_batch_1.bin is not a regular file"),
        ([*members, members[2]], "data_batch_3.bin is there twice"),
        (members[:-1], f"holds no {BINARY}/test_batch.bin"),
        (
            [(f"../{name}", content) for name, content in members],
            f"holds no {BINARY}/data_batch_1.bin",
        ),
    ]:
        _write_tar(path, changed)
        with pytest.raises(InputError, match=message):
            read_cifar10(path)


def test_more_bytes_than_cifar_has_are_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "_LARGEST", 10_000)
    write_folder(tmp_path / "folder", BINARY, BATCHES)
    archive = write_archive(tmp_path, BINARY, BATCHES, tmp_path / "source")
    for path in (tmp_path / "folder", archive):
        with pytest.raises(InputError, match="more than 10000 bytes"):
            read_cifar10(path)


def test_the_first_bytes_of_a_record_are_its_label_and_the_red_rows(tmp_path):
    pixels = np.zeros((4, 3072), np.uint8)
    pixels[:, 33] = 7  # second row, second column, red
    pixels[:, 1024] = 9  # first pixel, green
    write_folder(tmp_path, BINARY, {name: (pixels, np.full(4, 3)) for name in BATCHES})
    data = read_cifar10(tmp_path)
    assert data.train_images[0, 1, 1].tolist() == [7, 0, 0] and data.train_images[
        0, 0, 0
    ].tolist() == [0, 9, 0]
    assert (data.train_labels == 3).all()
