"""The networks of the table in NumPy and float64, written from their definition: what those of JAX
are compared with.

Sources: NAD, reference code; He et al. 2016 and torchvision for `resnet18_imagenet`; the papers of
`wide_resnet`, `bottleneck_mlp`, `vit`, `mixer` and `convnext`. Paddings,
poolings and the epsilon of batch normalization are PyTorch's; running variances are biased, as
`architectures` says. Variables are a flat dictionary {"collection/module/name": array} under the
names of the modules of Flax.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

KEPT = 0.9  # of running statistics in each step
EPSILON = 1e-5  # of batch normalization, added to the variance
DROPPED = 0.5  # the share of units

Variables = dict[str, np.ndarray]


class Result(NamedTuple):
    """Logits [B, K], features [B, F], and the variables, whose running statistics training mode
    changes.

    units: for each dropout the units [B, F] before it.
    """

    logits: np.ndarray
    features: np.ndarray
    variables: Variables
    units: list[np.ndarray]


def _windows(
    x: np.ndarray, size: tuple[int, int], stride: int, padding: int, fill: float = 0.0
) -> np.ndarray:
    """All windows of images [B, H, W, C] with a border of `fill`: [B, R, Q, C, h, w]."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, size, (1, 2))[:, ::stride, ::stride]


def pool(
    x: np.ndarray, kind: str, size: int, stride: int | None = None, padding: int = 0
) -> np.ndarray:
    """The largest entry of every window, or the mean; what fills no window is left out."""
    fill = -np.inf if kind == "max" else 0.0
    windows = _windows(x, (size, size), stride or size, padding, fill)
    return windows.max((4, 5)) if kind == "max" else windows.mean((4, 5))


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2


class Layers:
    """The layers of a network by the names of their variables."""

    def __init__(
        self,
        variables: Variables,
        masks: Sequence[np.ndarray] | None,
        options: Mapping[str, Any],
    ) -> None:
        self.options = options
        self.variables = {name: np.asarray(array, np.float64) for name, array in variables.items()}
        self.updated = dict(self.variables)
        self.masks, self.units = masks, []

    def conv(self, x: np.ndarray, name: str, stride: int = 1, padding: int = 0) -> np.ndarray:
        kernel = self.variables[f"params/{name}/kernel"]  # [h, w, C, O]
        windows = _windows(x, kernel.shape[:2], stride, padding)
        return np.tensordot(windows, kernel, ((4, 5, 3), (0, 1, 2))) + self.variables.get(
            f"params/{name}/bias", 0.0
        )

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        scale, bias = (self.variables[f"params/{name}/{part}"] for part in ("scale", "bias"))
        mean, var = (self.variables[f"batch_stats/{name}/{part}"] for part in ("mean", "var"))
        if self.masks is not None:
            batch = x.mean((0, 1, 2)), x.var((0, 1, 2))
            for part, old, new in zip(("mean", "var"), (mean, var), batch, strict=True):
                self.updated[f"batch_stats/{name}/{part}"] = KEPT * old + (1 - KEPT) * new
            mean, var = batch
        return (x - mean) / np.sqrt(var + EPSILON) * scale + bias

    def depthwise(self, x: np.ndarray, name: str, padding: int) -> np.ndarray:
        kernel = self.variables[f"params/{name}/kernel"]  # [h, w, 1, C]
        windows = _windows(x, kernel.shape[:2], 1, padding)
        y = np.einsum("brqchw,hwc->brqc", windows, kernel[:, :, 0])
        return y + self.variables[f"params/{name}/bias"]

    def layer_norm(self, x: np.ndarray, name: str, epsilon: float) -> np.ndarray:
        scale, bias = (self.variables[f"params/{name}/{part}"] for part in ("scale", "bias"))
        mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        return (x - mean) / np.sqrt(var + epsilon) * scale + bias

    def mlp(self, x: np.ndarray, first: str, second: str) -> np.ndarray:
        return self.dense(gelu(self.dense(x, first)), second)

    def dense(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.variables[f"params/{name}/kernel"] + self.variables[f"params/{name}/bias"]

    def dropout(self, x: np.ndarray) -> np.ndarray:
        if self.masks is None:
            return x
        self.units.append(x)
        return x * self.masks[len(self.units) - 1] / (1 - DROPPED)


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)


def _logreg(net: Layers, x: np.ndarray, pooling: str) -> np.ndarray:
    return _flat(x)


def _mlp(net: Layers, x: np.ndarray, pooling: str) -> np.ndarray:
    return relu(net.dense(relu(net.dense(_flat(x), "Dense_0")), "Dense_1"))


