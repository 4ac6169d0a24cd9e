"""Gradients of the projection: from the moments that the tiles gathered to the Gaussians and the camera, sixteen at a time.

Letters as in ``ReferenceRenderer``; ``U = J Q R S`` (2 x 3) holds the axes of a splat, its covariance is ``U U^T + eps2d I``. A moment is
a sum over pixels of the gradient to log alpha times powers of u and v, so with ``A = [[a, 0], [b, c]]`` the gradient to the mean is
``2 ln 2 A^T (m_u, m_v)`` and that to the covariance ``2 (ln 2)^2 A^T [[m_uu, m_uv], [m_uv, m_vv]] A``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy.typing as npt

from mggtalk.rendering.cpu_layout import LOG2_E, Plan, Scene
from mggtalk.rendering.cpu_project import (
    Vectors,
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
from mggtalk.rendering.simd_memory import load, load_rows, store, store_rows

Rows = tuple[Vectors, Vectors]
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
def covariance_gradient(rows: Array) -> Vectors:
    """Gradients to the xx, xy (which stands for both of its places) and yy of splats."""
    a, b, c = load(rows, 112), load(rows, 128), load(rows, 144)
    muu, muv, mvv = load(rows, 48), load(rows, 64), load(rows, 80)
    factor = 2.0 * LN_2 * LN_2
    first, second = fma(a, muu, b * muv), fma(a, muv, b * mvv)
    return fma(first, a, second * b) * factor, second * c * (2.0 * factor), c * c * mvv * factor


@compiled(inline=True)
def add_outer(totals: Array, at: int, x: Vector, y: Vectors) -> None:
    """Add ``x y`` to three sums."""
    store(totals, at, fma(x, y[0], load(totals, at)))
    store(totals, at + 16, fma(x, y[1], load(totals, at + 16)))
    store(totals, at + 32, fma(x, y[2], load(totals, at + 32)))


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
def scale_gradient(turn: tuple[Vectors, Vectors, Vectors], seen: Rows, to_axes: Rows) -> Vectors:
    """Gradients to the scales, from those to ``U``; ``seen`` is J Q."""
    (above, below), (to_above, to_below) = seen, to_axes
    first = fma(to_above[0], dot3(above, turn[0]), to_below[0] * dot3(below, turn[0]))
    second = fma(to_above[1], dot3(above, turn[1]), to_below[1] * dot3(below, turn[1]))
    return first, second, fma(to_above[2], dot3(above, turn[2]), to_below[2] * dot3(below, turn[2]))


@compiled(inline=True)
def turn_gradient(quaternion: Vectors, inverse: Vector, scale: Vectors, seen: Rows, to_axes: Rows) -> Vectors:
    """Gradients to the quaternions, from those to ``U``; ``seen`` is J Q."""
    (above, below), (to_above, to_below) = seen, to_axes
    first = mix(to_above[0] * scale[0], above, to_below[0] * scale[0], below)
    second = mix(to_above[1] * scale[1], above, to_below[1] * scale[1], below)
    third = mix(to_above[2] * scale[2], above, to_below[2] * scale[2], below)
    return quaternion_gradient(quaternion, inverse, first, second, third)


@compiled(inline=True)
def mix(x: Vector, first: Vectors, y: Vector, second: Vectors) -> Vectors:
    """``x first + y second``."""
    return fma(x, first[0], y * second[0]), fma(x, first[1], y * second[1]), fma(x, first[2], y * second[2])


@compiled(inline=True)
def only3(mask: Mask, x: Vectors) -> Vectors:
    """The same where the mask is set, else 0: lanes that hold nothing of use may hold infinities."""
    return select(mask, x[0], 0.0), select(mask, x[1], 0.0), select(mask, x[2], 0.0)


@compiled(inline=True)
def times(row: Vectors, factor: Vectors) -> Vectors:
    """Products, coordinate by coordinate."""
    return row[0] * factor[0], row[1] * factor[1], row[2] * factor[2]


@compiled(inline=True)
def point_gradient(
    camera: Array, rows: Array, tangent: Vectors, anchor: Vectors, per_depth: Vector, through: Vector, to_anchor: Vectors
) -> Vectors:
    """Gradient to the points in camera space: through the means and depths of the splats, and through the Jacobians."""
    to_x, to_y = mean_gradient(rows)
    free_x = (anchor[0] >= tangent[0]) & (anchor[0] <= tangent[0])
    free_y = (anchor[1] >= tangent[1]) & (anchor[1] <= tangent[1])
    across = fma(to_x, splat(camera[12]), to_y * camera[15]) + select(free_x, to_anchor[0], 0.0)
    down = fma(to_x, splat(camera[13]), to_y * camera[16]) + select(free_y, to_anchor[1], 0.0)
    shrink = through + fma(across, tangent[0], down * tangent[1])
    return across * per_depth, down * per_depth, load(rows, 96) - per_depth * shrink


@compiled(inline=True)
def mean_gradient(rows: Array) -> Vectors:
    """Gradients to the means of splats."""
    a, b, c, mu, mv = load(rows, 112), load(rows, 128), load(rows, 144), load(rows, 16), load(rows, 32)
    return fma(a, mu, b * mv) * (2.0 * LN_2), c * mv * (2.0 * LN_2)


@compiled(inline=True)
def add_rotation(totals: Array, row: int, point: Vector, mean: Vectors, above: Vector, below: Vector, to_seen: Rows) -> None:
    """Add to the sums for one row of the camera's rotation and for one coordinate of its translation."""
    add_outer(totals, 48 * row, point, mean)
    add_outer(totals, 48 * row, above, to_seen[0])
    add_outer(totals, 48 * row, below, to_seen[1])
    store(totals, 144 + 16 * row, load(totals, 144 + 16 * row) + point)


