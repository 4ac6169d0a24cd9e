"""Whether the labels of one frame agree with each other. Each check gives the faults it found and, where it measures, the number.

Limits are wide: they find wrong units, axes and frames of reference, labels of another frame and damaged data, not a poor annotator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from datasets_toolkit.faces import face_regions as regions
from datasets_toolkit.faces.detection import landmark_bounds
from datasets_toolkit.faces.head_pose import canonical_face
from datasets_toolkit.sample import FrameSample
from datasets_toolkit.schema import BLENDSHAPES, HEAD_REGIONS, LANDMARKS, FloatArray, Region

HEAD_SHARE = 0.6
"""Share of the face's landmarks inside the crop that must lie in head regions; hands and hair may cover the rest."""
NORMAL_ANGLE = 35.0
"""Degrees between stored normals and those of the depth (median over the head)."""
REPROJECTION = 0.08
"""Distance between landmarks and the posed mean face, in units of the face's size (median over the landmarks)."""
HEAD_RADIUS = 30.0
"""How far from the head's origin (cm of depth) a head's surface may lie."""
_SURFACE = 468  # landmarks of the face surface; the irises follow
_SIDE = 128  # pixels a side that normals are compared on; all of them would take longer than all other checks together
_FLIPS = {"x": np.array([-1.0, 1, 1]), "y": np.array([1.0, -1, 1]), "x and y": np.array([-1.0, -1, 1])}
_SIDES = (
    ("eyes", Region.LEFT_EYE, Region.RIGHT_EYE, regions.LEFT_EYE, regions.RIGHT_EYE),
    ("brows", Region.LEFT_BROW, Region.RIGHT_BROW, regions.LEFT_BROW, regions.RIGHT_BROW),
)


@dataclass(frozen=True)
class Verdict:
    """Attributes: faults in words (none if all is well) and the number that was measured, if any."""

    faults: tuple[str, ...] = ()
    value: float | None = None


def check_meta(sample: FrameSample) -> Verdict | None:
    """The key says clip and index, the pose is rigid and before the camera, the camera is a pinhole, blendshapes lie in [0, 1]."""
    meta, faults = sample.meta, []
    if meta.key != f"{meta.clip}_{meta.index:06d}":
        faults.append(f"its key is not its clip and index ({meta.clip}, {meta.index})")
    pose, camera = meta.head_to_camera, meta.intrinsics
    turn = pose[:3, :3]
    if not np.isfinite(pose).all() or np.abs(turn @ turn.T - np.eye(3)).max() > 1e-3 or np.linalg.det(turn) < 0:
        faults.append("head_to_camera is not rigid")
    elif pose[2, 3] <= 0:
        faults.append("the head lies behind the camera")
    matrix = meta.source_to_crop
    if not np.isfinite(camera).all() or min(camera[0, 0], camera[1, 1]) <= 0 or np.abs(camera[2] - [0, 0, 1]).max() > 1e-6:
        faults.append("intrinsics are not those of a pinhole camera")
    if not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        faults.append("source_to_crop cannot be inverted")
    scores = meta.blendshapes
    if len(scores) != len(BLENDSHAPES) or not ((scores >= 0) & (scores <= 1)).all():
        faults.append(f"{int((~((scores >= 0) & (scores <= 1))).sum())} of {len(scores)} blendshapes are not in [0, 1]")
    return Verdict(tuple(faults))


def check_sizes(sample: FrameSample) -> Verdict | None:
    """Every map has the size that the meta data tell, parsing holds known regions, landmarks and mel are finite and complete."""
    side, faults = sample.meta.size, []
    maps = {"image": sample.image, "parsing": sample.parsing, "matte": sample.matte, "depth": sample.depth, "normals": sample.normals}
    for name, values in maps.items():
        if values is not None and values.shape[:2] != (side, side):
            faults.append(f"{name} is {values.shape[1]} x {values.shape[0]}, not {side} x {side}")
    if sample.parsing is not None and sample.parsing.size and int(sample.parsing.max()) > max(Region):
        faults.append(f"parsing holds {int(sample.parsing.max())}, which is no region")
    if sample.landmarks is not None and (sample.landmarks.shape != (LANDMARKS, 3) or not np.isfinite(sample.landmarks).all()):
        faults.append("landmarks are not 478 x 3 finite numbers")
    if sample.mel is not None and (sample.mel.shape != (4, 80) or not np.isfinite(sample.mel).all()):
        faults.append("mel is not 4 x 80 finite numbers")
    return Verdict(tuple(faults))


