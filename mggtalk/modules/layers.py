"""Building blocks of the networks."""

from __future__ import annotations

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero, so that what it corrects starts at its base value."""

    def reset_parameters(self) -> None:
        """Zero weights and bias."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class ZeroConv(nn.Conv2d):
    """A 3 x 3 convolution that starts at zero."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)

    def reset_parameters(self) -> None:
        """Zero weights and bias."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def mlp(inputs: int, width: int, outputs: int, depth: int = 2) -> nn.Sequential:
    """``depth`` hidden layers with SiLU and an output that starts at zero."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Linear(inputs if index == 0 else width, width), nn.SiLU()]
    return nn.Sequential(*layers, ZeroLinear(width, outputs))


def fourier_size(octaves: int) -> int:
    """Length of :func:`fourier` of a 3-vector."""
    return 3 + 6 * octaves


def fourier(positions: Float[Tensor, "*n 3"], octaves: int, extent: float = 15.0) -> Float[Tensor, "*n f"]:
    """Positions (cm, scaled by ``extent``) with sines and cosines of doubling frequency (Mildenhall et al., "NeRF", 2020, equation 4)."""
    scaled = positions / extent
    frequencies = math.pi * 2.0 ** torch.arange(octaves, device=positions.device, dtype=positions.dtype)
    angles = (scaled[..., None] * frequencies).flatten(-2)
    return torch.cat([scaled, angles.sin(), angles.cos()], -1)


class Block(nn.Module):
    """Two 3 x 3 convolutions with group normalisation and a residual connection."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.GroupNorm(math.gcd(8, outputs), outputs),
            nn.SiLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.GroupNorm(math.gcd(8, outputs), outputs),
        )
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, image: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """Features of the same size."""
        return nn.functional.silu(self.body(image) + self.skip(image))


class UNet(nn.Module):
    """A small UNet (Ronneberger et al., 2015) on images whose sides are multiples of ``2 ** (len(widths) - 1)``.

    Args:
        inputs: channels of the image.
        widths: channels of each level, finest first.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.down = nn.ModuleList(Block(a, a) for a in widths[:-1])
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths))
        self.middle = Block(widths[-1], widths[-1])
        self.up = nn.ModuleList(Block(b + a, a) for a, b in itertools.pairwise(widths))

    def forward(self, image: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """Features with ``widths[0]`` channels, of the image's size."""
        features = self.stem(image)
        kept = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            features = block(features)
            kept.append(features)
            features = shrink(features)
        features = self.middle(features)
        for block in reversed(self.up):
            features = block(torch.cat([interpolate(features, scale_factor=2, mode="nearest"), kept.pop()], 1))
        return features
