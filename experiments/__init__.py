"""Command-line experiments on top of `nad_jax`: one `run(config, workdir)` and one `draw(workdir)`
each.
"""
