"""Drivers: what motions hold, how they are carried over to a source, and the files they come from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.spatial.transform import Rotation, Slerp
from torch import Tensor

from datasets_toolkit.errors import NoFaceError, UserError
from datasets_toolkit.head_pose import FOCAL_SCALE, clip_camera, euler_degrees
from datasets_toolkit.schema import BLENDSHAPES, FloatArray, TrackedClip
from mggtalk.drivers import Control, check_motion, motion_from_clip, retarget, rotation_power
from mggtalk.geometry.cameras import project
from mggtalk.geometry.face_model import FaceModel
from mggtalk.motion_csv import DISTANCE, motion_from_csv
from mggtalk.motion_files import load_motion, save_motion
from mggtalk.types import Camera, Motion

MODES = [(pose, expression) for pose in ("relative", "absolute", "still") for expression in ("absolute", "relative")]
seeds = st.integers(0, 10**6)
scales = st.floats(0.0, 2.0)
double = torch.float64


@pytest.fixture(scope="module")
def face_model() -> FaceModel:
    return FaceModel()


def frontal(rotations: Rotation) -> FloatArray:
    return np.diag([1.0, -1, -1]) @ rotations.as_matrix()


def random_motion(seed: int, frames: int = 5, size: int = 6) -> Motion:
    """Heads turned up to about half a turn; 1 to 1.4 m away, up to 20 cm aside."""
    generator = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, :3, :3] = frontal(Rotation.from_rotvec(generator.uniform(-0.7, 0.7, (frames, 3))))
    poses[:, :3, 3] = generator.uniform([-20, -20, 100], [20, 20, 140], (frames, 3))
    return Motion(
        expression=torch.from_numpy(generator.normal(size=(frames, size))),
        head_to_camera=torch.from_numpy(poses),
        times=torch.from_numpy(np.cumsum(generator.uniform(0.01, 0.1, frames))),
        found=torch.ones(frames, dtype=torch.bool),
        focal=torch.tensor(FOCAL_SCALE, dtype=double),
    )


def random_source(seed: int, size: int = 6) -> tuple[Camera, Tensor]:
    motion = random_motion(seed + 1, 1, size)
    intrinsics = torch.tensor([[768.0, 0, 128], [0, 768, 120], [0, 0, 1]], dtype=double)
    return Camera(intrinsics=intrinsics, head_to_camera=motion.head_to_camera[0]), motion.expression[0]


def angle(one: Tensor, two: Tensor) -> FloatArray:
    return Rotation.from_matrix((one[..., :3, :3] @ two[..., :3, :3].mT).numpy()).magnitude()


def close(actual: Tensor, expected: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected.expand_as(actual), rtol=0, atol=atol)


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
    np.testing.assert_allclose(Rotation.from_rotvec(vectors[0] * scale).as_matrix(), Rotation.from_rotvec(vectors[1]).as_matrix(), atol=1e-8)
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
        assert angle(poses[1 - taken], camera.head_to_camera) > 0.01
    with pytest.raises(UserError, match="5 frames, counted from 0, so there is no reference frame 5"):
        retarget(motion, camera, expression, Control(reference=5))


def test_gradients_reach_the_source_at_rest() -> None:
    motion, (camera, expression) = random_motion(8), random_source(8)
    source = camera.head_to_camera.clone().requires_grad_()
    retarget(motion, replace(camera, head_to_camera=source), expression, Control(pose="relative", pose_scale=0.5))[1].sum().backward()
    assert source.grad is not None and source.grad.isfinite().all()


@pytest.mark.parametrize("wrong", [{"pose_scale": -1.0}, {"expression_scale": float("nan")}, {"pose_scale": float("inf")}, {"reference": -1}])
def test_controls_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be finite and not negative"):
        Control(**wrong)


def made_clip(face_model: FaceModel, missing: tuple[int, ...] = ()) -> tuple[TrackedClip, FloatArray]:
    """A person turning at an even rate under uneven times, and the expression of each frame: even, and of mean 0 where found."""
    generator = np.random.default_rng(0)
    times = np.array([0.0, 0.04, 0.1, 0.14, 0.2, 0.3, 0.34, 0.4]) + 5
    found = np.ones(8, bool)
    found[list(missing)] = False
    expression = generator.normal(size=(8, face_model.expression_size)) * 0.5
    expression[:, :52] = generator.uniform(size=(8, 52))
    expression[:, 52:] -= expression[found, 52:].mean(0)
    person = face_model.mean + 0.5 * face_model.identity[0]
    mesh = (person + face_model.displacement(torch.from_numpy(expression).float())).double().numpy()
    yaw = 40 * (times - 5.2)
    poses = np.tile(np.eye(4), (8, 1, 1))
    poses[:, :3, :3] = frontal(Rotation.from_euler("y", yaw[:, None], degrees=True))
    poses[:, :3, 3] = np.stack([10 * (times - 5), 0 * times, 110 + times - 5], 1)
    box = np.array([0.0, 0, 300])
    for array in (mesh, poses):
        array[~found] = np.nan
    return TrackedClip(
        landmarks=np.where(found[:, None, None], 0.0, np.nan) * mesh,
        blendshapes=np.where(found[:, None], expression[:, :52], np.nan),
        head_to_camera=poses,
        mesh=mesh,
        found=found,
        times=times,
        indices=np.arange(8),
        intrinsics=clip_camera(box),
        box=box,
    ), expression


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
    np.testing.assert_allclose(euler_degrees(motion.head_to_camera.numpy())[:, 0], 40 * (inside - 5.2), atol=1e-3)
    np.testing.assert_allclose(motion.head_to_camera[:, 0, 3], 10 * (inside - 5), atol=1e-5)
    for column in (3, 60):
        np.testing.assert_allclose(motion.expression[:, column], np.interp(inside, clip.times[rows], motion.expression[rows, column]), atol=1e-5)
    check_motion(motion, face_model.expression_size)


def test_a_clip_without_a_face_is_refused(face_model: FaceModel) -> None:
    with pytest.raises(NoFaceError, match=r"a\.mp4: no face found in any frame"):
        motion_from_clip(made_clip(face_model, missing=tuple(range(8)))[0], face_model, name="a.mp4")


def broken(motion: Motion, field: str, index: tuple[int, ...], value: float) -> Motion:
    tensor = getattr(motion, field).clone()
    tensor[index] = value
    return replace(motion, **{field: tensor})


BROKEN = [
    ("expression", (2, 1), float("nan"), "frame 2 has an expression that is not finite"),
    ("head_to_camera", (1, 0, 0), 2.0, "frame 1 has a head pose that is not rigid"),
    ("head_to_camera", (1, 0, 1), float("nan"), "frame 1 has a head pose that is not rigid"),
    ("head_to_camera", (1, 3, 3), 2.0, "frame 1 has a head pose that is not rigid"),
    ("head_to_camera", (4, 2, 3), -5.0, "frame 4 has a head that is not in front"),
    ("head_to_camera", (4, 0, 3), float("inf"), "frame 4 has a head that is not in front"),
    ("times", (3,), 0.0, "frame 2 has a time that the next one does not exceed"),
    ("times", (0,), float("inf"), "frame 0 has a time that is not finite"),
    ("found", (slice(None),), 0, "no frame shows a face"),
    ("focal", (), 0.0, "the focal length is 0"),
]


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


def full_motion(seed: int = 5) -> Motion:
    motion = random_motion(seed, size=84).to(torch.float32)
    return replace(motion, times=motion.times.double(), found=torch.tensor([True, True, False, True, True]))


@pytest.mark.parametrize("fps", [None, Fraction(30000, 1001), Fraction(25)])
def test_a_motion_file_gives_back_what_it_was_given(tmp_path: Path, fps: Fraction | None) -> None:
    motion, path = full_motion(), tmp_path / "a.motion.safetensors"
    path.write_bytes(b"what was here before")
    save_motion(path, motion, fps=fps, source="drive \udcff.mp4")
    loaded, rate = load_motion(path)
    assert rate == fps and list(tmp_path.iterdir()) == [path]
    for name in ("expression", "head_to_camera", "times", "found", "focal"):
        torch.testing.assert_close(getattr(loaded, name), getattr(motion, name), rtol=0, atol=0)


def test_nothing_is_left_of_a_motion_that_cannot_be_written(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "a.safetensors", tmp_path):
        with pytest.raises(UserError, match="cannot be written"):
            save_motion(path, full_motion(), fps=None, source="a.mp4")
    assert list(tmp_path.parent.glob(".*.part")) == [] and list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="frame 1"):
        save_motion(tmp_path / "a", broken(full_motion(), "expression", (1, 0), float("nan")), fps=None, source="a.mp4")
    assert list(tmp_path.iterdir()) == []


def rewrite(path: Path, tensors: dict[str, Tensor] | None = None, **metadata: str) -> None:
    """Change tensors or metadata of a file, past every check."""
    with safe_open(path, framework="pt") as file:
        before = file.metadata()
    content = load_file(path)
    save_file({**content, **(tensors or {})}, path, {**before, **metadata})


def malformed(path: Path) -> dict[str, tuple[Callable[[], object], str]]:
    data = path.read_bytes()
    motion = full_motion()
    cases: dict[str, tuple[Callable[[], object], str]] = {
        "missing": (path.unlink, "no such file"),
        "empty": (lambda: path.write_bytes(b""), "damaged"),
        "truncated": (lambda: path.write_bytes(data[:-100]), "damaged"),
        "cut in the header": (lambda: path.write_bytes(data[:40]), "damaged"),
        "text": (lambda: path.write_text("time,jawOpen\n0,1\n" * 20), "damaged"),
        "other tensors": (lambda: save_file({"weight": torch.zeros(3)}, path), "not a motion file"),
        "version": (lambda: rewrite(path, version="2"), "version 2"),
        "basis": (lambda: rewrite(path, basis="0" * 64), "another face basis.*track the driver again"),
        "rate": (lambda: rewrite(path, fps="25/0"), "frame rate"),
        "negative rate": (lambda: rewrite(path, fps="-25/1"), "frame rate"),
        "worded rate": (lambda: rewrite(path, fps="fast"), "frame rate"),
        "length": (lambda: rewrite(path, {"times": motion.times[:4]}), "times has the wrong shape"),
        "shape": (lambda: rewrite(path, {"head_to_camera": torch.zeros(5, 3, 4)}), "head_to_camera has the wrong shape"),
        "dimensions": (lambda: rewrite(path, {"expression": torch.zeros(5)}), "expression is torch.float32"),
        "type": (lambda: rewrite(path, {"found": torch.ones(5)}), "found is torch.float32"),
        "size": (lambda: rewrite(path, {"expression": torch.zeros(5, 52)}), "shape"),
        "no frames": (lambda: rewrite(path, {name: getattr(motion[:0], name) for name in ("expression", "times", "found", "head_to_camera")}), "no frame"),
    }
    for field, index, value, message in BROKEN:
        changed = getattr(broken(motion, field, index, value), field)
        cases[f"{field} {index} {value}"] = (lambda field=field, changed=changed: rewrite(path, {field: changed}), message)
    return cases


def test_every_malformed_motion_file_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_motion(path, full_motion(), fps=Fraction(25), source="a.mp4")
    good = path.read_bytes()
    for name, (spoil, message) in malformed(path).items():
        spoil()
        with pytest.raises(UserError, match=message) as caught:
            load_motion(path)
        assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value), name
        path.write_bytes(good)
    assert load_motion(path)[1] == 25


def live_link(path: Path, rate: int = 60, frames: int = 130) -> Path:
    """As Live Link Face writes it, from 23:59:59:30 on: the eye closes evenly, the head turns; frame 20 shows no face."""
    names = [name[0].upper() + name[1:] for name in BLENDSHAPES[1:]]
    lines = [",".join(["Timecode", "BlendshapeCount", *names, "TongueOut", "HeadYaw", "HeadPitch", "HeadRoll", "LeftEyeYaw"])]
    for index in range(frames):
        second, frame = divmod(index + rate // 2, rate)
        code = f"23:59:59:{frame:02d}.250" if second == 0 else f"00:00:{second - 1:02d}:{frame:02d}.250"
        scores = [f"{index / frames:.6f}" if name == "EyeBlinkLeft" else "0.125" for name in names]
        angles = [f"{0.5 * index / frames:.6f}", "-0.2", "0.1", "0.3"]
        lines.append(",".join([code, "0"] if index == 20 else [code, "61", *scores, "0.9", *angles]))
    path.write_text("\r\n".join(lines) + "\r\n", encoding="utf-8-sig")
    return path


@pytest.mark.parametrize("rate", [24, 30, 60])
def test_a_live_link_recording(tmp_path: Path, face_model: FaceModel, rate: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        motion, fps = motion_from_csv(live_link(tmp_path / "a.csv", rate), face_model)
    assert fps == rate
    index = np.arange(130)
    np.testing.assert_allclose(motion.times, index / rate, atol=1e-9)
    np.testing.assert_array_equal(motion.found, index != 20)
    expected = np.zeros((130, face_model.expression_size))
    expected[:, 1:52] = 0.125
    expected[:, BLENDSHAPES.index("eyeBlinkLeft")] = index / 130
    np.testing.assert_allclose(motion.expression, expected, atol=1e-5)
    angles = np.degrees(np.stack([0.5 * index / 130, np.full(130, -0.2), np.full(130, 0.1)], 1))
    angles[20] = angles[[19, 21]].mean(0)  # the shortest arc between two near poses
    np.testing.assert_allclose(euler_degrees(motion.head_to_camera.double().numpy()), angles, atol=2e-3)
    np.testing.assert_array_equal(motion.head_to_camera[:, :3, 3], np.tile([0, 0, DISTANCE], (130, 1)))
    assert "1 of 130 frames show no face" in caplog.text and "no columns" not in caplog.text


@settings(deadline=None)
@given(yaw=st.floats(-1.5, 1.5), pitch=st.floats(-1.5, 1.5), roll=st.floats(-1.5, 1.5))
def test_angles_make_the_pose_that_has_them(yaw: float, pitch: float, roll: float) -> None:
    from mggtalk.motion_csv import head_poses

    poses = head_poses(torch.tensor([[yaw, pitch, roll]], dtype=double)).double()
    np.testing.assert_allclose(np.radians(euler_degrees(poses.numpy())), [[yaw, pitch, roll]], atol=1e-4)  # arcsin is coarse near its ends


def test_a_plain_table(tmp_path: Path, face_model: FaceModel, caplog: pytest.LogCaptureFixture) -> None:
    """Seconds, Apple's own names, cells in any order, unknown columns, a repeated frame; without angles the head keeps still."""
    path = tmp_path / "a.csv"
    rows = ["jawOpen, mouthSmile_L ,TIMESTAMP,comment,tongueOut"]
    rows += [f"{0.1 * index:.3f},0.5,{100 + index * 1001 / 30000:.4f},take {index},1" for index in range(9)]
    path.write_text("\n".join([*rows[:5], rows[4], "", *rows[5:]]))
    with caplog.at_level(logging.WARNING):
        motion, fps = motion_from_csv(path, face_model)
    assert fps == Fraction(30000, 1001)
    np.testing.assert_allclose(motion.times, np.arange(9) * 1001 / 30000, atol=1e-4)
    np.testing.assert_allclose(motion.expression[:, BLENDSHAPES.index("jawOpen")], 0.1 * np.arange(9), atol=1e-6)
    np.testing.assert_allclose(motion.expression[:, BLENDSHAPES.index("mouthSmileLeft")], 0.5)
    assert float(motion.expression.sum()) == pytest.approx(0.1 * 36 + 4.5, abs=1e-4)
    np.testing.assert_array_equal(motion.head_to_camera[:, :3, :3], np.tile(np.diag([1.0, -1, -1]), (9, 1, 1)))
    assert "1 of 10 rows repeat the time" in caplog.text and "no columns for browDownLeft" in caplog.text
    assert "_neutral" not in caplog.text


