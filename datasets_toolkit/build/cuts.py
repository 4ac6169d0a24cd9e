"""Shot cuts: where a video jumps to another picture, found while it is decoded.

PySceneDetect's adaptive detector judges small copies of the frames: a cut is a change (mean difference of hue, saturation and value) of
at least 15 levels, and of three times what the two frames before and after it change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from datasets_toolkit.errors import UserError
from datasets_toolkit.schema import ByteImage

if TYPE_CHECKING:
    from datasets_toolkit.media.video import VideoFrame

WINDOW = 2
"""Frames before and after a change that it is compared with; so many frames late a cut is known."""
SHORTEST = 3
"""Frames in the shortest shot."""
SIDE = 128
"""Larger side of the copies that are compared, pixels."""
STILL = 0.5
"""Mean difference to the first frame, in levels of 255, that compression alone makes; a picture that never exceeds it does not move."""


class CutDetector:
    """Sees frames one by one and names cuts :data:`WINDOW` frames late.

    Attributes:
        change: the largest mean difference of a frame to the first one, levels of 255.

    Raises:
        UserError: PySceneDetect is not installed.
    """

    def __init__(self) -> None:
        try:
            from scenedetect import AdaptiveDetector, FrameTimecode
        except ImportError as error:
            raise UserError(f"shot cuts need the package scenedetect ({error}); install it with: pip install scenedetect") from error
        self._detector = AdaptiveDetector(window_width=WINDOW, min_scene_len=SHORTEST)
        self._number: Any = FrameTimecode
        self._seen, self._first = 0, np.zeros((0, 0, 3), np.int16)
        self.change = 0.0

    def __call__(self, image: ByteImage) -> list[int]:
        """Rows (frames seen, from 0) at which a new shot is now known to begin."""
        small = _small(image)
        if self._seen == 0 or self._first.shape != small.shape:
            self._first = small.astype(np.int16)
        self.change = max(self.change, float(np.abs(small - self._first).mean()))
        # The detector counts consecutive frames: true times would let a pause in them look like a long shot.
        found = self._detector.process_frame(self._number(self._seen, 25.0), small[..., ::-1])
        self._seen += 1
        return [int(one.frame_num) for one in found]


def with_cuts(frames: Iterable[VideoFrame], detector: CutDetector) -> Iterator[tuple[VideoFrame, bool]]:
    """Each frame with whether a shot begins with it (so does the first); :data:`WINDOW` frames are held back."""
    held: deque[VideoFrame] = deque()
    begun, row = {0}, 0
    for frame in frames:
        held.append(frame)
        begun.update(detector(frame.image))
        if len(held) > WINDOW:
            yield held.popleft(), row in begun
            row += 1
    for frame in held:
        yield frame, row in begun
        row += 1


def _small(image: ByteImage) -> ByteImage:
    height, width = image.shape[:2]
    scale = min(SIDE / max(height, width), 1.0)
    size = max(round(width * scale), 8), max(round(height * scale), 8)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
