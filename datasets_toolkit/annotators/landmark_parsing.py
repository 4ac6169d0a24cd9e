"""Parsing without a parsing network: a person matte, polygons through the landmarks, and colour models for hair, skin and clothes.

Face parts come from landmark polygons. The rest of the person (hair, ears, neck, torso) is told apart by colours learned from places where
the anatomy leaves no doubt (cheeks are skin, what lies just above the forehead is hair, what lies far below the chin is torso), by where a
pixel lies relative to the head, and by filtering the class scores along image edges (Hosni et al., "Fast cost-volume filtering", 2013).
Matte and scores are worked out on a coarse grid and brought to the edges of the whole picture by the fast guided filter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from datasets_toolkit.annotators.base import FaceCrop, Map, Parsing, ParsingAnnotator
from datasets_toolkit.annotators.guided_filter import guided_lines
from datasets_toolkit.annotators.parsing_kernels import (
    apply_lines,
    colour_distances,
    colour_moments,
    cover,
    fill,
    fill_rings,
    find_seeds,
    leads,
)
from datasets_toolkit.assets import ASSETS, locate
from datasets_toolkit.faces import face_regions as regions
from datasets_toolkit.native import close_with, quiet_stderr
from datasets_toolkit.schema import ByteImage, FloatArray, Region

MASK = npt.NDArray[np.bool_]
SEGMENTER = "selfie_segmentation.tflite"
GRID = 128
"""Cells a side of the grid for matte and colours."""
SEGMENTED = 256
"""Pixels a side of what the segmenter is given; its network sees so many."""
LINES = 8
"""Lines a pixel on which polygons are measured."""
POLYGONS = (
    (Region.NOSE, regions.NOSE),
    (Region.LEFT_BROW, regions.LEFT_BROW),
    (Region.RIGHT_BROW, regions.RIGHT_BROW),
    (Region.UPPER_LIP, regions.UPPER_LIP),
    (Region.LOWER_LIP, regions.LOWER_LIP),
    (Region.MOUTH, regions.MOUTH_INNER),
    (Region.LEFT_EYE, regions.LEFT_EYE),
    (Region.RIGHT_EYE, regions.RIGHT_EYE),
)
_RINGS = np.array([index for _, ring in POLYGONS for index in ring])
_ENDS = np.cumsum([len(ring) for _, ring in POLYGONS])
_PARTS = np.array([region for region, _ in POLYGONS], np.uint8)
_PERSON = np.array(
    [Region.BACKGROUND, Region.HAIR, Region.TORSO, Region.LEFT_EAR, Region.RIGHT_EAR, Region.NECK, Region.SKIN], np.uint8
)  # fmt: skip


class LandmarkParsing(ParsingAnnotator):
    """The default parsing annotator.

    Args:
        assets: folder with the model files; by default they are looked up as :mod:`datasets_toolkit.assets` says.

    Raises:
        AssetError: the segmentation model cannot be had.
    """

    version = 3
    locations = frozenset({"assets"})

    def __init__(self, assets: Path | None = None) -> None:
        from mediapipe.tasks.python import BaseOptions, vision  # heavy, and needed nowhere else

        self.assets = Path(assets) if assets is not None else None
        options = vision.ImageSegmenterOptions(
            base_options=BaseOptions(model_asset_buffer=locate(SEGMENTER, folder=self.assets).read_bytes()), output_confidence_masks=True
        )
        with quiet_stderr():
            self._segmenter = vision.ImageSegmenter.create_from_options(options)
        self._release = close_with(self, self._segmenter)

    def provenance(self) -> dict[str, str]:
        """The segmentation model's hash and licence."""
        asset = next(asset for asset in ASSETS if asset.name == SEGMENTER)
        return {"weights": asset.name, "sha256": asset.sha256, "licence": asset.licence}

    def close(self) -> None:
        """Release the segmentation model; the end of the process does so too, for a model that is left open can keep it from ending."""
        self._release()

    def __call__(self, crop: FaceCrop) -> Parsing:
        """Labels and matte of a crop."""
        size = len(crop.image)
        middle = crop.image if size <= SEGMENTED else _resized(crop.image, SEGMENTED)
        plane = head_plane(crop)
        half = max(float(np.ptp(crop.landmarks[list(regions.FACE_OVAL), :2] @ plane[1, :2])) / 2, 1.0)  # of the face's height, cm
        lines = _lines(crop, _resized(middle, GRID), _resized(self._person(middle), GRID), plane, half)
        labels, matte = np.empty((size, size), np.uint8), np.empty((size, size), np.float32)
        apply_lines(matte, labels, cv2.cvtColor(crop.image, cv2.COLOR_RGB2GRAY), lines, plane, half, _PERSON)
        points = np.ascontiguousarray(crop.landmarks[:, :2], np.float64)
        oval = points[list(regions.FACE_OVAL)]
        cover(matte, oval, LINES)  # the landmarker has seen a face here, whatever the segmenter says
        fill(labels, oval, LINES, Region.SKIN.value)
        fill_rings(labels, points, _RINGS, _ENDS, _PARTS, LINES)
        return Parsing(labels=labels, matte=matte)

    def _person(self, image: ByteImage) -> Map:
        """The segmenter's probability of a person (as large as the image)."""
        import mediapipe

        result = self._segmenter.segment(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image)))
        return np.array(np.squeeze(result.confidence_masks[0].numpy_view()), np.float32)


