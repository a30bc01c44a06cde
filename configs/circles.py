"""Two circles in planes of the geometry of a network (GIH): does it learn them where both directions
of the plane are leading ones, and where one of them is not?

    python -m experiments.main --config=configs/circles.py:cpu --workdir=runs/circles

The argument after the colon is a recipe:
    smoke  LeNet and an MLP at 16×16, one seed, three epochs: seconds
    cpu    ResNet18_w16 and an MLP at 16×16, three seeds, 10 epochs; see docs/geometric_invariance.md
    gpu    ResNet18, LeNet and an MLP, five seeds, 30 epochs; not measured
"""

from ml_collections import ConfigDict

from nad_jax.architectures import OPTIONS
from nad_jax.errors import unknown

RECIPES = {
    "smoke": {
        "architectures": ("lenet", "mlp"),
        "num_networks": 100,
        "geometry_unit_size": 50,
        "seeds": (0,),
        "num_epochs": 3,
        "num_train": 512,
        "num_test": 512,
        "loss_window": 4,
    },
    "cpu": {},
    "gpu": {
        "architectures": ("resnet18", "lenet", "mlp"),
        "image_shape": (32, 32, 1),
        "num_networks": 2000,
        "seeds": (0, 1, 2, 3, 4),
        "num_epochs": 30,
        "num_train": 10_000,
        "loss_window": 79,
    },
}


def get_config(recipe: str = "cpu") -> ConfigDict:
    if recipe not in RECIPES:
        raise unknown("config argument", recipe, RECIPES)
    config = ConfigDict()
    config.experiment = "circles"

    # The networks.
    config.architectures = ("resnet18_w16", "mlp")
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

    # The geometry: exact gradients of networks at their initialization, each at a point of its own.
    config.num_networks = 600  # even
    config.readout = "marginalized"  # as many passes a network as features; sampled: one
    config.point_scale = 1e-3  # points are drawn from N(0, point_scale² I)
    config.geometry_seed = 0
    config.geometry_unit_size = 100  # networks per stored unit, an even number

    # The planes: of the eigenvectors of these indices; negative ones count from the end.
    config.first_index = 0
    config.second_indices = (1, -2)

    # The circles.
    config.radii = (1.5, 0.25)  # of labels 0 and 1, in units of the input
    config.sigma = 1.0  # standard deviation of the noise outside the plane
    config.num_train = 2000
    config.num_test = 2000
    config.seeds = (0, 1, 2)

    # Training; see nad_jax.Recipe. The optimizer is a name of optax, with options as in
    # adam:b1=0.8:learning_rate=0.001
    config.optimizer = "sgd:momentum=0.9"
    config.learning_rate = 0.1
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
    config.unit_size = 0  # trained networks per stored unit; 0: one chunk
    config.mapping = "auto"  # auto, sequential, vectorized
    config.chunk_size = 0  # networks per call of the compiled program; 0: automatic
    config.num_devices = 0  # of those that train; 0: all
    config.keep_weights = False  # store the trained networks
    config.update(RECIPES[recipe])
    return config
