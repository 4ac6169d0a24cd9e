"""MGGTalk, the figure as one module.

    portrait --parsing--> head ----> depth, normals --> [refiner] --> P_f --mirror, voxel filter--> P_f^s
        |                   |                                          |                             |
        |                   +--> [identity encoder] --> F -----------+-|--------------------------+  |
        |                                                            | |                          |  |
        |        e (driver) - e (source) --> [deformation] ----------|-+--> P_d                   |  +--> P_d^s
        |                                                            v v                          v  v
        |                                                    [visible decoder] --counterparts--> [mirrored decoder]
        |                                                            |                                |
        |                                                            +------------- G ----------------+
        |                                                                           |
        |                                                                     [densifier]
        |                                                                           |
        +--> torso, background --> [inpainter] ------------> composite <-- splat <-- G_den      head pose: the camera of the splat

Gong et al., "Monocular and Generalizable Gaussian Talking Head Animation" (MGGTalk), arXiv 2504.00665. Every network in brackets is a
zero-initialised correction of a base value, so that the untrained model already reenacts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from datasets_toolkit.faces.face_regions import CHIN, FACE_OVAL
from datasets_toolkit.schema import Region
from mggtalk.geometry.cameras import project
from mggtalk.geometry.detail import Detail, carried, detail_of
from mggtalk.geometry.head_points import visible_points
from mggtalk.geometry.images import dilate, nearest, sample, shift
from mggtalk.geometry.inner_parts import inner_points
from mggtalk.geometry.layers import Layers, one_of, take_apart
from mggtalk.geometry.neck import PIVOT, SUNK, torso_camera
from mggtalk.geometry.surface import normals_from_depth
from mggtalk.geometry.symmetry import hidden_behind, mirror_cloud, voxel_filter
from mggtalk.modules.children import can_stream
from mggtalk.modules.deformation import DeformationNetwork, Deformed, Still
from mggtalk.modules.gaussians import Densifier, GaussianDecoder, base_gaussians, parameters, posed
from mggtalk.modules.identity import IdentityEncoder
from mggtalk.modules.inpainter import Inpainter, classical_fill
from mggtalk.modules.precision import exact
from mggtalk.modules.refiner import GeometryRefiner
from mggtalk.rendering.renderer import Renderer
from mggtalk.types import Camera, Frame, Gaussians, HeadPoints, Identity, Pair, PointCloud, Reenactment, Surface, cat

STILL = 3.0 / 256
"""How far (in widths of the image, root mean square over the face's rim) a head may move before what lies behind it is the fill."""
EYES_AND_MOUTH = (Region.LEFT_EYE, Region.RIGHT_EYE, Region.MOUTH)


class Prepared(NamedTuple):
    """What of an identity's Gaussians stays the same from frame to frame: all its points, and what first layers make of them."""

    points: PointCloud  # visible, then mirrored
    features: Float[Tensor, "b n c"]
    still: Still
    visible: Float[Tensor, "b v w"]
    mirrored: Float[Tensor, "b m w"]
    parents: Float[Tensor, "b n w"]
    torso: Float[Tensor, "b 4 h w"]  # the torso, multiplied by its alpha, and its alpha
    backed: Float[Tensor, "b n"]  # whether the picture of the torso lies behind a point
    detail: Detail | None  # what the Gaussians miss of the source, if that is carried along


class Trace(NamedTuple):
    """One pass through the figure, with all that a loss may look at."""

    identity: Identity
    coarse: Gaussians
    dense: Gaussians
    shown: Reenactment


class MGGTalk(nn.Module):
    """The whole model.

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
    ) -> None:
        super().__init__()
        self.refiner, self.encoder, self.deformation = refiner, encoder, deformation
        self.visible_decoder, self.mirrored_decoder = visible_decoder, mirrored_decoder
        self.densifier, self.inpainter, self.renderer = densifier, inpainter, renderer
        self.voxel_size, self.margin, self.capacity = voxel_size, margin, capacity
        self.sharpening, self.symmetry, self.filtered, self.detailed = sharpening, symmetry, filtered, detailed

    def forward(self, pair: Pair) -> Reenactment:
        """The source with the target's expression, seen by the target's camera; the target's image is not looked at."""
        return self.trace(pair).shown

    def trace(self, pair: Pair) -> Trace:
        """As :meth:`forward`, with what lies between."""
        camera, size = pair.target.camera, (pair.target.image.shape[-2], pair.target.image.shape[-1])
        with exact(pair.source.image.device):
            identity = self.reconstruct(pair.source)
            known = self.prepare(identity)
            coarse, dense = self.gaussians(identity, pair.target.expression, camera, known)
            backdrop = self.backdrop(identity, camera, known)
            first, second = (self.renderer(gaussians, camera, size, backdrop) for gaussians in (coarse, dense))
            second = replace(second, image=self.finished(second.image, identity, coarse, camera, known))
        return Trace(identity, coarse, dense, Reenactment(coarse=first, dense=second))

    def render(
        self, identity: Identity, expression: Float[Tensor, "b e"], camera: Camera, prepared: Prepared | None = None
    ) -> Float[Tensor, "b 3 h w"]:
        """The finished picture, as large as the source; arguments as :meth:`gaussians`."""
        with exact(expression.device):
            known = self.prepare(identity) if prepared is None else prepared
            coarse, dense = self.gaussians(identity, expression, camera, known)
            shown = self.renderer(dense, camera, _size(identity), self.backdrop(identity, camera, known))
            return self.finished(shown.image, identity, coarse, camera, known)

    def finished(self, image: Tensor, identity: Identity, coarse: Gaussians, camera: Camera, known: Prepared) -> Float[Tensor, "b 3 h w"]:
        """A rendering with what its Gaussians miss of the source (``image`` itself where that is not carried along)."""
        if known.detail is None:
            return image
        places, depth = project(coarse.means[:, : identity.points.visible.mask.shape[1] : known.detail.step], camera)
        return image + carried(known.detail, places, depth, self.stillness(identity, camera))

    def reconstruct(self, frame: Frame) -> Identity:
        """What is computed once for a portrait (batched)."""
        with exact(frame.image.device):
            return self._reconstruct(frame)

    def _reconstruct(self, frame: Frame) -> Identity:
        layers = take_apart(frame, frame.mesh[:, CHIN, 1])
        depth = self.refiner(frame, layers.head)
        mask = depth > 0
        depth = depth + mask * SUNK * (1 - layers.head_weight)
        surface = Surface(depth=depth, normals=normals_from_depth(depth, mask, frame.camera.intrinsics), mask=mask)
        background, torso, torso_alpha = self.inpaint(frame, layers)
        points = self.points(frame, layers, surface, torso)
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
        mirrored = _select(replace(mirrored, mask=keep), order)
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
        return behind, torso, alpha

    def backdrop(self, identity: Identity, camera: Camera, prepared: Prepared | None = None) -> Float[Tensor, "b 3 h w"]:
        """What the head is composited onto: the background, and the torso where the head has taken it; arguments as :meth:`gaussians`."""
        rests = torso_camera(camera, identity.camera)
        pivot = rests.head_to_camera.new_tensor(PIVOT).expand(len(identity.background), 1, 3)
        moved = project(pivot, rests)[0] - project(pivot, identity.camera)[0]
        whole = torch.cat([identity.torso, identity.torso_alpha], 1) if prepared is None else prepared.torso
        torso, alpha = shift(whole, moved[:, 0]).split([3, 1], 1)
        still = self.stillness(identity, camera)[:, None, None, None]
        if can_stream(torso, identity.background, identity.image):
            return torch.lerp(torch.addcmul(torso, 1 - alpha, identity.background), identity.image, still)
        behind = torso + (1 - alpha) * identity.background
        return still * identity.image + (1 - still) * behind

    def stillness(self, identity: Identity, camera: Camera) -> Float[Tensor, " b"]:
        """1 where the head is where the source shows it, falling to exp(-1) when it has moved by :data:`STILL`.

        Behind a head that has hardly moved lies the source itself, to the last hair of its outline; no fill is as good.
        """
        rim = self.deformation.face_model.mean[list(FACE_OVAL)].expand(len(identity.image), -1, -1)
        moved = project(rim, camera)[0] - project(rim, identity.camera)[0]
        return torch.exp(-moved.square().sum(-1).mean(-1) / (STILL * identity.image.shape[-1]) ** 2)

    def prepare(self, identity: Identity) -> Prepared:
        """What of :meth:`gaussians` depends on the identity alone; to be kept for a stream of frames, while no weight changes."""
        points = cat([identity.points.visible, identity.points.mirrored], dim=1)
        features = torch.cat([identity.visible_features, identity.mirrored_features], 1)
        known = Prepared(
            points=points,
            features=features,
            still=self.deformation.still(points, identity.expression),
            visible=self.visible_decoder.body.lasting(identity.visible_features),
            mirrored=(self.mirrored_decoder or self.visible_decoder).body.lasting(identity.mirrored_features),
            parents=self.densifier.lasting(features),
            torso=torch.cat([identity.torso, identity.torso_alpha], 1),
            backed=sample(identity.torso_alpha, points.pixels)[..., 0],
            detail=None,
        )
        return known._replace(detail=self._missed(identity, known)) if self.detailed else known

    def _missed(self, identity: Identity, known: Prepared) -> Detail:
        """What the Gaussians miss of the source."""
        camera, visible = identity.camera, identity.points.visible
        with exact(identity.image.device):
            coarse, dense = self._gaussians(identity, identity.expression, camera, known)
            shown = self.renderer(dense, camera, _size(identity), self.backdrop(identity, camera, known)).image
            places = project(coarse.means[:, : visible.mask.shape[1]].detach(), camera)[0]
        return detail_of(identity.image - shown, identity.surface.mask, places, visible.opacity * visible.mask)

    def gaussians(
        self, identity: Identity, expression: Float[Tensor, "b e"], camera: Camera, prepared: Prepared | None = None
    ) -> tuple[Gaussians, Gaussians]:
        """The Gaussians of an identity under an expression and a camera, before and after densification.

        Args:
            identity: from :meth:`reconstruct`.
            expression: of the driver.
            camera: of the target; the torso rests where it says.
            prepared: may be kept from :meth:`prepare`.
        """
        with exact(expression.device):
            return self._gaussians(identity, expression, camera, self.prepare(identity) if prepared is None else prepared)

    def _gaussians(self, identity: Identity, expression: Tensor, camera: Camera, known: Prepared) -> tuple[Gaussians, Gaussians]:
        points, count = known.points, identity.points.visible.mask.shape[1]
        moved = self.deformation(points, expression, identity.expression, known.still)
        deformed, base, kept = posed(moved, points, camera, torso_camera(camera, identity.camera))
        kept = 1 - known.backed * (1 - kept)
        base, opacity = replace(base, opacities=base.opacities * kept), points.child_opacity * kept[..., None]
        stage_one = self.visible_decoder(base[:, :count], identity.visible_features, lasting=known.visible)
        if self.mirrored_decoder is None:
            stage_two = self.visible_decoder(base[:, count:], identity.mirrored_features, lasting=known.mirrored)
        else:
            counterparts = _select(parameters(stage_one), identity.points.counterpart)
            stage_two = self.mirrored_decoder(base[:, count:], identity.mirrored_features, counterparts, known.mirrored)
        coarse = cat([stage_one, stage_two], dim=1)
        dense = self.densifier(coarse, base, deformed.tangents, points.child_colour, opacity, known.features, known.parents)
        return coarse, dense


def _size(identity: Identity) -> tuple[int, int]:
    return identity.image.shape[-2], identity.image.shape[-1]


def _base(deformed: Deformed, cloud: PointCloud) -> Gaussians:
    return base_gaussians(deformed, cloud.colour, cloud.opacity, cloud.mask)


def _mirrors(visible: PointCloud, frame: Frame) -> Tensor:
    """Points worth mirroring: not eyes and mouth, which have generic parts behind them, and nothing that rests with the torso."""
    inner = one_of(nearest(frame.parsing[:, None], visible.pixels)[..., 0], EYES_AND_MOUTH)
    return visible.mask & ~inner & (visible.head_weight > 0.5)


Points = TypeVar("Points", PointCloud, Tensor)


def _select(points: Points, order: Int[Tensor, "b m"]) -> Points:
    """Entries ``order`` of every set of the batch."""
    rows = torch.arange(len(order), device=order.device)[:, None]
    return points[rows, order]
