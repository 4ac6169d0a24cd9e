"""What VGG and AlexNet share: a sequence of layers of which some outputs are looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from mggtalk.networks.weights import WeightsError, below, load_into

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the RGB values in [0, 1] that torchvision's classifiers were trained on."""


class Trunk(nn.Module):
    """The layers ``features`` of a classifier, under the names that torchvision gives them.

    Args:
        layers: in their order.
        taps: the layers whose outputs are given, ascending; layers after the last are not run.

    Attributes:
        smallest: least height and width of an image, pixels, that leaves something of it for every layer.
    """

    def __init__(self, layers: Sequence[nn.Module], taps: Sequence[int], smallest: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.taps, self.smallest = tuple(taps), smallest

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """The outputs (b c h' w') of the tapped layers, of a normalised image.

        Raises:
            ValueError: the image is too small.
        """
        if min(image.shape[-2:]) < self.smallest:
            raise ValueError(f"images are {tuple(image.shape[-2:])}, this network needs at least {self.smallest} x {self.smallest} pixels")
        found = []
        for index in range(self.taps[-1] + 1):
            image = self.features[index](image)
            if index in self.taps:
                found.append(image)
        return found


def load_trunk(trunk: Trunk, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load the ``features.`` part of a classifier's state dict; its head (``classifier.``) is not needed and may be missing.

    Raises:
        WeightsError: the file holds no such part, or one that does not fit.
    """
    features = below(state, "features.")
    if not features:
        raise WeightsError(f"{path}: has no entries 'features.*'; give a classifier's weights with torchvision's names")
    load_into(trunk, features, path)
