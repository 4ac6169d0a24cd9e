"""Shot cuts of pictures that jump, move, flash and rest."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from datasets_toolkit.build.cuts import STILL, WINDOW, CutDetector, with_cuts
from datasets_toolkit.media.video import VideoFrame
from datasets_toolkit.schema import ByteImage


def scene(seed: int, side: int = 120) -> ByteImage:
    """A picture of soft blobs of colour."""
    noise = np.random.default_rng(seed).uniform(0, 255, (12, 12, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


def starts(images: list[ByteImage]) -> list[int]:
    frames = [VideoFrame(index, index / 25, image) for index, image in enumerate(images)]
    found = list(with_cuts(iter(frames), CutDetector()))
    assert [frame.index for frame, _ in found] == list(range(len(images)))
    return [frame.index for frame, begins in found if begins]


@pytest.mark.parametrize("place", [3, 7, 11])
def test_a_jump_begins_a_shot(place: int) -> None:
    assert starts([scene(0)] * place + [scene(1)] * (16 - place)) == [0, place]


def test_several_shots() -> None:
    assert starts([scene(0)] * 6 + [scene(1)] * 8 + [scene(2)] * 7) == [0, 6, 14]


def test_motion_and_slow_change_are_no_cuts() -> None:
    moving = [np.roll(scene(0), 2 * step, 1) for step in range(20)]
    fading = [np.asarray(cv2.addWeighted(scene(0), 1 - step / 20, scene(1), step / 20, 0), np.uint8) for step in range(20)]
    assert starts(moving) == [0]
    assert starts(fading) == [0]


@pytest.mark.parametrize("count", [0, 1, WINDOW, WINDOW + 1])
def test_short_videos_keep_all_frames(count: int) -> None:
    assert starts([scene(0)] * count) == [0][:count]


def test_what_does_not_move_is_told_from_what_does() -> None:
    generator = np.random.default_rng(0)
    resting, moving = CutDetector(), CutDetector()
    for step in range(8):
        grain = generator.integers(-2, 3, (480, 480, 3))
        resting(np.clip(scene(0, 480) + grain, 0, 255).astype(np.uint8))
        moving(np.roll(scene(0), step, 0))
    assert resting.change < STILL < moving.change
