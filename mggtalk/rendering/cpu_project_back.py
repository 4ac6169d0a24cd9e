"""Gradients of the projection: from the moments that the tiles gathered to the Gaussians and the camera, sixteen at a time.

Letters as in ``ReferenceRenderer``; ``U = J Q R S`` (2 x 3) holds the axes of a splat, its covariance is ``U U^T + eps2d I``. A moment is
a sum over pixels of the gradient to log alpha times powers of u and v, so with ``A = [[a, 0], [b, c]]`` the gradient to the mean is
``2 ln 2 A^T (m_u, m_v)`` and that to the covariance ``2 (ln 2)^2 A^T [[m_uu, m_uv], [m_uv, m_vv]] A``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mggtalk.rendering.cpu_bins import sides
from mggtalk.rendering.cpu_layout import CAMERA, CHUNK, LOG2_E, MOMENTS, PROJECT_BACK, Lists, Pairs, Plan, Scene
from mggtalk.rendering.cpu_project import (
    Vectors,
    apply_intrinsics,
    axes,
    camera_row,
    clamped,
    dot3,
    in_camera,
    jacobian_row,
    rotation,
    times_rotation,
    unit,
)
from mggtalk.rendering.simd import Array, Mask, Vector, compiled, fma, fnma, select, splat
from mggtalk.rendering.simd_memory import load, load_rows, prefetch, store, take_next, total

LN_2 = 1 / LOG2_E


class Outcome(NamedTuple):
    """Gradients to the inputs, flat float32; those to the camera are of each chunk of Gaussians."""

    means: npt.NDArray
    quaternions: npt.NDArray
    scales: npt.NDArray
    opacities: npt.NDArray
    features: npt.NDArray
    cameras: npt.NDArray


@compiled(inline=True)
def gather(plan: Plan, lists: Lists, pairs: Pairs, gathered: Array, reached: Array, index: int, row: Array, at: int) -> bool:
    """Sum what the tiles gathered for one Gaussian, in the order of the tiles, to ``row[at ...]``; False if no tile reached it."""
    first_column, end_column, first_row, end_row = sides(lists.rects[index])
    area = (end_column - first_column) * (end_row - first_row)
    found = False
    if area > 0:
        first = pairs.first_slot[index]
        for slot in range(first, first + area):
            place = np.int64(pairs.slots[slot])
            if reached[place]:
                for part in range(0, plan.gradient_stride, 16):
                    more = load(gathered, place * plan.gradient_stride + part)
                    store(row, at + part, load(row, at + part) + more if found else more)
                found = True
    return found


@compiled(inline=True)
def covariance_gradient(record: Array, moments: Vectors) -> Vectors:
    """Gradients to xx, xy (which stands for both of its places) and yy; ``record`` holds a, b, c."""
    a, b, c = load(record, 0), load(record, 16), load(record, 32)
    factor = 2.0 * LN_2 * LN_2
    first, second = fma(a, moments[0], b * moments[1]), fma(a, moments[1], b * moments[2])
    return fma(first, a, second * b) * factor, second * c * (2.0 * factor), c * c * moments[2] * factor


@compiled(inline=True)
def outer_add(sums_out: Array, at: int, x: Vector, y: Vectors) -> None:
    """Add ``x y`` to three sums."""
    store(sums_out, at, fma(x, y[0], load(sums_out, at)))
    store(sums_out, at + 16, fma(x, y[1], load(sums_out, at + 16)))
    store(sums_out, at + 32, fma(x, y[2], load(sums_out, at + 32)))


@compiled(inline=True)
def times_columns(row: Vectors, turn: tuple[Vectors, Vectors, Vectors]) -> Vectors:
    """A row vector times the transpose of R, whose columns are given."""
    first = fma(row[0], turn[0][0], fma(row[1], turn[1][0], row[2] * turn[2][0]))
    second = fma(row[0], turn[0][1], fma(row[1], turn[1][1], row[2] * turn[2][1]))
    return first, second, fma(row[0], turn[0][2], fma(row[1], turn[1][2], row[2] * turn[2][2]))


@compiled(inline=True)
def from_camera(camera: Array, row: Vectors) -> Vectors:
    """A row vector times the transpose of the camera's rotation."""
    return dot3(row, camera_row(camera, 0)), dot3(row, camera_row(camera, 1)), dot3(row, camera_row(camera, 2))


@compiled(inline=True)
def quaternion_gradient(quaternion: Vectors, inverse: Vector, first: Vectors, second: Vectors, third: Vectors) -> Vectors:
    """From gradients to the columns of R to those to the quaternion before it is normalised."""
    w, x, y, z = quaternion
    (r00, r10, r20), (r01, r11, r21), (r02, r12, r22) = first, second, third
    to_w = 2.0 * fma(x, r21 - r12, fma(y, r02 - r20, z * (r10 - r01)))
    to_x = 2.0 * fma(y, r01 + r10, fma(z, r02 + r20, fma(w, r21 - r12, x * (r11 + r22) * -2.0)))
    to_y = 2.0 * fma(x, r01 + r10, fma(z, r12 + r21, fma(w, r02 - r20, y * (r00 + r22) * -2.0)))
    to_z = 2.0 * fma(x, r02 + r20, fma(y, r12 + r21, fma(w, r10 - r01, z * (r00 + r11) * -2.0)))
    along = fma(w, to_w, fma(x, to_x, fma(y, to_y, z * to_z)))
    return fnma(along, w, to_w) * inverse, fnma(along, x, to_x) * inverse, fnma(along, y, to_y) * inverse, fnma(along, z, to_z) * inverse


