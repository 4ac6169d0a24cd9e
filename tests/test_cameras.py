"""Cameras and rotations against closed forms, their own inverses and scipy."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from mggtalk.geometry.cameras import (
    crop_intrinsics,
    invert_rigid,
    matrix_to_quaternion,
    multiply_quaternions,
    pixel_centres,
    project,
    quaternion_to_matrix,
    transform_points,
    unproject,
)
from mggtalk.types import Camera

seeds = st.integers(0, 10**6)


def random_camera(seed: int, *batch: int) -> Camera:
    """A head about 60 cm away, turned anyhow; a focal length a few times the image's side, some skew."""
    generator = np.random.default_rng(seed)
    count = int(np.prod(batch))
    pose = np.tile(np.eye(4), (count, 1, 1))
    pose[:, :3, :3] = Rotation.random(count, generator).as_matrix()
    pose[:, :3, 3] = generator.normal(size=(count, 3)) * 5 + [0, 0, 60]
    intrinsics = np.tile(np.eye(3), (count, 1, 1))
    intrinsics[:, 0, 0], intrinsics[:, 1, 1] = generator.uniform(300, 2000, (2, count))
    intrinsics[:, 0, 1], intrinsics[:, :2, 2] = generator.normal(size=count), generator.uniform(100, 400, (count, 2))
    return Camera(
        intrinsics=torch.from_numpy(intrinsics).reshape(*batch, 3, 3), head_to_camera=torch.from_numpy(pose).reshape(*batch, 4, 4)
    )


def random_points(seed: int, *shape: int) -> Tensor:
    return 10 * torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_frontal_head_projects_by_the_textbook() -> None:
    """R = diag(1, -1, -1): the nose tip, 10 cm out of the face, is nearer; the person's left is right in the image, up is up."""
    pose = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
    pose[2, 3] = 60
    intrinsics = torch.tensor([[768.0, 0, 128], [0, 768, 120], [0, 0, 1]], dtype=torch.float64)
    points = torch.tensor([[0.0, 0, 10], [5, 0, 0], [0, 5, 0]], dtype=torch.float64)
    pixels, depth = project(points, Camera(intrinsics=intrinsics, head_to_camera=pose))
    torch.testing.assert_close(pixels, torch.tensor([[128.0, 120], [192, 120], [128, 56]], dtype=torch.float64))
    torch.testing.assert_close(depth, torch.tensor([50.0, 60, 60], dtype=torch.float64))


@settings(deadline=None)
@given(seed=seeds, batch=st.lists(st.integers(1, 3), max_size=2), count=st.integers(0, 5))
def test_projection_and_its_inverse_undo_each_other(seed: int, batch: list[int], count: int) -> None:
    camera, points = random_camera(seed, *batch), random_points(seed, *batch, count)
    pixels, depth = project(points, camera)
    assert (depth > 0).all()
    torch.testing.assert_close(unproject(pixels, depth, camera), points, atol=1e-9, rtol=0)
    again, same = project(unproject(pixels, 2 * depth, camera), camera)
    torch.testing.assert_close(again, pixels, atol=1e-8, rtol=0)
    torch.testing.assert_close(same, 2 * depth, atol=1e-9, rtol=0)


@settings(deadline=None)
@given(seed=seeds)
def test_a_crop_changes_the_intrinsics_only(seed: int) -> None:
    camera, points = random_camera(seed), random_points(seed, 4)
    source_to_crop = torch.tensor([[0.7, 0, -30], [0, 0.7, 12], [0, 0, 1]], dtype=torch.float64)
    pixels, _ = project(points, camera)
    crop = Camera(intrinsics=crop_intrinsics(camera.intrinsics, source_to_crop), head_to_camera=camera.head_to_camera)
    cropped, _ = project(points, crop)
    torch.testing.assert_close(cropped, 0.7 * pixels + torch.tensor([-30, 12], dtype=torch.float64), atol=1e-9, rtol=0)


def test_projection_is_finite_at_the_cameras_centre() -> None:
    camera = random_camera(0)
    points = invert_rigid(camera.head_to_camera)[None, :3, 3].requires_grad_()
    pixels, _ = project(points, camera)
    (gradient,) = torch.autograd.grad(pixels.sum(), points)
    assert torch.isfinite(pixels).all() and torch.isfinite(gradient).all()


