"""What the experiments that compute NADs have in common: their fields, units of networks, cost, and what is printed."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments.estimate import fastest, program_bytes
from experiments.plan import Cost
from nad_jax import accumulation, nads, store
from nad_jax.accumulation import Halves
from nad_jax.architectures import create_model
from nad_jax.ensemble import make_key
from nad_jax.errors import InputError, check_integer
from nad_jax.estimator import Estimator
from nad_jax.models import Model
from nad_jax.nads import NADs

MODEL_FIELDS = ("architecture", "image_shape", "num_logits", "pooling", "initialization", "convolution")
ESTIMATOR_FIELDS = tuple(Estimator.__dataclass_fields__)


def read_estimator(config: ConfigDict) -> Estimator:
    """The estimator that a config says."""
    return Estimator(**{name: config[name] for name in ESTIMATOR_FIELDS})


def read_model(config: ConfigDict) -> Model:
    """The model that a config says."""
    return create_model(**{name: config[name] for name in MODEL_FIELDS})


def check_unit_size(unit_size: int) -> None:
    """Raises `InputError` unless a unit has whole pairs of networks."""
    check_integer("unit_size", unit_size, 2)
    if unit_size % 2:
        raise InputError(f"unit_size: must be even (halves of even and odd members), got {unit_size}")


def split_networks(num_networks: int, unit_size: int) -> list[tuple[int, int]]:
    """The units [first, stop) of an ensemble: every `unit_size` networks, the last one cut short."""
    return [(first, min(first + unit_size, num_networks)) for first in range(0, num_networks, unit_size)]


def describe_unit(identity: dict[str, Any], estimator: Estimator, **unit: Any) -> np.ndarray:
    """What a unit carries as its array `config`; `unit` says which it is."""
    return store.describe_origin(identity, **unit, mapping=estimator.mapping, chunk_size=estimator.chunk_size)


def measure(config: ConfigDict, make_empty: Callable[[], Halves]) -> Cost:
    """What the networks of a config cost, measured with a chunk of them; `make_empty()` has seen none."""
    add_chunk, estimator, _ = accumulation.make_add_chunk(read_model(config), read_estimator(config), config.unit_size)
    key, numbers = make_key(config.seed), (jnp.int32(0), jnp.int32(estimator.chunk_size))
    begun = time.monotonic()
    program = add_chunk.lower(key, make_empty(), *numbers).compile()
    compile_seconds = time.monotonic() - begun
    state = jax.tree.map(jnp.copy, make_empty())

    def add() -> Halves:  # the state is donated
        nonlocal state
        state = program(key, state, *numbers)
        return state

    seconds = fastest(add)
    networks = estimator.chunk_size * jax.local_device_count()  # at once
    return Cost(compile_seconds, seconds / networks, program_bytes(program))


def report_eigenvalues(result: NADs) -> None:
    """Prints the first eigenvalues, and which directions they do not determine."""
    if result.config["diverged"]:
        print(f"  {result.config['diverged']} more networks have derivatives that are not finite and are left out")
    for index in range(min(4, len(result.eigenvalues))):
        print(f"  eigenvalue {index}: {result.eigenvalues[index]:.4g} ± {result.eigenvalue_sem[index]:.1g}")
    groups, tolerance = nads.degenerate_groups(result)
    for first, last in groups:
        print(f"  directions {first}–{last}: eigenvalues equal within {tolerance:.0%}, single ones are not determined")
