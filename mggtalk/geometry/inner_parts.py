"""What a portrait with closed lips or lids does not show: generic eyeballs, teeth and the dark of a mouth, fitted to the person.

They lie behind lids and lips, so that they appear only where something opens beyond what the source shows; where the source shows eyes
and teeth, its own points lie in front of them. Sizes are anatomical averages relative to the person's mouth and eyes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.faces import face_regions
from datasets_toolkit.schema import BLENDSHAPES, Region
from mggtalk.geometry.cameras import project
from mggtalk.geometry.head_points import CHILD_STEPS, JAW
from mggtalk.types import Frame, PointCloud, cat

PATCH = (24, 40)
"""Rows and columns of each patch of points."""
SHUT = 0.5
"""Blink score above which an eye shows too little of its iris to be moved, so that a generic one is drawn."""
IRIS_RADIUS, PUPIL_RADIUS = 0.58, 0.2
"""Centimetres."""
DARK, FLESH = (0.30, 0.19, 0.21), (0.76, 0.55, 0.60)
"""Colours deep in a mouth and of a tongue, as shares of the skin's."""
PARTED = 0.3
"""Centimetres between lips from which the source may show teeth."""


@dataclass(frozen=True)
class _Patch:
    """A rectangle of points: centre, half width and half height vectors, what it moves with, and its colour at (u, v) in [-1, 1]."""

    centre: Tensor  # b 3
    right: Tensor  # b 3
    down: Tensor  # b 3
    anchors: tuple[int, int, int]
    strength: float
    colour: Tensor  # b rows columns 3
    opacity: Tensor  # b rows columns


class _Light(NamedTuple):
    """Colours of the source that generic parts are made of, b 1 1 3 each."""

    skin: Tensor
    left_eye: Tensor
    right_eye: Tensor


def inner_points(frame: Frame) -> PointCloud:
    """Generic eyes and mouth of a source (batched), canonical head space, without what no source of the batch needs."""
    light = _light(frame)
    patches = (*_mouth(frame, light), *_eye(frame, light.left_eye, left=True), *_eye(frame, light.right_eye, left=False))
    clouds = [_cloud(patch, frame) for patch in patches]
    needed = torch.stack([cloud.mask.any() for cloud in clouds]).tolist()
    return cat([cloud for cloud, kept in zip(clouds, needed, strict=True) if kept], dim=1)


def _coordinates(frame: Frame, rows: int = 1) -> tuple[Tensor, Tensor]:
    """The u to the right and v down of a patch's points, in [-1, 1] (rows x columns), ``rows`` times as dense as :data:`PATCH`."""
    like = frame.image
    v = (torch.arange(PATCH[0] * rows, device=like.device, dtype=like.dtype) + 0.5) / (PATCH[0] * rows) * 2 - 1
    u = (torch.arange(PATCH[1] * rows, device=like.device, dtype=like.dtype) + 0.5) / (PATCH[1] * rows) * 2 - 1
    grid = torch.meshgrid(v, u, indexing="ij")
    return grid[1], grid[0]


def _skin(frame: Frame) -> Float[Tensor, "b 3"]:
    """Mean colour of the face's skin: generic parts are lit like it."""
    skin = (frame.parsing == Region.SKIN)[:, None].to(frame.image)
    return (frame.image * skin).sum((-2, -1)) / skin.sum((-2, -1)).clamp(min=1)


def _light(frame: Frame) -> _Light:
    """Whites of eyes of which the source shows too little are skin made paler."""
    skin = _skin(frame)
    pale = 0.45 * skin + 0.45 * skin.mean(-1, keepdim=True)
    return _Light(skin[:, None, None], *(_bright(frame, region, pale) for region in (Region.LEFT_EYE, Region.RIGHT_EYE)))


def _mouth(frame: Frame, light: _Light) -> list[_Patch]:
    """The cavity, the tongue that rises from the jaw's floor, and the upper teeth, farthest first.

    How bright they are and how far the teeth reach below the lip (0.3 cm) follows open mouths of people who talk: below the lip .85 of
    the skin's colour and whiter, .5 cm further down .6, towards the lower lip .9; at the sides .5 to .7 (docs/log.md).
    """
    mesh = frame.mesh
    left, right = mesh[:, 308], mesh[:, 78]
    inner = mesh[:, list(face_regions.MOUTH_INNER)]
    upper = mesh[:, face_regions.UPPER_INNER_LIP]
    lower = mesh[:, face_regions.LOWER_INNER_LIP]
    half = (left - right) / 2
    size = half.norm(dim=-1, keepdim=True)
    down, back = _axis(mesh, 1, -1.0), _axis(mesh, 2, -1.0)
    middle = torch.stack([(left + right)[:, 0] / 2, inner[:, :, 1].mean(1), inner[:, :, 2].mean(1)], -1)
    lip = torch.stack([middle[:, 0], upper[:, 1], middle[:, 2]], -1)
    jaw = torch.stack([middle[:, 0], lower[:, 1], middle[:, 2]], -1)
    u, v = _coordinates(frame, 2)
    gaps = 1 - 0.10 * torch.exp(-((((u * 3.5 + 0.5) % 1 - 0.5) / 0.09) ** 2))
    sides = 1 - 0.4 * u.abs() ** 2
    teeth = _enamel(frame, light) * (sides * gaps)[None, ..., None]
    dark, flesh = (light.skin * u.new_tensor(share) * sides[..., None] for share in (DARK, FLESH))
    solid, tooth, tongue = torch.ones_like(u), 1 - u.abs() ** 6, (v + 1).clamp(0, 1) * (1 - u.abs() ** 4)
    wide = torch.nn.functional.normalize(half, dim=-1) * size
    return [
        _Patch(middle + 2.4 * back + 0.9 * down, wide, down * 2.4, JAW, 0.5, dark, solid[None]),
        _Patch(jaw + 1.3 * back + 0.7 * down, wide * 0.8, down * 0.9, JAW, 1.0, flesh, tongue[None]),
        _Patch(lip + 0.9 * back - 0.18 * down, wide * 0.75, down * 0.45, JAW, 0.0, teeth, tooth[None]),
    ]


