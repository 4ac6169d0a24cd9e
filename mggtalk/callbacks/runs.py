"""Where a run writes, and how its steps are numbered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning import Callback, Trainer

from datasets_toolkit.errors import UserError


def run_folder(trainer: Trainer, folder: str | None = None) -> Path:
    """``folder``, or the trainer's ``default_root_dir``: the same for a run and those that go on with it.

    Raises:
        UserError: it is no folder of this machine.
    """
    chosen = folder or trainer.default_root_dir
    if "://" in chosen:
        raise UserError(f"{chosen}: pictures and curves of a run are written to a local folder; set trainer.default_root_dir to one")
    return Path(chosen)


def data_of(trainer: Trainer) -> Any:
    """The data module of a run, or None."""
    return getattr(trainer, "datamodule", None)  # set without being declared


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The callbacks of a run, in the order they are called."""
    return list(getattr(trainer, "callbacks", []))  # set without being declared


def log_step(trainer: Trainer) -> int:
    """The number under which Lightning logs now: 0 in the first step, whatever the number of optimisers."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)  # private, but what Lightning's own loggers are given
