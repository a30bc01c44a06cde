"""The most (or least) isotropic network of a space: successive halving of the points of a grid by
the spectrum of their NADs, the last one against the start with new networks, and both on D(v).

    python -m experiments.main --config=configs/isotropy_search.py --workdir=runs/search
    python -m experiments.main --config=configs/isotropy_search.py:resnet18_w16 --workdir=runs/search

The argument after the colon is the space:
    lenet         LeNet at 16×16: pooling × activation × normalization × initialization, 72 points;
                  15 min but for a third of the first rung, on a 2-core CPU (AMD EPYC, AVX-512)
                  beside other programs
    resnet18_w16  ResNet18 at a quarter of the width: activation × normalization × residual ×
                  initialization, 64 points; for a GPU, and not measured

The start is the network that the fields of `compute_nads` say, as published. Axes are those of
`config.sweep`, replaced by name, e.g. --config.sweep.pooling=max.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from nad_jax.errors import unknown

SPACES = ("lenet", "resnet18_w16")
_COMPARISONS = ("compare", "compare_singular_values", "compare_num_networks")


def _read(name: str, argument: str) -> ConfigDict:
    return runpy.run_path(str(Path(__file__).with_name(name)))["get_config"](argument)


def get_config(space: str = "lenet") -> ConfigDict:
    if space not in SPACES:
        raise unknown("config argument", space, SPACES)
    # The start, the estimate, and the axes of the space.
    config = _read("compute_nads.py", space)
    for name in _COMPARISONS:
        del config[name]
    config.experiment = "isotropy_search"
    config.point = "fresh"  # what is compared belongs to no single point
    config.sweep.activation = ("relu", "gelu", "tanh", "silu")
    if space == "lenet":
        config.image_shape = (16, 16, 1)
        config.sweep.pooling = ("max", "avg")
        config.sweep.normalization = ("none", "layer", "group")
        config.sweep.initialization = ("reference", "he", "lecun")
    else:
        config.sweep.normalization = ("batch", "layer", "group", "none")
        config.sweep.residual = (True, False)
        config.sweep.initialization = ("reference", "he")

    # What is sought.
    config.objective = "kl_uniform"  # kl_uniform, effective_rank, participation_ratio
    config.seek = "most"  # most, least: isotropic
    config.max_parameters = 0  # of a network besides the start, with one logit; 0: any number

    # The rungs: of each the best 1/factor go on, with factor times the networks; the start always.
    config.num_rungs = 4
    config.factor = 2
    config.num_networks = 32  # of each point of the first rung
    config.unit_size = 8  # networks per stored unit, of which errors are made, too

    # The last one against the start: networks of another seed.
    config.confirm_networks = 512
    config.confirm_seed = 1

    # Both on D(v): fields of `directional_bias`, along as many random frequencies.
    config.num_frequencies = 12
    config.frequency_seed = 0
    config.accuracy = _read("directional_bias.py", "accuracy_map")
    half = config.image_shape[0] // 2
    config.accuracy.frequency_range = (-half, half)
    config.accuracy.frequency_step = 1
    return config
