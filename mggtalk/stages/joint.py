"""The last stage: everything together, at a small rate."""

from __future__ import annotations

from typing import Any, ClassVar

from mggtalk.losses import Term
from mggtalk.model import Trace
from mggtalk.stages.base import PARTS, Stage
from mggtalk.stages.deformation import DeformationLoss, deformation_terms
from mggtalk.stages.gaussians import GaussianLoss, gaussian_terms
from mggtalk.stages.geometry import GeometryLoss, geometry_terms, require_depth
from mggtalk.types import Pair


class JointStage(Stage):
    """Trains all parts on the terms of all stages, so that each learns to live with what the others have become.

    Args:
        model: see :class:`mggtalk.stages.base.Stage`, as the other arguments.
        geometry: weights of the terms of the first stage.
        deformation: of the second.
        gaussians: of the third.
        **settings: of :class:`mggtalk.stages.base.Stage`.
    """

    trains: ClassVar[tuple[str, ...]] = PARTS

    def __init__(
        self,
        *args: Any,
        geometry: GeometryLoss | None = None,
        deformation: DeformationLoss | None = None,
        gaussians: GaussianLoss | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(*args, **settings)
        self.geometry, self.deformation = geometry or GeometryLoss(), deformation or DeformationLoss()
        self.gaussians = gaussians or GaussianLoss()

    def on_fit_start(self) -> None:
        """Refuse data without what the terms look at."""
        super().on_fit_start()
        require_depth(self, self.geometry)

    def objective(self, pair: Pair, trace: Trace) -> dict[str, Term]:
        """The terms of all stages."""
        return {
            **self.pictures(trace.shown, pair.target),
            **geometry_terms(self, pair, trace, self.geometry),
            **deformation_terms(self, pair, self.deformation),
            **gaussian_terms(trace, self.gaussians),
        }
