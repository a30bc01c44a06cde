"""What networks are trained to do: one file for each task, see `task.Task`."""

from nad_jax.tasks.along import along_direction
from nad_jax.tasks.circles import circles
from nad_jax.tasks.denoising import denoising, denoising_images
from nad_jax.tasks.dynamic_signal import dynamic_signal
from nad_jax.tasks.images import images
from nad_jax.tasks.separable import separable
from nad_jax.tasks.two_features import two_features

__all__ = [
    "along_direction",
    "circles",
    "denoising",
    "denoising_images",
    "dynamic_signal",
    "images",
    "separable",
    "two_features",
]
