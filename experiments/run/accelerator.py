"""Whether a process has the accelerator that its job asked for: JAX falls back to the CPU with no
more than a warning, and would compute there for the time of the whole job.
"""

import jax

from nad_jax.errors import InputError, check_choice, first_line

EXTRAS = {"gpu": "cuda", "tpu": "tpu"}  # by the platform of a device: what installs its JAX


def check_accelerator(expected: str) -> None:
    """Refuses a process whose devices are not what its job asked for.

    expected: "gpu" or "tpu".

    Raises:
      InputError: naming what is expected and the devices that JAX found.
    """
    check_choice("require_accelerator", expected, EXTRAS)
    try:
        devices = jax.local_devices()
    except RuntimeError as error:  # JAX_PLATFORMS names what is not there
        found = f"nothing ({first_line(error)})"
    else:
        if all(device.platform == expected for device in devices):
            return
        found = ", ".join(str(device) for device in devices)
    raise InputError(
        f"require_accelerator: expected a {expected.upper()}, JAX found {found}; its JAX comes with "
        f"pip install -e '.[{EXTRAS[expected]}]'"
    )
