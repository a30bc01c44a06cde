"""Linearization: a network and its first-order Taylor model in the weights (LIN, NeurIPS 2021),
trained from the same start on D(u_i), u_i the directions that the kernel of this start prefers.

    python -m experiments.main --config=configs/linearization.py:cpu --workdir=runs/linearization

The argument after the colon is a recipe:
    cpu   LIN's LeNet at seven indices, 20 epochs, three seeds; 45 min on a 2-core CPU (AMD EPYC) as
          two shards
    gpu   LIN's protocol: 100 epochs at 32 indices, five seeds; not measured
    smoke three indices at 8×8, one seed, two epochs: a minute of processor time
"""

from ml_collections import ConfigDict

from nad_jax.architectures import OPTIONS
from nad_jax.errors import unknown

RECIPES = {
    "cpu": {"indices": (0, 10, 50, 100, 200, 500, 900), "seeds": (0, 1, 2), "num_epochs": 20},
    "gpu": {
        "indices": (*range(0, 1024, 33),),
        "seeds": (0, 1, 2, 3, 4),
        "num_epochs": 100,
        "kernel_samples": 4000,
    },
    "smoke": {
        "indices": (0, 10, 50),
        "seeds": (0,),
        "image_shape": (8, 8, 1),
        "num_train": 256,
        "num_test": 256,
        "batch_size": 32,
        "num_epochs": 2,
        "loss_window": 4,
        "kernel_samples": 64,
    },
}


def get_config(recipe: str = "cpu") -> ConfigDict:
    if recipe not in RECIPES:
        raise unknown("config argument", recipe, RECIPES)
    config = ConfigDict()
    config.experiment = "linearization"

    # The network: the LeNet of LIN, which needs smooth activations.
    config.architecture = "lenet"
    config.pooling = "avg"  # default, max, avg, none, token
    config.width = 0  # of the layers, see `create_model`; 0: as published
    # depth, patch, activation, …, of which each architecture has some, see docs/models.md: 0, "default"
    #   and True are as published; density of random masks (1.0: none) and their rule, mask: uniform,
    #   er, erk
    config.update(OPTIONS)
    config.activation = "gelu"
    config.padding = "same"
    config.image_shape = (32, 32, 1)  # height, width, channels
    # reference (PyTorch-default), flax, he, lecun, orthogonal, sigma:W:B (σ_w and σ_b); default:
    #   reference, flax where papers have their own (vit, mixer, convnext) and for own models
    config.initialization = "default"
    config.convolution = "auto"  # auto, product, mixed, lax

    # What is trained, and along which directions.
    config.kinds = ("network", "linearization")
    config.indices = (0, 10, 50, 100, 200, 500, 900)  # of the directions of each start
    config.num_points = 0  # over which A = ∂²f/∂θ∂x is averaged, x ~ N(0, I); 0: at the origin
    # Regression with the kernel of the start on so many samples, beside each linearization; 0: none.
    config.kernel_samples = 1000

    # D(v).
    config.epsilon = 0.5  # class means are ±epsilon v
    config.sigma = 1.0  # standard deviation of the noise orthogonal to v
    config.num_train = 10_000
    config.num_test = 10_000
    config.seeds = (0,)

    # Training; see nad_jax.Recipe. The optimizer is a name of optax, with options as in
    # adam:b1=0.8:learning_rate=0.001
    config.optimizer = "sgd:momentum=0.9"
    config.learning_rate = 0.05
    config.schedule = "linear"  # linear, cosine, constant
    config.clip_norm = 0.0  # of the gradient's global norm; 0: no clipping
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
    config.num_devices = 0  # 0: all
    config.keep_weights = False  # store the trained networks
    config.update(RECIPES[recipe])
    return config
