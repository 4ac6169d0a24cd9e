"""What is measured: models, the baselines beside them, and pictures that others made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from datasets_toolkit.errors import UserError
from datasets_toolkit.media.images import read_image
from datasets_toolkit.media.video import read_frames
from datasets_toolkit.schema import ByteImage
from mggtalk.evaluation.cases import Case
from mggtalk.evaluation.warp import warp
from mggtalk.geometry.images import byte_images
from mggtalk.model import MGGTalk

REPEATED, WARP, BASES = "source repeated", "2D warp", "untrained bases"


class Method(ABC):
    """Makes pictures of a case.

    Attributes:
        name: of its row in the tables.
        about: what it is and what it is given, one sentence.
    """

    name: str
    about: str

    @abstractmethod
    def pictures(self, case: Case, rows: Sequence[int]) -> list[ByteImage]:
        """One picture (s s 3) for each of these frames of the driving clip.

        Raises:
            UserError: there are none.
        """


class Model(Method):
    """A MGGTalk, given the source with its labels and the driver's tracked face.

    Args:
        name: of its row.
        model: in evaluation mode.
        about: one sentence.
    """

    def __init__(self, name: str, model: MGGTalk, about: str) -> None:
        self.name, self.model, self.about = name, model, about

    @torch.inference_mode()
    def pictures(self, case: Case, rows: Sequence[int]) -> list[ByteImage]:
        """Rendered."""
        device = next(self.model.parameters()).device
        identity = self.model.reconstruct(case.source.to(device))
        prepared = self.model.prepare(identity)
        images: list[ByteImage] = []
        for row in rows:
            expression = case.expressions[row][None].to(device)
            images += byte_images(self.model.render(identity, expression, case.camera(row).to(device), prepared))
        return images


class Repeated(Method):
    """The source, again and again."""

    name = REPEATED
    about = "The source picture itself: what doing nothing scores."

    def pictures(self, case: Case, rows: Sequence[int]) -> list[ByteImage]:
        """Copies of one picture."""
        return [case.picture] * len(rows)


class Warp(Method):
    """A piecewise-affine warp of the source."""

    name = WARP
    about = (
        "A piecewise-affine warp of the source by its landmarks. On its own clip it is given the target's landmarks, so that its distances "
        "of landmarks and expressions are a floor; across people the source's landmarks move as the driver's do."
    )

    def pictures(self, case: Case, rows: Sequence[int]) -> list[ByteImage]:
        """Warped."""
        return [warp(case.picture, case.landmarks, case.targets[row]) for row in rows]


class Predictions(Method):
    """Pictures that another system made of the same pairs.

    For a pair it looks for ``PAIR.mp4`` (or .mov, .mkv, .avi, .webm) or a folder ``PAIR`` of PNG pictures, in order of their names: one
    picture for every frame of the driving clip.

    Args:
        name: of its row.
        folder: where the pictures are.

    Raises:
        UserError: there is no such folder.
    """

    SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm")

    def __init__(self, name: str, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give one with a video for each pair (--write-inputs makes the inputs)")
        self.name, self.folder = name, folder
        self.about = f"Pictures read from {folder.name}: another system's, made of the same sources and drivers."

    def pictures(self, case: Case, rows: Sequence[int]) -> list[ByteImage]:
        """Read."""
        everything, wanted, path = self._read(case.plan.name), len(case.plan.rows), self.folder / case.plan.name
        if len(everything) != wanted:
            told = f"{path}: has {len(everything)} pictures, the driver {case.plan.driver} {wanted} frames"
            raise UserError(f"{told}; give one picture for each frame")
        chosen = [everything[row] for row in rows]
        if any(picture.shape != case.picture.shape for picture in chosen):
            raise UserError(
                f"{self.folder / case.plan.name}: pictures of {chosen[0].shape[:2]}, expected {case.picture.shape[:2]} as the source"
            )
        return chosen

    def _read(self, pair: str) -> list[ByteImage]:
        for suffix in self.SUFFIXES:
            if (path := self.folder / f"{pair}{suffix}").is_file():
                return [np.asarray(frame.image) for frame in read_frames(path)]
        files = sorted((self.folder / pair).glob("*.png"))
        if not files:
            raise UserError(f"{self.folder / pair}: no video of that name and no folder of PNG pictures")
        return [read_image(file) for file in files]
