"""Crops of a clip from parts of frames."""

from __future__ import annotations

from unittest.mock import Mock

import cv2
import numpy as np
import pytest

from datasets_toolkit.build.clip_frames import ClipFrames
from datasets_toolkit.faces.detection import crop_image
from datasets_toolkit.schema import TrackedClip

WIDTH, HEIGHT = 320, 240


def clip(boxes: np.ndarray, size: int) -> ClipFrames:
    count = len(boxes)
    tracked = Mock(
        spec=TrackedClip,
        landmarks=np.zeros((count, 478, 3)),
        blendshapes=np.zeros((count, 52)),
        mesh=np.zeros((count, 478, 3)),
        head_to_camera=np.tile(np.eye(4), (count, 1, 1)),
        intrinsics=np.eye(3),
    )
    return ClipFrames(clip=tracked, boxes=boxes, size=size)


@pytest.mark.parametrize("size", [40, 64, 128, 300])
def test_the_window_holds_all_that_crops_are_made_of(size: int) -> None:
    generator = np.random.default_rng(size)
    image = cv2.GaussianBlur(generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8), (0, 0), 1)
    boxes = np.array([[30.3, 20.2, 120.0], [41.0, 33.5, 128.7], [35.5, 28.0, 110.2]])
    frames = clip(boxes, size)
    left, top, right, bottom = frames.window()
    assert 0 < left < right < WIDTH or size == 40  # a part, unless the crop is so small that much is averaged
    left, top = max(left, 0), max(top, 0)
    part = image[top:bottom, left:right]
    for row, box in enumerate(boxes):
        found = frames.crop(part, row, (left, top))
        whole = crop_image(image, box, size)
        np.testing.assert_array_equal(found.image, whole)
