"""What is measured: the choices of an estimate, how they fit a model, and their record."""

import dataclasses
import functools
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax import errors
from nad_jax.blocks import Blocks, find_blocks
from nad_jax.ensemble import Execution
from nad_jax.errors import InputError, check_choice, check_integer, check_number, check_record
from nad_jax.kurtosis import find_kurtosis
from nad_jax.models import Model
from nad_jax.nads import DERIVATIVES, POINTS
from nad_jax.normalizations import find_zero_normalization
from nad_jax.points import Points, check_points, gaussian, shape_of_points
from nad_jax.symmetries import Representation, permutations, representations
from nad_jax.vector_fields import (
    Network,
    Readout,
    VectorField,
    central_difference,
    check_step,
    from_derivative,
    input_gradient,
    logit,
    marginalized,
    sampled,
    shape_of_outputs,
)
from nad_jax.versions import device_kind, versions

READOUTS = ("sampled", "marginalized")


class Initialized:
    """In place of the variables of given networks: those that the model initializes."""

    def __repr__(self) -> str:
        return "INITIALIZED"


INITIALIZED = Initialized()
_CHECKS = {  # of fields of `Estimator`, and what is allowed
    "derivative": (check_choice, DERIVATIVES),
    "step": (check_step,),
    "point": (check_choice, POINTS),
    "point_scale": (check_number, 0.0),
    "readout": (check_choice, READOUTS),
    "num_readouts": (check_integer, 1),
    "logit": (check_integer, 0),
    "symmetrized": (check_choice, (False, True)),
    "centred": (check_choice, (False, True)),
    "block_size": (check_integer, 1),
}


@dataclasses.dataclass(frozen=True)
class Estimator:
    """What is measured: every choice besides the model, the key and the number of networks.

    derivative: "input_gradient", the definition of NADs, "central_difference", which reproduces the
      published ones, or any vector field, see `vector_fields`.
    step: h of the central difference, in units of the input.
    point: where the field is evaluated: at one point "shared" by all networks, or a "fresh" one for
      each.
    point_scale: points are drawn from N(0, point_scale² I); 0 is the origin.
    readout: "sampled": the last layer as initialized (published). "marginalized": integrated out in
      closed form, E[g gᵀ | φ] = τ² JᵀJ with J the derivative of the features φ; exact, and worth
      ten times the networks or more.
    num_readouts: with "sampled", independent read-outs per network; above 1 they are drawn
      uniformly with variance τ² (only this second moment enters E[g gᵀ]) on the same features.
    logit: which of several logits; None where there is one.
    symmetrized: average E[g gᵀ] over the symmetries that the model states, see `symmetries`: worth
      several times the networks. With a shared point it is then that of the mean over the images of
      the point. Refused for exact gradients at the origin where they jump, as with max-pooling.
    centred: subtract the mean row, as the published PCA does; only with "sampled" (else the mean is
      exactly 0).
    block_size: pixels per forward pass of the central difference.
    """

    derivative: str | VectorField = "input_gradient"
    step: float = 100.0
    point: str = "shared"
    point_scale: float = 1.0
    readout: str = "marginalized"
    num_readouts: int = 1
    logit: int | None = None
    symmetrized: bool = False
    centred: bool = False
    block_size: int = 64

    def __post_init__(self) -> None:
        errors.plain_fields(self)

    def problems(self) -> list[str]:
        """What is wrong with these values, one line each."""

        values = dict(vars(self))
        if callable(self.derivative):
            del values["derivative"]
        if self.logit is None:
            del values["logit"]
        checks = [
            functools.partial(check, name, values[name], *allowed)
            for name, (check, *allowed) in _CHECKS.items()
            if name in values
        ]
        problems = errors.problems(*checks)
        if not problems and self.readout == "marginalized":
            if self.num_readouts != 1:
                problems.append(
                    f"num_readouts: must be 1 with readout='marginalized', got {self.num_readouts}; "
                    "several are drawn with readout='sampled'"
                )
            if self.centred:
                problems.append(
                    "centred: must be False with readout='marginalized', whose mean is exactly 0"
                )
        return problems

    @property
    def from_features(self) -> bool:
        """Whether the last layer is drawn or integrated out instead of taken from the network."""
        return self.readout == "marginalized" or self.num_readouts > 1

    def make_field(self, **changes: Any) -> VectorField:
        """The vector field of these choices, or of some with changes."""
        chosen = dataclasses.replace(self, **changes)
        derivative = chosen.derivative
        if callable(derivative):
            return derivative
        if derivative == "input_gradient":
            return from_derivative(input_gradient)
        return from_derivative(central_difference(chosen.step, chosen.block_size))


