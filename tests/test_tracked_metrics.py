"""Faces read in pictures, on a photograph and on made heads whose pose is known, and the embeddings that tell people apart."""

from __future__ import annotations

import copy
import hashlib
import os
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import cv2
import network_weights as made
import numpy as np
import pytest
import torch
import torch_weights
from face_scenes import moved, pasted, shrunk
from scipy.spatial.distance import cosine, euclidean
from scipy.spatial.transform import Rotation
from torch import Tensor

from datasets_toolkit.annotators.identity_insightface import ArcFaceIdentity
from datasets_toolkit.annotators.portrait import crop_face
from datasets_toolkit.errors import AssetError
from datasets_toolkit.faces.detection import FaceTracker
from datasets_toolkit.faces.head_pose import canonical_face
from datasets_toolkit.schema import BLENDSHAPES, ByteImage, Face, FloatArray
from datasets_toolkit.synthetic import Picture, make_person, render
from datasets_toolkit.synthetic.motion import framed_shift, poses, rotation
from mggtalk.geometry.face_model import FaceModel
from mggtalk.metrics import aed, akd, apd, csim, id_distance
from mggtalk.metrics.identity import FaceEmbedder, IResNetIdentity
from mggtalk.metrics.states import AED, AKD, APD, CSIM, FoundShare
from mggtalk.metrics.tracked import FRAME, FaceReader, ReadFaces, posed_crop, see
from mggtalk.networks.iresnet import IResNet
from mggtalk.networks.weights import WeightsError
from mggtalk.types import Camera, Frame

SIZE = 256
HEAD_CAMERA = np.array([[3.0 * SIZE, 0, SIZE / 2], [0, 3.0 * SIZE, SIZE / 2], [0, 0, 1]])


@pytest.fixture(scope="module")
def reader(tracker: FaceTracker) -> FaceReader:
    return FaceReader(tracker)


def batch(*images: ByteImage) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def cameras(count: int, intrinsics: FloatArray = HEAD_CAMERA) -> Tensor:
    return torch.from_numpy(intrinsics).float().expand(count, 3, 3)


def head(angles: tuple[float, float, float] = (0, 0, 0), jaw: float = 0.0, seed: int = 3) -> Picture:
    """A made person before :data:`HEAD_CAMERA`, turned by yaw, pitch and roll (degrees)."""
    person, scores = make_person(seed), np.zeros(len(BLENDSHAPES))
    scores[BLENDSHAPES.index("jawOpen")] = jaw
    place = framed_shift(person, rotation(0.0, 0.0, 0.0), np.zeros(len(BLENDSHAPES)))
    pose = poses(np.array([angles, angles], float), np.zeros((2, 3)), place)[0]
    return render(person, scores, pose, HEAD_CAMERA, SIZE)


def frame_of(pictures: Tensor, crops: list[Face], reader: FaceReader) -> Frame:
    """A batch of targets as a data set has them: the faces' meshes under their poses."""
    posed = [posed_crop(np.zeros((SIZE, SIZE, 3), np.uint8), face, HEAD_CAMERA) for face in crops]
    count, flat = len(pictures), torch.zeros(len(pictures), 1, SIZE, SIZE)
    mesh, matrix = (torch.from_numpy(np.stack([getattr(crop, name) for crop in posed])).float() for name in ("mesh", "head_to_camera"))
    return Frame(
        image=pictures.float() / 255,
        parsing=torch.zeros(count, SIZE, SIZE, dtype=torch.uint8),
        matte=flat,
        depth=flat,
        normals=flat.expand(-1, 3, -1, -1),
        camera=Camera(intrinsics=cameras(count), head_to_camera=matrix),
        mesh=mesh,
        expression=torch.zeros(count, reader.face_model.expression_size),
    )