@compiled(inline=True)
def tangent_gradient(camera: Array, to_jacobian: Vectors, to_second: Vectors, per_depth: Vector, coordinate: int) -> Vector:
    """Gradient to one (clamped) tangent, through the last column of the Jacobian."""
    return 0.0 - fma(to_jacobian[2], splat(camera[12 + coordinate]), to_second[2] * camera[15 + coordinate]) * per_depth


@compiled()
def project_back_vector(plan: Plan, scene: Scene, base: int, rows: Array, sums_out: Array, out: Array) -> None:
    """Sixteen Gaussians from moments to gradients, 11 vectors in ``out``: means, quaternions, scales, opacities; camera to ``sums_out``.

    ``rows`` holds, each as a vector, what was gathered (moments, then depth) and from place 112 a, b, c of the records.
    """
    camera, mean = scene.camera, load_rows(scene.means, base, 3)
    x, y, z = in_camera(camera, mean)
    per_depth = 1.0 / z
    tangent = (x * per_depth, y * per_depth)
    quaternion, inverse = unit(load_rows(scene.quaternions, base, 4))
    turn, scale = rotation(quaternion), load_rows(scene.scales, base, 3)
    anchor = clamped(camera, tangent)
    jacobian, jacobian_below = jacobian_row(camera, 0, anchor, per_depth), jacobian_row(camera, 1, anchor, per_depth)
    seen, seen_below = times_rotation(jacobian, camera), times_rotation(jacobian_below, camera)
    across, down = axes(seen, turn, scale), axes(seen_below, turn, scale)
    xx, xy, yy = covariance_gradient(rows[112:160], (load(rows, 48), load(rows, 64), load(rows, 80)))
    to_across = (
        fma(2.0 * xx, across[0], xy * down[0]),
        fma(2.0 * xx, across[1], xy * down[1]),
        fma(2.0 * xx, across[2], xy * down[2]),
    )
    to_down = (fma(2.0 * yy, down[0], xy * across[0]), fma(2.0 * yy, down[1], xy * across[1]), fma(2.0 * yy, down[2], xy * across[2]))
    store_shape_gradient(scene, quaternion, inverse, turn, scale, seen, seen_below, to_across, to_down, out)
    to_across = (to_across[0] * scale[0], to_across[1] * scale[1], to_across[2] * scale[2])
    to_down = (to_down[0] * scale[0], to_down[1] * scale[1], to_down[2] * scale[2])
    to_seen, to_seen_below = times_columns(to_across, turn), times_columns(to_down, turn)
    to_jacobian, to_jacobian_below = from_camera(camera, to_seen), from_camera(camera, to_seen_below)
    to_x = tangent_gradient(camera, to_jacobian, to_jacobian_below, per_depth, 0)
    to_y = tangent_gradient(camera, to_jacobian, to_jacobian_below, per_depth, 1)
    a, b, c, mu, mv = load(rows, 112), load(rows, 128), load(rows, 144), load(rows, 16), load(rows, 32)
    to_mean_x, to_mean_y = fma(a, mu, b * mv) * (2.0 * LN_2), c * mv * (2.0 * LN_2)
    free_x, free_y = (anchor[0] >= tangent[0]) & (anchor[0] <= tangent[0]), (anchor[1] >= tangent[1]) & (anchor[1] <= tangent[1])
    tangent_x = fma(to_mean_x, splat(camera[12]), to_mean_y * camera[15]) + select(free_x, to_x, 0.0)
    tangent_y = fma(to_mean_x, splat(camera[13]), to_mean_y * camera[16]) + select(free_y, to_y, 0.0)
    to_z = load(rows, 96) - per_depth * (dot3(jacobian, to_jacobian) + dot3(jacobian_below, to_jacobian_below))
    to_z = to_z - per_depth * fma(tangent_x, tangent[0], tangent_y * tangent[1])
    point = (tangent_x * per_depth, tangent_y * per_depth, to_z)
    moved = times_rotation(point, camera)
    store(out, 0, moved[0])
    store(out, 16, moved[1])
    store(out, 32, moved[2])
    for row in range(3):
        weight = point[0] if row == 0 else (point[1] if row == 1 else point[2])
        below = (jacobian[0], jacobian_below[0]) if row == 0 else ((jacobian[1], jacobian_below[1]) if row == 1 else (jacobian[2], jacobian_below[2]))
        outer_add(sums_out, 48 * row, weight, mean)
        outer_add(sums_out, 48 * row, below[0], to_seen)
        outer_add(sums_out, 48 * row, below[1], to_seen_below)
        store(sums_out, 144 + 16 * row, load(sums_out, 144 + 16 * row) + weight)
    one = splat(1.0)
    outer_add(sums_out, 192, to_mean_x, (tangent[0], tangent[1], one))
    outer_add(sums_out, 240, to_mean_y, (tangent[0], tangent[1], one))
    zero = splat(0.0)
    lean, lean_below = to_jacobian[2] * per_depth, to_jacobian_below[2] * per_depth
    outer_add(sums_out, 192, one, (fnma(lean, anchor[0], to_jacobian[0] * per_depth), fnma(lean, anchor[1], to_jacobian[1] * per_depth), zero))
    outer_add(
        sums_out,
        240,
        one,
        (fnma(lean_below, anchor[0], to_jacobian_below[0] * per_depth), fnma(lean_below, anchor[1], to_jacobian_below[1] * per_depth), zero),
    )
    add_where(sums_out, 288, tangent[0] < camera[18], to_x)
    add_where(sums_out, 304, tangent[1] < camera[19], to_y)
    add_where(sums_out, 320, tangent[0] > camera[20], to_x)
    add_where(sums_out, 336, tangent[1] > camera[21], to_y)


@compiled(inline=True)
def add_where(sums_out: Array, at: int, mask: Mask, x: Vector) -> None:
    """Add to a sum where the mask is set."""
    store(sums_out, at, load(sums_out, at) + select(mask, x, 0.0))
