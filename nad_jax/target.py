"""What programs are made for: the devices that are there, or others that are only compiled for."""

import contextlib
import contextvars
from collections.abc import Iterator, Sequence

import jax

_Given = tuple[tuple[jax.Device, ...], int]
_given: contextvars.ContextVar[_Given | None] = contextvars.ContextVar("devices", default=None)


@contextlib.contextmanager
def compiled_for(devices: Sequence[jax.Device], memory_bytes: int = 0) -> Iterator[None]:
    """Makes programs for these devices, some of the local ones or those of a topology that need not
    be there: `local_devices` and `platform` speak of them.

    memory_bytes: that each of them has; 0: what it says itself.
    """
    token = _given.set((tuple(devices), memory_bytes))
    try:
        yield
    finally:
        _given.reset(token)


def local_devices() -> list[jax.Device]:
    """The devices that programs of this process run on."""
    given = _given.get()
    return jax.local_devices() if given is None else list(given[0])


def memory() -> int:
    """The bytes that each of the devices is said to have; 0: it knows itself."""
    given = _given.get()
    return 0 if given is None else given[1]


def platform() -> str:
    """The kind of device that programs are made for, "cpu", "gpu" or "tpu"."""
    given = _given.get()
    name = jax.default_backend() if given is None else given[0][0].platform
    return {"cuda": "gpu", "rocm": "gpu"}.get(name, name)
