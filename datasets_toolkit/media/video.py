"""Reading videos with their true times; the writer and the image reader are exported from here too.

Frames come as a viewer sees them: display rotation and mirroring applied, pixels made square, RGB by the stream's own matrix.
PyAV is imported on first use only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from datasets_toolkit.errors import MediaError
from datasets_toolkit.media.conversion import Converter, Window, orientation, square_size
from datasets_toolkit.media.images import MAX_PIXELS, read_image
from datasets_toolkit.media.opening import MediaWarning, check_input, import_av
from datasets_toolkit.media.video_writer import VideoWriter

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame as DecodedFrame
    from av.video.stream import VideoStream

__all__ = ["MAX_PIXELS", "MediaWarning", "VideoFrame", "VideoInfo", "VideoWriter", "probe", "read_frames", "read_image"]

_TIE = 0.001  # seconds between two frames that the source gives one and the same time
_EARLY_END = 0.5  # seconds that a video may end before its header says, without a warning
_SLOWEST, _FASTEST = Fraction(1, 10), Fraction(1000)  # rates outside are header errors: a time base taken for a rate


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a viewer sees of a video: its size in square pixels after rotation, times in seconds."""

    width: int
    height: int
    fps: Fraction  # the mean rate; where the rate varies only the times of the frames are exact
    duration: float | None  # None where the file does not tell
    frames: int | None  # as the header says, or duration times fps: an estimate
    has_audio: bool
    codec: str


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One decoded frame."""

    index: int  # in the source, from 0; frames that cannot be decoded keep their number
    time: float  # presentation time in seconds on the clock of the source, strictly increasing
    image: npt.NDArray[np.uint8]  # h w 3, RGB
    corner: tuple[int, int] = (0, 0)  # x and y of the image's first pixel in the whole frame; other than 0 only where a part was asked for


def probe(path: Path) -> VideoInfo:
    """Size, rate and streams of a video, from its headers and its first frame.

    Raises:
        MediaError: the file is missing, empty, not a video, or holds no frame that can be decoded.
    """
    with _open(path) as (container, stream):
        frame = next((frame for _, frame in _decode(container, stream, _Damage())), None)
        if frame is None:
            raise _no_frame(path)
        width, height = square_size(frame, stream)
        if orientation(frame)[0]:
            width, height = height, width
        fps, duration = _rate(stream), _duration(container, stream)
        return VideoInfo(
            width=width,
            height=height,
            fps=fps,
            duration=duration,
            frames=stream.frames or (round(duration * fps) if duration is not None else None),
            has_audio=bool(container.streams.audio),
            codec=stream.codec_context.codec.canonical_name,
        )


def read_frames(
    path: Path, *, start: float | None = None, limit: int | None = None, part: Callable[[int], Window | None] | None = None
) -> Iterator[VideoFrame]:
    """Decode a video frame by frame.

    Times are the presentation times of the stream, also where its rate varies. A missing time, or one that jumps back by more than a
    frame, is taken as one nominal frame after the one before; equal times are set 1 ms apart. A damaged or truncated file yields
    what can be decoded, then a :class:`MediaWarning` that says how many frames that were.

    Args:
        path: of the video.
        start: seconds on the clock of the source; earlier frames are decoded (they keep their numbers) but not returned.
        limit: the largest number of frames to return.
        part: for the number of a frame the window of it that is needed, or None where nothing is (its image is empty then). Frames may
            still come whole; the pixels are the same. It is asked just before a frame is returned.

    Raises:
        MediaError: as :func:`probe`, when the first frame is asked for.
    """
    with _open(path) as (container, stream):
        damage, period, tick = _Damage(), float(1 / _rate(stream)), float(stream.time_base or 0)
        read, returned, end, time = 0, 0, 0.0, None
        convert = Converter(stream)
        for index, frame in _decode(container, stream, damage):
            if limit is not None and returned >= limit:
                return
            time = _time(None if frame.pts is None else frame.pts * tick, time, period)
            end = time + (frame.duration * tick or period)
            read += 1
            if start is None or time >= start:
                returned += 1
                if part is None:
                    yield VideoFrame(index, time, convert(frame))
                elif (window := part(index)) is not None:
                    yield VideoFrame(index, time, *convert.part(frame, window))
                else:
                    yield VideoFrame(index, time, np.empty((0, 0, 3), np.uint8))
        if read == 0:
            raise _no_frame(path)
        _warn_if_cut(path, read, damage.frames, _declared_end(container, stream, end) - end)


@dataclass
class _Damage:
    """What could not be decoded so far."""

    frames: int = 0


@contextmanager
def _open(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    av = import_av()
    check_input(Path(path), "video")
    try:
        # An absolute path cannot be taken for one of FFmpeg's addresses ("concat:...", "http:...").
        container = av.open(os.path.abspath(path), metadata_errors="replace")
    except av.FFmpegError as error:
        raise MediaError(f"{path}: not a readable video ({error.strerror}); if it plays elsewhere, re-encode it to mp4") from error
    with container:
        if container.format.name.endswith("_pipe") or container.format.name == "image2":
            raise MediaError(f"{path}: a still image, not a video; give a video file")
        cover = av.stream.Disposition.attached_pic
        stream = next((stream for stream in container.streams.video if not stream.disposition & cover), None)
        if stream is None:
            raise MediaError(f"{path}: this file has no video stream; give a file with moving pictures")
        stream.thread_type = "AUTO"
        yield container, stream


def _no_frame(path: Path) -> MediaError:
    return MediaError(f"{path}: no frame of this video can be decoded; re-encode it or give another file")


def _decode(container: InputContainer, stream: VideoStream, damage: _Damage) -> Iterator[tuple[int, DecodedFrame]]:
    """Frames with their numbers; whatever fails is counted in ``damage`` and skipped."""
    av = import_av()
    index = 0
    for packet in _packets(container, stream, damage):
        failed, frames = False, []
        try:
            failed = packet is not None and packet.is_corrupt
            frames = [] if failed else stream.decode(packet)
        except av.FFmpegError:
            failed = True
        for frame in frames:
            if frame.is_corrupt:
                damage.frames += 1
            else:
                yield index, frame
            index += 1
        damage.frames += failed
        index += failed


def _packets(container: InputContainer, stream: VideoStream, damage: _Damage) -> Iterator[Packet[VideoStream] | None]:
    """The packets of the stream, then ``None``, which empties the decoder."""
    av = import_av()
    try:
        yield from (packet for packet in container.demux(stream) if packet.size)
    except av.FFmpegError:
        damage.frames += 1
    yield None


def _rate(stream: VideoStream) -> Fraction:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and _SLOWEST <= rate <= _FASTEST:
            return Fraction(rate)
    return Fraction(25)


def _duration(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    tag = stream.metadata.get("DURATION", "").split(":")  # Matroska writes the duration of a stream as hours:minutes:seconds
    if len(tag) == 3:
        try:
            return 3600.0 * int(tag[0]) + 60.0 * int(tag[1]) + float(tag[2])
        except ValueError:
            pass  # not such a tag: the container knows
    return container.duration / 1e6 if container.duration else None


def _declared_end(container: InputContainer, stream: VideoStream, default: float) -> float:
    duration = _duration(container, stream)
    return default if duration is None else float((stream.start_time or 0) * (stream.time_base or 0)) + duration


def _time(stamp: float | None, previous: float | None, period: float) -> float:
    if previous is None:
        return 0.0 if stamp is None else stamp
    if stamp is None or stamp < previous - period:
        return previous + period
    return max(stamp, previous + _TIE)


def _warn_if_cut(path: Path, read: int, lost: int, missing: float) -> None:
    facts = [f"{read} frames were read"]
    facts += [f"{lost} could not be decoded"] if lost else []
    facts += [f"it ends {missing:.1f} s before its header says"] if missing > _EARLY_END else []
    if len(facts) > 1:
        warnings.warn(f"{path}: damaged or cut short: {', '.join(facts)}", MediaWarning, stacklevel=3)
