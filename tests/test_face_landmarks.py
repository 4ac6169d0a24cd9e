"""The tracker's networks in PyTorch: against MediaPipe's own runs of the same file, and what training makes of what they read."""

from __future__ import annotations

import copy
import pickle
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from datasets_toolkit.assets import locate
from datasets_toolkit.faces.detection import FaceTracker
from datasets_toolkit.schema import BLENDSHAPES, LANDMARKS, ByteImage, Face
from mggtalk.losses import ReadingLoss, reading_terms, same_hue, total
from mggtalk.networks import face_landmarks as module
from mggtalk.networks import tflite
from mggtalk.networks.face_landmarks import EXPRESSIVE, FaceLandmarks
from mggtalk.networks.tflite import TfliteNetwork
from mggtalk.networks.weights import WeightsError
from mggtalk.types import Camera, Frame


@pytest.fixture(scope="module")
def reader() -> FaceLandmarks:
    return FaceLandmarks()


def tensor(image: ByteImage) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


def points(face: Face) -> Tensor:
    return torch.from_numpy(face.landmarks[None, :, :2]).float()


@pytest.mark.parametrize("angle", [0, 15, -25])
def test_landmarks_and_expressions_are_those_of_mediapipe(
    reader: FaceLandmarks, tracker: FaceTracker, astronaut: ByteImage, angle: int
) -> None:
    """The tracker chooses its square by another network, so it may differ by what it differs from itself; faces are 110 pixels high."""
    image = cv2.warpAffine(astronaut, cv2.getRotationMatrix2D((220, 120), angle, 1.0), (512, 512))
    (face,) = tracker.faces(image)
    read = reader(tensor(image), points(face))
    assert read.landmarks.shape == (1, LANDMARKS, 2) and read.blendshapes.shape == (1, len(BLENDSHAPES))
    assert (read.landmarks - points(face)).norm(dim=-1).mean() < 1
    assert np.abs(read.blendshapes[0].numpy() - face.blendshapes).mean() < 0.02
    exact = reader.expression(points(face)[:, list(EXPRESSIVE)])[0].reshape(-1)
    np.testing.assert_allclose(exact.numpy(), face.blendshapes, atol=1e-4)  # the second network alone, of the same landmarks


def test_a_batch_is_read_as_its_images_are(reader: FaceLandmarks, astronaut: ByteImage, astronaut_face: Face) -> None:
    image = tensor(astronaut)
    both, near = torch.cat([image, image.flip(1)]), points(astronaut_face).expand(2, -1, -1)
    read, first, second = reader(both, near), reader(both[:1], near[:1]), reader(both[1:], near[1:])
    for name in ("landmarks", "blendshapes"):
        torch.testing.assert_close(getattr(read, name), torch.cat([getattr(first, name), getattr(second, name)]), rtol=1e-4, atol=1e-3)


def test_a_picture_that_moves_is_read_where_it_is(reader: FaceLandmarks, astronaut: ByteImage, astronaut_face: Face) -> None:
    """Moved with its square by whole pixels: the same numbers."""
    near, shift = points(astronaut_face), torch.tensor([-7.0, 12.0])
    moved = torch.roll(tensor(astronaut), (12, -7), (-2, -1))
    here, there = reader(tensor(astronaut), near), reader(moved, near + shift)
    torch.testing.assert_close(there.landmarks, here.landmarks + shift, rtol=0, atol=0.02)
    torch.testing.assert_close(there.blendshapes, here.blendshapes, rtol=0, atol=2e-3)


def test_gradients_are_those_of_finite_differences(reader: FaceLandmarks, astronaut: ByteImage, astronaut_face: Face) -> None:
    """Along the direction of the gradient itself, of a scalar of both outputs."""
    image, near = tensor(astronaut).requires_grad_(), points(astronaut_face)

    def value(picture: Tensor) -> Tensor:
        read = reader(picture, near)
        return read.landmarks[:, ::7].sum() / 100 + read.blendshapes.sum()

    (gradient,) = torch.autograd.grad(value(image), image)
    along, step = gradient / gradient.norm(), 0.005
    with torch.no_grad():
        measured = (value(image + step * along) - value(image - step * along)) / (2 * step)
    torch.testing.assert_close(measured, gradient.norm(), rtol=0.02, atol=0)


def frame_of(image: Tensor, near: Tensor) -> Frame:
    """A camera at rest far away, and the landmarks as the mesh that it sees."""
    size, count = image.shape[-1], len(image)
    intrinsics = torch.tensor([[1e3, 0, size / 2], [0, 1e3, size / 2], [0, 0, 1]]).expand(count, 3, 3)
    flat = torch.cat([(near - size / 2) / 10, torch.full_like(near[..., :1], 100)], -1)
    blank = torch.zeros_like(image[:, :1])
    return Frame(
        image=image,
        parsing=blank[:, 0].to(torch.uint8),
        matte=blank,
        depth=blank,
        normals=torch.zeros_like(image),
        camera=Camera(intrinsics=intrinsics, head_to_camera=torch.eye(4).expand(count, 4, 4)),
        mesh=flat,
        expression=image.new_zeros(count, 2),
    )


def test_what_is_read_of_equal_pictures_is_equal(reader: FaceLandmarks, astronaut: ByteImage, astronaut_face: Face) -> None:
    image = tensor(astronaut)
    terms = reading_terms(image, frame_of(image, points(astronaut_face)), ReadingLoss(landmarks=1.0, blendshapes=1.0), reader)
    assert set(terms) == {"reading/landmarks", "reading/blendshapes"} and total(terms).item() == 0


