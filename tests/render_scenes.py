"""Scenes of Gaussians for the tests of the renderers, and the slow twin of them all."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

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
    height, width = size
    rotation, shift = camera.head_to_camera[:3, :3], camera.head_to_camera[:3, 3]
    intrinsics = camera.intrinsics
    ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([xs, ys], dim=-1).to(intrinsics)

    def to_pixel(point: Tensor) -> Tensor:
        return (intrinsics @ (point / point[2]))[:2]

    transmittance, stopped = torch.ones(size).to(intrinsics), torch.zeros(size, dtype=torch.bool)
    image, depth = torch.zeros(gaussians.features.shape[-1], *size).to(intrinsics), torch.zeros(size).to(intrinsics)
    in_camera = gaussians.means @ rotation.mT + shift
    for index in in_camera[:, 2].argsort(stable=True).tolist():
        point = in_camera[index]
        if not gaussians.mask[index] or point[2] <= 0.01:
            continue
        margin = 0.15 * torch.tensor([width, height]).to(intrinsics) / intrinsics.diagonal()[:2]
        low = -intrinsics[:2, 2] / intrinsics.diagonal()[:2] - margin
        high = (torch.tensor([width, height]) - intrinsics[:2, 2]) / intrinsics.diagonal()[:2] + margin
        anchor = torch.cat([point[2] * torch.clamp(point[:2] / point[2], low, high), point[2:]])
        jacobian = torch.autograd.functional.jacobian(to_pixel, anchor, create_graph=True)
        w, x, y, z = gaussians.quaternions[index] / gaussians.quaternions[index].norm()
        zero = torch.zeros_like(w)
        cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)
        axes = torch.eye(3).to(cross) + 2 * w * cross + 2 * cross @ cross  # Rodrigues' formula for quaternions
        covariance = axes @ torch.diag(gaussians.scales[index] ** 2) @ axes.mT
        covariance = jacobian @ rotation @ covariance @ rotation.mT @ jacobian.mT + 0.3 * torch.eye(2).to(cross)
        offset = pixels - to_pixel(point)
        sigma = 0.5 * torch.einsum("hwi,ij,hwj->hw", offset, covariance.inverse(), offset)
        alpha = (gaussians.opacities[index] * torch.exp(-sigma)).clamp(max=0.999)
        alpha = torch.where(alpha < 1 / 255, 0, alpha)
        stopped = stopped | (transmittance * (1 - alpha) <= 1e-4)
        weight = torch.where(stopped, 0, alpha * transmittance)
        image = image + weight * gaussians.features[index][:, None, None]
        depth = depth + weight * point[2]
        transmittance = torch.where(stopped, transmittance, transmittance * (1 - alpha))
    alpha = (1 - transmittance)[None]
    if background is not None:
        image = image + (1 - alpha) * background
    return Rendering(image=image, alpha=alpha, depth=torch.where(alpha > 0, depth[None] / alpha.clamp(min=1e-300), 0))
