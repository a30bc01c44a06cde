import copy
import io
import json
import os
import zipfile
from functools import partial

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from experiments.run import origin
from nad_jax import (
    create_model,
    estimate_nads,
    load_nads,
    read_directions,
    records,
    save_nads,
    store,
)
from nad_jax.errors import InputError


@pytest.fixture(scope="module")
def nads():
    return estimate_nads(
        create_model("logreg", (4, 4, 1)), 4, readout="sampled", derivative="input_gradient"
    )


def test_a_record_survives_the_disk(tmp_path, nads):
    save_nads(tmp_path / "nads.npz", nads)
    loaded = load_nads(tmp_path / "nads.npz")
    for name in nads._fields[:5]:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(nads, name))
    assert (loaded.num_networks, loaded.config) == (nads.num_networks, nads.config)
    np.testing.assert_array_equal(read_directions(tmp_path / "nads.npz", 16), nads.directions)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nads.npz"]


def _npy(array, **kwargs):
    file = io.BytesIO()
    np.save(file, array, **kwargs)
    return file.getvalue()


def _with_header(header: str) -> bytes:
    encoded = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(encoded).to_bytes(2, "little") + encoded


MALFORMED = {
    "empty": (b"", "not a .npy array"),
    "text": (b"hello, world", "not a .npy array"),
    "pickle": (b"\x80\x04K\x01.", "not a .npy array"),
    "object array": (
        _npy(np.array([[1, None]], dtype=object), allow_pickle=True),
        "never unpickled",
    ),
    "truncated": (_npy(np.eye(4))[:-8], "bytes follow"),
    "trailing bytes": (_npy(np.eye(4)) + b"x", "bytes follow"),
    "absurd header": (
        _with_header(
            "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 1000000000000), }"
        ),
        "bytes follow",
    ),
    "negative shape": (
        _with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 4), }"),
        "bytes|not a",
    ),
    "code in the header": (_with_header("__import__('os').system('false')"), "not a .npy array"),
    "structured": (_npy(np.zeros((2, 2), dtype=[("a", "f4")])), "allowed are numbers"),
    "text array": (_npy(np.array([["a", "b"]])), "real numbers"),
    "complex": (_npy(np.eye(4) * 1j), "allowed are numbers"),
    "one axis": (_npy(np.ones(4)), r"\[K, D\]"),
    "three axes": (_npy(np.ones((2, 2, 2))), r"\[K, D\]"),
    "no rows": (_npy(np.ones((0, 4))), "non-empty"),
    "wrong D": (_npy(np.eye(5)), "have D = 5, expected D = 4"),
    "too many rows": (_npy(np.repeat(np.eye(4), 2, 0)), "cannot be orthogonal"),
    "nan": (
        _npy(np.where(np.eye(4) > 0, np.nan, 0.0)),
        "direction 0 has entries that are not finite",
    ),
    "infinite": (_npy(np.diag([1.0, np.inf, 1, 1])), "direction 1 has entries that are not finite"),
    "overflow": (_npy(np.diag([1.0, 1e300, 1, 1])), "direction 1"),
    "zero": (_npy(np.diag([1.0, 1, 0, 1])), "direction 2 is zero"),
    "not unit": (_npy(np.diag([1.0, 1, 1, 2])), "direction 3 has norm 2, expected 1"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_direction_files_are_refused_with_file_and_reason(tmp_path, kind):
    content, reason = MALFORMED[kind]
    path = tmp_path / "directions.npy"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        read_directions(path, 4)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_unreadable_direction_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"missing\.npy: No such file"):
        read_directions(tmp_path / "missing.npy")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        read_directions(tmp_path / "folder.npy")
    with pytest.raises(InputError, match=r"read from \.npy or \.npz"):
        read_directions(tmp_path / "directions.txt")


