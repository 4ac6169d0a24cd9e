"""Where on a head its features lie: closed curves through landmarks, in the angles around the head's centre."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from datasets_toolkit.faces import face_regions as rings
from datasets_toolkit.schema import FloatArray, Region
from datasets_toolkit.synthetic.geometry import Hits, Part
from datasets_toolkit.synthetic.radial import angles

Mask = npt.NDArray[np.bool_]
FEATURES = (
    (Region.NOSE, rings.NOSE),
    (Region.LEFT_BROW, rings.LEFT_BROW),
    (Region.RIGHT_BROW, rings.RIGHT_BROW),
    (Region.UPPER_LIP, rings.UPPER_LIP),
    (Region.LOWER_LIP, rings.LOWER_LIP),
    (Region.MOUTH, rings.MOUTH_INNER),
    (Region.LEFT_EYE, rings.LEFT_EYE),
    (Region.RIGHT_EYE, rings.RIGHT_EYE),
)
"""Painted in this order: later ones cover earlier ones."""
_PARTS = {
    Part.LEFT_EAR: Region.LEFT_EAR,
    Part.RIGHT_EAR: Region.RIGHT_EAR,
    Part.MANE: Region.HAIR,
    Part.NECK: Region.NECK,
    Part.TORSO: Region.TORSO,
}


def inside(points: FloatArray, corners: FloatArray) -> Mask:
    """Whether points (n x 2) lie inside a polygon (k x 2): the even-odd rule."""
    result = np.zeros(len(points), bool)
    low, high = corners.min(0), corners.max(0)
    near = np.flatnonzero(((points >= low) & (points <= high)).all(-1))
    x, y = points[near].T
    odd = np.zeros(len(near), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        if y0 != y1:
            odd ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    result[near] = odd
    return result


def label(hits: Hits, places: FloatArray, marks: FloatArray) -> npt.NDArray[np.uint8]:
    """The region (n, :class:`Region`) of what rays met.

    Args:
        hits: of n rays.
        places: m x 2, longitude and elevation around the head's centre where the shell is met, radians.
        marks: 478 x 2, longitude and elevation of the landmarks.
    """
    labels = np.zeros(len(hits.part), np.uint8)
    for part, region in _PARTS.items():
        labels[hits.part == part] = region
    shell = hits.part == Part.SHELL
    skin = np.full(len(places), Region.SKIN, np.uint8)
    for region, ring in FEATURES:
        skin[inside(places, marks[list(ring)])] = region
    skin[hits.hair[shell] > 0] = Region.HAIR
    labels[shell] = skin
    return labels


def mark_angles(landmarks: FloatArray, centre: FloatArray) -> FloatArray:
    """Longitude and elevation (478 x 2) of landmarks (478 x 3) around the head's centre."""
    return np.stack(angles(landmarks - centre), -1)
