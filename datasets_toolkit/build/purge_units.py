"""Clearing the work folder after a purge.

Names of units are hashes, so a unit cannot be asked whose it is; but what the clips that stay need can be named. All else goes: units of
what was purged, whatever settings they were made with, and units that nothing uses any more, which a build makes again if it ever asks
for them.
"""

from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets_toolkit.build.clip_frames import ClipNames
from datasets_toolkit.build.config import AnnotatorConfig
from datasets_toolkit.build.pipeline import AnnotatorFacts, unit_keys
from datasets_toolkit.errors import UserError
from datasets_toolkit.shards.dataset_info import DatasetInfo

if TYPE_CHECKING:
    import pyarrow

_PLACE = ("first", "last", "start", "end", "frames")
_MEASURED = ("face_size", "yaw_min", "yaw_max", "motion", "jitter", "sharpness", "brightness")
_FACTS = ("width", "height", "duration")
Tables = tuple["pyarrow.Table", "pyarrow.Table"]


@dataclass(frozen=True, kw_only=True)
class Needed:
    """What unfinished builds need. Attributes: kind and key of units, hashes of the videos' content."""

    units: frozenset[tuple[str, str]] = frozenset()
    contents: frozenset[str] = frozenset()


NOTHING = Needed()


def remove_units(work: Path, info: DatasetInfo, gone: Tables, stay: Tables, keep: Needed = NOTHING) -> int:
    """Remove the units that no clip of a data set needs; returns how many.

    Args:
        work: the work folder; one that does not exist holds nothing.
        info: of the data set: its settings and annotators decide the names of units.
        gone: rows of ``sources.parquet`` and ``clips.parquet`` that are purged.
        stay: rows of both that stay.
        keep: what other builds need.

    Raises:
        UserError: a unit cannot be removed.
    """
    contents = set(gone[0].column("sha256").to_pylist()) - set(stay[0].column("sha256").to_pylist()) - keep.contents
    used = {*_used(work, info, gone, stay[1]), *keep.units}
    return _remove_unless(work, used, lambda content: content not in contents, gone[1].column("clip").to_pylist())


def remove_other_units(work: Path, keep: Needed, names: Sequence[str]) -> int:
    """Remove all units but those that unfinished builds need; returns how many.

    Args:
        work: the work folder.
        keep: what they need.
        names: of clips that go, or their beginnings: units of shards that speak of one go.

    Raises:
        UserError: a unit cannot be removed.
    """
    return _remove_unless(work, keep.units, lambda content: content in keep.contents, names)


def _remove_unless(work: Path, used: Collection[tuple[str, str]], known: Callable[[Any], bool], clips: Sequence[str]) -> int:
    names, removed = [name.encode() for name in clips], 0
    for path in sorted(work.glob("*/*/*.tar")):
        kind = path.relative_to(work).parts[0]
        if kind == "content":
            stays = known(_text(path))
        elif kind == "packed":
            data = path.read_bytes()
            stays = not any(name in data for name in names)
        else:
            stays = (kind, path.stem) in used
        if not stays:
            _remove(path)
            removed += 1
    return removed


def _used(work: Path, info: DatasetInfo, gone: Tables, clips: pyarrow.Table) -> Iterator[tuple[str, str]]:
    """Kind and key of each unit that the clips need; tracks without clips too, unless they may be those of a purged source."""
    facts, rows = _facts(info), _rows(clips)
    empty = {tuple(row[name] for name in _FACTS) for row in gone[0].select(list(_FACTS)).to_pylist()}
    for signature in _rows(gone[1]):
        rows.pop(signature, None)  # a clip that cannot be told from a purged one loses its units, and gets them again
    for path in sorted(work.glob("track/*/*.tar")):
        track = _text(path)
        if not isinstance(track, dict):
            continue
        if not track["clips"] and tuple(track["info"].get(name) for name in _FACTS) not in empty:
            yield "track", path.stem
        for clip in track["clips"]:
            place = [clip[name] for name in ("track", "first_row", "last_row")]
            for row in rows.get(_signature(clip, clip["scores"]), ()):
                yield "track", path.stem
                names = ClipNames(clip=row["clip"], source=row["source"], person=row["person"])
                yield from unit_keys(names, path.stem, place, int(info.config.get("size", 0)), facts).items()


def _rows(clips: pyarrow.Table) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in clips.select(["clip", "source", "person", *_PLACE, *_MEASURED]).to_pylist():
        found.setdefault(_signature(row, row), []).append(row)
    return found


def _facts(info: DatasetInfo) -> dict[str, AnnotatorFacts]:
    """The annotators as the build's keys know them."""
    found = {}
    for one in info.annotators:
        recipe = {"class_path": one["name"], "version": one["version"], "settings": one["parameters"]}
        config = AnnotatorConfig(one["name"])
        found[one["family"]] = AnnotatorFacts(config=config, family=one["family"], recipe=recipe, provenance=one["provenance"])
    return found


def _signature(place: dict[str, Any], scores: dict[str, Any]) -> tuple[Any, ...]:
    """Where a clip lies and how it measures: no two clips agree in all of that, but a unit and its row do, to the last bit."""
    measured = (scores.get(name) for name in _MEASURED)
    return (*(place[name] for name in _PLACE), *(None if value is None or math.isnan(value) else value for value in measured))


def _text(path: Path) -> Any:
    """The JSON that a unit begins with; None where it is no such unit."""
    try:
        with tarfile.open(path, "r:") as unit:
            first = unit.next()
            file = unit.extractfile(first) if first is not None and first.name.endswith(".json") else None
            return json.loads(file.read()) if file is not None else None
    except (OSError, tarfile.TarError, ValueError):
        return None


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise UserError(f"{path}: cannot be removed ({error.strerror}); check its permissions and purge again") from error
