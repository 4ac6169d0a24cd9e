"""The words the toolkit and its readers share: regions of a face, blendshape names, and the records of a tracked face.

Frames and units are those of ``docs/conventions.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
ByteImage = npt.NDArray[np.uint8]

LANDMARKS = 478
"""Points of the face landmarker: 468 of the face surface, then 5 of each iris (right eye of the person first)."""


class Region(IntEnum):
    """Parsing classes; left and right are the person's own."""

    BACKGROUND = 0
    SKIN = 1
    LEFT_BROW = 2
    RIGHT_BROW = 3
    LEFT_EYE = 4
    RIGHT_EYE = 5
    NOSE = 6
    UPPER_LIP = 7
    LOWER_LIP = 8
    MOUTH = 9
    HAIR = 10
    LEFT_EAR = 11
    RIGHT_EAR = 12
    NECK = 13
    TORSO = 14


HEAD_REGIONS = tuple(region for region in Region if region not in (Region.BACKGROUND, Region.TORSO))
"""What moves with the head, neck included (it bends between head and torso)."""

BLENDSHAPES = (
    "_neutral", "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft",
    "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft", "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight",
    "eyeLookOutLeft", "eyeLookOutRight", "eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft",
    "eyeWideRight", "jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose", "mouthDimpleLeft", "mouthDimpleRight",
    "mouthFrownLeft", "mouthFrownRight", "mouthFunnel", "mouthLeft", "mouthLowerDownLeft", "mouthLowerDownRight", "mouthPressLeft",
    "mouthPressRight", "mouthPucker", "mouthRight", "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper",
    "mouthSmileLeft", "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight",
)  # fmt: skip
"""ARKit's names in the order of the face landmarker; scores in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Face:
    """One face as the landmarker sees it in an image.

    Attributes:
        landmarks: 478 x 3; x and y in pixels of that image, z in the same scale, relative to the head, smaller is nearer.
        blendshapes: 52 scores in the order of :data:`BLENDSHAPES`.
    """

    landmarks: FloatArray
    blendshapes: FloatArray


@dataclass(frozen=True, kw_only=True)
class FacePose:
    """Where a tracked face is, and its mesh with the pose removed.

    Attributes:
        head_to_camera: 4 x 4 rigid, canonical head space (cm) to OpenCV camera (cm).
        mesh: 478 x 3 landmarks in canonical head space, cm; posed by ``head_to_camera`` they project exactly onto the landmarks.
    """

    head_to_camera: FloatArray
    mesh: FloatArray


@dataclass(frozen=True, kw_only=True)
class TrackedClip:
    """A face followed through a video: one row for each decoded frame.

    Attributes:
        landmarks: t x 478 x 3, source pixels; NaN where no face was found.
        blendshapes: t x 52; NaN where no face was found.
        head_to_camera: t x 4 x 4; NaN where no face was found.
        mesh: t x 478 x 3, canonical head space, cm; NaN where no face was found.
        found: t, whether the frame shows the face.
        times: t, seconds, from the stream's presentation times.
        indices: t, the frame's index in the source.
        intrinsics: 3 x 3, pixels of the source: the clip camera.
        box: x0, y0, side of the reference box, source pixels.
    """

    landmarks: FloatArray
    blendshapes: FloatArray
    head_to_camera: FloatArray
    mesh: FloatArray
    found: npt.NDArray[np.bool_]
    times: FloatArray
    indices: npt.NDArray[np.int64]
    intrinsics: FloatArray
    box: FloatArray
