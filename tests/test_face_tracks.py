"""Faces followed through a video: newcomers, losses, shots, and what clips are made of their tracks."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from build_scenes import SIDE, blank, face_picture, source, talking, write_video
from hypothesis import given
from hypothesis import strategies as st

from datasets_toolkit.build.config import TrackingConfig
from datasets_toolkit.build.face_tracks import CrowdTracker, FaceFollower
from datasets_toolkit.build.pipeline import TrackJob, release
from datasets_toolkit.build.scores import clip_scores, look, mouth_opening
from datasets_toolkit.build.track_stage import known_track, track_source
from datasets_toolkit.build.track_unit import Track, TrackUnit, clip_ranges, inside_box, raw_clip
from datasets_toolkit.build.work import UnitStore
from datasets_toolkit.faces.detection import landmark_bounds
from datasets_toolkit.faces.smoothing import NoFilter, smooth_clip
from datasets_toolkit.faces.tracking import assemble_clip
from datasets_toolkit.schema import BLENDSHAPES, LANDMARKS, ByteImage, Face, FloatArray

STEP = 1 / 25


@pytest.fixture(scope="module")
def crowd() -> Iterator[CrowdTracker]:
    with CrowdTracker() as opened:
        yield opened


@pytest.fixture(scope="module")
def face(astronaut: ByteImage) -> ByteImage:
    return face_picture(astronaut)


@pytest.fixture(scope="module")
def pair(face: ByteImage) -> ByteImage:
    return np.concatenate([face, face[:, ::-1]], 1)


def followed(crowd: CrowdTracker, frames: list[ByteImage], cuts: tuple[int, ...] = (0,), **options: object) -> list[list[int]]:
    """The numbers of the faces in each frame."""
    follower = FaceFollower(crowd, TrackingConfig(**options))  # type: ignore[arg-type]
    return [list(follower.step(image, row * STEP, row in cuts)) for row, image in enumerate(frames)]


def test_everybody_is_followed_or_the_largest_alone(crowd: CrowdTracker, pair: ByteImage) -> None:
    assert followed(crowd, [pair] * 3) == [[0, 1]] * 3
    assert followed(crowd, [pair] * 3, faces="largest") == [[0]] * 3
    assert followed(crowd, [pair] * 2, max_faces=1) == [[0]] * 2
    assert followed(crowd, [pair] * 2, min_face=120.0) == [[]] * 2


def test_a_newcomer_is_seen_at_the_next_search(crowd: CrowdTracker, face: ByteImage, pair: ByteImage) -> None:
    alone = np.concatenate([face, blank(0)], 1)
    assert followed(crowd, [alone, pair, pair, pair, pair], newcomers=0.1) == [[0], [0], [0], [0, 1], [0, 1]]


def test_a_newcomer_is_not_one_that_is_known(crowd: CrowdTracker, pair: ByteImage) -> None:
    both = crowd.faces(pair)
    (other,) = crowd.newcomers(pair, both[:1])
    assert np.abs(landmark_bounds(other.landmarks)[0] - landmark_bounds(both[1].landmarks)[0]).max() < 3
    assert crowd.newcomers(pair, both) == []


def test_a_face_out_of_sight_comes_back_as_itself_for_a_while(crowd: CrowdTracker, face: ByteImage) -> None:
    away = [blank(number) for number in range(5)]
    assert followed(crowd, [face, *away, face, face], max_gap=0.3) == [[0], *[[]] * 5, [0], [0]]
    assert followed(crowd, [face, *away, face, face], max_gap=0.1, newcomers=0.05)[-1] == [1]


def test_a_cut_ends_all_tracks(crowd: CrowdTracker, face: ByteImage) -> None:
    assert followed(crowd, [face] * 4, cuts=(0, 2)) == [[0], [0], [1], [1]]


def fake_track(rows: list[int], x: float = 0.0) -> Track:
    points = np.random.default_rng(0).uniform(0, 100, (LANDMARKS, 3)).astype(np.float32) + np.float32(x)
    empty = np.zeros((0, 3), np.float32)
    shape = np.zeros((len(rows), len(BLENDSHAPES)), np.float32)
    return Track(rows=np.array(rows), landmarks=np.repeat(points[None], len(rows), 0), blendshapes=shape, looks=empty)


@given(st.lists(st.booleans(), min_size=1, max_size=60).filter(any), st.floats(0.05, 5.0))
def test_pieces_of_a_track_hold_each_of_its_frames_once(shown: list[bool], longest: float) -> None:
    rows, times = np.flatnonzero(shown).tolist(), np.arange(len(shown)) * STEP
    ranges = clip_ranges(fake_track(rows), times, longest)
    covered = [row for first, last in ranges for row in rows if first <= row <= last]
    assert covered == rows
    for first, last in ranges:
        assert shown[first]
        assert shown[last]
        assert times[last] - times[first] <= longest + 1e-9


def test_pieces_are_equal() -> None:
    times = np.arange(101) / 10
    assert clip_ranges(fake_track(list(range(101))), times, 10.0) == [(0, 100)]
    assert [last - first + 1 for first, last in clip_ranges(fake_track(list(range(101))), times, 3.4)] == [34, 33, 34]


def test_tracks_inside_an_annotated_box() -> None:
    assert inside_box(fake_track([0, 1]), [0.0, 0.0, 100.0, 100.0])
    assert not inside_box(fake_track([0, 1], x=200.0), [0.0, 0.0, 100.0, 100.0])


def random_unit() -> TrackUnit:
    generator = np.random.default_rng(1)
    track = fake_track([1, 2, 4])
    return TrackUnit(
        info={"width": 100, "height": 100, "fps": "30000/1001", "rejected": ""},
        times=np.sort(generator.uniform(0, 1, 6)),
        indices=np.arange(3, 9),
        crowd=np.array([0, 1, 1, 0, 1, 0]),
        shots=np.array([0]),
        tracks=[track, fake_track([0])],
        clips=[{"scores": {"motion": float("nan")}, "track": 0}],
    )


def test_a_track_unit_survives_its_bytes() -> None:
    unit = random_unit()
    again = TrackUnit.from_members(dict(unit.members()))
    assert (again.info, again.fps, str(again.clips)) == (unit.info, Fraction(30000, 1001), str(unit.clips))
    for name in ("times", "indices", "crowd", "shots"):
        np.testing.assert_array_equal(getattr(again, name), getattr(unit, name))
    for one, other in zip(again.tracks, unit.tracks, strict=True):
        for name, value in vars(one).items():
            np.testing.assert_array_equal(value, getattr(other, name))
            assert value.dtype == getattr(other, name).dtype


def test_the_rows_of_a_clip_are_those_of_its_track() -> None:
    clip = raw_clip(random_unit(), random_unit().tracks[0], 1, 4)
    assert clip.found.tolist() == [True, True, False, True]
    assert clip.indices.tolist() == [4, 5, 6, 7]
    assert np.isnan(clip.landmarks[2]).all()


# Scores with closed forms


def moving_face(speed: float, frames: int = 20, size: float = 100.0) -> list[Face]:
    """A rigid cloud of points of that size (pixels) that moves sideways by so many of its sizes a second."""
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (LANDMARKS, 3))
    points = (points - points.min(0)) / np.ptp(points, axis=0) * size
    shifts = np.arange(frames) * STEP * speed * size
    return [Face(landmarks=points + np.array([shift + 200, 200, 0]), blendshapes=np.zeros(len(BLENDSHAPES))) for shift in shifts]


@pytest.mark.parametrize("speed", [0.0, 0.5, 3.0])
def test_motion_and_size_of_a_face_that_moves_evenly(speed: float) -> None:
    faces = moving_face(speed)
    clip = assemble_clip(faces, np.arange(20) * STEP, np.arange(20))
    scores = clip_scores(clip, smooth_clip(clip, NoFilter()), (2000, 2000))
    assert scores["motion"] == pytest.approx(speed, abs=1e-9)
    assert scores["face_size"] == pytest.approx(100)
    assert scores["jitter"] == pytest.approx(0, abs=1e-12)
    assert scores["outside"] == scores["gap_share"] == 0


def test_gaps_and_faces_beyond_the_border() -> None:
    faces: list[Face | None] = [*moving_face(0.0, 8)]
    faces[3] = faces[4] = None
    clip = assemble_clip(faces, np.arange(8) * STEP, np.arange(8))
    scores = clip_scores(clip, smooth_clip(clip, NoFilter()), (250, 1000))
    assert scores["gap_share"] == 0.25
    first = faces[0]
    assert first is not None
    assert scores["outside"] == pytest.approx((first.landmarks[:, 0] > 250).mean())


def test_the_opening_of_a_mouth() -> None:
    points = np.zeros((2, LANDMARKS, 3))
    points[:, 0, 1] = 100.0
    points[:, 13, 1], points[:, 14, 1] = 40.0, np.array([40.0, 52.5])
    np.testing.assert_allclose(mouth_opening(points), [0, 0.125])


def test_blur_lowers_sharpness_and_light_raises_brightness(crowd: CrowdTracker, face: ByteImage) -> None:
    import cv2

    landmarks: FloatArray = crowd.faces(face)[0].landmarks
    sharp, light = look(face, landmarks)
    soft, _ = look(np.asarray(cv2.GaussianBlur(face, (0, 0), 2), np.uint8), landmarks)
    _, dark = look(face // 2, landmarks)
    assert soft < 0.3 * sharp
    assert dark == pytest.approx(light / 2, abs=1)


def test_a_tracked_source_is_known_the_next_time(tmp_path: Path, face: ByteImage) -> None:
    path = write_video(tmp_path / "a.mp4", talking(face, 4))
    job = TrackJob(source=source(path), work=str(tmp_path / "work"), tracking=TrackingConfig())
    assert known_track(job) is None
    found = track_source(job)
    release()
    known = known_track(job)
    assert known is not None
    assert (known.key, known.clips, known.problems, known.frames, found.frames) == (found.key, found.clips, found.problems, 0, 4)
    assert UnitStore(tmp_path / "work").has("track", found.key)
    assert found.info["width"] == SIDE
    other = TrackJob(source=source(path), work=job.work, tracking=TrackingConfig(faces="largest"))
    assert known_track(other) is None
