"""A prior given to another network: training that also makes its features alike to those of a guide,
an untrained network of another architecture (Training the Untrainable, Subramaniam et al.).

loss + α Σ_pairs (1 − CKA(features of the network, features of the guide)), on the batch of the step

Differs from the reference in: 1. The features of the network that is trained are those of evaluation
mode. 2. Where several layers of the guide fall on one of the network, every pair counts; there the
last one does.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from nad_jax.cka import linear_cka
from nad_jax.contract import input_batch, reported, shape_of_variables
from nad_jax.ensemble import keys_of_seeds
from nad_jax.errors import InputError, check_function, check_record
from nad_jax.fitting import Observer
from nad_jax.models import Model
from nad_jax.recipe import Recipe
from nad_jax.task import Arrays, Members, Task, with_scale

# (variables, x [B, *input_shape]) -> features [B, F], or a list of those of several layers.
Layers = Callable[[Any, jax.Array], Any]
# Of the variables of a network and of its guide, and of inputs [B, *input_shape], the CKA of each
# pair of layers [P].
Compare = Callable[[Any, Any, jax.Array], jax.Array]
_RECORDED = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.LayerNorm, nn.MultiHeadDotProductAttention)


class GuidedData(NamedTuple):
    """What guided networks share.

    task: the data of their task. guide: the variables of their guide. compare: how they are compared
    (`Compare`); it holds no arrays.
    """

    task: Any
    guide: Any
    compare: Compare


def guided(
    task: Task,
    model: Model,
    guide: Model,
    *,
    features: Layers | Sequence[Layers] | None = None,
    guide_features: Layers | Sequence[Layers] | None = None,
) -> Task:
    """The task with α Σ (1 − CKA) added to the loss of training: networks differ besides in α,
    their `guidance`, of at least 0; default 1. The losses that are reported are those of the task.

    The guide is in evaluation mode and never trained. Layer i of its n_g is compared with layer
    round(i (n − 1)/(n_g − 1)) of the n of the network, a single one with the last.

    Args:
      model: that is trained on the task.
      guide: whose inputs have as many entries; its outputs do not matter. It is initialized once for
        each seed, for all networks of the seed: untrained, or as `starting_from` says.
      features, guide_features: functions (variables, x) that give features [B, F], real
        floating-point numbers, or a list of those of several layers, as `layers_of` does, or a list
        of such functions; None: the input of the last linear layer.

    Raises:
      InputError: where a model has no features, functions fail or give something else, or the
        inputs of both do not fit; and before networks are trained, for α below 0, and any other
        network than this `model`, which may start elsewhere (`starting_from`).
    """
    check_record("task", task, Task)
    if "guidance" in task.arrays:
        raise InputError("task: is guided already")
    inner = with_scale(task, "guidance", 1.0)
    compare = Partial(compare_features(model, guide, features, guide_features))
    init = jax.jit(guide.init)

    def data(given: Model, recipe: Recipe, seed: int) -> GuidedData:
        if given.apply is not model.apply:  # shapes and descriptions may be those of another
            raise InputError(
                "model: another network is trained than the one that is guided; give `guided` the "
                "model itself, not one that is made like it"
            )
        key = keys_of_seeds("guide", np.array([seed]))[0]
        return GuidedData(task.data(given, recipe, 0 if task.shared else seed), init(key), compare)

    def sample(data: GuidedData, *given: Any) -> Any:
        return inner.sample(data.task, *given)

    def penalty(now: Any, x: jax.Array, data: GuidedData, arrays: Arrays) -> jax.Array:
        added = arrays["guidance"] * jnp.sum(1 - data.compare(now, data.guide, x))
        if inner.penalty is None:
            return added
        return added + inner.penalty(now, x, data.task, arrays)

    return inner._replace(data=data, sample=sample, shared=False, penalty=penalty)


def compare_features(
    model: Model,
    guide: Model,
    features: Layers | Sequence[Layers] | None = None,
    guide_features: Layers | Sequence[Layers] | None = None,
) -> Compare:
    """Builds `compare(variables, guide_variables, x)`: the CKA [P] of each pair of layers on inputs x
    [B, *input_shape], through which nothing flows back to the guide. See `guided`.
    """
    read = _make_read("model", model, "features", features)
    read_guide = _make_read("guide", guide, "guide_features", guide_features)
    size = int(np.prod(model.image_shape))
    if size != int(np.prod(guide.image_shape)):
        raise InputError(
            f"guide: must have inputs of {size} entries, as the model {model.image_shape}, got "
            f"{guide.image_shape}"
        )

    def compare(variables: Any, guide_variables: Any, x: jax.Array) -> jax.Array:
        mine = read(variables, x)
        others = read_guide(jax.lax.stop_gradient(guide_variables), x)
        pairs = pair_layers(len(mine), len(others))
        return jnp.stack([linear_cka(mine[i], others[j]) for i, j in pairs])

    inputs = shape_of_variables(model), shape_of_variables(guide), input_batch(model, 3)
    jax.eval_shape(compare, *inputs)
    return compare


def pair_layers(num_layers: int, num_guide_layers: int) -> list[tuple[int, int]]:
    """For each layer of the guide the one of the network that it is compared with: (network,
    guide).
    """
    if num_guide_layers == 1:
        return [(num_layers - 1, 0)]
    scale = (num_layers - 1) / (num_guide_layers - 1)
    return [(round(scale * layer), layer) for layer in range(num_guide_layers)]


def _make_read(
    name: str, model: Model, field: str, given: Layers | Sequence[Layers] | None
) -> Callable[[Any, jax.Array], list[jax.Array]]:
    """Builds `read(variables, x)`: the features [B, F] of each layer, checked."""
    check_record(name, model, Model)
    if given is None and model.features is None:
        raise InputError(
            f"{name}: has no features, the input of a last linear layer; give {field}, a function "
            "(variables, x) -> [B, F]"
        )
    given = model.features if given is None else given
    functions = list(given) if isinstance(given, list | tuple) else [given]
    for function in functions:
        check_function(field, function, optional=False)

    def read(variables: Any, x: jax.Array) -> list[jax.Array]:
        x, found = x.reshape(-1, *model.image_shape), []
        with reported(field):
            for function in functions:
                layers = function(variables, x)
                found += layers if isinstance(layers, list | tuple) else [layers]
        shapes = [getattr(one, "shape", ()) for one in found]
        wrong = [one for one in shapes if len(one) != 2 or one[0] != len(x)]
        if wrong or not found:
            got = f"{wrong[0]} for B = {len(x)}" if wrong else "none"
            raise InputError(f"{field}: must give features [B, F], got {got}")
        for one in found:
            if not jnp.issubdtype(one.dtype, jnp.floating):  # integers have no gradient
                raise InputError(f"{field}: must give real floating-point numbers, got {one.dtype}")
        return found

    return read


def layers_of(model: Model) -> Layers:
    """The outputs of the layers of a Linen module in the order of their calls, but for the last one,
    as a function (variables, x) -> list of [B, F], each flattened; in evaluation mode.

    Layers are dense ones, convolutions, layer normalizations and attention, as long as the first
    axis of their output is that of samples. A convolution that also pools gives what is pooled.

    Raises:
      InputError: where there is but the last, and where none is seen: the model is no Linen module,
        or its layers are inside a lifted transformation (`nn.scan`, `nn.remat`).
    """
    check_record("model", model, Model)

    def outputs_of(variables: Any, x: jax.Array) -> list[jax.Array]:
        found: list[jax.Array] = []

        def record(next_function: Callable, args: Any, kwargs: Any, context: Any) -> Any:
            outputs = next_function(*args, **kwargs)
            if context.method_name == "__call__" and isinstance(context.module, _RECORDED):
                found.append(outputs)
            return outputs

        with nn.intercept_methods(record):
            model.apply(variables, x)
        return found

    def layers(variables: Any, x: jax.Array) -> list[jax.Array]:
        found = outputs_of(variables, x)[:-1]
        return [one.reshape(len(x), -1) for one in found if len(one) == len(x)]

    try:
        seen = jax.eval_shape(outputs_of, shape_of_variables(model), input_batch(model, 3))
    except jax.errors.UnexpectedTracerError:
        seen = []
    if not seen:
        raise InputError(
            "model: no layers are seen, as it is no Linen module, or they are inside a lifted "
            "transformation; give functions (variables, x) -> [B, F]"
        )
    if not any(len(one) == 3 for one in seen[:-1]):
        raise InputError(
            "model: has no layers but its last one, which is not compared; give functions "
            "(variables, x) -> [B, F]"
        )
    return layers


def observe_similarity(task: Task, recipe: Recipe | None = None) -> Observer:
    """An observer of the CKA [P] of a network with its guide, for each pair of layers, on the first
    batch of the test samples.

    Args:
      task: from `guided`, which says what is compared; the one that networks are trained on.
      recipe: of the training; default: the task's.

    Raises:
      InputError: for a task that is not guided and a recipe that cannot be; and in training, where
        that is on such a task.
    """
    check_record("task", task, Task)
    if "guidance" not in task.arrays:
        raise InputError("task: is not guided; give the one that `guided` makes of it")
    recipe = task.resolve_recipe(recipe)
    numbers = np.arange(min(recipe.batch_size, recipe.num_test))

    def observe(variables: Any, data: GuidedData, member: Members) -> jax.Array:
        if not isinstance(data, GuidedData):
            raise InputError(
                "task: is observed as a guided one, but networks are trained on another"
            )
        x, _ = task.draw(data, "test", jnp.asarray(numbers), member.arrays)
        return data.compare(variables, data.guide, x)

    observe.sizes = recipe.num_train, recipe.num_test  # the training must have the same
    return observe
