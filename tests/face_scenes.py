"""Scenes with a known answer: photographs moved by known maps, and faces posed by known motions."""

from __future__ import annotations

import cv2
import numpy as np

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.faces.head_pose import canonical_face
from datasets_toolkit.schema import BLENDSHAPES, ByteImage, FloatArray

FRONTAL = np.diag([1.0, -1.0, -1.0])


def shrunk(image: ByteImage, side: int) -> ByteImage:
    """A square image averaged down to ``side`` pixels."""
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def moved(image: ByteImage, scale: float, shift: tuple[float, float]) -> ByteImage:
    """The image under x -> scale x + shift (pixel centres at .5), its size kept, its border repeated."""
    if scale < 1:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.35 / scale), np.uint8)
    matrix = np.array([[scale, 0, shift[0] + (scale - 1) / 2], [0, scale, shift[1] + (scale - 1) / 2]])
    moved = cv2.warpAffine(image, matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.uint8)


def pasted(parts: list[tuple[ByteImage, int, int]], height: int, width: int) -> ByteImage:
    """Images laid on grey with their top left corners at (x, y)."""
    canvas = np.full((height, width, 3), 110, np.uint8)
    for image, x, y in parts:
        canvas[y : y + len(image), x : x + image.shape[1]] = image
    return canvas


def project(points: FloatArray, head_to_camera: FloatArray, intrinsics: FloatArray) -> FloatArray:
    """Landmarks (n x 3, pixels) of points in canonical space, z as the landmarker gives it: relative to the head, in the scale of x."""
    posed = points @ head_to_camera[:3, :3].T + head_to_camera[:3, 3]
    image = posed @ intrinsics.T
    depth = intrinsics[0, 0] * (posed[:, 2] / head_to_camera[2, 3] - 1)
    return np.column_stack([image[:, :2] / image[:, 2:], depth])


def pose(rotation: FloatArray, shift: FloatArray) -> FloatArray:
    """The rigid 4 x 4 matrix of a rotation and a translation."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, shift
    return matrix


def frontal_crop(heights: FloatArray, size: int) -> FaceCrop:
    """A frontal face 110 cm away on a 24 cm wide crop, the mean face's x and y with other heights (478, canonical z, cm)."""
    mesh = np.column_stack([canonical_face().vertices[:, :2], heights])
    head_to_camera = pose(FRONTAL, np.array([0.0, 0.0, 110.0]))
    intrinsics = np.array([[size / 24 * 110, 0, size / 2], [0, size / 24 * 110, size / 2], [0, 0, 1]])
    return FaceCrop(
        image=np.full((size, size, 3), 128, np.uint8),
        landmarks=project(mesh, head_to_camera, intrinsics),
        blendshapes=np.zeros(len(BLENDSHAPES)),
        mesh=mesh,
        head_to_camera=head_to_camera,
        intrinsics=intrinsics,
        source_to_crop=np.eye(3),
    )
