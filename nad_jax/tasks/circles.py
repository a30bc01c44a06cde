"""Two concentric circles: a task that no linear classifier solves, in a plane of one's choice.

x = r_y (cos φ u + sin φ v) + w,  y ∈ {0, 1} equiprobable,  φ uniform,  w ~ N(0, σ² (I − u uᵀ − v vᵀ))

with u and v orthonormal. The noise has no component in the plane, so that the distance from the
origin there never errs. Source: GIH, which lays the plane along leading eigenvectors of the
geometry E[g gᵀ] of a network, or lets one of the two leave them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.contract import as_floating
from nad_jax.ensemble import resolve_key
from nad_jax.errors import (
    InputError,
    check_integer,
    check_labels,
    check_number,
    check_scalar,
    check_units,
    host_array,
    known,
    number_array,
    real_array,
)
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.task import REQUIRED, Arrays, PerSample, Task, choose_loss, cross_entropy, has_label
from nad_jax.tasks.separable import (
    Noise,
    check_num_samples,
    check_sizes,
    label_samples,
    noise_key,
    sample_noise,
)

RADII = (1.5, 0.25)


def invariance_recipe(num_epochs: int = 30) -> Recipe:
    """The recipe of GIH's tasks along directions (30 epochs, learning rate 0.1): momentum 0.9, no
    weight decay, gradients clipped to 0.5, 10,000 samples, 2,000 to test.

    The schedule of the learning rate and the size of a batch are the defaults of `Recipe`.
    """
    sizes = {"num_train": 10_000, "num_test": 2_000}
    return Recipe("sgd", {"momentum": 0.9}, num_epochs=num_epochs, **sizes)


def _check_plane(first: Any, second: Any, dimension: str) -> tuple[Any, Any]:
    """Two vectors [D] that are of unit norm and orthogonal, to 1e-3, where they are known."""
    rows = {"first": first, "second": second}
    rows = {name: real_array(name, row, f"[{dimension}]") for name, row in rows.items()}
    if rows["first"].shape != rows["second"].shape:
        lengths = " and ".join(str(len(row)) for row in rows.values())
        raise InputError(f"first, second: must be of one length, got {lengths}")
    first, second = (check_units(name, row) for name, row in rows.items())
    values = known(first), known(second)
    if all(value is not None for value in values):
        _check_orthogonal(values[0][None], values[1][None])
    return first, second


def _check_orthogonal(first: np.ndarray, second: np.ndarray) -> None:
    """Raises `InputError` unless rows [N, D] are orthogonal to those of the same number, to 1e-3."""
    cosines = np.abs(np.sum(np.asarray(first, np.float64) * second, axis=1))
    if (cosines > 1e-3).any():
        raise InputError(
            f"second: must be orthogonal to first, got {cosines.max():.4g} as their product"
        )


def encircle(
    noise: jax.Array,
    labels: jax.Array,
    first: jax.Array,
    second: jax.Array,
    radii: tuple[Any, Any] = RADII,
    sigma: Any = 1.0,
) -> jax.Array:
    """Samples x = r_y (cos φ u + sin φ v) + σ (I − u uᵀ − v vᵀ) n of the circles from standard
    normal noise n.

    φ is the angle of n itself in the plane, which is uniform and independent of the rest of n.

    Args:
      noise: n, [B, D].
      labels: y, [B] in {0, 1}.
      first, second: u and v, [D], orthonormal.
      radii: r₀ and r₁, in units of the input.
      sigma: σ, likewise.

    Returns: x [B, D] of the noise's dtype, float32 for integers, at the distance r_y from the
      origin in the plane, to rounding.

    Raises:
      InputError: for other shapes, and for values that are not as above, where they are known.
    """
    noise = as_floating(real_array("noise", noise, "[B, D]"))
    labels = jnp.asarray(check_labels("labels", labels, 2))
    if labels.shape != noise.shape[:1]:
        raise InputError(
            f"labels: must be one for each of the {len(noise)} samples, got shape {labels.shape}"
        )
    first, second = _check_plane(first, second, str(noise.shape[1]))
    plane = jnp.stack([jnp.asarray(first, noise.dtype), jnp.asarray(second, noise.dtype)])
    radii = [jnp.asarray(radius, noise.dtype) for radius in check_radii(radii)]
    sigma = jnp.asarray(check_scalar("sigma", sigma), noise.dtype)
    # In full precision on every backend: TensorFloat-32 would leave noise in the plane.
    along = jnp.matmul(noise, plane.T, precision=jax.lax.Precision.HIGHEST)
    angle = jnp.arctan2(along[:, 1], along[:, 0])
    radius = jnp.where(labels == 0, *radii)
    circle = radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)
    changes = circle - sigma * along
    return sigma * noise + jnp.matmul(changes, plane, precision=jax.lax.Precision.HIGHEST)


def check_radii(radii: Any) -> tuple[Any, Any]:
    """Two numbers of at least 0, which may be traced; raises `InputError` otherwise."""
    if not isinstance(radii, tuple | list) or len(radii) != 2:
        raise InputError(f"radii: must be two numbers (r₀, r₁), got {radii!r}")
    return tuple(check_scalar("radii", radius) for radius in radii)


def sample_circles(
    seed: jax.Array | int,
    first: jax.Array,
    second: jax.Array,
    num_samples: int,
    radii: tuple[float, float] = RADII,
    sigma: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """`num_samples` samples of the circles and their labels: x [B, D] float32, labels [B] in {0,
    1}, balanced exactly.

    Source: GIH. `first` and `second` are u and v, [D], orthonormal; radii and σ are in units of the
    input. `seed` is an integer, or a typed random key, which is consumed.

    Raises:
      InputError: unless `seed` is one of these, `num_samples` is even, and the others are as
        `encircle` takes them.
    """
    key, num_samples = resolve_key(seed), check_num_samples("num_samples", num_samples)
    first, second = _check_plane(first, second, "D")
    labels = label_samples(jnp.arange(num_samples))
    noise = jax.random.normal(key, (num_samples, first.size), jnp.float32)
    return encircle(noise, labels, first, second, radii, sigma), labels


def classify_radius(
    x: jax.Array, first: jax.Array, second: jax.Array, radii: tuple[float, float] = RADII
) -> jax.Array:
    """The labels [B] in {0, 1} of samples x [B, D] of the circles: that of the radius next to the
    distance from the origin in the plane. It never errs where r₀ ≠ r₁.

    Its boundary is a quadratic form of x. `first`, `second` and `radii` as in `encircle`;
    `InputError` for anything else.
    """
    x = real_array("x", x, "[B, D]")
    first, second = _check_plane(first, second, str(x.shape[1]))
    plane = jnp.stack([jnp.asarray(first), jnp.asarray(second)])
    along = jnp.matmul(x, plane.T, precision=jax.lax.Precision.HIGHEST)
    distance = jnp.hypot(along[:, 0], along[:, 1])
    zero, one = check_radii(radii)
    return (jnp.abs(distance - zero) > jnp.abs(distance - one)).astype(jnp.int32)


def affine_accuracy(radii: tuple[float, float] = RADII) -> float:
    """The accuracy on the circles of the best classifier whose boundary is a hyperplane:
    ½ (1 + arccos(r/R)/π), r and R the smaller and the larger radius.

    Derived: each class is symmetric about the origin, so a hyperplane through it errs on half of
    either. One at distance t from it in the plane, t ≤ r, has the larger circle beyond it with
    probability arccos(t/R)/π and the smaller one with arccos(t/r)/π; the difference is largest at
    t = r. A normal that leaves the plane averages over t.

    Raises:
      InputError: unless the radii are numbers of at least 0.
    """
    if not isinstance(radii, tuple | list) or len(radii) != 2:
        raise InputError(f"radii: must be two numbers (r₀, r₁), got {radii!r}")
    small, large = sorted(check_number("radii", radius, 0.0) for radius in radii)
    return 0.5 if large == 0 else 0.5 * (1 + float(np.arccos(small / large)) / np.pi)


def circles(loss: PerSample = cross_entropy, correct: PerSample = has_label) -> Task:
    """The circles as a task: networks differ in `first` and `second` [N, D], which span the plane,
    in `radius_0`, `radius_1` and `sigma`.

    The noise, the initialization and the order of the samples depend on the seed alone: networks of
    one seed share all random numbers, whatever their planes are.

    Args:
      loss: of outputs [B, 2] and labels [B] in {0, 1}, real numbers [B]; default: cross-entropy of
        the labels.
      correct: of the same, truth values [B]; default: whether the larger output is the label's.

    Raises:
      InputError: for what is no function; and, before networks are trained, for functions that
        fail, whose results have another form, and for losses that are not finite at the start.
    """
    return Task(
        data=make_noise,
        sample=_sample,
        arrays={
            "first": REQUIRED,
            "second": REQUIRED,
            "radius_0": RADII[0],
            "radius_1": RADII[1],
            "sigma": 1.0,
        },
        prepare=_prepare,
        num_outputs=2,
        shared=False,
        recipe=invariance_recipe(),
        learning_rate=0.1,
        **choose_loss(loss, correct),
    )


def make_noise(model: Model, recipe: Recipe, seed: int) -> Noise:
    """The noise of one replicate for inputs of a model, as D(v) has it."""
    return sample_noise(noise_key(seed), *check_sizes(recipe), int(np.prod(model.image_shape)))


def _sample(
    noise: Noise, split: str, indices: jax.Array, arrays: Arrays
) -> tuple[jax.Array, jax.Array]:
    labels, normal = label_samples(indices), getattr(noise, split)[indices]
    radii = arrays["radius_0"], arrays["radius_1"]
    plane = arrays["first"], arrays["second"]
    return encircle(normal, labels, *plane, radii, arrays["sigma"]), labels


def _prepare(model: Model, arrays: Arrays) -> Arrays:
    """Planes as orthonormal rows [N, D] float32, to rounding: what is not orthogonal of the second
    one is taken from it; `InputError` for others, and for radii and σ below 0.
    """
    check_scales(arrays, "radius_0", "radius_1", "sigma")
    dimension = check_integer("dimension", int(np.prod(model.image_shape)), 2)
    first, second = (check_rows(name, arrays[name], dimension) for name in ("first", "second"))
    if first.shape != second.shape:
        raise InputError(
            f"first, second: must be as many, got shapes {first.shape} and {second.shape}"
        )
    _check_orthogonal(first, second)
    first /= np.linalg.norm(first, axis=1)[:, None]
    second -= np.sum(first * second, axis=1)[:, None] * first
    second /= np.linalg.norm(second, axis=1)[:, None]
    return {**arrays, "first": first.astype(np.float32), "second": second.astype(np.float32)}


def check_rows(name: str, rows: Any, dimension: int) -> np.ndarray:
    """Unit rows [N, D] in float64; raises `InputError` for others."""
    return check_units(name, host_array(name, rows, f"[N, {dimension}]"))


def check_scales(arrays: Arrays, *names: str) -> None:
    """Raises `InputError` unless these arrays are numbers of at least 0."""
    for name in names:
        for value in np.ravel(number_array(name, arrays[name])).tolist():
            check_number(name, value, 0.0)
