"""Directional bias: how well networks learn D(v), for v on a grid of Fourier vectors, along NADs, at random.

    python -m experiments.main --config=configs/directional_bias.py:accuracy_map --workdir=runs/accuracy_map
    python -m experiments.main --config=configs/directional_bias.py:accuracy_map,resnet18 --workdir=...

The argument after the colon is a recipe of `RECIPES` and, after a comma, an architecture in place of LeNet. Every
number is overridden by name, e.g. --config.seeds=0,1 --config.frequency_step=4 --config.sigmas=0.5,1.0,3.0.
"""

from ml_collections import ConfigDict

from nad_jax.architectures import ARCHITECTURES
from nad_jax.errors import unknown

RECIPES = {
    # Accuracy at sigma = 3 on every other frequency: figure 1 of the paper, one architecture at a time.
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
    # A frequency that ResNet18 learns, (4, 4), and one that it does not, (6, 6), at a quarter of its width: for a CPU.
    "resnet18_corner": {"architectures": ("resnet18_w16",), "frequency_range": (4, 8), "indices": (0, 3)},
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
    config.poolings = ("default",)  # default, max, avg, none
    config.image_shape = (32, 32, 1)  # height, width, channels
    config.initialization = "reference"  # reference (PyTorch-default), flax
    config.convolution = "auto"  # auto, product, lax

    # The directions v.
    config.source = "dft"  # dft, nads, dct, pixel, random, file
    config.frequency_range = (-16, 16)  # dft: first frequency and the one after the last, in cycles per image
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
    config.nums_train = (10_000,)
    config.num_test = 10_000
    config.seeds = (0,)

    # Training; see nad_jax.Recipe. Optimizers are names of optax, with options as in adam:b1=0.8:learning_rate=0.001
    config.optimizers = ("sgd",)
    config.learning_rate = 0.5
    config.schedule = "linear"  # linear, cosine, constant
    config.clip_norm = 0.5  # of the gradient's global norm; 0: no clipping
    config.weight_decay = 0.0
    config.batch_size = 128
    config.num_epochs = 20
    config.loss_threshold = 0.01  # of steps_to_loss
    config.loss_window = 79
    config.precision = "default"  # of products on accelerators: default, high, highest

    # How it is computed.
    config.unit_size = 0  # networks per stored unit; 0: one chunk
    config.mapping = "auto"  # auto, sequential, vectorized
    config.chunk_size = 0  # networks per call of the compiled program; 0: automatic
    config.num_devices = 0  # 0: all local devices

    # NADs (.npz, or .npy with the singular values of an N×D matrix): the directions of source "nads", and for every
    # source their vᵀGv is compared with the accuracies. A published table of accuracies (.csv).
    config.nads = ""
    config.singular_values = ""
    config.singular_values_num_networks = 10_000  # N
    config.compare = ""

    config.update(RECIPES[recipe])
    if architecture:
        config.architectures = (architecture,)
    return config
