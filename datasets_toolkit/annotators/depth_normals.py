"""Normals as the derivative of the depth map."""

from __future__ import annotations

import cv2
import numpy as np

from datasets_toolkit.annotators.base import FaceCrop, Map, NormalAnnotator, Parsing


class DepthNormals(NormalAnnotator):
    """The default normal annotator: central differences of the back-projected depth, smoothed by ``smoothing`` pixels of 256."""

    version = 1

    def __init__(self, smoothing: float = 1.0) -> None:
        self.smoothing = smoothing

    def __call__(self, crop: FaceCrop, parsing: Parsing, depth: Map) -> Map:
        """Unit normals wherever ``depth`` is known."""
        known = depth > 0
        points = _back_project(_spread(depth, known), crop.intrinsics, self.smoothing * len(depth) / 256)
        right = np.gradient(points, axis=1)
        down = np.gradient(points, axis=0)
        normals = np.cross(down, right)  # y x x points at the camera, whose z looks away from it
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True).clip(1e-12)
        return np.asarray(np.where(known[..., None], normals, 0), np.float32)


def _spread(depth: Map, known: np.ndarray) -> Map:
    """Depth continued to where it is unknown from the nearest known pixel, so that differences at the border stay one-sided."""
    if known.all() or not known.any():
        return depth
    _, labels = cv2.distanceTransformWithLabels((~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    values = np.zeros(labels.max() + 1, np.float32)
    values[labels[known]] = depth[known]
    return values[labels]


def _back_project(depth: Map, intrinsics: np.ndarray, sigma: float) -> np.ndarray:
    size = len(depth)
    smooth = np.asarray(cv2.GaussianBlur(depth, (0, 0), sigma)) if sigma > 0 else depth
    y, x = np.mgrid[:size, :size] + 0.5
    focal, centre = intrinsics[0, 0], intrinsics[:2, 2]
    return np.stack([(x - centre[0]) / focal * smooth, (y - centre[1]) / focal * smooth, smooth], -1)
