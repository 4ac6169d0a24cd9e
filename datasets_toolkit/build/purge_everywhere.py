"""Purging a data set in whatever state it is: finished, in the making, or a finished one that is being built again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from datasets_toolkit.build.purge import BEGUN, Progress, Purged, purge
from datasets_toolkit.build.purge_unfinished import Asked, asked_for, bury, clear, forget, known_names, needed
from datasets_toolkit.build.unfinished import record_path
from datasets_toolkit.build.work import only_builder
from datasets_toolkit.errors import UserError
from datasets_toolkit.shards.dataset_info import FILE
from datasets_toolkit.shards.shard_reader import read_table
from datasets_toolkit.shards.storage import Storage


def purge_everywhere(
    storage: Storage,
    *,
    sources: Collection[str] = (),
    people: Collection[str] = (),
    videos: Collection[str] = (),
    work: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Purged:
    """Take sources, people and videos out of a data set, finished or not, and out of its work folder.

    The work folder remembers them (:mod:`datasets_toolkit.build.tombstones`), so that a build that goes on leaves them out.

    Args:
        storage: of the data set.
        sources: ids of sources.
        people: names of people; all sources and clips of theirs go.
        videos: paths or addresses of source videos; a file that is there is known by its content too.
        work: the work folder; None leaves it alone.
        progress: told which shard is being written.

    Raises:
        UserError: there is neither a data set nor an unfinished build, it has no such source, person or video, or it is being built.
    """
    asked = asked_for(sources, people, videos)
    finished = storage.exists(FILE) or storage.exists(BEGUN)
    building = work is not None and record_path(work, storage).exists()
    if not finished and not building:
        raise UserError(f"{storage.root}: neither a finished data set nor an unfinished build; check the path, or give --work DIR")
    if work is None or not building:
        return purge(storage, sources=[*sources, *_ids(storage, asked)], people=people, work=work, progress=progress)
    with only_builder(storage.local or work):
        elsewhere, _ = known_names(storage, work, asked)
        _check(storage, asked, elsewhere)
        bury(storage, work, asked)
        if not finished:
            return Purged(samples=0, rewritten=0, **clear(storage, work, asked))
    ids = [*sources, *_ids(storage, asked)]
    done = purge(storage, sources=ids, people=people, work=work, progress=progress, elsewhere=elsewhere, keep=needed(work))
    return replace(done, sources=max(done.sources, forget(storage, work)))  # the record last: until then the names can be asked for again


def _check(storage: Storage, asked: Asked, elsewhere: Collection[str]) -> None:
    """Refuse names that neither the data set nor its unfinished build has, before anything is changed."""
    known = {*elsewhere, *_names(storage, asked)}
    for kind, names in (("source", asked.sources), ("person", asked.people), ("video", asked.videos)):
        for name in sorted(set(names) - known):
            raise UserError(f"{storage.root}: has no {kind} {name!r}; it was purged before, or has another name")


def _names(storage: Storage, asked: Asked) -> set[str]:
    """The asked names that the tables have."""
    found = set[str]()
    if storage.exists("sources.parquet"):
        for row in read_table(storage, "sources.parquet").to_pylist():
            found |= asked.named(row["source"], row["person"], row["path"], row["sha256"])
    if storage.exists("clips.parquet"):
        clips = read_table(storage, "clips.parquet")
        found |= asked.people & set(clips.column("person").to_pylist())
        found |= asked.sources & set(clips.column("source").to_pylist())
    return found


def _ids(storage: Storage, asked: Asked) -> list[str]:
    """The ids of the sources that lie at the asked paths, or have their content.

    Raises:
        UserError: a video that is no source of a finished data set.
    """
    if not asked.videos or not storage.exists("sources.parquet"):
        return []
    only = replace(asked, sources=frozenset(), people=frozenset())
    rows = [(row["source"], only.named("", "", row["path"], row["sha256"])) for row in read_table(storage, "sources.parquet").to_pylist()]
    return [source for source, hits in rows if hits]
