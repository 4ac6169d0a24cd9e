"""dlib's recogniser in PyTorch: against dlib's own run of the same file, and what training makes of what it says."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets_toolkit.annotators import FaceCrop
from datasets_toolkit.annotators.identity_dlib import (
    INSTALL,
    NAME,
    POINTS,
    TEMPLATE,
    DlibIdentity,
    align_face,
    installed,
    packaged_weights,
)
from datasets_toolkit.annotators.portrait import crop_face
from datasets_toolkit.schema import ByteImage, Face
from mggtalk.losses import ReadingLoss, identity_terms, total
from mggtalk.networks.face_identity import NUMBERS, FaceIdentity, cut_face
from mggtalk.networks.weights import WeightsError
from mggtalk.types import Camera, Frame

present = pytest.mark.skipif(not installed(), reason=f"dlib's recogniser is not installed: {INSTALL}")


@pytest.fixture(scope="module")
def network() -> FaceIdentity:
    return FaceIdentity()


def crop(astronaut: ByteImage, face: Face, size: int) -> FaceCrop:
    return crop_face(astronaut, face, size)


def tensor(image: ByteImage) -> Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


def points(cut: FaceCrop) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(cut.landmarks[None, :, :2])).float()


@present
def test_the_network_is_dlib_s(network: FaceIdentity, astronaut: ByteImage, astronaut_face: Face) -> None:
    """On a face and on noise, to the rounding of sums."""
    import dlib

    theirs = dlib.face_recognition_model_v1(str(packaged_weights()))
    noise = np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)
    chips = [align_face(crop(astronaut, astronaut_face, 256)), noise]
    ours = network.describe(torch.cat([tensor(chip) for chip in chips]))
    for chip, vector in zip(chips, ours, strict=True):
        np.testing.assert_allclose(vector, np.array(theirs.compute_face_descriptor(chip)), rtol=0, atol=2e-6)


@present
@pytest.mark.parametrize("size", [200, 256, 512])
def test_faces_are_cut_out_as_dlib_does_it(network: FaceIdentity, astronaut: ByteImage, astronaut_face: Face, size: int) -> None:
    """Nearer than a sixth of what tells people apart, whatever the size; dlib shrinks and interpolates in another way."""
    picture = crop(astronaut, astronaut_face, size)
    ours = network(tensor(picture.image), points(picture))[0].numpy()
    with DlibIdentity() as theirs:
        assert np.linalg.norm(ours - theirs.descriptor(picture)) < 0.1


def test_the_five_points_lie_on_the_mean_face() -> None:
    """A picture whose red and green say where a pixel is: a face turned, scaled, shifted."""
    rng = np.random.default_rng(1)
    places = (torch.stack(torch.meshgrid(torch.arange(400), torch.arange(400), indexing="xy")) + 0.5) / 400
    image = torch.cat([places, torch.zeros(1, 400, 400)])[None]
    for scale, degrees in ((0.7, 10), (1.0, -40), (2.1, 25)):
        angle = np.radians(degrees)
        turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        middle = 200 + rng.uniform(-5, 5, 2)
        where = (TEMPLATE + 0.5 - 75) @ turn.T + middle
        near = torch.zeros(1, 478, 2)
        near[0, list(POINTS)] = torch.from_numpy(where).float()
        chip = cut_face(image, near)
        for x, y in ((74, 75), (40, 90), (110, 60)):
            wanted = (np.array([x + 0.5, y + 0.5]) - 75) @ turn.T + middle
            np.testing.assert_allclose(400 * chip[0, :2, y, x], wanted, rtol=0, atol=0.02)


@present
def test_gradients_are_those_of_finite_differences(network: FaceIdentity, astronaut: ByteImage, astronaut_face: Face) -> None:
    picture = crop(astronaut, astronaut_face, 256)
    image, near = tensor(picture.image).requires_grad_(), points(picture)
    weights = torch.randn(NUMBERS, generator=torch.Generator().manual_seed(0))

    def value(shown: Tensor) -> Tensor:
        return (network(shown, near) * weights).sum()

    (gradient,) = torch.autograd.grad(value(image), image)
    along, step = gradient / gradient.norm(), 0.02
    with torch.no_grad():
        measured = (value(image + step * along) - value(image - step * along)) / (2 * step)
    torch.testing.assert_close(measured, gradient.norm(), rtol=0.02, atol=0)


@present
def test_the_loss_is_the_distance_and_keeps_hues(network: FaceIdentity, astronaut: ByteImage, astronaut_face: Face) -> None:
    """Of a face against itself it is 0; of a blurred one what the descriptors say; gradients lie along colours."""
    picture = crop(astronaut, astronaut_face, 256)
    image, near = tensor(picture.image), points(picture)
    intrinsics = torch.tensor([[1e3, 0, 128], [0, 1e3, 128], [0, 0, 1]])[None]
    blank = torch.zeros_like(image[:, :1])
    target = Frame(
        image=image,
        parsing=blank[:, 0].to(torch.uint8),
        matte=blank,
        depth=blank,
        normals=torch.zeros_like(image),
        camera=Camera(intrinsics=intrinsics, head_to_camera=torch.eye(4)[None]),
        mesh=torch.cat([(near - 128) / 10, torch.full_like(near[..., :1], 100)], -1),
        expression=torch.zeros(1, 2),
    )
    weights = ReadingLoss(identity=1.0)
    assert not weights.tracked
    assert total(identity_terms(image, target, weights, network)).item() == pytest.approx(0, abs=2e-3)
    shown = torch.nn.functional.avg_pool2d(image, 9, 1, 4).requires_grad_()
    (value,) = total(identity_terms(shown, target, weights, network))
    assert value.item() == pytest.approx((network(shown, near) - network(image, near)).norm().item(), rel=1e-3)
    assert value.item() > 0.1
    (gradient,) = torch.autograd.grad(value, shown)
    assert gradient.abs().max() > 0
    assert torch.linalg.cross(gradient, shown.detach(), dim=1).abs().max() <= 1e-5 * gradient.abs().max()


@present
def test_it_takes_no_part_in_checkpoints_and_learns_nothing(network: FaceIdentity, astronaut: ByteImage, astronaut_face: Face) -> None:
    assert not network.state_dict() and not any(parameter.requires_grad for parameter in network.parameters())
    picture = crop(astronaut, astronaut_face, 200)
    assert torch.equal(copy.deepcopy(network)(tensor(picture.image), points(picture)), network(tensor(picture.image), points(picture)))


def test_other_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / NAME
    other.write_bytes(b"\x01\x01")
    with pytest.raises(WeightsError, match=r"another file \(its SHA-256 is .*fetch it again"):
        FaceIdentity(other)
    with pytest.raises(WeightsError, match=r"none\.dat: no such file"):
        FaceIdentity(tmp_path / "none.dat")
