"""The stage beside the others: speech to expression, on tracked meshes alone."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from mggtalk.data.agreement import agreeing, dependence
from mggtalk.data.sealing import set_seal
from mggtalk.data.speech import SpeechBatch, SpeechDataModule
from mggtalk.geometry.face_model import FaceModel
from mggtalk.metrics.speech import OPENING_VERTICES, correlation, gap_of, lag, opening_error
from mggtalk.modules.audio import AudioNetwork
from mggtalk.modules.speech import FRAME_RATE
from mggtalk.stages.base import Optimiser


@dataclass(frozen=True, kw_only=True)
class AudioLoss:
    """Weights of what a talking face should do. All differences are in standard deviations over the training clips.

    Attributes:
        expression: of the squared difference of expressions, each coefficient weighted by how far it depends on sound.
        opening: of that of the mouth's opening.
        velocity: of that of the change from frame to frame, of both.
        closure: how much more the opening counts where the tracked lips are closed and the driven ones are not.
        level: how much a piece's mean counts against what changes within it: people hold their faces differently, and no sound tells. In
            noise without speech it counts fully.
        plain: share of pieces that are given no style, so that the mean style is learnt too.
    """

    expression: float = 1.0
    opening: float = 4.0
    velocity: float = 1.0
    closure: float = 1.0
    level: float = 0.1
    plain: float = 0.3


class AudioStage(LightningModule):
    """Trains an :class:`AudioNetwork` on the data of a :class:`SpeechDataModule`.

    Args:
        model: the network.
        optimiser: of its weights.
        loss: weights of the terms.
        closed: opening (shares of the face's height) below which lips count as closed.
    """

    model: AudioNetwork
    corners: Float[Tensor, "e 4 3"]
    scale: Float[Tensor, " e"]
    dependence: Float[Tensor, " e"]
    opening_scale: Float[Tensor, ""]

    def __init__(
        self, model: AudioNetwork, optimiser: Optimiser | None = None, loss: AudioLoss | None = None, closed: float = 0.012
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        for name in [name for name, value in self.hparams.items() if isinstance(value, nn.Module) or is_dataclass(value)]:
            del self.hparams[name]  # built by hand, not by the command line: checkpoints hold no objects
        self.model, self.optimiser, self.loss, self.closed = model, optimiser or Optimiser(), loss or AudioLoss(), closed
        basis = FaceModel().displacement(torch.eye(model.deviation.numel()))
        self.register_buffer("corners", basis[:, list(OPENING_VERTICES)], persistent=False)
        self.register_buffer("scale", torch.ones(model.deviation.numel()))
        self.register_buffer("dependence", torch.ones(model.deviation.numel()))
        self.register_buffer("opening_scale", torch.ones(()))
        self._seen: list[dict[str, float]] = []

    def setup(self, stage: str) -> None:
        """Give the data the encoder; before training, choose the clips and measure what is standardised and how far it depends on sound."""
        data = cast(SpeechDataModule, getattr(self.trainer, "datamodule", None))
        data.encoder = self.model.encoder
        if stage == "fit":
            clips = data.clips("train")
            self.model.front.fit(torch.cat([clip.features for clip in clips]))
            clips = agreeing(clips, self.model, data.agreement)
            data.use("train", clips)
            self._measure(clips)

    def _measure(self, clips: list[Any]) -> None:
        changes = torch.cat([clip.expression - clip.expression.mean(0) for clip in clips])
        openings = torch.cat([clip.opening - clip.opening.mean() for clip in clips])
        styles = torch.stack([clip.style for clip in clips])
        self.dependence.copy_(dependence(clips, self.model))
        set_seal(clips, self.model)
        self.scale.copy_(changes.std(0).clamp_min(1e-4))
        self.opening_scale.copy_(openings.std())
        self.model.deviation.copy_(self.scale * self.dependence.sqrt())
        self.model.style_mean.copy_(styles.mean(0))
        self.model.style_deviation.copy_(styles.std(0, correction=0).clamp_min(1e-3))

    def forward(self, features: Float[Tensor, "b u c"], style: Float[Tensor, "b s"]) -> Float[Tensor, "b t e"]:
        """The network's own."""
        return self.model(features, style)

    def opening(self, expression: Float[Tensor, "b t e"], points: Float[Tensor, "b 4 3"]) -> Float[Tensor, "b t"]:
        """Opening of the mouth of faces (their four vertices at rest) under expressions; negative where the lips overlap."""
        return gap_of(points[:, None] + torch.einsum("bte,evk->btvk", expression, self.corners))

    def terms(self, batch: SpeechBatch, style: Float[Tensor, "b s"]) -> dict[str, Tensor]:
        """The parts of the loss, weighted."""
        weights, found = self.loss, self.model(batch.features, style)
        level = torch.where(batch.still, 1.0, weights.level)
        importance = self.dependence / self.dependence.mean().clamp_min(1e-6)
        gaps = ((found - batch.expression) / self.scale) * importance.sqrt()
        driven = self.opening(found, batch.points)
        mouth = (driven - batch.opening)[..., None] / self.opening_scale
        open_still = (mouth.clamp_min(0) * (batch.opening < self.closed)[..., None]).square().mean()
        speed = sum(
            weight * (gap[:, 2:] - gap[:, :-2]).square().mean() for weight, gap in ((weights.expression, gaps), (weights.opening, mouth))
        )
        return {
            "expression": weights.expression * _settled(gaps, level),
            "opening": weights.opening * _settled(mouth, level),
            "velocity": weights.velocity * torch.as_tensor(speed),
            "closure": weights.closure * open_still,
        }

    def training_step(self, batch: SpeechBatch, index: int) -> Tensor:
        """The loss; some pieces are given the mean style. What is random depends on the step alone, so that a run can be gone on with."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.global_step)
            known = (torch.rand(len(batch.style), 1, device=self.device) >= self.loss.plain).to(batch.style)
            terms = self.terms(batch, known * self.model.standard_style(batch.style))
        loss = torch.stack(list(terms.values())).sum()
        values = {f"train/{name}": value.detach() for name, value in terms.items()}
        self.log_dict({"train/loss": loss.detach(), **values}, batch_size=len(batch.rows))
        return loss

    def validation_step(self, batch: SpeechBatch, index: int) -> None:
        """Measures of a whole clip, without knowing its speaker's style."""
        style = torch.zeros_like(batch.style)
        loss = torch.stack(list(self.terms(batch, style).values())).sum()
        driven, tracked = self.opening(self.model(batch.features, style), batch.points)[0], batch.opening[0]
        delay, best = lag(driven, tracked, float(FRAME_RATE))
        fit = correlation(driven, tracked)
        self._seen.append(
            {"loss": float(loss), "correlation": fit, "best": best, "lag": abs(delay), "error": opening_error(driven, tracked)}
        )

    def test_step(self, batch: SpeechBatch, index: int) -> None:
        """As validation."""
        self.validation_step(batch, index)

    def on_validation_epoch_end(self) -> None:
        """Means over clips; of the lag the mean without sign."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """As validation."""
        self._report("test")

    def _report(self, split: str) -> None:
        if self._seen:
            names = self._seen[0]
            self.log_dict({f"{split}/{name}": sum(one[name] for one in self._seen) / len(self._seen) for name in names})
        self._seen = []

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, its rate set at every step."""
        decay, rate = self.optimiser.weight_decay, self.optimiser.rate
        optimiser = torch.optim.AdamW(self.model.parameters(), lr=rate, betas=self.optimiser.betas, weight_decay=decay)
        steps = self.trainer.max_steps if self.trainer.max_steps > 0 else int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimiser, lambda step: self.optimiser.factor(step, steps))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _settled(gap: Float[Tensor, "b t k"], level: Float[Tensor, " b"]) -> Tensor:
    """The mean square of a difference about its mean over each piece, and ``level`` times that of the mean."""
    mean = gap.mean(1, keepdim=True)
    return (gap - mean).square().mean() + (level[:, None, None] * mean.square()).mean()
