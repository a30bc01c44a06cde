"""Activations φ and their derivatives φ′ in double precision, as closed forms need them."""

import math
from typing import Any

import numpy as np

from nad_jax.errors import check_choice


def _erf(u: np.ndarray) -> np.ndarray:
    return np.array([math.erf(one) for one in u])


def _normal(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distribution function of a standard normal number, and its density."""
    return (1 + _erf(u / math.sqrt(2))) / 2, np.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)


def _gelu(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    below, density = _normal(u)
    return u * below, below + u * density


def _logistic(u: np.ndarray) -> np.ndarray:
    return (1 + np.tanh(u / 2)) / 2


def _silu(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gate = _logistic(u)
    return u * gate, gate + u * gate * (1 - gate)


def _elu(u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    below = np.minimum(u, 0)
    return np.where(u > 0, u, np.expm1(below)), np.exp(below)


# φ and φ′ by their names: those of `architectures.network.ACTIVATIONS`, and two more of theory.
ACTIVATIONS = {
    "linear": lambda u: (u, np.ones_like(u)),
    "relu": lambda u: (np.maximum(u, 0), (u > 0).astype(float)),
    "tanh": lambda u: (np.tanh(u), 1 - np.tanh(u) ** 2),
    "sine": lambda u: (np.sin(u), np.cos(u)),
    "elu": _elu,
    "gelu": _gelu,
    "silu": _silu,
    "erf": lambda u: (_erf(u), 2 / math.sqrt(math.pi) * np.exp(-(u**2))),
    "softplus": lambda u: (np.logaddexp(0, u), _logistic(u)),
    "sigmoid": lambda u: (_logistic(u), _logistic(u) * (1 - _logistic(u))),
}
_OTHER_NAMES = {"sin": "sine", "swish": "silu"}


def check_activation(value: Any) -> str:
    """The name of an activation as models have it; raises `InputError` for another one."""
    known = _OTHER_NAMES.get(value, value) if isinstance(value, str) else value
    return check_choice("activation", known, ACTIVATIONS)
