"""Which vertices of the face mesh a pixel moves with, and how strongly.

A pixel on the mesh takes the barycentric weights of its triangle, so the weights never reach across the lip line or an eyelid. A pixel
off the mesh takes the nearest point of the mesh's border, with weights that fade with the distance from the face.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from datasets_toolkit.faces import face_regions
from mggtalk.types import TensorRecord

CHUNK = 512
"""Pixels tested against all border edges at a time on a CPU, so that what is computed of them stays in its cache."""
CELLS = 48
"""Cells a side of the grid that is laid over the mesh: a pixel is tested against the triangles whose boxes reach into its cell."""
TOLERANCE = 1e-4
"""How far below 0 a barycentric coordinate may lie inside a triangle, so that no pixel falls between two of them."""


@dataclass(frozen=True, kw_only=True)
class Binding(TensorRecord):
    """Anchors of pixels, their weights, the weights' derivative by pixel, and where the mesh ends."""

    anchors: Int[Tensor, "*batch n 3"]
    weights: Float[Tensor, "*batch n 3"]
    slopes: Float[Tensor, "*batch n 2 3"]  # change of the weights a pixel right and a pixel down
    distance: Float[Tensor, "*batch n"]  # pixels to the nearest border of the mesh: rim of the face, lids or inner lips


@torch.no_grad()
def bind(
    pixels: Float[Tensor, "b n 2"],
    vertices: Float[Tensor, "b v 2"],
    depth: Float[Tensor, "b v"],
    triangles: Int[Tensor, "m 3"],
    fade: Float[Tensor, " b"],
) -> Binding:
    """Bind pixels to the mesh as one image shows it; not differentiable.

    Args:
        pixels: where.
        vertices: of the mesh, in the same pixels.
        depth: of the vertices, cm; where triangles overlap, the nearest counts, and of equally near ones the first.
        triangles: of the mesh.
        fade: distance from the face, pixels, at which the weights have fallen to exp(-1).
    """
    linear, constant = _barycentric_maps(vertices[:, triangles])
    nearest = _nearest_triangles(pixels, vertices[:, triangles], depth[:, triangles], linear, constant)
    chosen, best = nearest < len(triangles), nearest.clamp(max=len(triangles) - 1)[..., None]
    slopes = linear.flatten(2).gather(1, best.expand(-1, -1, 6)).unflatten(-1, (3, 2)).mT
    weights = (slopes * pixels[..., None]).sum(-2) + constant.gather(1, best.expand(-1, -1, 3))
    border = _bind_to_border(pixels, vertices, fade)
    return Binding(
        anchors=torch.where(chosen[..., None], triangles[best[..., 0]], border.anchors),
        weights=torch.where(chosen[..., None], weights, border.weights),
        slopes=torch.where(chosen[..., None, None], slopes, border.slopes),
        distance=border.distance,
    )


def _nearest_triangles(pixels: Tensor, corners: Tensor, depth: Tensor, linear: Tensor, constant: Tensor) -> Int[Tensor, "b n"]:
    """The triangle nearest to the camera at each pixel; the number of triangles where there is none."""
    batch, count, _ = pixels.shape
    pixel, triangle = _candidates(pixels, corners)
    table = torch.cat([linear.mT.flatten(2), constant, depth], -1).flatten(0, 1)[triangle]
    across, down, constants, depths = table.split(3, -1)
    x, y = pixels.reshape(-1, 2)[pixel].unbind(-1)
    coordinates = x[:, None] * across + y[:, None] * down + constants
    inside = (coordinates >= -TOLERANCE).all(-1).nonzero()[:, 0]
    pixel, at = pixel[inside], (coordinates[inside] * depths[inside]).sum(-1)
    front = at.new_full((batch * count,), torch.inf).scatter_reduce(0, pixel, at, "amin")
    numbers = torch.where(at == front[pixel], triangle[inside] % corners.shape[1], corners.shape[1])
    best = numbers.new_full((batch * count,), corners.shape[1]).scatter_reduce(0, pixel, numbers, "amin")
    return best.unflatten(0, (batch, count))


