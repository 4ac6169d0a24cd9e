"""A clip made ready to be annotated: smoothed tracks, a steady crop for each frame, and what a sample records of it.

Training and inference agree: the landmarks go through the filter that inference uses, the crop is the box that inference takes around a
face, and poses are those under the clip camera.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.build.scores import mouth_opening
from datasets_toolkit.faces.detection import crop_image, inside_image, reference_box, smooth_boxes, source_to_crop
from datasets_toolkit.faces.head_pose import euler_degrees
from datasets_toolkit.faces.smoothing import ZeroPhaseOneEuro, smooth_clip
from datasets_toolkit.media.conversion import Window
from datasets_toolkit.sample import FrameMeta
from datasets_toolkit.schema import ByteImage, FloatArray, TrackedClip

VERSION = 2
"""Changes whenever the same tracks may give other crops or labels."""
REACH = 2.0
"""Source pixels for a pixel of the crop, beyond its border, that resampling looks at."""


@dataclass(frozen=True, kw_only=True)
class ClipNames:
    """How a clip is called: its own id, that of its source, and the person's name."""

    clip: str
    source: str
    person: str


@dataclass(frozen=True, kw_only=True)
class ClipFrames:
    """Attributes: the smoothed clip, the crop's box of every frame (t x 3: x0, y0, side, source pixels) and the crop's size."""

    clip: TrackedClip
    boxes: FloatArray
    size: int

    def crop(self, image: ByteImage, row: int, corner: tuple[int, int] = (0, 0)) -> FaceCrop:
        """What annotators get of the clip's frame ``row`` (counted in the clip; it shows the face).

        Args:
            image: h w 3, the decoded frame, or a part of it that holds :meth:`window`.
            row: see above.
            corner: x and y of the image's first pixel in the frame.
        """
        matrix = source_to_crop(self.boxes[row], self.size)
        return FaceCrop(
            image=crop_image(image, self.boxes[row], self.size, corner),
            landmarks=self.landmarks(row),
            blendshapes=self.clip.blendshapes[row],
            mesh=self.clip.mesh[row],
            head_to_camera=self.clip.head_to_camera[row],
            intrinsics=matrix @ self.clip.intrinsics,
            source_to_crop=matrix,
        )

    def window(self) -> Window:
        """The part of the frames that all crops of the clip are made of; it may reach outside them."""
        margin = REACH * np.maximum(self.boxes[:, 2].max() / self.size, 1) + 4
        low, high = self.boxes[:, :2].min(0) - margin, (self.boxes[:, :2] + self.boxes[:, 2:]).max(0) + margin
        return int(np.floor(low[0])), int(np.floor(low[1])), int(np.ceil(high[0])), int(np.ceil(high[1]))

    def landmarks(self, row: int) -> FloatArray:
        """Landmarks of a frame (478 x 3) in pixels of the crop."""
        matrix = source_to_crop(self.boxes[row], self.size)
        return self.clip.landmarks[row] * matrix[0, 0] + np.array([matrix[0, 2], matrix[1, 2], 0])

    def meta(self, row: int, names: ClipNames, fps: Fraction) -> FrameMeta:
        """What a sample records of a frame besides its pictures; angles in degrees, the mouth in face sizes."""
        matrix = source_to_crop(self.boxes[row], self.size)
        index = int(self.clip.indices[row])
        yaw, pitch, roll = (float(angle) for angle in euler_degrees(self.clip.head_to_camera[row]))
        mouth = float(mouth_opening(self.clip.landmarks[row]))
        return FrameMeta(
            key=sample_key(names.clip, index),
            clip=names.clip,
            source=names.source,
            person=names.person,
            index=index,
            time=float(self.clip.times[row]),
            fps=fps,
            size=self.size,
            source_to_crop=matrix,
            intrinsics=matrix @ self.clip.intrinsics,
            head_to_camera=self.clip.head_to_camera[row],
            blendshapes=self.clip.blendshapes[row],
            scores={"yaw": yaw, "pitch": pitch, "roll": roll, "mouth": mouth},
        )


def sample_key(clip: str, index: int) -> str:
    """The name of a sample: the clip and the frame's number in its source."""
    return f"{clip}_{index:06d}"


def prepare_clip(raw: TrackedClip, width: int, height: int, size: int) -> ClipFrames:
    """Smooth a tracked clip and place its crops inside the source (width x height, pixels)."""
    clip = smooth_clip(raw, ZeroPhaseOneEuro())
    boxes = np.full((len(clip.times), 3), np.nan)
    for row in np.flatnonzero(clip.found):
        boxes[row] = reference_box(clip.landmarks[row])
    boxes = smooth_boxes(boxes, clip.times)
    return ClipFrames(clip=clip, boxes=np.array([inside_image(box, height, width) for box in boxes]), size=size)
