"""Geometries of ReLU networks that are counts of paths: convolutions without pooling, fixed masks.

Layers are z_l = W_l φ(z_{l−1}) + b_l, dense or convolutions, with independent weights of mean 0 and
variance s_l², and f = wᵀφ(z_L) + b, the features flattened, with a read-out of variance τ². A unit's
(or a filter's) weights and bias together are as likely with the other sign, which flips its gates:
each is open half of the time. So E[g gᵀ], g the exact gradient, is diagonal in pixels at any width
and any x where no preactivation is 0 with open paths below it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from nad_jax.contract import named_leaves, shape_of_variables
from nad_jax.errors import (
    InputError,
    check_input_shape,
    check_integer,
    check_number,
    check_record,
    host_array,
    plain,
    shown,
)
from nad_jax.initializers import weight_variance
from nad_jax.masks import MASKS, mask_densities
from nad_jax.models import Model

_SLOPES = {"relu": 0.0, "linear": 1.0}
_ARCHITECTURES = ("logreg", "mlp", "lenet")


class ConvLayer(NamedTuple):
    """A convolution with a (leaky) ReLU: c_l channels out, windows of `kernel` entries along each
    axis.

    weight_variance: s_l². stride, dilation: as kernel, a number or one for each axis. padding:
      "valid", "same" (as Flax has it), a number, or for each axis one or a pair (before, after).
    """

    channels: int
    kernel: int | tuple[int, ...]
    weight_variance: float
    stride: int | tuple[int, ...] = 1
    padding: str | int | tuple[Any, ...] = "valid"
    dilation: int | tuple[int, ...] = 1


class DenseLayer(NamedTuple):
    """A dense layer of n_l units with a (leaky) ReLU; weight_variance: s_l²."""

    units: int
    weight_variance: float


class PathCounts(NamedTuple):
    """The paths from each pixel to the last feature map, and E[g gᵀ], which is diagonal.

    counts: [*space], of inputs [D] without convolutions [D]; exact below 2⁵³. diagonal: [D].
    """

    counts: np.ndarray
    diagonal: np.ndarray


class _Window(NamedTuple):
    """A convolution along one axis."""

    kernel: int
    stride: int
    dilation: int
    before: int
    length: int  # of what comes out


def count_paths(
    input_shape: Sequence[int],
    layers: Sequence[ConvLayer | DenseLayer],
    readout_variance: float,
    slope: float = 0.0,
) -> PathCounts:
    """The diagonal of E[g gᵀ] of a ReLU network of convolutions without pooling, then dense layers.

    G_qq = τ² Π_l (n_l s_l² (1 + slope²)/2) · (paths from pixel q to the last feature map), n_l the
    channels or units of a layer; all else is 0. A path is a choice of one position in each window.
    Exact at any width, with or without biases, for the exact gradient.

    Source: derived; the sign of a unit as in `relu_eigenvalue`.

    Args:
      input_shape: of one input, (D,), (L, C), (H, W, C) or (T, H, W, C).
      layers: first the convolutions, then dense layers.
      readout_variance: τ².
      slope: of the activation below 0; 0 is ReLU, 1 a linear network.

    Raises:
      InputError: for what are no such layers, and values out of range.
    """
    shape = check_input_shape(input_shape)
    if not isinstance(layers, list | tuple):
        raise InputError(f"layers: must be ConvLayer and DenseLayer records, got {shown(layers)}")
    slope = check_number("slope", slope, 0.0)
    value = check_number("readout_variance", readout_variance, 0.0, exclusive=True)
    lengths, windows = shape[:-1] or shape, []
    for place, layer in enumerate(layers):
        check_record("layers", layer, ConvLayer, DenseLayer)
        if isinstance(layer, ConvLayer):
            if len(shape) == 1 or len(windows) < place:
                after = "inputs (D,) have none" if len(shape) == 1 else "dense layers come after"
                raise InputError(f"layers: convolutions need pixels, {after}; got {layer}")
            windows.append(_read_windows(layer, windows[-1] if windows else None, lengths))
        count = check_integer("layers: width", layer[0], 1)
        value *= count * check_number("layers: weight_variance", layer.weight_variance, 0.0, True)
        value *= (1 + slope**2) / 2
    counts = np.ones(())
    for axis, length in enumerate(lengths):
        counts = counts[..., None] * _count_axis(length, [each[axis] for each in windows])
    channels = shape[-1] if len(shape) > 1 else 1
    return PathCounts(counts, value * np.repeat(counts.reshape(-1), channels))


def _for_each_axis(name: str, value: Any, count: int, minimum: int) -> list[int]:
    value = plain(value)
    values = list(value) if isinstance(value, list | tuple) else [value] * count
    if len(values) != count:
        raise InputError(f"layers: {name} must be one number or {count}, got {shown(value)}")
    return [check_integer(f"layers: {name}", one, minimum) for one in values]


def _read_windows(
    layer: ConvLayer, before: list[_Window] | None, lengths: Sequence[int]
) -> list[_Window]:
    """A layer along each axis, after the windows before it."""
    lengths = [window.length for window in before] if before else list(lengths)
    count, padding = len(lengths), plain(layer.padding)
    how = ("kernel", layer.kernel), ("stride", layer.stride), ("dilation", layer.dilation)
    columns = [_for_each_axis(name, value, count, 1) for name, value in how]
    if isinstance(padding, str) and padding.lower() not in ("valid", "same"):
        raise InputError(
            f"layers: padding must be 'valid', 'same' or numbers, got {shown(padding)}"
        )
    sides = padding if isinstance(padding, list | tuple) else [padding] * count
    if len(sides) != count:
        raise InputError(f"layers: padding must be one number or {count}, got {shown(padding)}")
    windows = []
    for length, kernel, stride, dilation, side in zip(lengths, *columns, sides, strict=True):
        covered = (kernel - 1) * dilation + 1
        if isinstance(side, str):
            missing = (-(-length // stride) - 1) * stride + covered - length
            missing = max(missing, 0) if side.lower() == "same" else 0
            side = missing // 2, missing - missing // 2
        first, last = _for_each_axis("padding", side, 2, 0)
        length = (length + first + last - covered) // stride + 1
        if length < 1:
            raise InputError(
                f"layers: the window of {layer} does not fit into what comes before it"
            )
        windows.append(_Window(kernel, stride, dilation, first, length))
    return windows


def _count_axis(length: int, windows: list[_Window]) -> np.ndarray:
    """The paths from each of the places [L] of an axis to the last one, through all windows."""
    lengths = [length, *(window.length for window in windows)]
    counts = np.ones(lengths[-1])
    for window, before in zip(reversed(windows), reversed(lengths[:-1]), strict=True):
        above, counts = counts, np.zeros(before)
        for offset in range(window.kernel):
            places = (
                np.arange(len(above)) * window.stride - window.before + offset * window.dilation
            )
            there = (places >= 0) & (places < before)
            counts[places[there]] += above[there]
    return counts


def count_paths_of(model: Model) -> PathCounts:
    """The diagonal of E[g gᵀ] of a built-in network: logreg, mlp, or lenet with pooling "none".

    Under every initialization; of masked networks on average over masks, whose weights have p times
    their variance. See `count_paths`, and for fixed masks `count_masked_paths`.

    Raises:
      InputError: for every other model, and options with another activation or normalization.
    """
    check_record("model", model, Model)
    said = model.description
    name = said.get("architecture", said.get("model"))
    if name not in _ARCHITECTURES:
        raise InputError(
            f"model: must be {', '.join(_ARCHITECTURES)}, got {name!r}; of another network without "
            "pooling, normalization and skip connections, count_paths takes the layers"
        )
    if name == "lenet" and said["pooling"] != "none":
        raise InputError(f"model: pooling must be 'none', got {said['pooling']!r}")
    if said.get("normalization", "none") != "none":
        raise InputError(f"model: normalization must be 'none', got {said['normalization']!r}")
    activation = said.get("activation", "relu")
    if activation not in _SLOPES:
        raise InputError(f"model: activation must be relu or linear, got {activation!r}")
    leaves = named_leaves(shape_of_variables(model))
    kernels = {n: leaf.shape for n, leaf in leaves if re.fullmatch("params/.*kernel", n)}
    kept = dict.fromkeys(kernels, 1.0)
    if "density" in said:
        found = mask_densities(model, said["density"], said["mask"])
        kept |= dict(zip(found.layers, found.density.tolist(), strict=True))
    layers = []
    for kernel, shape in kernels.items():  # in the order of the network
        variance = weight_variance(said["initialization"], math.prod(shape[:-1]), shape[-1])
        variance *= kept[kernel]
        convolution = len(shape) > 2
        layers.append(
            ConvLayer(shape[-1], shape[:-2], variance)
            if convolution
            else DenseLayer(shape[-1], variance)
        )
    *layers, readout = layers
    return count_paths(model.input_shape, layers, readout.weight_variance, _SLOPES[activation])


def count_masked_paths(
    masks: Sequence[Any] | Mapping[str, Any],
    weight_variances: Sequence[float],
    slope: float = 0.0,
    logit: int = 0,
) -> PathCounts:
    """The diagonal of E[g gᵀ] of a ReLU network of dense layers with fixed masks, over weights.

    G = diag(mᵀ M_L … M_1) τ² Π_l s_l² (1 + slope²)/2, m the mask of the read-out, all else 0: the
    paths that masks leave open. Assumptions as of `relu_eigenvalue`.

    Source: derived.

    Args:
      masks: M_1 … M_L [n_l, n_{l−1}] of zeros and ones, and that of the read-out [K, n_L], which
        may be left out where it is dense; or the variables of one network with dense layers and
        masks, as those of `masked` models: kernels [in, out] in the order of their names, the
        read-out last.
      weight_variances: s_1² … s_L² and τ² [L + 1], of weights that are not masked.
      slope: of the activation below 0; 0 is ReLU.
      logit: which of K.

    Raises:
      InputError: for masks and variables that are not those of such a network.
    """
    variances = plain(weight_variances)
    if not isinstance(variances, list | tuple) or not variances:
        raise InputError(f"weight_variances: must be numbers, got {shown(weight_variances)}")
    slope = check_number("slope", slope, 0.0)
    if isinstance(masks, Mapping):
        masks = _read_masks(masks)
    if not isinstance(masks, list | tuple):
        raise InputError(f"masks: must be a list of masks, or variables, got {shown(masks)}")
    arrays = [host_array(f"masks[{place}]", mask, "[M, N]") for place, mask in enumerate(masks)]
    if len(arrays) not in (len(variances) - 1, len(variances)) or not arrays:
        raise InputError(
            f"masks: must be those of {len(variances)} layers (the last may be left out), as "
            f"weight_variances has, got {len(arrays)}"
        )
    if len(arrays) < len(variances):
        arrays.append(np.ones((logit + 1, len(arrays[-1]))))
    for place, mask in enumerate(arrays):
        if not np.isin(mask, (0, 1)).all():
            raise InputError(f"masks[{place}]: must be zeros and ones")
        if place and mask.shape[1] != len(arrays[place - 1]):
            raise InputError(
                f"masks[{place}]: must be [{len(mask)}, {len(arrays[place - 1])}] after the layer "
                f"before, got {list(mask.shape)}"
            )
    counts = arrays[-1][check_integer("logit", logit, 0, len(arrays[-1]) - 1)]
    for mask in reversed(arrays[:-1]):
        counts = counts @ mask
    value = math.prod(check_number("weight_variances", one, 0.0, True) for one in variances)
    value *= ((1 + slope**2) / 2) ** (len(arrays) - 1)
    return PathCounts(counts, value * counts)


def _read_masks(variables: Mapping[str, Any]) -> list[np.ndarray]:
    """The masks [out, in] of the dense layers of a network, in their order."""
    drawn = variables.get(MASKS, {})
    kernels = {}
    for name, leaf in named_leaves({n: v for n, v in variables.items() if n != MASKS}):
        kind = name.rpartition("/")[2]
        if (kind, np.ndim(leaf)) not in (("kernel", 2), ("bias", 1)):
            raise InputError(
                f"masks: variables must be kernels [in, out] and biases of one network's dense "
                f"layers, got {name} {list(np.shape(leaf))}"
            )
        if kind == "kernel":
            kernels[name] = np.asarray(drawn.get(name, np.ones(leaf.shape)), float).T
    if not kernels:
        raise InputError("masks: variables have no kernels")

    def order(name: str) -> list[Any]:  # Dense_10 after Dense_9
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    return [kernels[name] for name in sorted(kernels, key=order)]
