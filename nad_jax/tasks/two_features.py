"""Two features that predict the label, a shortcut and a core: which one does a network take?

z | y ~ N(y (μ_s, μ_c), [[1, r], [r, 1]]),  μ_i = Φ⁻¹(ρ_i),  y ∈ {−1, +1} equiprobable
x = α_s z_s v_s + α_c z_c v_c + σ (I − P) n

sign(z_i) alone has accuracy ρ_i, the predictivity of feature i; α_i is its amplification. P projects
on the plane of v_s and v_c, so that noise n ~ N(0, I) hides neither. Source: Foundations of Shortcut
Learning (Hermann et al., 2024), where v_s and v_c are independent random unit vectors and σ = 0.

Shortcut bias is the reliance of a network on the shortcut, less that of the optimal classifier.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri

from nad_jax.contract import as_floating
from nad_jax.ensemble import resolve_key
from nad_jax.errors import (
    InputError,
    check_choice,
    check_integer,
    check_number,
    check_record,
    host_array,
    number_array,
    problems,
    real_array,
    shown,
)
from nad_jax.fitting import Observer
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.task import (
    REQUIRED,
    Arrays,
    Members,
    PerSample,
    Task,
    choose_loss,
    cross_entropy,
    has_label,
)
from nad_jax.tasks.circles import check_rows, check_scales
from nad_jax.tasks.separable import (
    Noise,
    check_num_samples,
    check_sizes,
    label_samples,
    noise_key,
    sample_noise,
)

PROBES = 30  # along each axis of the grid, as published
_REACH = 3.0  # of the grid, in units of μ_i


class Features(NamedTuple):
    """What is known of the two features of one network, numbers (the fields of a task's arrays).

    shortcut_predictivity, core_predictivity: ρ_s and ρ_c, in (½, 1).
    correlation: r of the two, given the label, in (−1, 1).
    """

    shortcut_predictivity: Any = 0.9
    core_predictivity: Any = 0.9
    correlation: Any = 0.6

    def means(self) -> jax.Array:
        """(μ_s, μ_c) of the class y = +1, [2]."""
        return ndtri(jnp.stack([self.shortcut_predictivity, self.core_predictivity]) * 1.0)


def _check_features(features: Features) -> Features:
    """The same as Python numbers; raises `InputError` for others than `Features` says."""
    for name in ("shortcut_predictivity", "core_predictivity"):
        _check_between(name, getattr(features, name))
    _check_between("correlation", features.correlation)
    return Features(*map(float, features))


# The numbers of one network, and their defaults.
_NUMBERS = {
    **Features()._asdict(),
    "shortcut_amplification": 1.0,
    "core_amplification": 1.0,
    "sigma": 0.0,
}
_LOWEST = {"shortcut_predictivity": 0.5, "core_predictivity": 0.5, "correlation": -1.0}


def _check_between(name: str, value: Any) -> None:
    low = _LOWEST[name]
    if problems(lambda: check_number(name, value, low, exclusive=True)) or value >= 1:
        raise InputError(f"{name}: must be a number between {low:g} and 1, got {shown(value)}")


def optimal_weights(
    shortcut_predictivity: float, core_predictivity: float = 0.9, correlation: float = 0.6
) -> np.ndarray:
    """The weights (w_s, w_c) of the optimal classifier sign(w_s z_s + w_c z_c), Σ⁻¹μ: [2], float64.

    Derived: linear discriminant analysis, which is optimal as both classes have one covariance. The
    weight of the shortcut is negative where μ_s < r μ_c: it then tells of the noise of the core.

    Raises:
      InputError: for predictivities outside of (½, 1), and correlations outside of (−1, 1).
    """
    features = _check_features(Features(shortcut_predictivity, core_predictivity, correlation))
    shortcut, core = _means(features)
    r = features.correlation
    return np.array([shortcut - r * core, core - r * shortcut]) / (1 - r**2)


def _means(features: Features) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(features.means(), np.float64)


def optimal_accuracy(
    shortcut_predictivity: float, core_predictivity: float = 0.9, correlation: float = 0.6
) -> float:
    """The accuracy of the optimal classifier, Φ(√(μᵀ Σ⁻¹ μ)); see `optimal_weights`."""
    given = Features(shortcut_predictivity, core_predictivity, correlation)
    weights = optimal_weights(*given)
    with jax.enable_x64(True):
        return float(ndtr(jnp.sqrt(weights @ _means(_check_features(given)))))


def probe_latents(
    shortcut_predictivity: float, core_predictivity: float = 0.9, num_probes: int = PROBES
) -> np.ndarray:
    """The grid of probes in the plane of (z_s, z_c): [num_probes², 2], float64.

    Each z_i is spaced evenly in [−3 μ_i, 3 μ_i], ends included. Source: as the module.

    Raises:
      InputError: for predictivities outside of (½, 1), and numbers of probes that are not even.
    """
    features = _check_features(Features(shortcut_predictivity, core_predictivity))
    return _unit_grid(check_probes(num_probes)) * _REACH * _means(features)


def check_probes(num_probes: int) -> int:
    """Returns a number of probes along each axis; raises `InputError` unless it is even, so that
    none is at z = 0, of which neither feature tells the label.
    """
    if check_integer("num_probes", num_probes, 2) % 2:
        raise InputError(f"num_probes: must be even, so that none is at 0, got {num_probes}")
    return int(num_probes)


def _unit_grid(count: int) -> np.ndarray:
    axis = np.linspace(-1, 1, count)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)


def reliance(decisions: Any, latents: Any) -> float:
    """The reliance on the shortcut of decisions ŷ at probes, the mean of ŷ (sign z_s − sign z_c).

    On a grid that is symmetric about 0, without it, it is in [−1, 1]: +1 for ŷ = sign z_s, −1 for
    ŷ = sign z_c.
    Source: as the module, in the form without a factor of two.

    Args:
      decisions: ŷ, [B] in −1, 0, +1, the sign of logit 0 − logit 1; 0: undecided. Labels in {0, 1}
        are no decisions: give 1 − 2 · label.
      latents: (z_s, z_c), [B, 2].

    Raises:
      InputError: for other shapes and decisions.
    """
    latents = host_array("latents", latents, "[B, 2]")
    if number_array("decisions", decisions).dtype == bool:
        raise InputError("decisions: must be −1, 0 or +1, got truth values")
    decisions = host_array("decisions", decisions, f"[{len(latents)}]")
    wrong = decisions[~np.isin(decisions, (-1, 0, 1))]
    if len(wrong):
        raise InputError(f"decisions: must be −1, 0 or +1, got {wrong[0]:g}")
    return float(np.mean(decisions * _contrast(latents)))


def _contrast(latents: np.ndarray) -> np.ndarray:
    signs = np.sign(latents)
    return signs[:, 0] - signs[:, 1]


def optimal_reliance(
    shortcut_predictivity: float,
    core_predictivity: float = 0.9,
    correlation: float = 0.6,
    num_probes: int = PROBES,
) -> float:
    """The reliance of the optimal classifier on the grid of probes; probes on its boundary are
    undecided.

    Raises:
      InputError: as `optimal_weights` and `probe_latents`.
    """
    weights = optimal_weights(shortcut_predictivity, core_predictivity, correlation)
    latents = probe_latents(shortcut_predictivity, core_predictivity, num_probes)
    scores = latents @ weights
    # Rounding would decide those on the boundary, and not as often for either class.
    scores[np.abs(scores) < 1e-9 * np.abs(scores).max()] = 0
    return reliance(np.sign(scores), latents)


def embed(latents: jax.Array, noise: jax.Array, arrays: Arrays) -> jax.Array:
    """Samples x = α_s z_s v_s + α_c z_c v_c + σ (I − P) n, [B, D].

    Args:
      latents: (z_s, z_c), [B, 2].
      noise: n, [B, D]; x has its dtype, float32 for integers.
      arrays: of one network, see `two_features`.
    """
    noise = as_floating(real_array("noise", noise, "[B, D]"))
    plane = jnp.stack([arrays["shortcut"], arrays["core"]]).astype(noise.dtype)
    gains = jnp.stack([arrays["shortcut_amplification"], arrays["core_amplification"]])
    precise = {"precision": jax.lax.Precision.HIGHEST}  # TensorFloat-32 would hide the features
    # The projection of n on the plane, whose two vectors need not be orthogonal.
    gram = jnp.matmul(plane, plane.T, **precise)
    along = jnp.linalg.solve(gram, jnp.matmul(plane, noise.T, **precise)).T
    coefficients = gains.astype(noise.dtype)[None] * latents - arrays["sigma"] * along
    return arrays["sigma"] * noise + jnp.matmul(coefficients, plane, **precise)


def sample_two_features(
    seed: jax.Array | int, shortcut: jax.Array, core: jax.Array, num_samples: int, **numbers: float
) -> tuple[jax.Array, jax.Array]:
    """`num_samples` samples of two features and their labels: x [B, D] float32, labels [B] in {0,
    1}, 0 for y = +1, balanced exactly.

    Args:
      seed: an integer, or a typed random key, which is consumed.
      shortcut, core: v_s and v_c, [D], of unit norm, not parallel.
      **numbers: one of each: predictivities, amplifications, `correlation` and `sigma`, as
        `two_features` names them.

    Raises:
      InputError: naming the argument, its value and what is allowed.
    """
    key, num_samples = resolve_key(seed), check_num_samples("num_samples", num_samples)
    shortcut, core = host_array("shortcut", shortcut, "[D]"), host_array("core", core, "[D]")
    for name, number in numbers.items():
        check_choice("argument", name, _NUMBERS)
        real_array(name, number, "[]")
    rows = {"shortcut": shortcut[None], "core": core[None]}
    arrays = _check_arrays({**_NUMBERS, **numbers, **rows}, len(shortcut))
    arrays = {name: jnp.float32(np.squeeze(value)) for name, value in arrays.items()}
    labels = label_samples(jnp.arange(num_samples))
    normal = jax.random.normal(key, (num_samples, len(shortcut) + 2), jnp.float32)
    return _make_samples(normal, labels, arrays), labels


def two_features(loss: PerSample = cross_entropy, correct: PerSample = has_label) -> Task:
    """Two features as a task: networks differ in `shortcut` and `core` [N, D], the unit vectors v_s
    and v_c, in `shortcut_predictivity` and `core_predictivity` (0.9), `shortcut_amplification` and
    `core_amplification` (1), `correlation` (0.6) and `sigma` (0).

    z, n, the initialization and the order of the samples depend on the seed alone: networks of one
    seed share all random numbers, whatever their features are.

    Args:
      loss: of outputs [B, 2] and labels [B] in {0, 1}, 0 for y = +1, real numbers [B]; default:
        cross-entropy of the labels.
      correct: of the same, truth values [B]; default: whether the larger output is the label's.

    Raises:
      InputError: for what is no function; and, before networks are trained, for functions that
        fail, whose results have another form, and for losses that are not finite at the start.
    """
    return Task(
        data=_make_noise,
        sample=_sample,
        arrays={"shortcut": REQUIRED, "core": REQUIRED, **_NUMBERS},
        prepare=_prepare,
        num_outputs=2,
        shared=False,
        recipe=Recipe("sgd", num_train=3200, num_test=1000, num_epochs=30),
        learning_rate=0.1,
        **choose_loss(loss, correct),
    )


def _make_noise(model: Model, recipe: Recipe, seed: int) -> Noise:
    """Standard normal numbers [n, D + 2]; the last two of a sample are those of its latents."""
    size = int(np.prod(model.image_shape))
    return sample_noise(noise_key(seed), *check_sizes(recipe), size + 2)


def _sample(
    noise: Noise, split: str, indices: jax.Array, arrays: Arrays
) -> tuple[jax.Array, jax.Array]:
    labels, normal = label_samples(indices), getattr(noise, split)[indices]
    return _make_samples(normal, labels, arrays), labels


def _make_samples(normal: jax.Array, labels: jax.Array, arrays: Arrays) -> jax.Array:
    """Samples [B, D] of standard normal numbers [B, D + 2] and labels [B]."""
    r, shortcut = arrays["correlation"], normal[:, -2]
    core = r * shortcut + jnp.sqrt(1 - r**2) * normal[:, -1]
    signs = (1 - 2 * labels)[:, None]
    latents = signs * _read_features(arrays).means()[None] + jnp.stack([shortcut, core], 1)
    return embed(latents, normal[:, :-2], arrays)


def _read_features(arrays: Arrays) -> Features:
    return Features(*(arrays[name] for name in Features._fields))


def _prepare(model: Model, arrays: Arrays) -> Arrays:
    return _check_arrays(arrays, int(np.prod(model.image_shape)))


def _check_arrays(arrays: Arrays, dimension: int) -> Arrays:
    """Unit vectors [N, D] float32; `InputError` for others, for two of one network that are
    parallel, and for numbers out of range.
    """
    check_scales(arrays, "shortcut_amplification", "core_amplification", "sigma")
    for name in Features._fields:
        for value in np.ravel(number_array(name, arrays[name])).tolist():
            _check_between(name, value)
    check_integer("dimension", dimension, 2)
    rows = {name: check_rows(name, arrays[name], dimension) for name in ("shortcut", "core")}
    if rows["shortcut"].shape != rows["core"].shape:
        shapes = " and ".join(str(row.shape) for row in rows.values())
        raise InputError(f"shortcut, core: must be as many, got shapes {shapes}")
    rows = {name: row / np.linalg.norm(row, axis=1)[:, None] for name, row in rows.items()}
    cosines = np.abs(np.sum(rows["shortcut"] * rows["core"], axis=1))
    if (cosines > 0.999).any():
        raise InputError(
            "core: must be another direction than shortcut, |cos| at most 0.999, got "
            f"{cosines.max():.4g} for network {int(cosines.argmax())}"
        )
    return {**arrays, **{name: row.astype(np.float32) for name, row in rows.items()}}


def observe_reliance(model: Model, num_probes: int = PROBES) -> Observer:
    """An observer of the reliance of one network on the shortcut, []: that of its decisions on the
    grid of probes, see `reliance`. Its shortcut bias is that less `optimal_reliance`.

    Probe number j carries the noise of test sample j, modulo how many there are, so that with σ > 0
    it is as samples are.

    Raises:
      InputError: for what is no model, for a number of probes that is not even, and before networks
        of another task are trained.
    """
    check_record("model", model, Model)
    grid = _unit_grid(check_probes(num_probes))
    contrast = _contrast(grid).astype(np.float32)

    def observe(variables: Any, data: Noise, member: Members) -> jax.Array:
        missing = {"shortcut", "core", *_NUMBERS} - set(member.arrays)
        if missing:
            raise InputError(
                "observe_reliance: is of networks trained on two_features; these have no "
                + ", ".join(sorted(missing))
            )
        latents = _REACH * _read_features(member.arrays).means()[None] * grid.astype(np.float32)
        noise = data.test[np.arange(len(grid)) % len(data.test), :-2]
        x = embed(latents, noise, member.arrays).reshape(-1, *model.image_shape)
        logits = model.apply(variables, x)
        return jnp.mean(jnp.sign(logits[:, 0] - logits[:, 1]) * contrast)

    return observe
