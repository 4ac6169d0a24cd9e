"""Spatial identity encoding: a feature map of the source head, sampled at the points."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from mggtalk.modules.layers import UNet


class IdentityEncoder(nn.Module):
    """The paper's F: a UNet at half resolution over the source head.

    Args:
        channels: of the feature map.
        widths: of the UNet's levels; the first is mapped to ``channels``.
    """

    def __init__(self, channels: int = 32, widths: tuple[int, ...] = (32, 48, 64, 96)) -> None:
        super().__init__()
        self.channels = channels
        self.unet = UNet(4 * 4, widths)
        self.head = nn.Conv2d(widths[0], channels, 1)

    def forward(self, image: Float[Tensor, "b 3 h w"], head: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Features at half resolution of the image where ``head`` is 1."""
        return self.head(self.unet(pixel_unshuffle(torch.cat([(image * 2 - 1) * head, head], 1), 2)))
