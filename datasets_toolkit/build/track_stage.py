"""The first pass over a source: checks, shot cuts, faces, candidate clips and their scores."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from datasets_toolkit.build.clip_frames import prepare_clip
from datasets_toolkit.build.config import TrackingConfig
from datasets_toolkit.build.cuts import STILL, CutDetector, with_cuts
from datasets_toolkit.build.face_tracks import FaceFollower
from datasets_toolkit.build.pipeline import TrackJob, TrackResult, track_key, tracker
from datasets_toolkit.build.scores import LOOK, clip_scores, look
from datasets_toolkit.build.source_files import content_of, forget_content, known_content, local_copy
from datasets_toolkit.build.sources import FEWEST, check_header, check_sound, check_times
from datasets_toolkit.build.stopwatch import Stopwatch
from datasets_toolkit.build.tombstones import Tombstones
from datasets_toolkit.build.track_unit import Track, TrackBuilder, TrackUnit, clip_ranges, inside_box, raw_clip
from datasets_toolkit.build.work import UnitStore
from datasets_toolkit.errors import MediaError
from datasets_toolkit.media.conversion import Window
from datasets_toolkit.media.opening import MediaWarning
from datasets_toolkit.media.sound import SourceSound, level, read_sound
from datasets_toolkit.media.video import VideoFrame, probe, read_frames
from datasets_toolkit.native import keep_freed_memory
from datasets_toolkit.recipes.base import BOX, Source


def track_source(job: TrackJob) -> TrackResult:
    """Find the faces of a source, or the unit that holds them."""
    watch, store, content, frames = Stopwatch(), UnitStore(Path(job.work)), "", 0
    keep_freed_memory()
    try:
        with watch("hash"):
            content = content_of(job.source.path, store)
        if Tombstones(store.root).stretch(content, job.source):
            forget_content(job.source.path, store)
            return TrackResult(purged=True)
        key = track_key(content, job.source, job.tracking)
        if not store.has("track", key):
            with local_copy(job.source.path, store) as path:
                unit = _examine(path, job.source, job.tracking, watch)
            frames = len(unit.times)
            store.write("track", key, [("track", unit.members())])
    except MediaError as error:
        return TrackResult(content=content, problems=[str(error)], rejected=True, seconds=dict(watch.seconds))
    return _result(job, store, content, key, frames, watch)


def known_track(job: TrackJob, purged_too: bool = False) -> TrackResult | None:
    """What :func:`track_source` would answer, if all of it is there already; ``purged_too``: or did before it was purged."""
    store = UnitStore(Path(job.work))
    try:
        content = known_content(job.source.path, store)
    except MediaError:
        return None
    if content is None or not store.has("track", key := track_key(content, job.source, job.tracking)):
        return None
    if not purged_too and Tombstones(store.root).stretch(content, job.source):
        return None
    return _result(job, store, content, key, 0, Stopwatch())


def _result(job: TrackJob, store: UnitStore, content: str, key: str, frames: int, watch: Stopwatch) -> TrackResult:
    facts = json.loads(store.first("track", key))
    rejected = facts["info"]["rejected"]
    problems = [f"{job.source.path}: {rejected}"] if rejected else []
    return TrackResult(
        content=content,
        key=key,
        info=facts["info"],
        clips=[] if rejected else facts["clips"],
        problems=[*problems, *facts["info"]["problems"]],
        rejected=bool(rejected),
        frames=frames,
        seconds=dict(watch.seconds),
    )


def frames_of(path: Path, source: Source, part: Callable[[int], Window | None] | None = None) -> Iterator[VideoFrame]:
    """The decoded frames of a source's stretch; ``part`` as for :func:`datasets_toolkit.media.video.read_frames`."""
    for frame in read_frames(path, start=source.start, part=part):
        if source.end is not None and frame.time >= source.end:
            return
        yield frame


