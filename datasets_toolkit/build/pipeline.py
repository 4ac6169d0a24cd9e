"""The steps of a build as jobs: what each is given, what it answers, and the keys under which its results are kept.

    source --track--> tracks, candidate clips, scores --policy--> kept clips --annotate--> a unit for each clip and family --pack--> shards

Jobs carry paths and numbers, never pixels, and run in any process that sees the work folder.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from datasets_toolkit.asset_list import ASSETS
from datasets_toolkit.build import clip_frames, track_unit
from datasets_toolkit.build.config import AnnotatorConfig, TrackingConfig
from datasets_toolkit.build.work import key_of
from datasets_toolkit.recipes.base import Source
from datasets_toolkit.shards.codecs import COLUMNS

COLUMNS_OF = {
    "image": ("image",),
    "parsing": ("parsing", "matte"),
    "depth": ("depth",),
    "normals": ("normals",),
    "frame": ("landmarks", "meta"),
    "audio": ("audio", "mel"),
    "identity": (),
    "sync": (),
}
"""The columns that each family of units holds; identity and sync speak of the clip as a whole."""
BUILT_IN = ("image", "frame")
"""Families that need no annotator."""
SEES = {"parsing": (), "depth": ("parsing",), "normals": ("parsing", "depth"), "identity": (), "sync": (), "audio": ()}
"""The families whose output an annotator is given."""
PICTURES = ("image", "parsing", "depth", "normals", "identity", "sync")
"""Families that look at crops."""


@dataclass(frozen=True, kw_only=True)
class TrackJob:
    """Find the faces of a source. Attributes: the source, the work folder, which faces."""

    source: Source
    work: str
    tracking: TrackingConfig


@dataclass(frozen=True, kw_only=True)
class TrackResult:
    """What the first pass answers.

    Attributes:
        content: SHA-256 of the file, '' where it cannot be read.
        key: of the track unit, '' where there is none.
        info: facts for ``sources.parquet``.
        clips: candidate clips (track, first and last row, first and last frame, start, end, frames, gaps, scores).
        problems: a reason each.
        rejected: whether the problems make the source useless.
        frames: decoded now; 0 where the unit was there.
        seconds: spent on each stage.
        purged: whether the work folder remembers that the source was purged; nothing else is told then.
    """

    content: str = ""
    key: str = ""
    info: dict[str, Any] = field(default_factory=dict)
    clips: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    rejected: bool = False
    frames: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    purged: bool = False


@dataclass(frozen=True, kw_only=True)
class ClipTask:
    """A clip to be annotated.

    Attributes:
        names: of clip, source and person.
        track: number of the track in its unit.
        first: row of the source.
        last: row, inclusive.
        keys: of the units to be made, by family.
    """

    names: clip_frames.ClipNames
    track: int
    first: int
    last: int
    keys: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class AnnotateJob:
    """Make missing units of clips of one source, in order of their first rows."""

    source: Source
    work: str
    track_key: str
    size: int
    annotators: dict[str, AnnotatorConfig]
    clips: list[ClipTask]


@dataclass(frozen=True, kw_only=True)
class AnnotateResult:
    """What the second pass answers. Attributes: frames decoded, samples made, seconds spent on each stage, why it failed ('' if not)."""

    frames: int = 0
    samples: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class ShardPart:
    """Consecutive samples of one clip. Attributes: its id, frame numbers in the source, keys of its units by family."""

    clip: str
    indices: list[int]
    keys: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class PackJob:
    """Write one shard. Attributes: its name and split, the work folder, the root of the data set, families in use, its samples."""

    name: str
    split: str
    work: str
    out: str
    families: tuple[str, ...]
    parts: list[ShardPart]


@dataclass(frozen=True, kw_only=True)
class PackResult:
    """A shard that is there. Attributes: what ``dataset.json`` says of it, its index rows (Arrow stream), seconds spent on each stage."""

    info: dict[str, Any]
    index: bytes
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AnnotatorFacts:
    """What an annotator says of itself in a worker. Attributes: its configuration, recipe (class, version, settings) and provenance."""

    config: AnnotatorConfig
    family: str
    recipe: dict[str, Any]
    provenance: dict[str, str]


def describe_annotators(configs: list[AnnotatorConfig]) -> list[AnnotatorFacts]:
    """Make each annotator once and ask it.

    Raises:
        UserError: one cannot be made.
    """
    facts = []
    for config in configs:
        made = annotator(config.class_path, freeze(config.init_args))
        facts.append(AnnotatorFacts(config=config, family=made.family, recipe=made.recipe(), provenance=made.provenance()))
    return facts


def freeze(arguments: dict[str, Any]) -> str:
    """Arguments as text that can be a key."""
    return json.dumps(arguments, sort_keys=True)


@lru_cache(maxsize=16)
def annotator(class_path: str, arguments: str) -> Any:
    """The annotator of this process for a class and its arguments (JSON)."""
    from datasets_toolkit.annotators.base import make_annotator

    made = make_annotator({"class_path": class_path, "init_args": json.loads(arguments)})
    _open.append(made)
    return made


@lru_cache(maxsize=1)
def tracker() -> Any:
    """The face tracker of this process."""
    from datasets_toolkit.build.face_tracks import CrowdTracker

    made = CrowdTracker()
    _open.append(made)
    return made


def release() -> None:
    """Close the models of this process: the native ones cannot be closed while the interpreter ends."""
    tracker.cache_clear()
    annotator.cache_clear()
    while _open:
        _open.pop().close()


_open: list[Any] = []


def track_key(content: str, source: Source, tracking: TrackingConfig) -> str:
    """The key of a source's track unit: content, stretch, face box, settings, code and models."""
    models = {asset.name: asset.sha256 for asset in ASSETS}
    stretch = [source.start, source.end, source.meta.get("box")]
    return key_of([content, stretch, asdict(tracking), track_unit.VERSION, models])


def unit_keys(names: clip_frames.ClipNames, track: str, place: list[int], size: int, facts: dict[str, AnnotatorFacts]) -> dict[str, str]:
    """The keys of all units of a clip by family.

    Args:
        names: how the clip is called.
        track: key of the track unit.
        place: the clip's track number, first and last row.
        size: pixels a side of the crop.
        facts: of the annotators by family.
    """
    clip = key_of([track, place, clip_frames.VERSION])
    image = key_of(["image", clip, size, _codecs("image")])
    keys = {"image": image, "frame": key_of(["frame", clip, size, asdict(names), _codecs("frame")])}
    for family in ("parsing", "depth", "normals", "identity", "sync", "audio"):
        if family in facts:
            seen = [keys[other] for other in SEES[family]]
            base = clip if family == "audio" else image
            keys[family] = key_of([family, base, seen, facts[family].recipe, facts[family].provenance, _codecs(family)])
    return keys


def _codecs(family: str) -> list[str]:
    """The formats of a family's columns: another format makes other bytes."""
    return [COLUMNS[name].codec for name in COLUMNS_OF[family]]
