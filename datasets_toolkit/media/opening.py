"""What every reader and writer of media files does first."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from datasets_toolkit.errors import MediaError

if TYPE_CHECKING:
    from av.container import InputContainer

# How swscale converts between RGB and YUV: bicubic, full chroma in and out, accurate rounding (its default shortcut darkens by more
# than one level in 255). These are the numbers of its header; PyAV names them from version 18 on only.
EXACT_SCALING = 0x4 | 0x2000 | 0x4000 | 0x40000


class MediaWarning(UserWarning):
    """A file is damaged or cut short; what could be decoded was used."""


def import_av() -> ModuleType:
    """PyAV, on first use: whatever needs no video also runs on machines without it.

    Raises:
        MediaError: PyAV is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MediaError(f"videos cannot be read or written, PyAV is missing ({error}); install it with: pip install av") from error
    return av


def check_input(path: Path, kind: str) -> None:
    """Raise unless ``path`` is a file with something in it; ``kind`` ("video", "image") says what it should have been.

    Raises:
        MediaError: nothing is there, or a folder, or an empty file.
    """
    if path.is_dir():
        raise MediaError(f"{path}: is a folder; give one {kind} file")
    if not path.exists():
        raise MediaError(f"{path}: no such {kind} file; check the path")
    if path.stat().st_size == 0:
        raise MediaError(f"{path}: this {kind} file is empty; copy or download it again")


def open_sound(path: Path) -> InputContainer:
    """A file with sound, open for reading; the caller closes it.

    Raises:
        MediaError: the file is missing, empty, unreadable or without sound.
    """
    av = import_av()
    check_input(path, "sound")
    try:
        source = av.open(os.path.abspath(path), metadata_errors="replace")
    except av.FFmpegError as error:
        raise MediaError(f"{path}: no sound can be read from this file ({error.strerror}); convert it to wav or mp4") from error
    if not source.streams.audio:
        source.close()
        raise MediaError(f"{path}: this file has no sound; leave the audio source away or give another")
    return source
