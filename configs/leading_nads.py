"""Leading NADs of inputs too large for a D×D matrix: the ImageNet ResNet18 at 224×224×3, D =
150,528.

    python -m experiments.main --config=configs/leading_nads.py --workdir=runs/leading

The argument after the colon is the architecture, resnet18_imagenet without one. A unit is a pass
over some networks; a shard that comes to a pass before the others have finished the one before ends
with exit code 75 and is run again.

On a 2-core CPU (AMD EPYC, AVX-512) 256 networks of 16 read-outs take 9 min 26 s for three passes,
compilation (19 s, 50 s beside other programs) and figures included, 3.0 GiB of memory and at most
1.8 GB of disk, without the snapshots of a unit (.7 GB). Sizes 1 / 4 / 16 / 64:
    split-half overlap          .484 / .243 / .062 / .017
    changed by the last pass    .009 / .058 / .19 / .19
The first two directions stand out, eigenvalues 1.67e-5 and 1.64e-5 ± 2e-7: they are the symmetric
and the antisymmetric part of the shared point under transposition (cosines .81), for a network
without biases has gᵀx = f(x) at initialization. All others are within their errors of each other
(5.8e-6 ± 5e-6 and less); more networks would tell them apart.
"""

from ml_collections import ConfigDict, config_dict

from nad_jax.architectures import ARCHITECTURES, OPTIONS
from nad_jax.errors import unknown


def get_config(architecture: str = "resnet18_imagenet") -> ConfigDict:
    if architecture not in ARCHITECTURES:
        raise unknown("config argument", architecture, ARCHITECTURES)
    config = ConfigDict()
    config.experiment = "leading_nads"

    # The network.
    config.architecture = architecture
    config.image_shape = (224, 224, 3)  # height, width, channels
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
    config.num_networks = 256
    config.seed = 0

    # The estimate; see nad_jax.Estimator.
    config.derivative = "input_gradient"  # central_difference (2·D forward passes a network), input_gradient (exact)
    config.step = 100.0
    config.point = "shared"  # shared, fresh
    config.point_scale = 1.0
    config.readout = "sampled"  # marginalized (a backward pass for every feature), sampled
    config.num_readouts = 16
    config.centred = False
    config.symmetrized = (
        True  # average over the symmetries of the network; False where it has none for this shape
    )

    # What is found, and how closely; see nad_jax.estimate_leading_nads.
    config.num_directions = 64
    config.num_extra = 32  # directions that are iterated beside them
    config.num_passes = 3  # can be raised later; the errors of a single pass are too small

    # How it is computed.
    config.unit_size = 64  # networks per stored unit
    config.chunk_size = 0  # networks per call of the compiled program; 0: automatic
    config.block_size = 64  # pixels per forward pass of the central difference
    config.mapping = "auto"  # auto, sequential, vectorized

    # Figures.
    config.figure_directions = 8
    return config
