"""How blendshapes move the 478 points of the mean face: a few of ARKit's shapes, each a field of displacements in head space.

The fields are simple on purpose (a hinge, bumps, lids that close), so that everything drawn from them has a closed form. Displacements
are for a score of 1, centimetres; shapes with Left or Right move the person's own side.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from datasets_toolkit.faces import face_regions as regions
from datasets_toolkit.faces.head_pose import canonical_face
from datasets_toolkit.schema import BLENDSHAPES, FloatArray

JAW_HINGE = np.array([0.0, -0.5, 0.5])
JAW_ANGLE = np.radians(16.0)
"""Turn of the jaw about the axis through both hinges at ``jawOpen`` = 1: some 2 cm between the lips."""
GAZE = 0.55
"""Centimetres that an iris moves for an eyeLook of 1."""
BULGING = ("jawOpen", "mouthSmileLeft", "mouthSmileRight", "mouthPucker", "cheekPuff")
"""Shapes that change the surface itself; the others move points along it."""
_UPPER_INNER, _LOWER_INNER = (191, 80, 81, 82, 13, 312, 311, 310, 415), (95, 88, 178, 87, 14, 317, 402, 318, 324)
_PARTED = np.array([0.0, 0.02, 0.0])
_CORNERS = (78, 308, 61, 291)


def neutral_points() -> FloatArray:
    """The mean face (478 x 3, cm) with its lips closed; the mean of talking faces has them parted."""
    points = canonical_face().vertices.copy()
    upper, lower = list(_UPPER_INNER), list(_LOWER_INNER)
    middle = (points[upper] + points[lower]) / 2
    points[upper] = middle + _PARTED
    points[lower] = middle - _PARTED
    return points


@lru_cache(maxsize=1)
def displacements() -> Mapping[str, FloatArray]:
    """The field (478 x 3, cm) of every shape used, by blendshape name."""
    points = neutral_points()
    fields = {
        "jawOpen": _jaw(points),
        "mouthPucker": _pucker(points),
        "cheekPuff": _bump(points, np.array([4.4, -3.2, 5.2]), 2.0) * [0.5, 0, 0.6]
        + _bump(points, np.array([-4.4, -3.2, 5.2]), 2.0) * [-0.5, 0, 0.6],
        "browInnerUp": _side(points, "", _brow_weight(points, inner=True)) * [0, 0.8, 0],
    }
    for side, sign in (("Left", 1.0), ("Right", -1.0)):
        weight = 1 / (1 + np.exp(-sign * points[:, :1] / 0.4))
        smile = _bump(points, points[291 if sign > 0 else 61], 1.5) * [0.75 * sign, 0.75, -0.25]
        smile = smile + _bump(points, np.array([4.2 * sign, -1.6, 5.6]), 1.6) * [0.15 * sign, 0.35, 0.3]
        fields[f"mouthSmile{side}"] = smile
        fields[f"browOuterUp{side}"] = _side(points, side, _brow_weight(points, inner=False)) * [0, 0.7, 0]
        fields[f"browDown{side}"] = weight * _brow_weight(points, inner=True) * [0, -0.45, 0]
        fields[f"eyeBlink{side}"] = _blink(points, side)
        for name, step in (("Up", [0, 0.6, 0]), ("Down", [0, -0.6, 0]), ("In", [-sign, 0, 0]), ("Out", [sign, 0, 0])):
            fields[f"eyeLook{name}{side}"] = _iris_mask(side) * GAZE * np.array(step)
    return {name: np.asarray(field, np.float64) for name, field in fields.items()}


def moved(points: FloatArray, scores: FloatArray) -> FloatArray:
    """Points (478 x 3) of a neutral face under 52 scores; shapes without a field do nothing."""
    for name, field in displacements().items():
        score = scores[BLENDSHAPES.index(name)]
        if score:
            points = points + score * field
    return points


def _bump(points: FloatArray, centre: FloatArray, width: float) -> FloatArray:
    """A Gaussian of the distance from ``centre``, n x 1."""
    return np.exp(-0.5 * ((points - centre) ** 2).sum(-1, keepdims=True) / width**2)


def _smoothstep(values: FloatArray, low: float, high: float) -> FloatArray:
    part = np.clip((values - low) / (high - low), 0, 1)
    return part * part * (3 - 2 * part)


def _jaw(points: FloatArray) -> FloatArray:
    """The turn of the jaw, for each point as far as it follows: lower lip and chin all the way, cheeks less, the upper lip not."""
    below = _smoothstep(-points[:, 1], 2.5, 6.0) * np.clip(points[:, 2] / 3.0, 0.25, 1)
    below[list({*regions.UPPER_LIP} - {*_CORNERS})] = 0.0
    below[list({*regions.LOWER_LIP} - {*_CORNERS})] = 1.0
    below[list(_CORNERS)] = 0.45
    inner = {*_LOWER_INNER, *_UPPER_INNER}
    half_width = np.abs(points[78, 0])
    for index in sorted({*regions.LOWER_LIP} - {*_CORNERS}):  # lips part like a lens: most in the middle
        reach = half_width * (1.05 if index in inner else 1.5)
        below[index] = 0.45 + 0.55 * np.sqrt(max(1 - (points[index, 0] / reach) ** 2, 0))
    turned = (points - JAW_HINGE) @ _about_x(JAW_ANGLE).T + JAW_HINGE - points
    return below[:, None] * turned


def _about_x(angle: float) -> FloatArray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _pucker(points: FloatArray) -> FloatArray:
    middle = points[list(_UPPER_INNER)].mean(0) * [0, 1, 1]
    weight = _bump(points, middle, 1.9)
    return weight * np.concatenate([-0.45 * points[:, :1], 0.15 * (middle[1] - points[:, 1:2]), np.full((len(points), 1), 0.5)], 1)


def _brow_weight(points: FloatArray, *, inner: bool) -> FloatArray:
    centre = 1.8 if inner else 4.6
    mirrored = np.concatenate([np.abs(points[:, :1]), points[:, 1:]], 1)
    weight = _bump(mirrored, np.array([centre, 4.4, 6.6 if inner else 5.8]), 1.5)
    return weight * _smoothstep(points[:, 1:2], 2.9, 3.8)


def _side(points: FloatArray, side: str, weight: FloatArray) -> FloatArray:
    if not side:
        return weight
    sign = 1.0 if side == "Left" else -1.0
    return weight / (1 + np.exp(-sign * points[:, :1] / 0.4))


def _iris_mask(side: str) -> FloatArray:
    mask = np.zeros((len(canonical_face().vertices), 1))
    mask[list(regions.LEFT_IRIS if side == "Left" else regions.RIGHT_IRIS)] = 1.0
    return mask


def _blink(points: FloatArray, side: str) -> FloatArray:
    """The upper lid comes down onto the lower one; the lower one rises a little."""
    ring = regions.LEFT_EYE if side == "Left" else regions.RIGHT_EYE
    field = np.zeros_like(points)
    lower, upper = list(ring[:9]), [*ring[8:], ring[0]]  # rings start at the outer corner and run along the lower lid
    line = np.argsort(points[lower, 0])
    x, low = points[lower, 0][line], points[lower, 1][line]
    corners = np.interp(
        points[:, 0], np.sort(points[[ring[0], ring[8]], 0]), points[[ring[0], ring[8]]][np.argsort(points[[ring[0], ring[8]], 0]), 1]
    )
    target = 0.25 * corners + 0.75 * np.interp(points[:, 0], x, low)
    for index in {*upper, *lower} - {ring[0], ring[8]}:
        field[index, 1] = target[index] - points[index, 1] + (0.03 if index in upper else 0)
    return field
