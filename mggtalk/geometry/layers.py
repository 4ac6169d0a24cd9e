"""A source image taken apart: the head's own colours and alpha, what is torso and background, and what bends between head and torso."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d

from datasets_toolkit.faces.face_regions import CHIN
from datasets_toolkit.schema import HEAD_REGIONS, Region
from mggtalk.geometry.cameras import pixel_centres, project, unproject
from mggtalk.geometry.images import dilate, erode, push_pull, shift
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
"""To which height above the chin (cm) the neck goes on behind the face."""
BEND_BELOW_CHIN = 0.0
"""Height (cm, from the chin upwards) below which neck and hair begin to bend towards the torso."""


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


def take_apart(frame: Frame) -> Layers:
    """Split an annotated source (batched) into layers."""
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


def _torso_extent(torso: Tensor, hidden: Tensor) -> Tensor:
    """The torso's alpha with its outline continued smoothly under neck and hair."""
    continued = push_pull(torso, 1 - hidden)
    return torch.where(hidden > 0, ((continued - 0.5) * 6 + 0.5).clamp(0, 1), torso)


def _neck_extent(is_neck: Tensor, is_head: Tensor, frame: Frame) -> Tensor:
    """The neck's alpha, continued upwards behind the face to :data:`NECK_ABOVE_CHIN`, where the head hides it from the source."""
    height, radius = is_neck.shape[-2], max(is_neck.shape[-2] // 128, 1)
    chin, depth = project(frame.mesh[:, CHIN : CHIN + 1], frame.camera)
    highest = chin[:, 0, 1] - NECK_ABOVE_CHIN * frame.camera.intrinsics[:, 1, 1] / depth[:, 0]
    rows = torch.arange(height, device=is_neck.device, dtype=is_neck.dtype)[:, None]
    allowed = (rows >= highest[:, None, None, None]).to(is_neck)
    broad = dilate(erode(is_neck * allowed, radius), radius)  # without slivers beside ears and jaw
    solid = erode(is_head * (frame.matte > SOLID), 2 * radius)
    behind = allowed * solid * broad.flip(-2).cummax(-2).values.flip(-2)  # above some of it
    extent = torch.maximum(broad, behind)
    soft = avg_pool2d(extent, 4 * radius + 1, stride=1, padding=2 * radius, count_include_pad=False)
    return torch.minimum(torch.maximum(broad, 2 * soft - 1), is_head * frame.matte)


def _own_colours(frame: Frame, is_head: Tensor, behind: Tensor) -> Tensor:
    """What the head's pixels would show were they opaque: I = alpha F + (1 - alpha) B solved for F; neighbours' where alpha is small."""
    own = ((frame.image - (1 - frame.matte) * behind) / frame.matte.clamp(min=LEAST)).clamp(0, 1)
    return push_pull(own, is_head * ((frame.matte - LEAST) / (1 - 2 * LEAST)).clamp(0, 1))


def _head_weight(frame: Frame, is_head: Tensor, is_torso: Tensor) -> Tensor:
    """1 above the chin, 0 at the torso and at the lower image border, smooth over neck and hanging hair."""
    height, width = frame.image.shape[-2:]
    pixels = pixel_centres(height, width, device=frame.image.device, dtype=frame.image.dtype).reshape(1, -1, 2)
    points = unproject(pixels.expand(len(frame.depth), -1, -1), frame.depth.flatten(1).clamp(min=1), frame.camera)
    below = points[..., 1].unflatten(-1, (height, width))[:, None] < (frame.mesh[:, CHIN, 1] + BEND_BELOW_CHIN)[:, None, None, None]
    face = (frame.parsing[:, None] != Region.NECK) & (frame.parsing[:, None] != Region.HAIR)
    moves = is_head * (face | ~below)
    border = torch.zeros_like(is_head)
    border[..., -2:, :] = 1
    stays = torch.maximum(dilate(is_torso, 1), border) * (1 - moves)
    return push_pull(moves, torch.maximum(moves, stays))
