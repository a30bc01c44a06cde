"""The baseline of the benchmark: what nad_jax computes, as plain PyTorch does it, one network at a
time.

The published protocol (NAD, reference code) without its slow parts: no data loader, no printing.
Networks, their initialization and the training recipe are those of the paper; derivatives are with
respect to one sampled read-out. Needs torch and nothing else of this project but
`experiments.benchmark.stopwatch`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from experiments.benchmark.stopwatch import Specification, Timed, peak_host_bytes, serve

Shape = tuple[int, int, int]  # of images: height, width, channels
Law = Callable[[torch.Tensor], Any]  # fills weights
EPSILON = 1e-6  # of layer normalization


def _places(shape: Shape) -> int:
    """How many places are left of an image that is halved five times."""
    return (shape[0] // 32) * (shape[1] // 32)


def _convolve(before: int, after: int, size: int = 3, stride: int = 1) -> nn.Module:
    return nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)


def _normalize(width: int) -> list[nn.Module]:
    return [nn.BatchNorm2d(width), nn.ReLU()]


def _lenet(shape: Shape, logits: int) -> nn.Module:
    *sides, channels = shape
    flat = 16 * math.prod(((side - 4) // 2 - 4) // 2 for side in sides)
    convolutions = []
    for before, after in ((channels, 6), (6, 16)):
        convolutions += [nn.Conv2d(before, after, 5), nn.ReLU(), nn.MaxPool2d(2)]
    dense = [nn.Linear(flat, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, logits)]
    return nn.Sequential(*convolutions, nn.Flatten(), *dense)


def _vgg11(shape: Shape, logits: int) -> nn.Module:
    channels, layers = shape[2], []
    for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for width in stage:
            convolution = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.normal_(convolution.weight, 0.0, (2 / (9 * width)) ** 0.5)
            nn.init.zeros_(convolution.bias)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    layers.append(nn.Flatten())
    for width in (512 * _places(shape), 512):
        layers += [nn.Linear(width, 512), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*layers, nn.Linear(512, logits))


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        first = _convolve(before, after, 3, stride), *_normalize(after)
        self.branch = nn.Sequential(*first, _convolve(after, after), nn.BatchNorm2d(after))
        self.shortcut = nn.Identity()
        if before != after:
            projection = _convolve(before, after, 1, stride)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


def _resnet18(shape: Shape, logits: int) -> nn.Module:
    layers, before = [_convolve(shape[2], 64), *_normalize(64)], 64
    for width in (64, 128, 256, 512):
        layers += [_Residual(before, width, width // before), _Residual(width, width, 1)]
        before = width
    layers += [nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512 * _places(shape), logits)]
    return nn.Sequential(*layers)


class _DenseLayer(nn.Sequential):
    """Layers whose channels are put beside those that they are given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, super().forward(x)], 1)


