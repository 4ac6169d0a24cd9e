"""Surfaces as one camera sees them: normals of a depth map, alignment of depths, and depth from normals.

Camera frame (x right, y down, z forward), depth in centimetres along the optical axis, one value for each pixel centre.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float
from scipy.sparse import csc_array, diags_array, eye_array
from scipy.sparse.linalg import splu
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import normalize, pad

from mggtalk.geometry.cameras import pixel_centres

FloatArray = npt.NDArray[np.float64]


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


class _Axis(NamedTuple):
    """The equations along one image axis: ``steepness * d log(depth) + offset = 0`` at every pixel; edges join neighbours."""

    start: npt.NDArray[np.intp]
    end: npt.NDArray[np.intp]
    steepness: FloatArray
    offset: FloatArray


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

    Bilateral normal integration (Cao et al., ECCV 2022, sections 3 and 4) for a pinhole camera. The surface is ``z r`` with rays
    r = K^-1 (u, v, 1); ``n . d(z r)/du = 0`` reads ``(n . r) d log z / du + n . dr/du = 0``, scaled by the focal length, and alike for v.
    At every pixel the right and the left difference both fulfil it, with weights w and 1 - w where w = sigmoid(sharpness (left^2 -
    right^2)): next to a jump the side that stays on the surface counts. Added here: ``prior_weight (log z - log depth)^2``, so that
    every connected part has its place; a part wider than about ``6 focal / sqrt(prior_weight)`` pixels follows ``depth`` rather than
    the normals in its broad shape. Iteratively reweighted least squares, each solved exactly, on the CPU in float64. The first weights
    come from the coarse depth, where the paper starts from 1/2: with its jumps known from the start, a jump that cuts a part in two
    survives a small ``prior_weight``; a constant coarse depth gives 1/2 again.

    Args:
        normals: unit, camera frame, facing the camera; read inside the mask only.
        depth: coarse depth, cm, positive inside the mask.
        mask: where to integrate.
        intrinsics: pixels.
        prior_weight: weight of the coarse depth, > 0.
        sharpness: the k of the paper; larger keeps smaller jumps.
        iterations: at most so many reweightings.
        tolerance: stop once the energy changes by less than this fraction.

    Returns:
        Depth, 0 outside the mask; dtype and device of ``depth``. Not differentiable.

    Raises:
        ValueError: an empty mask, depth that is not positive or normals that are not finite inside it, ``prior_weight`` not positive.
    """
    inside = mask[0].detach().cpu().numpy()
    coarse = depth[0].detach().cpu().double().numpy()[inside]
    facing = normals.detach().cpu().double().numpy()[:, inside]
    if prior_weight <= 0 or not inside.any() or not np.isfinite(facing).all() or not (np.isfinite(coarse) & (coarse > 0)).all():
        raise ValueError("normal integration needs a valid pixel, positive depth and finite normals in the mask, and prior_weight > 0")
    axes = _equations(facing, inside, intrinsics.detach().cpu().double().numpy())
    solution = _reweighted(axes, np.log(coarse), prior_weight, sharpness, iterations, tolerance)
    result = np.zeros(inside.shape)
    result[inside] = np.exp(solution)
    return torch.from_numpy(result)[None].to(depth)


def _equations(normals: FloatArray, inside: npt.NDArray[np.bool_], intrinsics: FloatArray) -> tuple[_Axis, _Axis]:
    """The equations along x and along y; unknowns are numbered in the order of ``inside.nonzero()``."""
    inverse = np.linalg.inv(intrinsics)
    row, column = inside.nonzero()
    towards = (normals * (inverse @ np.stack([column + 0.5, row + 0.5, np.ones(len(row))]))).sum(axis=0)
    number = np.full(inside.shape, -1)
    number[inside] = np.arange(len(row))
    axes = []
    for column_of_inverse, pairs in ((0, (number[:, :-1], number[:, 1:])), (1, (number[:-1], number[1:]))):
        both = (pairs[0] >= 0) & (pairs[1] >= 0)
        focal = 1 / np.linalg.norm(inverse[:, column_of_inverse])
        axes.append(_Axis(pairs[0][both], pairs[1][both], focal * towards, focal * inverse[:, column_of_inverse] @ normals))
    return axes[0], axes[1]


def _reweighted(
    axes: tuple[_Axis, _Axis], prior: FloatArray, prior_weight: float, sharpness: float, iterations: int, tolerance: float
) -> FloatArray:
    """Iteratively reweighted least squares: weights from the differences of the last solution, then a new solution."""
    count = len(prior)
    start, end = (np.concatenate([axis[side] for axis in axes]) for side in (0, 1))
    edges = np.tile(np.arange(len(start)), 2)
    signs = np.repeat([-1.0, 1.0], len(start))
    differences = csc_array((signs, (edges, np.concatenate([start, end]))), shape=(len(start), count))
    solution, energy = prior, np.inf
    right = [_right(axis, prior, sharpness) for axis in axes]
    for _ in range(iterations):
        strength = np.concatenate([_edges(axis, weight, axis.steepness**2) for axis, weight in zip(axes, right, strict=True)])
        target = np.concatenate([_edges(axis, weight, -axis.steepness * axis.offset) for axis, weight in zip(axes, right, strict=True)])
        matrix = differences.T @ diags_array(strength) @ differences + prior_weight * eye_array(count)
        factors = splu(matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0, options={"SymmetricMode": True})
        solution = factors.solve(differences.T @ target + prior_weight * prior)
        before, energy = energy, prior_weight * float(np.square(solution - prior).sum())
        for index, axis in enumerate(axes):
            right[index] = _right(axis, solution, sharpness)
            residuals = [np.square(slopes + axis.offset) for slopes in _slopes(axis, solution)]
            energy += float((right[index] * residuals[0] + (1 - right[index]) * residuals[1]).sum())
        if abs(before - energy) <= tolerance * energy:
            break
    return solution


def _edges(axis: _Axis, right: FloatArray, values: FloatArray) -> FloatArray:
    """What an edge gets: it is the right difference of its start and the left difference of its end."""
    return (right * values)[axis.start] + ((1 - right) * values)[axis.end]


def _right(axis: _Axis, solution: FloatArray, sharpness: float) -> FloatArray:
    """The weight of the right difference: above 1/2 where the left one is the steeper of the two."""
    right, left = _slopes(axis, solution)
    return expit(sharpness * (np.square(left) - np.square(right)))


def _slopes(axis: _Axis, solution: FloatArray) -> tuple[FloatArray, FloatArray]:
    """``steepness * d log(depth)`` by the right difference and by the left one.

    A difference that leaves the mask counts as what the normal says: so a pixel at the border neither clings to its only neighbour
    nor ignores it, and has no residual on the missing side.
    """
    step = solution[axis.end] - solution[axis.start]
    right, left = -axis.offset, -axis.offset
    right[axis.start] = axis.steepness[axis.start] * step
    left[axis.end] = axis.steepness[axis.end] * step
    return right, left
