"""Which two frames train together: source and target of one clip, chosen by time, head pose or expression, with persons in balance.

Everything here is a pure function of the index and of (seed, epoch): no tar is read to choose a pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from datasets_toolkit.errors import UserError

if TYPE_CHECKING:
    import pyarrow

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BLOCK = 1 << 22
"""Distances that are held at once, so that hour-long clips need no memory to match."""


class PairError(UserError):
    """The data set does not hold the pairs that are asked for."""


@dataclass(frozen=True, kw_only=True)
class PairRule:
    """How far apart the two frames of a pair are; never the same frame twice.

    Attributes:
        measure: ``time`` in seconds; ``pose``, the angle between the head rotations in degrees; ``expression``, the Euclidean distance
            of the 52 blendshape scores.
        minimum: smallest distance of a pair.
        maximum: largest distance of a pair.
    """

    measure: Literal["time", "pose", "expression"] = "time"
    minimum: float = 0.0
    maximum: float = float("inf")

    def __post_init__(self) -> None:
        if self.measure not in ("time", "pose", "expression"):
            raise ValueError(f"measure must be time, pose or expression, got {self.measure!r}")
        if not 0 <= self.minimum <= self.maximum:
            raise ValueError(f"need 0 <= minimum <= maximum, got {self.minimum} and {self.maximum}")


@dataclass(frozen=True, kw_only=True)
class FrameTable:
    """The frames of one split, sorted by clip and time.

    Attributes:
        rows: n, row of ``index.parquet``.
        clip: n, number of the clip, ascending.
        person: n, number of the person.
        time: n, seconds.
        angles: n x 3, yaw, pitch and roll in degrees (:func:`datasets_toolkit.faces.head_pose.euler_degrees`).
        expression: n x 52 blendshape scores.
    """

    rows: IntArray
    clip: IntArray
    person: IntArray
    time: FloatArray
    angles: FloatArray
    expression: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)

    def spans(self) -> Iterator[slice]:
        """The frames of each clip."""
        edges = np.flatnonzero(np.diff(self.clip, prepend=-1, append=-1))
        return (slice(int(first), int(last)) for first, last in pairwise(edges))


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Attributes: source and target (k each), rows of ``index.parquet``."""

    source: IntArray
    target: IntArray

    def __len__(self) -> int:
        return len(self.source)


def people_of(clips: pyarrow.Table) -> dict[str, str]:
    """The person of every clip, by its name."""
    return dict(zip(clips["clip"].to_pylist(), clips["person"].to_pylist(), strict=True))


def frame_table(index: pyarrow.Table, clips: pyarrow.Table, split: str, only: Sequence[str] | None = None) -> FrameTable:
    """The frames of ``split`` as the tables of a data set list them (``docs/shards.md``); with ``only``, of the clips so named.

    Raises:
        PairError: the split has no frames, none of a clip of ``only``, or a clip of the index is missing in ``clips``.
    """
    here = index["split"].to_numpy() == split
    if not here.any():
        raise PairError(f"index.parquet: no sample in split {split!r}; choose another split, or build with a policy that fills it")
    if only is not None:
        present = index["clip"].to_numpy()
        missing = sorted(set(only) - set(present[here]))
        if missing:
            raise PairError(f"index.parquet: split {split!r} has no clip {missing[0]!r}; `mggdata stats` and clips.parquet list the clips")
        here &= np.isin(present, list(only))
    rows = np.flatnonzero(here)
    part = index.select(["clip", "time", "yaw", "pitch", "roll", "expression"]).take(rows)
    names = part["clip"].combine_chunks().dictionary_encode()
    people = people_of(clips)
    unknown = [name for name in names.dictionary.to_pylist() if name not in people]
    if unknown:
        raise PairError(f"clips.parquet: has no clip {unknown[0]!r}, which index.parquet names; build the data set again")
    person_of_clip = np.unique([people[name] for name in names.dictionary.to_pylist()], return_inverse=True)[1]
    clip, time = names.indices.to_numpy().astype(np.int64), part["time"].to_numpy().astype(np.float64)
    order = np.lexsort((time, clip))
    return FrameTable(
        rows=rows[order],
        clip=clip[order],
        person=person_of_clip.astype(np.int64)[clip[order]],
        time=time[order],
        angles=np.stack([part[name].to_numpy() for name in ("yaw", "pitch", "roll")], 1).astype(np.float64)[order],
        expression=part["expression"].combine_chunks().flatten().to_numpy().reshape(len(rows), -1)[order],
    )


