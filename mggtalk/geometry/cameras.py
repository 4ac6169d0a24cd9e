"""Pinhole cameras, rigid transforms and rotations.

Conventions are those of ``docs/conventions.md``: OpenCV cameras (x right, y down, z forward), pixels whose first centre is (0.5, 0.5),
depth along the optical axis in centimetres, unit quaternions w x y z, matrices that act on column vectors. Everything is differentiable,
and keeps the device and dtype of its input.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mggtalk.types import Camera


def transform_points(matrix: Float[Tensor, "*batch 4 4"], points: Float[Tensor, "*batch n 3"]) -> Float[Tensor, "*batch n 3"]:
    """Apply an affine 4 x 4 ``matrix`` (last row 0 0 0 1) to every point."""
    return points @ matrix[..., :3, :3].mT + matrix[..., None, :3, 3]


def invert_rigid(matrix: Float[Tensor, "*batch 4 4"]) -> Float[Tensor, "*batch 4 4"]:
    """The inverse of a rigid motion, ``x -> R^T (x - t)``; not for matrices that scale or shear."""
    rotation = matrix[..., :3, :3].mT
    translation = -rotation @ matrix[..., :3, 3:]
    return torch.cat([torch.cat([rotation, translation], dim=-1), matrix[..., 3:, :]], dim=-2)


def project(points: Float[Tensor, "*batch n 3"], camera: Camera) -> tuple[Float[Tensor, "*batch n 2"], Float[Tensor, "*batch n"]]:
    """Pixels and depth (cm) of points in canonical head space.

    Depth is signed: pixels mean nothing where it is not positive. They stay finite even at depth 0, so that a caller may mask them out
    and still have finite gradients.
    """
    in_camera = transform_points(camera.head_to_camera, points)
    depth = in_camera[..., 2]
    tiny = 1e-6
    divisor = torch.where(depth.abs() < tiny, tiny, depth)
    homogeneous = in_camera @ camera.intrinsics.mT
    return homogeneous[..., :2] / divisor[..., None], depth


def unproject(pixels: Float[Tensor, "*batch n 2"], depth: Float[Tensor, "*batch n"], camera: Camera) -> Float[Tensor, "*batch n 3"]:
    """Points in canonical head space (cm) that ``camera`` sees at ``pixels`` and ``depth`` (cm): the inverse of :func:`project`."""
    rays = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1) @ torch.linalg.inv(camera.intrinsics).mT
    return transform_points(invert_rigid(camera.head_to_camera), rays * depth[..., None])


def pixel_centres(
    height: int, width: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Float[Tensor, "{height} {width} 2"]:
    """The x and y of every pixel centre of an image, in pixels; the first is (0.5, 0.5)."""
    dtype = dtype or torch.get_default_dtype()
    x = torch.arange(width, device=device, dtype=dtype) + 0.5
    y = torch.arange(height, device=device, dtype=dtype) + 0.5
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def crop_intrinsics(intrinsics: Float[Tensor, "*batch 3 3"], source_to_crop: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """Intrinsics of a crop, ``K_crop = S K``, where the affine ``S`` takes source pixels to crop pixels."""
    return source_to_crop @ intrinsics


def quaternion_to_matrix(quaternions: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Rotation matrices of quaternions w x y z, which need not be unit (they are normalised) but must not be 0."""
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def matrix_to_quaternion(matrix: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Unit quaternions w x y z, w >= 0, of rotation matrices; accurate, with finite gradients, for every rotation.

    The products ``4 q_i q_j`` are linear in the matrix. Each row of that 4 x 4 table is a multiple of the quaternion; the row with the
    largest diagonal has length at least 2 (the squares sum to 4), so normalising it divides by nothing small and takes no root near 0
    (Shepperd, "Quaternion from rotation matrix", 1978).
    """
    (r00, r01, r02), (r10, r11, r12), (r20, r21, r22) = (row.unbind(-1) for row in matrix.unbind(-2))
    ww, xx, yy, zz = 1 + r00 + r11 + r22, 1 + r00 - r11 - r22, 1 - r00 + r11 - r22, 1 - r00 - r11 + r22
    table = torch.stack([ww, r21 - r12, r02 - r20, r10 - r01, xx, r01 + r10, r02 + r20, yy, r12 + r21, zz], dim=-1)
    rows = torch.tensor([[0, 1, 2, 3], [1, 4, 5, 6], [2, 5, 7, 8], [3, 6, 8, 9]], device=matrix.device)  # the table is symmetric
    largest = torch.stack([ww, xx, yy, zz], dim=-1).argmax(dim=-1)
    quaternions = torch.nn.functional.normalize(table.gather(-1, rows[largest]), dim=-1)
    return torch.where(quaternions[..., :1] < 0, -quaternions, quaternions)


def multiply_quaternions(first: Float[Tensor, "*batch 4"], second: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """The Hamilton product: the rotation ``second`` followed by ``first`` (w x y z)."""
    a, b = first[..., :1], second[..., :1]
    u, v = first[..., 1:], second[..., 1:]
    scalar = a * b - (u * v).sum(dim=-1, keepdim=True)
    return torch.cat([scalar, a * v + b * u + torch.linalg.cross(u, v)], dim=-1)
