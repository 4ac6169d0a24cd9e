"""Drivers: what is given to the model for each frame, made from a tracked clip and carried over to the person of a source.

Letters: [R t] a head_to_camera; index s the source, t a frame of the driver, 0 the driver's reference frame; e an expression.
Both cameras have the clip camera's focal length, so a translation divided by the depth is a share of the reference box.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from datasets_toolkit.errors import NoFaceError, UserError
from datasets_toolkit.faces.head_pose import FOCAL_SCALE
from datasets_toolkit.schema import TrackedClip
from mggtalk.geometry.cameras import matrix_to_quaternion, quaternion_to_matrix
from mggtalk.geometry.face_model import FaceModel
from mggtalk.types import Camera, Motion

log = logging.getLogger(__name__)

_RIGID = 1e-3  # how far R^T R may be from the identity: float32 products stay below 1e-5, a scale or a shear does not


@dataclass(frozen=True, kw_only=True)
class Control:
    """How a driver is carried over to a source.

    Attributes:
        pose: "relative": the source's head turns and moves as the driver's does from the reference frame on; "absolute": it is put
            where the driver's head is; "still": it stays as the source shows it.
        expression: "absolute": the driver's expressions; "relative": the source's, changed as the driver's change from the reference
            frame on.
        pose_scale: strength of the head's motion away from the source's pose: 1 as it is, 0 the source's pose.
        expression_scale: strength of the expressions: about the neutral face if they are absolute (0 is the neutral face), of the
            change if they are relative (0 is the source's expression).
        reference: the driver's frame, from 0, that "relative" refers to; the first one with a face if this one has none.

    Raises:
        ValueError: a scale is negative or not finite, or the reference is negative.
    """

    pose: Literal["relative", "absolute", "still"] = "relative"
    expression: Literal["absolute", "relative"] = "absolute"
    pose_scale: float = 1.0
    expression_scale: float = 1.0
    reference: int = 0

    def __post_init__(self) -> None:
        for name in ("pose_scale", "expression_scale", "reference"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")


def motion_from_clip(clip: TrackedClip, face_model: FaceModel, *, name: str = "video") -> Motion:
    """The motion of a tracked person: expressions about their own neutral face (the mean over the clip) and head poses.

    Frames without a face are interpolated in time between their neighbours, or hold the nearest one, and are told in the log.

    Args:
        clip: the tracked clip.
        face_model: gives the expressions.
        name: of the video, for messages.

    Raises:
        NoFaceError: no frame shows a face.
    """
    if not clip.found.any():
        raise NoFaceError(f"{name}: no face found in any frame; use a video in which a face is at least 60 pixels high")
    mesh = torch.from_numpy(clip.mesh[clip.found]).to(face_model.mean)
    blendshapes = torch.from_numpy(clip.blendshapes[clip.found]).to(face_model.mean)
    expression = face_model.expression(mesh, blendshapes, face_model.neutral(mesh, blendshapes)).cpu()
    poses = torch.from_numpy(clip.head_to_camera[clip.found]).float()
    return fill_gaps(expression, poses, torch.from_numpy(clip.times).double(), torch.from_numpy(clip.found), name=name)


def fill_gaps(
    expression: Float[Tensor, "k e"],
    head_to_camera: Float[Tensor, "k 4 4"],
    times: Float[Tensor, " t"],
    found: Bool[Tensor, " t"],
    *,
    name: str,
) -> Motion:
    """A motion of ``t`` frames from the ``k`` that show the face, under the clip camera.

    Missing frames are interpolated in time: rotations along the shortest arc, translations and expressions linearly; before the first
    and after the last found frame the motion holds. Gaps are told in the log under ``name``.
    """
    before, after, share = _neighbours(times, found)
    if not bool(found.all()):
        log.warning("%s: %d of %d frames show no face, for %.2f s at most; interpolated", name, *_gaps(times, found))
    share = share.to(expression)
    first, last = head_to_camera[before], head_to_camera[after]
    poses = torch.lerp(first, last, share[:, None, None])
    arc = rotation_power(last[:, :3, :3] @ first[:, :3, :3].mT, share)
    poses[:, :3, :3] = torch.where(found[:, None, None], first[:, :3, :3], arc @ first[:, :3, :3])
    return Motion(
        expression=torch.lerp(expression[before], expression[after], share[:, None]),
        head_to_camera=poses,
        times=times,
        found=found,
        focal=torch.tensor(FOCAL_SCALE),
    )


def _neighbours(times: Float[Tensor, " t"], found: Bool[Tensor, " t"]) -> tuple[Int[Tensor, " t"], Int[Tensor, " t"], Float[Tensor, " t"]]:
    """For each frame the found ones before and after it (numbered among the found), and how far it has come between them."""
    count = found.cumsum(0)
    last = int(count[-1]) - 1
    before, after = (count - 1).clamp(min=0), torch.where(found, count - 1, count.clamp(max=last))
    start, end = times[found][before], times[found][after]
    return before, after, ((times - start) / (end - start).clamp_min(1e-9)).clamp(0, 1)


def _gaps(times: Float[Tensor, " t"], found: Bool[Tensor, " t"]) -> tuple[int, int, float]:
    """How many frames are missing, of how many, and the seconds of the longest gap (a gap lasts until the next found frame)."""
    period = float(times.diff().median()) if len(times) > 1 else 0.0
    ends = torch.cat([times[1:], times[-1:] + period])
    longest = start = 0.0
    for row, known in enumerate(found.tolist()):
        start = float(ends[row]) if known else (start if row else float(times[0]))
        longest = longest if known else max(longest, float(ends[row]) - start)
    return int((~found).sum()), len(found), longest


def rotation_power(rotation: Float[Tensor, "*batch 3 3"], exponent: Float[Tensor, "*batch"] | float) -> Float[Tensor, "*batch 3 3"]:
    """Rotations about the same axes by ``exponent`` times the angle (in [0, pi])."""
    w, vector = matrix_to_quaternion(rotation).split([1, 3], dim=-1)
    sine = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    if isinstance(exponent, Tensor):
        exponent = exponent[..., None]
    half = torch.atan2(sine, w) * exponent
    axis = vector / sine.clamp_min(torch.finfo(sine.dtype).tiny)
    return quaternion_to_matrix(torch.cat([torch.cos(half), torch.sin(half) * axis], dim=-1))


def check_motion(motion: Motion, expression_size: int | None = None) -> None:
    """Check what every driver promises: shapes, finite values, rigid poses in front of the camera, times that increase, a face.

    Args:
        motion: to be checked.
        expression_size: length of an expression, if known.

    Raises:
        ValueError: says what is wrong, and in which frame.
    """
    frames, size = len(motion.times), motion.expression.shape[-1] if expression_size is None else expression_size
    shapes = {"expression": (frames, size), "head_to_camera": (frames, 4, 4), "times": (frames,), "found": (frames,), "focal": ()}
    for name, shape in shapes.items():
        if (actual := tuple(getattr(motion, name).shape)) != shape:
            raise ValueError(f"{name} has the shape {actual}, not {shape}")
    if not bool(motion.found.any()):
        raise ValueError("no frame shows a face")
    if not 0 < float(motion.focal) < math.inf:
        raise ValueError(f"the focal length is {float(motion.focal)}")
    pose = motion.head_to_camera.double()
    turn = pose[:, :3, :3]
    skew = (turn @ turn.mT - torch.eye(3, dtype=turn.dtype, device=turn.device)).abs().amax((1, 2))
    bottom = (pose[:, 3] - pose.new_tensor([0, 0, 0, 1])).abs().amax(1)
    _refuse(~motion.expression.isfinite().all(1), "an expression that is not finite")
    _refuse(~((skew < _RIGID) & (bottom < _RIGID) & (torch.linalg.det(turn.nan_to_num()) > 0)), "a head pose that is not rigid")
    _refuse(~(pose[:, 2, 3] > 0) | ~pose[:, :3, 3].isfinite().all(1), "a head that is not in front of the camera")
    _refuse(~motion.times.isfinite(), "a time that is not finite")
    _refuse(torch.cat([motion.times.diff() <= 0, motion.found.new_zeros(1)]), "a time that the next one does not exceed")


def _refuse(wrong: Bool[Tensor, " t"], what: str) -> None:
    if bool(wrong.any()):
        raise ValueError(f"frame {int(wrong.nonzero()[0])} has {what}")


def retarget(
    motion: Motion, camera: Camera, expression: Float[Tensor, " e"], control: Control | None = None
) -> tuple[Float[Tensor, "t e"], Float[Tensor, "t 4 4"]]:
    """Expressions and head_to_camera of a source that is driven: one row for each frame of the motion.

    Relative poses are ``R_t R_0^T R_s`` and ``t_s + (t_t - t_0) z_s / z_0``, so that the head moves by the same share of the image.
    ``pose_scale`` multiplies the angle of the rotation away from the source's pose (about the same axis), the shift across the image,
    and the logarithm of the depth ratio (the head never passes through the camera).

    Args:
        motion: of the driver.
        camera: of the source crop, without batch dimensions.
        expression: of the source.
        control: by default relative pose and absolute expression.

    Raises:
        UserError: the reference frame lies outside the motion.
    """
    control = control or Control()
    reference = _reference(motion, control.reference)
    e = motion.expression.to(expression)
    start, change = (expression, e - e[reference]) if control.expression == "relative" else (torch.zeros_like(expression), e)
    return start + control.expression_scale * change, _poses(motion, camera.head_to_camera, control, reference)


def _reference(motion: Motion, frame: int) -> int:
    if frame >= len(motion.found):
        raise UserError(f"the driver has {len(motion.found)} frames, counted from 0, so there is no reference frame {frame}")
    return frame if bool(motion.found[frame]) else int(motion.found.int().argmax())


def _poses(motion: Motion, source: Float[Tensor, "4 4"], control: Control, reference: int) -> Float[Tensor, "t 4 4"]:
    driver = motion.head_to_camera.to(source)
    result = source.expand_as(driver).clone()
    if control.pose == "still":
        return result
    turn, turn_s, shift, shift_s = driver[:, :3, :3], source[:3, :3], driver[:, :3, 3].clone(), source[:3, 3]
    shift[:, 2] *= FOCAL_SCALE / motion.focal.to(source)  # the depth at which the source's focal length shows the head in the same size
    if control.pose == "relative":
        turn = turn @ turn[reference].mT @ turn_s
        shift = shift_s + (shift - shift[reference]) * (shift_s[2] / shift[reference, 2])
    result[:, :3, :3] = rotation_power(turn @ turn_s.mT, control.pose_scale) @ turn_s
    result[:, :2, 3] = torch.lerp(shift_s[:2].expand(len(shift), 2), shift[:, :2], control.pose_scale)
    result[:, 2, 3] = shift_s[2] * (shift[:, 2] / shift_s[2]) ** control.pose_scale
    return result
