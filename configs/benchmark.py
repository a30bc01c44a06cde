"""Times nad_jax against PyTorch and against the arithmetic, for each architecture and task.

    python -m experiments.main --config=configs/benchmark.py --workdir=runs/benchmark
    python -m experiments.main --config=configs/benchmark.py:gpu --workdir=runs/benchmark_gpu

PyTorch comes with the extra `[benchmark]`, or --config.python names an interpreter that has it;
without, there is no baseline. Let nothing else run: all of it takes 41 minutes on a 2-core CPU (AMD
EPYC, AVX-512). `gpu` trains more directions, and times XLA's convolutions (grouped, where networks
are mapped) against matrix products of thin kernels, full against lower precision, and 8, 32 and 128
networks at once against the automatic number; what does not fit the memory says so. That is 186
timings, each with processes of its own: `make accelerator-report PART=2` takes the most telling ones.

ViT, Mixer and ConvNeXt are timed where they are asked for:

    python -m experiments.main --config=configs/benchmark.py \\
        --config.architectures=vit,mixer,convnext --config.tasks=initialization,gradient \\
        --workdir=runs/benchmark_today

That takes 16 minutes, most of it compilation, which every round repeats.
"""

from ml_collections import ConfigDict

from nad_jax.errors import unknown

PUBLISHED = ("lenet", "vgg11", "resnet18", "densenet121")  # timed unless others are asked for
# (rounds, training steps in a timing, directions trained at once)
SIZES = {
    "cpu": {
        "lenet": (5, 32, 64),
        "vgg11": (3, 4, 4),
        "resnet18": (3, 2, 2),
        "densenet121": (3, 2, 2),
        "vit": (3, 2, 2),
        "mixer": (3, 2, 2),
        "convnext": (3, 2, 2),
    },
    "gpu": {
        "lenet": (5, 32, 256),
        "vgg11": (5, 16, 64),
        "resnet18": (5, 16, 64),
        "densenet121": (5, 8, 16),
        "vit": (5, 16, 64),
        "mixer": (5, 16, 64),
        "convnext": (5, 16, 64),
    },
}


def get_config(backend: str = "cpu") -> ConfigDict:
    if backend not in SIZES:
        raise unknown("config argument", backend, SIZES)
    config = ConfigDict()
    config.experiment = "benchmark"

    # What is timed.
    config.architectures = PUBLISHED  # of all in SIZES
    config.tasks = ("initialization", "gradient", "central_difference", "step", "directions")
    config.convolutions = ("auto",) if backend == "cpu" else ("mixed", "lax")
    config.precisions = (
        ("default",) if backend == "cpu" else ("highest", "default", "bfloat16")
    )  # of training
    config.mappings = ("auto",)  # auto, vectorized, sequential: of tasks of many networks
    # Networks at once, of tasks of many networks; 0: automatic.
    config.chunk_sizes = (0,) if backend == "cpu" else (0, 8, 32, 128)
    config.image_shape = (32, 32, 1)  # height, width, channels
    config.batch_size = 128

    # How it is timed.
    config.seconds = 1.0  # that a timing takes at least; shorter programs are repeated
    config.num_rounds = ConfigDict()
    config.num_steps = ConfigDict()  # of training in a timing
    config.num_directions = ConfigDict()
    for architecture, (num_rounds, num_steps, num_directions) in SIZES[backend].items():
        config.num_rounds[architecture] = num_rounds
        config.num_steps[architecture] = num_steps
        config.num_directions[architecture] = num_directions
    config.python = ""  # the interpreter that has PyTorch; "": the one that runs this
    return config
