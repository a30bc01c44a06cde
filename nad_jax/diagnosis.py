"""Why every derivative of an ensemble is zero: what a few of its networks show."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax import ensemble
from nad_jax.accumulation import Halves, choose_derivative, draw_point, is_zero, split_member
from nad_jax.errors import InputError
from nad_jax.estimator import Estimator
from nad_jax.models import Model

_NETWORKS = 4  # that are looked at
_TINY = float(np.finfo(np.float32).tiny)
_DEAD = "a last layer (read-out) that starts at zero, or a dead network"
_RANDOM_HEAD = "readout='marginalized', with readout_variance= of the model stated, integrates over a random read-out"


def check_not_zero(halves: Halves, model: Model, estimator: Estimator, key: jax.Array) -> None:
    """Raises `InputError` where every derivative seen is exactly zero, with the cause that can be
    seen.

    Args:
      halves: the state, of networks of `key`.
      model, estimator, key: what it was accumulated with.
    """
    if is_zero(halves):
        raise InputError(explain_zero(model, estimator, key))


def explain_zero(model: Model, estimator: Estimator, key: jax.Array) -> str:
    """One line that says why the derivatives of these networks are zero, and what to do about it."""
    keys = ensemble.member_keys(ensemble.named_key(key, "networks"), jnp.arange(_NETWORKS))
    init_keys, _, point_keys = jax.vmap(split_member, out_axes=1)(keys)
    variables = jax.vmap(model.init)(init_keys)
    if estimator.point == "fresh":
        points = jax.vmap(lambda point_key: draw_point(model, estimator, point_key))(point_keys)
    else:
        points = draw_point(model, estimator, ensemble.named_key(key, "point"))
        points = jnp.broadcast_to(points, (_NETWORKS, *points.shape))
    if estimator.derivative == "central_difference" and _stands_still(points, estimator.step):
        size = float(jnp.abs(points).max())
        return f"step: {estimator.step:g} changes no pixel of points of size {size:.2g} in float32; take a larger one"

    def output(variables: Any, images: jax.Array) -> jax.Array:
        return model.apply(variables, images)[:, estimator.logit or 0, None]

    def differs(function: Callable, points: jax.Array, **changes: Any) -> bool:
        """Whether the derivative of a function, in a random direction of its outputs, is not zero."""
        derivative = choose_derivative(estimator, **changes)

        def row(variables: Any, x: jax.Array) -> jax.Array:
            shape = jax.eval_shape(function, variables, x[None]).shape[1]
            readout = jax.random.normal(jax.random.key(0), (1, shape), jnp.float32)
            return derivative(lambda images: function(variables, images), x, readout)

        return bool(jnp.any(jax.jit(jax.vmap(row))(variables, points) != 0))

    def look(function: Callable, images: jax.Array) -> np.ndarray:
        """The finite outputs [N, B, F] of all networks at images [B, H, W, C], zero where they are
        not.
        """
        outputs = jax.jit(jax.vmap(function, (0, None)))(variables, images)
        return np.nan_to_num(np.asarray(outputs, np.float64), posinf=0, neginf=0)

    from_features = estimator.readout == "marginalized" or estimator.num_readouts > 1
    function = model.features if from_features else output
    what = "features" if from_features else "outputs"
    scale = max(estimator.point_scale, 1.0)
    others = scale * jax.random.normal(
        jax.random.key(1), (_NETWORKS, *model.image_shape), jnp.float32
    )
    if differs(function, points):
        if from_features:
            return (
                f"model: readout_variance={model.readout_variance:.2g} makes every derivative "
                "smaller than "
                f"{_TINY:.2g}, the smallest float32; state a larger one, eigenvalues are in "
                "proportion"
            )
        return f"model: every derivative of the networks looked at is smaller than {_TINY:.2g}, the smallest float32"
    if estimator.derivative == "central_difference":
        for factor in (1e2, 1e4, 1e6):
            if factor * estimator.step < 1e36 and differs(
                function, points, step=factor * estimator.step
            ):
                return (
                    f"step: {what} at x + h and x − h are equal to the last digit with h = "
                    f"{estimator.step:g}, not "
                    f"with {factor * estimator.step:g}; take a larger step, or "
                    "derivative='input_gradient'"
                )
    near = look(function, others)
    varies = bool((near != near[:, :1]).any())
    if not varies and not from_features and model.features is not None:
        features = look(model.features, others)
        if (features != features[:, :1]).any():
            return (
                "model: outputs are the same for every image though the features are not, the last "
                "layer (read-out) "
                f"starts at zero; {_RANDOM_HEAD}"
            )
    if not varies:
        for factor in (1e10, 1e20, 1e30):
            far = np.abs(look(function, jnp.float32(factor) * others)).max()
            if not near.any() and 0 < far < 1e-25 * factor:
                return _underflow(what, "at ordinary images they are exactly 0, at huge ones not")
        same = "exactly 0" if not near.any() else "the same"
        if from_features or model.features is not None:
            return f"model: {what} are {same} for every image that was looked at: a dead network"
        return (
            f"model: {what} are {same} for every image that was looked at: {_DEAD}; where it is "
            "the first, give the "
            f"model `features`: {_RANDOM_HEAD}"
        )
    if 0 < np.abs(near).max() < 1e-30:
        return _underflow(what, f"the largest of those looked at is {np.abs(near).max():.2g}")
    if differs(function, others):
        return (
            "model: every derivative is exactly zero at this point "
            f"(point_scale={estimator.point_scale:g}), but not "
            "at others: a bias-free ReLU network at the origin, say; take point_scale > 0 or "
            "point='fresh'"
        )
    return (
        f"model: {what} differ between images, but every derivative is exactly zero wherever it "
        "was looked at: they "
        "are rounded or compared (round, sign, argmax), or their gradient is stopped"
    )


def _underflow(what: str, seen: str) -> str:
    return f"model: {what} are too small for float32 ({seen}), derivatives below {_TINY:.2g} are 0; multiply them"


def _stands_still(points: jax.Array, step: float) -> bool:
    """Whether no pixel of any point is changed by adding or subtracting a step."""
    moved = np.asarray(points) + np.float32(step), np.asarray(points) - np.float32(step)
    return all((one == np.asarray(points)).all() for one in moved)
