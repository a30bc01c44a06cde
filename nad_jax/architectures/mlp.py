"""Multi-layer perceptron: two hidden ReLU layers of `width` units, 512 by default. Not in the NAD
paper; the control without locality.
"""

import flax.linen as nn
import jax

from nad_jax.architectures.network import TableNetwork
from nad_jax.blocks import Alike


class MLP(TableNetwork):
    width: int = 512

    def alike(self) -> Alike:
        """A unit's weights and bias are as likely with the other sign, which flips its gate: the
        gradient has E[g gᵀ] = λI at every point, see `closed_form.relu_eigenvalue`.
        """
        return Alike("all", anywhere=("input_gradient",), layer="Dense_0")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(self.num_logits)(x)
