"""The U-Net and the DiT once more, of one image, in NumPy and float64."""

import math

import numpy as np


def _sigmoid(x):
    return x / (1.0 + np.exp(-x))  # SiLU


def _dense(weights, x):
    return x @ weights["kernel"] + weights["bias"]


def _convolve(weights, x, stride=1):
    """3×3, zeros around: the mean over windows of products, row by row."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    rows, columns = range(0, x.shape[0], stride), range(0, x.shape[1], stride)
    windows = [[padded[i : i + 3, j : j + 3].ravel() for j in columns] for i in rows]
    kernel = weights["kernel"]
    return np.array(windows) @ kernel.reshape(-1, kernel.shape[-1]) + weights["bias"]


def _group(x, groups):
    parts = x.reshape(-1, groups, x.shape[-1] // groups)
    centered = parts - parts.mean((0, 2), keepdims=True)
    return (centered / np.sqrt((centered**2).mean((0, 2), keepdims=True) + 1e-5)).reshape(x.shape)


def _embed(t, width):
    angles = t * 10_000.0 ** (-np.arange(width // 2) / (width // 2))
    return np.concatenate([np.cos(angles), np.sin(angles)])


def _attend(qkv, heads, axis):
    """Attention of tokens [T, 3·C]; `axis`: whether query, key, value are inside a head (1) or
    outside (0).
    """
    tokens, width = len(qkv), qkv.shape[1] // 3
    shape = (heads, 3) if axis else (3, heads)
    parts = np.moveaxis(qkv.reshape(tokens, *shape, width // heads), 1 + axis, 0)
    read = np.zeros((tokens, heads, width // heads))
    for head in range(heads):
        query, key, value = (part[:, head] for part in parts)
        scores = np.exp(query @ key.T / math.sqrt(width // heads))
        read[:, head] = scores / scores.sum(1, keepdims=True) @ value
    return read.reshape(tokens, width)


def unet(weights, x, t, levels, heads, groups):
    """The noise [H, W, C] in x, one residual block a level."""
    width = weights["conv"]["kernel"].shape[-1]
    level = _dense(weights["level2"], _sigmoid(_dense(weights["level1"], _embed(t, width))))

    def residual(name, x):
        own = weights[name]
        y = _convolve(own["conv1"], _sigmoid(_group(x, groups))) + _dense(
            own["level"], _sigmoid(level)
        )
        y = _convolve(own["conv2"], _sigmoid(_group(y, groups)))
        return y + (_dense(own["skip"], x) if "skip" in own else x)

    x = _convolve(weights["conv"], x)
    kept = [x]
    for depth in range(levels):
        x = residual(f"down{depth}_0", x)
        kept.append(x)
        if depth < levels - 1:
            x = _convolve(weights[f"halve{depth}"], x, 2)
            kept.append(x)
    x = residual("middle1", x)
    own, shape = weights["attention"], x.shape
    tokens = _attend(_dense(own["qkv"], _group(x, groups).reshape(-1, width)), heads, 1)
    x = residual("middle2", x + _dense(own["out"], tokens).reshape(shape))
    for depth in reversed(range(levels)):
        for number in range(2):
            x = residual(f"up{depth}_{number}", np.concatenate([x, kept.pop()], -1))
        if depth:
            x = _convolve(weights[f"enlarge{depth}"], x.repeat(2, 0).repeat(2, 1))
    return _convolve(weights["head"], _sigmoid(_group(x, groups)))


def _layer(x):
    centered = x - x.mean(1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(1, keepdims=True) + 1e-6)


def _gelu(x):
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def dit(weights, x, t, depth, heads, patch):
    """The noise [H, W, C] in x."""
    height, columns, channels = x.shape
    width = weights["patches"]["bias"].size
    places = [(i, j) for i in range(0, height, patch) for j in range(0, columns, patch)]
    tokens = np.array([x[i : i + patch, j : j + patch].ravel() for i, j in places])
    tokens = _dense(weights["patches"], tokens)
    frequencies = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    for token, (i, j) in zip(tokens, places, strict=True):
        row, column = i // patch * frequencies, j // patch * frequencies
        token += np.concatenate([np.sin(row), np.cos(row), np.sin(column), np.cos(column)])
    level = _dense(weights["level2"], _sigmoid(_dense(weights["level1"], _embed(t, 256))))
    level = _sigmoid(level)
    for number in range(1, depth + 1):
        own = weights[f"block{number}"]
        modulation = np.split(_dense(own["modulation"], level), 6)
        y = _layer(tokens) * (1.0 + modulation[1]) + modulation[0]
        read = _attend(_dense(own["attention"]["qkv"], y), heads, 0)
        tokens = tokens + modulation[2] * _dense(own["attention"]["out"], read)
        y = _layer(tokens) * (1.0 + modulation[4]) + modulation[3]
        y = _dense(own["contract"], _gelu(_dense(own["expand"], y)))
        tokens = tokens + modulation[5] * y
    shift, scale = np.split(_dense(weights["modulation"], level), 2)
    made = _dense(weights["head"], _layer(tokens) * (1.0 + scale) + shift)
    noise = np.zeros(x.shape)
    for (i, j), values in zip(places, made, strict=True):
        noise[i : i + patch, j : j + patch] = values.reshape(patch, patch, channels)
    return noise
