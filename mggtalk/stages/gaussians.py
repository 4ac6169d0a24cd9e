"""Stage three, SGP: identity features, both decoders, densification, and the inpainter behind them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mggtalk.losses import Term, asymmetry, child_offsets, haze, stretched
from mggtalk.model import Trace
from mggtalk.stages.base import Stage
from mggtalk.types import Pair


@dataclass(frozen=True, kw_only=True)
class GaussianLoss:
    """Weights of what keeps Gaussians those of a surface; what each is against stands in :mod:`mggtalk.losses`.

    Attributes:
        offsets: of how far children lie from their parents.
        stretch: of needles and blobs.
        haze: of half-opaque Gaussians.
        asymmetry: of colours that differ from those of the other side of the face.
    """

    offsets: float = 0.001
    stretch: float = 0.05
    haze: float = 0.002
    asymmetry: float = 0.005


class GaussianStage(Stage):
    """Trains encoder, decoders, densifier and inpainter on the paper's loss.

    Args:
        model: see :class:`mggtalk.stages.base.Stage`, as the other arguments.
        gaussians: weights of the regularisers.
        **settings: of :class:`mggtalk.stages.base.Stage`.
    """

    trains: ClassVar[tuple[str, ...]] = ("encoder", "visible_decoder", "mirrored_decoder", "densifier", "inpainter")

    def __init__(self, *args: Any, gaussians: GaussianLoss | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.gaussians = gaussians or GaussianLoss()

    def objective(self, pair: Pair, trace: Trace) -> dict[str, Term]:
        """The paper's loss and what keeps Gaussians in shape."""
        return {**self.pictures(trace.shown, pair.target), **gaussian_terms(trace, self.gaussians)}


def gaussian_terms(trace: Trace, weights: GaussianLoss) -> dict[str, Term]:
    """The terms that look at the Gaussians themselves."""
    return {
        "gaussians/offsets": Term(value=child_offsets(trace.coarse, trace.dense), weight=weights.offsets),
        "gaussians/stretch": Term(value=stretched(trace.dense), weight=weights.stretch),
        "gaussians/haze": Term(value=haze(trace.dense), weight=weights.haze),
        "gaussians/asymmetry": Term(value=asymmetry(trace.coarse, trace.identity.points.counterpart), weight=weights.asymmetry),
    }
