"""The spectrum of the functions that untrained networks are, on a plane of their input space.

Source: the mean frequency of Teney, Nicolicioiu, Hartmann, Abbasnejad, "Neural Redshift: Random
Networks are not Random Functions" (CVPR 2024), which has networks of two inputs; here the plane may
be any, of two NADs say.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.contract import as_floating, choose_logit
from nad_jax.directions import basis_random, check_orthonormal
from nad_jax.ensemble import Execution
from nad_jax.errors import InputError, check_integer, check_number, check_record, real_array
from nad_jax.models import Model
from nad_jax.spectrum_metrics import Metric
from nad_jax.tables import Row, Tabular, zip_columns
from nad_jax.untrained import (
    Progress,
    average,
    check_all_finite,
    evaluate,
    is_constant,
    measure_networks,
)

Spectrum = tuple[Any, Any, Any]


class RadialSpectrum(NamedTuple):
    """Where the amplitude of a function on a grid lies by the length of its frequency.

    shares: [..., R + 1] of lengths 0 … R in cycles per grid, rounded; they sum to 1, and the first is
      0; nan where the function is constant.
    mean_frequency: [...] Σ r · share_r / R, in 0 … 1.
    """

    shares: jax.Array
    mean_frequency: jax.Array


class FunctionSpectrum(NamedTuple):
    """The spectra of N untrained networks, each on the plane of all or on one of its own.

    shares: [N, R + 1] see `RadialSpectrum`; nan of networks that are constant there, which are left
      out of means. frequencies: [N] the mean frequency of each.
    """

    shares: np.ndarray
    frequencies: np.ndarray

    @property
    def mean_frequency(self) -> Metric:
        """The mean over networks, and its standard error; nan where all are constant."""
        return average(self.frequencies[self._kept()])

    @property
    def mean_shares(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean of the spectra over networks, and its standard error, [R + 1] each."""
        kept = self.shares[self._kept()]
        if len(kept) < 2:
            nothing = np.full(self.shares.shape[1], np.nan)
            return (kept[0] if len(kept) else nothing), nothing
        return kept.mean(0), kept.std(0, ddof=1) / math.sqrt(len(kept))

    def _kept(self) -> np.ndarray:
        return np.isfinite(self.frequencies)

    def to_rows(self) -> list[Row]:
        """A row for each length of the frequency: the mean share and its standard error."""
        shares, errors = self.mean_shares
        return zip_columns({"radius": range(len(shares)), "share": shares, "share_sem": errors})

    rows, to_csv, to_dataframe = to_rows, Tabular.to_csv, Tabular.to_dataframe

    def __repr__(self) -> str:
        constant = np.count_nonzero(~self._kept())
        text = f"{len(self.frequencies)} networks, mean frequency {self.mean_frequency!r}"
        return f"FunctionSpectrum({text}{f', {constant} constant' if constant else ''})"


def radial_spectrum(values: Any) -> RadialSpectrum:
    """The spectrum of values [..., n, n] on a grid, by the length of the frequency.

    The moduli of the discrete Fourier transform at frequencies (i, j), 0 ≤ i, j ≤ ⌊n/2⌋, without
    that of (0, 0), are summed over each rounded length √(i² + j²) and normalized; R is the length of
    the largest. A wave of k cycles along an axis has the mean frequency k/R. Waves whose i and j are
    of different sign are not seen. Of a linear function all is that of its jump at the border: its
    share of r ≤ n/2 is in proportion to 1/sin(πr/n), whatever its slope.

    Source: Neural Redshift, as its code has it.

    Raises:
      InputError: unless values are real numbers [..., n, n] with n ≥ 2.
    """
    values = as_floating(real_array("values", values, finite=False))
    if values.ndim < 2 or values.shape[-2] != values.shape[-1] or values.shape[-1] < 2:
        raise InputError(f"values: must be [..., n, n] with n ≥ 2, got shape {values.shape}")
    half = values.shape[-1] // 2 + 1
    radius = np.rint(np.hypot(*np.indices((half, half)))).astype(int).reshape(-1, 1)
    largest = int(radius.max())
    bins = (radius == np.arange(largest + 1)) & (radius > 0)
    # Of a constant function nothing is left, not even rounding.
    moduli = jnp.abs(jnp.fft.rfft2(values - values[..., :1, :1]))[..., :half, :]
    moduli = moduli.reshape(*values.shape[:-2], half**2)
    sums = jnp.matmul(moduli, jnp.asarray(bins, moduli.dtype), precision="highest")
    shares = sums / sums.sum(-1, keepdims=True)
    lengths = jnp.arange(largest + 1, dtype=shares.dtype) / largest
    return RadialSpectrum(shares, jnp.matmul(shares, lengths, precision="highest"))


