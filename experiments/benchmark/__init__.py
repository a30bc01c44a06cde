"""Timings of nad_jax against PyTorch and against the arithmetic."""
