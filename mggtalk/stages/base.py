"""What all stages share: which parts train, the optimiser and its schedule, validation, and how one stage takes over from another."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from datasets_toolkit.native import keep_freed_memory
from mggtalk.checkpoints import load_weights
from mggtalk.data.loader import KEPT
from mggtalk.data.packed import PairBatch
from mggtalk.losses import ImageLoss, ReadingLoss, Term, identity_terms, image_terms, reading_terms, total
from mggtalk.metrics.identity import FaceEmbedder
from mggtalk.model import MGGTalk, Trace
from mggtalk.modules.precision import exact
from mggtalk.networks.face_identity import FaceIdentity
from mggtalk.networks.face_landmarks import FaceLandmarks
from mggtalk.networks.lpips import Lpips
from mggtalk.networks.perceptual import make_perceptual
from mggtalk.stages.measures import CrossMeasures, Measures, SelfMeasures
from mggtalk.types import Frame, Pair, Reenactment

PARTS = ("refiner", "encoder", "deformation", "visible_decoder", "mirrored_decoder", "densifier", "inpainter")
"""The parts of MGGTalk that can be trained."""
Tracked = Literal["never", "test", "always"]


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    """AdamW with a linear warm-up and a cosine decay, counted in steps.

    Attributes:
        rate: learning rate.
        rates: factors of it for single parts, by name; with 0 a part stays as it is and records no gradients.
        warmup: steps of the warm-up.
        final: what is left of the rate in the last step of the run.
        betas: of AdamW.
        weight_decay: of weight matrices and kernels; biases and norms have none.
    """

    rate: float = 1e-3
    rates: dict[str, float] = field(default_factory=dict)
    warmup: int = 100
    final: float = 0.05
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        unknown = sorted(set(self.rates) - set(PARTS))
        if unknown:
            raise ValueError(f"rates: the model has no part {unknown[0]!r}; its parts are {', '.join(PARTS)}")

    def factor(self, step: int, steps: int) -> float:
        """What the rate is multiplied with in ``step`` of ``steps``."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        share = min((step - self.warmup) / max(steps - self.warmup, 1), 1.0)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * share))