def test_the_distance_read_is_that_of_the_face(reader: FaceLandmarks, astronaut: ByteImage, astronaut_face: Face) -> None:
    """A picture that lies (4, -3) pixels aside is 5 pixels away, in units of the face's height; expressions stay."""
    image, near = tensor(astronaut), points(astronaut_face)
    terms = reading_terms(torch.roll(image, (-3, 4), (-2, -1)), frame_of(image, near), ReadingLoss(landmarks=2.0), reader)
    height = (near[..., 1].max() - near[..., 1].min()).item()
    assert terms["reading/landmarks"].value.item() == pytest.approx(5 / height, rel=0.1)
    assert terms["reading/blendshapes"].value.item() < 0.02
    assert total(terms).item() == pytest.approx(2 * terms["reading/landmarks"].value.item())  # a term without weight takes no part


def test_a_face_follows_its_target(reader: FaceLandmarks, astronaut: ByteImage, astronaut_face: Face) -> None:
    """Descent on where a picture is shifted to, by nothing but what is read: it arrives within half a pixel of four."""
    image, near = tensor(astronaut), points(astronaut_face)
    target, weights = frame_of(image, near), ReadingLoss(landmarks=1.0)
    steps = (torch.arange(512) + 0.5) / 256 - 1
    places = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)[None]
    aside = torch.tensor([4.0, 0.0], requires_grad=True)
    optimiser = torch.optim.Adam([aside], lr=0.4)
    for _ in range(25):
        shown = torch.nn.functional.grid_sample(image, places - aside / 256, padding_mode="border", align_corners=False)
        optimiser.zero_grad()
        total(reading_terms(shown, target, weights, reader)).sum().backward()
        optimiser.step()
    assert aside.detach().norm() < 0.5


def test_what_is_read_changes_no_hue(reader: FaceLandmarks, astronaut: ByteImage, astronaut_face: Face) -> None:
    """Gradients to a rendering lie along its own colours, and are what the tracker's own have there; values are what they were."""
    image, near = tensor(astronaut), points(astronaut_face)
    target = frame_of(image, near)
    shown = torch.roll(image, (-3, 4), (-2, -1)).requires_grad_()
    gradient = torch.autograd.grad(total(reading_terms(shown, target, ReadingLoss(blendshapes=1.0, landmarks=1.0), reader)).sum(), shown)[0]
    assert gradient.abs().max() > 0
    colour = shown.detach()
    assert torch.linalg.cross(gradient, colour, dim=1).abs().max() <= 1e-5 * gradient.abs().max()
    weights = torch.randn(shown.shape, generator=torch.Generator().manual_seed(0))
    plain = same_hue(shown)
    torch.testing.assert_close(plain, shown)
    (kept,) = torch.autograd.grad((weights * plain).sum(), shown)
    along = (weights * colour).sum(1, keepdim=True) * colour / colour.square().sum(1, keepdim=True).clamp(min=1e-4)
    torch.testing.assert_close(kept, along)


def test_it_takes_no_part_in_checkpoints_and_learns_nothing(reader: FaceLandmarks) -> None:
    assert not reader.state_dict() and not any(parameter.requires_grad for parameter in reader.parameters())


def test_copies_read_the_same(reader: FaceLandmarks, astronaut: ByteImage, astronaut_face: Face) -> None:
    image, near = tensor(astronaut), points(astronaut_face)
    for other in (copy.deepcopy(reader), pickle.loads(pickle.dumps(reader))):
        assert torch.equal(other(image, near).blendshapes, reader(image, near).blendshapes)


def test_files_that_are_something_else_are_refused(tmp_path: Path) -> None:
    wrong, empty, damaged = tmp_path / "wrong.task", tmp_path / "empty.task", tmp_path / "damaged.task"
    wrong.write_bytes(b"nothing")
    with zipfile.ZipFile(empty, "w") as archive:
        archive.writestr("other.tflite", b"")
    with zipfile.ZipFile(locate("face_landmarker.task")) as whole, zipfile.ZipFile(damaged, "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name)[: 2000 if "blendshapes" in name else None])
    for path in (wrong, empty, damaged, tmp_path / "none.task"):
        with pytest.raises(WeightsError) as caught:
            FaceLandmarks(path)
        assert path.name in str(caught.value) and "again" in str(caught.value)


def test_an_operation_that_is_not_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(locate("face_landmarker.task")) as parts:
        data = parts.read("face_blendshapes.tflite")
    monkeypatch.delitem(tflite._KINDS, "RSQRT")
    with pytest.raises(WeightsError, match="RSQRT"):
        TfliteNetwork(data, "face.task")
    with pytest.raises(WeightsError, match=r"face\.task: no TensorFlow Lite network"):
        TfliteNetwork(b"other bytes", "face.task")


def test_the_square_is_upright_with_the_eyes() -> None:
    """Corners of a face turned by 30 degrees: a square half as large again, turned alike, about the same middle."""
    upright = torch.zeros(1, LANDMARKS, 2)
    upright[0, 0], upright[0, 1] = torch.tensor([-40.0, -60.0]), torch.tensor([40.0, 60.0])
    upright[0, module.RIGHT_EYE[0]], upright[0, module.LEFT_EYE[0]] = torch.tensor([-20.0, -10.0]), torch.tensor([20.0, -10.0])
    turn = torch.tensor([[np.cos(np.pi / 6), -np.sin(np.pi / 6)], [np.sin(np.pi / 6), np.cos(np.pi / 6)]]).float()
    square = module._square(upright @ turn.mT + 100)[0]
    corners = torch.tensor([[0.0, 0, 1], [1, 0, 1], [0, 1, 1], [0.5, 0.5, 1]]) @ square.mT
    wanted = torch.tensor([[-90.0, -90], [90, -90], [-90, 90], [0, 0]]) @ turn.mT + 100
    torch.testing.assert_close(corners, wanted, rtol=0, atol=1e-3)
