"""Faces are nearly symmetric: mirrored points, and the few of them that show something new.

Canonical head space (``docs/conventions.md``): the facial plane is x = 0, centimetres. The mirrored set of the method (Gong et al.,
"Monocular and Generalizable Gaussian Talking Head Animation", 2025) is thinned to what the source image does not show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mggtalk.geometry.cameras import project
from mggtalk.types import Camera, PointCloud, Surface

MIRRORED_CHILDREN = (1, 0, 3, 2)
"""The order of a point's children (``head_points.CHILD_STEPS``) once right and left are exchanged."""


def mirror_points(points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
    """Reflect points or vectors in the facial plane, x -> -x."""
    return points * points.new_tensor([-1, 1, 1])


def mirror_cloud(cloud: PointCloud, vertex_mirror: Int[Tensor, " v"], child_mirror: Sequence[int] = MIRRORED_CHILDREN) -> PointCloud:
    """The cloud of the other half of the face: what it shows is looked up where its counterpart is seen, so ``pixels`` and colours stay.

    A reflection M turns right-handed frames into left-handed ones, ``cross(M a, M b) = -M cross(a, b)``. So the first tangent is
    negated as well: then ``cross(t0, t1)`` of the mirrored point is the mirrored ``cross(t0, t1)`` of the original, inward where that
    was inward. To a frontal camera the first tangent points right and the second down, as before. What belongs to a step right turns
    with it: the first weight step is negated, and the children left and right of their parent change places. Mirroring twice gives
    the cloud back.

    Args:
        cloud: canonical head space.
        vertex_mirror: for every vertex of the face mesh, the vertex on the other side.
        child_mirror: for every child, the one at the opposite step along the first tangent; by default for children in two rows, left
            to right.

    Raises:
        ValueError: ``vertex_mirror`` or ``child_mirror`` is not its own inverse, or does not have one entry for every child.
    """
    children = torch.tensor(child_mirror, device=cloud.positions.device)
    for name, swap in (("vertex_mirror", vertex_mirror), ("child_mirror", children)):
        if not torch.equal(swap[swap], torch.arange(len(swap)).to(swap)):
            raise ValueError(f"{name} must be its own inverse")
    if len(children) != cloud.child_opacity.shape[-1]:
        raise ValueError(f"child_mirror has {len(children)} entries for {cloud.child_opacity.shape[-1]} children")
    (right, down), (weights_right, weights_down) = mirror_points(cloud.tangents).unbind(-2), cloud.weight_steps.unbind(-2)
    return replace(
        cloud,
        positions=mirror_points(cloud.positions),
        tangents=torch.stack([-right, down], dim=-2),
        anchors=vertex_mirror[cloud.anchors].to(cloud.anchors),
        weight_steps=torch.stack([-weights_right, weights_down], dim=-2),
        head_weight_steps=cloud.head_weight_steps * cloud.head_weight_steps.new_tensor([-1, 1]),
        child_colour=cloud.child_colour[..., children, :],
        child_opacity=cloud.child_opacity[..., children],
    )


@torch.no_grad()
def voxel_filter(
    candidates: Float[Tensor, "*batch m 3"],
    candidate_mask: Bool[Tensor, "*batch m"],
    visible: Float[Tensor, "*batch n 3"],
    visible_mask: Bool[Tensor, "*batch n"],
    voxel_size: float,
    reach: int = 1,
) -> Bool[Tensor, "*batch m"]:
    """Which valid candidates are far from every valid visible point, told by voxels.

    A candidate is dropped when its voxel, or one at most ``reach`` away along each axis (1: the 26 around it), holds a valid visible
    point. So none nearer than ``reach * voxel_size`` along all axes is kept, and none further than ``(reach + 1) * voxel_size`` along
    some axis is dropped. Space and time follow the number of points, not of voxels.

    Raises:
        ValueError: ``voxel_size`` is not positive, or so small that voxels of this extent cannot be numbered in 63 bits.
    """
    if voxel_size <= 0:
        raise ValueError(f"voxel_size must be positive, got {voxel_size}")
    if not (candidate_mask.any() and visible_mask.any()):
        return candidate_mask.clone()
    cells = [_cells(points, mask, voxel_size) for points, mask in ((candidates, candidate_mask), (visible, visible_mask))]
    low = torch.cat(cells).amin(dim=0) - reach  # so that a neighbour has a number of its own, even beside the outermost voxel
    extent = [int(side) + 1 for side in torch.cat(cells).amax(dim=0) + reach - low]
    if extent[0] * extent[1] * extent[2] * extent[3] >= 2**63:
        raise ValueError(f"voxel_size {voxel_size} is too small for the extent of the points")
    strides = torch.tensor([extent[1] * extent[2] * extent[3], extent[2] * extent[3], extent[3], 1], device=low.device)
    asked, occupied = (((cell - low) * strides).sum(dim=-1) for cell in cells)
    asked, which = asked.unique(return_inverse=True)
    occupied = occupied.unique()
    steps = torch.arange(-reach, reach + 1, device=low.device)
    rows = asked[:, None] + (torch.cartesian_prod(steps, steps) * strides[1:3]).sum(
        dim=-1
    )  # each with the voxels from -reach to reach in it
    place = torch.searchsorted(occupied, rows - reach)
    apart = (place == len(occupied)) | (occupied[place.clamp(max=len(occupied) - 1)] > rows + reach)
    keep = candidate_mask.clone()
    keep[candidate_mask] = apart.all(dim=-1)[which]
    return keep


def _cells(points: Tensor, mask: Tensor, voxel_size: float) -> Int[Tensor, "k 4"]:
    """Batch number and voxel of every valid point."""
    flat = mask.reshape(-1, mask.shape[-1])
    voxels = (points.reshape(*flat.shape, 3)[flat] / voxel_size).floor().long()
    return torch.cat([flat.nonzero()[:, :1], voxels], dim=-1)


@torch.no_grad()
def hidden_behind(points: Float[Tensor, "*batch n 3"], surface: Surface, camera: Camera, margin: float) -> Bool[Tensor, "*batch n"]:
    """Which points (canonical head space) the camera of ``surface`` cannot have shown.

    True where the point projects to a pixel inside ``surface.mask`` and lies at least ``margin`` cm deeper than the surface there.
    """
    pixels, depth = project(points, camera)
    height, width = surface.mask.shape[-2:]
    column, row = pixels.floor().unbind(-1)
    inside = (depth > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = torch.where(inside, row * width + column, 0).long()
    seen = surface.mask.flatten(-3).gather(-1, place)
    return inside & seen & (depth >= surface.depth.flatten(-3).gather(-1, place) + margin)