def function_spectrum(
    model: Model,
    plane: Any,
    num_networks: int,
    seed: jax.Array | int = 0,
    progress: Progress | None = None,
    *,
    scale: float | None = None,
    num_points: int = 64,
    logit: int | None = None,
    mapping: str = "auto",
    chunk_size: int = 0,
    num_devices: int = 0,
) -> FunctionSpectrum:
    """The spectra of `num_networks` untrained networks on a plane through the origin.

    They are evaluated at scale · (a u + b v), u and v the directions of the plane, a and b in as
    many even steps from −1 to 1, both included. The networks are those of `estimate_nads` with this
    seed.

    Source: Neural Redshift.

    Args:
      model: from `create_model`, `from_linen`, `from_nnx` or `from_functions`.
      plane: orthonormal rows [2, D], of two NADs say; None: a random plane for each network.
      num_networks: N ≥ 1.
      seed: an integer, or a typed random key; network n depends on (seed, n) alone.
      progress: called with the number of networks done.
      scale: half the side of the square, in units of the input; None: √D, the length of inputs from
        N(0, I).
      num_points: n of the n × n grid, at least 2.
      logit: which of several.
      mapping, chunk_size, num_devices: fields of `Execution`.

    A network whose values differ by less than 1e-5 of the largest is constant to rounding, and has
    no spectrum.

    Raises:
      InputError: for a bad value, and outputs that are not finite.
    """
    check_record("model", model, Model)
    dimension, logit = math.prod(model.input_shape), choose_logit(model, logit)
    num_points = check_integer("num_points", num_points, 2)
    if scale is not None:
        scale = check_number("scale", scale, 0.0, exclusive=True)
    rows = None if plane is None else jnp.asarray(_check_plane(plane, dimension), jnp.float32)

    def measure(variables: Any, key: jax.Array, rows: jax.Array | None) -> Spectrum:
        x = make_grid(model, key if rows is None else rows, num_points, scale)
        return transform(evaluate(model, variables, x)[:, logit])

    execution = Execution(mapping, chunk_size, num_devices)
    found = measure_networks(model, measure, rows, num_networks, seed, progress, execution)
    return as_spectrum(found)


def make_grid(model: Model, plane: jax.Array, num_points: int, scale: float | None) -> jax.Array:
    """The points [n², *input_shape] of a plane, rows [2, D], or of a random one, from a key."""
    dimension = math.prod(model.input_shape)
    steps = np.linspace(-1, 1, num_points) * (math.sqrt(dimension) if scale is None else scale)
    steps = jnp.asarray(steps, jnp.float32)
    u, v = basis_random(plane, dimension, 2) if plane.ndim == 0 else plane
    x = jnp.outer(steps, u)[:, None] + jnp.outer(steps, v)[None]
    return x.reshape(-1, *model.input_shape)


def transform(values: jax.Array) -> Spectrum:
    """The shares and the mean frequency of one network with these values [n²] on a grid, nan where
    it is constant, and whether its values are finite.
    """
    size, level = math.isqrt(len(values)), jnp.abs(values).max()
    constant = is_constant(values, level)
    found = radial_spectrum(values.reshape(size, size))
    shares, frequency = (jnp.where(constant, jnp.nan, one) for one in found)
    return shares, frequency, jnp.isfinite(level)


def as_spectrum(found: Spectrum) -> FunctionSpectrum:
    """The record of what `transform` gives of each network; raises `InputError` where one is not
    finite.
    """
    *found, finite = found
    check_all_finite(finite, "outputs")
    return FunctionSpectrum(*found)


def _check_plane(plane: Any, dimension: int) -> np.ndarray:
    """The rows [2, D] of a plane."""
    rows = real_array("plane", plane, f"[2, {dimension}]")
    try:
        return check_orthonormal(rows)
    except InputError as error:
        raise InputError(f"plane: {str(error).removeprefix('directions: ')}") from error
