"""The convolutions of AlexNet as torchvision has them.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv:1404.5997, 2014.

The weights are those of torchvision, which are not part of this package. Fetch ``alexnet-owt-7be5be79.pth`` from
https://download.pytorch.org/models/ (licence: BSD-3-Clause, as torchvision; trained on ImageNet, whose terms are research use).
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from mggtalk.networks.trunk import Trunk, load_trunk
from mggtalk.networks.weights import load_state

CHANNELS = (64, 192, 384, 256, 256)
"""Of the five convolutions."""


def alexnet_trunk(path: str | Path) -> Trunk:
    """The trunk with the weights of a file; it gives the five activations. Images (at least 31 x 31) are to be normalised by the caller.

    Raises:
        WeightsError: the file is missing, damaged, or of another network.
    """
    trunk = Trunk(_layers(), taps=(1, 4, 7, 9, 11), smallest=31)
    load_trunk(trunk, load_state(path), path)
    return trunk


def _layers() -> list[nn.Module]:
    first, second, third, fourth, fifth = CHANNELS
    return [
        nn.Conv2d(3, first, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(first, second, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(second, third, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(third, fourth, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(fourth, fifth, 3, padding=1),
        nn.ReLU(inplace=True),
    ]
