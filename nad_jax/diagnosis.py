"""Why every derivative of an ensemble is zero: what a few of its networks show."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax import ensemble
from nad_jax.choices import Estimator, choose_points
from nad_jax.errors import InputError
from nad_jax.geometry import split_member
from nad_jax.models import Model
from nad_jax.moments import Halves, is_zero
from nad_jax.points import Points
from nad_jax.vector_fields import Network, logit

_NETWORKS = 4  # that are looked at
_TINY = float(np.finfo(np.float32).tiny)
_DEAD = "a last layer (read-out) that starts at zero, or a dead network"
_RANDOM_HEAD = (
    "readout='marginalized', with readout_variance= of the model stated, integrates over a random "
    "read-out"
)


class _Case(NamedTuple):
    """A few networks of an ensemble, and what of them is derived.

    variables, points: every leaf [N, …]; points [N, *input_shape].
    others: ordinary points, of the same shape.
    outputs: what is derived, and `what` it is called.
    """

    model: Model
    estimator: Estimator
    variables: Any
    points: jax.Array
    others: jax.Array
    outputs: Network
    what: str

    def differs(self, points: jax.Array, **changes: Any) -> bool:
        """Whether a row of the outputs is not zero; each of them alone, no sum rounds."""
        field = self.estimator.make_field(**changes)

        def rows(variables: Any, x: jax.Array) -> jax.Array:
            return field(self.outputs, variables, x, jax.random.key(0))

        return bool(jnp.any(jax.jit(jax.vmap(rows))(self.variables, points) != 0))

    def look(self, function: Network, points: jax.Array) -> np.ndarray:
        """The finite outputs [N, B, F] of all networks at points, zero where they are not."""
        outputs = jax.jit(jax.vmap(function, (0, None)))(self.variables, points)
        return np.nan_to_num(np.asarray(outputs, np.float64), posinf=0, neginf=0)


def check_not_zero(
    halves: Halves,
    model: Model,
    estimator: Estimator,
    key: jax.Array,
    points: Points | None = None,
    variables: Any = None,
) -> None:
    """Raises `InputError` where every derivative seen is exactly zero, with the cause that can be
    seen.

    Args:
      halves: the state, of networks of `key`.
      model, estimator, key, points, variables: what it was accumulated with.
    """
    if not is_zero(halves):
        return
    keys = ensemble.member_keys(ensemble.named_key(key, "networks"), jnp.arange(_NETWORKS))
    init_keys, _, point_keys = jax.vmap(split_member, out_axes=1)(keys)
    if variables is None:
        variables = jax.vmap(model.init)(init_keys)
    else:
        places = np.resize(np.arange(len(jax.tree.leaves(variables)[0])), _NETWORKS)
        variables = jax.tree.map(lambda leaf: leaf[places], variables)
    law = choose_points(model, estimator, points)
    pool = law.prepare(ensemble.named_key(key, "point"), law.data)
    drawn = jax.vmap(lambda key: law.draw(pool, key)[0])(point_keys)
    if points is not None:
        scale = points.description.get("point_scale", estimator.point_scale)
        estimator = dataclasses.replace(estimator, point_scale=scale)
    scale = max(estimator.point_scale, 1.0)
    others = scale * jax.random.normal(jax.random.key(1), drawn.shape, jnp.float32)

    outputs, what = logit(model, estimator.logit or 0).draw(key), "outputs"
    if estimator.from_features:
        outputs, what = model.features, "features"
    case = _Case(model, estimator, variables, drawn, others, outputs, what)
    causes = itertools.chain(_explain_size(case), _explain_outputs(case))
    raise InputError(next(causes))  # the first that is found


def _explain_size(case: _Case) -> Iterator[str]:
    """What is too small: the step, the derivatives themselves, the differences of outputs."""
    points, step, what = np.asarray(case.points), case.estimator.step, case.what
    quotient = case.estimator.derivative == "central_difference"
    moved = (points + np.float32(step), points - np.float32(step))
    if quotient and not any((m != points).any() for m in moved):
        size = float(np.abs(points).max())
        yield (
            f"step: {step:g} changes no pixel of points of size {size:.2g} in float32; take a "
            "larger one"
        )
    if case.differs(case.points):
        if case.estimator.from_features:
            yield (
                f"model: readout_variance={case.model.readout_variance:.2g} makes every derivative "
                f"smaller than {_TINY:.2g}, the smallest float32; state a larger one, eigenvalues "
                "are in proportion"
            )
        yield (
            "model: every derivative of the networks looked at is smaller than "
            f"{_TINY:.2g}, the smallest float32"
        )
    for factor in (1e2, 1e4, 1e6) if quotient else ():
        if factor * step < 1e36 and case.differs(case.points, step=factor * step):
            yield (
                f"step: {what} at x + h and x − h are equal to the last digit with h = {step:g}, "
                f"not with {factor * step:g}; take a larger step, or derivative='input_gradient'"
            )


def _explain_outputs(case: _Case) -> Iterator[str]:
    """What the outputs show: that they are the same everywhere, or flat at these points."""
    what, features = case.what, case.model.features
    near = case.look(case.outputs, case.others)
    if (near != near[:, :1]).any():
        if 0 < np.abs(near).max() < 1e-30:
            yield _underflow(what, f"the largest of those looked at is {np.abs(near).max():.2g}")
        if case.differs(case.others):
            yield (
                "model: every derivative is exactly zero at this point "
                f"(point_scale={case.estimator.point_scale:g}), but not at others: a bias-free "
                "ReLU network at the origin, say; take point_scale > 0 or point='fresh'"
            )
        yield (
            f"model: {what} differ between images, but every derivative is exactly zero wherever "
            "it was looked at: they are rounded or compared (round, sign, argmax), or their "
            "gradient is stopped"
        )
    if not case.estimator.from_features and features is not None:
        seen = case.look(features, case.others)
        if (seen != seen[:, :1]).any():
            yield (
                "model: outputs are the same for every image though the features are not, the last "
                f"layer (read-out) starts at zero; {_RANDOM_HEAD}"
            )
    for factor in (1e10, 1e20, 1e30):
        far = np.abs(case.look(case.outputs, jnp.float32(factor) * case.others)).max()
        if not near.any() and 0 < far < 1e-25 * factor:
            yield _underflow(what, "at ordinary images they are exactly 0, at huge ones not")
    same = "the same" if near.any() else "exactly 0"
    seen = f"model: {what} are {same} for every image that was looked at"
    if features is not None:
        yield f"{seen}: a dead network"
    yield f"{seen}: {_DEAD}; where it is the first, give the model `features`: {_RANDOM_HEAD}"


def _underflow(what: str, seen: str) -> str:
    return (
        f"model: {what} are too small for float32 ({seen}), derivatives below {_TINY:.2g} are 0; "
        "multiply them"
    )
