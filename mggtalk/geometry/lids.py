"""Closing lids: of its upper lid an open eye shows a narrow strip in the shadow of brow and lashes, too little to draw out over an eye.

Where the strip is stretched its colours go over into those of the cheek below; lashes keep theirs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.faces.face_regions import LEFT_EYE, RIGHT_EYE
from mggtalk.geometry.neck import squared_stretch
from mggtalk.types import PointCloud

UPPER_LASHES = (RIGHT_EYE[9:], LEFT_EYE[9:])
"""Vertices between the corners of each eye."""
CHEEK = ((-1.6, 1.6), (-2.8, -1.2))
"""Where the cheek's colour is taken, cm right and up of the middle of the lashes."""
SHADE = 0.92
"""How bright a lid is beside its cheek."""
FOLD, MOST = 0.35, 0.85
"""Up to which weight of the lashes a point still belongs to the fold above, and how much of the colour goes over at most."""
TAUT, DRAWN = 1.2, 2.4
"""Stretch from which on colours change, and from which on they are the cheek's."""


class Lids(NamedTuple):
    """How much of the skin of an upper lid each point is, 0 to 1, and the colour that it takes where it is drawn out."""

    share: Float[Tensor, "b n"]
    colour: Float[Tensor, "b n 3"]


def upper_lids(cloud: PointCloud, mean: Float[Tensor, "v 3"]) -> Lids:
    """The upper lids of a cloud.

    Args:
        cloud: points in canonical space (cm), bound to the vertices of ``mean``.
        mean: the mean face, canonical space.
    """
    share, colour = torch.zeros_like(cloud.opacity), torch.zeros_like(cloud.colour)
    skin = cloud.mask & (cloud.weights.sum(-1) > 0.99)
    for lashes in UPPER_LASHES:
        ring = torch.isin(cloud.anchors, torch.tensor(lashes, device=share.device))
        near = (cloud.weights * ring).sum(-1)  # 1 at the lashes, 0 at the fold
        right, up = (cloud.positions - mean[list(lashes)].mean(0))[..., :2].unbind(-1)
        (left_end, right_end), (low, high) = CHEEK
        below = skin & (right > left_end) & (right < right_end) & (up > low) & (up < high)
        weights = (below * cloud.opacity)[..., None]
        cheek = SHADE * (weights * cloud.colour).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1e-6)
        part = MOST * (near / FOLD).clamp(max=1) * (1 - near**4) * below.any(1, keepdim=True)
        share, colour = torch.maximum(share, part), torch.where((part > 0)[..., None], cheek, colour)
    return Lids(share, colour)


def drawn(lids: Lids, tangents: Float[Tensor, "b n 2 3"], moved: Float[Tensor, "b n 2 3"]) -> Float[Tensor, "b n 1"]:
    """How far each point goes over into the lid's colour, 0 to 1.

    Args:
        lids: of the points.
        tangents: of the source.
        moved: under the expression of the target.
    """
    stretch = squared_stretch(tangents, moved).clamp(min=1e-8).sqrt()
    return (lids.share * ((stretch - TAUT) / (DRAWN - TAUT)).clamp(0, 1))[..., None]
