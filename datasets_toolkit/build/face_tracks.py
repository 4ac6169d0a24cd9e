"""All faces of a video, each followed through its shot.

A face is followed on a square around where it was (the cheap step); the whole image is searched at the start of each shot, when a face is
lost, and now and then for newcomers. What follows a face is exactly what inference does (:mod:`datasets_toolkit.faces.tracking`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets_toolkit.build.config import TrackingConfig
from datasets_toolkit.faces.detection import VISIBLE, FaceTracker, landmark_bounds, same_face
from datasets_toolkit.faces.tracking import GROWTH, near_face
from datasets_toolkit.schema import ByteImage, Face

RETRY = 0.2
"""Seconds between two searches of the image for a face that is out of sight; where it was is looked at in every frame."""
NOBODY = 0.5
"""Seconds between two searches of a picture that shows no face; they cost the most, for every size of face is looked for."""
SAME = 0.5
"""A candidate whose centre is nearer to a known face than so many of its sizes is that face."""


class CrowdTracker(FaceTracker):
    """A face tracker that can look for faces besides those it knows."""

    def newcomers(self, image: ByteImage, known: Sequence[Face]) -> list[Face]:
        """Faces of an image (h w 3) that are none of ``known``, largest first, at the sizes at which the known ones would be found.

        Only candidates of the detector that lie elsewhere are given to the landmarker, so a picture without newcomers costs little.
        """
        largest, side = max(landmark_bounds(face.landmarks)[1] for face in known), max(image.shape[:2])
        while VISIBLE * side > largest:
            side = -(-side // 2)
        found: list[Face] = []
        for box in self._detect(image, side):
            centre = box[:2] + box[2] / 2
            if any(_distance(centre, face) < SAME for face in known):
                continue
            face = self._landmarks(image, box)
            if face is not None and self._confirmed(image, face) and not any(same_face(face, other) for other in [*known, *found]):
                found.append(face)
        return sorted(found, key=lambda face: -landmark_bounds(face.landmarks)[1])


@dataclass(eq=False)
class _Track:
    """A face being followed: its number, how it was last seen, and when that was."""

    number: int
    face: Face
    seen: float


class FaceFollower:
    """Follows the faces of consecutive frames.

    Args:
        tracker: the landmarker.
        config: which faces.
    """

    def __init__(self, tracker: CrowdTracker, config: TrackingConfig) -> None:
        self.tracker, self.config = tracker, config
        self._tracks: list[_Track] = []
        self._searched = self._before = -np.inf
        self._next = 0

    def step(self, image: ByteImage, time: float, new_shot: bool) -> dict[int, Face]:
        """The faces of the next frame by track number; no number is used twice, and none outlives its shot.

        Args:
            image: h w 3, RGB.
            time: seconds, later than the frame before.
            new_shot: whether a shot begins with this frame.
        """
        if new_shot:
            self._tracks.clear()
            self._searched = -np.inf
        current: dict[int, Face] = {}
        lost = [track for track in self._tracks if not self._follow(track, image, time, current)]
        just_lost = any(track.seen == self._before for track in lost)
        if just_lost or (lost and time - self._searched >= RETRY) or self._due(time):
            self._search(image, time, lost, current)
        self._tracks = [track for track in self._tracks if time - track.seen <= self.config.max_gap]
        self._before = time
        return dict(sorted(current.items()))

    def _follow(self, track: _Track, image: ByteImage, time: float, current: dict[int, Face]) -> bool:
        face = self.tracker.follow(image, track.face)
        if face is None or not near_face(face, track.face) or any(same_face(face, other) for other in current.values()):
            return False
        self._seen(track, face, time, current)
        return True

    def _due(self, time: float) -> bool:
        if self._tracks and (self.config.faces == "largest" or len(self._tracks) >= self.config.max_faces):
            return False
        return time - self._searched >= (self.config.newcomers if self._tracks else min(NOBODY, self.config.newcomers))

    def _search(self, image: ByteImage, time: float, lost: list[_Track], current: dict[int, Face]) -> None:
        """Find lost faces again and take up new ones."""
        self._searched = time
        known = list(current.values())
        smallest = min([self.config.min_face, *(landmark_bounds(track.face.landmarks)[1] / GROWTH for track in lost)])
        found = self.tracker.newcomers(image, known) if known else self.tracker.faces(image, smallest)
        for track in lost:
            near = [face for face in found if near_face(face, track.face)]
            if near:
                self._seen(track, near[0], time, current)
                found = [face for face in found if face is not near[0]]
        room = (1 if self.config.faces == "largest" else self.config.max_faces) - len(self._tracks)
        for face in [face for face in found if landmark_bounds(face.landmarks)[1] >= self.config.min_face][: max(room, 0)]:
            self._tracks.append(_Track(self._next, face, time))
            current[self._next] = face
            self._next += 1

    def _seen(self, track: _Track, face: Face, time: float, current: dict[int, Face]) -> None:
        track.face, track.seen = face, time
        current[track.number] = face


def _distance(centre: np.ndarray, face: Face) -> float:
    """How far a point (x, y) lies from a face's centre, in its sizes."""
    middle, size = landmark_bounds(face.landmarks)
    return float(np.abs(middle - centre).max()) / size
