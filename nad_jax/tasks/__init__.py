"""What networks are trained to do: one file for each task, see `fitting.Task`."""

from nad_jax.tasks.denoising import denoising, denoising_images
from nad_jax.tasks.images import images
from nad_jax.tasks.separable import separable

__all__ = ["denoising", "denoising_images", "images", "separable"]
