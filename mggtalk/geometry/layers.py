"""A source image taken apart: the head's own colours and alpha, what is torso and background, and what bends between head and torso."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d

from datasets_toolkit.faces.face_regions import CHIN
from datasets_toolkit.schema import HEAD_REGIONS, Region
from mggtalk.geometry.cameras import pixel_centres, project, unproject
from mggtalk.geometry.images import dilate, erode, push_pull, shift
from mggtalk.geometry.neck import PIVOT
from mggtalk.geometry.picture_kernels import lay_behind
from mggtalk.streaming import can_stream, run_rows
from mggtalk.types import Frame, TensorRecord

SOLID = 0.97
"""Matte above which a pixel shows nothing but the person."""
TRACE = 0.03
"""Matte below which a pixel shows nothing of the person."""
LEAST = 0.3
"""Matte up to which a soft edge tells nothing of the colour of what it belongs to; from 1 - LEAST on it tells all."""
NECK_ABOVE_CHIN = 3.0
"""To which height above the chin (cm) the neck goes on behind the face, above all of it that is seen."""
NECK_HALF_WIDTH = 5.5
"""Half the width of a neck (cm), which goes on behind jaw and hair whether any of it is seen below or only a collar ..."""
NECK_REACH = (-4.0, 5.0)
"""... between these heights (cm) about :data:`mggtalk.geometry.neck.PIVOT`, the upper one about that of the lobes of the ears."""
SLIVER = 1 / 48
"""Half the width (of the image's) up to which hair between jaw and clothes is taken for clothes ..."""
BEARD = 3.5
"""... if it lies that far (cm) to the side of :data:`mggtalk.geometry.neck.PIVOT`, and below it."""
HANGS = (8.0, -6.0)
"""Heights above the chin (cm) between which hanging hair changes over from the head to the torso."""


@dataclass(frozen=True, kw_only=True)
class Layers(TensorRecord):
    """Images of one source."""

    head: Float[Tensor, "*batch 1 h w"]  # alpha of head, hair and neck
    foreground: Float[Tensor, "*batch 3 h w"]  # their colour, the background's share removed at soft edges
    head_weight: Float[Tensor, "*batch 1 h w"]  # 1 follows the head, 0 stays with the torso
    hidden: Float[Tensor, "*batch 1 h w"]  # 1 where the head hides torso and background
    background: Float[Tensor, "*batch 1 h w"]  # 1 where the source surely shows background
    torso: Float[Tensor, "*batch 1 h w"]  # 1 where it surely shows torso
    torso_extent: Float[Tensor, "*batch 1 h w"]  # alpha of the whole torso, hidden parts included
    neck: Float[Tensor, "*batch 1 h w"]  # 1 where it surely shows the neck
    neck_extent: Float[Tensor, "*batch 1 h w"]  # alpha of the whole neck, continued behind the face
    neck_near: Float[Tensor, "*batch 1 h w"]  # 1 where it shows the neck, or nearly


def take_apart(frame: Frame) -> Layers:
    """Split an annotated source (batched) into layers."""
    frame = replace(frame, parsing=_without_slivers(frame))
    labels = frame.parsing[:, None]
    is_head = one_of(labels, HEAD_REGIONS).to(frame.image)
    is_torso = (labels == Region.TORSO).to(frame.image)
    person = ((labels != Region.BACKGROUND) & (frame.matte > 0.5)).to(frame.image)
    share = push_pull(is_head, person)  # who the soft edge of the person belongs to
    head = frame.matte * (share > 0.5)
    hidden = (dilate(head, 1) > TRACE).to(head)
    background = 1 - (dilate(frame.matte, 3) > TRACE).to(head)
    torso = is_torso * (frame.matte > SOLID) * (1 - dilate(is_head, 3))
    is_neck = (labels == Region.NECK).to(frame.image)
    return Layers(
        head=head,
        foreground=_own_colours(frame, is_head, push_pull(frame.image, background)),
        head_weight=_head_weight(frame, is_head, is_torso),
        hidden=hidden,
        background=background,
        torso=torso,
        torso_extent=_torso_extent(is_torso * frame.matte, hidden),
        neck=is_neck * (frame.matte > SOLID) * (1 - dilate(is_head - is_neck, 2)),
        neck_extent=_neck_extent(is_neck, is_head, frame),
        neck_near=dilate(is_neck, 1),
    )


def behind(
    torso: Float[Tensor, "b 4 h w"],
    background: Float[Tensor, "b 3 h w"],
    source: Float[Tensor, "b 3 h w"],
    moved: Float[Tensor, "b 2"],
    stillness: Float[Tensor, " b"],
) -> Float[Tensor, "b 3 h w"]:
    """What a head is composited onto.

    Args:
        torso: its colours multiplied by its alpha, and its alpha.
        background: behind head and torso.
        source: the picture that they were taken from, head included.
        moved: how far (pixels) the torso has gone right and down.
        stillness: the share of the source.
    """
    if can_stream(torso, background, source, moved):
        made = torch.empty_like(source, memory_format=torch.contiguous_format)
        run_rows(lay_behind, (torso, background, source, moved, stillness[:, None]), made)
        return made
    colours, alpha = shift(torso, moved).split([3, 1], 1)
    return torch.lerp(colours + (1 - alpha) * background, source, stillness[:, None, None, None])


def one_of(labels: UInt8[Tensor, "*shape"], regions: tuple[Region, ...]) -> Bool[Tensor, "*shape"]:
    """Where the label is one of ``regions``."""
    return torch.isin(labels, torch.tensor([int(region) for region in regions], dtype=labels.dtype, device=labels.device))


def _without_slivers(frame: Frame) -> UInt8[Tensor, "b h w"]:
    """Labels in which slivers of hair between jaw and clothes are clothes or neck: a collar's edge, which else goes with the head."""
    is_hair, is_torso, is_neck = ((frame.parsing[:, None] == region).to(frame.image) for region in (Region.HAIR, Region.TORSO, Region.NECK))
    radius = max(round(frame.image.shape[-2] * SLIVER), 1)
    thin = is_hair * (1 - dilate(erode(is_hair, radius), radius)) * dilate(is_torso, 2 * radius)
    across, up = _from_pivot(frame)
    sliver = (thin > 0) & (up <= 0) & (across.abs() >= BEARD)
    skin = _unlike(frame.image, is_neck, 3 * radius) < _unlike(frame.image, is_torso, 3 * radius)
    labels = torch.where(skin & _above(is_neck), int(Region.NECK), int(Region.TORSO)).to(frame.parsing)
    return torch.where(sliver, labels, frame.parsing[:, None])[:, 0]


def _unlike(image: Tensor, region: Tensor, radius: int) -> Float[Tensor, "b 1 h w"]:
    """Squared difference of colours from the mean of ``region`` within ``radius`` pixels; infinite where there is none of it."""
    window = functools.partial(avg_pool2d, kernel_size=2 * radius + 1, stride=1, padding=radius)
    share = window(region)
    mean = window(image * region) / share.clamp(min=1e-6)
    return torch.where(share > 0, (image - mean).square().sum(1, keepdim=True), torch.inf)


def _torso_extent(torso: Tensor, hidden: Tensor) -> Tensor:
    """The torso's alpha with its outline continued smoothly under neck and hair."""
    continued = push_pull(torso, 1 - hidden)
    return torch.where(hidden > 0, ((continued - 0.5) * 6 + 0.5).clamp(0, 1), torso)


def _neck_extent(is_neck: Tensor, is_head: Tensor, frame: Frame) -> Tensor:
    """The neck's alpha, continued upwards behind the head, which hides it from the source: a head that turns uncovers its side."""
    radius = max(is_neck.shape[-2] // 128, 1)
    below = _from(frame.mesh[:, CHIN], frame)[..., 1] <= NECK_ABOVE_CHIN
    across, up = _from_pivot(frame)
    broad = dilate(erode(is_neck * below, radius), radius)  # without slivers beside ears and jaw
    column = (across.abs() <= NECK_HALF_WIDTH) & (up <= NECK_REACH[1]) & (_above(broad) | (up >= NECK_REACH[0]))
    solid = erode(is_head * (frame.matte > SOLID), 2 * radius)
    extent = torch.maximum(broad, solid * (below & _above(broad) | column))
    soft = avg_pool2d(extent, 4 * radius + 1, stride=1, padding=2 * radius, count_include_pad=False)
    return torch.minimum(torch.maximum(broad, 2 * soft - 1), is_head * frame.matte)


def _above(region: Tensor) -> Bool[Tensor, "b 1 h w"]:
    """Where some of ``region`` is, or lies straight below."""
    return region.flip(-2).cummax(-2).values.flip(-2) > 0


def _from(point: Float[Tensor, "b 3"], frame: Frame) -> Float[Tensor, "b 1 h w 2"]:
    """How far (cm) pixels lie to the right of a point of the head and above it, at its depth."""
    height, width = frame.image.shape[-2:]
    place, depth = project(point[:, None], frame.camera)
    apart = pixel_centres(height, width, device=point.device, dtype=point.dtype) - place[:, None, None]
    apart = apart * (depth / frame.camera.intrinsics[:, 0, 0, None])[..., None, None, None]
    return apart * apart.new_tensor([1, -1])


def _from_pivot(frame: Frame) -> tuple[Float[Tensor, "b 1 h w"], Float[Tensor, "b 1 h w"]]:
    across, up = _from(frame.mesh.new_tensor(PIVOT).expand(len(frame.mesh), 3), frame).unbind(-1)
    return across, up


def _own_colours(frame: Frame, is_head: Tensor, behind: Tensor) -> Tensor:
    """What the head's pixels would show were they opaque: I = alpha F + (1 - alpha) B solved for F; neighbours' where alpha is small."""
    own = ((frame.image - (1 - frame.matte) * behind) / frame.matte.clamp(min=LEAST)).clamp(0, 1)
    return push_pull(own, is_head * ((frame.matte - LEAST) / (1 - 2 * LEAST)).clamp(0, 1))


def _head_weight(frame: Frame, is_head: Tensor, is_torso: Tensor) -> Tensor:
    """1 for the face, falling in hair that hangs, 0 at the torso and at the lower image border; smooth over the neck between them."""
    height, width = frame.image.shape[-2:]
    pixels = pixel_centres(height, width, device=frame.image.device, dtype=frame.image.dtype).reshape(1, -1, 2)
    points = unproject(pixels.expand(len(frame.depth), -1, -1), frame.depth.flatten(1).clamp(min=1), frame.camera)
    up = points[..., 1].unflatten(-1, (height, width))[:, None] - frame.mesh[:, CHIN, 1, None, None, None]
    hangs = ((up - HANGS[1]) / (HANGS[0] - HANGS[1])).clamp(0, 1)
    neck, hair = (frame.parsing[:, None] == region for region in (Region.NECK, Region.HAIR))
    known = is_head * ~neck
    border = torch.zeros_like(is_head)
    border[..., -2:, :] = 1
    stays = torch.maximum(dilate(is_torso, 1), border) * (1 - known)
    return push_pull(known * torch.where(hair, hangs, 1), torch.maximum(known, stays))
