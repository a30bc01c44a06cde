"""Networks and seconds until leading subspaces agree with a converged reference, by read-out and
derivative.

    python -m experiments.main --config=configs/time_to_accuracy.py --workdir=runs/time_to_accuracy

The argument after the colon is the architecture; it also sets how long its ensembles grow.

LeNet takes 4 min 32 s on a 2-core CPU (AMD EPYC, AVX-512). Central difference: the leading 64
directions overlap with the reference by .9 after 24 networks marginalized and symmetrized (.6 s),
156 marginalized (3.9 s), 832 with eight sampled read-outs (20 s), and by .70 after 832 with one (21
s). Exact gradients, the leading 256: 108, 1,128, 4,032 and 20,224. Their leading 64 are not
determined: the halves of the reference overlap by .70. (Other architectures are not measured.)
"""

from ml_collections import ConfigDict

from nad_jax.architectures import OPTIONS
from nad_jax.errors import unknown

# (first_networks, max_seconds, reference_networks)
LENGTHS = {
    "logreg": (64, 10.0, 200),
    "mlp": (64, 20.0, 2000),
    "lenet": (64, 30.0, 2000),
    "vgg11": (4, 600.0, 200),
    "vgg11_plain": (4, 600.0, 200),
    "resnet18": (4, 600.0, 100),
    "resnet18_w16": (16, 120.0, 400),
    "densenet121": (2, 1800.0, 40),
    "resnet18_imagenet": (2, 1800.0, 40),
    "wide_resnet": (4, 600.0, 100),
    "bottleneck_mlp": (4, 600.0, 100),
    "vit": (4, 600.0, 100),
    "mixer": (4, 600.0, 100),
    "convnext": (2, 1800.0, 40),
}


def get_config(architecture: str = "lenet") -> ConfigDict:
    if architecture not in LENGTHS:
        raise unknown("config argument", architecture, LENGTHS)
    config = ConfigDict()
    config.experiment = "time_to_accuracy"

    # The network; it has one logit.
    config.architecture = architecture
    config.image_shape = (32, 32, 1)  # height, width, channels
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

    # The derivatives, each at a point of its own for every network; see nad_jax.Estimator.
    config.derivatives = ("central_difference", "input_gradient")
    config.step = 100.0  # of the central difference
    config.point_scale = 1.0

    # The ensembles: one per derivative, read-out and seed.
    config.seeds = (0,)
    config.num_readouts = 8  # of the ensemble that samples several read-outs per network
    config.first_networks = LENGTHS[architecture][
        0
    ]  # at the first look; fewer where their rows take more than 4 MB
    config.max_networks = 65_536  # an ensemble ends with these,
    config.max_seconds = LENGTHS[architecture][
        1
    ]  # or with the last look that should come within this time

    # The reference of each derivative, marginalized and symmetrized.
    config.reference_seed = 1000
    config.reference_networks = LENGTHS[architecture][2]

    # What is compared: the leading directions, at these sizes; the printed table says when the
    # target is reached.
    config.sizes = (64, 256)
    config.target_overlap = 0.9

    # How it is computed.
    config.block_size = 64  # pixels per forward pass of the central difference
    config.mapping = "auto"  # auto, sequential, vectorized
    return config
