"""The last step: units of clips become shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets_toolkit.build.pipeline import COLUMNS_OF, PackJob, PackResult, ShardPart
from datasets_toolkit.build.stopwatch import Stopwatch
from datasets_toolkit.build.work import Member, UnitStore, key_of
from datasets_toolkit.shards.codecs import COLUMNS
from datasets_toolkit.shards.storage import Storage
from datasets_toolkit.shards.writer import index_row, index_schema, write_shard


def columns_of(families: tuple[str, ...]) -> tuple[str, ...]:
    """The columns of a data set made of those families, in the order of their members in a tar."""
    wanted = {column for family in families for column in COLUMNS_OF[family]}
    return tuple(name for name in COLUMNS if name in wanted)


def pack_shard(job: PackJob) -> PackResult:
    """Write a shard and keep where its samples lie."""
    watch, store, storage = Stopwatch(), UnitStore(Path(job.work)), Storage(job.out)
    with watch("pack"):
        info, entries = write_shard(storage, job.name, job.split, _samples(job, store))
        metas = (COLUMNS["meta"].decode(data) for part in job.parts for data in _records(store, part))
        rows = [index_row(meta, entry, info) for meta, entry in zip(metas, entries, strict=True)]
        text = json.dumps(asdict(info)).encode()
        store.write("packed", _key(job), [("packed", [("json", text), ("arrow", _table_bytes(rows, columns_of(job.families)))])])
    return PackResult(info=asdict(info), index=store.read("packed", _key(job))["packed.arrow"], seconds=dict(watch.seconds))


def known_shard(job: PackJob) -> PackResult | None:
    """What :func:`pack_shard` would answer, if that shard is there already."""
    store, storage = UnitStore(Path(job.work)), Storage(job.out)
    if not store.has("packed", _key(job)):
        return None
    kept = store.read("packed", _key(job))
    info = json.loads(kept["packed.json"])
    if not storage.exists(job.name) or storage.size(job.name) != info["bytes"]:
        return None
    return PackResult(info=info, index=kept["packed.arrow"])


def _key(job: PackJob) -> str:
    return key_of([job.name, job.split, job.out, job.families, [asdict(part) for part in job.parts]])


def _table_bytes(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> bytes:
    import pyarrow

    table = pyarrow.Table.from_pylist(rows, schema=index_schema(columns))
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def _samples(job: PackJob, store: UnitStore) -> Iterator[tuple[str, list[Member]]]:
    """Key and members of each sample, read from the units one by one."""
    wanted = columns_of(job.families)
    for part in job.parts:
        files = {family: _Unit(store, family, part.keys[family]) for family in job.families if COLUMNS_OF[family]}
        owner = {column: files[family] for family in files for column in COLUMNS_OF[family]}
        for index in part.indices:
            members = [(COLUMNS[name].member, owner[name].member(f"{index:06d}.{COLUMNS[name].member}")) for name in wanted]
            yield f"{part.clip}_{index:06d}", members
        for file in files.values():
            file.close()


def _records(store: UnitStore, part: ShardPart) -> Iterator[bytes]:
    unit = _Unit(store, "frame", part.keys["frame"])
    for index in part.indices:
        yield unit.member(f"{index:06d}.{COLUMNS['meta'].member}")
    unit.close()


class _Unit:
    """A unit open for reading."""

    def __init__(self, store: UnitStore, family: str, key: str) -> None:
        self._spans = store.index(family, key)
        self._file = store.path(family, key).open("rb", buffering=0)

    def member(self, name: str) -> bytes:
        offset, size = self._spans[name]
        self._file.seek(offset)
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()
