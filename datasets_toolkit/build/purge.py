"""Taking a source or a person out of a data set, and out of the work folder.

Only the shards that hold samples of them are written anew, under their own names. Files are replaced one after the other,
``dataset.json`` last; whatever a killed purge left undone, the same command does when it is run again. Of what was purged nothing stays
but how much it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from datasets_toolkit.build.purge_units import NOTHING, Needed, remove_units
from datasets_toolkit.build.tombstones import Tombstones
from datasets_toolkit.build.work import only_builder
from datasets_toolkit.errors import UserError
from datasets_toolkit.recipes.base import Source
from datasets_toolkit.shards.codecs import COLUMNS
from datasets_toolkit.shards.dataset_info import FILE, DatasetInfo, ShardInfo, encode_info, write_info
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.shards.storage import Storage
from datasets_toolkit.shards.tars import Members, SampleEntry, iterate_tar
from datasets_toolkit.shards.writer import write_shard, write_table

if TYPE_CHECKING:
    import pyarrow

Mask = npt.NDArray[np.bool_]
Progress = Callable[[str, int, int], object]
BEGUN = "dataset.purging.json"
"""``dataset.json`` as it was, for as long as a purge is not over."""


@dataclass(frozen=True, kw_only=True)
class Purged:
    """What a purge took away.

    Attributes:
        sources: rows of ``sources.parquet``.
        clips: rows of ``clips.parquet``.
        samples: packed frames.
        rewritten: shards written anew.
        removed: shards of which nothing was left.
        units: files of the work folder.
    """

    sources: int
    clips: int
    samples: int
    rewritten: int
    removed: int
    units: int


@dataclass(frozen=True)
class _Doomed:
    sources: Mask  # rows of sources.parquet
    clips: Mask  # rows of clips.parquet
    samples: Mask  # rows of index.parquet
    names: frozenset[str]  # ids of the clips


def purge(
    storage: Storage,
    *,
    sources: Collection[str] = (),
    people: Collection[str] = (),
    work: Path | None = None,
    progress: Progress = lambda what, done, total: None,
    elsewhere: Collection[str] = (),
    keep: Needed = NOTHING,
) -> Purged:
    """Take sources (by id) and people (by name) out of a data set.

    ``dataset.json`` then counts, in ``counts``, the purged sources, clips and samples of all purges, and nothing more of them. While files
    are being replaced there is no ``dataset.json``, so that nobody takes a mixture for a data set.

    Args:
        storage: of the data set.
        sources: ids of sources.
        people: names of people; all sources and clips of theirs go.
        work: the work folder, which is cleared of what the clips that stay do not need, and remembers what was purged
            (:mod:`datasets_toolkit.build.tombstones`); None leaves it alone.
        progress: told which shard is being written.
        elsewhere: ids and names that the data set need not have.
        keep: units that an unfinished build of the same work folder needs.

    Raises:
        UserError: the data set has no such source or person, cannot be read or written, or is being built.
    """
    with only_builder(storage.local) if storage.local is not None else nullcontext():
        begun = _take_up(storage)
        reader = ShardReader(storage)
        before, doomed = reader.info, _doomed(reader, sources, people, begun, elsewhere)
        tables = {"sources.parquet": reader.sources.filter(~doomed.sources), "clips.parquet": reader.clips.filter(~doomed.clips)}
        units = 0
        if work is not None:
            gone = reader.sources.filter(doomed.sources), reader.clips.filter(doomed.clips)
            Tombstones(work).bury(people, _stretches(gone[0]))
            units = remove_units(work, before, gone, (tables["sources.parquet"], tables["clips.parquet"]), keep)
        storage.write(BEGUN, encode_info(before))
        storage.remove(FILE)
        shards, entries = _rewrite(reader, doomed, begun, progress)
        tables = {"index.parquet": _new_index(reader, doomed, entries), "clips.parquet": tables["clips.parquet"], **tables}  # sources last
        manifests = {name: write_table(storage, name, table) for name, table in tables.items()}
        counts, lost = _counts(before, tables)
        write_info(storage, replace(before, shards=shards, manifests=manifests, counts=counts))
        storage.remove(BEGUN)
        return Purged(**lost, rewritten=len(entries), removed=len(before.shards) - len(shards), units=units)


def _take_up(storage: Storage) -> bool:
    """Whether an earlier purge did not come to its end; what it began with is put back then."""
    if not storage.exists(BEGUN):
        return False
    if not storage.exists(FILE):
        storage.write(FILE, storage.read(BEGUN))
    return True


def _doomed(
    reader: ShardReader, sources: Collection[str], people: Collection[str], begun: bool, elsewhere: Collection[str] = ()
) -> _Doomed:
    """What has to go. Names that nobody has are an error, unless an earlier purge (``begun``) may have taken them away already."""
    mine = _among(reader.sources, "source", sources) | _among(reader.sources, "person", people)
    ids = {*sources, *np.array(reader.sources.column("source").to_pylist(), object)[mine]}
    clips = _among(reader.clips, "source", ids) | _among(reader.clips, "person", people)
    names = frozenset(np.array(reader.clips.column("clip").to_pylist(), object)[clips].tolist())
    for column, asked in (("source", sources), ("person", people)):
        missing = sorted(
            set(asked).difference(elsewhere, reader.sources.column(column).to_pylist(), reader.clips.column(column).to_pylist())
        )
        if missing and not begun:
            raise UserError(f"{reader.storage.root}: has no {column} {missing[0]!r}; it was purged before, or has another name")
    return _Doomed(mine, clips, _among(reader.index, "clip", names), names)


def _stretches(table: pyarrow.Table) -> Iterator[tuple[str, Source]]:
    """Hash of the content and stretch of each row of ``sources.parquet``."""
    for row in table.to_pylist():
        times, meta = {"start": row.get("from"), "end": row.get("to")}, json.loads(row.get("meta") or "{}")
        yield row["sha256"], Source(path=row["path"], source_hint="", dataset="", meta=meta, **times)


def _among(table: pyarrow.Table, column: str, names: Collection[str]) -> Mask:
    wanted = set(names) - {""}  # an unnamed person is nobody
    return np.array([name in wanted for name in table.column(column).to_pylist()], bool)


def _rewrite(reader: ShardReader, doomed: _Doomed, begun: bool, progress: Progress) -> tuple[list[ShardInfo], dict[str, list[SampleEntry]]]:
    """Write the shards that hold doomed samples anew; gives all shards that remain, and where samples lie in those just written.

    A shard that is not what ``dataset.json`` says was written or removed by a purge that did not end: its places are read again.
    """
    storage, remaining, entries = reader.storage, [], {}
    holding = set(np.array(reader.index.column("shard").to_pylist(), object)[doomed.samples].tolist())
    for number, shard in enumerate(reader.info.shards):
        progress("writing shards", number, len(reader.info.shards))
        if not storage.exists(shard.name):
            if shard.name not in holding and not begun:
                raise UserError(f"{storage.address(shard.name)}: is missing; restore it, or build the data set again")
            continue
        if shard.name not in holding and storage.size(shard.name) == shard.bytes:
            remaining.append(shard)
            continue
        info, written = write_shard(storage, shard.name, shard.split, _kept(reader, shard.name, doomed.names))
        if info.samples:
            remaining.append(info)
            entries[shard.name] = written
        else:
            storage.remove(shard.name)
    return remaining, entries


def _kept(reader: ShardReader, shard: str, names: Collection[str]) -> Iterator[tuple[str, Members]]:
    return ((key, members) for key, members in iterate_tar(reader.storage, shard) if key.rpartition("_")[0] not in names)


def _new_index(reader: ShardReader, doomed: _Doomed, entries: dict[str, list[SampleEntry]]) -> pyarrow.Table:
    """The index without the doomed samples, with the new places of those that share a shard with them."""
    import pyarrow as pa

    index = reader.index
    places = {entry.key: entry.members for written in entries.values() for entry in written}
    keys, shards = index.column("key").to_pylist(), index.column("shard").to_pylist()
    moved = [row for row, shard in enumerate(shards) if shard in entries and keys[row] in places]
    stays = ~doomed.samples
    stays[[row for row, shard in enumerate(shards) if shard in entries and keys[row] not in places]] = False
    for name in reader.columns:
        for part, field in enumerate(("offset", "size")):
            values = np.array(index.column(f"{name}.{field}").to_numpy())
            values[moved] = [places[keys[row]][COLUMNS[name].member][part] for row in moved]
            place = index.schema.get_field_index(f"{name}.{field}")
            index = index.set_column(place, index.schema.field(place), pa.array(values, index.schema.field(place).type))
    return index.filter(stays)


def _counts(before: DatasetInfo, tables: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """The counts of the data set, and how much less that is: taken from those before, which stand until all else is done."""
    sources, clips = tables["sources.parquet"], tables["clips.parquet"]
    kept = clips.filter(clips.column("kept"))
    now = {"sources": sources.num_rows, "clips": clips.num_rows, "samples": tables["index.parquet"].num_rows}
    lost = {name: max(before.counts.get(name, value) - value, 0) for name, value in now.items()}
    now["sources_ok"] = sources.column("status").to_pylist().count("ok")
    now |= {"clips_kept": kept.num_rows, "people": len(set(kept.column("person").to_pylist()))}
    purged = {f"purged_{name}": before.counts.get(f"purged_{name}", 0) + value for name, value in lost.items()}
    return {**before.counts, **now, **purged}, lost
