"""What a data set's own tools leave on disk, told as a list of source videos.

A recipe knows one layout. It reads names and metadata files, looks at each file's size and, where a box or a range of frames must be
brought to the file's own pixels or times, at its header; it never decodes a video to the end and never changes anything on disk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from datasets_toolkit.errors import UserError

YOUTUBE = "youtube"
"""Key of :attr:`Source.meta`: the id of the YouTube video that a source was cut from; :func:`join_people` reads it."""
BOX = "box"
"""Key of :attr:`Source.meta`: ``x0 y0 x1 y1`` of the annotated face region in pixels of the file at ``path``."""
REGION = "region"
"""Key of :attr:`Source.meta`: the annotated face region as ``x0 y0 x1 y1`` in the data set's own units, to compare within it."""
SPAN = "span"
"""Key of :attr:`Source.meta`: ``start end``, seconds of the original video, also where ``path`` is a clip cut from it."""


class RecipeError(UserError):
    """A folder does not have the layout that the recipe reads, or a metadata file in it is damaged."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One video, or one stretch of it, that a data set offers.

    Attributes:
        path: of the video file.
        source_hint: a readable name, unique within the data set.
        dataset: name of the data set.
        person: who is seen, '' where the layout does not tell; sources that share a person belong into one split.
        start: seconds on the clock of the file at which the stretch begins; None for its beginning.
        end: seconds at which it ends; None for the file's end.
        split: 'train', 'val' or 'test' where the data set says so.
        licence: terms that the data set's owner states, in a few words.
        meta: further facts by name, such as :data:`YOUTUBE` and :data:`BOX`.
    """

    path: str
    source_hint: str
    dataset: str
    person: str = ""
    start: float | None = None
    end: float | None = None
    split: str | None = None
    licence: str = ""
    meta: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """What a recipe found.

    Attributes:
        sources: what can be used, sorted by path, start and name.
        expected: how many sources the metadata files promise; None where there are none.
        broken: (name, reason) of what cannot be used; a reason reads ``kind: details``.
        notes: what was put right or could not be known, a sentence each.
        dataset: name of the data set.
    """

    sources: list[Source]
    expected: int | None
    broken: list[tuple[str, str]]
    notes: list[str] = field(default_factory=list)
    dataset: str = ""


@dataclass(frozen=True, kw_only=True)
class About:
    """What to know of a data set before its recipe is used.

    Attributes:
        title: the data set in a few words.
        layout: files and folders that the recipe reads, a line each.
        defects: known defects that it handles, a sentence each.
        page: where the data are to be had.
        licence: terms of the data.
    """

    title: str
    layout: tuple[str, ...]
    defects: tuple[str, ...]
    page: str
    licence: str


class Recipe(ABC):
    """Reads one layout. The arguments of a recipe's constructor are its options; each has a default, and a line in ``Args``."""

    name: ClassVar[str]
    about: ClassVar[About]

    @abstractmethod
    def discover(self, root: Path) -> Discovery:
        """List what lies below ``root``.

        Raises:
            RecipeError: ``root`` is no folder, or nothing in it looks like this data set.
        """


def coverage(discovery: Discovery) -> str:
    """A table of plain text: how many sources were promised, found and broken, with the reasons."""
    found, broken = len(discovery.sources), len(discovery.broken)
    promised = "unknown" if discovery.expected is None else str(discovery.expected)
    rows = [("expected", promised, ""), ("found", str(found), _share(found, discovery.expected)), ("broken", str(broken), "")]
    kinds: dict[str, list[str]] = {}
    for name, reason in discovery.broken:
        kinds.setdefault(reason.split(":")[0], []).append(name)
    for kind, names in sorted(kinds.items(), key=lambda item: (-len(item[1]), item[0])):
        rows.append((f"  {kind}", str(len(names)), ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")))
    people = Counter(source.person for source in discovery.sources)
    rows.append(("people", str(len(people) - ("" in people)), f"{people['']} sources without" if people[""] else ""))
    first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"{one:<{first}}  {two:>{second}}  {three}".rstrip() for one, two, three in rows]
    return "\n".join([f"coverage of {discovery.dataset or 'the data set'}", *lines, *(f"note: {note}" for note in discovery.notes)])


def _share(found: int, expected: int | None) -> str:
    return f"{100 * found / expected:.1f} %" if expected else ""


def join_people(sources: Iterable[Source]) -> list[Source]:
    """The same sources, those of one person or one YouTube video (also across data sets) under one person name.

    Links are followed to the end: if A and B share a video and B and C a person, all three get one name, the smallest of theirs.
    Sources that tell neither keep ''. Recipes do this within their data set; over several data sets the caller does.
    """
    sources = list(sources)
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    keys = [_identities(source) for source in sources]
    for group in keys:
        for other in group[1:]:
            parent[max(root(group[0]), root(other))] = min(root(group[0]), root(other))
    return [replace(source, person=root(group[0])) if group else source for source, group in zip(sources, keys, strict=True)]


def _identities(source: Source) -> list[str]:
    video = source.meta.get(YOUTUBE)
    return [*([source.person] if source.person else []), *([f"youtube-{video}"] if video else [])]


def sort_out(findings: Iterable[tuple[str, Source | str]]) -> tuple[list[Source], list[tuple[str, str]]]:
    """Names with what was found for each: the sources, and the names with the reasons of those that cannot be used."""
    sources: list[Source] = []
    broken: list[tuple[str, str]] = []
    for name, found in findings:
        if isinstance(found, Source):
            sources.append(found)
        else:
            broken.append((name, found))
    return sources, broken


def drop_duplicates(sources: Iterable[Source]) -> tuple[list[Source], list[tuple[str, str]]]:
    """Sources sorted by path, start and name, without those that show what an earlier one shows, which come second with the reason.

    Two sources are one if they come from the same YouTube video, most of the shorter one's time lies in the other, and so does most
    of the smaller region, where both have one: two faces of one shot are no duplicates. Where times are unknown, only what is named
    twice is a duplicate.
    """
    kept: dict[str, list[Source]] = {}
    broken = []
    for source in sorted(sources, key=lambda one: (one.path, one.start or 0.0, one.source_hint)):
        rivals = kept.setdefault(source.meta.get(YOUTUBE) or source.path, [])
        twin = next((rival for rival in rivals if _same_stretch(source, rival)), None)
        if twin is None:
            rivals.append(source)
        else:
            broken.append((source.source_hint, f"duplicate: shows what {twin.source_hint} shows"))
    found = [source for rivals in kept.values() for source in rivals]
    return sorted(found, key=lambda one: (one.path, one.start or 0.0, one.source_hint)), broken


def _same_stretch(one: Source, other: Source) -> bool:
    times, regions = [source.meta.get(SPAN) for source in (one, other)], [source.meta.get(REGION) for source in (one, other)]
    if not all(times):
        same = (one.path, one.start, one.end) == (other.path, other.start, other.end)
        return same and one.meta.get(BOX) == other.meta.get(BOX)
    start, end = zip(*(map(float, str(span).split()) for span in times), strict=True)
    if min(end) - max(start) < 0.5 * min(end[0] - start[0], end[1] - start[1]):
        return False
    return not all(regions) or _overlap(*(tuple(map(float, str(region).split())) for region in regions)) > 0.5


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The share of the smaller box (x0, y0, x1, y1) that lies in the other one."""
    width = max(min(one[2], other[2]) - max(one[0], other[0]), 0)
    height = max(min(one[3], other[3]) - max(one[1], other[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / max(min(areas), 1e-9)