def read_choices(given: Mapping[str, Any]) -> tuple[Estimator, Execution]:
    """What is measured, and how, of the arguments of a function of the API.

    None for `derivative` is the default, and says so; for `readout` it is that of the vector field
    where it names one, else "marginalized", or the networks' own where `variables` are given.
    """
    chosen = {name: given[name] for name in Estimator.__dataclass_fields__ if name in given}
    if chosen["derivative"] is None:
        _warn_of_default()
        del chosen["derivative"]
    if chosen["readout"] is None:
        drawn = given.get("variables") is INITIALIZED
        own = getattr(chosen.get("derivative"), "readout", None)  # some fields have one alone
        chosen["readout"] = own or ("marginalized" if drawn else "sampled")
    how = {name: given[name] for name in Execution._fields if name in given}
    return Estimator(**chosen), Execution(**how)


@functools.cache
def _warn_of_default() -> None:
    warnings.warn(
        "derivative: is not given, so it is 'input_gradient', the definition of NADs; before "
        "version 0.4 it was 'central_difference', which the published arrays are. Give either to "
        "silence this.",
        FutureWarning,
        stacklevel=5,  # who called the function of the API, through `takes_old_names`
    )


def check_num_networks(
    num_networks: int, estimator: Estimator, points: Points | None = None
) -> int:
    """Returns N; `InputError` where a half of the ensemble has no rows, or a centered one fewer
    than two. One network is enough where it is measured at as many points.
    """
    fewest = 4 if estimator.centred and estimator.num_readouts == 1 else 2
    if isinstance(points, Points) and shape_of_points(points)[0] >= fewest:
        fewest = 1
    if num_networks == 1 < fewest:
        raise InputError(
            f"num_networks: must be an integer of at least {fewest}, got 1; with as many points "
            "(points=) 1 is enough"
        )
    return check_integer("num_networks", num_networks, fewest)


def check_own_layer(estimator: Estimator) -> None:
    """Raises `InputError` where the last layer of given networks would be replaced, or symmetries
    of the law of initialization be taken for theirs.
    """
    if estimator.symmetrized:
        raise InputError(
            "symmetrized: must be False for given networks, whose law is not that of initialization"
        )
    if estimator.from_features:
        raise InputError(
            "readout: must be 'sampled' with num_readouts=1 for given variables, whose last layer "
            "is their own"
        )


def check_symmetrized(estimator: Estimator, model: Model) -> None:
    """Raises `InputError` where symmetries are asked for that the model does not state, or its
    derivative not have.
    """
    if not estimator.symmetrized or estimator.problems():  # which are said elsewhere
        return
    if not model.symmetries:
        size = "×".join(map(str, model.image_shape[:-1] or model.image_shape))
        raise InputError(
            f"symmetrized: must be False, this model states no symmetries for inputs of {size} "
            "(on the command line: --config.symmetrized=False)"
        )
    at_origin = _is_gradient_at_origin(estimator)
    outputs = (estimator.from_features and model.features) or model.apply
    if at_origin and _has_ties(model.init, outputs, model.image_shape):
        raise InputError(
            "symmetrized: must be False for exact gradients of this network at the origin "
            "(point_scale below 1e-6): they jump there (max-pooling takes the first of equals); "
            "take a larger point_scale, or derivative 'central_difference'"
        )


def _is_gradient_at_origin(estimator: Estimator) -> bool:
    return estimator.derivative == "input_gradient" and estimator.point_scale < 1e-6


def check_normalizations(estimator: Estimator, model: Model) -> None:
    """Raises `InputError` where an exact gradient at the origin is that of a normalization of zero."""
    if estimator.problems() or not _is_gradient_at_origin(estimator):
        return
    name = find_zero_normalization(model.init, model.apply, tuple(model.image_shape))
    if name is not None:
        raise InputError(
            f"point_scale: must not be 0 for exact gradients of this network: {name} is a "
            "normalization of zero there, it divides by the root of its epsilon alone; take "
            "point_scale=1, biases (initialization='sigma:1:0.1'), or derivative "
            "'central_difference'"
        )


@functools.lru_cache(maxsize=512)
def _has_ties(
    init: Callable[[jax.Array], Any],
    outputs: Network,
    input_shape: tuple[int, ...],
) -> bool:
    """Whether gradients of four networks jump at the origin, where a choice between equals is not
    symmetric.
    """
    *keys, near_key, weights_key = jax.random.split(jax.random.key(0), 6)
    near = 1e-5 * jax.random.normal(near_key, input_shape, jnp.float32)
    points = jnp.stack([jnp.zeros_like(near), near])

    @jax.jit
    @jax.vmap
    def gradients(key: jax.Array) -> jax.Array:
        variables = init(key)

        def weighted(point: jax.Array) -> jax.Array:
            values = outputs(variables, point[None])[0]
            return values @ jax.random.normal(weights_key, values.shape, values.dtype)

        return jax.vmap(jax.grad(weighted))(points).reshape(len(points), -1)

    origin, beside = np.moveaxis(np.asarray(gradients(jnp.stack(keys))), 1, 0)
    jumps = np.linalg.norm(origin - beside, axis=1) > 0.01 * np.linalg.norm(beside, axis=1)
    # A gradient of zero is that of a dead network, which has an error of its own.
    return bool((jumps & (origin != 0).any(1)).any())


