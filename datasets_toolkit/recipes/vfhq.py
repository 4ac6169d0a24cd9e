"""VFHQ (Xie et al., "VFHQ: a high-quality dataset and benchmark for video face super-resolution", CVPR workshops 2022).

Metadata: one file a clip, ``meta_info/Clip+<YouTube id>+P<person>+C<clip>+F<first>-<last>.txt``, with lines that begin with ``H``,
``W`` (size of the video that was annotated), ``FPS`` and ``CROP`` (x0, y0, x1, y1 in pixels of that size), values at their end. The
frames used are ``first + 1`` to ``last - 1``.
Videos: the downloads by their YouTube id (``<id>.mp4``, ``.webm`` or ``.mkv``), or clips cut by a downloader,
``Clip+<id>+P<person>+C<clip>.mp4``. The data set's own tool leaves folders of pictures instead, which carry neither times nor sound.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from datasets_toolkit.media.video import VideoInfo
from datasets_toolkit.recipes.base import (
    BOX,
    REGION,
    SPAN,
    YOUTUBE,
    About,
    Discovery,
    Recipe,
    RecipeError,
    Source,
    drop_duplicates,
    join_people,
    sort_out,
)
from datasets_toolkit.recipes.files import Probes, VideoIndex, check_root, frame_rate, pixel_box, read_text, too_short, walk

LICENCE = "videos of their owners on YouTube; research only, see the data set's page"
LENGTH_SLACK = 0.25
"""Seconds by which a cut clip may be longer or shorter than promised; where frame numbers were taken at another rate it is far more."""
_NAME = re.compile(r"^Clip\+(?P<youtube>.+)\+P(?P<person>\d+)\+C(?P<clip>\d+)\+F(?P<first>\d+)-(?P<last>\d+)$")


@dataclass(frozen=True, kw_only=True)
class _Clip:
    name: str
    youtube: str
    person: int
    number: int
    first: int
    last: int
    width: int
    height: int
    rate: str  # as annotated
    crop: tuple[float, float, float, float]

    @property
    def region(self) -> tuple[float, float, float, float]:
        """The face region (x0, y0, x1, y1) as shares of width and height."""
        x0, y0, x1, y1 = self.crop
        return x0 / self.width, y0 / self.height, x1 / self.width, y1 / self.height

    def span(self, file: Fraction | None) -> tuple[float, float]:
        """Start and end in seconds of the original video, given the rate of a download of it, if there is one."""
        rate = frame_rate(self.rate, file)
        return float((self.first + 1) / rate), float(self.last / rate)


class VFHQ(Recipe):
    """Stretches of the downloaded videos, or the clips cut from them.

    Frame numbers count in the annotated frame rate, which is often not the one of today's download: a clip that was cut by frame
    numbers then shows another moment, and its sound does not fit. Downloads are addressed by seconds instead, and a cut clip whose
    length is not the promised one is told as broken.

    Args:
        prefer_clips: take cut clips where both are there.
    """

    name = "vfhq"
    about = About(
        title="VFHQ: 16,000 clips of interviews (Xie et al., CVPR workshops 2022)",
        layout=(
            "ROOT/**/meta_info/Clip+<YouTube id>+P<person>+C<clip>+F<first>-<last>.txt",
            "ROOT/**/<YouTube id>.{mp4,webm,mkv}  downloads",
            "ROOT/**/Clip+<YouTube id>+P<person>+C<clip>.mp4  clips",
        ),
        defects=(
            "Annotated frame rates are damaged or not those of today's downloads: these are addressed by seconds.",
            "Cut clips of another length than promised are told as broken.",
            "Folders of pictures have neither times nor sound: they are told as broken.",
        ),
        page="https://liangbinxie.github.io/projects/vfhq/",
        licence=LICENCE,
    )

    def __init__(self, prefer_clips: bool = False) -> None:
        self.prefer_clips = prefer_clips

    def discover(self, root: Path) -> Discovery:
        """List the clips below ``root``, which holds ``meta_info`` and the videos.

        Raises:
            RecipeError: ``root`` is no folder, or holds no metadata of this data set.
        """
        root = check_root(root, "VFHQ")
        pictures: set[str] = set()
        index = VideoIndex(root, lambda name: _remember(name, pictures))
        probes = Probes()
        found = walk(root, lambda name: _NAME.match(name) is not None)
        listed = [path for path in found if path.suffix == ".txt" and path.name.startswith("Clip+")]
        sources, broken = sort_out((path.stem, self._checked(path, index, probes, pictures)) for path in listed)
        if not listed:
            raise RecipeError(f"{root}: no Clip+*.txt of VFHQ here; unpack meta_info.zip into this folder")
        sources, doubles = drop_duplicates(join_people(sources))
        return Discovery(sources=sources, expected=len(listed), broken=[*broken, *doubles], notes=list(_notes(sources)), dataset=self.name)

    def _checked(self, path: Path, index: VideoIndex, probes: Probes, pictures: set[str]) -> Source | str:
        clip = _read(path)
        return clip if isinstance(clip, str) else self._source(clip, index, probes, pictures)

    def _source(self, clip: _Clip, index: VideoIndex, probes: Probes, pictures: set[str]) -> Source | str:
        raw, reason = index.find(clip.youtube)
        cut, _ = index.find(clip.name, f"Clip+{clip.youtube}+P{clip.person}+C{clip.number}")
        info = probes(raw) if raw else reason
        if cut and (self.prefer_clips or isinstance(info, str)):
            return _from_cut(clip, cut, probes(cut))
        if not isinstance(info, str) and raw:
            return _from_download(clip, raw, info)
        if clip.name in pictures:
            return "pictures: only extracted frames are there, without times and sound; use the downloaded video"
        return str(info)


def _remember(name: str, pictures: set[str]) -> bool:
    if _NAME.match(name):
        pictures.add(name)  # a folder of one clip's pictures: hundreds of files that need no look
        return True
    return False


def _read(path: Path) -> _Clip | str:
    fields: dict[str, list[str]] = {}
    for line in read_text(path).splitlines():
        match = re.match(r"\s*(FPS|CROP|H|W)\b(.*)", line)
        if match:
            fields[match[1]] = re.split(r"[\s,:]+", match[2].strip())
    name = _NAME.match(path.stem)
    try:
        if name is None:
            raise ValueError("the file's name has not the form Clip+<id>+P<n>+C<n>+F<n>-<n>")
        x0, y0, x1, y1 = (float(value) for value in fields["CROP"][-4:])
        clip = _Clip(
            name=path.stem,
            youtube=name["youtube"],
            person=int(name["person"]),
            number=int(name["clip"]),
            first=int(name["first"]),
            last=int(name["last"]),
            width=int(fields["W"][-1]),
            height=int(fields["H"][-1]),
            rate=fields["FPS"][-1],
            crop=(x0, y0, x1, y1),
        )
        if clip.span(None)[1] <= clip.span(None)[0] or min(clip.width, clip.height) <= 0:
            raise ValueError("it has no frames or no pixels")
    except KeyError as error:
        return f"metadata: {path.name} has no line {error.args[0]}"
    except (ValueError, ZeroDivisionError) as error:
        return f"metadata: {path.name} cannot be understood ({error})"
    return clip


def _from_download(clip: _Clip, path: Path, info: VideoInfo) -> Source | str:
    start, end = clip.span(info.fps)
    x0, y0, x1, y1 = clip.region
    box = pixel_box((x0 * info.width, y0 * info.height, x1 * info.width, y1 * info.height), info)
    meta = {} if frame_rate(clip.rate, info.fps) == info.fps else {"rate": f"annotated at {clip.rate}, downloaded at {info.fps}"}
    return too_short(info, end) or _made(clip, path, start, end, {**meta, SPAN: f"{start} {end}", **({BOX: box} if box else {})})


def _from_cut(clip: _Clip, path: Path, info: VideoInfo | str) -> Source | str:
    if isinstance(info, str):
        return info
    start, end = clip.span(info.fps)
    if info.duration is not None and abs(info.duration - (end - start)) > max(LENGTH_SLACK, 2.5 / float(info.fps)):
        return f"length: {info.duration:.2f} s instead of {end - start:.2f} s, cut by frame numbers of another rate or cut short"
    return _made(clip, path, None, None, {SPAN: f"{start} {end}", "face": f"P{clip.person}"})


def _made(clip: _Clip, path: Path, start: float | None, end: float | None, meta: dict[str, str]) -> Source:
    meta = {YOUTUBE: clip.youtube, REGION: " ".join(f"{value:.4f}" for value in clip.region), **meta}
    return Source(path=str(path), source_hint=clip.name, dataset="vfhq", start=start, end=end, licence=LICENCE, meta=meta)


def _notes(sources: list[Source]) -> Iterator[str]:
    other = sum("rate" in source.meta for source in sources)
    if other:
        yield f"{other} clips: the download has another frame rate than was annotated; they are addressed by seconds, not by frame numbers"
