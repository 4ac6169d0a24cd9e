"""Decoded frames to RGB as a viewer sees them: upright, with square pixels, by the stream's own colour matrix; or only a window of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from datasets_toolkit.media.opening import EXACT_SCALING, import_av

if TYPE_CHECKING:
    from av.video.frame import VideoFrame as DecodedFrame
    from av.video.stream import VideoStream

Image = npt.NDArray[np.uint8]
Window = tuple[int, int, int, int]
"""Left, top, right and bottom of a part of a picture, pixels; right and bottom are the first that do not belong to it."""

_BT709, _BT601 = 1, 5  # colour matrices, as numbered in H.273
_UNSPECIFIED = 2
_MARGIN, _STEP = 8, 8  # pixels: as far as the colour's interpolation sees, and what whole samples of any colour format are multiples of


class Converter:
    """Converts the frames of one stream; it keeps what can be used for the next frame."""

    def __init__(self, stream: VideoStream) -> None:
        from av.video.reformatter import VideoReformatter

        self._stream, self._reformatter = stream, VideoReformatter()
        self._cut: tuple[Any, Any] = (None, None)

    def __call__(self, frame: DecodedFrame) -> Image:
        """The whole frame, h x w x 3, RGB."""
        width, height = square_size(frame, self._stream)
        image = self._rgb(frame, width, height, _matrix(frame))
        transpose, mirror, upside_down = orientation(frame)
        image = image.swapaxes(0, 1) if transpose else image
        return np.ascontiguousarray(image[:: -1 if upside_down else 1, :: -1 if mirror else 1])

    def part(self, frame: DecodedFrame, window: Window) -> tuple[Image, tuple[int, int]]:
        """At least a window of the frame, and where (x, y) its first pixel lies in the frame; the pixels are those of the whole frame.

        Frames that must be turned, mirrored or stretched are converted as a whole.
        """
        if any(orientation(frame)) or square_size(frame, self._stream) != (frame.width, frame.height):
            return self(frame), (0, 0)
        left, top = (max(place - _MARGIN, 0) // _STEP * _STEP for place in window[:2])
        right, bottom = (
            min(-(-(place + _MARGIN) // _STEP) * _STEP, limit) for place, limit in zip(window[2:], (frame.width, frame.height), strict=True)
        )
        if right - left <= 2 * _MARGIN or bottom - top <= 2 * _MARGIN:
            return self(frame), (0, 0)
        image = self._rgb(self._cropped(frame, (left, top, right, bottom)), right - left, bottom - top, _matrix(frame))
        x, y = (place + _MARGIN if place > 0 else 0 for place in (left, top))  # what lies nearer to a cut is not exact
        ends = (end - _MARGIN if end < limit else end for end, limit in ((right, frame.width), (bottom, frame.height)))
        last_x, last_y = ends
        return np.ascontiguousarray(image[y - top : last_y - top, x - left : last_x - left]), (x, y)

    def _cropped(self, frame: DecodedFrame, window: Window) -> DecodedFrame:
        key = (*window, frame.width, frame.height, frame.format.name)
        if self._cut[0] != key:
            self._cut = (key, _crop_filter(frame, self._stream, window))
        graph = self._cut[1]
        graph.push(frame)
        return graph.pull()

    def _rgb(self, frame: DecodedFrame, width: int, height: int, matrix: int | None) -> Image:
        options: dict[str, Any] = {"src_colorspace": matrix, "src_color_range": frame.color_range, "interpolation": EXACT_SCALING}
        return np.asarray(self._reformatter.reformat(frame, width, height, "rgb24", **options).to_ndarray(), np.uint8)


def _matrix(frame: DecodedFrame) -> int | None:
    """Untagged material is BT.709 from 720 lines on and BT.601 below, as players take it."""
    return (_BT709 if frame.height >= 720 else _BT601) if frame.colorspace == _UNSPECIFIED else None


def _crop_filter(frame: DecodedFrame, stream: VideoStream, window: Window) -> Any:
    """FFmpeg's crop, which copies nothing and keeps all that is known of colours."""
    left, top, right, bottom = window
    graph: Any = import_av().filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=stream.time_base)
    crop = graph.add("crop", f"{right - left}:{bottom - top}:{left}:{top}:exact=1")
    sink = graph.add("buffersink")
    source.link_to(crop)
    crop.link_to(sink)
    graph.configure()
    return graph


def square_size(frame: DecodedFrame, stream: VideoStream) -> tuple[int, int]:
    """Width and height of a frame with square pixels, before rotation: the shorter sampling is enlarged."""
    aspect = float(stream.sample_aspect_ratio or 1)
    if not 0.1 <= aspect <= 10.0:  # an unset or broken tag
        aspect = 1.0
    return round(frame.width * max(aspect, 1.0)), round(frame.height / min(aspect, 1.0))


def orientation(frame: DecodedFrame) -> tuple[bool, bool, bool]:
    """Whether to transpose, then to flip left-right, then upside down, by the display matrix: x' = a x + c y, y' = b x + d y."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, False, False
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5]
    if abs(int(a)) + abs(int(d)) >= abs(int(b)) + abs(int(c)):
        return False, bool(a < 0), bool(d < 0)
    return True, bool(c < 0), bool(b < 0)
