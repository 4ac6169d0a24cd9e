"""Who is seen: the embedding of an ArcFace network in an ONNX file, such as those of InsightFace's model packs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np

from datasets_toolkit.annotators.base import FaceCrop, IdentityAnnotator, Map
from datasets_toolkit.annotators.onnx_network import OnnxNetwork, normalised
from datasets_toolkit.annotators.weights import Source
from datasets_toolkit.faces import face_regions as regions
from datasets_toolkit.schema import FloatArray

SIDE = 112
TEMPLATE = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
"""Where right eye, left eye, tip of the nose and right and left corner of the mouth lie in the network's input (pixel indices, from 0)."""
_NOSE_TIP, _RIGHT_CORNER, _LEFT_CORNER = 1, 61, 291


class ArcFaceIdentity(OnnxNetwork, IdentityAnnotator):
    """ArcFace (Deng et al., CVPR 2019) on the face aligned by five points, which the landmarks give.

    Args:
        weights: the .onnx file (1 x 3 x 112 x 112 in, 1 x 512 out), such as ``w600k_r50.onnx`` of the pack buffalo_l.
        mean: subtracted from the RGB values (0 to 255) of its input.
        deviation: by which they are divided then; 0 and 1 for networks that do this themselves (those converted from MXNet).
        threads: of onnxruntime.
        device: "cpu" or "cuda".
        licence: of these weights; see :class:`NetworkAnnotator`.

    Raises:
        AssetError: the file is missing, no ONNX network, or one with other inputs or outputs.
    """

    version = 1
    source: ClassVar[Source] = Source(
        "an ArcFace network as an .onnx file, such as w600k_r50.onnx of InsightFace's model pack buffalo_l",
        "https://github.com/deepinsight/insightface/tree/master/model_zoo",
        "InsightFace model packs: non-commercial research only",
    )

    def __init__(
        self,
        weights: str | Path,
        *,
        mean: float = 127.5,
        deviation: float = 127.5,
        threads: int = 1,
        device: str = "cpu",
        licence: str = "",
    ) -> None:
        self.mean, self.deviation = mean, deviation
        super().__init__(weights, threads=threads, device=device, licence=licence)

    def _check(self, session: Any) -> None:
        super()._check(session)
        given, wanted = session.get_outputs()[0].shape, session.get_inputs()[0].shape
        if len(given) != 2 or given[1] != 512 or any(isinstance(side, int) and side != SIDE for side in wanted[2:]):
            raise ValueError(f"it makes {given} of {wanted}, not 512 numbers of {SIDE} x {SIDE} pixels")

    def __call__(self, crop: FaceCrop) -> Map:
        """A unit vector (512)."""
        face = align_face(crop)
        vector = self.run(normalised(face, (self.mean,) * 3, (self.deviation,) * 3))[0].astype(np.float64)
        length = float(np.linalg.norm(vector))
        if not np.isfinite(length) or length < 1e-12:
            raise self.refusal("gives no usable embedding (its numbers are not finite or all 0)")
        return np.asarray(vector / length, np.float32)


def five_points(landmarks: FloatArray) -> FloatArray:
    """Right eye, left eye, tip of the nose, right and left corner of the mouth (5 x 2) of landmarks (478 x 3)."""
    points = landmarks[:, :2]
    eyes = [points[ring[0]] for ring in (regions.RIGHT_IRIS, regions.LEFT_IRIS)]
    return np.stack([*eyes, points[_NOSE_TIP], points[_RIGHT_CORNER], points[_LEFT_CORNER]])


def similarity(points: FloatArray, target: FloatArray) -> FloatArray:
    """The 2 x 3 matrix of the similarity without mirroring that best takes ``points`` to ``target`` (both n x 2), by least squares.

    Umeyama, TPAMI 1991; in the plane the rotation and scale are one complex factor, with a closed form.
    """
    a, b = (values[:, 0] + 1j * values[:, 1] for values in (points, target))
    centred = a - a.mean()
    factor = np.vdot(centred, b - b.mean()) / np.vdot(centred, centred).real
    shift = b.mean() - factor * a.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def align_face(crop: FaceCrop) -> np.ndarray:
    """The face of a crop (112 x 112 x 3, RGB) where :data:`TEMPLATE` wants it; black beyond the crop.

    Bilinear and without smoothing before, as these networks are trained and used.
    """
    matrix = similarity(five_points(crop.landmarks) - 0.5, TEMPLATE)  # both as indices of pixels, whose centres are integers
    return np.asarray(cv2.warpAffine(crop.image, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderValue=0), np.uint8)
