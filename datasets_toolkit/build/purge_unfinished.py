"""Taking a source or a person out of a build that has not come to its end, so that it can go on without them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from datasets_toolkit.build.manifest import ClipRow, SourceRow, clip_rows, source_rows
from datasets_toolkit.build.pipeline import TrackJob, TrackResult, unit_keys
from datasets_toolkit.build.purge_units import Needed, remove_other_units
from datasets_toolkit.build.source_files import is_address, known_content
from datasets_toolkit.build.sources import content_hash
from datasets_toolkit.build.tombstones import Tombstones
from datasets_toolkit.build.track_stage import known_track
from datasets_toolkit.build.unfinished import FOLDER, Unfinished, record_path, unfinished_build
from datasets_toolkit.build.work import UnitStore
from datasets_toolkit.errors import MediaError
from datasets_toolkit.recipes.base import Source
from datasets_toolkit.shards.dataset_info import file_sha256
from datasets_toolkit.shards.shard_reader import read_table
from datasets_toolkit.shards.storage import Storage
from datasets_toolkit.shards.writer import write_table

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is to go.

    Attributes:
        sources: ids of sources.
        people: names of people.
        videos: absolute paths or addresses of videos, with the SHA-256 of their content, '' where it is not known.
    """

    sources: frozenset[str]
    people: frozenset[str]
    videos: dict[str, str]

    def named(self, source: str, person: str, path: str, content: str) -> set[str]:
        """By which of the asked names a source is meant; empty if it is not."""
        videos = {video for video, known in self.videos.items() if path == video or (known and known == content)}
        return {name for name, names in ((source, self.sources), (person, self.people)) if name and name in names} | videos


def asked_for(sources: Collection[str], people: Collection[str], videos: Collection[str]) -> Asked:
    """What is asked for, with the hashes of the videos that are there.

    Raises:
        MediaError: one of them cannot be read.
    """
    paths = [video if is_address(video) else str(Path(video).absolute()) for video in videos]
    hashes = {path: content_hash(Path(path)) if Path(path).is_file() else "" for path in paths}
    return Asked(sources=frozenset(sources), people=frozenset(people), videos=hashes)


def bury(storage: Storage, work: Path, asked: Asked) -> frozenset[str]:
    """Make the unfinished build of a data set remember what it must not take in again.

    Returns:
        Which of the ids, names and paths that are asked for it knows.
    """
    names, stretches = known_names(storage, work, asked)
    Tombstones(work).bury(asked.people, stretches)
    return names


def known_names(storage: Storage, work: Path, asked: Asked) -> tuple[frozenset[str], list[tuple[str, Source]]]:
    """What an unfinished build has of what is asked for: the names by which, and the sources with the hashes of their content."""
    record = unfinished_build(record_path(work, storage))
    names, stretches = set[str](), []
    for row in _rows(record, work) if record is not None else ():
        hits = asked.named(row.id, row.person, row.source.path, row.track.content)
        names |= hits
        stretches += [(row.track.content, row.source)] if hits else []
    return frozenset(names), stretches


def needed(work: Path) -> Needed:
    """What the unfinished builds of a work folder need of units, those of purged sources left out."""
    units, contents = set[tuple[str, str]](), set[str]()
    for path in sorted((work / FOLDER).glob("*.json")):
        record = unfinished_build(path)
        if record is not None:
            rows = _rows(_left(record, work), work)
            contents |= {row.track.content for row in rows}
            units |= {("track", row.track.key) for row in rows}
            units |= {unit for clip in clip_rows(rows) for unit in _units(clip, record)}
    return Needed(units=frozenset(units), contents=frozenset(contents - {""}))


def clear(storage: Storage, work: Path, asked: Asked) -> dict[str, int]:
    """Remove what an unfinished build has made of what is buried; returns numbers of sources, clips, shards removed and units.

    The build's record is written last, so that a clearing that was killed is finished by the same command.
    """
    record = unfinished_build(record_path(work, storage))
    if record is None:
        return {"sources": 0, "clips": 0, "removed": 0, "units": 0}
    graves = Tombstones(work)
    gone = [row for row in _rows(record, work) if graves.person(row.source.person) or graves.stretch(row.track.content, row.source)]
    clips = [clip.names.clip for clip in clip_rows(gone)]
    units = remove_other_units(work, needed(work), [f"{row.id}_" for row in gone])
    removed = _remove_shards(storage, UnitStore(work))
    _filter_tables(storage, {row.id for row in gone} | asked.sources, asked.people)
    shutil.rmtree(work / "slurm", ignore_errors=True)  # jobs that were handed to a cluster name their sources
    forget(storage, work)
    return {"sources": len(gone), "clips": len(clips), "removed": removed, "units": units}


def forget(storage: Storage, work: Path) -> int:
    """Strike what is buried out of the record of an unfinished build, and remove what killed processes were writing.

    Returns:
        How many sources that were.
    """
    UnitStore(work).sweep()
    record = unfinished_build(record_path(work, storage))
    if record is None:
        return 0
    left = _left(record, work)
    left.write()
    return len(record.sources) - len(left.sources)


def _left(record: Unfinished, work: Path) -> Unfinished:
    graves = Tombstones(work)
    left = [one for one in record.sources if not graves.person(one.person) and not graves.stretch(_content(one, work), one)]
    return replace(record, sources=left)


def _rows(record: Unfinished, work: Path) -> list[SourceRow]:
    """The rows that a build would make of its sources by now."""
    return source_rows(record.sources, [_track(record, source, work) for source in record.sources])


def _track(record: Unfinished, source: Source, work: Path) -> TrackResult:
    found = known_track(TrackJob(source=source, work=str(work), tracking=record.config.tracking), purged_too=True)
    return found if found is not None else TrackResult(content=_content(source, work))


def _content(source: Source, work: Path) -> str:
    try:
        return known_content(source.path, UnitStore(work)) or ""
    except MediaError:
        return ""  # the video is gone already


def _units(clip: ClipRow, record: Unfinished) -> Iterable[tuple[str, str]]:
    place = [clip.facts[name] for name in ("track", "first_row", "last_row")]
    facts = {one.family: one for one in record.facts}
    return unit_keys(clip.names, clip.owner.track.key, place, record.config.size, facts).items()


def _remove_shards(storage: Storage, store: UnitStore) -> int:
    """Remove the shards that a build writes anew anyway, because no unit that is left tells what lies in them."""
    packed = [json.loads(store.first("packed", path.stem)) for path in sorted(store.root.glob("packed/*/*.tar"))]
    known = {(info["name"], info["sha256"]) for info in packed}
    others = [name for name in storage.list("shards/") if (name, file_sha256(storage, name)) not in known]
    for name in others:
        storage.remove(name)
    return len(others)


def _filter_tables(storage: Storage, sources: Collection[str], people: Collection[str]) -> None:
    """Strike rows out of the tables that a build has left without a ``dataset.json``; the index, which nobody reads then, goes."""
    storage.remove("index.parquet")
    for name in ("clips.parquet", "sources.parquet"):
        if storage.exists(name):
            table = read_table(storage, name)
            kept = _others(table, sources, people)
            if kept.num_rows < table.num_rows:
                write_table(storage, name, kept)


def _others(table: pyarrow.Table, sources: Collection[str], people: Collection[str]) -> pyarrow.Table:
    pairs = zip(table.column("source").to_pylist(), table.column("person").to_pylist(), strict=True)
    return table.filter([source not in sources and person not in people for source, person in pairs])
