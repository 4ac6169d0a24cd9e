"""What the recipes ask of files: which are whole, how long and how large a video is, and what a number of frames means in seconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

from datasets_toolkit.errors import MediaError
from datasets_toolkit.media.video import VideoInfo, probe, read_frames
from datasets_toolkit.recipes.base import RecipeError

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts")
UNFINISHED = (".part", ".ytdl", ".tmp", ".temp", ".crdownload", ".download", ".partial", ".aria2")
"""Endings that downloaders give to files they have not finished."""
SLACK = 0.5
"""Seconds that a file may end before the stretch asked of it: containers round, and the last frame is shown for a while."""


def check_root(root: Path, dataset: str) -> Path:
    """``root`` as an absolute path.

    Raises:
        RecipeError: it is no folder.
    """
    if not root.is_dir():
        raise RecipeError(f"{root}: no such folder; give the folder that holds {dataset}")
    return root.absolute()


def read_text(path: Path) -> str:
    """A metadata file as text (UTF-8, a byte order mark is dropped).

    Raises:
        RecipeError: it cannot be read or is not text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: this metadata file cannot be read ({error}); download it again") from error


def file_problem(path: Path) -> str | None:
    """Why a file cannot be a whole video, by its name and size alone; None if nothing speaks against it."""
    if not path.is_file():
        return "missing: no such file"
    if path.suffix.lower() in UNFINISHED:
        return f"unfinished: {path.name} is a download that was cut off"
    if path.stat().st_size == 0:
        return f"empty: {path.name} has no bytes"
    return None


def walk(folder: Path, skip: Callable[[str], bool] = lambda name: False) -> Iterator[Path]:
    """Files below ``folder`` in a fixed order; hidden ones, and folders whose name ``skip`` holds for, are passed over."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not skip(name))
        yield from (Path(place) / name for name in sorted(files) if not name.startswith("."))


def is_video(path: Path) -> bool:
    """Whether the name is one of a video, finished or not."""
    return path.suffix.lower() in (*VIDEO_SUFFIXES, *UNFINISHED)


class VideoIndex:
    """The videos of a folder by name, whatever their container.

    Downloaders append to the name: ``x.mp4.webm`` where the container was not the one asked for, ``x.f137.mp4`` for pictures whose
    sound was not merged in, ``x.mp4.part`` for what was cut off. Whatever stands before the first dot is the name.
    """

    def __init__(self, folder: Path, skip: Callable[[str], bool] = lambda name: False) -> None:
        self._files: dict[str, list[Path]] = {}
        for path in walk(folder, skip):
            if is_video(path):
                self._files.setdefault(path.name.split(".")[0], []).append(path)

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._files)

    def find(self, *names: str) -> tuple[Path | None, str]:
        """The first whole file that has one of ``names``, else None and why there is none."""
        reason = "missing: not downloaded"
        for name in names:
            for path in self._files.get(name, []):
                problem = file_problem(path)
                if problem is None and any(part[:1] == "f" and part[1:].isdigit() for part in path.name.split(".")[1:-1]):
                    problem = f"unfinished: {path.name} was never merged with its sound"
                if problem is None:
                    return path, ""
                reason = problem
        return None, reason


class Probes:
    """Headers of videos, each read once."""

    def __init__(self) -> None:
        self._known: dict[Path, VideoInfo | str] = {}

    def __call__(self, path: Path) -> VideoInfo | str:
        """What a viewer sees of the video, or the reason why it is broken."""
        if path not in self._known:
            try:
                self._known[path] = probe(path)
            except MediaError as error:
                self._known[path] = f"unreadable: {error}"
        return self._known[path]


def first_time(path: Path) -> float:
    """Presentation time of the first frame, seconds: not zero where a tool has cut a video and kept its clock.

    Raises:
        MediaError: the video cannot be read.
    """
    return next(frame.time for frame in read_frames(path, limit=1))


def too_short(info: VideoInfo, end: float, offset: float = 0.0) -> str | None:
    """The reason why a stretch that ends at ``end`` (seconds, on a clock that starts at ``offset``) is not in the file, if so."""
    if info.duration is None or end <= offset + info.duration + SLACK:
        return None
    return f"too short: the file ends at {offset + info.duration:.1f} s, the clip at {end:.1f} s"


def frame_rate(annotated: str, file: Fraction | None) -> Fraction:
    """The rate in which annotated frame numbers count, from its text and the rate of the file at hand (None where there is none).

    Metadata often hold a damaged rate: ``30`` or ``29`` for 30000/1001, or ``30000`` where the denominator was dropped. A rate within
    one frame per second of the file's is the file's; one that differs by more belongs to another download of the video, whose frame
    numbers mean other frames here, so that only seconds carry over.

    Raises:
        ValueError: the text is no positive rate.
    """
    rate = Fraction(annotated)
    if rate >= 1000:
        rate = Fraction(int(rate), 1001 if rate % 1000 == 0 and int(rate) in (24000, 30000, 60000, 120000) else 1000)
    if rate <= 0:
        raise ValueError(f"{annotated} is no frame rate")
    return file if file is not None and abs(rate - file) < 1 else rate


def pixel_box(box: tuple[float, float, float, float], info: VideoInfo) -> str | None:
    """A box (x0, y0, x1, y1, pixels of the file) as text, cut to the picture; None where nothing of it is left."""
    x0, y0, x1, y1 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], info.width), min(box[3], info.height)
    return f"{x0:.1f} {y0:.1f} {x1:.1f} {y1:.1f}" if x1 > x0 and y1 > y0 else None
