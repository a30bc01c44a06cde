"""What programs are made for: the devices that are there, or others that are only compiled for."""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import jax

_devices: contextvars.ContextVar[tuple[jax.Device, ...] | None]
_devices = contextvars.ContextVar("devices", default=None)


@contextlib.contextmanager
def compiled_for(devices: Sequence[jax.Device]) -> Iterator[None]:
    """Makes programs for these devices, of a topology that need not be there: `local_devices` and
    `platform` speak of them.
    """
    token = _devices.set(tuple(devices))
    try:
        yield
    finally:
        _devices.reset(token)


def local_devices() -> list[jax.Device]:
    """The devices that programs of this process run on."""
    given = _devices.get()
    return jax.local_devices() if given is None else list(given)


def platform() -> str:
    """The kind of device that programs are made for, "cpu", "gpu" or "tpu"."""
    given = _devices.get()
    name = jax.default_backend() if given is None else given[0].platform
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)
