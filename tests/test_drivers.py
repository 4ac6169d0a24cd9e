"""Drivers: what motions hold, how they are carried over to a source, and what every way to make one promises."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from motion_scenes import (
    BROKEN,
    MODES,
    angle,
    broken,
    close,
    double,
    live_link,
    made_clip,
    random_motion,
    random_source,
    scales,
    seeds,
)
from scipy.spatial.transform import Rotation, Slerp

from datasets_toolkit.errors import NoFaceError, UserError
from datasets_toolkit.faces.head_pose import FOCAL_SCALE, euler_degrees
from mggtalk.drivers import Control, check_motion, motion_from_clip, retarget, rotation_power
from mggtalk.geometry.cameras import project
from mggtalk.geometry.face_model import FaceModel
from mggtalk.motion_csv import motion_from_csv
from mggtalk.motion_files import load_motion, save_motion
from mggtalk.types import Camera, Motion


@pytest.fixture(scope="module")
def face_model() -> FaceModel:
    return FaceModel()


@settings(deadline=None)
@given(seed=seeds, exponent=st.floats(-2.0, 3.0))
def test_rotation_power_multiplies_the_rotation_vector(seed: int, exponent: float) -> None:
    vectors = np.random.default_rng(seed).normal(size=(4, 3))
    vectors[0] = 0
    vectors[1:] *= np.array([1e-7, 1.0, 3.1])[:, None] / np.linalg.norm(vectors[1:], axis=1, keepdims=True)
    expected = torch.from_numpy(Rotation.from_rotvec(vectors * exponent).as_matrix())
    rotations = torch.from_numpy(Rotation.from_rotvec(vectors).as_matrix())
    close(rotation_power(rotations, exponent), expected, 1e-8)
    close(rotation_power(rotations, torch.full((4,), exponent, dtype=double)), expected, 1e-8)


@settings(deadline=None)
@given(seed=seeds, mode=st.sampled_from(MODES))
def test_a_driver_that_is_the_source_gives_the_source(seed: int, mode: tuple[str, str]) -> None:
    camera, expression = random_source(seed)
    one = random_motion(seed, 3)
    motion = replace(one, head_to_camera=camera.head_to_camera.expand(3, 4, 4), expression=expression.expand(3, 6))
    moved, poses = retarget(motion, camera, expression, Control(pose=mode[0], expression=mode[1], reference=2))
    close(poses, camera.head_to_camera)
    close(moved, expression)


@settings(deadline=None)
@given(seed=seeds, mode=st.sampled_from(MODES), scale=scales)
def test_the_scales_are_strengths(seed: int, mode: tuple[str, str], scale: float) -> None:
    """Angle, shift and log depth ratio against the source are multiplied; so are expressions, or their change. Poses stay rigid."""
    motion, (camera, expression) = random_motion(seed), random_source(seed)
    source = camera.head_to_camera
    full, full_poses = retarget(motion, camera, expression, Control(pose=mode[0], expression=mode[1], reference=1))
    control = Control(pose=mode[0], expression=mode[1], reference=1, pose_scale=scale, expression_scale=scale)
    moved, poses = retarget(motion, camera, expression, control)
    vectors = [Rotation.from_matrix((pose[:, :3, :3] @ source[:3, :3].mT).numpy()).as_rotvec() for pose in (full_poses, poses)]
    np.testing.assert_allclose(
        Rotation.from_rotvec(vectors[0] * scale).as_matrix(), Rotation.from_rotvec(vectors[1]).as_matrix(), atol=1e-8
    )
    close(poses[:, :2, 3] - source[:2, 3], scale * (full_poses[:, :2, 3] - source[:2, 3]))
    close((poses[:, 2, 3] / source[2, 3]).log(), scale * (full_poses[:, 2, 3] / source[2, 3]).log())
    start = expression if mode[1] == "relative" else torch.zeros_like(expression)
    close(moved - start, scale * (full - start))
    check_motion(replace(motion, expression=moved, head_to_camera=poses), 6)


@settings(deadline=None)
@given(seed=seeds)
def test_poses_by_mode(seed: int) -> None:
    motion, (camera, expression) = random_motion(seed), random_source(seed)
    source, driver = camera.head_to_camera, motion.head_to_camera
    poses = {mode: retarget(motion, camera, expression, Control(pose=mode, reference=3))[1] for mode in ("absolute", "still", "relative")}
    close(poses["absolute"], driver)
    close(poses["still"], source)
    relative = poses["relative"]
    close(relative[3], source)
    # In the axes of the camera the source's head has turned by what the driver's has.
    close(relative[:, :3, :3] @ source[:3, :3].mT, driver[:, :3, :3] @ driver[3, :3, :3].mT)
    close(relative[:, 2, 3] / source[2, 3], driver[:, 2, 3] / driver[3, 2, 3])
    close((relative[:, :2, 3] - source[:2, 3]) / source[2, 3], (driver[:, :2, 3] - driver[3, :2, 3]) / driver[3, 2, 3])


@settings(deadline=None)
@given(seed=seeds)
def test_expressions_by_mode(seed: int) -> None:
    motion, (camera, expression) = random_motion(seed), random_source(seed)
    torch.testing.assert_close(retarget(motion, camera, expression)[0], motion.expression)
    relative = retarget(motion, camera, expression, Control(expression="relative", reference=2))[0]
    close(relative - expression, motion.expression - motion.expression[2])


def test_a_shift_moves_source_and_driver_by_the_same_share_of_the_box() -> None:
    """The driver, 1 m away, goes 5 cm aside: 0.15 sides of its box. The source, at 1.4 m under 768 px = 3 sides, goes 0.15 * 256 px."""
    motion = random_motion(0, 2)
    poses = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=double)).repeat(2, 1, 1)
    poses[:, 2, 3], poses[1, 0, 3] = 100, 5
    camera, expression = random_source(0)
    source = poses[0].clone()
    source[2, 3] = 140
    camera = replace(camera, head_to_camera=source)
    moved = retarget(replace(motion, head_to_camera=poses), camera, expression)[1]
    origin = torch.zeros(2, 1, 3, dtype=double)
    pixels = project(origin, Camera(intrinsics=camera.intrinsics.expand(2, 3, 3), head_to_camera=moved))[0]
    close(pixels[1, 0] - pixels[0, 0], torch.tensor([0.15 * 256, 0], dtype=double))


@pytest.mark.parametrize("mode", ["relative", "absolute"])
def test_another_focal_length_shows_the_same_head(mode: str) -> None:
    """A head seen through twice the focal length from twice as far is as large and moves by the same share."""
    motion, (camera, expression) = random_motion(4), random_source(4)
    far = motion.head_to_camera.clone()
    far[:, 2, 3] *= 2
    tele = replace(motion, head_to_camera=far, focal=2 * motion.focal)
    expected, actual = (retarget(one, camera, expression, Control(pose=mode))[1] for one in (motion, tele))
    close(actual, expected)


def test_the_reference_is_a_frame_that_shows_the_face() -> None:
    motion, (camera, expression) = random_motion(7), random_source(7)
    motion = replace(motion, found=torch.tensor([False, False, True, True, False]))
    for asked, taken in ((0, 2), (4, 2), (3, 3)):
        poses = retarget(motion, camera, expression, Control(reference=asked))[1]
        close(poses[taken], camera.head_to_camera)
        assert angle(poses[taken - 1], camera.head_to_camera) > 0.01
    with pytest.raises(UserError, match="5 frames, counted from 0, so there is no reference frame 5"):
        retarget(motion, camera, expression, Control(reference=5))


def test_gradients_reach_the_source_at_rest() -> None:
    motion, (camera, expression) = random_motion(8), random_source(8)
    source = camera.head_to_camera.clone().requires_grad_()
    retarget(motion, replace(camera, head_to_camera=source), expression, Control(pose="relative", pose_scale=0.5))[1].sum().backward()
    assert source.grad is not None and source.grad.isfinite().all()


@pytest.mark.parametrize(
    "wrong", [{"pose_scale": -1.0}, {"expression_scale": float("nan")}, {"pose_scale": float("inf")}, {"reference": -1}]
)
def test_controls_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be finite and not negative"):
        Control(**wrong)


def test_a_clip_gives_expressions_about_the_persons_own_face(face_model: FaceModel) -> None:
    """Blendshapes as tracked; components by ridge regression (numpy's least squares with the prior as rows) of what they leave."""
    clip, expression = made_clip(face_model)
    motion = motion_from_clip(clip, face_model)
    check_motion(motion, face_model.expression_size)
    weights = face_model.importance.double().numpy()[:, None]
    basis = (face_model.components.double().numpy() * weights).reshape(32, -1).T
    meant = basis @ expression[:, 52:].T
    ridge = np.concatenate([basis, face_model.noise * np.eye(32)])
    fitted = np.linalg.lstsq(ridge, np.concatenate([meant, np.zeros((32, 8))]), rcond=None)[0].T
    np.testing.assert_allclose(motion.expression[:, :52], expression[:, :52], atol=1e-6)
    np.testing.assert_allclose(motion.expression[:, 52:], fitted, atol=1e-3)
    np.testing.assert_allclose(motion.head_to_camera, clip.head_to_camera, atol=1e-5)
    np.testing.assert_array_equal(motion.times, clip.times)
    assert motion.found.all() and float(motion.focal) == FOCAL_SCALE


def test_gaps_are_interpolated_in_time_held_at_the_ends_and_told(face_model: FaceModel, caplog: pytest.LogCaptureFixture) -> None:
    clip, _ = made_clip(face_model, missing=(0, 3, 4, 7))
    with caplog.at_level(logging.WARNING):
        motion = motion_from_clip(clip, face_model, name="a.mp4")
    assert "a.mp4: 4 of 8 frames show no face, for 0.16 s at most" in caplog.text  # frame 3 at 5.14 s to frame 5 at 5.3 s
    np.testing.assert_array_equal(motion.found, clip.found)
    rows = np.flatnonzero(clip.found)
    inside = np.clip(clip.times, clip.times[rows[0]], clip.times[rows[-1]])
    turns = Slerp(clip.times[rows], Rotation.from_matrix(clip.head_to_camera[rows, :3, :3]))(inside)
    np.testing.assert_allclose(motion.head_to_camera[:, :3, :3], turns.as_matrix(), atol=1e-5)
    np.testing.assert_allclose(euler_degrees(motion.head_to_camera.double().numpy())[:, 0], 40 * (inside - 5.2), atol=1e-3)
    np.testing.assert_allclose(motion.head_to_camera[:, 0, 3], 10 * (inside - 5), atol=1e-5)
    for column in (3, 60):
        np.testing.assert_allclose(
            motion.expression[:, column], np.interp(inside, clip.times[rows], motion.expression[rows, column]), atol=1e-5
        )
    check_motion(motion, face_model.expression_size)


def test_a_clip_without_a_face_is_refused(face_model: FaceModel) -> None:
    with pytest.raises(NoFaceError, match=r"a\.mp4: no face found in any frame"):
        motion_from_clip(made_clip(face_model, missing=tuple(range(8)))[0], face_model, name="a.mp4")


@pytest.mark.parametrize(("field", "index", "value", "message"), BROKEN)
def test_what_is_no_motion_is_told(field: str, index: tuple[int, ...], value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_motion(broken(random_motion(3), field, index, value))


def test_mirrored_heads_and_wrong_sizes_are_no_motion() -> None:
    motion = random_motion(3)
    with pytest.raises(ValueError, match="frame 0 has a head pose that is not rigid"):
        check_motion(replace(motion, head_to_camera=motion.head_to_camera @ torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=double))))
    with pytest.raises(ValueError, match=r"expression has the shape \(5, 6\), not \(5, 84\)"):
        check_motion(motion, 84)


