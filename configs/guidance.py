"""Guidance: does a network take on the directions of an untrained network of another architecture,
whose features its own are made alike to in training?

    python -m experiments.main --config=configs/guidance.py:cpu --workdir=runs/guidance

The argument after the colon is a recipe:
    smoke  a small MLP and LeNet at 8×8, two indices, one seed: seconds
    cpu    an MLP guided by LeNet at 16×16, 12 indices, three seeds; 1 min 56 s on a 2-core
           CPU (AMD EPYC) as two shards of one thread each
    gpu    the same at 32×32 with 10,000 samples, 16 indices, five seeds; not measured
"""

from ml_collections import ConfigDict

from nad_jax.errors import unknown

RECIPES = {
    "smoke": {
        "network": "mlp(width=16)",
        "guide": "lenet(padding='same', width=3)",
        "image_shape": (8, 8, 1),
        "indices": (0, 40),
        "seeds": (0,),
        "num_networks": 20,
        "num_points": 16,
        "num_train": 128,
        "num_test": 128,
        "num_epochs": 2,
        "loss_window": 4,
    },
    "cpu": {},
    "gpu": {
        "network": "mlp",
        "image_shape": (32, 32, 1),
        "indices": (*range(0, 1024, 68),),
        "seeds": (0, 1, 2, 3, 4),
        "num_networks": 4000,
        "num_train": 10_000,
        "num_test": 10_000,
        "num_epochs": 20,
        "loss_window": 79,
    },
}


def get_config(recipe: str = "cpu") -> ConfigDict:
    if recipe not in RECIPES:
        raise unknown("config argument", recipe, RECIPES)
    config = ConfigDict()
    config.experiment = "guidance"

    # The network that is trained and its guide, with their options: "mlp(width=256)".
    config.network = "mlp(width=256)"
    config.guide = "lenet"
    config.image_shape = (16, 16, 1)  # height, width, channels
    # reference (PyTorch-default), flax, he, lecun, orthogonal, sigma:W:B (σ_w and σ_b); default:
    #   reference, flax where papers have their own (vit, mixer, convnext) and for own models
    config.initialization = "default"
    config.convolution = "auto"  # auto, product, mixed, lax

    # Guidance: α times the sum of 1 − CKA over pairs of layers is added to the loss; 0: plain
    # training.
    config.guidances = (0.0, 1.0)
    config.layers = "last"  # last: what the last linear layer reads; all: every layer but it
    config.train_guide = True  # train the guide, too, on the same data and alone

    # The directions: NADs of the guide, of exact gradients at points N(0, I), one for each network.
    config.indices = (0, 2, 5, 10, 20, 35, 50, 75, 100, 150, 200, 250)
    config.num_networks = 2000
    config.direction_seed = 0
    # The geometry of each trained network, without its own direction: at so many test samples.
    config.num_points = 64

    # D(v).
    config.epsilon = 1.0  # class means are ±epsilon v
    config.sigma = 1.0  # standard deviation of the noise orthogonal to v
    config.num_train = 500
    config.num_test = 2000
    config.seeds = (0, 1, 2)

    # Training; see nad_jax.Recipe. The optimizer is a name of optax, with options as in
    # adam:b1=0.8:learning_rate=0.001
    config.optimizer = "sgd"
    config.learning_rate = 0.5
    config.schedule = "linear"  # linear, cosine, constant
    config.clip_norm = 0.5  # of the gradient's global norm; 0: no clipping
    config.weight_decay = 0.0
    config.batch_size = 128
    config.num_epochs = 60
    config.loss_threshold = 0.01  # of steps_to_loss
    config.loss_window = 4
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
