"""Pictures of the same validation pairs again and again, so that one sees the model learn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.seed import isolate_rng

from datasets_toolkit.annotators.pictures import contact_sheet, write_png
from datasets_toolkit.errors import UserError
from datasets_toolkit.media.opening import import_av
from datasets_toolkit.media.video_writer import VideoWriter
from datasets_toolkit.schema import ByteImage
from mggtalk.callbacks.clips import consecutive_rows, driven_batches, frame_rate
from mggtalk.callbacks.runs import data_of, log_step, run_folder
from mggtalk.data.datamodule import PairDataModule
from mggtalk.data.packed import PairBatch
from mggtalk.geometry.images import byte_images
from mggtalk.types import Pair, Reenactment

ERROR = 4.0
"""By how much the difference to the target is exaggerated."""


class Panels(Callback):
    """At validation, the first pairs of each loader as rows of pictures: source, target, coarse, dense, 4 x |dense - target|.

    Pairs across persons (the second loader) have no last picture, for nobody knows the truth. The pictures are those of the weights that
    validation uses. They are written as ``step_00000000.png`` and given to loggers that take images. The first process does all that; the
    others wait for it where validation ends. Random numbers and the order of training stay as they are.

    Args:
        every: validations from one panel to the next.
        count: pairs of each loader.
        height: of one picture in pixels.
        clip_frames: length of a video (source, target and rendering side by side) of one validation clip that drives its own first frame;
            0 makes none.
        folder: by default ``panels`` in the run's folder.
    """

    def __init__(self, every: int = 1, count: int = 4, height: int = 256, clip_frames: int = 0, folder: str | None = None) -> None:
        if min(every, count, height) < 1 or clip_frames < 0:
            raise ValueError(f"every, count and height are at least 1, clip_frames 0; not {every}, {count}, {height}, {clip_frames}")
        self.every, self.count, self.height, self.clip_frames, self.folder = every, count, height, clip_frames, folder
        self._validations, self._rows = 0, [[], []]  # type: tuple[int, list[list[list[ByteImage]]]]
        self._active = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse at once what would fail at the first validation.

        Raises:
            UserError: a video is asked for, and cannot be written, or not from this data.
        """
        if self.clip_frames:
            import_av()
            if not isinstance(data_of(trainer), PairDataModule):
                raise UserError("clip_frames: videos need the data of a PairDataModule; set clip_frames to 0")

    def state_dict(self) -> dict[str, Any]:
        """How many validations there were."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._validations = state_dict["validations"]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a panel, if it is time for one."""
        self._rows = [[], []]
        self._active = not trainer.sanity_checking and self._validations % self.every == 0 and trainer.is_global_zero

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: PairBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the pictures of the first pairs; the step's own renderings if it returns them."""
        if not self._active or dataloader_idx > 1:
            return
        rows = self._rows[dataloader_idx]
        chosen = batch.valid.nonzero()[:, 0][: self.count - len(rows)]
        if len(chosen):
            shown = outputs[chosen] if isinstance(outputs, Reenactment) else _render(trainer, pl_module, batch.pair[chosen])
            rows += tiles(batch.pair[chosen], shown, error=dataloader_idx == 0)
        if self.clip_frames and dataloader_idx == batch_idx == 0:
            self._clip(trainer, pl_module, len(batch.valid))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and log the panel."""
        if not trainer.sanity_checking:
            self._validations += 1
        if self._active and any(self._rows):
            sheet = contact_sheet([row for rows in self._rows for row in rows], self.height)
            write_png(self._path(trainer, ".png"), sheet)
            for logger in trainer.loggers:
                if hasattr(logger, "log_image"):
                    logger.log_image("panels", [sheet], step=log_step(trainer))
                elif hasattr(writer := _writer(logger), "add_image"):  # of TensorBoard
                    writer.add_image("panels", sheet, log_step(trainer), dataformats="HWC")
        self._rows, self._active = [[], []], False

    def _clip(self, trainer: Trainer, pl_module: LightningModule, size: int) -> None:
        data: PairDataModule = data_of(trainer)
        rows = consecutive_rows(data.reader, self.clip_frames)
        path = self._path(trainer, ".mp4")
        frames = _frames(trainer, pl_module, data, rows, size)
        with isolate_rng():  # a loader draws a seed when it begins
            first = next(frames)
            with VideoWriter(path, frame_rate(data.reader, int(rows[0])), (first.shape[1], first.shape[0])) as writer:
                for frame in chain([first], frames):
                    writer.write(frame)
        for logger in trainer.loggers:
            if hasattr(logger, "log_video"):
                logger.log_video("clip", [str(path)], step=log_step(trainer))

    def _path(self, trainer: Trainer, suffix: str) -> Path:
        folder = run_folder(trainer, self.folder) / ("" if self.folder else "panels")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be created ({error.strerror}); choose another folder for panels") from error
        return folder / f"step_{trainer.global_step:08d}{suffix}"


def tiles(pair: Pair, shown: Reenactment, error: bool) -> list[list[ByteImage]]:
    """For each pair of a batch its row of pictures."""
    target, dense = pair.target.image, shown.dense.image
    columns = [pair.source.image, target, shown.coarse.image, dense, *([ERROR * (dense - target).abs()] if error else [])]
    return [list(row) for row in zip(*map(byte_images, columns), strict=True)]


def _writer(logger: Logger) -> Any:
    return getattr(logger, "experiment", None)


def _render(trainer: Trainer, pl_module: LightningModule, pair: Pair) -> Reenactment:
    with _undisturbed(trainer):
        return pl_module(pair)


def _frames(trainer: Trainer, pl_module: LightningModule, data: PairDataModule, rows: Any, size: int) -> Iterator[ByteImage]:
    for batch in driven_batches(data, rows, size, pl_module.device):
        pair = batch.pair[batch.valid]
        shown = _render(trainer, pl_module, pair).dense.image
        for pictures in zip(*map(byte_images, (pair.source.image, pair.target.image, shown)), strict=True):
            yield np.hstack(pictures)


@contextmanager
def _undisturbed(trainer: Trainer) -> Iterator[None]:
    """As a step of validation, but random numbers are put back."""
    with isolate_rng(), torch.no_grad(), trainer.precision_plugin.val_step_context():
        yield
