"""Parsing without a parsing network: a person matte, polygons through the landmarks, and colour models for hair, skin and clothes.

Face parts come from landmark polygons. The rest of the person (hair, ears, neck, torso) is told apart by colours learned from places where
the anatomy leaves no doubt (cheeks are skin, what lies just above the forehead is hair, what lies far below the chin is torso), by where a
pixel lies relative to the head, and by filtering the class scores along image edges (Hosni et al., "Fast cost-volume filtering", 2013).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from datasets_toolkit.annotators.base import FaceCrop, Map, Parsing, ParsingAnnotator
from datasets_toolkit.annotators.masks import around
from datasets_toolkit.annotators.parsing_kernels import (
    add_polygon,
    add_priors,
    colour_distances,
    colour_moments,
    coverage,
    extent,
    find_seeds,
    name_regions,
)
from datasets_toolkit.assets import ASSETS, locate
from datasets_toolkit.faces import face_regions as regions
from datasets_toolkit.native import quiet_stderr
from datasets_toolkit.schema import ByteImage, FloatArray, Region

MASK = npt.NDArray[np.bool_]
SEGMENTER = "selfie_segmentation.tflite"
PERSON = 0.5
"""Matte above which a pixel counts as person."""
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


class LandmarkParsing(ParsingAnnotator):
    """The default parsing annotator.

    Args:
        assets: folder with the model files; by default they are looked up as :mod:`datasets_toolkit.assets` says.

    Raises:
        AssetError: the segmentation model cannot be had.
    """

    version = 2
    locations = frozenset({"assets"})

    def __init__(self, assets: Path | None = None) -> None:
        from mediapipe.tasks.python import BaseOptions, vision  # heavy, and needed nowhere else

        self.assets = Path(assets) if assets is not None else None
        options = vision.ImageSegmenterOptions(
            base_options=BaseOptions(model_asset_buffer=locate(SEGMENTER, folder=self.assets).read_bytes()), output_confidence_masks=True
        )
        with quiet_stderr():
            self._segmenter = vision.ImageSegmenter.create_from_options(options)
        self._release = weakref.finalize(self, self._segmenter.close)

    def provenance(self) -> dict[str, str]:
        """The segmentation model's hash and licence."""
        asset = next(asset for asset in ASSETS if asset.name == SEGMENTER)
        return {"weights": asset.name, "sha256": asset.sha256, "licence": asset.licence}

    def close(self) -> None:
        """Release the segmentation model; the end of the process does so too, for a model that is left open can keep it from ending."""
        self._release()

    def __call__(self, crop: FaceCrop) -> Parsing:
        """Labels and matte of a crop."""
        matte = self._matte(crop.image)
        face = polygon(crop.landmarks, regions.FACE_OVAL, len(matte))
        matte = np.maximum(matte, face)  # the landmarker has seen a face here, whatever the segmenter says
        matte = matte * connected(matte > 0.02, face > 0.5)
        labels = _person_regions(crop, matte > PERSON, face > 0.5)
        for region, ring in POLYGONS:
            part = _bounds(crop.landmarks[list(ring), :2], len(matte))
            labels[part][polygon(crop.landmarks, ring, len(matte))[part] > 0.5] = region
        return Parsing(labels=labels, matte=matte.astype(np.float32))

    def _matte(self, image: ByteImage) -> Map:
        import mediapipe

        result = self._segmenter.segment(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(image)))
        mask = np.squeeze(result.confidence_masks[0].numpy_view()).astype(np.float32)
        matte = guided_filter(_grey(image), cv2.resize(mask, image.shape[1::-1]), radius=len(image) // 48, smoothness=3e-4)
        return np.asarray(np.clip((matte - 0.1) / 0.8, 0, 1), np.float32)  # the filter leaves a haze at both ends


def polygon(landmarks: FloatArray, ring: tuple[int, ...], size: int) -> Map:
    """Coverage in [0, 1] (size x size) of the polygon through the landmarks ``ring`` (pixels): exact along :data:`LINES` lines a pixel.

    OpenCV's anti-aliased fill is no coverage: it draws the outline on top, which widens eyes and lips by more than half a pixel.
    """
    result = np.zeros((size, size), np.float32)
    corners = np.ascontiguousarray(landmarks[list(ring), :2], np.float64)
    rows, columns = _bounds(corners, size)
    steps = np.zeros((rows.stop - rows.start, size + 2))
    add_polygon(steps, corners, LINES, rows.start)
    coverage(result, steps, rows.start, columns.start, columns.stop)
    return result


def _bounds(corners: FloatArray, size: int) -> tuple[slice, slice]:
    """The rows and columns of a picture that a polygon (n x 2, pixels) touches."""
    (left, top), (right, bottom) = (np.clip(one, 0, size).astype(int) for one in (np.floor(corners.min(0)), np.ceil(corners.max(0))))
    return slice(int(top), int(bottom)), slice(int(left), int(right))


def connected(mask: MASK, seed: MASK) -> MASK:
    """The connected parts of ``mask`` that touch ``seed``: other people in the picture are background."""
    count, parts = cv2.connectedComponents(mask.astype(np.uint8))
    kept = np.zeros(count, bool)
    kept[parts[seed & mask]] = True
    return kept[parts]


def guided_filter(guide: Map, image: Map, radius: int, smoothness: float) -> Map:
    """Smooth ``image`` (h w) along the edges of ``guide`` (h w), both about [0, 1] (He et al., "Guided image filtering", 2013)."""
    return guided_filters(guide, [image], radius, smoothness)[0]


def guided_filters(guide: Map, images: Sequence[Map] | Map, radius: int, smoothness: float) -> list[Map]:
    """As :func:`guided_filter`, for several images along one guide."""

    def mean(values: Map) -> Map:
        return np.asarray(cv2.blur(values, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT), np.float32)

    guide_mean = mean(guide)
    weight = 1 / (mean(guide * guide) - guide_mean * guide_mean + np.float32(smoothness))
    found = []
    for image in images:
        image_mean = mean(image)
        slope = (mean(guide * image) - guide_mean * image_mean) * weight
        found.append(mean(slope) * guide + mean(image_mean - slope * guide_mean))
    return found


def _grey(image: ByteImage) -> Map:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) / np.float32(255), np.float32)


