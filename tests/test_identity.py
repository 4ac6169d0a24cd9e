"""Alignment and embeddings of faces against least squares and the package the networks come from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import network_weights as made
import numpy as np
import pytest
from annotator_scenes import SMALL, small_crop
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.annotators.identity_insightface import TEMPLATE, ArcFaceIdentity, align_face, five_points, similarity
from datasets_toolkit.errors import AssetError
from datasets_toolkit.schema import ByteImage, Face

for package in ("onnx", "onnxruntime", "transformers", "diffusers"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def crop() -> FaceCrop:
    return small_crop()


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_the_similarity_is_that_of_least_squares(seed: int) -> None:
    generator = np.random.default_rng(seed)
    points, target = generator.normal(size=(5, 2)) * 40, generator.normal(size=(5, 2)) * 40
    rows = np.concatenate([[[x, -y, 1, 0], [y, x, 0, 1]] for x, y in points])  # of the unknowns a, b and the shift
    a, b, c, d = np.linalg.lstsq(rows, target.reshape(-1), rcond=None)[0]
    np.testing.assert_allclose(similarity(points, target), [[a, -b, c], [b, a, d]], atol=1e-9)


def test_five_points_are_in_the_order_of_the_template(crop: FaceCrop) -> None:
    points = five_points(crop.landmarks)
    matrix = similarity(points, TEMPLATE)
    placed = points @ matrix[:, :2].T + matrix[:, 2]
    assert np.abs(placed - TEMPLATE).max() < 4  # pixels of 112: this is the mean face, the template another one
    assert points[0, 0] < points[1, 0]
    assert points[3, 0] < points[4, 0]


@pytest.mark.filterwarnings("ignore:`estimate` is deprecated")
def test_faces_are_aligned_as_the_networks_own_package_does(astronaut: ByteImage, astronaut_face: Face) -> None:
    face_align = pytest.importorskip("insightface.utils.face_align")
    from datasets_toolkit.annotators.portrait import crop_face

    crop = crop_face(astronaut, astronaut_face, 256)
    wanted = face_align.norm_crop(crop.image, five_points(crop.landmarks).astype(np.float32) - 0.5, 112)
    assert np.abs(align_face(crop).astype(int) - wanted.astype(int)).max() <= 1


def test_embeddings_are_those_of_the_networks_own_package(crop: FaceCrop, tmp_path: Path) -> None:
    arcface_onnx = pytest.importorskip("insightface.model_zoo.arcface_onnx")
    arguments = made.arcface(tmp_path)
    noisy = FaceCrop(**{**vars(crop), "image": np.random.default_rng(0).integers(0, 256, (SMALL, SMALL, 3)).astype(np.uint8)})
    theirs = arcface_onnx.ArcFaceONNX(str(arguments["weights"]))
    theirs.prepare(-1)
    wanted = theirs.get_feat(np.ascontiguousarray(align_face(noisy)[..., ::-1])).reshape(-1)  # takes BGR
    np.testing.assert_allclose(ArcFaceIdentity(**arguments)(noisy), wanted / np.linalg.norm(wanted), atol=1e-5)


def test_an_embedding_does_not_follow_the_pose_of_the_crop(astronaut: ByteImage, astronaut_face: Face, tmp_path: Path) -> None:
    from datasets_toolkit.annotators.portrait import crop_face

    annotator = ArcFaceIdentity(**made.arcface(tmp_path))
    crop = crop_face(astronaut, astronaut_face, 256)
    turned = cv2.getRotationMatrix2D((127.5, 127.5), 12, 0.9)
    landmarks = crop.landmarks.copy()
    landmarks[:, :2] = (crop.landmarks[:, :2] - 0.5) @ turned[:, :2].T + turned[:, 2] + 0.5
    other = FaceCrop(**{**vars(crop), "image": cv2.warpAffine(crop.image, turned, (256, 256)), "landmarks": landmarks})
    mirrored = FaceCrop(**{**vars(crop), "image": np.ascontiguousarray(crop.image[::-1])})
    assert annotator(crop) @ annotator(other) > 0.995
    assert annotator(crop) @ annotator(mirrored) < 0.98


def test_a_network_that_says_nothing_is_refused(crop: FaceCrop, tmp_path: Path) -> None:
    black = FaceCrop(**{**vars(crop), "image": np.zeros((SMALL, SMALL, 3), np.uint8)})
    with pytest.raises(AssetError, match="no usable embedding"):
        ArcFaceIdentity(**made.arcface(tmp_path), mean=0.0, deviation=1.0)(black)


REPORT = """
import os, sys
from datasets_toolkit.annotators.identity_insightface import ArcFaceIdentity

ArcFaceIdentity(sys.argv[1])._load()
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
"""


def test_running_a_network_reports_nothing_home(tmp_path: Path) -> None:
    """From release 1.24 on onnxruntime keeps a device id in the user's cache and sends events, unless it is told not to."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    subprocess.run([sys.executable, "-c", REPORT, str(made.arcface(tmp_path)["weights"])], check=True, env=environment)
    assert not [path for path in home.rglob("*") if "Microsoft" in path.parts]
