"""Reading pairs in worker processes: requests go in, packed batches come out, in the order of the plan."""

from __future__ import annotations

import ctypes
import platform
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets_toolkit.codecs import COLUMNS, CodecError, decode_image
from datasets_toolkit.errors import UserError
from datasets_toolkit.reader import Address, AddressBook, decode_image_into
from datasets_toolkit.sample import FrameMeta
from datasets_toolkit.shards import ShardError, ShardReader
from datasets_toolkit.storage import Storage
from mggtalk.data.augment import PairTransform
from mggtalk.data.batches import EveryPair, Request, TrainBatches
from mggtalk.data.buffers import Array, BlockWriter, BufferPool, Placed, ShapeError, tensors_of
from mggtalk.data.packed import PackedBatch, PackedFrame, collate
from mggtalk.data.pairs import random_stream
from mggtalk.types import Camera

LABELS = ("parsing", "matte", "depth", "normals")
"""Columns that may be left out; image, landmarks and meta are always read."""
SOURCE_LABELS = LABELS
TARGET_LABELS = ("parsing", "matte")
ALWAYS = ("image", "landmarks", "meta")


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


class _Addressed:
    """The requests with their addresses and blocks, in the process that holds index and pool."""

    def __init__(self, requests: TrainBatches | EveryPair, source: AddressBook, target: AddressBook, pool: BufferPool | None) -> None:
        self.requests, self.source, self.target, self.pool = requests, source, target, pool

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Work]:
        if self.pool is not None:
            self.pool.reclaim()  # of an epoch that was left early
        for request in self.requests:
            source, target = ([book[row] for row in rows.tolist()] for book, rows in ((self.source, request.source), (self.target, request.target)))
            yield Work(request=request, source=source, target=target, block=self.pool.lend() if self.pool is not None else None)


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
        count = len(work.source)
        try:
            if work.block is None:
                return collate(_equal([self.pair(work, number) for number in range(count)]))
            places = self._writer.place(partial(self.pair, work), count, work.block)
        except ShapeError as error:
            return Failure(f"{self.storage.root}: these samples make no batch ({error}); set the transform's size")
        except UserError as error:
            return Failure(str(error))
        return Placed(block=work.block, places=places, values={"epoch": work.request.epoch, "number": work.request.number})

    def pair(self, work: Work, number: int, rows: Sequence[Array] = ()) -> PackedBatch:
        """One pair of a request, without a batch dimension.

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
        first, second = self.transform(first, second, generator, same_video=meta.source == other.source)
        return PackedBatch(
            source=first.map(_single),
            target=second.map(_single),
            valid=torch.tensor(bool(request.valid[number])),
            rows=torch.tensor([int(request.source[number]), int(request.target[number])]),
            epoch=request.epoch,
            number=request.number,
        )


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


def _decode(name: str, data: bytes, size: int, into: Array | None) -> Any:
    """As the column decodes it, but normals stay bytes; in ``into`` if that is of this size."""
    fits = into is not None and into.shape[:2] == (size, size)
    if fits and name in ("image", "normals"):
        return decode_image_into(data, into)
    value = COLUMNS["image"].check(decode_image(data), size) if name == "normals" else COLUMNS[name].decode(data, size)
    if not fits:
        return value
    np.copyto(into, value)  # now, while the value lies in the cache and its memory can serve the next one
    return into


def _equal(pairs: list[PackedBatch]) -> list[PackedBatch]:
    """The pairs, if all their pictures have one size."""
    if len({pair.source.image.shape for pair in pairs}) > 1:
        raise ShapeError("crops of different sizes cannot be stacked")
    return pairs


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor


@dataclass(frozen=True, kw_only=True)
class Workers:
    """The processes that read.

    Attributes:
        count: 0 reads in the training process itself.
        start: how they are started. ``spawn`` is safe beside threads; ``fork`` starts at once, but may hang beside them.
        ahead: batches that each prepares in advance; they lie in shared memory (``/dev/shm``).
        pin: whether batches are copied to page-locked memory, for asynchronous copies to a GPU.
    """

    count: int = 0
    start: Literal["spawn", "forkserver", "fork"] = "spawn"
    ahead: int = 2
    pin: bool = False


class PairLoader:
    """Packed batches in the order of their requests. What it yields does not depend on the workers.

    Args:
        reader: of the data set.
        requests: which pairs; training goes on from where their cursor stands when the first batch is asked for.
        transform: of each pair.
        workers: the processes that read.
        source_labels: which of :data:`LABELS` are read for sources.
        target_labels: which are read for targets.

    Raises:
        UserError: the data set lacks a column that is asked for.
    """

    def __init__(
        self,
        reader: ShardReader,
        requests: TrainBatches | EveryPair,
        transform: PairTransform | None = None,
        workers: Workers | None = None,
        source_labels: tuple[str, ...] = SOURCE_LABELS,
        target_labels: tuple[str, ...] = TARGET_LABELS,
    ) -> None:
        self.requests, workers = requests, workers or Workers()
        books = [AddressBook(reader, tuple(name for name in COLUMNS if name in (*ALWAYS, *labels))) for labels in (source_labels, target_labels)]
        options: dict[str, Any] = {}
        if workers.count:
            options |= {"multiprocessing_context": workers.start, "prefetch_factor": workers.ahead, "persistent_workers": True}
        self._pool = BufferPool() if workers.count else None
        self._pin = workers.pin
        self._loader = DataLoader(
            PairReader(reader.storage, transform or PairTransform()),
            batch_size=None,  # an item is a batch already
            sampler=_Addressed(requests, *books, self._pool),  # type: ignore[arg-type]
            num_workers=workers.count,
            collate_fn=_as_it_is,
            worker_init_fn=start_worker,
            **options,
        )

    batch_sampler = None  # Lightning asks for it, as torch's DataLoader has one

    def __len__(self) -> int:
        """Global batches of a whole epoch."""
        return len(self.requests)

    def __iter__(self) -> Iterator[PackedBatch]:
        """The batches of the epoch; nothing is read before the first is asked for, and the cursor moves as each is handed out.

        Raises:
            UserError: a sample cannot be read.
        """
        for batch in self._loader:
            if isinstance(batch, Failure):
                raise UserError(batch.message)
            whole = self._whole(batch)
            if isinstance(self.requests, TrainBatches):
                self.requests.received(whole.epoch, whole.number)
            yield whole
            del batch, whole  # or their block could not be lent while the next batch is waited for

    def _whole(self, batch: PackedBatch | Placed) -> PackedBatch:
        if self._pool is not None and isinstance(batch, Placed):
            batch = self._pool.open(batch)
        elif self._pool is not None:
            self._pool.learn(batch)
        return batch.pin_memory() if self._pin else batch

    @property
    def sampler(self) -> TrainBatches | EveryPair:
        """Where Lightning looks for ``set_epoch``."""
        return self.requests

    def state_dict(self) -> Mapping[str, Any]:
        """The cursor, so that Lightning knows that this loader goes on in mid-epoch; empty for validation."""
        return self.requests.state_dict() if isinstance(self.requests, TrainBatches) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where the checkpoint stood."""
        if isinstance(self.requests, TrainBatches) and state:
            self.requests.load_state_dict(state)  # type: ignore[arg-type]


def _as_it_is(batch: Any) -> Any:
    return batch


def start_worker(number: int = 0) -> None:
    """Settings of a process that only reads: one thread, interrupts are left to the training process, freed memory is kept."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_memory()


def keep_memory(size: int = 1 << 28) -> None:
    """Let the C library reuse freed memory instead of returning it to the system: pictures would be cleared and mapped anew each time.

    Only glibc has the setting (mallopt, M_TRIM_THRESHOLD and M_MMAP_THRESHOLD); elsewhere nothing changes.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        for parameter in (-1, -3):
            library.mallopt(parameter, size)
