"""CIFAR-10 poisoned along NADs: which carriers a network takes up, by NAD index (published for
ResNet18).

    python -m experiments.main --config=configs/poison_cifar.py:lenet --workdir=runs/poison_lenet
        --config.data_dir=DATA --config.nads=runs/demo/nads.npz

The argument after the colon is an architecture; the NADs are those of its one-channel network.

On a 2-core CPU (AMD EPYC, AVX-512) LeNet with two seeds takes an hour beside other programs, 3 min
a network, and ends at 32.6, 33.0, 60.0, 49.7, 47.3, 67.8, 66.9 % for the indices below, 67.5 %
clean (images re-encoded as JPEG). For a GPU, and not measured: vgg11, resnet18, densenet121.
"""

from ml_collections import ConfigDict

from nad_jax import cifar
from nad_jax.architectures import ARCHITECTURES, OPTIONS
from nad_jax.errors import unknown


def get_config(architecture: str = "lenet") -> ConfigDict:
    if architecture not in ARCHITECTURES:
        raise unknown("config argument", architecture, ARCHITECTURES)
    config = ConfigDict()
    config.experiment = "poison_cifar"

    # The images: a folder with CIFAR-10 in one of its official layouts. 0: all of them, otherwise
    # the first so many.
    config.data_dir = ""
    config.num_train = 0
    config.num_test = 0
    config.mean = cifar.MEAN  # subtracted per channel after poisoning
    config.std = cifar.STD  # and divided by

    # The poison: ±epsilon along NADs of one channel (.npz or .npy); {architecture} in the path
    # stands for its name.
    config.nads = ""
    config.nad_indices = (0, 10, 50, 100, 200, 500, 900)
    config.epsilons = (0.05,)
    config.clean = True  # also networks on the images as they are
    config.seeds = (0,)

    # The networks.
    config.architectures = (architecture,)
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

    # Training; see nad_jax.Recipe. The optimizer is a name of optax, with options as in adam:b1=0.8
    config.optimizer = "sgd:momentum=0.9"
    config.learning_rate = 0.21
    config.schedule = "linear"  # linear, cosine, constant
    config.clip_norm = 0.5  # of the gradient's global norm; 0: no clipping
    config.weight_decay = 5e-4
    config.batch_size = 128
    config.num_epochs = 50
    config.loss_threshold = 0.01  # of steps_to_loss
    config.loss_window = 391
    config.precision = (
        "default"  # on accelerators: default (GPU: TensorFloat-32, TPU: bfloat16), high, highest
    )

    # How it is computed.
    config.unit_size = 0  # networks per stored unit; 0: one chunk
    config.mapping = "sequential"  # one network after the other on each device; vectorized: a chunk at once; auto
    config.chunk_size = 0  # networks per call of the compiled program; 0: automatic
    config.num_devices = 0  # 0: all local devices
    config.keep_weights = (
        False  # store the trained variables in the units, see `nad_jax.read_weights`
    )
    return config