def narrowed(table: FrameTable, keep: npt.NDArray[np.bool_]) -> FrameTable:
    """The frames where ``keep`` (n)."""
    return FrameTable(**{field.name: getattr(table, field.name)[keep] for field in fields(FrameTable)})


def tails(table: FrameTable, share: float) -> npt.NDArray[np.bool_]:
    """Which frames (n) are in the last ``share`` of the duration of their clip."""
    late = np.zeros(len(table), bool)
    for span in table.spans():
        first, last = table.time[span.start], table.time[span.stop - 1]
        late[span] = table.time[span] > last - share * (last - first)
    return late


def random_stream(*key: int) -> np.random.Generator:
    """An own stream of random numbers for each key of non-negative integers, the same on every machine."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


class PairPlan:
    """The pairs of every epoch, with a fixed number of pairs.

    Every person has a share of the pairs in proportion to ``frames ** exponent``: with 0 all persons have the same share, with 1 all
    frames, so that whoever was filmed longest dominates. Within a person every frame that has a partner is a source equally often, and its
    target is drawn evenly among the frames of the same clip that the rule allows. Shares that are no whole number are rounded up or
    down at random, right on average over epochs.

    Args:
        table: the frames to choose from.
        rule: which frames of a clip may be a pair.
        pairs: number of pairs in an epoch; by default one for each frame that has a partner.
        exponent: of the persons' shares.

    Raises:
        PairError: no two frames of a clip fulfil the rule.
    """

    def __init__(self, table: FrameTable, rule: PairRule, pairs: int | None = None, exponent: float = 0.0) -> None:
        self.table, self.rule, self.exponent = table, rule, exponent
        self._features = _features(table, rule.measure)
        self.usable = np.concatenate([self._allowed_counts(span) > 0 for span in table.spans()])
        """Which frames have a partner."""
        if not self.usable.any():
            limits = f"between {rule.minimum:g} and {rule.maximum:g}"
            raise PairError(f"index.parquet: no two frames of a clip have a {rule.measure} distance {limits}; widen the pair rule")
        self.pairs = int(self.usable.sum()) if pairs is None else pairs
        sources = np.flatnonzero(self.usable)
        by_person = sources[np.argsort(table.person[sources], kind="stable")]
        self._people = np.split(by_person, np.flatnonzero(np.diff(table.person[by_person])) + 1)

    def epoch(self, seed: int, epoch: int) -> Pairs:
        """The pairs of an epoch in the order in which they are trained on."""
        random = random_stream(seed, epoch)
        quotas = self._quotas(random).tolist()
        sources = np.concatenate([_cycle(frames, count, random) for frames, count in zip(self._people, quotas, strict=True)])
        sources = sources[np.argsort(random.random(len(sources)), kind="stable")]
        targets = self._targets(sources, random.random(len(sources)))
        return Pairs(source=self.table.rows[sources], target=self.table.rows[targets])

    def _quotas(self, random: np.random.Generator) -> IntArray:
        """How many pairs each person has in an epoch; the sum is exact (systematic sampling in random order)."""
        order = np.argsort(random.random(len(self._people)), kind="stable")
        weights = np.array([float(len(frames)) for frames in self._people])[order] ** self.exponent
        edges = np.concatenate([[0], np.cumsum(weights)]) / weights.sum() * self.pairs
        edges[-1] = self.pairs
        quotas = np.empty(len(order), np.int64)
        quotas[order] = np.diff(np.floor(edges + random.random()).astype(np.int64))
        return quotas

    def _targets(self, sources: IntArray, chance: FloatArray) -> IntArray:
        """For every source the partner at that fraction (in [0, 1)) of the list of its partners."""
        targets = np.empty_like(sources)
        order = np.argsort(sources, kind="stable")
        spans = list(self.table.spans())
        edges = np.searchsorted(sources[order], [span.start for span in spans] + [len(self.table)])
        for span, (first, last) in zip(spans, pairwise(edges), strict=True):
            for some in _blocks(order[first:last], span.stop - span.start):
                ranks = self._allowed(span, sources[some]).cumsum(1)
                wanted = np.floor(chance[some] * ranks[:, -1])
                targets[some] = span.start + (ranks > wanted[:, None]).argmax(1)
        return targets

    def _allowed_counts(self, span: slice) -> IntArray:
        frames = np.arange(span.start, span.stop)
        return np.concatenate([self._allowed(span, some).sum(1) for some in _blocks(frames, len(frames))])

    def _allowed(self, span: slice, frames: IntArray) -> npt.NDArray[np.bool_]:
        """Which frames of the clip (columns) may be the target of each of ``frames`` (rows)."""
        distance = _distances(self._features[frames], self._features[span], self.rule.measure)
        allowed = (distance >= self.rule.minimum) & (distance <= self.rule.maximum)
        allowed[np.arange(len(frames)), frames - span.start] = False
        return allowed


def cross_pairs(table: FrameTable, pairs: int, seed: int) -> Pairs:
    """Source and target of two different persons; all persons are sources equally often, and targets on average.

    Raises:
        PairError: the table holds fewer than two persons.
    """
    people = [np.flatnonzero(table.person == person) for person in np.unique(table.person)]
    if len(people) < 2:
        raise PairError("index.parquet: pairs across persons need two persons in the split; there is one")
    random = random_stream(seed)
    first = _cycle(np.arange(len(people)), pairs, random)
    second = (first + 1 + np.floor(random.random(pairs) * (len(people) - 1)).astype(np.int64)) % len(people)
    sides = []
    for side in (first, second):
        chance = random.random(pairs)
        sides.append(np.array([people[who][int(c * len(people[who]))] for who, c in zip(side, chance, strict=True)], np.int64))
    return Pairs(source=table.rows[sides[0]], target=table.rows[sides[1]])


def _cycle(items: IntArray, count: int, random: np.random.Generator) -> IntArray:
    """``count`` items, each equally often but for one: one permutation after the other."""
    rounds = -(-count // len(items))
    return items[np.argsort(random.random((rounds, len(items))), axis=1, kind="stable").ravel()[:count]]


def _blocks(frames: IntArray, width: int) -> Iterator[IntArray]:
    step = max(BLOCK // max(width, 1), 1)
    return (frames[first : first + step] for first in range(0, len(frames), step))


def _features(table: FrameTable, measure: str) -> FloatArray:
    """Features, n x d: time, rotation matrix or expression."""
    if measure == "time":
        return table.time[:, None]
    if measure == "expression":
        return table.expression.astype(np.float64)
    return Rotation.from_euler("YXZ", table.angles * [1, -1, -1], degrees=True).as_matrix().reshape(-1, 9)


def _distances(first: FloatArray, second: FloatArray, measure: str) -> FloatArray:
    """Distances between k and n features, k x n."""
    if measure == "time":
        return np.abs(first - second.T)
    if measure == "pose":  # the trace of R_a^T R_b is 1 + 2 cos(angle)
        return np.degrees(np.arccos(np.clip((first @ second.T - 1) / 2, -1, 1)))
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    return np.asarray(np.sqrt(np.clip(squares, 0, None)))