class Stage(LightningModule, ABC):
    """Trains parts of a MGGTalk; the others stay as they are and record no gradients.

    Args:
        model: whole, its weights those of the constructor until ``start`` is read.
        start: checkpoint of an earlier stage, or the folder of an exported model, whose weights it begins with.
        optimiser: of the trained parts.
        image: weights of the loss on the pictures before and after densification.
        reading: weights of what a face tracker and a face recogniser read in the picture after densification.
        coarse: how much the picture before densification counts against the one after it (paper: 1).
        vgg: weight file of a VGG network for the perceptual distance; see :mod:`mggtalk.networks.perceptual`.
        face: weight file of a face recognition network for it.
        alexnet: weight file of AlexNet, for LPIPS in validation and tests; see :mod:`mggtalk.networks.lpips`.
        arcface: weight file of a face recogniser, for CSIM where faces are read; see :mod:`mggtalk.metrics.identity`.
        tracked: which measures read the faces of renderings with the tracker (some 20 ms a picture on a CPU): those of tests, of tests and
            validation, or none.

    Raises:
        UserError: a weight file cannot be read, or does not fit.
    """

    trains: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model: MGGTalk,
        start: str | None = None,
        optimiser: Optimiser | None = None,
        image: ImageLoss | None = None,
        reading: ReadingLoss | None = None,
        coarse: float = 1.0,
        vgg: str | None = None,
        face: str | None = None,
        alexnet: str | None = None,
        arcface: str | None = None,
        tracked: Tracked = "test",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        for name in [name for name, value in self.hparams.items() if isinstance(value, nn.Module) or is_dataclass(value)]:
            del self.hparams[name]  # built by hand, not by the command line: checkpoints hold no objects
        self.model, self.optimiser, self.image, self.coarse = model, optimiser or Optimiser(), image or ImageLoss(), coarse
        self.perceptual, self.reading = make_perceptual(vgg, face), reading or ReadingLoss()
        self.reader = FaceLandmarks() if self.reading.tracked else None
        self.recogniser = FaceIdentity() if self.reading.identity else None
        if start is not None:
            load_weights(model, Path(start))
        freeze_all_but(model, tuple(part for part in self.trains if self.optimiser.rates.get(part, 1.0)))
        self.tracked = tracked
        lpips, embedder = Lpips(alexnet) if alexnet else None, FaceEmbedder(arcface) if arcface else None
        self.measures = nn.ModuleDict({split: SelfMeasures(lpips, embedder) for split in ("val", "test")})
        self.cross_measures = nn.ModuleDict({split: CrossMeasures(embedder) for split in ("val", "test")})

    def on_fit_start(self) -> None:
        """Keep freed memory: on a CPU, mapping it anew for every tensor costs a tenth of the step."""
        if self.device.type == "cpu":
            keep_freed_memory(KEPT)

    @abstractmethod
    def objective(self, pair: Pair, trace: Trace) -> dict[str, Term]:
        """The terms of the loss."""

    def forward(self, pair: Pair) -> Reenactment:
        """The model's own."""
        return self.model(pair)

    def pictures(self, shown: Reenactment, target: Frame) -> dict[str, Term]:
        """The paper's loss on both renderings, and what tracker and recogniser read in the second."""
        terms = image_terms("dense", shown.dense.image, target, self.image, self.perceptual)
        if self.coarse:
            for name, term in image_terms("coarse", shown.coarse.image, target, self.image, self.perceptual).items():
                terms[name] = Term(value=term.value, weight=self.coarse * term.weight)
        if self.reader is not None:
            terms |= reading_terms(shown.dense.image, target, self.reading, self.reader)
        if self.recogniser is not None:
            terms |= identity_terms(shown.dense.image, target, self.reading, self.recogniser)
        return terms

    def training_step(self, batch: PairBatch, index: int) -> Tensor:
        """The mean loss of the pairs."""
        with exact(batch.valid.device):
            terms = self.objective(batch.pair, self.model.trace(batch.pair))
            loss = total(terms).mean()
        values = {f"train/{name}": term.value.detach().mean() for name, term in terms.items()}
        self.log_dict({"train/loss": loss.detach(), **values}, sync_dist=True, batch_size=len(batch.valid))
        schedule = cast(LambdaLR, self.lr_schedulers())
        self.log("train/rate_factor", schedule.lr_lambdas[0](self.global_step), batch_size=1)
        return loss

    def validation_step(self, batch: PairBatch, index: int, dataloader_idx: int = 0) -> Reenactment:  # type: ignore[override] # for callbacks
        """Measures of a batch, and what they were taken of."""
        return self._measure("val", batch, dataloader_idx)

    def test_step(self, batch: PairBatch, index: int, dataloader_idx: int = 0) -> Reenactment:  # type: ignore[override]
        """As validation."""
        return self._measure("test", batch, dataloader_idx)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over the trained parts, its rate set at every step."""
        groups = parameter_groups(self.model, self.trains, self.optimiser)
        optimiser = torch.optim.AdamW(groups, betas=self.optimiser.betas)
        steps = self.trainer.max_steps if self.trainer.max_steps > 0 else int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimiser, lambda step: self.optimiser.factor(step, steps))
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _measure(self, split: str, batch: PairBatch, loader: int) -> Reenactment:
        with exact(batch.valid.device):
            return self._measured(split, batch, loader)

    def _measured(self, split: str, batch: PairBatch, loader: int) -> Reenactment:
        trace = self.model.trace(batch.pair)
        tracked = self.tracked == "always" or (self.tracked == "test" and split == "test")
        if loader == 0:
            cast(SelfMeasures, self.measures[split]).update(self.objective(batch.pair, trace), trace.shown, batch, tracked)
        else:
            cast(CrossMeasures, self.cross_measures[split]).update(trace.shown, batch, tracked)
        return trace.shown

    def _report(self, split: str) -> None:
        for name, measures in ((split, self.measures[split]), (f"{split}_cross", self.cross_measures[split])):
            values = cast(Measures, measures).compute()
            self.log_dict({f"{name}/{key}": value for key, value in values.items()}, sync_dist=False)

    def on_validation_epoch_end(self) -> None:
        """Means over all pairs of all processes."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """As validation."""
        self._report("test")


def freeze_all_but(model: MGGTalk, parts: tuple[str, ...]) -> None:
    """Only ``parts`` of the model record gradients."""
    model.requires_grad_(False)
    for part in parts:
        for parameter in parameters_of(model, part):
            parameter.requires_grad_(True)


def parameters_of(model: MGGTalk, part: str) -> list[nn.Parameter]:
    """Of a part of the model; a part that an ablation leaves out has none."""
    module: nn.Module | None = getattr(model, part)
    return [] if module is None else list(module.parameters())


def parameter_groups(model: MGGTalk, parts: tuple[str, ...], optimiser: Optimiser) -> list[dict[str, Any]]:
    """For each part one group with weight decay and one without."""
    groups = []
    for part in parts:
        rate = optimiser.rate * optimiser.rates.get(part, 1.0)
        parameters = [parameter for parameter in parameters_of(model, part) if parameter.requires_grad]
        matrices, others = [value for value in parameters if value.ndim > 1], [value for value in parameters if value.ndim < 2]
        for name, decay, chosen in (("matrices", optimiser.weight_decay, matrices), ("others", 0.0, others)):
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay, "name": f"{part}/{name}"})
    return groups
