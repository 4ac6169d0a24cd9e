"""``dataset.json``: what a data set holds, how it was made, and the hashes that prove it whole."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from datasets_toolkit.local_files import check_name
from datasets_toolkit.sample import SCHEMA_VERSION
from datasets_toolkit.shards.storage import Storage, StorageError

FILE = "dataset.json"
MANIFESTS = ("sources.parquet", "clips.parquet", "index.parquet")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard.

    Attributes:
        name: of its tar, below the data set's root, such as ``shards/train-000000.tar``.
        split: one of :data:`SPLITS`.
        samples: how many it holds.
        bytes: of the tar.
        sha256: of the tar, hexadecimal.
    """

    name: str
    split: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """The content of ``dataset.json``.

    Attributes:
        config: the resolved configuration of the build.
        columns: :meth:`datasets_toolkit.shards.codecs.Column.describe` of each column, in tar order.
        annotators: family, name, version, parameters and provenance of each.
        shards: in the order they were packed.
        counts: numbers of sources, clips, samples and the like.
        manifests: SHA-256 of each of :data:`MANIFESTS`.
        schema_version: of the layout.
    """

    config: dict[str, Any]
    columns: list[dict[str, Any]]
    annotators: list[dict[str, Any]]
    shards: list[ShardInfo]
    counts: dict[str, int]
    manifests: dict[str, str]
    schema_version: int = field(default=SCHEMA_VERSION)


def write_info(storage: Storage, info: DatasetInfo) -> None:
    """Publish ``dataset.json``; written last, it says that the data set is whole.

    Raises:
        ValueError: something in it has no place in JSON.
        StorageError: it cannot be written.
    """
    storage.write(FILE, encode_info(info))


def encode_info(info: DatasetInfo) -> bytes:
    """The bytes of ``dataset.json``; the same for the same content."""
    return (json.dumps(asdict(info), indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def read_info(storage: Storage) -> DatasetInfo:
    """Read ``dataset.json``.

    Raises:
        StorageError: it is missing, damaged, or of a schema that this version does not know.
    """
    where = storage.address(FILE)
    if not storage.exists(FILE):
        raise StorageError(
            f"{where}: no such file, so this is no finished data set; give the folder that a build wrote, or run it to its end"
        )
    try:
        record = json.loads(storage.read(FILE))
        version = record["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StorageError(f"{where}: not the record of a data set ({type(error).__name__}); copy or build it again") from error
    if version != SCHEMA_VERSION:
        newer = isinstance(version, int) and version > SCHEMA_VERSION
        advice = "install a newer version of this package" if newer else "build the data set again"
        raise StorageError(f"{where}: schema version {version}, and this package reads version {SCHEMA_VERSION}; {advice}")
    try:
        return _parsed(record)
    except (ValueError, KeyError, TypeError, AttributeError, StorageError) as error:
        raise StorageError(f"{where}: not the record of a data set ({error}); copy or build it again") from error


def _parsed(record: Mapping[str, Any]) -> DatasetInfo:
    kinds = {"config": dict, "columns": list, "annotators": list, "shards": list, "counts": dict, "manifests": dict}
    if set(record) != {one.name for one in fields(DatasetInfo)}:
        raise ValueError("its fields are not those of this schema")
    for name, kind in kinds.items():
        if not isinstance(record[name], kind):
            raise ValueError(f"{name} is not a {kind.__name__}")
    return DatasetInfo(**{**record, "shards": [_shard(one) for one in record["shards"]]})


def _shard(record: Mapping[str, Any]) -> ShardInfo:
    shard = ShardInfo(**record)
    check_name(shard.name)
    sound = isinstance(shard.samples, int) and isinstance(shard.bytes, int) and min(shard.samples, shard.bytes) >= 0
    if not (sound and shard.split in SPLITS and re.fullmatch("[0-9a-f]{64}", shard.sha256)):
        raise ValueError(f"its entry of the shard {shard.name} is damaged")
    return shard


def file_sha256(storage: Storage, name: str) -> str:
    """SHA-256 of a file, hexadecimal, read in pieces.

    Raises:
        StorageError: it is not there.
    """
    digest = hashlib.sha256()
    with storage.open(name) as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
