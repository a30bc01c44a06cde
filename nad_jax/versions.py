"""What numbers depend on besides their configuration: the versions of packages, and the kind of
device.
"""

import functools
from importlib import metadata

from nad_jax import target

__version__ = "0.4.0"  # said here alone: setup.py reads it
_COMPUTE = ("jax", "jaxlib", "flax", "optax", "numpy")


@functools.cache
def versions() -> dict[str, str]:
    """The versions of this package and of those that it computes with, by their names."""
    return {"nad_jax": __version__, **{name: metadata.version(name) for name in _COMPUTE}}


def device_kind() -> str:
    """What JAX calls the local devices."""
    return target.local_devices()[0].device_kind
