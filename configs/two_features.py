"""Two features: how much a network relies on a shortcut rather than on the core feature, by how much
louder the shortcut is, or by which directions the two lie along.

    python -m experiments.main --config=configs/two_features.py:amplification --workdir=runs/amplification
    python -m experiments.main --config=configs/two_features.py:indices --config.nads=FILE --workdir=runs/indices

The argument after the colon is a recipe:
    amplification  an MLP and a linear classifier along random directions: predictivity of the shortcut
                   times its amplification, five seeds (the published question)
    indices        LeNet along its NADs at equal predictivity and amplification: a map of index against
                   index, three seeds; needs --config.nads=FILE, as compute_nads writes it
    gpu            indices with ResNet18 and twice as many; not measured
    smoke          a tiny network, to see that all runs: 10 s of CPU time
"""

from ml_collections import ConfigDict

from nad_jax.architectures import OPTIONS
from nad_jax.errors import unknown

_INDICES = {
    "image_shape": (32, 32, 1),
    "indices": (0, 1, 4, 16, 64, 128, 256, 512),
    "shortcut_predictivities": (0.9,),
    "amplifications": (1.0,),
    "sigma": 1.0,
    "num_epochs": 12,
    "seeds": (0, 1, 2),
}
RECIPES = {
    "amplification": {},
    "indices": {"architectures": ("lenet",), **_INDICES},
    "gpu": {
        "architectures": ("resnet18",),
        **_INDICES,
        "indices": (0, 1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 640, 768, 896),
        "seeds": (0, 1, 2, 3, 4),
        "num_train": 10_000,
    },
    "smoke": {
        "image_shape": (4, 4, 1),
        "architectures": ("mlp",),
        "shortcut_predictivities": (0.7, 0.9),
        "amplifications": (1.0, 4.0),
        "seeds": (0, 1),
        "num_train": 128,
        "num_test": 64,
        "num_epochs": 2,
        "batch_size": 32,
        "loss_window": 3,
    },
}


def get_config(recipe: str = "amplification") -> ConfigDict:
    if recipe not in RECIPES:
        raise unknown("config argument", recipe, RECIPES)
    config = ConfigDict()
    config.experiment = "two_features"

    # The networks.
    config.architectures = ("mlp", "logreg")
    config.pooling = "default"  # default, max, avg, none, token
    config.width = 0  # of the layers, see `create_model`; 0: as published
    # depth, patch, activation, …, of which each architecture has some, see docs/models.md: 0, "default"
    #   and True are as published; density of random masks (1.0: none) and their rule, mask: uniform,
    #   er, erk
    config.update(OPTIONS)
    config.image_shape = (10, 10, 1)  # height, width, channels
    # reference (PyTorch-default), flax, he, lecun, orthogonal, sigma:W:B (σ_w and σ_b); default:
    #   reference, flax where papers have their own (vit, mixer, convnext) and for own models
    config.initialization = "default"
    config.convolution = "auto"  # auto, product, mixed, lax

    # The directions of the two features: independent random unit vectors of each seed, or every
    # ordered pair of these NADs.
    config.indices = ()  # empty: random
    config.nads = ""  # the file of the NADs, .npz or .npy

    # The features. Predictivity: the accuracy of the sign of the feature alone.
    config.shortcut_predictivities = (0.6, 0.7, 0.8, 0.9)
    config.core_predictivity = 0.9
    config.amplifications = (1.0, 2.0, 3.0, 4.0, 5.0)  # of the shortcut; that of the core is 1
    config.correlation = 0.6  # of the two, given the label
    config.sigma = 0.0  # standard deviation of the noise outside of their plane
    config.num_train = 3200
    config.num_test = 1000
    config.num_probes = 30  # along each axis of the grid that reliance is measured on, even
    config.seeds = (0, 1, 2, 3, 4)

    # Training; see nad_jax.Recipe. The optimizer is a name of optax, with options as in
    # adam:b1=0.8:learning_rate=0.001
    config.optimizer = "sgd"
    config.learning_rate = 0.1
    config.schedule = "linear"  # linear, cosine, constant
    config.clip_norm = 0.5  # of the gradient's global norm; 0: no clipping
    config.weight_decay = 0.0
    config.batch_size = 128
    config.num_epochs = 30
    config.loss_threshold = 0.01  # of steps_to_loss
    config.loss_window = 25
    config.precision = (
        "default"  # on accelerators: default (GPU: TensorFloat-32, TPU: bfloat16), high, highest
    )

    # How it is computed.
    config.unit_size = 0  # networks per stored unit; 0: one chunk
    config.mapping = "auto"  # auto, sequential, vectorized
    config.chunk_size = 0  # networks per call of the compiled program; 0: automatic
    config.num_devices = 0  # 0: all
    config.keep_weights = False  # store the trained networks
    config.update(RECIPES[recipe])
    return config
