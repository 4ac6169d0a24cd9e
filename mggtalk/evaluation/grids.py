"""Which pairs to show, and pictures of the methods side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from datasets_toolkit.schema import ByteImage
from mggtalk.evaluation.results import SuiteResult

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_INK, _PAPER = (40, 40, 40), 245
_GAP = 4  # pixels between pictures
_LEAST, _MOST = 0.4, 1.0  # sizes of the font: 9 and 22 pixels for a capital letter
_FEWEST, _FULLEST = 2, 6  # pictures in a row


def worst_and_best(results: SuiteResult, metric: str, count: int) -> tuple[list[str], list[str]]:
    """Names of the pairs where the first method does worst (worst first) and best (best first), up to ``count`` each.

    Pairs without a value are left out. No pair is in both lists: where there are too few pairs, the worse half of them (the one in the
    middle too) is in the first.

    Raises:
        ValueError: the suite has no such metric, or ``count`` is negative.
    """
    directions = {one.name: one.better for one in results.metrics}
    if metric not in directions or count < 0:
        raise ValueError(f"expected one of {sorted(directions)} and a count of 0 or more, got {metric!r} and {count}")
    sign = 1 if directions[metric] == "higher" else -1
    values = {pair.name: sign * pair.values.get(results.methods[0], {}).get(metric, math.nan) for pair in results.pairs}
    order = sorted((value, name) for name, value in values.items() if math.isfinite(value))
    names = [name for _, name in order]
    half = math.ceil(len(names) / 2)
    return names[:half][:count], names[half:][::-1][:count]


def grid(rows: Mapping[str, Sequence[ByteImage]]) -> list[ByteImage]:
    """Frames that show 2 to 6 methods side by side under their names; width and height are even, as H.264 wants them.

    Args:
        rows: by label, its frames (t of h w 3, RGB), all of one size and number.

    Returns:
        t frames (h' w' 3, RGB); each picture keeps its pixels.

    Raises:
        ValueError: fewer or more pictures, or they differ in size or number.
    """
    shapes = {image.shape for images in rows.values() for image in images}
    lengths = {len(images) for images in rows.values()}
    if not _FEWEST <= len(rows) <= _FULLEST or len(lengths) != 1 or len(shapes) > 1:
        raise ValueError(f"expected {_FEWEST} to {_FULLEST} rows of frames of one size and number, got {len(rows)}, {lengths}, {shapes}")
    if not shapes:
        return []
    height, width = shapes.pop()[:2]
    header = _header(list(rows), width, height)
    top, wide = header.shape[:2]
    frames = []  # the header is even already
    for images in zip(*rows.values(), strict=True):
        frame = np.full((top + height + height % 2, wide, 3), _PAPER, np.uint8)
        frame[:top] = header
        for column, image in enumerate(images):
            left = column * (width + _GAP)
            frame[top : top + height, left : left + width] = image
        frames.append(frame)
    return frames


def _header(labels: Sequence[str], width: int, height: int) -> ByteImage:
    """A strip with a label over each picture, all in the largest size in which the longest fits."""
    texts = [label.encode("ascii", "replace").decode() for label in labels]  # the font has no other letters
    wanted = min(max(height / 512, _LEAST), _MOST)
    scale = max(min([wanted, *(wanted * (width - 2 * _GAP) / max(_extent(text, wanted)[0], 1) for text in texts)]), _LEAST)
    tall = max(_extent(text, scale)[1] for text in ("Ag", *texts))
    tall += tall % 2
    wide = len(texts) * (width + _GAP) - _GAP
    header = np.full((tall + 4 * _GAP, wide + wide % 2, 3), _PAPER, np.uint8)
    for column, text in enumerate(texts):
        place = (column * (width + _GAP) + _GAP, tall + _GAP)
        cv2.putText(header, _cut(text, scale, width - 2 * _GAP), place, _FONT, scale, _INK, _thickness(scale), cv2.LINE_AA)
    return header


def _cut(text: str, scale: float, width: int) -> str:
    """The text, or as much of it with dots as fits; at least its first letter."""
    short, kept = text, len(text)
    while _extent(short, scale)[0] > width and kept > 1:
        kept -= 1
        short = f"{text[:kept]}.."
    return short


def _extent(text: str, scale: float) -> tuple[int, int]:
    (wide, tall), base = cv2.getTextSize(text, _FONT, scale, _thickness(scale))
    return wide, tall + base


def _thickness(scale: float) -> int:
    return 2 if scale > 0.7 else 1
