"""Carrying the sound of one file into another, in step with the pictures being written."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets_toolkit.media.opening import MediaWarning, import_av, open_sound

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import OutputContainer
    from av.packet import Packet

_COPIED = {
    ".mp4": {"aac", "mp3", "ac3", "eac3"},
    ".mov": {"aac", "mp3", "ac3", "eac3", "pcm_s16le"},
    ".mkv": {"aac", "mp3", "ac3", "eac3", "opus", "vorbis", "flac", "pcm_s16le"},
}
_AAC_RATES = (16000, 22050, 24000, 32000, 44100, 48000)  # samples per second; others are resampled to the last


class AudioTrack:
    """The first audio stream of a file, on its way into ``output``: copied where that container takes its codec, else encoded as AAC.

    Times are on the clock of the source; the moment given to :meth:`start` becomes time 0 of the output. A copied stream is cut at
    packets (some 20 ms), an encoded one at samples; both keep the offset to the pictures.
    """

    def __init__(self, path: Path, output: OutputContainer, suffix: str) -> None:
        """Open ``path`` and add a stream to ``output``, a container whose file name ends in ``suffix``.

        Raises:
            MediaError: the file is missing, empty, unreadable or without sound.
        """
        self._path, self._output, self._lost = path, output, 0
        self._source = open_sound(path)
        self._input: AudioStream = self._source.streams.audio[0]
        self._copied = self._input.codec_context.codec.canonical_name in _COPIED[suffix]
        self._keeps_lead = suffix != ".mkv"  # an mp4 edit list hides what sounds before time 0, Matroska would delay the pictures
        self._stream = output.add_stream_from_template(self._input) if self._copied else self._add_aac()
        self._origin = Fraction(self._source.start_time or 0, 1_000_000)
        self._pieces = self._packets() if self._copied else self._frames()
        self._held: tuple[Fraction, Packet[AudioStream] | AudioFrame] | None = None

    def start(self, origin: Fraction) -> None:
        """Let ``origin``, in seconds of the source, be time 0 of the output; without this call it is the start of the source."""
        self._origin = origin

    def advance(self, end: Fraction) -> None:
        """Write all pieces of sound that are over by ``end``, in seconds of the output."""
        while True:
            self._held = self._held or next(self._pieces, None)
            if self._held is None or self._held[0] > end:
                return
            piece, self._held = self._held[1], None
            self._write(piece)

    def finish(self, end: Fraction) -> None:
        """Write what is left up to ``end``."""
        self.advance(end)
        if self._copied:
            return
        if self._held is not None:
            frame: AudioFrame = self._held[1]  # type: ignore[assignment]
            kept = frame.samples - round((self._held[0] - end) * frame.sample_rate)
            if kept > 0:
                self._write(_cut(frame, 0, kept))
        self._output.mux(self._stream.encode(None))

    def close(self) -> None:
        """Close the source (again does nothing); a :class:`MediaWarning` tells if some of it could not be decoded."""
        self._source.close()
        if self._lost:
            warnings.warn(f"{self._path}: damaged sound: {self._lost} packets could not be decoded", MediaWarning, stacklevel=2)
            self._lost = 0

    def _add_aac(self) -> AudioStream:
        context = self._input.codec_context
        rate = context.sample_rate if context.sample_rate in _AAC_RATES else _AAC_RATES[-1]
        layout = "mono" if context.layout.nb_channels == 1 else "stereo"
        return self._output.add_stream("aac", rate=rate, layout=layout, bit_rate=96_000 if layout == "mono" else 160_000)

    def _write(self, piece: Packet[AudioStream] | AudioFrame) -> None:
        if self._copied:
            self._output.mux_one(piece)  # type: ignore[arg-type]
        else:
            self._output.mux(self._stream.encode(piece))  # type: ignore[arg-type]

    def _packets(self) -> Iterator[tuple[Fraction, Packet[AudioStream]]]:
        """Packets with the time when they end, both on the clock of the output."""
        for packet in self._source.demux(self._input):
            tick = packet.time_base
            if packet.pts is None or not packet.size:
                continue
            start = packet.pts * tick - self._origin
            end = start + (packet.duration or 0) * tick
            if start >= 0 or (end >= 0 and self._keeps_lead):
                packet.pts = packet.dts = round(start / tick)
                packet.stream = self._stream
                yield end, packet

    def _frames(self) -> Iterator[tuple[Fraction, AudioFrame]]:
        """Decoded pieces with the time when they end, cut at time 0 and stamped on the clock of the output."""
        end = Fraction(0)
        for frame in self._decoded():
            start = end if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base - self._origin
            end = start + Fraction(frame.samples, frame.sample_rate)
            if end > 0:
                piece = _cut(frame, max(0, round(-start * frame.sample_rate)), frame.samples)
                piece.pts = round(max(start, Fraction(0)) * frame.sample_rate)
                yield end, piece

    def _decoded(self) -> Iterator[AudioFrame]:
        av = import_av()
        for packet in self._source.demux(self._input):
            try:
                yield from packet.decode()
            except av.FFmpegError:
                self._lost += 1


def _cut(frame: AudioFrame, first: int, last: int) -> AudioFrame:
    """Samples ``first`` to ``last`` (exclusive) of a frame; its time stamp counts samples and moves along."""
    av = import_av()
    step = 1 if frame.format.is_planar else frame.layout.nb_channels
    samples = np.ascontiguousarray(frame.to_ndarray()[:, first * step : last * step])
    piece: AudioFrame = av.AudioFrame.from_ndarray(samples, format=frame.format.name, layout=frame.layout.name)
    piece.sample_rate, piece.time_base = frame.sample_rate, Fraction(1, frame.sample_rate)
    if frame.pts is not None and frame.time_base is not None:
        piece.pts = round(frame.pts * frame.time_base * frame.sample_rate) + first
    return piece
