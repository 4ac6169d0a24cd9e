"""Stage two: the deformation network corrects how points move with expression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from mggtalk.losses import Term, landmark_motion, landmark_weights, mesh_cloud
from mggtalk.model import Trace
from mggtalk.modules.deformation import skin
from mggtalk.stages.base import Stage
from mggtalk.types import Pair


@dataclass(frozen=True, kw_only=True)
class DeformationLoss:
    """Weights of what a deformation should do; distances are in centimetres.

    Attributes:
        landmarks: of the distance between the moved mesh of the source and the tracked mesh of the target.
        focus: how much more lids and lips count in it than other vertices.
        correction: of the mean squared correction at the vertices: what the basis does already is not done twice.
        unrest: of how much the correction changes (cm) when the expression changes by ``noise``: what tracking jitter becomes.
        noise: standard deviation of tracked expressions of a face at rest.
    """

    landmarks: float = 1.0
    focus: float = 3.0
    correction: float = 0.1
    unrest: float = 0.5
    noise: float = 0.02


class DeformationStage(Stage):
    """Trains the deformation network on landmarks and pictures.

    Args:
        model: see :class:`mggtalk.stages.base.Stage`, as the other arguments.
        deformation: weights of the terms.
        **settings: of :class:`mggtalk.stages.base.Stage`.
    """

    trains: ClassVar[tuple[str, ...]] = ("deformation",)

    def __init__(self, *args: Any, deformation: DeformationLoss | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.deformation = deformation or DeformationLoss()

    def objective(self, pair: Pair, trace: Trace) -> dict[str, Term]:
        """The paper's loss and the motion of landmarks."""
        return {**self.pictures(trace.shown, pair.target), **deformation_terms(self, pair, self.deformation)}


def deformation_terms(stage: Stage, pair: Pair, weights: DeformationLoss) -> dict[str, Term]:
    """The terms that look at the motion of the tracked mesh."""
    network, mesh = stage.model.deformation, pair.source.mesh
    cloud = mesh_cloud(mesh)
    source, target = pair.source.expression, pair.target.expression
    moved = network(cloud, target, source).positions
    base = skin(cloud, network.face_model.displacement(target - source)).positions
    shaken = target + weights.noise * _shake(target, stage.global_step if stage.training else 0)
    steady = skin(cloud, network.face_model.displacement(shaken - source)).positions
    unrest = (network(cloud, shaken, source).positions - steady) - (moved - base)
    importance = landmark_weights(mesh.shape[1], weights.focus).to(mesh)
    return {
        "motion/landmarks": Term(value=landmark_motion(moved, pair.target.mesh, importance), weight=weights.landmarks),
        "motion/correction": Term(value=(moved - base).square().sum(-1).mean(-1), weight=weights.correction),
        "motion/unrest": Term(value=unrest.norm(dim=-1).mean(-1), weight=weights.unrest),
    }


def _shake(expression: Float[Tensor, "b e"], step: int) -> Float[Tensor, "b e"]:
    """Normal noise that depends on the step alone: alike on every process and after a resume. Validation has always the same."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(expression.shape[-1], generator=generator).to(expression).expand_as(expression)
