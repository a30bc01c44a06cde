"""How the geometry of networks evolves during training (GIH, ICLR 2025): cosines with the second
moment S of the images and with G S G, velocity, accuracy and movement of the weights, step by step.

    python -m experiments.main --config=configs/geometry_evolution.py:cpu --workdir=runs/evolution
        --config.data_dir=DATA

The argument after the colon is a recipe:
    cpu   1,000 images a class; MLP and LeNet with average pooling, 25 networks and 100 steps each,
          ResNet18_w16 without normalization, 3 networks and 20 steps; 108 min on a 2-core CPU (AMD
          EPYC) beside other programs
    gpu   the published protocol: 10,000 images a class, 25 networks and 100 steps of each; not
          measured: the full batch of a chunk must fit into memory (--config.mapping=sequential)
    smoke 20 images a class, three small MLPs and three steps: a minute of processor
          time
"""

from ml_collections import ConfigDict

from nad_jax.errors import unknown

# Architecture: trained networks, steps, learning rate, untrained networks of G.
RECIPES = {
    "cpu": {
        "mlp(width=100)": (25, 100, 0.01, 2000),
        "lenet(pooling='avg')": (25, 100, 0.1, 2000),
        "resnet18_w16(normalization='none')": (3, 20, 0.1, 200),
    },
    "gpu": {
        "mlp(width=100)": (25, 100, 0.01, 10_000),
        "lenet(pooling='avg')": (25, 100, 0.1, 10_000),
        "resnet18(normalization='none')": (25, 100, 0.1, 10_000),
        "vit(normalization='none')": (25, 100, 0.1, 10_000),
    },
    "smoke": {"mlp(width=16)": (3, 3, 0.01, 20)},
}
# Images of a class, points where gradients are taken.
SIZES = {"cpu": (1000, 128), "gpu": (10_000, 128), "smoke": (20, 8)}


def get_config(recipe: str = "cpu") -> ConfigDict:
    if recipe not in RECIPES:
        raise unknown("config argument", recipe, RECIPES)
    config = ConfigDict()
    config.experiment = "geometry_evolution"

    # The images: a folder with CIFAR-10 in one of its official layouts, made gray, animals against
    # the rest; the first so many of either class, for training and for the test, which takes all of
    # a class that has fewer.
    config.data_dir = ""
    config.num_per_class, config.num_points = SIZES[recipe]
    config.labels = ("true",)  # true, random: in a random order

    # The networks, and a value for each of them: how many are trained, steps of the full batch,
    # learning rate, untrained networks that G of G S G is estimated from.
    config.architectures = tuple(RECIPES[recipe])
    axes = zip(*RECIPES[recipe].values(), strict=True)
    config.num_runs, config.num_steps, config.learning_rates, config.num_networks = axes
    # reference (PyTorch-default), flax, he, lecun, orthogonal, sigma:W:B (σ_w and σ_b); default:
    #   reference, flax where papers have their own (vit, mixer, convnext) and for own models
    config.initialization = "default"
    config.convolution = "auto"  # auto, product, mixed, lax
    config.seed = 0  # of the first network; the others have the seeds that follow

    # Where gradients are taken, the same points for all networks.
    # gaussian: N(0, point_scale² I); images: of the training set; num_points of them.
    config.points = "gaussian"
    config.point_scale = 1.0

    # Training; see nad_jax.Recipe. The optimizer is a name of optax, with options as in adam:b1=0.8
    config.optimizer = "sgd:momentum=0.9"
    config.schedule = "constant"  # linear, cosine, constant
    config.clip_norm = 5.0  # of the gradient's global norm; 0: no clipping
    config.weight_decay = 0.0005
    config.precision = (
        "default"  # on accelerators: default (GPU: TensorFloat-32, TPU: bfloat16), high, highest
    )

    # How it is computed.
    config.mapping = "auto"  # auto, sequential, vectorized
    config.chunk_size = 0  # networks per call of the compiled program; 0: automatic
    config.num_devices = 0  # 0: all
    return config
