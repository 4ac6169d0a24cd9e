"""A face followed through little videos whose motion is known."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from face_scenes import moved, pasted, project, shrunk

from datasets_toolkit.errors import NoFaceError
from datasets_toolkit.faces.detection import FaceTracker, landmark_bounds, reference_box
from datasets_toolkit.faces.head_pose import clip_camera, head_pose
from datasets_toolkit.faces.tracking import follow_face, track_clip
from datasets_toolkit.media.video import VideoFrame
from datasets_toolkit.schema import ByteImage, TrackedClip

SIZE = 109.0  # of the astronaut's face, pixels
MOTION = [(1 + 0.02 * step, (6.0 * step, 4.0 * step)) for step in range(8)]  # zoom and shift in pixels
TIMES = [0.5, 0.53, 0.57, 0.6, 0.7, 0.74, 0.75, 0.9]
INDICES = [3, 4, 5, 6, 9, 10, 11, 15]
HIDDEN = (4, 5)


@pytest.fixture(scope="module")
def clip(tracker: FaceTracker, astronaut: ByteImage) -> TrackedClip:
    """Shifted and zoomed, with two frames that show nothing."""
    images = [moved(astronaut, scale, shift) for scale, shift in MOTION]
    for row in HIDDEN:
        images[row] = np.full_like(astronaut, 60)
    frames = (VideoFrame(index, time, image) for index, time, image in zip(INDICES, TIMES, images, strict=True))
    return track_clip(frames, tracker)


def video(*images: ByteImage) -> list[VideoFrame]:
    return [VideoFrame(index, index / 25, image) for index, image in enumerate(images)]


def centre_x(clip: TrackedClip, row: int) -> float:
    return float(landmark_bounds(clip.landmarks[row])[0][0])


def test_the_motion_is_followed(clip: TrackedClip) -> None:
    for row in np.flatnonzero(clip.found):
        scale, shift = MOTION[row]
        back = (clip.landmarks[row] - [*shift, 0]) / scale
        assert np.linalg.norm((back - clip.landmarks[0])[:, :2], axis=1).mean() < 0.015 * SIZE
    depth = clip.head_to_camera[clip.found, 2, 3]
    np.testing.assert_allclose(depth, depth[0] / np.array([scale for scale, _ in MOTION])[clip.found], rtol=0.02)  # a zoom comes nearer
    assert (np.diff(clip.head_to_camera[clip.found, 0, 3]) > 0).all()  # the face moves right and down
    assert (np.diff(clip.head_to_camera[clip.found, 1, 3]) > 0).all()


def test_frames_without_the_face_are_gaps(clip: TrackedClip) -> None:
    assert clip.found.tolist() == [row not in HIDDEN for row in range(len(MOTION))]
    for values in (clip.landmarks, clip.blendshapes, clip.head_to_camera, clip.mesh):
        assert len(values) == len(MOTION)
        assert np.isnan(values[list(HIDDEN)]).all()
        assert np.isfinite(values[clip.found]).all()


def test_order_times_and_numbers_are_kept(clip: TrackedClip) -> None:
    assert clip.times.tolist() == TIMES
    assert clip.indices.tolist() == INDICES


def test_the_clip_camera_is_that_of_the_first_face(clip: TrackedClip) -> None:
    np.testing.assert_array_equal(clip.box, reference_box(clip.landmarks[0]))
    np.testing.assert_array_equal(clip.intrinsics, clip_camera(clip.box))
    for row in np.flatnonzero(clip.found):
        projected = project(clip.mesh[row], clip.head_to_camera[row], clip.intrinsics)
        np.testing.assert_allclose(projected[:, :2], clip.landmarks[row, :, :2], atol=1e-6)
        np.testing.assert_array_equal(clip.mesh[row], head_pose(clip.landmarks[row], clip.intrinsics).mesh)


def test_a_video_may_begin_without_a_face(tracker: FaceTracker, astronaut: ByteImage) -> None:
    clip = track_clip(video(np.full_like(astronaut, 90), astronaut), tracker)
    assert clip.found.tolist() == [False, True]
    np.testing.assert_array_equal(clip.box, reference_box(clip.landmarks[1]))


def test_the_face_asked_for_is_the_one_followed(tracker: FaceTracker, astronaut: ByteImage, caplog: pytest.LogCaptureFixture) -> None:
    large, small = shrunk(astronaut, 400), shrunk(astronaut, 300)
    frames = video(*(pasted([(small, 4 * step, 0), (large, 320, 0)], 400, 720) for step in range(3)))
    with caplog.at_level(logging.WARNING):
        clips = [track_clip(frames, tracker, face=face, name="talk.mp4") for face in (0, 1)]
    expected = ([320 + 225 * 400 / 512] * 3, [4 * step + 225 * 300 / 512 for step in range(3)])
    for clip, places in zip(clips, expected, strict=True):
        assert clip.found.all()
        np.testing.assert_allclose([centre_x(clip, row) for row in range(3)], places, atol=4)
    assert [record.getMessage()[:26] for record in caplog.records] == ["talk.mp4: 2 faces, taking "] * 2  # once a clip


def test_another_persons_face_does_not_take_over(tracker: FaceTracker, astronaut: ByteImage) -> None:
    head = shrunk(astronaut, 300)
    left, right = pasted([(head, 0, 0)], 300, 700), pasted([(head, 400, 0)], 300, 700)
    clip = track_clip(video(left, right, left), tracker)
    assert clip.found.tolist() == [True, False, True]
    np.testing.assert_allclose(clip.landmarks[2], clip.landmarks[0], atol=0.015 * SIZE)


def test_a_zoom_within_the_cut_is_another_shot(tracker: FaceTracker, astronaut: ByteImage) -> None:
    clip = track_clip(video(astronaut, moved(astronaut, 0.4, (135.0, 74.0)), astronaut), tracker)
    assert clip.found.tolist() == [True, False, True]


def test_frames_pass_through_one_by_one(tracker: FaceTracker, astronaut: ByteImage) -> None:
    frames = video(astronaut, np.full_like(astronaut, 90))
    followed = follow_face(iter(frames), tracker)
    first, face = next(followed)
    assert first is frames[0]
    assert face is not None
    assert next(followed) == (frames[1], None)


@pytest.mark.parametrize("count", [0, 2])
def test_no_face_is_told(tracker: FaceTracker, astronaut: ByteImage, count: int) -> None:
    with pytest.raises(NoFaceError, match=r"^talk\.mp4: no face found; at least one must be 60 pixels high and look towards the camera$"):
        track_clip(video(*[np.full_like(astronaut, 90)] * count), tracker, name="talk.mp4")


@pytest.mark.parametrize("face", [1, 7, -1])
def test_a_face_that_is_not_there_is_told(tracker: FaceTracker, astronaut: ByteImage, face: int) -> None:
    with pytest.raises(NoFaceError, match=rf"^talk\.mp4: shows 1 face\(s\), so there is no face {face}; faces are counted from 0"):
        track_clip(video(astronaut), tracker, face=face, name="talk.mp4")
