"""Torso and background behind the head: a classical fill, corrected by a small network."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mggtalk.geometry.images import dilate, push_pull
from mggtalk.modules.layers import UNet, ZeroConv, unfold
from mggtalk.modules.precision import learned


def classical_fill(
    image: Float[Tensor, "b 3 h w"],
    background: Float[Tensor, "b 1 h w"],
    torso: Float[Tensor, "b 1 h w"],
    torso_extent: Float[Tensor, "b 1 h w"],
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
    """The base: the background continued under the person, and the torso continued under neck and hair.

    Two fills, not one, so that clothes do not bleed into the background nor the background into the clothes.

    Returns:
        Background, background with the torso over it, and the torso's alpha.

    Args:
        image: the source.
        background: 1 where it surely shows background.
        torso: 1 where it surely shows torso.
        torso_extent: alpha of the whole torso, hidden parts included.
    """
    behind = push_pull(image, background)
    has_torso = torso.amax((-2, -1), keepdim=True)
    clothes = push_pull(image, torso) * has_torso
    extent = torso_extent * has_torso
    return behind, extent * clothes + (1 - extent) * behind, extent


class Inpainter(nn.Module):
    """Corrects the classical fill where the head hides torso and background.

    Args:
        widths: channels of the UNet's levels.
        margin: pixels around the hidden region that may change as well.
        fold: pixels a side that the UNet takes as one.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 48, 64), margin: int = 3, fold: int = 4) -> None:
        super().__init__()
        self.margin, self.fold = margin, fold
        self.unet = UNet(4, widths, fold)
        self.head = ZeroConv(widths[0], 3 * fold**2)

    def forward(self, filled: Float[Tensor, "b 3 h w"], hidden: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The image without what hides it.

        Args:
            filled: the source with the classical fill where ``hidden`` is 1.
            hidden: 1 where the head, or the whole person, hides what is behind.
        """
        where = dilate(hidden, self.margin)
        with learned(filled.device):
            raw = self.head(self.unet(torch.cat([filled * 2 - 1, hidden], 1)))
        correction = unfold(raw.to(filled.dtype), self.fold, (hidden.shape[-2], hidden.shape[-1]))
        return (filled + where * torch.tanh(correction)).clamp(0, 1)