def test_well_formed_files_are_read(tmp_path):
    for dtype in ("f4", "f8", ">f4", "i4"):
        np.save(tmp_path / "d.npy", np.eye(3, 4).astype(dtype))
        np.testing.assert_array_equal(read_directions(tmp_path / "d.npy", 4), np.eye(3, 4))
    np.save(tmp_path / "d.npy", np.asfortranarray(np.eye(4)[[1, 0]]))
    np.testing.assert_array_equal(read_directions(tmp_path / "d.npy"), np.eye(4)[[1, 0]])


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.binary(max_size=300), st.integers(0, 200), st.sampled_from([0, 10, 128]))
def test_no_bytes_raise_anything_else(tmp_path_factory, noise, position, kept):
    path = tmp_path_factory.getbasetemp() / "fuzz.npy"
    good = _npy(np.eye(4))
    path.write_bytes(good[:kept] + noise + good[kept + position :])
    try:
        store.read_npy(path)
    except InputError as error:
        assert str(path) in str(error)


def test_every_flipped_bit_of_a_record_is_detected_or_changes_nothing_that_is_read(tmp_path, nads):
    path = tmp_path / "nads.npz"
    save_nads(path, nads)
    content, original = path.read_bytes(), load_nads(path)
    offsets, unread = range(0, len(content), 7), 0
    for offset in offsets:
        path.write_bytes(
            content[:offset] + bytes([content[offset] ^ 1 << offset % 8]) + content[offset + 1 :]
        )
        try:
            loaded = load_nads(path)
        except InputError as error:
            assert "nads.npz" in str(error)
            continue
        unread += 1  # a date, say, which each version of Python reads or not as it likes
        for name, value, expected in zip(original._fields, loaded, original, strict=True):
            np.testing.assert_array_equal(value, expected, f"{name}, offset {offset}")
    assert unread < 0.2 * len(offsets)
    for length in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"nads\.npz"):
            load_nads(path)


def test_incomplete_and_compressed_archives_are_refused(tmp_path, nads):
    path = tmp_path / "nads.npz"
    np.savez(path, directions=np.eye(4))
    with pytest.raises(InputError, match="'eigenvalues' is missing"):
        load_nads(path)
    np.savez_compressed(path, directions=np.zeros((4000, 4000)))
    with pytest.raises(InputError, match="compressed"):
        read_directions(path)
    save_nads(path, nads)
    store.write_npz(path, {**store.read_npz(path), "eigenvalues": nads.eigenvalues[:3]})
    with pytest.raises(InputError, match=r"eigenvalues has shape \(3,\)"):
        load_nads(path)


def test_singular_values_must_descend(tmp_path):
    path = tmp_path / "s.npy"
    np.save(path, np.array([3.0, 2.0]))
    np.testing.assert_array_equal(records.read_singular_values(path), [3, 2])
    for bad in (np.array([1.0, 2.0]), np.array([1.0, -1.0]), np.array([np.nan]), np.eye(2)):
        np.save(path, bad)
        with pytest.raises(InputError, match=r"s\.npy: singular values"):
            records.read_singular_values(path)


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "unit.npz"
    store.write_npz(path, {"a": np.arange(3)})
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(InputError, match=r"unit\.npz: No space left on device \(\d+ MiB free\)"):
        store.write_npz(path, {"a": np.arange(4)})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["unit.npz"]


@pytest.mark.parametrize("links", [True, False])
def test_of_two_configurations_that_open_a_folder_at_once_one_is_refused(
    links, tmp_path, monkeypatch
):
    link = os.link

    def first_another(theirs, temporary, path):
        monkeypatch.setattr(store.os, "link", link if links else _no_links)
        origin.open_run_folder(path.parent, theirs)
        store.os.link(temporary, path)

    for name, theirs in (("equal", {"seed": 0}), ("other", {"seed": 1, "step": 2})):
        monkeypatch.setattr(store.os, "link", partial(first_another, theirs))
        if theirs == {"seed": 0}:
            origin.open_run_folder(tmp_path / name, {"seed": 0})
        else:
            with pytest.raises(
                InputError,
                match=r"another configuration\n  seed: folder 1, command 0\n  step: folder 2",
            ):
                origin.open_run_folder(tmp_path / name, {"seed": 0})
        assert [path.name for path in (tmp_path / name).iterdir()] == ["config.json"]
        assert json.loads((tmp_path / name / "config.json").read_text()) == theirs


