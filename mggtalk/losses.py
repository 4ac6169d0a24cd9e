"""What the stages of training minimise: pure functions, one value for each pair of a batch, so that any mean over them is exact.

Letters: I a rendering, T the target picture, b pairs. The paper's loss on a rendering, before and after densification, is
    |I - T| + 0.2 (1 - SSIM(I, T)) + 0.01 perceptual(I, T)
(Gong et al., MGGTalk, arXiv 2504.00665, losses). Everything else here keeps a stage from what that loss alone would let happen, and says
from what.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from datasets_toolkit.faces import face_regions
from datasets_toolkit.schema import HEAD_REGIONS, Region
from mggtalk.geometry.cameras import project
from mggtalk.geometry.images import nearest
from mggtalk.geometry.layers import one_of
from mggtalk.metrics.functional import aed, akd, ssim
from mggtalk.networks.face_identity import FaceIdentity
from mggtalk.networks.face_landmarks import FaceLandmarks
from mggtalk.types import Frame, Gaussians, PointCloud

Distance = Callable[[Tensor, Tensor], Tensor]
"""A perceptual distance of two batches of images: b values."""
FOCUS = (Region.LEFT_EYE, Region.RIGHT_EYE, Region.UPPER_LIP, Region.LOWER_LIP, Region.MOUTH)
"""What people look at, and what is a small part of the picture."""
FAR = 1.0
"""Distance (cm) from which depths of two views no longer disagree but show two surfaces: one hides the other."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """A part of a loss. Attributes: value (b, one for each pair), weight it is added with."""

    value: Float[Tensor, " b"]
    weight: float


Terms = Mapping[str, Term]


def total(terms: Terms) -> Float[Tensor, " b"]:
    """The loss of each pair: the weighted sum. Terms without weight take no part, whatever their value."""
    return torch.stack([term.weight * term.value for term in terms.values() if term.weight]).sum(0)


@dataclass(frozen=True, kw_only=True)
class ImageLoss:
    """Weights of the loss on a rendering.

    Attributes:
        l1: of the mean absolute difference (paper: 1).
        ssim: of 1 - SSIM (paper: 0.2).
        perceptual: of the perceptual distance (paper: 0.01).
        focus: how much more than other pixels those of eyes and mouth count in the absolute difference: they are three percent of a
            picture and most of what is looked at. 0 is the paper's plain mean.
    """

    l1: float = 1.0
    ssim: float = 0.2
    perceptual: float = 0.01
    focus: float = 3.0


def image_terms(name: str, image: Float[Tensor, "b 3 h w"], target: Frame, weights: ImageLoss, distance: Distance) -> dict[str, Term]:
    """The loss on a rendering of ``target``, its parts under ``name/``; parts without weight are not computed."""
    parts: dict[str, Term] = {}
    if weights.l1:
        parts[f"{name}/l1"] = Term(value=focused_l1(image, target, weights.focus), weight=weights.l1)
    if weights.ssim:
        parts[f"{name}/ssim"] = Term(value=1 - ssim(image, target.image), weight=weights.ssim)
    if weights.perceptual:
        parts[f"{name}/perceptual"] = Term(value=distance(image, target.image), weight=weights.perceptual)
    return parts


def focused_l1(image: Float[Tensor, "b 3 h w"], target: Frame, focus: float) -> Float[Tensor, " b"]:
    """Mean absolute difference, weighted ``1 + focus`` in eyes and mouth; the weights of a picture have mean 1."""
    weight = 1 + focus * one_of(target.parsing, FOCUS)[:, None].to(image)
    difference = (image - target.image).abs().mean(1, keepdim=True)
    return (weight * difference).sum((1, 2, 3)) / weight.sum((1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class ReadingLoss:
    """Weights of what a face tracker and a face recogniser read in a rendering; the paper has no such terms, and 0 leaves one out.

    Attributes:
        landmarks: of the mean distance between landmarks read in rendering and target, in units of the face's height.
        blendshapes: of the mean absolute difference between the expressions read.
        identity: of the distance between dlib's descriptors (:class:`mggtalk.networks.face_identity.FaceIdentity`).
    """

    landmarks: float = 0.0
    blendshapes: float = 0.0
    identity: float = 0.0

    @property
    def tracked(self) -> bool:
        """Whether the tracker is needed."""
        return bool(self.landmarks or self.blendshapes)


def reading_terms(image: Float[Tensor, "b 3 h w"], target: Frame, weights: ReadingLoss, reader: FaceLandmarks) -> dict[str, Term]:
    """What the tracker reads in a rendering of ``target`` against what it reads in the target itself.

    Colours say where a lip should be only while it overlaps with where it is; a tracker says so from afar. It reads both pictures, so
    that what it always gets wrong does not count. Its gradients brighten and darken, no more: see :func:`same_hue`.
    """
    near = project(target.mesh, target.camera)[0]
    with torch.no_grad():
        wanted = reader(target.image, near)
    read = reader(same_hue(image), near)
    height = (near[..., 1].amax(-1) - near[..., 1].amin(-1)).clamp(min=1)
    return {
        "reading/landmarks": Term(value=akd(read.landmarks, wanted.landmarks) / height, weight=weights.landmarks),
        "reading/blendshapes": Term(value=aed(read.blendshapes, wanted.blendshapes), weight=weights.blendshapes),
    }


def identity_terms(image: Float[Tensor, "b 3 h w"], target: Frame, weights: ReadingLoss, recogniser: FaceIdentity) -> dict[str, Term]:
    """How far a recogniser finds a rendering of ``target`` from the target itself.

    A face is known by small differences all over it, each of which is worth little to a loss on colours. Both pictures are cut out at the
    same place. Its gradients keep hues as those of the tracker do: see :func:`same_hue`.
    """
    near = project(target.mesh, target.camera)[0]
    with torch.no_grad():
        wanted = recogniser(target.image, near)
    apart = (recogniser(same_hue(image), near) - wanted).square().sum(-1)
    return {"reading/identity": Term(value=(apart + 1e-6).sqrt(), weight=weights.identity)}  # a root without a corner at 0


def same_hue(image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """``image`` itself; what comes back of gradients is their part along each pixel's own colour, which keeps its hue.

    A tracker reads teal irises as well as brown ones, and better if they stand out so: what it knows nothing of is not its to change.
    """
    colour = image.detach()
    brightness = (image * colour).sum(1, keepdim=True) / colour.square().sum(1, keepdim=True).clamp(min=1e-4)
    return colour + colour * (brightness - brightness.detach())


def head_mask(frame: Frame) -> Float[Tensor, "b 1 h w"]:
    """1 where the parsing sees head, hair or neck: where head-masked measures look."""
    return one_of(frame.parsing, HEAD_REGIONS)[:, None].to(frame.image)


def depth_agreement(
    positions: Float[Tensor, "b n 3"], weights: Float[Tensor, "b n"], target: Frame, limit: float = FAR
) -> Float[Tensor, " b"]:
    """How far (cm) the source's surface, moved to the target's expression and pose, lies from the target's own.

    The annotated depth of one picture is right up to slow errors; those of two poses are wrong in different ways, and only the true
    surface agrees with both. Differences above ``limit`` count as ``limit`` and move nothing.

    Args:
        positions: canonical head space, under the target's expression.
        weights: of the points, 0 for those that are not there.
        target: with depth.
        limit: cm.
    """
    pixels, depth = project(positions, target.camera)
    height, width = target.depth.shape[-2:]
    inside = ((pixels > 0) & (pixels < pixels.new_tensor([width, height]))).all(-1)
    there = nearest(target.depth, pixels)[..., 0]
    weights = weights * inside * (there > 0)
    difference = (depth - there).abs().clamp(max=limit)
    return (weights * difference).sum(1) / weights.sum(1).clamp(min=1e-6)


def normal_agreement(normals: Float[Tensor, "b 3 h w"], annotated: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """1 - cosine between the normals of the refined depth and those of the annotator, mean where both are known.

    The annotators see form from shading better than they see distance; the refinement may not trade that for colours.
    """
    known = ((normals.square().sum(1) > 0.5) & (annotated.square().sum(1) > 0.5)).to(normals)
    return (known * (1 - cosine_similarity(normals, annotated, dim=1))).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)


def roughness(offset: Float[Tensor, "b 1 h w"], mask: Float[Tensor, "b 1 h w"]) -> Float[Tensor, " b"]:
    """Mean absolute second difference (cm) of a depth offset within the head: corrections are slow, noise is not."""
    right = (offset[..., 2:] - 2 * offset[..., 1:-1] + offset[..., :-2]).abs()
    down = (offset[..., 2:, :] - 2 * offset[..., 1:-1, :] + offset[..., :-2, :]).abs()
    whole_right = mask[..., 2:] * mask[..., 1:-1] * mask[..., :-2]
    whole_down = mask[..., 2:, :] * mask[..., 1:-1, :] * mask[..., :-2, :]
    sums = (whole_right * right).sum((1, 2, 3)) + (whole_down * down).sum((1, 2, 3))
    return sums / (whole_right.sum((1, 2, 3)) + whole_down.sum((1, 2, 3))).clamp(min=1)


def mesh_cloud(mesh: Float[Tensor, "b v 3"]) -> PointCloud:
    """The vertices of a tracked mesh as points that are bound to themselves, for the deformation network. No colours."""
    batch, count = mesh.shape[:2]
    zero = mesh.new_zeros
    own = torch.arange(count, device=mesh.device)[None, :, None].expand(batch, -1, 3)
    return PointCloud(
        positions=mesh,
        tangents=zero(batch, count, 2, 3),
        pixels=zero(batch, count, 2),
        anchors=own,
        weights=mesh.new_tensor([1.0, 0.0, 0.0]).expand(batch, count, 3),
        weight_steps=zero(batch, count, 2, 3),
        head_weight=mesh.new_ones(batch, count),
        head_weight_steps=zero(batch, count, 2),
        colour=zero(batch, count, 3),
        opacity=mesh.new_ones(batch, count),
        child_colour=zero(batch, count, 1, 3),
        child_opacity=mesh.new_ones(batch, count, 1),
        mask=torch.ones(batch, count, dtype=torch.bool, device=mesh.device),
    )


def landmark_weights(vertices: int, focus: float) -> Float[Tensor, " v"]:
    """Weights of mesh vertices with mean 1; lids and lips count ``1 + focus``: they move most, and are few."""
    weights = torch.ones(vertices)
    weights[[*face_regions.LEFT_EYE, *face_regions.RIGHT_EYE, *face_regions.LIPS_OUTER, *face_regions.MOUTH_INNER]] += focus
    return weights / weights.mean()


def landmark_motion(moved: Float[Tensor, "b v 3"], target: Float[Tensor, "b v 3"], weights: Float[Tensor, " v"]) -> Float[Tensor, " b"]:
    """Mean distance (cm) of the source's mesh under the target's expression from the target's own, head pose aside.

    What a rendering says of a lip is drowned in what it says of its colour; this says only where it should be.
    """
    return (weights * (moved - target).norm(dim=-1)).mean(-1)


def child_offsets(coarse: Gaussians, dense: Gaussians) -> Float[Tensor, " b"]:
    """Mean squared distance of children from their parents, in units of the parents' size.

    Children that wander leave holes where they should have been and haze where they arrive, in views that training did not show.
    """
    children = dense.means.unflatten(1, (coarse.means.shape[1], -1))
    size = coarse.scales.amax(-1).detach().clamp(min=1e-4)
    distance = (children - coarse.means[:, :, None]).square().sum(-1).mean(-1) / size.square()
    return _masked_mean(distance, coarse.mask)


def stretched(gaussians: Gaussians, ratio: float = 8.0, largest: float = 0.5) -> Float[Tensor, " b"]:
    """How far Gaussians exceed a ``ratio`` of their two larger scales, or ``largest`` cm (as logarithms, squared, mean).

    Needles and blobs fit one view and stick out of every other.
    """
    ordered = gaussians.scales.clamp(min=1e-5).log().sort(dim=-1).values
    needle = (ordered[..., 2] - ordered[..., 1] - torch.log(torch.tensor(ratio))).clamp(min=0)
    blob = (ordered[..., 2] - torch.log(torch.tensor(largest))).clamp(min=0)
    return _masked_mean(needle.square() + blob.square(), gaussians.mask)


def haze(gaussians: Gaussians) -> Float[Tensor, " b"]:
    """Mean ``4 o (1 - o)`` of the opacities: a surface is there or it is not; half-opaque layers shimmer when the head turns."""
    return _masked_mean(4 * gaussians.opacities * (1 - gaussians.opacities), gaussians.mask)


def asymmetry(coarse: Gaussians, counterpart: Int[Tensor, "b m"]) -> Float[Tensor, " b"]:
    """Mean absolute difference of colours between mirrored Gaussians, the last m of ``coarse``, and their counterparts.

    Few pairs show what the source hides; where none does, the other side of the face is the best guess. Light is not symmetric, so let
    the weight be small.
    """
    count = counterpart.shape[1]
    visible = coarse.features[:, :-count].detach()
    partner = visible.gather(1, counterpart[..., None].expand(-1, -1, visible.shape[-1]))
    return _masked_mean((coarse.features[:, -count:] - partner).abs().mean(-1), coarse.mask[:, -count:])


def _masked_mean(values: Float[Tensor, "b n"], mask: Tensor) -> Float[Tensor, " b"]:
    return torch.where(mask, values, 0).sum(1) / mask.sum(1).clamp(min=1)
