"""Networks of one hidden layer on k patches of length d, which differ in locality and weight sharing
alone.

f(x) = Σ_u φ(w_uᵀ x) of the whole input (FCN), Σ_j Σ_u φ(w_{ju}ᵀ x_j) of filters of each patch (LCN),
Σ_j Σ_u φ(w_uᵀ x_j) of filters that all patches share (CNN). The read-out is the sum and stays so.

Source: Lahoti, Karp, Winston, Singh, Li, Role of Locality and Weight Sharing, with the soft
threshold φ_b(t) = ReLU(t − b) − ReLU(−t − b), b trained; ReLU in its place is ours: pairs of filters
ReLU(wᵀx − b) − ReLU(vᵀx − b), which is the same where v = −w.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from nad_jax.errors import InputError, check_choice, check_integer, check_number, shown
from nad_jax.models import Model, from_functions

# Of patches x [B, k, d] and filters: their products, [B, units] but for the order of axes.
_PRODUCTS = {"fcn": "bjd,ujd->bu", "lcn": "bjd,jud->bju", "cnn": "bjd,ud->bju"}
PATCH_NETWORKS, PATCH_ACTIVATIONS = tuple(_PRODUCTS), ("soft_threshold", "relu", "linear")


def create_patch_network(
    name: str,
    num_patches: int,
    patch_size: int,
    width: int = 1,
    activation: str = "soft_threshold",
    scale: float = 1.0,
    threshold: float = 0.0,
) -> Model:
    """A network on patches, of one logit and inputs (k, d): see the module's docstring.

    Its variables are "filters", [width · k, k, d] (FCN), [k, width, d] (LCN) or [width, d] (CNN),
    with ReLU two of them, in a leading axis; and "threshold", b √k, which is not there where the
    activation is linear. So b, whose gradient is a sum over patches, learns k times slower than it
    would; the code of the source's authors divides its learning rate by k. `with_two_logits` makes
    a classifier of the network.

    Training by gradients does not notice, and outputs do not change, where inputs and filters are
    rotated alike (FCN); where each patch is rotated with its filters, or patches are exchanged with
    them (LCN); where one rotation turns all patches and the filters, or patches are exchanged in
    the inputs alone (CNN).

    Args:
      name: "fcn", "lcn" or "cnn".
      num_patches, patch_size: k and d.
      width: filters of each patch; 1 is that of the source.
      activation: "soft_threshold", "relu", or "linear", φ(t) = t, for control.
      scale: filters start from N(0, scale² / fan_in), about of this norm.
      threshold: b at the start, of any sign, in units of a patch's product with a filter; 0 for
        linear networks, which have none.

    Raises:
      InputError: naming the argument, its value and what is allowed.
    """
    description = {
        "patch_network": check_choice("name", name, PATCH_NETWORKS),
        "num_patches": check_integer("num_patches", num_patches, 1),
        "patch_size": check_integer("patch_size", patch_size, 1),
        "width": check_integer("width", width, 1),
        "activation": check_choice("activation", activation, PATCH_ACTIVATIONS),
        "scale": check_number("scale", scale, 0.0),
        "threshold": check_number("threshold", threshold, -math.inf),
    }
    if activation == "linear" and threshold != 0:
        raise InputError(f"threshold: linear networks have none, must be 0, got {shown(threshold)}")
    fan_in = patch_size * (num_patches if name == "fcn" else 1)
    shape = {
        "fcn": (width * num_patches, num_patches, patch_size),
        "lcn": (num_patches, width, patch_size),
        "cnn": (width, patch_size),
    }[name]
    if activation == "relu":
        shape = (2, *shape)

    def project(filters: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.einsum(_PRODUCTS[name], x, filters).reshape(len(x), -1)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        normal = jax.random.normal(key, shape, jnp.float32)
        variables = {"filters": scale / math.sqrt(fan_in) * normal}
        if activation != "linear":
            variables["threshold"] = jnp.full((), threshold * math.sqrt(num_patches), jnp.float32)
        return variables

    def apply(
        variables: Any, x: jax.Array, key: jax.Array | None = None, train: bool = False
    ) -> Any:
        del key
        filters = variables["filters"]
        threshold = variables.get("threshold", 0.0) / math.sqrt(num_patches)
        if activation == "relu":
            parts = [project(one, x) - threshold for one in filters]
            hidden = jax.nn.relu(parts[0]) - jax.nn.relu(parts[1])
        elif activation == "soft_threshold":
            hidden = soft_threshold(project(filters, x), threshold)
        else:
            hidden = project(filters, x)
        outputs = hidden.sum(1, keepdims=True)
        return (outputs, variables) if train else outputs

    model = from_functions(init, apply, (num_patches, patch_size), check=False)
    return model._replace(description=description)


def soft_threshold(t: jax.Array, b: jax.Array) -> jax.Array:
    """φ_b(t) = ReLU(t − b) − ReLU(−t − b), entry by entry."""
    return jax.nn.relu(t - b) - jax.nn.relu(-t - b)
