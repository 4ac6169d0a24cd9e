"""From an annotated source to points: P_f of the paper, a cloud of surface points with what the source shows at each of them.

Points lie on a grid of every second pixel, and on every pixel around eyes and mouth, where a coarser grid would tear lids and lips. Each is
the parent of K = 4 children that densification places at the quarter points of its cell.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from datasets_toolkit.faces import face_regions
from datasets_toolkit.schema import Region
from mggtalk.geometry.binding import Binding, bind
from mggtalk.geometry.cameras import invert_rigid, pixel_centres, project, unproject
from mggtalk.geometry.face_model import FaceModel
from mggtalk.geometry.images import dilate, nearest, push_pull, sample
from mggtalk.geometry.layers import Layers, one_of
from mggtalk.types import Camera, Frame, PointCloud, Surface, TensorRecord

CHILD_STEPS = ((-0.25, -0.25), (0.25, -0.25), (-0.25, 0.25), (0.25, 0.25))
"""Where the children of a point lie, in grid steps right and down."""
FINE = (Region.LEFT_EYE, Region.RIGHT_EYE, Region.UPPER_LIP, Region.LOWER_LIP, Region.MOUTH)
"""Regions in which every pixel is a point."""
STEEPEST = 0.3
"""Cosine of the angle between surface and ray below which footprints stop growing: what the source sees so obliquely it hardly sees."""
FADE = 3.0
"""Distance from the face, cm, at which expressions have faded to exp(-1)."""
EYE_DEPTH, MOUTH_DEPTH = 0.35, 0.7
"""How far eyeballs lie behind the lids and teeth behind the lips, cm, so that what closes covers them."""
LASHES, LIPS = 0.06, 0.12
"""Distance from lids and from inner lips, cm, within which what is labelled eye or mouth moves with the lid or lip."""
EYES = (
    (Region.LEFT_EYE, face_regions.LEFT_EYE, face_regions.LEFT_IRIS),
    (Region.RIGHT_EYE, face_regions.RIGHT_EYE, face_regions.RIGHT_IRIS),
)
TEETH = 0.9
"""How far upper teeth reach below the upper lip, cm."""
JAW = (152, 175, 199)
"""Vertices of the chin: the lower teeth move with them."""


@dataclass(frozen=True, kw_only=True)
class _Grid(TensorRecord):
    """Candidate points: pixel, grid step in pixels, validity."""

    pixels: Float[Tensor, "b n 2"]
    steps: Float[Tensor, "b n"]
    mask: Bool[Tensor, "b n"]


def visible_points(frame: Frame, layers: Layers, surface: Surface, face_model: FaceModel, capacity: int | None = None) -> PointCloud:
    """The points that the source shows, canonical head space.

    Args:
        frame: the source (batched).
        layers: what its pixels belong to.
        surface: refined depth and its normals.
        face_model: topology of the mesh that the points are bound to.
        capacity: size of the set; by default as large as the batch needs.

    Raises:
        ValueError: more points than ``capacity``.
    """
    grid = _compact(_candidates(frame, layers), capacity)
    labels = nearest(frame.parsing[:, None], grid.pixels)[..., 0]
    depth = sample(push_pull(surface.depth, surface.mask.to(surface.depth)), grid.pixels)[..., 0]
    binding, behind = _bind(frame, grid.pixels, labels, face_model)
    positions = unproject(grid.pixels, depth + behind, frame.camera)
    children = _child_pixels(grid)
    alpha = sample(layers.head, children.flatten(1, 2)).unflatten(1, (-1, len(CHILD_STEPS)))[..., 0]
    return PointCloud(
        positions=positions,
        tangents=_tangents(grid, depth, surface, frame.camera),
        pixels=grid.pixels,
        anchors=binding.anchors,
        weights=binding.weights,
        weight_steps=binding.slopes * grid.steps[..., None, None],
        head_weight=sample(layers.head_weight, grid.pixels)[..., 0],
        head_weight_steps=_slopes(layers.head_weight, grid),
        colour=sample(layers.foreground, grid.pixels),
        opacity=alpha.mean(-1),
        child_colour=sample(layers.foreground, children.flatten(1, 2)).unflatten(1, (-1, len(CHILD_STEPS))),
        child_opacity=alpha,
        mask=grid.mask,
    )


def _candidates(frame: Frame, layers: Layers) -> _Grid:
    """Every second pixel corner, and every pixel near the fine regions instead of it."""
    batch, _, height, width = frame.image.shape
    fine = one_of(frame.parsing, FINE)
    near = dilate(fine[:, None].to(frame.image), 2)
    cells = torch.nn.functional.max_pool2d(near, 2)  # a cell is fine as a whole, or points would overlap
    shown = torch.nn.functional.max_pool2d((layers.head > 1 / 255).to(near), 2)
    coarse_mask = ((cells == 0) & (shown > 0)).flatten(1)
    fine_mask = ((cells.repeat_interleave(2, -1).repeat_interleave(2, -2) > 0) & (layers.head > 1 / 255)).flatten(1)
    every = pixel_centres(height, width, device=near.device, dtype=near.dtype)
    pixels = torch.cat([2 * every[: height // 2, : width // 2].reshape(-1, 2), every.reshape(-1, 2)])
    steps = torch.cat([every.new_full((coarse_mask.shape[1],), 2), every.new_full((fine_mask.shape[1],), 1)])
    return _Grid(pixels=pixels.expand(batch, -1, -1), steps=steps.expand(batch, -1), mask=torch.cat([coarse_mask, fine_mask], 1))


def _compact(grid: _Grid, capacity: int | None) -> _Grid:
    """The valid candidates first, in order, cut to ``capacity``."""
    needed = int(grid.mask.sum(1).max())
    if capacity is not None and needed > capacity:
        raise ValueError(f"the source has {needed} points, more than the capacity of {capacity}")
    order = torch.argsort((~grid.mask).to(torch.uint8), dim=1, stable=True)[:, : capacity or max(needed, 1)]
    return _Grid(
        pixels=grid.pixels.gather(1, order[..., None].expand(-1, -1, 2)), steps=grid.steps.gather(1, order), mask=grid.mask.gather(1, order)
    )


def _child_pixels(grid: _Grid) -> Float[Tensor, "b n k 2"]:
    steps = torch.tensor(CHILD_STEPS, device=grid.pixels.device, dtype=grid.pixels.dtype)
    return grid.pixels[:, :, None] + grid.steps[:, :, None, None] * steps


def _slopes(image: Float[Tensor, "b 1 h w"], grid: _Grid) -> Float[Tensor, "b n 2"]:
    """Change of a smooth image a grid step right and down, by central differences."""
    ahead = grid.steps[..., None] * torch.eye(2, device=image.device)[:, None, None] / 2
    return torch.cat([sample(image, grid.pixels + half) - sample(image, grid.pixels - half) for half in ahead], -1)


def _tangents(grid: _Grid, depth: Tensor, surface: Surface, camera: Camera) -> Float[Tensor, "b n 2 3"]:
    """Footprints: the derivative of the surface point by pixel, along the tangent plane, rotated into canonical space.

    A point is X = z r with ray r of unit depth; on the plane with normal n, dX = z (dr - (n . dr) / (n . r) r).
    """
    normal = normalize(sample(push_pull(surface.normals, surface.mask.to(depth)), grid.pixels), dim=-1, eps=1e-6)
    inverse = torch.linalg.inv(camera.intrinsics)
    ray = torch.cat([grid.pixels, torch.ones_like(grid.pixels[..., :1])], -1) @ inverse.mT
    facing = (normal * ray).sum(-1)
    facing = facing.clamp(max=-STEEPEST)
    steps = []
    for axis in range(2):
        turn = inverse[:, None, :, axis]
        steps.append(turn - (normal * turn).sum(-1, keepdim=True) / facing[..., None] * ray)
    tangents = torch.stack(steps, -2) * (depth * grid.steps)[..., None, None]
    return tangents @ invert_rigid(camera.head_to_camera)[:, None, :3, :3].mT


def _bind(frame: Frame, pixels: Tensor, labels: Tensor, face_model: FaceModel) -> tuple[Binding, Float[Tensor, "b n"]]:
    """Bind to the mesh, but eyes to the iris, upper teeth to the skull and lower teeth to the jaw; and how far behind the mesh each lies.

    What is labelled mouth or eye but lies at its edge is lip or lid: between closed lips there are no teeth to be seen, and lashes do not
    move with the gaze.
    """
    with torch.no_grad():
        vertices, depth = project(frame.mesh, frame.camera)
        scale = frame.camera.intrinsics[:, 0, 0] / frame.camera.head_to_camera[:, 2, 3]  # pixels for a cm
        binding = bind(pixels, vertices, depth, face_model.triangles, FADE * scale)
        in_eye, in_mouth = (binding.distance > edge * scale[:, None] for edge in (LASHES, LIPS))
        for region, ring, iris in EYES:
            follows, fall = _following(pixels, vertices, ring, iris)
            binding = _rebind(binding, in_eye & (labels == region), (iris[0], iris[1], iris[3]), follows, fall)
        mouth = in_mouth & (labels == Region.MOUTH)
        upper = _upper_teeth(pixels, vertices, TEETH * scale)
        binding = _rebind(binding, mouth & upper, JAW, 0.0)
        binding = _rebind(binding, mouth & ~upper, JAW, 1.0)
        eye = in_eye & ((labels == Region.LEFT_EYE) | (labels == Region.RIGHT_EYE))
        return binding, EYE_DEPTH * eye + MOUTH_DEPTH * mouth


def _following(
    pixels: Float[Tensor, "b n 2"], vertices: Float[Tensor, "b v 2"], ring: tuple[int, ...], iris: tuple[int, ...]
) -> tuple[Float[Tensor, "b n 1"], Float[Tensor, "b n 2 1"]]:
    """How much pixels of an eye move with its iris, and how that changes a pixel right and down.

    All of the iris does, and the corners stay: the white between them is drawn out on one side, so that it need not be made up, and
    pushed together on the other.
    """
    centre, first, last = (vertices[:, index, None] for index in (iris[0], ring[0], ring[len(ring) // 2]))
    radius = (vertices[:, list(iris[1:])] - centre).norm(dim=-1).mean(1)[:, None]
    axis = normalize(last - first, dim=-1)
    aside = ((pixels - centre) * axis).sum(-1)
    ahead, behind = (((end - centre) * axis).sum(-1).abs() for end in (last, first))
    white = (torch.where(aside > 0, ahead, behind) - radius).clamp(min=0.5 * radius)
    follows = ((radius - aside.abs()) / white + 1).clamp(0, 1)
    fall = torch.where((follows > 0) & (follows < 1), -aside.sign() / white, 0)[..., None] * axis
    return follows[..., None], fall[..., None]


def _rebind(
    binding: Binding, where: Tensor, anchors: tuple[int, int, int], strength: float | Tensor, slope: float | Tensor = 0.0
) -> Binding:
    chosen = where[..., None]
    return Binding(
        anchors=torch.where(chosen, torch.tensor(anchors, device=where.device), binding.anchors),
        weights=torch.where(chosen, strength / 3, binding.weights),
        slopes=torch.where(chosen[..., None], slope / 3, binding.slopes),
        distance=binding.distance,
    )


def _upper_teeth(pixels: Tensor, vertices: Tensor, reach: Float[Tensor, " b"]) -> Bool[Tensor, "b n"]:
    """What is closer to the upper lip than to the lower one, or no farther from it than teeth reach.

    Between lips that are parted a little upper teeth are seen from lip to lip: divided, they would open into two rows.
    """
    half = len(face_regions.MOUTH_INNER) // 2
    lower, upper = face_regions.MOUTH_INNER[1:half], face_regions.MOUTH_INNER[half + 1 :]
    below = torch.cdist(pixels, vertices[:, upper]).amin(-1)
    return (below < torch.cdist(pixels, vertices[:, lower]).amin(-1)) | (below < reach[:, None])