def from_clip(folder: Path, face_model: FaceModel) -> Motion:
    return motion_from_clip(made_clip(face_model, missing=(0, 4))[0], face_model)


def from_file(folder: Path, face_model: FaceModel) -> Motion:
    save_motion(folder / "a.safetensors", from_clip(folder, face_model), fps=None, source="a.mp4")
    return load_motion(folder / "a.safetensors")[0]


def from_csv(folder: Path, face_model: FaceModel) -> Motion:
    return motion_from_csv(live_link(folder / "a.csv"), face_model)[0]


@pytest.mark.parametrize("make", [from_clip, from_file, from_csv])
@pytest.mark.parametrize("mode", MODES)
def test_every_driver_keeps_the_contract(
    make: Callable[[Path, FaceModel], Motion], mode: tuple[str, str], tmp_path: Path, face_model: FaceModel
) -> None:
    """A valid motion; carried over to a source it is one again, starts from the source where it is relative, and moves."""
    motion = make(tmp_path, face_model)
    check_motion(motion, face_model.expression_size)
    assert motion.expression.dtype == motion.head_to_camera.dtype == torch.float32 and motion.times.dtype == double
    camera, expression = random_source(11, face_model.expression_size)
    camera, expression = camera.to(torch.float32), expression.float()
    moved, poses = retarget(motion, camera, expression, Control(pose=mode[0], expression=mode[1]))
    check_motion(replace(motion, expression=moved, head_to_camera=poses), face_model.expression_size)
    first = int(motion.found.int().argmax())
    if mode[0] != "absolute":
        close(poses[first], camera.head_to_camera, 1e-4)
    if mode[1] == "relative":
        close(moved[first], expression, 1e-5)
    assert (angle(poses, poses[:1]).max() > 0.1) == (mode[0] != "still")
    assert float((moved - moved[0]).abs().max()) > 0.1
