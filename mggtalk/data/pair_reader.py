"""What a worker does with a request: read the samples of its pairs, decode, transform and batch them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets_toolkit.errors import UserError
from datasets_toolkit.sample import FrameMeta
from datasets_toolkit.shards.codec_checks import Buffer
from datasets_toolkit.shards.codecs import COLUMNS, CodecError, decode_depth, decode_image, decode_matte, decode_parsing
from datasets_toolkit.shards.reader import Address, decode_image_into
from datasets_toolkit.shards.storage import Storage
from datasets_toolkit.shards.tars import ShardError
from mggtalk.data.augment import PairTransform
from mggtalk.data.batches import Request
from mggtalk.data.buffers import Array, BlockWriter, Placed, ShapeError, tensors_of
from mggtalk.data.packed import PackedBatch, PackedFrame, PackedPair, collate
from mggtalk.data.pairs import random_stream
from mggtalk.types import Camera

LABELS = ("parsing", "matte", "depth", "normals")
"""Columns that may be left out; image, landmarks and meta are always read."""
_INTO: dict[str, Callable[[Buffer, Array], Array]] = {"parsing": decode_parsing, "matte": decode_matte, "depth": decode_depth}


@dataclass(frozen=True, kw_only=True)
class Work:
    """A request with the addresses of its samples, as it goes to a worker."""

    request: Request
    source: list[Address]
    target: list[Address]
    block: str | None  # of shared memory, for the batch


@dataclass(frozen=True)
class Failure:
    """A mistake of the user found in a worker; raised again in the main process, so that its message stays one line."""

    message: str


class PairReader(Dataset[Any]):
    """Reads and transforms the pairs of a request; holds no open file and no table, so it may be sent to any process.

    Args:
        storage: of the data set.
        transform: of each pair.
    """

    def __init__(self, storage: Storage, transform: PairTransform) -> None:
        self.storage, self.transform, self._writer = storage, transform, BlockWriter()
        self._tensors = 0  # of a source frame, once known

    def __getitem__(self, work: Work) -> PackedBatch | Placed | Failure:
        """The packed batch, where it lies in its block, or why it cannot be had."""
        count, facts = len(work.source), _facts(work.request)
        try:
            if work.block is None:
                pairs = collate(_equal([self.pair(work, number) for number in range(count)])).map(single)
                return batch_of(pairs, facts)
            places = self._writer.place(partial(self.pair, work), count, work.block)
        except ShapeError as error:
            return Failure(f"{self.storage.root}: these samples make no batch ({error}); set the transform's size")
        except UserError as error:
            return Failure(str(error))
        return Placed(block=work.block, places=places, values=facts)

    def pair(self, work: Work, number: int, rows: Sequence[Array] = ()) -> PackedPair:
        """One pair of a request, cameras in float64.

        Args:
            work: the request.
            number: of the pair in it.
            rows: where the tensors will lie, if that is known: pictures and labels are decoded there.

        Raises:
            UserError: it cannot be read.
        """
        request = work.request
        first, meta = read_frame(work.source[number], self.storage, rows)
        place = self._tensors = self._tensors or len(list(tensors_of(first)))
        second, other = read_frame(work.target[number], self.storage, rows[place:])
        key = (request.seed, request.epoch, int(request.positions[number]))
        generator = random_stream(*key) if self.transform.random else None
        source, target = self.transform(first, second, generator, same_video=meta.source == other.source)
        return PackedPair(source=source, target=target)


def batch_of(pairs: PackedPair, facts: dict[str, Any]) -> PackedBatch:
    """A batch from its stacked pairs and what :class:`Placed` says besides."""
    arrays = {name: torch.from_numpy(facts[name]) for name in ("valid", "rows")}
    return PackedBatch(source=pairs.source, target=pairs.target, epoch=facts["epoch"], number=facts["number"], **arrays)


def _facts(request: Request) -> dict[str, Any]:
    """What a batch holds besides its frames; arrays, for a tensor would travel by a file handle of its own."""
    rows = np.stack([request.source, request.target], 1)
    return {"valid": request.valid, "rows": rows, "epoch": request.epoch, "number": request.number}


def read_frame(address: Address, storage: Storage, rows: Sequence[Array] = ()) -> tuple[PackedFrame, FrameMeta]:
    """A sample as it is stored, cameras in float64, and its record.

    Args:
        address: of the sample.
        storage: of the data set.
        rows: memory for the picture and the labels, in the order of :class:`PackedFrame`; used where the size is right.

    Raises:
        ShardError: a member is damaged, or the sample is another than the index says.
        StorageError: the shard cannot be read.
    """
    data = address.read(storage)
    name = "meta"
    try:
        meta: FrameMeta = COLUMNS["meta"].decode(data.pop("meta"))
        if meta.key != address.key:
            raise CodecError(f"it is the record of {meta.key}; index and shards do not belong together, build the data set again")
        values: dict[str, Any] = dict.fromkeys(LABELS)
        memory = dict(zip([column for column in ("image", *LABELS) if column in data], rows, strict=False))
        for name, member in data.items():
            values[name] = torch.from_numpy(_decode(name, member, meta.size, memory.get(name)))
    except CodecError as error:
        raise ShardError(f"{storage.address(address.shard)}: sample {address.key}, member {COLUMNS[name].member}: {error}") from error
    camera = Camera(intrinsics=torch.from_numpy(meta.intrinsics), head_to_camera=torch.from_numpy(meta.head_to_camera))
    matrices = {"blendshapes": torch.from_numpy(meta.blendshapes), "source_to_crop": torch.from_numpy(meta.source_to_crop)}
    return PackedFrame(camera=camera, **matrices, **values), meta


def _decode(name: str, data: Buffer, size: int, into: Array | None) -> Any:
    """As the column decodes it, but normals stay bytes; in ``into`` if that is of this size."""
    picture = name in ("image", "normals")
    if picture and into is not None and into.shape == (size, size, 3):
        return decode_image_into(data, into)
    if picture:
        return COLUMNS["image"].check(decode_image(data), size)
    if name in _INTO and into is not None and into.shape == (size, size):
        return COLUMNS[name].check(_INTO[name](data, into), size)
    return COLUMNS[name].decode(data, size)


def _equal(pairs: list[PackedPair]) -> list[PackedPair]:
    """The pairs, if all their pictures have one size."""
    if len({pair.source.image.shape for pair in pairs}) > 1:
        raise ShapeError("crops of different sizes cannot be stacked")
    return pairs


def single(tensor: Tensor) -> Tensor:
    """Double precision becomes single, which batches have; all else stays."""
    return tensor.float() if tensor.dtype == torch.float64 else tensor
