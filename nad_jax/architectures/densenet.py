"""DenseNet121 for 32×32 images (NAD, reference code)."""

from typing import Any, ClassVar, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nad_jax.architectures.network import EPSILON, MOMENTUM, ImageNetwork, make_layers
from nad_jax.convolution import Convolution, map_images, product_convolution
from nad_jax.pooling import pool

BLOCKS = (6, 12, 24, 16)
# Layers that are one program, run in a loop: each counts as wide as the last of them. The 1×1
# convolutions then take 30 % more products, and ten programs are compiled instead of 58.
LOOPED = 6

Coefficients = tuple[jax.Array, jax.Array]


class _Norm(NamedTuple):
    """Arrays [C] of a batch normalization."""

    scale: jax.Array
    bias: jax.Array
    mean: jax.Array
    var: jax.Array

    def coefficients(self) -> Coefficients:
        """What it multiplies with and adds, for [B, H, W, C]."""
        factor = self.scale * jax.lax.rsqrt(self.var + EPSILON)
        return factor[None, None, None], (self.bias - self.mean * factor)[None, None, None]


class _Layer(NamedTuple):
    """Arrays of a dense layer; index is the number of its input channels."""

    norm1: _Norm
    kernel1: jax.Array
    norm2: _Norm
    kernel2: jax.Array
    index: jax.Array


def _statistics(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of each channel of images [B, H, W, C]."""
    mean = x.mean((0, 1, 2))
    # Rounding may leave less than nothing.
    return mean, jnp.maximum((x**2).mean((0, 1, 2)) - mean**2, 0.0)


def _activate(x: jax.Array, coefficients: Coefficients) -> jax.Array:
    """relu(factor · x + shift)."""
    factor, shift = coefficients
    return nn.relu(x * factor + shift)


class DenseBlock(nn.Module):
    """Dense layers, BN – ReLU – conv 1×1 (4·growth) – BN – ReLU – conv 3×3 (growth), each beside
    all before it.

    A channel has the same batch statistics in every layer that reads it: they are computed once,
    when it is there.
    """

    num_layers: int
    convolution: Convolution
    growth: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for first in range(0, self.num_layers, LOOPED):
            x = self._loop(x, range(first, min(first + LOOPED, self.num_layers)), train)
        return x

    def _loop(self, x: jax.Array, numbers: range, train: bool) -> jax.Array:
        channels = x.shape[-1]
        width = channels + self.growth * (len(numbers) - 1)  # of what the last layer reads

        def padded(array: jax.Array, axis: int = -1) -> jax.Array:
            missing = [(0, 0)] * array.ndim
            missing[axis] = (0, width - array.shape[axis])
            return jnp.pad(array, missing)

        def declare(number: int, inputs: int) -> tuple[_Layer, list[nn.Variable]]:
            norm1, running1 = _Normalization(name=f"norm{number}_1")(inputs)
            kernel1 = _Kernel(name=f"conv{number}_1")((1, 1, inputs, 4 * self.growth))
            norm2, running2 = _Normalization(name=f"norm{number}_2")(4 * self.growth)
            kernel2 = _Kernel(name=f"conv{number}_2")((3, 3, 4 * self.growth, self.growth))
            layer = _Layer(
                _Norm(*map(padded, norm1)),
                padded(kernel1[0, 0], 0),
                norm2,
                kernel2,
                jnp.int32(inputs),
            )
            return layer, [*running1, *running2]

        layers, running = zip(
            *(declare(n, channels + self.growth * i) for i, n in enumerate(numbers)), strict=True
        )
        # In evaluation mode nothing uses the statistics, and they are not computed.
        given = (x, *_statistics(x))

        def run(state: Any, layer: _Layer) -> tuple[Any, tuple[jax.Array, ...]]:
            # What the layer before has added takes its place; the first one finds its last channels
            # there already.
            read, added = state
            x, mean, var = read = tuple(
                jax.lax.dynamic_update_slice_in_dim(array, part, layer.index - self.growth, -1)
                for array, part in zip(read, added, strict=True)
            )
            norm1, norm2 = layer.norm1, layer.norm2
            if train:
                norm1 = _Norm(norm1.scale, norm1.bias, mean, var)
            h = self._activated_product(x, norm1.coefficients(), layer.kernel1)
            if train:
                norm2 = _Norm(norm2.scale, norm2.bias, *_statistics(h))
            y = self._activated_convolution(h, norm2.coefficients(), layer.kernel2)
            return (read, (y, *_statistics(y))), (norm1.mean, norm1.var, norm2.mean, norm2.var)

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        state = (tuple(map(padded, given)), tuple(array[..., -self.growth :] for array in given))
        ((x, _, _), (y, _, _)), statistics = jax.lax.scan(run, state, stacked)
        x = jnp.concatenate([x, y], -1)
        if train and not self.is_initializing():
            for number, variables in enumerate(running):
                for variable, values in zip(variables, statistics, strict=True):
                    value = values[number, : variable.value.size]
                    variable.value = MOMENTUM * variable.value + (1 - MOMENTUM) * value
        return x

    def _activated_product(
        self, x: jax.Array, coefficients: Coefficients, kernel: jax.Array
    ) -> jax.Array:
        """relu(factor · x + shift) @ kernel; what is between is not stored, and on a CPU does not
        leave the cache.
        """

        @jax.checkpoint
        def multiply(part: jax.Array) -> jax.Array:
            return _activate(part, coefficients) @ kernel

        if self.convolution is not product_convolution:
            return multiply(x)
        return map_images(multiply, x)

    def _activated_convolution(
        self, x: jax.Array, coefficients: Coefficients, kernel: jax.Array
    ) -> jax.Array:
        @jax.checkpoint
        def convolve(x: jax.Array, coefficients: Coefficients, kernel: jax.Array) -> jax.Array:
            pads, dimensions = ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
            return self.convolution(
                _activate(x, coefficients), kernel, (1, 1), pads, dimension_numbers=dimensions
            )

        return convolve(x, coefficients, kernel)


class _Normalization(nn.Module):
    """The variables of `flax.linen.BatchNorm`: their values, and the running statistics."""

    reference_law: ClassVar[str] = "normalization"

    @nn.compact
    def __call__(self, channels: int) -> tuple[_Norm, list[nn.Variable]]:
        shape = (channels,)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        return _Norm(scale, bias, mean.value, var.value), [mean, var]


class _Kernel(nn.Module):
    """The kernel of a `flax.linen.Conv` without a bias."""

    reference_law: ClassVar[str] = "convolution"

    @nn.compact
    def __call__(self, shape: tuple[int, ...]) -> Any:
        return self.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)


class DenseNet(ImageNetwork):
    """3×3 stem of 2·width, four dense blocks that grow by `width` with bottlenecks of 4·width,
    transitions that halve channels and pool by 2. The published network grows by 32.
    """

    pooling: Literal["avg", "max"] = "avg"
    width: int = 32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        conv, norm = make_layers(self.convolution, train)
        x = conv(2 * self.width, (3, 3), padding=1)(x)
        for block, num_layers in enumerate(BLOCKS, 1):
            dense = DenseBlock(num_layers, self.convolution, self.width, name=f"block{block}")
            x = dense(x, train)
            if block < len(BLOCKS):
                x = conv(x.shape[-1] // 2, (1, 1), padding=0)(nn.relu(norm()(x)))
                x = pool(x, self.pooling, 2)
        x = pool(nn.relu(norm()(x)), self.pooling, 4)
        return nn.Dense(self.num_logits)(x.reshape(len(x), -1))
