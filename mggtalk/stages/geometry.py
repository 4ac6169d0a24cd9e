"""Stage one, DGSR: the refiner corrects the depth of the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from datasets_toolkit.errors import UserError
from mggtalk.geometry.cameras import project
from mggtalk.geometry.images import sample
from mggtalk.geometry.neck import bend, torso_camera
from mggtalk.losses import Term, depth_agreement, normal_agreement, roughness
from mggtalk.model import MGGTalk, Trace
from mggtalk.stages.base import Stage
from mggtalk.types import Frame, Identity, Pair

SAME = 0.05
"""Centimetres within which a point lies on the surface."""


@dataclass(frozen=True, kw_only=True)
class GeometryLoss:
    """Weights of what keeps a refined depth a surface; distances are in centimetres.

    Attributes:
        agreement: of the distance from the depth annotated in the target, if not 0. The default annotator errs alike in both frames (at
            outlines it is too near), and this would hold it there; with an estimator that is right in the mean .3 is a beginning.
        normals: of 1 - cosine to the annotated normals.
        offset: of the mean absolute correction: without evidence the annotation stands.
        rough: of the second difference of the correction.
    """

    agreement: float = 0.0
    normals: float = 0.05
    offset: float = 0.001
    rough: float = 0.05


class GeometryStage(Stage):
    """Trains the refiner through the bases: a depth is right when its points, moved to another pose, show what that pose shows.

    Args:
        model: see :class:`mggtalk.stages.base.Stage`, as the other arguments.
        geometry: weights of the regularisers.
        **settings: of :class:`mggtalk.stages.base.Stage`.
    """

    trains: ClassVar[tuple[str, ...]] = ("refiner",)

    def __init__(self, *args: Any, geometry: GeometryLoss | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.geometry = geometry or GeometryLoss()

    def on_fit_start(self) -> None:
        """Refuse data without what the terms look at."""
        super().on_fit_start()
        require_depth(self, self.geometry)

    def objective(self, pair: Pair, trace: Trace) -> dict[str, Term]:
        """The paper's loss, what keeps the surface smooth, and if wanted the agreement of depth across poses."""
        return {**self.pictures(trace.shown, pair.target), **geometry_terms(self, pair, trace, self.geometry)}


def geometry_terms(stage: Stage, pair: Pair, trace: Trace, weights: GeometryLoss) -> dict[str, Term]:
    """The terms that look at the refined surface."""
    identity, target = trace.identity, pair.target
    known = (pair.source.depth > 0).to(pair.source.depth)
    offset = (identity.surface.depth - pair.source.depth) * known
    size = known.sum((1, 2, 3)).clamp(min=1)
    terms = {
        "depth/normals": Term(value=normal_agreement(identity.surface.normals, pair.source.normals), weight=weights.normals),
        "depth/offset": Term(value=offset.abs().sum((1, 2, 3)) / size, weight=weights.offset),
        "depth/rough": Term(value=roughness(offset, known), weight=weights.rough),
    }
    if weights.agreement:
        moved = moved_surface(stage.model, identity, target)
        terms["depth/agreement"] = Term(value=depth_agreement(moved, surface_weights(identity), target), weight=weights.agreement)
    return terms


def require_depth(stage: Stage, weights: GeometryLoss) -> None:
    """Without the depth of targets nothing disagrees with anything, and the term would be 0 in silence.

    Raises:
        UserError: the data module does not read it.
    """
    read = getattr(getattr(stage.trainer, "datamodule", None), "target_labels", ("depth",))
    if weights.agreement and "depth" not in read:
        raise UserError("data.target_labels: depth is missing; add it, or set geometry.agreement of the stage to 0")


def moved_surface(model: MGGTalk, identity: Identity, target: Frame) -> Float[Tensor, "b n 3"]:
    """The source's visible points (canonical, cm) under the target's expression and head pose."""
    points, torso = identity.points.visible, torso_camera(target.camera, identity.camera)
    moved = model.deformation(points, target.expression, identity.expression)
    return bend(moved.positions, moved.tangents, points.head_weight, points.head_weight_steps, target.camera, torso)[0]


def surface_weights(identity: Identity) -> Float[Tensor, "b n"]:
    """Opacities of those visible points that lie on the source's surface; eyeballs, teeth and the dark of a mouth lie behind."""
    points = identity.points.visible
    depth, surface = project(points.positions, identity.camera)[1], sample(identity.surface.depth, points.pixels)[..., 0]
    return points.mask * points.opacity * ((depth - surface).abs() < SAME)
