"""Faces in images and videos: detection, landmarks, boxes and crops.

The same tracker serves the dataset toolkit and inference, so that what a model is trained on and what it is given cannot drift apart.
Each frame is tracked on a square crop around the previous frame's face: landmarks depend on that crop only, not on hidden filter state.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from datasets_toolkit.assets import locate
from datasets_toolkit.native import close_with, quiet_stderr
from datasets_toolkit.schema import LANDMARKS, ByteImage, Face, FloatArray

SEARCH_SCALE = 2.0
"""Side of the square searched for landmarks, in units of the face box."""
REFERENCE_SCALE = 2.1
"""Side of the reference box in units of the face's size (the larger side of the landmarks' bounding box)."""
REFERENCE_SHIFT = -0.06
"""How far the reference box lies above the face's centre, in units of its side: hair needs more room than the neck."""
SEARCH_PIXELS = 512
"""The crop given to the landmarker has at most this many pixels a side; its network sees 256."""
MIN_FACE = 60
"""Smallest face (larger side of the landmarks' bounding box, pixels) that is searched for and worth animating."""
VISIBLE = 0.15
"""The detector sees faces of at least this share of the side of the image it is given."""
CONFIRMED = 0.6
"""Score that the detector must give a face once the landmarks have put it into the middle of its crop; faces reach 0.8 to 0.9."""


def square(centre: FloatArray, side: float) -> FloatArray:
    """The square box (x0, y0, side) around ``centre`` (x, y), pixels."""
    return np.array([centre[0] - side / 2, centre[1] - side / 2, side])


def landmark_bounds(landmarks: FloatArray) -> tuple[FloatArray, float]:
    """Centre (x, y) and larger side of the bounding box of landmarks (n x 2 or more), pixels."""
    low, high = landmarks[:, :2].min(0), landmarks[:, :2].max(0)
    return (low + high) / 2, float((high - low).max())


def reference_box(landmarks: FloatArray) -> FloatArray:
    """Square box (x0, y0, side) of head and shoulders around a face's landmarks (478 x 3, pixels); may reach outside the image."""
    centre, size = landmark_bounds(landmarks)
    side = REFERENCE_SCALE * size
    return square(centre + np.array([0, REFERENCE_SHIFT * side]), side)


def inside_image(box: FloatArray, height: int, width: int) -> FloatArray:
    """The box (x0, y0, side) moved, and only where that is not enough shrunk, to lie inside an image of that size."""
    side = min(float(box[2]), float(height), float(width))
    centre = box[:2] + box[2] / 2
    corner = np.clip(centre - side / 2, 0, [width - side, height - side])
    return np.array([corner[0], corner[1], side])


def smooth_boxes(boxes: FloatArray, times: FloatArray, window: float = 0.4) -> FloatArray:
    """Smooth boxes (t x 3: x0, y0, side) over time without lag: a Gaussian over ``window`` seconds (standard deviation) on centre and side.

    A jumping crop is jitter in every label. Rows of NaN (no face) take no part and are filled from their neighbours, however far those are.

    Raises:
        ValueError: all rows are NaN.
    """
    centre = boxes[:, :2] + boxes[:, 2:] / 2
    values = np.concatenate([centre, boxes[:, 2:]], 1)
    known = np.isfinite(values).all(1)
    if not known.any():
        raise ValueError("no box to smooth: every row is NaN")
    power = -0.5 * ((times[:, None] - times[None, known]) / window) ** 2
    weights = np.exp(power - power.max(1, keepdims=True))  # the nearest known row counts 1: nothing underflows in long gaps
    smooth = (weights / weights.sum(1, keepdims=True)) @ values[known]
    return np.concatenate([smooth[:, :2] - smooth[:, 2:] / 2, smooth[:, 2:]], 1)


def source_to_crop(box: FloatArray, size: int) -> FloatArray:
    """3 x 3 matrix from source pixels to pixels of the ``size`` x ``size`` crop of ``box`` (x0, y0, side)."""
    scale = size / box[2]
    return np.array([[scale, 0, -box[0] * scale], [0, scale, -box[1] * scale], [0, 0, 1]])


def crop_image(image: ByteImage, box: FloatArray, size: int, corner: tuple[int, int] = (0, 0)) -> ByteImage:
    """Resample the square ``box`` of an image (h w c) to ``size`` x ``size``; beyond the border the edge is repeated.

    Cubic where it becomes larger; where it becomes smaller, averaged before it is sampled. ``corner`` (x, y) is where ``image`` begins if
    it is a part of the picture.
    """
    from datasets_toolkit.faces.resampling import resample_square  # a compiler, which whoever only needs boxes does without

    return resample_square(image, box, size, corner)


