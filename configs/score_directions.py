"""Score anisotropy directions (SAD, 2025): a score network trained along its own directions, which
it generates the better the smaller their eigenvalue (a conjecture).

    python -m experiments.main --config=configs/score_directions.py:cpu --workdir=runs/score_directions

The argument after the colon is a recipe:
    cpu    a reduced protocol: the U-Net at both ends of its directions, 500 steps of 250 samples, 100
           of the 1,000 noise levels, three seeds; 53 min 29 s on a 2-core CPU (AMD
           EPYC) as two shards of one thread, with light other work beside it
    gpu    SAD's protocol: 2,000 steps of 1,000 samples at nine indices, all levels, five seeds; not
           measured
    smoke  a tiny network, to see that all runs; seconds

Images of one's own, as they are and rotated, instead of directions: --config.images=images.npy.
"""

from ml_collections import ConfigDict

from nad_jax.errors import unknown

RECIPES = {
    "cpu": {
        "num_train": 5000,
        "num_test": 1000,
        "batch_size": 250,
        "num_epochs": 25,
        "num_samples": 1000,
        "num_steps": 100,
        "seeds": (0, 1, 2),
        "num_networks": 4000,
        "sample_batch": 50,  # whose arrays stay in the cache
    },
    "gpu": {
        "indices": (0, *range(31, 256, 32)),
        "seeds": (0, 1, 2, 3, 4),
        "num_networks": 1_000_000,
        "sample_batch": 1000,
    },
    "smoke": {
        "network": "cnn:width=8",
        "image_shape": (4, 4, 1),
        "indices": (0, 15),
        "num_networks": 64,
        "num_train": 64,
        "num_test": 32,
        "batch_size": 16,
        "num_epochs": 2,
        "loss_window": 3,
        "num_samples": 32,
        "num_steps": 5,
    },
}


def get_config(recipe: str = "cpu") -> ConfigDict:
    if recipe not in RECIPES:
        raise unknown("config argument", recipe, RECIPES)
    config = ConfigDict()
    config.experiment = "score_directions"

    # The score network: unet, dit, mlp or cnn, with options as in unet:width=16:levels=2
    config.network = "unet"
    config.image_shape = (16, 16, 1)  # height, width, channels
    config.convolution = "auto"  # auto, product, lax

    # Its directions, ascending.
    config.num_networks = 4000  # that they are estimated from
    config.direction_seed = 0
    config.directions = ""  # a file of directions [K, D] instead, .npy or .npz, easy ones first
    config.indices = (0, 255)  # of those that networks are trained on

    # Images [n, H, W, C] to train on instead, the first num_train; the next num_test to test with.
    config.images = ""  # .npy
    config.image_scale = 1.0  # what they are multiplied by: their variance should be about 1
    config.alignments = ("none", "min", "max")

    # The data, their noise levels, and what is compared.
    config.num_levels = 1000
    config.num_train = 10_000
    config.num_test = 10_000
    config.num_samples = 10_000  # that are generated, and as many of the data
    config.num_steps = 0  # of the sampler; 0: all levels
    config.eta = 1.0  # 1: ancestral sampling (DDPM); 0: no noise is added
    config.num_projections = 0  # of sliced distances; 0: 64 D
    config.seeds = (0,)

    # Training; see nad_jax.Recipe. The optimizer is a name of optax, with options as in
    # adam:b1=0.8:learning_rate=0.001
    config.optimizer = "adam"
    config.learning_rate = 1e-4
    config.schedule = "constant"  # linear, cosine, constant
    config.clip_norm = 1.0  # of the gradient's global norm; 0: no clipping
    config.weight_decay = 0.0
    config.batch_size = 1000
    config.num_epochs = 200
    config.loss_threshold = 0.01  # of steps_to_loss
    config.loss_window = 79
    config.precision = (
        "default"  # on accelerators: default (GPU: TensorFloat-32, TPU: bfloat16), high, highest
    )

    # How it is computed.
    config.unit_size = 1  # networks per stored unit; 0: one chunk
    config.mapping = "auto"  # auto, sequential, vectorized
    config.chunk_size = 0  # networks per call of the compiled program; 0: automatic
    config.num_devices = 0  # 0: all
    config.sample_batch = 250  # samples at a time
    config.keep_weights = False  # store the trained networks
    config.update(RECIPES[recipe])
    return config