def test_projection_has_the_right_gradients() -> None:
    camera, points = random_camera(1), random_points(1, 3)
    inputs = [tensor.requires_grad_() for tensor in (points, camera.intrinsics, camera.head_to_camera)]

    def both_ways(points: Tensor, intrinsics: Tensor, pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own = Camera(intrinsics=intrinsics, head_to_camera=pose)
        pixels, depth = project(points, own)
        return pixels, depth, unproject(pixels * 1.01, depth + 1, own)

    assert torch.autograd.gradcheck(both_ways, inputs)


@settings(deadline=None)
@given(seed=seeds)
def test_rigid_inverse_equals_the_general_one(seed: int) -> None:
    matrix = random_camera(seed, 3).head_to_camera
    torch.testing.assert_close(invert_rigid(matrix), torch.linalg.inv(matrix), atol=1e-11, rtol=0)
    points = random_points(seed, 3, 4)
    torch.testing.assert_close(transform_points(invert_rigid(matrix), transform_points(matrix, points)), points, atol=1e-11, rtol=0)


def test_pixel_centres() -> None:
    centres = pixel_centres(2, 3, dtype=torch.float64)
    wanted = [[[0.5, 0.5], [1.5, 0.5], [2.5, 0.5]], [[0.5, 1.5], [1.5, 1.5], [2.5, 1.5]]]
    assert centres.dtype == torch.float64 and centres.tolist() == wanted


@settings(deadline=None)
@given(st.tuples(*[st.floats(-1, 1, allow_nan=False)] * 4).filter(lambda q: sum(x * x for x in q) > 1e-4))
def test_quaternions_agree_with_scipy(values: tuple[float, ...]) -> None:
    quaternion = torch.tensor(values, dtype=torch.float64)
    w, x, y, z = values
    wanted = Rotation.from_quat([x, y, z, w])
    matrix = quaternion_to_matrix(quaternion)
    torch.testing.assert_close(matrix, torch.from_numpy(wanted.as_matrix()), atol=1e-12, rtol=0)
    back = matrix_to_quaternion(matrix)
    unit = quaternion / quaternion.norm()
    assert back[0] >= 0
    assert min((back - unit).norm(), (back + unit).norm()) < 1e-12


@settings(deadline=None)
@given(seed=seeds)
def test_quaternion_products_agree_with_matrix_products(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.nn.functional.normalize(torch.randn(2, 5, 4, generator=generator, dtype=torch.float64), dim=-1)
    product = quaternion_to_matrix(multiply_quaternions(first, second))
    torch.testing.assert_close(product, quaternion_to_matrix(first) @ quaternion_to_matrix(second), atol=1e-12, rtol=0)


def half_turns() -> Tensor:
    """The hard rotations: none, half turns about every axis and diagonal, and turns just beside them."""
    axes = torch.cartesian_prod(*[torch.tensor([-1.0, 0, 1], dtype=torch.float64)] * 3)
    axes = axes[axes.norm(dim=-1) > 0]
    axes = axes / axes.norm(dim=-1, keepdim=True)
    angles = torch.tensor([0, 1e-9, 1e-4, 1, torch.pi / 2, 2 * torch.pi / 3, torch.pi - 1e-7, torch.pi], dtype=torch.float64)
    return torch.from_numpy(Rotation.from_rotvec((axes[:, None] * angles[:, None]).reshape(-1, 3).numpy()).as_matrix())


def test_matrix_to_quaternion_is_stable_for_every_rotation() -> None:
    matrices = half_turns().requires_grad_()
    quaternions = matrix_to_quaternion(matrices)
    torch.testing.assert_close(quaternion_to_matrix(quaternions), matrices, atol=1e-12, rtol=0)
    (gradient,) = torch.autograd.grad(quaternions.sum(), matrices)
    assert torch.isfinite(gradient).all() and gradient.abs().max() < 2
    single = half_turns().float()
    torch.testing.assert_close(quaternion_to_matrix(matrix_to_quaternion(single)), single, atol=1e-6, rtol=0)


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_rotations_have_the_right_gradients(seed: int) -> None:
    quaternions = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(quaternion_to_matrix, [quaternions])
    assert torch.autograd.gradcheck(matrix_to_quaternion, [quaternion_to_matrix(quaternions).detach().requires_grad_()])
