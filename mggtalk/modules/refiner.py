"""Geometry refinement: the small UNet of DGSR that corrects the integrated depth of a head."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate

from mggtalk.modules.layers import UNet, ZeroConv
from mggtalk.modules.precision import learned
from mggtalk.types import Frame


class GeometryRefiner(nn.Module):
    """Predicts a depth offset from image, depth, normals and head mask (paper, DGSR: "a small 2D UNet").

    The offset is smooth: one number for each block of ``fold`` x ``fold`` pixels, interpolated. Detail is in the base already; what
    training would add to it at every pixel begins as noise, which tears the surface. What is learnt is large and slow as well: how far a
    head bends back towards its outline. So the network looks at pictures of one size, and heads keep their shape from one size to another.

    Args:
        widths: channels of the UNet's levels.
        limit: largest offset, cm: the base depth is right to a few millimetres on the face and to centimetres on hair and at the outline.
        fold: pixels a side that the UNet takes as one.
        seen: pixels of the longer side of what the UNet looks at.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 48, 64), limit: float = 3.0, fold: int = 4, seen: int = 256) -> None:
        super().__init__()
        self.limit, self.fold, self.seen = limit, fold, seen
        self.unet = UNet(8, widths, fold)
        self.head = ZeroConv(widths[0], 1)

    def forward(self, frame: Frame, head: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Corrected depth (cm); 0 outside the head, as the depth it corrects."""
        middle = frame.camera.head_to_camera[..., 2, 3][:, None, None, None]
        relative = (frame.depth - middle) / 10 * head
        inputs = _resized(torch.cat([frame.image * 2 - 1, relative, frame.normals, head], 1), self._size(head))
        with learned(head.device):
            raw = self.head(self.unet(inputs))
        blocks = [self.fold * side for side in raw.shape[-2:]]  # the last ones may reach beyond the picture
        offset = interpolate(raw.to(head.dtype), blocks, mode="bilinear", align_corners=False)
        offset = _resized(offset[..., : inputs.shape[-2], : inputs.shape[-1]], (head.shape[-2], head.shape[-1]))
        return frame.depth + self.limit * torch.tanh(offset) * (frame.depth > 0)

    def _size(self, head: Tensor) -> tuple[int, int]:
        """Height and width of what the UNet looks at."""
        height, width = head.shape[-2:]
        return round(height * self.seen / max(height, width)), round(width * self.seen / max(height, width))


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The mean over pixels where it becomes smaller, interpolated where it becomes larger."""
    if image.shape[-2:] == size:
        return image
    if size[0] < image.shape[-2]:
        return interpolate(image, size, mode="area")
    return interpolate(image, size, mode="bilinear", align_corners=False)


class NoRefiner(GeometryRefiner):
    """Leaves the depth as it is: the paper's ablation without geometry refinement. Nothing to train."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def forward(self, frame: Frame, head: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """The annotated depth."""
        return frame.depth