def check_mask(sample: FrameSample) -> Verdict | None:
    """The face's landmarks lie in regions of the head; measures their share."""
    if sample.parsing is None or not _usable(sample):
        return None
    column, row = _pixels(sample)
    inside = (column >= 0) & (row >= 0) & (column < sample.parsing.shape[1]) & (row < sample.parsing.shape[0])
    if not inside.any():
        return Verdict(("no landmark lies in the crop",), 0.0)
    share = float(np.isin(sample.parsing[row[inside], column[inside]], HEAD_REGIONS).mean())
    faults = (f"only {100 * share:.0f} % of the landmarks lie in head regions",) if share < HEAD_SHARE else ()
    return Verdict(faults, share)


def check_sides(sample: FrameSample) -> Verdict | None:
    """Left regions lie at the left landmarks: left and right are the person's own in both."""
    points = sample.landmarks
    if sample.parsing is None or points is None or not _usable(sample):
        return None
    faults = []
    for name, left, right, left_ring, right_ring in _SIDES:
        places = [np.argwhere(sample.parsing == region)[:, ::-1] + 0.5 for region in (left, right)]
        if min(len(place) for place in places) < 4:
            continue  # turned away, or closed
        marks = [points[list(ring), :2].mean(0) for ring in (left_ring, right_ring)]
        centres = [place.mean(0) for place in places]
        straight = sum(float(np.linalg.norm(centre - mark)) for centre, mark in zip(centres, marks, strict=True))
        if straight > sum(float(np.linalg.norm(centre - mark)) for centre, mark in zip(centres, marks[::-1], strict=True)):
            faults.append(f"left and right {name} are swapped between parsing and landmarks")
    return Verdict(tuple(faults))


def check_matte(sample: FrameSample) -> Verdict | None:
    """The matte is opaque where parsing shows the head; measures its mean there."""
    if sample.matte is None or sample.parsing is None or sample.matte.shape != sample.parsing.shape:
        return None
    head = np.isin(sample.parsing, HEAD_REGIONS)
    if not head.any():
        return Verdict(("parsing shows no head",), 0.0)
    mean = float(sample.matte[head].mean() / 255)
    return Verdict((f"the matte is {mean:.2f} on the head, not opaque",) if mean < 0.6 else (), mean)


def check_depth(sample: FrameSample) -> Verdict | None:
    """Depth is in cm and belongs to the head pose; measures how far (cm) the face's median lies from the head's origin."""
    if sample.depth is None or not _usable(sample):
        return None
    known, origin = sample.depth > 0, float(sample.meta.head_to_camera[2, 3])
    if not np.isfinite(sample.depth).all() or (sample.depth < 0).any():
        return Verdict(("depth holds negative numbers or none",))
    column, row = _pixels(sample)
    inside = (column >= 0) & (row >= 0) & (column < sample.depth.shape[1]) & (row < sample.depth.shape[0])
    at_face = sample.depth[row[inside], column[inside]]
    if not (at_face > 0).any():
        return Verdict(("depth is unknown on the whole face",))
    away = float(np.median(at_face[at_face > 0]) - origin)
    lost = 1 - float((at_face > 0).mean())
    faults = [f"the face lies {away:+.1f} cm from the head's origin"] if abs(away) > HEAD_RADIUS else []
    if lost > 1 - HEAD_SHARE:
        faults.append(f"depth is unknown at {100 * lost:.0f} % of the landmarks")
    far = float((np.abs(sample.depth[known] - origin) > 10 * HEAD_RADIUS).mean())
    if far > 0.01:
        faults.append(f"{100 * far:.0f} % of the depth is metres away from the head")
    return Verdict(tuple(faults), away)


