"""Trained variables in files: as arrays of a unit, and read again for a model."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from nad_jax import store
from nad_jax.contract import named_leaves
from nad_jax.errors import InputError, as_path, check_record
from nad_jax.models import Model

PREFIX = "weights:"  # of the names of arrays


def weights_to_arrays(variables: Any) -> dict[str, np.ndarray]:
    """Variables, every leaf [N, …], as named arrays."""
    leaves = named_leaves(variables)
    return {f"{PREFIX}{name}": np.asarray(leaf) for name, leaf in leaves}


def read_weights(path: str | Path, model: Model) -> tuple[list[str], Any]:
    """The trained networks of a run folder, or of one of its units, which `keep_weights` has
    stored.

    Args:
      path: a run folder of an experiment that trains networks, or a file of its `units`.
      model: of all of them.

    Returns: their names, JSON objects of what determines each, [N]; and their variables, every leaf
      [N, …], as `estimate_nads(variables=…)` takes them.

    Raises:
      InputError: naming the file that holds no weights, or weights of another model.
    """
    path = as_path("path", path)
    check_record("model", model, Model)
    files = sorted(path.glob("units/networks_*.npz")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path}: holds no units of trained networks")
    expected = jax.eval_shape(model.init, jax.random.key(0))
    wanted = {f"{PREFIX}{name}": leaf for name, leaf in named_leaves(expected)}
    names, parts = [], []
    for file in files:
        arrays = store.read_npz(file)
        held = {name: array for name, array in arrays.items() if name.startswith(PREFIX)}
        if not held:
            raise InputError(
                f"{file}: holds no weights; train with keep_weights=True in another folder, what "
                "is stored is not trained again"
            )
        if "names" not in arrays:
            raise InputError(f"{file}: does not name its networks")
        stored = arrays["names"].tolist()
        shapes = {name: (len(stored), *leaf.shape) for name, leaf in wanted.items()}
        if {name: array.shape for name, array in held.items()} != shapes:
            raise InputError(f"{file}: holds weights of another model than this one")
        names += stored
        parts.append([held[name].astype(leaf.dtype) for name, leaf in wanted.items()])
    leaves = [np.concatenate(leaf) for leaf in zip(*parts, strict=True)]
    return names, jax.tree.unflatten(jax.tree.structure(expected), leaves)
