"""Stage one, DGSR: the refiner corrects the depth of the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mggtalk.losses import Term, depth_agreement, normal_agreement, roughness
from mggtalk.stages.base import Stage, Trace
from mggtalk.types import Pair


@dataclass(frozen=True, kw_only=True)
class GeometryLoss:
    """Weights of what keeps a refined depth a surface; distances are in centimetres.

    Attributes:
        agreement: of the distance from the depth annotated in the target. Pictures alone move depth only where there is texture.
        normals: of 1 - cosine to the annotated normals.
        offset: of the mean absolute correction: without evidence the annotation stands.
        rough: of the second difference of the correction.
    """

    agreement: float = 0.1
    normals: float = 0.05
    offset: float = 0.005
    rough: float = 0.2


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

    def objective(self, pair: Pair, trace: Trace) -> dict[str, Term]:
        """The paper's loss, agreement of depth across poses, and what keeps the surface smooth."""
        return {**self.pictures(trace.shown, pair.target), **geometry_terms(self, pair, trace, self.geometry)}


def geometry_terms(stage: Stage, pair: Pair, trace: Trace, weights: GeometryLoss) -> dict[str, Term]:
    """The terms that look at the refined surface."""
    identity, target = trace.identity, pair.target
    moved = stage.model.deform(identity.points.visible, identity, target.expression, target.camera)
    present = identity.points.visible.mask * identity.points.visible.opacity
    known = (pair.source.depth > 0).to(pair.source.depth)
    offset = (identity.surface.depth - pair.source.depth) * known
    size = known.sum((1, 2, 3)).clamp(min=1)
    return {
        "depth/agreement": Term(value=depth_agreement(moved.positions, present, target), weight=weights.agreement),
        "depth/normals": Term(value=normal_agreement(identity.surface.normals, pair.source.normals), weight=weights.normals),
        "depth/offset": Term(value=offset.abs().sum((1, 2, 3)) / size, weight=weights.offset),
        "depth/rough": Term(value=roughness(offset, known), weight=weights.rough),
    }
