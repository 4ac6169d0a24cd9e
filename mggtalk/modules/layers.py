"""Building blocks of the networks."""

from __future__ import annotations

import itertools
import math
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear, pad, pixel_shuffle, pixel_unshuffle, silu

from mggtalk.modules.precision import learned

PART = 1024
"""Points that each thread of a CPU takes through a network at a time where no gradients are asked for."""


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


class MLP(nn.ModuleList):
    """Two hidden layers with SiLU and an output that starts at zero, of an input in two parts: one that lasts and one that changes.

    What the first layer makes of the part that lasts, :meth:`lasting`, can be kept while the other part changes.

    Args:
        inputs: length of the lasting part, then of the changing one.
        width: of the hidden layers.
        outputs: length of the output.
    """

    def __init__(self, inputs: tuple[int, int], width: int, outputs: int) -> None:
        super().__init__([nn.Linear(sum(inputs), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), ZeroLinear(width, outputs)])
        self.inputs = inputs

    def lasting(self, values: Float[Tensor, "b n i"]) -> Float[Tensor, "b n w"]:
        """What the first layer makes of the lasting part."""
        first = self._linear()[0]
        with learned(values.device):
            return linear(values, first.weight[:, : self.inputs[0]], first.bias).to(values.dtype)

    def forward(self, lasting: Float[Tensor, "b n w"], changing: Float[Tensor, "b m j"]) -> Float[Tensor, "b n o"]:
        """The output; the changing part may be the same for all points (m = 1)."""
        with learned(lasting.device):
            return self._body(lasting, changing).to(lasting.dtype)

    def _body(self, lasting: Tensor, changing: Tensor) -> Tensor:
        first, second, last = self._linear()
        weight = first.weight[:, self.inputs[0] :]
        if not torch.is_grad_enabled() and lasting.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            return self._streamed(lasting, changing, weight.t())
        if changing.shape[1] == 1:
            hidden = lasting + linear(changing, weight)
        else:
            hidden = torch.addmm(lasting.flatten(0, 1), changing.flatten(0, 1), weight.t()).unflatten(0, lasting.shape[:2])
        return last(silu(second(silu(hidden))))

    def _streamed(self, lasting: Tensor, changing: Tensor, weight: Tensor) -> Tensor:
        """The output, a part of the points at a time through all layers, so that they stay in the cache of a CPU."""
        _, second, last = self._linear()
        result = lasting.new_empty(*lasting.shape[:2], last.out_features)
        shared = changing @ weight if changing.shape[1] == 1 else None
        step = PART * torch.get_num_threads()
        for index in range(len(lasting)):
            for start in range(0, lasting.shape[1], step):
                part = slice(start, start + step)
                own = lasting[index, part]
                hidden = own + shared[index] if shared is not None else torch.addmm(own, changing[index, part], weight)
                hidden = torch.addmm(second.bias, silu(hidden, inplace=True), second.weight.t())
                torch.addmm(last.bias, silu(hidden, inplace=True), last.weight.t(), out=result[index, part])
        return result

    def _linear(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        first, _, second, _, last = self
        return cast(nn.Linear, first), cast(nn.Linear, second), cast(nn.Linear, last)


def fourier_size(octaves: int) -> int:
    """Length of :func:`fourier` of a 3-vector."""
    return 3 + 6 * octaves


def fourier(positions: Float[Tensor, "*n 3"], octaves: int, extent: float = 15.0) -> Float[Tensor, "*n f"]:
    """Positions (cm, scaled by ``extent``) with sines and cosines of doubling frequency (Mildenhall et al., "NeRF", 2020, equation 4)."""
    scaled = positions / extent
    frequencies = math.pi * 2.0 ** torch.arange(octaves, device=positions.device, dtype=positions.dtype)
    angles = (scaled[..., None] * frequencies).flatten(-2)
    return torch.cat([scaled, angles.sin(), angles.cos()], -1)


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution, computed as the product of matrices that it is: on a CPU PyTorch would copy the image out first."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, image: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """As :meth:`torch.nn.Conv2d.forward`."""
        if image.device.type != "cpu":
            return super().forward(image)
        return linear(image.permute(0, 2, 3, 1), self.weight[:, :, 0, 0], self.bias).permute(0, 3, 1, 2)


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
        self.skip = Pointwise(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, image: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """Features of the same size."""
        return silu(self.body(image) + self.skip(image))


class UNet(nn.Module):
    """A small UNet (Ronneberger et al., 2015) on images of any size, on blocks of pixels.

    What a convolution costs grows with the pixels, what it can say with the channels: ``fold`` x ``fold`` pixels become the channels of
    one, so that few wide levels do the work of many narrow ones. :func:`unfold` turns features into pixels again.

    Args:
        inputs: channels of the image.
        widths: channels of each level, finest first.
        fold: pixels a side that become one.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], fold: int = 1) -> None:
        super().__init__()
        self.fold = fold
        self.stem = nn.Conv2d(inputs * fold**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(Block(a, a) for a in widths[:-1])
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in itertools.pairwise(widths))
        self.middle = Block(widths[-1], widths[-1])
        self.up = nn.ModuleList(Block(b + a, a) for a, b in itertools.pairwise(widths))

    def forward(self, image: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o hf wf"]:
        """Features with ``widths[0]`` channels, one for each block of ``fold`` x ``fold`` pixels, begun ones included."""
        height, width = (-(-side // self.fold) for side in image.shape[-2:])
        features = self.stem(self._folded(image))
        kept = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            features = block(features)
            kept.append(features)
            features = shrink(features)
        features = self.middle(features)
        for block in reversed(self.up):
            features = block(torch.cat([interpolate(features, scale_factor=2, mode="nearest"), kept.pop()], 1))
        return features[..., :height, :width]

    def _folded(self, image: Tensor) -> Tensor:
        """Blocks as channels, the edge repeated until every level has whole pixels; in the order of memory that CPU kernels are fast in."""
        multiple = self.fold * 2 ** len(self.shrink)
        below, right = (-side % multiple for side in image.shape[-2:])
        whole = pad(image, (0, right, 0, below), mode="replicate") if below or right else image
        folded = pixel_unshuffle(whole, self.fold)
        return folded.contiguous(memory_format=torch.channels_last) if image.device.type == "cpu" else folded


def unfold(features: Float[Tensor, "b i h w"], fold: int, size: tuple[int, int]) -> Float[Tensor, "b o {size[0]} {size[1]}"]:
    """Pixels from the channels of blocks of ``fold`` x ``fold``, cut to ``size`` (height, width)."""
    return pixel_shuffle(features, fold)[..., : size[0], : size[1]].contiguous()
