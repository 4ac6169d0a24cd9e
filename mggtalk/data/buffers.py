"""Batches in shared memory that is used again and again.

A fresh piece of memory costs more than the copy into it: the system clears and maps every page that is touched for the first time, in the
worker and again in the training process. So the training process lends its workers blocks that both have mapped already. Tensors look
straight into a block, and it is lent again only when none of them is left, however they are sliced, viewed or stored.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mggtalk.types import TensorRecord

Array = npt.NDArray[Any]
ALIGNMENT = 64


class ShapeError(ValueError):
    """Records that cannot be one batch."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a block. Attributes: offset (bytes), shape and dtype (NumPy's name)."""

    offset: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Placed:
    """What a worker sends for a record of stacked tensors: their places in the order of :func:`tensors_of`, and what else it knows."""

    block: str
    places: list[Place]
    values: dict[str, Any]


def tensors_of(record: TensorRecord) -> Iterator[Tensor]:
    """All tensors of a record, nested ones too, in the order of the fields."""
    for name in record.__dataclass_fields__:  # type: ignore[attr-defined]
        value = getattr(record, name)
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, TensorRecord):
            yield from tensors_of(value)


def layout(shapes: list[tuple[tuple[int, ...], str]]) -> tuple[list[Place], int]:
    """Places of tensors of those shapes and dtypes one after the other, and the bytes they need."""
    places, end = [], 0
    for shape, dtype in shapes:
        places.append(Place(end, shape, dtype))
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return places, end


class _Leased(np.ndarray[Any, Any]):
    """An array that keeps its lease; torch keeps the array for as long as any tensor uses its memory."""

    lease: _Lease


class _Lease:
    """Gives the block back when the last array is gone."""

    def __init__(self, pool: BufferPool, block: SharedMemory) -> None:
        self.pool, self.block = pool, block  # arrays do not keep their block mapped, this does

    def __del__(self) -> None:
        self.pool.give_back(self.block)


class BufferPool:
    """The blocks of a loader, owned by the process that trains. They have one size, learnt from the first batch."""

    def __init__(self) -> None:
        self._form: TensorRecord | None = None
        self._size = 0
        self._blocks: dict[str, SharedMemory] = {}
        self._free: list[SharedMemory] = []
        self._lent: set[str] = set()
        self._users: dict[str, int] = {}
        tracker = SharedMemory(create=True, size=1)  # starts what watches over shared memory: forked workers must find it running
        tracker.close()
        tracker.unlink()
        self._remove = weakref.finalize(self, _unlink, self._blocks)  # at the latest when the process ends

    def __len__(self) -> int:
        """How many blocks there are."""
        return len(self._blocks)

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("the blocks belong to one process")

    def learn(self, batch: TensorRecord) -> None:
        """Take the size of the blocks, and the form of batches, from a batch that came without a block."""
        if self._form is None:
            self._size = layout([(tuple(tensor.shape), _dtype(tensor)) for tensor in tensors_of(batch)])[1]
            self._form = batch.map(lambda tensor: tensor.new_empty(1).expand(tensor.shape))

    def reclaim(self) -> None:
        """Take back what was lent to workers whose results will not be asked for any more."""
        self._free += [self._blocks[name] for name in self._lent]
        self._lent.clear()

    def lend(self, worker: int = 0) -> str | None:
        """The name of a block for the next batch; None as long as its size is not known.

        One that the same worker has had before goes first: it has mapped its pages already.
        """
        if not self._size:
            return None
        mine = [place for place, block in enumerate(self._free) if self._users[block.name] == worker]
        block = self._free.pop(mine[-1] if mine else -1) if self._free else self._new()
        self._lent.add(block.name)
        self._users[block.name] = worker
        return block.name

    def open(self, placed: Placed) -> Any:
        """What a worker has placed, a record like the one learnt from."""
        assert self._form is not None
        self._lent.discard(placed.block)
        block = self._blocks[placed.block]
        lease = _Lease(self, block)
        tensors = iter([_tensor(place, block, lease) for place in placed.places])
        return self._form.map(lambda _: next(tensors))

    def give_back(self, block: SharedMemory) -> None:
        """A block that nothing looks into any more."""
        if block.name in self._blocks:
            self._free.append(block)

    def close(self) -> None:
        """Remove the blocks; those that tensors still look into vanish with them."""
        self._remove()
        self._free.clear()

    def _new(self) -> SharedMemory:
        block = SharedMemory(create=True, size=self._size)
        self._blocks[block.name] = block
        return block


class BlockWriter:
    """A worker's side: the blocks it was lent before stay mapped."""

    def __init__(self) -> None:
        self._blocks: dict[str, SharedMemory] = {}
        self._arrays: dict[str, list[tuple[Array, int]]] = {}
        self._places: list[Place] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"_blocks": {}, "_arrays": {}, "_places": []}

    def place(self, make: Callable[[int, list[Array]], TensorRecord], count: int, name: str) -> list[Place]:
        """Stack ``count`` equal-shaped records in the block, float64 as float32.

        Each is copied as soon as it is there, so that the memory it was made in, still in the cache, serves the next one.

        Args:
            make: gives a record from its number and, but for the very first, from the arrays where its tensors will lie; what it has
                put there itself is not copied.
            count: of the records.
            name: of the block.

        Raises:
            ShapeError: the records have different shapes, or do not fit.
        """
        for number in range(count):
            record = make(number, self._rows(name, number))
            tensors = list(tensors_of(record))
            if not self._places:
                self._learn(tensors, count, name)
            for (array, start), tensor in zip(self._arrays_of(name), tensors, strict=True):
                if array.shape[1:] != tensor.shape:
                    raise ShapeError("records of different shapes cannot be stacked")
                if tensor.data_ptr() != start + number * array.strides[0]:
                    array[number] = tensor.numpy()
        return self._places

    def _learn(self, tensors: list[Tensor], count: int, name: str) -> None:
        places, size = layout([((count, *tensor.shape), _dtype(tensor)) for tensor in tensors])
        if size > self._block(name).size:
            raise ShapeError(f"a batch of {size} bytes does not fit where one of {self._block(name).size} did")
        self._places = places

    def _rows(self, name: str, number: int) -> list[Array]:
        return [array[number, ...] for array, _ in self._arrays_of(name)]

    def _arrays_of(self, name: str) -> list[tuple[Array, int]]:
        """The stacked arrays in a block and their addresses; none before the first record has told the places."""
        if name not in self._arrays and self._places:
            buffer = self._block(name).buf
            arrays = [np.ndarray(place.shape, place.dtype, buffer, place.offset) for place in self._places]
            self._arrays[name] = [(array, array.ctypes.data) for array in arrays]
        return self._arrays.get(name, [])

    def _block(self, name: str) -> SharedMemory:
        if name not in self._blocks:
            self._blocks[name] = SharedMemory(name=name)
        return self._blocks[name]


def _unlink(blocks: dict[str, SharedMemory]) -> None:
    """Remove the names; the memory stays for those who hold it. Closing it would pull it away from under living arrays."""
    for block in blocks.values():
        with suppress(FileNotFoundError):
            block.unlink()
    blocks.clear()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.").replace("float64", "float32")


def _tensor(place: Place, block: SharedMemory, lease: _Lease) -> Tensor:
    array = _Leased(place.shape, place.dtype, block.buf, place.offset)
    array.lease = lease
    return torch.from_numpy(array)
