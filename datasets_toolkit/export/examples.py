"""Clips on both sides of a policy's limits, with pictures: what a limit means is best seen where it bites."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from datasets_toolkit.checks.tables import clip_rows
from datasets_toolkit.curation.plan import Mask
from datasets_toolkit.curation.policy import Policy, score_values
from datasets_toolkit.curation.report import Example
from datasets_toolkit.errors import UserError
from datasets_toolkit.schema import ByteImage
from datasets_toolkit.shards.shard_reader import ShardReader

if TYPE_CHECKING:
    import pyarrow

SHOWN = 3
"""Clips shown on each side of a limit."""
PICTURE_HEIGHT = 180


def near_limits(
    clips: pyarrow.Table, keep: Mask, policy: Policy, picture: Callable[[int], ByteImage | None], shown: int = SHOWN
) -> dict[str, list[Example]]:
    """For each limit that some clip fails, the clips that only just fail it and the kept ones that only just pass it.

    Args:
        clips: rows of ``clips.parquet``.
        keep: whether the policy keeps each.
        policy: the limits.
        picture: gives a picture of the clip in a row, or None.
        shown: clips on each side.
    """
    found: dict[str, list[Example]] = {}
    names = clips.column("clip").to_pylist()
    for sign, bounds in ((1, policy.minimum.given()), (-1, policy.maximum.given())):
        for score, limit in bounds.items():
            values = score_values(clips, score)
            distance = sign * (values - limit)  # at least 0 passes
            failing = np.flatnonzero(distance < 0)
            passing = np.flatnonzero((distance >= 0) & keep)
            if not len(failing):
                continue
            chosen = [*_nearest(failing, distance)[:shown], *_nearest(passing, distance)[:shown]]
            found[f"{score} {'at least' if sign > 0 else 'at most'} {limit:g}"] = [
                Example(clip=names[row], text=f"{score} {values[row]:.4g}", kept=bool(distance[row] >= 0), picture=picture(row))
                for row in sorted(chosen, key=lambda row: float(values[row]))
            ]
    return found


def _nearest(rows: np.ndarray, distance: np.ndarray) -> list[int]:
    return [int(row) for row in rows[np.argsort(np.abs(distance[rows]), kind="stable")]]


class ClipPictures:
    """A picture of the clip in a row of ``clips.parquet``: from the shards where it is packed, else from its source video.

    Args:
        clips: rows of ``clips.parquet``.
        sources: rows of ``sources.parquet``.
        reader: of the shards, None where there are none yet.
    """

    def __init__(self, clips: pyarrow.Table, sources: pyarrow.Table, reader: ShardReader | None) -> None:
        self._reader = reader
        self._rows = clip_rows(reader.index) if reader is not None and "image" in reader.columns else {}
        self._paths = dict(zip(sources.column("source").to_pylist(), sources.column("path").to_pylist(), strict=True))
        self._clips = {name: clips.column(name) for name in ("clip", "source", "start", "end")}

    def __call__(self, row: int) -> ByteImage | None:
        """The picture (h w 3), None where none can be read."""
        facts = {name: column[row].as_py() for name, column in self._clips.items()}
        rows = self._rows.get(facts["clip"])
        if self._reader is not None and rows is not None:
            with suppress(UserError):  # damaged: verify tells; the video may still do
                image = self._reader.sample(int(rows[len(rows) // 2]), ["image"]).image
                return None if image is None else scaled(image)
        return video_picture(self._paths.get(facts["source"], ""), (facts["start"] + facts["end"]) / 2)


def video_picture(path: str, time: float) -> ByteImage | None:
    """The picture that a video shows at ``time`` (s), scaled to :data:`PICTURE_HEIGHT`; None where it cannot be read.

    The nearest key frame is looked up, not the whole video decoded: this is for looking at, no label depends on it.
    """
    if not Path(path).is_file():
        return None
    video = cv2.VideoCapture(str(Path(path).absolute()), cv2.CAP_FFMPEG)
    try:
        video.set(cv2.CAP_PROP_POS_MSEC, 1000 * time)
        read, picture = video.read()
    except cv2.error:
        return None
    finally:
        video.release()
    return scaled(np.asarray(picture[:, :, ::-1], np.uint8)) if read else None


def scaled(picture: ByteImage, height: int = PICTURE_HEIGHT) -> ByteImage:
    """A picture (h w 3) shrunk to ``height`` pixels; a smaller one stays as it is."""
    if picture.shape[0] <= height:
        return np.ascontiguousarray(picture)
    width = max(round(picture.shape[1] * height / picture.shape[0]), 1)
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