def _examine(path: Path, source: Source, tracking: TrackingConfig, watch: Stopwatch) -> TrackUnit:
    """The unit of a source; its ``info["rejected"]`` says why it is useless, '' if it is not.

    Raises:
        MediaError: nothing of it can be read.
    """
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", MediaWarning)
        with watch("checks"):
            check_header(path)
            header = probe(path)
        with watch("sound"):
            sound = read_sound(path)
        unit, change = _follow(path, source, tracking, watch)
    damage = [str(one.message).removeprefix(f"{path}: ") for one in told if issubclass(one.category, MediaWarning)]
    info = unit.info
    info.update(width=header.width, height=header.height, fps=str(header.fps), has_audio=sound is not None, problems=damage)
    info.update(variable=False, duration=header.duration or 0.0, frames=len(unit.times), rejected="")
    if len(unit.times) < FEWEST:
        info["rejected"] = f"a still image: {len(unit.times)} frame(s) from start to end; give a video"
        return unit
    timing = check_times(unit.times, header.fps)
    duration = float(unit.times[-1] - unit.times[0]) + float(1 / timing.fps)
    info.update(fps=str(timing.fps), variable=timing.variable, duration=duration)
    info["problems"] = [*damage, *timing.problems, *check_sound(sound, unit.times.tolist(), header.has_audio)]
    if change < STILL:
        info["rejected"] = "a still image: the picture does not change; give a video"
        return unit
    with watch("scores"):
        unit.clips.extend(_candidates(unit, source, tracking, sound))
    if not unit.clips:
        info["rejected"] = f"no face of at least {tracking.min_face:g} pixels in any frame"
    return unit


def _follow(path: Path, source: Source, tracking: TrackingConfig, watch: Stopwatch) -> tuple[TrackUnit, float]:
    """Decode once: cuts, faces and looks at them; the largest change to the first frame comes along."""
    detector, follower = CutDetector(), FaceFollower(tracker(), tracking)
    builders: dict[int, TrackBuilder] = {}
    times: list[float] = []
    indices, crowd, shots = list[int](), list[int](), list[int]()
    decoded = watch.each("decode", frames_of(path, source))
    # Cuts are found between decoding and tracking; the difference of the two stopwatches is their time.
    for row, (frame, new_shot) in enumerate(watch.each("cuts", with_cuts(decoded, detector))):
        with watch("landmarks"):
            faces = follower.step(frame.image, frame.time, new_shot)
        with watch("scores"):
            for number, face in faces.items():
                builder = builders.setdefault(number, TrackBuilder())
                builder.add(row, face)
                if not builder.looks or frame.time - times[int(builder.looks[-1][0])] >= LOOK:
                    builder.looks.append((row, *look(frame.image, face.landmarks)))
        times.append(frame.time)
        indices.append(frame.index)
        crowd.append(len(faces))
        shots += [row] if new_shot else []
    watch.seconds["cuts"] -= watch.seconds["decode"]
    unit = TrackUnit(
        info={},
        times=np.array(times, np.float64),
        indices=np.array(indices, np.int64),
        crowd=np.array(crowd, np.int64),
        shots=np.array(shots, np.int64),
        tracks=[builder.track() for builder in builders.values()],
        clips=[],
    )
    return unit, detector.change


def _candidates(unit: TrackUnit, source: Source, tracking: TrackingConfig, sound: SourceSound | None) -> list[dict[str, Any]]:
    """All pieces of tracks with their scores, in the order in which they begin."""
    box = [float(value) for value in source.meta[BOX].split()] if BOX in source.meta else None
    found = []
    for number, track in enumerate(unit.tracks):
        if box is None or inside_box(track, box):
            ranges = clip_ranges(track, unit.times, tracking.max_duration)
            found += [_candidate(unit, number, track, first, last, sound) for first, last in ranges]
    return sorted(found, key=lambda clip: (clip["first_row"], clip["track"]))


def _candidate(unit: TrackUnit, number: int, track: Track, first: int, last: int, sound: SourceSound | None) -> dict[str, Any]:
    raw = raw_clip(unit, track, first, last)
    size = unit.info["width"], unit.info["height"]
    smooth = prepare_clip(raw, *size, size=256).clip
    start, end = float(unit.times[first]), float(unit.times[last]) + float(1 / unit.fps)
    looks = track.looks[(track.looks[:, 0] >= first) & (track.looks[:, 0] <= last), 1:]
    sharpness, brightness = np.median(looks, axis=0) if len(looks) else (np.nan, np.nan)
    scores = {
        **clip_scores(raw, smooth, size),
        "sharpness": float(sharpness),
        "brightness": float(brightness),
        "faces": float(unit.crowd[first : last + 1].max()),
        "cuts": float(len(unit.shots) - 1),
        "fps": float(unit.fps),
        "duration": end - start,
        "speech_level": level(sound.between(start, end).samples) if sound is not None else float("nan"),
    }
    frames = int(raw.found.sum())
    place = {"track": number, "first_row": first, "last_row": last, "first": int(unit.indices[first]), "last": int(unit.indices[last])}
    return {**place, "start": start, "end": end, "frames": frames, "gaps": last - first + 1 - frames, "scores": scores}
