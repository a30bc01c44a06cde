"""Geometries that are known without sampling: ReLU networks of any width, and wide smooth ones.

Layers are dense, z_l = W_l φ(z_{l−1}) + b_l, with independent weights of mean 0; f = wᵀφ(z_L) + b.
D is the dimension of the input x and n_l the width of the L hidden layers. Of convolutions without
pooling, and of fixed masks, `path_counts` has them.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from nad_jax.activations import ACTIVATIONS, check_activation
from nad_jax.errors import InputError, check_choice, check_integer, check_number, plain, shown
from nad_jax.initializers import INITIALIZATIONS, check_initialization, weight_variance
from nad_jax.nads import DERIVATIVES


def _check_widths(widths: Any) -> tuple[int, ...]:
    values = plain(widths)
    if not isinstance(values, list | tuple) or not values:
        raise InputError(f"widths: must be the widths of the hidden layers, got {shown(widths)}")
    return tuple(check_integer("widths", width, 1) for width in values)


def _check_biases(biases: Any, sigma_b: float, allowed: bool, what: str) -> None:
    if (check_choice("biases", biases, (False, True)) or sigma_b) and not allowed:
        refused = "biases: must be False" if biases else "initialization: σ_b must be 0"
        raise InputError(f"{refused} for {what}, whose formula holds without biases")


def _check_initialization(value: Any) -> tuple[str, float]:
    """An initialization, "gaussian" or one that models have, and its σ_b."""
    name = check_initialization(value, ("gaussian", *INITIALIZATIONS))
    return name, float(name.split(":")[2]) if ":" in name else 0.0


def _weight_variances(
    sizes: Sequence[int], initialization: str, sigma_w: float | None, given: Sequence[float] | None
) -> list[float]:
    """[L + 1] the variance of a weight of each layer between these sizes, the read-out last."""
    if sigma_w is not None and initialization != "gaussian":
        raise InputError(f"sigma_w: must be left out with initialization={initialization!r}")
    if given is not None:
        values = plain(given)
        if not isinstance(values, list | tuple) or len(values) != len(sizes) - 1:
            raise InputError(
                f"weight_variances: must be {len(sizes) - 1} numbers, of every layer and of the "
                f"read-out, got {shown(given)}"
            )
        if sigma_w is not None:
            raise InputError("sigma_w: must be left out where weight_variances are given")
        return [check_number("weight_variances", value, 0.0, True) for value in values]
    if initialization != "gaussian":
        return [weight_variance(initialization, *pair) for pair in itertools.pairwise(sizes)]
    square = check_number("sigma_w", 1.0 if sigma_w is None else sigma_w, 0.0, True) ** 2
    return [square / fan_in for fan_in in sizes[:-1]]


def relu_eigenvalue(
    input_dimension: int,
    widths: Sequence[int],
    *,
    initialization: str = "gaussian",
    sigma_w: float | None = None,
    weight_variances: Sequence[float] | None = None,
    slope: float = 0.0,
    biases: bool = False,
    derivative: str = "input_gradient",
) -> float:
    """The eigenvalue λ of E[g gᵀ] = λI of a (leaky) ReLU network.

    λ = τ² Π_l n_l s_l² (1 + slope²)/2, s_l² the variance of the weights of layer l and τ² that of
    the read-out; with weights of variance σ_w²/fan-in (σ_w²/D) (σ_w² (1 + slope²)/2)^L, whatever
    the widths are. It is exact at any width, at any x and for either read-out, where layers are
    independent, the weights of a unit uncorrelated of mean 0, and with its bias as likely with the
    other sign, whatever the other units are: half of the time its gate is open. No bias enters.

    Of central differences of steps that are large against x it is λ (1 − c_L)/2 instead, c_0 = −1,
    c_{l+1} = (√(1 − c²) + (π − arccos c) c)/π: ½, .3408, .2531 of λ for L = 1, 2, 3. It is exact
    with one hidden layer, and the limit of wide ones with more.

    Source: derived; the sign of a unit as in GIH (Movahedi, Orvieto, Moosavi-Dezfooli 2025), c_l the
    arc-cosine kernel (Cho, Saul 2009).

    Args:
      input_dimension: D.
      widths: n_1 … n_L.
      initialization: "gaussian", N(0, σ_w²/fan-in), or one of models by its name: "reference",
        "he", "lecun", "orthogonal", "sigma:W:B", "flax" (Flax's default), see `initializers`.
      sigma_w: σ_w of the former; 1 by default.
      weight_variances: instead, s_1² … s_L² and τ² [L + 1].
      slope: of the activation below 0; 0 is ReLU.
      biases: whether there are any.
      derivative: "input_gradient" or "central_difference".

    Raises:
      InputError: for a value out of range, and for central differences with biases or a slope.
    """
    dimension, widths = check_integer("input_dimension", input_dimension, 1), _check_widths(widths)
    initialization, sigma_b = _check_initialization(initialization)
    how = initialization, sigma_w, weight_variances
    *hidden, value = _weight_variances((dimension, *widths, 1), *how)
    slope = check_number("slope", slope, 0.0)
    check_choice("derivative", derivative, DERIVATIVES)
    large_step = derivative == "central_difference"
    _check_biases(biases, sigma_b, not large_step, "central differences")
    if large_step and slope:
        raise InputError(f"slope: must be 0 for central differences, got {slope}")
    for width, variance in zip(widths, hidden, strict=True):
        value *= width * variance * (1 + slope**2) / 2
    if not large_step:
        return value
    cosine = -1.0
    for _ in widths:
        cosine = arc_cosine(cosine)
    return value * (1 - cosine) / 2


def arc_cosine(cosine: float) -> float:
    """The cosine between what a wide ReLU layer makes of two inputs of this cosine."""
    sine = math.sqrt(max(1 - cosine**2, 0.0))
    return (sine + (math.pi - math.acos(cosine)) * cosine) / math.pi


def relu_kurtosis(
    widths: Sequence[int],
    readout: str = "marginalized",
    *,
    initialization: str = "gaussian",
    slope: float = 0.0,
    biases: bool = False,
) -> float:
    """The kurtosis κ of what one (leaky) ReLU network says of vᵀE[g gᵀ]v, for any v.

    With a sampled Gaussian read-out κ = E[(vᵀg)⁴]/E[(vᵀg)²]² = 3 Π_l (1 + 5/n_l); with the read-out
    marginalized, which leaves e = E[(vᵀg)² | φ], κ = E[e²]/E[e]² = Π_l (1 + 5/n_l). The estimate
    vᵀĜv of N networks has the relative standard error √((κ − 1)/N), see `networks_needed`. For a
    slope a, 5 becomes 6 (1 + a⁴)/(1 + a²)² − 1. Exact at any width and any x other than 0, for
    Gaussian weights without biases.

    Source: derived. The energy of v behind a layer is a sum of n_l terms gate² z², z Gaussian.

    Args:
      widths: n_1 … n_L of the hidden layers.
      readout: "marginalized" or "sampled", one of a network.
      initialization: "gaussian", or that of models, "he", "lecun" or "sigma:W:0": the variance
        does not enter.
      slope: of the activation below 0; 0 is ReLU.
      biases: must be False.

    Raises:
      InputError: for biases, another initialization or read-out, and values out of range.
    """
    check_choice("readout", readout, ("sampled", "marginalized"))
    initialization, sigma_b = _check_initialization(initialization)
    if initialization in ("reference", "flax", "orthogonal"):
        allowed = "independent Gaussian weights: 'gaussian', 'he', 'lecun', 'sigma:W:0'"
        raise InputError(f"initialization: the kurtosis needs {allowed}, got {initialization!r}")
    _check_biases(biases, sigma_b, False, "the kurtosis")
    slope = check_number("slope", slope, 0.0)
    excess = 6 * (1 + slope**4) / (1 + slope**2) ** 2 - 1
    layers = math.prod(1 + excess / width for width in _check_widths(widths))
    return (3.0 if readout == "sampled" else 1.0) * layers


def networks_needed(relative_error: float, kappa: float) -> int:
    """How many networks bring the standard error of vᵀĜv below a share of vᵀE[g gᵀ]v.

    N = (κ − 1)/ε², rounded up, at least 1: the variance of a mean of N independent networks.

    Args:
      relative_error: ε, above 0.
      kappa: κ of one network, at least 1, see `relu_kurtosis`.

    Raises:
      InputError: for values out of range.
    """
    error = check_number("relative_error", relative_error, 0.0, exclusive=True)
    kappa = check_number("kappa", kappa, 1.0)
    # Beyond rounding: 2.0000000001 networks are 2.
    return max(1, math.ceil((kappa - 1) / error**2 * (1 - 1e-12)))


_SCALE_INVARIANT = {"linear": 1.0, "relu": 2.0}  # σ_w²
_AT_ZERO = {"tanh": 1.0, "sine": 1.0, "elu": 1.0, "erf": math.pi / 4}  # σ_w² = 1/φ′(0)²
_HALF_STABLE = ("gelu", "silu")


@functools.cache
def _rule() -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of means over standard normal numbers.

    Gauss–Legendre between −16, −8, −4 … 4, 8, 16: kinks at 0 and whatever happens close to it, at
    large variances, fall on edges that get as close.
    """
    nodes, weights = np.polynomial.legendre.leggauss(40)
    edges = np.append(0.0, 16.0 * 2.0 ** -np.arange(40)[::-1])
    lower, half = edges[:-1, None], np.diff(edges)[:, None] / 2
    places, masses = (lower + half * (nodes + 1)).reshape(-1), (half * weights).reshape(-1)
    masses = masses * np.exp(-(places**2) / 2) / math.sqrt(2 * math.pi)
    return np.concatenate([-places, places]), np.concatenate([masses, masses])


class _Means(NamedTuple):
    """Means over u ~ N(0, K)."""

    squares: float  # φ²
    slopes: float  # φ′²
    mixed: float  # u φ φ′ / K
    curved: float  # u² φ′² / K


def _means(activation: str, variance: float) -> _Means:
    nodes, weights = _rule()
    value, slope = ACTIVATIONS[activation](math.sqrt(variance) * nodes)
    mixed = weights @ (nodes * value * slope) / math.sqrt(variance)
    curved = weights @ (nodes * slope) ** 2
    return _Means(*map(float, (weights @ value**2, weights @ slope**2, mixed, curved)))


class Susceptibilities(NamedTuple):
    """What a layer multiplies differences of its inputs by, in the mean square, at infinite width.

    parallel: χ_∥, of differences in the length. perpendicular: χ_⊥, of those across it.
    """

    parallel: float
    perpendicular: float


def susceptibilities(activation: str, sigma_w: float, variance: float) -> Susceptibilities:
    """χ_∥ = σ_w² d⟨φ²⟩/dK and χ_⊥ = σ_w² ⟨φ′²⟩ of a wide dense layer, ⟨·⟩ over u ~ N(0, K).

    Above 1 differences grow from layer to layer, below 1 they vanish. Assumes infinite width and
    independent weights of variance σ_w²/fan-in; biases do not enter. By quadrature, to 12 digits.

    Source: Roberts, Yaida, Hanin, Principles of Deep Learning Theory, chapter 5.

    Args:
      activation: of the built-in models: "relu", "gelu" (exact, not Flax's approximation by tanh),
        "silu" (also "swish"), "tanh", "elu", "sigmoid", "sine" (also "sin"), "linear"; and "erf"
        and "softplus".
      sigma_w: σ_w, above 0.
      variance: K of the preactivations, above 0; of the next layer it is σ_b² + σ_w² ⟨φ²⟩.

    Raises:
      InputError: for another activation, and values out of range.
    """
    activation = check_activation(activation)
    square = check_number("sigma_w", sigma_w, 0.0, exclusive=True) ** 2
    means = _means(activation, check_number("variance", variance, 0.0, exclusive=True))
    return Susceptibilities(square * means.mixed, square * means.slopes)


class CriticalPoint(NamedTuple):
    """Where a wide network neither loses nor amplifies its input: χ_∥ = χ_⊥ = 1 at a fixed K.

    sigma_w, sigma_b: standard deviations, of weights times √fan-in and of biases.
    variance: K of the preactivations; 0 where they approach it, as 1/depth (ELU: 1/depth²), nan
      where every K is fixed.
    """

    sigma_w: float
    sigma_b: float
    variance: float


def critical_point(activation: str) -> CriticalPoint:
    """The critical initialization of wide dense networks of an activation.

    Scale-invariant activations (linear, ReLU) have σ_w² = 1/⟨φ²⟩ at K = 1, and tanh, sine, erf and
    ELU σ_w² = 1/φ′(0)² with K = 0, both without biases. GELU and SiLU have a K at which
    d⟨φ²⟩/dK = ⟨φ′²⟩, σ_w² = 1/⟨φ′²⟩ and σ_b² = K − σ_w² ⟨φ²⟩; larger variances shrink to
    it. Assumes infinite width. By bisection, to 10 digits.

    Source: Roberts, Yaida, Hanin, Principles of Deep Learning Theory, chapter 5; ELU derived.

    Args:
      activation: as of `susceptibilities`.

    Raises:
      InputError: for another activation, and for softplus and sigmoid, which have no critical point.
    """
    activation = check_activation(activation)
    if activation in _SCALE_INVARIANT:
        return CriticalPoint(math.sqrt(_SCALE_INVARIANT[activation]), 0.0, math.nan)
    if activation in _AT_ZERO:
        return CriticalPoint(math.sqrt(_AT_ZERO[activation]), 0.0, 0.0)
    if activation not in _HALF_STABLE:
        listed = ", ".join(map(repr, (*_SCALE_INVARIANT, *_AT_ZERO, *_HALF_STABLE)))
        raise InputError(f"activation: {activation!r} has no critical point; these have: {listed}")
    low, high = 1.0, 100.0  # χ_∥ > χ_⊥ below K, and less above
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        means = _means(activation, middle)
        low, high = (middle, high) if means.mixed > means.slopes else (low, middle)
    means, variance = _means(activation, (low + high) / 2), (low + high) / 2
    square = 1 / means.slopes
    bias = math.sqrt(variance - square * means.squares)
    return CriticalPoint(math.sqrt(square), bias, variance)


class WideEigenvalues(NamedTuple):
    """The two eigenvalues of E[g gᵀ] at x: along x, and across it, D − 1 times."""

    along: float
    across: float


def wide_eigenvalues(
    activation: str,
    input_dimension: int,
    depth: int,
    radius: float,
    *,
    sigma_w: float = 1.0,
    sigma_b: float = 0.0,
) -> WideEigenvalues:
    """The eigenvalues of E[g gᵀ] of a wide dense network at an input of length ‖x‖ = r.

    Across x, (σ_w²/D) Π_l χ_⊥(K_l). Along x, the variance of ∂_r z is carried from layer to layer
    together with K = ⟨z²⟩ and ⟨z ∂_r z⟩, which are Gaussian: K → σ_b² + σ_w² ⟨φ²⟩,
    ⟨z z′⟩ → σ_w² ⟨φ φ′ z′⟩, ⟨z′²⟩ → σ_w² ⟨φ′² z′²⟩. Assumes infinite width, at any D;
    Gaussian weights N(0, σ_w²/fan-in), the read-out's as well, and biases N(0, σ_b²). Of
    width n it errs by O(1/n).

    Source: derived, from the recursions of Roberts, Yaida, Hanin, Principles of Deep Learning
    Theory.

    Args:
      activation: as of `susceptibilities`.
      input_dimension: D.
      depth: L, the number of hidden layers.
      radius: r, above 0.
      sigma_w, sigma_b: σ_w, above 0, and σ_b.

    Raises:
      InputError: for another activation, and values out of range.
    """
    activation = check_activation(activation)
    dimension = check_integer("input_dimension", input_dimension, 1)
    depth = check_integer("depth", depth, 1)
    radius = check_number("radius", radius, 0.0, exclusive=True)
    square = check_number("sigma_w", sigma_w, 0.0, exclusive=True) ** 2
    bias = check_number("sigma_b", sigma_b, 0.0) ** 2
    across = along = square / dimension
    variance, mixed = bias + along * radius**2, along * radius
    for _ in range(depth):
        means = _means(activation, variance)
        # z′ is (⟨z z′⟩/K) z and a rest that is independent of z.
        share = mixed**2 / variance
        along = square * (share * means.curved + (along - share) * means.slopes)
        across *= square * means.slopes
        variance, mixed = bias + square * means.squares, square * mixed * means.mixed
    return WideEigenvalues(along, across)
