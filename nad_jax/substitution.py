"""The convolution that is fast on a CPU, put into modules of one's own.

Plain convolutions of Flax (`nn.Conv`, `nnx.Conv`) call `jax.lax.conv_general_dilated`, which
trains far slower there (`docs/models.md` has the number). The adapters run them with
`substitute_convolution` instead. Parameters and results are the same up to rounding.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from nad_jax.convolution import product_convolution

# Of `jax.lax.conv_general_dilated`, and what they are for a plain convolution.
_PLAIN = {
    "feature_group_count": 1,
    "batch_group_count": 1,
    "preferred_element_type": None,
    "out_sharding": None,
}


def _is_plain(x: jax.Array, kernel: jax.Array, options: dict[str, Any]) -> bool:
    """Whether the product form computes a channels-last convolution of signals or images with these
    options.
    """
    dilations = (options.get(f"{side}_dilation") or () for side in ("lhs", "rhs"))
    return (
        x.ndim in (3, 4)
        and x.dtype == kernel.dtype
        and jnp.issubdtype(x.dtype, jnp.floating)
        and all(factor == 1 for dilation in dilations for factor in dilation)
        and all(options.get(name, value) == value for name, value in _PLAIN.items())
    )


def substitute_convolution(
    x: jax.Array, kernel: jax.Array, window_strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """`product_convolution` where that applies, otherwise `jax.lax.conv_general_dilated`.

    Args:
      x, kernel: channels last, as Flax calls it: [B, *space, C] and [*window, C, O].
      window_strides, padding, options: of `jax.lax.conv_general_dilated`.
    """
    if _is_plain(x, kernel, options):
        return product_convolution(x, kernel, window_strides, padding)
    return jax.lax.conv_general_dilated(x, kernel, window_strides, padding, **options)


@contextlib.contextmanager
def substituted(convolution: str) -> Iterator[None]:
    """While it lasts, plain `nn.Conv` of Linen run by `convolution`, "product" or "lax"."""

    def substitute(next_function: Callable, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        plain = isinstance(module, nn.Conv) and context.method_name == "__call__"
        if not plain or module.conv_general_dilated or module.conv_general_dilated_cls:
            return next_function(*args, **kwargs)
        # The fields of a bound module are frozen; a copy would have no scope.
        object.__setattr__(module, "conv_general_dilated", substitute_convolution)
        try:
            return next_function(*args, **kwargs)
        finally:
            object.__setattr__(module, "conv_general_dilated", None)

    if convolution == "lax":
        yield
    else:
        with nn.intercept_methods(substitute):
            yield


def substitute_nnx(module: nnx.Module, convolution: str) -> None:
    """Makes plain `nnx.Conv` in an NNX module run by `convolution`, "product" or "lax"."""
    if convolution == "lax":
        return
    for _, node in nnx.iter_graph(module):
        if isinstance(node, nnx.Conv) and node.conv_general_dilated is jax.lax.conv_general_dilated:
            node.conv_general_dilated = substitute_convolution


def _is_channels_last(numbers: jax.lax.ConvDimensionNumbers) -> bool:
    axes = range(len(numbers.lhs_spec))
    *space, channels = axes[1:]
    x, kernel = (0, channels, *space), (channels, channels - 1, *(axis - 1 for axis in space))
    return tuple(numbers) == (x, kernel, x)


def _slow_kernels(jaxpr: core.Jaxpr) -> Iterator[tuple[int, ...]]:
    """The kernels [*window, C, O] of the convolutions of a program that the product form would
    compute.
    """
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            x, kernel = (operand.aval for operand in equation.invars)
            last = _is_channels_last(parameters["dimension_numbers"])
            if last and _is_plain(x, kernel, parameters):
                yield kernel.shape
        elif name != "custom_jvp_call":  # where the product form itself calls `lax`
            for inner in core.jaxprs_in_params(parameters):
                yield from _slow_kernels(inner)


def warn_of_slow_convolutions(
    apply: Callable[[Any, jax.Array], jax.Array], variables: Any, image_shape: tuple[int, ...]
) -> None:
    """Warns where a network calls `jax.lax.conv_general_dilated` itself, with what to call instead.

    Args:
      apply: the network in evaluation mode. variables: their shapes.
    """
    x = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    kernels = list(_slow_kernels(jax.make_jaxpr(apply)(variables, x).jaxpr))
    if kernels:
        warnings.warn(
            f"model: convolutions ({len(kernels)}, the first of a kernel {kernels[0]}) are those of "
            "jax.lax, which train far slower on a CPU; call "
            "nad_jax.product_convolution(x, kernel, window_strides, padding) in their place, or "
            "give it to the layer, as in nn.Conv(..., "
            "conv_general_dilated=nad_jax.product_convolution)",
            stacklevel=3,
        )
