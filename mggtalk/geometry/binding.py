"""Which vertices of the face mesh a pixel moves with, and how strongly.

A pixel on the mesh takes the barycentric weights of its triangle, so the weights never reach across the lip line or an eyelid. A pixel
off the mesh takes the nearest point of the mesh's border, with weights that fade with the distance from the face.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from datasets_toolkit import face_regions
from mggtalk.types import TensorRecord

CHUNK = 4096
"""Pixels tested against all triangles at a time: bounds memory."""


@dataclass(frozen=True, kw_only=True)
class Binding(TensorRecord):
    """Anchors of pixels, their weights, the weights' derivative by pixel, and where the mesh ends."""

    anchors: Int[Tensor, "*batch n 3"]
    weights: Float[Tensor, "*batch n 3"]
    slopes: Float[Tensor, "*batch n 2 3"]  # change of the weights a pixel right and a pixel down
    distance: Float[Tensor, "*batch n"]  # pixels to the nearest border of the mesh: rim of the face, lids or inner lips


def bind(
    pixels: Float[Tensor, "b n 2"],
    vertices: Float[Tensor, "b v 2"],
    depth: Float[Tensor, "b v"],
    triangles: Int[Tensor, "m 3"],
    fade: Float[Tensor, " b"],
) -> Binding:
    """Bind pixels to the mesh as one image shows it.

    Args:
        pixels: where.
        vertices: of the mesh, in the same pixels.
        depth: of the vertices, cm; where triangles overlap, the nearest counts.
        triangles: of the mesh.
        fade: distance from the face, pixels, at which the weights have fallen to exp(-1).
    """
    parts = [_bind(part, vertices, depth, triangles, fade) for part in pixels.split(CHUNK, 1)]
    return Binding(
        anchors=torch.cat([part.anchors for part in parts], 1),
        weights=torch.cat([part.weights for part in parts], 1),
        slopes=torch.cat([part.slopes for part in parts], 1),
        distance=torch.cat([part.distance for part in parts], 1),
    )


def _bind(pixels: Tensor, vertices: Tensor, depth: Tensor, triangles: Tensor, fade: Tensor) -> Binding:
    linear, constant = _barycentric_maps(vertices[:, triangles])
    coordinates = torch.einsum("bnk,bmjk->bnmj", pixels, linear) + constant[:, None]
    inside = (coordinates >= -1e-4).all(-1)
    at = (coordinates * depth[:, triangles][:, None]).sum(-1)
    best = torch.where(inside, at, torch.inf).argmin(-1)
    weights = coordinates.gather(2, best[..., None, None].expand(-1, -1, 1, 3))[:, :, 0]
    slopes = linear.gather(1, best[..., None, None].expand(-1, -1, 3, 2)).mT
    border = _bind_to_border(pixels, vertices, fade)
    choose = inside.any(-1, keepdim=True)
    return Binding(
        anchors=torch.where(choose, triangles[best], border.anchors),
        weights=torch.where(choose, weights, border.weights),
        slopes=torch.where(choose[..., None], slopes, border.slopes),
        distance=border.distance,
    )


def _barycentric_maps(corners: Float[Tensor, "b m 3 2"]) -> tuple[Float[Tensor, "b m 3 2"], Float[Tensor, "b m 3"]]:
    """A and c with barycentric coordinates ``A p + c`` of every triangle; degenerate triangles contain nothing."""
    origin = corners[:, :, 0]
    edges = torch.stack([corners[:, :, 1] - origin, corners[:, :, 2] - origin], -1)
    area = torch.linalg.det(edges)
    flat = area.abs() < 1e-6
    inverse = torch.linalg.inv(torch.where(flat[..., None, None], torch.eye(2).to(edges), edges))
    linear = torch.cat([-inverse.sum(-2, keepdim=True), inverse], -2)
    constant = -(linear @ origin[..., None])[..., 0]
    constant = constant + torch.tensor([1.0, 0.0, 0.0]).to(constant)
    return linear, torch.where(flat[..., None], -torch.inf, constant)


def _border_edges() -> tuple[list[int], list[int], list[bool]]:
    """Starts and ends of the mesh's border edges, and whether each is the outer rim of the face."""
    rings = (face_regions.FACE_OVAL, face_regions.LEFT_EYE, face_regions.RIGHT_EYE, face_regions.MOUTH_INNER)
    starts = [vertex for ring in rings for vertex in ring]
    ends = [vertex for ring in rings for vertex in ring[1:] + ring[:1]]
    return starts, ends, [ring is face_regions.FACE_OVAL for ring in rings for _ in ring]


def _bind_to_border(pixels: Tensor, vertices: Tensor, fade: Tensor) -> Binding:
    starts, ends, outer = _border_edges()
    start, end = vertices[:, starts], vertices[:, ends]
    along = end - start
    length = along.square().sum(-1).clamp(min=1e-9)
    place = (((pixels[:, :, None] - start[:, None]) * along[:, None]).sum(-1) / length[:, None]).clamp(0, 1)
    offset = pixels[:, :, None] - start[:, None] - place[..., None] * along[:, None]
    distance, best = offset.norm(dim=-1).min(-1)
    index = best[..., None]
    t = place.gather(-1, index)
    faded = torch.tensor(outer, device=pixels.device)[best]
    strength = torch.where(faded, torch.exp(-((distance / fade[:, None]) ** 2)), 1.0)[..., None]
    anchors = torch.stack([torch.tensor(starts)[best.cpu()], torch.tensor(ends)[best.cpu()]], -1).to(pixels.device)
    weights = torch.cat([1 - t, t, torch.zeros_like(t)], -1) * strength
    turn = (along / length[..., None]).gather(1, index.expand(-1, -1, 2)) * ((t > 0) & (t < 1))
    away = offset.gather(2, index[..., None].expand(-1, -1, 1, 2))[:, :, 0] * faded[..., None]
    fall = -2 * away / fade[:, None, None] ** 2
    slopes = fall[..., None] * weights[..., None, :] + turn[..., None] * torch.tensor([-1.0, 1.0, 0.0]).to(t) * strength[..., None]
    return Binding(
        anchors=torch.cat([anchors, anchors[..., :1]], -1),
        weights=weights,
        slopes=slopes,
        distance=distance,
    )
