"""Packing samples into the shards of a data set, and their index.

The layout is described in ``docs/shards.md``.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from datasets_toolkit.sample import FrameMeta
from datasets_toolkit.shards.codecs import COLUMNS
from datasets_toolkit.shards.dataset_info import ShardInfo
from datasets_toolkit.shards.storage import Storage, StorageError
from datasets_toolkit.shards.tars import Members, SampleEntry, write_part

if TYPE_CHECKING:
    import pyarrow


def shard_name(split: str, number: int) -> str:
    """``shards/<split>-<number:06d>.tar``."""
    return f"shards/{split}-{number:06d}.tar"


def write_shard(storage: Storage, name: str, split: str, samples: Iterable[tuple[str, Members]]) -> tuple[ShardInfo, list[SampleEntry]]:
    """Write one shard and publish it when it is whole.

    Args:
        storage: of the data set.
        name: as :func:`shard_name` gives it.
        split: the samples belong to.
        samples: key and members (suffix, bytes) of each, in order.

    Raises:
        ValueError: as :func:`write_tar`.
        StorageError: it cannot be written.
    """
    part = storage.scratch(name)
    try:
        written = write_part(part, samples)
        storage.publish(part, name)
    except OSError as error:
        raise StorageError(
            f"{storage.address(name)}: cannot be written ({error.strerror}); free some space or choose another place"
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    info = ShardInfo(name=name, split=split, samples=len(written.entries), bytes=written.bytes, sha256=written.sha256)
    return info, written.entries


def pack(
    storage: Storage, split: str, samples: Iterable[tuple[str, Members]], *, samples_per_shard: int
) -> Iterator[tuple[ShardInfo, list[SampleEntry]]]:
    """Write samples into shards of so many each, the last one shorter; each is published before the next begins.

    Raises:
        ValueError, StorageError: as :func:`write_shard`.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard {samples_per_shard}: at least one sample belongs in a shard")
    iterator, number = iter(samples), 0
    while (first := next(iterator, None)) is not None:
        yield write_shard(storage, shard_name(split, number), split, _chain(first, iterator, samples_per_shard))
        number += 1


def _chain(first: tuple[str, Members], rest: Iterator[tuple[str, Members]], count: int) -> Iterator[tuple[str, Members]]:
    yield first
    for _ in range(count - 1):
        sample = next(rest, None)
        if sample is None:
            return
        yield sample


def index_schema(columns: Sequence[str]) -> pyarrow.Schema:
    """The schema of ``index.parquet`` for a data set with those columns (names of :data:`datasets_toolkit.shards.codecs.COLUMNS`)."""
    import pyarrow as pa

    fields: list[tuple[str, Any]] = [(name, pa.string()) for name in ("key", "clip", "split", "shard")]
    fields += [("index", pa.int64()), ("time", pa.float64())]
    fields += [(f"{name}.{part}", pa.int64()) for name in columns for part in ("offset", "size")]
    fields += [(name, pa.float32()) for name in ("yaw", "pitch", "roll", "mouth")]
    return pa.schema(
        [*(pa.field(name, kind, nullable=False) for name, kind in fields), pa.field("expression", pa.list_(pa.float32()), nullable=False)]
    )


def index_row(meta: FrameMeta, entry: SampleEntry, shard: ShardInfo) -> dict[str, Any]:
    """The row of ``index.parquet`` for a packed sample.

    Yaw, pitch and roll (degrees) come from its pose; ``mouth`` is its score of that name, NaN where it was not measured.
    """
    from datasets_toolkit.faces.head_pose import euler_degrees

    if meta.key != entry.key:
        raise ValueError(f"the record of {meta.key} does not belong to the sample {entry.key}")
    yaw, pitch, roll = (float(angle) for angle in euler_degrees(meta.head_to_camera))
    row: dict[str, Any] = {"key": meta.key, "clip": meta.clip, "split": shard.split, "shard": shard.name}
    row |= {"index": meta.index, "time": meta.time, "yaw": yaw, "pitch": pitch, "roll": roll, "mouth": meta.scores.get("mouth", math.nan)}
    suffixes = {column.member: column.name for column in COLUMNS.values()}
    for member, (offset, size) in entry.members.items():
        row |= {f"{suffixes[member]}.offset": offset, f"{suffixes[member]}.size": size}
    return row | {"expression": [float(score) for score in meta.blendshapes]}


def write_index(storage: Storage, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Publish ``index.parquet``; returns its SHA-256.

    Raises:
        ValueError: a row lacks something, such as a member that the other samples have.
        StorageError: it cannot be written.
    """
    import pyarrow as pa

    schema = index_schema(columns)
    rows = list(rows)
    for row in rows:
        if set(row) != set(schema.names):
            raise ValueError(f"sample {row.get('key')}: its members are not those of the data set: {sorted(set(row) ^ set(schema.names))}")
    return write_table(storage, "index.parquet", pa.Table.from_pylist(rows, schema=schema))


def write_table(storage: Storage, name: str, table: pyarrow.Table) -> str:
    """Publish a table as Parquet, the same bytes for the same table; returns its SHA-256.

    Raises:
        StorageError: it cannot be written.
    """
    import hashlib

    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(table, file, compression="zstd", store_schema=True)
    storage.write(name, file.getvalue())
    return hashlib.sha256(file.getvalue()).hexdigest()
