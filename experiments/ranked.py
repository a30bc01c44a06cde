"""D(u_i) as a task: u_i is number i of a ranking, which is found when networks are first trained along
it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from nad_jax.errors import InputError
from nad_jax.models import Model
from nad_jax.nads import NADs
from nad_jax.recipe import Recipe
from nad_jax.task import REQUIRED, Task
from nad_jax.tasks.separable import separable


def check_rank(indices: tuple[int, ...], nads: NADs) -> None:
    """Raises `InputError` for indices of NADs beyond the rank of their geometry, which are any that
    are orthogonal to the others.
    """
    if max(indices) >= nads.rank:
        raise InputError(
            f"indices: must be below {nads.rank}, the rank of the geometry of "
            f"num_networks={nads.num_networks}, got {indices}; take more networks"
        )


def by_index(find: Callable[[int], np.ndarray], config: ConfigDict, **fields: Any) -> Task:
    """The task in which networks differ in the `index` i; ε and σ are those of a config.

    Args:
      find: find(seed) gives the directions [K, D] of a seed.
      fields: others of `Task`.
    """
    inner = separable()

    def make_data(model: Model, recipe: Recipe, seed: int) -> Any:
        rows = find(seed)
        if max(config.indices) >= len(rows):  # of a network of fewer weights than pixels
            raise InputError(f"indices: must be below {len(rows)}, got {config.indices}")
        return inner.data(model, recipe, seed), jnp.asarray(rows, jnp.float32)

    def sample(data: Any, split: str, numbers: jax.Array, arrays: Any) -> Any:
        noise, rows = data
        scales = {"epsilon": config.epsilon, "sigma": config.sigma}
        return inner.sample(noise, split, numbers, {"direction": rows[arrays["index"]], **scales})

    how = {"num_outputs": 2, "trusted": True, "shared": False, **fields}
    return Task(make_data, sample, arrays={"index": REQUIRED}, **how)
