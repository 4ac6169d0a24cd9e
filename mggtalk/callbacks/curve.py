"""The learning curve as a text file that survives kills: one line for each value, each step once, however often a run is resumed.

Lightning's CSVLogger numbers a new folder for a resumed run, or deletes the file when it is given the old one, and keeps what it has not
yet flushed (100 steps by default) in memory.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import write_whole
from mggtalk.callbacks.runs import log_step, run_folder

log = logging.getLogger(__name__)
HEADER = "step,name,value\n"


class Point(NamedTuple):
    """One value of a curve."""

    step: int
    name: str
    value: float


def read_curve(path: Path) -> list[Point]:
    """The points of a curve file, in the order they were written; a last line that a kill cut short is left out.

    Raises:
        UserError: it is no curve file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give the curve.csv of a run") from error
    whole = text[: text.rfind("\n") + 1]
    if whole and not whole.startswith(HEADER):
        raise UserError(f"{path}: does not begin with {HEADER.strip()!r}, so it is no curve; move it away")
    try:
        return [Point(int(step), name, float(value)) for step, name, value in csv.reader(whole.splitlines()[1:])]
    except ValueError as error:
        raise UserError(f"{path}: a line is no step, name and value ({error}); repair it or move the file away") from error


def encode_points(points: Iterable[Point]) -> bytes:
    """Lines of a curve file; floats are written so that they come back exactly."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((point.step, point.name, repr(point.value)) for point in points)
    return text.getvalue().encode()


class CurveLogger(Logger):
    """Appends each value as a line ``step,name,value`` at once, by one write, so that a killed process has lost nothing.

    Args:
        path: of the file; :meth:`begin` has to be called before the first value.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self._file = path, -1
        self._latest: set[Point] = set()  # of the last step

    @property
    def name(self) -> str:
        """Of the file, without its suffix."""
        return self.path.stem

    @property
    def version(self) -> int:
        """There is but one."""
        return 0

    @property
    def save_dir(self) -> str:
        """The folder of the file."""
        return str(self.path.parent)

    @rank_zero_only
    def begin(self, resumed: bool) -> None:
        """Open the file; that of another run is moved aside.

        Raises:
            UserError: the file there is no curve, or cannot be written.
        """
        with self._reported():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not resumed:
                self._move_aside()
        self._rewrite(read_curve(self.path) if self.path.exists() else [])

    @rank_zero_only
    def drop_from(self, step: int) -> None:
        """Forget what was logged in ``step`` and later: a resumed run will log it again."""
        points = read_curve(self.path)
        kept = [point for point in points if point.step < step]
        if len(kept) < len(points):
            log.info("%s: %d values from step %d on are dropped: they are made anew", self.path, len(points) - len(kept), step)
            self._rewrite(kept)

    def _rewrite(self, points: list[Point]) -> None:
        self.finalize("")
        self._latest = {point for point in points if point.step == points[-1].step}
        with self._reported():
            write_whole(self.path, HEADER.encode() + encode_points(points))
            self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); free some space or choose another folder") from error

    def _move_aside(self) -> None:
        number = 1
        while (old := self.path.with_name(f"{self.path.stem}.{number}{self.path.suffix}")).exists():
            number += 1
        os.replace(self.path, old)
        log.warning("%s: holds the curve of an earlier run, which is now %s", self.path, old.name)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append the values."""
        if self._file < 0:
            return  # validation alone has no curve
        given = [Point(step or 0, name, float(value)) for name, value in metrics.items()]
        points = [point for point in given if point not in self._latest]  # Lightning tells the epoch with training and with validation
        self._latest = {point for point in self._latest if point.step == given[-1].step}.union(points) if given else set()
        with self._reported():
            os.write(self._file, encode_points(points))

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Not part of a curve."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class LearningCurve(Callback):
    """Gives the trainer a :class:`CurveLogger` that keeps one ``curve.csv`` for a run and all that go on with it.

    Args:
        folder: for the file; by default that of the run.
        name: of the file.
    """

    def __init__(self, folder: str | None = None, name: str = "curve.csv") -> None:
        self.folder, self.name = folder, name
        self._logger: CurveLogger | None = None
        self._fresh = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the logger, for training only."""
        if stage == "fit" and self._logger is None:
            self._logger = CurveLogger(run_folder(trainer, self.folder) / self.name)
            trainer.loggers = [*trainer.loggers, self._logger]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the file."""
        assert self._logger is not None
        self._fresh = trainer.global_step == 0
        self._logger.begin(resumed=not self._fresh)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before the first step of a resumed run: only now the trainer knows its number. A validation that was cut short came before."""
        if not self._fresh:
            assert self._logger is not None
            self._logger.drop_from(log_step(trainer))
            self._fresh = True
