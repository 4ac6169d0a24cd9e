"""Spatial identity encoding: a feature map of the source head, sampled at the points."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mggtalk.modules.layers import Pointwise, UNet, unfold
from mggtalk.modules.precision import learned


class IdentityEncoder(nn.Module):
    """The paper's F: a UNet over the source head.

    Args:
        channels: of the feature map.
        widths: of the UNet's levels.
        fold: pixels a side that the UNet takes as one, even.
    """

    def __init__(self, channels: int = 32, widths: tuple[int, ...] = (48, 64, 96), fold: int = 4) -> None:
        super().__init__()
        if fold < 2 or fold % 2:
            raise ValueError(f"fold must be even, got {fold}")
        self.channels, self.fold = channels, fold
        self.unet = UNet(4, widths, fold)
        self.head = Pointwise(widths[0], channels * (fold // 2) ** 2)

    def forward(self, image: Float[Tensor, "b 3 h w"], head: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Features at half resolution of the image where ``head`` is 1."""
        half = ((image.shape[-2] + 1) // 2, (image.shape[-1] + 1) // 2)
        with learned(image.device):
            features = self.head(self.unet(torch.cat([(image * 2 - 1) * head, head], 1)))
        return unfold(features.to(image.dtype), self.fold // 2, half)
