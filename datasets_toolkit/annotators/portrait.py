"""One portrait to one annotated crop: detection, checks, crop, camera, parsing, depth and normals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets_toolkit.annotators import DepthAnnotator, FaceCrop, NormalAnnotator, Parsing, ParsingAnnotator
from datasets_toolkit.annotators.base import Map
from datasets_toolkit.errors import NoFaceError
from datasets_toolkit.faces.detection import MIN_FACE, FaceTracker, crop_image, inside_image, landmark_bounds, reference_box, source_to_crop
from datasets_toolkit.faces.head_pose import clip_camera, euler_degrees, head_pose
from datasets_toolkit.faces.tracking import choose_face
from datasets_toolkit.schema import ByteImage, Face, FloatArray

MAX_YAW, MAX_PITCH = 55.0, 45.0
"""Degrees beyond which the landmarker guesses more than it sees."""
MAX_OUTSIDE = 0.06
"""Share of the landmarks that may lie outside the image."""


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """Attributes: parsing, depth (s x s, cm, 0 outside the head) and normals (s x s x 3, camera frame) of one crop."""

    parsing: Parsing
    depth: Map
    normals: Map


@dataclass(frozen=True, kw_only=True)
class Annotators:
    """One annotator of each family."""

    parsing: ParsingAnnotator
    depth: DepthAnnotator
    normals: NormalAnnotator

    def __call__(self, crop: FaceCrop) -> Annotations:
        """Annotate a crop; each family sees what the families before it found."""
        parsing = self.parsing(crop)
        depth = self.depth(crop, parsing)
        return Annotations(parsing=parsing, depth=depth, normals=self.normals(crop, parsing, depth))

    def close(self) -> None:
        """Release models held open."""
        for annotator in (self.parsing, self.depth, self.normals):
            annotator.close()


def find_portrait(image: ByteImage, tracker: FaceTracker, *, face: int = 0, name: str = "image") -> Face:
    """The face of a portrait (h w 3), checked to be one that can be animated.

    Raises:
        NoFaceError: no face, not that many faces, or a face too small, cut off or turned away; ``name`` says in which file.
    """
    found = choose_face(tracker.faces(image), face, name)
    size = landmark_bounds(found.landmarks)[1]
    if size < MIN_FACE:
        raise NoFaceError(f"{name}: the face is {size:.0f} pixels high, at least {MIN_FACE} are needed; use a larger picture")
    limit = np.array(image.shape[1::-1], float)
    outside = ((found.landmarks[:, :2] < 0) | (found.landmarks[:, :2] > limit)).any(1).mean()
    if outside > MAX_OUTSIDE:
        raise NoFaceError(f"{name}: {100 * outside:.0f} % of the face is cut off at the image border; use a picture that shows all of it")
    yaw, pitch, _ = euler_degrees(head_pose(found.landmarks, clip_camera(reference_box(found.landmarks))).head_to_camera)
    if abs(yaw) > MAX_YAW or abs(pitch) > MAX_PITCH:
        raise NoFaceError(
            f"{name}: the face is turned away (yaw {yaw:.0f}, pitch {pitch:.0f} degrees; at most {MAX_YAW:.0f} and {MAX_PITCH:.0f}); "
            "use a picture that looks towards the camera"
        )
    return found


def crop_face(image: ByteImage, face: Face, size: int, intrinsics: FloatArray | None = None) -> FaceCrop:
    """The square crop (``size`` pixels a side) around a face, inside the image, with camera, pose and mesh.

    Args:
        image: h w 3, RGB.
        face: the tracked face.
        size: pixels a side.
        intrinsics: of the clip camera (3 x 3, source pixels); by default that of this face.
    """
    box = inside_image(reference_box(face.landmarks), *image.shape[:2])
    intrinsics = clip_camera(reference_box(face.landmarks)) if intrinsics is None else intrinsics
    pose = head_pose(face.landmarks, intrinsics)
    matrix = source_to_crop(box, size)
    scale = np.array([matrix[0, 0], matrix[1, 1], matrix[0, 0]])
    return FaceCrop(
        image=crop_image(image, box, size),
        landmarks=face.landmarks * scale + np.array([matrix[0, 2], matrix[1, 2], 0]),
        blendshapes=face.blendshapes,
        mesh=pose.mesh,
        head_to_camera=pose.head_to_camera,
        intrinsics=matrix @ intrinsics,
        source_to_crop=matrix,
    )
