"""Head pose and metric face mesh from landmarks, under the clip camera.

Letters: p = (x, y, z) a landmark in pixels, z relative to the head; K the clip camera with focal length f and centre c; Z0 the depth of
the head's origin; X a point in camera space (cm); M the same point in canonical head space; head_to_camera = [R t].

The landmarker's z has the scale of its x, so with the head at depth Z0 a landmark lies at
    X = ((x - c_x) / f, (y - c_y) / f, 1) * Z,   Z = Z0 (1 + z / f),
which is linear in Z0: the similarity that best aligns the mean face with X / Z0 gives rotation, translation and scale at once, and the
depth is the one for which the scale is 1 (Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
TPAMI 1991, with weights).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from datasets_toolkit.schema import FacePose, FloatArray

FOCAL_SCALE = 3.0
"""Focal length of the clip camera in units of the reference box's side: a head at about 1.2 m, a common portrait distance."""


@dataclass(frozen=True, kw_only=True)
class CanonicalFace:
    """The mean face in canonical head space, made by ``tools/fit_face_model.py``.

    Attributes:
        vertices: 478 x 3, cm, symmetric in x = 0, pupils 6.3 cm apart.
        triangles: m x 3, of the face surface, open at eyes and mouth, counter-clockwise seen from the front.
        mirror: 478, the vertex that the mirror x -> -x maps each vertex to.
        pose_weights: 478, how far each vertex follows the skull and not the expression; sums to 1.
    """

    vertices: FloatArray
    triangles: npt.NDArray[np.int64]
    mirror: npt.NDArray[np.int64]
    pose_weights: FloatArray


@lru_cache(maxsize=1)
def canonical_face() -> CanonicalFace:
    """The mean face that ships with the toolkit."""
    tensors = load_file(Path(__file__).parents[1] / "assets_data" / "canonical_face.safetensors")
    return CanonicalFace(
        vertices=tensors["vertices"].astype(np.float64),
        triangles=tensors["triangles"].astype(np.int64),
        mirror=tensors["mirror"].astype(np.int64),
        pose_weights=tensors["pose_weights"].astype(np.float64),
    )


def clip_camera(box: FloatArray) -> FloatArray:
    """3 x 3 intrinsics (pixels) of the clip camera whose reference box is ``box`` (x0, y0, side)."""
    focal = FOCAL_SCALE * box[2]
    return np.array([[focal, 0, box[0] + box[2] / 2], [0, focal, box[1] + box[2] / 2], [0, 0, 1]])


def lift(landmarks: FloatArray, intrinsics: FloatArray) -> FloatArray:
    """Landmarks (... n x 3, pixels) as points of camera space at unit head depth: multiplied by Z0 they are centimetres."""
    focal, centre = intrinsics[0, 0], intrinsics[:2, 2]
    depth = 1 + landmarks[..., 2:] / focal
    return np.concatenate([(landmarks[..., :2] - centre) / focal * depth, depth], -1)


def similarity(source: FloatArray, target: FloatArray, weights: FloatArray) -> tuple[float, FloatArray, FloatArray]:
    """Scale s, rotation R and translation t that minimise ``sum w |s R source + t - target|^2`` (n x 3 points, n weights)."""
    weights = weights / weights.sum()
    source_mean, target_mean = weights @ source, weights @ target
    source, target = source - source_mean, target - target_mean
    left, stretch, right = np.linalg.svd((target * weights[:, None]).T @ source)
    flip = np.array([1, 1, np.sign(np.linalg.det(left @ right))])
    rotation = (left * flip) @ right
    scale = float((stretch * flip).sum() / (weights @ (source**2).sum(1)))
    return scale, rotation, target_mean - scale * rotation @ source_mean


def head_pose(landmarks: FloatArray, intrinsics: FloatArray, face: CanonicalFace | None = None) -> FacePose:
    """Pose and canonical mesh of a face from its landmarks (478 x 3, pixels) under ``intrinsics`` (3 x 3)."""
    face = face or canonical_face()
    points = lift(landmarks, intrinsics)
    scale, rotation, shift = similarity(face.vertices, points, face.pose_weights)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, shift / scale
    return FacePose(head_to_camera=matrix, mesh=(points - shift) @ rotation / scale)


def euler_degrees(head_to_camera: FloatArray) -> FloatArray:
    """Yaw, pitch and roll (... x 3, degrees) of head poses (... x 4 x 4); all zero for a frontal head.

    Positive yaw turns the face to the image's right, positive pitch up, positive roll tilts its top to the image's right.
    """
    rotation = np.diag([1.0, -1.0, -1.0]) @ head_to_camera[..., :3, :3]
    forward, up = rotation[..., :, 2], rotation[..., :, 1]
    yaw = np.arctan2(forward[..., 0], forward[..., 2])
    pitch = np.arcsin(np.clip(forward[..., 1], -1, 1))
    level = np.stack([np.cos(yaw), np.zeros_like(yaw), -np.sin(yaw)], -1)
    roll = np.arcsin(np.clip((up * level).sum(-1), -1, 1))
    return np.degrees(np.stack([yaw, pitch, roll], -1))
