"""Crops put back into the portrait, and annotated crops as frames."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_scenes import annotate, face_model, made_crop, made_frame, pose

from datasets_toolkit.faces.detection import crop_image, source_to_crop
from datasets_toolkit.schema import ByteImage, FloatArray
from mggtalk.data.frames import tensor, to_frame
from mggtalk.talking_head import FEATHER, Avatar, full_frame

HEIGHT, WIDTH = 150, 200


def smooth_portrait(seed: int = 0) -> ByteImage:
    y, x = np.mgrid[:HEIGHT, :WIDTH] / 25.0
    phases = np.random.default_rng(seed).uniform(0, 6, (3, 2))
    waves = [np.sin(x + a) * np.cos(y + b) for a, b in phases]
    return np.asarray((127 + 100 * np.stack(waves, -1)).round(), np.uint8)


def avatar_of(image: ByteImage, box: FloatArray, size: int) -> tuple[Avatar, ByteImage]:
    """An avatar with nothing but a portrait and the place of its crop, and that crop."""
    crop, _ = made_crop(64, pose())
    placed = object.__new__(type(crop))
    for name, value in crop.__dict__.items():
        object.__setattr__(placed, name, value)
    object.__setattr__(placed, "source_to_crop", source_to_crop(box, size))
    avatar = object.__new__(Avatar)
    object.__setattr__(avatar, "image", image)
    object.__setattr__(avatar, "crop", placed)
    return avatar, crop_image(image, box, size)


BOXES = [(np.array([30.0, 20, 100]), 100), (np.array([30.25, 20.5, 96.5]), 128), (np.array([20.0, 10, 128]), 96)]
EDGES = [(np.array([0.0, 0, 150]), 152), (np.array([50.0, 0, 150]), 104), (np.array([0.0, 50, 100]), 64)]


@pytest.mark.parametrize("box, size", BOXES + EDGES)
def test_an_unchanged_crop_gives_the_portrait_back(box: FloatArray, size: int) -> None:
    """Within interpolation error: a grey level or two for waves of 150 pixels."""
    image = smooth_portrait()
    avatar, crop = avatar_of(image, box, size)
    difference = np.abs(full_frame(avatar, crop).astype(int) - image)
    assert difference.max() <= 6 and difference.mean() < 1.0


@pytest.mark.parametrize("box, size", BOXES + EDGES)
def test_pixels_outside_the_crop_are_untouched_and_those_well_inside_are_the_crops(box: FloatArray, size: int) -> None:
    image = smooth_portrait(1)
    avatar, crop = avatar_of(image, box, size)
    red = np.full_like(crop, 0)
    red[..., 0] = 255
    result = full_frame(avatar, red)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    outside = (x < box[0]) | (x > box[0] + box[2]) | (y < box[1]) | (y > box[1] + box[2])
    pixel = box[2] / size
    np.testing.assert_array_equal(result[outside & _away(x, y, box, pixel)], image[outside & _away(x, y, box, pixel)])
    margin = FEATHER * box[2] + pixel
    inside = (abs(x - box[0] - box[2] / 2) < box[2] / 2 - margin) & (abs(y - box[1] - box[2] / 2) < box[2] / 2 - margin)
    assert inside.any() and (result[inside] == [255, 0, 0]).all()


def _away(x: FloatArray, y: FloatArray, box: FloatArray, pixel: float) -> np.ndarray:
    """More than a crop pixel away: there bilinear weights still reach over the edge of a crop that is not feathered."""
    far = np.maximum(abs(x - box[0] - box[2] / 2), abs(y - box[1] - box[2] / 2))
    return np.asarray(far > box[2] / 2 + pixel)


def test_a_crop_fades_in_but_not_at_the_portraits_own_edges() -> None:
    """The box touches the left and upper edge: full strength there, rising from 0 on the other two sides."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    avatar, crop = avatar_of(image, np.array([0.0, 0, 100]), 100)
    white = full_frame(avatar, np.full_like(crop, 255))[..., 0].astype(float) / 255
    assert (white[:90, 0] == 1).all() and (white[0, :90] == 1).all()
    ramp = white[50, 90:100]
    assert (np.diff(ramp) <= 0).all() and ramp[0] == 1
    np.testing.assert_allclose(ramp[-4:], np.clip((np.arange(4)[::-1] + 0.5) / (FEATHER * 100), 0, 1), atol=0.01)
    assert white[50, 100:].max() == 0 and white[100:].max() == 0


@pytest.mark.parametrize("size", [64, 152, 300])
def test_the_portraits_own_edges_are_covered_at_every_scale(size: int) -> None:
    image = np.zeros((HEIGHT, HEIGHT, 3), np.uint8)
    avatar, crop = avatar_of(image, np.array([0.0, 0, HEIGHT]), size)
    assert full_frame(avatar, np.full_like(crop, 255)).min() == 255


def test_a_frame_is_its_annotations() -> None:
    crop, parsing = made_crop(64, pose(20), jaw=0.4)
    annotations = annotate(crop, parsing)
    frame = to_frame(crop, annotations, face_model(), integrate=False)
    np.testing.assert_allclose(frame.image.permute(1, 2, 0).numpy(), crop.image / np.float32(255), atol=1e-6)
    np.testing.assert_array_equal(frame.parsing.numpy(), parsing.labels)
    np.testing.assert_array_equal(frame.depth[0].numpy(), annotations.depth)
    np.testing.assert_array_equal(frame.normals.permute(1, 2, 0).numpy(), annotations.normals)
    np.testing.assert_allclose(frame.camera.head_to_camera.numpy(), crop.head_to_camera, atol=1e-5)
    neutral, expression = face_model().split(frame.mesh, tensor(crop.blendshapes))
    assert torch.equal(frame.expression, expression)
    torch.testing.assert_close(neutral + face_model().displacement(frame.expression), frame.mesh, rtol=0, atol=1e-5)
    assert torch.equal(made_frame(64, 20.0, 0.4).image[0], frame.image)


def test_integration_keeps_the_depth_where_its_normals_are_its_own() -> None:
    crop, parsing = made_crop(64, pose())
    annotations = annotate(crop, parsing)
    plain, integrated = (to_frame(crop, annotations, face_model(), integrate=flag) for flag in (False, True))
    assert torch.equal(integrated.depth > 0, plain.depth > 0)
    difference = (integrated.depth - plain.depth).abs()
    assert 0 < difference.max() < 1.5 and difference.sum() / (plain.depth > 0).sum() < 0.15


def test_tensors_have_their_own_memory() -> None:
    array = np.zeros(3, np.float32)
    made = tensor(array)
    array[:] = 1
    assert made.tolist() == [0, 0, 0] and tensor(np.arange(2)).dtype == torch.float32
