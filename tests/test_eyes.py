"""Eyes follow a gaze: the iris whole, the corners not at all, the white between them by what lies between."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_scenes import face_model, labelled, made_frame, made_model, with_expression
from torch import Tensor

from datasets_toolkit.faces import face_regions
from datasets_toolkit.schema import Region
from mggtalk.geometry.cameras import pixel_centres, project
from mggtalk.geometry.head_points import EYES, _following, visible_points
from mggtalk.geometry.layers import take_apart
from mggtalk.geometry.surface import normals_from_depth
from mggtalk.modules.deformation import skin
from mggtalk.rendering.cpu import CpuRenderer
from mggtalk.types import Frame, Surface

RING, IRIS = face_regions.RIGHT_EYE, face_regions.RIGHT_IRIS
SIZE = 256


def an_eye(left: float, right: float, radius: float, roll: float = 0.0) -> Tensor:
    """Vertices (1 v 2) of an eye whose iris lies at (50, 40), its corners so far left and right of it, turned by ``roll`` degrees."""
    points = torch.zeros(1, 478, 2, dtype=torch.float64)
    points[0, RING[0], 0], points[0, RING[len(RING) // 2], 0] = -left, right
    for vertex, place in zip(IRIS[1:], ((1, 0), (0, -1), (-1, 0), (0, 1)), strict=True):
        points[0, vertex] = radius * torch.tensor(place, dtype=torch.float64)
    turn = np.deg2rad(roll)
    matrix = torch.tensor([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return points @ matrix.mT + torch.tensor([50.0, 40.0], dtype=torch.float64)


@given(
    left=st.floats(10, 30),
    right=st.floats(10, 30),
    radius=st.floats(3, 6),
    roll=st.floats(-60, 60),
    shares=st.lists(st.floats(0, 1), max_size=5),
)
@settings(max_examples=50, deadline=None)
def test_iris_corners_and_what_lies_between(left: float, right: float, radius: float, roll: float, shares: list[float]) -> None:
    """1 in the iris, 0 at and beyond the corners, linear between, and alike across the eye."""
    vertices = an_eye(left, right, radius, roll)
    turn = np.deg2rad(roll)
    along, across = torch.tensor([np.cos(turn), np.sin(turn)]), torch.tensor([-np.sin(turn), np.cos(turn)])
    for end, sign in ((left, -1), (right, 1)):
        places = [0.0, radius, end, 2 * end, *(radius + share * (end - radius) for share in shares)]
        pixels = torch.stack([vertices[0, IRIS[0]] + sign * place * along + 2 * across for place in places])[None]
        expected = torch.tensor([min(max((end - place) / (end - radius), 0), 1) for place in places], dtype=torch.float64)
        torch.testing.assert_close(_following(pixels, vertices, RING, IRIS)[0][0, :, 0], expected, rtol=0, atol=1e-6)


@given(seed=st.integers(0, 10**6), roll=st.floats(-60, 60))
@settings(max_examples=30, deadline=None)
def test_the_fall_is_the_derivative(seed: int, roll: float) -> None:
    vertices = an_eye(20, 13, 5, roll)
    pixels = 50 + 24 * (torch.rand(1, 40, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5)
    follows, fall = _following(pixels, vertices, RING, IRIS)
    for axis in range(2):
        step = 1e-5 * torch.eye(2, dtype=torch.float64)[axis]
        ends = [_following(pixels + sign * step, vertices, RING, IRIS)[0] for sign in (1, -1)]
        smooth = ((follows > 1e-4) & (follows < 1 - 1e-4))[..., 0]
        measured = (ends[0] - ends[1])[..., 0] / 2e-5
        torch.testing.assert_close(fall[..., axis, 0][smooth], measured[smooth], rtol=1e-5, atol=1e-7)
    assert (fall[(follows <= 0)[..., 0]] == 0).all()


def test_an_iris_in_the_corner_of_its_eye_leaves_no_infinite_slope() -> None:
    vertices, pixels = an_eye(5, 30, 5), pixel_centres(80, 100).double().reshape(1, -1, 2)
    follows, fall = _following(pixels, vertices, RING, IRIS)
    assert torch.isfinite(fall).all() and fall.abs().max() <= 1 / 2.5 + 1e-6 and 0 <= follows.min() <= follows.max() <= 1


def painted(frame: Frame) -> Frame:
    """White eyes with dark irises, where the landmarks have them."""
    image = torch.where(labelled(frame, Region.LEFT_EYE, Region.RIGHT_EYE), 0.9, frame.image)
    vertices = project(frame.mesh, frame.camera)[0][0]
    for region, _, iris in EYES:
        distance = (pixel_centres(SIZE, SIZE) - vertices[iris[0]]).norm(dim=-1)
        radius = (vertices[list(iris[1:])] - vertices[iris[0]]).norm(dim=-1).mean()
        image = torch.where(labelled(frame, region) & (distance < radius), 0.1, image)
    return replace(frame, image=image)


@pytest.mark.parametrize("aside", [-0.12, 0.12])
def test_points_of_an_eye_move_in_order(aside: float) -> None:
    """Along its axis no point overtakes another; points in the middle of the iris go all the way, those at the corners hardly."""
    frame = painted(made_frame(SIZE))
    surface = Surface(
        depth=frame.depth, normals=normals_from_depth(frame.depth, frame.depth > 0, frame.camera.intrinsics), mask=frame.depth > 0
    )
    cloud = visible_points(frame, take_apart(frame), surface, face_model())
    displacement = torch.zeros(1, len(face_model().mean), 3)
    displacement[:, list(IRIS), 0] = aside
    moved = (skin(cloud, displacement).positions - cloud.positions)[0, :, 0] / aside
    own = cloud.mask[0] & (cloud.anchors[0, :, 0] == IRIS[0])
    vertices = project(frame.mesh, frame.camera)[0][0]
    offset = cloud.pixels[0, :, 0] - vertices[IRIS[0], 0]
    radius = (vertices[list(IRIS[1:])] - vertices[IRIS[0]]).norm(dim=-1).mean()
    torch.testing.assert_close(moved[own & (offset.abs() < 0.9 * radius)], torch.ones(int((own & (offset.abs() < 0.9 * radius)).sum())))
    assert own.sum() > 30 and moved[own].min() < 0.45
    arrived = cloud.positions[0, :, 0] + aside * moved
    for row in cloud.pixels[0, own, 1].unique():
        along = own & (cloud.pixels[0, :, 1] == row)
        assert (arrived[along][torch.argsort(cloud.pixels[0, along, 0])].diff() > 0).all()
    assert (moved[~own] == 0).all()


@pytest.mark.parametrize("name, side", [("eyeLookOutLeft", "left"), ("eyeLookInLeft", "left"), ("eyeLookOutRight", "right")])
def test_a_rendered_iris_goes_where_the_mesh_says(name: str, side: str) -> None:
    """The middle of what is dark in the eye moves as the iris of the mesh does, less what lies at the lids and moves with them."""
    model = made_model().eval().requires_grad_(False)
    model.renderer = CpuRenderer()
    frame = painted(made_frame(SIZE))
    region, _, iris = EYES[0] if side == "left" else EYES[1]
    identity = model.reconstruct(frame)
    there = labelled(frame, region)[0, 0]

    def middle(score: float) -> tuple[float, float]:
        expression = with_expression(frame, **{name: score}).expression
        image = model.render(identity, expression, frame.camera)[0].mean(0)
        dark = (0.6 - image).clamp(min=0) * there
        mesh = frame.mesh + face_model().displacement(expression - frame.expression)
        place = project(mesh, frame.camera)[0][0, iris[0], 0]
        return float((dark * (torch.arange(SIZE) + 0.5)).sum() / dark.sum()), float(place)

    (before, start), (after, end) = middle(0.0), middle(0.6)
    assert abs(end - start) > 0.5
    assert 0.55 < (after - before) / (end - start) < 1.1
