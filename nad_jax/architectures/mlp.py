"""Multi-layer perceptron: two hidden ReLU layers of 512 units. Not in the NAD paper; the control
without locality.
"""

import flax.linen as nn
import jax


class MLP(nn.Module):
    num_logits: int
    widths: tuple[int, ...] = (512, 512)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x.reshape(len(x), -1)
        for width in self.widths:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_logits)(x)
