"""Does geometry predict accuracy? Rank correlation of vᵀGv with accuracy on D(v), for every
derivative and law of points, architecture by architecture.

    python -m experiments.main --config=configs/predictors.py:cpu --workdir=runs/predictors

The argument after the colon is a recipe:
    cpu   six architectures, small where they are dear, at 34, 16 or 8 directions; about 71 min on a
          2-core CPU (AMD EPYC) as two shards, by one unit of each kind
    gpu   the full protocol: nine architectures at all 130 directions of figure 1 of the paper, three
          seeds, 20 epochs

Architectures are given with what goes with each, e.g. LeNet alone, at 16 directions:
--config.architectures=lenet --config.num_directions=16, --config.num_epochs=20,
--config.num_networks=200,
"""

from ml_collections import ConfigDict

from nad_jax.errors import unknown

# Architecture: directions, epochs, networks of each ensemble of central differences.
RECIPES = {
    "cpu": {
        "lenet": (34, 20, 200),
        "lenet(pooling='avg')": (34, 20, 200),
        "vit(patch=8,depth=2,width=48)": (16, 5, 200),
        "mixer(patch=8,depth=2,width=64)": (16, 5, 200),
        "mlp": (34, 20, 200),
        "resnet18_w16": (8, 5, 40),
    },
    "gpu": {
        "mlp": (130, 20, 1000),
        "lenet": (130, 20, 1000),
        "lenet(pooling='avg')": (130, 20, 1000),
        "vgg11": (130, 20, 200),
        "resnet18": (130, 20, 200),
        "densenet121": (130, 20, 40),
        "vit(depth=6)": (130, 20, 200),
        "mixer": (130, 20, 200),
        "convnext": (130, 20, 200),
    },
}
# A GPU trains many networks at once.
SIZES = {
    "cpu": {"training_unit_size": 1, "seeds": (0,)},
    "gpu": {"training_unit_size": 32, "seeds": (0, 1, 2)},
}


def get_config(recipe: str = "cpu") -> ConfigDict:
    if recipe not in RECIPES:
        raise unknown("config argument", recipe, RECIPES)
    config = ConfigDict()
    config.experiment = "predictors"

    # The networks, and a value for each of them: directions that it is trained along, epochs of
    # training, networks of each ensemble of central differences.
    config.architectures = tuple(RECIPES[recipe])
    axes = zip(*RECIPES[recipe].values(), strict=True)
    config.num_directions, config.num_epochs, config.num_networks = axes
    config.image_shape = (32, 32, 1)  # height, width, channels
    # reference (PyTorch-default), flax, he, lecun, orthogonal, sigma:W:B (σ_w and σ_b); default:
    #   reference, flax where papers have their own (vit, mixer, convnext) and for own models
    config.initialization = "default"
    config.convolution = "auto"  # auto, product, mixed, lax

    # The directions v: the first ones of a random order of the Fourier vectors of this grid.
    # First frequency and the one after the last, in cycles per image.
    config.frequency_range = (-16, 16)
    config.frequency_step = 2
    config.phases = "cosine"  # cosine, sine, both
    config.channel = 0  # that the direction lives in
    config.direction_seed = 0  # of the random order

    # D(v).
    config.epsilon = 1.0  # class means are ±epsilon v
    config.sigma = 3.0  # standard deviation of the noise orthogonal to v
    config.num_train = 10_000
    config.num_test = 10_000
    config.seeds = SIZES[recipe]["seeds"]

    # Training; see nad_jax.Recipe. The optimizer is a name of optax, with options as in
    # adam:b1=0.8:learning_rate=0.001
    config.optimizer = "sgd"
    config.learning_rate = 0.5
    config.schedule = "linear"  # linear, cosine, constant
    config.clip_norm = 0.5  # of the gradient's global norm; 0: no clipping
    config.weight_decay = 0.0
    config.batch_size = 128
    config.loss_threshold = 0.01  # of steps_to_loss
    config.loss_window = 79
    config.precision = (
        "default"  # on accelerators: default (GPU: TensorFloat-32, TPU: bfloat16), high, highest
    )

    # The geometries G: every derivative at points of every law. See nad_jax.Estimator.
    config.derivatives = ("central_difference", "input_gradient")
    # shared: one x ~ N(0, I) for all networks (published); fresh: one for each; origin: x = 0
    config.points = ("shared", "fresh", "origin")
    config.step = 100.0  # of the central difference
    # Exact gradients: so many times the networks, and so many times as many per stored unit. They
    # take more of them to tell directions apart, and less time each.
    config.gradient_factor = 10
    config.readout = "marginalized"  # marginalized (closed form), sampled (published)
    config.num_readouts = 1
    config.geometry_seed = 0

    # The table.
    config.num_bootstrap = 2000  # resamples of the directions

    # How it is computed.
    config.unit_size = 20  # networks of an ensemble per stored unit
    config.training_unit_size = SIZES[recipe]["training_unit_size"]  # trained ones
    config.mapping = "auto"  # auto, sequential, vectorized
    config.chunk_size = 0  # networks per call of the compiled program; 0: automatic
    config.block_size = 64  # pixels per forward pass of the central difference
    return config
