"""Whatever is in a config, a file of arrays or a file of images: one error, soon, without taking
the memory.

NAD_EXAMPLES is how many are tried (default 30; of the quick ones ten times as many).
"""

import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.main import EXPERIMENTS
from nad_jax import cifar, records, store
from nad_jax.errors import InputError
from tests.cifar_files import BINARY, PICKLED, make_batches, write_folder
from tests.test_configs import load_config

EXAMPLES = int(os.environ.get("NAD_EXAMPLES", "30"))
SLOW = hypothesis.settings(max_examples=EXAMPLES, deadline=5000, derandomize=True, database=None)
QUICK = hypothesis.settings(SLOW, max_examples=10 * EXAMPLES)

NUMBERS = st.integers(-3, 3) | st.integers() | st.floats() | st.booleans() | st.none()
NAMES = st.text(max_size=8) | st.sampled_from(
    ["lenet", "max", "none", "sgd", "adam:b1=2", "sgd:momentum=[", "dft"]
)
VALUES = st.recursive(
    NUMBERS | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=6,
)
FIELDS = {name: sorted(load_config(name).get_config()) for name in EXPERIMENTS}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_value_of_a_field_raises_anything_but_an_input_error(name):
    @SLOW
    @hypothesis.given(
        st.dictionaries(st.sampled_from(FIELDS[name]), VALUES, min_size=1, max_size=3)
    )
    def check(changes):
        config = load_config(name).get_config()
        with config.ignore_type():
            config.update({field: "given" for field in ("nads", "data_dir") if field in config})
            if name == "leading_nads":  # a large network is slow to trace
                config.update(architecture="mlp", image_shape=(16, 16, 1))
            if name == "isotropy_search":  # and many
                config.sweep.update(dict.fromkeys(config.sweep, ()))
                config.sweep.pooling, config.num_rungs = ("avg",), 1
            if name == "initial_functions":
                config.update(architectures=("mlp", "lenet(activation=tanh)"))
            if name == "predictors":
                config.update(architectures=("mlp",), num_directions=(4,), num_epochs=(1,))
                config.update(num_networks=(4,))
            for field, value in changes.items():
                config[field] = value
        try:
            EXPERIMENTS[name].validate(config)
        except InputError as error:
            lines = str(error).splitlines()
            assert lines and all(":" in line for line in lines)

    check()


def test_no_axis_of_an_ensemble_raises_anything_but_an_input_error():
    @SLOW
    @hypothesis.given(
        st.dictionaries(
            st.sampled_from(sorted(load_config("compute_nads").get_config().sweep)), VALUES
        )
    )
    def check(changes):
        config = load_config("compute_nads").get_config()
        with config.ignore_type():
            config.sweep = ConfigDict({**config.sweep, **changes})
        try:
            EXPERIMENTS["compute_nads"].validate(config)
        except InputError as error:
            assert str(error)

    check()


def _allocation(function, *args):
    """The memory that a call which ends well or with an `InputError` takes at most, in bytes."""
    tracemalloc.start()
    try:
        function(*args)
    except InputError as error:
        assert "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


CONSTANT = 2**18  # bytes: the parser of a header, a traceback

HEADERS = st.fixed_dictionaries(
    {
        "descr": st.sampled_from(["<f8", "<f4", "|O", "<U1000000", "|V8", "<c16", "<i1", "f", ""])
        | st.text(max_size=4),
        "fortran_order": st.booleans() | st.none(),
        "shape": st.lists(st.integers(-2, 4) | st.integers(0, 2**80), max_size=40).map(tuple),
    }
)


@QUICK
@hypothesis.given(
    HEADERS | st.text(max_size=60), st.binary(max_size=200), st.sampled_from([1, 2, 3])
)
def test_no_header_of_an_array_takes_more_than_its_file(tmp_path_factory, header, body, version):
    text = (repr(header) if isinstance(header, dict) else header).encode() + b"\n"
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    path = tmp_path_factory.getbasetemp() / "array.npy"
    path.write_bytes(b"\x93NUMPY" + bytes([version, 0]) + length + text + body)
    for read in (store.read_npy, records.read_directions, records.read_singular_values):
        assert _allocation(read, path) < path.stat().st_size + CONSTANT


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    path = tmp_path_factory.mktemp("record") / "unit.npz"
    store.write_npz(
        path, {"directions": np.eye(8), "config": np.asarray("{}"), "count": np.asarray(3)}
    )
    return path.read_bytes()


@QUICK
@hypothesis.given(st.data())
def test_no_change_of_an_archive_takes_more_than_its_file(tmp_path_factory, record, data):
    changed = bytearray(record)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(changed) - 1))
        changed[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        changed = changed or bytearray(b"x")
    path = tmp_path_factory.getbasetemp() / "unit.npz"
    path.write_bytes(changed)
    for read in (store.read_npz, records.read_directions, records.load_nads):
        assert _allocation(read, path) < len(changed) + CONSTANT


def test_members_that_share_their_bytes_are_not_read_over_and_over(tmp_path):
    array = io.BytesIO()
    np.save(array, np.zeros(2**17))
    path = tmp_path / "unit.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", array.getvalue())
        first = archive.infolist()[0]
        for index in range(200):
            again = zipfile.ZipInfo(f"a{index}.npy")
            for name in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(again, name, getattr(first, name))
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
    with pytest.raises(InputError, match="arrays are larger than itself"):
        store.read_npz(path)
    assert _allocation(store.read_npz, path) < 2 * path.stat().st_size


FORMS = (BINARY, PICKLED, *range(6))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The bytes of one good file of each layout and protocol of pickles, and the folders they
    belong to.
    """
    folder = tmp_path_factory.mktemp("images")
    found = {}
    for form in FORMS:
        layout = BINARY if form == BINARY else PICKLED
        batches = make_batches(4)
        path = (
            write_folder(folder / str(form), layout, batches)
            / f"data_batch_1{'.bin' * (form == BINARY)}"
        )
        if isinstance(form, int):
            pixels, labels = batches["data_batch_1"]
            path.write_bytes(
                pickle.dumps({b"data": pixels, "labels": labels, b"filenames": [b"cat.png"]}, form)
            )
        found[form] = (folder / str(form), path, path.read_bytes())
    return found.get  # a function: a dictionary would be printed


@SLOW
@hypothesis.given(
    st.sampled_from(FORMS),
    st.integers(0, 100_000),
    st.sampled_from([0, 1, 8, 5000]),
    st.binary(max_size=64),
)
def test_no_change_of_a_file_of_images_takes_more_than_its_files(
    images, form, place, length, inserted
):
    folder, path, content = images(form)
    place %= len(content) + 1
    path.write_bytes(content[:place] + inserted + content[place + length :])
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert _allocation(cifar.read_cifar10, str(folder)) < size + 2**22
