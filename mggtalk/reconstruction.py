"""What is computed once for a portrait: the first half of the figure in :mod:`mggtalk.model`, from an annotated frame to an identity."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from datasets_toolkit.schema import Region
from mggtalk.geometry.cameras import project
from mggtalk.geometry.head_points import visible_points
from mggtalk.geometry.images import dilate, nearest, sample
from mggtalk.geometry.inner_parts import inner_points
from mggtalk.geometry.layers import Layers, one_of, take_apart
from mggtalk.geometry.light import FaceLight
from mggtalk.geometry.neck import SUNK
from mggtalk.geometry.surface import normals_from_depth
from mggtalk.geometry.symmetry import hidden_behind, mirror_cloud, voxel_filter
from mggtalk.modules.deformation import DeformationNetwork, Deformed
from mggtalk.modules.gaussians import Densifier, GaussianDecoder, base_gaussians
from mggtalk.modules.identity import IdentityEncoder
from mggtalk.modules.inpainter import Inpainter, classical_fill, textured
from mggtalk.modules.precision import exact
from mggtalk.modules.refiner import GeometryRefiner
from mggtalk.rendering.renderer import Renderer
from mggtalk.types import Frame, Gaussians, HeadPoints, Identity, PointCloud, Surface, cat

EYES_AND_MOUTH = (Region.LEFT_EYE, Region.RIGHT_EYE, Region.MOUTH)


class Reconstruction(nn.Module):
    """Portraits to identities, with all parts that a model has.

    Args:
        refiner: corrects the depth of the head.
        encoder: spatial identity features.
        deformation: moves points by expression.
        visible_decoder: Gaussians of what the source shows.
        mirrored_decoder: Gaussians of mirrored points, given their counterparts' (``extra=11``); None lets the visible decoder do it.
        densifier: children of every Gaussian.
        inpainter: torso and background behind the head.
        renderer: splats.
        voxel_size: of the filter that thins the mirrored points, cm.
        margin: how far (cm) mirrored points must lie behind what the source shows.
        capacity: size of the set of visible points; by default as large as the source needs.
        sharpening: steps that make up for the blur of splatting.
        symmetry: whether there are mirrored points at all.
        filtered: whether those are dropped that are not needed: near visible points, or in front of what the source shows.
        detailed: whether what the Gaussians miss of the source is carried along (:mod:`mggtalk.geometry.detail`; not in the paper).
        relit: whether a face that turns changes its brightness in the source's light (:mod:`mggtalk.geometry.light`; not in the paper).
        textured: whether the background's texture goes on behind the person (:mod:`mggtalk.geometry.texture`; not in the paper). Not done
            in training, which it would hold up.
    """

    def __init__(
        self,
        refiner: GeometryRefiner,
        encoder: IdentityEncoder,
        deformation: DeformationNetwork,
        visible_decoder: GaussianDecoder,
        mirrored_decoder: GaussianDecoder | None,
        densifier: Densifier,
        inpainter: Inpainter,
        renderer: Renderer,
        voxel_size: float = 0.2,
        margin: float = 0.4,
        capacity: int | None = None,
        sharpening: int = 2,
        symmetry: bool = True,
        filtered: bool = True,
        detailed: bool = True,
        relit: bool = True,
        textured: bool = True,
    ) -> None:
        super().__init__()
        self.refiner, self.encoder, self.deformation = refiner, encoder, deformation
        self.visible_decoder, self.mirrored_decoder = visible_decoder, mirrored_decoder
        self.densifier, self.inpainter, self.renderer = densifier, inpainter, renderer
        self.voxel_size, self.margin, self.capacity = voxel_size, margin, capacity
        self.sharpening, self.symmetry, self.filtered = sharpening, symmetry, filtered
        self.detailed, self.relit, self.light = detailed, relit, FaceLight()
        self.textured = textured

    def reconstruct(self, frame: Frame) -> Identity:
        """What is computed once for a portrait (batched)."""
        with exact(frame.image.device):
            return self._reconstruct(frame)

    def _reconstruct(self, frame: Frame) -> Identity:
        layers = take_apart(frame)
        surface = _surface(self.refiner(frame, layers.head), frame)
        background, torso, torso_alpha = self.inpaint(frame, layers)
        resting = _surface(surface.depth + surface.mask * SUNK * (1 - layers.head_weight), frame)
        points = self.points(frame, layers, resting, torso)
        pixels = torch.cat([points.visible.pixels, points.mirrored.pixels], 1)
        features = sample(self.encoder(frame.image, layers.head), pixels / 2)
        visible_features, mirrored_features = features.split([points.visible.mask.shape[1], points.mirrored.mask.shape[1]], 1)
        return Identity(
            surface=surface,
            points=points,
            visible_features=visible_features,
            mirrored_features=mirrored_features,
            image=frame.image,
            background=background,
            torso=torso - (1 - torso_alpha) * background,
            torso_alpha=torso_alpha,
            backed=torso_alpha * layers.neck_near,
            light=self.light(frame),
            camera=frame.camera,
            expression=frame.expression,
        )

    def points(self, frame: Frame, layers: Layers, surface: Surface, backdrop: Float[Tensor, "b 3 h w"]) -> HeadPoints:
        """P_f, with eyeballs and the inside of the mouth, and P_f^s: mirrored points where the source shows none."""
        visible = visible_points(frame, layers, surface, self.deformation.face_model, self.capacity)
        visible = self.sharpened(visible, frame, backdrop)
        mirrored = mirror_cloud(visible, self.deformation.face_model.mirror)
        keep = _mirrors(visible, frame) & self.symmetry
        if self.filtered:
            rim = dilate((~surface.mask).to(surface.depth), max(surface.mask.shape[-1] // 96, 1)) > 0  # there footprints would stick out
            keep &= hidden_behind(mirrored.positions, replace(surface, mask=surface.mask & ~rim), frame.camera, self.margin)
            keep = voxel_filter(mirrored.positions, keep, visible.positions, visible.mask, self.voxel_size)
        order = torch.argsort((~keep).to(torch.uint8), dim=1, stable=True)[:, : max(int(keep.sum(1).max()), 1)]
        mirrored = select(replace(mirrored, mask=keep), order)
        return HeadPoints(visible=cat([visible, inner_points(frame)], dim=1), mirrored=mirrored, counterpart=order)

    @torch.no_grad()
    def sharpened(self, cloud: PointCloud, frame: Frame, backdrop: Float[Tensor, "b 3 h w"]) -> PointCloud:
        """Colours with which the splat of the base shows the source itself, and not its blur.

        Splats overlap, so that each pixel mixes the colours of its neighbours. What the rendering misses of the source is added to
        the colours (Landweber's iteration on a rendering that is linear in them).
        """
        size = (frame.image.shape[-2], frame.image.shape[-1])
        parents = _base(Deformed(cloud.positions, cloud.tangents), cloud)
        children = self.densifier.split(parents, parents, cloud.tangents, cloud.child_colour, cloud.child_opacity)
        pixels = project(children.means, frame.camera)[0]
        for _ in range(self.sharpening):
            missed = frame.image - self.renderer(children, frame.camera, size, backdrop).image
            added = sample(missed, pixels).unflatten(1, (-1, self.densifier.count))
            added = added * (cloud.child_opacity > 0.5)[..., None]
            cloud = replace(cloud, child_colour=cloud.child_colour + added, colour=cloud.colour + added.mean(-2))
            children = replace(children, features=self.densifier.colours(cloud.colour, cloud.child_colour))
        return cloud

    def inpaint(self, frame: Frame, layers: Layers) -> tuple[Tensor, Tensor, Tensor]:
        """Background without the person (b 3 h w), torso over it without the head (b 3 h w), and the torso's alpha (b 1 h w)."""
        behind, torso, alpha = classical_fill(frame.image, layers)
        person = 1 - layers.background
        filled = torch.cat([torch.lerp(frame.image, behind, person), torch.lerp(frame.image, torso, layers.hidden)])
        behind, torso = self.inpainter(filled, torch.cat([person, layers.hidden])).chunk(2)
        if self.textured and not self.training:
            behind, torso = textured(frame.image, layers, behind, torso, alpha)
        return behind, torso, alpha


def _surface(depth: Tensor, frame: Frame) -> Surface:
    mask = depth > 0
    return Surface(depth=depth, normals=normals_from_depth(depth, mask, frame.camera.intrinsics), mask=mask)


def _base(deformed: Deformed, cloud: PointCloud) -> Gaussians:
    return base_gaussians(deformed, cloud.colour, cloud.opacity, cloud.mask)


def _mirrors(visible: PointCloud, frame: Frame) -> Tensor:
    """Points worth mirroring: not eyes and mouth, which have generic parts behind them, and nothing that rests with the torso."""
    inner = one_of(nearest(frame.parsing[:, None], visible.pixels)[..., 0], EYES_AND_MOUTH)
    return visible.mask & ~inner & (visible.head_weight > 0.5)


Points = TypeVar("Points", PointCloud, Tensor)


def select(points: Points, order: Int[Tensor, "b m"]) -> Points:
    """Entries ``order`` of every set of the batch."""
    rows = torch.arange(len(order), device=order.device)[:, None]
    return points[rows, order]
