"""dlib's recogniser against dlib's own alignment, detector and predictor of five points."""

from __future__ import annotations

import builtins
import importlib.metadata
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.annotators import identity_dlib as module
from datasets_toolkit.annotators.identity_dlib import INSTALL, NAME, DlibIdentity, align_face, five_points, installed, packaged_weights
from datasets_toolkit.annotators.portrait import crop_face
from datasets_toolkit.errors import AssetError
from datasets_toolkit.schema import ByteImage, Face

present = pytest.mark.skipif(not installed(), reason=f"dlib's recogniser is not installed: {INSTALL}")


@pytest.fixture(scope="module")
def crop(astronaut: ByteImage, astronaut_face: Face) -> FaceCrop:
    return crop_face(astronaut, astronaut_face, 256)


@pytest.fixture(scope="module")
def recogniser() -> Iterator[DlibIdentity]:
    with DlibIdentity() as made:
        yield made


def turned(crop: FaceCrop, degrees: float, scale: float) -> FaceCrop:
    """Picture and landmarks, turned and scaled around the middle."""
    matrix = cv2.getRotationMatrix2D((127.5, 127.5), degrees, scale)
    landmarks = crop.landmarks.copy()
    landmarks[:, :2] = (crop.landmarks[:, :2] - 0.5) @ matrix[:, :2].T + matrix[:, 2] + 0.5
    image = np.asarray(cv2.warpAffine(crop.image, matrix, (256, 256), flags=cv2.INTER_CUBIC), np.uint8)
    return replace(crop, image=image, landmarks=landmarks)


@present
@pytest.mark.parametrize("shift", [0, -60])
def test_faces_are_cut_out_as_dlib_does_it(crop: FaceCrop, shift: int) -> None:
    """Of points that are whole pixels, which dlib's own function takes; also of a face that leaves the crop."""
    import dlib

    landmarks = crop.landmarks.copy()
    landmarks[:, :2] = np.floor(crop.landmarks[:, :2]) + 0.5 + [shift, 0]
    points = [dlib.point(*map(int, point - 0.5)) for point in five_points(landmarks)]
    theirs = dlib.get_face_chip(crop.image, dlib.full_object_detection(dlib.rectangle(0, 0, 255, 255), points))
    difference = np.abs(align_face(replace(crop, landmarks=landmarks)).astype(int) - theirs)
    assert difference.max() <= 1 and difference.mean() < 1e-3  # of 255: the mean face is given here in seven digits


@present
def test_landmarks_align_as_the_detector_and_predictor_of_dlib(crop: FaceCrop, recogniser: DlibIdentity) -> None:
    import dlib

    (box,) = dlib.get_frontal_face_detector()(crop.image, 1)
    shape = dlib.shape_predictor(str(packaged_weights().with_name("shape_predictor_5_face_landmarks.dat")))(crop.image, box)
    theirs = np.array([[part.x, part.y] for part in shape.parts()]) + 0.5
    ours = five_points(crop.landmarks)
    assert np.linalg.norm(ours - theirs, axis=1).max() < 0.06 * np.linalg.norm(ours[0] - ours[2])
    network = dlib.face_recognition_model_v1(str(packaged_weights()))
    wanted = np.array(network.compute_face_descriptor(dlib.get_face_chip(crop.image, shape)))
    assert np.linalg.norm(recogniser.descriptor(crop) - wanted) < 0.2


@present
def test_a_descriptor_follows_the_face_and_not_its_place(crop: FaceCrop, recogniser: DlibIdentity) -> None:
    def distance(other: FaceCrop) -> float:
        return float(np.linalg.norm(recogniser.descriptor(crop) - recogniser.descriptor(other)))

    upside_down = replace(crop, image=np.ascontiguousarray(crop.image[::-1]))
    assert distance(crop) == 0
    assert distance(turned(crop, 12, 0.9)) < 0.2
    assert distance(upside_down) > 0.6
    assert 1 < np.linalg.norm(recogniser.descriptor(crop)) < 2  # not a unit vector: distances mean something


@present
def test_another_file_is_never_parsed(crop: FaceCrop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / NAME
    other.write_bytes(b"a" + packaged_weights().read_bytes()[1:])
    monkeypatch.setattr(module, "_dlib", lambda: pytest.fail("shown to dlib"))
    with pytest.raises(AssetError, match=r"cannot be loaded \(its SHA-256 is .*, not 55533b28a958\.\.\.\); give dlib_face"):
        DlibIdentity(other)(crop)


@present
def test_the_package_of_the_weights_is_not_imported() -> None:
    assert packaged_weights().name == NAME
    assert "face_recognition_models" not in sys.modules


def test_what_is_missing_is_told(crop: FaceCrop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name == "dlib":
            raise ImportError("No module named 'dlib'")
        return usual(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(AssetError, match=r"dlib is missing .*pip install 'mggtalk\[identity\]'"):
        align_face(crop)

    def unknown(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module, "files", unknown)
    assert not installed()
    with pytest.raises(AssetError, match=r"face_recognition_models .*pip install 'mggtalk\[identity\]'"):
        DlibIdentity()
    with pytest.raises(AssetError, match="no such weights"):
        DlibIdentity(tmp_path / NAME)
