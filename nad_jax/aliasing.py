"""What pooling with a stride leaves of D(v): frequencies that it folds onto each other are noise to
one another.
"""

import math
from typing import Any

import numpy as np

from nad_jax.errors import InputError, check_integer, check_number, host_array


def aliasing_bound(
    kernel: Any,
    stride: int,
    length: int,
    frequency: int,
    epsilon: float = 1.0,
    sigma: float = 3.0,
) -> float:
    """The best accuracy on D(v) behind linear pooling, v the real Fourier vectors of a frequency.

    A circular signal of D entries is filtered by m, and every S-th entry is kept. The frequencies
    ℓ + kD/S become one, so that no classifier of what is left is right more often than

        Φ((ε/σ) √γ),  γ = |m̂_ℓ|² / Σ_{k=1…S−1} |m̂_{ℓ+kD/S}|²,

    and a linear one is as often. It is the same for every phase of v, and for the reversed kernel. 1
    where the filter removes all of the others, ½ where it removes ℓ. Exact, for linear pooling in
    front of whatever follows; max-pooling is not linear, and zeros at borders are not circular.

    A frequency that is folded onto its own negative, 2ℓ a multiple of D/S, has an accuracy that
    depends on the phase, and is refused; but for 0 and D/2, which have one phase alone.

    Source: derived, from D(v) of NAD, Section 2: the noise has σ² along every direction but v.

    Args:
      kernel: m, at most D entries; np.full(S, 1/S) is average pooling.
      stride: S, which divides D.
      length: D.
      frequency: ℓ, in cycles per signal; of either sign.
      epsilon, sigma: half the distance of the classes, and the standard deviation of the noise.

    Raises:
      InputError: for values out of range, and for frequencies that are their own alias.
    """
    kernel = host_array("kernel", kernel, "[M]").astype(np.float64)
    stride, length = check_integer("stride", stride, 1), check_integer("length", length, 1)
    if length % stride:
        raise InputError(f"stride: must divide length = {length}, got {stride}")
    if not 1 <= len(kernel) <= length:
        raise InputError(f"kernel: must have 1 … length = {length} entries, got {len(kernel)}")
    frequency = check_integer("frequency", frequency, -(length // 2), length // 2)
    kept = length // stride
    if 2 * frequency % kept == 0 and 2 * frequency % length:
        raise InputError(
            f"frequency: {frequency} is folded onto its own negative by a stride of {stride}, where "
            "accuracy depends on the phase; 2ℓ must be no multiple of D/S, or ℓ be 0 or D/2"
        )
    epsilon = check_number("epsilon", epsilon, 0.0)
    sigma = check_number("sigma", sigma, 0.0, exclusive=True)
    gains = np.abs(np.fft.fft(kernel, length)) ** 2
    own = gains[frequency % length]
    others = gains[(frequency + kept * np.arange(1, stride)) % length].sum()
    rounding = 1e-24 * np.abs(kernel).sum() ** 2  # of an FFT in float64
    if not epsilon or own <= rounding:
        return 0.5
    if others <= rounding:
        return 1.0
    return 0.5 * math.erfc(-epsilon / sigma * math.sqrt(own / others / 2))
