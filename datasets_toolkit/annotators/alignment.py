"""From what a network says of a crop to centimetres and to the camera frame: affine depth and normals."""

from __future__ import annotations

import logging

import numpy as np

from datasets_toolkit.annotators.base import FaceCrop, Map, Parsing
from datasets_toolkit.annotators.mesh_depth import rasterise_depth
from datasets_toolkit.errors import NoFaceError
from datasets_toolkit.schema import HEAD_REGIONS, FloatArray, Region

log = logging.getLogger(__name__)

EXTENT = 20.0
"""Nothing of a head lies further than this (cm of depth) from its origin; what a network puts further away is cut off there."""
_FACE = (
    Region.SKIN, Region.NOSE, Region.LEFT_BROW, Region.RIGHT_BROW, Region.LEFT_EYE, Region.RIGHT_EYE, Region.UPPER_LIP, Region.LOWER_LIP,
)  # fmt: skip
_TUKEY = 4.685  # 95 % efficiency on Gaussian residuals
_PAIRS, _LOOKED_AT = 400, 1000  # lines that the fit starts from, points that choose among them


def align_to_mesh(relative: Map, crop: FaceCrop, parsing: Parsing, *, inverse: bool) -> Map:
    """Depth (s x s, cm; 0 outside the head) from depth that a network knows up to scale and shift.

    Such networks give ``d = a z + b`` or, trained on disparities, ``d = a / z + b`` (Ranftl et al., "Towards robust monocular depth
    estimation", TPAMI 2022, section 5). The tracked face mesh has the scale of the head pose, so the two unknowns are fitted to its depth
    (or inverse depth) where the mesh is what is seen: on the parts of the face that neither hair nor hands cover. The fit is
    robust (:func:`robust_affine`), and the sign of ``a`` is fixed: a map that runs against the mesh becomes a plane, with a warning.

    Args:
        relative: s x s, finite; nearer is larger if ``inverse``, else smaller.
        crop: gives the mesh.
        parsing: of the crop.
        inverse: whether ``relative`` is affine in 1/z.

    Raises:
        NoFaceError: the face mesh does not touch the crop.
    """
    mesh = rasterise_depth(crop, len(relative))
    covered = mesh > 0
    if not covered.any():
        raise NoFaceError("the face lies outside its crop, so that depth cannot be brought to its scale; leave this frame out")
    seen = covered & np.isin(parsing.labels, _FACE)
    seen = seen if seen.sum() >= 16 else covered
    target = 1 / mesh[seen].astype(np.float64) if inverse else mesh[seen].astype(np.float64)
    scale, shift = robust_affine(relative[seen].astype(np.float64), target)
    if scale <= 0:
        log.warning("a depth map runs against the face mesh: it is taken as flat")
        scale, shift = 0.0, float(np.median(target))
    aligned = scale * relative.astype(np.float64) + shift
    middle = float(crop.head_to_camera[2, 3])
    near, far = max(middle - EXTENT, 1.0), middle + EXTENT
    depth = 1 / np.clip(aligned, 1 / far, 1 / near) if inverse else np.clip(aligned, near, far)
    return np.asarray(np.where(np.isin(parsing.labels, HEAD_REGIONS), depth, 0), np.float32)


def robust_affine(values: FloatArray, target: FloatArray, iterations: int = 50) -> tuple[float, float]:
    """The a and b that bring ``a values + b`` close to most of ``target`` (both n): an MM-estimate.

    Up to almost half of the points may be wrong in either coordinate (Yohai, "High breakdown-point and high efficiency robust estimates for
    regression", Annals of Statistics 1987): of lines through pairs of points the one with the least median absolute residual
    gives start and scale, then Tukey's biweight, reweighted. Pairs are drawn from a fixed seed. Values that do not vary give a = 0 and
    the median of the target.
    """
    spread = float(values.std())
    if not spread > 1e-9 * max(float(np.abs(values).max()), 1e-30):
        return 0.0, float(np.median(target))
    x, y = (values - values.mean()) / spread, target
    slope, level, sigma = _median_line(x, y)
    for _ in range(iterations):
        residual = np.abs(y - slope * x - level)
        before = slope, level
        slope, level = _weighted_line(x, y, np.square(1 - np.square(np.minimum(residual / (_TUKEY * sigma), 1))))
        if abs(before[0] - slope) + abs(before[1] - level) <= 1e-9 * sigma:
            break
    return slope / spread, level - slope * float(values.mean()) / spread


def _median_line(x: FloatArray, y: FloatArray) -> tuple[float, float, float]:
    """Slope and level with the least median absolute residual among lines through pairs, and the scale that it tells."""
    generator = np.random.default_rng(0)
    some = generator.permutation(len(x))[:_LOOKED_AT]
    first, second = generator.integers(0, len(x), (2, _PAIRS))
    apart = np.abs(x[first] - x[second]) > 1e-6
    slopes = np.append((y[first] - y[second])[apart] / (x[first] - x[second])[apart], 0.0)
    levels = np.append(y[first[apart]] - slopes[:-1] * x[first[apart]], np.median(y))
    medians = np.median(np.abs(y[some] - slopes[:, None] * x[some] - levels[:, None]), axis=1)
    best = int(medians.argmin())
    return float(slopes[best]), float(levels[best]), max(1.4826 * float(medians[best]), 1e-9 * float(np.abs(y).max()), 1e-30)


def _weighted_line(x: FloatArray, y: FloatArray, weights: FloatArray) -> tuple[float, float]:
    total = weights.sum()
    mean_x, mean_y = (weights @ x) / total, (weights @ y) / total
    variance = weights @ np.square(x - mean_x)
    slope = float(weights @ ((x - mean_x) * (y - mean_y)) / variance) if variance > 0 else 0.0
    return slope, float(mean_y - slope * mean_x)


def facing_normals(normals: Map, crop: FaceCrop, known: np.ndarray) -> Map:
    """Unit normals (s x s x 3, camera frame) that face the camera wherever ``known`` (s x s); 0 elsewhere.

    A normal that looks away from the camera, which no visible surface has, is turned to the nearest direction at right angles to
    its ray (and a hair towards the camera); one of length 0 looks straight back along it.
    """
    size = len(normals)
    y, x = np.mgrid[:size, :size] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(crop.intrinsics).T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    unit = np.where(length > 1e-6, normals / np.maximum(length, 1e-6), -rays)
    away = np.maximum((unit * rays).sum(-1, keepdims=True) + 1e-3, 0)
    turned = unit - away * rays
    turned = np.where(np.linalg.norm(turned, axis=-1, keepdims=True) > 1e-2, turned, -rays)
    turned /= np.linalg.norm(turned, axis=-1, keepdims=True)
    return np.asarray(np.where(known[..., None], turned, 0), np.float32)
