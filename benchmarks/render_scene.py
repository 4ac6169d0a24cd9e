"""A talking head as a pixel-aligned predictor would make it, for timing renderers."""

from __future__ import annotations

import torch
from torch import Tensor

from mggtalk.geometry.cameras import matrix_to_quaternion
from mggtalk.types import Camera, Gaussians

DISTANCE, HALF = 60.0, 12.0  # of the camera, and what the image shows of the plane z = 0 to each side, cm


def relief(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Height z (cm, towards the camera) of head, nose, neck and shoulders at x right, y up, and where there is any."""
    head = 49 * (1 - (x / 6) ** 2 - ((y - 2) / 7.5) ** 2)
    neck = 9 * (1 - (x / 3) ** 2) * (y < -2)
    shoulders = 16 * (1 - (x / 11) ** 2 - ((y + 12) / 4.5) ** 2)
    nose = 1.5 * torch.exp(-(x**2 + (y - 1) ** 2) / 1.5)
    squared = torch.stack([head, neck, shoulders]).amax(dim=0)
    return squared.clamp(min=0).sqrt() + nose * (head > 0), squared > 0.05


def surface(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points of the relief on a grid that is as dense as the number asks for, jittered within its cells, and normals there."""
    side = int((4 * count) ** 0.5) + 8
    while True:
        steps = (torch.arange(side) + 0.5) / side * 2 * HALF - HALF
        y, x = (axis.flatten() for axis in torch.meshgrid(steps, steps, indexing="ij"))
        shown = relief(x, y)[1].nonzero()[:, 0]
        if len(shown) >= count:
            break
        side = int(side * 1.05) + 1
    chosen = shown[torch.randperm(len(shown), generator=generator)[:count].sort().values]
    jitter = (torch.rand(2, count, generator=generator) - 0.5) * 2 * HALF / side
    x, y, step = x[chosen] + jitter[0], y[chosen] + jitter[1], 0.02
    slopes = [(relief(x + dx, y + dy)[0] - relief(x - dx, y - dy)[0]) / (2 * step) for dx, dy in ((step, 0), (0, step))]
    normals = torch.stack([-slopes[0].clamp(-3, 3), -slopes[1].clamp(-3, 3), torch.ones(count)], dim=-1)
    return torch.stack([x, y, relief(x, y)[0]], dim=-1), torch.nn.functional.normalize(normals, dim=-1)


def head_scene(count: int, side: int, seed: int = 0) -> tuple[Gaussians, Camera, Tensor]:
    """``count`` Gaussians (half of them a surface, half its mirror image behind it), the camera and background of a ``side`` px image.

    Standard deviations along the surface are 1.5 to 3 pixels, opacities 0.6 to 0.99, three features. One batch dimension of size 1.
    """
    generator = torch.Generator().manual_seed(seed)
    points, normals = surface(count - count // 2, generator)
    back = torch.tensor([1.0, 1.0, -1.0])
    means = torch.cat([points, points[: count // 2] * back - torch.tensor([0, 0, 0.5])])
    normals = torch.cat([normals, normals[: count // 2] * back])
    helper = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    first = torch.nn.functional.normalize(torch.linalg.cross(normals, helper), dim=-1)
    frames = torch.stack([first, torch.linalg.cross(normals, first), normals], dim=-1)
    pixel = 2 * HALF / side
    along = torch.exp(torch.rand(count, 2, generator=generator) * torch.tensor(2.0).log()) * 1.5 * pixel
    gaussians = Gaussians(
        means=means[None],
        quaternions=matrix_to_quaternion(frames)[None],
        scales=torch.cat([along, 0.25 * along.amin(dim=-1, keepdim=True)], dim=-1)[None],
        opacities=0.6 + 0.39 * torch.rand(1, count, generator=generator),
        features=torch.rand(1, count, 3, generator=generator),
        mask=torch.ones(1, count, dtype=torch.bool),
    )
    pose = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    turn = torch.linalg.matrix_exp(torch.tensor([[0, -0.02, 0.2], [0.02, 0, 0.07], [-0.2, -0.07, 0]]))
    pose[:3, :3] = pose[:3, :3] @ turn
    pose[2, 3] = DISTANCE
    focal = side * DISTANCE / (2 * HALF)
    intrinsics = torch.tensor([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]])
    return gaussians, Camera(intrinsics=intrinsics[None], head_to_camera=pose[None]), torch.rand(1, 3, side, side, generator=generator)
