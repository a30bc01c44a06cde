"""Wide dense networks: their kernels, and how training sets their geometry in motion, in closed form.

Everything is at infinite width but for the scale of the tangent kernel, which grows with the width:
weights N(0, σ_w²/fan-in), biases N(0, σ_b²), all of them trained at one rate.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from nad_jax.activations import ACTIVATIONS, check_activation
from nad_jax.errors import InputError, check_choice, check_integer, check_number, host_array

SMOOTH = ("linear", "tanh", "sine", "erf", "gelu", "silu", "softplus", "sigmoid")
_PAIRS = 256  # that are integrated at a time
_STEP = 1e-4  # of the products that kernels are derived in, as a share of lengths


class WideKernels(NamedTuple):
    """Of the output f of a wide network: K(x, x') = E[f(x) f(x')], [N, M], and the tangent kernel
    Θ(x, x') = ⟨∂f/∂θ(x), ∂f/∂θ(x')⟩, [N, M].
    """

    covariance: np.ndarray
    tangent: np.ndarray


class _Network(NamedTuple):
    """A wide network: φ and φ′, widths n_1 … n_L, σ_w², σ_b², and whether there are biases."""

    activation: str
    widths: tuple[int, ...]
    weight: float
    bias: float
    biases: bool


def wide_kernels(
    activation: str,
    widths: tuple[int, ...],
    x: Any,
    other: Any = None,
    *,
    sigma_w: float = 1.0,
    sigma_b: float = 0.0,
    biases: bool = False,
) -> WideKernels:
    """The kernels of a wide dense network f of one output.

    From layer to layer K → σ_b² + σ_w² ⟨φ φ⟩ and Θ → n_l ⟨φ φ⟩ + 1 + σ_w² ⟨φ′ φ′⟩ Θ, the 1 with
    biases, ⟨·⟩ over the pair of preactivations, which is Gaussian. By Gauss–Hermite quadrature.

    Source: derived, from the recursions of Roberts, Yaida, Hanin, Principles of Deep Learning
    Theory.

    Args:
      activation: a smooth one, of `SMOOTH`.
      widths: n_1 … n_L of the hidden layers, which scale Θ.
      x: [N, D]. other: x' [M, D]; None: x.
      sigma_w, sigma_b: σ_w, above 0, and σ_b.
      biases: whether there are any.

    Raises:
      InputError: for another activation, inputs of other shapes and values out of range.
    """
    network = _check(activation, widths, sigma_w, sigma_b, biases)
    x = host_array("x", x, "[N, D]").astype(np.float64)
    other = x if other is None else host_array("other", other, f"[M, {x.shape[1]}]")
    lengths, products, others = _products(x, other.astype(np.float64))
    return WideKernels(*_propagate(network, x.shape[1], lengths, products, others))


def _check(activation: str, widths: Any, sigma_w: float, sigma_b: float, biases: bool) -> _Network:
    activation = check_activation(activation)
    if activation not in SMOOTH:
        raise InputError(f"activation: must be smooth, one of {', '.join(SMOOTH)}: {activation!r}")
    if not isinstance(widths, tuple | list) or not widths:
        raise InputError(f"widths: must be the widths of the hidden layers, got {widths!r}")
    widths = tuple(check_integer("widths", width, 1) for width in widths)
    weight = check_number("sigma_w", sigma_w, 0.0, exclusive=True) ** 2
    bias = check_number("sigma_b", sigma_b, 0.0) ** 2
    biases = check_choice("biases", biases, (False, True))
    if bias and not biases:
        raise InputError("sigma_b: must be 0 without biases")
    return _Network(activation, widths, weight, bias, biases)


def _products(x: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, ...]:
    """x·x, x·x' and x'·x' of all pairs, [N, M] each."""
    products = x @ other.T
    lengths = np.broadcast_to(np.sum(x**2, 1)[:, None], products.shape)
    return lengths, products, np.broadcast_to(np.sum(other**2, 1), products.shape)


