"""Normals as the derivative of the depth map."""

from __future__ import annotations

import cv2
import numpy as np

from datasets_toolkit.annotators.base import FaceCrop, Map, NormalAnnotator, Parsing
from datasets_toolkit.annotators.masks import around
from datasets_toolkit.annotators.mesh_kernels import surface_normals


class DepthNormals(NormalAnnotator):
    """The default normal annotator: central differences of the back-projected depth, smoothed by ``smoothing`` pixels of 256."""

    version = 1

    def __init__(self, smoothing: float = 1.0) -> None:
        self.smoothing = smoothing

    def __call__(self, crop: FaceCrop, parsing: Parsing, depth: Map) -> Map:
        """Unit normals wherever ``depth`` is known."""
        result, known, sigma = np.zeros((*depth.shape, 3), np.float32), depth > 0, self.smoothing * len(depth) / 256
        if not known.any():
            return result
        part = around(known, int(np.ceil(4 * sigma)) + 2)  # as far as the filter sees
        spread = _spread(depth[part], known[part])
        smooth = np.asarray(cv2.GaussianBlur(spread, (0, 0), sigma)) if sigma > 0 else spread
        focal, centre = crop.intrinsics[0, 0], crop.intrinsics[:2, 2]
        surface_normals(result[part], smooth, known[part], part[0].start, part[1].start, focal, centre[0], centre[1])
        return result


def _spread(depth: Map, known: np.ndarray) -> Map:
    """Depth continued to where it is unknown from the nearest known pixel, so that differences at the border stay one-sided."""
    if known.all():
        return depth
    _, labels = cv2.distanceTransformWithLabels((~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    values = np.zeros(labels.max() + 1, np.float32)
    values[labels[known]] = depth[known]
    return values[labels]