def test_units_from_before_packages_were_told_apart_are_of_no_other_version():
    said = json.loads(str(origin.describe_origin({})))
    assert origin.compare_versions(said) == []
    versions = {name: version for name, version in said["versions"].items() if name != "nad_jax"}
    assert origin.compare_versions({**said, "versions": versions}) == []
    differing = origin.compare_versions(
        {"device": "abacus", "versions": {**versions, "jax": "0.1"}}
    )
    assert [line.split(":")[0].strip() for line in differing] == ["device", "jax"]


def _no_links(*args):
    raise PermissionError(1, "Operation not permitted")


def test_a_run_folder_refuses_another_configuration(tmp_path):
    folder = tmp_path / "new" / "run"
    origin.open_run_folder(folder, {"seed": 0, "shape": (1, 2)})
    origin.open_run_folder(folder, {"seed": 0, "shape": (1, 2)})
    with pytest.raises(InputError, match=r"another configuration\n  seed: folder 0, command 1"):
        origin.open_run_folder(folder, {"seed": 1, "shape": (1, 2)})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "nads.npz").write_text("")
    with pytest.raises(InputError, match=r"holds 'nads\.npz' but no config\.json"):
        origin.open_run_folder(tmp_path / "other", {"seed": 0})
    (folder / "units").mkdir()
    path = folder / "units" / "networks_0.npz"
    store.write_npz(path, {"config": origin.describe_origin({"seed": 0})})
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"networks_0\.npz: is of another configuration"):
        origin.open_run_folder(folder, {"seed": 1})
    assert (folder / "config.json").read_text() == "{"
    origin.open_run_folder(folder, {"seed": 0})  # as its units say
    assert (folder / "config.json.corrupt").read_text() == "{" and origin.check_run_folder(
        folder, {"seed": 0}
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        origin.open_run_folder(tmp_path / "file" / "run", {})


def test_directions_are_unit_vectors_to_a_thousandth(tmp_path):
    path = tmp_path / "directions.npy"
    for norm, allowed in ((0.9991, True), (1.0009, True), (0.9988, False), (1.0012, False)):
        np.save(path, np.diag([1.0, 1.0, norm]))
        if allowed:
            np.testing.assert_array_equal(read_directions(path)[2], np.float32([0, 0, norm]))
        else:
            with pytest.raises(
                InputError, match=r"directions\.npy: direction 2 has norm .*, expected 1"
            ):
                read_directions(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("eigenvalues", np.full(16, np.nan), "eigenvalues is not an array of finite numbers"),
        ("eigenvalue_sem", np.full(16, np.inf), "eigenvalue_sem is not an array of finite numbers"),
        ("num_networks", np.asarray("4"), "num_networks is not an array of finite numbers"),
        ("config", np.asarray("[]"), "config is not a JSON object"),
        ("config", np.asarray("{"), "config is not JSON"),
    ],
)
def test_records_of_anything_else_are_refused(tmp_path, nads, name, value, message):
    path = tmp_path / "nads.npz"
    save_nads(path, nads)
    store.write_npz(path, {**store.read_npz(path), name: value})
    with pytest.raises(InputError, match=rf"nads\.npz: {message}"):
        load_nads(path)


def test_an_archive_whose_arrays_share_their_bytes_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", _npy(np.zeros(1000)))
        again = copy.copy(archive.infolist()[0])
        again.filename = "b.npy"
        archive.filelist.append(again)
    with pytest.raises(InputError, match=r"bomb\.npz: says that its arrays are larger than itself"):
        store.read_npz(path)
