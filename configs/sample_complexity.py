"""Sample complexity: how many samples locality and weight sharing save on a signal that moves (Role
of Locality and Weight Sharing), over the number of patches k and their length d.

    python -m experiments.main --config=configs/sample_complexity.py:cpu --workdir=runs/samples

The argument after the colon is a recipe:
    smoke  LCN and CNN at two numbers of patches, two seeds: 10 s of CPU time on a 2-core
           CPU (AMD EPYC)
    cpu    LCN and CNN at four numbers of patches and two lengths, eight seeds: 8 min 47 s
           on a 2-core CPU (AMD EPYC) as two shards, beside other programs
    gpu    FCN too, ReLU too, more patches and lengths, ten seeds; not measured
"""

from ml_collections import ConfigDict

from nad_jax.errors import unknown

# Even numbers, four to a factor of 4.
SIZES = tuple(2 * round(2 ** (i / 2)) for i in range(2, 23))  # 4 … 4096

RECIPES = {
    "smoke": {
        "num_patches": (2, 4),
        "patch_sizes": (4,),
        "num_samples": SIZES[:13:3],
        "seeds": (0, 1),
        "num_train": 256,
        "num_test": 256,
        "loss_window": 4,
        "chunk_size": 5,
    },
    "cpu": {"chunk_size": len(SIZES)},  # all of a seed at once
    "gpu": {
        "architectures": ("fcn", "lcn", "cnn"),
        "activations": ("soft_threshold", "relu"),
        "num_patches": (10, 15, 22, 32, 46),
        "patch_sizes": (4, 8, 16, 32),
        "num_samples": (*SIZES, 5792, 8192, 11_586, 16_384),
        "num_train": 16_384,
        "num_test": 10_000,
        "seeds": tuple(range(10)),
    },
}


def get_config(recipe: str = "cpu") -> ConfigDict:
    if recipe not in RECIPES:
        raise unknown("config argument", recipe, RECIPES)
    config = ConfigDict()
    config.experiment = "sample_complexity"

    # The networks; see `create_patch_network`.
    config.architectures = ("lcn", "cnn")  # fcn, lcn, cnn
    config.activations = ("soft_threshold",)  # soft_threshold, relu, linear
    config.width = 1  # filters of each patch
    config.scale = 0.6  # about the norm of filters at the start
    config.start_threshold = 0.05  # b at the start

    # The task: k patches of length d, one of which holds the signal.
    config.num_patches = (10, 15, 22, 32)  # k
    config.patch_sizes = (4, 16)  # d
    config.sigma = 0.22  # standard deviation of the noise; 0: 1/√k
    config.num_samples = SIZES  # n, even numbers
    config.num_train = 4096  # the largest n; numbers of samples are modulo n
    config.num_test = 2000
    config.seeds = tuple(range(8))

    # What is read off: the smallest n whose mean test accuracy over seeds is at least this.
    config.threshold = 0.93

    # Training; see nad_jax.Recipe. The optimizer is a name of optax, with options as in
    # adam:b1=0.8:learning_rate=0.001
    config.optimizer = "sgd:momentum=0.9"
    config.learning_rate = 0.4
    config.schedule = "linear"  # linear, cosine, constant
    config.clip_norm = 0.0  # of the gradient's global norm; 0: no clipping
    config.weight_decay = 0.0
    config.batch_size = 64
    config.num_epochs = 16  # of num_train samples each, whatever n is
    config.loss_threshold = 0.01  # of steps_to_loss
    config.loss_window = 64
    config.precision = (
        "default"  # on accelerators: default (GPU: TensorFloat-32, TPU: bfloat16), high, highest
    )

    # How it is computed.
    config.unit_size = 0  # networks per stored unit; 0: one chunk
    config.mapping = "vectorized"  # auto, sequential, vectorized
    config.chunk_size = 0  # networks per call of the compiled program; 0: automatic
    config.num_devices = 0  # 0: all
    config.keep_weights = False  # store the trained networks
    config.update(RECIPES[recipe])
    return config