def check_normals(sample: FrameSample) -> Verdict | None:
    """Stored normals agree with those of the depth, and do so better than mirrored ones; measures the median angle in degrees."""
    if sample.depth is None or sample.normals is None or sample.normals.shape[:2] != sample.depth.shape:
        return None
    step = max(len(sample.depth) // _SIDE, 1)
    thinned = np.array([[1, 0, 0.5 * step - 0.5], [0, 1, 0.5 * step - 0.5], [0, 0, step]]) / step  # pixel centres stay at .5
    derived, where = depth_normals(np.ascontiguousarray(sample.depth[::step, ::step]), thinned @ sample.meta.intrinsics)
    if where.sum() < 100:
        return None
    stored = sample.normals[::step, ::step][where].astype(np.float64)
    length = np.linalg.norm(stored, axis=1)
    if (np.abs(length - 1) > 0.05).mean() > 0.05:
        return Verdict(("normals are not unit vectors where depth is known",))
    angle = _median_angle(stored, derived[where])
    mirrored = {name: _median_angle(stored * flip, derived[where]) for name, flip in _FLIPS.items()}
    best = min(mirrored, key=lambda name: mirrored[name])
    if mirrored[best] < 0.6 * angle and angle > 10:
        return Verdict((f"normals fit the depth better with {best} mirrored ({mirrored[best]:.0f} instead of {angle:.0f} degrees)",), angle)
    return Verdict((f"normals are {angle:.0f} degrees off those of the depth",) if angle > NORMAL_ANGLE else (), angle)


def check_pose(sample: FrameSample) -> Verdict | None:
    """The mean face, posed and projected, lies on the landmarks; measures the median distance in units of the face's size."""
    if sample.landmarks is None or not _usable(sample):
        return None
    meta = sample.meta
    vertices = canonical_face().vertices[:_SURFACE]
    points = (vertices @ meta.head_to_camera[:3, :3].T + meta.head_to_camera[:3, 3]) @ meta.intrinsics.T
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = points[:, :2] / points[:, 2:]
    size = landmark_bounds(sample.landmarks.astype(np.float64))[1]
    distance = np.linalg.norm(pixels - sample.landmarks[:_SURFACE, :2], axis=1)
    off = float(np.median(distance) / max(size, 1e-6)) if np.isfinite(distance).all() and (points[:, 2] > 0).all() else np.inf
    return Verdict((f"the posed head lies {off:.2f} face sizes off the landmarks",) if off > REPROJECTION else (), off)


LABEL_CHECKS: dict[str, tuple[str, str, Callable[[FrameSample], Verdict | None]]] = {
    "meta": ("keys, poses, cameras and blendshapes are sound", "", check_meta),
    "sizes": ("labels have the right sizes and values", "", check_sizes),
    "mask": ("landmarks lie in head regions", "share", check_mask),
    "sides": ("left and right are the person's own", "", check_sides),
    "matte": ("the matte is opaque on the head", "mean", check_matte),
    "depth": ("depth is in cm and fits the head pose", "cm from the head's origin", check_depth),
    "normals": ("normals fit the depth", "degrees", check_normals),
    "pose": ("the posed head projects onto the landmarks", "face sizes", check_pose),
}
"""By name: what must hold, the unit of what is measured, and the check; a check gives None where the labels it needs are missing."""


def _usable(sample: FrameSample) -> bool:
    marks = sample.landmarks
    return marks is not None and marks.shape == (LANDMARKS, 3) and bool(np.isfinite(marks).all())


def _pixels(sample: FrameSample) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of the pixels that the face's landmarks lie in."""
    assert sample.landmarks is not None
    pixels = np.floor(sample.landmarks[:_SURFACE, :2]).astype(int)
    return pixels[:, 0], pixels[:, 1]


def depth_normals(depth: npt.NDArray[np.float32], intrinsics: FloatArray) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Normals of a depth map (s x s, cm; 0 unknown) in the camera's frame (s x s x 3), and where they can be trusted.

    The depth is smoothed over 1/256 of the side, back-projected and differentiated; near its border nothing is trusted.
    """
    side, known = len(depth), (depth > 0).astype(np.float32)
    sigma = side / 256
    weight = np.asarray(cv2.GaussianBlur(known, (0, 0), sigma), np.float64)
    smooth = np.asarray(cv2.GaussianBlur(depth, (0, 0), sigma), np.float64) / weight.clip(1e-6)
    y, x = np.mgrid[:side, :side] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(intrinsics).T
    points = rays * smooth[..., None]
    normals = np.cross(np.gradient(points, axis=0), np.gradient(points, axis=1))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True).clip(1e-12)
    reach = 2 * max(side // 64, 1) + 1
    return normals, cv2.erode(known.astype(np.uint8), np.ones((reach, reach), np.uint8), borderValue=0) > 0


def _median_angle(first: FloatArray, second: FloatArray) -> float:
    return float(np.degrees(np.median(np.arccos(np.clip((first * second).sum(1), -1, 1)))))
