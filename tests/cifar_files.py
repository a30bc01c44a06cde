"""Tiny CIFAR-10 folders and archives in the official layouts."""

import pickle
import pickletools
import tarfile

import numpy as np

BINARY, PICKLED = "cifar-10-batches-bin", "cifar-10-batches-py"
ARCHIVES = {BINARY: "cifar-10-binary.tar.gz", PICKLED: "cifar-10-python.tar.gz"}
BATCHES = (
    "data_batch_1",
    "data_batch_2",
    "data_batch_3",
    "data_batch_4",
    "data_batch_5",
    "test_batch",
)


def make_batches(count=4, seed=0):
    """Pixels [count, 3072] and labels [count] of every batch; the classes take turns."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.integers(0, 256, (count, 3072), np.uint8), (np.arange(count) + number) % 10)
        for number, name in enumerate(BATCHES)
    }


def pickle_batch(record):
    """A pickle as Python 2 wrote it: the strings are byte strings of its own kind, NumPy's module
    has its old name.
    """
    stream = bytearray(pickle.dumps(record, protocol=3))
    strings = {
        "SHORT_BINBYTES": b"U",
        "BINBYTES": b"T",
    }  # the opcodes of Python 2 take the same arguments
    for opcode, _, position in pickletools.genops(bytes(stream)):
        if opcode.name in strings:
            stream[position : position + 1] = strings[opcode.name]
    return bytes(stream).replace(b"numpy._core.multiarray\n", b"numpy.core.multiarray\n")


def pickle_as_text(pixels, labels):
    """A batch in protocol 0 of Python 2, in which strings stand as they do in programs."""
    shape = f"(I{len(pixels)}\nI3072\ntp8\n"
    array = "cnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\nRp7\n(I1\n"
    array += (
        shape
        + "cnumpy\ndtype\np9\n(S'u1'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'|'\np13\nNNNI-1\nI-1\nI0\ntp14\nb"
    )
    array += f"I00\nS{repr(pixels.tobytes())[1:]}\np15\ntp16\nb"
    numbers = "".join(f"I{label}\na" for label in labels)
    return f"(dp0\nS'data'\np1\n{array}sS'labels'\np17\n(lp18\n{numbers}s.".encode()


def encode(layout, name, pixels, labels):
    """The name and the content of the file of one batch."""
    if layout == BINARY:
        return f"{name}.bin", np.concatenate(
            [labels[:, None].astype(np.uint8), pixels], axis=1
        ).tobytes()
    record = {b"batch_label": name.encode(), b"labels": labels.tolist(), b"data": pixels}
    return name, pickle_batch(record)


def write_folder(root, layout, batches):
    """`root/<layout>/` with its six files and what lies beside them in the official one."""
    folder = root / layout
    folder.mkdir(parents=True)
    for name, (pixels, labels) in batches.items():
        file, content = encode(layout, name, pixels, labels)
        (folder / file).write_bytes(content)
    (folder / ("batches.meta.txt" if layout == BINARY else "batches.meta")).write_bytes(
        b"airplane\n"
    )
    (folder / "readme.html").write_text("<html></html>")
    return folder


def write_archive(root, layout, batches, folder):
    """`root/<archive>` of the folder `folder/<layout>`."""
    source = write_folder(folder, layout, batches)
    root.mkdir(exist_ok=True)
    with tarfile.open(root / ARCHIVES[layout], "w:gz") as archive:
        archive.add(source, layout)
    return root / ARCHIVES[layout]
