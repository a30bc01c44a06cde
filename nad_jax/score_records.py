"""SADs in files."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from nad_jax.errors import InputError, as_path, check_record, plain
from nad_jax.sads import SADs, check_bands
from nad_jax.store import read_npz, write_npz

_TEXT = ("config", "degeneracies")


def save_sads(path: str | Path, sads: SADs) -> None:
    """Writes the record as `.npz`, its config as a JSON string.

    Raises:
      InputError: for what is no record, and where the file cannot be written.
    """
    check_record("sads", sads, SADs)
    arrays = {name: np.asarray(getattr(sads, name)) for name in SADs._fields if name not in _TEXT}
    arrays |= {name: np.asarray(json.dumps(plain(getattr(sads, name)))) for name in _TEXT}
    write_npz(as_path("path", path), arrays)


def load_sads(path: str | Path) -> SADs:
    """Reads a record written by `save_sads`; raises `InputError` naming the file and what is wrong
    with it.
    """
    path = as_path("path", path)
    arrays = read_npz(path, SADs._fields)
    dimension = len(np.atleast_1d(arrays["eigenvalues"]))
    bands = np.size(arrays["band_edges"]) - 1
    expected = {
        "directions": (dimension, dimension),
        **dict.fromkeys(("eigenvalues", "eigenvalue_sem"), (dimension,)),
        **{"band_edges": (bands + 1,), "band_overlap": (bands,), "num_networks": ()},
    }
    for name, shape in expected.items():
        array = arrays[name]
        if array.shape != shape:
            raise InputError(f"{path}: {name} has shape {array.shape}, expected {shape}")
        if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
            raise InputError(f"{path}: {name} is not an array of finite numbers")
    if (np.diff(arrays["eigenvalues"]) < 0).any():
        raise InputError(f"{path}: eigenvalues must ascend")
    try:
        check_bands(arrays["band_edges"], dimension)
    except InputError as error:
        raise InputError(f"{path}: band_edges: {error}") from error
    config, sentences = (_read_json(path, name, arrays[name]) for name in _TEXT)
    if not isinstance(config, dict) or not isinstance(sentences, list):
        raise InputError(f"{path}: config is not a JSON object, or degeneracies are not a list")
    read = {name: arrays[name] for name in expected}
    read["num_networks"] = int(arrays["num_networks"])
    return SADs(**read, config=config, degeneracies=tuple(map(str, sentences)))


def _read_json(path: Path, name: str, text: np.ndarray) -> Any:
    try:
        return json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {name} is not JSON ({error})") from error
