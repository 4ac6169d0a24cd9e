"""The checkpoint to go on with."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn

from mggtalk.callbacks.runs import run_folder


class LastCheckpoint(Checkpoint):
    """Keeps ``last.ckpt`` in the run's folder: after every validation, every so many steps, and after the last step.

    A step with a validation is saved after it: a run that is killed in between goes on before the step, so that its curve lacks nothing.

    Args:
        every: steps from one checkpoint to the next.
        folder: for it; by default that of the run.
    """

    def __init__(self, every: int = 200, folder: str | None = None) -> None:
        if every < 1:
            raise ValueError(f"every is {every}, expected at least 1 step")
        self.every, self.folder, self._saved = every, folder, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What a resumed run begins with is saved already."""
        self._saved = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save if it is time."""
        last = trainer.global_step == trainer.max_steps
        if (last or trainer.global_step - self._saved >= self.every) and not validation_follows(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step > self._saved:
            trainer.save_checkpoint(run_folder(trainer, self.folder) / "last.ckpt")
            self._saved = trainer.global_step


def validation_follows(trainer: Trainer) -> bool:
    """Whether this batch, which has just been trained on, is followed by a validation."""
    loop = trainer.fit_loop
    fetcher = loop._data_fetcher  # private, as is what Lightning's own loop asks here
    return bool(fetcher is not None and loop.epoch_loop._should_check_val_fx(fetcher))
