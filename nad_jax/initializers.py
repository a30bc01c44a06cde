"""The reference (PyTorch-default) initialization of any variable tree, and the second moment of its read-out.

Flax's own defaults differ (lecun-normal kernels, zero biases), so which one is used is always said.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nad_jax.errors import InputError

_ONES, _ZEROS = ("scale", "var"), ("mean",)


def _leaf_plan(module: Mapping[str, Any], name: str, convolution: str, path: str) -> tuple[str, float]:
    """How one leaf is drawn: ("constant", value), ("uniform", bound) or ("normal", standard deviation)."""
    if name in _ONES:
        return "constant", 1.0
    if name in _ZEROS or (name == "bias" and "scale" in module):
        return "constant", 0.0
    kernel = module.get("kernel")
    if name not in ("kernel", "bias") or kernel is None or len(kernel.shape) not in (2, 4):
        raise InputError(
            f"initialization: 'reference' covers dense and 2-D convolution kernels, their biases and "
            f"normalization layers, not variable {path}; use initialization='flax'"
        )
    if len(kernel.shape) == 4 and convolution == "normal_fan_out":
        height, width, _, features = kernel.shape
        return ("constant", 0.0) if name == "bias" else ("normal", math.sqrt(2.0 / (height * width * features)))
    return "uniform", 1.0 / math.sqrt(math.prod(kernel.shape[:-1]))


def reference_initialization(shapes: Any, convolution: str = "uniform") -> Callable[[jax.Array], Any]:
    """The reference initialization of a variable tree, as a function of a key.

    Kernels [in, out] and [h, w, in, out] and their biases are uniform on ±1/√fan_in; with
    `convolution="normal_fan_out"` (the reference VGG) convolution kernels are N(0, 2/(h·w·out)) and their
    biases zero. Normalization layers start as the identity. Method: NAD, reference code.

    All random leaves are slices of one flat uniform draw: compilation time does not grow with their number.

    Args:
      shapes: nested dictionaries of arrays or `jax.ShapeDtypeStruct`, e.g. `jax.eval_shape(module.init, ...)`.
      convolution: "uniform" or "normal_fan_out".

    Returns:
      `init(key) -> variables`, float32, of the same structure. Consumes the key.

    Raises:
      InputError: naming the first variable whose initialization PyTorch's defaults do not settle.
    """
    leaves, plans = [], []

    def visit(tree: Mapping[str, Any], path: str) -> Any:
        structure = {}
        for name in sorted(tree):
            child = tree[name]
            if isinstance(child, Mapping):
                structure[name] = visit(child, f"{path}/{name}")
            else:
                plans.append(_leaf_plan(tree, name, convolution, f"{path}/{name}"[1:]))
                structure[name] = len(leaves)
                leaves.append(tuple(child.shape))
        return structure

    structure = visit(shapes, "")
    sizes = [0 if kind == "constant" else math.prod(shape) for shape, (kind, _) in zip(leaves, plans, strict=True)]

    def init(key: jax.Array) -> Any:
        # Open at -1: the normal leaves need a finite inverse error function.
        tiny = jnp.nextafter(jnp.float32(-1.0), jnp.float32(0.0))
        flat = jax.random.uniform(key, (sum(sizes),), jnp.float32, minval=tiny, maxval=1.0)
        values, offset = [], 0
        for shape, size, (kind, scale) in zip(leaves, sizes, plans, strict=True):
            if kind == "constant":
                values.append(jnp.full(shape, scale, dtype=jnp.float32))
                continue
            part = jax.lax.slice(flat, (offset,), (offset + size,)).reshape(shape)
            offset += size
            if kind == "normal":
                part = math.sqrt(2.0) * jax.lax.erf_inv(part)
            values.append(scale * part)
        return jax.tree.map(lambda index: values[index], structure)

    return init


def reference_readout_variance(num_features: int) -> float:
    """τ² = 1/(3F): the variance of a read-out weight under the reference initialization U(±1/√F)."""
    return 1.0 / (3.0 * num_features)


def flax_readout_variance(num_features: int) -> float:
    """τ² = 1/F: the variance of a read-out weight under Flax's default, lecun-normal."""
    return 1.0 / num_features