def _lenet(net: Layers, x: np.ndarray, pooling: str) -> np.ndarray:
    for name in ("Conv_0", "Conv_1"):
        x = relu(net.conv(x, name))
        if pooling != "none":
            x = pool(x, pooling, 2)
    return relu(net.dense(relu(net.dense(_flat(x), "Dense_0")), "Dense_1"))


def _vgg11(net: Layers, x: np.ndarray, pooling: str, normalized: bool = True) -> np.ndarray:
    for layer in range(8):
        x = net.conv(x, f"Conv_{layer}", padding=1)
        x = relu(net.norm(x, f"BatchNorm_{layer}") if normalized else x)
        if layer in (0, 1, 3, 5, 7):
            x = pool(x, pooling, 2)
    x = net.dropout(relu(net.dense(_flat(x), "Dense_0")))
    return net.dropout(relu(net.dense(x, "Dense_1")))


def _vgg11_plain(net: Layers, x: np.ndarray, pooling: str) -> np.ndarray:
    return _vgg11(net, x, pooling, normalized=False)


def _residual_stages(net: Layers, x: np.ndarray, strides: Sequence[int]) -> np.ndarray:
    for stage, first in enumerate(strides, 1):
        for block, stride in ((1, first), (2, 1)):
            name = f"block{stage}_{block}"
            y = relu(net.norm(net.conv(x, f"{name}/conv1", stride, padding=1), f"{name}/norm1"))
            y = net.norm(net.conv(y, f"{name}/conv2", padding=1), f"{name}/norm2")
            if x.shape != y.shape:
                x = net.norm(net.conv(x, f"{name}/projection", stride), f"{name}/projection_norm")
            x = relu(x + y)
    return x


def _resnet18(net: Layers, x: np.ndarray, pooling: str) -> np.ndarray:
    x = relu(net.norm(net.conv(x, "stem", padding=1), "stem_norm"))
    if pooling == "none":
        return _flat(_residual_stages(net, x, (1, 1, 1, 1)))
    return _flat(pool(_residual_stages(net, x, (1, 2, 2, 2)), pooling, 4))


def _resnet18_imagenet(net: Layers, x: np.ndarray, pooling: str) -> np.ndarray:
    x = relu(net.norm(net.conv(x, "stem", 2, padding=3), "stem_norm"))
    return _residual_stages(net, pool(x, pooling, 3, 2, padding=1), (1, 2, 2, 2)).mean((1, 2))


def _densenet121(net: Layers, x: np.ndarray, pooling: str) -> np.ndarray:
    x = net.conv(x, "Conv_0", padding=1)
    for block, num_layers in enumerate((6, 12, 24, 16)):
        for layer in range(num_layers):
            name = f"block{block + 1}/{{}}{layer}_{{}}".format
            y = net.conv(relu(net.norm(x, name("norm", 1))), name("conv", 1))
            y = net.conv(relu(net.norm(y, name("norm", 2))), name("conv", 2), padding=1)
            x = np.concatenate([x, y], -1)
        x = relu(net.norm(x, f"BatchNorm_{block}"))
        x = (
            pool(x, pooling, 4)
            if block == 3
            else pool(net.conv(x, f"Conv_{block + 1}"), pooling, 2)
        )
    return _flat(x)


def _wide_resnet(net: Layers, x: np.ndarray, pooling: str) -> np.ndarray:
    x = net.conv(x, "stem", padding=1)
    for stage in (1, 2, 3):
        for block in range(1, (net.options["depth"] - 4) // 6 + 1):
            name, stride = f"block{stage}_{block}", 2 if stage > 1 and block == 1 else 1
            read = relu(net.norm(x, f"{name}/norm1"))
            y = relu(net.norm(net.conv(read, f"{name}/conv1", stride, padding=1), f"{name}/norm2"))
            y = net.conv(y, f"{name}/conv2", padding=1)
            x = y + (net.conv(read, f"{name}/projection", stride) if x.shape != y.shape else x)
    return _flat(pool(relu(net.norm(x, "norm")), pooling, 8))


def _bottleneck_mlp(net: Layers, x: np.ndarray, pooling: str) -> np.ndarray:
    x = net.dense(_flat(x), "Dense_0")
    for block in range(net.options["depth"]):
        y = net.layer_norm(x, f"LayerNorm_{block}", 1e-5)
        x = x + net.mlp(y, f"Dense_{2 * block + 1}", f"Dense_{2 * block + 2}")
    return x


def _patches(net: Layers, x: np.ndarray, size: int, name: str = "patches") -> np.ndarray:
    """Tokens [B, R, Q, C'] of images [B, H, W, C]."""
    windows = np.moveaxis(_windows(x, (size, size), size, 0), 3, 5)
    return net.dense(windows.reshape(*windows.shape[:3], -1), name)


def _vit(net: Layers, x: np.ndarray, pooling: str) -> np.ndarray:
    x = _patches(net, x, net.options["patch"])
    x = x.reshape(len(x), -1, x.shape[-1])
    if pooling == "token":
        x = np.concatenate([np.tile(net.variables["params/token/value"], (len(x), 1, 1)), x], 1)
    x, heads = x + net.variables["params/position/value"], net.options["heads"]
    for number in range(1, net.options["depth"] + 1):
        name = f"block{number}"
        y, read = net.layer_norm(x, f"{name}/norm1", 1e-6), []
        parts = (net.dense(y, f"{name}/attention/{part}") for part in ("query", "key", "value"))
        for query, key, value in zip(*(np.split(part, heads, -1) for part in parts), strict=True):
            scores = np.exp(query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1]))
            read.append(scores / scores.sum(-1, keepdims=True) @ value)
        x = x + net.dense(np.concatenate(read, -1), f"{name}/attention/out")
        y = net.layer_norm(x, f"{name}/norm2", 1e-6)
        x = x + net.mlp(y, f"{name}/expand", f"{name}/contract")
    x = net.layer_norm(x, "norm", 1e-6)
    return x[:, 0] if pooling == "token" else x.mean(1)