@compiled(inline=True)
def add_intrinsics(
    totals: Array, row: int, to_mean: Vector, tangent: Vectors, anchor: Vectors, to_jacobian: Vectors, per_depth: Vector
) -> None:
    """Add to the sums for one row of the intrinsics, through the means and through the Jacobians."""
    lean = to_jacobian[2] * per_depth
    across, down = fnma(lean, anchor[0], to_jacobian[0] * per_depth), fnma(lean, anchor[1], to_jacobian[1] * per_depth)
    add_outer(totals, 192 + 48 * row, splat(1.0), (fma(to_mean, tangent[0], across), fma(to_mean, tangent[1], down), to_mean))


@compiled(inline=True)
def add_where(totals: Array, at: int, mask: Mask, x: Vector) -> None:
    """Add to a sum where the mask is set."""
    store(totals, at, load(totals, at) + select(mask, x, 0.0))


@compiled(inline=True)
def add_camera(
    camera: Array, totals: Array, rows: Array, mean: Vectors, point: Vectors, tangent: Vectors, per_depth: Vector, to_seen: Rows
) -> None:
    """Add to the sums for every number of the camera."""
    anchor = clamped(camera, tangent)
    above, below = jacobian_row(camera, 0, anchor, per_depth), jacobian_row(camera, 1, anchor, per_depth)
    to_above, to_below = from_camera(camera, to_seen[0]), from_camera(camera, to_seen[1])
    to_anchor = anchor_gradient(camera, to_above, to_below, per_depth)
    to_x, to_y = mean_gradient(rows)
    add_rotation(totals, 0, point[0], mean, above[0], below[0], to_seen)
    add_rotation(totals, 1, point[1], mean, above[1], below[1], to_seen)
    add_rotation(totals, 2, point[2], mean, above[2], below[2], to_seen)
    add_intrinsics(totals, 0, to_x, tangent, anchor, to_above, per_depth)
    add_intrinsics(totals, 1, to_y, tangent, anchor, to_below, per_depth)
    add_where(totals, 288, tangent[0] < camera[18], to_anchor[0])
    add_where(totals, 304, tangent[1] < camera[19], to_anchor[1])
    add_where(totals, 320, tangent[0] > camera[20], to_anchor[0])
    add_where(totals, 336, tangent[1] > camera[21], to_anchor[1])


@compiled(inline=True)
def anchor_gradient(camera: Array, to_above: Vectors, to_below: Vectors, per_depth: Vector) -> Vectors:
    """Gradients to the tangents where the Jacobian is taken, through its last column."""
    across = fma(to_above[2], splat(camera[12]), to_below[2] * camera[15]) * per_depth
    down = fma(to_above[2], splat(camera[13]), to_below[2] * camera[16]) * per_depth
    return 0.0 - across, 0.0 - down


@compiled()
def project_back_vector(plan: Plan, scene: Scene, outcome: Outcome, base: int, rows: Array, totals: Array) -> None:
    """Sixteen Gaussians from moments to gradients; the camera's are added to ``totals``.

    ``rows`` holds as vectors what was gathered (moments, then depth) and from place 112 a, b, c of the records, all 0 for a Gaussian that
    no tile reached.
    """
    camera, found = scene.camera, load(rows, 112) > 0.0
    mean, scale = only3(found, load_rows(scene.means, base, 3)), only3(found, load_rows(scene.scales, base, 3))
    x, y, z = in_camera(camera, mean)
    per_depth = 1.0 / select(found, z, 1.0)
    tangent = (x * per_depth, y * per_depth)
    w, i, j, k = load_rows(scene.quaternions, base, 4)
    quaternion, inverse = unit((select(found, w, 1.0), select(found, i, 0.0), select(found, j, 0.0), select(found, k, 0.0)))
    turn, anchor = rotation(quaternion), clamped(camera, tangent)
    above, below = jacobian_row(camera, 0, anchor, per_depth), jacobian_row(camera, 1, anchor, per_depth)
    seen = (times_rotation(above, camera), times_rotation(below, camera))
    across, down = axes(seen[0], turn, scale), axes(seen[1], turn, scale)
    xx, xy, yy = covariance_gradient(rows)
    to_axes = (mix(2.0 * xx, across, xy, down), mix(2.0 * yy, down, xy, across))
    store_rows(outcome.scales, base, scale_gradient(turn, seen, to_axes))
    store_rows(outcome.quaternions, base, turn_gradient(quaternion, inverse, scale, seen, to_axes))
    to_seen = (times_columns(times(to_axes[0], scale), turn), times_columns(times(to_axes[1], scale), turn))
    to_above, to_below = from_camera(camera, to_seen[0]), from_camera(camera, to_seen[1])
    through = dot3(above, to_above) + dot3(below, to_below)
    to_anchor = anchor_gradient(camera, to_above, to_below, per_depth)
    point = point_gradient(camera, rows, tangent, anchor, per_depth, through, to_anchor)
    store_rows(outcome.means, base, times_rotation(point, camera))
    store(outcome.opacities, base, load(rows, 0) / select(found, load(scene.opacities, base), 1.0))
    if plan.for_camera:
        add_camera(camera, totals, rows, mean, point, tangent, per_depth, to_seen)
