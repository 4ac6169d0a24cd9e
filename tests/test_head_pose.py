"""Head pose against known motions, and the mean face that it is measured with."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from face_scenes import FRONTAL, pose, project
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from datasets_toolkit.faces import face_regions as regions
from datasets_toolkit.faces.head_pose import FOCAL_SCALE, canonical_face, clip_camera, euler_degrees, head_pose, lift, similarity
from datasets_toolkit.schema import LANDMARKS, FloatArray

CAMERA = clip_camera(np.array([120.0, 40.0, 300.0]))
seeds = st.integers(0, 10**6)
angles = st.floats(-50, 50)


def turned(yaw: float, pitch: float, roll: float) -> FloatArray:
    """The rotation of a head (to the camera) with these angles in degrees, by scipy."""
    return FRONTAL @ Rotation.from_euler("YXZ", [yaw, -pitch, -roll], degrees=True).as_matrix()


@settings(deadline=None)
@given(yaw=angles, pitch=angles, roll=angles, x=st.floats(-15, 15), y=st.floats(-15, 15), z=st.floats(60, 250))
def test_a_known_motion_comes_back(yaw: float, pitch: float, roll: float, x: float, y: float, z: float) -> None:
    motion = pose(turned(yaw, pitch, roll), np.array([x, y, z]))
    found = head_pose(project(canonical_face().vertices, motion, CAMERA), CAMERA)
    np.testing.assert_allclose(found.head_to_camera, motion, atol=1e-8 * z)
    np.testing.assert_allclose(found.mesh, canonical_face().vertices, atol=1e-8 * z)


@settings(deadline=None)
@given(seed=seeds, yaw=angles, pitch=angles, roll=angles)
def test_the_posed_mesh_projects_onto_any_landmarks(seed: int, yaw: float, pitch: float, roll: float) -> None:
    motion = pose(turned(yaw, pitch, roll), np.array([2.0, -3.0, 100.0]))
    landmarks = project(canonical_face().vertices, motion, CAMERA)
    landmarks += np.random.default_rng(seed).normal(0, 4, landmarks.shape)  # another face, another expression
    found = head_pose(landmarks, CAMERA)
    np.testing.assert_allclose(project(found.mesh, found.head_to_camera, CAMERA)[:, :2], landmarks[:, :2], atol=1e-6)
    rotation = found.head_to_camera[:3, :3]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) > 0
    np.testing.assert_array_equal(found.head_to_camera[3], [0, 0, 0, 1])


def test_the_frontal_head_and_the_size_of_another_face() -> None:
    larger = 1.1 * canonical_face().vertices
    found = head_pose(project(larger, pose(FRONTAL, np.array([0.0, 0.0, 132.0])), CAMERA), CAMERA)
    # A picture does not tell a larger head from a nearer one: the mesh has the size of the mean face.
    np.testing.assert_allclose(found.head_to_camera, pose(FRONTAL, np.array([0, 0, 120.0])), atol=1e-8)
    np.testing.assert_allclose(found.mesh, canonical_face().vertices, atol=1e-8)


def test_lift_is_the_formula_of_its_docstring() -> None:
    x, y, z = 200.0, 100.0, -30.0
    (f, c_x, c_y), depth = (CAMERA[0, 0], CAMERA[0, 2], CAMERA[1, 2]), 1 + z / CAMERA[0, 0]
    np.testing.assert_allclose(lift(np.array([[x, y, z]]), CAMERA), [[(x - c_x) / f * depth, (y - c_y) / f * depth, depth]], rtol=1e-14)


@settings(deadline=None)
@given(seed=seeds, count=st.integers(4, 50), scale=st.floats(0.01, 50))
def test_similarity_recovers_what_it_is_given(seed: int, count: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    source, shift = generator.normal(size=(count, 3)), generator.normal(size=3)
    rotation = Rotation.random(random_state=seed).as_matrix()
    found = similarity(source, scale * source @ rotation.T + shift, generator.uniform(0.1, 1, count))
    assert found[0] == pytest.approx(scale, rel=1e-9)
    np.testing.assert_allclose(found[1], rotation, atol=1e-7)
    np.testing.assert_allclose(found[2], shift, atol=1e-7 * (1 + scale))


@settings(deadline=None)
@given(seed=seeds, count=st.integers(5, 50))
def test_similarity_is_the_least_squares_answer(seed: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    source, target, weights = generator.normal(size=(count, 3)), generator.normal(size=(count, 3)), generator.uniform(0.1, 1, count)
    scale, rotation, shift = similarity(source, target, weights)
    means = [weights @ points / weights.sum() for points in (source, target)]
    expected, _ = Rotation.align_vectors(target - means[1], source - means[0], weights)
    np.testing.assert_allclose(rotation, expected.as_matrix(), atol=1e-6)

    def cost(s: float, t: FloatArray) -> float:
        return float(weights @ ((s * source @ rotation.T + t - target) ** 2).sum(1))

    best = cost(scale, shift)
    assert all(cost(scale + step, shift) >= best for step in (-1e-3, 1e-3))
    assert all(cost(scale, shift + step * axis) >= best for axis in np.eye(3) for step in (-1e-3, 1e-3))


@given(yaw=angles, pitch=angles, roll=angles)
def test_euler_angles_are_those_of_scipy(yaw: float, pitch: float, roll: float) -> None:
    found = euler_degrees(np.stack([pose(turned(yaw, pitch, roll), np.zeros(3)), pose(FRONTAL, np.zeros(3))]))
    np.testing.assert_allclose(found, np.array([[yaw, pitch, roll], [0, 0, 0]]), atol=1e-6)


@pytest.mark.parametrize(("angle", "point", "axis", "sign"), [(0, (0, 0, 1), 0, 1), (1, (0, 0, 1), 1, -1), (2, (0, 1, 0), 0, 1)])
def test_euler_signs_in_the_image(angle: int, point: tuple[int, int, int], axis: int, sign: int) -> None:
    """Positive yaw moves the nose right, positive pitch moves it up, positive roll moves the top of the head right."""
    turn = turned(*(30.0 if index == angle else 0.0 for index in range(3)))
    assert (turn @ np.array(point))[axis] == pytest.approx(0.5 * sign)
    assert euler_degrees(pose(turn, np.zeros(3)))[angle] == pytest.approx(30)


@given(x=st.floats(-500, 500), y=st.floats(-500, 500), side=st.floats(10, 2000))
def test_the_clip_camera_looks_at_the_middle_of_its_box(x: float, y: float, side: float) -> None:
    camera = clip_camera(np.array([x, y, side]))
    ahead = camera @ [0.0, 0.0, 7.0]
    np.testing.assert_allclose(ahead[:2] / ahead[2], [x + side / 2, y + side / 2], rtol=1e-12, atol=1e-9)
    border = camera @ [0.5 / FOCAL_SCALE, -0.5 / FOCAL_SCALE, 1.0]  # half a side off the middle
    np.testing.assert_allclose(border[:2], [x + side, y], rtol=1e-9, atol=1e-9)


def test_the_mean_face_is_symmetric_and_metric() -> None:
    face = canonical_face()
    assert face.vertices.shape == (LANDMARKS, 3)
    np.testing.assert_array_equal(face.mirror[face.mirror], np.arange(LANDMARKS))
    np.testing.assert_allclose(face.vertices[face.mirror], face.vertices * [-1, 1, 1], atol=1e-6)
    right, left = face.vertices[regions.RIGHT_IRIS[0]], face.vertices[regions.LEFT_IRIS[0]]
    assert np.linalg.norm(left - right) == pytest.approx(6.3, abs=1e-5)
    assert left[0] > 0 > right[0]  # x points to the person's left
    assert face.vertices[regions.FOREHEAD, 1] > face.vertices[regions.CHIN, 1]
    assert face.vertices[:, 2].argmax() in (1, 4)  # the tip of the nose is in front
    assert {face.mirror[index] for index in regions.LEFT_EYE} == set(regions.RIGHT_EYE)


def test_the_weights_of_the_mean_face() -> None:
    face = canonical_face()
    assert face.pose_weights.sum() == pytest.approx(1, abs=1e-6)
    assert face.pose_weights.min() >= 0
    np.testing.assert_allclose(face.pose_weights[face.mirror], face.pose_weights, atol=1e-9)
    assert not face.pose_weights[list(regions.LEFT_EYE + regions.RIGHT_EYE + regions.LEFT_IRIS + regions.RIGHT_IRIS)].any()


def test_the_surface_of_the_mean_face_is_one_oriented_sheet_with_three_openings() -> None:
    face = canonical_face()
    corners = face.vertices[face.triangles]
    assert (np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])[:, 2] > 0).all()  # counter-clockwise from the front
    edges = Counter((int(t[k]), int(t[(k + 1) % 3])) for t in face.triangles for k in range(3))
    assert set(edges.values()) == {1}  # neighbours run along their common edge in opposite directions
    following = {a: b for a, b in edges if (b, a) not in edges}
    rims = set()
    while following:
        rim = [next(iter(following))]
        while (end := following.pop(rim[-1])) != rim[0]:
            rim.append(end)
        rims.add(frozenset(rim))
    assert rims == {frozenset(ring) for ring in (regions.FACE_OVAL, regions.LEFT_EYE, regions.RIGHT_EYE, regions.MOUTH_INNER)}
    irises = {*regions.LEFT_IRIS, *regions.RIGHT_IRIS}
    assert set(face.triangles.ravel().tolist()) == set(range(LANDMARKS)) - irises
