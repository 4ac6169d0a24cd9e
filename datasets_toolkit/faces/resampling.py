"""Squares of pictures at another size, along rows and columns one after the other: a third of the time of a general warp, or less."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from datasets_toolkit.compiling import compiled
from datasets_toolkit.schema import ByteImage, FloatArray

BLUR = 0.35
"""Standard deviation, in pixels of the result, of the blur before a picture becomes smaller: without it fine texture turns into moire."""
_CUBIC = -0.75  # the free parameter of Keys's kernel, as OpenCV has it
Weights = npt.NDArray[np.float32]


def resample_square(image: ByteImage, box: FloatArray, size: int, corner: tuple[int, int] = (0, 0)) -> ByteImage:
    """The square ``box`` (x0, y0, side; pixels) of an image (h w c) at ``size`` x ``size``; beyond the border the edge is repeated.

    Keys, "Cubic convolution interpolation for digital image processing", 1981, where it becomes larger; else a Gaussian of :data:`BLUR`
    and linear interpolation. ``image`` may be a part of the picture that begins at ``corner`` (x, y): the result is the same to the bit.
    """
    channels = image.shape[2]
    rows, row_weights = taps(float(box[1]), float(box[2]), size)
    columns, column_weights = taps(float(box[0]), float(box[2]), size)
    rows, columns = rows - corner[1], columns - corner[0]
    left = min(max(int(columns[0]), 0), image.shape[1] - 1)
    right = min(max(int(columns[-1]) + column_weights.shape[1], left + 1), image.shape[1])
    high = np.empty((size, right - left, channels), np.uint8)
    resample_rows(_flat(high), image[:, left:right], rows, row_weights)
    turned = np.asarray(cv2.transpose(high), np.uint8).reshape(right - left, size, channels)
    result = np.empty((size, size, channels), np.uint8)
    resample_rows(_flat(result), turned, columns - left, column_weights)
    return np.asarray(cv2.transpose(result), np.uint8).reshape(size, size, channels)


def _flat(image: ByteImage) -> ByteImage:
    return image.reshape(len(image), -1)


def taps(start: float, length: float, size: int) -> tuple[npt.NDArray[np.int64], Weights]:
    """For each of ``size`` pixels spread over a stretch of a line of pixels: the first pixel that it is made of, and weights from there on.

    Args:
        start: of the stretch, pixels.
        length: of the stretch.
        size: how many pixels it becomes.

    Returns:
        The first pixels (size; they may lie outside the picture) and the weights (size x k), which add up to 1.
    """
    shrink = length / size
    centres = start + (np.arange(size) + 0.5) * shrink - 0.5
    reach = int(np.ceil(4 * BLUR * shrink)) if shrink > 1 else 1
    first = np.floor(centres).astype(np.int64) - reach
    distance = np.abs(centres[:, None] - first[:, None] - np.arange(2 * reach + 2))
    if shrink > 1:
        offsets = np.arange(-reach, reach + 1)
        blur = np.exp(-0.5 * (offsets / (BLUR * shrink)) ** 2)
        share = (centres - np.floor(centres))[:, None]
        weights = (1 - share) * np.append(blur, 0) + share * np.insert(blur, 0, 0)
    else:
        near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * _CUBIC - 4 * _CUBIC
        weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    return first, (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def resample_rows(result: ByteImage, image: ByteImage, first: npt.NDArray[np.int64], weights: Weights) -> None:
    """Each row of ``result`` (m x n) as a sum of rows of ``image`` (h x ... with n values a row); see :func:`taps`."""
    used = slice(max(int(first[0]), 0), max(int(first[-1]) + weights.shape[1], 1))
    top = min(used.start, len(image) - 1)
    part = np.ascontiguousarray(image[top : max(used.stop, top + 1)])
    _sum_rows(result, part.reshape(len(part), -1), first - top, weights)


@compiled(fastmath=True)
def _sum_rows(result, image, first, weights):  # type: ignore[no-untyped-def]
    """:func:`resample_rows` on flat rows."""
    total = np.empty(image.shape[1], np.float32)
    last = image.shape[0] - 1
    for row in range(result.shape[0]):
        for i in range(len(total)):
            total[i] = 0.5
        for k in range(weights.shape[1]):
            _add_row(total, image[min(max(first[row] + k, 0), last)], weights[row, k])
        target = result[row]
        for i in range(len(total)):
            target[i] = np.uint8(min(max(total[i], np.float32(0)), np.float32(255)))


@compiled(fastmath=True)
def _add_row(total, row, weight):  # type: ignore[no-untyped-def]
    for i in range(len(total)):
        total[i] += weight * np.float32(row[i])
