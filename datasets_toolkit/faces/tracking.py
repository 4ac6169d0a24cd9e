"""One face followed through a video: landmarks, blendshapes and head pose of every frame, under one clip camera."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from datasets_toolkit.errors import NoFaceError
from datasets_toolkit.faces.detection import MIN_FACE, FaceTracker, landmark_bounds, reference_box
from datasets_toolkit.faces.head_pose import clip_camera, head_pose
from datasets_toolkit.schema import BLENDSHAPES, LANDMARKS, ByteImage, Face, FloatArray, TrackedClip

if TYPE_CHECKING:
    from datasets_toolkit.media.video import VideoFrame

log = logging.getLogger(__name__)

JUMP = 0.6
"""A face whose centre moves further than this many face sizes between frames is another face, or a cut."""
GROWTH = 2.0
"""So is one that grows or shrinks by this factor."""


def choose_face(faces: list[Face], index: int, name: str) -> Face:
    """Face number ``index`` of an image (0 is the largest); several faces without a choice are told.

    Raises:
        NoFaceError: there is no face, none of that number, or the number is negative; ``name`` says where.
    """
    if not faces:
        raise NoFaceError(f"{name}: no face found; at least one must be {MIN_FACE} pixels high and look towards the camera")
    if not 0 <= index < len(faces):
        raise NoFaceError(f"{name}: shows {len(faces)} face(s), so there is no face {index}; faces are counted from 0, largest first")
    if len(faces) > 1:
        log.warning("%s: %d faces, taking number %d (0 is the largest; choose with --face)", name, len(faces), index)
    return faces[index]


def follow_face(
    frames: Iterable[VideoFrame], tracker: FaceTracker, *, face: int = 0, name: str = "video"
) -> Iterator[tuple[VideoFrame, Face | None]]:
    """Each frame with the face followed in it, None where it is not to be seen; arguments and errors as :func:`track_clip`."""
    last: Face | None = None
    for frame in frames:
        current = _next_face(frame.image, tracker, last, face, name)
        last = current or last
        yield frame, current


def track_clip(frames: Iterable[VideoFrame], tracker: FaceTracker, *, face: int = 0, name: str = "video") -> TrackedClip:
    """Follow one face through decoded frames and give its pose and mesh under the clip camera.

    Args:
        frames: decoded frames in order; only one is held at a time.
        tracker: the landmarker.
        face: which face of the first frame that shows one, 0 the largest.
        name: of the video, for messages.

    Raises:
        NoFaceError: no frame shows the face asked for.
    """
    followed = [(frame.time, frame.index, found) for frame, found in follow_face(frames, tracker, face=face, name=name)]
    times, indices, faces = zip(*followed, strict=True) if followed else ((), (), ())
    if not any(faces):
        choose_face([], face, name)
    return assemble_clip(list(faces), np.array(times), np.array(indices, np.int64))


def _next_face(image: ByteImage, tracker: FaceTracker, last: Face | None, choice: int, name: str) -> Face | None:
    if last is None:
        faces = tracker.faces(image)
        return choose_face(faces, choice, name) if faces else None
    current = tracker.follow(image, last)
    if current is not None and near_face(current, last):
        return current
    smallest = landmark_bounds(last.landmarks)[1] / GROWTH
    near = [face for face in tracker.faces(image, smallest) if near_face(face, last)]
    return near[0] if near else None


def near_face(face: Face, last: Face) -> bool:
    """Whether a face is where another was a frame ago: it has moved and grown by less than :data:`JUMP` and :data:`GROWTH`."""
    (centre, size), (last_centre, last_size) = landmark_bounds(face.landmarks), landmark_bounds(last.landmarks)
    moved = float(np.linalg.norm(centre - last_centre)) / last_size
    return moved < JUMP and 1 / GROWTH < size / last_size < GROWTH


def assemble_clip(found: Sequence[Face | None], times: FloatArray, indices: np.ndarray) -> TrackedClip:
    """Poses and meshes of a followed face (t rows, None where it is out of sight, at least one is not) under one clip camera.

    The camera's reference box lies around the first face that was found.
    """
    shape = len(found)
    landmarks = np.full((shape, LANDMARKS, 3), np.nan)
    blendshapes = np.full((shape, len(BLENDSHAPES)), np.nan)
    poses, meshes = np.full((shape, 4, 4), np.nan), np.full((shape, LANDMARKS, 3), np.nan)
    first = next(face for face in found if face is not None)
    box = reference_box(first.landmarks)
    intrinsics = clip_camera(box)
    for row, face in enumerate(found):
        if face is not None:
            landmarks[row], blendshapes[row] = face.landmarks, face.blendshapes
            pose = head_pose(face.landmarks, intrinsics)
            poses[row], meshes[row] = pose.head_to_camera, pose.mesh
    return TrackedClip(
        landmarks=landmarks,
        blendshapes=blendshapes,
        head_to_camera=poses,
        mesh=meshes,
        found=np.array([face is not None for face in found]),
        times=times,
        indices=indices,
        intrinsics=intrinsics,
        box=box,
    )
