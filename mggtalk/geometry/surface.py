"""Surfaces as one camera sees them: normals of a depth map, alignment of depths, and depth from normals.

Camera frame (x right, y down, z forward), depth in centimetres along the optical axis, one value for each pixel centre.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize, pad

from datasets_toolkit.annotators.normal_integration import integrate_normals as integrate
from mggtalk.geometry.cameras import pixel_centres


def camera_points(depth: Float[Tensor, "*batch 1 h w"], intrinsics: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 h w"]:
    """The point (camera frame, cm) that every pixel centre sees."""
    height, width = depth.shape[-2:]
    pixels = pixel_centres(height, width, device=depth.device, dtype=depth.dtype).reshape(-1, 2)
    homogeneous = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=-1).mT
    return (torch.linalg.inv(intrinsics) @ homogeneous).unflatten(-1, (height, width)) * depth


def normals_from_depth(
    depth: Float[Tensor, "*batch 1 h w"], mask: Bool[Tensor, "*batch 1 h w"], intrinsics: Float[Tensor, "*batch 3 3"]
) -> Float[Tensor, "*batch 3 h w"]:
    """Unit normals (camera frame, facing the camera) of a depth map, by central differences, one-sided at the border of the mask.

    Exact on planes, second order in the pixel step on smooth surfaces. 0 outside the mask and where a pixel has no neighbour in a
    direction. Differentiable to depth.
    """
    points = camera_points(torch.where(mask, depth, 1), intrinsics)
    down, right = (_difference(points, mask, dim) for dim in (-2, -1))
    return normalize(torch.linalg.cross(down, right, dim=-3), dim=-3, eps=1e-30)


def _difference(points: Tensor, mask: Tensor, dim: int) -> Tensor:
    """A multiple of the derivative along ``dim``: the sum of the valid ones of the two one-sided differences."""
    steps = torch.where(mask.narrow(dim, 1, mask.shape[dim] - 1) & mask.narrow(dim, 0, mask.shape[dim] - 1), points.diff(dim=dim), 0)
    before, after = ((1, 0), (0, 1)) if dim == -1 else ((0, 0, 1, 0), (0, 0, 0, 1))
    return pad(steps, before) + pad(steps, after)


def scale_and_shift(
    depth: Float[Tensor, "*batch 1 h w"],
    reference: Float[Tensor, "*batch 1 h w"],
    mask: Bool[Tensor, "*batch 1 h w"] | Float[Tensor, "*batch 1 h w"],
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """The s and t that minimise ``sum mask (s depth + t - reference)^2``; a float ``mask`` (>= 0) holds weights.

    Raises:
        ValueError: an image has no valid pixel, or its depth is constant, so that s is anything.
    """
    weights = mask.to(depth.dtype)
    total = weights.sum(dim=(-3, -2, -1), keepdim=True)
    if not (total > 0).all():
        raise ValueError("cannot align depth: no valid pixel")
    depth, reference = torch.where(weights > 0, depth, 0), torch.where(weights > 0, reference, 0)

    def mean(values: Tensor) -> Tensor:
        return (weights * values).sum(dim=(-3, -2, -1), keepdim=True) / total

    centred = depth - mean(depth)
    variance = mean(centred.square())
    if not (variance > (torch.finfo(depth.dtype).eps * depth.abs().amax(dim=(-3, -2, -1), keepdim=True)).square()).all():
        raise ValueError("cannot align depth: it is constant over the valid pixels")
    scale = mean(centred * (reference - mean(reference))) / variance
    return scale[..., 0, 0, 0], (mean(reference) - scale * mean(depth))[..., 0, 0, 0]


def align_depth(
    depth: Float[Tensor, "*batch 1 h w"],
    reference: Float[Tensor, "*batch 1 h w"],
    mask: Bool[Tensor, "*batch 1 h w"] | Float[Tensor, "*batch 1 h w"],
) -> Float[Tensor, "*batch 1 h w"]:
    """``s depth + t``, with the scale and shift of :func:`scale_and_shift` (which see for the errors); for every pixel."""
    scale, shift = scale_and_shift(depth, reference, mask)
    return scale[..., None, None, None] * depth + shift[..., None, None, None]


def integrate_normals(
    normals: Float[Tensor, "3 h w"],
    depth: Float[Tensor, "1 h w"],
    mask: Bool[Tensor, "1 h w"],
    intrinsics: Float[Tensor, "3 3"],
    *,
    prior_weight: float,
    sharpness: float = 2.0,
    iterations: int = 10,
    tolerance: float = 1e-3,
) -> Float[Tensor, "1 h w"]:
    """Depth (cm) whose surface has the given normals, near a coarse depth, with jumps where the normals ask for them.

    :func:`datasets_toolkit.annotators.normal_integration.integrate_normals`, which tells of method, arguments and errors, for tensors; it
    works on the CPU in float64.

    Returns:
        Depth, 0 outside the mask; dtype and device of ``depth``. Not differentiable.

    Raises:
        ValueError: an empty mask, depth that is not positive or normals that are not finite inside it, ``prior_weight`` not positive.
    """
    arrays = [
        tensor.detach().cpu().numpy() for tensor in (normals.permute(1, 2, 0).double(), depth[0].double(), mask[0], intrinsics.double())
    ]
    solved = integrate(*arrays, prior_weight=prior_weight, sharpness=sharpness, iterations=iterations, tolerance=tolerance)
    return torch.from_numpy(solved)[None].to(depth)
