"""What can be measured of networks while they are trained, besides functions of one's own.

A function (variables, data, member) -> arrays measures one network; an `EnsembleObserver` measures
all of them together. `train_many(observe={name: …})` asks at the start and after every epoch.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from nad_jax import ensemble
from nad_jax.choices import check_own_layer, choose_points, read_choices, record_choices
from nad_jax.chunks import EnsembleObserver
from nad_jax.errors import check_choice
from nad_jax.estimation import check_finite, find_directions, finish, make_dense
from nad_jax.fitting import SPLITS, Members, Observer, Task, make_evaluate
from nad_jax.geometry import make_rows
from nad_jax.models import Model
from nad_jax.moments import Halves, init_halves
from nad_jax.nads import NADs
from nad_jax.points import Points
from nad_jax.recipe import Recipe
from nad_jax.subspaces import default_sizes


def accuracy(
    model: Model, task: Task, recipe: Recipe | None = None, split: str = "test"
) -> Observer:
    """The accuracy of one network on the samples of a split, in evaluation mode: []."""
    check_choice("split", split, SPLITS)
    evaluate = make_evaluate(model, task, task.resolve_recipe(recipe), split)
    return lambda variables, data, member: evaluate(variables, data, member)[0]


def geometry(
    model: Model, key: jax.Array | int = 0, points: Points | None = None, **choices: Any
) -> EnsembleObserver:
    """The geometry E[g gᵀ] of all networks in training: a record (`NADs`) of each epoch, from 0.

    Its halves are those of networks of even and of odd number.

    Args:
      model, points, **choices: as in `estimate_nads`; readout="sampled", num_readouts=1: the last
        layer is that of the network.
      key: of the points, or a seed.

    Raises:
      InputError: as `estimate_nads`; from the reading for fewer than two networks, and where rows
        are not finite.
    """
    key = ensemble.resolve_key(key)
    estimator, execution = read_choices("geometry", choices)
    check_own_layer(estimator)
    rows_of, law = make_rows(model, estimator, points), choose_points(model, estimator, points)
    accumulator = make_dense(model, estimator)
    mapping = execution.resolved().mapping

    def init() -> Halves:
        return init_halves(accumulator)

    @partial(jax.jit, donate_argnums=0)
    def add(
        halves: Halves, variables: Any, numbers: jax.Array, valid: jax.Array, data: Any
    ) -> Halves:
        with jax.default_matmul_precision("highest"):
            pool = law.prepare(ensemble.named_key(key, "point"), data)
            keys = ensemble.member_keys(ensemble.named_key(key, "networks"), numbers)
            rows = ensemble.map_members(partial(rows_of, pool=pool), mapping, variables, keys)
            finite = jnp.isfinite(rows).all((1, 2, 3))
            flat = rows.reshape(-1, rows.shape[-1])

            def half(state: Any, parity: int) -> Any:
                mine = valid & finite & (numbers % 2 == parity)
                return accumulator.update(state, flat, jnp.repeat(mine, len(flat) // len(rows)))

            networks, diverged = jnp.sum(valid & finite), jnp.sum(valid & ~finite)
            counts = halves.networks + networks, halves.diverged + diverged
            return Halves(half(halves.even, 0), half(halves.odd, 1), *counts)

    def update(
        halves: Halves, variables: Any, members: Members, numbers: jax.Array, valid: jax.Array
    ) -> Halves:
        return add(halves, variables, numbers, valid, law.data)

    def read(halves: Halves) -> NADs:
        check_finite(halves)
        found = find_directions(accumulator, halves, estimator.centred)
        config = record_choices(model, estimator, execution, key, points)
        sizes = default_sizes(accumulator.size)
        return finish(accumulator, halves, found, config, sizes, estimator.centred)

    return EnsembleObserver(init, update, read)
