"""A training as a program of its own, for tests that signal, kill or distribute it. It tells each step on standard output."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from training_scenes import Tinter, make_trainer, pairs, quietly

from datasets_toolkit.errors import UserError
from mggtalk.callbacks.curve import LearningCurve
from mggtalk.callbacks.ema import Ema
from mggtalk.callbacks.guard import NonFiniteGuard
from mggtalk.callbacks.stop import SaveOnSignal


class Teller(Callback):
    """Says which step ends where, and waits a little, so that whoever reads has time to act."""

    def __init__(self, pause: float) -> None:
        self.pause = pause

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self.pause:
            return
        line = f"step {trainer.global_step} rank {trainer.global_rank} process {os.getpid()}\n"
        os.write(1, line.encode())  # at once, or the lines of two processes mix
        time.sleep(self.pause)


class Breaking(Tinter):
    """Its loss becomes NaN on one rank at one step."""

    def __init__(self, step: int, rank: int) -> None:
        super().__init__()
        self.step, self.rank = step, rank

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = super().training_step(batch, index)
        return loss * float("nan") if (self.global_step, self.global_rank) == (self.step, self.rank) else loss


class Spoiling(Callback):
    """A pixel of a source becomes NaN on one rank at one step; before the other callbacks see it."""

    def __init__(self, step: int, rank: int) -> None:
        self.step, self.rank = step, rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            batch.pair.source.image[0, 0, 3, 5] = float("nan")


def callbacks(folder: Path, pause: float = 0.0) -> list[Any]:
    keep = ModelCheckpoint(dirpath=folder, filename="last", every_n_train_steps=3, save_top_k=1, enable_version_counter=False)
    return [Ema(0.9), LearningCurve(), NonFiniteGuard(), Teller(pause), SaveOnSignal(), keep]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--break-at", type=int, default=-1, help="first run twice more, with NaN in the last rank at this step")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    several = {"strategy": "ddp", "devices": given.devices} if given.devices > 1 else {}
    for what in ("loss", "source") if given.break_at >= 0 else ():
        broken = given.folder / f"broken_{what}"
        when = (given.break_at, given.devices - 1)
        model, first = (Breaking(*when), []) if what == "loss" else (Tinter(), [Spoiling(*when)])
        trainer = make_trainer(broken, first + callbacks(broken), max_steps=13, accumulate_grad_batches=2, **several)
        try:
            quietly(trainer.fit, model, pairs(given.root))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
    trainer = make_trainer(given.folder, callbacks(given.folder, given.pause), max_steps=13, val_check_interval=4, **several)
    quietly(trainer.fit, Tinter(), pairs(given.root))


if __name__ == "__main__":
    main()
