"""IResNet, the network of the released ArcFace models, as a fixed and differentiable source of identity.

Deng, Guo, Xue, Zafeiriou, "ArcFace: additive angular margin loss for deep face recognition", CVPR 2019. Its residual unit is BN,
convolution, BN, PReLU, convolution, BN, after Han, Kim, Kim, "Deep pyramidal residual networks", CVPR 2017.

The weights are not part of this package: ``backbone.pth`` of a model of
https://github.com/deepinsight/insightface/tree/master/recognition/arcface_torch (code: MIT; models: non-commercial research only).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from mggtalk.networks.frozen import Frozen
from mggtalk.networks.weights import WeightsError, load_into, load_state

SIDE, NUMBERS = 112, 512
"""Pixels a side of the input; numbers of an embedding."""
CHANNELS = (64, 128, 256, 512)
"""Of the four stages; each halves the image at its first unit."""


class IResNet(Frozen):
    """IResNet-18, -34, -50 or -100 (or any number of units that the file holds), with the names of arcface_torch.

    Args:
        path: the backbone's state dict, .pth, .pt or .safetensors.

    Attributes:
        depth: layers with weights, 2 for each unit and 2 more: 18, 34, 50, 100.

    Raises:
        WeightsError: the file is missing, damaged, or of another network.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        state = load_state(path)
        units = _units(state, path)
        self.depth = 2 * sum(units) + 2
        self.backbone = _Backbone(units)
        load_into(self.backbone, state, path)
        self.freeze()

    def forward(self, images: Float[Tensor, "b 3 112 112"]) -> Float[Tensor, "b 512"]:
        """What the network gives: embeddings of any length, of aligned faces, RGB in [-1, 1]."""
        return self.backbone.numbers(self.backbone.stages(images)[-1])

    def embed(self, images: Float[Tensor, "b 3 112 112"]) -> Float[Tensor, "b 512"]:
        """Embeddings of length 1, of aligned faces, RGB in [-1, 1]; differentiable in the images."""
        return normalize(self(images))

    def features(self, images: Float[Tensor, "b 3 112 112"]) -> tuple[list[Tensor], Float[Tensor, "b 512"]]:
        """The outputs of the four stages (b c s s; c is 64, 128, 256, 512 and s is 56, 28, 14, 7) and the embeddings of length 1."""
        stages = self.backbone.stages(images)
        return stages, normalize(self.backbone.numbers(stages[-1]))


class _Backbone(nn.Module):
    """The layers, under their published names."""

    def __init__(self, units: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, CHANNELS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS[0])
        self.prelu = nn.PReLU(CHANNELS[0])
        inputs = CHANNELS[0]
        for stage, (count, channels) in enumerate(zip(units, CHANNELS, strict=True), 1):
            first = _Unit(inputs, channels, stride=2)
            self.add_module(f"layer{stage}", nn.Sequential(first, *(_Unit(channels, channels) for _ in range(count - 1))))
            inputs = channels
        self.bn2 = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs * (SIDE // 16) ** 2, NUMBERS)
        self.features = nn.BatchNorm1d(NUMBERS)

    def stages(self, images: Tensor) -> list[Tensor]:
        values, found = self.prelu(self.bn1(self.conv1(images))), []
        for stage in range(1, len(CHANNELS) + 1):
            values = getattr(self, f"layer{stage}")(values)
            found.append(values)
        return found

    def numbers(self, values: Tensor) -> Tensor:
        return self.features(self.fc(self.bn2(values).flatten(1)))


class _Unit(nn.Module):
    """A residual unit; nothing follows the sum."""

    def __init__(self, inputs: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, values: Tensor) -> Tensor:
        body = self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(values)))))
        return self.bn3(body) + self.downsample(values)


def _units(state: Mapping[str, Tensor], path: str | Path) -> tuple[int, ...]:
    found = [{match[1] for name in state if (match := re.match(rf"layer{stage}\.(\d+)\.", name))} for stage in range(1, 5)]
    if not all(found):
        raise WeightsError(f"{path}: has no entries 'layer1.0.*' to 'layer4.0.*'; give backbone.pth of an IResNet of arcface_torch")
    return tuple(map(len, found))
