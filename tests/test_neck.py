"""Head and torso: what follows the head, what rests, and the derivative between them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_scenes import pose
from torch import Tensor

from mggtalk.geometry.cameras import project, transform_points
from mggtalk.geometry.neck import FOLLOW, PIVOT, TORN, bend, intact, torso_camera
from mggtalk.types import Camera

seeds = st.integers(0, 10**6)
double = torch.float64


def cameras(seed: int) -> tuple[Camera, Camera]:
    """A target's and a source's camera with one lens (batch of 2)."""
    generator = torch.Generator().manual_seed(seed)
    angles = (torch.rand(4, 3, generator=generator) * 80 - 40).tolist()
    shifts = (torch.rand(4, 3, generator=generator) * 20 - 10).tolist()
    poses = torch.stack([torch.from_numpy(pose(*angle, shift=tuple(move))) for angle, move in zip(angles, shifts, strict=True)])
    intrinsics = torch.tensor([[192.0, 0, 31], [0, 190, 33], [0, 0, 1]], dtype=double).expand(2, 3, 3)
    return Camera(intrinsics=intrinsics, head_to_camera=poses[:2]), Camera(intrinsics=intrinsics, head_to_camera=poses[2:])


def points(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return 8 * torch.randn(2, 20, 3, generator=generator, dtype=double), torch.randn(2, 20, 2, 3, generator=generator, dtype=double)


def weights(positions: Tensor) -> Tensor:
    """A smooth field of head weights in head space."""
    return torch.sigmoid(0.3 * positions[..., 1] + 0.1 * torch.sin(positions[..., 0]))


@settings(deadline=None)
@given(seed=seeds)
def test_points_of_the_head_stay_with_it(seed: int) -> None:
    camera, torso = cameras(seed)
    positions, tangents = points(seed)
    one, flat = torch.ones(2, 20, dtype=double), torch.zeros(2, 20, 2, dtype=double)
    moved, stretched = bend(positions, tangents, one, flat, camera, torso)
    torch.testing.assert_close(moved, positions)
    torch.testing.assert_close(stretched, tangents)


@settings(deadline=None)
@given(seed=seeds)
def test_points_of_the_torso_stay_in_its_picture(seed: int) -> None:
    """Whatever the pose of the head: pixel and depth are those under the torso's own camera, and so are the footprints."""
    camera, torso = cameras(seed)
    positions, tangents = points(seed)
    zero, flat = torch.zeros(2, 20, dtype=double), torch.zeros(2, 20, 2, dtype=double)
    moved, stretched = bend(positions, tangents, zero, flat, camera, torso)
    for actual, expected in zip(project(moved, camera), project(positions, torso), strict=True):
        torch.testing.assert_close(actual, expected)
    ahead = project(moved + 0.01 * stretched[:, :, 1], camera)[0]
    torch.testing.assert_close(ahead, project(positions + 0.01 * tangents[:, :, 1], torso)[0])


@settings(deadline=None)
@given(seed=seeds, weight=st.floats(0, 1))
def test_between_them_lies_the_weighted_mean_in_camera_space(seed: int, weight: float) -> None:
    camera, torso = cameras(seed)
    positions, tangents = points(seed)
    moved, _ = bend(positions, tangents, torch.full((2, 20), weight, dtype=double), torch.zeros(2, 20, 2, dtype=double), camera, torso)
    head, rest = transform_points(camera.head_to_camera, positions), transform_points(torso.head_to_camera, positions)
    torch.testing.assert_close(transform_points(camera.head_to_camera, moved), weight * head + (1 - weight) * rest)


@settings(deadline=None, max_examples=30)
@given(seed=seeds)
def test_tangents_are_the_derivative_of_bending(seed: int) -> None:
    """Central differences of the bent position along each tangent, the weight field changing on the way."""
    camera, torso = cameras(seed)
    positions, tangents = points(seed)
    step = 1e-5

    def bent(where: Tensor) -> Tensor:
        return bend(where, tangents, weights(where), torch.zeros(2, 20, 2, dtype=double), camera, torso)[0]

    ahead, back = ([positions + sign * step * tangents[:, :, axis] for axis in range(2)] for sign in (1, -1))
    steps = torch.stack([(weights(a) - weights(b)) / (2 * step) for a, b in zip(ahead, back, strict=True)], -1)
    numeric = torch.stack([(bent(a) - bent(b)) / (2 * step) for a, b in zip(ahead, back, strict=True)], -2)
    actual = bend(positions, tangents, weights(positions), steps, camera, torso)[1]
    torch.testing.assert_close(actual, numeric, rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(seed=seeds)
def test_the_same_pose_moves_neither_head_nor_torso(seed: int) -> None:
    camera, _ = cameras(seed)
    positions, tangents = points(seed)
    torso = torso_camera(camera, camera)
    torch.testing.assert_close(torso.head_to_camera, camera.head_to_camera)
    moved, stretched = bend(positions, tangents, weights(positions), torch.zeros(2, 20, 2, dtype=double), camera, torso)
    torch.testing.assert_close(moved, positions)
    torch.testing.assert_close(stretched, tangents)


@settings(deadline=None)
@given(seed=seeds)
def test_the_torso_takes_part_in_what_the_pivot_does_across_the_image(seed: int) -> None:
    camera, source = cameras(seed)
    torso = torso_camera(camera, source)
    pivot = torch.tensor(PIVOT, dtype=double).expand(2, 1, 3)
    now, before, rest = (transform_points(each.head_to_camera, pivot)[:, 0] for each in (camera, source, torso))
    torch.testing.assert_close(rest[:, :2] - before[:, :2], FOLLOW * (now - before)[:, :2])
    torch.testing.assert_close(rest[:, 2], before[:, 2])
    assert torch.equal(torso.head_to_camera[:, :3, :3], source.head_to_camera[:, :3, :3])
    assert torch.equal(torso.intrinsics, camera.intrinsics)


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_bending_has_exact_gradients(weight: float) -> None:
    camera, torso = cameras(3)
    positions, tangents = (values[:, :2].clone().requires_grad_() for values in points(3))
    share = torch.full((2, 2), weight, dtype=double, requires_grad=True)
    steps = torch.full((2, 2, 2), 0.1, dtype=double, requires_grad=True)

    def bent(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return bend(*inputs, camera, torso)

    assert torch.autograd.gradcheck(bent, (positions, tangents, share, steps))


@settings(deadline=None)
@given(seed=seeds, stretch=st.floats(0.2, 4))
def test_what_is_torn_fades(seed: int, stretch: float) -> None:
    """Turned and drawn out along one of its sides, a footprint keeps (1.3 / s)^4 of its opacity, and all of it up to a stretch of 1.3."""
    _, tangents = points(seed)
    turn = torch.from_numpy(pose(30, 20, 10)[:3, :3])
    sides = torch.tensor([[1.0], [stretch]], dtype=double)
    kept = intact(tangents, (tangents * sides) @ turn.mT)
    torch.testing.assert_close(kept, torch.full((2, 20), min(1.0, (TORN / stretch) ** 4), dtype=double))


def test_padding_is_not_torn() -> None:
    """Points that are none have no footprint; gradients stay finite."""
    tangents = torch.zeros(1, 3, 2, 3, dtype=double, requires_grad=True)
    kept = intact(tangents, 2 * tangents)
    kept.sum().backward()
    assert torch.equal(kept, torch.ones_like(kept)) and tangents.grad is not None and torch.isfinite(tangents.grad).all()