def _enamel(frame: Frame, light: _Light) -> Float[Tensor, "b 1 1 3"]:
    """Colour of the teeth: that of those which the source shows, or one between its skin and the whites of its eyes."""
    usual = 0.37 * light.skin + 0.26 * (light.left_eye + light.right_eye)
    shown = _bright(frame, Region.MOUTH, usual[:, 0, 0])
    parted = frame.mesh[:, face_regions.UPPER_INNER_LIP, 1] - frame.mesh[:, face_regions.LOWER_INNER_LIP, 1] > PARTED
    bright = shown.mean(-1, keepdim=True) > 0.8 * usual.mean(-1, keepdim=True)
    return torch.where(bright & parted[:, None, None, None], shown, usual)


def _axis(mesh: Tensor, axis: int, sign: float) -> Tensor:
    vector = torch.zeros_like(mesh[:, 0])
    vector[:, axis] = sign
    return vector


def _eye(frame: Frame, white: Float[Tensor, "b 1 1 3"], *, left: bool) -> list[_Patch]:
    """The white of an eye, and its iris where the source's eye is shut."""
    ring = list(face_regions.LEFT_EYE if left else face_regions.RIGHT_EYE)
    iris = face_regions.LEFT_IRIS if left else face_regions.RIGHT_IRIS
    corners = frame.mesh[:, ring]
    low, high = corners.amin(1), corners.amax(1)
    middle = (low + high) / 2
    half = (high[:, 0] - low[:, 0])[:, None] / 2
    right, down = _axis(frame.mesh, 0, 1.0), _axis(frame.mesh, 1, -1.0)
    depth = corners[..., 2].mean(1)
    u, v = _coordinates(frame, 2)
    shade = (1 - 0.15 * u.abs() ** 2 - 0.15 * (v < 0) * v.abs())[None, ..., None]
    anchors = (iris[0], iris[1], iris[3])
    centre = torch.stack([middle[:, 0], middle[:, 1], depth - 0.75], -1)
    sclera = _Patch(centre, right * half * 1.05, down * half * 0.62, anchors, 0.0, white * shade, torch.ones_like(u)[None])
    blink = frame.expression[:, BLENDSHAPES.index("eyeBlinkLeft" if left else "eyeBlinkRight")]
    shut = (blink > SHUT).to(white)[:, None, None]
    radius = torch.hypot(u, v) * IRIS_RADIUS * 1.1
    dark = torch.where(radius[..., None] < PUPIL_RADIUS, 0.05, white.new_tensor([0.22, 0.15, 0.10])).expand(len(white), -1, -1, -1)
    open_level = torch.stack([middle[:, 0], high[:, 1], depth - 0.62], -1)
    disc = _Patch(open_level, right * IRIS_RADIUS * 1.1, down * IRIS_RADIUS * 1.1, anchors, 1.0, dark, (radius < IRIS_RADIUS)[None] * shut)
    return [sclera, disc]


def _bright(frame: Frame, region: Region, fallback: Float[Tensor, "b 3"]) -> Float[Tensor, "b 1 1 3"]:
    """Mean colour of the brightest fifth of a region, where it has at least a dozen pixels."""
    colours = []
    for image, shown, other in zip(frame.image, frame.parsing == region, fallback, strict=True):
        pixels = image[:, shown]
        if pixels.shape[1] < 12:
            colours.append(other)
            continue
        brightness = pixels.mean(0)
        colours.append(pixels[:, brightness >= brightness.quantile(0.8)].mean(1))
    return torch.stack(colours)[:, None, None]


def _cloud(patch: _Patch, frame: Frame) -> PointCloud:
    batch = len(frame.image)
    u, v = (grid.reshape(-1) for grid in _coordinates(frame))
    positions = patch.centre[:, None] + u[:, None] * patch.right[:, None] + v[:, None] * patch.down[:, None]
    count = positions.shape[1]
    tangents = torch.stack([patch.right * (2 / PATCH[1]), patch.down * (2 / PATCH[0])], 1)[:, None].expand(-1, count, -1, -1)
    colour = _children(patch.colour.expand(batch, -1, -1, -1))
    opacity = _children(patch.opacity.expand(batch, -1, -1)[..., None].to(positions))[..., 0]
    weights = positions.new_full((batch, count, 3), patch.strength / 3)
    return PointCloud(
        positions=positions,
        tangents=tangents,
        pixels=project(positions, frame.camera)[0],
        anchors=torch.tensor(patch.anchors, device=positions.device).expand(batch, count, 3),
        weights=weights,
        weight_steps=positions.new_zeros(batch, count, 2, 3),
        head_weight=positions.new_ones(batch, count),
        head_weight_steps=positions.new_zeros(batch, count, 2),
        colour=colour.mean(-2),
        opacity=opacity.mean(-1),
        child_colour=colour,
        child_opacity=opacity,
        mask=opacity.amax(-1) > 1 / 255,
    )


def _children(values: Float[Tensor, "b h2 w2 c"]) -> Float[Tensor, "b n k c"]:
    """Twice as dense values, grouped by parent in the order of :data:`CHILD_STEPS`."""
    return torch.stack([values[:, int(y > 0) :: 2, int(x > 0) :: 2] for x, y in CHILD_STEPS], -2).flatten(1, 2)