def polygon(landmarks: FloatArray, ring: tuple[int, ...], size: int) -> Map:
    """Coverage in [0, 1] (size x size) of the polygon through the landmarks ``ring`` (pixels): exact along :data:`LINES` lines a pixel.

    OpenCV's anti-aliased fill is no coverage: it draws the outline on top, which widens eyes and lips by more than half a pixel.
    """
    result = np.zeros((size, size), np.float32)
    cover(result, np.ascontiguousarray(landmarks[list(ring), :2], np.float64), LINES)
    return result


def connected(mask: MASK, seed: MASK) -> MASK:
    """The connected parts of ``mask`` that touch ``seed``: other people in the picture are background."""
    count, parts = cv2.connectedComponents(mask.astype(np.uint8))
    kept = np.zeros(count, bool)
    kept[parts[seed & mask]] = True
    return kept[parts]


def head_plane(crop: FaceCrop) -> FloatArray:
    """2 x 3: a pixel (x, y, 1) to its place in the plane of the face, from the middle between chin and forehead: cm to the left and up."""
    scale = crop.intrinsics[0, 0] / crop.head_to_camera[2, 3]  # pixels for a cm, near the head
    up = crop.head_to_camera[:2, 1] * scale
    up = up / max(float(np.linalg.norm(up)), 1e-9)
    axes = np.array([[-up[1], up[0]], up]) / scale
    middle = (crop.landmarks[regions.CHIN, :2] + crop.landmarks[regions.FOREHEAD, :2]) / 2
    return np.column_stack([axes, -axes @ middle])


def _lines(crop: FaceCrop, image: ByteImage, person: Map, plane: FloatArray, half: float) -> Map:
    """Slopes and offsets (6 x g x s) in the brightness: of the matte, and of the leads of hair and torso over skin.

    Args:
        crop: gives the landmarks.
        image: g x g x 3, the crop on the grid.
        person: g x g, probability of a person.
        plane: of :func:`head_plane`.
        half: of the face's height, cm.
    """
    step = len(crop.image) / GRID
    face = polygon(crop.landmarks / step, regions.FACE_OVAL, GRID) > 0.5
    guide = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) / np.float32(255), np.float32)
    slope, offset = guided_lines(guide, [person], GRID // 48 + 1, 3e-4)
    alpha = np.maximum((slope * guide + offset - 0.1) * 1.25, face)
    strangers = (alpha > 0.02) & ~connected(alpha > 0.02, face)
    for values in (slope, offset, alpha):
        values[strangers] = 0
    place = plane * [step, step, 1]
    found = guided_lines(guide, _leads(image, alpha > 0.5, face, place, half), GRID // 64, 1e-3)
    result = np.empty((6, GRID, len(crop.image)), np.float32)
    for values, target in zip((slope, offset, *found), result, strict=True):
        cv2.resize(values, target.shape[::-1], dst=target)
    return result


def _leads(image: ByteImage, person: MASK, face: MASK, plane: FloatArray, half: float) -> Map:
    """By how much hair and torso lead over skin (2 x g x g), in units of log density."""
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    seeds, result = np.empty(person.shape, np.uint8), np.empty((2, *person.shape), np.float32)
    find_seeds(seeds, person, face, plane, half)
    planes = np.ascontiguousarray(lab.reshape(-1, 3).T, np.float32)
    scores = np.stack([_log_likelihood(planes, lab[seeds == seed]).reshape(seeds.shape) for seed in (1, 2, 3)])
    leads(result, scores, plane, half, -12.0)
    return result


def _log_likelihood(planes: Map, samples: npt.NDArray[np.uint8]) -> Map:
    """Log density (n, floored) of colours (3 x n) under a broad Gaussian mixture of samples (m x 3); flat where these are too few."""
    if len(samples) < 40:
        return np.full(planes.shape[1], -9.0, np.float32)
    centres = _clusters(samples, 3)
    count, total, products = colour_moments(samples, centres)
    used = [index for index in range(3) if count[index] >= 10]
    spreads = np.empty((len(used), 3, 3))
    for row, index in enumerate(used):
        outer = np.outer(total[index], total[index]) / count[index]
        spreads[row] = (products[index] - outer) / (count[index] - 1) + np.diag([60.0, 12.0, 12.0])
    distances = np.empty((len(used), planes.shape[1]), np.float32)
    colour_distances(distances, planes, centres[used], np.linalg.inv(spreads).astype(np.float32))
    weights = count[used] / len(samples) / np.sqrt(np.linalg.det(spreads))
    density = weights.astype(np.float32) @ np.exp(distances, out=distances) + np.float32(1e-6)
    return np.asarray(np.log(density, out=density), np.float32)


def _clusters(samples: npt.NDArray[np.uint8], count: int) -> Map:
    """k-means centres with a fixed seed."""
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    thin = np.ascontiguousarray(samples[:: max(len(samples) // 500, 1)], np.float32)
    labels = np.zeros((len(thin), 1), np.int32)
    return np.asarray(cv2.kmeans(thin, count, labels, criteria, 1, cv2.KMEANS_PP_CENTERS)[2], np.float32)


def _resized(image: npt.NDArray[Any], side: int) -> npt.NDArray[Any]:
    """A square image at ``side`` pixels a side: averaged where it becomes smaller."""
    return np.asarray(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if len(image) > side else cv2.INTER_LINEAR))
