"""Checks that every reader and writer of media files makes first."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from datasets_toolkit.errors import MediaError


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


def exact_scaling() -> int:
    """Flags for PyAV's conversions between RGB and YUV; the default shortcut of swscale darkens by more than one level in 255."""
    from av.video.reformatter import Interpolation

    return Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
