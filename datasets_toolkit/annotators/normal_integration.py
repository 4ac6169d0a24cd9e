"""Depth from normals: the surface that has given normals, near a coarse depth, with jumps where the normals ask for them.

Bilateral normal integration (Cao et al., "Bilateral normal integration", ECCV 2022, sections 3 and 4) for a pinhole camera.

Letters: r = K^-1 (u, v, 1) the ray of a pixel, n its normal, z its depth, so that the surface is z r. The derivative of the surface along u
is at right angles to n: ``n . d(z r)/du = 0``, which reads ``(n . r) d log z / du + n . dr/du = 0``; the paper scales it by the focal
length. Alike along v. At every pixel the right and the left difference of log z both fulfil it, with weights w and 1 - w, where
``w = sigmoid(k (left^2 - right^2))`` of the two slopes: next to a jump the side that stays on the surface counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse import csc_array, diags_array, eye_array
from scipy.sparse.linalg import splu
from scipy.special import expit

from datasets_toolkit.annotators.base import DepthAnnotator, FaceCrop, Map, NormalAnnotator, Parsing, make_annotator
from datasets_toolkit.annotators.mesh_depth import MeshDepth
from datasets_toolkit.errors import UserError
from datasets_toolkit.schema import FloatArray

MASK = npt.NDArray[np.bool_]


class IntegratedDepth(DepthAnnotator):
    """The depth whose surface has the normals of another annotator, in the place and scale of a coarse depth.

    Args:
        normals: the annotator that gives them, or its ``class_path`` and ``init_args``.
        coarse: the annotator of the coarse depth, alike; by default :class:`MeshDepth`.
        prior_weight: weight of the coarse depth; at 5000 shapes smaller than a quarter of the crop follow the normals, whatever its size.
        sharpness: the k of the paper; 0 keeps no jumps.

    Raises:
        UserError: an annotator of another family, or a prior that is not positive.
    """

    version = 1

    def __init__(
        self,
        normals: NormalAnnotator | Mapping[str, Any],
        *,
        coarse: DepthAnnotator | Mapping[str, Any] | None = None,
        prior_weight: float = 5000.0,
        sharpness: float = 2.0,
    ) -> None:
        if not prior_weight > 0:
            raise UserError(f"prior_weight {prior_weight}: give a positive number; without a prior, depth has no scale")
        self.normals: NormalAnnotator = make_annotator(normals, NormalAnnotator)
        self.coarse: DepthAnnotator = make_annotator(coarse or MeshDepth(), DepthAnnotator)
        self.prior_weight, self.sharpness = prior_weight, sharpness

    def provenance(self) -> dict[str, str]:
        """What the two annotators tell, joined."""
        told = [annotator.provenance() for annotator in (self.normals, self.coarse)]
        return {key: " + ".join(one[key] for one in told if key in one) for key in {key: None for one in told for key in one}}

    def close(self) -> None:
        """Release both annotators."""
        self.normals.close()
        self.coarse.close()

    def __call__(self, crop: FaceCrop, parsing: Parsing) -> Map:
        """Depth (s x s, cm) wherever ``parsing`` shows a part of the head; 0 elsewhere."""
        coarse = self.coarse(crop, parsing)
        known = coarse > 0
        if not known.any():
            return coarse
        normals = self.normals(crop, parsing, coarse)
        weight = self.prior_weight
        return np.asarray(
            integrate_normals(normals, coarse, known, crop.intrinsics, prior_weight=weight, sharpness=self.sharpness), np.float32
        )


class _Axis(NamedTuple):
    """The equations along one image axis: ``steepness * d log z + offset = 0`` at every pixel; edges join neighbours."""

    start: npt.NDArray[np.intp]
    end: npt.NDArray[np.intp]
    steepness: FloatArray
    offset: FloatArray


def integrate_normals(
    normals: npt.NDArray[np.floating[Any]],
    depth: npt.NDArray[np.floating[Any]],
    mask: MASK,
    intrinsics: FloatArray,
    *,
    prior_weight: float,
    sharpness: float = 2.0,
    iterations: int = 10,
    tolerance: float = 1e-3,
) -> npt.NDArray[np.floating[Any]]:
    """Depth (h x w, cm, dtype of ``depth``) whose surface has the given normals; 0 outside the mask.

    To the equations at the head of this file is added ``prior_weight (log z - log depth)^2``, so that every connected part has its place; a
    part wider than about ``6 focal / sqrt(prior_weight)`` pixels follows ``depth`` rather than the normals in its broad shape. Iteratively
    reweighted least squares, each solved exactly. The first weights come from the coarse depth, where the paper starts from 1/2: with
    its jumps known from the start, a jump that cuts a part in two survives a small ``prior_weight``; a constant coarse depth
    gives 1/2 again.

    Args:
        normals: h x w x 3, unit, camera frame, facing the camera; read inside the mask only.
        depth: h x w, coarse depth, cm, positive inside the mask.
        mask: h x w, where to integrate.
        intrinsics: 3 x 3, pixels.
        prior_weight: weight of the coarse depth, > 0.
        sharpness: the k of the paper; larger keeps smaller jumps, 0 keeps none.
        iterations: at most so many reweightings.
        tolerance: stop once the energy changes by less than this fraction.

    Raises:
        ValueError: an empty mask, depth that is not positive or normals that are not finite inside it, ``prior_weight`` not positive.
    """
    coarse, facing = depth[mask].astype(np.float64), normals[mask].astype(np.float64).T
    if prior_weight <= 0 or not mask.any() or not np.isfinite(facing).all() or not (np.isfinite(coarse) & (coarse > 0)).all():
        raise ValueError("normal integration needs a valid pixel, positive depth and finite normals in the mask, and prior_weight > 0")
    solution = _reweighted(_equations(facing, mask, intrinsics), np.log(coarse), prior_weight, sharpness, iterations, tolerance)
    result = np.zeros(mask.shape, depth.dtype)
    result[mask] = np.exp(solution)
    return result


def _equations(normals: FloatArray, inside: MASK, intrinsics: FloatArray) -> tuple[_Axis, _Axis]:
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
    return np.asarray(expit(sharpness * (np.square(left) - np.square(right))))


def _slopes(axis: _Axis, solution: FloatArray) -> tuple[FloatArray, FloatArray]:
    """``steepness * d log z`` by the right difference and by the left one.

    A difference that leaves the mask counts as what the normal says: so a pixel at the border neither clings to its only neighbour
    nor ignores it, and has no residual on the missing side.
    """
    step = solution[axis.end] - solution[axis.start]
    right, left = -axis.offset, -axis.offset
    right[axis.start] = axis.steepness[axis.start] * step
    left[axis.end] = axis.steepness[axis.end] * step
    return right, left
