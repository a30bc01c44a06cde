"""How isotropic architectures and their options are: NADs of a grid, metrics of their spectra.

    python -m experiments.main --config=configs/architecture_grid.py:lenet --workdir=runs/grid

The argument after the colon is the grid:
    architectures   networks of the table as published, in smaller sizes, and some of their variants,
                    12 points; 21 min on a 2-core CPU (AMD EPYC, AVX-512), beside other programs
    lenet           LeNet at 16×16: pooling × activation × normalization, 36 points; 3 min 42 s on a
                    2-core CPU (Intel Xeon)

It is `compute_nads` with axes in `config.sweep`, and has all of its fields: every point has a folder
of its own, shards and resumes; `results.csv` has a row for each point with the metrics of its
spectrum and their standard errors, `spectra.png` and `metrics.png` show them beside each other. Axes
are replaced by name, e.g. --config.sweep.architecture="('lenet','vit(patch=8,depth=2)')".
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from nad_jax.errors import unknown

GRIDS = ("architectures", "lenet")
ARCHITECTURES = (
    "mlp",
    "bottleneck_mlp(depth=2)",
    "lenet",
    "lenet(pooling='avg')",
    "lenet(pooling='none')",
    "lenet(activation='tanh')",
    "lenet(normalization='layer')",
    "vgg11(width=16)",
    "resnet18_w16",
    "resnet18_w16(residual=False)",
    "vit(depth=3)",
    "vit(depth=3,position='none')",
)


def get_config(grid: str = "architectures") -> ConfigDict:
    if grid not in GRIDS:
        raise unknown("config argument", grid, GRIDS)
    base = runpy.run_path(str(Path(__file__).with_name("compute_nads.py")))
    config = base["get_config"]("lenet")

    # The ensemble, the same size for all points: metrics are compared at equal N.
    config.num_networks = 64
    config.unit_size = 32

    # Points of their own for all networks: what is compared belongs to no single point.
    config.point = "fresh"

    if grid == "architectures":
        config.sweep.architecture = ARCHITECTURES
    else:
        config.image_shape = (16, 16, 1)
        config.sweep.pooling = ("max", "avg", "none")
        config.sweep.activation = ("relu", "gelu", "tanh", "silu")
        config.sweep.normalization = ("none", "layer", "group")

    config.figure_directions = 16
    return config