def choose_readout(model: Model, estimator: Estimator) -> Readout:
    """The read-out of an estimator; `InputError` for whatever of its values is wrong or does not
    fit the model.
    """
    check_record("model", model, Model)
    check_integer("num_logits", model.num_logits, 1)  # None where no adapter has completed it
    errors.raise_problems(estimator.problems())
    last = model.num_logits - 1
    if estimator.logit is None and last > 0:
        raise InputError(
            f"logit: the model has {model.num_logits} logits; choose one in 0 … {last}"
        )
    if estimator.logit is not None and estimator.logit > last:
        raise InputError(f"logit: must be in 0 … {last}, got {estimator.logit}")
    _check_real(model, "apply")
    if estimator.from_features:
        choice = f"readout={estimator.readout!r} with num_readouts={estimator.num_readouts}"
        if model.features is None:
            raise InputError(
                f"readout: {choice} needs the input of the last linear layer, which this model "
                "does not expose; take readout='sampled' with num_readouts=1, or give `features` "
                "(from_functions, from_nnx)"
            )
        _check_real(model, "features")
        if model.description.get("start") == "given":
            raise InputError(
                f"readout: {choice} draws last layers in place of the given one; take "
                "readout='sampled' with num_readouts=1"
            )
        if model.readout_variance is None:
            raise InputError(
                f"readout_variance: {choice} needs τ², the variance of the last layer's weights; "
                "state it where the model is made, or take readout='sampled'"
            )
    check_symmetrized(estimator, model)
    check_normalizations(estimator, model)
    if estimator.readout == "marginalized":
        return marginalized(model)
    if estimator.num_readouts > 1:
        return sampled(model, estimator.num_readouts)
    return logit(model, estimator.logit or 0)


def _check_real(model: Model, name: str) -> None:
    """Raises `InputError` where what a function of the model returns has no derivative."""
    dtype = shape_of_outputs(model, name).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(
            f"model: {name} must return real numbers, which have a derivative, got {dtype}"
        )


def choose_points(model: Model, estimator: Estimator, points: Points | None = None) -> Points:
    """The law of points of an estimator, or another one that is given.

    Raises:
      InputError: for a given one of other inputs than the model's.
    """
    if points is None:
        return gaussian(model.image_shape, estimator.point_scale, estimator.point == "shared")
    check_points(points, model.image_shape)
    if (estimator.point, estimator.point_scale) != (Estimator.point, Estimator.point_scale):
        raise InputError("points: are given, so point and point_scale must be left out")
    scale = points.description.get("point_scale", 1.0)
    there = dataclasses.replace(estimator, point_scale=scale)
    check_symmetrized(there, model)
    check_normalizations(there, model)
    return points


def choose_blocks(model: Model, estimator: Estimator, points: Points | None = None) -> Blocks:
    """The exactly equal blocks that what is measured has, of networks at their initialization."""
    where = estimator.point, estimator.point_scale, points
    return find_blocks(model, estimator.derivative, *where)


def find_symmetries(model: Model, estimator: Estimator) -> tuple[np.ndarray, list[Representation]]:
    """The permutations [S, D] of pixels that an estimate is averaged over, the identity unless it
    is symmetrized; and the representations of this group, in which eigenvectors are found.
    """
    names = model.symmetries if estimator.symmetrized else ()
    return permutations(names, model.image_shape), representations(names, model.image_shape)


def record_choices(
    model: Model,
    estimator: Estimator,
    execution: Execution,
    key: jax.Array,
    points: Points | None = None,
    given: bool = False,
) -> dict[str, Any]:
    """Everything that determines an ensemble's networks and how they are measured, here and now, as
    JSON values; whether the networks were `given` instead of drawn.
    """
    chosen = dict(vars(estimator))
    if estimator.derivative == "input_gradient":
        chosen["backward_passes"] = choose_readout(model, estimator).num_outputs
    if points is not None:
        del chosen["point_scale"]
        chosen |= {"point": "own law", **points.description}
    blocks = None if given else choose_blocks(model, estimator, points).describe()
    kurtosis = None if given else find_kurtosis(model, estimator, points)
    if callable(estimator.derivative):
        chosen["derivative"] = getattr(estimator.derivative, "__name__", "vector field")
    choices = {
        "image_shape": list(model.image_shape),
        **model.description,
        **chosen,
        "mapping": execution.mapping,
        "chunk_size": execution.chunk_size,
        "key": [str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key)).tolist()],
        **({"networks": "given"} if given else {}),
        **({"blocks": blocks} if blocks else {}),
        **({"kurtosis": kurtosis.value} if kurtosis else {}),
        "versions": versions(),
        "device": device_kind(),
    }
    return json.loads(json.dumps(errors.plain(choices), default=repr))
