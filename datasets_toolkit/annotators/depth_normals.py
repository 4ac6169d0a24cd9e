"""Normals as the derivative of the depth map."""

from __future__ import annotations

import cv2
import numpy as np

from datasets_toolkit.annotators.base import FaceCrop, Map, NormalAnnotator, Parsing
from datasets_toolkit.annotators.masks import around
from datasets_toolkit.annotators.mesh_kernels import fill_from_nearest, surface_normals


class DepthNormals(NormalAnnotator):
    """The default normal annotator: central differences of the back-projected depth, smoothed by ``smoothing`` pixels of 256."""

    version = 2

    def __init__(self, smoothing: float = 1.0) -> None:
        self.smoothing = smoothing

    def __call__(self, crop: FaceCrop, parsing: Parsing, depth: Map) -> Map:
        """Unit normals wherever ``depth`` is known."""
        result, known, sigma = np.zeros((*depth.shape, 3), np.float32), depth > 0, self.smoothing * len(depth) / 256
        if not known.any():
            return result
        reach = int(np.ceil(4 * sigma)) + 2  # as far as the filter sees
        part = around(known, reach)
        smooth = _spread(depth[part], known[part], reach)
        if sigma > 0:
            smooth = np.asarray(cv2.GaussianBlur(smooth, (0, 0), sigma), np.float32)
        focal, centre = crop.intrinsics[0, 0], crop.intrinsics[:2, 2]
        surface_normals(result[part], smooth, known[part], part[0].start, part[1].start, focal, centre[0], centre[1])
        return result


def _spread(depth: Map, known: np.ndarray, reach: int) -> Map:
    """Depth continued over ``reach`` pixels from the nearest known one, so that differences at the border stay one-sided."""
    spread = np.ascontiguousarray(depth)
    if not known.all():
        spread = spread.copy() if spread is depth else spread
        near = cv2.dilate(known.astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0
        fill_from_nearest(spread, near, reach)
    return spread
