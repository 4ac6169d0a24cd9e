"""Annotators with a known answer, for builds in the tests; workers import them by name."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from datasets_toolkit.annotators import FaceCrop, Parsing, ParsingAnnotator
from datasets_toolkit.annotators.base import IdentityAnnotator, SyncAnnotator, SyncScore


class Picky(ParsingAnnotator):
    """Everything is skin; fails where the crop is darker than ``limit``."""

    version = 1

    def __init__(self, limit: float = 0.0) -> None:
        self.limit = limit

    def __call__(self, crop: FaceCrop) -> Parsing:
        if crop.image.mean() < self.limit:
            raise RuntimeError("too dark\nfor me")
        size = len(crop.image)
        return Parsing(labels=np.ones((size, size), np.uint8), matte=np.ones((size, size), np.float32))


class Brightness(IdentityAnnotator):
    """A unit vector in the plane whose direction follows the crop's brightness."""

    version = 1

    def __call__(self, crop: FaceCrop) -> npt.NDArray[np.float32]:
        angle = float(crop.image.mean()) / 255
        vector = np.zeros(512, np.float32)
        vector[:2] = np.cos(angle), np.sin(angle)
        return vector


class Loudness(SyncAnnotator):
    """Confident where there is sound; the offset is how many crops it was given, less one for each 640 samples."""

    version = 1

    def __call__(self, crops: Iterable[FaceCrop], audio: npt.NDArray[np.int16]) -> SyncScore:
        count = sum(1 for _ in crops)
        level = float(np.abs(audio.astype(np.float64)).mean())
        return SyncScore(offset_frames=count - len(audio) // 640, confidence=level / 1000, distance=1.0)
