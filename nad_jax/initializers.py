"""The reference (PyTorch-default) initialization of a module's variables, and the second moment of
its read-out.

Flax's own defaults differ (lecun-normal kernels, zero biases), so which one is used is always said.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.errors import InputError, check_choice

Path = tuple[str, ...]
Owners = dict[Path, nn.Module]  # every module by its path

# The law of a variable is that of its module, not of its name: a `scale` may be a gain written 1 +
# scale.
_LAWS = {
    nn.Dense: "dense",
    nn.Conv: "convolution",
    nn.BatchNorm: "normalization",
    nn.LayerNorm: "normalization",
    nn.GroupNorm: "normalization",
    nn.InstanceNorm: "normalization",
    nn.RMSNorm: "normalization",
}
_IDENTITY = {"scale": 1.0, "var": 1.0, "bias": 0.0, "mean": 0.0}  # of a normalization
CONVOLUTIONS = ("uniform", "normal_fan_out")


def _written_classes(module: nn.Module | None) -> list[type]:
    """The classes of a module, its own first, without those all modules have and those `nn.remat`
    and the like make.
    """
    common = (nn.Module.__module__, nn.transforms.__name__)
    return [kind for kind in type(module).__mro__ if kind.__module__ not in common]


def _library_layer(owners: Owners, path: Path) -> nn.Module | None:
    """The layer of Flax that the module at a path is a part of; None where it is none."""
    for length in reversed(range(len(path))):
        outer = owners.get(path[:length])
        kinds = _written_classes(outer)  # none of Flax where there is no module
        if any(kind.__module__.startswith("flax.") and kind is not nn.Sequential for kind in kinds):
            return outer
    return None


def find_law(owner: nn.Module | None) -> str | None:
    """The law of the variables of a module; None where PyTorch's defaults do not settle it."""
    if owner is None:
        return None
    kind = _written_classes(owner)[0]
    own = vars(kind).get("reference_law")  # of the class itself: a subclass may mean something else
    if own is not None:
        check_choice(f"{kind.__name__}.reference_law", own, dict.fromkeys(_LAWS.values()))
    return own or _LAWS.get(kind)


def _is_reparametrized(owners: Owners, path: Path) -> bool:
    """Whether `nn.map_variables` stands between stored variables and those that a module at a path
    sees.
    """
    kinds = (type(owners.get(path[:length])) for length in range(len(path) + 1))
    return any(
        kind.__module__ == nn.transforms.__name__ and kind.__name__.startswith("Map_variables")
        for kind in kinds
    )


def _plan_leaf(
    owners: Owners,
    path: Path,
    leaf: Any,
    kernel: Any,
    convolution: str,
) -> tuple[str, float]:
    """How a leaf is drawn: ("constant", value), ("uniform", bound) or ("normal", standard
    deviation).

    Args:
      path: of the leaf, the collection first and its name last.
      kernel: of its module in this collection; None where it has none.
    """
    owner, name = owners.get(path[1:-1]), path[-1]
    law, outer = find_law(owner), _library_layer(owners, path[1:-1])
    kind = f"a {type(owner).__name__}" if owner is not None else "no module"
    kind += f" inside a {type(outer).__name__}" if outer is not None else ""
    if _is_reparametrized(owners, path[1:-1]):
        kind += ", under nn.map_variables"
    elif outer is None and jnp.issubdtype(leaf.dtype, jnp.floating):
        if law == "normalization" and name in _IDENTITY:
            return "constant", _IDENTITY[name]
        if law in ("dense", "convolution") and name in ("kernel", "bias") and kernel is not None:
            *inputs, features = kernel.shape
            window = np.size(owner.kernel_size) if isinstance(owner, nn.Conv) else 2
            # With more axes than one layer needs, it is several layers.
            if len(inputs) != (1 if law == "dense" else 1 + window):
                kind += ", stacked by nn.scan or nn.vmap"
            elif law == "convolution" and convolution == "normal_fan_out":
                variance = 2.0 / (math.prod(inputs[:-1]) * features)
                return ("constant", 0.0) if name == "bias" else ("normal", math.sqrt(variance))
            else:
                return "uniform", 1.0 / math.sqrt(math.prod(inputs))
    raise InputError(
        "initialization: 'reference' covers nn.Dense, nn.Conv and normalization layers, not "
        "variable "
        f"{'/'.join(path)} {leaf.dtype}{list(leaf.shape)} of {kind}; use initialization='flax'"
    )


def reference_initialization(
    shapes: Any, owners: Owners, convolution: str = "uniform"
) -> Callable[[jax.Array], Any]:
    """The reference initialization of the variables of a Linen module, as a function of a key.

    Kernels [in, out] of `nn.Dense` and [window…, in, out] of `nn.Conv` and their biases are uniform
    on ±1/√fan_in; with `convolution="normal_fan_out"` (the reference VGG) convolution kernels are
    N(0, 2/(window·out)) and their biases zero. Normalization layers start as the identity. Method:
    NAD, reference code.

    A module of one's own says with a class attribute `reference_law`, "dense", "convolution" (of
    images) or "normalization", that its variables are named and meant as those of these layers.

    All random leaves are slices of one flat uniform draw: compilation time does not grow with their
    number.

    Args:
      shapes: the variables as arrays or `jax.ShapeDtypeStruct`, e.g. `jax.eval_shape(module.init,
        ...)`.
      owners: the module at each path; a variable belongs to the one at its path without the
        collection and its name.
      convolution: "uniform" or "normal_fan_out".

    Returns:
      `init(key) -> variables` of the same structure and types. Consumes the key.

    Raises:
      InputError: naming the first variable whose initialization PyTorch's defaults do not settle,
        and its module.
    """
    check_choice("reference_convolution", convolution, CONVOLUTIONS)
    flat, structure = jax.tree_util.tree_flatten_with_path(shapes)
    # Without what stands behind the keys of dictionaries: a box of axis names has one leaf, its
    # value.
    leaves = [
        (tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey)), leaf)
        for path, leaf in flat
    ]
    by_path = dict(leaves)
    plans = [
        (leaf, *_plan_leaf(owners, path, leaf, by_path.get((*path[:-1], "kernel")), convolution))
        for path, leaf in leaves
    ]
    num_random = sum(math.prod(leaf.shape) for leaf, kind, _ in plans if kind != "constant")

    def init(key: jax.Array) -> Any:
        # Open at -1: the normal leaves need a finite inverse error function.
        tiny = jnp.nextafter(jnp.float32(-1.0), jnp.float32(0.0))
        flat = jax.random.uniform(key, (num_random,), jnp.float32, minval=tiny, maxval=1.0)
        values, offset = [], 0
        for leaf, kind, scale in plans:
            if kind == "constant":
                values.append(jnp.full(leaf.shape, scale, leaf.dtype))
                continue
            size = math.prod(leaf.shape)
            part = jax.lax.slice(flat, (offset,), (offset + size,)).reshape(leaf.shape)
            offset += size
            if kind == "normal":
                part = math.sqrt(2.0) * jax.lax.erf_inv(part)
            values.append((scale * part).astype(leaf.dtype))
        return jax.tree.unflatten(structure, values)

    return init


def reference_readout_variance(num_features: int) -> float:
    """τ² = 1/(3F): the variance of a read-out weight under the reference, U(±1/√F)."""
    return 1.0 / (3.0 * num_features)


def flax_readout_variance(num_features: int) -> float:
    """τ² = 1/F: the variance of a read-out weight under Flax's default, lecun-normal."""
    return 1.0 / num_features
