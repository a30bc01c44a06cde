"""The initializations of a module's variables, and the second moment of its read-out.

By their names, n being the inputs of a unit (window · channels of a convolution):

    reference       PyTorch's defaults: weights and biases uniform on ±1/√n
    flax            the module's own; Flax's default is lecun-normal, biases zero
    he              weights N(0, 2/n), biases zero (He et al. 2015)
    lecun           weights N(0, 1/n), biases zero
    orthogonal      weights [n, out] with orthonormal columns, or rows where there are fewer of them
                    (Saxe et al. 2014), biases zero
    sigma:W:B       weights N(0, W²/n), biases N(0, B²), as in sigma:1.5:0.1 (σ_w = 1.5, σ_b = 0.1)

Under all of them normalization layers start as the identity.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.ensemble import named_key
from nad_jax.errors import InputError, check_choice, check_number, plain, unknown

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
OWN = "own"  # of variables that keep the law of their module
_IDENTITY = {"scale": 1.0, "var": 1.0, "bias": 0.0, "mean": 0.0}  # of a normalization
CONVOLUTIONS = ("uniform", "normal_fan_out")
INITIALIZATIONS = ("reference", "flax", "he", "lecun", "orthogonal", "sigma")
_SIGMA = "sigma:1.5:0.1"  # how it is written


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
        known = dict.fromkeys([*_LAWS.values(), OWN])
        check_choice(f"{kind.__name__}.reference_law", own, known)
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


class Plan(NamedTuple):
    """How a leaf is drawn: "constant", "uniform" on ±size, "normal" of that standard deviation,
    "orthogonal", or its module's "own".
    """

    leaf: Any
    kind: str
    size: float = 0.0


def _plan_product(initialization: str, num_inputs: int, is_bias: bool) -> tuple[str, float]:
    """How the weights or the bias of a layer with so many inputs are drawn."""
    name, sigma_w, sigma_b = _parse(initialization)
    if name == "reference":
        return "uniform", 1.0 / math.sqrt(num_inputs)
    if is_bias:
        return ("normal", sigma_b) if sigma_b else ("constant", 0.0)
    if name == "orthogonal":
        return "orthogonal", 1.0
    return "normal", sigma_w / math.sqrt(num_inputs)


def _plan_leaf(
    owners: Owners,
    path: Path,
    leaf: Any,
    kernel: Any,
    initialization: str,
    convolution: str,
) -> Plan:
    """How a leaf is drawn.

    Args:
      path: of the leaf, the collection first and its name last.
      kernel: of its module in this collection; None where it has none.
    """
    owner, name = owners.get(path[1:-1]), path[-1]
    law, outer = find_law(owner), _library_layer(owners, path[1:-1])
    kind = f"a {type(owner).__name__}" if owner is not None else "no module"
    kind += f" inside a {type(outer).__name__}" if outer is not None else ""
    reference = initialization == "reference"
    if _is_reparametrized(owners, path[1:-1]):
        kind += ", under nn.map_variables"
    elif outer is None and jnp.issubdtype(leaf.dtype, jnp.floating):
        if law == OWN and not reference:
            return Plan(leaf, OWN)
        if law == "normalization" and name in _IDENTITY:
            return Plan(leaf, "constant", _IDENTITY[name])
        if law in ("dense", "convolution") and name in ("kernel", "bias") and kernel is not None:
            *inputs, features = kernel.shape
            window = np.size(owner.kernel_size) if isinstance(owner, nn.Conv) else 2
            # With more axes than one layer needs, it is several layers.
            if len(inputs) != (1 if law == "dense" else 1 + window):
                kind += ", stacked by nn.scan or nn.vmap"
            elif reference and law == "convolution" and convolution == "normal_fan_out":
                variance = 2.0 / (math.prod(inputs[:-1]) * features)
                drawn = ("constant", 0.0) if name == "bias" else ("normal", math.sqrt(variance))
                return Plan(leaf, *drawn)
            else:
                how = initialization, math.prod(inputs), name == "bias"
                return Plan(leaf, *_plan_product(*how))
    raise InputError(
        f"initialization: {initialization!r} covers nn.Dense, nn.Conv and normalization layers, not "
        f"variable {'/'.join(path)} {leaf.dtype}{list(leaf.shape)} of {kind}; use "
        "initialization='flax'"
    )


def _parse(initialization: str) -> tuple[str, float, float]:
    """The name, σ_w and σ_b of a valid initialization of normal weights N(0, σ_w²/n)."""
    name, *numbers = initialization.split(":")
    if numbers:
        return name, *map(float, numbers)
    return name, math.sqrt(2.0) if name == "he" else 1.0, 0.0


def check_initialization(value: Any, allowed: tuple[str, ...] = INITIALIZATIONS) -> str:
    """Returns an initialization as it is written down; raises `InputError` for one that is unknown.

    allowed: the names to choose from.
    """
    value = plain(value)
    name, *numbers = value.split(":") if isinstance(value, str) else (value,)
    if name != "sigma":
        if value not in allowed:
            written = [_SIGMA if one == "sigma" else one for one in allowed]
            raise unknown("initialization", value, written)
        return value
    try:
        sigma_w, sigma_b = map(float, numbers)
    except ValueError as error:
        raise InputError(
            f"initialization: must be sigma:W:B with the numbers σ_w and σ_b, as in {_SIGMA}, got "
            f"{value!r}"
        ) from error
    sigma_w = check_number("initialization: σ_w", sigma_w, 0.0, exclusive=True)
    return f"sigma:{sigma_w}:{check_number('initialization: σ_b', sigma_b, 0.0)}"


def make_initialization(
    initialization: str,
    shapes: Any,
    owners: Owners,
    convolution: str = "uniform",
    own: Callable[[jax.Array], Any] | None = None,
) -> Callable[[jax.Array], Any]:
    """An initialization of the variables of a Linen module, as a function of a key.

    Kernels [in, out] of `nn.Dense` and [window…, in, out] of `nn.Conv` and their biases have the
    law of the module's docstring; with `convolution="normal_fan_out"` (the reference VGG) reference
    kernels of convolutions are N(0, 2/(window·out)) and their biases zero. Normalization layers
    start as the identity. Method of the reference: NAD, reference code.

    A module of one's own says with a class attribute `reference_law`, "dense", "convolution" (of
    images) or "normalization", that its variables are named and meant as those of these layers, or
    with "own" that they keep their law under all initializations but the reference.

    Args:
      initialization: any but "flax", see `check_initialization`.
      shapes: the variables as arrays or `jax.ShapeDtypeStruct`, e.g. `jax.eval_shape(module.init,
        ...)`.
      owners: the module at each path; a variable belongs to the one at its path without the
        collection and its name.
      convolution: "uniform" or "normal_fan_out".
      own: the module's own `init(key) -> variables`, of the same structure.

    Returns:
      `init(key) -> variables` of the same structure and types. Consumes the key.

    Raises:
      InputError: naming the first variable whose law is not settled, and its module.
    """
    check_choice("reference_convolution", convolution, CONVOLUTIONS)
    flat, structure = jax.tree_util.tree_flatten_with_path(shapes)
    # Without what stands behind the keys of dictionaries: a box of axis names has one leaf, its
    # value.
    leaves = [
        (tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey)), leaf)
        for path, leaf in flat
    ]
    by_path, how = dict(leaves), (initialization, convolution)
    plans = [
        _plan_leaf(owners, path, leaf, by_path.get((*path[:-1], "kernel")), *how)
        for path, leaf in leaves
    ]
    return draw_plans(plans, structure, own)


def draw_plans(
    plans: list[Plan], structure: Any, own: Callable[[jax.Array], Any] | None = None
) -> Callable[[jax.Array], Any]:
    """An initialization `init(key) -> variables` of leaves that are drawn as planned.

    All random leaves are slices of one flat uniform draw: compilation time does not grow with their
    number.

    Args:
      plans: one for each leaf.
      structure: of the variables, as `jax.tree.flatten` gives it.
      own: see `make_initialization`; needed where a leaf keeps the law of its module.
    """
    still = ("constant", OWN)
    num_random = sum(math.prod(plan.leaf.shape) for plan in plans if plan.kind not in still)
    keeps = any(plan.kind == OWN for plan in plans)

    def init(key: jax.Array) -> Any:
        # Open at -1: the normal leaves need a finite inverse error function.
        tiny = jnp.nextafter(jnp.float32(-1.0), jnp.float32(0.0))
        flat = jax.random.uniform(key, (num_random,), jnp.float32, minval=tiny, maxval=1.0)
        kept = jax.tree.leaves(own(named_key(key, OWN))) if keeps else [None] * len(plans)
        values, offset = [], 0
        for (leaf, kind, size), value in zip(plans, kept, strict=True):
            if kind == OWN:
                values.append(value)
                continue
            if kind == "constant":
                values.append(jnp.full(leaf.shape, size, leaf.dtype))
                continue
            count = math.prod(leaf.shape)
            part = jax.lax.slice(flat, (offset,), (offset + count,)).reshape(leaf.shape)
            offset += count
            if kind != "uniform":
                part = math.sqrt(2.0) * jax.lax.erf_inv(part)
            part = _orthonormal(part) if kind == "orthogonal" else size * part
            values.append(part.astype(leaf.dtype))
        return jax.tree.unflatten(structure, values)

    return init


def _orthonormal(normal: jax.Array) -> jax.Array:
    """A random matrix [n, out] with orthonormal columns, or rows where n is less, from a normal
    array [..., out]: uniform among them (Mezzadri 2007).
    """
    matrix = normal.reshape(-1, normal.shape[-1])
    wide = matrix.shape[0] < matrix.shape[1]
    q, r = jnp.linalg.qr(matrix.T if wide else matrix)
    q = q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)[None]
    return (q.T if wide else q).reshape(normal.shape)


def weight_variance(initialization: str, num_inputs: int, num_units: int) -> float:
    """The variance of a weight of a layer under an initialization, τ² of the read-out [F, K]; of
    "flax" that of Flax's default.
    """
    if initialization == "reference":
        return reference_readout_variance(num_inputs)
    if initialization == "orthogonal":
        return 1.0 / max(num_inputs, num_units)
    return _parse(initialization)[1] ** 2 / num_inputs


def reference_readout_variance(num_features: int) -> float:
    """τ² = 1/(3F): the variance of a read-out weight under the reference, U(±1/√F)."""
    return 1.0 / (3.0 * num_features)


def flax_readout_variance(num_features: int) -> float:
    """τ² = 1/F: the variance of a read-out weight under Flax's default, lecun-normal."""
    return 1.0 / num_features
