"""What is wrong, or worth knowing, with one source video before anything is made of it.

A problem that makes a video useless rejects it; any other one is told beside it in ``sources.parquet``.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from datasets_toolkit.errors import MediaError
from datasets_toolkit.media.images import MAX_PIXELS
from datasets_toolkit.media.opening import check_input, import_av
from datasets_toolkit.media.sound import SourceSound
from datasets_toolkit.recipes.base import Source
from datasets_toolkit.schema import FloatArray

FEWEST = 2
"""Frames that make a video."""
UNEVEN = 0.25
"""A step between two frames that differs from the usual one by more than this share of it is uneven."""
VARIABLE = 0.02
"""Share of uneven steps from which on the frame rate counts as variable."""
OFF_RATE = 0.02
"""How far (relative) the header's rate may be from the rate of the frame times."""
SHIFTED = 0.1
"""Seconds by which sound may begin or end beside the pictures untold."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The times of a video's frames.

    Attributes:
        fps: mean rate: the header's where the times agree with it, else that of the times.
        variable: whether the rate varies.
        problems: what there is to tell.
    """

    fps: Fraction
    variable: bool
    problems: list[str]


def content_hash(path: Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        MediaError: the file is missing, empty, or cannot be read.
    """
    check_input(path, "video")
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise MediaError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return digest.hexdigest()


def check_header(path: Path) -> None:
    """Refuse a video whose header asks for absurd frames, before one of them is decoded.

    Raises:
        MediaError: the header promises frames of more than :data:`datasets_toolkit.media.images.MAX_PIXELS` pixels, or an unknown format.
    """
    av = import_av()
    check_input(path, "video")
    try:
        with av.open(os.path.abspath(path), metadata_errors="replace") as container:
            contexts = [stream.codec_context for stream in container.streams.video]
            sizes = [(context.width, context.height) if context is not None else (0, 0) for context in contexts]
    except av.FFmpegError:
        return  # reading it tells what is wrong
    if any(context is None for context in contexts):
        raise MediaError(f"{path}: its pictures are in a format that cannot be decoded here; re-encode it to mp4")
    for width, height in sizes:
        if width * height > MAX_PIXELS:
            raise MediaError(f"{path}: the header says {width} x {height} pixels, which no camera takes; the file is damaged")


def source_id(source: Source, content: str) -> str:
    """The name of a source in a data set: data set, file stem and eight digits of the content's hash, in ``[a-z0-9-]``."""
    words = f"{source.dataset} {Path(source.source_hint or source.path).stem}".lower()
    slug = re.sub(r"[^a-z0-9]+", "-", words).strip("-")[:80].rstrip("-")
    return f"{slug or 'source'}-{content[:8]}"


def check_times(times: FloatArray, header: Fraction) -> Timing:
    """Judge the frame times (t >= 2, seconds, increasing) against the rate that the header promises."""
    steps = np.diff(times)
    usual = float(np.median(steps))
    uneven = np.abs(steps - usual) > UNEVEN * usual + 0.002  # containers that count milliseconds round every step
    variable = bool(uneven.mean() > VARIABLE)
    problems = []
    if variable:
        low, high = 1000 * np.percentile(steps, [1, 99])
        problems.append(f"variable frame rate: from {low:.0f} to {high:.0f} ms between frames; the true times are kept")
    elif uneven.any():
        problems.append(
            f"uneven frame times: {int(uneven.sum())} frames are missing, late or early, by {1000 * steps.max():.0f} ms at most"
        )
    measured = (len(times) - 1) / (times[-1] - times[0])
    pace = measured if variable else 1 / float(np.mean(steps[~uneven]))
    if abs(float(header) / pace - 1) <= OFF_RATE:
        return Timing(fps=header, variable=variable, problems=problems)
    if not variable:
        problems.append(
            f"wrong rate in the header: {float(header):.3f} frames a second, the frame times say {pace:.3f}; the times are kept"
        )
    return Timing(fps=Fraction(pace).limit_denominator(1001), variable=variable, problems=problems)


def check_sound(sound: SourceSound | None, times: Sequence[float], declared: bool) -> list[str]:
    """Compare the sound with the pictures (times of their first and last frame, seconds); ``declared``: the header tells of a stream."""
    if sound is None:
        return ["no sound: the audio stream cannot be decoded"] if declared else ["no sound"]
    problems = []
    begin, end = sound.start - times[0], sound.end - times[-1]
    if abs(begin) > SHIFTED:
        problems.append(f"shifted sound: begins {abs(begin):.2f} s {'after' if begin > 0 else 'before'} the pictures")
    if end < -max(SHIFTED, 0.02 * (times[-1] - times[0])):
        problems.append(f"short sound: ends {-end:.2f} s before the pictures")
    if not sound.samples.any():
        problems.append("silent: all samples are zero")
    return problems