def _candidates(pixels: Tensor, corners: Tensor) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """All pairs of a pixel and a triangle whose box, widened by the tolerance, reaches into the pixel's cell; both numbered through."""
    low, high = corners.amin(2), corners.amax(2)
    widening = 4 * TOLERANCE * (high - low) + 1e-3
    low, high = low - widening, high + widening
    origin = low.amin(1, keepdim=True)
    scale = CELLS / (high.amax(1, keepdim=True) - origin).clamp(min=1e-6)

    def cell(points: Tensor) -> Tensor:
        return ((points - origin) * scale).floor().clamp(-1, CELLS).long()

    first, last = (cell(ends).clamp(0, CELLS - 1) for ends in (low, high))
    spans = (last - first + 1).flatten(0, 1)
    triangle, place = _runs(spans.prod(-1))
    step = torch.stack([place % spans[triangle, 0], place // spans[triangle, 0]], -1)
    listed = _number(first.flatten(0, 1)[triangle] + step, triangle // corners.shape[1])
    order = listed.argsort()
    sizes = torch.bincount(listed, minlength=len(pixels) * CELLS**2)
    inside = cell(pixels)
    covered = ((inside >= 0) & (inside < CELLS)).all(-1).flatten().nonzero()[:, 0]
    own = _number(inside.flatten(0, 1)[covered], covered // pixels.shape[1])
    which, place = _runs(sizes[own])
    return covered[which], triangle[order[(sizes.cumsum(0) - sizes)[own][which] + place]]


def _number(cells: Tensor, batch: Tensor) -> Tensor:
    """One number for each cell of each image of the batch."""
    return (batch * CELLS + cells[:, 1]) * CELLS + cells[:, 0]


def _runs(sizes: Int[Tensor, " k"]) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """For runs of these sizes, laid end to end: the number of each entry's run, and its place in it."""
    run = torch.repeat_interleave(sizes)
    return run, torch.arange(len(run), device=sizes.device) - (sizes.cumsum(0) - sizes)[run]


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
    starts, ends, outer = (torch.tensor(values, device=pixels.device) for values in _border_edges())
    start, along = vertices[:, starts], vertices[:, ends] - vertices[:, starts]
    size = CHUNK if pixels.device.type == "cpu" else 64 * CHUNK
    best = torch.cat([_nearest_edges(part, start, along) for part in pixels.split(size, 1)], 1)
    index = best[..., None].expand(-1, -1, 2)
    start, along, faded = start.gather(1, index), along.gather(1, index), outer[best][..., None]
    length = along.square().sum(-1, keepdim=True).clamp(min=1e-9)
    t = (((pixels - start) * along).sum(-1, keepdim=True) / length).clamp(0, 1)
    offset = pixels - start - t * along
    distance = offset.norm(dim=-1)
    strength = torch.where(faded, torch.exp(-((distance / fade[:, None]) ** 2))[..., None], 1.0)
    weights = torch.cat([1 - t, t, torch.zeros_like(t)], -1) * strength
    turn = along / length * ((t > 0) & (t < 1))
    fall = -2 * offset * faded / fade[:, None, None] ** 2
    slopes = fall[..., None] * weights[..., None, :] + turn[..., None] * (t.new_tensor([-1.0, 1.0, 0.0]) * strength)[..., None, :]
    return Binding(
        anchors=torch.stack([starts[best], ends[best], starts[best]], -1),
        weights=weights,
        slopes=slopes,
        distance=distance,
    )


def _nearest_edges(pixels: Tensor, start: Tensor, along: Tensor) -> Int[Tensor, "b n"]:
    """Which edge each pixel is nearest to."""
    right, down = along[:, None].unbind(-1)
    shares = along / along.square().sum(-1, keepdim=True).clamp(min=1e-9)
    x, y = ((pixels[:, :, None, axis] - start[:, None, :, axis]) for axis in range(2))
    place = torch.addcmul(x * shares[:, None, :, 0], y, shares[:, None, :, 1]).clamp_(0, 1)
    x, y = x.addcmul_(place, right, value=-1), y.addcmul_(place, down, value=-1)
    return torch.addcmul(x.square_(), y, y).argmin(-1)
