"""Small trainings on real shards: a stand-in for the stages, whose result depends on every step, and the trainer around it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from shard_scenes import make_dataset
from torch import Tensor

from mggtalk.callbacks.checkpoint_io import WholeCheckpointIO
from mggtalk.data.augment import PairTransform
from mggtalk.data.datamodule import PairDataModule
from mggtalk.data.packed import PairBatch
from mggtalk.types import Pair, Reenactment, Rendering

SIZE = 24


def make_persons(folder: Path) -> str:
    """Three persons to train on (18 frames), two to validate on."""
    clips = [f"{name}-00000000_00" for name in ("anna", "bert", "cleo", "dora", "emil")]
    make_dataset(folder, clips, 6, 32, split_of=lambda clip: "val" if clip[0] in "de" else "train")
    return str(folder)


def pairs(root: str, **options: Any) -> PairDataModule:
    """Four global batches in an epoch; two of each kind at validation."""
    transform = PairTransform(size=SIZE, flip=0.5)
    return PairDataModule(root, **{"batch_size": 4, "transform": transform, "val_pairs": 8, "cross_pairs": 6, **options})


class Tinter(LightningModule):
    """Learns one colour that it mixes into the source; Adam's state depends on every step and its order."""

    def __init__(self, returns: bool = True, noise: float = 0.0) -> None:
        super().__init__()
        self.colour = torch.nn.Parameter(torch.zeros(3))
        self.register_buffer("indices", torch.arange(1, 200))
        self.returns, self.noise = returns, noise
        self.rows: list[list[list[int]]] = []
        self.totals = [0.0, 0.0]

    def forward(self, pair: Pair) -> Reenactment:
        image = pair.source.image + self.colour[:, None, None]
        plain = Rendering(image=image, alpha=torch.ones_like(image[:, :1]), depth=torch.ones_like(image[:, :1]))
        noisy = Rendering(image=image + self.noise * torch.rand_like(image), alpha=plain.alpha, depth=plain.depth)
        return Reenactment(coarse=noisy, dense=plain)

    def training_step(self, batch: PairBatch, index: int) -> Tensor:
        self.rows.append(batch.rows.tolist())
        shown = self(batch.pair)
        miss = (shown.dense.image - batch.pair.target.image).abs().mean()
        self.log_dict({"train/loss": miss.detach(), "train/colour": self.colour.detach().mean()})
        return miss + (shown.coarse.image.mean() - 0.5).square()

    def validation_step(self, batch: PairBatch, index: int, dataloader_idx: int = 0) -> Reenactment | None:
        shown = self(batch.pair)
        self.totals[dataloader_idx] += float((shown.dense.image - batch.pair.target.image)[batch.valid].abs().sum())
        return shown if self.returns else None

    def on_validation_epoch_end(self) -> None:
        self.log_dict({"val/loss": self.totals[0], "val_cross/loss": self.totals[1]})
        self.totals = [0.0, 0.0]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 0.02)


def make_trainer(folder: Path, callbacks: list[Any], **options: Any) -> Trainer:
    defaults = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
        "use_distributed_sampler": False, "enable_checkpointing": True, "plugins": [WholeCheckpointIO()], "num_sanity_val_steps": 0,
    }  # fmt: skip
    return Trainer(default_root_dir=folder, callbacks=callbacks, **{**defaults, **options})


def quietly(function: Any, *arguments: Any, **named: Any) -> Any:
    """Lightning warns of few workers and of much else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **named)
