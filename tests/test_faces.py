"""Faces in a real photograph and its known changes; boxes and crops against slow twins and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from face_scenes import moved, pasted, shrunk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from datasets_toolkit.faces.detection import (
    FaceTracker,
    crop_image,
    inside_image,
    landmark_bounds,
    reference_box,
    smooth_boxes,
    source_to_crop,
)
from datasets_toolkit.schema import BLENDSHAPES, LANDMARKS, ByteImage, Face, FloatArray

CENTRE, SIZE = np.array([225.0, 124.0]), 109.0  # of the astronaut's face, pixels, read off the photograph


def test_the_face_is_found_where_it_is(astronaut_face: Face) -> None:
    centre, size = landmark_bounds(astronaut_face.landmarks)
    assert np.abs(centre - CENTRE).max() < 4
    assert abs(size - SIZE) < 4
    assert astronaut_face.landmarks.shape == (LANDMARKS, 3)
    assert astronaut_face.blendshapes.shape == (len(BLENDSHAPES),)
    assert astronaut_face.blendshapes.min() >= 0
    assert astronaut_face.blendshapes.max() <= 1
    scores = dict(zip(BLENDSHAPES, astronaut_face.blendshapes, strict=True))
    assert min(scores["mouthSmileLeft"], scores["mouthSmileRight"]) > 0.5  # she smiles with open eyes
    assert max(scores["eyeBlinkLeft"], scores["eyeBlinkRight"], scores["jawOpen"]) < 0.3


def test_depth_has_the_sign_and_scale_of_a_face(astronaut_face: Face) -> None:
    nose, chin, forehead, left, right = astronaut_face.landmarks[[1, 152, 10, 454, 234]]
    assert nose[2] < min(chin[2], forehead[2], left[2], right[2])  # smaller is nearer
    assert 0.2 < ((left + right) / 2 - nose)[2] / (left - right)[0] < 0.8
    assert left[0] > right[0]  # the person's left is on the image's right


@pytest.mark.parametrize(
    ("scale", "shift"), [(1, (37.0, -20.0)), (1, (-80.4, 100.7)), (0.7, (11.0, 5.0)), (0.5, (60.0, 90.0)), (1.5, (-90.0, -40.0))]
)
def test_landmarks_follow_the_image(
    tracker: FaceTracker, astronaut: ByteImage, astronaut_face: Face, scale: float, shift: tuple[float, float]
) -> None:
    (face,) = tracker.faces(moved(astronaut, scale, shift))
    back = (face.landmarks - [*shift, 0]) / scale
    distance = np.linalg.norm((back - astronaut_face.landmarks)[:, :2], axis=1) / SIZE
    assert distance.mean() < 0.015
    assert distance.max() < 0.04


def test_the_same_image_gives_the_same_face(tracker: FaceTracker, astronaut: ByteImage, astronaut_face: Face) -> None:
    tracker.faces(moved(astronaut, 0.6, (100.0, 0.0)))  # nothing of other images is left over
    (again,) = tracker.faces(astronaut)
    np.testing.assert_array_equal(again.landmarks, astronaut_face.landmarks)
    np.testing.assert_array_equal(again.blendshapes, astronaut_face.blendshapes)


def test_several_faces_come_largest_first(tracker: FaceTracker, astronaut: ByteImage) -> None:
    image = pasted([(shrunk(astronaut, 280), 0, 0), (shrunk(astronaut, 400), 280, 0)], 400, 680)
    found = [landmark_bounds(face.landmarks) for face in tracker.faces(image)]
    expected = [(CENTRE * 400 / 512 + [280, 0], SIZE * 400 / 512), (CENTRE * 280 / 512, SIZE * 280 / 512)]
    assert len(found) == 2
    for (centre, size), (true_centre, true_size) in zip(found, expected, strict=True):
        assert np.abs(centre - true_centre).max() < 0.05 * true_size
        assert size == pytest.approx(true_size, rel=0.05)


def test_neighbours_cheek_to_cheek_are_two_faces(tracker: FaceTracker, astronaut: ByteImage) -> None:
    head = astronaut[20:260, 150:302]
    image = pasted([(head, 100, 30), (head, 252, 30)], 470, 504)
    centres = sorted(landmark_bounds(face.landmarks)[0][0] for face in tracker.faces(image))
    np.testing.assert_allclose(centres, [100 + CENTRE[0] - 150, 252 + CENTRE[0] - 150], atol=4)


@pytest.mark.parametrize(("side", "width", "height", "x", "y"), [(290, 1920, 1080, 1300, 600), (330, 4000, 3000, 1000, 2300)])
def test_a_small_face_in_a_large_image_is_found_in_tiles(
    tracker: FaceTracker, astronaut: ByteImage, side: int, width: int, height: int, x: int, y: int
) -> None:
    (face,) = tracker.faces(pasted([(shrunk(astronaut, side), x, y)], height, width))
    centre, size = landmark_bounds(face.landmarks)
    assert np.abs(centre - [x, y] - CENTRE * side / 512).max() < 0.05 * size
    assert size == pytest.approx(SIZE * side / 512, rel=0.05)


def test_smaller_faces_are_searched_for_only_where_they_are_wanted(tracker: FaceTracker, astronaut: ByteImage) -> None:
    image = pasted([(shrunk(astronaut, 300), 700, 100)], 800, 1600)
    assert len(tracker.faces(image)) == 1
    assert tracker.faces(image, smallest=250.0) == []


@pytest.mark.parametrize("name", ["plain", "coffee", "chelsea", "rocket", "hubble_deep_field"])
def test_what_is_no_face_is_none(tracker: FaceTracker, name: str) -> None:
    from skimage import data

    image = np.full((300, 400, 3), 128, np.uint8) if name == "plain" else np.ascontiguousarray(getattr(data, name)())
    assert tracker.faces(image) == []


def test_follow_finds_the_face_near_where_it_was_and_only_there(tracker: FaceTracker, astronaut: ByteImage, astronaut_face: Face) -> None:
    near = tracker.follow(moved(astronaut, 1.0, (15.0, 10.0)), astronaut_face)
    assert near is not None
    assert np.linalg.norm((near.landmarks - astronaut_face.landmarks)[:, :2] - [15, 10], axis=1).mean() < 0.015 * SIZE
    assert tracker.follow(np.full_like(astronaut, 90), astronaut_face) is None


def test_the_reference_box_is_around_the_face_a_little_higher(astronaut_face: Face) -> None:
    centre, size = landmark_bounds(astronaut_face.landmarks)
    box = reference_box(astronaut_face.landmarks)
    assert box[2] == pytest.approx(2.1 * size)
    np.testing.assert_allclose(box[:2] + box[2] / 2, centre - [0, 0.06 * box[2]])


def taps(length: int, start: float, side: float, size: int, cubic: bool) -> FloatArray:
    """One row of interpolation weights (size x length) for each crop pixel, the edge repeated."""

    def keys(t: float) -> float:  # the cubic kernel with OpenCV's slope of -0.75
        t = abs(t)
        return (1.25 * t - 2.25) * t * t + 1 if t < 1 else (-0.75 * t**3 + 3.75 * t * t - 6 * t + 3 if t < 2 else 0.0)

    weights = np.zeros((size, length))
    for pixel in range(size):
        place = start + (pixel + 0.5) * side / size - 0.5
        for index in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            weights[pixel, min(max(index, 0), length - 1)] += keys(place - index) if cubic else max(0.0, 1 - abs(place - index))
    return weights


@pytest.mark.parametrize(
    "box", [(100.0, 20.5, 64.0), (90.3, 40.7, 250.0), (-40.2, -10.0, 200.0), (380.0, 400.0, 180.4), (-50.0, -60.0, 700.0)]
)
def test_crops_are_those_of_a_slow_twin(astronaut: ByteImage, box: tuple[float, float, float]) -> None:
    shrink, rim = box[2] / 96, 300
    source = np.pad(astronaut.astype(np.float64), ((rim, rim), (rim, rim), (0, 0)), mode="edge")
    if shrink > 1:
        source = gaussian_filter(source, (0.35 * shrink, 0.35 * shrink, 0))
    down, across = (taps(512 + 2 * rim, start + rim, box[2], 96, cubic=shrink <= 1) for start in (box[1], box[0]))
    expected = np.einsum("yh,hwc,xw->yxc", down, source, across, optimize=True).clip(0, 255)
    difference = np.abs(crop_image(astronaut, np.array(box), 96) - expected)
    assert difference.mean() < 0.5
    assert difference.max() < 5  # OpenCV rounds places to 1/32 pixel


@given(x=st.floats(-100, 100), y=st.floats(-100, 100), side=st.floats(5, 500), size=st.integers(1, 600))
def test_crop_coordinates_go_there_and_back(x: float, y: float, side: float, size: int) -> None:
    matrix = source_to_crop(np.array([x, y, side]), size)
    corners = np.array([[x, y, 1], [x + side, y + side, 1], [x + side / 2, y, 1]])
    expected = np.array([[0, 0, 1], [size, size, 1], [size / 2, 0, 1]])
    np.testing.assert_allclose(corners @ matrix.T, expected, atol=1e-9 * size + 1e-9)
    np.testing.assert_allclose(corners @ matrix.T @ np.linalg.inv(matrix).T, corners, atol=1e-9)


@given(x=st.floats(-900, 900), y=st.floats(-900, 900), side=st.floats(1, 900), height=st.integers(1, 700), width=st.integers(1, 700))
def test_inside_image(x: float, y: float, side: float, height: int, width: int) -> None:
    box = np.array([x, y, side])
    found = inside_image(box, height, width)
    assert found[2] == min(side, height, width)
    assert (found[:2] >= 0).all()
    assert found[0] + found[2] <= width + 1e-9
    assert found[1] + found[2] <= height + 1e-9
    np.testing.assert_allclose(inside_image(found, height, width), found, atol=1e-9)
    if x >= 0 and y >= 0 and x + side <= width and y + side <= height:
        np.testing.assert_allclose(found, box, atol=1e-9)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 60))
def test_constant_boxes_stay_and_gaps_are_filled(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    times, box = np.cumsum(generator.uniform(0.01, 30, count)), generator.uniform(1, 500, 3)
    boxes = np.tile(box, (count, 1))
    boxes[generator.permutation(count)[: count // 2]] = np.nan
    np.testing.assert_allclose(smooth_boxes(boxes, times), np.tile(box, (count, 1)), rtol=1e-12)


def test_a_long_gap_takes_its_nearest_box() -> None:
    boxes = np.array([[10.0, 20, 100], [np.nan] * 3, [np.nan] * 3, [50.0, 60, 200]])
    found = smooth_boxes(boxes, np.array([0.0, 40.0, 70.0, 100.0]))
    np.testing.assert_allclose(found, boxes[[0, 0, 3, 3]])
    with pytest.raises(ValueError, match="every row is NaN"):
        smooth_boxes(boxes[1:3], np.array([0.0, 1.0]))


def test_steady_motion_is_not_delayed() -> None:
    times = np.arange(200) / 25
    boxes = np.column_stack([30 * times, 5 - 12 * times, 100 + 8 * times])
    middle = slice(60, 140)  # 2.4 seconds, six windows, from both ends
    np.testing.assert_allclose(smooth_boxes(boxes, times)[middle], boxes[middle], rtol=1e-6)
    jitter = boxes + np.random.default_rng(0).normal(0, 3, boxes.shape)
    assert np.abs(smooth_boxes(jitter, times) - boxes)[middle].std() < 1
