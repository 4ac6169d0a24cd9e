"""One frame of a data set: what lies in its tar members, decoded. The layout on disk is described in ``docs/shards.md``."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from datasets_toolkit.schema import ByteImage, FloatArray

SCHEMA_VERSION = 1
"""Raised whenever a reader of the version before would misread a data set."""


@dataclass(frozen=True, kw_only=True)
class FrameMeta:
    """What is known of a frame besides its pictures.

    Attributes:
        key: ``<clip>_<index:06d>``, the sample's name in its tar.
        clip: the clip's id.
        source: the source video's id.
        person: who is seen; the unit of the splits.
        index: the frame's number in the source video, from 0.
        time: presentation time, seconds on the source's clock.
        fps: mean frame rate of the source.
        size: pixels a side of the crop.
        source_to_crop: 3 x 3, source pixels to crop pixels.
        intrinsics: 3 x 3 of the clip camera, pixels of the crop.
        head_to_camera: 4 x 4 rigid, canonical head space (cm) to OpenCV camera (cm).
        blendshapes: 52 scores in the order of :data:`datasets_toolkit.schema.BLENDSHAPES`.
        scores: measures of this frame by name, such as ``sharpness``.
    """

    key: str
    clip: str
    source: str
    person: str
    index: int
    time: float
    fps: Fraction
    size: int
    source_to_crop: FloatArray
    intrinsics: FloatArray
    head_to_camera: FloatArray
    blendshapes: FloatArray
    scores: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class FrameSample:
    """A decoded frame; a label is None where the data set lacks that column or it was not asked for.

    Attributes:
        meta: times, camera, pose and expression.
        image: s x s x 3, RGB.
        parsing: s x s, :class:`datasets_toolkit.schema.Region`.
        matte: s x s, person alpha x 255.
        depth: s x s, cm along the optical axis, 0 where unknown.
        normals: s x s x 3, unit, OpenCV camera frame; 0 where unknown.
        landmarks: 478 x 3, pixels of the crop.
        audio: mono, 16 kHz, from this frame's time to the next one's; empty where there is no sound.
        mel: 4 x 80, log-mel energies of four 10 ms hops from this frame's time.
    """

    meta: FrameMeta
    image: ByteImage | None = None
    parsing: npt.NDArray[np.uint8] | None = None
    matte: npt.NDArray[np.uint8] | None = None
    depth: npt.NDArray[np.float32] | None = None
    normals: npt.NDArray[np.float32] | None = None
    landmarks: npt.NDArray[np.float32] | None = None
    audio: npt.NDArray[np.int16] | None = None
    mel: npt.NDArray[np.float16] | None = None
