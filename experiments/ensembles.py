"""What the experiments that compute NADs have in common: their fields, units of networks, and what
is printed.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from experiments import results
from nad_jax import nads, store
from nad_jax.architectures import create_model
from nad_jax.choices import Estimator
from nad_jax.ensemble import Execution
from nad_jax.errors import InputError, check_integer
from nad_jax.models import Model
from nad_jax.moments import Halves, halves_from_arrays, halves_to_arrays
from nad_jax.nads import NADs
from nad_jax.store import DamagedError

MODEL_FIELDS = (
    "architecture",
    "image_shape",
    "num_logits",
    "pooling",
    "initialization",
    "convolution",
)
ESTIMATOR_FIELDS = (*Estimator.__dataclass_fields__, "mapping", "chunk_size")


def read_estimator(config: ConfigDict) -> Estimator:
    """The estimator that a config says."""
    return Estimator(**{name: config[name] for name in Estimator.__dataclass_fields__})


def read_execution(config: ConfigDict) -> Execution:
    """How a config says that ensembles are computed."""
    return Execution(config.mapping, config.chunk_size)


def read_model(config: ConfigDict) -> Model:
    """The model that a config says."""
    return create_model(**{name: config[name] for name in MODEL_FIELDS})


def check_unit_size(unit_size: int) -> None:
    """Raises `InputError` unless a unit has whole pairs of networks."""
    check_integer("unit_size", unit_size, 2)
    if unit_size % 2:
        raise InputError(
            f"unit_size: must be even (halves of even and odd members), got {unit_size}"
        )


def split_networks(num_networks: int, unit_size: int) -> list[tuple[int, int]]:
    """The units [first, stop) of an ensemble: every `unit_size` networks, the last one cut short."""
    return [
        (first, min(first + unit_size, num_networks)) for first in range(0, num_networks, unit_size)
    ]


def describe_unit(identity: dict[str, Any], execution: Execution, **unit: Any) -> np.ndarray:
    """What a unit carries as its array `config`; `unit` says which it is."""
    return store.describe_origin(
        identity, **unit, mapping=execution.mapping, chunk_size=execution.chunk_size
    )


def describe_units(paths: Iterable[Path]) -> dict[str, Any]:
    """What computed stored units: versions, device and chunk size; sorted lists of them where units
    differ.
    """
    return join_origins([store.read_origin(path) for path in paths if path.exists()])


def join_origins(origins: list[dict[str, Any]]) -> dict[str, Any]:
    """What `describe_units` says of units that say this of themselves."""

    def join(said: list[dict[str, Any]], name: str) -> Any:
        values = [
            value for one in said if name in one for value in np.atleast_1d(one[name]).tolist()
        ]
        return values[0] if len(set(values)) == 1 else sorted(set(values))

    versions = [origin["versions"] for origin in origins]
    names = sorted({name for one in versions for name in one})
    return {
        "versions": {name: join(versions, name) for name in names},
        **{name: join(origins, name) for name in ("device", "chunk_size")},
    }


def read_unit(
    path: Path,
    identity: dict[str, Any],
    like: Halves,
    networks: tuple[int, int],
    num_rows: int,
    **unit: Any,
) -> Halves:
    """A stored unit of networks first … stop − 1 of `num_rows` rows each, a state like another one.

    Raises:
      DamagedError: where it is not intact, says that it is another `unit`, or holds more or fewer
        networks.
      InputError: where it is of another configuration, or of an earlier version, which did not
        count networks.
    """
    expected = {name: array.shape for name, array in halves_to_arrays(like).items()}
    arrays = store.read_npz(path)
    missing = [name for name in (*expected, "config") if name not in arrays]
    if missing and {*missing} <= {"networks", "even_exponent", "odd_exponent"}:
        raise InputError(
            f"{path}: does not count its networks, an earlier version wrote it; name another folder"
        )
    if missing:
        raise DamagedError(f"{path}: array {missing[0]!r} is missing")
    said = store.check_origin(path, arrays["config"], identity)
    if any(said.get(name) != value for name, value in {"networks": list(networks), **unit}.items()):
        raise DamagedError(f"{path}: is a unit of other networks or test directions")
    for name, shape in expected.items():
        if arrays[name].shape != shape or arrays[name].dtype.kind not in "iuf":
            raise DamagedError(
                f"{path}: {name} has shape {arrays[name].shape} of {arrays[name].dtype}"
            )
    rows, size = int(arrays["even_count"]) + int(arrays["odd_count"]), networks[1] - networks[0]
    counted, diverged = int(arrays["networks"]), int(arrays["diverged"])
    if counted + diverged != size or rows != counted * num_rows:
        held = rows / num_rows + diverged
        raise DamagedError(f"{path}: holds {held:g} networks, counted or diverged, not {size}")
    return halves_from_arrays(arrays, like)


def report_eigenvalues(result: NADs) -> None:
    """Prints the first eigenvalues, and which directions they do not determine."""
    if result.config["diverged"]:
        print(
            f"  {result.config['diverged']} more networks have derivatives that are not finite and "
            "are left out"
        )
    for index in range(min(4, len(result.eigenvalues))):
        label = f" ({result.symmetry[index]})" if result.symmetry[index] else ""
        print(
            f"  eigenvalue {index}{label}: {result.eigenvalues[index]:.4g} ± "
            f"{result.eigenvalue_sem[index]:.1g}"
        )
    groups, tolerance = nads.degenerate_groups(result)
    for group in groups:
        label = f" ({result.symmetry[group[0]]})" if result.symmetry[group[0]] else ""
        equal = f"eigenvalues equal within {tolerance:.0%}, single ones are not determined"
        print(f"  directions {_name_indices(group)}{label}: {equal}")


def _name_indices(group: list[int]) -> str:
    """Ascending indices as text, runs as 3–7; the end of a long list is left out."""
    runs: list[list[int]] = []
    for index in group:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    text = [str(first) if first == last else f"{first}–{last}" for first, last in runs]
    return ", ".join(text if len(text) <= 8 else [*text[:6], "…", text[-1]])


def write_directions_table(path: Path, result: NADs) -> None:
    """Writes a row for each direction: index, eigenvalue, its standard error and representation."""
    columns = ("index", "eigenvalue", "eigenvalue_sem", "symmetry")
    values = zip(
        range(len(result.eigenvalues)),
        result.eigenvalues,
        result.eigenvalue_sem,
        result.symmetry,
        strict=True,
    )
    rows = [dict(zip(columns, row, strict=True)) for row in values]
    store.write_text(path, results.format_table(rows, columns))
