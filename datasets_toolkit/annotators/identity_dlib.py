"""Who is seen: the descriptor of dlib's face recognition network, whose weights everybody may use."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datasets_toolkit.annotators.base import FaceCrop, IdentityAnnotator, Map
from datasets_toolkit.annotators.weights import NetworkAnnotator, Source, fingerprint
from datasets_toolkit.errors import AssetError
from datasets_toolkit.schema import ByteImage, FloatArray

NAME = "dlib_face_recognition_resnet_model_v1.dat"
SHA256 = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"
"""Of the only file that is read: dlib's format is parsed by compiled code, which is shown nothing else."""
PACKAGE = "face_recognition_models"
"""Carries the file; it is never imported, as it needs ``pkg_resources``, which newer environments lack."""
INSTALL = "pip install 'mggtalk[identity]'"
SIDE, MARGIN = 150, 0.25
_MEAN = [[0.8595675, 0.2134982], [0.6460605, 0.2289674], [0.1205751, 0.2137275], [0.3340851, 0.2290642], [0.4901123, 0.6277975]]
TEMPLATE = SIDE * (np.array(_MEAN) + MARGIN) / (1 + 2 * MARGIN)
"""Where the five points lie in the network's input (pixel indices, from 0): dlib's mean face in the unit square, and a margin around it."""
POINTS = (263, 362, 33, 133, 2)
"""Landmarks that a face is aligned by: outer and inner corner of the left eye, of the right eye; base of the nose."""


class DlibIdentity(NetworkAnnotator, IdentityAnnotator):
    """dlib's ResNet-29 for faces (D. King, github.com/davisking/dlib-models) on the face aligned by five points, which the landmarks give.

    Args:
        weights: ``dlib_face_recognition_resnet_model_v1.dat``; by default that of the package ``face_recognition_models``.
        licence: of these weights; see :class:`NetworkAnnotator`.

    Raises:
        AssetError: the file is missing or another one, or dlib is not installed.
    """

    version = 1
    numbers = 128
    source: ClassVar[Source] = Source(
        f"{NAME} ({INSTALL} brings it)",
        "https://github.com/davisking/dlib-models",
        "CC0-1.0, public domain as its author says; learned in part from VGG-Face and FaceScrub",
    )

    def __init__(self, weights: str | Path | None = None, *, licence: str = "") -> None:
        super().__init__(packaged_weights() if weights is None else weights, licence=licence)

    def _look(self) -> None:
        if not self.weights.is_file() or self.weights.suffix.lower() != ".dat":
            raise self.refusal("is not a .dat file")

    def _load(self) -> Any:
        if (found := fingerprint(self.weights)) != SHA256:
            raise self.refusal(f"cannot be loaded (its SHA-256 is {found[:12]}..., not {SHA256[:12]}...)")
        return _dlib().face_recognition_model_v1(str(self.weights))

    def __call__(self, crop: FaceCrop) -> Map:
        """A unit vector (128)."""
        vector = self.descriptor(crop)
        return np.asarray(vector / np.linalg.norm(vector), np.float32)

    def descriptor(self, crop: FaceCrop) -> Map:
        """The network's own 128 numbers. Made for Euclidean distance: less than 0.6 was trained to mean the same person."""
        vector = np.array(self.network().compute_face_descriptor(align_face(crop)), np.float32)
        if not np.isfinite(vector).all() or not vector.any():
            raise self.refusal("gives no usable descriptor (its numbers are not finite or all 0)")
        return vector


def packaged_weights() -> Path:
    """The file in the installed package ``face_recognition_models``.

    Raises:
        AssetError: the package is not installed, or lacks the file.
    """
    try:
        found = [Path(str(file.locate())) for file in files(PACKAGE) or () if file.name == NAME]
    except PackageNotFoundError:
        found = []
    if not found:
        raise AssetError(f"{NAME}: the package {PACKAGE} that carries it is not installed; install it with: {INSTALL}")
    return found[0]


def installed() -> bool:
    """Whether dlib and the package with the weights are here."""
    try:
        return find_spec("dlib") is not None and packaged_weights().is_file()
    except AssetError:
        return False


def five_points(landmarks: FloatArray) -> FloatArray:
    """The corners of both eyes and the base of the nose (5 x 2), in the order of dlib's face model, of landmarks (478 x 3)."""
    return np.asarray(landmarks[list(POINTS), :2])


def align_face(crop: FaceCrop) -> ByteImage:
    """The face of a crop (150 x 150 x 3, RGB) as ``dlib.get_face_chip`` cuts it out, but from points that are not rounded to pixels.

    Raises:
        AssetError: dlib is not installed.
    """
    dlib = _dlib()
    chip, image = (dlib.dpoints([dlib.dpoint(*point) for point in points]) for points in (TEMPLATE, five_points(crop.landmarks) - 0.5))
    details = dlib.chip_details(chip, image, dlib.chip_dims(SIDE, SIDE))
    return np.asarray(dlib.extract_image_chip(np.ascontiguousarray(crop.image), details), np.uint8)


def _dlib() -> Any:
    try:
        import dlib
    except ImportError as error:
        raise AssetError(f"DlibIdentity: dlib is missing ({error}); install it with: {INSTALL}") from error
    return dlib
