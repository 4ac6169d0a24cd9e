"""Motions, sources and recordings that the tests of drivers and of motion files share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from datasets_toolkit.faces.head_pose import FOCAL_SCALE, clip_camera
from datasets_toolkit.schema import BLENDSHAPES, FloatArray, TrackedClip
from mggtalk.geometry.face_model import FaceModel
from mggtalk.types import Camera, Motion

MODES = [(pose, expression) for pose in ("relative", "absolute", "still") for expression in ("absolute", "relative")]
seeds = st.integers(0, 10**6)
scales = st.floats(0.0, 2.0)
double = torch.float64


def frontal(rotations: Rotation) -> FloatArray:
    return np.diag([1.0, -1, -1]) @ rotations.as_matrix()


def random_motion(seed: int, frames: int = 5, size: int = 6) -> Motion:
    """Heads turned by up to 70 degrees, 1 to 1.4 m away, up to 20 cm aside."""
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


def made_clip(face_model: FaceModel, missing: tuple[int, ...] = ()) -> tuple[TrackedClip, FloatArray]:
    """A person turning at an even rate under uneven times, and the expression of each frame: even, and of mean 0 where found."""
    generator = np.random.default_rng(0)
    times = np.array([0.0, 0.04, 0.1, 0.14, 0.2, 0.3, 0.34, 0.4]) + 5
    found = np.ones(8, bool)
    found[list(missing)] = False
    expression = generator.normal(size=(8, face_model.expression_size)) * 0.5
    expression[:, :52] = generator.uniform(size=(8, 52))
    expression[:, 52:] -= np.average(expression[:, 52:], 0, found + 1e-12)
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


def full_motion(seed: int = 5) -> Motion:
    motion = random_motion(seed, size=84).to(torch.float32)
    return replace(motion, times=motion.times.double(), found=torch.tensor([True, True, False, True, True]))


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
