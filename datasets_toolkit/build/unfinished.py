"""What a build that has not come to its end was given: sources, settings, annotators. A purge needs it to tell whose a unit is.

The record lies in the work folder from the first job on until the data set is finished.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets_toolkit.build.config import AnnotatorConfig, BuildConfig, as_dict, config_from
from datasets_toolkit.build.pipeline import AnnotatorFacts, TrackResult
from datasets_toolkit.build.tombstones import Tombstones
from datasets_toolkit.build.work import key_of
from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import write_whole
from datasets_toolkit.recipes.base import Source
from datasets_toolkit.shards.storage import Storage

if TYPE_CHECKING:
    from datasets_toolkit.build.run import Run

log = logging.getLogger(__name__)

FOLDER = "unfinished"
"""Of the records in the work folder; several data sets may share that."""


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """What a build was given. Attributes: where its record lies, its settings, annotators and sources."""

    path: Path
    config: BuildConfig
    facts: list[AnnotatorFacts]
    sources: list[Source]

    def write(self) -> None:
        """Put the record in its place.

        Raises:
            UserError: it cannot be written.
        """
        record = {"config": as_dict(self.config), "facts": [asdict(one) for one in self.facts]}
        text = json.dumps({**record, "sources": [asdict(one) for one in self.sources]})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, text.encode())
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written ({error.strerror}); free the disk or choose another --work folder") from error


def record_path(work: Path, storage: Storage) -> Path:
    """Where the record of a data set's build lies."""
    where = str(storage.local.absolute()) if storage.local is not None else storage.root.rstrip("/")
    return work / FOLDER / f"{key_of(where)[:16]}.json"


def unfinished_build(path: Path) -> Unfinished | None:
    """The record of a build, None where there is none.

    Raises:
        UserError: it is damaged.
    """
    try:
        record = json.loads(path.read_bytes())
        config, sources = config_from(record["config"]), [Source(**one) for one in record["sources"]]
        return Unfinished(path=path, config=config, facts=[_facts(one) for one in record["facts"]], sources=sources)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: the record of an unfinished build is damaged ({error}); run the build again first") from error


def begin(run: Run, sources: Sequence[Source], facts: Sequence[AnnotatorFacts]) -> list[Source]:
    """Record what a build was given, and leave out people who were purged; returns the sources that remain."""
    graves = Tombstones(run.store.root)
    left = [source for source in sources if not graves.person(source.person)]
    path = record_path(run.store.root, run.storage)
    Unfinished(path=path, config=run.config, facts=list(facts), sources=left).write()
    return left


def without_purged(
    run: Run, given: int, sources: Sequence[Source], tracks: Sequence[TrackResult]
) -> tuple[list[Source], list[TrackResult]]:
    """Sources and what was found in them, less the videos that were purged; tells how many of ``given`` sources are left out."""
    left = [(source, track) for source, track in zip(sources, tracks, strict=True) if not track.purged]
    if len(left) < len(sources):
        record = unfinished_build(record_path(run.store.root, run.storage))
        if record is not None:
            replace(record, sources=[source for source, _ in left]).write()
    if len(left) < given:
        log.warning("%d sources were purged before and are left out", given - len(left))
    return [source for source, _ in left], [track for _, track in left]


def finished(run: Run) -> None:
    """The data set holds the record now."""
    record_path(run.store.root, run.storage).unlink(missing_ok=True)


def _facts(record: dict[str, Any]) -> AnnotatorFacts:
    return AnnotatorFacts(**{**record, "config": AnnotatorConfig(**record["config"])})
