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
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import threshold

from datasets_toolkit.faces.face_regions import FACE_OVAL
from mggtalk.geometry.cameras import project
from mggtalk.geometry.detail import Detail, added, detail_of
from mggtalk.geometry.images import sample
from mggtalk.geometry.layers import behind
from mggtalk.geometry.lids import Lids, upper_lids
from mggtalk.geometry.neck import PIVOT, torso_camera
from mggtalk.modules.colours import colours
from mggtalk.modules.deformation import Still
from mggtalk.modules.gaussians import parameters, posed
from mggtalk.modules.precision import exact
from mggtalk.reconstruction import Reconstruction, select
from mggtalk.types import Camera, Gaussians, Identity, Pair, PointCloud, Reenactment, cat

STILL = 3.0 / 256
"""How far (in widths of the image, root mean square over the face's rim) a head may move before what lies behind it is the fill."""

UNSEEN = 1e-4
"""A share of a picture that changes none of its bytes."""


class Prepared(NamedTuple):
    """What of an identity's Gaussians stays the same from frame to frame: all its points, and what first layers make of them."""

    points: PointCloud  # visible, then mirrored
    features: Float[Tensor, "b n c"]
    still: Still
    visible: Float[Tensor, "b v w"]
    mirrored: Float[Tensor, "b m w"]
    parents: Float[Tensor, "b n w"]
    torso: Float[Tensor, "b 4 h w"]  # the torso, multiplied by its alpha, and its alpha
    lids: Lids
    backed: Float[Tensor, "b n"]  # whether the picture of the torso lies behind a point of the neck
    detail: Detail | None  # what the Gaussians miss of the source, if that is carried along


class Trace(NamedTuple):
    """One pass through the figure, with all that a loss may look at."""

    identity: Identity
    coarse: Gaussians
    dense: Gaussians
    shown: Reenactment


class MGGTalk(Reconstruction):
    """The whole model; its arguments are those of :class:`mggtalk.reconstruction.Reconstruction`."""

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
        return added(image, known.detail, places, depth, self.stillness(identity, camera))

    def backdrop(self, identity: Identity, camera: Camera, prepared: Prepared | None = None) -> Float[Tensor, "b 3 h w"]:
        """What the head is composited onto: the background, and the torso where the head has taken it; arguments as :meth:`gaussians`."""
        rests = torso_camera(camera, identity.camera)
        pivot = rests.head_to_camera.new_tensor(PIVOT).expand(len(identity.background), 1, 3)
        moved = project(pivot, rests)[0] - project(pivot, identity.camera)[0]
        whole = torch.cat([identity.torso, identity.torso_alpha], 1) if prepared is None else prepared.torso
        return behind(whole, identity.background, identity.image, moved[:, 0], self.stillness(identity, camera))

    def stillness(self, identity: Identity, camera: Camera) -> Float[Tensor, " b"]:
        """1 where the head is where the source shows it, falling to exp(-1) when it has moved by :data:`STILL`.

        Behind a head that has hardly moved lies the source itself, to the last hair of its outline; no fill is as good.
        """
        rim = self.deformation.face_model.mean[list(FACE_OVAL)].expand(len(identity.image), -1, -1)
        moved = project(rim, camera)[0] - project(rim, identity.camera)[0]
        still = torch.exp(-moved.square().sum(-1).mean(-1) / (STILL * identity.image.shape[-1]) ** 2)
        return threshold(still, UNSEEN, 0.0)  # numbers near the smallest there are take processors ten times as long

    def prepare(self, identity: Identity) -> Prepared:
        """What of a frame depends on the identity alone; to be kept for a stream of frames, while no weight changes."""
        known = self._lasting(identity)
        return known._replace(detail=self._missed(identity, known)) if self.detailed else known

    def _lasting(self, identity: Identity) -> Prepared:
        """What Gaussians need; detail is for finished pictures."""
        points = cat([identity.points.visible, identity.points.mirrored], dim=1)
        features = torch.cat([identity.visible_features, identity.mirrored_features], 1)
        return Prepared(
            points=points,
            features=features,
            still=self.deformation.still(points, identity.expression),
            visible=self.visible_decoder.body.lasting(identity.visible_features),
            mirrored=(self.mirrored_decoder or self.visible_decoder).body.lasting(identity.mirrored_features),
            parents=self.densifier.lasting(features),
            torso=torch.cat([identity.torso, identity.torso_alpha], 1),
            lids=upper_lids(points, self.deformation.face_model.mean),
            backed=sample(identity.backed, points.pixels)[..., 0],
            detail=None,
        )

    def _missed(self, identity: Identity, known: Prepared) -> Detail:
        """What the Gaussians miss of the source."""
        camera, visible = identity.camera, identity.points.visible
        with exact(identity.image.device):
            coarse, dense = self._gaussians(identity, identity.expression, camera, known)
            shown = self.renderer(dense, camera, _size(identity), identity.image).image  # which is the backdrop of a head that is still
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
            return self._gaussians(identity, expression, camera, self._lasting(identity) if prepared is None else prepared)

    def _gaussians(self, identity: Identity, expression: Tensor, camera: Camera, known: Prepared) -> tuple[Gaussians, Gaussians]:
        points, count = known.points, identity.points.visible.mask.shape[1]
        displacement = self.deformation.face_model.displacement(expression - identity.expression)
        moved = self.deformation(points, expression, identity.expression, known.still, displacement)
        deformed, base, kept = posed(moved, points, camera, torso_camera(camera, identity.camera))
        kept = 1 - known.backed * (1 - kept)
        light = self.light.change(identity.light, displacement, expression, camera) if self.relit else None
        colour, child_colour = colours(points, known.lids, moved.tangents, light, count)
        base = replace(base, opacities=base.opacities * kept, features=colour)
        stage_one = self.visible_decoder(base[:, :count], identity.visible_features, lasting=known.visible)
        if self.mirrored_decoder is None:
            stage_two = self.visible_decoder(base[:, count:], identity.mirrored_features, lasting=known.mirrored)
        else:
            counterparts = select(parameters(stage_one), identity.points.counterpart)
            stage_two = self.mirrored_decoder(base[:, count:], identity.mirrored_features, counterparts, known.mirrored)
        coarse = cat([stage_one, stage_two], dim=1)
        child_opacity = points.child_opacity * kept[..., None]
        dense = self.densifier(coarse, base, deformed.tangents, child_colour, child_opacity, known.features, known.parents)
        return coarse, dense


def _size(identity: Identity) -> tuple[int, int]:
    return identity.image.shape[-2], identity.image.shape[-1]
