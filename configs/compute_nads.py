"""NADs of an architecture: compute them, say how sure they are, compare and draw them.

    python -m experiments.main --config=configs/compute_nads.py:lenet --workdir=runs/lenet

The argument after the colon is the architecture; it also sets the number of networks and of
networks per stored unit. Every other number is overridden by name, e.g. --config.num_networks=1200
--config.seed=1.

On a 2-core CPU (AMD EPYC, AVX-512), compilation and figures included:
    lenet         200 networks   13 s          overlap with the published top 64: .933
    resnet18       24 networks   3 min 45 s    overlap with the published top 64: .991
    vgg11          16 networks   1 min 6 s     split-half overlap of the top 64: .821
    densenet121     4 networks   2 min 5 s     split-half overlap of the top 64: .945
(the last three beside other programs)
"""

from ml_collections import ConfigDict, config_dict

from nad_jax.architectures import OPTIONS
from nad_jax.errors import unknown

# (num_networks, unit_size)
ENSEMBLES = {
    "logreg": (10, 10),
    "mlp": (600, 120),
    "lenet": (200, 40),
    "vgg11": (16, 4),
    "vgg11_plain": (16, 4),
    "resnet18": (24, 4),
    "resnet18_w16": (100, 20),
    "resnet18_imagenet": (24, 4),
    "densenet121": (4, 2),
    "wide_resnet": (24, 4),
    "bottleneck_mlp": (24, 4),
    "vit": (24, 4),
    "mixer": (24, 4),
    "convnext": (8, 2),
}


def get_config(architecture: str = "lenet") -> ConfigDict:
    if architecture not in ENSEMBLES:
        raise unknown("config argument", architecture, ENSEMBLES)
    config = ConfigDict()
    config.experiment = "compute_nads"

    # The network.
    config.architecture = architecture
    config.image_shape = (32, 32, 1)  # height, width, channels
    config.num_logits = 1
    config.logit = config_dict.placeholder(int)  # which of several logits
    config.pooling = "default"  # default, max, avg, none, token
    config.width = 0  # of the layers, see `create_model`; 0: as published
    # depth, patch, activation, …, of which each architecture has some, see docs/models.md: 0, "default"
    #   and True are as published; density of random masks (1.0: none) and their rule, mask: uniform,
    #   er, erk
    config.update(OPTIONS)
    # reference (PyTorch-default), flax, he, lecun, orthogonal, sigma:W:B (σ_w and σ_b); default:
    #   reference, flax where papers have their own (vit, mixer, convnext) and for own models
    config.initialization = "default"
    config.convolution = "auto"  # auto, product, mixed, lax

    # The ensemble.
    config.num_networks = ENSEMBLES[architecture][0]
    config.seed = 0

    # The estimate; see nad_jax.Estimator.
    config.derivative = (
        "central_difference"  # central_difference (published), input_gradient (exact)
    )
    config.step = 100.0
    config.point = "shared"  # shared, fresh
    config.point_scale = 1.0
    config.readout = "marginalized"  # marginalized (closed form), sampled (published)
    config.num_readouts = 1
    config.centred = False
    config.symmetrized = (
        True  # average over the symmetries of the network; False where it has none for this shape
    )

    # How it is computed.
    config.unit_size = ENSEMBLES[architecture][1]  # networks per stored unit
    config.chunk_size = 0  # networks per call of the compiled program; 0: automatic
    config.block_size = 64  # pixels per forward pass of the central difference
    config.mapping = "auto"  # auto, sequential, vectorized

    # Comparison with stored directions (.npy or nads.npz) and singular values (.npy) of an N×D
    # matrix.
    config.compare = ""
    config.compare_singular_values = ""
    config.compare_num_networks = 10_000  # N

    # Axes to sweep over, each a tuple of values of the field of that name; every point has a folder
    # of its own.
    config.sweep = ConfigDict()
    config.sweep.architecture = ()
    config.sweep.pooling = ()
    config.sweep.width = ()
    config.sweep.update(dict.fromkeys(OPTIONS, ()))
    config.sweep.initialization = ()
    config.sweep.derivative = ()
    config.sweep.step = ()
    config.sweep.point = ()
    config.sweep.point_scale = ()
    config.sweep.readout = ()
    config.sweep.seed = ()

    # Figures.
    config.figure_directions = 16
    return config