class FaceTracker:
    """The face landmarker with detection for small and distant faces. Use as a context manager, one for each process.

    Args:
        assets: folder with the model files; by default they are looked up as :mod:`datasets_toolkit.assets` says.

    Raises:
        AssetError: a model file cannot be had.
    """

    def __init__(self, assets: Path | None = None) -> None:
        from mediapipe.tasks.python import BaseOptions, vision  # heavy, and needed nowhere else

        landmarker = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=locate("face_landmarker.task", folder=assets).read_bytes()),
            output_face_blendshapes=True,
            min_face_detection_confidence=0.3,
            min_face_presence_confidence=0.3,
        )
        detector = vision.FaceDetectorOptions(
            base_options=BaseOptions(model_asset_buffer=locate("face_detection_short_range.tflite", folder=assets).read_bytes()),
            min_detection_confidence=0.5,
        )
        with quiet_stderr():
            self._landmarker = vision.FaceLandmarker.create_from_options(landmarker)
            self._detector = vision.FaceDetector.create_from_options(detector)
        self._release = close_with(self, self._landmarker, self._detector)

    def __enter__(self) -> FaceTracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Release the native models; the end of the process does so too, for a model that is left open can keep it from ending."""
        self._release()

    def faces(self, image: ByteImage, smallest: float = MIN_FACE) -> list[Face]:
        """The faces of an image (h w 3, RGB), largest first.

        The whole image is searched first, then ever smaller tiles down to faces of ``smallest`` pixels, but only while none is found:
        faces much smaller than the largest are bystanders.
        """
        side = max(image.shape[:2])
        while True:
            found: list[Face] = []
            for box in self._detect(image, side):
                face = self._landmarks(image, box)
                if face is not None and self._confirmed(image, face) and not any(same_face(face, other) for other in found):
                    found.append(face)
            if found or VISIBLE * side <= smallest:
                return sorted(found, key=lambda face: -landmark_bounds(face.landmarks)[1])
            side = -(-side // 2)

    def follow(self, image: ByteImage, previous: Face) -> Face | None:
        """The face of the previous frame in this one (h w 3, RGB), or None if it is not where it was."""
        centre, size = landmark_bounds(previous.landmarks)
        return self._landmarks(image, square(centre, SEARCH_SCALE * size))

    def _detect(self, image: ByteImage, side: int) -> list[FloatArray]:
        """Square search boxes around the face candidates of overlapping tiles."""
        tiles = [(top, left) for top in _starts(image.shape[0], side) for left in _starts(image.shape[1], side)]
        boxes = [box for top, left in tiles for box in self._detect_in(image[top : top + side, left : left + side], top, left)]
        return _distinct(boxes)

    def _confirmed(self, image: ByteImage, face: Face) -> bool:
        """Whether the detector also sees a face where the landmarks are: texture often looks like one, and landmarks fit anything."""
        centre, size = landmark_bounds(face.landmarks)
        crop = crop_image(image, square(centre, SEARCH_SCALE * size), SEARCH_PIXELS // 2)
        return any(detection.categories[0].score >= CONFIRMED for detection in self._detector.detect(_media_image(crop)).detections)

    def _detect_in(self, image: ByteImage, top: int, left: int) -> list[FloatArray]:
        boxes = []
        for detection in self._detector.detect(_media_image(image)).detections:
            box = detection.bounding_box
            centre = np.array([left + box.origin_x + box.width / 2, top + box.origin_y + box.height / 2])
            boxes.append(square(centre, 1.25 * SEARCH_SCALE * max(box.width, box.height)))
        return boxes

    def _landmarks(self, image: ByteImage, box: FloatArray) -> Face | None:
        size = int(np.clip(round(box[2]), 128, SEARCH_PIXELS))
        result = self._landmarker.detect(_media_image(crop_image(image, box, size)))
        if not result.face_landmarks:
            return None
        points = np.array([[p.x, p.y, p.z] for p in result.face_landmarks[0]], np.float64)[:LANDMARKS] * box[2]
        scores = np.array([category.score for category in result.face_blendshapes[0]], np.float64)
        return Face(landmarks=points + np.array([box[0], box[1], 0]), blendshapes=scores)


def _media_image(image: ByteImage) -> Any:
    import mediapipe

    return mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image))


def _starts(length: int, side: int) -> list[int]:
    """Where tiles of that side begin, half overlapping, the last flush with the end."""
    return [*range(0, max(length - side, 0), max(side // 2, 1)), max(length - side, 0)]


def _distinct(boxes: list[FloatArray]) -> list[FloatArray]:
    """Drop boxes whose centre lies well inside a larger one kept before: the detectors often see the same face."""
    kept: list[FloatArray] = []
    for box in sorted(boxes, key=lambda box: -box[2]):
        centre = box[:2] + box[2] / 2
        if all(np.abs(other[:2] + other[2] / 2 - centre).max() > 0.15 * other[2] for other in kept):
            kept.append(box)
    return kept


def same_face(face: Face, other: Face) -> bool:
    """Whether two faces found in one image lie in the same place."""
    (centre, size), (other_centre, other_size) = landmark_bounds(face.landmarks), landmark_bounds(other.landmarks)
    return bool(np.abs(centre - other_centre).max() < 0.5 * max(size, other_size))
