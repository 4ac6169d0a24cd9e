"""The oracle's projection against an outside implementation: the torch functions that gsplat tests its own kernels with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from render_scenes import random_scene
from torch import Tensor

from mggtalk.geometry.cameras import quaternion_to_matrix
from mggtalk.rendering.reference import ReferenceRenderer, Splats, whitening
from mggtalk.types import Camera, Gaussians, stack

gsplat = pytest.importorskip("gsplat.cuda._torch_impl", reason="gsplat is not installed: nothing outside to compare the oracle with")

SIZE = (40, 56)
LEAVES = ("means", "quaternions", "scales", "head_to_camera")


def scene(seed: int, count: int = 200, images: int = 1) -> tuple[Gaussians, Camera]:
    """All of them valid and opaque; the first feature is the number of the Gaussian within its image."""
    scenes = [random_scene(seed + image, count, SIZE)[:2] for image in range(images)]
    gaussians, camera = stack([own for own, _ in scenes]), stack([view for _, view in scenes])
    numbers = torch.arange(count, dtype=torch.float64).expand(images, count)[..., None]
    return replace(gaussians, features=numbers, mask=torch.ones_like(gaussians.mask), opacities=0.99 + 0 * gaussians.opacities), camera


def outside(gaussians: Gaussians, camera: Camera, **changes: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Radii, means, depths and conics (xx, xy, yy of the inverse covariance) of every Gaussian, by gsplat."""
    covariances, _ = gsplat._quat_scale_to_covar_preci(gaussians.quaternions, gaussians.scales, True, False)
    views, intrinsics = camera.head_to_camera[:, None], camera.intrinsics[:, None]
    found = gsplat._fully_fused_projection(gaussians.means, covariances, views, intrinsics, SIZE[1], SIZE[0], **changes)
    radii, means, depths, conics = (part[:, 0] for part in found[:4])
    return radii, means, depths, conics


def conics_of(splats: Splats) -> Tensor:
    """The inverse covariances, through the triangle that the oracle blends with."""
    w0, w1, w2 = whitening(splats.covariances).unbind(-1)
    return 2 * torch.stack([w0 * w0 + w1 * w1, w1 * w2, w2 * w2], dim=-1)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_covariances_in_space(seed: int) -> None:
    gaussians, _ = scene(seed, 20)
    axes = quaternion_to_matrix(gaussians.quaternions) * gaussians.scales[..., None, :]
    wanted, _ = gsplat._quat_scale_to_covar_preci(gaussians.quaternions, gaussians.scales, True, False)
    torch.testing.assert_close(axes @ axes.mT, wanted, atol=1e-12, rtol=1e-10)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_means_conics_and_depths_of_a_batch(seed: int) -> None:
    """Far outside the image too, where the Jacobian is taken at the clamped point."""
    gaussians, camera = scene(seed, images=2)
    splats = ReferenceRenderer().splat(gaussians, camera, SIZE)
    _, means, depths, conics = outside(gaussians, camera)
    numbers = splats.values[:, 0].long()
    torch.testing.assert_close(splats.means, means[splats.image, numbers], atol=1e-9, rtol=1e-10)
    torch.testing.assert_close(splats.depths, depths[splats.image, numbers], atol=1e-10, rtol=1e-12)
    torch.testing.assert_close(conics_of(splats), conics[splats.image, numbers], atol=1e-11, rtol=1e-8)


def test_the_clamp_of_the_jacobian_is_reached() -> None:
    gaussians, camera = scene(0)
    splats = ReferenceRenderer().splat(gaussians, camera, SIZE)
    sides = torch.tensor([SIZE[1], SIZE[0]])
    beyond = ((splats.means < -0.15 * sides) | (splats.means > 1.15 * sides)).any(dim=-1)
    assert beyond.sum() > 3


@pytest.mark.parametrize("eps2d", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("near", [0.01, 19.0])
def test_what_is_seen(eps2d: float, near: float) -> None:
    """Gsplat keeps who is in front of the near plane and within 3.33 standard deviations of the image; the oracle of those only who can
    reach an alpha of 1/255 at a pixel's centre."""
    gaussians, camera = scene(2, 400)
    splats = ReferenceRenderer(eps2d=eps2d, near=near).splat(gaussians, camera, SIZE)
    radii, means, depths, conics = outside(gaussians, camera, eps2d=eps2d, near_plane=near)
    kept = torch.zeros(400, dtype=torch.bool).index_fill(0, splats.values[:, 0].long(), True)
    seen = (radii[0] > 0).all(dim=-1)
    assert 50 < kept.sum() < seen.sum() < 400 and not (kept & ~seen).any()
    assert (depths[0, kept] > near).all() and ((depths[0] <= near) & ~seen).any()
    peak = 0.99 * torch.exp(-exponents(means[0], conics[0]).amin(dim=-1))
    assert (peak[seen & ~kept] < 1 / 255).all() and (peak[kept] >= 1 / 255).double().mean() > 0.9


def exponents(means: Tensor, conics: Tensor) -> Tensor:
    """Half the squared Mahalanobis distance of every pixel's centre to every mean."""
    ys, xs = torch.meshgrid(torch.arange(SIZE[0]) + 0.5, torch.arange(SIZE[1]) + 0.5, indexing="ij")
    x, y = xs.flatten() - means[:, :1], ys.flatten() - means[:, 1:]
    a, b, c = conics.T[..., None]
    return 0.5 * (a * x * x + c * y * y) + b * x * y


def test_depth_decides_the_order() -> None:
    splats = ReferenceRenderer().splat(*scene(3), SIZE)
    assert (splats.depths.diff() >= 0).all()


def test_gradients_of_the_projection() -> None:
    gaussians, camera = scene(4)
    numbers = ReferenceRenderer().splat(gaussians, camera, SIZE).values[:, 0].long()
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(len(numbers), width, generator=generator, dtype=torch.float64) for width in (2, 3, 1)]

    def ours(own: Gaussians, view: Camera) -> list[Tensor]:
        splats = ReferenceRenderer().splat(own, view, SIZE)
        return [splats.means, conics_of(splats), splats.depths[:, None]]

    def theirs(own: Gaussians, view: Camera) -> list[Tensor]:
        _, means, depths, conics = outside(own, view)
        return [means[0, numbers], conics[0, numbers], depths[0, numbers, None]]

    def found(function: Callable[[Gaussians, Camera], list[Tensor]]) -> list[Tensor]:
        leaves = {name: getattr(camera if name == "head_to_camera" else gaussians, name).clone().requires_grad_() for name in LEAVES}
        own = replace(gaussians, **{name: leaves[name] for name in LEAVES[:3]})
        parts = function(own, replace(camera, head_to_camera=leaves["head_to_camera"]))
        total = torch.stack([(part * weight).sum() for part, weight in zip(parts, weights, strict=True)]).sum()
        return list(torch.autograd.grad(total, list(leaves.values())))

    for name, mine, wanted in zip(LEAVES, found(ours), found(theirs), strict=True):
        assert wanted.norm() > 0
        assert (mine - wanted).norm() < 1e-9 * wanted.norm(), name
