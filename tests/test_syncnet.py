"""SyncNet: its layers, what its towers are shown, and its scores by rigged vectors."""

from __future__ import annotations

from pathlib import Path

import network_weights as made
import numpy as np
import pytest
import torch
from annotator_scenes import SMALL, small_crop
from face_scenes import frontal_crop
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.annotators.audio_features import mfcc
from datasets_toolkit.annotators.syncnet import SyncNet, score, steady_faces
from datasets_toolkit.errors import AssetError, UserError
from datasets_toolkit.faces import face_regions as regions
from datasets_toolkit.faces.detection import landmark_bounds
from datasets_toolkit.faces.head_pose import canonical_face
from datasets_toolkit.schema import ByteImage, Face

for package in ("onnx", "onnxruntime", "transformers", "diffusers"):
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def crop() -> FaceCrop:
    return small_crop()


@pytest.fixture(scope="module")
def syncnet(tmp_path_factory: pytest.TempPathFactory) -> SyncNet:
    return SyncNet(**made.syncnet(tmp_path_factory.mktemp("syncnet")))


def test_lip_vectors_are_those_of_single_windows(syncnet: SyncNet, crop: FaceCrop) -> None:
    """Runs of frames that share the first layer, against each window alone, in BGR from 0 to 255."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (23, SMALL, SMALL, 3)).astype(np.uint8)
    crops = [FaceCrop(**{**vars(crop), "image": image}) for image in images]
    found = syncnet.lip_vectors(crops)
    assert found.shape == (18, 1024)
    faces, network = list(steady_faces(crops)), syncnet.network()
    for window in (0, 15, 16, 17):
        stack = torch.from_numpy(np.stack([face[..., ::-1] for face in faces[window : window + 5]]).astype(np.float32))
        with torch.inference_mode():
            wanted = network["netfclip"](network["netcnnlip"](stack.permute(3, 0, 1, 2)[None]).flatten(1))[0]
        np.testing.assert_allclose(found[window], wanted.numpy(), atol=1e-4)


def test_sound_vectors_are_those_of_a_fifth_of_a_second(syncnet: SyncNet) -> None:
    """A vector depends on the 20 columns of its own time and on nothing else."""
    sound = np.random.default_rng(0).normal(0, 3000, 16000).astype(np.int16)
    found = syncnet.sound_vectors(sound, 18)
    later = syncnet.sound_vectors(sound[640 * 4 :], 14)
    np.testing.assert_allclose(found[5:], later[1:], atol=1e-3)  # pre-emphasis reaches one sample back
    assert np.abs(found[4] - found[9]).max() > 1e-3
    network, columns = syncnet.network(), torch.from_numpy(mfcc(sound).T[:, 36:56].copy()).float()  # of frame 9
    with torch.inference_mode():
        wanted = network["netfcaud"](network["netcnnaud"](columns[None, None]).flatten(1))[0]
    np.testing.assert_allclose(found[9], wanted.numpy(), atol=1e-4)


def test_too_short_a_clip_has_no_score(syncnet: SyncNet, crop: FaceCrop) -> None:
    for crops, samples in (([crop] * 9, 16000), ([crop] * 12, 5 * 640), ([], 16000)):
        assert syncnet(crops, np.zeros(samples, np.int16)).confidence == 0.0


def test_another_state_dict_is_refused(tmp_path: Path) -> None:
    state = torch.load(made.syncnet(tmp_path)["weights"], weights_only=True)
    state["netcnnlip.0.weight"] = state["netcnnlip.0.weight"][:, :2]
    torch.save(state, tmp_path / "other.model")
    with pytest.raises(AssetError, match="cannot be loaded"):
        SyncNet(tmp_path / "other.model").network()
    with pytest.raises(UserError, match="reach 0"):
        SyncNet(tmp_path / "other.model", reach=0)


def test_the_layers_have_the_published_names_and_shapes(syncnet: SyncNet) -> None:
    shapes = {name: tuple(values.shape) for name, values in syncnet.network().state_dict().items() if values.ndim}
    assert len(shapes) == 88
    for name, shape in {
        "netcnnaud.0.weight": (64, 1, 3, 3), "netcnnaud.4.weight": (192, 64, 3, 3), "netcnnaud.8.weight": (384, 192, 3, 3),
        "netcnnaud.11.weight": (256, 384, 3, 3), "netcnnaud.14.bias": (256,), "netcnnaud.18.weight": (512, 256, 5, 4),
        "netcnnaud.19.running_mean": (512,), "netfcaud.3.weight": (1024, 512), "netfclip.1.running_var": (512,),
        "netcnnlip.0.weight": (96, 3, 5, 7, 7), "netcnnlip.4.weight": (256, 96, 1, 5, 5), "netcnnlip.8.weight": (256, 256, 1, 3, 3),
        "netcnnlip.14.weight": (256, 256, 1, 3, 3), "netcnnlip.18.weight": (512, 256, 1, 6, 6),
    }.items():  # fmt: skip
        assert shapes[name] == shape


def test_the_face_of_a_photograph_is_cut_below_the_chin(astronaut: ByteImage, astronaut_face: Face) -> None:
    from datasets_toolkit.annotators.portrait import crop_face

    crop = crop_face(astronaut, astronaut_face, 256)
    (cut,) = steady_faces([crop])
    chin, forehead = (crop.landmarks[index, 1] for index in (regions.CHIN, regions.FOREHEAD))
    assert canonical_face().vertices[regions.CHIN, 1] < 0  # the chin is below
    scale = 224 / 1.4 / (chin - forehead)
    assert 0.55 < (chin - forehead) * scale / 224 < 0.75
    assert cut.std() > 30


@given(seed=st.integers(0, 10**6), early=st.integers(-15, 15))
@settings(deadline=None, max_examples=40)
def test_rigged_vectors_give_their_offset(seed: int, early: int) -> None:
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(120, 32))
    lips = vectors[30:90]
    sound = vectors[30 + early : 90 + early] + 0.1 * generator.normal(size=(60, 32))
    found = score(lips, sound, 15)
    assert found.offset_frames == early
    assert found.confidence > 1
    assert score(lips, lips, 15).distance == 0


@given(seed=st.integers(0, 10**6), reach=st.integers(1, 15), count=st.integers(5, 30))
@settings(deadline=None, max_examples=20)
def test_scores_are_those_of_the_definition(seed: int, reach: int, count: int) -> None:
    generator = np.random.default_rng(seed)
    lips, sound = generator.normal(size=(2, count, 8))
    means = []
    for shift in range(-reach, reach + 1):  # sound that comes that much later
        far = [lips[i] - (sound[i + shift] if 0 <= i + shift < count else 0) for i in range(count)]
        means.append(float(torch.nn.functional.pairwise_distance(torch.from_numpy(np.array(far)), torch.zeros(count, 8), eps=0).mean()))
    found = score(lips, sound, reach)
    assert found.offset_frames == -(int(np.argmin(means)) - reach)
    assert found.distance == pytest.approx(min(means))
    assert found.confidence == pytest.approx(sorted(means)[reach] - min(means))


@pytest.mark.parametrize("count", [1, 3, 6, 7, 13, 20])
def test_faces_are_cut_around_steady_boxes(count: int) -> None:
    """Colours that tell where a pixel comes from; one frame jumps, and is cut where its neighbours are."""
    face = frontal_crop(canonical_face().vertices[:, 2], 256)
    y, x = np.mgrid[:256, :256]
    image = np.stack([x, y, np.full_like(x, 7)], -1).astype(np.uint8)
    jump = 10 if count > 10 else None
    crops = []
    for index in range(count):
        landmarks = face.landmarks + np.array([30.0 * (index == jump), 0, 0])
        crops.append(FaceCrop(**{**vars(face), "image": image, "landmarks": landmarks}))
    found = list(steady_faces(iter(crops)))
    assert len(found) == count
    centre, size = landmark_bounds(face.landmarks)
    for cut in found:
        assert cut.shape == (224, 224, 3)
        for row, column in ((40, 50), (112, 112), (150, 180)):
            wanted = centre + size * (np.array([column, row]) + 0.5) * 1.4 / 224 - size * np.array([0.7, 0.5]) - 0.5
            np.testing.assert_allclose(cut[row, column, :2], wanted, atol=0.8)
