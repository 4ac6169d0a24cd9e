"""Portraits that cannot be animated are refused in one line each; crops keep landmarks, camera and picture together."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from face_scenes import FRONTAL, moved, pasted, pose, project, shrunk
from scipy.spatial.transform import Rotation

from datasets_toolkit.annotators.portrait import crop_face, find_portrait
from datasets_toolkit.errors import NoFaceError
from datasets_toolkit.faces.detection import FaceTracker, crop_image, inside_image, landmark_bounds, reference_box
from datasets_toolkit.faces.head_pose import canonical_face, clip_camera
from datasets_toolkit.schema import BLENDSHAPES, ByteImage, Face, FloatArray


def refusal(image: ByteImage, tracker: FaceTracker, face: int = 0) -> str:
    with pytest.raises(NoFaceError) as caught:
        find_portrait(image, tracker, face=face, name="me.png")
    message = str(caught.value)
    assert message.startswith("me.png: ")
    assert "\n" not in message
    return message


class Known(FaceTracker):
    """Sees one face with known landmarks, whatever the image."""

    def __init__(self, landmarks: FloatArray) -> None:
        self.landmarks = landmarks

    def faces(self, image: ByteImage, smallest: float = 60) -> list[Face]:
        return [Face(landmarks=self.landmarks, blendshapes=np.zeros(len(BLENDSHAPES)))]


def turned(yaw: float, pitch: float) -> Known:
    """The mean face turned by degrees, in the middle of a 600 x 600 image."""
    motion = pose(FRONTAL @ Rotation.from_euler("YX", [yaw, -pitch], degrees=True).as_matrix(), np.array([0, 0, 120.0]))
    return Known(project(canonical_face().vertices, motion, np.array([[1800.0, 0, 300], [0, 1800, 300], [0, 0, 1]])))


def test_a_good_portrait_passes_quietly(tracker: FaceTracker, astronaut: ByteImage, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        find_portrait(astronaut, tracker, name="me.png")
    assert not caplog.records


def test_no_face(tracker: FaceTracker) -> None:
    assert "no face found" in refusal(np.full((300, 400, 3), 128, np.uint8), tracker)


@pytest.mark.parametrize("face", [1, -1])
def test_face_number_that_is_not_there(tracker: FaceTracker, astronaut: ByteImage, face: int) -> None:
    assert f"shows 1 face(s), so there is no face {face}" in refusal(astronaut, tracker, face)


def test_face_too_small(tracker: FaceTracker, astronaut: ByteImage) -> None:
    assert "pixels high, at least 60 are needed; use a larger picture" in refusal(shrunk(astronaut, 240), tracker)
    find_portrait(shrunk(astronaut, 310), tracker)  # 66 pixels are enough


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_face_cut_off_at_the_border(tracker: FaceTracker, astronaut: ByteImage, side: str) -> None:
    left, right, top, bottom = {
        "left": (203, 512, 0, 512),
        "right": (0, 248, 0, 512),
        "top": (0, 512, 100, 512),
        "bottom": (0, 512, 0, 152),
    }[side]
    image = np.ascontiguousarray(astronaut[top:bottom, left:right])
    assert "% of the face is cut off at the image border" in refusal(image, tracker)


@pytest.mark.parametrize(("yaw", "pitch"), [(62, 0), (-62, 0), (0, 52), (0, -52)])
def test_face_turned_away(yaw: float, pitch: float) -> None:
    image = np.full((600, 600, 3), 128, np.uint8)
    assert "the face is turned away (yaw " in refusal(image, turned(yaw, pitch))
    find_portrait(image, turned(0.75 * yaw, 0.75 * pitch))


def test_several_faces_are_told_and_chosen(tracker: FaceTracker, astronaut: ByteImage, caplog: pytest.LogCaptureFixture) -> None:
    image = pasted([(shrunk(astronaut, 320), 0, 0), (shrunk(astronaut, 400), 320, 0)], 400, 720)
    with caplog.at_level(logging.WARNING):
        centres = [landmark_bounds(find_portrait(image, tracker, face=face, name="us.png").landmarks)[0][0] for face in (0, 1)]
    np.testing.assert_allclose(centres, [320 + 225 * 400 / 512, 225 * 320 / 512], atol=4)
    assert [record.getMessage() for record in caplog.records] == [
        f"us.png: 2 faces, taking number {face} (0 is the largest; choose with --face)" for face in (0, 1)
    ]


def test_a_crop_keeps_picture_landmarks_and_camera_together(astronaut: ByteImage, astronaut_face: Face) -> None:
    crop = crop_face(astronaut, astronaut_face, 192)
    box = inside_image(reference_box(astronaut_face.landmarks), 512, 512)
    np.testing.assert_array_equal(crop.image, crop_image(astronaut, box, 192))
    source = np.column_stack([astronaut_face.landmarks[:, :2], np.ones(478)])
    np.testing.assert_allclose(crop.landmarks[:, :2], (source @ crop.source_to_crop.T)[:, :2], atol=1e-9)
    np.testing.assert_allclose(crop.landmarks[:, 2], astronaut_face.landmarks[:, 2] * 192 / box[2], atol=1e-9)
    np.testing.assert_allclose(crop.intrinsics, crop.source_to_crop @ clip_camera(reference_box(astronaut_face.landmarks)))
    np.testing.assert_allclose(project(crop.mesh, crop.head_to_camera, crop.intrinsics)[:, :2], crop.landmarks[:, :2], atol=1e-6)
    np.testing.assert_array_equal(crop.blendshapes, astronaut_face.blendshapes)


def test_a_crop_under_the_camera_of_a_clip(tracker: FaceTracker, astronaut: ByteImage, astronaut_face: Face) -> None:
    camera = clip_camera(reference_box(astronaut_face.landmarks))
    (face,) = tracker.faces(moved(astronaut, 1.25, (-60.0, -20.0)))
    first, nearer = (crop_face(astronaut, found, 128, camera) for found in (astronaut_face, face))
    np.testing.assert_allclose(nearer.head_to_camera[2, 3], first.head_to_camera[2, 3] / 1.25, rtol=0.02)
    np.testing.assert_allclose(project(nearer.mesh, nearer.head_to_camera, nearer.intrinsics)[:, :2], nearer.landmarks[:, :2], atol=1e-6)


def test_a_crop_near_the_border_stays_inside(astronaut: ByteImage) -> None:
    face = turned(0, 0).faces(astronaut)[0]
    shifted = Face(landmarks=face.landmarks + np.array([150.0, -250, 0]), blendshapes=face.blendshapes)
    crop = crop_face(astronaut, shifted, 100)
    corners = np.linalg.inv(crop.source_to_crop) @ np.array([[0, 0, 1], [100, 100, 1.0]]).T
    assert corners[:2].min() >= -1e-9
    assert corners[:2].max() <= 512 + 1e-9
