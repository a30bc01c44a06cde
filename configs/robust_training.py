"""Robust training: networks trained on D(u_i) under attacks, u_i the NADs of their architecture.

    python -m experiments.main --config=configs/robust_training.py:cpu --workdir=runs/robust_training

The argument after the colon is a recipe:
    smoke   an MLP on 4×4 images, in seconds
    cpu     LeNet on 16×16 images at eight NADs without attacks and under four, three
            seeds; 5 min 17 s on a 2-core CPU (AMD EPYC) as two shards, beside other programs
    gpu     LeNet on 32×32 images at 32 NADs, five seeds; not measured
"""

from ml_collections import ConfigDict

from nad_jax.architectures import OPTIONS
from nad_jax.errors import unknown

RECIPES = {
    "smoke": {
        "architecture": "mlp",
        "width": 8,
        "image_shape": (4, 4, 1),
        "num_networks": 20,
        "indices": (0, 9),
        "attacks": ("none", "l2:0.5"),
        "seeds": (0, 1),
        "num_train": 64,
        "num_test": 64,
        "num_epochs": 2,
        "batch_size": 16,
        "steps": 2,
        "loss_window": 2,
    },
    "cpu": {},
    "gpu": {
        "image_shape": (32, 32, 1),
        "num_networks": 2000,
        "indices": (*range(0, 1024, 33),),
        "seeds": (0, 1, 2, 3, 4),
        "num_train": 10_000,
        "num_test": 10_000,
        "num_epochs": 20,
        "steps": 7,
        "loss_window": 79,
    },
}


def get_config(recipe: str = "cpu") -> ConfigDict:
    if recipe not in RECIPES:
        raise unknown("config argument", recipe, RECIPES)
    config = ConfigDict()
    config.experiment = "robust_training"

    # The network.
    config.architecture = "lenet"
    config.pooling = "default"  # default, max, avg, none, token
    config.width = 0  # of the layers, see `create_model`; 0: as published
    # depth, patch, activation, …, of which each architecture has some, see docs/models.md: 0, "default"
    #   and True are as published; density of random masks (1.0: none) and their rule, mask: uniform,
    #   er, erk
    config.update(OPTIONS)
    config.image_shape = (16, 16, 1)  # height, width, channels
    # reference (PyTorch-default), flax, he, lecun, orthogonal, sigma:W:B (σ_w and σ_b); default:
    #   reference, flax where papers have their own (vit, mixer, convnext) and for own models
    config.initialization = "default"
    config.convolution = "auto"  # auto, product, mixed, lax

    # The directions: NADs of so many untrained networks.
    config.num_networks = 500
    config.indices = (0, 8, 16, 32, 64, 96, 128, 192)

    # The attacks that networks are trained under: none, or the norm and the radius.
    config.attacks = ("none", "l2:0.05", "l2:0.1", "l2:0.25", "linf:0.01")
    config.steps = 3  # of projected gradient descent, in training and afterwards
    # The radii of the attacks that all trained networks are tested under.
    config.test_l2 = 0.1
    config.test_linf = 0.01

    # D(v).
    config.epsilon = 1.0  # class means are ±epsilon v
    config.sigma = 0.25  # standard deviation of the noise orthogonal to v
    config.num_train = 2000
    config.num_test = 1000
    config.seeds = (0, 1, 2)

    # Training; see nad_jax.Recipe. The optimizer is a name of optax, with options as in
    # adam:b1=0.8:learning_rate=0.001
    config.optimizer = "sgd"
    config.learning_rate = 0.5
    config.schedule = "linear"  # linear, cosine, constant
    config.clip_norm = 0.5  # of the gradient's global norm; 0: no clipping
    config.weight_decay = 0.0
    config.batch_size = 128
    config.num_epochs = 10
    config.loss_threshold = 0.01  # of steps_to_loss
    config.loss_window = 16
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
