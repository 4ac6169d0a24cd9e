"""Depth, normals and their integration against surfaces known in closed form, seen in perspective."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from integration_twin import CENTRE, dense
from torch import Tensor
from torch.nn.functional import normalize

from mggtalk.geometry.cameras import pixel_centres
from mggtalk.geometry.surface import align_depth, camera_points, integrate_normals, normals_from_depth, scale_and_shift

SIDE = 64
INTRINSICS = torch.tensor([[3.0 * SIDE, 0, SIDE / 2 + 3], [0, 2.8 * SIDE, SIDE / 2 - 2], [0, 0, 1]], dtype=torch.float64)


def rays() -> Tensor:
    centres = pixel_centres(SIDE, SIDE, dtype=torch.float64)
    xy = (centres - INTRINSICS[:2, 2]) / INTRINSICS.diagonal()[:2]
    return torch.cat([xy, torch.ones(SIDE, SIDE, 1, dtype=torch.float64)], dim=-1)


def plane(normal: Tensor, distance: float = 60.0) -> tuple[Tensor, Tensor, Tensor]:
    """Depth, normals and mask of the plane through (0, 0, distance)."""
    depth = distance * normal[2] / (rays() @ normal)
    return depth[None], normal[:, None, None].expand(3, SIDE, SIDE), torch.ones(1, SIDE, SIDE, dtype=torch.bool)


def sphere(radius: float = 8.0, limit: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """A sphere about (0, 0, 60), up to where it is seen at a slant of ``limit`` (the cosine)."""
    centre = torch.tensor([0, 0, 60], dtype=torch.float64)
    ray = rays()
    square, along = ray.square().sum(dim=-1), ray @ centre
    inside = along**2 - square * (centre @ centre - radius**2)
    depth = (along - inside.clamp(min=0).sqrt()) / square
    normals = (depth[..., None] * ray - centre) / radius
    mask = (inside > 0) & (-(normals * normalize(ray, dim=-1)).sum(dim=-1) > limit)
    return depth[None], normals.permute(2, 0, 1), mask[None]


def paraboloid(bend: float = 0.03) -> tuple[Tensor, Tensor, Tensor]:
    """z = 60 + bend (x^2 + y^2), a bowl that opens away from the camera; in a mask that is not convex."""
    ray = rays()
    depth = 120 / (1 + (1 - 4 * 60 * bend * ray[..., :2].square().sum(dim=-1)).sqrt())
    slope = 2 * bend * depth[..., None] * ray[..., :2]
    normals = normalize(torch.cat([slope, -torch.ones_like(depth)[..., None]], dim=-1), dim=-1)
    mask = torch.ones(SIDE, SIDE, dtype=torch.bool)
    mask[20:40, 30:] = False
    return depth[None], normals.permute(2, 0, 1), mask[None]


tilts = st.tuples(st.floats(-0.6, 0.6), st.floats(-0.6, 0.6))


@given(tilt=tilts)
@settings(deadline=None)
def test_planes_give_their_normals_exactly_up_to_the_border(tilt: tuple[float, float]) -> None:
    normal = normalize(torch.tensor([*tilt, -1.0], dtype=torch.float64), dim=0)
    depth, wanted, mask = plane(normal)
    mask = mask.clone()
    mask[:, 10:20, 5:50] = False
    found = normals_from_depth(depth, mask, INTRINSICS)
    torch.testing.assert_close(found, torch.where(mask, wanted, 0), atol=1e-9, rtol=0)


def test_a_sphere_gives_its_normals() -> None:
    depth, wanted, mask = sphere()
    found = normals_from_depth(depth, mask, INTRINSICS)
    degrees = torch.rad2deg(torch.linalg.cross(found, wanted, dim=0).norm(dim=0).asin())[mask[0]]
    assert degrees.median() < 0.1 and degrees.max() < 12  # one-sided, and slanted most, at the border
    assert ((found * rays().permute(2, 0, 1)).sum(dim=0)[mask[0]] < 0).all()
    batch = normals_from_depth(depth.expand(2, 3, 1, -1, -1), mask.expand(2, 3, 1, -1, -1), INTRINSICS.expand(2, 3, 3, 3))
    torch.testing.assert_close(batch[1, 2], found)


def test_a_pixel_without_neighbours_has_no_normal_and_no_gradient() -> None:
    depth = torch.full((1, 5, 5), 50.0, dtype=torch.float64).requires_grad_()
    mask = torch.zeros(1, 5, 5, dtype=torch.bool)
    mask[0, 2, 2] = True
    normals = normals_from_depth(depth, mask, torch.eye(3, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(normals.sum(), depth)
    assert (normals == 0).all() and (gradient == 0).all()


def test_normals_have_the_right_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    depth = (50 + torch.rand(1, 4, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    mask = torch.rand(1, 4, 5, generator=generator) > 0.2
    intrinsics = torch.tensor([[9.0, 0, 2], [0, 9, 2], [0, 0, 1]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda values: normals_from_depth(values, mask, intrinsics), [depth])


def test_camera_points_lie_on_their_rays() -> None:
    depth = sphere()[0]
    torch.testing.assert_close(camera_points(depth, INTRINSICS).permute(1, 2, 0), depth[0, ..., None] * rays())


@given(seed=st.integers(0, 10**6), weighted=st.booleans())
@settings(deadline=None, max_examples=30)
def test_scale_and_shift_are_those_of_least_squares(seed: int, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    depth, reference = (40 + 20 * torch.rand(2, 3, 1, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    chance = torch.rand(2, 3, 1, 4, 5, generator=generator, dtype=torch.float64)
    chance[..., :2, 0] = 1
    mask = chance if weighted else chance > 0.4
    scale, shift = scale_and_shift(depth, reference, mask)
    aligned = align_depth(depth, reference, mask)
    for index in np.ndindex(2, 3):
        root = mask[index].double().sqrt().flatten().numpy()
        columns = np.stack([depth[index].flatten().numpy(), np.ones(20)], axis=1)
        wanted = np.linalg.lstsq(root[:, None] * columns, root * reference[index].flatten().numpy(), rcond=None)[0]
        np.testing.assert_allclose([scale[index], shift[index]], wanted, rtol=1e-6)
        np.testing.assert_allclose(aligned[index].flatten(), columns @ wanted, rtol=1e-8)


def test_alignment_undoes_scale_and_shift_and_refuses_what_has_no_answer() -> None:
    depth, _, mask = sphere()
    outside = torch.where(mask, 0.3 * depth - 7, torch.nan)
    torch.testing.assert_close(align_depth(outside, depth, mask)[mask], depth[mask], atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="no valid pixel"):
        align_depth(depth, depth, torch.zeros_like(mask))
    with pytest.raises(ValueError, match="constant"):
        align_depth(torch.full_like(depth, 0.3), depth, mask)


def flat_prior(depth: Tensor, mask: Tensor) -> Tensor:
    """A constant that leaves the shape to the normals and says where the surface is: the geometric mean."""
    return torch.full_like(depth, float(depth[mask].log().mean().exp()))


@pytest.mark.parametrize("shape", ["sphere", "tilted plane", "paraboloid"])
def test_normals_integrate_to_their_surface(shape: str) -> None:
    tilted = normalize(torch.tensor([0.5, -0.3, -1.0], dtype=torch.float64), dim=0)
    depth, normals, mask = {"sphere": sphere, "tilted plane": lambda: plane(tilted), "paraboloid": paraboloid}[shape]()
    found = integrate_normals(normals, flat_prior(depth, mask), mask, INTRINSICS, prior_weight=1e-6, tolerance=1e-9)
    error = (found - depth)[mask].abs()
    relief = float(depth[mask].max() - depth[mask].min())
    assert error.max() < 0.015 * relief and error.mean() < 0.005 * relief
    assert (found[~mask] == 0).all()


def step(jump: float) -> tuple[Tensor, Tensor, Tensor]:
    """A square, raised by ``jump`` from a wall at 60 cm, both fronto-parallel: the normals say nothing of the edge."""
    depth = torch.full((1, SIDE, SIDE), 60.0, dtype=torch.float64)
    depth[:, 16:48, 20:44] -= jump
    normals = torch.tensor([0, 0, -1], dtype=torch.float64)[:, None, None].expand(3, SIDE, SIDE)
    return depth, normals, torch.ones(1, SIDE, SIDE, dtype=torch.bool)


def test_a_step_edge_survives() -> None:
    """The coarse depth has the step but is wrong by a wave on both sides of it: the wave goes, the step stays where it was."""
    depth, normals, mask = step(4.0)
    wave = 0.4 * torch.sin(torch.arange(SIDE, dtype=torch.float64) * 2 * math.pi / 8)
    found = integrate_normals(normals, depth + wave, mask, INTRINSICS, prior_weight=1.0, iterations=30, tolerance=1e-9)
    assert (found - depth).abs().max() < 0.1
    smooth = integrate_normals(normals, depth + wave, mask, INTRINSICS, prior_weight=1.0, sharpness=0.0, iterations=30)
    assert (smooth - depth).abs().mean() > 1  # without the bilateral weights the wall and the square become one slope


def test_every_connected_part_keeps_the_mean_of_its_coarse_depth() -> None:
    """Two half spheres and a lone pixel, each with a coarse depth of its own: log-depth shifts, shape does not."""
    depth, normals, mask = sphere()
    mask = mask.clone()
    mask[:, :, 30:34] = False
    mask[0, 0, 0] = True
    normals = normals.clone()
    normals[:, 0, 0] = torch.tensor([0, 0, -1.0])
    coarse = flat_prior(depth, sphere()[2])
    coarse[..., 32:] *= 1.2
    found = integrate_normals(normals, coarse, mask, INTRINSICS, prior_weight=1e-3)
    assert abs(found[0, 0, 0] - coarse[0, 0, 0]) < 1e-9
    for part in (mask & (torch.arange(SIDE) < 30) & (torch.arange(SIDE) > 0), mask & (torch.arange(SIDE) >= 34)):
        shift = (found[part] / depth[part]).log()
        assert abs((found[part].log() - coarse[part].log()).mean()) < 1e-6
        assert shift.std() < 2e-4


def test_one_reweighting_agrees_with_dense_least_squares() -> None:
    """The equations of the paper, pixel by pixel, as rows of one dense system."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(1, 7, 6, generator=generator) > 0.25
    coarse = 50 + torch.rand(1, 7, 6, generator=generator, dtype=torch.float64)
    tilt = 0.3 * torch.randn(3, 7, 6, generator=generator, dtype=torch.float64)
    normals = normalize(tilt - torch.tensor([0, 0, 1])[:, None, None], dim=0)
    focal, prior_weight, sharpness = np.array([20.0, 22.0]), 5.0, 2.0
    arrays = normals.permute(1, 2, 0).numpy(), coarse[0].numpy(), mask[0].numpy()
    wanted = dense(*arrays, prior_weight, sharpness, focal)
    intrinsics = torch.tensor([[focal[0], 0, CENTRE[0]], [0, focal[1], CENTRE[1]], [0, 0, 1]], dtype=torch.float64)
    found = integrate_normals(normals, coarse, mask, intrinsics, prior_weight=prior_weight, sharpness=sharpness, iterations=1)
    np.testing.assert_allclose(found[mask].numpy(), wanted, rtol=1e-9)


def test_a_strong_prior_wins_and_the_dtype_stays() -> None:
    depth, normals, mask = sphere()
    coarse = depth.clamp(max=60).float() + 0.01 * torch.rand(depth.shape, generator=torch.Generator().manual_seed(0))
    found = integrate_normals(normals.float(), coarse, mask, INTRINSICS.float(), prior_weight=1e12)
    assert found.dtype == torch.float32 and found.shape == coarse.shape
    torch.testing.assert_close(found[mask], coarse[mask], atol=1e-4, rtol=0)


@pytest.mark.parametrize("case", ["empty mask", "zero depth", "bad normal", "no prior"])
def test_integration_refuses_what_it_cannot_solve(case: str) -> None:
    depth, normals, mask = sphere()
    depth, normals, mask = depth.clone(), normals.clone(), mask.clone()
    if case == "empty mask":
        mask[:] = False
    elif case == "zero depth":
        depth[0, 32, 32] = 0
    elif case == "bad normal":
        normals[0, 32, 32] = math.nan
    with pytest.raises(ValueError, match="normal integration needs"):
        integrate_normals(normals, depth, mask, INTRINSICS, prior_weight=0.0 if case == "no prior" else 1.0)
