"""Writing H.264 videos with exact times and with the sound of another file: a whole file appears, or none."""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from datasets_toolkit.errors import MediaError
from datasets_toolkit.media.audio_track import AudioTrack
from datasets_toolkit.media.opening import EXACT_SCALING, import_av

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.frame import VideoFrame as DecodedFrame
    from av.video.stream import VideoStream

_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
_TICKS = 90_000  # per second, at least: what MPEG streams use
_BT709, _LIMITED, _FULL = 1, 1, 2  # as numbered in H.273 and FFmpeg
# Tags that .mp4 and .mov have boxes of their own for, and what fits into the 16-bit length of such a box in .mov
_BOXED_TAGS, _BOXED_BYTES = {"title", "comment", "copyright", "artist", "date", "genre"}, 65_535


class VideoWriter:
    """Context manager that encodes RGB frames with libx264 (yuv420p, BT.709, limited range) into .mp4, .mov or .mkv.

    The file is written under a temporary name in the same folder and renamed when the ``with`` block ends well; an exception inside
    it leaves nothing. The first frame is time 0 of the file, whatever its time was; sound from ``audio_from`` moves with it and ends
    with the last frame. An odd width or height is made even by repeating the last column or row.
    """

    def __init__(
        self,
        path: Path,
        fps: Fraction,
        size: tuple[int, int],
        *,
        audio_from: Path | None = None,
        metadata: dict[str, str] | None = None,
        crf: int = 16,
    ) -> None:
        """Check what can be checked before anything is written.

        Args:
            path: of the video; an existing file is replaced.
            fps: frames per second; also how long the last frame is shown.
            size: width and height of the frames in pixels.
            audio_from: a file whose first audio stream is copied, or encoded as AAC where the container does not take it.
            metadata: tags for the container. "title", "comment", "copyright", "artist", "date" and "genre" go where every player looks for
                them, as long as there are only these; in .mp4 and .mov any other key moves all of them to a list of keys that FFmpeg,
                but not every player, reads.
            crf: quality of libx264, 0 (lossless) to 51.

        Raises:
            MediaError: unknown suffix, ``path`` is a folder, or its folder does not exist.
            ValueError: the rate or the size is not positive.
        """
        self._path = Path(path)
        self._suffix = self._path.suffix.lower()
        if self._suffix not in _FORMATS:
            raise MediaError(f"{path}: cannot write this kind of file; name it {', '.join(_FORMATS)}")
        if self._path.is_dir():
            raise MediaError(f"{path}: is a folder; give the name of a video file in it")
        if not self._path.parent.is_dir():
            raise MediaError(f"{path}: the folder {self._path.parent} does not exist; create it first")
        if fps <= 0 or min(size) <= 0:
            raise ValueError(f"frame rate and size must be positive, got {fps} and {size}")
        self._fps = Fraction(fps).limit_denominator(100_000)
        # Frames at exact multiples of 1 / fps fall on whole ticks.
        self._ticks = self._fps.numerator * math.ceil(_TICKS / self._fps.numerator)
        self._size, self._crf = size, crf
        self._audio_from, self._metadata = audio_from, dict(metadata or {})
        self._part = self._path.with_name(f".{self._path.stem}.{secrets.token_hex(4)}.part{self._path.suffix}")
        self._origin: Fraction | None = None  # time of the first frame, on the clock of the caller
        self._last = Fraction(0)  # time of the newest frame in the file
        self._audio: AudioTrack | None = None
        self.frames = 0

    def __enter__(self) -> VideoWriter:
        """Open the output.

        Raises:
            MediaError: the folder cannot be written to, ``audio_from`` is unreadable or has no sound, or PyAV lacks libx264.
        """
        with ExitStack() as undo:
            with _reported(self._path):
                self._part.touch(exist_ok=False)
                undo.callback(self._part.unlink, missing_ok=True)
                options = {} if self._suffix == ".mkv" else {"movflags": _movflags(self._metadata)}
                self._output = import_av().open(os.path.abspath(self._part), "w", format=_FORMATS[self._suffix], options=options)
                undo.callback(_close_quietly, self._output)
                self._output.metadata.update(self._metadata)
                self._stream = self._add_stream()
            if self._audio_from is not None:
                self._audio = AudioTrack(Path(self._audio_from), self._output, self._suffix)
                undo.callback(self._audio.close)
            self._undo = undo.pop_all()
        return self

    def write(self, image: npt.NDArray[np.uint8], time: float | None = None) -> None:
        """Append a frame.

        Args:
            image: RGB, shape (height, width, 3) with the size of the writer.
            time: seconds on the clock of the source of the frames (and of the sound); without it, 1 / fps after the frame before.

        Raises:
            ValueError: shape or dtype differ, or ``time`` is not later than that of the frame before.
            MediaError: encoding or writing fails, for example on a full disk.
        """
        if image.shape != (self._size[1], self._size[0], 3) or image.dtype != np.uint8:
            raise ValueError(f"expected uint8 of shape {(self._size[1], self._size[0], 3)}, got {image.dtype} of shape {image.shape}")
        moment = self._moment(time)
        frame = self._frame(image)
        frame.pts, frame.time_base = round(moment * self._ticks), Fraction(1, self._ticks)
        frame.duration = round(self._ticks / self._fps)
        with _reported(self._path):
            self._output.mux(self._stream.encode(frame))
            if self._audio is not None:
                self._audio.advance(moment)
        self._last, self.frames = moment, self.frames + 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Complete the file and give it its name, or remove it after an exception.

        Raises:
            MediaError: no frame was written, or the file cannot be completed.
        """
        with self._undo:  # after a complete file there is nothing left to undo
            if kind is None:
                self._complete()

    def _add_stream(self) -> VideoStream:
        stream: VideoStream = self._output.add_stream("libx264", rate=self._fps, options={"crf": str(self._crf), "preset": "medium"})
        stream.width, stream.height = (side + side % 2 for side in self._size)
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, self._ticks)
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        return stream

    def _moment(self, time: float | None) -> Fraction:
        """The time of the next frame in the file, in whole ticks."""
        if self.frames == 0:
            if time is not None:
                self._origin = Fraction(time)
                if self._audio is not None:
                    self._audio.start(self._origin)
            return Fraction(0)
        exact = self._last + 1 / self._fps if time is None else Fraction(time) - (self._origin or 0)
        moment = Fraction(round(exact * self._ticks), self._ticks)
        if moment <= self._last:
            raise ValueError(f"frame times must increase: {float(moment)} s follows {float(self._last)} s after the first frame")
        return moment

    def _frame(self, image: npt.NDArray[np.uint8]) -> DecodedFrame:
        from av.video.frame import VideoFrame as RawFrame

        height, width = image.shape[:2]
        if width % 2 or height % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = RawFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        yuv = frame.reformat(
            format="yuv420p", dst_colorspace=_BT709, src_color_range=_FULL, dst_color_range=_LIMITED, interpolation=EXACT_SCALING
        )
        yuv.color_primaries = yuv.color_trc = _BT709
        return yuv

    def _complete(self) -> None:
        if self.frames == 0:
            raise MediaError(f"{self._path}: no frame was written, so there is no video; check the input that the frames come from")
        with _reported(self._path):
            self._output.mux(self._stream.encode(None))
            if self._audio is not None:
                self._audio.finish(self._last + 1 / self._fps)
                self._audio.close()  # before the renaming: the sound may come from the very file that is replaced
            self._output.close()
            os.replace(self._part, self._path)


def _movflags(metadata: dict[str, str]) -> str:
    """FFmpeg writes tags into their own boxes or, with ``use_metadata_tags``, under any key into one list; never both."""
    boxed = metadata.keys() <= _BOXED_TAGS and all(len(value.encode()) <= _BOXED_BYTES for value in metadata.values())
    return "+faststart" if boxed else "+faststart+use_metadata_tags"


def _close_quietly(output: OutputContainer) -> None:
    with suppress(import_av().FFmpegError):  # the file is thrown away: its trailer need not be written
        output.close()


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    av = import_av()
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or str(error)
        raise MediaError(f"{path}: writing failed ({reason}); check the free space and the rights of the folder") from error
