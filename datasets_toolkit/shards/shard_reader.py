"""Reading a built data set: its record, its manifests, and single samples by byte range."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from datasets_toolkit.sample import FrameMeta, FrameSample
from datasets_toolkit.shards.codecs import COLUMNS, CodecError, decode_normals
from datasets_toolkit.shards.dataset_info import DatasetInfo, read_info
from datasets_toolkit.shards.storage import Storage, StorageError
from datasets_toolkit.shards.tars import ShardError, read_members

if TYPE_CHECKING:
    import pyarrow


class ShardReader:
    """A data set that lies in a folder or behind an fsspec address.

    Nothing is opened before it is needed, so a reader may be pickled, forked, or sent to a spawned process; each process opens its own
    files. Tables are read once a process.

    Args:
        root: of the data set, or its storage.

    Raises:
        StorageError: the address cannot be used.
    """

    def __init__(self, root: str | Path | Storage) -> None:
        self.storage = root if isinstance(root, Storage) else Storage(root)
        self._forget()

    def _forget(self) -> None:
        self._info: DatasetInfo | None = None
        self._tables: dict[str, pyarrow.Table] = {}
        self._spans: dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = {}
        self._shards: list[str] = []
        self._shard_of: npt.NDArray[np.int32] = np.empty(0, np.int32)

    def __getstate__(self) -> dict[str, Any]:
        return {"storage": self.storage}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.storage = state["storage"]
        self._forget()

    def __len__(self) -> int:
        return int(self.index.num_rows)

    @property
    def info(self) -> DatasetInfo:
        """What ``dataset.json`` says.

        Raises:
            StorageError: missing, damaged, or of another schema version.
        """
        if self._info is None:
            self._info = read_info(self.storage)
        return self._info

    @property
    def index(self) -> pyarrow.Table:
        """One row for each packed sample; the columns are listed in ``docs/shards.md``."""
        return self._table("index.parquet")

    @property
    def clips(self) -> pyarrow.Table:
        """One row for each candidate clip, rejected ones too."""
        return self._table("clips.parquet")

    @property
    def sources(self) -> pyarrow.Table:
        """One row for each source video, rejected ones too."""
        return self._table("sources.parquet")

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns this data set holds, in tar order."""
        return tuple(name for name in COLUMNS if f"{name}.offset" in self.index.column_names)

    def sample(self, row: int, columns: Sequence[str] | None = None) -> FrameSample:
        """Decode the sample of an index row.

        Args:
            row: of :attr:`index`.
            columns: what to decode besides ``meta``; None decodes all that are there. Normals are zeroed by the depth where that is
                decoded too, else by their own length.

        Raises:
            ShardError: a member is damaged, or not what the index says; the message names shard and sample.
            StorageError: the shard cannot be read.
            KeyError: the data set has no such column.
        """
        names = self.columns if columns is None else tuple(dict.fromkeys([*columns, "meta"]))
        shard = self._shard(row)
        data = dict(zip(names, read_members(self.storage, shard, [self._span(name, row) for name in names]), strict=True))
        name = "meta"
        try:
            meta = COLUMNS["meta"].decode(data.pop("meta"))
            self._check_key(meta, row)
            values: dict[str, Any] = {}
            for name in sorted(data, key="normals".__eq__):  # normals last, after the depth
                values[name] = _decode(name, data[name], meta.size, values)
        except CodecError as error:
            raise ShardError(f"{self.storage.address(shard)}: sample {self.key(row)}, member {COLUMNS[name].member}: {error}") from error
        return FrameSample(meta=meta, **values)

    def members(self, row: int, columns: Sequence[str] | None = None) -> dict[str, bytes]:
        """The encoded members of a sample by column, as :meth:`sample` would decode them.

        Raises:
            ShardError, StorageError, KeyError: as :meth:`sample`.
        """
        names = self.columns if columns is None else tuple(columns)
        return dict(zip(names, read_members(self.storage, self._shard(row), [self._span(name, row) for name in names]), strict=True))

    def key(self, row: int) -> str:
        """The name of the sample of an index row."""
        return str(self.index["key"][row].as_py())

    def _check_key(self, meta: FrameMeta, row: int) -> None:
        if meta.key != self.key(row):
            raise CodecError(f"it is the record of {meta.key}; index and shards do not belong together, build the data set again")

    def _shard(self, row: int) -> str:
        if not self._shards:
            encoded = self.index["shard"].combine_chunks().dictionary_encode()
            self._shards, self._shard_of = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
        return self._shards[self._shard_of[row]]

    def _span(self, column: str, row: int) -> tuple[int, int]:
        if column not in self._spans:
            if f"{column}.offset" not in self.index.column_names:
                raise KeyError(f"{self.storage.root} has no column {column!r}; it has {', '.join(self.columns)}")
            offsets, sizes = (self.index[f"{column}.{part}"].to_numpy() for part in ("offset", "size"))
            self._spans[column] = offsets, sizes
        offsets, sizes = self._spans[column]
        return int(offsets[row]), int(sizes[row])

    def _table(self, name: str) -> pyarrow.Table:
        if name not in self._tables:
            _ = self.info  # refuses a set that is not finished, or of another schema
            self._tables[name] = read_table(self.storage, name)
        return self._tables[name]


def read_table(storage: Storage, name: str) -> pyarrow.Table:
    """A Parquet file, whole, each column in one piece.

    Raises:
        StorageError: it is missing or damaged.
    """
    import pyarrow
    import pyarrow.parquet

    data = storage.read(name)
    try:
        # Not read_table: its threads, still starting, abort a process that ends soon after ("terminate called", pyarrow 26).
        return pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data)).read(use_threads=False).combine_chunks()
    except (pyarrow.ArrowException, OSError) as error:
        raise StorageError(f"{storage.address(name)}: not a sound Parquet file ({error}); copy or build it again") from error


def _decode(name: str, data: bytes, size: int, decoded: dict[str, Any]) -> Any:
    column = COLUMNS[name]
    if name == "normals" and decoded.get("depth") is not None:
        return column.check(decode_normals(data, decoded["depth"] > 0), size)
    return column.decode(data, size)
