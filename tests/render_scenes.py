"""Scenes of Gaussians for the tests of the renderers, and the slow twin of them all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mggtalk.rendering.cuda import CudaRenderer
from mggtalk.rendering.reference import ReferenceRenderer
from mggtalk.types import Camera, Gaussians, Rendering


def front_camera(size: tuple[int, int], distance: float = 20.0) -> Camera:
    focal = 1.5 * max(size)
    intrinsics = torch.tensor([[focal, 0, size[1] / 2], [0, focal, size[0] / 2], [0, 0, 1]], dtype=torch.float64)
    pose = torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
    pose[2, 3] = distance
    return Camera(intrinsics=intrinsics, head_to_camera=pose)


def flat(means: list[list[float]], scale: float, opacities: list[float], features: list[list[float]]) -> Gaussians:
    """Round Gaussians of one size."""
    count = len(means)
    return Gaussians(
        means=torch.tensor(means, dtype=torch.float64),
        quaternions=torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64).repeat(count, 1),
        scales=torch.full((count, 3), scale, dtype=torch.float64),
        opacities=torch.tensor(opacities, dtype=torch.float64),
        features=torch.tensor(features, dtype=torch.float64),
        mask=torch.ones(count, dtype=torch.bool),
    )


def random_scene(seed: int, count: int, size: tuple[int, int], channels: int = 3) -> tuple[Gaussians, Camera, Tensor]:
    """Gaussians of all shapes, some far outside, behind the camera, faint or masked; a camera that is not quite frontal."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    means = (uniform(count, 3) - 0.5) * torch.tensor([16.0, 16.0, 12.0])
    means[: count // 8] *= 5
    gaussians = Gaussians(
        means=means,
        quaternions=torch.randn(count, 4, generator=generator, dtype=torch.float64),
        scales=0.1 + 2 * uniform(count, 3) ** 2,
        opacities=uniform(count),
        features=uniform(count, channels),
        mask=uniform(count) > 0.1,
    )
    camera = front_camera(size)
    turn = torch.linalg.matrix_exp(torch.tensor([[0, -0.1, 0.2, 0], [0.1, 0, -0.3, 0], [-0.2, 0.3, 0, 0], [0, 0, 0, 0.0]]).double())
    return gaussians, replace(camera, head_to_camera=camera.head_to_camera @ turn), uniform(channels, *size)


def slow_twin(gaussians: Gaussians, camera: Camera, size: tuple[int, int], background: Tensor | None) -> Rendering:
    """Every Gaussian at every pixel, one after the other; the Jacobian of the projection comes from autograd."""
    return slow_twin_and_thresholds(gaussians, camera, size, background)[0]


def slow_twin_and_thresholds(
    gaussians: Gaussians, camera: Camera, size: tuple[int, int], background: Tensor | None
) -> tuple[Rendering, Tensor]:
    """What :func:`slow_twin` renders, and the pixels (h w) at which rounding to float32 may decide otherwise.

    There an alpha is within 0.1 % of 1/255, or a transmittance within 1 % of 1e-4.
    """
    intrinsics, (height, width) = camera.intrinsics, size
    ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([xs, ys], dim=-1).to(intrinsics)
    transmittance, stopped = torch.ones(size).to(intrinsics), torch.zeros(size, dtype=torch.bool)
    image, depth = torch.zeros(gaussians.features.shape[-1], *size).to(intrinsics), torch.zeros(size).to(intrinsics)
    close = torch.zeros(size, dtype=torch.bool)
    in_camera = gaussians.means @ camera.head_to_camera[:3, :3].mT + camera.head_to_camera[:3, 3]
    for index in in_camera[:, 2].argsort(stable=True).tolist():
        point = in_camera[index]
        if not gaussians.mask[index] or point[2] <= 0.01:
            continue
        mean, covariance = footprint(gaussians.quaternions[index], gaussians.scales[index], camera, point, size)
        offset = pixels - mean
        sigma = 0.5 * torch.einsum("hwi,ij,hwj->hw", offset, covariance.inverse(), offset)
        alpha = (gaussians.opacities[index] * torch.exp(-sigma)).clamp(max=0.999)
        close = close | (~stopped & ((255 * alpha.detach() - 1).abs() < 1e-3))
        alpha = torch.where(alpha < 1 / 255, 0, alpha)
        left = transmittance * (1 - alpha)
        close = close | (~stopped & ((1e4 * left.detach() - 1).abs() < 1e-2))
        stopped = stopped | (left <= 1e-4)
        weight = torch.where(stopped, 0, alpha * transmittance)
        image = image + weight * gaussians.features[index][:, None, None]
        depth = depth + weight * point[2]
        transmittance = torch.where(stopped, transmittance, left)
    alpha = (1 - transmittance)[None]
    if background is not None:
        image = image + (1 - alpha) * background
    return Rendering(image=image, alpha=alpha, depth=torch.where(alpha > 0, depth[None] / alpha.clamp(min=1e-300), 0)), close


def footprint(quaternion: Tensor, scales: Tensor, camera: Camera, point: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean (pixels) and covariance of the splat of one Gaussian whose mean is ``point`` in the camera's frame."""
    intrinsics, (height, width) = camera.intrinsics, size

    def to_pixel(at: Tensor) -> Tensor:
        return (intrinsics @ (at / at[2]))[:2]

    sides = torch.tensor([width, height]).to(intrinsics)
    margin = 0.15 * sides / intrinsics.diagonal()[:2]
    low = -intrinsics[:2, 2] / intrinsics.diagonal()[:2] - margin
    high = (sides - intrinsics[:2, 2]) / intrinsics.diagonal()[:2] + margin
    anchor = torch.cat([point[2] * torch.clamp(point[:2] / point[2], low, high), point[2:]])
    jacobian = torch.autograd.functional.jacobian(to_pixel, anchor, create_graph=True)
    w, x, y, z = quaternion / quaternion.norm()
    zero = torch.zeros_like(w)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
    axes = torch.eye(3).to(cross) + 2 * w * cross + 2 * cross @ cross  # Rodrigues' formula for quaternions
    covariance = axes @ torch.diag(scales**2) @ axes.mT
    whole = jacobian @ camera.head_to_camera[:3, :3]
    return to_pixel(point), whole @ covariance @ whole.mT + 0.3 * torch.eye(2).to(cross)


class CudaRendererOverTheOracle(CudaRenderer):
    """The whole wrapper around gsplat on a CPU: in the place of ``gsplat.rasterization`` stands the oracle, with gsplat's layouts."""

    devices: ClassVar[tuple[str, ...]] = ("cpu",)

    def rasterization(self) -> Any:
        return oracle_as_gsplat


def oracle_as_gsplat(
    *,
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float,
    far_plane: float,
    eps2d: float,
    packed: bool,
    render_mode: str,
    channel_chunk: int,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """``gsplat.rasterization`` for a batch with one camera each; refuses what gsplat 1.5.3 would refuse or answer wrongly."""
    batch, points = opacities.shape
    assert means.shape == scales.shape == (batch, points, 3) and quats.shape == (batch, points, 4)
    assert colors.shape[:2] == (batch, points) and viewmats.shape == (batch, 1, 4, 4) and Ks.shape == (batch, 1, 3, 3)
    assert all(tensor.dtype == torch.float32 for tensor in (means, quats, scales, opacities, colors, viewmats, Ks))
    assert batch > 0 and points > 0, "gsplat divides by zero"
    assert batch == 1 or points % 32 == 0, "gsplat mixes up the gradients of cameras"
    assert (far_plane, packed, render_mode, channel_chunk) == (float("inf"), False, "RGB+D", 33)
    assert not torch.is_autocast_enabled("cpu")
    seen = opacities >= 1 / 255
    own = Gaussians(means=means, quaternions=quats, scales=scales, opacities=opacities, features=colors, mask=seen)
    wide, view = own.to(torch.float64), Camera(intrinsics=Ks[:, 0], head_to_camera=viewmats[:, 0]).to(torch.float64)
    rendering = ReferenceRenderer(eps2d=eps2d, near=near_plane)(wide, view, (height, width))
    whole = torch.cat([rendering.image, rendering.depth * rendering.alpha], dim=1).permute(0, 2, 3, 1)[:, None]
    return whole.float().contiguous(), rendering.alpha.permute(0, 2, 3, 1)[:, None].float().contiguous(), {}
