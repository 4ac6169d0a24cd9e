"""Parsing without a parsing network: a person matte, polygons through the landmarks, and colour models for hair, skin and clothes.

Face parts come from landmark polygons. The rest of the person (hair, ears, neck, torso) is told apart by colours learned from places where
the anatomy leaves no doubt (cheeks are skin, what lies just above the forehead is hair, what lies far below the chin is torso), by where a
pixel lies relative to the head, and by filtering the class scores along image edges (Hosni et al., "Fast cost-volume filtering", 2013).
"""

from __future__ import annotations

import weakref
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from datasets_toolkit import face_regions as regions
from datasets_toolkit.annotators.base import FaceCrop, Map, Parsing, ParsingAnnotator
from datasets_toolkit.assets import ASSETS, locate
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

    def __init__(self, assets: Path | None = None) -> None:
        from mediapipe.tasks.python import BaseOptions, vision  # heavy, and needed nowhere else

        options = vision.ImageSegmenterOptions(
            base_options=BaseOptions(model_asset_buffer=locate(SEGMENTER, folder=assets).read_bytes()), output_confidence_masks=True
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
            labels[polygon(crop.landmarks, ring, len(matte)) > 0.5] = region
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
    corners = landmarks[list(ring), :2]
    steps = np.zeros((size, size + 2))  # what each edge adds to all pixels right of it
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        low, high = np.clip(np.ceil(np.array([min(y0, y1), max(y0, y1)]) * LINES - 0.5), 0, size * LINES).astype(int)
        lines = np.arange(low, high)
        x = np.clip(x0 + ((lines + 0.5) / LINES - y0) * (x1 - x0) / ((y1 - y0) or 1), 0, size)
        column, sign = np.floor(x).astype(int), np.sign(y1 - y0) / LINES
        np.add.at(steps, (lines // LINES, column), sign * (column + 1 - x))
        np.add.at(steps, (lines // LINES, column + 1), sign * (x - column))
    return np.asarray(np.abs(steps.cumsum(1)[:, :size]).clip(0, 1), np.float32)


def connected(mask: MASK, seed: MASK) -> MASK:
    """The connected parts of ``mask`` that touch ``seed``: other people in the picture are background."""
    _, parts = cv2.connectedComponents(mask.astype(np.uint8))
    return np.asarray(np.isin(parts, np.unique(parts[seed & mask])) & mask)


def guided_filter(guide: Map, image: Map, radius: int, smoothness: float) -> Map:
    """Smooth ``image`` (h w) along the edges of ``guide`` (h w), both about [0, 1] (He et al., "Guided image filtering", 2013)."""

    def mean(values: Map) -> Map:
        return np.asarray(cv2.blur(values, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT), np.float32)

    guide_mean, image_mean = mean(guide), mean(image)
    covariance, variance = mean(guide * image) - guide_mean * image_mean, mean(guide * guide) - guide_mean * guide_mean
    slope = np.asarray(covariance / (variance + smoothness), np.float32)
    offset = np.asarray(image_mean - slope * guide_mean, np.float32)
    return np.asarray(mean(slope) * guide + mean(offset), np.float32)


def _grey(image: ByteImage) -> Map:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) / np.float32(255), np.float32)


def head_coordinates(crop: FaceCrop) -> tuple[FloatArray, FloatArray]:
    """Each pixel's place in the plane of the face, from the middle between chin and forehead: cm to the person's left and up (s x s)."""
    size = len(crop.image)
    axes = crop.head_to_camera[:2, :2] * crop.intrinsics[0, 0] / crop.head_to_camera[2, 3]  # pixels for a cm, near the head
    up = axes[:, 1] / max(float(np.linalg.norm(axes[:, 1])), 1e-9)
    side = np.array([-up[1], up[0]])
    scale = crop.intrinsics[0, 0] / crop.head_to_camera[2, 3]
    chin, top = crop.landmarks[regions.CHIN, :2], crop.landmarks[regions.FOREHEAD, :2]
    middle = (chin + top) / 2
    y, x = np.mgrid[:size, :size] + 0.5
    offset = np.stack([x, y], -1) - middle
    return offset @ side / scale, offset @ up / scale


def _person_regions(crop: FaceCrop, person: MASK, face: MASK) -> npt.NDArray[np.uint8]:
    """Background, face skin, hair, ears, neck and torso."""
    side, up = head_coordinates(crop)
    half = np.ptp(up[face]) / 2 if face.any() else 8.0
    lab = np.asarray(cv2.cvtColor(cv2.bilateralFilter(crop.image, 5, 30, 3), cv2.COLOR_RGB2LAB), np.float32)
    outside = person & ~face
    scores = _class_scores(lab, side, up, half, outside, face)
    grey = _grey(crop.image)
    radius = max(len(grey) // 64, 2)
    best = np.argmax([guided_filter(grey, score, radius, 1e-3) for score in scores], 0)
    labels = np.zeros(person.shape, np.uint8)
    ear = (np.abs(side) > 6) & (up > -0.6 * half) & (up < 0.5 * half)
    skin = np.where(ear, np.where(side > 0, Region.LEFT_EAR, Region.RIGHT_EAR), np.where(up < -0.35 * half, Region.NECK, Region.SKIN))
    labels[outside] = np.choose(best, [np.full(person.shape, Region.HAIR), skin, np.full(person.shape, Region.TORSO)])[outside]
    labels[face] = Region.SKIN
    return labels


def _class_scores(lab: Map, side: FloatArray, up: FloatArray, half: float, outside: MASK, face: MASK) -> list[Map]:
    """Log scores of hair, skin and torso (each s x s, clipped to a range in which filtering them makes sense)."""
    hair_seed = outside & (up > 0.6 * half) & (np.hypot(side, up) < 2.0 * half)
    torso_seed = outside & (up < -1.75 * half) & (np.abs(side) > 0.3 * half)
    cheek = face & (np.abs(up) < 0.6 * half)
    below, beside = _ramp(-up, 1.0 * half, 2.0 * half), _ramp(np.abs(side), 0.55 * half, 1.3 * half)
    prior_torso = 9 * below + 4 * beside * _ramp(-up, 0.6 * half, 1.1 * half) - 14 * _ramp(up, -0.8 * half, -0.4 * half)
    prior_hair = 8 * _ramp(up, 0.3 * half, 0.9 * half) - 4 * _ramp(-up, 1.2 * half, 2.4 * half)
    prior_skin = -6 * beside - 4 * _ramp(-up, 1.6 * half, 2.4 * half) + 2 * (1 - beside) * _ramp(-up, 0.8 * half, 1.0 * half)
    colours = [_log_likelihood(lab, seed) for seed in (hair_seed, cheek, torso_seed)]
    scores = [colour + prior for colour, prior in zip(colours, (prior_hair, prior_skin, prior_torso), strict=True)]
    top = np.maximum.reduce(scores)
    return [np.maximum(score - top, -12).astype(np.float32) for score in scores]


def _ramp(values: FloatArray, low: float, high: float) -> FloatArray:
    """0 below ``low``, 1 above ``high``, linear between."""
    return np.asarray(np.clip((values - low) / (high - low), 0, 1))


def _log_likelihood(lab: Map, seed: MASK) -> FloatArray:
    """Log density (s x s, floored) of a broad Gaussian mixture of one colour class; flat where too few seeds show the class."""
    if seed.sum() < 40:
        return np.full(lab.shape[:2], -9.0)
    samples = lab[seed]
    centres = _clusters(samples, 3)
    nearest = ((samples[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
    density = np.full(lab.shape[:2], 1e-6)
    for index, centre in enumerate(centres):
        members = samples[nearest == index]
        if len(members) >= 10:
            spread = np.cov(members.T) + np.diag([60.0, 12.0, 12.0])
            offset = lab - centre
            power = np.einsum("hwi,ij,hwj->hw", offset, np.linalg.inv(spread), offset)
            density += len(members) / len(samples) * np.exp(-0.5 * power) / np.sqrt(np.linalg.det(spread))
    return np.asarray(np.log(density))


def _clusters(samples: Map, count: int) -> Map:
    """k-means centres with a fixed seed."""
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    thin = np.ascontiguousarray(samples[:: max(len(samples) // 2000, 1)])
    labels = np.zeros((len(thin), 1), np.int32)
    return np.asarray(cv2.kmeans(thin, count, labels, criteria, 1, cv2.KMEANS_PP_CENTERS)[2], np.float32)
