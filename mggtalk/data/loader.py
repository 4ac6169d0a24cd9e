"""Pairs from worker processes: requests go out, packed batches come back, in the order of the plan."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import cv2
from torch.utils.data import DataLoader

from datasets_toolkit.errors import UserError
from datasets_toolkit.native import keep_freed_memory
from datasets_toolkit.shards.codecs import COLUMNS
from datasets_toolkit.shards.reader import AddressBook
from datasets_toolkit.shards.shard_reader import ShardReader
from mggtalk.data.augment import PairTransform
from mggtalk.data.batches import CursorState, EveryPair, TrainBatches
from mggtalk.data.buffers import BufferPool, Placed
from mggtalk.data.packed import PackedBatch, PackedPair
from mggtalk.data.pair_reader import LABELS, Failure, PairReader, Work, batch_of

KEPT = 256
"""Mebibytes of freed memory that a process of training keeps: pictures would be cleared and mapped anew each time."""
SOURCE_LABELS = LABELS
TARGET_LABELS = ("parsing", "matte")
ALWAYS = ("image", "landmarks", "meta")


class _Addressed:
    """The requests with their addresses and blocks, in the process that holds index and pool."""

    def __init__(
        self, requests: TrainBatches | EveryPair, source: AddressBook, target: AddressBook, pool: BufferPool | None, workers: int
    ) -> None:
        self.requests, self.source, self.target, self.pool, self.workers = requests, source, target, pool, workers

    def __len__(self) -> int:
        return len(self.requests)

    def __iter__(self) -> Iterator[Work]:
        if self.pool is not None:
            self.pool.reclaim()  # of an epoch that was left early
        for number, request in enumerate(self.requests):
            sides = ((self.source, request.source), (self.target, request.target))
            source, target = ([book[row] for row in rows.tolist()] for book, rows in sides)
            block = self.pool.lend(number % self.workers) if self.pool is not None else None  # the loader asks its workers in turn
            yield Work(request=request, source=source, target=target, block=block)


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
        wanted = [{*ALWAYS, *labels} for labels in (source_labels, target_labels)]
        books = [AddressBook(reader, [name for name in COLUMNS if name in columns]) for columns in wanted]
        options: dict[str, Any] = {}
        if workers.count:
            options |= {"multiprocessing_context": workers.start, "prefetch_factor": workers.ahead, "persistent_workers": True}
        self._pool = BufferPool() if workers.count else None
        self._pin = workers.pin
        self._loader = DataLoader(
            PairReader(reader.storage, transform or PairTransform()),
            batch_size=None,  # an item is a batch already
            sampler=_Addressed(requests, books[0], books[1], self._pool, workers.count),
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
        if isinstance(batch, Placed):
            assert self._pool is not None  # or there was no block to place it in
            whole = batch_of(self._pool.open(batch), batch.values)
        else:
            whole = batch
            if self._pool is not None:
                self._pool.learn(PackedPair(source=whole.source, target=whole.target))
        return whole.pin_memory() if self._pin else whole

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
            self.requests.load_state_dict(cast(CursorState, state))


def _as_it_is(batch: Any) -> Any:
    return batch


def start_worker(number: int = 0) -> None:
    """Settings of a process that only reads: one thread, signals are left to the training process, freed memory is kept."""
    cv2.setNumThreads(0)
    leave_stops_to_training()
    keep_freed_memory(KEPT)


def leave_stops_to_training() -> None:
    """Outlive signals to the whole group of processes, or training would lose its workers before it has saved.

    SIGTERM is also how the training process ends a worker, so it counts if it comes from there; only Linux tells who sent it.
    """
    for name in ("SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
