"""Small videos with a known story, and small builds of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from datasets_toolkit.build.config import BuildConfig, load_config
from datasets_toolkit.build.executors import Executor, LocalExecutor
from datasets_toolkit.build.run import Summary, build
from datasets_toolkit.media.video import VideoWriter
from datasets_toolkit.recipes.base import Source
from datasets_toolkit.schema import ByteImage

SIDE = 208
SMALL = ("size=64", "policy=null", "shard_samples=5")
"""Settings of a quick build."""


def face_picture(astronaut: ByteImage, side: int = SIDE) -> ByteImage:
    """Head and shoulders; the face is about a third of the side."""
    part = astronaut[:288, 80:368]
    return np.asarray(cv2.resize(part, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def talking(picture: ByteImage, frames: int, shift: int = 2) -> list[ByteImage]:
    """A picture that moves sideways by so many pixels a frame, its border repeated."""
    matrices = (np.array([[1.0, 0, shift * number], [0, 1, 0]]) for number in range(frames))
    size = picture.shape[1::-1]
    return [np.asarray(cv2.warpAffine(picture, matrix, size, borderMode=cv2.BORDER_REPLICATE), np.uint8) for matrix in matrices]


def blank(number: int, side: int = SIDE) -> ByteImage:
    """A wall without a face; each number has another brightness."""
    return np.full((side, side, 3), 90 + number % 20, np.uint8)


def write_video(path: Path, frames: Sequence[ByteImage], fps: Fraction = Fraction(25)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps, frames[0].shape[1::-1]) as video:
        for frame in frames:
            video.write(frame)
    return path


def source(path: Path, person: str = "", split: str | None = None) -> Source:
    return Source(path=str(path), source_hint=path.name, dataset="tiny", person=person, split=split)


def small_build(
    sources: Sequence[Source],
    out: Path | str,
    *words: str,
    executor: Executor | None = None,
    make: Callable[[], Executor] = lambda: LocalExecutor(0),
    **options: object,
) -> Summary:
    """A build in this process unless another executor is given."""
    config: BuildConfig = load_config(None, [*SMALL, *words])
    if executor is not None:
        return build(sources, config, str(out), executor=executor, **options)  # type: ignore[arg-type]
    with make() as made:
        return build(sources, config, str(out), executor=made, **options)  # type: ignore[arg-type]


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of all files of a data set besides its work folder."""
    files = [path for path in sorted(out.rglob("*")) if path.is_file()]
    names = {path: path.relative_to(out).as_posix() for path in files}
    kept = [path for path in files if not names[path].startswith(("work/", ".building"))]
    return {names[path]: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Number and time of change of all files: a file that is written anew has another one."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".building"]
    return {path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}
