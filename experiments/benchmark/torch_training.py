"""Networks trained on D(v) by a plain PyTorch loop, one after the other: what `make
accelerator-report` compares with.

    python -m experiments.benchmark.torch_training --output=torch.json --frequencies "0,4 8,0"

The published recipe, along cosine vectors of these (row, column) frequencies. Writes a JSON object
after each network, and goes on from the one that is there. Needs torch and nothing else of this
project but this package.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.benchmark import torch_programs

Frequency = tuple[int, int]
RECIPE = {"sigma": 3.0, "num_train": 10_000, "num_test": 10_000, "num_epochs": 20}


def cosine(frequency: Frequency, shape: torch_programs.Shape, device: str) -> torch.Tensor:
    """The Fourier vector of a frequency, cosine part, of the first channel: unit norm, [D] in the
    order of PyTorch's images.
    """
    height, width, channels = shape
    rows = torch.arange(height, device=device)[:, None] * frequency[0] / height
    columns = torch.arange(width, device=device) * frequency[1] / width
    wave = torch.zeros(channels, height, width, device=device)
    wave[0] = torch.cos(2 * math.pi * (rows + columns))
    return (wave / wave.norm()).flatten()


def sample(
    direction: torch.Tensor, count: int, sigma: float, shape: torch_programs.Shape
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of D(v), epsilon 1, and their labels, which take turns."""
    labels = torch.arange(count, device=direction.device) % 2
    noise = sigma * torch.randn(count, len(direction), device=direction.device)
    noise -= (noise @ direction)[:, None] * direction
    samples = noise + (1.0 - 2.0 * labels)[:, None] * direction
    height, width, channels = shape
    return samples.view(count, channels, height, width), labels


def train_one(settings: dict[str, Any], frequency: Frequency, num_epochs: int) -> dict[str, Any]:
    """Trains and tests a network: its frequency, the seconds of both, test accuracy in [0, 1]."""
    shape, device = settings["image_shape"], settings["device"]
    begun = time.perf_counter()
    with torch.device(device):
        network: nn.Module = torch_programs.ARCHITECTURES[settings["architecture"]](shape, 2)
    direction = cosine(frequency, shape, device)
    train, test = (
        sample(direction, settings[name], settings["sigma"], shape)
        for name in ("num_train", "num_test")
    )
    torch_programs.train(network.train(), *train, num_epochs, settings["batch_size"])
    network.eval()
    with torch.no_grad():
        found = [network(batch).argmax(1) for batch in test[0].split(1000)]
    accuracy = float((torch.cat(found) == test[1]).float().mean())  # waits for the device
    seconds = time.perf_counter() - begun
    return {"frequency": list(frequency), "seconds": seconds, "test_accuracy": accuracy}


def train_all(settings: dict[str, Any], frequencies: list[Frequency], output: Path) -> None:
    """Trains the networks that `output` does not hold yet, under the same settings."""
    on_gpu = settings["device"] == "cuda"
    machine = torch.cuda.get_device_name() if on_gpu else settings["device"]
    said = {"library": f"PyTorch {torch.__version__}", "machine": machine, **settings}
    report = {"settings": said, "networks": []}
    if output.exists():
        stored = json.loads(output.read_text(encoding="utf-8"))
        if stored["settings"] == json.loads(json.dumps(said)):
            report = stored
    done = [tuple(one["frequency"]) for one in report["networks"]]
    torch.manual_seed(len(done))
    torch_programs.set_precision(settings["precision"])
    for place, frequency in enumerate(f for f in frequencies if f not in done):
        if place == 0:
            train_one({**settings, "num_train": 1024}, frequency, 1)  # libraries are loaded
        report["networks"].append(train_one(settings, frequency, settings["num_epochs"]))
        temporary = output.with_name(f".{output.name}.tmp")
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, output)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--frequencies", required=True, help='as in "0,4 8,0"')
    parser.add_argument("--architecture", default="lenet", choices=torch_programs.ARCHITECTURES)
    parser.add_argument("--image_shape", type=_numbers, default=(32, 32, 1))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--precision", default="default", choices=("default", "highest"))
    parser.add_argument("--batch_size", type=int, default=128)
    for name, value in RECIPE.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    settings = vars(parser.parse_args())
    output, frequencies = settings.pop("output"), settings.pop("frequencies").split()
    output.parent.mkdir(parents=True, exist_ok=True)
    train_all(settings, list(map(_numbers, frequencies)), output)


if __name__ == "__main__":
    main()
