"""TalkingHead-1KH (Wang et al., "One-shot free-view neural talking-head synthesis for video conferencing", CVPR 2021).

Metadata: ``data_list/<split>_video_tubes.txt``, a clip a line: ``<chunk>,H,W,S,E,L,T,R,B``: size of the video that was annotated, first
and last frame of the chunk, and the face region in pixels of that size. A chunk is ``<YouTube id>_<minute:04d>``.
Videos: ``<split>/1min_clips/<chunk>.mp4`` and ``<split>/cropped_clips/<chunk>_S<S>_E<E>_L<L>_T<T>_R<R>_B<B>.mp4``.
Splits: ``train``, ``val``, and ``small`` for a trial. Neither kind of clip carries sound: the data set's tool downloads pictures only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from datasets_toolkit.errors import MediaError
from datasets_toolkit.recipes.base import (
    BOX,
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
from datasets_toolkit.recipes.files import Probes, VideoIndex, check_root, first_time, pixel_box, read_text, too_short

LICENCE = "CC BY 3.0 (videos), as their authors chose on YouTube"
SPLITS = {"train": "train", "val": "val", "small": None}
_CUT = re.compile(r"^(?P<chunk>.+_\d{4})_S(?P<S>\d+)_E(?P<E>\d+)_L(?P<L>\d+)_T(?P<T>\d+)_R(?P<R>\d+)_B(?P<B>\d+)$")
_CHUNK = re.compile(r"^(?P<youtube>.+)_(?P<minute>\d{4})$")


@dataclass(frozen=True, kw_only=True)
class _Tube:
    chunk: str
    size: tuple[int, int] | None  # height and width that were annotated
    frames: tuple[int, int]
    box: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        left, top, right, bottom = self.box
        return f"{self.chunk}_S{self.frames[0]}_E{self.frames[1]}_L{left}_T{top}_R{right}_B{bottom}"


class TalkingHead1KH(Recipe):
    """The cropped clips, or stretches of the one-minute chunks where a clip is missing.

    Chunks are cut without resetting their clock: the first frame of the second chunk is at 60 s. Frame numbers of a clip count from
    the chunk's first frame, so they are turned into seconds of that clock. Cropped clips keep the clock too, which does no harm.

    Args:
        prefer_chunks: take the stretch of the chunk where both are there: it shows what lies around the face region.
    """

    name = "talkinghead1kh"
    about = About(
        title="TalkingHead-1KH: 500,000 clips from YouTube (Wang et al., CVPR 2021)",
        layout=(
            "ROOT/data_list/{train,val,small}_video_tubes.txt",
            "ROOT/{train,val,small}/1min_clips/<YouTube id>_<minute:04d>.mp4  chunks",
            "ROOT/{train,val,small}/cropped_clips/<chunk>_S<S>_E<E>_L<L>_T<T>_R<R>_B<B>.mp4  clips",
        ),
        defects=(
            "Chunks and clips keep the clock of what they were cut from: frame numbers become seconds of that clock.",
            "Missing clips are taken from their chunks.",
            "A video that lies in two splits loses its split.",
        ),
        page="https://github.com/tcwang0509/TalkingHead-1KH",
        licence=LICENCE,
    )

    def __init__(self, prefer_chunks: bool = False) -> None:
        self.prefer_chunks = prefer_chunks

    def discover(self, root: Path) -> Discovery:
        """List the clips below ``root``, which holds ``data_list`` and the folders of the splits.

        Raises:
            RecipeError: ``root`` is no folder, or holds no part of this data set.
        """
        root = check_root(root, "TalkingHead-1KH")
        sources: list[Source] = []
        broken: list[tuple[str, str]] = []
        expected, notes = 0, []
        for split in SPLITS:
            index, probes = VideoIndex(root / split), Probes()
            listed = root / "data_list" / f"{split}_video_tubes.txt"
            if not listed.is_file() and not (root / split).is_dir():
                continue
            tubes, unread = _listed(listed) if listed.is_file() else (_named(index), [])
            if not listed.is_file():
                notes.append(f"{split}: data_list/{listed.name} is not there, so what is missing cannot be told")
            expected += len(tubes) + len(unread) if listed.is_file() else 0
            broken += unread
            found, unusable = sort_out([(tube.name, self._source(tube, split, index, probes)) for tube in tubes])
            sources += found
            broken += unusable
        if not sources and not broken:
            raise RecipeError(f"{root}: neither data_list/*_video_tubes.txt nor cropped clips lie here; give TalkingHead-1KH's folder")
        sources, doubles = drop_duplicates(_without_leaks(join_people(sources), notes))
        return Discovery(sources=sources, expected=expected or None, broken=[*broken, *doubles], notes=notes, dataset=self.name)

    def _source(self, tube: _Tube, split: str, index: VideoIndex, probes: Probes) -> Source | str:
        cut, reason = index.find(tube.name)
        chunk, missing = index.find(tube.chunk)
        if chunk and tube.size and (self.prefer_chunks or cut is None):
            return _from_chunk(tube, split, chunk, probes)
        if cut is None:
            return reason if chunk or not reason.startswith("missing") else missing
        info = probes(cut)
        return info if isinstance(info, str) else _made(tube, split, cut, None, None, {})


def _from_chunk(tube: _Tube, split: str, path: Path, probes: Probes) -> Source | str:
    info = probes(path)
    if isinstance(info, str) or tube.size is None:
        return str(info)
    try:
        offset = first_time(path)
    except MediaError as error:
        return f"unreadable: {error}"
    start, end = offset + float(tube.frames[0] / info.fps), offset + float((tube.frames[1] + 1) / info.fps)
    down, across = info.height / tube.size[0], info.width / tube.size[1]
    left, top, right, bottom = tube.box
    box = pixel_box((left * across, top * down, right * across, bottom * down), info)
    return too_short(info, end, offset) or _made(tube, split, path, start, end, {BOX: box} if box else {})


def _made(tube: _Tube, split: str, path: Path, start: float | None, end: float | None, meta: dict[str, str]) -> Source:
    chunk = _CHUNK.match(tube.chunk)
    meta = {YOUTUBE: chunk["youtube"] if chunk else tube.chunk, **meta}
    return Source(
        path=str(path),
        source_hint=tube.name,
        dataset="talkinghead1kh",
        start=start,
        end=end,
        split=SPLITS[split],
        licence=LICENCE,
        meta=meta,
    )


def _listed(path: Path) -> tuple[list[_Tube], list[tuple[str, str]]]:
    """The tubes of a list, and the lines that are none."""
    tubes: list[_Tube] = []
    broken: list[tuple[str, str]] = []
    for number, line in enumerate(filter(str.strip, read_text(path).splitlines()), 1):
        try:
            chunk, *rest = line.strip().split(",")
            height, width, first, last, left, top, right, bottom = map(int, rest)
            if min(height, width) <= 0 or last < first:
                raise ValueError
            tubes.append(_Tube(chunk=chunk, size=(height, width), frames=(first, last), box=(left, top, right, bottom)))
        except ValueError:
            broken.append((f"{path.name} line {number}", "metadata: not of the form <chunk>,H,W,S,E,L,T,R,B"))
    return tubes, broken


def _named(index: VideoIndex) -> list[_Tube]:
    """The tubes that cropped clips tell by their names."""
    found = [match for match in map(_CUT.match, index.names()) if match]
    return [
        _Tube(
            chunk=match["chunk"],
            size=None,
            frames=(int(match["S"]), int(match["E"])),
            box=(int(match["L"]), int(match["T"]), int(match["R"]), int(match["B"])),
        )
        for match in found
    ]


def _without_leaks(sources: list[Source], notes: list[str]) -> list[Source]:
    """Sources whose video appears in several splits lose theirs."""
    splits: dict[str, set[str | None]] = {}
    for source in sources:
        splits.setdefault(source.meta[YOUTUBE], set()).add(source.split)
    leaks = {video for video, found in splits.items() if len(found - {None}) > 1}
    if leaks:
        notes.append(f"{len(leaks)} videos lie in two splits of the data set; their clips lost the split")
    return [replace(source, split=None) if source.meta[YOUTUBE] in leaks else source for source in sources]
