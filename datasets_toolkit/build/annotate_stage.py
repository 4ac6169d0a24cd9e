"""The second pass over a source: crops of the kept clips and all labels, one unit for each clip and family."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.build.clip_frames import ClipFrames, prepare_clip
from datasets_toolkit.build.pipeline import COLUMNS_OF, PICTURES, SEES, AnnotateJob, AnnotateResult, ClipTask, annotator, freeze
from datasets_toolkit.build.source_files import local_copy
from datasets_toolkit.build.stopwatch import Stopwatch
from datasets_toolkit.build.track_stage import frames_of
from datasets_toolkit.build.track_unit import TrackUnit, raw_clip
from datasets_toolkit.build.work import UnitStore
from datasets_toolkit.errors import MediaError
from datasets_toolkit.media.conversion import Window
from datasets_toolkit.media.opening import MediaWarning
from datasets_toolkit.media.sound import SourceSound, read_sound
from datasets_toolkit.media.video import VideoFrame
from datasets_toolkit.native import keep_freed_memory
from datasets_toolkit.shards.codecs import COLUMNS

LOOKS = 8
"""Frames of a clip whose identity embeddings are averaged."""
SYNC_RATE = 25
"""Crops per second for lip sync."""
MARGIN = 0.5
"""Seconds of sound around a clip that annotators of sound are given."""
Samples = list[tuple[str, list[tuple[str, bytes]]]]


def annotate_source(job: AnnotateJob) -> AnnotateResult:
    """Make the missing units of a source's clips."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MediaWarning)  # the first pass has told
        keep_freed_memory()
        return _Annotation(job).run()


class _Annotation:
    """The work of one job."""

    def __init__(self, job: AnnotateJob) -> None:
        self.job, self.store, self.watch = job, UnitStore(Path(job.work)), Stopwatch()
        members = self.store.read("track", job.track_key)
        self.unit = TrackUnit.from_members({name.removeprefix("track."): data for name, data in members.items()})
        self.annotators = {family: annotator(one.class_path, freeze(one.init_args)) for family, one in job.annotators.items()}
        self.frames = self.samples = 0

    def run(self) -> AnnotateResult:
        problem = ""
        try:
            with local_copy(self.job.source.path, self.store) as path:
                self._without_pictures(path)
                self._pictures(path)
                self._in_step(path)
        except MediaError as error:
            problem = str(error)
        return AnnotateResult(frames=self.frames, samples=self.samples, seconds=dict(self.watch.seconds), problem=problem)

    def prepared(self, task: ClipTask) -> ClipFrames:
        """The clip with its crops placed."""
        with self.watch("smoothing"):
            raw = raw_clip(self.unit, self.unit.tracks[task.track], task.first, task.last)
            return prepare_clip(raw, self.unit.info["width"], self.unit.info["height"], self.job.size)

    def _without_pictures(self, path: Path) -> None:
        """Units of landmarks, records and sound."""
        wanted = [task for task in self.job.clips if task.keys.keys() & {"frame", "audio"}]
        sound: SourceSound | None = None
        if any("audio" in task.keys for task in wanted):
            with self.watch("sound"):
                sound = read_sound(path)
        for task in wanted:
            frames = self.prepared(task)
            if "frame" in task.keys:
                with self.watch("encode"):
                    self._write(task, "frame", [self._record(task, frames, row) for row in np.flatnonzero(frames.clip.found).tolist()])
            if "audio" in task.keys:
                with self.watch("audio"):
                    self._write(task, "audio", self._audio(frames, sound))

    def _record(self, task: ClipTask, frames: ClipFrames, row: int) -> tuple[str, list[tuple[str, bytes]]]:
        meta = frames.meta(row, task.names, self.unit.fps)
        values = {"landmarks": frames.landmarks(row).astype(np.float32), "meta": meta}
        return _key(meta.index), _encoded(values)

    def _audio(self, frames: ClipFrames, sound: SourceSound | None) -> Samples:
        clip = frames.clip
        if sound is None:
            values = [{"audio": np.zeros(0, np.int16), "mel": np.zeros((4, 80), np.float16)}] * len(clip.times)
        else:
            part = sound.between(float(clip.times[0]) - MARGIN, float(clip.times[-1]) + MARGIN)
            heard = self.annotators["audio"](part.samples, clip.times, start=part.start)
            values = [{"audio": one.pcm, "mel": one.mel} for one in heard]
        return [(_key(int(clip.indices[row])), _encoded(values[row])) for row in np.flatnonzero(clip.found)]

    def _pictures(self, path: Path) -> None:
        """Units of everything that looks at single crops, in one decode for all clips."""
        waiting = [task for task in self.job.clips if task.keys.keys() & (set(PICTURES) - {"sync"})]
        if not waiting:
            return
        last, active = max(task.last for task in waiting), list[_Labels]()

        def begin(row: int) -> None:
            while waiting and waiting[0].first <= row:
                active.append(_Labels(self, waiting.pop(0)))

        begin(0)
        for row, frame in self._decoded(path, last, lambda row: _union([labels.window for labels in active if labels.wants(row)])):
            for labels in active:
                if labels.wants(row):
                    labels.add(row, frame)
            for labels in [labels for labels in active if labels.task.last == row]:
                labels.finish()
                active.remove(labels)
            begin(row + 1)

    def _decoded(self, path: Path, last: int, part: Callable[[int], Window | None]) -> Iterator[tuple[int, VideoFrame]]:
        """Rows and frames up to ``last``, which must be those of the first pass; ``part`` says what is needed of a row.

        Raises:
            MediaError: they are not: the file has changed.
        """
        rows = {index: row for row, index in enumerate(self.unit.indices.tolist())}
        frames = frames_of(path, self.job.source, lambda index: part(rows[index]) if index in rows else None)
        for row, frame in enumerate(self.watch.each("decode again", frames)):
            if row > last:
                return
            if row >= len(self.unit.times) or frame.index != self.unit.indices[row]:
                raise MediaError(f"{self.job.source.path}: has changed since its faces were tracked; run the same command again")
            self.frames += 1
            yield row, frame

    def _in_step(self, path: Path) -> None:
        """Units of lip sync: crops at a rate of their own, in a decode of their own."""
        for task in self.job.clips:
            if "sync" in task.keys:
                frames, (sound, made) = self.prepared(task), (read_sound(path), self.annotators["sync"])
                score = {"offset": np.nan, "confidence": np.nan, "distance": np.nan}
                if sound is not None:
                    begin, end = float(frames.clip.times[0]), float(frames.clip.times[-1]) + float(1 / self.unit.fps)
                    with self.watch("sync"):
                        found = made(self._even_crops(path, task, frames, begin), sound.filled(begin, end))
                    score = {"offset": found.offset_frames / SYNC_RATE, "confidence": found.confidence, "distance": found.distance}
                self._write(task, "sync", [("sync", [("json", json.dumps(score).encode())])])

    def _even_crops(self, path: Path, task: ClipTask, frames: ClipFrames, begin: float) -> Iterator[FaceCrop]:
        """The crop of the nearest frame with a face, :data:`SYNC_RATE` times a second."""
        clip = frames.clip
        rows = np.flatnonzero(clip.found)
        wanted = np.arange(begin, clip.times[-1] + 1e-6, 1 / SYNC_RATE)
        nearest = rows[np.abs(clip.times[rows][None] - wanted[:, None]).argmin(1)]
        window, needed = frames.window(), set((nearest + task.first).tolist())
        for row, frame in self._decoded(path, task.last, lambda row: window if row in needed else None):
            if row in needed:
                place = row - task.first
                crop = frames.crop(frame.image, place, frame.corner)
                yield from [crop] * int((nearest == place).sum())

    def _write(self, task: ClipTask, family: str, samples: Samples) -> None:
        self.store.write(family, task.keys[family], samples)


