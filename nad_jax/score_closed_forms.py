"""Closed forms of the geometry of score networks, and how data are turned along it.

What the last layer alone says of G = E[F Fᵀ] (SAD, propositions; F the score):

    dense layer to all pixels      G = α I + β 11ᵀ; β = 0 where rows are independent, of mean 0
    convolution to C channels      G = A ⊗ I_C + B ⊗ 11ᵀ, A and B [H·W, H·W]; B = 0 likewise
    dense layer of tokens          G = Q (A ⊗ I) Qᵀ, A [T, T], Q from tokens to pixels: at most T
                                   distinct eigenvalues, each as often as a token has numbers

Pixels are ordered as everywhere here, (row, column, channel).
"""

import math
from typing import Any, NamedTuple

import numpy as np

from nad_jax.architectures.dit import EPSILON
from nad_jax.architectures.vit import sinusoids
from nad_jax.errors import (
    InputError,
    check_choice,
    check_image_shape,
    check_integer,
    check_number,
    host_array,
)
from nad_jax.score_geometry import check_signal
from nad_jax.spectral import check_moment


class Split(NamedTuple):
    """The nearest geometry of a family.

    parts: what it is made of: (α, β), (A, B) or (A,).
    matrix: it, [D, D].
    residual: the largest entry of what is left, in the largest entry of the geometry.
    """

    parts: tuple[Any, ...]
    matrix: np.ndarray
    residual: float


def dense_geometry(alpha: float, beta: float, dimension: int) -> np.ndarray:
    """α I + β 11ᵀ [D, D]; raises `InputError` for what are no numbers, or no dimension."""
    dimension = check_integer("dimension", dimension, 1)
    return _number("alpha", alpha) * np.eye(dimension) + _number("beta", beta)


def channel_geometry(own: Any, shared: Any, num_channels: int) -> np.ndarray:
    """A ⊗ I_C + B ⊗ 11ᵀ [D, D] of A and B [H·W, H·W]; raises `InputError` for other shapes."""
    own, shared = _square("own", own), _square("shared", shared)
    if own.shape != shared.shape:
        raise InputError(f"own, shared: must be of one shape, got {own.shape} and {shared.shape}")
    num_channels = check_integer("num_channels", num_channels, 1)
    return np.kron(own, np.eye(num_channels)) + np.kron(shared, np.ones((num_channels,) * 2))


def token_geometry(tokens: Any, input_shape: tuple[int, int, int], patch: int) -> np.ndarray:
    """Q (A ⊗ I) Qᵀ [D, D] of A [T, T], tokens row by row being patches of images (H, W, C).

    Raises:
      InputError: where patches do not cover the image, or A is of another size.
    """
    order = token_order(input_shape, patch)
    tokens = _square("tokens", tokens)
    if len(tokens) != len(order):
        raise InputError(f"tokens: must be [{len(order)}, {len(order)}], got {tokens.shape}")
    matrix = np.zeros((order.size,) * 2)
    for places in order.T:  # the pixels that one number of every token makes
        matrix[np.ix_(places, places)] = tokens
    return matrix