def test_the_record_is_what_the_tracker_sees(reader: FaceReader, astronaut: ByteImage, astronaut_face: Face) -> None:
    read = reader.read(batch(astronaut))
    np.testing.assert_allclose(read.landmarks[0], astronaut_face.landmarks[:, :2], atol=1e-4)  # it has 512 pixels a side
    crop = crop_face(astronaut, astronaut_face, 128)  # as inference does: clip camera of this face
    mesh, blendshapes = torch.from_numpy(crop.mesh).float(), torch.from_numpy(crop.blendshapes).float()
    torch.testing.assert_close(read.expression[0], FaceModel().split(mesh, blendshapes)[1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(read.blendshapes[0], astronaut_face.blendshapes, atol=1e-6)
    turned = Rotation.from_matrix(np.diag([1.0, -1, -1]) @ crop.head_to_camera[:3, :3]).as_euler("YXZ", degrees=True)
    np.testing.assert_allclose(read.pose[0], turned * [1, -1, -1], atol=1e-3)
    assert read.found.tolist() == [True] and read.landmarks.dtype == torch.float32


def test_one_picture_read_twice_is_at_no_distance(reader: FaceReader, astronaut: ByteImage) -> None:
    first, second = reader.read(batch(astronaut)), reader.read(batch(astronaut).float() / 255)
    for metric, name in ((akd, "landmarks"), (aed, "expression"), (apd, "pose")):
        assert metric(getattr(first, name), getattr(second, name)).item() == 0


def test_pictures_are_read_as_they_are_shown(reader: FaceReader, astronaut: ByteImage) -> None:
    """Rounded to bytes, as frames are when they are written; the crop is the picture itself."""
    for shift in (0.4, -0.4):
        (crop,) = reader.crops((batch(astronaut) + shift) / 255)
        assert crop is not None
        np.testing.assert_array_equal(crop.image, astronaut)
        np.testing.assert_array_equal(crop.source_to_crop, np.eye(3))


def test_a_pair_is_read_in_the_same_place(reader: FaceReader, tracker: FaceTracker) -> None:
    """Equal pictures are at distance 0, which they are not if each is searched for in its own way."""
    pictures = batch(*(head(angles).image for angles in ((0, 0, 0), (15, 0, 0))))
    known = [tracker.faces(image)[0] for image in pictures.permute(0, 2, 3, 1).contiguous().numpy()]
    target = frame_of(pictures, known, reader)
    read, truth = reader.read_pair(target.image, target)
    for name in ("landmarks", "expression", "pose"):
        assert torch.equal(getattr(read, name), getattr(truth, name))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = reader.read_pair(target.image, target)
    assert torch.equal(cast.landmarks, truth.landmarks) and torch.equal(cast.expression, truth.expression)
    alone = reader.read(pictures, cameras(2))
    assert 0 < akd(alone.landmarks, truth.landmarks).max() < 2.5
    other, _ = reader.read_pair(target.image.flip(0), target)
    assert (akd(other.landmarks, truth.landmarks) > 10).all() and (apd(other.pose, truth.pose) > 3).all()


def test_landmarks_are_those_of_a_512_frame(reader: FaceReader, astronaut: ByteImage) -> None:
    whole, half = reader.read(batch(astronaut)), reader.read(batch(shrunk(astronaut, 256)))
    assert akd(whole.landmarks, half.landmarks).item() < 2.0
    assert apd(whole.pose, half.pose).item() < 1.5
    shifted = reader.read(batch(moved(astronaut, 1.0, (12, -5))))
    assert akd(shifted.landmarks, whole.landmarks).item() == pytest.approx(13, abs=0.5)
    truth = head()
    read = reader.read(batch(truth.image), cameras(1))
    assert akd(read.landmarks, torch.from_numpy(truth.landmarks[None, :, :2]).float() * (FRAME / SIZE)).item() < 3.0


def test_a_picture_turned_about_the_principal_point_rolls(reader: FaceReader) -> None:
    """A rotation of the picture is exactly one of the camera: yaw and pitch turn with it, and roll by its angle."""
    image, angle = head((4, 3, 0)).image, 15.0
    matrix = cv2.getRotationMatrix2D((SIZE / 2 - 0.5, SIZE / 2 - 0.5), -angle, 1)  # clockwise, as positive roll
    turned = cv2.warpAffine(image, matrix, (SIZE, SIZE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    before, after = reader.read(batch(image, np.asarray(turned, np.uint8)), cameras(2)).pose.double().numpy()
    rotations = [Rotation.from_euler("YXZ", pose * [1, -1, -1], degrees=True) for pose in (before, after)]
    apart = np.degrees((rotations[1] * rotations[0].inv()).as_rotvec())
    np.testing.assert_allclose(apart, [0, 0, -angle], atol=1.2)
    assert after[2] - before[2] == pytest.approx(angle, abs=1.2)


@pytest.mark.parametrize(("angles", "axis"), [((14, 0, 0), 0), ((-14, 0, 0), 0), ((0, 10, 0), 1), ((0, 0, 12), 2)])
def test_heads_that_turn_differ_by_their_turn(reader: FaceReader, angles: tuple[float, float, float], axis: int) -> None:
    """Yaw and pitch of the made heads are read a little too small, roll is read as it is."""
    still, turned = reader.read(batch(head().image, head(angles).image), cameras(2)).pose
    difference = (turned - still).numpy()
    assert 0.75 < difference[axis] / angles[axis] < 1.1
    assert np.abs(np.delete(difference, axis)).max() < 2.5
    assert apd(turned[None], still[None]).item() == pytest.approx(np.abs(difference).mean(), abs=1e-5)


def test_an_opening_mouth_is_an_expression(reader: FaceReader) -> None:
    closed, opened = reader.read(batch(head().image, head(jaw=0.7).image), cameras(2)).expression
    jaw = BLENDSHAPES.index("jawOpen")
    assert opened[jaw] - closed[jaw] > 0.2
    assert aed(opened[None], closed[None]).item() > 0.01


def test_pictures_without_a_face_hold_zeros(reader: FaceReader, astronaut: ByteImage) -> None:
    grey = np.full_like(astronaut, 128)
    read = reader.read(batch(astronaut, grey))
    assert read.found.tolist() == [True, False]
    for name in ("landmarks", "expression", "pose"):
        values = getattr(read, name)
        assert values[0].any() and not values[1].any()
    nothing = reader.read(batch(astronaut)[:0])
    assert nothing.found.shape == (0,) and nothing.landmarks.shape == (0, 478, 2)
    assert nothing.expression.shape == (0, reader.face_model.expression_size)
    broken = batch(astronaut).float() / 255
    broken[:, :, :40] = torch.nan
    broken[:, :, 40:45] = 7.0
    assert reader.read(broken).found.all(), "what is not shown is black"
    assert not reader.read(torch.full_like(broken, torch.nan)).found.any()


def test_metrics_leave_out_and_tell_what_was_not_found(reader: FaceReader, astronaut: ByteImage) -> None:
    grey = np.full_like(astronaut, 128)
    moved_away = moved(astronaut, 1.0, (6, 8))
    truth = reader.read(batch(astronaut, astronaut, grey, astronaut))
    read = reader.read(batch(moved_away, grey, astronaut, astronaut))
    valid = torch.tensor([True, True, True, False])
    share, distance = FoundShare(), AKD()
    share.update(read.found, valid & truth.found)
    distance.update(read.landmarks, truth.landmarks, valid & truth.found & read.found)
    assert share.compute() == 0.5
    assert float(distance.compute()) == pytest.approx(10, abs=0.5) and int(distance.count) == 1
    for metric, name in ((AED(), "expression"), (APD(), "pose")):
        metric.update(getattr(truth, name), getattr(truth, name), truth.found)
        assert metric.compute() == 0 and int(metric.count) == 3


def test_the_face_near_a_place_is_taken(reader: FaceReader, astronaut: ByteImage) -> None:
    """Two faces: without a place the larger one; with a place the one there; with a wrong place, the larger one again."""
    face = astronaut[20:220, 130:330]
    picture = pasted([(face, 20, 40), (shrunk(face, 140), 300, 150)], 360, 460)
    large = reader.read(batch(picture)).landmarks
    small = (large * (460 / FRAME) - torch.tensor([20.0, 40.0])) * 0.7 + torch.tensor([300.0, 150.0])
    found = reader.read(batch(picture), near=small).landmarks
    assert akd(found, small * (FRAME / 460)).item() < 2.0
    again = reader.read(batch(picture), near=torch.rand(1, 478, 2) * 30)
    assert akd(again.landmarks, large).item() < 2.0


def test_see_follows_and_searches(tracker: FaceTracker, astronaut: ByteImage, astronaut_face: Face) -> None:
    followed = see(tracker, astronaut, astronaut_face.landmarks)
    searched = see(tracker, astronaut, np.array([[0.0, 0], [9, 9], [5, 0]]))
    assert followed is not None and searched is not None
    np.testing.assert_array_equal(searched.landmarks, astronaut_face.landmarks)
    assert 0 < np.abs(followed.landmarks - astronaut_face.landmarks).max() < 8
    assert see(tracker, np.full_like(astronaut, 90)) is None


def test_a_posed_crop_projects_onto_its_landmarks(astronaut: ByteImage, astronaut_face: Face) -> None:
    for intrinsics in (None, np.array([[900.0, 0, 200], [0, 900, 260], [0, 0, 1]])):
        crop = posed_crop(astronaut, astronaut_face, intrinsics)
        points = (crop.mesh @ crop.head_to_camera[:3, :3].T + crop.head_to_camera[:3, 3]) @ crop.intrinsics.T
        np.testing.assert_allclose(points[:, :2] / points[:, 2:], astronaut_face.landmarks[:, :2], atol=1e-6)
        assert np.abs(crop.mesh - canonical_face().vertices).mean() < 0.6


def test_the_tracker_is_made_late_and_closed(astronaut: ByteImage, tmp_path: Path) -> None:
    with FaceReader(assets=tmp_path / "none") as nowhere, pytest.raises(AssetError):
        nowhere.read(batch(astronaut))
    with FaceReader() as own:
        assert own._tracker is None
        pictures = batch(astronaut)
        before = own.read(pictures)
        copies = [copy.deepcopy(own), pickle.loads(pickle.dumps(own))]
        assert all(one._tracker is None for one in copies) and own._tracker is not None
        own.close()
        assert own._tracker is None
        assert torch.equal(own.read(pictures).landmarks, before.landmarks), "made anew"
    assert own._tracker is None


def test_a_shared_tracker_stays_open(tracker: FaceTracker, astronaut: ByteImage) -> None:
    with FaceReader(tracker) as shared:
        assert shared.tracker is tracker
    assert tracker.faces(astronaut)


def test_a_forked_process_is_told(tracker: FaceTracker, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = FaceReader(tracker)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="spawn"):
        _ = reader.tracker


def test_read_faces_move_as_one(reader: FaceReader, astronaut: ByteImage) -> None:
    read: ReadFaces = reader.read(batch(astronaut)).to(torch.float64)
    assert read.pose.dtype == torch.float64 and read.found.dtype == torch.bool
    assert read[0].landmarks.shape == (478, 2)


@pytest.fixture(scope="module")
def annotator(tmp_path_factory: pytest.TempPathFactory) -> ArcFaceIdentity:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    return ArcFaceIdentity(**made.arcface(tmp_path_factory.mktemp("arcface")))


def test_csim_is_the_cosine_of_scipy() -> None:
    generator = np.random.default_rng(0)
    one, two = generator.normal(size=(2, 7, 32))
    expected = [1 - cosine(a, b) for a, b in zip(one, two, strict=True)]
    np.testing.assert_allclose(csim(torch.from_numpy(one), torch.from_numpy(3 * two)).numpy(), expected, atol=1e-12)
    some, none = torch.ones(1, 4), torch.zeros(1, 4)
    assert all(csim(*pair).isnan().all() for pair in ((some, none), (none, some), (none, none)))
    with pytest.raises((ValueError, TypeError)):
        csim(torch.ones(1, 4), torch.ones(1, 5))


def test_identity_distance_is_that_of_scipy() -> None:
    one, two = np.random.default_rng(0).normal(size=(2, 7, 128))
    one[2], two[5] = 0, 0  # no face
    found = id_distance(torch.from_numpy(one), torch.from_numpy(two)).numpy()
    expected = [np.nan if row in (2, 5) else euclidean(a, b) for row, (a, b) in enumerate(zip(one, two, strict=True))]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    with pytest.raises((ValueError, TypeError)):
        id_distance(torch.ones(1, 4), torch.ones(1, 5))


def test_embeddings_are_those_of_the_annotator(
    annotator: ArcFaceIdentity, reader: FaceReader, astronaut: ByteImage, astronaut_face: Face
) -> None:
    embedder = FaceEmbedder(annotator, reader)
    grey = np.full_like(astronaut, 128)
    embeddings = embedder(batch(astronaut, grey))
    crop = replace(crop_face(astronaut, astronaut_face, 512), image=astronaut, landmarks=astronaut_face.landmarks)
    np.testing.assert_allclose(embeddings[0], annotator(crop), atol=1e-6)
    assert not embeddings[1].any()
    assert torch.equal(embedder.embed(reader.crops(batch(astronaut, grey))), embeddings)
    assert embedder(batch(astronaut)[:0]).shape == (0, 512)


def test_csim_of_pictures(annotator: ArcFaceIdentity, reader: FaceReader, astronaut: ByteImage) -> None:
    """The same face elsewhere in the picture is the same; another is another; a picture without a face is dropped and told."""
    other = np.asarray(cv2.resize(head().image, astronaut.shape[:2]), np.uint8)
    elsewhere = moved(astronaut, 1.0, (9, 4))
    grey = np.full_like(astronaut, 128)
    same, different, mixed = (
        CSIM(FaceEmbedder(annotator, reader)),
        CSIM(FaceEmbedder(annotator, reader)),
        CSIM(FaceEmbedder(annotator, reader)),
    )
    same.update(batch(astronaut) / 255, batch(elsewhere) / 255)
    different.update(batch(astronaut) / 255, batch(other) / 255)
    mixed.update(batch(astronaut, grey, grey) / 255, batch(elsewhere, astronaut, astronaut) / 255, torch.tensor([True, True, False]))
    assert 0.98 < same.compute() <= 1 and different.compute() < 0.9
    assert mixed.compute() == same.compute() and mixed.dropped == 1


def test_a_table_can_say_whose_weights_they_are(annotator: ArcFaceIdentity, reader: FaceReader) -> None:
    with FaceEmbedder(annotator.weights, reader) as embedder:
        told = embedder.provenance()
        assert told["weights"] == annotator.weights.name and "non-commercial" in told["licence"]
        assert told["sha256"] == hashlib.sha256(annotator.weights.read_bytes()).hexdigest()
    assert FaceEmbedder(ArcFaceIdentity(annotator.weights, licence="ours"), reader).provenance()["licence"] == "ours"
    with pytest.raises(AssetError, match="no such weights"):
        FaceEmbedder(Path("nowhere.onnx"))
    own = FaceEmbedder(annotator)
    own.close()
    assert own.reader is not reader


def test_one_network_in_torch_and_in_onnx_gives_the_same_embedding(reader: FaceReader, astronaut: ByteImage, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    path = torch_weights.write(tmp_path / "backbone.pth", torch_weights.iresnet((1, 1, 1, 1)))
    embedder = FaceEmbedder(path, reader)
    assert isinstance(embedder.identity, IResNetIdentity)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter that needs no further package
        torch.onnx.export(IResNet(path), (torch.zeros(1, 3, 112, 112),), str(tmp_path / "backbone.onnx"), dynamo=False)
    pictures = batch(astronaut)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = embedder(pictures)
    np.testing.assert_allclose(embeddings, FaceEmbedder(tmp_path / "backbone.onnx", reader)(pictures), atol=1e-5)
    told = embedder.provenance()
    assert told["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() and "non-commercial" in told["licence"]
    with pytest.raises(WeightsError):
        FaceEmbedder(tmp_path / "none.pth")
