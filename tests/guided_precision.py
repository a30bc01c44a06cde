"""Guided and plain training in double precision, for a process of its own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import nad_jax

SHAPE = (4, 4, 1)


class Net(nn.Module):
    """A network of two layers in double precision."""

    activation: str = "tanh"

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, param_dtype=jnp.float64)(x.reshape(len(x), -1))
        return nn.Dense(2, param_dtype=jnp.float64)(getattr(nn, self.activation)(x))


def write(path: str) -> None:
    """Writes losses and weights of plain training, and of training with a guidance of 0 and 1."""
    jax.config.update("jax_enable_x64", True)
    model, guide = (nad_jax.from_linen(Net(name), SHAPE) for name in ("tanh", "relu"))
    sizes = {"num_train": 64, "num_test": 32, "num_epochs": 5, "batch_size": 16, "loss_window": 2}
    how = {"recipe": nad_jax.Recipe(**sizes), "direction": np.eye(16)[:2], "keep": True}
    task = nad_jax.guided(nad_jax.separable(), model, guide)
    runs = {
        "plain": nad_jax.train_many(model, nad_jax.separable(), **how),
        "zero": nad_jax.train_many(model, task, guidance=0.0, **how),
        "one": nad_jax.train_many(model, task, **how),
    }
    found = {name: metrics.losses for name, metrics in runs.items()}
    found |= {f"{n}_weights": ravel_pytree(m.variables)[0] for n, m in runs.items()}
    np.savez(path, **{name: np.asarray(value) for name, value in found.items()})
