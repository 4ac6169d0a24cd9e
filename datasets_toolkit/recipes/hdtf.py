"""HDTF (Zhang et al., "Flow-guided one-shot talking face generation with a high-resolution audio-visual dataset", CVPR 2021).

Metadata, three times (RD, WDA, WRA), fields separated by blanks:
    ``*_video_url.txt``      name, address
    ``*_annotion_time.txt``  name.mp4, then mm:ss-mm:ss for each clip
    ``*_crop_wh.txt``        name_<clip>.mp4, left, width, top, height of the face region
    ``*_resolution.txt``     name.mp4, lines of the picture that the region was drawn on
Videos: ``_videos_raw/<set>_<name>.mp4`` and clips ``<set>_<name>_<clip:03d>.mp4`` (the downloader), or ``<name>.mp4`` and
``<name>_<clip>.mp4`` (by hand, as the data set's page describes).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlparse

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
from datasets_toolkit.recipes.files import Probes, VideoIndex, check_root, pixel_box, read_text, too_short, walk

SUBSETS = ("RD", "WDA", "WRA")
_CLIP = re.compile(r"^(?P<set>RD|WDA|WRA)_(?P<video>.+)_(?P<clip>\d{3})$")
LICENCE = "videos of their owners on YouTube; the data set's page states no terms"


@dataclass(frozen=True, kw_only=True)
class _Clip:
    subset: str
    video: str
    number: int
    youtube: str
    span: str  # as annotated
    crop: tuple[int, ...]  # left, width, top, height; empty where it is missing
    lines: int  # 0 where it is unknown

    @property
    def name(self) -> str:
        return f"{self.subset}_{self.video}_{self.number:03d}"


class HDTF(Recipe):
    """Stretches of the downloaded videos, or the clips cut from them.

    The region of a clip holds for the annotated number of lines only; it is scaled to the file at hand. A clip that the downloader cut
    from a video of another size shows the wrong region: then the download is used.

    Args:
        prefer_clips: take cut clips where both are there. They are faster to read, but have lost what lies around the face region.
    """

    name = "hdtf"
    about = About(
        title="HDTF: 362 videos of speakers, 720 or 1080 lines (Zhang et al., CVPR 2021)",
        layout=(
            "ROOT/**/{RD,WDA,WRA}_{video_url,annotion_time,crop_wh,resolution}.txt",
            "ROOT/**/<set>_<name>.mp4 or <name>.mp4  downloads",
            "ROOT/**/<set>_<name>_<clip:03d>.mp4 or <name>_<clip>.mp4  clips",
        ),
        defects=(
            "Face regions hold for the annotated number of lines only: they are scaled to the file at hand.",
            "Clips that were cut from a download of another size show the wrong region: the download is used.",
            "15 clips without a region are left out, and one video annotated with 0 lines loses its region.",
            "One YouTube video goes under two names: one person, and the second copy is a duplicate.",
        ),
        page="https://github.com/MRzzm/HDTF",
        licence=LICENCE,
    )

    def __init__(self, prefer_clips: bool = False) -> None:
        self.prefer_clips = prefer_clips

    def discover(self, root: Path) -> Discovery:
        """List the clips below ``root``, which holds the videos and the metadata.

        Raises:
            RecipeError: ``root`` is no folder, or holds neither metadata nor clips of this data set.
        """
        root = check_root(root, "HDTF")
        clips, index = list(_clips(root)), VideoIndex(root)
        if not clips:
            return _without_metadata(root, index)
        probes = Probes()
        sources, broken = sort_out((clip.name, self._source(clip, index, probes)) for clip in clips)
        sources, doubles = drop_duplicates(join_people(sources))
        notes = list(_notes(sources))
        return Discovery(sources=sources, expected=len(clips), broken=[*broken, *doubles], notes=notes, dataset=self.name)

    def _source(self, clip: _Clip, index: VideoIndex, probes: Probes) -> Source | str:
        if not clip.crop:
            return "no region: the metadata give no face region (the data set's own tool leaves this clip out)"
        try:
            start, end = (_seconds(time) for time in clip.span.split("-"))
        except ValueError:
            return f"metadata: {clip.span!r} is no stretch of time"
        left, width, top, height = (value / (clip.lines or 1) for value in clip.crop)
        region = (left, top, left + width, top + height)
        meta = {SPAN: f"{start} {end}", REGION: " ".join(f"{value:.4f}" for value in region)}
        meta |= {YOUTUBE: clip.youtube} if clip.youtube else {}
        raw, reason = index.find(f"{clip.subset}_{clip.video}", clip.video)
        cut, _ = index.find(clip.name, f"{clip.subset}_{clip.video}_{clip.number}", f"{clip.video}_{clip.number}")
        info = probes(raw) if raw else reason
        resized = not isinstance(info, str) and bool(clip.lines) and info.height != clip.lines
        if resized:
            meta["scaled"] = "yes"
        if cut and (isinstance(info, str) or (self.prefer_clips and not resized)):
            checked = not isinstance(info, str)
            return self._made(clip, cut, None, None, meta if checked else {**meta, "unchecked": "yes"})
        if raw is None or isinstance(info, str):
            return info if isinstance(info, str) else reason
        short = too_short(info, end)
        if short:
            return short
        x0, y0, x1, y1 = (value * info.height for value in region)
        box = pixel_box((x0, y0, x1, y1), info) if clip.lines else None
        return self._made(clip, raw, start, end, {**meta, BOX: box} if box else meta)

    def _made(self, clip: _Clip, path: Path, start: float | None, end: float | None, meta: dict[str, str]) -> Source:
        who = "" if clip.subset == "RD" else f"hdtf-{clip.video.rstrip('0123456789').lower()}"
        return Source(
            path=str(path), source_hint=clip.name, dataset=self.name, person=who, start=start, end=end, licence=LICENCE, meta=meta
        )


def _clips(root: Path) -> Iterator[_Clip]:
    tables = {path.name: path for path in walk(root) if path.suffix == ".txt" and path.name.split("_")[0] in SUBSETS}
    for subset in SUBSETS:
        if f"{subset}_annotion_time.txt" not in tables:
            continue
        times, crops, lines, addresses = (
            _table(tables.get(f"{subset}_{kind}.txt")) for kind in ("annotion_time", "crop_wh", "resolution", "video_url")
        )
        for video, spans in times.items():
            for number, span in enumerate(spans):
                crop = tuple(int(value) for value in crops.get(f"{video}_{number}", ()) if value.isdigit())
                yield _Clip(
                    subset=subset,
                    video=video,
                    number=number,
                    youtube=_youtube(next(iter(addresses.get(video, ())), "")),
                    span=span,
                    crop=crop if len(crop) == 4 else (),
                    lines=int(next((value for value in lines.get(video, ()) if value.isdigit()), 0)),
                )


def _table(path: Path | None) -> dict[str, list[str]]:
    """Rows by their first field without ``.mp4``."""
    rows = [line.split() for line in read_text(path).splitlines()] if path else []
    return {row[0].removesuffix(".mp4"): row[1:] for row in rows if row}


def _youtube(address: str) -> str:
    return parse_qs(urlparse(address).query).get("v", [""])[0]


def _seconds(time: str) -> float:
    """Seconds of ``ss``, ``mm:ss`` or ``hh:mm:ss``."""
    total = 0.0
    for part in time.split(":"):
        total = 60 * total + float(part)
    return total


def _notes(sources: list[Source]) -> Iterator[str]:
    scaled = sum("scaled" in source.meta for source in sources)
    if scaled:
        yield f"{scaled} clips: the download has another number of lines than the face region was drawn on; the region was scaled"
    unchecked = sum("unchecked" in source.meta for source in sources)
    if unchecked:
        yield f"{unchecked} clips without their download: whether they were cut with a region for another size cannot be told"
    blind = sum(BOX not in source.meta and source.start is not None for source in sources)
    if blind:
        yield f"{blind} clips: the number of lines is not annotated, so the face region is not known"


def _without_metadata(root: Path, index: VideoIndex) -> Discovery:
    sources: list[Source] = []
    broken: list[tuple[str, str]] = []
    for name in index.names():
        match = _CLIP.match(name)
        if match:
            path, reason = index.find(name)
            who = "" if match["set"] == "RD" else f"hdtf-{match['video'].rstrip('0123456789').lower()}"
            if path:
                sources.append(Source(path=str(path), source_hint=name, dataset="hdtf", person=who or f"hdtf-{match['video'].lower()}"))
            else:
                broken.append((name, reason))
    if not sources and not broken:
        raise RecipeError(f"{root}: neither HDTF's *_annotion_time.txt nor its clips lie here; give the folder that holds them")
    notes = ["no metadata: what is missing cannot be told, nor which clips come from one video"]
    return Discovery(sources=drop_duplicates(sources)[0], expected=None, broken=broken, notes=notes, dataset="hdtf")
