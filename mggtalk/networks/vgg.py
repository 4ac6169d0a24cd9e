"""The convolutions of VGG-16 and VGG-19, as a source of features.

Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015, table 1, columns D and E.

The weights are those of torchvision, which are not part of this package. Fetch ``vgg16-397923af.pth`` or ``vgg19-dcbb9e9d.pth`` from
https://download.pytorch.org/models/ (licence: BSD-3-Clause, as torchvision; trained on ImageNet, whose terms are research use).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mggtalk.networks.frozen import Frozen
from mggtalk.networks.trunk import IMAGENET_DEVIATION, IMAGENET_MEAN, Trunk, load_trunk
from mggtalk.networks.weights import WeightsError, load_state

CHANNELS = (64, 128, 256, 512, 512)
"""Of the five blocks."""
BLOCKS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions of each block, by the number of layers with weights."""
Tap = Literal["first", "last"]
TAPS: dict[int, Tap] = {16: "last", 19: "first"}
"""What the published losses look at: Johnson et al. (ECCV 2016) with VGG-16, pix2pixHD (CVPR 2018) with VGG-19."""


class Vgg16Features(Frozen):
    """Features of VGG-16, or of VGG-19 where the file holds that.

    Args:
        path: a state dict with torchvision's names (``features.0.weight`` ...), .pth, .pt or .safetensors.
        tap: which activation of each of the five blocks is given: "last" is relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 of VGG-16,
            "first" relu1_1 to relu5_1; ``None`` takes the last of VGG-16 and the first of VGG-19 (:data:`TAPS`).

    Attributes:
        depth: 16 or 19.

    Raises:
        WeightsError: the file is missing, damaged, or of another network.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, path: str | Path, tap: Tap | None = None) -> None:
        super().__init__()
        self.trunk, self.depth = vgg_trunk(path, tap)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(IMAGENET_DEVIATION).reshape(3, 1, 1), persistent=False)
        self.freeze()

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Five feature maps (b c h' w'; c is 64, 128, 256, 512, 512, each half as large as the one before) of RGB images in [0, 1].

        Raises:
            ValueError: images are smaller than 16 x 16.
        """
        return self.trunk((image - self.mean) / self.deviation)


def vgg_trunk(path: str | Path, tap: Tap | None = None) -> tuple[Trunk, int]:
    """The trunk with the weights of a file, and its depth, 16 or 19. Images are to be normalised by the caller.

    Raises:
        WeightsError: the file is missing, damaged, or of another network.
    """
    state = load_state(path)
    depth = _depth(state, path)
    trunk = _layers(BLOCKS[depth], tap or TAPS[depth])
    load_trunk(trunk, state, path)
    return trunk, depth


def _depth(state: Mapping[str, Tensor], path: str | Path) -> int:
    count = sum(name.startswith("features.") and name.endswith(".weight") and value.ndim == 4 for name, value in state.items())
    for depth, blocks in BLOCKS.items():
        if count == sum(blocks):
            return depth
    raise WeightsError(f"{path}: has {count} convolutions 'features.*', VGG-16 has 13 and VGG-19 has 16; give the weights of one of them")


def _layers(blocks: tuple[int, ...], tap: Tap) -> Trunk:
    layers: list[nn.Module] = []
    taps, inputs = [], 3
    for count, channels in zip(blocks, CHANNELS, strict=True):
        start = len(layers)
        for _ in range(count):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = channels
        taps.append(start + 1 if tap == "first" else len(layers) - 1)
        layers.append(nn.MaxPool2d(2))
    return Trunk(layers, taps, smallest=16)
