"""The 2D baseline: a piecewise-affine warp of the source by its landmarks.

The target's landmarks and points on the border of the crop are triangulated (Delaunay); each triangle of the target shows the source's
triangle of the same corners, sampled bilinearly. The border stays where it is. It knows where the target's landmarks are, as the model
knows the driver's tracked mesh, but has no third dimension and nothing behind closed lips and lids.
"""

from __future__ import annotations

import cv2
import numpy as np
from scipy.spatial import Delaunay

from datasets_toolkit.schema import ByteImage, FloatArray

BORDER_POINTS = 8
"""Fixed points on each side of the crop."""


def border(size: int) -> FloatArray:
    """Points (n x 2, pixels) on the border of a square crop, corners included."""
    along = np.linspace(0, size, BORDER_POINTS + 1)[:-1]
    low, high = np.zeros_like(along), np.full_like(along, size)
    sides = [(along, low), (high, along), (size - along, high), (low, size - along)]
    return np.concatenate([np.stack(side, 1) for side in sides])


def sampling_map(source: FloatArray, target: FloatArray, size: int) -> FloatArray:
    """Which point of the source (size x size x 2, pixels) each pixel of the target shows.

    Args:
        source: n x 2 landmarks, pixels.
        target: n x 2, the same landmarks in the target.
        size: of the crop, pixels a side.
    """
    fixed = border(size)
    moved, rest = np.concatenate([target[:, :2], fixed]), np.concatenate([source[:, :2], fixed])
    triangles = Delaunay(moved)
    centres = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).reshape(-1, 2) + 0.5
    index = triangles.find_simplex(centres)  # the border points hold every pixel, so none is outside
    transform = triangles.transform[index]
    two = np.einsum("nij,nj->ni", transform[:, :2], centres - transform[:, 2])
    weights = np.concatenate([two, 1 - two.sum(1, keepdims=True)], 1)
    return np.asarray((weights[..., None] * rest[triangles.simplices[index]]).sum(1).reshape(size, size, 2))


def warp(image: ByteImage, source: FloatArray, target: FloatArray) -> ByteImage:
    """The source crop (s s 3) with its landmarks (n x 2, pixels) moved to the target's; beyond the border the edge is repeated."""
    places = (sampling_map(source, target, len(image)) - 0.5).astype(np.float32)  # OpenCV's pixel centres are at integers
    return np.asarray(cv2.remap(image, places[..., 0], places[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)
