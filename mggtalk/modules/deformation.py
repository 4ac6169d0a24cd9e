"""Deformation: expressions move points. Head pose has no part in it; it enters through the camera."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mggtalk.geometry.face_model import FaceModel
from mggtalk.modules.layers import MLP, fourier, fourier_size
from mggtalk.types import PointCloud

STRETCH = 5.0
"""Largest change of a footprint in units of its size: in slivers of triangles the derivative says nothing of the surface."""


class Deformed(NamedTuple):
    """Positions (cm) and tangents (cm a grid step) of points under another expression."""

    positions: Float[Tensor, "b n 3"]
    tangents: Float[Tensor, "b n 2 3"]


class Still(NamedTuple):
    """What the network says of points whatever moves them: what it sees of their places, and its correction (cm) of the source."""

    places: Float[Tensor, "b n w"]
    correction: Float[Tensor, "b n 3"]


def skin(cloud: PointCloud, displacement: Float[Tensor, "b v 3"]) -> Deformed:
    """The base: points follow the vertices they are bound to, their tangents follow the derivative of the binding.

    Args:
        cloud: canonical head space.
        displacement: of every mesh vertex, cm.
    """
    index = cloud.anchors.flatten(-2)[..., None].expand(-1, -1, 3)
    moved = displacement.gather(-2, index).unflatten(-2, (-1, 3))  # b n 3 anchors 3
    positions = cloud.positions + (cloud.weights[..., None] * moved).sum(-2)
    change = cloud.weight_steps @ moved
    largest = STRETCH * cloud.tangents.norm(dim=-1, keepdim=True)
    change = change * (largest / change.norm(dim=-1, keepdim=True).clamp(min=1e-6)).clamp(max=1)
    return Deformed(positions, cloud.tangents + change)


class DeformationNetwork(nn.Module):
    """An MLP over position and expression that corrects the skinned base (paper, deformation network).

    The correction is the difference of what the network says of the driver's and of the source's expression, so that the same
    expression moves nothing, trained or not; and it fades where the base fades, away from the face.

    Args:
        face_model: the base.
        width: of the hidden layers.
        octaves: of the positional encoding.
        limit: largest correction of one expression, cm.
    """

    def __init__(self, face_model: FaceModel, width: int = 96, octaves: int = 4, limit: float = 1.0) -> None:
        super().__init__()
        self.face_model, self.octaves, self.limit = face_model, octaves, limit
        self.expression = nn.Linear(face_model.expression_size, 32)
        self.body = MLP((fourier_size(octaves), 32), width, 3)

    def forward(
        self, cloud: PointCloud, target: Float[Tensor, "b e"], source: Float[Tensor, "b e"], still: Still | None = None
    ) -> Deformed:
        """The cloud of the ``source`` expression under the ``target`` expression; ``still`` may be kept from :meth:`still`."""
        base = skin(cloud, self.face_model.displacement(target - source))
        still = self.still(cloud, source) if still is None else still
        correction = self._correction(still.places, target) - still.correction
        return Deformed(base.positions + cloud.weights.sum(-1, keepdim=True) * correction, base.tangents)

    def still(self, cloud: PointCloud, source: Float[Tensor, "b e"]) -> Still:
        """What does not depend on the target."""
        places = self.body.lasting(fourier(cloud.positions, self.octaves))
        return Still(places, self._correction(places, source))

    def _correction(self, places: Tensor, expression: Tensor) -> Tensor:
        return self.limit * torch.tanh(self.body(places, self.expression(expression)[:, None]))
