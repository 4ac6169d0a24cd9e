"""Checks that every reader and writer of media files makes first."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from datasets_toolkit.errors import MediaError

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
