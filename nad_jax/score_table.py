"""The table of built-in score networks.

Sources: SAD; improved DDPM (Nichol and Dhariwal 2021) for `unet`, Peebles and Xie (2023) for `dit`.
`mlp` and `cnn` are ours: controls of two hidden layers.
"""

import functools
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nad_jax.architectures.dit import DiT
from nad_jax.architectures.options import NONE, Option, check_options, list_options
from nad_jax.architectures.score_controls import ScoreCNN, ScoreMLP
from nad_jax.architectures.score_module import HEAD, ZERO, Law, ScoreModule
from nad_jax.architectures.unet import UNet
from nad_jax.convolution import CONVOLUTIONS, resolve_convolution
from nad_jax.errors import check_choice, check_image_shape, check_input_shape
from nad_jax.initializers import Plan, draw_plans
from nad_jax.score_networks import ScoreNetwork

SCORE_NETWORKS: dict[str, type[ScoreModule]] = {
    "unet": UNet,
    "dit": DiT,
    "mlp": ScoreMLP,
    "cnn": ScoreCNN,
}


def create_score_network(
    name: str, input_shape: tuple[int, ...] = (16, 16, 1), convolution: str = "auto", **options: Any
) -> ScoreNetwork:
    """A built-in score network, with the initialization of its authors' code.

    Args:
      name: a key of `SCORE_NETWORKS`.
      input_shape: of one input: "mlp" takes any, the others images (H, W, C).
      convolution: "auto" (by backend), "product" or "lax", see `convolution`.
      options: fields of the network's module; "default", None and 0 as published.

    Raises:
      InputError: naming the argument, its value and what is allowed.
    """
    module = SCORE_NETWORKS[check_choice("name", name, SCORE_NETWORKS)]
    known = {}
    for one in SCORE_NETWORKS.values():
        known |= list_options(one)
    return _create(
        name,
        (check_image_shape if module.takes_images else check_input_shape)(input_shape),
        resolve_convolution(convolution),
        check_options(name, list_options(module), options, known, shared=()),
        jnp.result_type(float),
    )


def score_options(name: str) -> dict[str, Option]:
    """The options of a score network: the published value of each, and what else it may be.

    Raises:
      InputError: for a name that is not in `SCORE_NETWORKS`.
    """
    return list_options(SCORE_NETWORKS[check_choice("name", name, SCORE_NETWORKS)])


@functools.lru_cache(maxsize=128)
def _create(
    name: str,
    input_shape: tuple[int, ...],
    convolution: str,
    options: tuple[tuple[str, Any], ...],
    precision: np.dtype,  # of JAX, which the shapes that are kept depend on
) -> ScoreNetwork:
    del precision
    changed = dict(options)
    module = SCORE_NETWORKS[name](CONVOLUTIONS[convolution], **changed)
    x, t = jnp.zeros((1, *input_shape), jnp.float32), jnp.zeros((1,), jnp.float32)
    shapes = jax.eval_shape(lambda key: module.init(key, x, t), jax.random.key(0))
    laws = _find_laws(module, shapes)
    leaves, structure = jax.tree.flatten(shapes)
    plans = [Plan(leaf, *law) for leaf, law in zip(leaves, laws.values(), strict=True)]

    def last_layer(variables: Any) -> Any:
        variances = [law.variance * (HEAD in path) for path, law in laws.items()]
        return jax.tree.unflatten(jax.tree.structure(variables), variances)

    description = {
        "score_network": name,
        "image_shape": list(input_shape),
        "initialization": module.initialization,
        "convolution": convolution,
        **{option: NONE if value is None else value for option, value in changed.items()},
    }
    described = MappingProxyType(description)
    init = draw_plans(plans, structure)
    return ScoreNetwork(init, module.apply, input_shape, last_layer, described)


def _find_laws(module: ScoreModule, shapes: Any) -> dict[tuple[str, ...], Law]:
    """The law of every variable, by its path: names of modules, and last "kernel", "bias" or
    "scale".
    """
    leaves = jax.tree.leaves_with_path(shapes)
    leaves = {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}
    laws = {}
    for path in leaves:
        layer, name = path[-2:]
        kernel = leaves.get((*path[:-1], "kernel"))
        if kernel is None:  # of a normalization, which starts as the identity
            laws[path] = Law("constant", float(name == "scale"))
        elif layer in module.zeroed():
            laws[path] = ZERO
        else:
            laws[path] = module.law(layer, kernel)[name == "bias"]
    return laws
