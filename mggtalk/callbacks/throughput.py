"""How fast training runs, and how much of it is waiting for data."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from mggtalk.callbacks.runs import log_step


class Throughput(Callback):
    """Logs speeds over windows of batches, without validation and without waiting for a GPU.

    - ``speed/samples_per_second``: pairs of all processes;
    - ``speed/step_seconds``: of a batch, mean;
    - ``speed/data_share``: share of that between two batches, when the process waits for data (and logs, and saves). Where a GPU is the
      bottleneck, waiting for it counts as the step only if something in the step waits, as :class:`mggtalk.callbacks.guard.NonFiniteGuard`
      does;
    - ``speed/memory_gib``: the most that tensors took on the GPU in the window;
    - ``speed/utilisation``: share of the last second or so in which the GPU worked, 0 to 1, where ``nvidia-ml-py`` is installed.

    Numbers are those of the first process and its GPU, but for the samples.

    Args:
        every: batches in a window.
    """

    def __init__(self, every: int = 20) -> None:
        if every < 1:
            raise ValueError(f"every: a window has at least one batch, not {every}")
        self.every = every
        self._forget(time.perf_counter())

    def _forget(self, now: float) -> None:
        self._batches = self._samples = 0
        self._began = self._ended = now
        self._idle = 0.0  # between batches

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the first window."""
        self._forget(time.perf_counter())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the watch."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave validation out."""
        away = time.perf_counter() - self._paused
        self._began, self._ended = self._began + away, self._ended + away

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch has come."""
        self._idle += time.perf_counter() - self._ended

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count, and log at the end of a window."""
        self._ended = time.perf_counter()
        self._batches, self._samples = self._batches + 1, self._samples + len(batch.rows)
        if self._batches == self.every:
            values = {**self._speeds(trainer.world_size), **_device(pl_module.device)}
            for logger in trainer.loggers:
                logger.log_metrics(values, step=log_step(trainer))
            self._forget(time.perf_counter())

    def _speeds(self, processes: int) -> dict[str, float]:
        seconds = max(self._ended - self._began, 1e-9)
        return {
            "speed/samples_per_second": self._samples * processes / seconds,
            "speed/step_seconds": seconds / self._batches,
            "speed/data_share": min(self._idle / seconds, 1.0),
        }


def _device(device: torch.device) -> dict[str, float]:
    """Memory and use of a GPU; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    values = {"speed/memory_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    torch.cuda.reset_peak_memory_stats(device)
    with suppress(Exception):  # nvidia-ml-py is missing, or has an error of its own: some drivers do not tell (MIG)
        values["speed/utilisation"] = torch.cuda.utilization(device) / 100
    return values