def _densenet121(shape: Shape, logits: int) -> nn.Module:
    growth, width = 32, 64
    layers = [_convolve(shape[2], width)]
    for block, size in enumerate((6, 12, 24, 16)):
        if block:
            layers += [_convolve(width, width // 2, 1), nn.AvgPool2d(2)]
            width //= 2
        for _ in range(size):
            narrow = *_normalize(width), _convolve(width, 4 * growth, 1)
            wide = *_normalize(4 * growth), _convolve(4 * growth, growth)
            layers.append(_DenseLayer(*narrow, *wide))
            width += growth
        layers += _normalize(width)
    layers += [nn.AvgPool2d(4), nn.Flatten(), nn.Linear(width * _places(shape), logits)]
    return nn.Sequential(*layers)


@torch.no_grad()
def _lecun(weight: torch.Tensor) -> None:
    """Normal, cut at two deviations, after which the variance is 1 / inputs (Flax's default).

    By the inverse of its distribution function: `nn.init.trunc_normal_` of PyTorch 2.14 draws again
    what was cut, which takes longer.
    """
    deviation = weight[0].numel() ** -0.5 / 0.87962566103423978
    most = math.erf(2**0.5)
    weight.uniform_(-most, most).erfinv_().mul_(2**0.5 * deviation)


def _narrow(weight: torch.Tensor) -> None:
    nn.init.normal_(weight, 0.0, 0.02)


class _Dense(nn.Linear):
    """A dense layer that is drawn once, from its own law; `bias`: deviation of the biases."""

    def __init__(self, before: int, after: int, law: Law = _lecun, bias: float = 0.0) -> None:
        self._law, self._deviation = law, bias
        super().__init__(before, after)

    def reset_parameters(self) -> None:
        self._law(self.weight)
        nn.init.normal_(self.bias, 0.0, self._deviation)


class _Patches(nn.Conv2d):
    """Patches of images, each through the same dense layer."""

    def __init__(self, before: int, after: int, size: int, law: Law = _lecun) -> None:
        self._law = law
        super().__init__(before, after, size, size)

    def reset_parameters(self) -> None:
        self._law(self.weight)
        nn.init.zeros_(self.bias)


class _Attention(nn.Module):
    """Self-attention; queries, keys and values are one product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # Three layers of as many outputs as inputs, each by Xavier's law.
        bound = (6 / (width + width)) ** 0.5
        law = functools.partial(nn.init.uniform_, a=-bound, b=bound)
        self.inputs, self.out = _Dense(width, 3 * width, law), _Dense(width, width, law)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        parts = self.inputs(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        read = F.scaled_dot_product_attention(*parts)
        return self.out(read.transpose(1, 2).reshape(batch, tokens, width))


def _mlp(width: int, hidden: int, law: Law = _lecun, bias: float = 0.0) -> nn.Module:
    expand, contract = _Dense(width, hidden, law, bias), _Dense(hidden, width, law, bias)
    return nn.Sequential(expand, nn.GELU(), contract)


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, EPSILON) for _ in range(2))
        self.attention = _Attention(width, heads)
        self.mlp = _mlp(width, 4 * width, nn.init.xavier_uniform_, 1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _ViT(nn.Module):
    def __init__(self, shape: Shape, logits: int) -> None:
        super().__init__()
        patch, width, depth, heads = 4, 192, 12, 3
        tokens = 1 + (shape[0] // patch) * (shape[1] // patch)
        self.patches = _Patches(shape[2], width, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(*(_TransformerBlock(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, EPSILON), _Dense(width, logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x)[:, 0]))


class _MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, EPSILON) for _ in range(2))
        self.tokens, self.channels = _mlp(tokens, width // 2), _mlp(width, 4 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class _Mixer(nn.Module):
    def __init__(self, shape: Shape, logits: int) -> None:
        super().__init__()
        patch, width, depth = 4, 512, 8
        tokens = (shape[0] // patch) * (shape[1] // patch)
        self.patches = _Patches(shape[2], width, patch)
        self.blocks = nn.Sequential(*(_MixerBlock(tokens, width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, EPSILON), _Dense(width, logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.patches(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))


class _Depthwise(nn.Conv2d):
    def __init__(self, width: int) -> None:
        super().__init__(width, width, 7, padding=3, groups=width)

    def reset_parameters(self) -> None:
        _narrow(self.weight)
        nn.init.zeros_(self.bias)


class _ConvNeXtBlock(nn.Module):
    """Its images lie in memory with channels last, so that no permutation moves anything."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = _Depthwise(width), nn.LayerNorm(width, EPSILON)
        self.mlp = _mlp(width, 4 * width, _narrow)
        self.scale = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.mlp(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + (self.scale * y).permute(0, 3, 1, 2)


class _PixelNorm(nn.LayerNorm):
    """Each pixel of images [B, C, H, W] over its channels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _ConvNeXt(nn.Module):
    def __init__(self, shape: Shape, logits: int) -> None:
        super().__init__()
        layers, width = [_Patches(shape[2], 96, 2, _narrow), _PixelNorm(96, EPSILON)], 96
        for stage, blocks in enumerate((3, 3, 9, 3)):
            if stage:
                halve = _Patches(width, 2 * width, 2, _narrow)
                layers += [_PixelNorm(width, EPSILON), halve]
                width *= 2
            layers += [_ConvNeXtBlock(width) for _ in range(blocks)]
        self.layers, self.norm = nn.Sequential(*layers), nn.LayerNorm(width, EPSILON)
        self.head = _Dense(width, logits, _narrow)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers(x.contiguous(memory_format=torch.channels_last))
        return self.head(self.norm(x.mean((2, 3))))


ARCHITECTURES = {
    "lenet": _lenet,
    "vgg11": _vgg11,
    "resnet18": _resnet18,
    "densenet121": _densenet121,
    "vit": _ViT,
    "mixer": _Mixer,
    "convnext": _ConvNeXt,
}


def make(spec: Specification) -> Timed:
    """The program of a specification; the same fields as in `jax_programs.make`."""
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    accelerator = spec["accelerator"]
    device = torch.device("cuda" if accelerator else "cpu")
    if accelerator and not torch.cuda.is_available():
        raise RuntimeError("this PyTorch has no accelerator")
    set_precision(spec["precision"])
    torch.manual_seed(0)
    height, width, channels = spec["image_shape"]
    training = spec["task"] in ("step", "directions")

    def create() -> nn.Module:
        with device:
            network = ARCHITECTURES[spec["architecture"]](spec["image_shape"], 1 + training)
            return network.train(training)

    image = torch.randn(1, channels, height, width, device=device)
    calls: dict[str, Callable[[], Any]] = {
        "initialization": create,
        "gradient": lambda: _gradient(create(), image),
        "central_difference": lambda: _central_difference(create(), image),
        "step": lambda: _train(create(), image, spec),
    }
    calls["directions"] = calls["step"]

    def call() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=spec["precision"] == "bfloat16"):
            calls[spec["task"]]()
        if accelerator:
            torch.cuda.synchronize()

    peak_bytes = torch.cuda.max_memory_allocated if accelerator else peak_host_bytes
    facts = {
        "library": f"PyTorch {torch.__version__}",
        "device": torch.cuda.get_device_name() if accelerator else "cpu",
        "threads": torch.get_num_threads(),
    }
    return Timed(call, spec["num_steps"] if training else 1, facts, peak_bytes)


def _gradient(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    image = image.clone().requires_grad_()
    return torch.autograd.grad(network(image).sum(), image)[0]


@torch.no_grad()
def _central_difference(
    network: nn.Module, image: torch.Tensor, step: float = 100.0
) -> torch.Tensor:
    pixels = step * torch.eye(image.numel(), device=image.device).view(-1, *image.shape[1:])
    return (network(image + pixels) - network(image - pixels))[:, 0] / (2 * step)


def set_precision(precision: str) -> None:
    """Lets products of float32 be TensorFloat-32 where those of JAX are at this precision."""
    tf32 = precision not in ("highest", "bfloat16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


def _train(network: nn.Module, image: torch.Tensor, spec: Specification) -> None:
    """One epoch on D(v)."""
    count = spec["num_steps"] * spec["batch_size"]
    train(network, *_samples(count, image.shape[1:], image.device), 1, spec["batch_size"])


def train(
    network: nn.Module,
    samples: torch.Tensor,
    labels: torch.Tensor,
    num_epochs: int,
    batch_size: int,
) -> None:
    """Trains a network: SGD, clipped, with a linear schedule (NAD, reference code)."""
    num_steps, done = num_epochs * -(-len(samples) // batch_size), 0
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    loss = nn.CrossEntropyLoss()
    for _ in range(num_epochs):
        for batch in torch.randperm(len(samples), device=samples.device).split(batch_size):
            done += 1
            optimizer.param_groups[0]["lr"] = 0.5 * (1 - done / num_steps)
            optimizer.zero_grad()
            loss(network(samples[batch]), labels[batch]).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 0.5)
            optimizer.step()


@functools.cache
def _samples(count: int, shape: Shape, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of D(v), drawn once: what is timed is training."""
    labels = torch.arange(count, device=device) % 2
    noise = torch.randn(count, *shape, device=device)
    noise[:, 0, 0, 0] = 1.0 - 2.0 * labels
    return noise, labels


if __name__ == "__main__":
    serve(make)
