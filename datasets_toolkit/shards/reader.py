"""Reading samples for training: addresses instead of tables in the workers, and a local copy of remote shards.

The process that plans the order of an epoch holds the index. It sends its workers the addresses of the samples, so that they load no
table, however large the data set is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from datasets_toolkit.errors import UserError
from datasets_toolkit.local_files import move_into_place, part_name
from datasets_toolkit.schema import ByteImage
from datasets_toolkit.shards.codec_checks import Buffer, CodecError
from datasets_toolkit.shards.dataset_info import file_sha256, read_info
from datasets_toolkit.shards.shard_reader import ShardReader
from datasets_toolkit.shards.storage import Storage, StorageError
from datasets_toolkit.shards.tars import Span, read_views


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where members of a sample lie.

    Attributes:
        key: the sample's name.
        shard: name of its tar.
        spans: by column, offset and size of the member's bytes.
    """

    key: str
    shard: str
    spans: dict[str, Span]

    def read(self, storage: Storage) -> dict[str, memoryview]:
        """The encoded members by column, parts of the pieces that were read.

        Raises:
            ShardError, StorageError: as :func:`datasets_toolkit.shards.tars.read_members`.
        """
        return dict(zip(self.spans, read_views(storage, self.shard, list(self.spans.values())), strict=True))


class AddressBook:
    """The addresses of all samples of a data set, for some of its columns.

    Args:
        reader: of the data set.
        columns: to be read.

    Raises:
        UserError: the data set lacks one of the columns.
    """

    def __init__(self, reader: ShardReader, columns: Sequence[str]) -> None:
        missing = [name for name in columns if name not in reader.columns]
        if missing:
            have = ", ".join(reader.columns)
            raise UserError(f"{reader.storage.root}: has no column {missing[0]!r}, only {have}; ask for others, or build it with that one")
        index = reader.index
        self._keys, self._columns = index["key"], tuple(columns)
        shards = index["shard"].combine_chunks().dictionary_encode()
        self._shards, self._shard_of = shards.dictionary.to_pylist(), shards.indices.to_numpy()
        parts = [index[f"{name}.{part}"].to_numpy() for name in columns for part in ("offset", "size")]
        self._spans = np.stack(parts, 1).reshape(len(index), len(columns), 2)

    def __getitem__(self, row: int) -> Address:
        """The address of the sample in that row of ``index.parquet``."""
        spans = {name: (offset, size) for name, (offset, size) in zip(self._columns, self._spans[row].tolist(), strict=True)}
        return Address(key=self._keys[row].as_py(), shard=self._shards[self._shard_of[row]], spans=spans)


class CachedStorage(Storage):
    """A data set whose shards are copied to a local folder, whole, when they are first read.

    The copies are named by their SHA-256. Nothing deletes them, so the folder grows to the size of the data sets that are read.

    Args:
        root: of the data set, usually an fsspec address.
        folder: for the copies; several processes and data sets may share it.
        options: as :class:`Storage`.
    """

    def __init__(self, root: str | Path, folder: Path, **options: Any) -> None:
        super().__init__(root, **options)
        self.copies = Storage(folder)
        self._hashes: dict[str, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "copies": self.copies}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.copies, self._hashes = state["copies"], None

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """As :meth:`Storage.read`; a shard is read from its copy.

        Raises:
            StorageError: as there, or the copy cannot be written, or is not what ``dataset.json`` says.
        """
        if not name.endswith(".tar"):
            return super().read(name, offset, size)
        sha256 = self._sha256(name)
        copy = f"{sha256}.tar"
        if not self.copies.exists(copy):
            self._fetch(name, Path(self.copies.root) / copy, sha256)
        return self.copies.read(copy, offset, size)

    def _sha256(self, name: str) -> str:
        if self._hashes is None:
            self._hashes = {shard.name: shard.sha256 for shard in read_info(self).shards}
        if name not in self._hashes:
            raise StorageError(f"{self.address(name)}: dataset.json does not list this shard; build the data set again")
        return self._hashes[name]

    def _fetch(self, name: str, target: Path, sha256: str) -> None:
        from filelock import FileLock

        part = target.with_name(part_name(target.name))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):
                if target.exists():  # another process was faster
                    return
                with self.open(name) as source, part.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                self._check(part, name, sha256)
                move_into_place(part, target)
        except OSError as error:
            raise StorageError(f"{target}: cannot be written ({error.strerror}); free some space or choose another cache folder") from error
        finally:
            with suppress(OSError):
                os.unlink(part)

    def _check(self, part: Path, name: str, sha256: str) -> None:
        if file_sha256(Storage(part.parent), part.name) != sha256:
            raise StorageError(f"{self.address(name)}: is not the shard that dataset.json lists; copy it again")


def decode_image_into(data: Buffer, out: ByteImage) -> ByteImage:
    """As :func:`datasets_toolkit.shards.codecs.decode_image`, into memory that is there already (h x w x 3, contiguous).

    Raises:
        CodecError: as there, or the image has another size.
    """
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        if (height, width, 3) != out.shape:
            raise CodecError(f"an image of {width} x {height} pixels where {out.shape[1]} x {out.shape[0]} are expected; build it again")
        simplejpeg.decode_jpeg(data, "RGB", buffer=out)
    except ValueError as error:
        raise CodecError(f"not a sound JPEG ({error}); copy or build it again") from error
    return out