def head_plane(crop: FaceCrop) -> FloatArray:
    """2 x 3: a pixel (x, y, 1) to its place in the plane of the face, from the middle between chin and forehead: cm to the left and up."""
    scale = crop.intrinsics[0, 0] / crop.head_to_camera[2, 3]  # pixels for a cm, near the head
    up = crop.head_to_camera[:2, 1] * scale
    up = up / max(float(np.linalg.norm(up)), 1e-9)
    axes = np.array([[-up[1], up[0]], up]) / scale
    middle = (crop.landmarks[regions.CHIN, :2] + crop.landmarks[regions.FOREHEAD, :2]) / 2
    return np.column_stack([axes, -axes @ middle])


def _person_regions(crop: FaceCrop, person: MASK, face: MASK) -> npt.NDArray[np.uint8]:
    """Background, face skin, hair, ears, neck and torso."""
    labels = np.zeros(person.shape, np.uint8)
    radius = max(len(labels) // 64, 2)
    part = around(person | face, 2 * radius + 1)  # as far as the guided filter sees
    top, left = part[0].start, part[1].start
    plane = head_plane(crop)
    half = extent(face, plane[1, 0], plane[1, 1]) / 2 if face.any() else 8.0  # of the face's height, cm
    image, person, face = crop.image[part], person[part], face[part]
    lab = cv2.cvtColor(cv2.bilateralFilter(np.ascontiguousarray(image), 5, 30, 3), cv2.COLOR_RGB2LAB)
    seeds = np.empty(person.shape, np.uint8)
    find_seeds(seeds, person, face, top, left, plane, half)
    planes = np.ascontiguousarray(lab.reshape(-1, 3).T, np.float32)
    scores = np.stack([_log_likelihood(planes, lab[seeds == seed]).reshape(seeds.shape) for seed in (1, 2, 3)])
    add_priors(scores, top, left, plane, half, -12.0)
    names = np.array([Region.HAIR, Region.SKIN, Region.TORSO, Region.LEFT_EAR, Region.RIGHT_EAR, Region.NECK], np.uint8)
    smooth = np.stack(guided_filters(_grey(image), scores, radius, 1e-3))
    name_regions(labels[part], smooth, person, face, top, left, plane, half, names)
    return labels


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
    thin = np.ascontiguousarray(samples[:: max(len(samples) // 2000, 1)], np.float32)
    labels = np.zeros((len(thin), 1), np.int32)
    return np.asarray(cv2.kmeans(thin, count, labels, criteria, 1, cv2.KMEANS_PP_CENTERS)[2], np.float32)