def _mixer(net: Layers, x: np.ndarray, pooling: str) -> np.ndarray:
    x = _patches(net, x, net.options["patch"])
    x = x.reshape(len(x), -1, x.shape[-1])
    for number in range(1, net.options["depth"] + 1):
        name = f"block{number}"
        y = net.layer_norm(x, f"{name}/norm1", 1e-6).swapaxes(1, 2)
        x = x + net.mlp(y, f"{name}/tokens_expand", f"{name}/tokens_contract").swapaxes(1, 2)
        y = net.layer_norm(x, f"{name}/norm2", 1e-6)
        x = x + net.mlp(y, f"{name}/channels_expand", f"{name}/channels_contract")
    return net.layer_norm(x, "norm", 1e-6).mean(1)


def _convnext(net: Layers, x: np.ndarray, pooling: str) -> np.ndarray:
    x = net.layer_norm(_patches(net, x, net.options["patch"]), "patches_norm", 1e-6)
    for stage, blocks in enumerate(map(int, net.options["stages"].split("-"))):
        if stage:
            y = net.layer_norm(x, f"halve{stage}_norm", 1e-6)
            x = _patches(net, y, 2, f"halve{stage}")
        for block in range(1, blocks + 1):
            name = f"block{stage + 1}_{block}"
            y = net.layer_norm(net.depthwise(x, f"{name}/depthwise", 3), f"{name}/norm", 1e-6)
            y = net.mlp(y, f"{name}/expand", f"{name}/contract")
            x = x + net.variables[f"params/{name}/scale/value"] * y
    return net.layer_norm(x.mean((1, 2)), "norm", 1e-6)


# The features of a network, the name of the layer that reads them out, and the published pooling.
NETWORKS: dict[str, tuple[Callable[..., np.ndarray], str, str]] = {
    "logreg": (_logreg, "Dense_0", "none"),
    "mlp": (_mlp, "Dense_2", "none"),
    "lenet": (_lenet, "Dense_2", "max"),
    "vgg11": (_vgg11, "Dense_2", "max"),
    "vgg11_plain": (_vgg11_plain, "Dense_2", "max"),
    "resnet18": (_resnet18, "Dense_0", "avg"),
    "resnet18_w16": (_resnet18, "Dense_0", "avg"),
    "resnet18_imagenet": (_resnet18_imagenet, "Dense_0", "max"),
    "densenet121": (_densenet121, "Dense_0", "avg"),
    "wide_resnet": (_wide_resnet, "Dense_0", "avg"),
    "bottleneck_mlp": (_bottleneck_mlp, "Dense_{last}", "none"),
    "vit": (_vit, "head", "token"),
    "mixer": (_mixer, "head", "none"),
    "convnext": (_convnext, "head", "none"),
}


def run(
    architecture: str,
    variables: Variables,
    images: np.ndarray,
    pooling: str = "default",
    masks: Sequence[np.ndarray] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Result:
    """A network of the table on images [B, H, W, C].

    Args:
      masks: for each dropout, in order, which units [B, F] are kept: training mode; None:
        evaluation mode.
      options: of the architecture, where variables do not say them.
    """
    find_features, readout, published = NETWORKS[architecture]
    net = Layers(variables, masks, options or {})
    features = find_features(
        net, np.asarray(images, np.float64), published if pooling == "default" else pooling
    )
    readout = readout.format(last=2 * net.options.get("depth", 0) + 1)
    return Result(net.dense(features, readout), features, net.updated, net.units)
