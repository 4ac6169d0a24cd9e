"""The faces found in one source: times, shot cuts and raw landmarks, as they are kept between the passes of a build."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from datasets_toolkit.faces.detection import landmark_bounds
from datasets_toolkit.faces.tracking import assemble_clip
from datasets_toolkit.schema import BLENDSHAPES, LANDMARKS, Face, FloatArray, TrackedClip
from datasets_toolkit.shards.codecs import decode_array, encode_array

VERSION = 2
"""Changes whenever the same video may give other tracks, clips or scores."""


@dataclass(frozen=True, kw_only=True)
class Track:
    """One face through one shot.

    Attributes:
        rows: k, the rows (decoded frames, from 0) that show it.
        landmarks: k x 478 x 3, source pixels, float32.
        blendshapes: k x 52, float32.
        looks: j x 3: a row, and the face's sharpness and brightness in it.
    """

    rows: npt.NDArray[np.int64]
    landmarks: npt.NDArray[np.float32]
    blendshapes: npt.NDArray[np.float32]
    looks: npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class TrackUnit:
    """All that the first pass learns of a source.

    Attributes:
        info: facts for ``sources.parquet``: width, height, fps (a fraction as text), variable, duration, has_audio, problems.
        times: t, seconds, of the decoded frames.
        indices: t, their numbers in the source.
        crowd: t, how many faces are followed in each.
        shots: rows at which a shot begins.
        tracks: faces, in the order in which they appear.
        clips: candidate clips with their scores: track, first and last row, scores.
    """

    info: dict[str, Any]
    times: FloatArray
    indices: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.int64]
    shots: npt.NDArray[np.int64]
    tracks: list[Track]
    clips: list[dict[str, Any]]

    @property
    def fps(self) -> Fraction:
        """Mean frame rate of the source."""
        return Fraction(self.info["fps"])

    def members(self) -> list[tuple[str, bytes]]:
        """The unit as named byte strings."""
        arrays = {"times": self.times, "indices": self.indices, "crowd": self.crowd, "shots": self.shots}
        for number, track in enumerate(self.tracks):
            for name in ("rows", "landmarks", "blendshapes", "looks"):
                arrays[f"{number:04d}.{name}"] = getattr(track, name)
        text = json.dumps({"info": self.info, "clips": self.clips, "tracks": len(self.tracks)}, sort_keys=True)
        return [("json", text.encode()), *((f"{name}.npy", encode_array(array)) for name, array in arrays.items())]

    @staticmethod
    def from_members(members: Mapping[str, bytes]) -> TrackUnit:
        """Undo :meth:`members`."""
        text = json.loads(members["json"])
        arrays = {name[: -len(".npy")]: decode_array(data) for name, data in members.items() if name.endswith(".npy")}
        names = ("rows", "landmarks", "blendshapes", "looks")
        tracks = [Track(**{name: arrays[f"{number:04d}.{name}"] for name in names}) for number in range(text["tracks"])]
        base = {name: arrays[name] for name in ("times", "indices", "crowd", "shots")}
        return TrackUnit(info=text["info"], clips=text["clips"], tracks=tracks, **base)


class TrackBuilder:
    """Collects the rows of one track."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.looks: list[tuple[float, float, float]] = []
        self._landmarks: list[npt.NDArray[np.float32]] = []
        self._blendshapes: list[npt.NDArray[np.float32]] = []

    def add(self, row: int, face: Face) -> None:
        """One more frame."""
        self.rows.append(row)
        self._landmarks.append(face.landmarks.astype(np.float32))
        self._blendshapes.append(face.blendshapes.astype(np.float32))

    def track(self) -> Track:
        """What was collected."""
        return Track(
            rows=np.array(self.rows, np.int64),
            landmarks=np.array(self._landmarks, np.float32).reshape(-1, LANDMARKS, 3),
            blendshapes=np.array(self._blendshapes, np.float32).reshape(-1, len(BLENDSHAPES)),
            looks=np.array(self.looks, np.float32).reshape(-1, 3),
        )


def raw_clip(unit: TrackUnit, track: Track, first: int, last: int) -> TrackedClip:
    """Rows ``first`` to ``last`` (inclusive) of a track as inference sees a tracked face."""
    faces: list[Face | None] = [None] * (last - first + 1)
    for row, landmarks, blendshapes in zip(track.rows.tolist(), track.landmarks, track.blendshapes, strict=True):
        if first <= row <= last:
            faces[row - first] = Face(landmarks=landmarks.astype(np.float64), blendshapes=blendshapes.astype(np.float64))
    return assemble_clip(faces, unit.times[first : last + 1], unit.indices[first : last + 1])


def clip_ranges(track: Track, times: FloatArray, longest: float) -> list[tuple[int, int]]:
    """First and last rows (inclusive) of the equal pieces of at most ``longest`` seconds that a track is cut into.

    Pieces begin and end with a frame that shows the face.
    """
    begin, end = times[track.rows[0]], times[track.rows[-1]]
    pieces = max(int(np.ceil((end - begin) / longest - 1e-9)), 1)
    place = np.minimum(((times[track.rows] - begin) / max(end - begin, 1e-9) * pieces).astype(int), pieces - 1)
    parts = (track.rows[place == piece] for piece in range(pieces))
    return [(int(rows[0]), int(rows[-1])) for rows in parts if len(rows)]


def inside_box(track: Track, box: Iterable[float]) -> bool:
    """Whether at least half of a track's faces have their centres in a box (x0, y0, x1, y1)."""
    x0, y0, x1, y1 = box
    centres = np.array([landmark_bounds(landmarks)[0] for landmarks in track.landmarks.astype(np.float64)])
    return bool(((centres >= [x0, y0]) & (centres <= [x1, y1])).all(1).mean() >= 0.5)
