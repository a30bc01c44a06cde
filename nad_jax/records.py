"""Records in files: NADs, and directions and singular values from anywhere."""

import json
from pathlib import Path

import numpy as np

from nad_jax.batches import EARLY, Batches
from nad_jax.blocks import read_blocks
from nad_jax.errors import (
    InputError,
    as_path,
    check_integer,
    check_record,
    number_array,
    plain,
    shown,
)
from nad_jax.nads import NADs
from nad_jax.store import DamagedError, read_npy, read_npz, write_npz


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


# What a record prints of its config, and of which types that is.
_SAID = {
    **dict.fromkeys(("derivative", "point", "readout", "architecture", "model"), (str,)),
    **dict.fromkeys(("step", "point_scale"), (float, int)),
    **dict.fromkeys(("num_readouts", "num_points", "per_network", "backward_passes"), (int,)),
    "diverged": (int,),
}
_BATCHES = tuple(f"batch_{name}" for name in Batches._fields)
_EARLY = tuple(f"batch_{name}" for name in EARLY)


def load_nads(path: str | Path) -> NADs:
    """Reads a record written by `save_nads`; raises `InputError` naming the file and what is wrong
    with it.
    """
    later = (
        "symmetry",
        "trace",
        "pass_overlap",
        *_BATCHES,
        "point_sem",
    )  # not written by earlier versions
    required = tuple(name for name in NADs._fields if name not in later)
    arrays = read_npz(path, required, optional=later)
    if ("trace" in arrays) != ("pass_overlap" in arrays):
        raise DamagedError(f"{path}: trace and pass_overlap are written together, one is missing")
    # Directions of earlier versions are of no representation in particular.
    symmetry = np.full(len(np.atleast_1d(arrays["directions"])), "")
    unsaid = {"symmetry": symmetry, "trace": np.asarray(np.nan), "pass_overlap": np.zeros(0)}
    if missing := [name for name in _BATCHES if name not in arrays]:
        later_ones = [name for name in _BATCHES if name not in _EARLY]
        if missing not in (list(_BATCHES), later_ones):
            raise DamagedError(f"{path}: array {missing[0]!r} is missing beside others of its kind")
        unsaid |= {name: NADs._field_defaults[name] for name in missing}
    unsaid["point_sem"] = NADs._field_defaults["point_sem"]
    return _check_nads(unsaid | arrays, str(path))


def _check_nads(arrays: dict[str, np.ndarray], path: str) -> NADs:
    """The record of the arrays of a file; raises `InputError` naming the file and what is wrong
    with it.
    """
    count, sizes = len(_check_directions(arrays["directions"], path)), arrays["overlap_sizes"].size
    if arrays["pass_overlap"].size == 0:  # of one pass
        arrays["pass_overlap"] = np.zeros((0, sizes))
    expected = {
        **dict.fromkeys(("eigenvalues", "eigenvalue_sem", "symmetry"), (count,)),
        **dict.fromkeys(("overlap_sizes", "split_half_overlap"), (sizes,)),
        **dict.fromkeys(("num_networks", "config", "trace"), ()),
        "pass_overlap": (len(np.atleast_1d(arrays["pass_overlap"])), sizes),
    }
    batches = np.size(arrays["batch_weights"])
    expected |= dict.fromkeys(("batch_weights", "batch_traces"), (batches,))
    expected |= {"batch_products": (batches, batches)}
    expected |= {"batch_energies": (batches, *np.shape(arrays["batch_energies"])[1:])}
    groups, parts = np.size(arrays["batch_groups"]), np.shape(arrays["batch_parts"])
    expected |= {
        "batch_groups": (groups,),
        "batch_parts": (batches * bool(np.prod(parts)), *parts[1:]),
    }
    spectra = np.shape(arrays["batch_spectra"])
    expected["batch_spectra"] = (groups + bool(groups), *spectra[1:])
    expected["point_sem"] = (count,) if arrays["point_sem"].size else (0,)
    for name, shape in expected.items():
        array = arrays[name]
        if array.shape != shape:
            raise InputError(f"{path}: {name} has shape {array.shape}, expected {shape}")
        if name in ("config", "symmetry"):
            continue
        # Overlaps beyond the rank of a half, and a trace that is not known.
        undefined = name in ("split_half_overlap", "trace")
        numbers = array.dtype.kind in "iuf"
        if not numbers or not (np.isfinite(array) | (undefined & np.isnan(array))).all():
            raise InputError(f"{path}: {name} is not an array of finite numbers")
    if arrays["symmetry"].dtype.kind != "U":
        raise InputError(f"{path}: symmetry is not an array of text")
    try:
        config = json.loads(str(arrays["config"]))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: config is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: config is not a JSON object")
    for name, kinds in _SAID.items():
        if type(config.get(name, kinds[0]())) not in kinds:
            raise InputError(f"{path}: config: {name} cannot be {shown(config[name])}")
    try:
        read_blocks(config)
    except InputError as error:
        raise InputError(f"{path}: config: {error}") from error
    trace, num_networks = float(arrays["trace"]), int(arrays["num_networks"])
    trace = None if np.isnan(trace) else trace
    read = {"num_networks": num_networks, "config": config, "trace": trace}
    return NADs(**{**arrays, **read})


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
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= 1e-3))
    if len(wrong):
        norm = norms[wrong[0]]
        fault = f"has norm {norm:.4g}, expected 1" if norm else "is zero"
        fault = fault if np.isfinite(norm) else "has entries that are not finite"
        raise InputError(f"{name}: direction {wrong[0]} {fault}")
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
    zipped = path.suffix == ".npz"
    directions = read_npz(path, ("directions",))["directions"] if zipped else read_npy(path)
    return _check_directions(directions, str(path), dimension)


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
