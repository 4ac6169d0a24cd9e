"""Reading the sound of any media file as mono 16 kHz samples on the clock of the source. PyAV is imported on first use only."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from datasets_toolkit.errors import MediaError
from datasets_toolkit.media.opening import MediaWarning, import_av, open_sound

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer

Samples = npt.NDArray[np.int16]
RATE = 16000
"""Samples a second, whatever the file has."""
_SLACK = 0.05  # seconds that time stamps may stray from the count of samples; containers round them, and players ignore as much
_LONGEST_GAP = 3600.0  # seconds of silence that a broken time stamp may ask for
_RESTART = 1.0  # seconds that time stamps must jump back to be taken for a clock that begins anew: then sound follows on sound


class Sound(NamedTuple):
    """Attributes: samples (n, mono, 16 kHz) and start (seconds on the clock of the source, when the first of them sounds)."""

    samples: Samples
    start: float


def read_audio(path: Path, *, start: float | None = None, end: float | None = None) -> Sound:
    """The first sound track of a file, from ``start`` to ``end`` (seconds on the clock of the source; by default all of it).

    Decoding holds one packet at a time: what is kept are 32 kB for each second asked for, at any rate, with any channels and codec of
    the file. Channels are averaged as FFmpeg does. Time stamps are believed: where they leave a gap there is silence, where they overlap
    the earlier sound stays. So sample i sounds at ``start + i / 16000``, on the clock of :func:`datasets_toolkit.media.video.read_frames`.

    Raises:
        MediaError: the file is missing, empty, unreadable, or without sound that can be decoded.
    """
    kept: list[Samples] = []
    begin: float | None = None
    for block, time in stream_audio(path, until=end):
        first = 0 if start is None else max(0, round((start - time) * RATE))
        last = len(block) if end is None else min(len(block), round((end - time) * RATE))
        if last > first:
            begin = time + first / RATE if begin is None else begin
            kept.append(block[first:last])
    nothing = np.zeros(0, np.int16)
    return Sound(np.concatenate(kept) if kept else nothing, begin if begin is not None else (start or 0.0))


def stream_audio(path: Path, *, until: float | None = None) -> Iterator[Sound]:
    """The sound in consecutive blocks, each beginning where the one before ends; stops after ``until`` (seconds on the source's clock).

    Raises:
        MediaError: as :func:`read_audio`, when the first block is asked for.
    """
    source = open_sound(Path(path))
    lost = [0]
    with source:
        origin, written, run, moved = None, 0, -1, 0
        for number, samples, time in _resampled(source, lost):
            origin = time if origin is None else origin
            missing = round((time - origin) * RATE) - written
            if number != run:  # a run of samples begins: within reason where the one before ended, else where it says
                run, moved = number, missing if abs(missing) <= _SLACK * RATE or missing > _LONGEST_GAP * RATE else 0
            missing -= moved
            piece = np.concatenate([np.zeros(max(missing, 0), np.int16), samples[max(-missing, 0) :]])
            if len(piece):
                yield Sound(piece, origin + written / RATE)
                written += len(piece)
            if until is not None and origin + written / RATE >= until:
                return
    if origin is None:
        raise MediaError(f"{path}: no sound of this file can be decoded; convert it to wav or mp4")
    if lost[0]:
        warnings.warn(f"{path}: damaged sound: {lost[0]} packets could not be decoded", MediaWarning, stacklevel=2)


def _resampled(source: InputContainer, lost: list[int]) -> Iterator[tuple[int, Samples, float]]:
    """Runs of 16 kHz samples: the number of the run, samples, and the time of the first of them.

    A resampler holds samples back and cuts its output anew, so times are only taken where one begins: at the start, where the format of the
    frames changes, and where their time stamps jump. There the resampler is emptied and a new run begins.
    """
    av = import_av()
    resampler, form, begin, expected, given, run = None, None, 0.0, -np.inf, 0, 0
    for frame in chain(_decoded(source, lost), [None]):
        stamp = expected if frame is None or frame.pts is None or not frame.time_base else float(frame.pts * frame.time_base)
        stamp = expected if stamp < expected - _RESTART else stamp
        stamp = 0.0 if stamp == -np.inf else stamp
        now = None if frame is None else (frame.format.name, frame.layout.name, frame.sample_rate)
        if resampler is None or form != now or abs(stamp - expected) > _SLACK:
            for samples in _taken(resampler, None):
                yield run, samples, begin + given / RATE
                given += len(samples)
            resampler, form, begin, expected, given, run = av.AudioResampler("s16", "mono", RATE), now, stamp, stamp, 0, run + 1
        if frame is not None:
            expected += frame.samples / frame.sample_rate
            frame.pts = None
            for samples in _taken(resampler, frame):
                yield run, samples, begin + given / RATE
                given += len(samples)


def _taken(resampler: Any, frame: AudioFrame | None) -> Iterator[Samples]:
    """What comes out of a resampler for a frame; for None the rest of it."""
    for piece in resampler.resample(frame) if resampler is not None else ():
        yield np.ascontiguousarray(piece.to_ndarray()[0, : piece.samples], np.int16)


def _decoded(source: InputContainer, lost: list[int]) -> Iterator[AudioFrame]:
    av = import_av()
    try:
        for packet in source.demux(source.streams.audio[0]):
            try:
                yield from packet.decode()
            except av.FFmpegError:
                lost[0] += 1
    except av.FFmpegError:
        lost[0] += 1
