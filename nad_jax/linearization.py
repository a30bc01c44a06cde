"""Linearized networks: the first-order Taylor model in the weights, its kernel, and the directions
that this kernel prefers.

Source: LIN, "What can linearized neural networks actually say about generalization?"
(Ortiz-Jimenez, Moosavi-Dezfooli, Frossard, NeurIPS 2021).
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.contract import (
    check_inputs,
    choose_logit,
    input_batch,
    reported,
    shape_of_variables,
)
from nad_jax.errors import InputError, check_number, check_record, host_array
from nad_jax.models import Apply, Leaves, Model, split_trainable
from nad_jax.spectral import check_moment
from nad_jax.vector_fields import logit as one_logit
from nad_jax.vector_fields import mixed_derivative

Function = Callable[[Leaves], jax.Array]

_NUMBERS = 2**25  # of the gradients that are held at a time, 128 MB


def starting_from(model: Model, variables: Any) -> Model:
    """The model with given variables in place of random ones: whatever is trained or measured of it
    starts there. Its last layer is the given one, and cannot be marginalized.

    Raises:
      InputError: for variables of another structure, or leaves of other shapes.
    """
    given = _check_variables(model, variables)
    # The law of the given weights is no longer what was known of random ones: without a variance
    # nothing is drawn anew in place of the last layer, whose inputs are features as before.
    return model._replace(
        init=lambda key: given,
        readout_variance=None,
        description={**model.description, "start": "given"},
        symmetries=(),
        alike=None,
    )


def _check_variables(model: Model, variables: Any) -> Any:
    """Returns variables of a model as arrays; raises `InputError` for what is no model, and for
    variables of another structure or of other shapes.
    """
    check_record("model", model, Model)
    expected = shape_of_variables(model)
    if jax.tree.structure(expected) != jax.tree.structure(variables):
        raise InputError("variables: must be those of the model, as `model.init` returns them")
    with reported("variables"):
        given = jax.tree.map(jnp.asarray, variables)
    for wanted, leaf in zip(*map(jax.tree.leaves, (expected, given)), strict=True):
        if wanted.shape != leaf.shape:
            raise InputError(f"variables: a leaf must be {wanted.shape}, got shape {leaf.shape}")
    return given


def with_two_logits(model: Model) -> Model:
    """The classifier (f, 0) of a model of one logit f: its cross-entropy is the logistic loss of f,
    label 0 at f > 0.

    Raises:
      InputError: for a model of several logits.
    """
    check_record("model", model, Model)
    if model.num_logits != 1:
        raise InputError(f"model: must have one logit, got {model.num_logits}")

    def apply(variables: Any, x: Any, key: Any = None, train: bool = False) -> Any:
        if train:
            outputs, variables = model.apply(variables, x, key, train=True)
            return _append_zero(outputs), variables
        return _append_zero(model.apply(variables, x))

    # The second column of the last layer is no independent one.
    return model._replace(apply=apply, num_logits=2, features=None, readout_variance=None)


def _append_zero(outputs: jax.Array) -> jax.Array:
    return jnp.pad(outputs, ((0, 0), (0, 1)))


def linearize(model: Model) -> Model:
    """The first-order Taylor model of a network in its weights, around where it starts:
    f(x; θ₀) + ∂f/∂θ(x; θ₀) (θ − θ₀).

    At the start it is the network, its derivative in the input included. Its variables are
    {"network": those with θ, "origin": those with θ₀}; training changes what it changes of the
    network, from the same start with the same key. It is that of the network in evaluation mode,
    also in training: batch statistics stay what they are, and there is no dropout.

    Source: LIN.

    Raises:
      InputError: for what is no model.
    """
    check_record("model", model, Model)
    # Of the number of inputs at hand: a convolution of many pixels may have no forward mode.
    has_forward_mode = functools.cache(partial(_has_forward_mode, model))

    def init(key: jax.Array) -> dict[str, Any]:
        variables = model.init(key)
        return {"network": variables, "origin": variables}

    def apply(variables: Any, x: jax.Array, key: Any = None, train: bool = False) -> Any:
        weights, _, _ = split_trainable(model, variables["network"])
        origin, others, join = split_trainable(model, variables["origin"])
        change = jax.tree.map(jnp.subtract, weights, origin)
        derive = _along if has_forward_mode(len(x)) else _along_by_reverse
        value, slope = derive(lambda at: model.apply(join(at, others), x), origin, change)
        return (value + slope, variables) if train else value + slope

    def trainable(variables: Any) -> Any:
        frozen = jax.tree.map(lambda _: False, variables["origin"])
        return {"network": model.trainable(variables["network"]), "origin": frozen}

    return model._replace(
        init=init,
        apply=apply,
        trainable=trainable,
        features=None,
        readout_variance=None,
        description={**model.description, "linearized": True},
    )


def _along(function: Function, at: Leaves, change: Leaves) -> tuple[jax.Array, jax.Array]:
    """The value of a function and its derivative along a change."""
    return jax.jvp(function, (at,), (change,))


def _along_by_reverse(function: Function, at: Leaves, change: Leaves) -> tuple[Any, Any]:
    """The same in reverse mode: u ↦ Jᵀu is linear, and its transpose is J."""
    value, pullback = jax.vjp(function, at)
    _, push = jax.vjp(lambda u: pullback(u)[0], jnp.zeros_like(value))
    return value, push(change)[0]


def _has_forward_mode(model: Model, count: int) -> bool:
    """Whether a network can be derived forward in its weights at so many inputs; where
    `jax.custom_vjp` gives it its derivative, as fast convolutions of many channels, it cannot.
    """
    shapes = shape_of_variables(model)
    weights, others, join = split_trainable(model, shapes)

    def derive(weights: Leaves, others: Leaves, x: jax.Array) -> jax.Array:
        return _along(lambda at: model.apply(join(at, others), x), weights, weights)[1]

    try:
        jax.jit(derive).lower(weights, others, input_batch(model, count))  # tracing does not tell
    except TypeError:
        return False
    return True


def empirical_ntk(
    model: Model, variables: Any, x: Any, other: Any = None, logit: int | None = None
) -> np.ndarray:
    """The empirical neural tangent kernel Θ(x, x') = ⟨∂f/∂θ(x), ∂f/∂θ(x')⟩ of one network: [N, M].

    The weights are those that training changes.

    Args:
      x: [N, *input_shape], or [N, D]. other: x' [M, …]; None: x.
      logit: which of several; None where there is one.

    Raises:
      InputError: for variables that are not the model's, inputs of other shapes, and several logits
        and none chosen.
    """
    variables = _check_variables(model, variables)
    chosen, x = choose_logit(model, logit), check_inputs("x", model, x)
    other = x if other is None else check_inputs("other", model, other)
    weights, _, _ = split_trainable(model, variables)
    block = _make_block(model.apply, model.trainable, chosen)
    width = max(1, _NUMBERS // sum(leaf.size for leaf in weights))
    blocks = [block(variables, x, other[n : n + width]) for n in range(0, len(other), width)]
    return np.concatenate([np.asarray(one) for one in blocks], 1)


# Compiled once for all starts of a network.
@functools.lru_cache(maxsize=8)
def _make_block(apply: Apply, trainable: Callable[[Any], Any], logit: int) -> Callable[..., Any]:
    """Builds `block(variables, x, columns)`, the kernel of inputs x and columns."""
    model = Model(None, apply, (), trainable=trainable)

    @jax.jit
    def block(variables: Any, x: jax.Array, columns: jax.Array) -> jax.Array:
        weights, others, join = split_trainable(model, variables)

        def gradient(x: jax.Array) -> jax.Array:
            def output(weights: Leaves) -> jax.Array:
                return apply(join(weights, others), x[None])[0, logit]

            return jnp.concatenate([leaf.reshape(-1) for leaf in jax.grad(output)(weights)])

        # In full precision: regression divides by small eigenvalues.
        with jax.default_matmul_precision("highest"):
            gradients = jax.lax.map(gradient, columns, batch_size=16)
            return jax.lax.map(lambda one: gradients @ gradient(one), x, batch_size=16)

    return block


def ntk_alignment(kernel: Any, targets: Any) -> np.ndarray:
    """The alignment of targets with a kernel, gᵀΘg/N²: how fast gradient flow on the squared loss
    sets out to learn them.

    Source: LIN, as a mean over samples.

    Args:
      kernel: Θ [N, N], from `empirical_ntk`.
      targets: g [N] or [N, T].

    Returns: a number, or [T].

    Raises:
      InputError: for other shapes.
    """
    kernel, targets = _check_kernel(kernel), host_array("targets", targets)
    size = len(kernel)
    targets = host_array("targets", targets, f"[{size}]" if targets.ndim == 1 else f"[{size}, T]")
    return np.sum((kernel @ targets) * targets, 0) / size**2


def ntk_regression(
    kernel: Any,
    targets: Any,
    test_kernel: Any,
    start: Any = 0.0,
    test_start: Any = 0.0,
    cutoff: float = 1e-7,
) -> np.ndarray:
    """What a linearized network predicts once gradient descent on the squared loss has converged,
    from its start: f₀(x') + Θ(x', x) Θ(x, x)⁻¹ (g − f₀(x)).

    Directions of Θ whose eigenvalue is below a share of the largest are left out. The default is
    about the rounding of float32; whatever a kernel truly has below it, descent would learn in the
    end.

    Source: LIN; without a ridge, but with that cut.

    Args:
      kernel: Θ(x, x) [N, N]. targets: g [N] or [N, T].
      test_kernel: Θ(x', x) [M, N].
      start, test_start: f₀ at x [N] and x' [M], of the network at its start; 0 is right only where
        the network starts at 0, or targets are those of the change.
      cutoff: the share of the largest eigenvalue, of at least 0; of a kernel in float64 N · 2e-16 is
        its rounding.

    Returns: [M] or [M, T], float64.

    Raises:
      InputError: for other shapes, a kernel that is not symmetric or has negative eigenvalues, and a
        share that is not in [0, 1).
    """
    kernel = check_moment("kernel", _check_kernel(kernel))
    if check_number("cutoff", cutoff, 0.0) >= 1:
        raise InputError(f"cutoff: must be below 1, a share of the largest, got {cutoff}")
    size, targets = len(kernel), host_array("targets", targets)
    test_kernel = host_array("test_kernel", test_kernel, f"[M, {size}]")
    targets = host_array("targets", targets, f"[{size}]" if targets.ndim == 1 else f"[{size}, T]")
    start = _of_each("start", start, targets, size)
    test_start = _of_each("test_start", test_start, targets, len(test_kernel))
    values, vectors = np.linalg.eigh(kernel)
    kept = values > cutoff * values[-1]
    along = (vectors[:, kept].T @ (targets - start)).T / values[kept]
    return test_start + test_kernel @ (vectors[:, kept] @ along.T)


def _check_kernel(kernel: Any) -> np.ndarray:
    size = len(host_array("kernel", kernel, "[N, M]"))
    return host_array("kernel", kernel, f"[{size}, {size}]")


def _of_each(name: str, value: Any, targets: np.ndarray, size: int) -> np.ndarray:
    """A number, or one for each of `size` samples, as [size], or [size, 1] beside several targets."""
    value = host_array(name, value)
    value = host_array(name, value, f"[{size}]") if value.ndim else np.full(size, value)
    return value if targets.ndim == 1 else value[:, None]


class MixedDirections(NamedTuple):
    """The directions of one network by A = ∂²f/∂θ∂x [P, D], see `mixed_directions`.

    singular_values: of A, [K], descending. directions: its right singular vectors, [K, D].
    K = min(P, D).
    """

    singular_values: np.ndarray
    directions: np.ndarray

    def __repr__(self) -> str:
        count, dimension = self.directions.shape
        first, last = self.singular_values[[0, -1]]
        return (
            f"Mixed directions of one network, {count} of {dimension}\n"
            f"  singular values: {first:.4g} … {last:.4g}"
        )


def mixed_directions(
    model: Model, variables: Any, points: Any = None, logit: int | None = None
) -> MixedDirections:
    """The NADs of LIN, of one network: right singular vectors of A = E_x[∂²f/∂θ∂x], by which its
    kernel is aligned with linear targets, ‖A u‖² with x ↦ ⟨u, x⟩ for x ~ N(0, I).

    Of an ensemble, `estimate_nads(model, N, derivative=mixed_derivative(model))` has them.

    Source: LIN, whose code takes one network at the origin.

    Args:
      variables: of one network, from `model.init(key)`, say.
      points: [J, *input_shape], which A is averaged over; None: the origin.
      logit: which of several; None where there is one.

    Raises:
      InputError: for variables that are not the model's, points of another shape, several logits and
        none chosen, and derivatives that are not finite or all zero.
    """
    variables = _check_variables(model, variables)
    network = one_logit(model, choose_logit(model, logit)).draw(None)
    field, origin = mixed_derivative(model, points=points), jnp.zeros(model.input_shape)
    with jax.default_matmul_precision("highest"):
        rows = jax.jit(partial(field, network))(variables, origin, jax.random.key(0))
    rows = np.asarray(rows, np.float64) / np.sqrt(len(rows))
    if not np.isfinite(rows).all() or not rows.any():
        raise InputError(
            "model: its mixed derivative there is not finite, or zero; piecewise linear activations "
            "without biases have none at the origin: take points or a smooth activation"
        )
    _, singular_values, directions = np.linalg.svd(rows, full_matrices=False)
    return MixedDirections(singular_values, directions)
