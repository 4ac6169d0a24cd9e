"""Checks of decoded samples: their labels against each other, against the index, and against the other frames of their clip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from datasets_toolkit.checks.labels import LABEL_CHECKS
from datasets_toolkit.checks.tables import clip_rows
from datasets_toolkit.checks.tally import Check, Tally
from datasets_toolkit.errors import UserError
from datasets_toolkit.faces.head_pose import euler_degrees
from datasets_toolkit.media.sound import RATE
from datasets_toolkit.sample import FrameSample
from datasets_toolkit.shards.shard_reader import ShardReader

_SOUND = 2  # samples of sound by which rounding may change a length
HASHED = 3
"""Frames of a clip whose pictures are hashed."""


class SampleChecks:
    """All checks of decoded samples, run one sample at a time.

    Args:
        reader: of the data set.
    """

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader
        self._labels = {name: Tally(name, promise, unit) for name, (promise, unit, _) in LABEL_CHECKS.items()}
        self._decoding = Tally("decoding", "every member decodes to the type and size of its column")
        self._record = Tally("record", "what a sample says of itself is what the index and clips.parquet say")
        self._sound = Tally("sound", "a frame's sound lasts until the next frame")
        self._camera = Tally("camera", "a clip has one camera, whatever the crops")
        self._cameras: dict[str, np.ndarray] = {}
        self._silent = 0
        names = ("key", "clip", "index", "time", "yaw", "pitch", "roll", "expression")
        self._columns = {name: reader.index.column(name) for name in names}
        people = zip(reader.clips.column("clip").to_pylist(), reader.clips.column("person").to_pylist(), strict=True)
        self._people = dict(people)
        self._next = _following(reader)

    def test(self, row: int) -> None:
        """Decode and test the sample of an index row."""
        key = self._columns["key"][row].as_py()
        try:
            sample = self.reader.sample(row)
        except UserError as error:
            self._decoding.test(f"sample {key!r}", [str(error)])
            return
        where = f"sample {key!r}"
        self._decoding.test(where)
        for name, (_, _, check) in LABEL_CHECKS.items():
            verdict = check(sample)
            if verdict is not None:
                self._labels[name].test(where, verdict.faults, verdict.value)
        self._record.test(where, self._record_faults(sample, row))
        self._test_sound(sample, row, where)
        self._test_camera(sample, where)

    def done(self) -> list[Check]:
        """The outcome."""
        missing = "the data set has no columns to test this with"
        silent = f"{self._silent} samples without sound" if self._silent else ""
        checks = [self._decoding.done(), self._record.done(), self._camera.done()]
        checks += [tally.done(skipped=missing) for tally in self._labels.values()]
        return [*checks, self._sound.done(measured=silent, skipped="no two neighbouring frames with sound were tested")]

    def _record_faults(self, sample: FrameSample, row: int) -> list[str]:
        meta, told = sample.meta, {name: column[row].as_py() for name, column in self._columns.items()}
        own: dict[str, Any] = {"clip": meta.clip, "index": meta.index, "time": meta.time}
        faults = [f"{name} is {value!r}, in the index {told[name]!r}" for name, value in own.items() if value != told[name]]
        if meta.person != self._people.get(meta.clip, meta.person):
            faults.append(f"person is {meta.person!r}, in clips.parquet {self._people[meta.clip]!r}")
        angles = np.array([told["yaw"], told["pitch"], told["roll"]], float) - euler_degrees(meta.head_to_camera)
        if np.abs((angles + 180) % 360 - 180).max() > 0.01:
            faults.append("yaw, pitch and roll of the index are not those of its pose")
        scores = np.array(told["expression"], float)
        if scores.shape != meta.blendshapes.shape or np.abs(scores - meta.blendshapes).max() > 1e-6:
            faults.append("expression of the index is not its own")
        return faults

    def _test_sound(self, sample: FrameSample, row: int, where: str) -> None:
        if sample.audio is None or row not in self._next:
            return
        if len(sample.audio) == 0:
            self._silent += 1
            return
        wanted = (self._next[row] - sample.meta.time) * RATE
        right = abs(len(sample.audio) - wanted) <= _SOUND
        self._sound.test(where, [] if right else [f"{len(sample.audio)} samples of sound for {wanted:.1f} until the next frame"])

    def _test_camera(self, sample: FrameSample, where: str) -> None:
        """Carried back to the source, the intrinsics of all crops of a clip are the same."""
        meta = sample.meta
        camera = (
            np.linalg.solve(meta.source_to_crop, meta.intrinsics) if abs(np.linalg.det(meta.source_to_crop)) > 1e-12 else meta.intrinsics
        )
        first = self._cameras.setdefault(meta.clip, camera)
        off = float(np.abs(camera - first).max() / max(abs(first[0, 0]), 1e-6))
        self._camera.test(
            where, [f"its camera in source pixels differs from that of other frames by {100 * off:.2g} %"] if off > 1e-4 else []
        )


def _following(reader: ShardReader) -> dict[int, float]:
    """The time of the next frame, for the rows whose next frame in the source has a sample too."""
    indices, times = reader.index.column("index").to_numpy(), reader.index.column("time").to_numpy()
    found: dict[int, float] = {}
    for rows in clip_rows(reader.index).values():
        near = np.flatnonzero(np.diff(indices[rows]) == 1)
        found.update(zip(rows[near].tolist(), times[rows[near + 1]].tolist(), strict=True))
    return found


def choose_rows(reader: ShardReader, count: int | None, seed: int) -> Sequence[int]:
    """All index rows, or ``count`` of them drawn with a seed, in the order in which they lie in the shards."""
    total = len(reader)
    if count is None or count >= total:
        return range(total)
    return sorted(np.random.default_rng(seed).choice(total, count, replace=False).tolist())


def picture_rows(reader: ShardReader, shown: int) -> Iterable[tuple[str, int]]:
    """Clip and index row of ``shown`` frames of each clip, evenly spread."""
    for clip, rows in clip_rows(reader.index).items():
        for place in sorted({int(place) for place in np.linspace(0, len(rows) - 1, min(shown, len(rows))).round()}):
            yield clip, int(rows[place])