class _Labels:
    """The labels of one clip as its frames come in."""

    def __init__(self, work: _Annotation, task: ClipTask) -> None:
        self.work, self.task, self.frames = work, task, work.prepared(task)
        self.window = self.frames.window()
        self.made: dict[str, Samples] = {family: [] for family in task.keys if family in PICTURES and COLUMNS_OF[family]}
        self.needed = _with_seen([*self.made])
        rows = np.flatnonzero(self.frames.clip.found)
        places = np.linspace(0, len(rows) - 1, min(LOOKS, len(rows))).round().astype(int)
        self.looks = set(rows[places].tolist()) if "identity" in task.keys else set()
        self.embeddings: list[Any] = []

    def wants(self, row: int) -> bool:
        """Whether the crop of a row of the source is needed."""
        place = row - self.task.first
        inside = 0 <= place < len(self.frames.clip.found)
        return bool(inside and self.frames.clip.found[place] and (self.made or place in self.looks))

    def add(self, row: int, frame: VideoFrame) -> None:
        """Annotate the crop of a decoded frame that shows the face."""
        place, watch = row - self.task.first, self.work.watch
        with watch("crop"):
            crop = self.frames.crop(frame.image, place, frame.corner)
        if place in self.looks:
            with watch("identity"):
                self.embeddings.append(self.work.annotators["identity"](crop))
        values = self._annotate(crop)
        with watch("encode"):
            for family, samples in self.made.items():
                samples.append((_key(frame.index), _encoded({name: values[name] for name in COLUMNS_OF[family]})))
        self.work.samples += 1

    def finish(self) -> None:
        """Write the units."""
        with self.work.watch("write"):
            for family, samples in self.made.items():
                self.work._write(self.task, family, samples)
            if "identity" in self.task.keys:
                mean = np.mean(self.embeddings, axis=0)
                mean = (mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32)
                self.work._write(self.task, "identity", [("identity", [("npy", COLUMNS["landmarks"].encoder(mean))])])

    def _annotate(self, crop: FaceCrop) -> dict[str, Any]:
        """Values of all columns that are to be written."""
        watch, made = self.work.watch, self.work.annotators
        values: dict[str, Any] = {"image": crop.image}
        if "parsing" in self.needed:
            with watch("parsing"):
                parsing = made["parsing"](crop)
            values.update(parsing=parsing.labels, matte=np.asarray(cv2.convertScaleAbs(parsing.matte, alpha=255), np.uint8))
        if "depth" in self.needed:
            with watch("depth"):
                values["depth"] = made["depth"](crop, parsing)
        if "normals" in self.needed:
            with watch("normals"):
                values["normals"] = made["normals"](crop, parsing, values["depth"])
        return values


def _with_seen(families: Sequence[str]) -> set[str]:
    """Families and all those whose output they are given."""
    return {*families, *(other for family in families for other in SEES.get(family, ()))}


def _union(windows: Sequence[Window]) -> Window | None:
    """The smallest window that holds all; None if there is none."""
    if not windows:
        return None
    left, top, right, bottom = zip(*windows, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _key(index: int) -> str:
    return f"{index:06d}"


def _encoded(values: dict[str, Any]) -> list[tuple[str, bytes]]:
    return [(COLUMNS[name].member, COLUMNS[name].encode(value)) for name, value in values.items()]
