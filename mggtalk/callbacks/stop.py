"""Stopping on a signal: the step is finished, ``last.ckpt`` is written, and every process leaves with the status of that signal.

Lightning itself only raises :class:`SIGTERMException` after the step, without saving, and its handler talks to the other processes from
inside the signal, where they may be in the middle of another exchange.
"""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mggtalk.callbacks.runs import callbacks_of, run_folder

log = logging.getLogger(__name__)
Name = Literal["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGXCPU"]


class SaveOnSignal(Callback):
    """Finishes the step, saves a checkpoint from which the run goes on exactly, and leaves with status 128 + signal (143 for SIGTERM).

    A signal to any process stops all. A validation that is due or under way is given up; the resumed run makes up for it, from its
    begin. A signal that something else handles already is left to it, such as Slurm's when Lightning requeues the job.

    In distributed training the processes ask each other after every batch whether to stop: one number is exchanged, and the step is
    waited for. Lightning's own loop waits for a broadcast at the same place.

    Args:
        signals: on which to stop. Slurm's ``--signal=USR1@120`` sends SIGUSR1 two minutes before the time is over.
        name: of the checkpoint.
        folder: for it; by default that of the ModelCheckpoint callback, or ``checkpoints`` in the run's folder.
    """

    def __init__(self, signals: tuple[Name, ...] = ("SIGTERM", "SIGUSR1"), name: str = "last.ckpt", folder: str | None = None) -> None:
        self.signals, self.name, self.folder = signals, name, folder
        self._forget()

    def _forget(self) -> None:
        self._caught = 0  # the signal of this process
        self._listening = self._stopping = self._saved = self._validation_due = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Go behind the other callbacks (those that save checkpoints stay last), so that they are done with a step before it is saved."""
        self._forget()
        others = [callback for callback in callbacks_of(trainer) if callback is not self]
        first = next((place for place, callback in enumerate(others) if isinstance(callback, Checkpoint)), len(others))
        trainer.callbacks = [*others[:first], self, *others[first:]]  # type: ignore[attr-defined]

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen; earlier than this Lightning would put its own handler over ours."""
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen."""
        self._listen()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Ask whether to stop. What is left of the step (other callbacks, logging) still happens, then the loop leaves."""
        if self._agreed(trainer):
            self._stopping = True
            trainer._signal_connector.received_sigterm = True  # the only way to leave a loop in mid-epoch without an unfinished step
            if trainer.is_last_batch or batch_idx + 1 == trainer.num_training_batches:
                self._save(trainer)  # when the loop leaves after the epoch's end, Lightning's numbers would count it twice

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave before a validation that is due, rather than in it."""
        if self._stopping:
            self._leave_validation(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Ask whether to stop; the weights that training goes on with are put back first."""
        if self._listening and self._agreed(trainer):
            self._stopping = True
            if trainer.sanity_checking:
                raise self._exception()
            for callback in callbacks_of(trainer):
                if isinstance(callback, WeightAveraging):
                    callback.on_validation_epoch_end(trainer, pl_module)
            self._leave_validation(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Have the resumed run begin with the validation that was given up: to Lightning these numbers say "stopped in its first batch"."""
        if self._validation_due:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            begun, none = {"ready": 1, "started": 1, "processed": 0, "completed": 0}, dict.fromkeys(progress["current"], 0)
            progress.update(total={**none, **begun}, current=none, is_last_batch=False)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save, and leave with the signal's status."""
        if self._stopping and isinstance(exception, SIGTERMException):
            if not (self._saved or trainer.sanity_checking):
                self._save(trainer)
            exception.code = self._exception().code
            if trainer.is_global_zero:
                log.warning(self._farewell(trainer))

    def _listen(self) -> None:
        if self._listening or threading.current_thread() is not threading.main_thread():
            return
        self._listening = True
        for number in [getattr(signal, name) for name in self.signals if hasattr(signal, name)]:  # Windows lacks some
            if number == signal.SIGTERM or signal.getsignal(number) in (signal.SIG_DFL, signal.SIG_IGN, self._catch):
                signal.signal(number, self._catch)  # Lightning puts back what was there before it

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._caught = self._caught or number

    def _agreed(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(bool(self._caught), all=False)

    def _leave_validation(self, trainer: Trainer) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._validation_due = True
            self._save(trainer)
            self._validation_due = False
        raise self._exception()

    def _save(self, trainer: Trainer) -> None:
        path, keeper = self._path(trainer), trainer.checkpoint_callback
        if isinstance(keeper, ModelCheckpoint) and keeper.dirpath and Path(keeper.dirpath) == path.parent:
            keeper.last_model_path = str(path)  # or it would take the file for another run's, and count up
        trainer.save_checkpoint(path)
        self._saved = True

    def _path(self, trainer: Trainer) -> Path:
        keeper = trainer.checkpoint_callback
        if self.folder is None and isinstance(keeper, ModelCheckpoint) and keeper.dirpath:
            return Path(keeper.dirpath) / self.name
        return run_folder(trainer, self.folder) / ("" if self.folder else "checkpoints") / self.name

    def _exception(self) -> SIGTERMException:
        return SIGTERMException(128 + (self._caught or signal.SIGTERM))

    def _farewell(self, trainer: Trainer) -> str:
        name = signal.Signals(self._caught or signal.SIGTERM).name
        if not self._saved:
            return f"{name}: stopped before the first step; nothing to save"
        return f"{name}: stopped after step {trainer.global_step}; go on with --ckpt_path {self._path(trainer)}"
