"""What untrained networks prefer in three orders of one ensemble: the class that they give most
inputs, the directions of E[g gᵀ], and the frequencies of the functions that they are.

    python -m experiments.main --config=configs/initial_functions.py:cpu --workdir=runs/functions

The argument after the colon is a recipe:
    smoke  four small networks, 16 of each: a minute of processor time, most of it compilation
    cpu    LeNet, ResNet18_w16, MLP and a small ViT at 16×16, and these with other activations,
           depths, weights, normalizations and without skip connections; 6 min of processor time
           for each of two shards of one thread on a 2-core CPU (AMD EPYC)
    gpu    the published networks at 32×32, 1,000 of each; not measured
"""

from ml_collections import ConfigDict

from nad_jax.errors import unknown

SMALL_VIT = "vit(depth=4,width=48)"
RECIPES = {
    "smoke": {
        "architectures": ("lenet", "resnet18(width=4)", "mlp(width=32)", "vit(depth=1,width=12)"),
        "image_shape": (16, 16, 1),
        "num_networks": 16,
        "num_inputs": 64,
        "num_points": 8,
    },
    "cpu": {
        "architectures": (
            "lenet", "resnet18_w16", "mlp", SMALL_VIT,
            "lenet(activation=tanh)", "lenet(activation=gelu)", "lenet(activation=sine)",
            "lenet(pooling=avg)", "lenet(initialization='sigma:1:0')",
            "lenet(initialization='sigma:3:0')", "resnet18_w16(residual=False)",
            "lenet(activation=tanh,initialization='sigma:3:0')",
            "resnet18_w16(normalization=layer)", "mlp(initialization=he)",
            "vit(depth=1,width=48)", "vit(depth=4,width=48,normalization=none)",
            "bottleneck_mlp(depth=1,width=128)", "bottleneck_mlp(depth=6,width=128)",
        ),
    },
    "gpu": {
        "architectures": (
            "lenet", "resnet18", "mlp", "vit", "vgg11", "mixer", "convnext(layer_scale=none)",
            "bottleneck_mlp", "wide_resnet",
        ),
        "image_shape": (32, 32, 1),
        "num_networks": 1000,
        "num_inputs": 1000,
        "num_points": 64,
    },
}  # fmt: skip


def get_config(recipe: str = "cpu") -> ConfigDict:
    if recipe not in RECIPES:
        raise unknown("config argument", recipe, RECIPES)
    config = ConfigDict()
    config.experiment = "initial_functions"

    # The networks, with their options in parentheses as in "lenet(activation=tanh)" or
    # "lenet(initialization='sigma:2:0')"; see `create_model`.
    config.architectures = ()
    config.image_shape = (16, 16, 1)  # height, width, channels
    config.num_networks = 128  # of each architecture, the same ones in every order
    config.initialization = "default"  # of those that do not say theirs
    config.convolution = "auto"  # auto, product, mixed, lax
    config.seed = 0

    # Order zero: the classes of inputs, the same for all networks. Order one: exact gradients at one
    # more input for each network, drawn for itself.
    config.num_inputs = 256
    config.input_scale = 1.0  # inputs are drawn from N(0, input_scale² I)
    config.readout = "marginalized"  # as many passes a network as features; sampled: one

    # The spectrum: on a square grid of a plane, of the two leading directions or a random one.
    config.num_points = 24  # of a side
    config.plane_scale = 0.0  # half the side, in units of the input; 0: √D

    # The figure.
    config.num_curves = 4  # of the first architectures; numbers are of all

    # How it is computed.
    config.mapping = "auto"  # auto, sequential, vectorized
    config.chunk_size = 0  # networks per call of the compiled program, even; 0: automatic
    config.num_devices = 0  # 0: all
    config.update(RECIPES[recipe])
    return config
