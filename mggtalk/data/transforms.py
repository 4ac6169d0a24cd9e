"""Flips and crops of a packed frame that carry every label along, so that camera, mesh and pictures go on agreeing.

Letters: w the width; F the flip of pixels, x -> w - x; M = diag(-1, 1, 1); K the intrinsics and H the head pose (4 x 4); S the 3 x 3 matrix
from the pixels of the crop to those of the new one. A camera sees X at K H X. All pictures here are channels last and have no batch.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datasets_toolkit.faces.head_pose import canonical_face
from datasets_toolkit.schema import BLENDSHAPES, Region
from mggtalk.data.packed import PackedFrame
from mggtalk.types import Camera

Array = npt.NDArray[np.generic]
FloatArray = npt.NDArray[np.float64]

LANDMARK_MIRROR = canonical_face().mirror
"""For each landmark the one on the other side of the face, from the symmetry of the mean face."""


def _other_side(name: str, left: str, right: str) -> str:
    """The name with left and right exchanged."""
    return name.replace(left, "?").replace(right, left).replace("?", right)


BLENDSHAPE_MIRROR = np.array([BLENDSHAPES.index(_other_side(name, "Left", "Right")) for name in BLENDSHAPES])
"""For each blendshape the one of the other side."""
REGION_MIRROR = np.arange(256, dtype=np.uint8)
"""For each parsing class the one of the other side."""
for _region in Region:
    REGION_MIRROR[_region] = Region[_other_side(_region.name, "LEFT", "RIGHT")]

_CENTRES = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])  # our pixel centres are at .5, OpenCV's at integers
_GREY = (128, 128, 128)


def flip(frame: PackedFrame) -> PackedFrame:
    """The mirror image: the same person looking the other way, with the other eye closed. Flipping twice gives the frame back.

    The camera keeps a positive focal length and a proper rotation: ``F K H = (F K M) (M H M) M``, and M turns the mesh into its mirror
    image, whose left is the other's right. ``source_to_crop`` becomes ``F S``, a reflection.
    """
    reflect = torch.tensor([[-1.0, 0, frame.image.shape[1]], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    mirror = torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64)
    camera = Camera(
        intrinsics=_like(reflect @ frame.camera.intrinsics.double() * mirror[:3], frame.camera.intrinsics),
        head_to_camera=_like(mirror[:, None] * frame.camera.head_to_camera.double() * mirror, frame.camera.head_to_camera),
    )
    landmarks = frame.landmarks[torch.from_numpy(LANDMARK_MIRROR)]
    landmarks[:, 0] = frame.image.shape[1] - landmarks[:, 0]
    parsing, normals = _flipped(frame.parsing), _flipped(frame.normals)
    if normals is not None:
        channel = normals.numpy()[..., 0]
        np.subtract(255, channel, out=channel)  # 127.5 (1 - n)
    return replace(
        frame,
        image=torch.from_numpy(cv2.flip(frame.image.numpy(), 1)),
        parsing=None if parsing is None else torch.from_numpy(cv2.LUT(parsing.numpy(), REGION_MIRROR)),
        matte=_flipped(frame.matte),
        depth=_flipped(frame.depth),
        normals=normals,
        landmarks=landmarks,
        blendshapes=frame.blendshapes[torch.from_numpy(BLENDSHAPE_MIRROR)],
        camera=camera,
        source_to_crop=_like(reflect @ frame.source_to_crop.double(), frame.source_to_crop),
    )


def crop(frame: PackedFrame, matrix: FloatArray, size: int) -> PackedFrame:
    """The ``size`` x ``size`` picture that shows at ``S x`` what the frame shows at x; ``S`` is ``matrix``, a scale and a shift.

    Pictures and matte are interpolated (averaged before they are made smaller) and repeat their edge beyond the border, parsing takes
    the nearest label; depth and normals are unknown beyond the border. Depth is interpolated as 1 / z among known pixels, which is exact
    on planes. The head pose stays, the intrinsics become ``S K``.

    Raises:
        ValueError: ``matrix`` rotates, shears, mirrors, or scales x and y differently: no pinhole camera with square pixels sees that.
    """
    scale = float(matrix[0, 0])
    expected = np.array([[scale, 0, matrix[0, 2]], [0, scale, matrix[1, 2]], [0, 0, 1]])
    if not (scale > 0 and np.abs(matrix - expected).max() < 1e-9 * max(1.0, scale)):
        raise ValueError(f"a crop may scale and shift only, got {matrix.tolist()}")
    if size == len(frame.image) == frame.image.shape[1] and np.abs(matrix - np.eye(3)).max() < 1e-9:
        return frame
    exact = torch.from_numpy(np.asarray(matrix, np.float64))
    landmarks = frame.landmarks * scale
    landmarks[:, :2] += torch.from_numpy(matrix[:2, 2]).to(landmarks)
    return replace(
        frame,
        image=_resample(frame.image, matrix, size),
        parsing=None if frame.parsing is None else _warp(frame.parsing, matrix, size, cv2.INTER_NEAREST, cv2.BORDER_REPLICATE),
        matte=None if frame.matte is None else _resample(frame.matte, matrix, size),
        depth=None if frame.depth is None else _depth(frame.depth, matrix, size),
        normals=None if frame.normals is None else _resample(frame.normals, matrix, size, cv2.BORDER_CONSTANT),
        landmarks=landmarks,
        camera=replace(frame.camera, intrinsics=_like(exact @ frame.camera.intrinsics.double(), frame.camera.intrinsics)),
        source_to_crop=_like(exact @ frame.source_to_crop.double(), frame.source_to_crop),
    )


def about_centre(size: int, new_size: int, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> FloatArray:
    """The matrix S of a crop of a ``size`` x ``size`` picture to ``new_size``: what it shows grows by ``scale`` about the centre, then
    moves right and down by ``shift`` (in widths of the new picture).
    """  # noqa: D205 (one sentence)
    factor = scale * new_size / size
    place = [new_size / 2 + new_size * step - factor * size / 2 for step in shift]
    return np.array([[factor, 0, place[0]], [0, factor, place[1]], [0, 0, 1]])


def _like(values: Tensor, other: Tensor) -> Tensor:
    return values.to(other.dtype)


def _flipped(picture: Tensor | None) -> Tensor | None:
    return None if picture is None else torch.from_numpy(cv2.flip(picture.numpy(), 1))


def _resample(picture: Tensor, matrix: FloatArray, size: int, border: int = cv2.BORDER_REPLICATE) -> Tensor:
    """As :func:`datasets_toolkit.faces.detection.crop_image`: averaged before sampling where it shrinks, cubic where it does not."""
    shrink = 1 / matrix[0, 0]
    if shrink <= 1:
        return _warp(picture, matrix, size, cv2.INTER_CUBIC if border == cv2.BORDER_REPLICATE else cv2.INTER_LINEAR, border)
    smooth = torch.from_numpy(cv2.GaussianBlur(picture.numpy(), (0, 0), 0.35 * shrink))
    return _warp(smooth, matrix, size, cv2.INTER_LINEAR, border)


def _warp(picture: Tensor, matrix: FloatArray, size: int, interpolation: int, border: int) -> Tensor:
    centred = (_CENTRES @ matrix @ np.linalg.inv(_CENTRES))[:2]
    outside = _GREY if picture.ndim == 3 else 0
    warped = cv2.warpAffine(picture.numpy(), centred, (size, size), flags=interpolation, borderMode=border, borderValue=outside)
    return torch.from_numpy(warped)


def _depth(depth: Tensor, matrix: FloatArray, size: int) -> Tensor:
    """Weighted means of 1 / z over known pixels; unknown where they have less than half of the weight."""
    known = depth > 0
    inverse = torch.where(known, 1 / depth.clamp(min=1e-6), 0)
    sums, weights = (_warp(values, matrix, size, cv2.INTER_LINEAR, cv2.BORDER_CONSTANT) for values in (inverse, known.float()))
    return torch.where(weights >= 0.5, weights / sums.clamp(min=1e-9), 0)
