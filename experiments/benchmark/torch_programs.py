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

from experiments.benchmark.stopwatch import Specification, Timed, peak_host_bytes, serve

Shape = tuple[int, int, int]  # of images: height, width, channels


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


ARCHITECTURES = {
    "lenet": _lenet,
    "vgg11": _vgg11,
    "resnet18": _resnet18,
    "densenet121": _densenet121,
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
