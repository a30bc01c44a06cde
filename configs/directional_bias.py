"""Directional bias: how well networks learn D(v), for v on a grid of Fourier vectors, along NADs,
at random.

    python -m experiments.main --config=configs/directional_bias.py:accuracy_map --workdir=runs/map
    python -m experiments.main --config=configs/directional_bias.py:accuracy_map,vgg11 --workdir=...

The argument after the colon is a recipe of `RECIPES` and, after a comma, an architecture in place
of LeNet. Every number is overridden by name, e.g. --config.seeds=0,1 --config.frequency_step=4
--config.sigmas=0.5,1.0,3.0.

On a 2-core CPU (AMD EPYC, AVX-512); times marked * beside other programs:
    accuracy_map                    two seeds    31 min*        Pearson .971 with the published map
    accuracy_map,logreg                          1 min 33 s     100.0 % in every direction
    nad_accuracy                                 2 min 30 s     97.7, 82.6, 69.4, 54.2 % at NAD 50, 100, 200, 500
    coarse_levels                                23 min*        mean 80, 69, 56 % (cosine) at sigma 0.5, 1, 3
    no_pooling                                   27 min*        mean 55.9 % with pooling, 95.4 % without
    random_directions, LeNet alone               3 min 35 s*     mean 59.7 %, all within 58.1 … 61.3 %
    resnet18_corner                              24 min*        99.7 % at (4, 4), 51.5 % at (6, 6)
A LeNet takes 5 s. sigma_levels (768 of them) and steps_to_loss (130) are coarse_levels on every
other frequency. For a GPU, and not measured: accuracy_map with vgg11, resnet18 and densenet121, and
random_directions with ResNet18.
"""

from ml_collections import ConfigDict

from nad_jax.architectures import ARCHITECTURES, OPTIONS
from nad_jax.errors import unknown

RECIPES = {
    # Accuracy at sigma = 3 on every other frequency: figure 1 of the paper, one architecture at a
    # time.
    "accuracy_map": {},
    # Cosine and sine parts at three noise levels, side by side.
    "sigma_levels": {"sigmas": (0.5, 1.0, 3.0), "phases": "both"},
    # Steps to a training loss of .01 where every direction is learned easily.
    "steps_to_loss": {"sigmas": (0.5,)},
    # The same, cosine and sine parts and noise levels, on a coarse grid.
    "coarse_levels": {"sigmas": (0.5, 1.0, 3.0), "phases": "both", "frequency_step": 4},
    # Random orthogonal directions: every one of them mixes all frequencies.
    "random_directions": {
        "source": "random",
        "num_directions": 32,
        "architectures": ("lenet", "resnet18"),
        "sigmas": (1.0,),
    },
    # Accuracy along NADs: figure 6 of the paper. Needs --config.nads=FILE.
    "nad_accuracy": {
        "source": "nads",
        "indices": (0, 5, 10, 20, 50, 100, 200, 500, 1022),
        "sigmas": (1.0,),
        "seeds": (0, 1, 2),
    },
    # Every pooling and stride removed, next to the network as it is.
    "no_pooling": {"poolings": ("default", "none"), "frequency_step": 4},
    # A frequency that ResNet18 learns, (4, 4), and one that it does not, (6, 6), at a quarter of
    # its width: for a CPU.
    "resnet18_corner": {
        "architectures": ("resnet18_w16",),
        "frequency_range": (4, 8),
        "indices": (0, 3),
    },
}


def get_config(argument: str = "accuracy_map") -> ConfigDict:
    recipe, _, architecture = argument.partition(",")
    if recipe not in RECIPES:
        raise unknown("config argument", recipe, RECIPES)
    if architecture and architecture not in ARCHITECTURES:
        raise unknown("config argument", architecture, ARCHITECTURES)
    config = ConfigDict()
    config.experiment = "directional_bias"

    # The networks.
    config.architectures = ("lenet",)
    config.poolings = ("default",)  # default, max, avg, none, token
    config.widths = (0,)  # of the layers, see `create_model`; 0: as published
    # depth, patch, activation, …, of which each architecture has some, see docs/models.md: 0, "default"
    #   and True are as published; density of random masks (1.0: none) and their rule, mask: uniform,
    #   er, erk
    config.update(OPTIONS)
    config.image_shape = (32, 32, 1)  # height, width, channels
    # reference (PyTorch-default), flax, he, lecun, orthogonal, sigma:W:B (σ_w and σ_b); default:
    #   reference, flax where papers have their own (vit, mixer, convnext) and for own models
    config.initialization = "default"
    config.convolution = "auto"  # auto, product, mixed, lax

    # The directions v.
    config.source = "dft"  # dft, nads, dct, pixel, random, file
    # dft: first frequency and the one after the last, in cycles per image; an axis of N pixels has
    #   −N/2 … N/2 of them
    config.frequency_range = (-16, 16)
    config.frequency_step = 2
    config.phases = "cosine"  # dft: cosine, sine, both
    config.channel = 0  # dft: the channel the direction lives in
    config.indices = ()  # which of the source's directions; empty: all
    config.num_directions = 32  # random
    config.direction_seed = 0  # random
    config.directions = ""  # file: .npy or .npz of unit rows

    # D(v).
    config.epsilons = (1.0,)  # class means are ±epsilon v
    config.sigmas = (3.0,)  # standard deviation of the noise orthogonal to v
    config.num_train = (10_000,)
    config.nums_train = ()  # the earlier name of num_train, which is still taken
    config.num_test = 10_000
    config.seeds = (0,)

    # Training; see nad_jax.Recipe. Optimizers are names of optax, with options as in
    # adam:b1=0.8:learning_rate=0.001
    config.optimizers = ("sgd",)
    config.learning_rate = 0.5
    config.schedule = "linear"  # linear, cosine, constant
    config.clip_norm = 0.5  # of the gradient's global norm; 0: no clipping
    config.weight_decay = 0.0
    config.batch_size = 128
    config.num_epochs = 20
    config.loss_threshold = 0.01  # of steps_to_loss
    config.loss_window = 79
    config.precision = (
        "default"  # on accelerators: default (GPU: TensorFloat-32, TPU: bfloat16), high, highest
    )

    # How it is computed.
    config.unit_size = 0  # networks per stored unit; 0: one chunk
    config.mapping = "auto"  # auto, sequential, vectorized
    config.chunk_size = 0  # networks per call of the compiled program; 0: automatic
    config.num_devices = 0  # 0: all local devices
    config.keep_weights = (
        False  # store the trained variables in the units, see `nad_jax.read_weights`
    )

    # NADs (.npz, or .npy with the singular values of an N×D matrix): the directions of source
    # "nads", and for every source their vᵀGv is compared with the accuracies. A published table of
    # accuracies (.csv).
    config.nads = ""
    config.singular_values = ""
    config.singular_values_num_networks = 10_000  # N
    config.compare = ""

    config.update(RECIPES[recipe])
    if architecture:
        config.architectures = (architecture,)
    return config
