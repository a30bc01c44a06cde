"""The baseline of the benchmark: what nad_jax computes, as plain PyTorch does it, one network at a
time.

The published protocol (NAD, reference code) without its slow parts: no data loader, no printing.
Networks, their initialization and the training recipe are those of the paper; derivatives are with
respect to one sampled read-out. Needs torch and nothing else of this project but
`experiments.benchmark.stopwatch`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from experiments.benchmark.stopwatch import Timed, peak_host_bytes, serve


def _places(shape: tuple[int, int, int]) -> int:
    """How many places are left of an image that is halved five times."""
    return (shape[0] // 32) * (shape[1] // 32)


def _lenet(shape: tuple[int, int, int], logits: int) -> nn.Module:
    height, width, channels = shape
    flat = 16 * (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2)
    convolutions = []
    for before, after in ((channels, 6), (6, 16)):
        convolutions += [nn.Conv2d(before, after, 5), nn.ReLU(), nn.MaxPool2d(2)]
    dense = [nn.Linear(flat, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, logits)]
    return nn.Sequential(*convolutions, nn.Flatten(), *dense)


def _vgg11(shape: tuple[int, int, int], logits: int) -> nn.Module:
    channels, layers = shape[2], []
    for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
        for width in stage:
            convolution = nn.Conv2d(channels, width, 3, padding=1)
            nn.init.normal_(convolution.weight, 0.0, (2 / (9 * width)) ** 0.5)
            nn.init.zeros_(convolution.bias)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(512 * _places(shape), 512), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(
        *layers, nn.Linear(512, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, logits)
    )


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = nn.Identity()
        if before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


def _resnet18(shape: tuple[int, int, int], logits: int) -> nn.Module:
    layers = [nn.Conv2d(shape[2], 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    width = 64
    for stage in range(4):
        for block in range(2):
            layers.append(_Residual(width, 64 << stage, 2 if stage and not block else 1))
            width = 64 << stage
    return nn.Sequential(
        *layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(512 * _places(shape), logits)
    )


class _DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.new = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.new(x)], 1)


def _densenet121(shape: tuple[int, int, int], logits: int) -> nn.Module:
    growth, width = 32, 64
    layers: list[nn.Module] = [nn.Conv2d(shape[2], width, 3, padding=1, bias=False)]
    for block, size in enumerate((6, 12, 24, 16)):
        for _ in range(size):
            layers.append(_DenseLayer(width, growth))
            width += growth
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        if block < 3:
            layers += [nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
    return nn.Sequential(
        *layers, nn.AvgPool2d(4), nn.Flatten(), nn.Linear(width * _places(shape), logits)
    )


ARCHITECTURES = {
    "lenet": _lenet,
    "vgg11": _vgg11,
    "resnet18": _resnet18,
    "densenet121": _densenet121,
}


def make(spec: dict[str, Any]) -> Timed:
    """The program of a specification; the same fields as in `jax_programs.make`."""
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    device = torch.device("cuda" if spec["accelerator"] else "cpu")
    if spec["accelerator"] and not torch.cuda.is_available():
        raise RuntimeError("this PyTorch has no accelerator")
    tf32 = spec["precision"] not in ("highest", "bfloat16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.manual_seed(0)
    height, width, channels = spec["image_shape"]
    task = spec["task"]
    training = task in ("step", "directions")

    def create() -> nn.Module:
        with torch.device(device):
            return ARCHITECTURES[spec["architecture"]](
                spec["image_shape"], 2 if training else 1
            ).train(training)

    image = torch.randn(1, channels, height, width, device=device)
    calls: dict[str, Callable[[], Any]] = {
        "initialization": create,
        "gradient": lambda: _gradient(create(), image),
        "central_difference": lambda: _central_difference(create(), image),
        "step": lambda: _train(create(), spec, device),
    }
    calls["directions"] = calls["step"]

    def call() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=spec["precision"] == "bfloat16"):
            calls[task]()
        if spec["accelerator"]:
            torch.cuda.synchronize()

    peak_bytes = torch.cuda.max_memory_allocated if spec["accelerator"] else peak_host_bytes
    device_name = torch.cuda.get_device_name() if spec["accelerator"] else "cpu"
    facts = {
        "library": f"PyTorch {torch.__version__}",
        "device": device_name,
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


def _train(network: nn.Module, spec: dict[str, Any], device: torch.device) -> None:
    """One epoch on D(v): SGD, clipped, with a linear schedule (NAD, reference code)."""
    height, width, channels = spec["image_shape"]
    count, batch_size = spec["num_steps"] * spec["batch_size"], spec["batch_size"]
    samples, labels = _samples(count, (channels, height, width), device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    loss = nn.CrossEntropyLoss()
    for step, batch in enumerate(torch.randperm(count, device=device).split(batch_size)):
        optimizer.param_groups[0]["lr"] = 0.5 * (1 - (step + 1) / spec["num_steps"])
        optimizer.zero_grad()
        loss(network(samples[batch]), labels[batch]).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()


_data: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}


def _samples(
    count: int, shape: tuple[int, int, int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of D(v), drawn once: what is timed is training."""
    if count not in _data:
        labels = torch.arange(count, device=device) % 2
        noise = torch.randn(count, *shape, device=device)
        noise[:, 0, 0, 0] = 1.0 - 2.0 * labels
        _data[count] = noise, labels
    return _data[count]


if __name__ == "__main__":
    serve(make)
