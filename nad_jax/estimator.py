"""The choices that define an estimate of NADs, and how they fit a model."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax import ensemble, errors
from nad_jax.derivatives import check_step
from nad_jax.errors import (
    InputError,
    check_choice,
    check_integer,
    check_number,
    check_record,
    unknown,
)
from nad_jax.models import Model
from nad_jax.symmetries import Representation, permutations, representations
from nad_jax.versions import device_kind, versions

DERIVATIVES = ("central_difference", "input_gradient")
POINTS = ("shared", "fresh")
READOUTS = ("sampled", "marginalized")


@dataclasses.dataclass(frozen=True)
class Estimator:
    """Every choice that defines an estimate besides the model, the key and the number of networks.

    derivative: "central_difference", which reproduces the published NADs, or "input_gradient",
      their definition.
    step: h of the central difference, in units of the input.
    point: where the derivative is taken: at one point "shared" by all networks, or a "fresh" one
      for each.
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
    centred: subtract the mean derivative, as the published PCA does; only with "sampled" (the mean
      is exactly 0).
    block_size: pixels per forward pass of the central difference.
    mapping: how members are mapped: "vectorized", "sequential" or "auto" (sequential on a CPU).
    chunk_size: members per call of the compiled program, even; 0 is automatic. Changes results by
      rounding alone.
    """

    derivative: str = "central_difference"
    step: float = 100.0
    point: str = "shared"
    point_scale: float = 1.0
    readout: str = "marginalized"
    num_readouts: int = 1
    logit: int | None = None
    symmetrized: bool = False
    centred: bool = False
    block_size: int = 64
    mapping: str = "auto"
    chunk_size: int = 0

    def __post_init__(self) -> None:
        errors.plain_fields(self)

    def problems(self) -> list[str]:
        """What is wrong with these values, one line each."""
        problems = errors.problems(
            lambda: check_choice("derivative", self.derivative, DERIVATIVES),
            lambda: check_step(self.step),
            lambda: check_choice("point", self.point, POINTS),
            lambda: check_number("point_scale", self.point_scale, 0.0),
            lambda: check_choice("readout", self.readout, READOUTS),
            lambda: check_integer("num_readouts", self.num_readouts, 1),
            lambda: None if self.logit is None else check_integer("logit", self.logit, 0),
            lambda: check_choice("symmetrized", self.symmetrized, (False, True)),
            lambda: check_choice("centred", self.centred, (False, True)),
            lambda: check_integer("block_size", self.block_size, 1),
            lambda: check_choice("mapping", self.mapping, ("auto", *ensemble.MAPPINGS)),
            lambda: check_integer("chunk_size", self.chunk_size, 0),
        )
        if problems:
            return problems
        if self.chunk_size % 2:
            problems.append(
                f"chunk_size: must be even (halves of even and odd members), got {self.chunk_size}"
            )
        if self.readout == "marginalized" and self.num_readouts != 1:
            problems.append(
                f"num_readouts: must be 1 with readout='marginalized', got {self.num_readouts}"
            )
        if self.readout == "marginalized" and self.centred:
            problems.append(
                "centred: must be False with readout='marginalized', whose mean is exactly 0"
            )
        return problems


def create_estimator(function: str, choices: dict[str, Any]) -> Estimator:
    """The estimator of the choices given to a function; `InputError` for one that it does not have."""
    known = [field.name for field in dataclasses.fields(Estimator)]
    for name in choices:
        if name not in known:
            raise unknown(function, name, known)
    return Estimator(**choices)


def check_num_networks(num_networks: int, estimator: Estimator) -> int:
    """Returns N; raises `InputError` where a half of the ensemble has no rows, or a centred one
    fewer than two.
    """
    return check_integer(
        "num_networks", num_networks, 4 if estimator.centred and estimator.num_readouts == 1 else 2
    )


def check_symmetrized(estimator: Estimator, model: Model) -> None:
    """Raises `InputError` where symmetries are asked for that the model does not state, or its
    derivative not have.
    """
    if not estimator.symmetrized:
        return
    if not model.symmetries:
        height, width, _ = model.image_shape
        raise InputError(
            "symmetrized: must be False, this model states no symmetries for images of "
            f"{height}×{width}"
        )
    from_features = estimator.readout == "marginalized" or estimator.num_readouts > 1
    outputs = model.features if from_features and model.features is not None else model.apply
    at_origin = estimator.derivative == "input_gradient" and estimator.point_scale < 1e-6
    if at_origin and _has_ties(model.init, outputs, model.image_shape):
        raise InputError(
            "symmetrized: must be False for exact gradients of this network at the origin "
            "(point_scale below 1e-6): "
            "they jump there (max-pooling takes the first of equals); take a larger point_scale, "
            "or "
            "derivative 'central_difference'"
        )


@functools.lru_cache(maxsize=64)
def _has_ties(
    init: Callable[..., Any], outputs: Callable[..., jax.Array], image_shape: tuple[int, int, int]
) -> bool:
    """Whether gradients of four networks jump at the origin, where a choice between equals is not
    symmetric.
    """
    *keys, near_key, weights_key = jax.random.split(jax.random.key(0), 6)
    near = 1e-5 * jax.random.normal(near_key, image_shape, jnp.float32)
    points = jnp.stack([jnp.zeros_like(near), near])

    @jax.jit
    @jax.vmap
    def gradients(key: jax.Array) -> jax.Array:
        variables = init(key)

        def weighted(image: jax.Array) -> jax.Array:
            values = outputs(variables, image[None])[0]
            return values @ jax.random.normal(weights_key, values.shape, values.dtype)

        return jax.vmap(jax.grad(weighted))(points).reshape(len(points), -1)

    origin, beside = np.moveaxis(np.asarray(gradients(jnp.stack(keys))), 1, 0)
    jumps = np.linalg.norm(origin - beside, axis=1) > 0.01 * np.linalg.norm(beside, axis=1)
    # A gradient of zero is that of a dead network, which has an error of its own.
    return bool((jumps & (origin != 0).any(1)).any())


def resolve_estimator(
    model: Model, estimator: Estimator, num_networks: int
) -> tuple[Estimator, int]:
    """The estimator without automatic choices, and R, the rows that one network gives; raises what
    does not fit.
    """
    check_record("model", model, Model)
    check_integer(
        "num_logits", model.num_logits, 1
    )  # None in a model that no adapter has completed
    problems = estimator.problems()
    if problems:
        raise InputError("\n".join(problems))
    if estimator.logit is None and model.num_logits > 1:
        raise InputError(
            f"logit: the model has {model.num_logits} logits; choose one in 0 … "
            f"{model.num_logits - 1}"
        )
    if estimator.logit is not None and estimator.logit >= model.num_logits:
        raise InputError(f"logit: must be in 0 … {model.num_logits - 1}, got {estimator.logit}")
    _check_real(model, "apply")
    num_rows = estimator.num_readouts
    if estimator.readout == "marginalized" or num_rows > 1:
        choice = f"readout={estimator.readout!r}" + (
            f" with num_readouts={num_rows}" if num_rows > 1 else ""
        )
        if model.features is None:
            raise InputError(
                f"readout: {choice} needs the input of the last linear layer, which this model "
                "does not expose; "
                "take readout='sampled' with num_readouts=1, or give `features` (from_functions, "
                "from_nnx)"
            )
        _check_real(model, "features")
        if model.readout_variance is None:
            raise InputError(
                f"readout_variance: {choice} needs τ², the variance of the last layer's weights"
            )
        if estimator.readout == "marginalized":
            num_rows = num_features(model)
    check_symmetrized(estimator, model)
    mapping = estimator.mapping
    if mapping == "auto":
        mapping = "sequential" if jax.default_backend() == "cpu" else "vectorized"
    chunk_size = estimator.chunk_size
    if chunk_size == 0:
        # 4 MB of rows: enough members to amortize the update, few enough for steady progress.
        pairs = 2**20 // (2 * num_rows * int(np.prod(model.image_shape)))
        chunk_size = 2 * max(1, min(pairs, 256, (num_networks + 1) // 2))
    return dataclasses.replace(estimator, mapping=mapping, chunk_size=chunk_size), num_rows


def _check_real(model: Model, name: str) -> None:
    """Raises `InputError` where what a function of the model returns has no derivative."""
    variables = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    dtype = jax.eval_shape(getattr(model, name), variables, image).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(
            f"model: {name} must return real numbers, which have a derivative, got {dtype}"
        )


def find_group(model: Model, estimator: Estimator) -> np.ndarray:
    """The permutations [S, D] of pixels that an estimate is averaged over: the identity unless it
    is symmetrized.
    """
    return permutations(_symmetries(model, estimator), model.image_shape)


def find_representations(model: Model, estimator: Estimator) -> list[Representation]:
    """Those of the group of `find_group`, in which eigenvectors are found."""
    return representations(_symmetries(model, estimator), model.image_shape)


def _symmetries(model: Model, estimator: Estimator) -> tuple[str, ...]:
    return model.symmetries if estimator.symmetrized else ()


def num_features(model: Model) -> int:
    """F, the width of the input of the last linear layer."""
    variables = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    return jax.eval_shape(model.features, variables, image).shape[-1]


def record_choices(model: Model, estimator: Estimator, key: jax.Array) -> dict[str, Any]:
    """Everything that determines an ensemble's networks and how they are measured, here and now, as
    JSON values.
    """
    choices = {
        "image_shape": list(model.image_shape),
        **model.description,
        **dataclasses.asdict(estimator),
        "key": [str(jax.random.key_impl(key)), np.asarray(jax.random.key_data(key)).tolist()],
        "versions": versions(),
        "device": device_kind(),
    }
    return json.loads(json.dumps(errors.plain(choices), default=repr))