def _propagate(
    network: _Network,
    dimension: int,
    lengths: np.ndarray,
    products: np.ndarray,
    others: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """K and Θ of pairs of inputs, given x·x, x·x' and x'·x'."""
    tangent = products + float(network.biases)
    first, both, second = (
        network.bias + network.weight * one / dimension for one in (lengths, products, others)
    )
    for width in network.widths:
        mean, slopes = _pair_means(network.activation, first, both, second)
        tangent = width * mean + network.biases + network.weight * slopes * tangent
        squares = [_pair_means(network.activation, one, one, one)[0] for one in (first, second)]
        first, second = (network.bias + network.weight * one for one in squares)
        both = network.bias + network.weight * mean
    return both, tangent


def _pair_means(
    activation: str, first: np.ndarray, both: np.ndarray, second: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """⟨φ(u) φ(u')⟩ and ⟨φ′(u) φ′(u')⟩ of Gaussian pairs with these variances and covariance."""
    pairs = np.stack([first, both, second]).reshape(3, -1)
    blocks = np.split(pairs, range(_PAIRS, pairs.shape[1], _PAIRS), axis=1)
    found = np.concatenate([_integrate(activation, *block) for block in blocks], 1)
    return tuple(found.reshape(2, *first.shape))


def _integrate(
    activation: str, first: np.ndarray, both: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Both means of so many pairs, [2, B]."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    weights = weights / math.sqrt(2 * math.pi)
    safe = np.where(first > 0, first, 1.0)  # of an input of 0, u is 0 and both is 0
    scale = np.sqrt(safe)
    rest = np.sqrt(np.maximum(second - both**2 / safe, 0))
    # u = scale·a and u' = (both/scale)·a + rest·b, a and b independent.
    u = np.outer(np.sqrt(first), nodes)
    v = np.outer(both / scale, nodes)[..., None] + rest[:, None, None] * nodes
    evaluate = ACTIVATIONS[activation]
    of_u = [part.reshape(u.shape) for part in evaluate(u.reshape(-1))]
    of_v = [part.reshape(v.shape) for part in evaluate(v.reshape(-1))]
    return np.stack(
        [(one * (other @ weights)) @ weights for one, other in zip(of_u, of_v, strict=True)]
    )


def wide_geometry_velocity(
    activation: str,
    widths: tuple[int, ...],
    x: Any,
    points: Any = None,
    *,
    sigma_w: float = 1.0,
    sigma_b: float = 0.0,
    biases: bool = False,
) -> np.ndarray:
    """dG/dt of a wide dense network at its initialization, under gradient flow on the squared loss
    ½ Σ_i (f(x_i) − y_i)²: [D, D], G = E[∇f ∇fᵀ], averaged over points.

    At a point z it is −Σ_i (∂Θ(z, x_i) ∂K(z, x_i)ᵀ + its transpose), ∂ the gradient in z. Targets
    drop out because E f = 0. Of width n it errs by O(1/n).

    Source: derived; for a model linear in its weights it is −(2/s²) G S G, as GIH states.

    Args:
      x: [N, D], the inputs that are trained on.
      points: [P, D], where the geometry is measured, not 0; None: at x.
      activation, widths, sigma_w, sigma_b, biases: as of `wide_kernels`.

    Raises:
      InputError: as `wide_kernels`.
    """
    network = _check(activation, widths, sigma_w, sigma_b, biases)
    x = host_array("x", x, "[N, D]").astype(np.float64)
    points = x if points is None else host_array("points", points, f"[P, {x.shape[1]}]")
    points = points.astype(np.float64)
    lengths, products, others = _products(points, x)
    if not (lengths > 0).all():
        raise InputError("points: must not be 0")

    def derive(along_length: float, along_product: float) -> np.ndarray:
        """Derivatives of (K, Θ) in x·x or x·x', [2, P, N]. Differences of second order point inwards:
        a longer x, a smaller product, of which there always are inputs.
        """
        step = _STEP * (along_length * lengths + along_product * np.sqrt(lengths * others))
        step = np.where(step > 0, step, _STEP) * (
            1 if along_length else np.where(products > 0, -1, 1)
        )
        at = [
            np.stack(
                _propagate(
                    network,
                    points.shape[1],
                    lengths + count * along_length * step,
                    products + count * along_product * step,
                    others,
                )
            )
            for count in (0, 1, 2)
        ]
        return (4 * at[1] - 3 * at[0] - at[2]) / (2 * step)

    in_length, in_product = derive(1.0, 0.0), derive(0.0, 1.0)
    # ∂(z·z) = 2z and ∂(z·x) = x.
    gradients = 2 * in_length[..., None] * points[:, None] + in_product[..., None] * x
    covariance, tangent = gradients
    half = np.einsum("pni,pnj->ij", tangent, covariance) / len(points)
    return -(half + half.T)
