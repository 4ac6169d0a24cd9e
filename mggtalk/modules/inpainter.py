"""Torso and background behind the head: a classical fill, corrected by a small network."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mggtalk.geometry.images import dilate, push_pull
from mggtalk.geometry.layers import Layers
from mggtalk.geometry.texture import continue_texture
from mggtalk.modules.layers import UNet, ZeroConv, unfold
from mggtalk.modules.precision import learned


def classical_fill(
    image: Float[Tensor, "b 3 h w"], layers: Layers
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"], Float[Tensor, "b 1 h w"]]:
    """The base: the background continued under the person, clothes under neck and hair, and the neck behind the chin.

    Three fills, not one, so that neither clothes nor background nor skin bleed into each other.

    Returns:
        Background, background with torso and neck over it, and the alpha of these two.

    Args:
        image: the source.
        layers: what it shows where.
    """
    behind = push_pull(image, layers.background)
    clothes, extent = _continued(image, layers.torso, layers.torso_extent)
    skin, neck = _continued(image, layers.neck, layers.neck_extent)
    dressed = extent * clothes + (1 - extent) * behind
    return behind, neck * skin + (1 - neck) * dressed, 1 - (1 - neck) * (1 - extent)


def _continued(image: Tensor, known: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
    """Colours continued from where they are known, and their alpha: 0 if none is known."""
    some = known.amax((-2, -1), keepdim=True)
    return push_pull(image, known) * some, extent * some


def textured(
    image: Float[Tensor, "b 3 h w"],
    layers: Layers,
    behind: Float[Tensor, "b 3 h w"],
    torso: Float[Tensor, "b 3 h w"],
    alpha: Float[Tensor, "b 1 h w"],
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b 3 h w"]]:
    """Both fills with the background's texture continued (not in the paper, whose network has to invent it).

    Args:
        image: the source.
        layers: what it shows where.
        behind: the background, filled smoothly behind the person.
        torso: the same with torso and neck over it.
        alpha: of these two.

    Returns:
        The background and the background with torso and neck over it.
    """
    made = continue_texture(image, layers.background, behind)
    return made, torso + layers.hidden * (1 - alpha) * (made - behind)


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
