"""The baseline of score geometry: the U-Net of SAD in plain PyTorch, a fresh network and one forward
pass at a time.

    python -m experiments.benchmark.torch_unet --num_networks=200

prints its milliseconds a network. Needs torch and nothing else.
"""

import argparse
import math
import time

import torch
from torch import nn
from torch.nn import functional as F

GROUPS = 32


def _convolve(before: int, after: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(before, after, 3, stride, 1)


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, level: int) -> None:
        super().__init__()
        norms = nn.GroupNorm(GROUPS, before), nn.GroupNorm(GROUPS, after)
        self.first = nn.Sequential(norms[0], nn.SiLU(), _convolve(before, after))
        self.level = nn.Sequential(nn.SiLU(), nn.Linear(level, after))
        self.second = nn.Sequential(norms[1], nn.SiLU(), _convolve(after, after))
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        y = self.first(x) + self.level(level)[..., None, None]
        return self.skip(x) + self.second(y)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(GROUPS, width)
        self.qkv, self.out = nn.Conv1d(width, 3 * width, 1), nn.Conv1d(width, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, width = x.shape[:2]
        y = x.reshape(batch, width, -1)
        parts = self.qkv(self.norm(y)).reshape(batch * self.heads, 3, width // self.heads, -1)
        query, key, value = parts.unbind(1)
        scores = torch.einsum("bct,bcs->bts", query, key) / math.sqrt(width // self.heads)
        read = torch.einsum("bts,bcs->bct", torch.softmax(scores, -1), value)
        return (y + self.out(read.reshape(y.shape))).reshape(x.shape)


class UNet(nn.Module):
    """Noise [B, C, H, W] of images [B, C, H, W] and noise levels [B]."""

    def __init__(self, channels: int = 1, width: int = 32, levels: int = 3, heads: int = 4) -> None:
        super().__init__()
        level, self.width = 4 * width, width
        linear = nn.Linear(width, level), nn.Linear(level, level)
        self.embed = nn.Sequential(linear[0], nn.SiLU(), linear[1])
        self.conv = _convolve(channels, width)
        self.down = nn.ModuleList(_Residual(width, width, level) for _ in range(levels))
        self.halve = nn.ModuleList(_convolve(width, width, 2) for _ in range(levels - 1))
        self.middle = nn.ModuleList(_Residual(width, width, level) for _ in range(2))
        self.attention = _Attention(width, heads)
        self.up = nn.ModuleList(_Residual(2 * width, width, level) for _ in range(2 * levels))
        self.enlarge = nn.ModuleList(_convolve(width, width) for _ in range(levels - 1))
        norm = nn.GroupNorm(GROUPS, width)
        self.head = nn.Sequential(norm, nn.SiLU(), _convolve(width, channels))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        half = self.width // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half) / half)
        angles = t.float()[:, None] * frequencies[None]
        level = self.embed(torch.cat([angles.cos(), angles.sin()], 1))
        x = self.conv(x)
        kept = [x]
        for depth, block in enumerate(self.down):
            x = block(x, level)
            kept.append(x)
            if depth < len(self.halve):
                x = self.halve[depth](x)
                kept.append(x)
        x = self.middle[1](self.attention(self.middle[0](x, level)), level)
        for number, block in enumerate(self.up):
            x = block(torch.cat([x, kept.pop()], 1), level)
            if number % 2 and number // 2 < len(self.enlarge):
                x = F.interpolate(x, scale_factor=2, mode="nearest")
                x = self.enlarge[number // 2](x)
        return self.head(x)


@torch.no_grad()
def measure(num_networks: int) -> float:
    """Seconds a network, of its initialization and one forward pass at the origin."""
    x = torch.zeros(1, 1, 16, 16)
    UNet()(x, torch.tensor([0]))
    start = time.perf_counter()
    for number in range(num_networks):
        UNet()(x, torch.tensor([number % 1000]))
    return (time.perf_counter() - start) / num_networks


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_networks", type=int, default=200)
    print(f"{1000 * measure(parser.parse_args().num_networks):.1f} ms a network")