HEADER = "time,jawOpen,headYaw\n"
CODES = "Timecode,BlendshapeCount,JawOpen\n"
BAD_TABLES = {
    "empty": ("", "holds no frames"),
    "header only": (HEADER, "holds no frames"),
    "no time": ("jawOpen\n0.1\n", "line 1: no column is named timecode"),
    "no scores": ("time,x\n0,1\n", "line 1: no column is named like a blendshape"),
    "names twice": ("time,jawOpen,JawOpen\n0,1,1\n", "line 1: two columns have the same name"),
    "word": (HEADER + "0,0.1,0\n1,open,0\n", "line 3: jawopen is 'open', not a number from -0.5 to 1.5"),
    "nan": (HEADER + "0,nan,0\n", "line 2: jawopen is 'nan'"),
    "percent": (HEADER + "0,50,0\n", "line 2: jawopen is '50'"),
    "degrees": (HEADER + "0,0.5,0\n1,0.5,20\n", "line 3: headyaw is '20'"),
    "short row": (HEADER + "0,0.1,0\n0.5,0.5\n", "line 3: headyaw is ''"),
    "long row": (HEADER + "0,0.1,0,4\n", "line 2: 4 values under 3 names"),
    "no time in a row": (HEADER + ",0.1,0\n", "line 2: time is ''"),
    "backwards": (HEADER + "0,0.1,0\n1,0.1,0\n0.5,0.1,0\n", "line 4: its time is before"),
    "milliseconds": (HEADER + "0,0.1,0\n40,0.1,0\n80,0.1,0\n", "40 s apart; times must be in seconds"),
    "time code": (CODES + "12:00:00:01,61,0.1\n12:00:00,61,0.1\n", "line 3: '12:00:00' is not a time code"),
    "frame of a second": (CODES + "12:00:00:01,61,0.1\n12:00:00:90,61,0.1\n", "line 3: frame 90 of a second"),
    "frame of two seconds": (CODES + "12:00:00:75,61,0.1\n12:00:01:00,61,0.1\n", "line 2: frame 75 of a second"),
    "no face": (CODES + "12:00:00:01,0,\n", "no row shows a face"),
    "binary": ("\udcff\udcfe\udc00", "cannot be read as a table"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables_are_told_with_file_and_line(tmp_path: Path, face_model: FaceModel, case: str) -> None:
    text, message = BAD_TABLES[case]
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message) as caught:
        motion_from_csv(path, face_model)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_missing_table_is_told(tmp_path: Path, face_model: FaceModel) -> None:
    with pytest.raises(UserError, match=r"a\.csv: cannot be read"):
        motion_from_csv(tmp_path / "a.csv", face_model)


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
