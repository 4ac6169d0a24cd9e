"""The order of an epoch, cut into global batches and those into ranks; where it stands; and the data set that reads a batch.

One global batch is ``plan[g B : (g + 1) B]`` whatever the number of ranks W, and rank r takes its r-th W-th. So all ranks make the same
number of steps, and {seed, epoch, g} says where training stands for every rank, at every world size and number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from datasets_toolkit.errors import UserError
from mggtalk.data.pairs import PairPlan, Pairs

IntArray = npt.NDArray[np.int64]


class CursorState(TypedDict):
    """What a checkpoint holds of a :class:`Cursor`, and of the plan that it counts in."""

    seed: int
    epoch: int
    global_batch: int
    batch_size: int
    pairs: int


@dataclass(frozen=True)
class Cursor:
    """The next global batch to be trained on. Attributes: seed, epoch, global_batch (its number in the epoch)."""

    seed: int
    epoch: int = 0
    global_batch: int = 0


@dataclass(frozen=True, kw_only=True)
class Request:
    """One rank's share of a global batch, as a loader's worker gets it.

    Attributes:
        seed: of the plan.
        epoch: of the plan.
        number: of the global batch in its epoch.
        positions: k, places of the pairs in the epoch; what is random about a pair depends on it.
        source: k, rows of ``index.parquet``.
        target: k, rows of ``index.parquet``.
        valid: k, False where a last batch is filled up.
    """

    seed: int
    epoch: int
    number: int
    positions: IntArray
    source: IntArray
    target: IntArray
    valid: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Share:
    """Which part of every global batch a process reads. Attributes: batch_size (of a global batch), rank, world.

    Raises:
        UserError: the ranks cannot have equal parts.
    """

    batch_size: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.world:
            near = max(self.batch_size // self.world, 1) * self.world
            raise UserError(f"batch_size: a global batch of {self.batch_size} cannot be shared by {self.world} processes; take {near}")
        if not 0 <= self.rank < self.world:
            raise ValueError(f"rank {self.rank} of {self.world}")

    def request(self, pairs: Pairs, cursor: Cursor) -> Request:
        """The part of a global batch that is this process's; where the pairs end, the last is repeated and marked as not valid."""
        size = self.batch_size // self.world
        positions = cursor.global_batch * self.batch_size + self.rank * size + np.arange(size)
        kept = np.minimum(positions, len(pairs) - 1)
        return Request(
            seed=cursor.seed,
            epoch=cursor.epoch,
            number=cursor.global_batch,
            positions=positions,
            source=pairs.source[kept],
            target=pairs.target[kept],
            valid=positions < len(pairs),
        )


class TrainBatches:
    """The requests of an epoch, from where the cursor stands; pairs beyond the last whole global batch wait for another epoch.

    Args:
        plan: the pairs of every epoch.
        share: of this process.
        seed: of the plan.

    Raises:
        UserError: an epoch has fewer pairs than a global batch.
    """

    def __init__(self, plan: PairPlan, share: Share, seed: int = 0) -> None:
        self.plan, self.share, self.cursor = plan, share, Cursor(seed)
        if not len(self):
            pairs = f"an epoch of {plan.pairs} pairs has no batch of {share.batch_size}"
            raise UserError(f"batch_size: {pairs}; lower it, or ask for more pairs")

    def __len__(self) -> int:
        """Global batches of a whole epoch, wherever the cursor stands."""
        return self.plan.pairs // self.share.batch_size

    def __iter__(self) -> Iterator[Request]:
        """Requests of the rest of the epoch, or of the next one if this one is through. The cursor stays: see :meth:`received`."""
        if self.cursor.global_batch >= len(self):
            self.cursor = Cursor(self.cursor.seed, self.cursor.epoch + 1)
        start = self.cursor
        pairs = self.plan.epoch(start.seed, start.epoch)
        for number in range(start.global_batch, len(self)):
            yield self.share.request(pairs, replace(start, global_batch=number))

    def received(self, epoch: int, number: int) -> None:
        """The trainer has that batch now: the next to come is the one after it. Batches that only workers hold do not count."""
        self.cursor = Cursor(self.cursor.seed, epoch, number + 1)

    def set_epoch(self, epoch: int) -> None:
        """Go to the begin of an epoch; in the epoch itself this changes nothing, so that a resumed one goes on."""
        if epoch != self.cursor.epoch:
            self.cursor = Cursor(self.cursor.seed, epoch)

    def state_dict(self) -> CursorState:
        """The cursor, the same on every rank."""
        place = self.cursor
        return CursorState(
            seed=place.seed,
            epoch=place.epoch,
            global_batch=place.global_batch,
            batch_size=self.share.batch_size,
            pairs=self.plan.pairs,
        )

    def load_state_dict(self, state: CursorState) -> None:
        """Stand where the checkpoint stood, with its seed.

        Raises:
            UserError: it stood in the middle of an epoch that was cut into other batches.
        """
        for name, ours in (("batch_size", self.share.batch_size), ("pairs", self.plan.pairs)):
            if state["global_batch"] and state[name] != ours:  # type: ignore[literal-required]
                theirs = state[name]  # type: ignore[literal-required]
                raise UserError(f"{name}: the checkpoint was made in mid-epoch with {theirs}, this run has {ours}; set it to {theirs}")
        self.cursor = Cursor(state["seed"], state["epoch"], state["global_batch"])


class EveryPair:
    """Requests that show every pair of a list once, in order: for validation. The last batch is filled up and masked."""

    def __init__(self, pairs: Pairs, share: Share, seed: int = 0) -> None:
        self.pairs, self.share, self.seed = pairs, share, seed

    def __len__(self) -> int:
        return -(-len(self.pairs) // self.share.batch_size)

    def __iter__(self) -> Iterator[Request]:
        return (self.share.request(self.pairs, Cursor(self.seed, 0, number)) for number in range(len(self)))
