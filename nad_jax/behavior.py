"""The behavior of a model, tested: one compiled program of one initialization and two inputs shows
what shapes do not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.contract import (
    check_training,
    input_batch,
    named_leaves,
    shape_of_variables,
)
from nad_jax.errors import InputError, problems

_ACCEPT = "check=False accepts it as it is"
# What batches of other sizes may change in the logits by rounding alone, relative to the largest of
# them, by the type of numbers that a program uses; without these, 1e-3.
_ROUNDING = {"bf16": 0.1, "f16": 0.03}


class _Seen(NamedTuple):
    """What the tiny evaluation gives: logits [2, K] and features [2, F], where there are any, of
    two inputs.

    together, again: in one batch, twice.
    alone: [4, …] of each in a batch of its own, and of the same changed in their last digits.
    mixed: whether what one input gives has a derivative in another one.
    unsettled: [leaves] whether initialization gives another value where it is shown other inputs;
      empty: not asked.
    changed: [leaves] whether training mode changed a leaf; empty where there is no training mode.
    """

    together: tuple[jax.Array, ...]
    again: tuple[jax.Array, ...]
    alone: tuple[jax.Array, ...]
    mixed: jax.Array
    unsettled: jax.Array
    changed: jax.Array


def _batch_statistics(variables: Any) -> list[bool]:
    return [name.startswith("batch_stats/") for name, _ in named_leaves(variables)]


class Probes(NamedTuple):
    """What the test of a model can use, beyond its functions, where an adapter knows more.

    statistics: which leaves of variables training mode must change, at least one for each layer; by
      default those of the collection "batch_stats".
    called_twice: the logits of a second call of the same module, which keeps what the first one has
      left in it.
    init_at: the variables of a key where initialization is shown other inputs.
    """

    statistics: Callable[[Any], list[bool]] = _batch_statistics
    called_twice: Callable[[Any, jax.Array], jax.Array] | None = None
    init_at: Callable[[jax.Array, jax.Array], Any] | None = None


def check_behavior(model: Any, probes: Probes | None = None) -> None:
    """Evaluates two inputs of one initialization, in one compiled program, and raises `InputError`
    where

    - the logits of an input depend on its batch (by more than rounding, or by a derivative that is
      not zero), on the size of the batch, or change from call to call;
    - initialization depends on the inputs that it is shown;
    - training mode leaves the statistics of a layer as they were, so that nobody has told that
      layer its mode;
    - training mode changes a leaf that the optimizer changes, too: that change would be lost.

    A model without a training mode is tested in evaluation mode alone.
    """
    probes = probes or Probes()
    variables = shape_of_variables(model)
    # Why a model has no training mode is said when it is trained.
    trains = not problems(lambda: check_training(model, 2))
    functions = [function for function in (model.apply, model.features) if function is not None]

    def observe(given: Any, inputs: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(function(given, inputs) for function in functions)

    def first_of(inputs: jax.Array, given: Any) -> jax.Array:
        return sum(jnp.sum(values[0].astype(jnp.float32)) for values in observe(given, inputs))

    # A callback has no derivative, say; central differences need none.
    inputs = input_batch(model, 2)
    differentiable = not problems(lambda: jax.eval_shape(jax.grad(first_of), inputs, variables))

    def evaluate(key: jax.Array) -> _Seen:
        init_key, input_key, train_key = jax.random.split(key, 3)
        inputs = jax.random.normal(input_key, (2, *model.input_shape), jnp.float32)
        drawn = model.init(init_key)
        given, unsettled, mixed = _off_zero(model, drawn), jnp.zeros(0, bool), jnp.zeros((), bool)
        if probes.init_at is not None:
            unsettled = _differences(drawn, probes.init_at(init_key, inputs[:1]))
        if differentiable:
            other = jax.grad(first_of)(inputs, given)[1]
            mixed = jnp.any((other != 0) & jnp.isfinite(other))
        nearby = jnp.concatenate([inputs, inputs * (1 + 2.0**-21)])
        alone = jax.lax.map(lambda x: [values[0] for values in observe(given, x[None])], nearby)
        changed = jnp.zeros(0, bool)
        if trains:
            _, updated = model.apply(given, inputs, train_key, train=True)
            changed = _differences(given, updated)
        again = observe(given, inputs)
        if probes.called_twice is not None:
            again = (probes.called_twice(given, inputs), *again[1:])
        return _Seen(observe(given, inputs), again, alone, mixed, unsettled, changed)

    # The defaults of accelerators round as batches of other sizes do not.
    with jax.default_matmul_precision("highest"):
        lowered = jax.jit(evaluate).lower(jax.random.key(0))
    # It runs once: there is nothing that optimization could pay for.
    seen = lowered.compile(compiler_options=_quick_options())(jax.random.key(0))
    seen = jax.device_get(seen)
    _check_evaluation(seen, lowered.as_text())
    names = [name for name, _ in named_leaves(variables)]
    trained = jax.tree.leaves(model.trainable(variables))
    _check_leaves(seen, names, trained, probes.statistics(variables))


def _quick_options() -> dict[str, Any]:
    """Options of XLA for a program that runs once."""
    options: dict[str, Any] = {"xla_backend_optimization_level": 0}
    # Later versions cannot do without.
    if jax.default_backend() == "cpu" and jax.__version_info__ < (0, 11):
        options["xla_cpu_use_fusion_emitters"] = False
    return options


def _off_zero(model: Any, variables: Any) -> Any:
    """The variables with a little added to those that are trained: behind a head of zeros nothing
    would be seen.
    """

    def shifted(leaf: jax.Array, trained: bool) -> jax.Array:
        if not trained or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return (leaf + 0.01 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(shifted, variables, model.trainable(variables))


def _differences(before: Any, after: Any) -> jax.Array:
    """Whether the leaves of two trees differ: [leaves]. What was and is nan does not."""
    different = []
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
            old, new = jax.random.key_data(old), jax.random.key_data(new)
        different.append(jnp.any((old != new) & ~((old != old) & (new != new))))
    return jnp.array(different, bool)


def _check_evaluation(seen: _Seen, program: str) -> None:
    rounding = next((part for kind, part in _ROUNDING.items() if f"x{kind}>" in program), 1e-3)
    alone = [values[:2] for values in seen.alone]
    with np.errstate(invalid="ignore"):  # of what is not finite
        differences = [
            np.subtract(values[:2], values[2:], dtype=np.float64) for values in seen.alone
        ]
    changes = [np.nan_to_num(np.abs(difference)).max() for difference in differences]
    calls = "change from one call to the next: something besides variables and inputs enters"
    batches = "depend on the other inputs of the batch, or on its size"
    for other, depend in ((seen.again, calls), (alone, batches)):
        for what, *pair, change in zip(
            ("logits", "features"), seen.together, other, changes, strict=False
        ):
            left, right = (array.astype(np.float64) for array in pair)
            finite = np.isfinite(left)
            one, two = (np.where(finite, array, 0.0) for array in (left, right))
            # A chaotic network amplifies what batches of other sizes round, as it does a change of
            # the last digits.
            apart = np.abs(one - two) > rounding * np.abs(one).max() + 10 * change
            if (apart | (finite != np.isfinite(right))).any():
                raise InputError(
                    f"model: the {what} of an input {depend}; in evaluation mode the same input "
                    "must always give the "
                    f"same (here {_numbers(left[0])} and {_numbers(right[0])}); {_ACCEPT}"
                )
    if seen.mixed:
        raise InputError(
            "model: the logits of an input depend on the other inputs of the batch: their "
            "derivative in another input "
            f"is not zero; {_ACCEPT}"
        )


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.7g}" for value in values[:3]) + (", …" if len(values) > 3 else "")


def _check_leaves(
    seen: _Seen, names: list[str], trained: list[bool], statistics: list[bool]
) -> None:
    faults = (
        (
            seen.unsettled,
            "initialization of {} depends on the input it is shown, which is one of zeros here: "
            "draw it from the key alone",
        ),
        (
            seen.changed,
            "training mode itself changes {}, which is trained: its change would be lost; keep it "
            "in a collection that is not trained",
        ),
    )
    for flags, fault in faults:  # empty where it was not asked
        for name, flag, mine in zip(names, flags, trained, strict=False):
            if flag and mine:
                raise InputError(f"model: {fault.format(name)}; {_ACCEPT}")
    layers: dict[str, bool] = {}
    for name, moved, statistic in zip(names, seen.changed, statistics, strict=False):
        if statistic:
            layer = name.rpartition("/")[0] or name
            layers[layer] = layers.get(layer, False) or bool(moved)
    for layer, moved in layers.items():
        if not moved:
            raise InputError(
                f"model: training mode leaves the statistics {layer} as they are: that layer is "
                "not told the mode (by "
                f"the flag of __call__, say), or meant to stay frozen; {_ACCEPT}"
            )
