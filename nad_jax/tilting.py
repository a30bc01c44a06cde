"""How far a linear classifier is tilted against the difference of its class means.

The classifier sign(⟨x, c⟩ − c₀), c of unit norm, lies at the mean distance
d = ½‖a − b‖ cos δ from samples of two classes of means a and b, δ the angle between c and a − b.
Source: Tanay and Griffin, A Boundary Tilting Perspective on the Phenomenon of Adversarial Examples.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr

from nad_jax.errors import InputError, host_array


def _unit(name: str, rows: Any, axes: str) -> np.ndarray:
    """Rows [..., D] of norm 1 in float64; raises `InputError` for zero."""
    rows = host_array(name, rows, axes)
    largest = np.abs(rows).max(-1, keepdims=True)
    if not largest.all():
        raise InputError(f"{name}: must not be zero")
    rows = rows / largest
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def deviation_angle(normal: Any, difference: Any) -> np.ndarray:
    """The deviation angle δ [...], in radians in [0, π], between the normal c of a linear classifier
    and the difference a − b of the means of its classes.

    normal [..., D], difference [D] or [..., D]: of any length but zero. 0: the boundary is that of
    the nearest mean; beyond π/2 the classifier errs on the means. On D(v) the difference is 2εv, and
    cos δ of a linear classifier the `gradient_cosine` of its training, up to the sign.

    Raises:
      InputError: for zero, and for vectors that do not fit together.
    """
    normal = _unit("normal", normal, "[..., D]")
    difference = _unit("difference", difference, f"[..., {normal.shape[-1]}]")
    if difference.ndim > 1 and difference.shape != normal.shape:
        raise InputError(
            f"difference: shape {difference.shape} does not fit {normal.shape} of normal"
        )
    # Without the cancellation of arccos near 0 and π.
    apart, together = normal - difference, normal + difference
    return 2 * np.arctan2(np.linalg.norm(apart, axis=-1), np.linalg.norm(together, axis=-1))


def adversarial_strength(normal: Any, difference: Any) -> np.ndarray:
    """The adversarial strength ½‖a − b‖ / d = 1/cos δ [...]: how many times closer than to the
    boundary between the nearest means samples are to that of the classifier, on average.

    1 at least, negative where the classifier errs on the means; arguments and errors are those of
    `deviation_angle`.
    """
    return 1 / np.cos(deviation_angle(normal, difference))


def tilted_accuracy(angle: Any, epsilon: Any = 1.0, sigma: Any = 1.0, radius: Any = 0.0) -> Any:
    """The accuracy on D(v) of a linear classifier at a deviation angle δ, under attacks that move
    samples by at most `radius`: Φ((ε cos δ − r)/(σ sin δ)); without one, Φ(ε cot δ/σ).

    Derived: the noise has standard deviation σ sin δ along the normal w, of norm 1, and the best
    attack is −r y w. Attacks of L∞ radius r are those of L2 radius r‖w‖₁.

    Args:
      angle: δ [...], in radians in [0, π].
      epsilon, sigma: of D(v); radius: r; numbers of at least 0 or arrays that fit the angles.

    Returns: [...] in [0, 1]; at δ = 0 without noise along w, 1, or 0 for r > ε, ½ for r = ε.

    Raises:
      InputError: for angles out of range, for ε, σ or r below 0, and for shapes that do not fit.
    """
    angle, epsilon, sigma, radius = (
        host_array(name, value)
        for name, value in zip(
            ("angle", "epsilon", "sigma", "radius"), (angle, epsilon, sigma, radius), strict=True
        )
    )
    try:
        np.broadcast_shapes(angle.shape, epsilon.shape, sigma.shape, radius.shape)
    except ValueError:
        shapes = ", ".join(map(str, (epsilon.shape, sigma.shape, radius.shape)))
        raise InputError(
            f"angle: shape {angle.shape} does not fit those of epsilon, sigma and radius, {shapes}"
        ) from None
    if ((angle < 0) | (angle > np.pi)).any():
        raise InputError(f"angle: must be in radians in [0, π], got {angle}")
    for name, value in (("epsilon", epsilon), ("sigma", sigma), ("radius", radius)):
        if (value < 0).any():
            raise InputError(f"{name}: must be at least 0, got {value.min()}")
    margin, width = epsilon * np.cos(angle) - radius, sigma * np.sin(angle)
    with np.errstate(divide="ignore", invalid="ignore"):
        score = np.where(margin == 0, 0.0, margin / width)
    return np.asarray(ndtr(jnp.asarray(score)))