def token_order(input_shape: tuple[int, int, int], patch: int) -> np.ndarray:
    """Q as the pixels [T, p·p·C] of the tokens, in the order of flat images; `InputError` where
    patches do not cover the image.
    """
    height, width, channels = check_image_shape(input_shape)
    patch = check_integer("patch", patch, 1)
    if height % patch or width % patch:
        raise InputError(f"patch: must divide {height} and {width}, got {patch}")
    blocks = np.arange(height * width * channels)
    blocks = blocks.reshape(height // patch, patch, width // patch, patch, channels)
    return blocks.swapaxes(1, 2).reshape(-1, patch * patch * channels)


def split_dense(geometry: Any) -> Split:
    """The nearest α I + β 11ᵀ; raises `InputError` unless the geometry is [D, D]."""
    geometry = check_moment("geometry", geometry)
    size = len(geometry)
    if size == 1:
        return _split(geometry, (float(geometry[0, 0]), 0.0), geometry)
    beta = float((geometry.sum() - np.trace(geometry)) / (size * (size - 1)))
    alpha = float(np.trace(geometry) / size) - beta
    return _split(geometry, (alpha, beta), dense_geometry(alpha, beta, size))


def split_channels(geometry: Any, num_channels: int) -> Split:
    """The nearest A ⊗ I_C + B ⊗ 11ᵀ, B = 0 for C = 1; raises `InputError` where C does not divide D."""
    geometry = check_moment("geometry", geometry)
    num_channels = check_integer("num_channels", num_channels, 1)
    if len(geometry) % num_channels:
        raise InputError(f"num_channels: must divide D = {len(geometry)}, got {num_channels}")
    pixels = len(geometry) // num_channels
    blocks = geometry.reshape(pixels, num_channels, pixels, num_channels)
    same = np.einsum("pcqc->pq", blocks) / num_channels
    shared = np.zeros_like(same)
    if num_channels > 1:
        others = blocks.sum((1, 3)) - num_channels * same
        shared = others / (num_channels * (num_channels - 1))
    parts = same - shared, shared
    return _split(geometry, parts, channel_geometry(*parts, num_channels))


def split_tokens(geometry: Any, input_shape: tuple[int, int, int], patch: int) -> Split:
    """The nearest Q (A ⊗ I) Qᵀ; raises `InputError` where the geometry is not of such images."""
    geometry, order = check_moment("geometry", geometry), token_order(input_shape, patch)
    if order.size != len(geometry):
        raise InputError(f"geometry: must be [{order.size}, {order.size}], got {geometry.shape}")
    tokens = np.mean([geometry[np.ix_(places, places)] for places in order.T], 0)
    return _split(geometry, (tokens,), token_geometry(tokens, input_shape, patch))


def dit_geometry(
    input_shape: tuple[int, int, int] = (16, 16, 1),
    patch: int = 2,
    width: int = 48,
    signal: Any = None,
) -> np.ndarray:
    """The geometry [D, D] of the DiT of `create_score_network` at its default probe, exactly.

    Its blocks start as the identity and x = 0, so that the tokens are the layer-normalized position
    embeddings P [T, width] whatever the weights are. With the last layer uniform on ±√(6/(width +
    p²C)) it is Q (A ⊗ I) Qᵀ, A = 2/(width + p²C) · mean of 1/(1 − ᾱ_t) · P Pᵀ. Derived.

    Args:
      input_shape, patch, width: of the network; attention and MLPs do not enter.
      signal: ᾱ [T]; None: `Schedule().alpha_bar`.

    Raises:
      InputError: for bad values, and where patches do not cover the image.
    """
    height, columns, channels = check_image_shape(input_shape)
    width = check_integer("width", width, 4)
    if width % 4:
        raise InputError(f"width: must be a multiple of 4, got {width}")
    token_order(input_shape, patch)
    factor = float(np.mean(1.0 / (1.0 - check_signal(signal))))
    embedding = sinusoids(height // patch, columns // patch, width).astype(np.float64)
    embedding -= embedding.mean(1, keepdims=True)
    embedding /= np.sqrt(np.mean(embedding**2, 1, keepdims=True) + EPSILON)
    variance = 2.0 / (width + patch * patch * channels)
    return token_geometry(variance * factor * embedding @ embedding.T, input_shape, patch)


def alignment(geometry: Any, second_moment: Any, rotation: Any = None) -> float:
    """tr(G W M Wᵀ): how far data of second moment M, turned by W, lie along large eigenvalues of G.

    Source: SAD. Data of small alignment are conjectured to be easy to generate.

    Args:
      geometry: G [D, D].
      second_moment: M [D, D].
      rotation: W [D, D], orthogonal, data x become W x; None: the identity.

    Raises:
      InputError: for matrices of other shapes, that are no second moments, and no rotation.
    """
    geometry, moment = _two_moments(geometry, second_moment)
    turned = np.eye(len(geometry)) if rotation is None else rotation
    turned = host_array("rotation", turned, f"[{len(geometry)}, {len(geometry)}]")
    if not (error := np.abs(turned @ turned.T - np.eye(len(turned))).max()) <= 1e-3:
        raise InputError(f"rotation: must be orthogonal, W Wᵀ − I has an entry of {error:.2g}")
    return float(np.einsum("ij,ji->", geometry @ turned, moment @ turned.T))


def align(geometry: Any, second_moment: Any, reverse: bool = False) -> np.ndarray:
    """The orthogonal W [D, D] of the largest `alignment`, or of the smallest with `reverse`.

    With eigenvectors U of G and V of M as columns, descending, it is U Vᵀ, or U J Vᵀ, J turning the
    order around (von Neumann's trace inequality). Source: SAD.

    Raises:
      InputError: for matrices of other shapes, or that are no second moments.
    """
    geometry, moment = _two_moments(geometry, second_moment)
    reverse = check_choice("reverse", reverse, (False, True))
    ours, theirs = np.linalg.eigh(geometry)[1], np.linalg.eigh(moment)[1]  # both ascending
    return (ours[:, ::-1] if reverse else ours) @ theirs.T


def _two_moments(geometry: Any, second_moment: Any) -> tuple[np.ndarray, np.ndarray]:
    geometry = check_moment("geometry", geometry)
    return geometry, check_moment("second_moment", second_moment, len(geometry))


def _square(name: str, matrix: Any) -> np.ndarray:
    matrix = host_array(name, matrix, "[D, D]").astype(np.float64)
    if matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"{name}: must be [D, D], got shape {matrix.shape}")
    return matrix


def _number(name: str, value: Any) -> float:
    return check_number(name, value, -math.inf)


def _split(geometry: np.ndarray, parts: tuple[Any, ...], nearest: np.ndarray) -> Split:
    largest = np.abs(geometry).max()
    left = np.abs(geometry - nearest).max()
    return Split(parts, nearest, float(left / largest) if largest else 0.0)
