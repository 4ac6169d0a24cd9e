"""Measures of a clip: they say how good it is, and a policy decides what is good enough.

Lengths are in face sizes (larger side of the landmarks' bounding box) unless said otherwise.
"""

from __future__ import annotations

import cv2
import numpy as np

from datasets_toolkit.faces.detection import crop_image, landmark_bounds, square
from datasets_toolkit.faces.face_regions import LOWER_INNER_LIP, UPPER_INNER_LIP
from datasets_toolkit.faces.head_pose import euler_degrees
from datasets_toolkit.schema import ByteImage, FloatArray, TrackedClip

LOOK = 0.2
"""Seconds between two looks at the pixels of a face."""
FACE_PIXELS = 256
"""A face is brought to this size before its sharpness is measured."""
PIXEL_SCORES = ("sharpness", "brightness")


def look(image: ByteImage, landmarks: FloatArray) -> tuple[float, float]:
    """Sharpness and brightness of a face (landmarks 478 x 3, pixels) in an image (h w 3).

    Sharpness is the variance of the Laplacian (levels of 255) of the grey face at :data:`FACE_PIXELS`; brightness its mean level.
    """
    centre, size = landmark_bounds(landmarks)
    grey = cv2.cvtColor(crop_image(image, square(centre, size), FACE_PIXELS), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var()), float(grey.mean())


def mouth_opening(landmarks: FloatArray) -> FloatArray:
    """Distance of the inner lips (... for landmarks ... x 478 x 3), in face sizes."""
    lips = np.linalg.norm(landmarks[..., UPPER_INNER_LIP, :2] - landmarks[..., LOWER_INNER_LIP, :2], axis=-1)
    return np.asarray(lips / face_sizes(landmarks))


def face_sizes(landmarks: FloatArray) -> FloatArray:
    """Larger side of the bounding box (...) of landmarks (... x 478 x 3), pixels."""
    return np.asarray(np.ptp(landmarks[..., :2], axis=-2).max(-1))


def clip_scores(raw: TrackedClip, smooth: TrackedClip, size: tuple[int, int]) -> dict[str, float]:
    """The scores that follow from the landmarks alone.

    Args:
        raw: the clip as tracked.
        smooth: the same clip, filtered.
        size: width and height of the source, pixels.
    """
    found = raw.found
    landmarks, angles = smooth.landmarks[found], euler_degrees(smooth.head_to_camera[found])
    sizes = face_sizes(landmarks)
    outside = ((landmarks[..., :2] < 0) | (landmarks[..., :2] > np.array(size))).any(-1).mean(-1)
    residual = np.linalg.norm(raw.landmarks[found][..., :2] - landmarks[..., :2], axis=-1).mean(-1)
    yaw, pitch, roll = np.percentile(np.abs(angles), 95, axis=0)
    return {
        "face_size": float(np.median(sizes)),
        "yaw_min": float(angles[:, 0].min()),
        "yaw_max": float(angles[:, 0].max()),
        "yaw_abs_p95": float(yaw),
        "pitch_abs_p95": float(pitch),
        "roll_abs_p95": float(roll),
        "mouth_p95": float(np.percentile(mouth_opening(landmarks), 95)),
        "motion": _speed(landmarks, sizes, smooth.times[found], np.flatnonzero(found)),
        "gap_share": float(1 - found.mean()),
        "outside": float(np.percentile(outside, 95)),
        "jitter": float(np.mean(residual / sizes)),
    }


def _speed(landmarks: FloatArray, sizes: FloatArray, times: FloatArray, rows: np.ndarray) -> float:
    """Mean speed of the landmarks between neighbouring frames, face sizes a second; NaN where no two frames are neighbours."""
    together = np.diff(rows) == 1
    if not together.any():
        return float("nan")
    paths = np.linalg.norm(np.diff(landmarks[..., :2], axis=0), axis=-1).mean(-1) / sizes[1:]
    return float((paths / np.diff(times))[together].mean())
